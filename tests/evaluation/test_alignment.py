"""Laws of agreement with people: nothing depends on which candidate is called the first, every pair is either counted in
or counted out, and recorded verdicts of other people's labelers give the figures that were published for them.
"""

import json

import numpy as np
import pytest

import rlaif_jax.evaluation
from rlaif_jax.config import Mistake
from rlaif_jax.evaluation import tables, versus
from rlaif_jax.evaluation.alignment import agreement, calibration, position_bias, report
from rlaif_jax.evaluation.statistics import binomial_test, wilson


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def labels(n=400, *, bias=0.5, seed=0, holes=0.1):
    """Arguments of `report`: a labeler of some skill that likes the first position, and people who agree now and then."""
    rng = np.random.default_rng(seed)
    quality_B = rng.normal(0, 1.5, n)
    seen_B = quality_B + rng.normal(0, 1, n)
    first_B, second_B = sigmoid(seen_B + bias), sigmoid(seen_B - bias)
    first_B[rng.random(n) < holes] = np.nan
    return {
        'preference_B': (first_B + second_B) / 2,
        'human_B': rng.binomial(4, sigmoid(quality_B)) / 4,
        'first_shown_B': first_B,
        'second_shown_B': second_B,
        'first_chars_B': rng.integers(80, 90, n),
        'second_chars_B': rng.integers(80, 90, n),
        'mass_B': rng.random(n),
    }


def swapped(given):
    """The same pairs with the candidates' names exchanged: shown first then is what was shown second now."""
    other = {'first_shown_B': 'second_shown_B', 'second_shown_B': 'first_shown_B'}
    other |= {'first_chars_B': 'second_chars_B', 'second_chars_B': 'first_chars_B'}
    turned = ('preference_B', 'human_B', 'first_shown_B', 'second_shown_B')
    return {
        name: 1 - given[other.get(name, name)] if name in turned else given[other.get(name, name)] for name in given
    }


def close(a, b):
    """The same numbers, up to rounding, wherever they stand in two reports."""
    a, b = tables.columns(a), tables.columns(b)
    assert a.keys() == b.keys()
    for column in a:
        assert a[column] == (b[column] if isinstance(b[column], str) else pytest.approx(b[column], abs=1e-12)), column


# Agreement


def test_nothing_depends_on_which_candidate_is_called_the_first():
    given = labels()
    forth, back = report('a', **given), report('a', **swapped(given))
    close(forth, back)
    np.testing.assert_allclose(forth.calibration.observed, back.calibration.observed, atol=1e-12)
    assert forth.position.which == back.position.which == 'first' and forth.gain.n > 100


def test_order_of_the_pairs_and_monotone_changes_of_votes_change_nothing():
    given = labels()
    order = np.random.default_rng(1).permutation(400)
    close(report('a', **given), report('a', **{name: array_B[order] for name, array_B in given.items()}))
    hard_B = 0.5 + 0.5 * np.sign(given['human_B'] - 0.5)
    assert agreement(given['preference_B'], given['human_B']) == agreement(given['preference_B'], hard_B)


def test_people_of_the_opposite_opinion_agree_as_often_as_these_do_not():
    given = labels()
    one, other = (agreement(given['preference_B'], human_B) for human_B in (given['human_B'], 1 - given['human_B']))
    assert one.value > 0.6
    assert (other.value, other.low, other.high, other.n) == pytest.approx(
        (1 - one.value, 1 - one.high, 1 - one.low, one.n), abs=1e-12
    )


def test_a_perfect_labeler_agrees_always_and_a_tie_agrees_by_half():
    human_B = np.tile([0.0, 1.0], 50)
    perfect = agreement(0.5 + 0.1 * (human_B - 0.5), human_B)
    assert (perfect.value, perfect.high, perfect.n) == (1, 1, 100) and 0.9 < perfect.low < 1
    tied = agreement(np.full(100, 0.5), human_B)
    assert (tied.value, tied.n, tied.ties) == (0.5, 100, 100)
    # The mean of two orders in float32 is only nearly one half.
    assert agreement(np.full(100, 0.5, np.float32) + np.float32(6e-8), human_B) == tied


