"""Parameters out of safetensors files: `read_params` makes each of the tensors it is stored in, by slices onto the mesh.

A process reads what its own devices hold and nothing else, a layer at a time. What tensors are called, and how parameters
lie in them, is the families' to know (`families.py`).
"""

from __future__ import annotations

import math
import mmap
import os
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from jax.sharding import Mesh

from rlaif_jax import axes, foreign, log
from rlaif_jax.config import Mistake
from rlaif_jax.models import families, transformer
from rlaif_jax.models.families import Slot
from rlaif_jax.models.transformer import Config, Params

SCORE = 'score.weight'  # (1, D): the head of a reward model, which is a sequence classifier with one label
VALUE = {'head_D': 'v_head.summary.weight', 'head_bias': 'v_head.summary.bias'}  # of a value network, as TRL names it
FLOATS = 'F64', 'F32', 'F16', 'BF16'
PIECE = 2**26  # bytes of a parameter that the host holds at a time on their way to an accelerator
ROWS = 16  # of a file's matrix that are turned at a time: a line of a processor's cache
Stored = Any  # a tensor in a file, as `safe_open.get_slice` gives it: what is never asked for is never read


def find_tensors(folder: Path, cfg: Config, *, score: bool = False) -> dict[str, Stored]:
    """tensor name -> where it lies, of a checkpoint that holds exactly what its config.json asks for, and with `score` the
    head of a reward model. That of a value network is passed over. Raises `Mistake` where it does not; only the files'
    headers are read.
    """
    files, family = _open(folder), families.of(cfg)
    stored = {
        name: shape_of(slot, cfg.sizes)
        for slot in families.slots_of(cfg).values()
        for name in slot.names({c: range(n) for c, n in cfg.sizes.items()})
    }
    if score:
        stored[SCORE] = (1, cfg.width)
    embed, head = family.slots['embed_VD'].name, family.slots['unembed_DV'].name
    if cfg.tied and embed not in files and head in files:
        files[embed] = files[head]  # of two names for one tensor some writers keep the other
    if missing := sorted(set(stored) - set(files)):
        raise Mistake(
            f'{folder}: the checkpoint lacks {len(missing)} tensors that its config.json asks for, first {missing[0]}'
            f'{_told(set(files), embed, score and missing == [SCORE])}'
        )
    known_extra = set(VALUE.values())
    known_extra |= {head} if cfg.tied else set()  # some writers store a tied head twice
    if extra := sorted(n for n in set(files) - set(stored) - known_extra if not n.endswith(family.ignored)):
        raise Mistake(
            f'{folder}: the checkpoint holds {len(extra)} tensors that its config.json does not explain, '
            f'first {extra[0]}{_told(set(extra), embed)}'
        )
    for name, shape in stored.items():
        kind, found = files[name].get_dtype(), tuple(files[name].get_shape())
        if found != shape:
            raise Mistake(f'{folder}: {name} has shape {found}; its config.json says {shape}')
        if kind not in FLOATS:
            raise Mistake(f'{folder}: {name} holds {kind}, not floats; quantized checkpoints are not read')
    return files


