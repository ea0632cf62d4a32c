"""Hugging Face directories in and out, safetensors only: `load` reads each device's slices, `save` writes what
transformers reads.

What a config.json says and what the tensors are called is the families' to know (`families.py`); here are the files.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from rlaif_jax import axes, foreign, hosts, paths
from rlaif_jax.config import Mistake, refusal
from rlaif_jax.models import cards, families, heads, lora, transformer
from rlaif_jax.models.families import Slot
from rlaif_jax.models.presets import Absent, resolve
from rlaif_jax.models.stored import SCORE, VALUE, Sizes, find_tensors, order_of, read_params, shape_of, untied
from rlaif_jax.models.transformer import Config, Params
from rlaif_jax.text import Tokenizer

NAMED = (  # what makes a model besides its weights
    'config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja',
)  # fmt: skip
WRITTEN = 'float32', 'bfloat16', 'float16'


@dataclass(frozen=True, eq=False)
class LM:
    """A language model as values: its sizes, its parameters, its tokenizer, and where it came from."""

    config: Config
    params: Params
    tokenizer: Tokenizer
    name: str


def check_given(lm: Any, mesh: Any = None) -> LM:
    """The model. Raises `Mistake` for what is no language model, or no mesh, in the place of one."""
    if not isinstance(lm, LM):
        raise Mistake(f'lm is a {type(lm).__name__}, {lm!r:.80}; rlaif_jax.load(path) gives a language model')
    check_mesh(mesh)
    return lm


def check_mesh(mesh: Any) -> None:
    """Raises `Mistake` for what is no mesh, and not None, in the place of one."""
    if mesh is not None and not isinstance(mesh, Mesh):
        raise Mistake(
            f'mesh is a {type(mesh).__name__}, {mesh!r:.80}; rlaif_jax.axes.make_mesh({{"data": 4}}) makes one'
        )


def load(path_or_hub_id: str | Path, *, dtype: str = 'float32', mesh: Mesh | None = None, frozen: bool = False) -> LM:
    """Read a Hugging Face directory, a hub id, or a packaged model (`micro_xs`) onto the mesh (default: the first
    device).

    `dtype` is that of the matrix products. Parameters are float32 whatever the file holds; of a `frozen` model, which
    nobody trains, matrices are in bfloat16 where the products are: the same numbers from half the memory (and a file
    that is written of them is rounded, too). Each device reads only its own slices. Raises `Mistake` for anything that is
    missing, torn, of another shape, or would change the mathematics if ignored.
    """
    check_mesh(mesh)
    folder = resolve(path_or_hub_id)
    config, tokenizer = untied(folder, read_config(folder, dtype=dtype)), Tokenizer.load(folder)
    params = read_params(folder, config, mesh or axes.make_mesh(), frozen=frozen)
    return LM(config, params, tokenizer, str(path_or_hub_id))


def fingerprint(path_or_hub_id: str | Path) -> str:
    """Ten hex digits for the model a name stands for now: its sizes, its tokenizer, its weights.

    Of a large file it takes pieces (`paths.pieces`). Of a model that a plan did not download: `absent`, as nothing that
    lies here was made with it.
    """
    try:
        folder = resolve(path_or_hub_id)
    except Absent:
        return 'absent'
    files = sorted([*folder.glob('*.safetensors'), *filter(Path.exists, (folder / name for name in NAMED))])
    return _fingerprint(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache  # a plan and its stages ask again and again
def _fingerprint(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files as they were when they were last written to."""
    found = sha256()
    for file, size, _ in files:
        found.update(f'{file.name} {size}'.encode())
        for piece in paths.pieces(file):
            found.update(piece)
    return found.hexdigest()[:10]