def test_what_is_left_out_is_counted_and_weighs_nothing():
    nan = np.nan
    preference_B, human_B = np.array([0.9, nan, 0.2, nan, 0.6, 0.5, 0.7]), np.array([1, 1, 0.5, 0.5, 0.25, 1, nan])
    found = agreement(preference_B, human_B)
    assert (found.n, found.unscorable, found.undecided, found.ties) == (3, 2, 2, 1)
    kept = [0, 4, 5]
    assert found.value == agreement(preference_B[kept], human_B[kept]).value == 0.5
    nothing = agreement(np.full(3, nan), np.ones(3))
    assert np.isnan(nothing.value) and (nothing.low, nothing.high, nothing.n, nothing.unscorable) == (0, 1, 0, 3)
    given = labels(holes=0.3)
    one = report('a', **given)
    assert one.agreement.n + one.agreement.unscorable + one.agreement.undecided == 400 == one.pairs
    assert one.agreement.unscorable == np.isnan(given['preference_B']).sum()


def test_the_intervals_cover_the_truth():
    # The verdicts of the two orders are people's with probability 0.7 and 0.6; the first are surer, and decide.
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(400):
        human_B = (rng.random(300) < 0.5).astype(float)
        right_OB = rng.random((2, 300)) < np.array([[0.7], [0.6]])
        sure_OB = np.where(right_OB == (human_B == 1)[None], 1, -1) * np.array([[0.4], [0.2]])
        first_B, second_B = 0.5 + sure_OB
        one = report('a', (first_B + second_B) / 2, human_B, first_shown_B=first_B, second_shown_B=second_B)
        inside.append((0.7 in one.agreement, 0.65 in one.single_order, 0.05 in one.gain))
    np.testing.assert_allclose(np.mean(inside, axis=0), 0.95, atol=0.03)


# Position


@pytest.mark.parametrize(('shown', 'which'), [((0.8, 0.3), 'first'), ((0.1, 0.7), 'second')])
def test_a_labeler_that_looks_only_at_the_position(shown, which):
    found = position_bias(np.full(50, shown[0]), np.full(50, shown[1]))
    assert (found.same.value, found.same.n, found.which, found.share.value) == (1, 50, which, 1)
    assert found.p_value == pytest.approx(2 * 0.5**50) and found.first.value == (which == 'first')
    assert found.mean.value == pytest.approx((shown[0] - shown[1]) / 2)


def test_a_labeler_that_never_looks_at_the_position():
    preference_B = labels()['preference_B']
    found = position_bias(preference_B, preference_B)
    scorable = int((~np.isnan(preference_B)).sum())
    assert (found.same.value, found.same.n, found.which, found.p_value) == (0, scorable, 'neither', 1)
    assert (found.first.value, found.mean.value, found.unscorable) == (0.5, 0, 400 - scorable)
    assert found.share.n == 0 and np.isnan(found.share.value)


def test_position_bias_turns_with_the_positions():
    given = labels()
    one, other = (
        position_bias(given[a], given[b])
        for a, b in (('first_shown_B', 'second_shown_B'), ('second_shown_B', 'first_shown_B'))
    )
    assert (one.which, other.which) == ('first', 'second')
    assert (one.same, one.share, one.p_value) == (other.same, other.share, other.p_value)
    assert one.mean.value == pytest.approx(-other.mean.value) and one.first.value == pytest.approx(
        1 - other.first.value
    )


def test_ties_and_holes_prefer_no_position():
    nan = np.nan
    first_B = np.array([0.9, 0.9, 0.1, 0.9, 0.5, 0.5, nan, 0.9])
    found = position_bias(first_B, np.array([0.2, 0.3, 0.8, 0.9, 0.2, 0.5, 0.2, nan]))
    assert (found.same, found.share) == (wilson(3, 4), wilson(2, 3))
    assert (found.which, found.p_value) == ('first', binomial_test(2, 3))
    assert (found.ties, found.unscorable, found.first.n) == (2, 2, 6)


def test_hard_verdicts_gain_nothing_from_averaging_and_soft_ones_of_a_biased_labeler_do():
    given = labels(2000, bias=1.5)
    hard = {name: (given[name] > 0.5).astype(float) for name in ('first_shown_B', 'second_shown_B')}
    one = report('a', (hard['first_shown_B'] + hard['second_shown_B']) / 2, given['human_B'], **hard)
    assert one.gain.value == one.gain.low == one.gain.high == 0
    assert one.single_order.value == pytest.approx(one.agreement.value)
    given['preference_B'][:50] = np.nan  # unscorable after all, so no part of the comparison
    soft = report('b', **given)
    assert soft.gain.n == soft.agreement.n
    assert soft.gain.low > 0 and soft.gain.value == pytest.approx(soft.agreement.value - soft.single_order.value)


