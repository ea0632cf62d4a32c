"""Laws of jobs: what a cluster is given is pinned, runs under a stand-in for SLURM, and ends as a run that nobody stopped.

RLAIF_REGENERATE_GOLDEN=1 pytest tests/launch/test_submit.py rewrites the jobs in tests/golden/jobs.
"""

from __future__ import annotations

import filecmp
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from together import HEARTBEAT, printed, together

from launch import run as launcher
from launch import submit, sweep
from rlaif_jax import paths

ROOT = Path(launcher.__file__).resolve().parents[1]
GOLDEN = ROOT / 'tests' / 'golden' / 'jobs'
SITE = """
[slurm]
python = "python"
account = "lab"
container = "nvcr.io/nvidia/jax:latest"
mounts = "/shared:/shared"
before = ["module load cuda", "export HF_HOME=/shared/hf"]
programs = "/shared/programs"
set = ["mem=0", "exclusive"]

[sky]
bucket = "my-runs"
infra = "gcp/us-central1"
"""
POINTS = ['--experiment=tldr_direct', 'reinforce.beta=[0.0,0.5]', '--seed=[0,1]', '--workdir=runs/sweep']
CASES = {
    'one.sh': ['--to=slurm', '--experiment=tldr_direct', '--workdir=runs/one', 'policy="a b"'],
    'several.sh': [
        '--to=slurm', '--experiment=tldr_rlaif', '--site=site.toml', '--nodes=2', '--gpus=8', '--accelerator=h100',
        '--time=24:00:00', '--set', 'qos=high', '--set', 'partition=gpu,long', '--set=grace=600', '--set', 'mem=500G',
        'mesh.fsdp=-1',
    ],
    'shards.sh': [
        '--to=slurm', '--experiment=label', '--shards=3', '--parallel=2', '--gpus=4', 'input=pairs.jsonl', 'mesh.data=-1',
    ],
    'points.sh': ['--backend=slurm', *POINTS, '--parallel=2'],
    'slice.yaml': [
        '--to=sky', 'tldr_direct', '--site=site.toml', '--accelerator=v5e-16', '--workdir=runs/one', 'mesh.data=-1',
    ],
    'nodes.yaml': [
        '--to=sky', 'tldr_direct', '--site=site.toml', '--accelerator=H100', '--gpus=8', '--nodes=2', '--workdir=runs/one',
        '--retries=1', '--set', 'disk_size=512', '--set', 'spot=False', 'mesh.data=-1',
    ],
    'points.yaml': ['--backend=sky', '--site=site.toml', '--accelerator=v6e-8', *POINTS, 'mesh.data=-1'],
}  # fmt: skip