def save(
    lm: LM, directory: str | Path, *, dtype: str = 'float32', shard_bytes: int = 5 * 2**30, about: str = ''
) -> None:
    """Write a directory that `transformers`, TRL and vLLM read, with a model card that says `about`.

    Parameters that hold `score_D` are those of a reward model, which is written as the family's model for sequence
    classification with one label; `head_D` and `head_bias` are a value network's, which go out as TRL's. Adapters are
    merged, and lie by themselves in `adapter/`, as PEFT reads them, on top of the model that `lm.name` names. The
    directory appears whole or not at all. What an earlier save left there is replaced, and nothing else
    (`paths.replacing`). Raises `Mistake` where anything else lies there, for a parameter that the family's layout has no
    place for or that is missing, for a number that the dtype cannot hold, and for a config that its config.json cannot say.
    Of several processes all have to call it; the first one writes.
    """
    check_given(lm)
    if not isinstance(dtype, str) or dtype not in WRITTEN:
        raise Mistake(f'dtype = {dtype!r:.80}: parameters are written in {", ".join(WRITTEN)}')
    if type(shard_bytes) is not int or shard_bytes < 1:
        raise Mistake(f'shard_bytes = {shard_bytes!r:.80}: a file holds a whole number of bytes, one at least')
    if not isinstance(about, str):
        raise Mistake(f'about = {about!r:.80}: what a model card says is text')
    adapted, lm = lm, replace(lm, config=replace(lm.config, lora_scale=1.0), params=lora.merge(lm.config, lm.params))
    if unwritten := sorted(set(lm.params) - set(families.slots_of(lm.config)) - {'score_D', *VALUE}):
        raise Mistake(f'{directory}: the Hugging Face layout written here has no place for {unwritten[0]}')
    for name in lm.config.names:
        wanted = tuple(lm.config.sizes[c] for c in axes.letters(name))
        if (found := np.shape(lm.params.get(name))) != wanted:
            what = f'is {found}' if name in lm.params else 'is not there'
            raise Mistake(f'{directory}: parameter {name} {what}; its config wants {wanted}')
    score = 'score_D' in lm.params
    config = write_config(lm.config, lm.tokenizer, dtype, score=score)
    generation = {name: config[name] for name in ('pad_token_id', 'eos_token_id')}
    task = 'text-classification' if score else 'text-generation'
    card = cards.card(lm.name, about or f'A copy of `{lm.name}`.', dtype, task)
    tensors = _tensors(lm.config, lm.params, shard_bytes / 3)
    adapters = hosts.to_host(transformer.adapters(adapted.params))
    if adapters and score:
        adapters |= {'score_D': hosts.to_host(lm.params['score_D'])}

    def write() -> None:
        with _writing(directory), paths.replacing(paths.typed(directory)) as new:
            write_json(new / 'config.json', config)
            write_json(new / 'generation_config.json', generation)
            _write_tokenizer(new, lm.tokenizer)
            (new / 'README.md').write_text(card, encoding='utf-8', errors='replace')
            _write_tensors(new, tensors, dtype, shard_bytes)
            if adapters:
                _write_adapter(new / 'adapter', adapted, adapters, dtype)
            for file in filter(Path.is_file, new.rglob('*')):
                file.chmod((new / 'config.json').stat().st_mode)  # safetensors writes for the owner's eyes only

    hosts.led(write, tensors)