# Calibration


def test_probabilities_that_mean_what_they_say_have_a_small_error_and_bluster_a_larger():
    rng = np.random.default_rng(3)
    truth_B = sigmoid(rng.normal(0, 1.5, 20_000))
    human_B = (rng.random(20_000) < truth_B).astype(float)
    honest = calibration(truth_B, human_B)
    over, under = (calibration(sigmoid(slope * np.log(truth_B / (1 - truth_B))), human_B) for slope in (2.5, 1 / 2.5))
    assert honest.ece < 0.015 < 0.08 < min(over.ece, under.ece)
    assert all(p > o for p, o, count in zip(over.predicted, over.observed, over.count) if count > 200)
    assert all(p < o for p, o, count in zip(under.predicted, under.observed, under.count) if count > 200)


def test_a_curve_is_that_of_the_pairs_and_their_mirror_images():
    given = labels(holes=0.0)
    both = calibration(*(np.concatenate([given[name], 1 - given[name]]) for name in ('preference_B', 'human_B')))
    one = calibration(given['preference_B'], given['human_B'])
    assert both.count == tuple(2 * count for count in one.count) and both.ece == pytest.approx(one.ece)
    np.testing.assert_allclose(both.observed, one.observed, atol=1e-12)


def test_one_bin_is_the_distance_of_two_means_and_shares_are_not_thresholded():
    preference_B, human_B = np.array([0.9, 0.2, 0.7, np.nan, 0.5]), np.array([1.0, 0.25, 0.5, 1.0, 1.0])
    found = calibration(preference_B, human_B, bins=1)
    # folded: 0.9 of which 1 agree, 0.8 and 0.75, 0.7 and 0.5, and one tie of which half agree
    assert (found.n, found.count) == (4, (4,))
    assert found.ece == pytest.approx((0.9 + 0.8 + 0.7 + 0.5 - 1 - 0.75 - 0.5 - 0.5) / 4)
    fine = calibration(preference_B, human_B, bins=50)
    assert sum(fine.count) == 4 and all(np.isnan(p) == (count == 0) for p, count in zip(fine.predicted, fine.count))
    ends = calibration(np.array([0.0, 1.0, 0.5]), np.array([0.0, 1.0, 1.0]))
    assert (ends.count[0], ends.count[-1], ends.ece) == (1, 2, 0)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_a_bin_holds_its_lower_edge_and_the_last_one_both(dtype):
    for bins in range(1, 26):
        edge_B = np.arange(bins + 1) / (2 * bins) + 0.5
        for preference_B in (edge_B, 1 - edge_B):
            found = calibration(preference_B.astype(dtype), np.ones(bins + 1), bins=bins)
            assert found.count == (*[1] * (bins - 1), 2)


# Length


def test_a_labeler_that_only_measures_prefers_the_longer():
    given = labels()
    longer_B = np.sign(given['first_chars_B'] - given['second_chars_B'])
    args = {name: given[name] for name in ('human_B', 'first_chars_B', 'second_chars_B')}
    one = report('a', 0.5 + 0.3 * longer_B, **args)
    assert one.longer.value == 1 and 0.4 < one.human_longer.value < 0.6
    undecided_B = given['human_B'] == 0.5
    assert one.longer.n == one.human_longer.n == (~undecided_B & (longer_B != 0)).sum() < 400
    people = report('b', given['human_B'], **args)
    assert people.longer == people.human_longer


# What others measured


def verdicts(folder, judge):
    """Human votes and each order's verdicts as P(output 1 is better), nan where the judge's answer was unreadable."""
    rows = json.loads((folder / f'{judge}_result.json').read_text(encoding='utf-8'))
    assert [row['label'] for row in rows] == [
        row['label'] for row in json.loads((folder / 'dataset.json').read_text(encoding='utf-8'))
    ]
    chance = {'1': 1.0, '2': 0.0, None: np.nan}
    shown = [
        np.array([chance[row['results'][-1][f'swap = {swap}']['winner']] for row in rows]) for swap in (False, True)
    ]
    return np.array([chance[str(row['label'])] for row in rows]), *shown