def given(arguments: list[str]) -> int:
    """What the program returns that takes these arguments."""
    return (sweep if any('--backend' in word for word in arguments) else submit).main(arguments)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to submit from, of somebody who has said nothing once for all."""
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'site.toml').write_text(SITE, encoding='utf-8')
    return tmp_path


def written(folder: Path) -> Path:
    """The one job below a folder."""
    (file,) = [path for path in folder.rglob('runs/*.job/*') if path.suffix in ('.sh', '.yaml') and path.is_file()]
    return file


# What is written


@pytest.mark.parametrize('case', CASES)
def test_every_job_is_pinned(case, here, capsys):
    """Golden files: a line that moves is seen, and someone has to mean it."""
    assert given(CASES[case]) == 0
    text = written(here).read_text(encoding='utf-8')
    said = capsys.readouterr().out
    assert text in said and written(here).name in said
    for ours, name in ((os.path.relpath(ROOT), '/clone'), (str(ROOT), '/clone'), (str(here), '/here')):
        text = text.replace(ours, name)
    text = text.replace(sys.executable, 'python')
    path = GOLDEN / case
    if os.environ.get('RLAIF_REGENERATE_GOLDEN'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    assert path.exists() and text == path.read_text(encoding='utf-8'), (
        f'{path} differs; RLAIF_REGENERATE_GOLDEN=1 rewrites it'
    )


def test_no_golden_job_is_left_over():
    assert {path.name for path in GOLDEN.glob('*')} == {*CASES}


def scripts(case: str) -> list[str]:
    """The shell of a golden job."""
    text = (GOLDEN / case).read_text(encoding='utf-8')
    if case.endswith('.sh'):
        return [text]
    job = yaml.safe_load(text)
    return [job['setup'], job['run']]


@pytest.mark.parametrize('case', CASES)
def test_every_job_is_shell(case):
    for script in scripts(case):
        assert subprocess.run(['bash', '-n'], input=script, encoding='utf-8', capture_output=True).stderr == ''


KEYS = {
    '': {'name', 'num_nodes', 'resources', 'workdir', 'file_mounts', 'envs', 'setup', 'run'},
    'resources': {'infra', 'accelerators', 'accelerator_args', 'use_spot', 'job_recovery', 'disk_size'},
    'accelerator_args': {'runtime_version', 'gcp_queued_resource'},
    'job_recovery': {'max_restarts_on_errors', 'recover_on_exit_codes'},
}


@pytest.mark.parametrize('case', [case for case in CASES if case.endswith('.yaml')])
def test_skypilot_knows_every_key(case):
    job = yaml.safe_load((GOLDEN / case).read_text(encoding='utf-8'))
    asked = job['resources']
    assert job.keys() <= KEYS[''] and asked.keys() <= KEYS['resources']
    for name in ('accelerator_args', 'job_recovery'):
        assert asked.get(name, {}).keys() <= KEYS[name]


@pytest.mark.parametrize('case', [case for case in CASES if case.endswith('.yaml')])
def test_skypilot_takes_it(case):
    schemas = pytest.importorskip('sky.utils.schemas', reason='skypilot is not installed')
    import jsonschema

    job = yaml.safe_load((GOLDEN / case).read_text(encoding='utf-8'))
    jsonschema.validate(job, schemas.get_task_schema())
    jsonschema.validate(job['resources'], schemas.get_resources_schema())
    for mount in job['file_mounts'].values():
        jsonschema.validate(mount, schemas.get_storage_schema())


def test_a_file_that_is_not_here_is_told_and_the_job_is_written(here, capsys):
    typed = ['--to=slurm', '--experiment=label', '--workdir=runs/one', 'input=pairs.jsonl']
    assert submit.main(typed) == 0 and 'input=pairs.jsonl is not here' in capsys.readouterr().out
    assert submit.main([*typed[:2], '--workdir=runs/two', 'input="$ELSEWHERE/in.jsonl"']) == 0
    assert 'in.jsonl is not here' in capsys.readouterr().out
    (here / 'pairs.jsonl').touch()
    assert submit.main(typed) == 0 and 'is not here' not in capsys.readouterr().out


def test_a_run_of_the_same_folder_is_not_refused(here, capsys):
    """The job lies beside it, and is rewritten only where nobody has changed it."""
    line = ['--to=slurm', '--experiment=tldr_direct', '--workdir=runs/one', 'mesh.data=-1']
    assert given(line) == 0 == given([*line, '--gpus=2'])
    assert not (here / 'runs' / 'one').exists()
    file = written(here)
    assert '--gpus-per-node=2' in file.read_text(encoding='utf-8')
    file.write_text('mine', encoding='utf-8')
    assert given(line) == 2
    assert file.read_text(encoding='utf-8') == 'mine' and 'slurm.sh' in capsys.readouterr().err


# Bad input


BAD = {  # what is typed -> what is said
    '--experiment=tldr_direct': '--to=slurm .*--to=sky',
    '--to=slurm --experiment=tldr_drect': "'tldr_drect'.* tldr_direct\\b",
    '--to=slurm tldr_direct sft.stps=4': r'sft\.stps: .* sft\.steps\b',
    '--to=slurm tldr_direct sft.steps=-4': 'sft: steps .*positive.* -4 ',
    '--to=slurm tldr_direct --gpu=4': r'--gpu\b.* --gpus\b',
    '--to=slurm tldr_direct --gpus=-1': '--to=slurm: gpus .* -1 ',
    '--to=slurm tldr_direct --nodes=0': '--to=slurm: nodes .* 0 ',
    '--to=slurm tldr_direct --site=nowhere.toml': r'nowhere\.toml: ',
    '--to=slurm tldr_direct --go': '--go: .* sbatch ',
    '--to=slurm tldr_direct --shards=1': '--shards=1',
    '--to=slurm tldr_direct --parallel=2': '--parallel=2: .* --shards ',
    '--to=slurm tldr_direct --shards=4 --parallel=0': '--parallel=0',
    '--to=slurm tldr_direct --shards=4 --nodes=2': '--nodes=2',
    '--to=slurm tldr_direct --set grace=soon': "grace: .*int.* 'soon'",
    '--to=sky tldr_direct --accelerator=v5e-16': r'--set bucket=NAME.*\[sky\]',
    '--to=sky tldr_direct --set bucket=b': '--accelerator=v5e-16',
    '--to=slurm tldr_direct --gpus=2 mesh.data=1': 'mesh.data=-1',
    '--to=slurm tldr_direct --nodes=3 --gpus=8 mesh.data=-1': r'sft\.batch = 64: .* 24; .* 48 or 72 ',
    '--to=sky tldr_direct --set bucket=b --accelerator=v5e-20 mesh.data=-1': '=v5e-20: .* v5e-16 ',
    '--to=sky --experiment=label --set bucket=b --accelerator=v5e-1 input=a.jsonl output=b.jsonl': r'=/bucket/b\.jsonl ',
    '--to=sky tldr_direct --set bucket=b --accelerator=v5x-16': '=v5x-16: .* v5p-16 ',
    '--to=sky tldr_direct --set bucket=b --accelerator=v4-8 --nodes=2': '--nodes=2',
    '--to=sky tldr_direct --set bucket=b --accelerator=v4-8 --time=1:00': '--to=sky: time: ',
    '--to=sky tldr_direct --set bucket=b --accelerator=v4-8 --workdir=/run': ' /run: ',
    '--backend=sky --experiment=tldr_direct --seed=[0,1] --parallel=2 --set bucket=b --accelerator=v4-8': '--parallel=2',
    '--backend=slurm --experiment=tldr_direct --seed=[0,1] --site=nowhere.toml': r'nowhere\.toml: ',
    '--backend=slurm --experiment=tldr_direct reinforce.bta=[0.0,0.1]': r'reinforce\.bta: .* reinforce\.beta\b',
}


@pytest.mark.parametrize('typed', BAD)
def test_bad_input_is_named_before_anything_is_written(typed, here, monkeypatch, capsys):
    monkeypatch.setenv('PATH', str(here))
    assert given(typed.split(' ')) == 2
    told = capsys.readouterr().err
    assert told.startswith('error: ') and re.search(BAD[typed], told.replace('\n', ' ')), told
    assert not (here / 'runs').exists() and 'Traceback' not in told


@pytest.mark.parametrize(
    'said, told',
    [
        ('[slurm]\npartitoin = "gpu"', r'\[slurm\]: partitoin: .* partition\b'),
        ('[slrum]\npartition = "gpu"', r'slrum .*\[slurm\]'),
        ('partition = "gpu"', r'partition .*\[slurm\]'),
        ('[slurm]\npartition = 3', r"\[slurm\]: partition: .*str.* 3 .*'3'"),
        ('[slurm]\npartition = gpu', 'line 2'),
    ],
)
def test_the_file_of_the_site_is_checked(said, told, here, capsys):
    file = paths.settings() / 'rlaif_jax' / 'site.toml'
    file.parent.mkdir(parents=True)
    file.write_text(said, encoding='utf-8')
    assert given(['--to=slurm', 'tldr_direct']) == 2
    error = capsys.readouterr().err
    assert re.search(rf'{file}: .*{told}', error) and not (here / 'runs').exists()


# Under a stand-in for SLURM


@pytest.fixture
def queue(here, monkeypatch):
    """The folder of the stand-in's memory; its commands are on the PATH."""
    for name in ('sbatch', 'srun', 'scontrol'):
        file = here / 'bin' / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f'#!{sys.executable}\n' + (ROOT / 'tests/launch/slurm.py').read_text(encoding='utf-8'), encoding='utf-8'
        )
        file.chmod(0o755)
    folder = here / 'queue'
    folder.mkdir()
    monkeypatch.setenv('PATH', f'{here / "bin"}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('QUEUE', str(folder))
    return folder


STUB = """
import json, os, sys
from pathlib import Path

given = dict(argument.lstrip('-').partition('=')[::2] for argument in sys.argv[1:])
folder = Path(given['workdir'])
with open('events', 'a', encoding='utf-8') as file:
    print(given.get('shard', folder.name), os.environ['SLURM_PROCID'], file=file)
statuses = Path(f'statuses-{os.environ["SLURM_PROCID"]}')
if statuses.exists():
    first, *rest = statuses.read_text(encoding='utf-8').split()
    statuses.write_text(' '.join(rest or [first]), encoding='utf-8')
    if first != '0':
        sys.exit(int(first))
folder.mkdir(parents=True, exist_ok=True)
beta = float(given.get('reinforce.beta', 0))
(folder / 'result.json').write_text(json.dumps({'comparisons': {'A vs B': {'raters': {'raw': beta}}}}), encoding='utf-8')
"""


@pytest.fixture
def stub(here, monkeypatch):
    """In place of launch/run.py: it notes its call, ends as the file `statuses-RANK` says, or leaves a result."""
    (here / 'run.py').write_text(STUB, encoding='utf-8')
    monkeypatch.setattr(submit, 'RUN', here / 'run.py')
    return here


def events(folder: Path) -> list[str]:
    return (folder / 'events').read_text(encoding='utf-8').splitlines()


LINE = ['--to=slurm', 'tldr_direct', '--workdir=runs/one', '--go']


@pytest.mark.parametrize(
    'statuses, times',
    [
        ('0', 1),
        ('2', 1),  # bad input stays bad
        ('1', 4),  # three more tries
        ('75 134 0', 3),
        ('130 130 130 130 130 0', 6),  # a run that saves may come back as often as it likes
        ('130 1 130 1 130 1 130 1 130 1', 8),  # and costs no try
    ],
)
def test_an_exit_status_says_whether_it_is_tried_again(statuses, times, queue, stub):
    (stub / 'statuses-0').write_text(statuses, encoding='utf-8')
    assert given(LINE) == 0
    assert events(stub) == ['one 0'] * times


def test_tasks_that_end_one_after_the_other_are_all_waited_for(queue, stub):
    """One that is slower to save is not killed by the end of the first; and the status is all of theirs."""
    slow = STUB.replace(
        'if first !=', 'import time; time.sleep(0.5 * int(os.environ["SLURM_PROCID"]))\n    if first !='
    )
    (stub / 'run.py').write_text(slow, encoding='utf-8')
    for rank in range(2):
        (stub / f'statuses-{rank}').write_text('130 0', encoding='utf-8')
    assert given([*LINE, '--gpus=2', 'mesh.data=-1']) == 0
    assert sorted(events(stub)) == ['one 0', 'one 0', 'one 1', 'one 1'] and not list(stub.rglob('tries-*'))


def test_what_the_cluster_refuses_is_told_by_its_own_status(queue, stub, capfd):
    (queue / 'refuses').touch()
    assert given(LINE) == 3
    assert 'no such partition' in capfd.readouterr().err and not (stub / 'events').exists()


def test_points_of_a_sweep_run_in_waves_that_share_no_unmade_stage_and_then_make_a_table(queue, stub, capsys):
    line = [*POINTS, '--backend=slurm', '--gpus=1']
    assert given(line) == 0 and not (stub / 'events').exists()
    assert given([*line, '--go']) == 0
    names = [f'reinforce.beta={beta},seed={seed}' for beta in (0.0, 0.5) for seed in (0, 1)]
    assert events(stub) == [f'{name} 0' for name in names]
    first, second = ((queue / name).read_text(encoding='utf-8').strip() for name in ('7_0.begins', '9_2.begins'))
    assert (first, second) == ('', 'afterany:7')
    (stub / 'runs/sweep' / names[2] / 'result.json').unlink()
    assert given([*line, '--go']) == 0
    assert events(stub)[4:] == [f'{names[2]} 0']  # alone, as the rest has finished
    capsys.readouterr()
    assert given(line) == 0 and 'launch/sweep.py' in capsys.readouterr().out
    assert sweep.main(POINTS) == 0 and len(events(stub)) == 5
    assert 'SIMULATED' not in capsys.readouterr().err and (stub / 'runs/sweep/sweep.csv').exists()


def test_shards_come_before_the_run_that_puts_them_together(queue, stub):
    line = ['--to=slurm', '--experiment=label', '--workdir=runs/labels', '--shards=3', '--gpus=4', '--go']
    assert given([*line, 'mesh.data=-1']) == 0
    assert events(stub) == ['1/3 0', '2/3 0', '3/3 0', 'labels 0']  # a process each, whatever its GPUs
    assert (queue / '10_3.begins').read_text(encoding='utf-8').strip() == 'afterok:7'


SMALL = [
    '--experiment=tldr_direct', 'sft.steps=2', 'sft.batch=8', 'rating.least_mass=0.0', 'rating.batch=8',
    'reinforce.steps=3', 'reinforce.batch=8', 'reinforce.eval_every=3', 'reinforce.eval_prompts=8',
    'reinforce.save_every=1', 'reinforce.max_new_tokens=8', 'mesh.data=1', 'mesh.fsdp=2', 'evaluation.prompts=8',
    'evaluation.batch=8', 'evaluation.resamples=0',
]  # fmt: skip


def small(models: Path, folder: Path) -> list[str]:
    lms = [f'policy={models / "policy"}', f'same_size_labeler={models / "labeler"}']
    return [*SMALL, *lms, f'--workdir={folder}']


@pytest.mark.slow
def test_two_tasks_of_a_job_that_was_stopped_are_one_process_that_was_not(queue, here, models):
    assert together(1, ['launch/run.py', *small(models, here / 'alone')], here / 'said') == [0], printed(here / 'said')
    env = {name: value for name, value in os.environ.items() if name not in ('XLA_FLAGS', 'COLUMNS')}
    env |= {'PYTHONPATH': str(ROOT), 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0', 'RLAIF_HEARTBEAT': str(HEARTBEAT)}
    env |= {'TF_CPP_MIN_LOG_LEVEL': '2', 'OMP_NUM_THREADS': '1'}
    line = [
        sys.executable,
        str(ROOT / 'launch/submit.py'),
        '--to=slurm',
        '--gpus=2',
        '--go',
        *small(models, 'runs/two'),
    ]
    job = subprocess.Popen(line, env=env)
    try:
        late = time.monotonic() + 300
        while not list(here.glob('runs/two/stages/reinforce-*/metrics.jsonl')):
            assert time.monotonic() < late and job.poll() is None
            time.sleep(0.05)
        for task in (queue / 'tasks').read_text(encoding='utf-8').split():
            os.kill(int(task), signal.SIGTERM)
        assert job.wait(300) == 0
    finally:
        job.kill()
    (log,) = here.glob('runs/two.job/slurm-*.log')
    said = log.read_text(encoding='utf-8')
    assert said.count('2 processes') == 2 and 'going on' in said, said
    assert len((queue / '7.begins').read_text(encoding='utf-8').splitlines()) == 2 and not list(here.rglob('tries-*'))
    for file in ('report.txt', 'export/model.safetensors'):
        assert filecmp.cmp(here / 'alone' / file, here / 'runs/two' / file, shallow=False), file
    assert any((here / 'runs/two/programs').iterdir())


@pytest.mark.slow
def test_a_shell_within_a_job_is_no_task_of_it(here):
    """An editor's, with what the job left in its environment."""
    half = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '16', 'SLURM_NODELIST': 'node[1-2]', 'SLURM_PROCID': '0'}
    line = [sys.executable, str(ROOT / 'launch/run.py'), '--experiment=tldr_direct', '--dry_run']
    done = subprocess.run(line, env=os.environ | half, capture_output=True, encoding='utf-8', timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'processes' not in done.stdout
