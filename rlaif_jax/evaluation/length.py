"""Win rates at equal length (App. J of the paper): longer answers win more often, so ask what happens when neither is
longer.

For a pair of policies, a logistic regression of 'A was preferred' on the ratio of lengths in characters; what is
reported is its prediction where the ratio is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.statistics import Interval, normal_quantile

__all__ = [
    'AtLength',
    'LengthRatio',
    'characters',
    'length_adjusted_win_rate',
    'logistic_at',
    'logistic_at_equal_length',
]

LengthRatio = Literal['plain', 'log']

# Keeps the fit defined where nothing else does (every ratio the same); far below anything that data can say.
RIDGE = 1e-6


@dataclass(frozen=True)
class AtLength:
    """A logistic fit read off at one length: the rate there, and how fast its logit rises with the regressor."""

    rate: Interval
    slope: float  # logits per unit of the regressor
    slope_error: float  # its standard error


def characters(texts: Sequence[str]) -> np.ndarray:
    """Length of each text in characters, (B,) float; an empty text counts as one character, so that ratios exist."""
    return np.array([max(1, len(text)) for text in texts], np.float64)


def length_adjusted_win_rate(
    win_B: np.ndarray,
    length_a_B: np.ndarray,
    length_b_B: np.ndarray,
    *,
    length_ratio: LengthRatio = 'plain',
    confidence: float = 0.95,
) -> Interval:
    """Rate at which A would be preferred if its responses were as long as B's.

    win_B in [0, 1] (nan: unscorable, left out); lengths in characters, at least 1 (less counts as 1).
    `length_ratio='log'` (Stiennon et al.) makes the answer for (B, A) exactly one minus that for (A, B); the paper's
    plain ratio does not.
    """
    length_a_B, length_b_B = (np.maximum(1.0, np.asarray(x, np.float64)) for x in (length_a_B, length_b_B))
    return logistic_at_equal_length(length_a_B / length_b_B, win_B, form=length_ratio, confidence=confidence).rate


def logistic_at_equal_length(
    length_ratio_B: np.ndarray,
    win_B: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    form: LengthRatio = 'plain',
    confidence: float = 0.95,
    jeffreys: bool = True,
) -> AtLength:
    """P(A preferred) = sigmoid(a + b x) at ratio 1, with x = len_A / len_B ('plain', the paper) or its logarithm
    ('log').

    Arguments as in `logistic_at`. Mistake: a ratio that is not a positive finite number, an unknown form.
    """
    ratio_B = np.asarray(length_ratio_B, np.float64)
    if form not in ('plain', 'log'):
        raise Mistake(f"the length ratio is taken 'plain' or 'log', not {form!r}")
    if not ((ratio_B > 0) & np.isfinite(ratio_B)).all():
        raise Mistake('every length ratio must be a positive finite number')
    x_B, at = (ratio_B, 1.0) if form == 'plain' else (np.log(ratio_B), 0.0)
    return logistic_at(x_B, win_B, weights, at=at, confidence=confidence, jeffreys=jeffreys)


def logistic_at(
    x_B: np.ndarray,
    y_B: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    at: float,
    confidence: float = 0.95,
    jeffreys: bool = True,
) -> AtLength:
    """Logistic regression of y in [0, 1] on x, read off at x = `at`, with a delta-method interval taken on the logit.

    Newton on  sum_i w_i (y_i log p_i + (1 - y_i) log(1 - p_i)) + 1/2 log det I(a, b) - RIDGE/2 (a^2 + b^2),  where
    p_i = sigmoid(a + b (x_i - at)) and I is the information. The middle term is Jeffreys' prior (Firth 1993): plain
    maximum likelihood, which is `jeffreys=False` and what the paper used, runs off to infinity when every vote is a win
    or length alone decides, and its interval with it; the prior gives a finite answer and moves others by the order of
    1/n. With it, x of very long tail (ratios in the hundreds) can have two tops; the one climbed from zero is taken.
    Where all x are the same and not `at`, the interval is all of [0, 1], as it should be.

    nan votes and zero weights are left out, and n counts the rest (none: nan in [0, 1]). A weight is a number of votes.
    A soft vote counts as that fraction of a win, which makes the interval wider than need be.
    """
    x_B, y_B = np.asarray(x_B, np.float64) - at, np.asarray(y_B, np.float64)
    weight_B = np.ones_like(y_B) if weights is None else np.asarray(weights, np.float64)
    if not x_B.shape == y_B.shape == weight_B.shape == (x_B.size,):
        raise Mistake(f'x, votes and weights must be as many, not {x_B.shape}, {y_B.shape}, {weight_B.shape}')
    if (y_B < 0).any() or (y_B > 1).any() or not (weight_B >= 0).all():
        raise Mistake('votes must lie in [0, 1] (or be nan) and weights must not be negative')
    z = normal_quantile(confidence)
    kept_B = (weight_B > 0) & ~np.isnan(y_B)
    x_B, y_B, weight_B = x_B[kept_B], y_B[kept_B], weight_B[kept_B]
    if not x_B.size:
        return AtLength(Interval(float('nan'), 0.0, 1.0, 0), float('nan'), float('nan'))
    (logit, slope), covariance = _fit(np.stack([np.ones_like(x_B), x_B], axis=-1), y_B, weight_B, jeffreys)
    error, slope_error = np.sqrt(np.diag(covariance))
    value, low, high = (float(v) for v in _sigmoid(np.array([logit, logit - z * error, logit + z * error])))
    return AtLength(Interval(value, low, high, x_B.size), float(slope), float(slope_error))


def _fit(X: np.ndarray, y_B: np.ndarray, weight_B: np.ndarray, jeffreys: bool) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (2,) and their covariance (2, 2); X is (B, 2)."""

    def at(beta):
        logit_B = X @ beta
        p_B = _sigmoid(logit_B)
        information_B = weight_B * p_B * (1 - p_B)
        information = (X.T * information_B) @ X + RIDGE * np.eye(2)
        # y log p + (1 - y) log(1 - p) = y logit - log(1 + e^logit)
        fit = weight_B @ (y_B * logit_B - np.logaddexp(0.0, logit_B)) - RIDGE / 2 * beta @ beta
        return p_B, information_B, information, fit + (jeffreys * 0.5 * np.linalg.slogdet(information)[1])

    beta = np.zeros(2)
    p_B, information_B, information, objective = at(beta)
    for _ in range(100):
        covariance = np.linalg.inv(information)
        residual_B = weight_B * (y_B - p_B)
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


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))
