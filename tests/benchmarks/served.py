"""Labels of a server that is killed while it is asked, by a run that is killed as well, against those of one left alone.

    python tests/benchmarks/served.py --pairs 20000 --kills 10

The server is a stand-in on this machine that answers by a hash of the prompt. Every run is a process of its own; at each
kill it is the run that gets `kill -9`, the server, or both, and either starts again. Besides, of a hundred answers one is
an error and one breaks off. Prints how many labels are lost, there twice, or different, how many a further run makes, and
how many requests a label took; exits with status 1 unless the first four are all 0.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from kill import STORE, kill_9, labels, launch  # noqa: E402

MODEL, VOCABULARY = 'micro_xs', 1152


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=int, default=20_000)
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0, help='of the moments, and of the errors')
    parser.add_argument('--serve', type=int, help=argparse.SUPPRESS)  # a process of ours: the port
    flags = parser.parse_args()
    if flags.serve:
        return serve(flags.serve, flags.seed)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    rng = random.Random(flags.seed)
    with tempfile.TemporaryDirectory() as folder:
        alone, killed, requests = Path(folder) / 'alone', Path(folder) / 'killed', Path(folder) / 'requests'
        server = start_server(port, flags.seed, requests)
        begun = time.monotonic()
        start(flags, alone, port).wait()
        seconds = time.monotonic() - begun
        print(f'left alone: {len(labels(alone))} labels in {seconds:.0f} s', flush=True)
        before = len(requests.read_bytes())
        run = start(flags, killed, port)
        for kill in range(flags.kills):
            time.sleep(moment := rng.uniform(4, 10 + 1.2 * seconds / (flags.kills + 1)))
            victims = ('run', 'server', 'both')[kill % 3]
            ended = run.poll() is not None
            if victims != 'run':
                kill_9(server)
                time.sleep(2)  # in which it is away
                server = start_server(port, flags.seed + kill + 1, requests)
            if victims != 'server' or ended:
                kill_9(run)
                run = start(flags, killed, port)
            there = len(labels(killed)) if (killed / STORE).exists() else 0
            print(
                f'kill {kill + 1} ({victims}) after {moment:.0f} s: {there} labels' + ' (it had ended)' * ended,
                flush=True,
            )
        if run.wait():
            start(flags, killed, port).wait()
        asked = len(requests.read_bytes()) - before
        (killed / 'run' / 'result.json').unlink()  # else a finished run does not even look
        again = start(flags, killed, port, subprocess.PIPE).communicate()[0]
        expected, found = labels(alone), labels(killed)
        kill_9(server)
    keys, by_key = [line['key'] for line in found], {line['key']: line for line in expected}
    counts = {
        'lost': len(set(by_key) - set(keys)),
        'twice': len(keys) - len(set(keys)),
        'different': sum(line != by_key.get(line['key']) for line in found),
        'made by a further run': sum(map(int, re.findall(r'(\d+) to make', again.replace('\n', ' ')))),
    }
    print(f'killed {flags.kills} times: {len(found)} labels; ' + ', '.join(f'{n} {name}' for name, n in counts.items()))
    print(f'{asked / max(len(found), 1):.2f} requests a label, of two orders each')
    return int(any(counts.values()))


def start(flags: argparse.Namespace, folder: Path, port: int, out: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """The labeling run."""
    address = f'http://127.0.0.1:{port}/v1?tokenizer={MODEL}#stand-in'
    bindings = f'pairs={flags.pairs}', f'labelers=["{address}"]', 'techniques=["base_0shot"]'
    return launch('tldr_label', folder, *bindings, out=out, err=subprocess.DEVNULL)


def start_server(port: int, seed: int, requests: Path) -> subprocess.Popen[Any]:
    """The server, once it is there. Each of its answers is a byte of the file `requests`."""
    with open(requests, 'ab') as out:
        command = [sys.executable, __file__, f'--serve={port}', f'--seed={seed}']
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
    while True:
        with socket.socket() as knock:
            if not knock.connect_ex(('127.0.0.1', port)):
                return server
        time.sleep(0.1)


def serve(port: int, seed: int) -> int:
    """Answers until it is killed."""
    from stand_in import StandIn, Status, Table

    from rlaif_jax.models.presets import resolve
    from rlaif_jax.text import Tokenizer

    rng = random.Random(seed)

    def fault(number: int, path: str, body: dict) -> Status | str | None:
        os.write(1, b'.')
        return {0: Status(500), 1: 'half', 2: Status(429, after='0.1')}.get(rng.randrange(100))

    table = Table(Tokenizer.load(resolve(MODEL)), VOCABULARY)
    with StandIn(table, name='stand-in', port=port, fault=fault, keeps=False):
        signal.pause()
    return 0


if __name__ == '__main__':
    sys.exit(main())
