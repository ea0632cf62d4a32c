"""Laws of finished models and anybody's files: a file comes back whole with scores, responses or the pairs that a labeler
prefers; what was made is not made again; bad rows cost no other.
"""

import builtins
import dataclasses
import sys

import numpy as np
import pytest

import rlaif_jax
from experiments import apply
from launch import run as launcher
from rlaif_jax.config import Mistake
from rlaif_jax.data import files, trl
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.evaluation.page import banner
from rlaif_jax.folder import finished
from rlaif_jax.models.heads import scalar_head
from rlaif_jax.training import reward_model
from rlaif_jax.training.reward_model import RewardModel

ROWS = [
    {'prompt': 'POST: my boss lies to me.\n\nTL;DR:', 'chosen': ' my boss lies.', 'rejected': ' boss.', 'id': 7},
    {'prompt': 'POST: I lost my keys.\n\nTL;DR:', 'chosen': None, 'rejected': ' keys.', 'id': 8},
    {'prompt': 'POST: I lost my keys.\n\nTL;DR:', 'chosen': ' no idea', 'rejected': ' I lost my keys.', 'id': 9},
]
BANNER = banner(posts=False, judges=True)
MESSAGES = [{'prompt': [{'role': 'user', 'content': 'POST: I eat.\n\nTL;DR:'}], 'completion': None, 'mine': 1}]


def run(*arguments):
    return launcher.main(list(map(str, arguments)))


def page(folder):
    return (folder / 'report.html').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def scorer(tmp_path_factory, tiny_labeler):
    folder = tmp_path_factory.mktemp('scorer')
    head = scalar_head(tiny_labeler.config.width)
    head |= {'head_D': np.linspace(-1, 1, tiny_labeler.config.width, dtype=np.float32)}
    trunk = {name: x for name, x in tiny_labeler.params.items() if name != 'unembed_DV'}
    config = dataclasses.replace(tiny_labeler.config, tied=True)
    reward_model.save(RewardModel(config, {'trunk': trunk, 'head': head}, tiny_labeler.tokenizer, 'tiny'), folder)
    return folder


@pytest.fixture
def made(monkeypatch):
    """How many things each batch made."""
    counts, complete = [], apply.complete

    def counting(store, keys, make, **how):
        return complete(store, keys, lambda indices: counts.append(len(indices)) or make(indices), **how)

    monkeypatch.setattr(apply, 'complete', counting)
    return counts


def command(experiment, folder, *more):
    return [
        f'--experiment={experiment}', f'--workdir={folder / experiment}', f'input={folder / "in.jsonl"}',
        f'output={folder / "out.jsonl"}', 'batch=8', 'mesh.data=1', *more,
    ]  # fmt: skip


# Pairs as the labeler prefers them


@pytest.mark.parametrize('suffix', ['jsonl', 'parquet'])
def test_pairs_are_those_that_the_labels_prefer(tmp_path, labeler, suffix, capsys):
    same = ROWS[0] | {'rejected': ROWS[0]['chosen']}
    files.write_rows(tmp_path / 'in.jsonl', [*ROWS, same])
    found = {}
    for write in ('labels', 'pairs'):
        out = tmp_path / f'{write}.{suffix}'
        assert run(
            '--experiment=label', f'--workdir={tmp_path / write}', f'--stages={tmp_path / "stages"}', f'labeler={labeler}',
            f'input={tmp_path / "in.jsonl"}', f'output={out}', 'technique=base_0shot', 'label.least_mass=0.0',
            f'write={write}', 'label.batch=8', 'mesh.data=1',
        ) == 0  # fmt: skip
        found[write] = files.read_rows(out)
    labels = {row['id']: row['preference_prob'] for row in found['labels'][:3]}
    assert [row['id'] for row in found['pairs']] == [7, 9] and labels[8] is None
    for row, before in zip(found['pairs'], (ROWS[0], ROWS[2])):
        swapped = labels[row['id']] < 0.5
        assert row['prompt'] == before['prompt']
        assert (row['chosen'], row['rejected']) == (before['chosen'], before['rejected'])[:: -1 if swapped else 1]
        assert row['margin'] == pytest.approx(abs(2 * labels[row['id']] - 1)) and 0 < row['margin'] <= 1
    assert '2 pairs' in ' '.join(capsys.readouterr().out.split())
    assert [entry.record.preference for entry in trl.pairs(tmp_path / f'pairs.{suffix}', 'summarization')] == [1.0, 1.0]


