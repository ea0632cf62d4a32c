"""Laws of launch/run.py, end to end on models of 20,000 random parameters: what a run leaves, that it repeats, that it
goes on bit for bit wherever it was stopped, and that bad input costs a message and nothing else.

RLAIF_REGENERATE_GOLDEN=1 pytest tests/launch/test_run.py rewrites the configs in tests/golden/configs.
"""

from __future__ import annotations

import ast
import errno
import filecmp
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import experiments
from experiments import stages
from experiments.scales import SCALES
from launch import run as launcher
from launch import sweep
from rlaif_jax import config, log
from rlaif_jax.config import bind, dump, parse
from rlaif_jax.models import hf

ROOT = Path(launcher.__file__).parents[1]
GOLDEN = Path(__file__).parents[1] / 'golden' / 'configs'
EVERY = [
    (name, scale)
    for name in experiments.experiments()
    for scale in SCALES
    if scale == 'micro' or 'pretrain' not in name
]
PINNED = [(name, scale) for name, scale in EVERY if scale == 'micro' or name in ('tldr_table1', 'harmless_rlaif')]
SFT_STEPS, RL_STEPS = 8, 6
pytestmark = pytest.mark.usefixtures('programs')


@pytest.fixture(scope='module')
def command(models):
    """`command(workdir, *more, experiment=…)`: the arguments of a run that takes seconds. `more` wins."""

    def command(workdir: Path, *more: str, experiment: str = 'tldr_direct') -> list[str]:
        tiny = {
            'policy': models / 'policy', 'data.train': 64, 'data.validation': 8, 'data.test': 16,
            'sft.steps': SFT_STEPS, 'sft.batch': 8, 'sft.save_every': 3, 'sft.log_every': 1,
            'evaluation.prompts': 16, 'evaluation.batch': 16, 'mesh.data': 1,
        }  # fmt: skip
        if experiment == 'tldr_direct':
            # A random labeler has next to no mass on the ten ratings.
            tiny |= {
                'same_size_labeler': models / 'labeler', 'rating.least_mass': 0.0, 'rating.batch': 8,
                'reinforce.steps': RL_STEPS, 'reinforce.batch': 8, 'reinforce.max_prompt': 192,
                'reinforce.max_new_tokens': 6, 'reinforce.eval_every': 3, 'reinforce.eval_prompts': 8,
                'reinforce.save_every': 2,
            }  # fmt: skip
        else:
            tiny |= {'max_prompt': 192, 'max_new_tokens': 6}
        changed = [text.partition('=')[0] for text in more]
        bindings = [f'{path}={value}' for path, value in tiny.items() if path not in changed]
        return [f'--experiment={experiment}', f'--workdir={workdir}', *bindings, *more]

    return command


@pytest.fixture(scope='module')
def finished(command, tmp_path_factory):
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    assert launcher.main(command(folder)) == 0
    return folder


def stage(folder: Path) -> Path:
    """The one SFT stage beside a run."""
    (found,) = folder.glob('stages/sft-*')
    return found


def lines(path: Path) -> list[dict]:
    """Metrics without what differs from run to run: times."""
    rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    return [{key: x for key, x in row.items() if key != 'time' and not key.startswith('seconds/')} for row in rows]


def same(one: Path, other: Path) -> None:
    """Two runs ended alike, bit for bit: both policies, every metric, every sample, the result."""
    for a, b in ((one, other), (stage(one), stage(other))):
        assert filecmp.cmp(a / 'export/model.safetensors', b / 'export/model.safetensors', shallow=False)
        assert lines(a / 'metrics.jsonl') == lines(b / 'metrics.jsonl')
    assert [row['step'] for row in lines(one / 'metrics.jsonl')] == list(range(-1, RL_STEPS))
    for name in ('samples.jsonl', 'test_samples.jsonl', 'responses.jsonl', 'result.json'):
        assert (one / name).read_text(encoding='utf-8') == (other / name).read_text(encoding='utf-8')


# What a run leaves


