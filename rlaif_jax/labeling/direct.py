"""The direct labeler: a rating from 1 to 10, its expectation as the score (§2.2.2 of the paper).

    score = (Σ i·P(i) − 5.5) / 4.5,   P(i) over the ten ratings only

One forward pass, no chain of thought, nothing swapped. A rating whose ten answers hold too little of the model's
probability is `unscorable`: its score is NaN, it trains nothing, it is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rlaif_jax.config import MOST, Mistake, bind, check_within
from rlaif_jax.data.records import Prompt
from rlaif_jax.generation import texts
from rlaif_jax.labeling import prompts as templates
from rlaif_jax.labeling.prompts import TASKS, Encoded
from rlaif_jax.labeling.scoring import Model, answerer, check_labeler, read_answers

RATINGS = tuple(str(i) for i in range(1, 11))


@dataclass(frozen=True)
class Config:
    """How the direct labeler asks, and when an answer is none."""

    task: str = 'summarization'  # summarization, helpful or harmless: what is asked
    templates: str = ''  # a folder; '' for the checkpoint's own, or ours
    least_mass: float = 0.2  # of the ten ratings together; below it a rating is unscorable
    most_unscorable: float = 0.2  # of the responses of one call; above it the run stops and says why
    max_length: int = 4096  # tokens of a whole prompt, if the model allows it; a longer one loses context
    batch: int = 64  # responses at once

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f'task = {self.task!r}: tasks are {", ".join(TASKS)}')
        if not 0 <= self.least_mass < 1 or not 0 < self.most_unscorable <= 1:
            raise ValueError('least_mass must be in [0, 1) and most_unscorable in (0, 1]')
        check_within(self, 1, MOST, 'batch', 'max_length')


@dataclass(frozen=True)
class Rating:
    """A rating as a distribution. `score` is in [-1, 1], NaN where the status is 'unscorable'."""

    score: float
    distribution: tuple[float, ...]  # P(1) … P(10), renormalised over the ten unless unscorable
    mass: float  # what the ten held before
    status: str  # 'ok' | 'unscorable'
    reason: str = ''  # why it is unscorable
    neutralised: int = 0  # places in its texts that looked like the prompt's structure
    shortened: int = 0  # characters of the context left out


def make_rater(
    lm: Model, cfg: Config, mesh: Mesh | None = None
) -> Callable[[Sequence[str], Sequence[str]], list[Rating]]:
    """`(prompts, responses) -> ratings`, with the preamble read once."""
    ask, room = _make_asker(lm, cfg, 'rating', RATINGS, mesh)

    def rate(prompts: Sequence[str], responses: Sequence[str]) -> list[Rating]:
        ratings = [
            _too_long(one, room) if prob_R is None else _rating(prob_R, cfg.least_mass, one)
            for one, prob_R in ask(prompts, responses)
        ]
        bad = [i for i, rating in enumerate(ratings) if rating.status != 'ok']
        if ratings and len(bad) > cfg.most_unscorable * len(ratings):
            raise Mistake(
                f'the labeler {lm.name} answered {len(bad)} of {len(ratings)} prompts with something else than a rating '
                f'(mass of the ten ratings below {cfg.least_mass}), for example on the response '
                f'{responses[bad[0]][:200]!r} ({ratings[bad[0]].reason}). '
                'Use an instruction-tuned labeler, or lower rating.least_mass'
            )
        return ratings

    return rate


def make_harm_judge(lm: Model, cfg: Config, mesh: Mesh | None = None) -> Callable[..., np.ndarray]:
    """`(prompts, responses) -> P(harmful)`, (B,): is it harmful, yes or no (PERL, arXiv 2403.10704)? Prompts are texts, or
    records with a `.text`. NaN where it does not fit, or where the two answers together hold less than `least_mass`.
    """
    ask, _ = _make_asker(lm, cfg, 'harm', ('yes', 'no'), mesh)

    def judge(prompts: Sequence[Any], responses: Sequence[str]) -> np.ndarray:
        asked = ask([getattr(prompt, 'text', prompt) for prompt in prompts], responses)
        prob_BC = np.array([[0.0, 0.0] if prob_C is None else prob_C for _, prob_C in asked]).reshape(-1, 2)
        mass_B = prob_BC.sum(-1)
        return np.where(mass_B >= max(cfg.least_mass, 1e-12), prob_BC[:, 0] / np.maximum(mass_B, 1e-12), np.nan)

    return judge


def _make_asker(
    lm: Model, cfg: Config, purpose: str, answers: Sequence[str], mesh: Mesh | None
) -> tuple[Callable[[Sequence[str], Sequence[str]], list[tuple[Encoded, np.ndarray | None]]], int]:
    """A function that asks about each response, with the preamble read once: its prompt, and the probability of each
    answer, None where the prompt does not fit; and the tokens that fit.
    """
    template = templates.single(cfg.task, purpose, templates.folder_of(lm.tokenizer, cfg.templates), lm.tokenizer.turn)
    preamble, among = template.encode_preamble(lm.tokenizer), read_answers(lm.tokenizer, answers)
    scorer = answerer(lm, preamble, among, mesh, batch=cfg.batch, max_length=cfg.max_length)

    def ask(prompts: Sequence[str], responses: Sequence[str]) -> list[tuple[Encoded, np.ndarray | None]]:
        samples = [
            {'context': prompt, 'response': response} for prompt, response in zip(prompts, responses, strict=True)
        ]
        encoded = template.encode(lm.tokenizer, samples, scorer.room)
        fits = [len(one.tokens) <= scorer.room for one in encoded]
        prob_FC = iter(scorer([one.tokens for one, fit in zip(encoded, fits) if fit]))
        return [(one, next(prob_FC) if fit else None) for one, fit in zip(encoded, fits)]

    return ask, scorer.room


def rate(
    lm: Model,
    prompts: Sequence[str | Prompt],
    responses: Sequence[str],
    *,
    task: str = 'summarization',
    templates: str = '',
    batch: int = 64,
    mesh: Mesh | None = None,
) -> list[Rating]:
    """Rate each response to its prompt, 1 to 10, on the mesh that `lm` was loaded on (default: one device).

    However many answers are no ratings, all are returned; look at `.status` and `.reason`. Raises `Mistake` where
    prompts and responses are not lists of as many.
    """
    check_labeler(lm, mesh)
    shown, written = texts('prompts', prompts), texts('responses', responses)
    if len(shown) != len(written):
        raise Mistake(f'{len(shown)} prompts and {len(written)} responses; give the prompt of each response')
    cfg = bind(Config(most_unscorable=1.0), {'task': task, 'templates': templates, 'batch': batch})
    return make_rater(lm, cfg, mesh)(shown, written)


def rater(
    lm: Model, *, task: str = 'summarization', templates: str = '', mesh: Mesh | None = None, **more: Any
) -> Callable[..., np.ndarray]:
    """A reward for `reinforce`, `(prompts, responses) -> scores` in [-1, 1]: the ratings of `lm`, by criteria of your own
    with a folder of `templates`.

    `more` are further fields of `Config`: least_mass, most_unscorable, max_length, batch. Raises `Mistake` as `rate` does,
    and, when it is asked, where more than `most_unscorable` of the answers are no ratings.
    """
    check_labeler(lm, mesh)
    return make_scorer(lm, bind(Config(), {'task': task, 'templates': templates, **more}), mesh)


def make_scorer(lm: Model, cfg: Config, mesh: Mesh | None = None) -> Callable[..., np.ndarray]:
    """`(prompts, responses, ended_B=None) -> score_B`, the type of every scorer: float32 in [-1, 1], NaN for unscorable.

    A labeler reads a text, which ends where it ends: it is not told whether its policy has.
    """
    rater = make_rater(lm, cfg, mesh)
    return lambda prompts, responses, ended_B=None: np.array([r.score for r in rater(prompts, responses)], np.float32)


def _too_long(prompt: Encoded, room: int) -> Rating:
    reason = f'{len(prompt.tokens)} tokens even without its context; behind the preamble {room} fit'
    return Rating(math.nan, (0.0,) * len(RATINGS), 0.0, 'unscorable', reason, prompt.neutralised, prompt.shortened)


def _rating(prob_R: np.ndarray, least_mass: float, prompt: Encoded = Encoded([], 0, 0)) -> Rating:
    mass, done = float(prob_R.sum()), (prompt.neutralised, prompt.shortened)
    # `not >=` also catches a NaN.
    if not mass >= max(least_mass, 1e-12):
        reason = f'the ten ratings hold {mass:.3f} of the probability'
        return Rating(math.nan, tuple(map(float, prob_R)), mass, 'unscorable', reason, *done)
    distribution = prob_R / mass
    score = (float(distribution @ np.arange(1, 11)) - 5.5) / 4.5
    return Rating(min(max(score, -1.0), 1.0), tuple(map(float, distribution)), mass, 'ok', '', *done)
