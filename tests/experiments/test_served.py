"""Laws of runs whose labeler or judge is a server: the plan knows it, the folder does not hang on where it is, and the key
is in nothing that a run leaves or prints.
"""

import json

import numpy as np
import pytest
from stand_in import StandIn, Table

from experiments import find as experiment
from experiments import judging
from experiments.scales import Evaluation, scale
from launch import run as launcher
from rlaif_jax import axes
from rlaif_jax.config import Mistake, bind, digest, dump, same
from rlaif_jax.data import files
from rlaif_jax.data.records import Prompt
from rlaif_jax.folder import open_folder
from rlaif_jax.labeling import served, wire

SECRET = 'sk-0123456789abcdef'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(served, 'AT_ONCE', 0.2)
    monkeypatch.setattr(wire, 'FIRST_WAIT', 0.01)


@pytest.fixture
def server(micro_tokenizer, monkeypatch):
    monkeypatch.setenv(wire.KEY, SECRET)
    with StandIn(Table(micro_tokenizer, 1152), key=SECRET) as found:
        yield found


def command(folder, labeler, *more):
    rows = [{'prompt': f'I lost {n} keys. TL;DR:', 'chosen': f' {n} keys', 'rejected': ' no keys'} for n in range(9)]
    files.write_rows(folder / 'in.jsonl', rows)
    return [
        '--experiment=label', f'--workdir={folder / "run"}', f'labeler={labeler}', f'input={folder / "in.jsonl"}',
        f'output={folder / "out.jsonl"}', 'mesh.data=1', *more,
    ]  # fmt: skip


def test_a_run_leaves_labels_and_no_key(server, tmp_path, capsys):
    address = server.address(tokenizer='micro_xs')
    assert launcher.main(command(tmp_path, address, '--price=2,8')) == 0
    out = capsys.readouterr()
    rows = files.read_rows(tmp_path / 'out.jsonl')
    assert [row['status'] for row in rows] == ['ok'] * 9 and {row['labeler'] for row in rows} == {address}
    left = [path for path in tmp_path.rglob('*') if path.is_file()]
    assert {'config.gin', 'result.json', 'labels.jsonl', 'out.jsonl'} <= {path.name for path in left}
    said = b''.join(path.read_bytes() for path in left).decode() + out.out + out.err
    assert SECRET not in said and SECRET[3:] not in said
    told = ' '.join(out.out.split())
    assert 'labeler: ' in told and ', served' in told and 'at --price=2,8' in told
    assert all(headers['Authorization'] == f'Bearer {SECRET}' for _, _, headers in server.requests)


def test_a_run_that_fails_says_who_and_no_key(server, tmp_path, capsys):
    address = server.address(tokenizer='micro_xs', patience=0.2)
    asked = []
    server.fault = lambda number, path, body: asked.append(1) or 'drop' if 'prompt' in body and number > 9 else None
    assert launcher.main(command(tmp_path, address, 'technique=base_0shot')) == 74
    out = capsys.readouterr()
    assert asked and f'127.0.0.1:{server.port}/v1#micro' in out.err.replace('\n', '')
    assert SECRET not in out.out + out.err


def test_who_is_not_there_is_named_before_anything_is_written(tmp_path, capsys):
    with StandIn(None) as gone:
        address = gone.address(tokenizer='micro_xs')
    assert launcher.main(command(tmp_path, address)) == 74
    assert f'127.0.0.1:{gone.port}/v1#micro' in capsys.readouterr().err.replace('\n', '')
    assert not (tmp_path / 'run').exists()
    assert launcher.main(command(tmp_path, address, '--dry_run')) == 0  # it may not have been started yet
    told = ' '.join(capsys.readouterr().out.split())
    assert 'cannot be reached' in told and ', served' in told


def test_a_plan_counts_no_memory_of_a_server(server, tmp_path):
    address = server.address(tokenizer='micro_xs')
    config = bind(experiment('label')(scale('micro')), {'labeler': address})
    line = judging.line(Evaluation(judge=address), tmp_path, {}, 512)
    assert line.models == {'judge': address} and not line.reads
    direct = bind(experiment('tldr_direct')(scale('micro')), {'same_size_labeler': address})
    own = [line for line in direct.lines(tmp_path) if line.name == 'reinforce'][0]
    assert own.models['labeler'] == address and 'labeler' not in {read.role for read in own.reads}
    assert config.labeler == address and not server.requests


@pytest.mark.parametrize('name, field', [('tldr_direct', 'same_size_labeler'), ('tldr_rlaif', 'labeler')])
def test_stages_are_those_of_the_model_wherever_it_is_served(server, tmp_path, name, field):
    address = server.address(tokenizer='micro_xs')
    others = [
        address.replace('127.0.0.1', 'elsewhere'),
        address.replace('tokenizer=', 'parallel=7&tokenizer='),
        address.replace('#micro', '#other'),
    ]
    folders = [
        bind(experiment(name)(scale('micro')), {field: one}).learners()[0].policy.folder(tmp_path)
        for one in (address, *others)
    ]
    assert folders[0] == folders[1] == folders[2] != folders[3]


@pytest.mark.parametrize('field', ['labeler', 'same_size_labeler', 'evaluation.judge', 'evaluation.selector'])
def test_a_run_goes_on_wherever_its_models_are_served(tmp_path, field):
    """Another model is another run."""
    name = 'tldr_direct' if field == 'same_size_labeler' else 'tldr_rlaif'
    of = lambda address: bind(experiment(name)(scale('micro')), {field: address})  # noqa: E731
    begun, there, other = (
        of(f'http://{rest}')
        for rest in (
            'a:1/v1?tokenizer=micro_xs#m',
            'b:2/v1?parallel=7&tokenizer=micro_xs#m',
            'a:1/v1?tokenizer=micro_xs#n',
        )
    )
    open_folder(tmp_path, dump(begun), same(begun))
    with pytest.raises(Mistake, match=field):
        open_folder(tmp_path, dump(other), same(other))
    open_folder(tmp_path, dump(there), same(there))
    assert 'b:2' in (tmp_path / 'config.gin').read_text(encoding='utf-8')
    assert digest(begun) == digest(there) != digest(other)


def test_a_server_judges(server):
    cfg, mesh = Evaluation(judge=server.address(tokenizer='micro_xs'), batch=4), axes.make_mesh()
    judge = judging.make_judge(cfg, 'summarization', judging.judge_model(cfg, 'float32', mesh), mesh)
    prompts = [Prompt(f'I lost {n} keys. TL;DR:', str(n)) for n in range(6)]
    firsts, seconds = [f' {n} keys' for n in range(6)], [' no keys'] * 6
    forth, back = judge(prompts, firsts, seconds), judge(prompts, seconds, firsts)
    np.testing.assert_allclose(np.asarray(forth), 1 - np.asarray(back), atol=1e-9)


def test_what_is_next_is_no_reward_model_of_an_address(server, tmp_path, capsys):
    launcher.look('label', bind(experiment('label')(scale('micro')), {'labeler': server.address()}), tmp_path, {
        'output': 'out.jsonl', 'ok': 9,
    })  # fmt: skip
    assert 'http' not in capsys.readouterr().out and json.dumps(server.requests) == '[]'
