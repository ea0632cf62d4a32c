"""Known sizes, and where a model's name leads: a directory, a packaged model, or the hub."""

from __future__ import annotations

import difflib
import errno
from pathlib import Path

from rlaif_jax.config import Mistake
from rlaif_jax.models.transformer import Config

PACKAGED = Path(__file__).parents[1] / 'data' / 'micro' / 'models'

# The embedded micro models play PaLM 2 XS, S and L. On a CPU attention is the cost, so: few heads of size 64.
PRESETS: dict[str, Config] = {
    'micro_xs': Config(vocab=1152, layers=2, width=128, heads=2, kv_heads=2, head_dim=64, ffn=384, max_length=2048),
    'micro_s': Config(vocab=1152, layers=3, width=128, heads=2, kv_heads=2, head_dim=64, ffn=384, max_length=2048),
    'micro_l': Config(vocab=1152, layers=4, width=192, heads=3, kv_heads=3, head_dim=64, ffn=512, max_length=2048),
    # The shape of SmolLM2-135M, for benchmarks with random weights.
    'llama_135m': Config(vocab=49_152, layers=30, width=576, heads=9, kv_heads=3, head_dim=64, ffn=1536),
}


def resolve(name: str | Path) -> Path:
    """The directory a model's name stands for: itself, a packaged model's, or a download from the Hugging Face hub.

    Raises `Mistake` where there is none, naming the nearest packaged model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if (PACKAGED / str(name) / 'config.json').exists():
        return PACKAGED / str(name)
    packaged = sorted(p.parent.name for p in PACKAGED.glob('*/config.json'))
    looks_like_path = str(name).startswith(('.', '/', '~')) or str(name).count('/') > 1
    if looks_like_path or '/' not in str(name):
        near = difflib.get_close_matches(str(name), packaged, 1)
        hint = f'did you mean {near[0]}?' if near else f'packaged models: {", ".join(packaged) or "none"}'
        raise Mistake(f'{name}: no such directory, and no packaged model of that name; {hint}')
    return _download(str(name))


def _download(hub_id: str) -> Path:
    """The folder of a hub model in Hugging Face's cache, whole. Whatever prevents that is a `Mistake`."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    patterns = ['*.safetensors', '*.safetensors.index.json', 'config.json', 'generation_config.json', 'tokenizer*']
    cache, instead = constants.HF_HUB_CACHE, 'or give a local directory instead'
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=[*patterns, '*.model']))
    except errors.GatedRepoError:
        raise Mistake(f'{hub_id}: gated; accept its terms on the hub and log in with `hf auth login`') from None
    except errors.RepositoryNotFoundError:
        raise Mistake(f'{hub_id}: no such model on the hub (or it is private; log in with `hf auth login`)') from None
    except Exception as error:  # of the hub's library, of those it fetches with, or of the file system
        reason = f'{type(error).__name__}: {error}'.split('\n')[0][:200]
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f'no space is left in {cache}; free some, or set HF_HOME to a folder on another disk, {instead}'
        elif isinstance(error, errors.LocalEntryNotFoundError | ConnectionError):
            why = f'the hub cannot be reached, and not all of it is in {cache}; try again with a network, {instead}'
        elif isinstance(error, errors.EntryNotFoundError | errors.RevisionNotFoundError):
            why = f'the hub lacks a part of it ({reason}); name another model, {instead}'
        elif isinstance(error, errors.HFValidationError):
            why = f'that is no name of a model on the hub ({reason})'
        else:
            why = f'the download broke off ({reason}); the same command goes on with it, {instead}'
        raise Mistake(f'{hub_id}: could not be downloaded: {why}') from error
