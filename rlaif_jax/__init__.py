"""Align a language model with AI feedback: *RLAIF vs. RLHF* (arXiv 2309.00267) in JAX.

    import rlaif_jax
    lm = rlaif_jax.load('micro_l')
    rlaif_jax.label(lm, pairs, task='summarization', technique='detailed_cot_0shot')
    rlaif_jax.rate(lm, prompts, responses, task='summarization')

The names below are the public surface; each is what our own stages call, and is imported when it is first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif_jax import evaluation as evaluation
    from rlaif_jax.data.records import Pair as Pair
    from rlaif_jax.data.records import Prompt as Prompt
    from rlaif_jax.generation import generate as generate
    from rlaif_jax.labeling.direct import Rating as Rating
    from rlaif_jax.labeling.direct import rate as rate
    from rlaif_jax.labeling.direct import rater as rater
    from rlaif_jax.labeling.preference import Label as Label
    from rlaif_jax.labeling.preference import label as label
    from rlaif_jax.labeling.preference import preferred as preferred
    from rlaif_jax.labeling.served import served as served
    from rlaif_jax.models.hf import LM as LM
    from rlaif_jax.models.hf import load as load
    from rlaif_jax.models.hf import logits as logits
    from rlaif_jax.models.hf import save as save
    from rlaif_jax.training.reward_model import RewardModel as RewardModel
    from rlaif_jax.training.verbs import load_reward_model as load_reward_model
    from rlaif_jax.training.verbs import reinforce as reinforce
    from rlaif_jax.training.verbs import score as score
    from rlaif_jax.training.verbs import sft as sft
    from rlaif_jax.training.verbs import train_reward_model as train_reward_model

_WHERE = {
    'load': 'models.hf',
    'save': 'models.hf',
    'logits': 'models.hf',
    'LM': 'models.hf',
    'generate': 'generation',
    'label': 'labeling.preference',
    'Label': 'labeling.preference',
    'preferred': 'labeling.preference',
    'rate': 'labeling.direct',
    'Rating': 'labeling.direct',
    'rater': 'labeling.direct',
    'served': 'labeling.served',
    'sft': 'training.verbs',
    'train_reward_model': 'training.verbs',
    'reinforce': 'training.verbs',
    'score': 'training.verbs',
    'load_reward_model': 'training.verbs',
    'RewardModel': 'training.reward_model',
    'Prompt': 'data.records',
    'Pair': 'data.records',
    'Mistake': 'config',
}

__all__ = [*_WHERE, 'evaluation']

# transformers reads our tokenizers and configs; that it finds no PyTorch for its models is as it should be.
logging.getLogger('transformers').addFilter(lambda record: not str(record.msg).startswith('PyTorch was not found'))


def __getattr__(name: str) -> Any:
    if name == 'evaluation':
        return importlib.import_module('rlaif_jax.evaluation')
    if name not in _WHERE:
        raise AttributeError(f'module rlaif_jax has no attribute {name!r}; it has {", ".join(__all__)}')
    return getattr(importlib.import_module(f'rlaif_jax.{_WHERE[name]}'), name)
