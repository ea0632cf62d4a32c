"""Laws of comparing two policies: swapping them swaps the answer, votes belong to a pair and not to a batch, nan is no
vote.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.length import length_adjusted_win_rate
from rlaif_jax.evaluation.statistics import binomial_test, bootstrap, bounded_interval, wilson
from rlaif_jax.evaluation.versus import (
    Config,
    both_orders,
    compare,
    complement,
    from_labels,
    from_quality,
    win_rate,
)
from rlaif_jax.micro import judges, tasks, world

PROMPTS = [world.prompt('test', i) for i in range(200)]
A = [f'answer {i} ' + 'x' * (i % 40) for i in range(200)]
B = [f'answer {i} ' + 'y' * (17 * i % 37) for i in range(200)]


def quality(prompts, responses):
    """Something that varies, with ties: a checksum of the text."""
    return np.array(
        [sum(map(ord, prompt.text + response)) % 11 / 10 for prompt, response in zip(prompts, responses, strict=True)]
    )


def prefer(prompts, firsts, seconds):
    """One order of a labeler that likes the first place."""
    return 1 / (1 + np.exp(-(quality(prompts, firsts) - quality(prompts, seconds)) * 2 - 0.4))


def both_orders_of(prefer):
    """The labeler that asks `prefer` in both orders."""

    def labels(prompts, responses_a, responses_b):
        shown = zip(prefer(prompts, responses_a, responses_b), prefer(prompts, responses_b, responses_a))
        return [SimpleNamespace(first_shown=a_first, second_shown=1 - b_first) for a_first, b_first in shown]

    return labels


def soft(prompts, responses_a, responses_b):
    """A judge that says how sure it is."""
    return 0.5 + 0.5 * (prefer(prompts, responses_a, responses_b) - prefer(prompts, responses_b, responses_a))


JUDGES = {
    'quality': from_quality(quality),
    'oracle': from_quality(tasks.quality),
    'raters': judges.raters(seed=3),
    'averaged': from_labels(both_orders_of(prefer)),
    'soft': soft,
    'both agree': from_labels(both_orders_of(prefer), 'both_agree'),
}
each_judge = pytest.mark.parametrize('judge', JUDGES.values(), ids=JUDGES.keys())


@each_judge
def test_swapping_the_policies_swaps_the_answer(judge):
    forth_B, back_B = judge(PROMPTS, A, B), judge(PROMPTS, B, A)
    np.testing.assert_allclose(forth_B, 1 - back_B, rtol=0, atol=1e-15)  # soft votes round; all others are exact
    forth, back = win_rate(forth_B), win_rate(back_B)
    assert (forth.value, forth.low, forth.high) == pytest.approx(
        (1 - back.value, 1 - back.high, 1 - back.low), abs=1e-12
    )
    forth, back = compare(PROMPTS, A, B, judge), compare(PROMPTS, B, A, judge)
    assert forth.length_adjusted.value == pytest.approx(1 - back.length_adjusted.value, abs=1e-9)
    assert (forth.p_value, forth.ties, forth.mean_length_a) == (back.p_value, back.ties, back.mean_length_b)


@pytest.mark.parametrize('form', ['log', 'plain'])
def test_a_comparison_told_from_the_other_side_is_its_complement(form):
    how = Config(length_ratio=form)
    judge = lambda *given: np.where(np.arange(200) % 9, JUDGES['quality'](*given), np.nan)  # noqa: E731
    half = {pair: compare(PROMPTS, *texts, judge, how, names=pair) for pair, texts in {('a', 'b'): (A, B)}.items()}
    found = both_orders(half)
    assert [*found] == [('a', 'b'), ('b', 'a')] and both_orders(found) == found
    one, back = found.values()
    assert (back.name_a, back.name_b) == ('b', 'a') and 0 < one.unscorable == back.unscorable
    assert (one.mean_length_a, one.p_value, one.ties) == (back.mean_length_b, back.p_value, back.ties)
    anew = compare(PROMPTS, B, A, judge, how, names=('b', 'a'))  # what judging the other order would have found
    for which in ('raw', 'length_adjusted', 'plain_ratio', 'plain_ratio_swapped'):
        told, found = getattr(back, which), getattr(anew, which)
        assert (told.value, told.low, told.high) == pytest.approx((found.value, found.low, found.high), abs=1e-6)
    assert (one.plain_ratio == one.length_adjusted) == (form == 'plain')
    assert one.plain_ratio.value != pytest.approx(one.plain_ratio_swapped.value, abs=1e-4)
    twice = complement(complement(one))
    assert twice.raw.low == pytest.approx(one.raw.low) and twice.name_a == 'a'
    with pytest.raises(ValueError, match='no comparisons'):
        both_orders({})


@each_judge
def test_a_vote_belongs_to_its_pair_not_to_its_batch(judge):
    whole_B = judge(PROMPTS, A, B)
    order = np.random.default_rng(0).permutation(200)
    shuffled_B = judge(*([texts[i] for i in order] for texts in (PROMPTS, A, B)))
    np.testing.assert_array_equal(shuffled_B, whole_B[order])
    np.testing.assert_array_equal(judge(PROMPTS[5:6], A[5:6], B[5:6]), whole_B[5:6])


@each_judge
def test_a_policy_against_itself_is_a_tie_on_every_prompt(judge):
    assert (judge(PROMPTS, A, A) == 0.5).all()


def test_the_oracle_prefers_the_better_and_splits_equals():
    judge = from_quality(lambda prompts, responses: np.array([len(r) for r in responses]))
    assert judge(['p'] * 3, ['aa', 'b', 'c'], ['a', 'bb', 'd']).tolist() == [1, 0, 0.5]


def test_another_seed_is_another_rater():
    same = np.mean(judges.raters(0)(PROMPTS, A, B) == judges.raters(1)(PROMPTS, A, B))
    assert 0.3 < same < 0.9
    assert judges.raters(0)([], [], []).shape == (0,)


def test_both_agree_is_a_tie_where_the_orders_differ():
    first = from_labels(both_orders_of(lambda prompts, *_: np.full(len(prompts), 0.9)), 'both_agree')
    assert (first(PROMPTS, A, B) == 0.5).all()  # it always likes the first place
    votes_B, averaged_B = JUDGES['both agree'](PROMPTS, A, B), JUDGES['averaged'](PROMPTS, A, B)
    assert set(votes_B) == {0, 0.5, 1}
    assert (votes_B[votes_B != 0.5] == averaged_B[votes_B != 0.5]).all()


def test_an_unscorable_vote_is_counted_and_weighs_nothing():
    hole_B = np.arange(200) % 5 == 0
    kept = np.flatnonzero(~hole_B)
    judge = JUDGES['averaged']
    whole = compare(PROMPTS, A, B, lambda *texts: np.where(hole_B, np.nan, judge(*texts)))
    without = compare(*([texts[i] for i in kept] for texts in (PROMPTS, A, B)), judge)
    assert (whole.n, whole.unscorable, without.unscorable) == (160, 40, 0)
    for field in ('raw', 'length_adjusted', 'mean_length_a', 'mean_length_b', 'ties', 'p_value'):
        assert getattr(whole, field) == getattr(without, field), field


@pytest.mark.parametrize('rule', ['averaged', 'both_agree'])
def test_nan_in_either_order_makes_the_vote_nan(rule):
    def holes(prompts, firsts, seconds):
        return np.where([first.endswith('x') for first in firsts], np.nan, 0.6)

    votes_B = from_labels(both_orders_of(holes), rule)(['p'] * 3, ['ax', 'b', 'c'], ['d', 'ex', 'f'])
    assert np.isnan(votes_B).tolist() == [True, True, False]
    unknown = from_quality(lambda prompts, responses: np.array([np.nan, 1.0]))
    assert np.isnan(unknown(['p'] * 2, ['a', 'b'], ['c', 'd'])).tolist() == [True, False]


def test_intervals_are_bootstrapped_over_prompts_or_of_closed_form():
    soft_B = JUDGES['soft'](PROMPTS, A, B)
    hard_B = (soft_B > 0.5).astype(float)
    assert win_rate(hard_B, resamples=0) == wilson(hard_B.sum(), 200)
    assert win_rate(soft_B, resamples=0) == bounded_interval(soft_B)
    for vote_B in (hard_B, soft_B):
        closed, drawn = win_rate(vote_B, resamples=0), win_rate(vote_B)
        assert drawn == bootstrap(vote_B) != closed
        assert (drawn.low, drawn.high) == pytest.approx((closed.low, closed.high), abs=0.02)
        assert win_rate(vote_B, 0.8).low > drawn.low


@pytest.mark.parametrize('resamples', [0, 1000])
def test_votes_that_are_all_the_same_leave_a_width(resamples):
    """A resample of them cannot differ, which says nothing of the next prompt."""
    lengths = [np.linspace(50, 150, 30), np.linspace(90, 110, 30)]
    assert win_rate(np.ones(30), resamples=resamples) == wilson(30, 30)
    assert length_adjusted_win_rate(np.ones(30), *lengths, resamples=resamples).low < 0.97


def test_averaged_votes_get_the_mean_and_ties_no_part_in_the_sign_test():
    assert win_rate(np.array([1, 0, 1, np.nan])).n == 3
    soft_B = np.array([0.9, 0.5, 0.4, 0.8])
    assert (win_rate(soft_B).value, win_rate(soft_B).n) == (bounded_interval(soft_B).value, 4)
    result = compare(PROMPTS[:4], A[:4], B[:4], lambda *_: soft_B)
    assert (result.ties, result.p_value) == (1, binomial_test(2, 3))


def test_nothing_scorable_is_reported_as_nothing():
    result = compare(PROMPTS, A, B, lambda *_: np.full(200, np.nan))
    assert (result.n, result.unscorable, result.p_value) == (0, 200, 1.0)
    assert np.isnan(result.raw.value) and (result.raw.low, result.raw.high, result.raw.n) == (0, 1, 0)


def test_lengths_are_means_of_characters():
    result = compare(PROMPTS, A, B, JUDGES['raters'], names=('rl', 'sft'))
    assert (result.name_a, result.name_b) == ('rl', 'sft')
    assert result.mean_length_a == np.mean([len(text) for text in A])


@pytest.mark.parametrize('votes', [[2.0, 0], [0, 1, 2], [True, 2], np.array([0.5, 2.0], np.float32)])
def test_a_vote_that_is_none_is_named(votes):
    with pytest.raises(Mistake, match=r'\[0, 1\].* 2\.0'):
        win_rate(votes)


@pytest.mark.parametrize(
    'call, told',
    [
        (lambda: win_rate(np.array([1.2])), r'\[0, 1\].* 1\.2'),
        (lambda: compare(PROMPTS, A[:3], B, JUDGES['oracle']), '200 prompts.* 3 and 200'),
        (lambda: compare(PROMPTS, A, B, lambda *_: np.zeros(3)), 'judge.* 3 votes.* 200 prompts'),
        (lambda: from_labels(both_orders_of(prefer), 'first'), "'averaged' or 'both_agree'.*'first'"),
        (lambda: Config(confidence=95), 'confidence.* 95'),
        (lambda: Config(resamples=-1), 'resamples.* -1'),
    ],
)
def test_bad_input_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()


@pytest.mark.parametrize('rule', ['averaged', 'both_agree'])
def test_a_model_that_sees_one_text_twice_calls_a_tie(rule):
    """Its two orders are one prompt, and differ by rounding only."""

    def labels(prompts, firsts, seconds):
        noise_B = 1e-8 * np.random.default_rng(0).standard_normal((len(firsts), 2))
        return [SimpleNamespace(first_shown=0.7 + a, second_shown=0.3 + b) for a, b in noise_B]

    judge = from_labels(labels, rule=rule)
    np.testing.assert_array_equal(judge(['p'] * 50, ['same'] * 50, ['same'] * 50), 0.5)