def untied(folder: Path, cfg: Config) -> Config:
    """The config of a checkpoint that says that it is tied, with the head that it holds where that is not the embedding:
    who ties by word alone passes a tensor over. Reads no further than to the first difference.
    """
    slots = families.of(cfg).slots
    files = _open(folder)
    one, other = (files.get(slots[name].name) for name in ('embed_VD', 'unembed_DV'))
    if not cfg.tied or one is None or other is None or not {one.get_dtype(), other.get_dtype()} <= set(FLOATS):
        return cfg
    shape = one.get_shape()
    rows = max(1, PIECE // (4 * math.prod(shape[1:]) or 1))
    parts = [slice(i, min(i + rows, shape[0])) for i in range(0, shape[0], rows)]  # none may end beyond its tensor
    if shape == other.get_shape() and all(
        np.array_equal(one[part].astype(np.float32), other[part].astype(np.float32)) for part in parts
    ):
        return cfg
    log.say_once(
        f"{folder}: tie_word_embeddings = true, but {slots['unembed_DV'].name} is not the embedding; it is the model's head"
    )
    return replace(cfg, tied=False)


PICKLES = ('.bin', '.pt', '.pth')
BESIDE = ('adapter_', 'training_args', 'optimizer', 'scheduler', 'rng_state', 'scaler')  # pickles that are no model

# What tensors are called in a checkpoint that is no language model, or not one as transformers writes it: by the end of a
# name, and by how names begin.
ENDINGS = {
    SCORE: 'is the head of a reward model, which is no language model; rlaif_jax.training.reward_model.load reads one',
    'classifier.weight': 'is the head of a classifier, which is no language model',
    '.qweight': 'is quantized by GPTQ or AWQ; fetch the model in bfloat16 or float32',
    '.absmax': 'is quantized by bitsandbytes; fetch the model in bfloat16 or float32',
    '.weight_scale': 'is quantized to 8 bits; fetch the model in bfloat16 or float32',
    '.weight_scale_inv': 'is quantized to 8 bits; fetch the model in bfloat16 or float32',
    '.scales': 'is quantized by MLX; fetch the model in bfloat16 or float32',
    '.lora_A.weight': 'is of an adapter that is not merged; merge_and_unload of peft merges it',
    '.lora_A.default.weight': 'is of an adapter that is not merged; merge_and_unload of peft merges it',
}
WRAPPERS = {
    'module.': 'the wrapper of DataParallel or DeepSpeed; save its .module',
    '_orig_mod.': 'the wrapper of torch.compile; save its ._orig_mod',
    '_fsdp_wrapped_module.': 'the wrapper of FSDP; save the model with its full state',
    'base_model.model.': 'a model of peft, not merged; merge_and_unload merges it',
    'language_model.': 'a part of a model of images and text; save that part by itself',
    'transformer.': 'the names of another family',
}


def _told(names: set[str], embed: str, no_score: bool = False) -> str:
    """What the tensors of a checkpoint tell of it, as the end of a sentence; `embed` is the embedding's name."""
    if no_score:
        return '; it is a language model, not a reward model'
    for ending, what in ENDINGS.items():
        if found := next((name for name in sorted(names) if name.endswith(ending)), None):
            return f'; {found} {what}'
    wanted, _, tail = embed.partition('.')
    found = next((name for name in sorted(names) if name.endswith(tail) and name != embed), None)
    if found is None:
        return ''
    begins = found.removesuffix(embed if found.endswith(f'.{embed}') else tail)
    if not begins:
        return f"; names begin without '{wanted}.': it is a model without its head (AutoModel); save the whole"
    return f'; names begin with {begins!r}' + next((f', {WRAPPERS[w]}' for w in WRAPPERS if w in begins), '')


def read_params(folder: Path, cfg: Config, mesh: Mesh, *, frozen: bool = False, score: bool = False) -> Params:
    """Read all parameters as float32 arrays on `mesh`, each device its own slices; with `score` also `score_D`, the head of
    a reward model. Raises `Mistake` before anything large is read, or for a tensor that holds NaN or infinity.

    With `frozen`, for parameters that nobody trains, matrices are in bfloat16 where products are, which round them to it
    anyway: the same numbers come out of half the memory.
    """
    files = find_tensors(folder, cfg, score=score)
    params: Params = {}
    if score:
        params |= axes.place({'score_D': _float32(files[SCORE][:], folder, SCORE)[0]}, mesh)
    slots = families.slots_of(cfg)
    shapes = {ours: tuple(cfg.sizes[c] for c in axes.letters(ours)) for ours in slots}
    if undivided := axes.undivided(shapes, mesh):
        log.say_once(f'{folder}: {undivided}')
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for ours, slot in slots.items():
            letters, shape = axes.letters(ours), shapes[ours]
            sharding = jax.sharding.NamedSharding(mesh, axes.spec(letters, shape, mesh))
            rough = frozen and ours in transformer.PRODUCTS and cfg.dtype == 'bfloat16'
            dtype = np.dtype(jax.numpy.bfloat16 if rough else np.float32)
            read = partial(_read, folder, files, slot, letters, cfg.sizes, pool, dtype)
            params[ours] = _assemble(shape, dtype, sharding, read)
    return params


def _assemble(
    shape: tuple[int, ...], dtype: np.dtype, sharding: jax.sharding.Sharding, read: Callable[..., np.ndarray]
) -> jax.Array:
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
        rows = max(1, _piece(devices[0]) // (dtype.itemsize * math.prod(shape_here[1:])))
        grown: list[jax.Array] = []
        for start in range(0, len(first), rows):
            host = read(first[start : start + rows], *rest)
            pieces = [jax.device_put(host, device) for device in devices]
            if host.shape == shape_here:
                grown = pieces
            else:
                grown = grown or [jax.numpy.zeros(shape_here, dtype, device=device) for device in devices]
                grown = [_write(x, piece, start) for x, piece in zip(grown, pieces)]
            jax.block_until_ready(grown)
        parts += grown
    return jax.make_array_from_single_device_arrays(shape, sharding, parts, dtype=dtype)


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


def shape_of(slot: Slot, sizes: Sizes) -> tuple[int, ...]:
    """Of the tensor that the slot is in."""
    return tuple(sum(_size(part, sizes) for part in group.split('+')) for group in slot.layout.split())


def order_of(slot: Slot) -> str:
    """The axes of the slot's own part of its tensor, flattened or not."""
    return ''.join(group.split('+')[slot.part] if '+' in group else group for group in slot.layout.split())


def _read(
    folder: Path,
    files: Mapping[str, Stored],
    slot: Slot,
    letters: str,
    sizes: Sizes,
    pool: ThreadPoolExecutor,
    dtype: np.dtype,
    *spans: range,
) -> np.ndarray:
    """The part of a parameter within these spans, one a letter."""
    span = dict(zip(letters, spans))
    cuts = []
    for group in slot.layout.split():
        # Of what is flattened together only the first letter is ever cut.
        *before, own = group.split('+')[: slot.part + 1]
        start, rest = sum(_size(part, sizes) for part in before), _size(own[1:], sizes)
        cuts.append(slice(start + span[own[0]].start * rest, start + span[own[0]].stop * rest))
    order = order_of(slot)
    shape = [int(c) if c.isdigit() else len(span[c]) for c in order]
    turned = ''.join(c for c in order if not c.isdigit()) != letters.removeprefix(slot.apart)
    out = _pages([len(cut) for cut in spans], dtype)

    def fill(target: np.ndarray, name: str) -> None:
        found = _float32(files[name][tuple(cuts)], folder, name).astype(dtype, copy=False).reshape(shape)
        found = found[tuple(slot.part if c.isdigit() else slice(None) for c in order)]
        if turned:
            # A few rows at a time: whole columns would fall on the same few lines of the cache, at ten times the time.
            found = found.reshape(-1, cuts[1].stop - cuts[1].start)
            target = target.reshape(found.shape[::-1])
            for i in range(0, len(found), ROWS):
                target[:, i : i + ROWS] = found[i : i + ROWS].T
        else:
            target[...] = found

    targets = out.reshape(-1, *out.shape[len(slot.apart) :])
    list(pool.map(fill, targets, slot.names(span)))  # which raises what one of them raised
    return out


def _pages(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """An empty array in pages of its own: where it begins, a CPU device takes it as it is, and copies nothing."""
    pages = mmap.mmap(-1, dtype.itemsize * math.prod(shape), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype).reshape(shape)


def _float32(stored: np.ndarray, folder: Path, name: str) -> np.ndarray:
    """Raises `Mistake` where a number is NaN or infinite, or too large for float32."""
    with np.errstate(over='ignore'):
        array = stored.astype(np.float32)
    if not np.isfinite(array).all():
        raise Mistake(f'{folder}: {name} holds NaN or infinity; the checkpoint is spoilt')
    return array


def _open(folder: Path) -> dict[str, Stored]:
    """tensor name -> where it lies, for a single file or a sharded checkpoint with its index."""
    index, single = folder / 'model.safetensors.index.json', folder / 'model.safetensors'
    where: dict[str, str] = {}  # tensor -> its file, as the index says
    if single.exists():  # before an index, as transformers has it
        names = [single.name]
    elif index.exists():
        where = foreign.read_json(index, 'the index of a checkpoint').get('weight_map')
        if not isinstance(where, dict) or not all(type(n) is str and Path(n).name == n for n in where.values()):
            raise Mistake(f'{index}: not the index of a checkpoint; fetch it again')
        names = sorted(set(where.values()))
    elif pickles := sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES and not p.name.startswith(BESIDE)):
        raise Mistake(
            f'{folder}: {pickles[0]} is a pickle, which can run code when read; only safetensors are read. Convert it '
            'once with transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)'
        )
    else:
        what = 'no model.safetensors here (nor model.safetensors.index.json)'
        raise Mistake(f'{folder}: {what}{foreign.instead(folder)}')
    if (folder / 'adapter_config.json').is_file():
        raise Mistake(
            f'{folder}: it holds a model and an adapter (adapter_config.json); which is meant? Where the adapter is merged '
            'already, take its files away; else merge it'
        )
    files = {}
    for name in names:
        if not (folder / name).is_file():
            what = 'is no file' if (folder / name).exists() else 'is named in the index but is not here'
            raise Mistake(f'{folder}: {name} {what}; fetch it again')
        try:
            file = safetensors.safe_open(folder / name, 'numpy')  # checks the header, and the length of the file
        except (safetensors.SafetensorError, FileNotFoundError) as error:  # the latter for what may not be read, too
            what = foreign.disguise(folder / name) or f'not a whole safetensors file ({error}); fetch it again'
            raise Mistake(f'{folder / name}: {what}') from None
        # A tensor that is in two files is the one that the index names.
        files |= {tensor: file.get_slice(tensor) for tensor in file.keys() if where.get(tensor, name) == name}
    part = families.part_of(foreign.read_json(folder / 'config.json'))
    return files if part is None else _text_part(files, folder, families.FAMILIES[part.family])


IMAGES = re.compile(r'(model\.)?(vision_tower|multi_modal_projector|visual)\.')  # how tensors of images are called


def _text_part(files: dict[str, Stored], folder: Path, family: families.Family) -> dict[str, Stored]:
    """The tensors of a model of images and text that are not of images, as they are called in a model of text alone."""
    found = {}
    for name, stored in files.items():
        if not IMAGES.match(name):
            text = re.sub(r'^(model\.)?language_model\.(model\.)?', 'model.', name)
            found[text.replace('model.lm_head.', 'lm_head.')] = stored
    log.say_once(
        f'{folder}: a model of images and text. Its text part is read, {len(files) - len(found)} tensors of images are '
        f'left aside; what is saved of it is a model of text alone, {family.classes[0]}'
    )
    return found
