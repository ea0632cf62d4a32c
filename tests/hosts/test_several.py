"""Laws of several processes: sums over more devices, sweeps, functions, ratings, adapters, candidates, a served labeler."""

import json

import pytest
from chain import alike, command, farthest, metrics, same_bytes, stage
from stand_in import StandIn, Table
from together import printed, together

from rlaif_jax.data import files


@pytest.mark.slow
def test_two_processes_of_two_devices_are_one_of_four(models, tmp_path):
    """Between processes a sum over four is taken in another order than within one."""
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        bindings = command(models, folder / 'run', 'mesh.data=2', 'mesh.fsdp=2')
        assert together(processes, bindings, folder) == [0] * processes, printed(folder)
    alike(tmp_path / '1' / 'run', tmp_path / '2' / 'run', 1e-5)


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


@pytest.mark.nightly
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
