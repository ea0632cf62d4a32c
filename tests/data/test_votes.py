"""Laws of votes in files: however a side is written it is the same side, and rows of one pair are one pair."""

import math

import numpy as np
import pytest

from rlaif_jax.config import Mistake
from rlaif_jax.data.votes import WORDS, gather, listed, look, reader, word

NAN = math.nan


@pytest.mark.parametrize(
    ('column', 'values', 'votes'),
    [
        ('winner', ['model_a', 'Model B', 'tie', 'tie (bothbad)', None], [1, 0, 0.5, 0.5, NAN]),  # an arena's
        ('verdict', ['[[A]]', '[[B]]', '[[A]]', ''], [1, 0, 1, NAN]),
        ('label', [0, 1, 0.5, None], [1, 0, 0.5, NAN]),  # as this project has it
        ('label', [1, 2, 2, NAN], [1, 0, 0, NAN]),  # LLMBar's
        ('winner', ['1', '2', None], [1, 0, NAN]),
        ('choice', [0, 1, 'tie'], [1, 0, 0.5]),  # OpenAI's comparisons, and a word among numbers
        ('preference', [0, 1, 0.25], [0, 1, 0.25]),
        ('label_2_preference_prob', [1, 0.9], [1, 0.9]),
        ('score', [0.2, 0.9], [0.2, 0.9]),
    ],
)
def test_a_column_is_read_by_all_that_stands_in_it(column, values, votes):
    vote = reader(column, values)
    np.testing.assert_array_equal([vote(value) for value in values], votes)


def test_where_nobody_can_tell_whoever_asks_says_what_is_what():
    values = [0, 1, 2]
    with pytest.raises(Mistake, match='annotator1.*values='):
        reader('annotator1', values)
    vote = reader('annotator1', values, ['1', '2', '0'])  # PandaLM's
    assert [vote(value) for value in values] == [0.5, 1, 0]
    vote = reader('label', values, ['0', '1', '2'])  # Auto-J's
    assert [vote(value) for value in values] == [1, 0, 0.5]
    for column, values in (('winner', [0, 0.5, 1]), ('votes', [0.5, 1]), ('human', ['0', '0.5']), ('label', [1, None])):
        with pytest.raises(Mistake, match=f"'{column}'.*values="):  # a tie, or which side comes, never turns the others
            reader(column, values)
    assert reader('winner', [0, 1, 0.5], ['0', '1', '0.5'])(1) == 0 and reader('winner', [0.5])(0.5) == 0.5
    for wrong in (3, 'model_c', True, 1.5, [1]):
        with pytest.raises(Mistake, match="'winner'"):
            reader('winner', ['A', wrong])


def test_the_words_have_two_sides_and_ties():
    sides = {side: {name for name, vote in WORDS.items() if vote == side} for side in (0.0, 0.5, 1.0)}
    assert len(sides[0.0]) == len(sides[1.0]) > 10 and len(sides[0.5]) > 5
    assert word('Model-A') == 1 and word('nobody') is None and word(1) is None


def test_a_column_may_lie_in_another():
    row = {'a.b': 1, 'a': {'b': 2, 'c': [{'w': 'x'}, {'w': 'y'}]}}
    assert look(row, 'a.b') == 1 and look(row, 'a.c.-1.w') == 'y' and look(row, 'a.c.0.w') == 'x'
    assert [look(row, path) for path in ('a.c.2.w', 'a.c.w', 'b', 'a.b.c')] == [None] * 4
    assert listed([1, 0]) == [1, 0] and listed('A') == ['A']


def test_rows_of_a_pair_are_raters_of_it_whichever_response_stands_first():
    rows = [
        ('p', False, [('ann', 1.0)]), ('q', False, [('', 0.0)]), ('p', True, [('bob', 1.0)]), ('q', False, [('', 0.5)]),
        ('p', False, [('ann', 0.0), ('eve', NAN)]), ('q', True, [('', 0.0)]),
    ]  # fmt: skip
    first, raters, vote_BM = gather(rows)
    assert first == [0, 1] and raters == ('ann', 'rater 1', 'bob', 'rater 2', 'rater 3')
    np.testing.assert_array_equal(vote_BM, [[1, NAN, 0, NAN, NAN], [NAN, 0, NAN, 0.5, 1]])
    _, raters, vote_BM = gather([('p', False, [('', 1.0), ('', NAN)]), ('p', False, [('', 0.0), ('rater 1', 0.5)])])
    assert len(raters) == len({*raters}) == 3  # whatever somebody is called, and no vote is lost
    np.testing.assert_array_equal(vote_BM, [[1, 0, 0.5]])
