"""Several processes of one run, on this machine: `together(2, command)` starts them and gives what each one did."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEARTBEAT = 10  # seconds


def start(processes: int, command: Sequence[str], folder: Path) -> list[subprocess.Popen]:
    """The processes of one run of `python command…`; what they print goes to `folder/0.txt`, `folder/1.txt`, ….

    Alone a process is told of no other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if name not in ('XLA_FLAGS', 'COLUMNS')}
    env |= {'PYTHONPATH': str(ROOT), 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0', 'RLAIF_HEARTBEAT': str(HEARTBEAT)}
    env |= {'TF_CPP_MIN_LOG_LEVEL': '2', 'OMP_NUM_THREADS': '1'}
    found = []
    for i in range(processes):
        mine = {'RLAIF_COORDINATOR': f'localhost:{port}', 'RLAIF_PROCESSES': str(processes), 'RLAIF_PROCESS': str(i)}
        with open(folder / f'{i}.txt', 'a', encoding='utf-8') as out:
            found.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    stdout=out,
                    stderr=out,
                    cwd=ROOT,
                    env=env | (mine if processes > 1 else {}),
                )
            )
    return found


def end(run: Sequence[subprocess.Popen], seconds: float = 900) -> list[int]:
    """The exit status of each, once all have ended."""
    try:
        return [process.wait(seconds) for process in run]
    finally:
        for process in run:
            process.kill()


def together(processes: int, command: Sequence[str], folder: Path) -> list[int]:
    """The exit status of each process."""
    return end(start(processes, command, folder))


def printed(folder: Path, process: int = 0) -> str:
    return (folder / f'{process}.txt').read_text(encoding='utf-8', errors='replace')
