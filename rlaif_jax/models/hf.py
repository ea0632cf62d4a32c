"""Hugging Face directories in and out, safetensors only: `load` reads each device's slices, `save` writes what
transformers reads.

What a config.json says and what the tensors are called is the families' to know (`families.py`); here are the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from rlaif_jax import axes
from rlaif_jax.config import Mistake
from rlaif_jax.models import families, heads, lora, transformer
from rlaif_jax.models.families import Slot
from rlaif_jax.models.presets import resolve
from rlaif_jax.models.transformer import Config, Params
from rlaif_jax.text import Tokenizer

SCORE = 'score.weight'  # (1, D): the head of a reward model, which is a sequence classifier with one label
FLOATS = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': jax.numpy.bfloat16}
TILE = (256, 1024)  # rows and columns of a file's matrix that are turned at a time: they fit in a processor's cache
CHUNK, POPULATE_WRITE = 2**22, 23  # bytes of memory that Linux is asked for at a time, and how (since 5.14)
PIECE = 2**27  # bytes of a parameter that the host holds at a time on their way to an accelerator


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

    Parameters that hold `score_D` are those of a reward model, which is written as the family's model for sequence
    classification with one label. Adapters are merged, and lie by themselves in `adapter/`, as PEFT reads them, on top of
    the model that `lm.name` names. The directory appears whole or not at all; one already there is replaced. Raises
    `Mistake` for a parameter that the family's layout has no place for, or a config that its config.json cannot say.
    """
    adapted, lm = lm, replace(lm, config=replace(lm.config, lora_scale=1.0), params=lora.merge(lm.config, lm.params))
    if unwritten := sorted(set(lm.params) - set(families.slots_of(lm.config)) - {'score_D'}):
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
        if transformer.adapters(adapted.params):
            _write_adapter(new / 'adapter', adapted, dtype)
        for file in filter(Path.is_file, new.rglob('*')):
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
    return families.read(raw, str(path), dtype)


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
    }


def check(path_or_hub_id: str | Path) -> Config:
    """The sizes of a model that `load` can read. Raises what `load` would raise, and reads no parameters."""
    folder = resolve(path_or_hub_id)
    config = read_config(folder)
    Tokenizer.load(folder)
    find_tensors(folder, config)
    return config


class Stored(NamedTuple):
    """A tensor in a safetensors file, mapped: what is never asked for is never read."""

    kind: str  # of its numbers, in the format's words
    shape: tuple[int, ...]
    data: np.ndarray  # its bytes

    @property
    def array(self) -> np.ndarray:
        return self.data.view(FLOATS[self.kind]).reshape(self.shape)


def find_tensors(folder: Path, cfg: Config, *, score: bool = False) -> dict[str, Stored]:
    """tensor name -> where it lies, of a checkpoint that holds exactly what its config.json asks for, and with `score` the
    head of a reward model. Raises `Mistake` where it does not; only the files' headers are read.
    """
    files, family = _open(folder), families.of(cfg)
    stored = {
        slot.name.format(i): _shape(slot, cfg.sizes)
        for slot in families.slots_of(cfg).values()
        for i in range(cfg.layers if '{}' in slot.name else 1)
    }
    if score:
        stored[SCORE] = (1, cfg.width)
    if missing := sorted(set(stored) - set(files)):
        raise Mistake(
            f'{folder}: the checkpoint lacks {len(missing)} tensors that its config.json asks for, first {missing[0]}'
        )
    known_extra = {family.slots['unembed_DV'].name} if cfg.tied else set()  # some writers store a tied head twice
    if extra := sorted(n for n in set(files) - set(stored) - known_extra if not n.endswith(family.ignored)):
        raise Mistake(
            f'{folder}: the checkpoint holds {len(extra)} tensors that its config.json does not explain, '
            f'first {extra[0]}'
        )
    for name, shape in stored.items():
        kind, found, _ = files[name]
        if found != shape:
            raise Mistake(f'{folder}: {name} has shape {found}; its config.json says {shape}')
        if kind not in FLOATS:
            raise Mistake(f'{folder}: {name} holds {kind}, not floats; quantized checkpoints are not read')
    return files


