"""Import of a checkpoint beside `transformers` on torch, both on the CPU: python tests/benchmarks/load.py

    --gigabytes 1 --shards 4 --dtype bfloat16|float32 --repeats 5

Writes a Llama of random weights in that dtype, in several safetensors files, to a temporary folder (so its pages are in
the system's cache), and reads it with `rlaif_jax.load` and with transformers' `from_pretrained`, in turn: model and
tokenizer, parameters in float32 in both. Each run is a process of its own that has read a tiny checkpoint before the clock
starts, so imports are in no figure. `seconds` ends when every number has been summed, because torch may have only mapped
the file: what it never read would be free. A figure is the median; `ratio` is how many times as long as transformers.

Memory is anonymous memory (RssAnon of /proc, asked for every 2 ms from outside): pages that only map a file can be
dropped at any time and are not held. `peak` is above what the process held after its imports. On a CPU the parameters
themselves are in it, so `besides` is the peak less their bytes: what an import holds on the host besides what is on the
device. It is negative where they are pages of the file.

Exits with status 1 where ours takes more than 1.5 times as long as transformers, or holds more besides than the largest
file and a fifth of it, or where the sums differ, and 2 where torch is missing or the system is not Linux. From float32
files transformers copies nothing, its parameters stay pages of the file, while ours are stacked and turned: there the third
arm, which copies them into memory of its own, tells how far apart the two are otherwise. Needs
`pip install torch --index-url https://download.pytorch.org/whl/cpu`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

OURS, THEIRS, COPIED = ARMS = ('ours', 'transformers', 'transformers, copied')
ROOM = 1.2  # of the largest file: what may be held besides the parameters
LONGER = 1.5  # times the time of transformers: what an import may take
POLL = 0.002  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gigabytes', type=float, default=1.0, help='of the checkpoint, about (%(default)s)')
    parser.add_argument('--shards', type=int, default=4, help='files (%(default)s)')
    parser.add_argument('--dtype', choices=('bfloat16', 'float32'), default='bfloat16', help='of them (%(default)s)')
    parser.add_argument('--repeats', type=int, default=5, help='runs of each arm (%(default)s)')
    parser.add_argument('--work', nargs=3, help=argparse.SUPPRESS)  # a process of ours: an arm, and what it reads
    flags = parser.parse_args()
    if flags.work:
        return work(*flags.work)
    if not flags.gigabytes > 0 or flags.shards < 1 or flags.repeats < 1:
        parser.error('gigabytes are positive, shards and repeats at least 1')
    from rlaif_jax import log

    if importlib.util.find_spec('torch') is None or sys.platform != 'linux':
        log.error('needs Linux, and torch: pip install torch --index-url https://download.pytorch.org/whl/cpu')
        return 2
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'torch', 'transformers'))
    log.say(f'{versions}, {os.cpu_count()} processors')
    with tempfile.TemporaryDirectory(prefix='load-') as folder:
        big, tiny = Path(folder) / 'big', Path(folder) / 'tiny'
        write(big, flags.gigabytes, flags.shards, flags.dtype)
        write(tiny, 0.0, 1, flags.dtype)
        sizes = [file.stat().st_size for file in big.glob('*.safetensors')]
        arms = ARMS if flags.dtype == 'float32' else (OURS, THEIRS)
        found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for i in range(flags.repeats):
            for arm in arms if i % 2 else reversed(arms):
                found[arm].append(measure(arm, tiny, big))
    log.say(
        f'{sum(sizes) / 1e9:.2f} GB in {len(sizes)} files of {flags.dtype}, the largest {max(sizes) / 2**20:.0f} MiB'
    )
    return show(found, max(sizes))


def show(found: dict[str, list[dict[str, float]]], largest: int) -> int:
    """Print the table and what is missed; the exit status."""
    from rlaif_jax import log

    seconds = {arm: [run['seconds'] for run in runs] for arm, runs in found.items()}
    median = {arm: statistics.median(times) for arm, times in seconds.items()}
    besides = {arm: max(run['peak'] - run['bytes'] for run in runs) for arm, runs in found.items()}
    rows = []
    for arm, runs in found.items():
        spread = f'{min(seconds[arm]):.2f} – {max(seconds[arm]):.2f}'
        memory = [f'{size / 2**20:.0f}' for size in (runs[0]['bytes'], max(run['peak'] for run in runs), besides[arm])]
        rows.append([arm, f'{median[arm]:.2f}', spread, f'{median[arm] / median[THEIRS]:.2f}', *memory])
    columns = ['', 'seconds', 'fastest – slowest', 'ratio', 'parameters MiB', 'peak MiB', 'besides MiB']
    log.figures_table(f'median of {len(seconds[OURS])} runs; the largest of peaks', columns, rows)
    missed = []
    if median[OURS] > LONGER * median[THEIRS]:
        missed.append(f'time: ours takes {median[OURS] / median[THEIRS]:.2f} times as long as transformers')
    if besides[OURS] > ROOM * largest:
        missed.append(f'memory: ours holds {besides[OURS] / largest:.2f} of the largest file besides, more than {ROOM}')
    sums = [run['sum'] for runs in found.values() for run in runs]
    if not max(sums) - min(sums) < 1e-3 * max(1.0, abs(sums[0])):
        missed.append(f'the arms read other numbers: their sums are from {min(sums)} to {max(sums)}')
    for what in missed:
        log.error(f'missed: {what}')
    return int(bool(missed))


def write(folder: Path, gigabytes: float, shards: int, dtype: str) -> None:
    """A Llama with layers of 15.7 million parameters, as many as are needed."""
    import numpy as np

    from rlaif_jax.micro import tokenizer
    from rlaif_jax.models import hf, transformer
    from rlaif_jax.text import Tokenizer

    cfg = transformer.Config(
        vocab=16_000, layers=1, width=1024, heads=16, kv_heads=8, head_dim=64, ffn=4096, tied=False
    )
    count = lambda cfg: sum(math.prod(transformer.drawn(cfg, name)[1]) for name in cfg.names)  # noqa: E731
    one, two = count(cfg), count(replace(cfg, layers=2))
    width = np.dtype(dtype if dtype == 'float32' else 'float16').itemsize
    cfg = replace(cfg, layers=max(1, 1 + round((gigabytes * 1e9 / width - one) / (two - one))))
    if not gigabytes:
        cfg = replace(cfg, vocab=1152, width=64, ffn=64)
    pool = 0.02 * np.random.default_rng(0).standard_normal(2**22, np.float32)
    params = {name: np.resize(pool, transformer.drawn(cfg, name)[1]) for name in cfg.names}
    words = tokenizer.build()
    largest = max(cfg.vocab, cfg.ffn) * cfg.width
    lm = hf.LM(cfg, params, Tokenizer(words, (words.eos_token_id,)), 'random')
    hf.save(lm, folder, dtype=dtype, shard_bytes=width * (count(cfg) // shards + largest))


def measure(arm: str, tiny: Path, big: Path) -> dict[str, float]:
    """One run in a process of its own: what it says, and `peak`, bytes."""
    command = [sys.executable, __file__, '--work', arm, str(tiny), str(big)]
    peak = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding='utf-8') as process:
        if process.stdout.readline() != 'ready\n':
            sys.exit(f'{arm}: its process ended with status {process.wait()}')
        before = anonymous(process.pid)
        process.stdin.write('go\n')
        process.stdin.flush()
        while not select.select([process.stdout], [], [], POLL)[0]:
            peak = max(peak, anonymous(process.pid))
        answer = process.stdout.readline()
    if not answer:
        sys.exit(f'{arm}: its process ended with status {process.returncode}')
    return json.loads(answer) | {'peak': peak - before}


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory that a process holds; 0 for one that ended."""
    lines = Path(f'/proc/{pid}/status').read_text(encoding='utf-8').splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith('RssAnon')), 0)


