"""Known sizes, and where a model's name leads: a directory, a packaged model, or the hub."""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from rlaif_jax import foreign
from rlaif_jax.config import LASTING, Mistake, Passing, refused
from rlaif_jax.models.transformer import Config
from rlaif_jax.paths import cache, typed

PACKAGED = Path(__file__).parents[1] / 'micro' / 'models'

# The embedded micro models play PaLM 2 XS, S and L. On a CPU attention is the cost, so: few heads of size 64.
PRESETS: dict[str, Config] = {
    'micro_xs': Config(vocab=1152, layers=2, width=128, heads=2, kv_heads=2, head_dim=64, ffn=384, max_length=2048),
    'micro_s': Config(vocab=1152, layers=3, width=128, heads=2, kv_heads=2, head_dim=64, ffn=384, max_length=2048),
    'micro_l': Config(vocab=1152, layers=4, width=192, heads=3, kv_heads=3, head_dim=64, ffn=512, max_length=2048),
    # The shape of SmolLM2-135M, for benchmarks with random weights.
    'llama_135m': Config(vocab=49_152, layers=30, width=576, heads=9, kv_heads=3, head_dim=64, ffn=1536),
}


def _pythia(vocab: int, layers: int, width: int, heads: int, head_dim: int) -> Config:
    biased = {'qkv_bias': True, 'out_bias': True, 'mlp_bias': True, 'norm': 'layer', 'gated': False, 'tied': False}
    return Config(vocab, layers, width, heads, heads, head_dim, 4 * width, max_length=2048, **biased)


# Of the hub's models those that the scales name, and some others, as their config.json says: a plan knows them before they
# are downloaded. Sizes alone; what else tells these families apart is read with the files.
HUB: dict[str, Config] = {
    'HuggingFaceTB/SmolLM2-135M': Config(49_152, 30, 576, 9, 3, 64, 1536, max_length=8_192),
    'HuggingFaceTB/SmolLM2-360M': Config(49_152, 32, 960, 15, 5, 64, 2560, max_length=8_192),
    'HuggingFaceTB/SmolLM2-1.7B': Config(49_152, 24, 2048, 32, 32, 64, 8192, max_length=8_192),
    'EleutherAI/pythia-1b-deduped': _pythia(50_304, 16, 2048, 8, 256),
    'EleutherAI/pythia-2.8b-deduped': _pythia(50_304, 32, 2560, 32, 80),
    'EleutherAI/pythia-6.9b-deduped': _pythia(50_432, 32, 4096, 32, 128),
    'Qwen/Qwen3-0.6B': Config(151_936, 28, 1024, 16, 8, 128, 3072, max_length=32_768),
    'Qwen/Qwen3-4B': Config(151_936, 36, 2560, 32, 8, 128, 9728, max_length=32_768),
    'Qwen/Qwen3-32B': Config(151_936, 64, 5120, 64, 8, 128, 25_600, max_length=32_768, tied=False),
    'allenai/OLMo-2-0325-32B': Config(100_352, 64, 5120, 40, 8, 128, 27_648, max_length=4_096, tied=False),
    'meta-llama/Llama-3.2-1B': Config(128_256, 16, 2048, 32, 8, 64, 8192, max_length=131_072),
    'meta-llama/Llama-3.1-8B': Config(128_256, 32, 4096, 32, 8, 128, 14_336, max_length=131_072, tied=False),
    'meta-llama/Llama-3.3-70B': Config(128_256, 80, 8192, 64, 8, 128, 28_672, max_length=131_072, tied=False),
    'google/gemma-2-2b': Config(256_000, 26, 2304, 8, 4, 256, 9216, max_length=8_192, norm_at='around'),
    'google/gemma-2-9b': Config(256_000, 42, 3584, 16, 8, 256, 14_336, max_length=8_192, norm_at='around'),
    'google/gemma-2-27b': Config(256_000, 46, 4608, 32, 16, 128, 36_864, max_length=8_192, norm_at='around'),
    'google/gemma-3-4b': Config(262_208, 34, 2560, 8, 4, 256, 10_240, max_length=131_072, norm_at='around'),
    'google/gemma-3-12b': Config(262_208, 48, 3840, 16, 8, 256, 15_360, max_length=131_072, norm_at='around'),
    'google/gemma-3-27b': Config(262_208, 62, 5376, 32, 16, 128, 21_504, max_length=131_072, norm_at='around'),
    'Qwen/Qwen3-30B-A3B': Config(
        151_936, 48, 2048, 32, 4, 128, 768, max_length=40_960, tied=False, experts=128, chosen=8
    ),
    'allenai/OLMoE-1B-7B-0924': Config(
        50_304, 16, 2048, 16, 16, 128, 1024, max_length=4_096, tied=False, experts=64, chosen=8
    ),
    'mistralai/Mixtral-8x7B-v0.1': Config(
        32_000, 32, 4096, 32, 8, 128, 14_336, max_length=32_768, tied=False, experts=8, chosen=2
    ),
}
# The files of a repository that a model is made of; some repositories hold the same weights twice, or other formats.
WANTED = [
    '*.safetensors',
    '*.safetensors.index.json',
    '*config.json',
    'tokenizer*',
    '*.model',
    '*.jinja',
    '*tokens*.json',
    'README.md',  # its licence
]
TOKENIZER = [name for name in WANTED if not name.startswith('*.safetensors')]  # of those, what a prompt hangs on
UNWANTED = ['*/*', 'consolidated*']
TUNED = ('-Instruct', '-it', '-pt', '-Base')  # endings of checkpoints that are of another one's sizes

_downloads = ContextVar('downloads', default=True)


