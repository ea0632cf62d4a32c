"""Laws of people's votes: kappa is Cohen's of the pairs and their mirror images, and no name of a response matters."""

from itertools import combinations

import numpy as np
import pytest

from rlaif_jax.evaluation.alignment import agreement
from rlaif_jax.evaluation.people import against, between, mean_vote, plurality, with_others

RNG = np.random.default_rng(0)


def panel(pairs=300, raters=3, missing=0.2):
    """Raters who see the same thing, with ties, each other pair now and then."""
    seen_BM = RNG.normal(0, 1, (pairs, 1)) + RNG.normal(0, 0.8, (pairs, raters))
    vote_BM = np.where(np.abs(seen_BM) < 0.4, 0.5, (seen_BM > 0).astype(float))
    return np.where(RNG.random(vote_BM.shape) < missing, np.nan, vote_BM)


def cohen(a, b):
    """By the table of both raters' classes, as text books have it."""
    classes = np.unique([a, b])
    table = np.array([[((a == x) & (b == y)).mean() for y in classes] for x in classes])
    chance = (table.sum(0) * table.sum(1)).sum()
    return (np.trace(table) - chance) / (1 - chance)


def test_kappa_is_cohens_of_the_pairs_and_their_mirror_images():
    a, b = panel(missing=0).T[:2]
    found = between(np.stack([a, b], 1))
    assert found.kappa.value == pytest.approx(cohen(np.append(a, 1 - a), np.append(b, 1 - b)))
    assert found.same.value == (a == b).mean() and found.same.n == found.kappa.n == len(a)
    assert found.kappa.low < found.kappa.value < found.kappa.high <= 1
    sides_BM = np.where(np.stack([a, b], 1) == 0.5, 1.0, np.stack([a, b], 1))
    assert between(sides_BM).kappa.value == pytest.approx(2 * between(sides_BM).same.value - 1)


def test_no_figure_knows_who_is_called_the_first():
    """Neither of the responses to a prompt, nor of the raters."""
    vote_BM, preference_B = panel(), RNG.random(300)
    turned_B = RNG.random(300) < 0.5
    other_BM = np.where(turned_B[:, None], 1 - vote_BM, vote_BM)
    other_B = np.where(turned_B, 1 - preference_B, preference_B)
    assert against('a', preference_B, vote_BM) == against('a', other_B, other_BM)
    assert between(vote_BM) == between(other_BM) == between(vote_BM[:, ::-1])
    assert with_others(vote_BM, 0) == with_others(vote_BM[:, ::-1], 2)
    np.testing.assert_allclose(mean_vote(other_BM), np.where(turned_B, 1 - mean_vote(vote_BM), mean_vote(vote_BM)))


def test_several_raters_are_their_pairs_on_average():
    vote_BM = panel(missing=0)
    two = [between(vote_BM[:, both]) for both in combinations(range(3), 2)]
    assert between(vote_BM).same.value == pytest.approx(np.mean([one.same.value for one in two]))
    assert between(vote_BM).kappa.value == pytest.approx(np.mean([one.kappa.value for one in two]), abs=0.01)
    assert with_others(vote_BM, 0).same.value == pytest.approx(np.mean([two[0].same.value, two[1].same.value]))


def test_who_agrees_has_1_chance_has_0_and_nobody_has_none():
    a_B = panel(3000, 1, 0)[:, 0]
    assert between(np.stack([a_B, a_B], 1)).kappa.value == 1
    assert between(np.stack([a_B, RNG.permutation(a_B)], 1)).kappa.value == pytest.approx(0, abs=0.06)
    opposite = between(np.stack([np.ones(50), np.zeros(50)], 1))
    assert opposite.kappa.value == -1 and opposite.same.value == 0
    for nothing in (np.full((5, 2), np.nan), np.ones((5, 1)), np.full((5, 2), 0.5)):
        assert np.isnan(between(nothing).kappa.value)


def test_the_plurality_is_what_most_said_and_the_mean_what_they_said_together():
    votes = [
        [1, 1, 0],
        [1, 0.5, 0.5],
        [1, 0, np.nan],
        [0, np.nan, np.nan],
        [np.nan] * 3,
        [1, 0.5, 0],
        [0.5, 0.5, np.nan],
    ]
    np.testing.assert_array_equal(plurality(np.array(votes)), [1, 0.5, np.nan, 0, np.nan, np.nan, 0.5])
    np.testing.assert_allclose(mean_vote(np.array(votes)), [2 / 3, 2 / 3, 0.5, 0, np.nan, 0.5, 0.5])


def test_a_labeler_of_three_classes():
    """It is right where its class is the plurality's; within the margin its class is a tie, but its side stays one."""
    vote_BM = np.array([[1.0, 1], [0, 0], [0.5, 0.5], [0, 0], [1, 0]])
    preference_B = np.array([0.9, 0.1, 0.52, 0.55, 0.7])
    strict, lenient = (against('a', preference_B, vote_BM, margin=margin) for margin in (0.0, 0.05 + 1e-9))
    assert (strict.three.value, strict.three.n) == (0.5, 4) and lenient.three.value == 0.75
    assert strict.mean == lenient.mean == agreement(preference_B, mean_vote(vote_BM))
    assert strict.plurality.value == pytest.approx(2 / 3) and strict.plurality.undecided == 2
    assert lenient.single.ties == pytest.approx(2 / 5)
