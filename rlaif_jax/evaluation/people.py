"""Several people on the same pairs, who may call one a tie: what they say together, how far they agree, and how far a
labeler agrees with them.

    plurality(vote_BM), mean_vote(vote_BM)        # (B,)
    between(vote_BM)                              # all raters with each other: Agreeing(same, kappa, …)
    against('gpt-4', verdict_B, vote_BM)          # a labeler, or one more rater, and them

A vote is 1 for the first response, 0 for the second, ½ for a tie, nan where nobody was asked. Which response is called the
first is arbitrary, and no figure here depends on it. Axes: B pair, M rater.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from rlaif_jax.evaluation.alignment import TIE, Agreement, agreement, verdicts
from rlaif_jax.evaluation.statistics import Interval, bounded_interval, share

CLASSES = (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class Agreeing:
    """How far two who vote agree, or several on average. Of three classes: the first, the second, a tie."""

    same: Interval  # share of pairs of which both say the same, in [0, 1]; n are the pairs that two or more voted on
    kappa: Interval  # Cohen's: what of the agreement that chance leaves out is there; at most 1, 0 by chance
    ties: float  # share of their votes


@dataclass(frozen=True)
class Against:
    """A labeler beside people."""

    name: str
    mean: Agreement  # its side and that of the mean vote; a tie of people's is undecided
    plurality: Agreement  # its side and the one that most voted for
    three: Interval  # share of pairs on which its class, first, second or tie, is the one that most voted for
    single: Agreeing  # it and one rater, as two raters with each other


def mean_vote(vote_BM: np.ndarray) -> np.ndarray:
    """(B,): the share of raters for the first response, ties as halves; nan where nobody voted."""
    said_B = (~np.isnan(vote_BM)).sum(1)
    return np.where(said_B > 0, np.nansum(vote_BM, 1) / np.maximum(said_B, 1), np.nan)


def plurality(vote_BM: np.ndarray) -> np.ndarray:
    """(B,): the first, the second or a tie, 1, 0, ½: whichever most raters said; nan where two were said as often."""
    classes_BM = verdicts(vote_BM)
    count_BC = np.stack([(classes_BM == one).sum(1) for one in CLASSES], 1)
    most_B = count_BC.max(1, initial=0)
    alone_B = (count_BC == most_B[:, None]).sum(1) == 1
    return np.where(alone_B, np.array(CLASSES)[count_BC.argmax(1)], np.nan)


def between(vote_BM: np.ndarray, confidence: float = 0.95) -> Agreeing:
    """How far raters agree with each other: over pairs, each the mean over all two raters who voted on it.

        κ = (same − chance) / (1 − chance),   chance = t_1 t_2 + (1 − t_1)(1 − t_2) / 2

    of two raters who call the shares t_1, t_2 of their common pairs ties. That is Cohen's kappa of these pairs together
    with their mirror images: as no response is the first by nature, a side is worth one half, and without ties κ is twice
    the agreement minus one. The interval of kappa is that of `same` in its unit, chance taken as known. With no two
    raters on any pair all is nan.
    """
    return _agreeing(vote_BM, combinations(range(vote_BM.shape[1]), 2), confidence)


def with_others(vote_BM: np.ndarray, m: int, confidence: float = 0.95) -> Agreeing:
    """The same of rater m and each other one."""
    found = _agreeing(vote_BM, ((m, other) for other in range(vote_BM.shape[1]) if other != m), confidence)
    mine_B = verdicts(vote_BM[:, m])
    return replace(found, ties=_ratio((mine_B == 0.5).sum(), (~np.isnan(mine_B)).sum()))


def against(
    name: str, preference_B: np.ndarray, vote_BM: np.ndarray, *, margin: float = 0.0, confidence: float = 0.95
) -> Against:
    """A labeler's preferences, P(the first is better), beside the votes of people. Within `margin` of one half it calls a
    tie, where classes are three; elsewhere its side counts, however near.
    """
    side_B = np.where(np.abs(preference_B - 0.5) <= max(margin, TIE), 0.5, verdicts(preference_B))
    most_B = plurality(vote_BM)
    three_B = np.where(np.isnan(side_B) | np.isnan(most_B), np.nan, side_B == most_B)
    both_BM = np.concatenate([side_B[:, None], vote_BM], 1)
    return Against(
        name=name,
        mean=agreement(preference_B, mean_vote(vote_BM), confidence=confidence),
        plurality=agreement(preference_B, most_B, confidence=confidence),
        three=share(three_B, confidence),
        single=with_others(both_BM, 0, confidence),
    )


def _agreeing(vote_BM: np.ndarray, couples: Iterable[tuple[int, int]], confidence: float) -> Agreeing:
    class_BM = verdicts(vote_BM)
    same_B, chance_B, couples_B = np.zeros((3, len(class_BM)))
    for a, b in couples:
        both_B = ~np.isnan(class_BM[:, a]) & ~np.isnan(class_BM[:, b])
        if not both_B.any():
            continue
        t_a, t_b = ((class_BM[both_B, m] == 0.5).mean() for m in (a, b))
        couples_B += both_B
        same_B += both_B & (class_BM[:, a] == class_BM[:, b])
        chance_B += both_B * (t_a * t_b + (1 - t_a) * (1 - t_b) / 2)
    kept_B = couples_B > 0
    same = bounded_interval(same_B[kept_B] / couples_B[kept_B], confidence)
    chance = float((chance_B[kept_B] / couples_B[kept_B]).mean()) if kept_B.any() else float('nan')
    kappa = Interval(float('nan'), -1.0, 1.0, same.n)
    if chance < 1:  # not of nobody, nor of nothing but ties
        kappa = Interval(*((one - chance) / (1 - chance) for one in (same.value, same.low, same.high)), same.n)
    said = (~np.isnan(class_BM)).sum()
    return Agreeing(same, kappa, _ratio((class_BM == 0.5).sum(), said))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float('nan')
