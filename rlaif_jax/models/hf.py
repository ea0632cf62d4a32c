"""Hugging Face directories in and out, safetensors only: `load` reads each device's slices, `save` writes what
transformers reads.

`TABLE` is the whole correspondence: our name, their name, and the letters of their axes. A family that stores the same
tensors under other names is another table.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from rlaif_jax import axes
from rlaif_jax.config import Mistake
from rlaif_jax.models import heads, transformer
from rlaif_jax.models.presets import resolve
from rlaif_jax.models.transformer import Config, Params
from rlaif_jax.text import Tokenizer

# ours -> (theirs, the letters of their axes, grouped as they flatten them). '{}' is the layer, which they store apart.
TABLE: Mapping[str, tuple[str, str]] = {
    'embed_VD': ('model.embed_tokens.weight', 'V D'),
    'attention_norm_LD': ('model.layers.{}.input_layernorm.weight', 'D'),
    'query_LDNH': ('model.layers.{}.self_attn.q_proj.weight', 'NH D'),
    'key_LDKH': ('model.layers.{}.self_attn.k_proj.weight', 'KH D'),
    'value_LDKH': ('model.layers.{}.self_attn.v_proj.weight', 'KH D'),
    'out_LNHD': ('model.layers.{}.self_attn.o_proj.weight', 'D NH'),
    'mlp_norm_LD': ('model.layers.{}.post_attention_layernorm.weight', 'D'),
    'gate_LDF': ('model.layers.{}.mlp.gate_proj.weight', 'F D'),
    'up_LDF': ('model.layers.{}.mlp.up_proj.weight', 'F D'),
    'down_LFD': ('model.layers.{}.mlp.down_proj.weight', 'D F'),
    'final_norm_D': ('model.norm.weight', 'D'),
    'unembed_DV': ('lm_head.weight', 'V D'),
}
SCORE = 'score.weight'  # (1, D): what a reward model, a LlamaForSequenceClassification with one label, has for a head

ACTIVATION = {'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'gelu_pytorch_tanh': 'gelu_tanh'}

# Fields of a Llama config.json that do not change the mathematics of inference, whatever they hold.
HARMLESS = {
    'architectures', 'model_type', 'bos_token_id', 'eos_token_id', 'pad_token_id', 'dtype', 'torch_dtype',
    'transformers_version', 'initializer_range', 'use_cache', 'pretraining_tp', 'attention_dropout', '_name_or_path',
    'id2label', 'label2id', 'auto_map', 'chunk_size_feed_forward', 'is_encoder_decoder', 'output_attentions',
    'output_hidden_states', 'problem_type', 'return_dict', 'tokenizer_class',
}  # fmt: skip
# Fields we read, and fields that are fine only at one value.
READ = {
    'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'num_key_value_heads',
    'head_dim', 'max_position_embeddings', 'rms_norm_eps', 'rope_theta', 'rope_parameters', 'tie_word_embeddings',
    'hidden_act',
}  # fmt: skip
ONLY: Mapping[str, tuple[Any, ...]] = {
    'attention_bias': (False, None),
    'mlp_bias': (False, None),
    'rope_scaling': (None,),
    'partial_rotary_factor': (1, 1.0, None),
    'sliding_window': (None,),
    'quantization_config': (None,),
}


CARD = """---
library_name: transformers
pipeline_tag: {task}
tags: [rlaif]
---
{about}

