"""Intervals and tests for the numbers that an evaluation reports. Rows are prompts, and prompts are taken as
independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import sqrt
from numbers import Integral, Real
from statistics import NormalDist  # the standard library's module of this name
from typing import Any

import numpy as np

from rlaif_jax.config import Mistake

FEWEST = 10  # votes for either side, of which a bootstrap makes an interval


@dataclass(frozen=True)
class Interval:
    """An estimate, the interval round it, and the number of prompts behind it. Rates are fractions in [0, 1]."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """As a percentage: `68.9 % [66.0, 71.6] n=1024`."""
        return f'{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] n={self.n}'

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def clipped(self, low: float = 0.0, high: float = 1.0) -> Interval:
        """The same with its ends held within [low, high], for a quantity that cannot leave that range."""
        return replace(self, low=max(self.low, low), high=min(self.high, high))

    def complement(self) -> Interval:
        """That of one minus the quantity: of a rate, how often it is not so."""
        return replace(self, value=1 - self.value, low=1 - self.high, high=1 - self.low)


def wilson(wins: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion: stays in [0, 1] and has a width even at 0 or n wins.

    With n = 0 the value is nan and the interval all of [0, 1]. Fractional wins are allowed and make the interval wider
    than need be, as a vote within [0, 1] never varies more than a coin of the same mean.
    Mistake: wins outside [0, n], confidence outside (0, 1).
    """
    z = normal_quantile(confidence)
    if not 0 <= wins <= n:
        raise Mistake(f'wins must lie between 0 and n={n}, not {wins}')
    if n == 0:
        return Interval(float('nan'), 0.0, 1.0, 0)
    rate = wins / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At 0 and n wins the end is exactly 0 and 1; rounding would leave it a hair off, and the value outside.
    low, high = (0.0 if wins == 0 else centre - half), (1.0 if wins == n else centre + half)
    return Interval(float(rate), float(low), float(high), int(n))


def share(win_B: np.ndarray, confidence: float = 0.95) -> Interval:
    """`wilson` of votes, (B,), of which nan are left out; n counts the rest. Mistake: a vote outside [0, 1]."""
    vote_B = votes(win_B)
    vote_B = vote_B[~np.isnan(vote_B)]
    return wilson(float(vote_B.sum()), vote_B.size, confidence)


def bounded_interval(
    values_B: np.ndarray, confidence: float = 0.95, *, low: float = 0.0, high: float = 1.0
) -> Interval:
    """The mean of values within [low, high]: of votes of which some are ties, or averages over orders or raters.

    The normal interval over prompts, to which z² are added, half of them at either end (Agresti and Coull 1998). So it
    stays within the bounds, and has a width where all values are the same, too: two ties are [0.17, 0.83]. With no values
    it is nan in all of [low, high]. Mistake: a value outside the bounds.
    """
    value_B = _column(values_B)
    n, added = value_B.size, normal_quantile(confidence) ** 2
    if ((value_B < low) | (value_B > high)).any():
        raise Mistake(f'values lie in [{low}, {high}], not at {value_B[(value_B < low) | (value_B > high)][0]}')
    if not n:
        return Interval(float('nan'), low, high, 0)
    centre = (value_B.sum() + added * (low + high) / 2) / (n + added)
    squares = ((value_B - centre) ** 2).sum() + added / 2 * ((low - centre) ** 2 + (high - centre) ** 2)
    half, mean = sqrt(added * squares) / (n + added), value_B.mean()
    ends = min(centre - half, mean), max(centre + half, mean)
    return Interval(float(mean), *map(float, ends), n).clipped(low, high)