@contextmanager
def _writing(directory: str | Path) -> Iterator[None]:
    """Says in a sentence why the system would not have a model written."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, 'strerror', None) or error
        told = f'{directory}: the model could not be written ({reason}); what lay there is as it was'
        raise refusal(error, told) from error


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


def logits(lm: LM, token_BT: jax.Array | np.ndarray, mask_BT: jax.Array | np.ndarray | None = None) -> jax.Array:
    """Next-token logits, `(B, T, V)` float32, of rows padded on the right (mask_BT False on padding; default: none). Raises
    `Mistake` for what is no rectangle of tokens of the model.
    """
    try:
        token_BT = token_BT if isinstance(token_BT, jax.Array) else np.array(token_BT)
        mask_BT = np.ones(token_BT.shape, bool) if mask_BT is None else jax.numpy.asarray(mask_BT, bool)
    except ValueError:
        raise Mistake('token_BT, mask_BT: rows of unlike length; pad them on the right with any token') from None
    if token_BT.ndim != 2 or token_BT.dtype.kind not in 'iu' or token_BT.shape != mask_BT.shape:
        found = f'token_BT is {token_BT.shape} of {token_BT.dtype}, mask_BT {mask_BT.shape}'
        raise Mistake(f'{found}; both are (B, T), tokens are whole numbers')
    if not token_BT.size:
        return jax.numpy.zeros((*token_BT.shape, lm.config.vocab))
    # As they were given: JAX would cut a larger integer down to 32 bits.
    real_BT = (jax.numpy if isinstance(token_BT, jax.Array) else np).where(mask_BT, token_BT, 0)
    least, most = int(real_BT.min()), int(real_BT.max())
    if not 0 <= least <= most < lm.config.vocab:
        raise Mistake(f'token_BT: tokens are 0 to {lm.config.vocab - 1}, not {least} to {most}')
    with jax.set_mesh(axes.mesh_of(lm.params)):
        return _logits(lm.config, lm.params, token_BT, mask_BT)


@partial(jax.jit, static_argnames='cfg')
def _logits(cfg: Config, params: Params, token_BT: jax.Array, valid_BT: jax.Array) -> jax.Array:
    hidden_BTD, _ = transformer.forward(cfg, params, token_BT, *transformer.causal(valid_BT))
    return heads.logits(cfg, params, hidden_BTD)


def read_config(folder: Path, *, dtype: str = 'float32') -> Config:
    """`config.json` as our `Config`. An unknown field, or a known one at a value we do not compute, is a `Mistake` that
    names it.
    """
    if type(dtype) is not str or dtype not in ('float32', 'bfloat16'):
        raise Mistake(f'dtype = {dtype!r} is not supported; supported: float32, bfloat16')
    path = folder / 'config.json'
    if not path.is_file():
        raise Mistake(f'{folder}: no config.json here{foreign.instead(folder)}')
    return families.read(foreign.read_json(path), str(path), dtype)


def write_config(cfg: Config, tokenizer: Tokenizer, dtype: str = 'float32', *, score: bool = False) -> dict[str, Any]:
    """Our `Config` as its family's `config.json`; with `score`, of a reward model. Raises `Mistake` for what that cannot
    say.
    """
    ends = list(tokenizer.ends)
    return families.write(cfg, score=score) | {
        'bos_token_id': tokenizer.hf.bos_token_id,
        'eos_token_id': ends[0] if len(ends) == 1 else ends,
        'pad_token_id': tokenizer.pad,
        'dtype': dtype,
        'torch_dtype': dtype,  # its name before transformers 4.56
    }


def check(path_or_hub_id: str | Path) -> Config:
    """The sizes of a model that `load` can read. Raises what `load` would raise, and reads no parameters."""
    folder = resolve(path_or_hub_id)
    config = read_config(folder)
    Tokenizer.load(folder)
    find_tensors(folder, config)
    return config


def _join(parts: list[tuple[Slot, str, np.ndarray]], sizes: Sizes) -> np.ndarray:
    """One layer of one of their tensors, of the slots in it, the letters of our axes, our arrays."""
    pieces = []
    for slot, letters, array in sorted(parts, key=lambda part: part[0].part):
        order = order_of(slot)
        array = array.transpose([letters.index(c) for c in order if not c.isdigit()])
        axis = next((i for i, c in enumerate(order) if c.isdigit()), None)
        pieces.append(array if axis is None else np.expand_dims(array, axis))
    return np.concatenate(pieces, axis or 0).reshape(shape_of(slot, sizes))


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer in words that transformers 4 and 5 know, and under the class that takes tokenizer.json as it is: others
    make parts of it anew, each version in its own way.
    """
    tokenizer.hf.save_pretrained(folder)
    path = folder / 'tokenizer_config.json'
    config = foreign.read_json(path)
    for word in ('backend', 'is_local', 'local_files_only'):  # notes of version 5 on how it was read
        config.pop(word, None)
    if isinstance(config.get('extra_special_tokens'), list):  # by name of what they are for, in version 4
        config['additional_special_tokens'] = config.pop('extra_special_tokens')
    # Of that class version 4 gives token_type_ids too, which no model of ours takes.
    inputs = ['input_ids', 'attention_mask']
    write_json(path, config | {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_input_names': inputs})


def _together(cfg: Config) -> dict[str, list[str]]:
    """tensor -> our parameters in it"""
    together: dict[str, list[str]] = {}
    for ours, slot in families.slots_of(cfg).items():
        together.setdefault(slot.name, []).append(ours)
    return together


def _write_adapter(folder: Path, lm: LM, params: dict[str, np.ndarray], dtype: str) -> None:
    """The adapters of `lm`, `params`, in PEFT's layout: A (rank, in) and B (out, rank) for each linear layer.

    Where theirs is several matrices of ours in one, its adapter is ours side by side: the rank is the sum of theirs, and
    B reaches from each share of it only the rows of its own matrix.
    """
    cfg, slots = lm.config, families.slots_of(lm.config)
    rank = next(x.shape[-1] for name, x in params.items() if name.endswith('X'))
    sizes, tensors, shares = cfg.sizes | {'X': rank}, {}, {}

    def b_of(adapted: str, members: list[str], layer: int) -> np.ndarray:
        """The columns of one matrix, zero in the rows of the others of its tensor."""
        parts = []
        for member in members:
            out, slot = transformer.factors(member)[1], slots[member]
            letters = axes.letters(out).replace('L', '')
            x = params[out][layer] if member == adapted else np.zeros([sizes[c] for c in letters], np.float32)
            parts.append((slot._replace(layout=slot.layout.split()[0] + ' X'), letters, x))
        return _join(parts, sizes)

    for name, members in _together(cfg).items():
        adapted = [ours for ours in members if ours in transformer.FAN_IN and transformer.factors(ours)[0] in params]
        if not adapted:
            continue
        where = 'base_model.model.' + name.removesuffix('.weight')
        shares[where.rpartition('.')[2]] = len(adapted)
        for i in range(cfg.layers):
            into = [np.moveaxis(params[transformer.factors(ours)[0]][i], -1, 0).reshape(rank, -1) for ours in adapted]
            tensors[where.format(i) + '.lora_A.weight'] = np.concatenate(into)
            tensors[where.format(i) + '.lora_B.weight'] = np.concatenate([b_of(x, members, i) for x in adapted], axis=1)
    score = 'score_D' in lm.params
    if score:
        tensors[f'base_model.model.{SCORE}'] = params['score_D'][None]
    alpha = round(cfg.lora_scale * rank, 6)
    config = {
        'peft_type': 'LORA',
        'task_type': 'SEQ_CLS' if score else 'CAUSAL_LM',
        'base_model_name_or_path': lm.name,
        'r': rank,
        'lora_alpha': alpha,
        'target_modules': list(shares),
        'rank_pattern': {module: count * rank for module, count in shares.items() if count > 1},
        'alpha_pattern': {module: count * alpha for module, count in shares.items() if count > 1},
        'modules_to_save': [SCORE.removesuffix('.weight')] if score else None,
        'lora_dropout': 0.0,
        'bias': 'none',
        'inference_mode': True,
    }
    folder.mkdir()
    write_json(folder / 'adapter_config.json', config)
    tensors = {name: _rounded(name, x, dtype) for name, x in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / 'adapter_model.safetensors', metadata={'format': 'pt'})


def _tensors(cfg: Config, params: Params, most: float) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors by name, on the host, one after the other. A parameter of more than `most` bytes comes by layers."""
    slots = families.slots_of(cfg)
    for name, members in _together(cfg).items():
        arrays = {ours: params[ours] for ours in members}
        arrays = {ours: hosts.to_host(x) if x.nbytes <= most else x for ours, x in arrays.items()}
        apart = slots[members[0]].apart
        for layer in itertools.product(*(range(cfg.sizes[c]) for c in apart[:1])):
            held = {ours: hosts.to_host(x[layer] if layer else x) for ours, x in arrays.items()}
            for expert in itertools.product(*(range(cfg.sizes[c]) for c in apart[1:])):
                parts = [(slots[ours], axes.letters(ours).removeprefix(apart), x[expert]) for ours, x in held.items()]
                yield name.format(*layer, *expert), _join(parts, cfg.sizes)
    for ours, name in ({'score_D': SCORE} | VALUE).items():
        if ours in params:
            yield name, hosts.to_host(params[ours])[None]


def _write_tensors(folder: Path, tensors: Iterator[tuple[str, np.ndarray]], dtype: str, shard_bytes: int) -> None:
    """One file, or several with an index where it would be larger than `shard_bytes`. The host holds less than two of
    them at a time.
    """
    where: list[list[str]] = []  # the tensors of each file
    total = size = 0
    shard: dict[str, np.ndarray] = {}
    for name, array in tensors:
        array = _rounded(name, array, dtype)
        if shard and size + array.nbytes > shard_bytes:
            _write_shard(folder, shard, where)
            shard, size = {}, 0
        shard[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    _write_shard(folder, shard, where)
    if len(where) == 1:
        os.replace(folder / 'part-0', folder / 'model.safetensors')
        return
    weight_map = {}
    for i, names in enumerate(where):
        file = f'model-{i + 1:05d}-of-{len(where):05d}.safetensors'
        os.replace(folder / f'part-{i}', folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / 'model.safetensors.index.json', {'metadata': {'total_size': total}, 'weight_map': weight_map})


def _rounded(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor as it is written. Raises `Mistake` for NaN and infinity, which nobody reads back, and for what is too large
    for the dtype.
    """
    with np.errstate(over='ignore'):
        rounded = np.ascontiguousarray(array.astype(jax.numpy.dtype(dtype)))
    if not np.isfinite(rounded).all():
        what = f'a number too large for {dtype}; write bfloat16' if np.isfinite(array).all() else 'NaN or infinity'
        raise Mistake(f'{name} holds {what}')
    return rounded


def _write_shard(folder: Path, shard: dict[str, np.ndarray], where: list[list[str]]) -> None:
    safetensors.numpy.save_file(shard, folder / f'part-{len(where)}', metadata={'format': 'pt'})
    where.append(list(shard))
