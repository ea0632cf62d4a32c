"""A chain of stages that several processes run as one, and how near two such runs are to each other."""

import filecmp
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

CHAIN = [
    'launch/run.py', '--experiment=tldr_rlaif', 'sft.steps=4', 'sft.batch=8', 'sft.save_every=2', 'data.pairs=64',
    'data.held_out=16', 'label.max_rationale=4', 'label.batch=8', 'label.least_mass=0.0', 'reward_model.steps=4',
    'reward_model.batch=8', 'reward_model.eval_every=2', 'reward_model.score_batch=8', 'reinforce.steps=3',
    'reinforce.batch=8', 'reinforce.eval_every=3', 'reinforce.eval_prompts=8', 'reinforce.save_every=1',
    'reinforce.max_new_tokens=8', 'reward_model.max_response=8', 'evaluation.prompts=32', 'evaluation.batch=8',
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