def test_a_run_leaves_what_the_readme_says(finished):
    there = {path.name for path in finished.iterdir()}
    assert there >= {
        'config.gin', 'metrics.jsonl', 'tensorboard', 'samples.jsonl', 'test_samples.jsonl', 'responses.jsonl',
        'checkpoints', 'export', 'result.json', 'report.txt', 'report.html', 'judged.jsonl', 'made.json',
    }  # fmt: skip
    assert list((finished / 'tensorboard').glob('events.*'))
    assert {path.name for path in (finished / 'checkpoints').iterdir()} == {'4', '6'}
    assert {path.name for path in stage(finished).iterdir()} >= {'config.gin', 'metrics.jsonl', 'export', 'result.json'}
    result = json.loads((finished / 'result.json').read_text(encoding='utf-8'))
    assert result['simulated'] is True and list(result['comparisons']['d-RLAIF vs SFT']) == ['raters', 'oracle']


def test_metrics_have_the_names_that_people_look_for(finished):
    before, *rows = lines(finished / 'metrics.jsonl')
    assert before['step'] == -1 and before['eval/kl'] == pytest.approx(0, abs=1e-4)  # what SFT is like
    assert [row['step'] for row in rows] == list(range(RL_STEPS))
    for row in rows:
        assert set(row) >= {
            'objective/kl', 'objective/scores', 'objective/rlhf_reward', 'objective/entropy', 'loss/policy',
            'loss/value', 'val/num_eos_tokens', 'completions/mean_length', 'sampler/mismatch',
        }  # fmt: skip
        assert row['sampler/mismatch'] < 1e-4 and row['skipped/policy'] == 0 == row['val/unscorable']
    assert abs(rows[0]['objective/kl']) < 1e-4 < abs(rows[-1]['objective/kl'])
    assert [row['step'] for row in rows if 'eval/score' in row] == [2, 5]
    samples = [json.loads(line) for line in (finished / 'samples.jsonl').read_text(encoding='utf-8').splitlines()]
    assert set(samples[0]) == {'step', 'prompt', 'sft', 'policy', 'score'} and {s['step'] for s in samples} == {3, 6}
    assert len([row['sft/loss'] for row in lines(stage(finished) / 'metrics.jsonl')]) == SFT_STEPS


def test_the_export_is_read_by_transformers_and_by_us(finished, models):
    from transformers import AutoConfig, AutoTokenizer

    words = AutoTokenizer.from_pretrained(finished / 'export')
    assert words.decode(words(' my sister')['input_ids']) == ' my sister'
    assert AutoConfig.from_pretrained(finished / 'export').hidden_size == 16
    trained, before = hf.load(finished / 'export'), hf.load(models / 'policy')
    assert trained.config == before.config
    assert any((trained.params[name] != before.params[name]).any() for name in before.params)


def test_a_finished_run_says_what_to_look_at_first_and_a_command_that_goes_on(finished, tmp_path, monkeypatch, capsys):
    launcher.look('tldr_direct', None, finished, json.loads((finished / 'result.json').read_text(encoding='utf-8')))
    place, *looked, _, command = capsys.readouterr().out.splitlines()
    files = [line.split()[0] for line in looked]
    assert str(finished) in place and files[:2] == ['report.html', 'test_samples.md'] and len(files) <= 3
    assert all((finished / file).exists() for file in files)
    python, program, *arguments = shlex.split(command)
    assert python == 'python' and Path(program).resolve() == Path(sweep.__file__)
    points = sweep.plan(launcher.read_flags(sweep.parser(), arguments))[1]
    assert [point.bindings for point in points] == [{'seed': seed} for seed in range(3)]
    for text in [(finished / 'config.gin').read_text(encoding='utf-8'), *(point.text for point in points)]:
        values = {path: value for path, value in parse(text).items() if not path.endswith('seed')}
        assert values == {path: value for path, value in points[0].values.items() if not path.endswith('seed')}


def test_a_finished_run_is_not_run_again(finished, command, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob('*') if path.name != '.lock'}
    assert launcher.main(command(finished)) == 0
    printed, report = capsys.readouterr().out, (finished / 'report.txt').read_text(encoding='utf-8')
    assert 'already finished' in printed and report.rstrip() in printed
    assert re.search(r'd-RLAIF vs SFT\s+raters +\d+\.\d \[', report) and 'step' not in report
    assert {path: path.stat().st_mtime_ns for path in before} == before
    page = (finished / 'report.html').read_bytes()
    (finished / 'report.html').unlink()
    assert launcher.main(command(finished)) == 0 and (finished / 'report.html').read_bytes() == page
    assert all(word in page.decode() for word in ('d-RLAIF vs SFT', 'reinforce.steps', 'How training went', 'jaxlib'))


# Again