@pytest.mark.parametrize('strategy', ['Vanilla', 'CoT'])
@pytest.mark.parametrize('judge', ['ChatGPT', 'Falcon', 'GPT-4', 'LLaMA2', 'PaLM2'])
def test_recorded_verdicts_give_the_published_figures(shared, judge, strategy):
    folder, judge = shared / 'llmbar_natural', f'{judge}_{strategy}'
    published = json.loads((folder / f'{judge}_statistics.json').read_text(encoding='utf-8'))
    percent = {name: float(text.split()[-1].rstrip('%')) for name, text in published.items() if isinstance(text, str)}
    human_B, first_B, second_B = verdicts(folder, judge)

    orders = [agreement(preference_B, human_B) for preference_B in (first_B, second_B)]
    # There an unreadable verdict counts as wrong, among all 100; here it is left out and counted.
    right = [found.value * found.n for found in orders]
    assert all(found.n + found.unscorable == 100 for found in orders)
    assert right == pytest.approx([percent['correct_False'], percent['correct_True']])
    assert sum(right) / 2 == pytest.approx(percent['correct_average'])

    # There two unreadable verdicts are the same verdict.
    bias = position_bias(first_B, second_B)
    alike = bias.same.n * (1 - bias.same.value) + (np.isnan(first_B) & np.isnan(second_B)).sum()
    assert alike == pytest.approx(percent['equal'])

    # Averaged hard verdicts agree, by half, wherever the orders differ; what is left are those right in both.
    one = report(judge, (first_B + second_B) / 2, human_B, first_shown_B=first_B, second_shown_B=second_B)
    both = one.agreement.n * (one.agreement.value - one.position.same.value / 2)
    assert both == pytest.approx(percent['correct_both'])
    assert one.agreement.unscorable == one.position.unscorable == 100 - one.agreement.n
    if one.agreement.n == 100:
        assert 100 * one.single_order.value == pytest.approx(percent['correct_average'])


# Errors and the public surface


@pytest.mark.parametrize(
    ('call', 'told'),
    [
        (lambda: agreement([], []), 'preference_B and human_B .*empty'),
        (lambda: position_bias([], []), 'first_shown_B and second_shown_B .*empty'),
        (lambda: calibration([], []), 'preference_B .*empty'),
        (lambda: report('a', [], []), 'preference_B .*empty'),
        (lambda: agreement([0.5, 1.5], [1, 0]), 'preference_B.*1.5'),
        (lambda: agreement([0.5, 0.5], [1, 2]), 'human_B.*2'),
        (lambda: agreement([0.5], [1, 0]), r'preference_B \(1,\), human_B \(2,\)'),
        (lambda: agreement([[0.5]], [[1]]), r'preference_B.*\(1, 1\)'),
        (lambda: agreement([0.5], [1], confidence=95), 'confidence.* 95'),
        (lambda: calibration([0.5], [1], bins=0), 'bin.* 0$'),
        (lambda: report('a', [0.5], [1], first_shown_B=[0.5]), 'first_shown_B.* second_shown_B'),
        (lambda: report('a', [0.5], [1], second_chars_B=[5]), 'second_chars_B.* first_chars_B'),
        (
            lambda: report('a', [0.5], [1], first_shown_B=[0.9], second_shown_B=[0.9]),
            r'preference_B\[0\] = 0\.500.*first_shown_B = 0\.9',
        ),
        (lambda: report('a', [0.5], [1], mass_B=[0.9, 0.9]), r'mass_B \(2,\)'),
        (lambda: report('a', [0.5], [1], calls=1, cache_hits=2), 'cache_hits.* 2 of 1'),
    ],
)
def test_bad_input_is_refused_by_name(call, told):
    with pytest.raises(Mistake, match=told):
        call()


def test_the_package_offers_the_functions_whatever_was_imported_before():
    evaluation = rlaif_jax.evaluation
    assert evaluation.agreement is agreement and evaluation.position_bias is position_bias
    win_B = np.array([1.0, 0.0, 1.0])
    assert evaluation.win_rate is versus.win_rate and evaluation.win_rate(win_B) == wilson(2, 3)
    assert evaluation.length_adjusted_win_rate(win_B, np.ones(3), np.ones(3)).n == 3
