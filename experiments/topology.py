"""A plan for devices that are not here: every program of an experiment, compiled for a slice of TPUs, and what follows.

    python launch/run.py --experiment=tldr_rlaif --scale=gemma2 --dry_run --topology=v5p-32,v6e-64 --price=4.2

Memory is what the compiler says. Time is a bound that nothing beats: products, traffic with memory, and what devices send
each other, each at the peak of the chip; the largest of the three. A run takes 1 / 0.6 to 1 / 0.3 of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from experiments import chips, compiled, plan
from experiments.chips import GIB, Chip, Slice
from experiments.compiled import Found
from experiments.programs import AnyMesh, Line, Program, programs
from rlaif_jax import axes, log
from rlaif_jax.config import Mistake, bind, dump, parse

USE = (0.6, 0.3)  # of the bound: what good programs and plain ones reach
TRIES = 6  # programs that are compiled in the place of one that does not fit
LOCAL = 'local'


@dataclass(frozen=True)
class Target:
    """What is compiled for: a slice, or the devices at hand."""

    name: str
    about: str
    chip: Chip | None  # None: nobody knows how fast
    usable: float  # GiB of a device
    count: int  # devices
    devices: tuple[Any, ...] = ()  # () of GPUs, which nobody compiles for from afar: arithmetic alone
    larger: Slice | None = None

    @classmethod
    def of(cls, name: str) -> Target:
        """Raises `Mistake` for a slice that there is not, and where no compiler for it is here."""
        if name != LOCAL:
            found = chips.find(name)
            devices = tuple(found.devices())
            count = found.chips * found.chip.devices
            return cls(found.name, str(found), found.chip, found.chip.memory, count, devices, found.next())
        devices = jax.devices()
        about = f'{LOCAL}: {len(devices)} device(s) of kind {devices[0].device_kind}'
        usable = chips.memory_of(devices[0]) or math.inf
        return cls(LOCAL, about, chips.of_device(devices[0]), usable, len(devices), tuple(devices))

    @property
    def chips(self) -> int:
        return self.count // (self.chip.devices if self.chip else 1)

    def mesh(self, config: Any) -> AnyMesh:
        """Of the devices, as a config has it. Raises `Mistake` where it does not fit them."""
        if self.devices:
            return axes.make_mesh(asdict(config.mesh), list(self.devices))
        return AbstractMesh(plan.shape_of(config, self.count), axes.MESH_AXES)


@dataclass(frozen=True)
class Call:
    """A program on a target, as the compiler and the chip's peaks have it."""

    program: Program
    found: Found
    chip: Chip | None

    @property
    def need(self) -> int:
        """Bytes on a device: those of the program, and of what else lies there."""
        return self.program.resident - self.program.arguments + self.found.need

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds of a call, at least, by what takes them."""
        if not self.chip:
            return {}
        sent = sum(self.found.sent.values())
        return {
            'products': self.program.flops / self.chip.flops,
            'memory': self.program.traffic / self.chip.bandwidth,
        } | ({'links': sent / self.chip.link} if sent else {})  # alone, or nobody could count it

    @property
    def seconds(self) -> float:
        return max(self.bounds.values(), default=0.0)


@dataclass(frozen=True)
class Stage:
    """A stage on a target."""

    line: Line
    calls: tuple[Call, ...]
    instead: str = ''  # a setting with which it fits, where it does not as it is

    @property
    def largest(self) -> Call | None:
        return max(self.calls, key=lambda call: call.need, default=None)

    @property
    def seconds(self) -> float:
        """Of the whole stage, at least."""
        return sum(call.seconds * call.program.calls for call in self.calls)

    def fits(self, usable: float) -> bool:
        return all(call.found.fits and call.need <= usable * GIB for call in self.calls)


def stages(config: Any, folder: Path, target: Target) -> Iterator[Stage]:
    """Every stage of an experiment, compiled; those that do not fit with a setting that does, where one is found."""
    mesh, lines = target.mesh(config), config.lines(folder)
    with _pool() as pool:
        for line, calls in [(line, compile_line(line, config, mesh, target, pool)) for line in lines]:
            stage = Stage(line, tuple(call() for call in calls))
            if stage.calls and not stage.fits(target.usable):
                log.say(f'{plan.title(line, " ")} does not fit; trying other settings')
                stage = replace(stage, instead=instead(config, folder, line, target, pool))
            yield stage


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that compile. Whoever stops the program does not wait for what they have begun."""
    pool = ThreadPoolExecutor(axes.cores())
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def compile_line(
    line: Line, config: Any, mesh: AnyMesh, target: Target, pool: ThreadPoolExecutor
) -> list[Callable[[], Call]]:
    """Each program of a stage on a mesh, once it is compiled; none where nobody knows the sizes of its models."""
    sizes = plan.sizes_in(line, config)
    if None in sizes.values() or not sizes:
        return []

    def asked(program: Program) -> Callable[[], Call]:
        if not target.devices:
            return lambda: Call(program, Found.estimated(program), target.chip)
        found = pool.submit(compiled.compile, program, f'{target.name} {mesh.shape}')
        return lambda: Call(program, found.result(), target.chip)

    return [asked(program) for program in programs(line, sizes, mesh)]