def test_config_gin_repeats_a_run(finished, tmp_path, capsys):
    again = tmp_path / 'again'
    assert launcher.main([f'--bindings={finished}/config.gin', f'--workdir={again}']) == 0
    assert (again / 'config.gin').read_text(encoding='utf-8') == (finished / 'config.gin').read_text(encoding='utf-8')
    same(again, finished)


def test_a_seed_on_the_command_line_is_that_of_a_repeated_config_too(finished):
    def config(*more: str) -> dict:
        flags = launcher.parser().parse_intermixed_args([f'--bindings={finished}/config.gin', *more])
        return parse(launcher.read_config(flags)[2])

    plain, other = config(), config('--seed=7', 'sft.seed=3')
    changed = {path: value for path, value in other.items() if plain[path] != value}
    assert changed == {'sft.seed': 3, 'reinforce.seed': 7, 'evaluation.seed': 7}


def test_experiments_with_the_same_sft_config_share_the_sft_policy(finished, command, capsys):
    folder, share = finished.parent / 'sft', f'--stages={finished / "stages"}'
    stages.told.clear()  # as in another process
    assert launcher.main([*command(folder, experiment='tldr_sft'), share]) == 0
    assert re.search(f'sft: .*{stage(finished)}', capsys.readouterr().out.replace('\n', ''))
    assert (folder / 'export/model.safetensors').read_bytes() == (
        stage(finished) / 'export/model.safetensors'
    ).read_bytes()
    for change in ('sft.seed=1', 'data.train=32', 'reinforce.max_new_tokens=5'):
        assert launcher.main([*command(finished.parent / 'other', change), share, '--dry_run']) == 0
        assert 'done, reused' not in capsys.readouterr().out
    assert launcher.main([*command(finished.parent / 'other', 'reinforce.beta=0.1'), share, '--dry_run']) == 0
    assert 'done, reused' in capsys.readouterr().out


@pytest.mark.nightly
def test_stages_on_eight_devices_are_those_on_one(finished, command, tmp_path):
    """All of fine-tuning; of REINFORCE the first step, behind which rounding may choose another token."""
    mesh = ('mesh.data=2', 'mesh.fsdp=2', 'mesh.tensor=2', 'evaluation.prompts=8', 'evaluation.batch=8')
    tuned, reinforced = tmp_path / 'sft', finished.parent / 'eight'
    assert launcher.main(command(tuned, *mesh, experiment='tldr_sft')) == 0
    assert launcher.main(command(reinforced, *mesh, 'reinforce.steps=1')) == 0
    for found, wanted, rows in ((stage(tuned), stage(finished), SFT_STEPS), (reinforced, finished, 1)):
        pairs = list(zip(lines(found / 'metrics.jsonl'), lines(wanted / 'metrics.jsonl')))[:rows]
        assert len(pairs) == rows
        for a, b in pairs:
            assert {name: a[name] for name in b} == pytest.approx(b, abs=1e-3 if rows > 1 else 1e-4)


# Stopped, and gone on


class At:
    """Sends a signal to this process when a metric of that name is written at that step."""

    def __init__(self, monkeypatch, name: str, step: int, number: int) -> None:
        write = log.Metrics.write

        def noticed(metrics, at, values):
            write(metrics, at, values)
            if at == step and name in values:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(log.Metrics, 'write', noticed)


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_saves_and_goes_on_bit_for_bit(finished, command, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'run'
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stops = (('sft/loss', 3, signal.SIGTERM, 'sft: stopped .* 5 of 8'),  # as metrics are written a step late
             ('objective/kl', 2, signal.SIGINT, 'reinforce: stopped .* 3 of 6'))  # fmt: skip
    for name, step, number, message in stops:
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
            At(patch, name, step, number)
            launcher.main(command(folder))
        assert left.value.code == 130
        assert re.search(f'{message}; .*same command', capsys.readouterr().out)
        assert not (folder / 'result.json').exists()
    assert launcher.main([*command(folder), 'reinforce.save_every=4', 'sft.log_every=3']) == 0  # they only observe
    assert re.search('reinforce: going on .* 3 of 6', capsys.readouterr().out)
    same(folder, finished)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_what_a_crash_leaves_half_written_is_ignored(finished, command, tmp_path, capsys):
    shutil.copytree(finished.parent, tmp_path / 'root', symlinks=True)
    folder = tmp_path / 'root' / 'run'
    made = (folder / 'export').resolve().parent  # the stage that the run shows as its own
    for path in (folder, made):
        (path / 'result.json').unlink()
    shutil.rmtree(made / 'export')
    steps = made / 'checkpoints'
    (steps / '6').rename(steps / '6.orbax-checkpoint-tmp-7')
    shutil.copytree(steps / '4', steps / '5')
    (steps / '5' / 'sizes.json').unlink()
    with open(folder / 'metrics.jsonl', 'r+', encoding='utf-8') as file:
        file.truncate((folder / 'metrics.jsonl').stat().st_size - 100)
    assert launcher.main(command(folder)) == 0
    printed = capsys.readouterr().out
    assert re.search('(?s)/checkpoints/5 .*damaged.*reinforce: going on .* 4 of 6', printed)
    same(folder, finished)


def start(arguments: list[str], out: Path) -> subprocess.Popen:
    with open(out, 'w', encoding='utf-8') as file:
        return subprocess.Popen(
            [sys.executable, str(ROOT / 'launch/run.py'), *arguments], stdout=file, stderr=subprocess.STDOUT
        )


def wait_for(process: subprocess.Popen, ready) -> None:
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.003)


