"""Laws of several processes: they are one. Two with two devices each do what one does with four, and stop as one."""

import filecmp
import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from stand_in import StandIn, Table
from together import HEARTBEAT, end, printed, start, together

from rlaif_jax.data import files

CHAIN = [
    'launch/run.py', '--experiment=tldr_rlaif', 'sft.steps=4', 'sft.batch=8', 'sft.save_every=2', 'data.pairs=64',
    'data.held_out=16', 'label.max_rationale=4', 'label.batch=16', 'label.least_mass=0.0', 'reward_model.steps=4',
    'reward_model.batch=8', 'reward_model.eval_every=2', 'reward_model.score_batch=8', 'reinforce.steps=3',
    'reinforce.batch=8', 'reinforce.eval_every=3', 'reinforce.eval_prompts=8', 'reinforce.save_every=1',
    'reinforce.max_new_tokens=8', 'reward_model.max_response=8', 'evaluation.prompts=32', 'evaluation.batch=16',
    'evaluation.resamples=0',
]  # fmt: skip
TWO = 'mesh.data=1', 'mesh.tensor=2'  # devices; `data` by itself would be as many as all processes have cores


def command(models: Path, folder: Path, *bindings: str) -> list[str]:
    lms = [f'policy={models / "policy"}', f'labeler={models / "labeler"}']
    return [*CHAIN, f'--workdir={folder}', *lms, *bindings]


def stage(folder: Path, name: str) -> Path:
    (found,) = (folder / 'stages').glob(f'{name}-*')
    return found


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != 'time' and not k.startswith('seconds/')} for row in rows]


def labels(folder: Path) -> dict[str, dict]:
    lines = (folder / 'stages' / 'labels.jsonl').read_text(encoding='utf-8').splitlines()
    return {row['key']: row for row in map(json.loads, lines)}


def farthest(one: Path, other: Path) -> float:
    """How far two models are from each other."""
    a, b = (load_file(folder / 'export' / 'model.safetensors') for folder in (one, other))
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.fixture(scope='module')
def several(models, tmp_path_factory):
    """A run of two processes of a device each, whose every sum is over two devices."""
    folder = tmp_path_factory.mktemp('several')
    assert together(2, command(models, folder / 'run', *TWO), folder) == [0, 0], printed(folder)
    assert '2 processes' in printed(folder) and 'labels' not in printed(folder, 1)
    return folder / 'run'


def alike(one: Path, several: Path, bound: float) -> None:
    """Labels and models of two runs are as near as `bound`, and so is what the first step of REINFORCE was like."""
    ours, theirs = labels(one), labels(several)
    assert ours.keys() == theirs.keys() and len(ours) == 64 + 16  # of training pairs, and of those held out
    for key, row in ours.items():
        assert row['rationales'] == theirs[key]['rationales']
        assert row['preference'] == pytest.approx(theirs[key]['preference'], abs=bound / 10)
    for name in ('sft', 'reward_model'):
        assert farthest(stage(one, name), stage(several, name)) <= bound, name
    first, other = (metrics(stage(folder, 'reinforce'))[1] for folder in (one, several))
    assert first.keys() == other.keys() and first['step'] == 0
    for name, value in first.items():
        assert other[name] == pytest.approx(value, abs=bound, rel=bound, nan_ok=True), name


def same_bytes(one: Path, other: Path, *names: str) -> None:
    names = names or ('responses.jsonl', 'report.txt', 'export/model.safetensors')
    assert [name for name in names if not filecmp.cmp(one / name, other / name, shallow=False)] == []


@pytest.mark.slow
def test_two_processes_are_one_bit_for_bit(several, models, tmp_path):
    """SFT, labels with rationales, a reward model, REINFORCE, evaluation: no sum is over more than two devices."""
    assert together(1, command(models, tmp_path / 'run', *TWO), tmp_path) == [0], printed(tmp_path)
    alike(tmp_path / 'run', several, 0)
    same_bytes(tmp_path / 'run', several)


