"""Checkpoints of one's own, named in the place of a scale's: whether they are real ones, and the numbers that suit them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from experiments.scales import SCALES, Dtype, Mesh, Scale
from rlaif_jax.config import Mistake
from rlaif_jax.labeling import labelers
from rlaif_jax.labeling.prompts import simulated
from rlaif_jax.models.presets import PRESETS, TOKENIZER, Absent, downloading_nothing, downloads, resolve
from rlaif_jax.text import Tokenizer

# What a scale says besides models, data and devices: how models are trained, and how labelers are asked.
TRAINED = (
    'sft', 'reward_model', 'reward_model_dialogue', 'reward_model_helpful', 'reinforce', 'reinforce_dialogue',
    'reinforce_helpful',
)  # fmt: skip
ASKED = ('rating', 'label', 'label_helpful', 'label_harmless')
# Whose numbers these are, by the field of a config that names the model. The first one's type is that of products.
ROLES = {'policy': TRAINED, 'model': TRAINED, 'labeler': ASKED, 'same_size_labeler': ASKED}


def real(model: str) -> bool:
    """Whether a name is that of a checkpoint which is no toy of a simulated world: one whose language is people's."""
    if not model or model in PRESETS or labelers.is_address(model):
        return False
    folder = described(model)
    try:
        return folder is None or not simulated(Tokenizer.load(folder))
    except Mistake:  # it is no model, which is for others to say
        return True


def described(model: str) -> Path | None:
    """The folder with a checkpoint's config and tokenizer, which its numbers hang on. They are fetched where they are not
    there: a run that began without them has to be the same run with them. None where nothing may be fetched, and for a
    name that leads nowhere, which is for others to say. Raises `Mistake` where a download fails.
    """
    try:
        with downloading_nothing():
            return resolve(model, TOKENIZER)
    except Absent:
        return resolve(model, TOKENIZER) if downloads() else None
    except Mistake:
        return None


def suited(row: Scale, models: Mapping[str, str]) -> Scale:
    """The row for real checkpoints, by role: with the learning rates, lengths and batches of the open scales, which are the
    paper's, for what these roles do, and products of the type that the first of `ROLES` is stored in. Models, data and the
    numbers of others stay. It is for one device, as each of several would hold a copy.
    """
    numbers = {name: getattr(SCALES['smollm2'], name) for role in models for name in ROLES[role]}
    for name, cfg in numbers.items():
        if hasattr(cfg, 'parts'):  # of whatever batch somebody asks for
            numbers[name] = replace(cfg, parts=1, **({'candidates': 1} if hasattr(cfg, 'candidates') else {}))
    first = next(models[role] for role in ROLES if role in models)
    return replace(row, dtype=stored_in(first), mesh=Mesh(), **numbers)


def stored_in(model: str) -> Dtype:
    """The type of a checkpoint's matrices: bfloat16 for any of 16 bits, and as a guess where it is not `described`."""
    folder = described(model)
    if folder is None:
        return 'bfloat16'
    try:
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return 'float32'
    kind = config.get('dtype') or config.get('torch_dtype')
    return 'bfloat16' if kind in ('bfloat16', 'float16') else 'float32'
