"""No terminal, locale, home, cache or optional logger stops a run, or costs its result."""

import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from rlaif_jax import log
from rlaif_jax.folder import WRITTEN

ROOT = Path(__file__).resolve().parents[1]
SIGNS = '§ 3.4 · β = 0.05 × 2 – “é” → ½ ≥ … 猫'


@pytest.fixture
def screen():
    """`screen(encoding)`: standard output of that encoding, and what was written to it."""
    before = sys.stdout

    def make(encoding):
        log.console.cache_clear()
        sys.stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        return lambda: sys.stdout.buffer.getvalue().decode(encoding)

    yield make
    sys.stdout = before
    log.console.cache_clear()


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp437', 'utf-8', 'utf-16'])
def test_what_a_terminal_cannot_show_it_shows_otherwise(encoding, screen):
    shown = screen(encoding)
    log.say(SIGNS)
    with log.progress('sft ½', 2) as bar:
        bar.advance(SIGNS)
        bar.advance(SIGNS)
    log.figures_table(SIGNS, ['β', '±'], [['×', 0.5]])
    printed = shown()
    assert '0.05' in printed and printed.count('\n') >= 5
    if encoding == 'ascii':
        assert 'section  3.4 - beta = 0.05 x 2 - "?" -> 1/2 >= ... ?' in printed
    if encoding.startswith('utf'):
        assert SIGNS in printed


class Gone(io.StringIO):
    """A pipe that nobody reads any more, or a disk that is full."""

    def write(self, text=''):
        raise BrokenPipeError(32, 'Broken pipe')

    flush = write


@pytest.mark.parametrize('stream', [None, Gone()])
def test_a_run_goes_on_where_nobody_listens(stream, monkeypatch, tmp_path):
    for name in ('stdout', 'stderr'):
        monkeypatch.setattr(sys, name, stream)
    log.console.cache_clear()
    with log.ending(tmp_path / 'report.txt'), log.progress('sft', 1) as bar:
        log.say('found')
        bar.advance()
    log.error('lost')
    log.console.cache_clear()
    assert (tmp_path / 'report.txt').exists()


@pytest.mark.parametrize('columns', ['', '0', '-1', 'wide', '7'])
def test_a_screen_without_a_width_has_one(columns, monkeypatch, screen):
    monkeypatch.setenv('COLUMNS', columns)
    shown = screen('utf-8')
    log.say('a sentence that is longer than any such screen')
    log.figures_table('title', ['policy', 'win rate %'], [['d-RLAIF', 82.4]])
    assert 'a sentence that is longer than any such screen' in shown() and '82.4' in shown()


def broken(*args, **options):
    raise RuntimeError('no key')


@pytest.mark.parametrize(
    'tensorboard, wandb',
    [
        ({'SummaryWriter': broken}, {'init': broken}),
        (
            {'SummaryWriter': lambda **_: types.SimpleNamespace(add_scalar=broken, close=broken)},
            {'init': lambda **_: types.SimpleNamespace(log=broken, finish=broken)},
        ),
        ({}, {}),
    ],
)
def test_loggers_that_fail_are_said_once_and_done_without(tensorboard, wandb, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tensorboardX', types.SimpleNamespace(**tensorboard))
    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(**wandb))
    log.say_once.cache_clear()
    for step in (0, 2):
        with log.Metrics(tmp_path, start_step=step, wandb=True) as metrics:
            metrics.write(step, {'kl': 1.0})
            metrics.write(step + 1, {'kl': 2.0})
    log.say_once.cache_clear()
    steps = [json.loads(line)['step'] for line in (tmp_path / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    said = capsys.readouterr().out
    assert steps == [0, 1, 2, 3] and said.count('TensorBoard ') == said.count('W&B ') == 1


def test_without_a_key_wandb_is_not_asked(monkeypatch, capsys):
    monkeypatch.delenv('WANDB_MODE', raising=False)
    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(login=lambda prompt: prompt))  # False: no key
    assert not log.wandb_ready() and 'WANDB_API_KEY' in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(login=lambda prompt: True))
    assert log.wandb_ready()


def test_python_ends_without_a_word_about_the_screen():
    code = 'from rlaif_jax import log; log.say("found")'
    done = subprocess.run(
        [sys.executable, '-X', 'dev', '-c', code], cwd=ROOT, capture_output=True, encoding='utf-8', timeout=60
    )
    assert done.stdout == 'found\n' and not done.stderr


def test_a_listing_may_be_cut_short():
    command = f'set -o pipefail; {sys.executable} launch/run.py --list | head -n 1'
    done = subprocess.run(
        ['bash', '-c', command], cwd=ROOT, capture_output=True, text=True, encoding='utf-8', timeout=120
    )
    assert done.returncode == 0 and done.stdout.count('\n') == 1 and not done.stderr


# The main job in the surroundings that containers, queues and old machines give it