@pytest.mark.slow
def test_two_processes_of_two_devices_are_one_of_four(models, tmp_path):
    """Between processes a sum over four is taken in another order than within one."""
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        bindings = command(models, folder / 'run', 'mesh.data=2', 'mesh.fsdp=2')
        assert together(processes, bindings, folder) == [0] * processes, printed(folder)
    alike(tmp_path / '1' / 'run', tmp_path / '2' / 'run', 1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(several, models, tmp_path):
    """Bit for bit here, as no sum is over more than two devices."""
    shutil.copytree(several, tmp_path / 'run', symlinks=True)
    sft = stage(tmp_path / 'run', 'sft')
    for finished in (tmp_path / 'run' / 'result.json', sft / 'result.json'):
        finished.unlink()
    for later in ('checkpoints/4', 'export'):
        shutil.rmtree(sft / later)
    assert together(1, command(models, tmp_path / 'run', *TWO), tmp_path) == [0], printed(tmp_path)
    assert re.search('sft: going on .* 2 of 4', printed(tmp_path))
    assert farthest(sft, stage(several, 'sft')) == 0


def soon(look) -> None:
    """Waits until something is there."""
    late = time.monotonic() + 600
    while not look():
        assert time.monotonic() < late
        time.sleep(0.05)


@pytest.mark.slow
def test_who_is_stopped_or_killed_stops_all_and_the_same_command_goes_on(several, models, tmp_path):
    run = command(models, tmp_path / 'run', *TWO)

    def written() -> list[dict[str, float]]:
        found = list((tmp_path / 'run').glob('stages/reinforce-*/metrics.jsonl'))
        return metrics(found[0].parent) if found else []

    both = start(2, run, tmp_path)
    soon(written)  # before the first step, which has to be compiled
    both[1].send_signal(signal.SIGTERM)
    assert end(both) == [130, 130], printed(tmp_path)
    # They agree before a step that they stop behind it: this one, or the next.
    (step,) = re.findall(r'stopped .* ([12]) of 3', printed(tmp_path))
    assert len(written()) == 1 + int(step)

    both = start(2, run, tmp_path)
    soon(lambda: re.search(f'going on .* {step} of 3', printed(tmp_path)))
    both[1].kill()
    began = time.monotonic()
    assert end(both)[0] not in (0, 2) and time.monotonic() - began < 6 * HEARTBEAT
    assert together(2, run, tmp_path) == [0, 0], printed(tmp_path)
    same_bytes(tmp_path / 'run', several)


@pytest.mark.slow
def test_two_processes_run_the_points_of_a_sweep_together(models, tmp_path):
    line = [
        'launch/sweep.py',
        '--experiment=tldr_sft',
        f'--workdir={tmp_path / "sweep"}',
        f'policy={models / "policy"}',
    ]
    line += [
        '--seed=[0,1]',
        'mesh.tensor=2',
        'sft.steps=2',
        'sft.batch=8',
        'evaluation.prompts=8',
        'evaluation.batch=8',
    ]
    assert together(2, [*line, 'evaluation.resamples=0'], tmp_path) == [0, 0], printed(tmp_path) + printed(tmp_path, 1)
    points = [folder for folder in (tmp_path / 'sweep').iterdir() if (folder / 'result.json').exists()]
    assert len(points) == 2 and (tmp_path / 'sweep' / 'sweep.csv').exists()
    assert all('2 processes' in (point / 'output.log').read_text(encoding='utf-8') for point in points)
    assert '2/2' in printed(tmp_path) and '2/2' not in printed(tmp_path, 1)


VERBS = """
import random, sys
from rlaif_jax import hosts
hosts.start()
import rlaif_jax
from rlaif_jax import axes

model, folder = sys.argv[1:]
prompts = [f'{word} problem' for word in 'first second relation cause duration action question two'.split()]
lm = rlaif_jax.load(model, mesh=axes.make_mesh({'data': -1}))
try:
    rlaif_jax.sft(lm, prompts, prompts, steps=1)
except rlaif_jax.Mistake as mistake:
    print(mistake)
for again in range(2):
    taught = rlaif_jax.sft(lm, prompts, prompts, steps=2, folder=f'{folder}/sft')

def reward(prompts, responses):  # which no two processes agree on
    return [random.random() for _ in responses]

how = {'steps': 2, 'batch': 8, 'max_new_tokens': 8, 'baseline': 'batch_mean', 'folder': f'{folder}/policy'}
policy = rlaif_jax.reinforce(taught, prompts, reward, **how)
print('policy', float(abs(hosts.to_host(policy.params['embed_VD'])).sum()))
hosts.leave()
"""


@pytest.mark.slow
def test_python_trains_on_several_processes_as_on_one(models, tmp_path):
    command = ['-c', VERBS, str(models / 'policy')]
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        assert together(processes, [*command, str(folder)], folder) == [0] * processes, printed(folder)
    first, second = (printed(tmp_path / '2', process) for process in range(2))
    assert 'give folder=' in first and 'give folder=' not in printed(tmp_path / '1')
    assert first.splitlines()[-1] == second.splitlines()[-1] and second.splitlines()[-1].startswith('policy')
    assert farthest(tmp_path / '1/sft', tmp_path / '2/sft') <= 1e-5
    assert len(metrics(tmp_path / '2/policy')) == 3


@pytest.mark.slow
def test_ratings_adapters_and_candidates_of_two_processes_are_those_of_one(models, tmp_path):
    """Direct RLAIF with parameters in shares. A language model chooses a candidate, which leaves with its adapter."""
    lms = [f'policy={models / "policy"}', f'same_size_labeler={models / "labeler"}']
    line = [
        'launch/run.py', '--experiment=tldr_direct', *lms, 'sft.steps=2', 'sft.batch=8', 'rating.least_mass=0.0',
        'rating.batch=8', 'reinforce.steps=2', 'reinforce.batch=8', 'reinforce.eval_every=1', 'reinforce.eval_prompts=8',
        'reinforce.max_new_tokens=8', 'reinforce.lora.rank=2', 'reinforce.candidates=2', 'mesh.data=1', 'mesh.fsdp=2',
        f'evaluation.selector={models / "labeler"}', f'evaluation.judge={models / "labeler"}', 'evaluation.prompts=8',
        'evaluation.batch=8', 'evaluation.resamples=0',
    ]  # fmt: skip
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        assert together(processes, [*line, f'--workdir={folder / "run"}'], folder) == [0] * processes, printed(folder)
    one, two = (stage(tmp_path / name / 'run', 'reinforce') for name in '12')
    chosen = [json.loads((folder / 'result.json').read_text(encoding='utf-8')) for folder in (one, two)]
    assert chosen[0] == chosen[1] and set(chosen[0]['win rates']) == {'1', '2'}
    same_bytes(one, two, 'export/model.safetensors', 'export/adapter/adapter_model.safetensors')


def test_a_server_labels_for_two_processes_as_for_one(micro_tokenizer, tmp_path):
    """The first one asks, from the plan on; rationales and verdicts are told."""
    rows = [{'prompt': f'I lost {n} keys. TL;DR:', 'chosen': f' {n} keys', 'rejected': ' no keys'} for n in range(6)]
    files.write_rows(tmp_path / 'in.jsonl', rows)
    found = []
    with StandIn(Table(micro_tokenizer, 1152)) as server:
        for processes in (1, 2):
            folder = tmp_path / str(processes)
            line = [
                'launch/run.py', '--experiment=label', f'--workdir={folder / "run"}', 'mesh.data=-1',
                f'labeler={server.address(tokenizer="micro_xs")}', f'input={tmp_path / "in.jsonl"}',
                f'output={folder / "out.jsonl"}', 'technique=base_cot_0shot', 'label.max_rationale=5',
            ]  # fmt: skip
            before = len(server.requests)
            assert together(processes, line, folder) == [0] * processes, printed(folder) + printed(
                folder, processes - 1
            )
            found.append((files.read_rows(folder / 'out.jsonl'), len(server.requests) - before))
    assert found[0] == found[1]
