"""Laws of recorded verdicts beside people: published figures come out, however the votes lie in the file."""

import json

import numpy as np
import pytest

from experiments.agreement import Recorded
from experiments.pages import PAGE
from launch import run as launcher
from rlaif_jax.config import Mistake
from rlaif_jax.data import files
from rlaif_jax.evaluation.people import between


def run(folder, *arguments):
    assert launcher.main(['--experiment=agreement', f'--workdir={folder}', *map(str, arguments)]) == 0
    return json.loads((folder / 'result.json').read_text(encoding='utf-8'))


def test_recorded_verdicts_of_both_orders_give_the_published_figures(shared, tmp_path):
    folder, verdict = shared / 'llmbar_natural', 'results.-1.swap = {}.winner'
    found = run(
        tmp_path / 'run', f'input={folder / "GPT-4_CoT_result.json"}', f"verdicts=['{verdict.format(False)}']",
        f"swapped=['{verdict.format(True)}']",
    )  # fmt: skip
    published = json.loads((folder / 'GPT-4_CoT_statistics.json').read_text(encoding='utf-8'))
    (one,) = found['alignment'].values()
    assert one['single_order']['value'] == pytest.approx(float(published['correct_average'].rstrip('%')) / 100)
    assert 1 - one['position']['same']['value'] == pytest.approx(float(published['equal'].split()[0]) / 100)
    (beside,) = found['against people'].values()
    assert beside['mean'] == one['agreement'] and beside['three']['n'] == 100
    assert 'kappa' in (tmp_path / 'run' / PAGE).read_text(encoding='utf-8')


def test_pairs_of_people_alone_are_read(shared, tmp_path):
    found = run(tmp_path / 'run', f'input={shared / "tldr_pairs" / "pairs.jsonl"}')
    assert (found['pairs'], found['raters']) == (24, 1) and 'alignment' not in found


@pytest.fixture(scope='module')
def votes():
    """(60, 3): 1, 0 and ½ of three raters, of whom some were not asked; and a labeler's verdicts."""
    rng = np.random.default_rng(0)
    seen_BM = rng.normal(0, 1, (60, 1)) + rng.normal(0, 0.8, (60, 3))
    vote_BM = np.where(np.abs(seen_BM) < 0.4, 0.5, (seen_BM > 0).astype(float))
    return np.where(rng.random(vote_BM.shape) < 0.2, np.nan, vote_BM), rng.random(60)


def test_votes_are_the_same_in_columns_in_lists_and_in_rows(votes, tmp_path):
    vote_BM, p_B = votes
    names = {1.0: 1, 0.0: 2, 0.5: 0}
    said = [[None if np.isnan(vote) else names[vote] for vote in row] for row in vote_BM]
    pairs = [{'id': i, 'response_1': f'a {i}', 'response_2': f'b {i}', 'prompt': 'q'} for i in range(60)]
    columns = [pair | {f'r{m}': v for m, v in enumerate(row)} for pair, row in zip(pairs, said)]
    lists = [pair | {'votes': row} for pair, row in zip(pairs, said)]
    rows = []
    for pair, p, row in zip(pairs, p_B, vote_BM):  # every other one shown the other way round
        for m, vote in enumerate(row):
            turned = bool(rows) and bool(m % 2)
            texts = {'response_1': pair['response_2'], 'response_2': pair['response_1']} if turned else {}
            word = {1.0: 'A', 0.0: 'B', 0.5: 'tie'}.get(1 - vote if turned else vote)
            rows.append(pair | texts | {'winner': word, 'judge': f'r{m}', 'p': 1 - p if turned else p})
    found = []
    for name, table, more in (
        ('columns', columns, {'people': ('r0', 'r1', 'r2'), 'values': ('1', '2', '0')}),
        ('lists', lists, {'values': ('1', '2', '0')}),
        ('rows', rows, {'rater': 'judge', 'verdicts': ('p',)}),
    ):
        files.write_rows(tmp_path / f'{name}.jsonl', table)
        read = Recorded(input=str(tmp_path / f'{name}.jsonl'), **more).read()
        found.append(read.vote_BM)
    for one_BM in found:
        np.testing.assert_array_equal(one_BM, vote_BM)
    assert between(found[0]).kappa.n > 40
    np.testing.assert_allclose(read.orders['p'][0], p_B)


def test_rows_of_a_pair_show_the_same_responses_in_one_order_or_the_other(tmp_path):
    rows = [
        {'q': 1, 'response_1': a, 'response_2': b, 'prompt': 'p', 'winner': 'A'} for a, b in ('xy', 'yx', ('x ', 'y'))
    ]
    path = str(tmp_path / 'in.jsonl')
    files.write_rows(path, rows)
    np.testing.assert_array_equal(Recorded(input=path, pair=('q',)).read().vote_BM, [[1, 0, 1]])
    files.write_rows(path, [*rows, rows[0] | {'response_2': 'z'}])  # another pair of responses to the question
    with pytest.raises(Mistake, match="rows 1 and 4.*'q'.*pair="):
        Recorded(input=path, pair=('q',)).read()
    assert Recorded(input=path).read().vote_BM.shape[0] == 3


@pytest.mark.parametrize(
    ('said', 'more', 'votes'),
    [
        ([('A', None), ('B', 'ann'), ('B', None)], {'rater': 'judge'}, [0, 0, 1]),
        ([([1, 0], None), ([0, 1], None)], {}, [0, 0, 1, 1]),
    ],
)
def test_no_vote_is_lost_of_raters_without_a_name(said, more, votes, tmp_path):
    pair = {'prompt': 'p', 'response_1': 'x', 'response_2': 'y'}
    files.write_rows(tmp_path / 'in.jsonl', [pair | {'votes': vote, 'judge': who} for vote, who in said])
    read = Recorded(input=str(tmp_path / 'in.jsonl'), **more).read()
    assert sorted(read.vote_BM[0]) == votes


def test_a_verdict_and_the_one_of_the_other_order_are_read_alike(tmp_path):
    files.write_rows(tmp_path / 'in.jsonl', [{'label': 0, 'a': 2, 'b': 1}, {'label': 1, 'a': 1, 'b': 1}])
    read = Recorded(input=str(tmp_path / 'in.jsonl'), verdicts=('a',), swapped=('b',)).read()
    np.testing.assert_array_equal(read.orders['a'], [[0, 1], [1, 1]])


@pytest.mark.parametrize(
    ('more', 'told'),
    [
        ({'people': ('lable',)}, "'lable'.*'label'"),
        ({'verdicts': ('gtp',)}, "'gtp'.*'gpt'"),
        ({'verdicts': ('gpt',), 'values': ('A', 'C')}, "'gpt'.*'B'|'label'"),
        ({'rater': 'who'}, "'who'"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_the_nearest(more, told, tmp_path):
    files.write_rows(tmp_path / 'in.jsonl', [{'label': 0, 'gpt': 'B'}, {'label': 1, 'gpt': 'A'}])
    with pytest.raises(Mistake, match=told):
        Recorded(input=str(tmp_path / 'in.jsonl'), **more).read()
