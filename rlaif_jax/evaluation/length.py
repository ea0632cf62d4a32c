"""Win rates at equal length (App. J of the paper): longer answers win more often, so ask what happens when neither is
longer.

For a pair of policies, a logistic regression of 'A was preferred' on the logarithm of the ratio of lengths in characters
(Stiennon et al. 2020); what is reported is its prediction where the ratio is 1. The paper took the ratio itself, whose
tail is long, and whose answer depends on which of the two policies is called A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.statistics import (
    Interval,
    blocks,
    central,
    check_resamples,
    draws,
    normal_quantile,
    numbers,
    resampled,
    two_humps,
    votes,
)  # fmt: skip

LengthRatio = Literal['log', 'plain']

# Keeps the fit defined where nothing else does (every ratio the same); far below anything that data can say.
RIDGE = 1e-6

# Of the pairs, this share at least is on either side of the length at which a rate is read; else it is an extrapolation.
BOTH_SIDES = 0.025


@dataclass(frozen=True)
class AtLength(Interval):
    """A rate read off a fit at one length, and what keeps it from being taken at its word."""

    extrapolated: bool = False  # hardly a pair is on one side of that length: it is read where nothing is known
    humps: bool = False  # resamples gather in two places, which `low` and `high` span: no interval of one rate


def characters(texts: Sequence[str]) -> np.ndarray:
    """Length of each text in characters, (B,) float; an empty text counts as one character, so that ratios exist."""
    return np.array([max(1, len(text)) for text in texts], np.float64)


def length_adjusted_win_rate(
    win_B: np.ndarray,
    length_a_B: np.ndarray,
    length_b_B: np.ndarray,
    *,
    length_ratio: LengthRatio = 'log',
    confidence: float = 0.95,
    resamples: int = 1000,
    jeffreys: bool = True,
) -> AtLength:
    """Rate at which A would be preferred if its responses were as long as B's.

    win_B in [0, 1] (nan: unscorable, left out); lengths in characters, at least 1 (less counts as 1).
    With the logarithm the answer for (B, A) is one minus that for (A, B); with the paper's plain ratio it is not.
    `resamples` and `jeffreys` as in `logistic_at_equal_length`.
    """
    length_a_B, length_b_B = (np.maximum(1.0, numbers('lengths', x)) for x in (length_a_B, length_b_B))
    if length_a_B.shape != length_b_B.shape:
        raise Mistake(f'lengths of {len(length_a_B)} and of {len(length_b_B)} responses; there are as many')
    how = {'form': length_ratio, 'confidence': confidence, 'resamples': resamples, 'jeffreys': jeffreys}
    return logistic_at_equal_length(length_a_B / length_b_B, win_B, **how)


def logistic_at_equal_length(
    length_ratio_B: np.ndarray,
    win_B: np.ndarray,
    *,
    form: LengthRatio = 'log',
    confidence: float = 0.95,
    jeffreys: bool = True,
    resamples: int = 0,
) -> AtLength:
    """Logistic regression of votes in [0, 1] on the logarithm of len_A / len_B ('log') or that itself ('plain', the paper),
    x, read off where the lengths are equal: P(A preferred) = sigmoid(a + b (x - x at equal length)) is sigmoid(a) there.

    The interval is a percentile bootstrap over rows, of so many `resamples`. With 0 of them it is that of the delta
    method, taken on the logit; so it is where resamples cannot tell: less than ten votes for a side, all x the same, or
    every win at greater x than every loss, or at smaller.

    Newton on  sum_i (y_i log p_i + (1 - y_i) log(1 - p_i)) + 1/2 log det I(a, b) - RIDGE/2 (a^2 + b^2),  where I is the
    information. The middle term is Jeffreys' prior (Firth 1993): plain maximum likelihood, which is `jeffreys=False` and
    what the paper used, runs off to infinity when every vote is a win or length alone decides, and its interval with it;
    the prior gives a finite answer and moves others by the order of 1/n. With it, x of very long tail (ratios in the
    hundreds) can have two tops; the one climbed from zero is taken. Where all x are the same and not at equal length, the
    interval is all of [0, 1], as it should be.

    nan votes are left out, and n counts the rest (none: nan in [0, 1]). A soft vote counts as that fraction of a win,
    which makes the interval of the delta method wider than need be. Mistake: a ratio that is not a positive finite
    number, an unknown form, ratios and votes of different number.
    """
    ratio_B, y_B = numbers('length ratios', length_ratio_B), votes(win_B)
    check_resamples(resamples)
    z = normal_quantile(confidence)
    if form not in ('plain', 'log'):
        raise Mistake(f"the length ratio is taken 'log' or 'plain', not {form!r}")
    if not ((ratio_B > 0) & np.isfinite(ratio_B)).all():
        raise Mistake('every length ratio must be a positive finite number')
    if ratio_B.shape != y_B.shape:
        raise Mistake(f'length ratios and votes must be as many, not {ratio_B.size} and {y_B.size}')
    kept_B = ~np.isnan(y_B)
    x_B, y_B = (ratio_B - 1.0 if form == 'plain' else np.log(ratio_B))[kept_B], y_B[kept_B]
    if not x_B.size:
        return AtLength(float('nan'), 0.0, 1.0, 0)
    X = np.stack([np.ones_like(x_B), x_B], axis=-1)
    beta, covariance = _fit(X, y_B, jeffreys)
    error = z * np.sqrt(covariance[0, 0])
    value, low, high = (float(v) for v in _sigmoid(beta[0] + np.array([0.0, -error, error])))
    humps, extrapolated = False, min((x_B <= 0).mean(), (x_B >= 0).mean()) < BOTH_SIDES
    if resamples and resampled(y_B) and not _separated(x_B, y_B):
        found_R = _sigmoid(_refits(X, y_B, jeffreys, beta, resamples))
        (low, high), humps = central(found_R, confidence), two_humps(found_R)
    return AtLength(value, low, high, x_B.size, bool(extrapolated), humps)


def _fit(X: np.ndarray, y_B: np.ndarray, jeffreys: bool) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (2,) and their covariance (2, 2); X is (B, 2)."""

    def at(beta):
        logit_B = X @ beta
        p_B = _sigmoid(logit_B)
        information_B = p_B * (1 - p_B)
        information = (X.T * information_B) @ X + RIDGE * np.eye(2)
        # y log p + (1 - y) log(1 - p) = y logit - log(1 + e^logit)
        fit = (y_B * logit_B - np.logaddexp(0.0, logit_B)).sum() - RIDGE / 2 * beta @ beta
        return p_B, information_B, information, fit + (jeffreys * 0.5 * np.linalg.slogdet(information)[1])

    beta = np.zeros(2)
    p_B, information_B, information, objective = at(beta)
    for _ in range(100):
        covariance = np.linalg.inv(information)
        residual_B = y_B - p_B
        if jeffreys:  # each row's leverage, as a pseudo-vote for one half
            residual_B = residual_B + information_B * ((X @ covariance) * X).sum(-1) * (0.5 - p_B)
        step = covariance @ (X.T @ residual_B - RIDGE * beta)
        while True:  # Newton overshoots on long-tailed ratios: halve the step until it does no harm
            trial = at(beta + step)
            if trial[-1] >= objective - 1e-12 * abs(objective) or np.abs(step).max() < 1e-12:
                break
            step = step / 2
        beta, (p_B, information_B, information, objective) = beta + step, trial
        if np.abs(step).max() < 1e-9 * (1 + np.abs(beta).max()):
            break
    return beta, np.linalg.inv(information)


