"""Kills a labeling run with `kill -9` at random moments, starts it again each time, and compares it with one left alone.

    python tests/benchmarks/kill.py --pairs 20000 --kills 10 --labeler micro_xs

Prints how many labels there are, how many are lost, there twice, or different, and how many a further run makes: exits
with status 1 unless these are all 0.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STORE = Path('stages') / 'labels.jsonl'  # below the folder of a run and of what it shares


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=int, default=20_000)
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--labeler', default='micro_xs')
    parser.add_argument('--technique', default='base_0shot')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = Path(folder) / 'alone', Path(folder) / 'killed'
        begun = time.monotonic()
        start(flags, alone).wait()
        seconds = time.monotonic() - begun
        print(f'left alone: {len(labels(alone))} labels in {seconds:.0f} s', flush=True)
        rng = random.Random(flags.seed)
        for kill in range(flags.kills):
            # From before the model is loaded to past what one of kills + 1 equal parts of the run takes.
            moment = rng.uniform(2, 10 + 1.5 * seconds / (flags.kills + 1))
            process = start(flags, killed)
            time.sleep(moment)
            ended = kill_9(process)
            there = len(labels(killed)) if (killed / STORE).exists() else 0
            print(f'kill {kill + 1} after {moment:.0f} s: {there} labels' + ' (it had ended)' * ended, flush=True)
        start(flags, killed).wait()
        expected, found = labels(alone), labels(killed)
        (killed / 'run' / 'result.json').unlink()  # else a finished run does not even look
        again = start(flags, killed, subprocess.PIPE).communicate()[0]
    keys = [line['key'] for line in found]
    by_key = {line['key']: line for line in expected}
    counts = {
        'lost': len(set(by_key) - set(keys)),
        'twice': len(keys) - len(set(keys)),
        'different': sum(line != by_key.get(line['key']) for line in found),
        'made by a further run': sum(map(int, re.findall(r'(\d+) to make', again.replace('\n', ' ')))),
    }
    print(f'killed {flags.kills} times: {len(found)} labels; ' + ', '.join(f'{n} {name}' for name, n in counts.items()))
    return int(any(counts.values()))


def start(flags: argparse.Namespace, folder: Path, out: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """The labeling run."""
    bindings = f'pairs={flags.pairs}', f'labelers=["{flags.labeler}"]', f'techniques=["{flags.technique}"]'
    return launch('tldr_label', folder, *bindings, out=out, err=subprocess.DEVNULL)


def launch(experiment: str, folder: Path, *bindings: str, out: Any, err: Any) -> subprocess.Popen[str]:
    """A run in a process of its own and in `folder`/run; what runs share lies beside that, so also in `folder`."""
    where = f'--workdir={folder / "run"}', f'--stages={folder / "stages"}'
    command = [sys.executable, 'launch/run.py', f'--experiment={experiment}', *where, *bindings]
    return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err, encoding='utf-8')


def kill_9(process: subprocess.Popen[str]) -> bool:
    """Kills it, and says whether it had ended before."""
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return ended


def labels(folder: Path) -> list[dict]:
    """The whole lines of the store, without the time that each took; one cut short by a kill is not a label."""
    lines = (folder / STORE).read_text(encoding='utf-8').split('\n')[:-1]
    return [{name: x for name, x in json.loads(line).items() if name != 'seconds'} for line in lines]


if __name__ == '__main__':
    sys.exit(main())
