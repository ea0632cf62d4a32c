"""Laws of the intervals, the tests and the fit at equal length: coverage, exactness, and answers where fits break down."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from rlaif_jax.evaluation.length import AtLength, characters, length_adjusted_win_rate, logistic_at_equal_length
from rlaif_jax.evaluation.statistics import (
    Interval,
    binomial_test,
    bootstrap,
    bounded_interval,
    central,
    difference,
    draws,
    mean_interval,
    t_quantile,
    two_humps,
    wilson,
)
from rlaif_jax.evaluation.versus import win_rate


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_an_interval_reads_as_a_percentage():
    assert str(Interval(0.689, 0.66, 0.716, 1024)) == '68.9 % [66.0, 71.6] n=1024'


@pytest.mark.parametrize('p', [0.05, 0.3, 0.5, 0.69, 0.95])
def test_wilson_covers_the_truth(p):
    n = 1000
    intervals = [wilson(k, n) for k in range(n + 1)]
    probability = np.array([comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
    assert probability @ [p in interval for interval in intervals] == pytest.approx(0.95, abs=0.015)


def test_wilson_is_symmetric_bounded_and_wide_at_the_ends():
    for wins, n in [(0, 5), (5, 5), (3, 8), (700, 1024), (0, 1)]:
        a, b = wilson(wins, n), wilson(n - wins, n)
        assert (a.low, a.high) == pytest.approx((1 - b.high, 1 - b.low), abs=1e-12)
        assert 0 <= a.low <= a.value <= a.high <= 1 and a.high - a.low > 0.02
    assert wilson(50, 100, 0.99).low < wilson(50, 100, 0.9).low
    nothing = wilson(0, 0)
    assert np.isnan(nothing.value) and (nothing.low, nothing.high, nothing.n) == (0, 1, 0)


def test_the_difference_of_two_shares_is_newcombes():
    found = difference(wilson(56, 70), wilson(48, 80))  # his first example, method 10
    assert (found.low, found.high, found.n) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5), 70)
    turned = difference(wilson(48, 80), wilson(56, 70))
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_t_quantiles_are_those_of_the_tables():
    table = {
        1: 12.7062047,
        2: 4.3026527,
        5: 2.5705818,
        30: 2.0422725,
        100: 1.9839715,
        1000: 1.9623391,
        10**6: 1.9599663,
    }
    for degrees, quantile in table.items():
        assert t_quantile(0.95, degrees) == pytest.approx(quantile, rel=3e-6)
    assert t_quantile(0.99, 10) == pytest.approx(3.1692727, rel=3e-6)


@pytest.mark.parametrize('n', [3, 10, 40])
def test_mean_interval_covers_the_truth_for_few_prompts(n):
    sample = np.random.default_rng(n).normal(0.3, 2.0, size=(4000, n))
    assert np.mean([0.3 in mean_interval(values_B) for values_B in sample]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize('n', [2, 5, 20, 100])
@pytest.mark.parametrize('tied', [0.0, 0.5, 0.9])
def test_the_interval_of_votes_with_ties_covers_the_truth(n, tied):
    """Of so few votes it may cover more often than it says, and never by far less."""
    rng = np.random.default_rng(0)
    win_SB = np.where(rng.random((2000, n)) < tied, 0.5, rng.random((2000, n)) < 0.7)
    truth = 0.5 * tied + 0.7 * (1 - tied)
    assert np.mean([truth in bounded_interval(win_B) for win_B in win_SB]) > 0.935


@pytest.mark.parametrize('vote', [0.0, 0.25, 0.5, 1.0])
def test_votes_that_are_all_the_same_have_a_width_that_more_of_them_make_smaller(vote):
    widths = []
    for n in (1, 2, 4, 20, 1000):
        for one in (bounded_interval(np.full(n, vote)), win_rate(np.full(n, vote))):
            assert one.value == vote and one.n == n and 0 <= one.low <= vote <= one.high <= 1
            widths.append(one.high - one.low)
    assert 0 < widths[-1] < 0.01 and widths[::2] == sorted(widths[::2], reverse=True)
    two = bounded_interval(np.full(2, 0.5))
    assert (two.low, two.high) == pytest.approx((0.17, 0.83), abs=0.005)


def test_mean_interval_says_what_it_cannot_know():
    assert mean_interval(np.array([0.2])) == Interval(0.2, -np.inf, np.inf, 1)
    assert np.isnan(mean_interval(np.array([])).value)


def test_bootstrap_agrees_with_theory_and_is_repeatable():
    values_B = np.random.default_rng(0).exponential(size=800)
    drawn, exact = bootstrap(values_B), mean_interval(values_B)
    assert (drawn.value, drawn.n) == (exact.value, 800)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.015)
    each = [values_B[rows].mean() for rows in draws(800, 1000)]  # one resample at a time
    assert drawn == bootstrap(values_B) and (drawn.low, drawn.high) == central(np.array(each))


def test_two_humps_are_found_and_one_is_not_two():
    rng = np.random.default_rng(0)
    one = {
        'normal': rng.normal(size=(50, 1000)),
        'long tails': rng.standard_t(3, (50, 1000)),
        'skewed': rng.exponential(size=(50, 1000)),
        'at the end of its range': sigmoid(rng.normal(4, 1, (50, 1000))),
        'lattice': rng.binomial(40, 0.5, (50, 1000)) / 40,
        'a point': np.full((1, 1000), 0.5),
    }
    for name, found_SR in one.items():
        assert sum(map(two_humps, found_SR)) <= 2, name
    for share in (0.05, 0.5, 0.95):
        for apart in (8, 1000):
            found_SR = rng.normal(size=(20, 1000)) + apart * (rng.random((20, 1000)) < share)
            assert all(map(two_humps, found_SR)), (share, apart)


@pytest.mark.parametrize('p', [Fraction(1, 2), Fraction(1, 3), Fraction(9, 10)])
def test_binomial_test_equals_enumeration(p):
    for n in (1, 2, 7, 20, 61):
        probability = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        for k in range(n + 1):
            exact = sum(other for other in probability if other <= probability[k])
            assert binomial_test(k, n, float(p)) == pytest.approx(float(exact), rel=1e-9)


def test_binomial_test_at_its_edges():
    assert binomial_test(0, 0) == 1 and binomial_test(500, 1000) == pytest.approx(1)
    assert binomial_test(3, 3, 1.0) == 1 and binomial_test(2, 3, 1.0) == 0
    assert binomial_test(400, 1000) == binomial_test(600, 1000) == pytest.approx(2.728e-10, rel=1e-3)


def draw(rng, n, intercept, slope):
    """Length ratios and votes, P(A) = sigmoid(intercept + slope (ratio - 1)); A is a quarter longer on average."""
    ratio_B = np.exp(rng.normal(0.2, 0.35, n))
    return ratio_B, (rng.random(n) < sigmoid(intercept + slope * (ratio_B - 1))).astype(float)


@pytest.mark.parametrize(('intercept', 'slope'), [(0.5, 1.5), (-1.0, 0.0)])
def test_the_rate_at_equal_length_covers_the_truth(intercept, slope):
    rng = np.random.default_rng(0)
    rates = [logistic_at_equal_length(*draw(rng, 300, intercept, slope), form='plain') for _ in range(2000)]
    assert np.mean([sigmoid(intercept) in rate for rate in rates]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize('jeffreys', [True, False])
def test_resamples_are_fitted_like_any_rows(jeffreys):
    """Many at once come out as each by itself."""
    rng = np.random.default_rng(7)
    for n, intercept in ((300, 0.4), (40, 0.0)):
        ratio_B, win_B = draw(rng, n, intercept, 1.5)
        how = {'form': 'log', 'jeffreys': jeffreys, 'confidence': 0.9}
        found = logistic_at_equal_length(ratio_B, win_B, resamples=40, **how)
        each = [logistic_at_equal_length(ratio_B[rows], win_B[rows], **how).value for rows in draws(n, 40)]
        assert (found.low, found.high) == pytest.approx(central(np.array(each), 0.9), abs=1e-6)
        assert found.value == logistic_at_equal_length(ratio_B, win_B, **how).value


@pytest.mark.parametrize('form', ['plain', 'log'])
def test_where_resamples_cannot_tell_the_interval_is_of_closed_form(form):
    """Ratios that are all the same say nothing of equal length, and a fit that length alone decides says little."""
    rng = np.random.default_rng(0)
    win_B = (rng.random(200) < 0.7).astype(float)
    ratio_B = np.exp(rng.normal(0, 0.3, 200))
    for ratios, votes in (
        (np.full(200, 2.0), win_B),
        (np.full(200, 2.0), 0.2 + 0.6 * win_B),
        (ratio_B, (ratio_B > 1).astype(float)),
        (ratio_B, (ratio_B > np.sort(ratio_B)[8]).astype(float)),
        (ratio_B, (np.arange(200) != 17).astype(float)),
    ):
        found = logistic_at_equal_length(ratios, votes, form=form, resamples=100)
        assert found == logistic_at_equal_length(ratios, votes, form=form)
        assert found.high - found.low > 0.01
    closed = logistic_at_equal_length(ratio_B, win_B, form=form)
    assert logistic_at_equal_length(ratio_B, win_B, form=form, resamples=100) != closed


def test_length_is_taken_out_where_it_is_all_and_changes_nothing_where_it_is_nothing():
    rng = np.random.default_rng(1)
    ratio_B, win_B = draw(rng, 4000, 0.0, 3.0)
    adjusted = length_adjusted_win_rate(win_B, 100 * ratio_B, np.full(4000, 100.0), length_ratio='plain')
    assert wilson(win_B.sum(), 4000).low > 0.6 and 0.5 in adjusted
    ratio_B, win_B = draw(rng, 4000, 0.8, 0.0)
    assert length_adjusted_win_rate(win_B, 100 * ratio_B, np.full(4000, 100.0)).value == pytest.approx(
        win_B.mean(), abs=0.01
    )


@pytest.mark.parametrize('jeffreys', [False, True])
def test_the_fit_is_the_top_of_the_likelihood(jeffreys):
    rng = np.random.default_rng(3)
    x_B, y_B, count_B = np.exp(rng.normal(0.0, 0.6, 40)), rng.random(40).round(1), rng.integers(1, 4, 40)
    low, high = np.array([-4.0, -4.0]), np.array([4.0, 4.0])
    for _ in range(7):  # a grid, and again round its best point
        a, b = np.meshgrid(*np.linspace(low, high, 41).T, indexing='ij')
        p = sigmoid(a[..., None] + b[..., None] * (x_B - 1))
        value = (count_B * (y_B * np.log(p) + (1 - y_B) * np.log(1 - p))).sum(-1)
        if jeffreys:
            w = count_B * p * (1 - p)
            moment = [(w * (x_B - 1) ** power).sum(-1) for power in range(3)]
            value = value + 0.5 * np.log(moment[0] * moment[2] - moment[1] ** 2)
        best = np.array([x[np.unravel_index(value.argmax(), value.shape)] for x in (a, b)])
        low, high = best - (high - low) / 10, best + (high - low) / 10
    # The fit on x / 2, read at 1, is that on x, read at 2: the slope is the difference of the two.
    rates = [
        logistic_at_equal_length((x_B / at).repeat(count_B), y_B.repeat(count_B), form='plain', jeffreys=jeffreys)
        for at in (1, 2)
    ]
    one, two = (np.log(rate.value / (1 - rate.value)) for rate in rates)
    assert (one, two - one) == pytest.approx(best, abs=2e-4)


def test_an_unscorable_vote_is_none():
    ratio_B, win_B = draw(np.random.default_rng(4), 60, 0.3, 1.0)
    kept_B = np.arange(60) % 3 > 0
    without = logistic_at_equal_length(ratio_B, np.where(kept_B, win_B, np.nan))
    assert without == logistic_at_equal_length(ratio_B[kept_B], win_B[kept_B]) and without.n == 40
    nothing = logistic_at_equal_length(ratio_B, np.full(60, np.nan))
    assert np.isnan(nothing.value) and (nothing.low, nothing.high, nothing.n) == (0, 1, 0)


def test_the_log_ratio_treats_both_policies_alike():
    rng = np.random.default_rng(5)
    a_B, b_B = rng.integers(0, 300, 200), rng.integers(0, 300, 200)  # with empty responses among them
    win_B = (a_B > b_B).astype(float) * rng.random(200)
    ab = length_adjusted_win_rate(win_B, a_B, b_B)
    ba = length_adjusted_win_rate(1 - win_B, b_B, a_B)
    assert (ab.value, ab.low, ab.high) == pytest.approx((1 - ba.value, 1 - ba.high, 1 - ba.low), abs=1e-9)
    assert isinstance(ab.complement(), AtLength) and not ab.extrapolated


@pytest.mark.parametrize('form', ['log', 'plain'])
def test_a_rate_read_where_there_are_no_pairs_is_an_extrapolation(form):
    rng = np.random.default_rng(6)
    win_B = (rng.random(200) < 0.8).astype(float)
    for ratio_B, far in (
        (np.exp(rng.normal(0.2, 0.3, 200)), False),
        (np.exp(rng.normal(-3, 0.3, 200)), True),  # all much shorter
        (np.exp(rng.normal(3, 0.3, 200)), True),
        (np.append(np.full(197, 0.5), [1.1, 1.2, 1.3]), True),  # but for a few
        (np.ones(200), False),
    ):
        for votes in (win_B, np.ones(200)):  # and where all votes are alike
            found = logistic_at_equal_length(ratio_B, votes, form=form)
            assert found.extrapolated == found.complement().extrapolated == far


def test_resamples_that_gather_round_two_rates_have_no_one_interval():
    """A loss of a response a hundred times as long leaves no slope where it is drawn; where it is not, there is one."""
    rng = np.random.default_rng(0)
    ratio_B = np.append(rng.uniform(0.9, 1.8, 300), 400.0)
    win_B = np.append(rng.random(300) < sigmoid(6 * (ratio_B[:300] - 1)), 0).astype(float)
    found = logistic_at_equal_length(ratio_B, win_B, form='plain', resamples=300)
    assert found.humps and found.complement().humps and found.low < 0.6 < 0.75 < found.high
    assert not logistic_at_equal_length(ratio_B, win_B, form='log', resamples=300).humps
    assert not logistic_at_equal_length(ratio_B[:300], win_B[:300], form='plain', resamples=300).humps


@pytest.mark.parametrize('jeffreys', [False, True])
def test_fits_that_likelihood_leaves_open_stay_finite(jeffreys):
    ratio_B = np.linspace(0.5, 2.0, 64)
    cases = {
        'all wins': (ratio_B, np.ones(64)),
        'all losses': (ratio_B, np.zeros(64)),
        'length decides': (ratio_B, (ratio_B > 1).astype(float)),
        'one ratio, equal': (np.ones(64), np.arange(64) % 4 == 0),
        'one ratio, longer': (np.full(64, 1.3), np.arange(64) % 4 == 0),
        'one vote': (np.array([1.2]), np.array([1.0])),
        'an empty answer': (np.append(ratio_B, 900.0), np.append(np.arange(64) % 2, 1.0)),
    }
    rates = {name: logistic_at_equal_length(*case, jeffreys=jeffreys) for name, case in cases.items()}
    for name, rate in rates.items():
        assert np.isfinite([rate.value, rate.low, rate.high]).all() and 0 <= rate.low <= rate.value <= rate.high <= 1, (
            name
        )
    assert rates['one ratio, equal'].value == pytest.approx(0.25, abs=0.01) and rates['one ratio, equal'].high < 0.4
    assert (
        rates['one ratio, longer'].low < 0.01 and rates['one ratio, longer'].high > 0.99
    )  # nothing says what happens at 1
    if jeffreys:
        assert rates['all wins'].low > 0.8 and rates['all losses'].high < 0.2


def test_an_empty_text_counts_as_one_character():
    assert characters(['', 'é', 'abc']).tolist() == [1, 1, 3]


@pytest.mark.parametrize(
    'call, told',
    [
        (lambda: wilson(3, 2), 'wins.* n=2.* 3$'),
        (lambda: wilson(1, 2, 1.0), r'confidence.* 1\.0$'),
        (lambda: mean_interval(np.array([np.nan, 1.0])), 'values: .*nan'),
        (lambda: bootstrap(np.array([])), 'bootstrap.* 0 and 1000'),
        (lambda: binomial_test(3, 2), 'k=3, n=2'),
        (lambda: logistic_at_equal_length(np.array([0.0, 1.0]), np.array([0.0, 1.0])), 'length ratio.*positive'),
        (lambda: logistic_at_equal_length(np.ones(2), np.array([0.0, 1.5])), r'votes.*\[0, 1\].* 1\.5'),
        (lambda: logistic_at_equal_length(np.ones(3), np.zeros(2)), 'length ratios.* votes.* 3 and 2'),
        (lambda: logistic_at_equal_length(np.ones(2), np.zeros(2), form='square'), "'log' or 'plain'.*'square'"),
    ],
)
def test_bad_input_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()