def instead(config: Any, folder: Path, line: Line, target: Target, pool: ThreadPoolExecutor) -> str:
    """The first of `others` with which a stage fits, in words; `TRIES` are compiled at most."""
    tried = 0
    for words, changed, on in others(config, line, target):
        try:
            mesh = on.mesh(changed)
            for name, size in plan.batches(changed).items():
                axes.check_batch(name, size, mesh)
            same = next(one for one in changed.lines(folder) if plan.title(one) == plan.title(line))
        except (Mistake, StopIteration):
            continue
        estimate = plan.largest_of(same, plan.sizes_in(same, changed), mesh)
        if not estimate or estimate.need > 1.25 * on.usable * GIB:
            continue  # not worth a compilation
        if (tried := tried + 1) > TRIES:
            break
        stage = Stage(same, tuple(call() for call in compile_line(same, changed, mesh, on, pool)))
        if stage.largest and stage.fits(on.usable):
            return f'{words} fits ({stage.largest.need / GIB:.3g} GiB)'
    return 'take more chips, or a smaller model'


def others(config: Any, line: Line, target: Target) -> Iterator[tuple[str, Any, Target]]:
    """What may be tried where a stage does not fit: other settings, then the next larger slice. In words, as a config, and
    on what.
    """
    for changes in plan.settings(config, line, target.count):
        with suppress(Mistake):
            yield plan.spelled(changes), bind(config, changes), target
    if target.larger:
        larger = Target.of(target.larger.name)
        with suppress(Mistake):
            changed, changes = dividing(config, larger.count)
            yield ' '.join(filter(None, [larger.name, plan.spelled(changes)])), changed, larger