def count(path: Path) -> int:
    return len(path.read_text(encoding='utf-8').splitlines()) if path.exists() else 0


@pytest.mark.nightly
def test_a_run_killed_at_any_step_goes_on_bit_for_bit(finished, command, tmp_path):
    """Asked to end before its first step, then killed with SIGKILL while it fine-tunes, then while it reinforces."""
    folder, out, rng = tmp_path / 'run', tmp_path / 'out.txt', random.Random(0)
    arguments = command(folder)

    process = start(arguments, out)
    wait_for(process, lambda: 'plan' in out.read_text(encoding='utf-8'))
    process.terminate()
    assert process.wait(60) == 130 and 'the same command' in out.read_text(encoding='utf-8').lower()

    for of_stage, steps, before in ((stage, SFT_STEPS, 0), (lambda folder: folder, RL_STEPS, 1)):  # a line of SFT
        step = rng.randrange(3, steps - 1)
        process = start(arguments, out)
        while process.poll() is None:
            time.sleep(0.003)
            if any(folder.glob('stages/sft-*')) and count(of_stage(folder) / 'metrics.jsonl') >= step + before:
                process.kill()
        assert process.wait() == -signal.SIGKILL, out.read_text(encoding='utf-8')
        assert not (folder / 'result.json').exists()

    process = start(arguments, out)
    assert process.wait(120) == 0, out.read_text(encoding='utf-8')
    went_on = 'reinforce: going on ' in out.read_text(encoding='utf-8')
    assert went_on or count(folder / 'metrics.jsonl') == RL_STEPS + 1
    same(folder, finished)


# Bad input