def test_preferred_pairs_from_python():
    pairs = [Pair(Prompt('a TL;DR:', 'x'), ' b', ' c')] * 5
    rows = rlaif_jax.preferred(pairs, [0.9, 0.25, 0.5, float('nan'), None])
    assert rows == [
        {'prompt': 'a TL;DR:', 'chosen': ' b', 'rejected': ' c', 'margin': pytest.approx(0.8)},
        {'prompt': 'a TL;DR:', 'chosen': ' c', 'rejected': ' b', 'margin': pytest.approx(0.5)},
    ]
    for labels in ([0.5], ['x'] * 5, [2.0] * 5, 0.5, 'xxxxx'):
        with pytest.raises(Mistake, match='labels'):
            rlaif_jax.preferred(pairs, labels)


# Scores


def test_a_file_comes_back_with_scores_and_what_is_there_is_not_made_again(tmp_path, scorer, made):
    files.write_rows(tmp_path / 'in.jsonl', ROWS)
    assert run(*command('score', tmp_path, f'model={scorer}', 'max_prompt=256')) == 0
    rows = files.read_rows(tmp_path / 'out.jsonl')
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS
    assert rows[1]['chosen_score'] is None and rows[1]['rejected_score'] is None
    model = rlaif_jax.load_reward_model(scorer)
    for row in (rows[0], rows[2]):
        texts = [row['chosen'], row['rejected']]
        alone = rlaif_jax.score(model, [row['prompt']] * 2, texts, max_prompt=256, max_response=128)
        assert [row['chosen_score'], row['rejected_score']] == pytest.approx(alone, abs=1e-5) and alone[0] != alone[1]
    assert sum(made) == 4
    assert finished(tmp_path / 'score')['simulated'] is True and BANNER in page(tmp_path / 'score')
    (tmp_path / 'out.jsonl').unlink()
    assert run(*command('score', tmp_path, f'model={scorer}', 'max_prompt=256')) == 0 and sum(made) == 4
    assert files.read_rows(tmp_path / 'out.jsonl') == rows


def test_completions_have_a_score_and_names_that_are_taken_stay(tmp_path, scorer):
    files.write_rows(
        tmp_path / 'in.jsonl', [{'prompt': 'POST: a\n\nTL;DR:', 'completion': ' I eat.', 'score': 'theirs'}]
    )
    assert run(*command('score', tmp_path, f'model={scorer}')) == 0
    (row,) = files.read_rows(tmp_path / 'out.jsonl')
    assert row['score'] == 'theirs' and isinstance(row['score_2'], float)