def mean_interval(values_B: np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean over prompts: for scores and lengths, which know no bounds; votes do
    (`bounded_interval`).

    The t quantile is used at every n, not only small ones. One value has an infinite interval; no value is nan in
    [-inf, inf]; equal values have an interval of no width. Values must be finite.
    """
    value_B = _column(values_B)
    n = value_B.size
    if n < 2:
        return Interval(float(value_B[0]) if n else float('nan'), -np.inf, np.inf, n)
    mean, half = value_B.mean(), t_quantile(confidence, n - 1) * value_B.std(ddof=1) / sqrt(n)
    return Interval(float(mean), float(mean - half), float(mean + half), n)


def difference(a: Interval, b: Interval) -> Interval:
    """a − b of two estimates that know nothing of each other: their distances to their own ends, squared and added
    (Newcombe 1998, method 10). Where they are of the same prompts it is wider than need be. n is the lesser one's.
    """
    value = a.value - b.value
    low = value - sqrt((a.value - a.low) ** 2 + (b.high - b.value) ** 2)
    high = value + sqrt((a.high - a.value) ** 2 + (b.value - b.low) ** 2)
    return Interval(value, low, high, min(a.n, b.n))


def bootstrap(values_B: np.ndarray, *, resamples: int = 1000, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap over prompts of the mean. The same values have the same interval. Mistake: no values,
    resamples < 1.
    """
    value_B = _column(values_B)
    n = value_B.size
    normal_quantile(confidence)
    check_resamples(resamples)
    if n == 0 or resamples < 1:
        raise Mistake(f'a bootstrap needs at least one value and one resample, not {n} and {resamples}')
    found = np.concatenate([value_B[many].mean(1) for many in blocks(draws(n, resamples), n)])
    return Interval(float(value_B.mean()), *central(found, confidence), n)


def check_resamples(resamples: int) -> None:
    """Raises Mistake for what is no number of resamples that a machine can draw."""
    if not isinstance(resamples, Integral) or not 0 <= resamples <= 10**7:
        raise Mistake(f'resamples is a whole number, 0 to 10,000,000, not {resamples!r:.80}')


def resampled(vote_B: np.ndarray) -> bool:
    """Whether resamples of these votes, in [0, 1], can tell how sure their mean is: not where nearly all are the same,
    wins, losses or ties, as then nearly all resamples are, too.
    """
    most_alike = max(np.unique(vote_B, return_counts=True)[1], default=0)
    return bool(min(vote_B.sum(), (1 - vote_B).sum(), len(vote_B) - most_alike) >= FEWEST)


def draws(n: int, resamples: int) -> Iterator[np.ndarray]:
    """The rows of each resample, n of n with replacement; always the same ones."""
    rng = np.random.default_rng(0)
    return (rng.integers(n, size=n) for _ in range(resamples))


def blocks(drawn: Iterator[np.ndarray], n: int) -> Iterator[np.ndarray]:
    """Resamples of n rows stacked, (R, n), as many as a cache holds."""
    while many := list(islice(drawn, max(1, 2**20 // n))):
        yield np.stack(many)


def central(found_R: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The ends between which this share of what resamples gave lies, as much of the rest below as above."""
    low, high = np.quantile(found_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def two_humps(found_R: np.ndarray) -> bool:
    """Whether what resamples gave gathers in two places, so that no one interval tells where: a density of it falls below
    half of either top in between, and a fortieth of them or more lies on either side.
    """
    values_R = np.quantile(found_R, np.linspace(0, 1, 400))  # as many as show its shape, however many there are
    spread = np.subtract(*np.quantile(values_R, [0.75, 0.25])) / 1.349
    width = 0.9 * min(filter(None, (spread, values_R.std())), default=0.0) * len(values_R) ** -0.2  # Silverman's
    if not width > 0:
        return False
    at_S = np.sort(np.append(values_R, (values_R[1:] + values_R[:-1]) / 2))
    density_S = np.exp(-0.5 * ((at_S[:, None] - values_R) / width) ** 2).sum(1)
    top_S = np.minimum(np.maximum.accumulate(density_S), np.maximum.accumulate(density_S[::-1])[::-1])
    share_S = np.searchsorted(values_R, at_S) / len(values_R)
    return bool(((density_S < top_S / 2) & (np.minimum(share_S, 1 - share_S) >= 1 / 40)).any())


def binomial_test(k: int, n: int, p: float = 0.5) -> float:
    """Exact two-sided p value of k wins in n votes when each is won with probability p: of all outcomes no likelier than
    k. No votes: 1. Mistake: k outside 0..n, p outside [0, 1].
    """
    if k != int(k) or n != int(n) or not 0 <= k <= n or not 0 <= p <= 1:
        raise Mistake(f'need whole numbers 0 <= k <= n and 0 <= p <= 1, not k={k}, n={n}, p={p}')
    from scipy.stats import binomtest  # takes half a second to import

    return float(binomtest(int(k), int(n), p).pvalue) if n else 1.0


def normal_quantile(confidence: float) -> float:
    """z such that a standard normal lies within ±z with this probability. Mistake: confidence outside (0, 1)."""
    if not isinstance(confidence, Real) or not 0 < confidence < 1:
        raise Mistake(f'confidence is a probability between 0 and 1, such as 0.95, not {confidence}')
    return NormalDist().inv_cdf((1 + confidence) / 2)


def t_quantile(confidence: float, degrees: int) -> float:
    """t such that Student's t with `degrees` degrees of freedom lies within ±t with this probability."""
    normal_quantile(confidence)
    if degrees < 1:
        raise Mistake(f"Student's t needs at least one degree of freedom, not {degrees}")
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def numbers(name: str, values_B: Any) -> np.ndarray:
    """A row of numbers as float64, (B,); None is nan. Mistake, which says what `name` is instead: anything else."""
    try:
        found_B = np.asarray(values_B)
    except (ValueError, OverflowError):  # rows of unlike length
        raise Mistake(f'{name}: {values_B!r:.80} is no row of numbers') from None
    if found_B.dtype.kind == 'O' and all(one is None or isinstance(one, Real) for one in found_B.flat):
        found_B = found_B.astype(np.float64)
    if found_B.ndim != 1 or (found_B.size and found_B.dtype.kind not in 'biuf'):
        kind = f'shape {found_B.shape}' if found_B.dtype.kind in 'biuf' else f'{values_B!r:.80}'
        raise Mistake(f'{name}: one row of numbers is wanted, not {kind}')
    return found_B.astype(np.float64)


def votes(win_B: np.ndarray) -> np.ndarray:
    """Votes as float64, (B,): each in [0, 1], or nan where a judge could not say. Mistake: anything else."""
    vote_B = numbers('votes', win_B)
    if (wrong_B := vote_B[(vote_B < 0) | (vote_B > 1)]).size:
        raise Mistake(f'votes lie in [0, 1], or are nan, not {wrong_B[0]}')
    return vote_B


def _column(values_B: np.ndarray) -> np.ndarray:
    value_B = numbers('values', values_B)
    if not np.isfinite(value_B).all():
        raise Mistake('values: nan or infinity is among them')
    return value_B
