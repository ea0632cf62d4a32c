"""Laws of the harmless rate: a vote is a vote, nan is none, and at one length policies that differ only in length are
alike.
"""

import numpy as np
import pytest

from rlaif_jax import evaluation
from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.harmless import (
    compare_harmless,
    from_probability,
    harmless_rate,
    harmless_rate_at_length,
)
from rlaif_jax.evaluation.statistics import wilson
from rlaif_jax.evaluation.versus import Config


def of_length(rng, typical, n=400):
    """Responses whose lengths spread by a factor round a typical one."""
    return ['x' * length for length in np.exp(rng.normal(np.log(typical), 0.4, n)).astype(int)]


def chance(length_B):
    """The longer, the more harmful."""
    return 1 / (1 + np.exp(-2 + np.asarray(length_B) / 100))


def test_the_rate_is_the_share_of_votes_and_nan_is_no_vote():
    vote_B = np.array([1, 1, 0, np.nan, 1, np.nan])
    assert harmless_rate(vote_B) == wilson(3, 4) == evaluation.harmless_rate(vote_B)
    assert harmless_rate(np.array([2 / 3, 1.0])).value == pytest.approx(5 / 6)
    back = harmless_rate(1 - vote_B, 0.9)
    assert (back.value, back.high) == pytest.approx((0.25, 1 - harmless_rate(vote_B, 0.9).low))
    nothing = harmless_rate(np.full(3, np.nan))
    assert np.isnan(nothing.value) and (nothing.low, nothing.high, nothing.n) == (0, 1, 0)


@pytest.mark.parametrize('at', [None, 'short', 200.0])
def test_policies_that_differ_only_in_length_are_alike_at_one_length(at):
    rng = np.random.default_rng(0)
    policies = {name: of_length(rng, typical) for name, typical in (('short', 120), ('long', 260))}
    # Votes that are the chances themselves leave no noise, so the fits must meet in the truth.
    exact = {name: (texts, chance([len(text) for text in texts])) for name, texts in policies.items()}
    short, long = compare_harmless(exact, Config(length_ratio='plain'), at=at)
    assert short.raw.value - long.raw.value > 0.2
    assert short.length_adjusted.value == pytest.approx(long.length_adjusted.value, abs=0.01)
    assert short.length_adjusted.value == pytest.approx(chance(short.at), abs=0.01)
    assert short.at == long.at == pytest.approx({'short': short.mean_length, 200.0: 200.0}.get(at, short.at))
    drawn = {name: (texts, rng.random(400) < p_B) for name, (texts, p_B) in exact.items()}
    for one in compare_harmless(drawn, at=at):
        assert chance(one.at) in one.plain_ratio
        assert not one.length_adjusted.extrapolated


def test_the_unit_of_length_does_not_matter_and_the_plain_ratio_is_the_papers_regression():
    rng = np.random.default_rng(1)
    length_B = rng.integers(20, 400, 300)
    vote_B = (rng.random(300) < chance(length_B)).astype(float)
    for form in ('plain', 'log'):
        one = harmless_rate_at_length(vote_B, length_B, 150, length_ratio=form)
        other = harmless_rate_at_length(vote_B, length_B * 7, 150 * 7, length_ratio=form)
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-9)
    # Where length says nothing, reading off at the mean length changes nothing.
    coin_B = (np.arange(300) % 4 > 0).astype(float)
    assert harmless_rate_at_length(coin_B, length_B, length_B.mean()).value == pytest.approx(0.75, abs=0.005)


def test_where_no_response_is_near_the_length_the_interval_is_wide():
    rng = np.random.default_rng(2)
    length_B = rng.normal(100, 5, 200)
    vote_B = (rng.random(200) < 0.7).astype(float)
    near, far = (harmless_rate_at_length(vote_B, length_B, at) for at in (100, 300))
    assert near.high - near.low < 0.15 and far.high - far.low > 0.9
    assert far.extrapolated and not near.extrapolated


def test_unscorable_responses_are_counted_and_weigh_nothing():
    rng = np.random.default_rng(3)
    texts = of_length(rng, 100, 50)
    vote_B = np.where(np.arange(50) % 5 == 0, np.nan, np.arange(50) % 3 > 0)
    kept = np.flatnonzero(~np.isnan(vote_B))
    (whole,) = compare_harmless({'a': (texts, vote_B)}, at=90)
    (without,) = compare_harmless({'a': ([texts[i] for i in kept], vote_B[kept])}, at=90)
    assert (whole.n, whole.unscorable, without.unscorable) == (40, 10, 0)
    assert (whole.raw, whole.length_adjusted) == (without.raw, without.length_adjusted)
    (nothing,) = compare_harmless({'a': (['', ''], np.full(2, np.nan))})
    assert np.isnan(nothing.raw.value) and nothing.n == 0


def test_the_order_of_policies_changes_their_order_only():
    rng = np.random.default_rng(4)
    policies = {name: (of_length(rng, 80 + 40 * i, 30), rng.integers(0, 2, 30)) for i, name in enumerate('abc')}
    forth = compare_harmless(policies, Config(0.9, 'log'))
    assert forth == compare_harmless(dict(reversed(policies.items())), Config(0.9, 'log'))[::-1]
    assert forth[0].at == pytest.approx(np.mean([one.mean_length for one in forth]))
    assert [one.name for one in forth] == [*'abc'] and forth[1].raw.n == 30


def test_an_lm_that_says_yes_votes_for_harm():
    harmful_B = np.array([0.1, 0.5, 0.9, np.nan])
    hard = from_probability(lambda *_: harmful_B)(['p'] * 4, ['r'] * 4)
    np.testing.assert_array_equal(hard, [1, 0.5, 0, np.nan])
    flipped = from_probability(lambda *_: 1 - harmful_B)(['p'] * 4, ['r'] * 4)
    np.testing.assert_array_equal(flipped, 1 - hard)


@pytest.mark.parametrize(
    ('call', 'says'),
    [
        (lambda: harmless_rate(np.array([1.5])), r'\[0, 1\].* 1\.5'),
        (lambda: harmless_rate_at_length(np.ones(2), np.ones(2), 0), 'length .*positive.* 0$'),
        (lambda: compare_harmless({}), 'no policy to'),
        (lambda: compare_harmless({'a': ([], np.zeros(0))}), "'a' .*0 responses.* 0 votes"),
        (lambda: compare_harmless({'a': (['x'], np.zeros(2))}), "'a' .*1 responses.* 2 votes"),
        (lambda: compare_harmless({'sft': (['x'], np.zeros(1))}, at='stf'), "'stf'.*'sft'"),
    ],
)
def test_mistakes_are_named(call, says):
    with pytest.raises(Mistake, match=says):
        call()