STUBS = {
    'wandb.py': 'def login(**options): return True\ndef init(**options): raise RuntimeError("no network")\n',
    'tensorboardX.py': 'def SummaryWriter(**options): raise OSError("no place for events")\n',
    'sitecustomize.py': 'import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n',
}
SHORT = (
    'sft.steps=1 sft.batch=8 reinforce.steps=1 reinforce.batch=8 reinforce.eval_every=1 reinforce.eval_prompts=8 '
    'evaluation.prompts=16 data.train=64 mesh.data=1'
).split()
ASCII, LATIN = 'ASCII, no home, a user that nobody knows, no width', 'Latin-1, a cache that cannot be written'
PLACES = {
    ASCII: {
        'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'COLUMNS': '0', 'HOME': None, 'XDG_CACHE_HOME': None,
    },
    LATIN: {
        'PYTHONIOENCODING': 'latin-1', 'XDG_CACHE_HOME': '/dev/null/cache', 'MPLCONFIGDIR': '/dev/null/matplotlib',
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('place', [ASCII, pytest.param(LATIN, marks=pytest.mark.nightly)])
def test_the_main_job_ends_well_anywhere(place, tmp_path):
    for name, text in STUBS.items():
        (tmp_path / name).write_text(text, encoding='utf-8')
    env = os.environ | {'PYTHONPATH': str(tmp_path)} | PLACES[place]
    folder = tmp_path / 'runs' / 'é'
    command = [sys.executable, 'launch/run.py', '--experiment=tldr_direct', f'--workdir={folder}', '--wandb']
    with open(tmp_path / 'printed', 'wb') as printed:
        done = subprocess.run(
            [*command, *SHORT], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, timeout=600,
            env={name: value for name, value in env.items() if value is not None},
        )  # fmt: skip
    told = (tmp_path / 'printed').read_text(encoding='latin-1')
    assert done.returncode == 0, told[-3000:]
    assert (
        'Traceback' not in told
        and re.search('W&B .*metrics.jsonl', told)
        and re.search('TensorBoard .*metrics.jsonl', told)
    )
    assert 'XDG_CACHE_HOME' in told  # as programs are not kept
    assert os.listdir(tmp_path / 'runs') == [folder.name], 'nothing is written outside the folder that was named'
    assert {*os.listdir(folder)} <= {'config.gin', '.lock', 'stages', *WRITTEN}
    result = json.loads((folder / 'result.json').read_text(encoding='utf-8'))
    assert result['comparisons']['d-RLAIF vs SFT']['raters']['n'] == 16
    assert 'β = 0.05' in (folder / 'export' / 'README.md').read_text(encoding='utf-8')
    assert (folder / 'training.png').stat().st_size > 1000


# A disk of 2 MB that is full, and then is not, for each in turn of those that write.
FULL = """
import sys
from pathlib import Path
import jax.numpy as jnp
from rlaif_jax import log
from rlaif_jax.checkpoint import Checkpoints
from rlaif_jax.config import Passing, refusal
from rlaif_jax.data import files
from rlaif_jax.folder import finish, lock
from rlaif_jax.labeling.store import Store
from rlaif_jax.models import hf

disk, lm = Path(sys.argv[1]), hf.load(sys.argv[2])
for number in range(5):
    (disk / str(number)).mkdir()
filled = disk / 'filled'

def labels():
    Store(disk / '0' / 'labels.jsonl').append({'a': {'status': 'ok', 'rationale': 'x' * 5000}})

def checkpoint():
    with Checkpoints(disk / '1') as checkpoints:
        checkpoints.save(1, {'a': jnp.arange(10_000.0)})

def export():
    hf.save(lm, disk / '2' / 'export')

def output():
    files.write_rows(disk / '3' / 'out.jsonl', [{'a': 'x' * 5000}])

def result():
    with lock(disk / '4'):
        finish(disk / '4', {'a': 'x' * 5000})

def metrics():
    with log.Metrics(disk / '4', wandb=False) as metrics:
        for step in range(200):
            metrics.write(step, {'a': 1.0})

for write in (labels, checkpoint, export, output, result, metrics):
    with open(filled, 'wb', buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass
    try:
        write()
        print(write.__name__, 'was written', flush=True)
    except Passing as passing:
        print(write.__name__, passing.status, flush=True)
    except OSError as error:
        print(write.__name__, refusal(error, '').status, flush=True)
    filled.unlink()
    write()
"""


def test_a_disk_that_was_full_may_be_tried_again(tmp_path, models):
    mount = 'mount -t tmpfs -o size=2m none "$1" || exit 99; shift; exec "$@"'
    own = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', mount, 'sh', tmp_path]
    try:
        if subprocess.run([*own, 'true'], capture_output=True).returncode:
            pytest.skip('no disk of our own to fill')
    except FileNotFoundError:
        pytest.skip('no unshare here')
    command = [*own, sys.executable, '-c', FULL, tmp_path, models / 'policy']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding='utf-8', timeout=120)
    said = [line for line in done.stdout.splitlines() if line.split()[0] in FULL]
    names = ('labels', 'checkpoint', 'export', 'output', 'result', 'metrics')
    assert said == [f'{name} 74' for name in names] and done.returncode == 0, (done.stdout, done.stderr)
