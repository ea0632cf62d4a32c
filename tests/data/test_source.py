"""Laws of rlaif_jax.data.source: what a data set is, is asked of the value, and files, published and simulated data are
asked alike.
"""

import json

import pytest

from rlaif_jax.data import loader


@pytest.fixture
def own(tmp_path):
    rows = [{'prompt': f'prompt {i}', 'chosen': 'a', 'rejected': 'b'} for i in range(40)]
    (tmp_path / 'pairs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    return str(tmp_path / 'pairs.jsonl')


def test_what_a_data_set_is(own):
    found = [loader.find(name) for name in ('micro_helpful', 'hh_helpful', own)]
    assert [(one.task, one.simulated, one.published, one.note) for one in found] == [
        ('helpful', True, False, '[simulated]'), ('helpful', False, True, ''), ('', False, False, ''),
    ]  # fmt: skip
    assert [one.count(10**6, lambda: [0] * 7) for one in found] == [10**6, None, 7]
    assert [one.name for one in found] == ['micro_helpful', 'hh_helpful', own]


def test_each_task_has_its_own_data_set_and_a_file_is_of_any(own):
    for task in ('summarization', 'helpful', 'harmless'):
        for name in ('micro_tldr', 'tldr'):
            other = loader.of_task(name, task)
            assert other.task == task and other.simulated == (name == 'micro_tldr') and other.name in loader.known()
        assert loader.of_task(own, task).name == own


def test_a_source_and_its_name_give_the_same(own):
    for name, task in (('micro_harmless', 'harmless'), (own, 'helpful')):
        one = loader.find(name)
        assert list(one.prompts('train', 5, task)) == list(loader.source(name, 'train', 5, task))
        assert one.pairs('train', 5, task, True) == loader.pairs(name, task, 'train', 5, confident=True) != []
