"""What one accelerator reaches of what it can do: python tests/benchmarks/accelerator.py

    --size large|medium|small --case trl decode train prefill attention busy --repeats 5 --json accelerator.json

trl        a step of REINFORCE with two responses to a prompt, beside TRL's RLOO: at least 3 times as fast
decode     tokens of 128 responses at once, beside the bytes that each has to read: at least 60 %
train      a step of SFT, beside the rate of one large product in the same dtype: at least 50 %
prefill    a labeler reads pairs and answers, beside the same rate: at least 60 %
attention  the step of SFT by each computation of attention that there is for this device, beside the fastest
busy       how long of a few REINFORCE steps the device has something to do, from their profile: at least 85 %

Rates are measured first, with one large product and one large copy. `large` is the shape of Gemma 2 2B, `medium` that of
SmolLM2 360M, `small` the micro world's; by itself it is the largest that fits the device, and small on a CPU, where the
same code runs and no target counts. Weights are zero or random, which take as long. It takes less than eight minutes; what
does not begin in seven is left out, and said.

`trl` needs TRL with a torch that knows the device: in this Python, or in the environment of `peers.py`. Exits with status 1
where an accelerator misses a target.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.run import begin_again  # noqa: E402

TARGETS = {'trl': 3.0, 'decode': 0.6, 'train': 0.5, 'prefill': 0.6, 'attention': None, 'busy': 0.85}
LATEST = 7 * 60  # seconds: nothing begins later
LEAST = 0.8  # of the device's memory: what a plan may need, so that an estimate may be a quarter too low
SIZES = 'large', 'medium', 'small'


@dataclass(frozen=True)
class Size:
    """A model, and how much of what it is given."""

    model: str  # a preset, or of the hub
    rows: int  # responses at once
    prompt: int  # tokens
    new: int  # tokens
    batch: int  # rows of a step of SFT
    length: int  # tokens of each
    pairs: int  # that a labeler reads at once
    context: int  # tokens of the prompt of a pair
    answer: int  # tokens of each response of a pair
    peers: str  # the shape of `peers.py` for steps of REINFORCE


SHAPES = {
    'large': Size('google/gemma-2-2b', 128, 512, 64, 16, 1024, 32, 1024, 128, 'accelerator'),
    'medium': Size('HuggingFaceTB/SmolLM2-360M', 128, 512, 64, 16, 1024, 32, 1024, 128, 'accelerator'),
    'small': Size('micro_xs', 32, 128, 16, 16, 128, 16, 128, 40, 'micro'),
}


@dataclass
class Bench:
    """A device, its rates, and what was found."""

    size: Size
    cfg: Any  # of the model
    repeats: int
    dtype: str
    rates: Any = None
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def program(self, **line: Any) -> Any:
        """The one program of a stage, on one device."""
        from experiments.programs import Line, programs
        from rlaif_jax import axes

        (found,) = programs(Line('', Path(), 1, **line), {'policy': self.cfg}, axes.make_mesh())
        return found

    def writes(self, new: int) -> Any:
        from experiments.programs import Read

        return self.program(reads=(Read('policy', 'writes', self.size.rows, self.size.prompt, new),))

    def trains(self) -> Any:
        from rlaif_jax.training import sft

        return self.program(training=sft.Config(batch=self.size.batch), length=self.size.length)

    def labels(self) -> Any:
        from experiments.programs import Read

        s = self.size
        return self.program(reads=(Read('policy', 'answers', s.pairs, s.context, 2 * s.answer, branches=2),))

    # What is measured: each gives what it took, what it takes at best, and its share

    def decode(self) -> dict[str, Any]:
        import floors

        few, many = self.writes(1), self.writes(1 + self.size.new)
        took = statistics.median(floors.taken(many, self.repeats)[0]) - statistics.median(
            floors.taken(few, self.repeats)[0]
        )
        best = (many.traffic - few.traffic) / self.rates.bytes
        tokens = self.size.new * self.size.rows / took
        return {'took': took, 'best': best, 'share': best / took, 'note': f'{tokens:,.0f} tokens/s'}

    def train(self) -> dict[str, Any]:
        return self.of_products(self.trains())

    def prefill(self) -> dict[str, Any]:
        return self.of_products(self.labels())

    def of_products(self, program: Any) -> dict[str, Any]:
        import floors

        took = statistics.median(floors.taken(program, self.repeats)[0])
        best = program.flops / self.rates.flops
        return {'took': took, 'best': best, 'share': best / took, 'note': f'{program.tokens / took:,.0f} tokens/s'}

    def attention(self) -> dict[str, Any]:
        import floors

        seconds = {}
        for name, choose in backends().items():
            choose()
            seconds[name] = statistics.median(floors.taken(self.trains(), self.repeats)[0])
        next(iter(backends().values()))()
        first, best = next(iter(seconds.values())), min(seconds.values())
        note = ', '.join(f'{name} {one:.3g} s' for name, one in seconds.items())
        return {'took': first, 'best': best, 'share': best / first, 'note': note}

    def trl(self) -> dict[str, Any] | str:
        import jax
        import peers

        python = python_with_trl(jax.devices()[0].platform)
        if python is None:
            return 'TRL is not here, with a torch that knows this device'
        with tempfile.TemporaryDirectory(prefix='accelerator-') as folder:
            sides = peers.Sides(self.size.peers, python, 1, Path(folder), self.dtype, rates=False)
            found = sides.compare('rloo', self.repeats)
        ours, theirs = found['ours']['median'], found['theirs']['median']
        return {'took': ours, 'best': None, 'share': theirs / ours, 'note': f'TRL {theirs:.3g} s'}

    def busy(self) -> dict[str, Any]:
        import jax
        import peers

        from rlaif_jax import axes
        from rlaif_jax.models import hf

        with tempfile.TemporaryDirectory(prefix='accelerator-') as folder:
            plan, mesh = peers.prepare(self.size.peers, folder, self.dtype), axes.make_mesh()
            lm = hf.load(plan['model'], mesh=mesh, dtype=self.dtype)
            with jax.set_mesh(mesh):
                step = peers.ours(plan, 'value', lm, mesh)
                jax.block_until_ready(step())  # compiles
                jax.profiler.start_trace(folder, create_perfetto_trace=True)
                began = time.perf_counter()
                for i in range(self.repeats):
                    with jax.profiler.StepTraceAnnotation('reinforce', step_num=i):
                        jax.block_until_ready(step())
                took = (time.perf_counter() - began) / self.repeats
                jax.profiler.stop_trace()
            (file,) = Path(folder).rglob('perfetto_trace.json.gz')
            share = busy_share(json.loads(gzip.decompress(file.read_bytes()))['traceEvents'])
        return {'took': took, 'best': share * took, 'share': share, 'note': f'{self.repeats} steps'}


def backends() -> Mapping[str, Callable[[], None]]:
    """By name, how to have programs traced with each computation of attention that there is; first what is chosen by
    itself.
    """
    import jax

    def allow(allowed: bool) -> Callable[[], None]:
        def choose() -> None:
            os.environ['RLAIF_ATTENTION'] = '' if allowed else 'xla'
            jax.clear_caches()  # of programs that were traced with the other one

        return choose

    return {'as chosen': allow(True), 'plain XLA': allow(False)}


def python_with_trl(platform: str) -> Path | None:
    """A Python that has TRL, and a torch that knows the device."""
    from rlaif_jax import paths

    home = paths.cache()
    near = [Path(sys.executable)] + ([home / 'rlaif_jax' / 'peers' / 'bin' / 'python'] if home else [])
    knows = 'True' if platform == 'cpu' else 'torch.cuda.is_available()'
    for python in near:
        script = f'import torch, trl, sys; sys.exit(not {knows})'
        if python.exists() and subprocess.run([str(python), '-c', script], capture_output=True).returncode == 0:
            return python
    return None


def busy_share(events: Sequence[Mapping[str, Any]]) -> float:
    """How much of the time from the first step's begin to the last one's end some lane of the device has something to do.

    events: of a profile, in Chrome's format. On a CPU the lanes are XLA's threads.
    """
    process = {one['pid']: one['args']['name'] for one in events if one.get('name') == 'process_name'}
    thread = {(one['pid'], one['tid']): one['args']['name'] for one in events if one.get('name') == 'thread_name'}
    timed = [one for one in events if one.get('ph') == 'X']
    steps = [(one['ts'], one['ts'] + one.get('dur', 0)) for one in timed if 'step_num' in one.get('args', {})]
    first, last = min(begin for begin, _ in steps), max(end for _, end in steps)
    devices = {pid for pid, name in process.items() if name.startswith('/device:')}

    def works(one: Mapping[str, Any]) -> bool:
        name = thread.get((one['pid'], one['tid']), '')
        if devices:  # lanes that repeat what a step or a program is, from end to end, say nothing of what it does
            return one['pid'] in devices and not name.startswith(
                ('Steps', 'XLA Modules', 'Framework', 'Source', 'Launch')
            )
        return name.startswith(('tf_XLA', 'tf_pjrt', 'tf_data'))

    at = [(one['ts'], one['ts'] + one.get('dur', 0)) for one in timed if works(one)]
    return covered((max(begin, first), min(end, last)) for begin, end in at) / (last - first)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union."""
    total, reached = 0.0, float('-inf')
    for begin, end in sorted(intervals):
        if end > max(begin, reached):
            total += end - max(begin, reached)
            reached = end
    return total


