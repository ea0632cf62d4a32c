"""How well a labeler agrees with people, and how much of what it says is position, length or bluster (§3.4, Tables 2-4
and App. B of the paper).

    one = report('detailed_cot_0shot', preference_B, human_B, first_shown_B=..., second_shown_B=...)
    report.labelers_table([one, ...])

Everything is an array over pairs. All preferences, those of one order too, are P(the first candidate is better): what
changes between the orders is only where that candidate was shown. nan is a pair that could not be scored.
A verdict is a preference thresholded at one half. Which candidate is called the first is arbitrary, and no figure here
depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.statistics import (
    Interval,
    binomial_test,
    bounded_interval,
    mean_interval,
    numbers,
    share,
    wilson,
)

# A preference this near one half has no verdict. Averaging two orders rounds, in float32 by up to 1e-7; without this
# the rounding would decide what the labeler did not.
TIE = 1e-6

# An averaged preference further than this from the mean of its two orders was not averaged from them.
ROUNDING = 0.01


@dataclass(frozen=True)
class Agreement(Interval):
    """Share of pairs on which the labeler's verdict is people's, in [0, 1], and the pairs that have no say in it.

    n + unscorable + undecided is the number of pairs; one that is both counts as unscorable.
    """

    ties: int  # of the n: preference of exactly one half, counted as half an agreement
    unscorable: int  # left out: the labeler gave no preference
    undecided: int  # left out: people have no preference (exactly one half, or nan: nobody was asked)


@dataclass(frozen=True)
class PositionBias:
    """What the position of a candidate does to a labeler. Shares in [0, 1]; 'first' and 'second' are positions."""

    same: Interval  # share of pairs on which the same position is preferred in both orders
    which: Literal['first', 'second', 'neither']  # the position that more of these prefer
    share: Interval  # of these, the share that prefers that position
    p_value: float  # two-sided binomial test of these against an even split (App. B)
    first: Interval  # share of all verdicts of both orders that go to the first position; without bias one half
    mean: Interval  # P(the one shown first is better) - 1/2, averaged over orders and pairs; in [-1/2, 1/2]
    ties: int  # left out of same, which, share and p_value: no verdict in at least one order
    unscorable: int  # left out of everything: nan in at least one order


@dataclass(frozen=True)
class Calibration:
    """A reliability curve over equal bins of the probability that the labeler gives to its own verdict, in [1/2, 1]; a bin
    holds its lower edge, and the last one both.
    """

    predicted: tuple[float, ...]  # mean probability in the bin; nan where it is empty
    observed: tuple[float, ...]  # mean share of people who agree; nan where it is empty
    count: tuple[int, ...]
    ece: float  # expected calibration error: |predicted - observed| averaged over pairs; nan without any
    n: int


@dataclass(frozen=True)
class Alignment:
    """All that is known of one labeler. None: the arrays that would tell were not given."""

    name: str
    pairs: int
    agreement: Agreement
    calibration: Calibration
    single_order: Interval | None = None  # agreement of a verdict from one order, over both orders
    gain: Interval | None = None  # what averaging the orders adds to that, on the same pairs
    position: PositionBias | None = None
    longer: Interval | None = None  # share of verdicts for the longer candidate
    human_longer: Interval | None = None  # people's share of the same, on the same pairs
    mass: float | None = None  # mean probability of the answers among all tokens
    tokens: float | None = None  # totals over all pairs
    seconds: float | None = None
    calls: int | None = None  # questions put to the labeler, answered by it or by the cache
    cache_hits: int | None = None

    def __post_init__(self) -> None:
        if self.calls is not None and self.cache_hits is not None and not 0 <= self.cache_hits <= self.calls:
            raise Mistake(f'cache_hits are among the calls, but there are {self.cache_hits} of {self.calls}')


# What the figures are


def agreement(preference_B: np.ndarray, human_B: np.ndarray, *, confidence: float = 0.95) -> Agreement:
    """Labeler alignment (§3.4 of the paper): how often the preference, as a hard verdict, is the one of people.

    preference_B: P(first better), both orders averaged, or of one order. human_B: 0/1 votes, or the share of people for
    the first, which is thresholded at one half too; pairs on which it is exactly that, or nan, are left out and counted,
    and so are those without a preference. A preference of one half agrees by half. Wilson's interval; ties make it a
    little wide. With nothing left: nan in [0, 1]. Mistake: no pairs, unequal lengths, values outside [0, 1].
    """
    preference_B, human_B = _probabilities(preference_B=preference_B, human_B=human_B)
    hit_B = _hits(preference_B, human_B)
    found = share(hit_B, confidence)
    unscorable = int(np.isnan(preference_B).sum())
    return Agreement(
        **vars(found),
        ties=int((hit_B == 0.5).sum()),
        unscorable=unscorable,
        undecided=len(hit_B) - found.n - unscorable,
    )


def position_bias(first_shown_B: np.ndarray, second_shown_B: np.ndarray, *, confidence: float = 0.95) -> PositionBias:
    """How often the verdict stays with the position when the candidates swap theirs (App. B of the paper).

    first_shown_B, second_shown_B: P(the first candidate is better) when it was shown first, and when it was shown
    second; so a labeler without bias has the same number in both. Pairs that are nan in either order are left out of
    everything; pairs at one half in either order prefer no position there, and are left out of what is about the same
    one. Both are counted. Where the labeler is asked for the worse response, the position that it names is the one that
    it does not prefer. Mistake: no pairs, unequal lengths, values outside [0, 1].
    """
    first_shown_B, second_shown_B = _probabilities(first_shown_B=first_shown_B, second_shown_B=second_shown_B)
    kept_B = ~np.isnan(first_shown_B) & ~np.isnan(second_shown_B)
    first_shown_B, second_shown_B = first_shown_B[kept_B], second_shown_B[kept_B]
    # By position: 1 where the one shown first won. In the second order that is the other candidate.
    position_OB = np.stack([verdicts(first_shown_B), 1 - verdicts(second_shown_B)])
    decided_B = (position_OB != 0.5).all(0)
    same_B = decided_B & (position_OB[0] == position_OB[1])
    n, first = int(same_B.sum()), int(position_OB[0, same_B].sum())
    return PositionBias(
        same=wilson(n, int(decided_B.sum()), confidence),
        which='first' if 2 * first > n else 'second' if 2 * first < n else 'neither',
        share=wilson(max(first, n - first), n, confidence),
        p_value=binomial_test(first, n),
        first=bounded_interval(position_OB.mean(0), confidence),
        mean=bounded_interval((first_shown_B - second_shown_B) / 2, confidence, low=-0.5, high=0.5),
        ties=int((~decided_B).sum()),
        unscorable=int((~kept_B).sum()),
    )


def calibration(preference_B: np.ndarray, human_B: np.ndarray, *, bins: int = 10) -> Calibration:
    """Of the verdicts given with a probability of 0.8, are people's 80 % for them?

    Each pair is folded so that the preference is at least one half: swapping its candidates, if need be, which changes
    nothing about it. So a bin holds twice as many pairs as the same width of an unfolded curve, and the answer does not
    depend on which candidate was called the first. It is the curve of the pairs together with their mirror images.

    Here human_B is not thresholded: a probability predicts the share of people, and a share of exactly one half is
    evidence like any other (leaving it out would make few-voter data look surer than they are). nan in either array is
    left out. ECE averages sizes, so noise alone gives about sqrt(bins / n) / 3. Mistake: bins < 1, and as `agreement`.
    """
    preference_B, human_B = _probabilities(preference_B=preference_B, human_B=human_B)
    if bins < 1:
        raise Mistake(f'a reliability curve needs at least one bin, not {bins}')
    kept_B = ~np.isnan(preference_B) & ~np.isnan(human_B)
    preference_B, human_B = preference_B[kept_B], human_B[kept_B]
    verdict_B = verdicts(preference_B)
    predicted_B = 0.5 + np.abs(preference_B - 0.5)
    observed_B = verdict_B * human_B + (1 - verdict_B) * (1 - human_B)  # a tie is half of each: one half
    # What rounding leaves a hair below an edge, as 0.6, stands on it.
    bin_B = np.minimum((2 * bins * (predicted_B - 0.5 + TIE)).astype(int), bins - 1)
    count, predicted, observed = (np.bincount(bin_B, x, bins) for x in (None, predicted_B, observed_B))
    with np.errstate(invalid='ignore'):  # an empty bin is nan
        mean_predicted, mean_observed = predicted / count, observed / count
    return Calibration(
        predicted=tuple(mean_predicted.tolist()),
        observed=tuple(mean_observed.tolist()),
        count=tuple(count.astype(int).tolist()),
        ece=float(np.abs(predicted - observed).sum() / kept_B.sum()) if kept_B.any() else float('nan'),
        n=int(kept_B.sum()),
    )


def verdicts(p_B: np.ndarray) -> np.ndarray:
    """1 for the first, 0 for the second, 1/2 for a tie, nan for nan."""
    return np.where(np.abs(p_B - 0.5) <= TIE, 0.5, 0.5 + 0.5 * np.sign(p_B - 0.5))


def report(
    name: str,
    preference_B: np.ndarray,
    human_B: np.ndarray,
    *,
    first_shown_B: np.ndarray | None = None,
    second_shown_B: np.ndarray | None = None,
    first_chars_B: np.ndarray | None = None,
    second_chars_B: np.ndarray | None = None,
    mass_B: np.ndarray | None = None,
    **cost: float | None,
) -> Alignment:
    """Everything about one labeler on one set of pairs; preferences and votes as in `agreement` and `position_bias`.

    first_chars_B, second_chars_B: lengths in characters; a pair of equal lengths says nothing about longer. mass_B: the
    probability of the answers among all tokens. cost: the tokens, seconds, calls and cache_hits of an `Alignment`.

    The agreement of a single order and the gain are over pairs with a verdict of people and all three preferences; the
    gain is paired, and both intervals are Student's t over pairs, since two orders of one pair are not independent.
    With preferences that are only 0 or 1 the gain is nothing by arithmetic, as orders that differ average to a tie.
    Mistake: only one of two arrays that go together; a preference that is not the mean of its two orders.
    """
    preference_B, human_B = _probabilities(preference_B=preference_B, human_B=human_B)
    hit_B = _hits(preference_B, human_B)
    found: dict[str, Any] = {}
    if _both(first_shown_B=first_shown_B, second_shown_B=second_shown_B):
        found['position'] = position_bias(first_shown_B, second_shown_B)
        names = {'first_shown_B': first_shown_B, 'second_shown_B': second_shown_B}
        shown_OB = np.stack(_probabilities(preference_B=preference_B, **names)[1:])
        _check_averaged(preference_B, shown_OB)
        single_B = _hits(shown_OB, human_B[None]).mean(0)
        kept_B = ~np.isnan(hit_B + single_B)
        found['single_order'] = bounded_interval(single_B[kept_B])
        found['gain'] = mean_interval((hit_B - single_B)[kept_B]).clipped(-1.0, 1.0)
    if _both(first_chars_B=first_chars_B, second_chars_B=second_chars_B):
        names = {'first_chars_B': first_chars_B, 'second_chars_B': second_chars_B}
        _, first_B, second_B = _rows(preference_B=preference_B, **names)
        kept_B = ~np.isnan(hit_B) & (np.abs(first_B - second_B) > 0)
        for field, verdict_B in {'longer': verdicts(preference_B), 'human_longer': verdicts(human_B)}.items():
            found[field] = share(np.where(first_B > second_B, verdict_B, 1 - verdict_B)[kept_B])
    if mass_B is not None:
        _, mass_B = _rows(preference_B=preference_B, mass_B=mass_B)
        found['mass'] = float(np.nanmean(mass_B)) if not np.isnan(mass_B).all() else float('nan')
    figures = {'agreement': agreement(preference_B, human_B), 'calibration': calibration(preference_B, human_B)}
    return Alignment(name, len(preference_B), **figures, **found, **cost)


# Small parts


def _hits(preference_B: np.ndarray, human_B: np.ndarray) -> np.ndarray:
    """1 where the verdicts are the same, 0 where opposite, 1/2 where the labeler has none; nan where left out."""
    human_B = verdicts(human_B)
    return np.where(human_B == 0.5, np.nan, 1 - np.abs(verdicts(preference_B) - human_B))


def _rows(**arrays_B: Any) -> list[np.ndarray]:
    """The arrays as float64, checked: named rows of the same, positive length."""
    found = [numbers(name, array_B) for name, array_B in arrays_B.items()]
    shapes = {name: array_B.shape for name, array_B in zip(arrays_B, found)}
    if len(set(shapes.values())) > 1:
        told = ', '.join(f'{name} {shape}' for name, shape in shapes.items())
        raise Mistake(f'these are one number a pair and must be as many, not of shapes {told}')
    if not found[0].size:
        raise Mistake(f'{" and ".join(shapes)} are empty: there are no pairs to agree on')
    return found


def _probabilities(**arrays_B: Any) -> list[np.ndarray]:
    """`_rows` of values in [0, 1] or nan."""
    found = _rows(**arrays_B)
    for name, array_B in zip(arrays_B, found):
        if (wrong_B := array_B[(array_B < 0) | (array_B > 1)]).size:
            raise Mistake(f'{name} holds probabilities in [0, 1] (or nan), not {wrong_B[0]}')
    return found


def _both(**pair: Any) -> bool:
    """Whether two arrays are given, not neither."""
    missing = [name for name, array_B in pair.items() if array_B is None]
    if len(missing) == 1:
        (given,) = pair.keys() - {*missing}
        raise Mistake(f'{given} was given without {missing[0]}: they go together')
    return not missing


def _check_averaged(preference_B: np.ndarray, shown_OB: np.ndarray) -> None:
    """Catches the likely slip, one order given as P(the one *shown* first is better)."""
    far_B = np.abs(shown_OB.mean(0) - preference_B) > ROUNDING  # nan is not far
    if far_B.any():
        i = int(far_B.argmax())
        raise Mistake(
            f'preference_B[{i}] = {preference_B[i]:.3f} is not the mean of first_shown_B = {shown_OB[0, i]:.3f} and '
            f'second_shown_B = {shown_OB[1, i]:.3f}: all three are P(the first candidate is better), wherever it was shown'
        )