def work(arm: str, tiny: str, big: str) -> int:
    """Read the tiny checkpoint, say so, wait, read the big one, say how long it took; libraries print elsewhere."""
    answers, sys.stdout = sys.stdout, sys.stderr
    read = ours() if arm == OURS else theirs(copied=arm == COPIED)
    read(tiny)
    print('ready', file=answers, flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    size, total = read(big)
    seconds = time.perf_counter() - began
    print(json.dumps({'seconds': seconds, 'bytes': size, 'sum': total}), file=answers, flush=True)
    return 0


Read = Callable[[str], tuple[int, float]]  # folder -> bytes and sum of the parameters


def ours() -> Read:
    sys.modules['torch'] = None  # as in an installation without it: transformers would load it beside the tokenizer
    import numpy as np

    import rlaif_jax

    def read(folder: str) -> tuple[int, float]:
        params = rlaif_jax.load(folder).params.values()
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # torch sums on all processors, too
            parts = [part for x in params for part in np.array_split(np.asarray(x).reshape(-1), os.cpu_count())]
            return sum(x.nbytes for x in params), sum(pool.map(lambda x: float(x.sum()), parts))

    return read


def theirs(copied: bool) -> Read:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()

    def read(folder: str) -> tuple[int, float]:
        AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        params = [x.detach() for x in model.parameters()]
        if copied:
            params = [x.clone() for x in params]
        return sum(x.nbytes for x in params), sum(float(x.sum()) for x in params)

    return read


if __name__ == '__main__':
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    sys.exit(main())