def damaged(models: Path, folder: Path, how: str) -> Path:
    """A copy of the policy's directory, damaged."""
    copy = shutil.copytree(models / 'policy', folder / how.replace(' ', '_'))
    weights, config = copy / 'model.safetensors', copy / 'config.json'
    match how:
        case 'torn':
            os.truncate(weights, weights.stat().st_size // 2)
        case 'a pickle':
            weights.rename(copy / 'pytorch_model.bin')
        case 'of another architecture':
            config.write_text(config.read_text(encoding='utf-8').replace('"llama"', '"mamba"'), encoding='utf-8')
        case 'of other sizes':
            config.write_text(
                config.read_text(encoding='utf-8').replace('"intermediate_size": 32', '"intermediate_size": 48'),
                encoding='utf-8',
            )
        case 'without a tokenizer':
            (copy / 'tokenizer.json').unlink()
        case 'with a torn tokenizer':
            os.truncate(copy / 'tokenizer.json', 1000)
        case 'with a torn config':
            os.truncate(config, 50)
    return copy


CHECKPOINTS = {
    'torn': r'/model\.safetensors: .*fetch it again',
    'a pickle': r'pytorch_model\.bin .*pickle.*safetensors',
    'of another architecture': r"/config\.json: model_type = 'mamba' .* llama",
    'of other sizes': r'gate_proj\.weight .*\(32, 16\).*config\.json .*\(48, 16\)',
    'without a tokenizer': r'no tokenizer\.json',
    'with a torn tokenizer': r'tokenizer .*fetch',
    'with a torn config': r'/config\.json: .*JSON.*fetch',
}


@pytest.mark.parametrize('role', ['policy', 'same_size_labeler'])
@pytest.mark.parametrize('how', CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_used_is_refused_before_anything_runs(how, role, models, command, tmp_path, capsys):
    folder = damaged(models, tmp_path, how)
    assert launcher.main(command(tmp_path / 'run', f'{role}={folder}')) == 2
    told = capsys.readouterr().err
    assert re.search(CHECKPOINTS[how], told) and str(folder) in told
    assert not (tmp_path / 'run').exists()


BAD = {  # what is typed -> what is said
    'sft.bach=8': r'sft\.bach: .* sft\.batch\b',
    'reinforce.beta=high': r"reinforce\.beta: .*float.* 'high'",
    'reinforce.beta=2.0': r'reinforce: beta = 2\.0 .*\[0, 1\]',
    'reinforce.steps=2.5': r'reinforce\.steps: .*int.* 2\.5',
    'reinforce.batch=-8': r'reinforce: batch .*positive.* -8',
    'reinforce.baseline=vlaue': r"reinforce\.baseline: .*'vlaue'.* 'value'",
    'reinforce.parts=3': r'reinforce: batch = 8 .* 3 .*parts',
    'sft.batch=72': r'sft\.batch = 72 .*data\.train = 64',
    'reinforce.max_new_tokens=400': r'/policy .*512.*max_new_tokens',
    'dtype=float16': r"dtype: .*'float32' \| 'bfloat16'.*'float16'",
    'data.source=micro_tdlr': r"'micro_tdlr'.* micro_tldr\b",
    'evaluation.judge=raters2': r'raters2: .* micro_l, micro_s, micro_xs',
    'policy=micro_xz': r'micro_xz: .* micro_xs\b',
    'policy=/nowhere/at/all': r'/nowhere/at/all: .* micro_l, micro_s, micro_xs',
    'mesh.data=16': r"mesh: \{'data': 16.* 16 devices.* 8 ",
    'mesh.data=0': r'mesh: .*positive.* 0 ',
    'just words': r"'just words' .*path\.to\.field=value",
    'scale=mikro': r"'mikro'.* micro\?",
    'scale=3': r"'3'.* Scales: micro, ",
    '--scale=gemma': r"'gemma'.* gemma2\?",
    '--seed=-1': r'--seed=-1: .* 0 ',
}


@pytest.mark.parametrize('typed', BAD)
def test_bad_input_is_named_with_the_nearest_right_thing_and_nothing_is_written(typed, command, tmp_path, capsys):
    assert launcher.main(command(tmp_path / 'run', typed)) == 2
    told = capsys.readouterr()
    assert told.err.startswith('error: ') and re.search(BAD[typed], told.err.replace('\n', ' ')), told.err
    assert 'Traceback' not in told.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], '--experiment=NAME.* tldr_direct,'),
        (['--experiment=tldr_drect'], "'tldr_drect'.* tldr_direct\\b"),
        (['experiment=7'], "'7'.*--list"),
        (['tldr_drect', 'sft.steps=3'], "'tldr_drect'.* tldr_direct\\b"),
        (['--experiment=tldr_sft', 'tldr_direct'], r"'tldr_direct' .*path\.to\.field=value"),
        (['--experiment=tldr_sft', '--bindings=/nowhere.gin'], '--bindings=/nowhere.gin: No such file'),
        (['--experiment=tldr_sft', '--bindings=.'], '--bindings=.: Is a directory'),
        ([f'--bindings={GOLDEN}/tldr_sft-mikro.gin'], r'tldr_sft-micro\.gin\?'),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert launcher.main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    'text, message',
    [
        (b'sft.steps = 3\nsft.steps : 4\n', r"bad\.gin:2: .*'sft\.steps : 4'.*path\.to\.field = value"),
        (b'sft.steps = 3\nsft.steps = 4\n', r'bad\.gin:2: sft\.steps .*line 1'),
        (b'sft.stesp = 3\n', r'sft\.stesp: .* sft\.steps\b'),
        (b'mesh.data = (1,\n', r'bad\.gin:1: .*bracket'),
        (b'\xff\xfe\x00', r'--bindings=.*bad\.gin: '),
    ],
)
def test_a_file_of_bindings_that_is_wrong_is_named_with_its_line(text, message, command, tmp_path, capsys):
    (tmp_path / 'bad.gin').write_bytes(text)
    assert launcher.main([*command(tmp_path / 'run'), f'--bindings={tmp_path}/bad.gin']) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('stage', ['sft', 'reinforce', 'rating', 'evaluation'])