@pytest.mark.parametrize(
    'more, says',
    [
        (['model=""'], 'model=runs/NAME/export'),
        (['model=micro_xs'], 'score'),  # which is none
        (['output=made.csv'], 'parquet'),
        (['output=score/made.jsonl'], 'score/made.jsonl'),
    ],
)
def test_what_cannot_be_scored_is_named_before_anything_is_made(
    tmp_path, scorer, made, capsys, more, says, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    files.write_rows(tmp_path / 'in.jsonl', ROWS)
    assert run(*command('score', tmp_path, f'model={scorer}', *more)) == 2
    assert says in capsys.readouterr().err.replace('\n', '') and not made and not (tmp_path / 'score').exists()


def test_score_takes_what_it_says(scorer):
    model = rlaif_jax.load_reward_model(scorer)
    assert rlaif_jax.score(model, [], []) == []
    for asked in (('x', ['y']), (['x'], 'y'), (['x'], []), ([1], ['y'])):
        with pytest.raises(Mistake):
            rlaif_jax.score(model, *asked)
    for wrong in ({'batch': 0}, {'max_prompt': 'a'}, {'max_response': 10**9}):
        with pytest.raises(Mistake):
            rlaif_jax.score(model, ['x'], ['y'], **wrong)
    with pytest.raises(Mistake, match='load_reward_model'):
        rlaif_jax.score(None, ['x'], ['y'])


# Responses


def test_a_file_comes_back_with_responses_and_a_run_goes_on_where_it_was_stopped(tmp_path, labeler, made, monkeypatch):
    prompts = [{'prompt': f'POST: I lost {n % 10} keys.\n\nTL;DR:', 'mine': n} for n in range(20)]
    files.write_rows(tmp_path / 'in.jsonl', [*prompts, {'prompt': '', 'mine': 20}, {'prompt': 3, 'mine': 21}])
    asked = [f'policy={labeler}', 'max_new_tokens=6']
    assert run(*command('generate', tmp_path, *asked)) == 0 and made == [8, 8, 4]
    rows = files.read_rows(tmp_path / 'out.jsonl')
    assert finished(tmp_path / 'generate')['simulated'] is True and BANNER in page(tmp_path / 'generate')
    assert [row['mine'] for row in rows] == list(range(22))
    assert all(isinstance(row['completion'], str) for row in rows[:20])
    assert [row['completion'] for row in rows[20:]] == [None, None]
    assert any(one['completion'] != other['completion'] for one, other in zip(rows[:10], rows[10:20]))
    (tmp_path / 'again').mkdir()
    files.write_rows(tmp_path / 'again' / 'in.jsonl', files.read_rows(tmp_path / 'in.jsonl'))
    write = apply.extend

    def crash(*args, **more):
        if len(made) > 4:
            raise RuntimeError('the power is out')
        return write(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(apply, 'extend', crash)
        run(*command('generate', tmp_path / 'again', *asked))
    assert run(*command('generate', tmp_path / 'again', *asked)) == 0 and made[3:] == [8, 8, 8, 4]
    assert files.read_rows(tmp_path / 'again' / 'out.jsonl') == rows


def test_messages_are_answered_by_messages(tmp_path, labeler):
    files.write_rows(tmp_path / 'in.jsonl', MESSAGES)
    assert run(*command('generate', tmp_path, f'policy={labeler}', 'max_new_tokens=4')) == 0
    (row,) = files.read_rows(tmp_path / 'out.jsonl')
    assert row['completion'] is None and [one['role'] for one in row['completion_2']] == ['assistant']


def test_at_a_terminal_it_asks(tmp_path, labeler, monkeypatch, capsys):
    typed = iter(['POST: I eat.\\n\\nTL;DR:', ''])
    seen = []

    def ask(text):
        seen.append(text)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    asked = [
        '--experiment=generate',
        f'--workdir={tmp_path / "run"}',
        f'policy={labeler}',
        'max_new_tokens=4',
        'mesh.data=1',
    ]
    assert run(*asked) == 2 and 'input=prompts.jsonl' in capsys.readouterr().err  # no terminal
    monkeypatch.setattr(sys.stdin, 'isatty', lambda: True, raising=False)
    monkeypatch.setattr(builtins, 'input', ask)
    written = []
    monkeypatch.setattr(apply, 'extend', lambda lm, rows, how, mesh: written.append((rows, how.seed)) or [[5]])
    assert run(*asked) == 0 and len(seen) == 3
    (rows, seed), lm = written[0], rlaif_jax.load(labeler)
    assert rows == lm.tokenizer.prompts(['POST: I eat.\n\nTL;DR:']) and seed == 0 and len(written) == 1