def _separated(x_B: np.ndarray, y_B: np.ndarray) -> bool:
    """Whether x tells all, or nothing, of wins and losses: each resample's fit then runs as far as the prior lets it."""
    won_B, lost_B = x_B[y_B > 0.5], x_B[y_B < 0.5]
    if not (won_B.size and lost_B.size):
        return bool(np.ptp(x_B) == 0)
    return bool(won_B.min() >= lost_B.max() or won_B.max() <= lost_B.min())


def _refits(X: np.ndarray, y_B: np.ndarray, jeffreys: bool, beta: np.ndarray, resamples: int) -> np.ndarray:
    """logit_R at equal length, of so many resamples of the rows: Newton from the fit of all rows, for many at once; what
    has not come to rest in a few steps is fitted by itself.
    """
    n = len(y_B)
    square_B3 = np.stack([X[:, 0] ** 2, X[:, 0] * X[:, 1], X[:, 1] ** 2], axis=-1)
    found, by_itself = [], {}
    for many in blocks(draws(n, resamples), n):
        count_RB = np.stack([np.bincount(drawn_B, minlength=n) for drawn_B in many], dtype=np.float64)
        beta_R2, moving_R = np.tile(beta, (len(many), 1)), np.arange(len(many))
        for _ in range(40):
            counts_RB, at_R2 = count_RB[moving_R], beta_R2[moving_R]
            p_RB = _sigmoid(at_R2 @ X.T)
            information_RB = counts_RB * p_RB * (1 - p_RB)
            a_R, b_R, c_R = (information_RB @ square_B3).T + RIDGE * np.array([[1.0], [0.0], [1.0]])
            inverse_R3 = np.stack([c_R, -b_R, a_R], axis=-1) / (a_R * c_R - b_R**2)[:, None]
            residual_RB = counts_RB * (y_B - p_RB)
            if jeffreys:
                residual_RB += information_RB * (inverse_R3 * [1, 2, 1] @ square_B3.T) * (0.5 - p_RB)
            (s_R, t_R, u_R), (g_R, h_R) = inverse_R3.T, (residual_RB @ X - RIDGE * at_R2).T
            step_R2 = np.stack([s_R * g_R + t_R * h_R, t_R * g_R + u_R * h_R], axis=-1)
            beta_R2[moving_R] += step_R2
            moving_R = moving_R[~(np.abs(step_R2).max(1) < 1e-6 * (1 + np.abs(at_R2).max(1)))]
            if not moving_R.size:
                break
        for r in moving_R:
            rows = np.sort(many[r])
            drawn = rows.tobytes()  # few rows are drawn alike again and again
            by_itself[drawn] = by_itself.get(drawn) or _fit(X[rows], y_B[rows], jeffreys)
            beta_R2[r], _ = by_itself[drawn]
        found.append(beta_R2[:, 0])
    return np.concatenate(found)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))
