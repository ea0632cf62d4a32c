"""Model cards: what an export's README.md says, and what it has from the model that it was made of."""

from __future__ import annotations

import json
from typing import Any

from rlaif_jax import foreign
from rlaif_jax.config import Mistake
from rlaif_jax.models.presets import PACKAGED, downloading_nothing, resolve
from rlaif_jax.paths import typed

HANDED_ON = ('base_model', 'license', 'license_name', 'license_link')
TEXT = """---
library_name: transformers
pipeline_tag: {task}
tags: [rlaif]
{inherited}---
{about}

Weights in {dtype}, written by [rlaif_jax](https://arxiv.org/abs/2309.00267), read by `transformers`, TRL and vLLM.
"""


def card(name: str, about: str, dtype: str, task: str) -> str:
    """The card of what was made of the model of this name. The hub shows its `base_model` and its `license`."""
    lines = [f'{field}: {json.dumps(value)}\n' for field, value in inherited(name).items()]  # JSON is YAML, too
    return TEXT.format(task=task, inherited=''.join(lines), about=about, dtype=dtype)


def inherited(name: str) -> dict[str, Any]:
    """Of `HANDED_ON` what is known of a model: what its own card says, its config.json of its licence, and that a model of
    the hub is a base. Nothing is downloaded for it, and a card that cannot be read says nothing.
    """
    from huggingface_hub import metadata_load

    try:
        with downloading_nothing():
            folder = resolve(name)
    except Mistake:  # a name that somebody gave a model of their own
        return {}
    said: dict[str, Any] = {}
    for read in (lambda: foreign.read_json(folder / 'config.json'), lambda: metadata_load(folder / 'README.md')):
        try:
            said |= {field: value for field, value in (read() or {}).items() if _plain(value)}
        except Exception:  # noqa: S112 of a file by anybody, in the end of a training that went well
            continue
    of_hub = folder != typed(name) and PACKAGED not in folder.parents
    said |= {'base_model': str(name)} if of_hub else {}
    return {field: said[field] for field in HANDED_ON if field in said}


def _plain(value: Any) -> bool:
    """A text, or several."""
    return bool(value) and all(isinstance(one, str) for one in (value if isinstance(value, list) else [value]))