def read_params(folder: Path, cfg: Config, mesh: Mesh, *, score: bool = False) -> Params:
    """Read all parameters as float32 arrays on `mesh`, each device its own slices; with `score` also `score_D`, the head
    of a reward model. Raises `Mistake` before anything large is read, or for a tensor that holds NaN or infinity.
    """
    files = find_tensors(folder, cfg, score=score)
    params: Params = {}
    if score:
        score_D = files[SCORE].array[0].astype(np.float32)
        _check_finite(score_D, folder, SCORE)
        params |= axes.place({'score_D': score_D}, mesh)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for ours, slot in families.slots_of(cfg).items():
            letters = axes.letters(ours)
            shape = tuple(cfg.sizes[c] for c in letters)
            sharding = jax.sharding.NamedSharding(mesh, axes.spec(letters, shape, mesh))
            params[ours] = _assemble(shape, sharding, partial(_read, folder, files, slot, letters, cfg.sizes, pool))
    return params


def _assemble(shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Callable[..., np.ndarray]) -> jax.Array:
    """The array of which `read(*spans)` gives the part within these spans, one an axis.

    What two devices share is read once. A device's part grows on it by pieces along its first axis, so that the host
    holds one piece at a time.
    """
    owners: dict[tuple[range, ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        owners.setdefault(tuple(range(n)[cut] for n, cut in zip(shape, index)), []).append(device)
    parts: list[jax.Array] = []
    for (first, *rest), devices in owners.items():
        shape_here = (len(first), *map(len, rest))
        rows = max(1, _piece(devices[0]) // (4 * math.prod(shape_here[1:])))
        grown: list[jax.Array] = []
        for start in range(0, len(first), rows):
            host = read(first[start : start + rows], *rest)
            pieces = [jax.device_put(host, device) for device in devices]
            if host.shape == shape_here:
                grown = pieces
            else:
                grown = grown or [jax.numpy.zeros(shape_here, device=device) for device in devices]
                grown = [_write(x, piece, start) for x, piece in zip(grown, pieces)]
            jax.block_until_ready(grown)
        parts += grown
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _piece(device: jax.Device) -> int:
    """Bytes of a parameter that the host holds on their way to the device: all, where they are on it already."""
    return sys.maxsize if device.platform == 'cpu' else PIECE


@partial(jax.jit, donate_argnums=0)
def _write(whole: jax.Array, piece: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, piece, start, 0)


Sizes = Mapping[str, int]  # of each letter


def _size(axes: str, sizes: Sizes) -> int:
    """Of axes flattened to one; a digit is its own size."""
    return math.prod(int(c) if c.isdigit() else sizes[c] for c in axes)


def _shape(slot: Slot, sizes: Sizes) -> tuple[int, ...]:
    """Of the tensor that the slot is in."""
    return tuple(sum(_size(part, sizes) for part in group.split('+')) for group in slot.layout.split())


def _order(slot: Slot) -> str:
    """The axes of the slot's own part of its tensor, flattened or not."""
    return ''.join(group.split('+')[slot.part] if '+' in group else group for group in slot.layout.split())


def _read(
    folder: Path,
    files: Mapping[str, Stored],
    slot: Slot,
    letters: str,
    sizes: Sizes,
    pool: ThreadPoolExecutor,
    *spans: range,
) -> np.ndarray:
    """The part of a parameter within these spans, one a letter."""
    span = dict(zip(letters, spans))
    out = _pages([len(cut) for cut in spans], pool)
    order = _order(slot)
    kept = [c for c in order if not c.isdigit()]

    def copy(tile: Mapping[str, range]) -> None:
        name = slot.name.format(tile['L'].start if 'L' in tile else '')
        cuts = []
        for group in slot.layout.split():
            *before, own = group.split('+')[: slot.part + 1]
            start, rest = sum(_size(part, sizes) for part in before), _size(own[1:], sizes)
            cuts.append(slice(start + tile[own[0]].start * rest, start + tile[own[0]].stop * rest))
        stored = files[name].array[tuple(cuts)].reshape([int(c) if c.isdigit() else len(tile[c]) for c in order])
        stored = stored[tuple(slot.part if c.isdigit() else slice(None) for c in order)]
        # Rows that are powers of two apart would fall on the same few lines of the cache.
        wide = np.empty([*stored.shape[:-1], stored.shape[-1] + 16], np.float32)[..., :-16]
        wide[...] = stored
        _check_finite(wide, folder, name)
        at = tuple(slice(tile[c].start - span[c].start, tile[c].stop - span[c].start) for c in letters)
        out[at] = wide.transpose([kept.index(c) for c in letters if c != 'L'])

    for _ in pool.map(copy, _tiles(slot, span, sizes)):
        pass
    return out


def _tiles(slot: Slot, span: Mapping[str, range], sizes: Sizes) -> Iterator[Mapping[str, range]]:
    """What to read at a time: of one layer, a tile of the file's matrix."""
    steps = {'L': 1}
    for group, most in zip(slot.layout.split(), TILE):
        # Of what is flattened together only the first letter is ever cut.
        *_, own = group.split('+')[: slot.part + 1]
        steps[own[0]] = max(1, most // _size(own[1:], sizes))
    cuts = {c: [span[c][i : i + n] for i in range(0, len(span[c]), n)] for c, n in steps.items() if c in span}
    for ranges in itertools.product(*cuts.values()):
        yield {**span, **dict(zip(cuts, ranges))}


def _pages(shape: list[int], pool: ThreadPoolExecutor) -> np.ndarray:
    """An empty array in pages of its own: where it begins, a CPU device takes it as it is, and copies nothing."""
    pages = mmap.mmap(-1, 4 * math.prod(shape), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def populate(start: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # of systems that give a page when it is first written
            pages.madvise(POPULATE_WRITE, start, min(CHUNK, len(pages) - start))

    for _ in pool.map(populate, range(0, len(pages), CHUNK)):
        pass
    return np.frombuffer(pages, np.float32).reshape(shape)


def _check_finite(array: np.ndarray, folder: Path, name: str) -> None:
    """Raises `Mistake` where a number is NaN or infinite. Nearly always the sum, which is quick, tells that none is."""
    total = np.einsum('ij->', array.reshape(-1, array.shape[-1]))
    if not np.isfinite(total) and not np.isfinite(array).all():
        raise Mistake(f'{folder}: {name} holds NaN or infinity; the checkpoint is spoilt')


def _join(parts: list[tuple[Slot, str, np.ndarray]], sizes: Sizes) -> np.ndarray:
    """One layer of one of their tensors, of the slots in it, the letters of our axes, our arrays."""
    pieces = []
    for slot, letters, array in sorted(parts, key=lambda part: part[0].part):
        order = _order(slot)
        array = array.transpose([letters.index(c) for c in order if not c.isdigit()])
        axis = next((i for i, c in enumerate(order) if c.isdigit()), None)
        pieces.append(array if axis is None else np.expand_dims(array, axis))
    return np.concatenate(pieces, axis or 0).reshape(_shape(slot, sizes))


def _open(folder: Path) -> dict[str, Stored]:
    """tensor name -> where it lies, for a single file or a sharded checkpoint with its index."""
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
            safetensors.safe_open(folder / name, framework='numpy')  # checks the header, and the length of the file
        except FileNotFoundError:
            raise Mistake(f'{folder}: {name} is named in the index but is not here; fetch it again') from None
        except safetensors.SafetensorError as error:
            raise Mistake(f'{folder / name}: not a whole safetensors file ({error}); fetch it again') from None
        files |= _map(folder / name)
    return files


def _map(path: Path) -> dict[str, Stored]:
    """tensor name -> where it lies in a safetensors file: eight bytes that say how long the header is, the header as
    JSON, the numbers.
    """
    data = np.memmap(path, np.uint8, 'r').view(np.ndarray)
    begin = 8 + int.from_bytes(data[:8].tobytes(), 'little')
    header = json.loads(data[8:begin].tobytes())
    header.pop('__metadata__', None)
    return {
        name: Stored(tensor['dtype'], tuple(tensor['shape']), data[begin:][slice(*tensor['data_offsets'])])
        for name, tensor in header.items()
    }


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer under the class name that every version of transformers knows; version 5 alone has its own."""
    tokenizer.hf.save_pretrained(folder)
    path = folder / 'tokenizer_config.json'
    config = json.loads(path.read_text())
    if config.get('tokenizer_class') == 'TokenizersBackend':
        path.write_text(json.dumps(config | {'tokenizer_class': 'PreTrainedTokenizerFast'}, indent=2) + '\n')


def _together(cfg: Config) -> dict[str, list[str]]:
    """tensor -> our parameters in it"""
    together: dict[str, list[str]] = {}
    for ours, slot in families.slots_of(cfg).items():
        together.setdefault(slot.name, []).append(ours)
    return together


def _write_adapter(folder: Path, lm: LM, dtype: str) -> None:
    """The adapters of `lm` in PEFT's layout: A (rank, in) and B (out, rank) for each linear layer.

    Where theirs is several matrices of ours in one, its adapter is ours side by side: the rank is the sum of theirs, and
    B reaches from each share of it only the rows of its own matrix.
    """
    cfg, slots = lm.config, families.slots_of(lm.config)
    params = {name: np.asarray(x) for name, x in transformer.adapters(lm.params).items()}
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
        tensors[f'base_model.model.{SCORE}'] = np.asarray(lm.params['score_D'])[None]
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
    (folder / 'adapter_config.json').write_text(json.dumps(config, indent=2) + '\n')
    tensors = {name: np.ascontiguousarray(x.astype(jax.numpy.dtype(dtype))) for name, x in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / 'adapter_model.safetensors', metadata={'format': 'pt'})


def _write_tensors(folder: Path, cfg: Config, params: Params, dtype: str, shard_bytes: int) -> None:
    """One file, or several with an index where it would be larger than `shard_bytes`. The host holds less than two of
    them at a time: a parameter larger than a third of one comes layer by layer.
    """
    together, slots = _together(cfg), families.slots_of(cfg)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, members in together.items():
            arrays = {ours: params[ours] for ours in members}
            arrays = {ours: np.asarray(x) if x.nbytes <= shard_bytes / 3 else x for ours, x in arrays.items()}
            for i in range(cfg.layers if '{}' in name else 1):
                layer = {ours: np.asarray(x[i] if '{}' in name else x) for ours, x in arrays.items()}
                parts = [(slots[ours], axes.letters(ours).replace('L', ''), x) for ours, x in layer.items()]
                yield name.format(i), _join(parts, cfg.sizes)
        if 'score_D' in params:
            yield SCORE, np.asarray(params['score_D'])[None]

    where: list[list[str]] = []  # the tensors of each file
    total = size = 0
    shard: dict[str, np.ndarray] = {}
    for name, array in tensors():
        array = np.ascontiguousarray(array.astype(jax.numpy.dtype(dtype)))
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
    text = json.dumps({'metadata': {'total_size': total}, 'weight_map': weight_map}, indent=2)
    (folder / 'model.safetensors.index.json').write_text(text + '\n')


def _write_shard(folder: Path, shard: dict[str, np.ndarray], where: list[list[str]]) -> None:
    safetensors.numpy.save_file(shard, folder / f'part-{len(where)}', metadata={'format': 'pt'})
    where.append(list(shard))