def dividing(config: Any, devices: int) -> tuple[Any, dict[str, Any]]:
    """The config with batches that the mesh divides, and what was changed: parts first, which change no number."""
    shape = plan.shape_of(config, devices)
    shares, values, changes = shape[0] * shape[1], parse(dump(config)), {}
    for path, size in values.items():
        above, _, name = path.rpartition('.')
        if not isinstance(size, int) or name.split('_')[-1] != 'batch' or not size:
            continue
        into = plan.falls_into(path, values)
        rows, parts = size // into.get(f'{above}.samples', 1), into.get(f'{above}.parts', 1)
        if rows // parts % shares == 0:
            continue
        fewer = next((n for n in range(parts, 0, -1) if rows % n == 0 and rows // n % shares == 0), None)
        if fewer:
            changes[f'{above}.parts'] = fewer
        elif f'{above}.steps' in values:  # a training batch is the experiment's own
            raise Mistake(
                f'{path} = {size}: a mesh that splits batches into {shares} wants a multiple of that; '
                f'give mesh.tensor={shares // size if size and shares % size == 0 else 2} mesh.fsdp=-1, or another batch'
            )
        else:
            changes[path] = -(-size // shares) * shares
    return bind(config, changes), changes


def show(name: str, config: Any, folder: Path, named: str, price: float | None, out: Path) -> None:
    """Print the plan of an experiment for each slice of 'v5p-32,v6e-64', and keep it in `out` as JSON and Markdown."""
    if several := plan.runs(config, folder):
        raise Mistake(f'--topology: {name} is made of runs; plan one of them, such as --experiment={several[0].name}')
    for target in [Target.of(one.strip()) for one in named.split(',')]:
        log.say(target.about, 'bold')
        fitted, changes = dividing(spread(config, target.count), target.count)
        plan.check(fitted, folder, target.mesh(fitted))
        if not target.devices:
            how = 'programs for a GPU are compiled where there is one (--topology=local)'
            if target.chip and target.chip.shapes:
                how = "pip install 'rlaif_jax[tpu]' brings the compiler for TPUs, also where there is none"
            log.say(f'{how}; this is arithmetic alone')
        if changes:
            log.say(f'so that the mesh divides batches: {plan.spelled(changes)}')
        found, count = [], len(fitted.lines(folder))
        with log.progress(f'stages compiled for {target.name}', count) if target.devices else nullcontext() as bar:
            for stage in stages(fitted, folder, target):
                found.append(stage)
                if bar:
                    bar.advance()
        written = _tell(name, fitted, target, found, price)
        for needed in plan.needed(fitted, folder):
            log.say(needed)
        out.mkdir(parents=True, exist_ok=True)
        file = out / f'{folder.name}-{target.name}'  # as a run's folder, of this config alone
        log.write_whole(file.with_suffix('.json'), log.to_json(_record(name, fitted, target, found, price)) + '\n')
        log.write_whole(file.with_suffix('.md'), written)
        log.say(f'kept in {file}.json and .md')


def spread(config: Any, devices: int) -> Any:
    """The config on all devices: a mesh that says nothing of them splits batches."""
    if config.mesh == type(config.mesh)() and devices > 1:
        return bind(config, {'mesh.data': -1})
    return config


COLUMNS = ['stage', 'GiB a device', 'of usable', 'fits', 'a call takes ≥', 'tokens/s a chip ≤', 'limited by']


def _tell(name: str, config: Any, target: Target, found: Sequence[Stage], price: float | None) -> str:
    """Print the plan; the same as Markdown."""
    rows = []
    for stage in found:
        for i, call in enumerate(stage.calls):
            over = call.need / GIB - target.usable
            verdict = 'fits' if call.found.fits and over <= 0 else f'too large by {max(over, 0.01):.3g} GiB'
            bounds = call.bounds
            speed = call.program.tokens / call.seconds / target.chips if call.seconds else 0
            rows.append([
                (plan.title(stage.line, ' ') + '\n' if not i else '') + f'  {call.program.name}',
                f'{call.need / GIB:.3g}', f'{call.need / GIB / target.usable:.0%}' if target.usable else '–', verdict,
                _spell(call.seconds) if bounds else '–', f'{speed:,.0f}' if speed else '–',
                max(bounds, key=bounds.get) if bounds else '–',
            ])  # fmt: skip
        if not stage.calls:
            rows.append([plan.title(stage.line, ' '), '–', '–', 'simulated, or sizes unknown', '–', '–', '–'])
    log.figures_table(f'{name} on {target.about}', COLUMNS, rows)
    sentences = [
        f'{plan.title(stage.line, " ")} does not fit: {stage.instead}' for stage in found if stage.instead
    ] or ['all stages fit']
    seconds = sum(stage.seconds for stage in found)
    if seconds:
        hours = [seconds / use / 3600 for use in USE]
        chip_hours = [each * target.chips for each in hours]
        size, unit = (1, 'h') if hours[1] >= 1 else (60, 'minutes')
        text = f'in all {size * hours[0]:.3g} to {size * hours[1]:.3g} {unit} at {USE[0]:.0%} to {USE[1]:.0%} of the '
        text += f'bound, {chip_hours[0]:.3g} to {chip_hours[1]:.3g} chip-hours'
        if price:
            low, high = (
                f'{hours * price:,.0f}' if hours * price >= 10 else f'{hours * price:.2g}' for hours in chip_hours
            )
            text += f'; {low} to {high} at {price:g} a chip-hour'
        sentences.append(text)
    most: dict[str, float] = {}
    for stage in found:
        for call in stage.calls:
            for kind, amount in call.found.sent.items():
                most[kind] = most.get(kind, 0.0) + amount * call.program.calls / max(stage.line.steps, 1)
    if most:
        sent = ', '.join(f'{kind} {plan.gib(amount)}' for kind, amount in sorted(most.items(), key=lambda one: -one[1]))
        sentences.append(f'sent to each device, a step of every stage together: {sent}')
    whole = {name: call.program.name for stage in found for call in stage.calls for name in call.found.whole}
    sentences += [
        f'{name} is whole on each device in {where}, where it ought to be split' for name, where in whole.items()
    ]
    sentences += [] if target.devices else ['an estimate by arithmetic: nothing was compiled']
    sentences += (
        []
        if not target.devices
        else [
            f'compiled by jax {jax.__version__} {compiled.compiler()} in '
            f'{timedelta(seconds=round(sum(call.found.seconds for stage in found for call in stage.calls)))} '
            'of processor time; memory is the compiler’s figure, a little high perhaps; time is a bound, not a promise'
        ]
    )
    for sentence in sentences:
        log.say(sentence)
    flat = [[cell.replace('\n', ' ') for cell in map(str, row)] for row in rows]
    return f'# {name} on {target.about}\n\n{_markdown(flat)}\n\n' + '\n'.join(f'- {one}' for one in sentences) + '\n'


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [COLUMNS, ['---'] * len(COLUMNS), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _spell(seconds: float) -> str:
    return f'{seconds * 1e3:.3g} ms' if seconds < 1 else f'{seconds:.3g} s'


def _record(name: str, config: Any, target: Target, found: Sequence[Stage], price: float | None) -> dict[str, Any]:
    """The plan as plain JSON."""
    return {
        'experiment': name, 'topology': target.name, 'chips': target.chips, 'usable_gib': target.usable,
        'config': parse(dump(config)), 'jax': jax.__version__, 'compiler': compiled.compiler(),
        'hours_bound': sum(stage.seconds for stage in found) / 3600, 'price': price,
        'stages': [
            {
                'stage': plan.title(stage.line, ' '), 'fits': stage.fits(target.usable), 'instead': stage.instead,
                'seconds_bound': stage.seconds,
                'programs': [
                    {
                        'program': call.program.name, 'calls': call.program.calls, 'bytes': call.need,
                        'bytes_estimated': call.program.need, 'fits': call.found.fits,
                        'whole': call.found.whole, 'flops': call.program.flops,
                        'traffic': call.program.traffic, 'sent': call.found.sent, 'seconds_bound': call.bounds,
                    }
                    for call in stage.calls
                ],
            }
            for stage in found
        ],
    }  # fmt: skip
