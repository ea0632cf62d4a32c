"""Files that others wrote: reads JSON out of them, and says what a file or folder is that is no checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rlaif_jax.config import Mistake

# How a file begins that is not what its name says.
BEGINNINGS = {
    b'version https://git-lfs': 'a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned',
    b'<!doctype html': 'a page of HTML, of a login or an error, not the file itself; fetch it again',
    b'<html': 'a page of HTML, of a login or an error, not the file itself; fetch it again',
    b'gguf': 'a GGUF file, for llama.cpp; fetch the safetensors of the model that it was made from',
    b'pk\x03\x04': 'an archive or a pickle of PyTorch, not safetensors',
    b'\x80': 'a pickle, which can run code when read; only safetensors are read',
}
MARK = b'\xef\xbb\xbf'  # of UTF-8, which some editors put before a text
# What lies in a folder that holds no weights to read, and what to do about it.
KINDS = {
    '*.gguf': '{} is a GGUF file, for llama.cpp; fetch the safetensors of the model that it was made from',
    'consolidated*': "{} is in its authors' own format; fetch the model in the format of transformers",
    '*.h5': '{} is of TensorFlow; fetch the safetensors of the model',
    '*.msgpack': '{} is of Flax; fetch the safetensors of the model',
    '*.onnx': '{} is of ONNX; fetch the safetensors of the model that it was made from',
    '*.npz': '{} is of MLX or NumPy; fetch the safetensors of the model that it was made from',
    'model-*-of-*.safetensors': '{} is one of several files, whose model.safetensors.index.json is not here; fetch it, too',
    '*.safetensors': '{} is here; name it model.safetensors if it is the whole model',
    '_CHECKPOINT_METADATA': 'it is a checkpoint of training, by Orbax; the model is in the export/ of its run',
    'metrics.jsonl': "it is a run's folder, without an export/: the run has not finished",
    '*.incomplete': 'a download broke off ({}); fetch the checkpoint again',
}


def read_json(path: Path, wanted: str = 'a table of fields') -> dict[str, Any]:
    """The table in a JSON file. It is read as UTF-8, or as its byte order mark says, whatever the locale.

    wanted: what it should be, for the message. Raises FileNotFoundError where there is no file, and `Mistake` where it
    holds something else.
    """
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # of which a bad character or a bad number is one
        what = disguise(path) or f'not valid JSON ({error}); fetch the checkpoint again'
        raise Mistake(f'{path}: {what}') from None
    if not isinstance(raw, dict):
        raise Mistake(f'{path}: not {wanted}; fetch the checkpoint again')
    return raw


def disguise(path: Path) -> str | None:
    """What a file really is, by its first bytes, where that is not what its name says. None where they do not tell."""
    try:
        with open(path, 'rb') as file:
            begins = file.read(200)
    except OSError as error:
        return f'cannot be read ({error.strerror})'
    text = begins.removeprefix(MARK).lstrip().lower()
    if what := next((what for start, what in BEGINNINGS.items() if text.startswith(start)), None):
        return what
    return 'it begins with a byte order mark; save it in UTF-8 without one' if begins.startswith(MARK) else None


def instead(folder: Path) -> str:
    """The end of a sentence about a folder that is no checkpoint: what lies there, and what would help ('; it holds …')."""
    if (folder / 'adapter_config.json').is_file():
        base = read_json(folder / 'adapter_config.json').get('base_model_name_or_path')
        if folder.name == 'adapter' and (folder.parent / 'config.json').is_file():  # as in an export of ours
            return f'; it is an adapter of {base}; it is merged already in the folder above it, {folder.parent}'
        return (
            f'; it is an adapter of {base}, which holds no model: merge it, from peft import AutoPeftModelForCausalLM as '
            f"M, then M.from_pretrained('{folder}').merge_and_unload().save_pretrained('merged'), with the tokenizer of "
            f'{base}'
        )
    broken = [path for path in sorted(folder.iterdir()) if path.is_symlink() and not path.exists()]
    if broken:  # as in a copy of the hub's cache without its blobs
        return (
            f'; {broken[0].name} is a link to {broken[0].readlink()}, which is not there; copy what is behind the links '
            '(cp -L), or fetch the checkpoint again'
        )
    run = next((path.parent for path in (folder, folder.parent) if path.name == 'checkpoints'), folder)
    patterns = ('*/config.json', 'snapshots/*/config.json')  # of a Trainer, or of the hub's cache
    found = [path.parent for pattern in patterns for path in folder.glob(pattern)]
    if (run / 'export/config.json').is_file():
        found = [run / 'export']
    if found:
        number = lambda path: [int(n) for n in re.findall(r'\d+', path.name)]  # noqa: E731
        return f'; did you mean {max(found, key=number)}?'
    for pattern, words in KINDS.items():
        if names := sorted(path.name for path in folder.glob(pattern) if path.name != 'model.safetensors'):
            return f'; {words.format(names[0])}'
    names = sorted(path.name + '/' * path.is_dir() for path in folder.iterdir())
    if not names:
        return '; the folder is empty'
    return f'; here {"is" if len(names) == 1 else "are"} {", ".join([*names[:3], *["…"] * (len(names) > 3)])}'
