"""The preference labeler: which of two responses is better, asked in both orders and averaged (§2.1 of the paper).

    preference = ½ · P('1' | first shown first) + ½ · P('2' | first shown second),   P over the two answers only

Averaging both orders removes what the labeler feels for a position. The verdict is read from logits, never from text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from rlaif_jax import axes
from rlaif_jax.labeling import prompts as templates
from rlaif_jax.labeling.scoring import Scorer, read_answers
from rlaif_jax.models.hf import LM

Prefer = Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]


def make_single_order(
    lm: LM, *, task: str, mesh: Mesh | None = None, batch: int = 64, least_mass: float = 0.2
) -> Prefer:
    """`(prompts, firsts, seconds) -> prob_B`: P(the one shown first is better) in this order alone; NaN where
    unscorable.
    """
    template = templates.read(task, 'base')
    scorer = Scorer(
        lm,
        template.encode_preamble(lm.tokenizer),
        read_answers(lm.tokenizer, ('1', '2')),
        mesh or axes.make_mesh(),
        batch=batch,
    )

    def prefer(prompts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]) -> np.ndarray:
        samples = [
            {'context': templates.context_of(prompt, task), 'first': first, 'second': second}
            for prompt, first, second in zip(prompts, firsts, seconds, strict=True)
        ]
        prob_BC = scorer(template.encode(lm.tokenizer, samples))
        mass_B = prob_BC.sum(1)
        return np.where(mass_B >= max(least_mass, 1e-12), prob_BC[:, 0] / np.maximum(mass_B, 1e-12), np.nan)

    return prefer


def make_labeler(lm: LM, *, task: str, mesh: Mesh | None = None, batch: int = 64, least_mass: float = 0.2) -> Prefer:
    """`(prompts, firsts, seconds) -> preference_B`, both orders averaged; NaN where either order is unscorable."""
    one = make_single_order(lm, task=task, mesh=mesh, batch=batch, least_mass=least_mass)
    return lambda prompts, firsts, seconds: 0.5 * (one(prompts, firsts, seconds) + 1 - one(prompts, seconds, firsts))