def fitting(repeats: int, dtype: str, sizes: Sequence[str], limit: float) -> tuple[str, Bench]:
    """The first of the sizes of which all programs fit the device, else the last one."""
    from rlaif_jax.models import presets

    known = presets.PRESETS | presets.HUB
    for name in sizes:
        size = SHAPES[name]
        bench = Bench(size, replace(known[size.model], dtype=dtype), repeats, dtype)
        if max(one.need for one in (bench.writes(1 + size.new), bench.trains(), bench.labels())) < LEAST * limit:
            break
    return name, bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=SIZES, help='(the largest that fits; small on a CPU)')
    parser.add_argument('--case', nargs='+', choices=TARGETS, default=list(TARGETS), help='(all)')
    parser.add_argument('--repeats', type=int, default=5, help='timed calls of each (%(default)s)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures there')
    flags = parser.parse_args()
    if flags.repeats < 1:
        parser.error('repeats: at least 1')
    began = time.monotonic()
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # both sides of `trl` live on the device beside this process
    import floors
    import jax
    import jax.numpy as jnp

    from rlaif_jax import log

    device = jax.devices()[0]
    on_cpu = device.platform == 'cpu'
    limit = float('inf') if on_cpu else device.memory_stats()['bytes_limit']
    sizes = [flags.size] if flags.size else SIZES[-1:] if on_cpu else SIZES
    dtype = 'float32' if on_cpu else 'bfloat16'
    name, bench = fitting(flags.repeats, dtype, sizes, limit)
    measured = floors.measured(dtype=jnp.dtype(dtype), product=2048 if on_cpu else 8192)
    bench.rates = floors.Rates(measured['flops'], max(measured['copied'], measured['read']))
    log.say(f'{device.device_kind} ({device.platform}), jax {jax.__version__}; size {name}: {bench.size}')
    log.say(f'measured: {measured["flops"] / 1e12:.3g} TFLOP/s {dtype}, {bench.rates.bytes / 1e9:.4g} GB/s')
    rows, missed = [], []
    for case in sorted(flags.case, key=list(TARGETS).index):  # `trl` first, while memory is free
        late = time.monotonic() - began > LATEST
        found = 'left out: seven minutes are over' if late else getattr(bench, case)()
        if isinstance(found, str):
            rows.append([case, None, None, None, None, found])
            continue
        bench.found[case], target = found, TARGETS[case]
        as_text = (lambda x: f'{x:.2f}×') if case == 'trl' else (lambda x: f'{x:.0%}')
        met = target is None or found['share'] >= target
        missed += [] if met or on_cpu else [case]
        told = '' if target is None else as_text(target) + ('' if met or on_cpu else ', missed')
        rows.append([case, found['took'], found['best'], as_text(found['share']), told, found['note']])
        log.say(f'{case}: {as_text(found["share"])}, {found["note"]}')
    columns = ['case', 'took, s', 'at best, s', 'share', 'target', '']
    title = f'{name}, medians of {flags.repeats}' + '; targets are for accelerators' * on_cpu
    log.figures_table(title, columns, rows)
    if flags.json:
        told = {'device': device.device_kind, 'size': name, 'dtype': dtype, 'rates': measured, 'figures': bench.found}
        log.write_whole(flags.json, json.dumps(told, indent=1))
    return 1 if missed else 0


if __name__ == '__main__':
    begin_again()
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    sys.exit(main())
