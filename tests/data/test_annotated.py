"""Laws of exports of annotation tools: what is no export's, where it should be one, is said with its place."""

import pytest

from rlaif_jax.config import Mistake
from rlaif_jax.data.annotated import rankings

STUDIO = {'data': {'prompt': 'p', 'items': [{'id': 'a', 'body': 'x'}, {'id': 'b', 'body': 'y'}]}}
ARGILLA = {'fields': {'prompt': 'p', 'a': 'x', 'b': 'y'}}


def ranked(*ranks):
    return [{'user_id': 'ann', 'value': [{'rank': rank, 'value': name} for rank, name in zip(ranks, 'ab')]}]


@pytest.mark.parametrize(
    ('row', 'tool'),
    [
        (STUDIO | {'annotations': [17, 18]}, 'Label Studio'),  # ids, as some of its exports have them
        (STUDIO | {'annotations': [{'result': [{'type': 'ranker', 'value': {'ranker': 3}}]}]}, 'Label Studio'),
        (STUDIO | {'annotations': [{'result': ['ranker']}]}, 'Label Studio'),
        (ARGILLA | {'responses': {'ranking': ranked(1, '2')}}, 'Argilla'),
        (ARGILLA | {'responses': {'ranking': ['ann']}}, 'Argilla'),
        (ARGILLA | {'responses': [7]}, 'Argilla'),
        ({'ranking.responses': 5}, 'Argilla'),
    ],
)
def test_what_goes_on_as_no_export_is_said_with_its_place(row, tool):
    with pytest.raises(Mistake, match=f'^file:3: .*{tool}'):
        rankings(row, 'file:3')


def test_a_question_that_nobody_answered_has_no_rankings():
    assert rankings(ARGILLA | {'responses': {'ranking': None}}, 'file:1') == []
    (one,) = rankings(ARGILLA | {'responses': {'ranking': ranked(2, 1), 'more': None}}, 'file:1')
    assert one.places == [['b'], ['a']]
    assert rankings({'prompt_id': 'p', 'ranking': ['a', 'b']}, 'file:1') is None