def test_a_batch_that_the_mesh_does_not_divide_is_named_before_anything_runs(stage, command, tmp_path, capsys):
    batches = ('rating.batch=16', 'evaluation.batch=16', 'sft.batch=16', 'reinforce.batch=16')
    changes = [change for change in batches if not change.startswith(stage)] + [f'{stage}.batch=12', 'mesh.data=8']
    assert launcher.main(command(tmp_path / 'run', *changes)) == 2
    assert re.search(rf'{stage}\.batch = 12: .* 8; .* 8 or 16$', capsys.readouterr().err.rstrip())
    assert not (tmp_path / 'run').exists()


def test_a_folder_of_another_config_is_left_as_it_is(finished, command, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob('*') if path.name != '.lock'}
    assert launcher.main(command(finished, 'reinforce.beta=0.5')) == 2
    told = capsys.readouterr().err
    assert re.search(rf'(?s){finished} .*reinforce\.beta: 0\.05 .* 0\.5 .*--workdir', told)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_corrected_command_finds_the_folder_free(command, tmp_path, capsys):
    assert launcher.main(command(tmp_path / 'run', 'mesh.data=16')) == 2
    assert launcher.main([*command(tmp_path / 'run'), '--dry_run']) == 0


def test_a_place_that_cannot_be_written_is_named(command, tmp_path, capsys):
    (tmp_path / 'file').write_text('', encoding='utf-8')
    assert launcher.main(command(tmp_path / 'file' / 'run')) == 2
    assert re.search(r'/file/run: .*Not a directory.*--workdir', capsys.readouterr().err)


def test_a_folder_that_was_removed_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / 'gone').mkdir()
    monkeypatch.chdir(tmp_path / 'gone')
    (tmp_path / 'gone').rmdir()
    assert launcher.main(['tldr_direct']) == sweep.main(['tldr_direct', '--seed=[0,1]']) == 2
    assert capsys.readouterr().err.count('was removed') == 2


def test_a_full_disk_is_said_with_the_file(command, tmp_path, monkeypatch, capsys):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    assert launcher.main(command(tmp_path / 'run')) == 74
    assert 'run/config.gin: No space left' in ''.join(capsys.readouterr().err.split('\n'))


