"""The intervals keep their word: over many simulated data sets, the 95 % interval of each figure holds the truth 95 % of
the time.

Each law draws 2,000 data sets whose truth is known. The share of them covered has itself a standard error of half a
point, so ±1.5 points is three of these.
"""

import numpy as np
import pytest

from rlaif_jax.evaluation.harmless import harmless_rate, harmless_rate_at_length
from rlaif_jax.evaluation.length import length_adjusted_win_rate
from rlaif_jax.evaluation.statistics import bootstrap
from rlaif_jax.evaluation.versus import win_rate

SETS = 2000


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def covered(intervals, truths, share=0.95):
    """Whether the share of intervals that hold their truth is 95 %, give or take 1.5."""
    held = np.mean([truth in interval for interval, truth in zip(intervals, truths, strict=True)])
    return held == pytest.approx(share, abs=0.015)


def kept(resamples):
    """Ends that are order statistics of R draws lie a little too near: 95 % becomes 95 % of this, which is nothing at the
    default of 1,000 and up to two points at what a test can pay for.
    """
    return (resamples - 1) / (resamples + 1) if resamples else 1.0


def test_hard_votes():
    rng = np.random.default_rng(0)
    truths = rng.uniform(0.1, 0.95, SETS)  # at one truth the coverage of a whole number of wins goes up and down with n
    assert covered([win_rate((rng.random(100) < p).astype(float), resamples=0) for p in truths], truths)


def test_votes_averaged_over_raters_who_agree():
    """Three raters of one prompt are no three prompts: they see the same responses."""
    rng = np.random.default_rng(1)
    alpha = rng.uniform(0.7, 3.0, (SETS, 2))
    votes = [rng.binomial(3, rng.beta(a, b, 60)) / 3 for a, b in alpha]
    truths = alpha[:, 0] / alpha.sum(1)
    assert covered([win_rate(vote_B, resamples=0) for vote_B in votes], truths)
    naive = [
        win_rate(np.repeat(vote_B, 3) > rng.random(180), resamples=0) for vote_B in votes
    ]  # as if there were 180 prompts
    assert not covered(naive, truths)


@pytest.mark.slow
@pytest.mark.parametrize('resamples', [0, pytest.param(200, marks=pytest.mark.nightly)])
def test_the_win_rate_at_equal_length(resamples):
    rng = np.random.default_rng(2)
    truths, intervals = rng.uniform(0.2, 0.8, SETS), []
    for p in truths:
        length_a_B, length_b_B = np.exp(rng.normal([[5.1], [4.9]], 0.3, (2, 100))).round()
        win_B = (rng.random(100) < sigmoid(np.log(p / (1 - p)) + 1.5 * np.log(length_a_B / length_b_B))).astype(float)
        intervals.append(length_adjusted_win_rate(win_B, length_a_B, length_b_B, resamples=resamples))
    assert covered(intervals, truths, share=0.95 * kept(resamples))


@pytest.mark.slow
def test_where_only_length_matters_neither_wins_at_equal_length():
    rng = np.random.default_rng(3)
    raw, adjusted = [], []
    for _ in range(SETS):  # with fewer votes the fit's prior, which leans to a half, makes these a point too good
        length_a_B, length_b_B = np.exp(rng.normal([[5.2], [4.9]], 0.3, (2, 200))).round()
        win_B = (rng.random(200) < sigmoid(2 * (length_a_B / length_b_B - 1))).astype(float)
        raw.append(win_rate(win_B, resamples=0))
        adjusted.append(length_adjusted_win_rate(win_B, length_a_B, length_b_B, length_ratio='plain', resamples=0))
    halves = np.full(SETS, 0.5)
    assert covered(adjusted, halves) and not covered(raw, halves)
    assert np.mean([one.value for one in adjusted]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_a_bootstrapped_mean():
    rng = np.random.default_rng(4)
    values = rng.gamma(4.0, size=(SETS, 80))  # somewhat skewed, as lengths and scores are
    intervals = [bootstrap(value_B, resamples=100) for value_B in values]
    assert covered(intervals, np.full(SETS, 4.0), share=0.95 * kept(100))


@pytest.mark.slow
def test_bootstrapped_votes():
    rng = np.random.default_rng(8)
    truths = rng.uniform(0.1, 0.95, SETS)
    intervals = [win_rate((rng.random(400) < p).astype(float), resamples=200) for p in truths]
    assert covered(intervals, truths, share=0.95 * kept(200))


def test_the_harmless_rate():
    rng = np.random.default_rng(5)
    truths = rng.uniform(0.5, 0.99, SETS)
    votes = [(rng.random(120) < p).astype(float) for p in truths]
    assert covered([harmless_rate(vote_B) for vote_B in votes], truths)


@pytest.mark.slow
def test_the_harmless_rate_at_a_length():
    rng = np.random.default_rng(6)
    truths, intervals = rng.uniform(0.5, 0.95, SETS), []
    for p in truths:
        length_B = np.exp(rng.normal(5.0, 0.4, 200)).round()
        vote_B = (rng.random(200) < sigmoid(np.log(p / (1 - p)) - (length_B / 130 - 1))).astype(float)
        intervals.append(harmless_rate_at_length(vote_B, length_B, 130, length_ratio='plain'))
    assert covered(intervals, truths)