class Absent(Mistake):
    """A model of the hub that is not on this machine, where nothing may be downloaded."""


@contextmanager
def downloading_nothing() -> Iterator[None]:
    """Within it `resolve` raises `Absent` for what it would have to download."""
    token = _downloads.set(False)
    try:
        yield
    finally:
        _downloads.reset(token)


def downloads() -> bool:
    """Whether anything may be fetched: not in `downloading_nothing`."""
    return _downloads.get()


# Of the hub's models, those whose terms have to be accepted there first, by how their names begin.
GATED = ('google/gemma', 'meta-llama/')


def sizes_of(hub_id: str) -> Config | None:
    """The sizes of a model of the hub as far as they are known here."""
    for ending in TUNED:
        hub_id = hub_id.removesuffix(ending)
    return HUB.get(hub_id)


def resolve(name: str | Path, wanted: Sequence[str] = WANTED) -> Path:
    """The directory a model's name stands for: itself, a packaged model's, or a download from the Hugging Face hub, of the
    files that are wanted.

    Raises `Mistake` where there is none, naming the nearest packaged model; `Absent` in `downloading_nothing`.
    """
    if found := re.match(r'(?:https?://(?:huggingface\.co|hf\.co)|hf:/)/([^/?#]+/[^/?#]+)', str(name)):
        raise Mistake(f'{name}: a model of the hub is named by its id: {found[1]}')
    folder = typed(name)
    if folder.is_dir():
        return folder
    if (PACKAGED / str(name) / 'config.json').exists():
        return PACKAGED / str(name)
    if folder.is_file():
        what = foreign.disguise(folder) or 'a file, where a directory is wanted'
        raise Mistake(
            f'{name}: {what}' + f'; did you mean {folder.parent}?' * (folder.parent / 'config.json').is_file()
        )
    packaged = sorted(p.parent.name for p in PACKAGED.glob('*/config.json'))
    looks_like_path = str(name).startswith(('.', '/', '~')) or str(name).count('/') > 1
    if looks_like_path or '/' not in str(name):
        near = difflib.get_close_matches(str(name), packaged, 1)
        hint = f'did you mean {near[0]}?' if near else f'packaged models: {", ".join(packaged) or "none"}'
        raise Mistake(f'{name}: no such directory, and no packaged model of that name; {hint}')
    homeless = cache() is None and not {'HF_HOME', 'HF_HUB_CACHE'} & {*os.environ}
    if not _downloads.get():
        if homeless:
            raise Absent(f'{name}: not on this machine; a run downloads it')
        return _downloaded(str(name), wanted)
    if homeless:
        raise Mistake(f'{name}: downloads lie in the home directory, and none is known here; set HF_HOME to a folder')
    return _download(str(name), wanted)


def _downloaded(hub_id: str, wanted: Sequence[str]) -> Path:
    """The folder of a hub model in Hugging Face's cache, where what is wanted of it is there."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, local_files_only=True))
    except errors.HFValidationError as error:
        server = f'; a server is http://{hub_id}' if re.match(r'[\w.-]+:\d+\b', hub_id) else ''
        raise Mistake(f'{hub_id}: that is no name of a model on the hub ({error}){server}') from None
    except errors.LocalEntryNotFoundError:
        raise Absent(f'{hub_id}: not on this machine; a run downloads it') from None
    index = folder / 'model.safetensors.index.json'
    try:
        shards = sorted(set(json.loads(index.read_bytes())['weight_map'].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        shards = ['model.safetensors']
    shards = shards if wanted is WANTED else []
    if not all((folder / name).exists() for name in ('config.json', 'tokenizer.json', *shards)):
        raise Absent(f'{hub_id}: not whole on this machine; a run downloads the rest')
    return folder


def _download(hub_id: str, wanted: Sequence[str]) -> Path:
    """The folder of a hub model in Hugging Face's cache, with all that is wanted. Whatever prevents that is a `Mistake`."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    cache, instead = constants.HF_HUB_CACHE, 'or give a local directory instead'
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=UNWANTED))
    except errors.GatedRepoError:
        raise Mistake(f'{hub_id}: gated; accept its terms on the hub and log in with `hf auth login`') from None
    except errors.RepositoryNotFoundError:
        raise Mistake(f'{hub_id}: no such model on the hub (or it is private; log in with `hf auth login`)') from None
    except Exception as error:  # of the hub's library, of those it fetches with, or of the file system
        reason, kind = f'{type(error).__name__}: {error}'.split('\n')[0][:200], Mistake
        if refused(error) in (errno.ENOSPC, errno.EDQUOT):
            why = f'no space is left in {cache}; free some, or set HF_HOME to a folder on another disk, {instead}'
            kind = Passing
        elif isinstance(error, errors.LocalEntryNotFoundError | ConnectionError):
            why = f'the hub cannot be reached, and not all of it is in {cache}; try again with a network, {instead}'
            if Path(hub_id).parent.is_dir():  # so that it may well have meant a folder
                why = f'there is no directory {hub_id} here, and {why}'
            elif not constants.HF_HUB_OFFLINE:  # which nobody wants to be over
                kind = Passing
        elif isinstance(error, errors.EntryNotFoundError | errors.RevisionNotFoundError):
            why = f'the hub lacks a part of it ({reason}); name another model, {instead}'
        elif isinstance(error, errors.HFValidationError):
            why = f'that is no name of a model on the hub ({reason})'
        else:
            why = f'the download broke off ({reason}); the same command goes on with it, {instead}'
            kind = Mistake if refused(error) in LASTING else Passing
        raise kind(f'{hub_id}: could not be downloaded: {why}') from error