Weights in {dtype}, written by [rlaif_jax](https://arxiv.org/abs/2309.00267), read by `transformers`, TRL and vLLM.
"""


@dataclass(frozen=True, eq=False)
class LM:
    """A language model as values: its sizes, its float32 parameters, its tokenizer, and where it came from."""

    config: Config
    params: Params
    tokenizer: Tokenizer
    name: str


def load(path_or_hub_id: str | Path, *, dtype: str = 'float32', mesh: Mesh | None = None) -> LM:
    """Read a Hugging Face directory, a hub id, or a packaged model (`micro_xs`) onto the mesh (default: the first
    device).

    Parameters are float32 whatever the file holds; `dtype` is that of the matrix products. Each device reads only its
    own slices. Raises `Mistake` for anything that is missing, torn, of another shape, or would change the mathematics
    if ignored.
    """
    folder = resolve(path_or_hub_id)
    config, tokenizer = read_config(folder, dtype=dtype), Tokenizer.load(folder)
    return LM(config, read_params(folder, config, mesh or axes.make_mesh()), tokenizer, str(path_or_hub_id))


def fingerprint(path_or_hub_id: str | Path) -> str:
    """Ten hex digits for the model a name stands for now: its sizes, its tokenizer, its weights.

    Of a file of more than 2 MiB, 512 pieces of 4 KiB from its beginning to its end, so that it is quick and a fine-tuned
    copy differs, whatever part of it was trained.
    """
    found, most = hashlib.sha256(), 2**21
    folder = resolve(path_or_hub_id)
    named = [folder / name for name in ('config.json', 'tokenizer.json', 'tokenizer_config.json')]
    for file in sorted([*folder.glob('*.safetensors'), *filter(Path.exists, named)]):
        size = file.stat().st_size
        found.update(f'{file.name} {size}'.encode())
        with open(file, 'rb') as stream:
            for piece in range(512 if size > most else 1):
                stream.seek(piece * (size - 4096) // 511 if size > most else 0)
                found.update(stream.read(4096 if size > most else most))
    return found.hexdigest()[:10]


def save(
    lm: LM, directory: str | Path, *, dtype: str = 'float32', shard_bytes: int = 5 * 2**30, about: str = ''
) -> None:
    """Write a directory that `transformers`, TRL and vLLM read, with a model card that says `about`.

    Parameters that hold `score_D` are those of a reward model, which is written as a `LlamaForSequenceClassification`
    with one label. The directory appears whole or not at all; one already there is replaced. Raises `Mistake` for a
    parameter that this layout has no place for.
    """
    if unwritten := sorted(set(lm.params) - set(table(lm.config)) - {'score_D'}):
        raise Mistake(f'{directory}: the Hugging Face layout written here has no place for {unwritten[0]}')
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f'.{directory.name}-', dir=directory.parent))
    try:
        new = work / 'new'
        new.mkdir()
        score = 'score_D' in lm.params
        config = write_config(lm.config, lm.tokenizer, dtype, score=score)
        (new / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
        ends = list(lm.tokenizer.ends)
        generation = {'pad_token_id': lm.tokenizer.pad, 'eos_token_id': ends[0] if len(ends) == 1 else ends}
        (new / 'generation_config.json').write_text(json.dumps(generation, indent=2) + '\n')
        _write_tokenizer(new, lm.tokenizer)
        task = 'text-classification' if score else 'text-generation'
        (new / 'README.md').write_text(CARD.format(about=about or f'A copy of `{lm.name}`.', dtype=dtype, task=task))
        _write_tensors(new, lm.config, lm.params, dtype, shard_bytes)
        for file in new.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner's eyes only
        if directory.exists():
            os.replace(directory, work / 'old')
        os.replace(new, directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def logits(lm: LM, token_BT: jax.Array | np.ndarray, mask_BT: jax.Array | np.ndarray | None = None) -> jax.Array:
    """Next-token logits, `(B, T, V)` float32, of rows padded on the right (mask_BT False on padding; default: none)."""
    token_BT = jax.numpy.asarray(token_BT)
    valid_BT = jax.numpy.ones(token_BT.shape, bool) if mask_BT is None else jax.numpy.asarray(mask_BT)
    return _logits(lm.config, lm.params, token_BT, valid_BT)


@partial(jax.jit, static_argnames='cfg')
def _logits(cfg: Config, params: Params, token_BT: jax.Array, valid_BT: jax.Array) -> jax.Array:
    hidden_BTD, _ = transformer.forward(cfg, params, token_BT, *transformer.causal(valid_BT))
    return heads.logits(cfg, params, hidden_BTD)


def read_config(folder: Path, *, dtype: str = 'float32') -> Config:
    """`config.json` as our `Config`. An unknown field, or a known one at a value we do not compute, is a `Mistake` that
    names it.
    """
    path = folder / 'config.json'
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise Mistake(f'{folder}: no config.json here; a Hugging Face directory has one') from None
    except json.JSONDecodeError as error:
        raise Mistake(f'{path}: not valid JSON ({error}); fetch the checkpoint again') from None
    if not isinstance(raw, dict):
        raise Mistake(f'{path}: not a table of fields; fetch the checkpoint again')
    kind = raw.get('model_type')
    if kind != 'llama':
        raise Mistake(f'{path}: model_type = {kind!r} is not supported; supported: llama')
    for field, value in raw.items():
        if field in ONLY and value not in ONLY[field]:
            raise Mistake(f'{path}: {field} = {value!r} is not supported (only {ONLY[field][0]!r})')
        if field not in HARMLESS | READ | set(ONLY):
            raise Mistake(f'{path}: unknown field {field!r}; it may change the mathematics, so it is not ignored')
    rope = raw.get('rope_parameters') or {}
    if rope.get('rope_type', 'default') != 'default':
        raise Mistake(f'{path}: rope_type = {rope["rope_type"]!r} is not supported (only default)')
    if unknown := sorted(set(rope) - {'rope_type', 'rope_theta'}):
        raise Mistake(f'{path}: unknown field rope_parameters.{unknown[0]}; it may change the mathematics')
    act = raw.get('hidden_act', 'silu')
    if act not in ACTIVATION:
        raise Mistake(f'{path}: hidden_act = {act!r} is not supported; supported: {", ".join(ACTIVATION)}')
    try:
        heads = raw['num_attention_heads']
        return Config(
            vocab=raw['vocab_size'],
            layers=raw['num_hidden_layers'],
            width=raw['hidden_size'],
            heads=heads,
            kv_heads=raw.get('num_key_value_heads') or heads,
            head_dim=raw.get('head_dim') or raw['hidden_size'] // heads,
            ffn=raw['intermediate_size'],
            max_length=raw.get('max_position_embeddings', 2048),
            activation=ACTIVATION[act],  # type: ignore[arg-type]
            rope_theta=float(rope.get('rope_theta', raw.get('rope_theta', 10_000.0))),
            norm_eps=raw.get('rms_norm_eps', 1e-6),
            tied=raw.get('tie_word_embeddings', False),
            dtype=dtype,  # type: ignore[arg-type]
        )
    except KeyError as error:
        raise Mistake(f'{path}: field {error} is missing') from None
    except (TypeError, ValueError) as error:
        raise Mistake(f'{path}: {error}') from None


def write_config(cfg: Config, tokenizer: Tokenizer, dtype: str = 'float32', *, score: bool = False) -> dict[str, Any]:
    """Our `Config` as the `config.json` of a `LlamaForCausalLM`; with `score`, of a reward model."""
    ends = list(tokenizer.ends)
    labels = {'id2label': {'0': 'score'}, 'label2id': {'score': 0}} if score else {}
    return labels | {
        'architectures': ['LlamaForSequenceClassification' if score else 'LlamaForCausalLM'],
        'model_type': 'llama',
        'vocab_size': cfg.vocab,
        'hidden_size': cfg.width,
        'intermediate_size': cfg.ffn,
        'num_hidden_layers': cfg.layers,
        'num_attention_heads': cfg.heads,
        'num_key_value_heads': cfg.kv_heads,
        'head_dim': cfg.head_dim,
        'max_position_embeddings': cfg.max_length,
        'rms_norm_eps': cfg.norm_eps,
        'rope_theta': cfg.rope_theta,
        'hidden_act': {ours: theirs for theirs, ours in reversed(ACTIVATION.items())}[cfg.activation],
        'tie_word_embeddings': cfg.tied,
        'attention_bias': False,
        'mlp_bias': False,
        'bos_token_id': tokenizer.hf.bos_token_id,
        'eos_token_id': ends[0] if len(ends) == 1 else ends,
        'pad_token_id': tokenizer.pad,
        'dtype': dtype,
    }


def table(cfg: Config) -> dict[str, tuple[str, str]]:
    """The rows of `TABLE` that this config has."""
    return {ours: row for ours, row in TABLE.items() if not (ours == 'unembed_DV' and cfg.tied)}


def check(path_or_hub_id: str | Path) -> Config:
    """The sizes of a model that `load` can read. Raises what `load` would raise, and reads no parameters."""
    folder = resolve(path_or_hub_id)
    config = read_config(folder)
    Tokenizer.load(folder)
    find_tensors(folder, config)
    return config


def find_tensors(folder: Path, cfg: Config, *, score: bool = False) -> dict[str, Any]:
    """tensor name -> open file, of a checkpoint that holds exactly what its config.json asks for, and with `score` the
    head of a reward model. Raises `Mistake` where it does not; only the files' headers are read.
    """
    files = _open(folder)
    stored = {
        name.format(i): tuple(math.prod(cfg.sizes[c] for c in group) for group in layout.split())
        for name, layout in table(cfg).values()
        for i in range(cfg.layers if '{}' in name else 1)
    }
    if score:
        stored[SCORE] = (1, cfg.width)
    if missing := sorted(set(stored) - set(files)):
        raise Mistake(
            f'{folder}: the checkpoint lacks {len(missing)} tensors that its config.json asks for, first {missing[0]}'
        )
    known_extra = {'lm_head.weight'} if cfg.tied else set()  # some writers store a tied head twice
    if extra := sorted(n for n in set(files) - set(stored) - known_extra if not n.endswith('rotary_emb.inv_freq')):
        raise Mistake(
            f'{folder}: the checkpoint holds {len(extra)} tensors that its config.json does not explain, '
            f'first {extra[0]}'
        )
    for name, shape in stored.items():
        found = tuple(files[name].get_slice(name).get_shape())
        if found != shape:
            raise Mistake(f'{folder}: {name} has shape {found}; its config.json says {shape}')
    return files


def read_params(folder: Path, cfg: Config, mesh: Mesh, *, score: bool = False) -> Params:
    """Read all parameters as float32 arrays on `mesh`, each device its own slices; with `score` also `score_D`, the head
    of a reward model. Raises `Mistake` before anything large is read.
    """
    files = find_tensors(folder, cfg, score=score)
    params: Params = {}
    if score:
        score_D = files[SCORE].get_tensor(SCORE)[0].astype(np.float32)
        params |= axes.place({'score_D': score_D}, mesh)
    for ours, (name, layout) in table(cfg).items():
        letters = axes.letters(ours)
        shape = tuple(cfg.sizes[c] for c in letters)

        def read(
            index: tuple[slice, ...], name: str = name, layout: str = layout, letters: str = letters
        ) -> np.ndarray:
            """This device's slice, read from the file as a slice."""
            span = {c: range(cfg.sizes[c])[s] for c, s in zip(letters, index)}
            layers = span.get('L', range(1))
            return np.stack([_read(files, name.format(i), layout, letters, span, cfg) for i in layers]).reshape(
                [len(span[c]) for c in letters]
            )

        sharding = jax.sharding.NamedSharding(mesh, axes.spec(letters, shape, mesh))
        params[ours] = jax.make_array_from_callback(shape, sharding, read)
    return params


def _read(
    files: Mapping[str, Any], name: str, layout: str, letters: str, span: Mapping[str, range], cfg: Config
) -> np.ndarray:
    """One layer's slice of one tensor, in our order of axes. In a flattened group only the first letter is ever cut."""
    cuts = []
    for group in layout.split():
        first, rest = group[0], math.prod(cfg.sizes[c] for c in group[1:])
        cuts.append(slice(span[first].start * rest, span[first].stop * rest))
    array = files[name].get_slice(name)[tuple(cuts)]
    order = layout.replace(' ', '')
    array = array.reshape([len(span[c]) for c in order]).astype(np.float32)
    return array.transpose([order.index(c) for c in letters if c != 'L'])


def _open(folder: Path) -> dict[str, Any]:
    """tensor name -> open safetensors file, for a single file or a sharded checkpoint with its index."""
    index, single = folder / 'model.safetensors.index.json', folder / 'model.safetensors'
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
        except (json.JSONDecodeError, KeyError, AttributeError):
            raise Mistake(f'{index}: not the index of a checkpoint; fetch it again') from None
    elif single.exists():
        names = [single.name]
    elif pickles := sorted(p.name for pattern in ('*.bin', '*.pt', '*.pth') for p in folder.glob(pattern)):
        raise Mistake(
            f'{folder}: {pickles[0]} is a pickle, which can run code when read; only safetensors are read. Convert it '
            'once with transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)'
        )
    else:
        raise Mistake(f'{folder}: no model.safetensors here (nor model.safetensors.index.json)')
    files = {}
    for name in names:
        try:
            file = safetensors.safe_open(folder / name, framework='numpy')
        except FileNotFoundError:
            raise Mistake(f'{folder}: {name} is named in the index but is not here') from None
        except safetensors.SafetensorError as error:
            raise Mistake(f'{folder / name}: not a whole safetensors file ({error}); fetch it again') from None
        files |= {tensor: file for tensor in file.keys()}
    return files


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer under the class name that every version of transformers knows; version 5 alone has its own."""
    tokenizer.hf.save_pretrained(folder)
    path = folder / 'tokenizer_config.json'
    config = json.loads(path.read_text())
    if config.get('tokenizer_class') == 'TokenizersBackend':
        path.write_text(json.dumps(config | {'tokenizer_class': 'PreTrainedTokenizerFast'}, indent=2) + '\n')


def _write_tensors(folder: Path, cfg: Config, params: Params, dtype: str, shard_bytes: int) -> None:
    """One file, or several with an index where it would be larger than `shard_bytes`."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for ours, (name, layout) in table(cfg).items():
        letters, order = axes.letters(ours), layout.replace(' ', '')
        array = np.asarray(params[ours]).astype(jax.numpy.dtype(dtype))
        for i, layer in enumerate(array if 'L' in letters else [array]):
            kept = letters.replace('L', '')
            stored = layer.transpose([kept.index(c) for c in order]).reshape(
                [math.prod(cfg.sizes[c] for c in group) for group in layout.split()]
            )
            if size and size + stored.nbytes > shard_bytes:
                shards.append({})
                size = 0
            shards[-1][name.format(i)] = np.ascontiguousarray(stored)
            size += stored.nbytes
    if 'score_D' in params:
        shards[-1][SCORE] = np.asarray(params['score_D'])[None].astype(jax.numpy.dtype(dtype))
    names = [f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors' for i in range(len(shards))]
    if len(shards) == 1:
        names = ['model.safetensors']
    for name, shard in zip(names, shards):
        safetensors.numpy.save_file(shard, folder / name, metadata={'format': 'pt'})
    if len(shards) > 1:
        total = sum(a.nbytes for shard in shards for a in shard.values())
        where = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
        text = json.dumps({'metadata': {'total_size': total}, 'weight_map': where}, indent=2)
        (folder / 'model.safetensors.index.json').write_text(text + '\n')