@pytest.mark.parametrize(
    'name, status',
    [
        *((name, 74) for name in ('ENOSPC', 'EDQUOT', 'EIO', 'ESTALE', 'ETIMEDOUT')),
        *((name, 2) for name in ('EACCES', 'EROFS', 'EISDIR', 'EFBIG')),
        ('ENOENT', None),
    ],
)
def test_what_the_system_refuses_at_any_moment_is_said(name, status, command, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(getattr(errno, name), 'of the system', 'some/file')

    monkeypatch.setattr('rlaif_jax.folder.open_folder', refuse)
    if status is None:  # a fault of ours
        with pytest.raises(FileNotFoundError):
            launcher.main(command(tmp_path / 'run'))
    else:
        assert launcher.main(command(tmp_path / 'run')) == status
        assert 'some/file: of the system' in capsys.readouterr().err


def test_a_labeler_that_gives_no_ratings_stops_the_run_and_keeps_the_sft_policy(finished, command, capsys):
    folder = finished.parent / 'strict'
    assert launcher.main(command(folder, 'rating.least_mass=0.9')) == 2
    told = capsys.readouterr().err
    assert 'labeler' in told and 'rating.least_mass' in told and 'mass' in told
    assert (stage(finished) / 'result.json').exists() and not (folder / 'result.json').exists()


@pytest.mark.parametrize(
    'arguments, status, says',
    [(['--help'], 0, '--dry_run'), (['--seed=one'], 2, 'invalid int'), (['--seed'], 2, 'one argument')],
)
def test_flags_are_those_of_argparse(arguments, status, says, capsys):
    with pytest.raises(SystemExit) as left:
        launcher.main(arguments)
    assert left.value.code == status
    printed = capsys.readouterr()
    assert says in (printed.err if status else printed.out)


@pytest.mark.parametrize(
    'flag', ['experiment', 'scale', 'seed', 'workdir', 'bindings', 'dry_run', 'wandb', 'list', 'help']
)
def test_a_misspelt_flag_gets_the_nearest_right_one(flag, capsys):
    for i in range(1, len(flag)):  # one letter left out
        typed = f'--{flag[:i]}{flag[i + 1 :]}'
        for arguments in ([f'{typed}=1', '--experiment=tldr_sft'], ['sft.steps=3', typed, 'tldr_sft']):
            assert launcher.main(arguments) == 2
            assert re.search(rf'{typed}\b.* --{flag}\?', capsys.readouterr().err)
    assert launcher.main([f'--{flag[:3]}']) == 2  # nor is one abbreviated
    assert re.search(rf'--{flag[:3]}\b.* --{flag}\?', capsys.readouterr().err)


# Without running


def test_list_names_every_experiment_in_a_line(capsys):
    assert launcher.main(['--list']) == 0
    printed = capsys.readouterr().out.splitlines()
    titles, listed = ([line for line in printed if line.startswith('  ') == inner] for inner in (False, True))
    assert titles == list(experiments.grouped()) and printed[0] == titles[0]
    assert [line.split()[0] for line in listed] == list(experiments.experiments())
    assert all(len(line.split()) > 3 and 'Cost' in line for line in listed)
    assert len({re.match(r' +\S+ +', line).end() for line in listed}) == 1  # what they are stands below each other


def test_without_docstrings_there_are_as_many_experiments():
    code = 'import experiments; print(*experiments.experiments())'
    listed = subprocess.run(
        [sys.executable, '-OO', '-c', code], cwd=ROOT, capture_output=True, encoding='utf-8', check=True
    )
    assert listed.stdout.split() == list(experiments.experiments())


@pytest.mark.parametrize('name', experiments.experiments())
def test_every_field_says_what_it_is(name):
    rows = config.explain(experiments.find(name)(SCALES['micro']))
    assert not [path for path, *_, said in rows if not said]
    literals = {path: literal for path, _, literal, _ in rows if literal}
    assert literals == {path: literal for path, _, literal in config.help_text(experiments.find(name)(SCALES['micro']))}


@pytest.mark.parametrize(
    'typed, shown',
    [
        ('reinforce.parts', {'reinforce.parts'}),
        ('reinforce.lora', {'reinforce.lora', 'reinforce.lora.rank', 'reinforce.lora.alpha', 'reinforce.lora.targets'}),
        ('curriculum.naming', {'curriculum.naming'}),  # which few experiments have
    ],
)
def test_a_field_is_explained_with_all_below_it(typed, shown, capsys):
    assert launcher.main(['--explain', typed]) == 0
    title, *printed = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in printed if not line.startswith(' ')} == shown
    assert sum(line.startswith('    ') for line in printed) >= len(shown)
    assert launcher.main(['--explain', typed + 'x', 'micro_pretrain_s' if 'naming' in typed else 'tldr_direct']) == 2
    assert re.search(rf'{typed}x: .* {typed}\?', capsys.readouterr().err)


def test_an_experiment_is_explained_with_all_its_fields(capsys):
    """Also where other experiments have a field of its name."""
    for name in ('paper', 'label'):
        assert launcher.main(['--explain', name]) == 0
        printed = capsys.readouterr().out
        assert f'--experiment={name}' in printed
        paths = [row[0] for row in config.explain(experiments.find(name)(SCALES['micro']))]
        assert paths and all(f'\n{path} ' in printed for path in paths)


@pytest.mark.parametrize('arguments', [['tldr_direct', '--dry-run'], ['--dry_run', 'sft.steps=3', 'tldr_direct']])
def test_a_bare_word_is_the_experiment_and_a_hyphen_in_a_flag_an_underscore(arguments):
    flags = launcher.read_flags(launcher.parser(), arguments)
    assert flags.dry_run and flags.experiment == 'tldr_direct' and 'tldr_direct' not in flags.binding


