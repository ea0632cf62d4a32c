"""Laws of rlaif_jax.folder: a folder serves one config and has one writer."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rlaif_jax.config import Mistake, Passing, digest
from rlaif_jax.folder import busy, finish, finished, link, lock, open_folder, stage_folder

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Config:
    beta: float = 0.05
    steps: int = 100


def test_a_stage_has_a_folder_for_each_config(tmp_path):
    folder = stage_folder(tmp_path, 'sft', Config())
    assert folder == tmp_path / f'sft-{digest(Config())}'
    assert folder != stage_folder(tmp_path, 'sft', Config(beta=0.1))


def test_a_folder_serves_one_config(tmp_path):
    folder = tmp_path / 'a' / 'b'
    open_folder(folder, 'beta = 0.05\nsteps = 100\n')
    open_folder(folder, '# a comment\n\nsteps = 100\nbeta = 0.05\n')
    assert (folder / 'config.gin').read_text(encoding='utf-8') == 'beta = 0.05\nsteps = 100\n'
    with pytest.raises(Mistake, match=rf'(?s){folder} .*beta: 0\.05 .* 0\.1 .*--workdir'):
        open_folder(folder, 'beta = 0.1\nsteps = 100\n')
    with pytest.raises(Mistake, match='and 4 more'):
        open_folder(folder, ''.join(f'field_{n} = 1\n' for n in range(10)))


def test_a_run_is_finished_when_its_result_is_there(tmp_path):
    assert finished(tmp_path / 'absent') is None
    finish(tmp_path, {'win_rate': np.float32(0.5), 'kl': float('nan')})
    assert finished(tmp_path) == {'win_rate': 0.5, 'kl': None}
    (tmp_path / 'result.json').write_text('{"win', encoding='utf-8')
    with pytest.raises(Mistake, match='result.json'):
        finished(tmp_path)


def test_a_linked_stage_shows_its_files(tmp_path):
    stage, folder = tmp_path / 'stages' / 'sft', tmp_path / 'run'
    (stage / 'export').mkdir(parents=True)
    folder.mkdir()
    (stage / 'metrics.jsonl').write_text('{}\n', encoding='utf-8')
    for _ in range(2):  # again is no harm
        link(stage, folder)
    assert (folder / 'metrics.jsonl').read_text(encoding='utf-8') == '{}\n' and (folder / 'export').is_dir()


# Locks


HOLD = """
import sys, time
from rlaif_jax.folder import lock
with lock(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder):
    """Another process, which holds the lock of `folder`."""
    other = subprocess.Popen([sys.executable, '-c', HOLD, folder], stdout=subprocess.PIPE, cwd=ROOT)
    with other:
        try:
            assert other.stdout.readline() == b'held\n'
            yield other
        finally:
            other.kill()


def test_a_folder_has_one_writer_and_a_killed_one_lets_go(tmp_path):
    with holder(tmp_path) as other:
        with pytest.raises(Passing, match=f'process {other.pid} '), lock(tmp_path):
            pass
        assert busy(tmp_path) and not busy(tmp_path / 'nothing')
    assert not busy(tmp_path)
    with lock(tmp_path), pytest.raises(Mistake, match=f'process {os.getpid()} '), lock(tmp_path):
        pass
    with lock(tmp_path):
        assert not busy(tmp_path)  # for this process: it knows


def test_who_waits_says_for_whom_and_has_the_folder_next(tmp_path, capsys):
    with holder(tmp_path) as other:
        threading.Timer(0.5, other.kill).start()
        with lock(tmp_path, wait=True):
            assert (tmp_path / '.lock').read_text(encoding='utf-8') == str(os.getpid())
    assert f'process {other.pid} ' in capsys.readouterr().out


WITHOUT = """
import sys
sys.modules['fcntl'] = None  # as on Windows
from rlaif_jax.folder import busy, lock
for _ in range(2):
    with lock(sys.argv[1]), lock(sys.argv[1]):
        assert not busy(sys.argv[1])
"""


def test_where_there_are_no_locks_it_is_said_once_and_gone_on_with(tmp_path):
    command = [sys.executable, '-c', WITHOUT, tmp_path]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, encoding='utf-8').stdout
    assert said.count('no file locks') == said.count('\n') == 1