def test_a_dry_run_says_everything_and_writes_nothing(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = command(tmp_path / 'run', 'mesh.data=2', 'mesh.fsdp=-1', 'reinforce.beta=0.125')
    assert launcher.main([*arguments, '--dry_run']) == 0
    printed = capsys.readouterr().out
    for said in (
        'reinforce.beta = 0.125', '8 device(s) of kind cpu', 'data 2 × fsdp 4 × tensor 1', 'float32', 'SIMULATED',
        '0.02 M', 'MiB', 'sft', 'reinforce', 'evaluation', 'to do', 'nothing was written',
    ):  # fmt: skip
        assert said in printed, said
    assert not list(tmp_path.iterdir())
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.gin').write_text('hi', encoding='utf-8')
    for folder, said in ((tmp_path / 'run', 'no config of a run'), (tmp_path / 'run' / 'config.gin', 'is a file')):
        assert launcher.main([*command(folder), '--dry_run']) == 2
        assert said in capsys.readouterr().err.replace('\n', ' ')


@pytest.mark.parametrize('name, scale', EVERY)
def test_every_config_survives_its_text(name, scale):
    config = experiments.find(name)(SCALES[scale], 3)
    other = experiments.find(name)(SCALES[scale], 4)
    assert bind(other, parse(dump(config))) == config
    assert config != other or name in ('score', 'agreement')  # which draw nothing


@pytest.mark.parametrize('name, scale', PINNED)
def test_every_config_is_pinned(name, scale):
    """Golden files: a default that moves is seen, and someone has to mean it."""
    path = GOLDEN / f'{name}-{scale}.gin'
    flags = launcher.parser().parse_intermixed_args([f'--experiment={name}', f'--scale={scale}'])
    text = launcher.read_config(flags)[2]
    if os.environ.get('RLAIF_REGENERATE_GOLDEN'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    assert path.exists() and text == path.read_text(encoding='utf-8'), (
        f'{path} differs; RLAIF_REGENERATE_GOLDEN=1 rewrites it'
    )


def test_no_golden_config_is_left_over():
    assert {path.stem for path in GOLDEN.glob('*')} == {f'{name}-{scale}' for name, scale in PINNED}


@pytest.mark.parametrize('name', experiments.experiments())
def test_every_experiment_says_what_it_is(name):
    about = experiments.find(name).__doc__
    assert f'--experiment={name}' in about and len(experiments.summary(experiments.find(name))) < 200


def test_an_experiment_does_not_know_its_scale():
    """tldr.py is the same at every scale: `micro` is in its docstrings only."""
    tree = ast.parse((ROOT / 'experiments/tldr.py').read_text(encoding='utf-8'))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body[0].value.value = ''
    assert 'micro' not in ast.unparse(tree)


def test_seeds_make_runs_of_their_own(command):
    assert folder_name() == 'tldr_sft-micro-s0' and folder_name('--seed=1') == 'tldr_sft-micro-s1'
    assert folder_name('sft.steps=7').startswith('tldr_sft-micro-s0-')


def folder_name(*more: str) -> str:
    flags = launcher.parser().parse_intermixed_args(['--experiment=tldr_sft', *more])
    return launcher.default_folder(flags, *launcher.read_config(flags)).name


def test_a_folder_stands_for_the_config_however_it_was_typed(tmp_path):
    rate, steps = 'sft.optimizer.learning_rate', 'sft.steps'
    (tmp_path / 'same.gin').write_text(f'{rate} = 1e-1  # as below\n', encoding='utf-8')
    ways = (
        [f'{rate}=0.1', f'{steps}=7'], [f'{steps}=7', f'{rate}=0.10'], [f'{rate}=1e-1', f'{steps}=7', 'sft.batch=64'],
        [f'--bindings={tmp_path}/same.gin', f'{steps}=7'],
    )  # fmt: skip
    assert len({folder_name(*way) for way in ways}) == 1 != len({folder_name(), folder_name(*ways[0])})
    plain = parse(launcher.read_config(launcher.parser().parse_intermixed_args(['--experiment=tldr_sft']))[2])
    assert folder_name(f'{steps}={plain[steps]}', f'{rate}={plain[rate]:.9f}') == folder_name() == 'tldr_sft-micro-s0'


@pytest.mark.parametrize(
    'bindings',
    [
        ['--experiment=tldr_direct', 'data.source={}'],
        ['--experiment=reward_model', 'input={}'],
        ['--experiment=compare', 'prompts={}'],
        ['--experiment=compare', 'responses={}', 'rankings={}'],
    ],
)
def test_a_folder_stands_for_the_data_too(bindings, tmp_path):
    path, found = tmp_path / 'mine.jsonl', []
    for i, text in enumerate(('{}', '[]', '{}')):
        path.write_text(text, encoding='utf-8')
        os.utime(path, (i, i))  # nobody types as quickly as a test
        found.append(folder_name(*(binding.format(path) for binding in bindings)))
    assert found[0] == found[2] != found[1]


def test_the_metrics_of_the_first_step_are_those_of_an_unmoved_policy(finished):
    row = lines(finished / 'metrics.jsonl')[1]
    beta = parse((finished / 'config.gin').read_text(encoding='utf-8'))['reinforce.beta']
    np.testing.assert_allclose(row['objective/rlhf_reward'], (1 - beta) * row['objective/scores'], atol=1e-5)
