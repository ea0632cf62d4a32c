"""Run an experiment once for each point of a sweep:

    python launch/sweep.py --experiment=tldr_direct 'reinforce.beta=[0.0,0.05,0.2]' '--seed=[0,1,2]'
    python launch/sweep.py --experiment=tldr_direct --sweep=beta --parallel=2

A binding to a list is swept, unless its field is a tuple and takes the list as its value. Lists are crossed with each
other and with --sweep=NAME, the points of sweep_NAME() beside the experiment; --zip takes them side by side instead. A
point is a run of launch/run.py in a folder of its own, in the sweep's folder; its stages are those of all other runs.
The same command again, with more values too, runs what is not finished. --backend=slurm or sky writes a job a point, as
launch/submit.py does, and runs nothing but with --go. --backend=print is for a queue of your own: a line a point, to run
anywhere on this file system. Once all have run, the command without it prints the table.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import hashlib
import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python launch/sweep.py` puts launch/, not the root, on the path

from launch import run as launcher  # noqa: E402
from launch import submit, sweep_table  # noqa: E402
from launch.sweep_table import SEED, Row  # noqa: E402
from rlaif_jax import hosts, log, paths, stopping  # noqa: E402
from rlaif_jax.config import Bindings, Mistake, help_text, over, parse, parse_binding, product, same, zipped  # noqa: E402
from rlaif_jax.folder import check_folder, finished, lock, sharing  # noqa: E402

RUN = ROOT / 'launch' / 'run.py'
OUTPUT = 'output.log'  # in a point's folder: everything that its runs printed
SHOWN = 6  # lines of it that are told of a point that failed
POLL = 0.1  # seconds between two looks at what is running
TOLD = 60.0  # seconds between two lines on each run
WIDE = 80  # characters of its output in one


@dataclass(frozen=True, eq=False)
class Point:
    """One run of a sweep. Nothing of it exists on disk until it is started."""

    bindings: Bindings  # what the sweep changes, as the config keeps it; the seed among them
    arguments: tuple[str, ...]  # of launch/run.py, but for the folders
    folder: Path
    config: Any
    text: str  # the whole config, as config.gin has it
    stages: Path  # where it finds and leaves what points share

    @property
    def name(self) -> str:
        return self.folder.name

    @functools.cached_property
    def values(self) -> Bindings:
        """All of its config by path, changed by the sweep or not."""
        return parse(self.text) | self.bindings

    @functools.cached_property  # because it reads the weights that a stage starts from
    def shared(self) -> list[Path]:
        """The folders of the stages that other points may need too."""
        try:
            with sharing(self.stages):
                return [line.folder for line in self.config.lines(self.folder) if line.folder != self.folder]
        except Mistake:  # the run says so, when its turn comes
            return []

    def unmade(self) -> set[Path]:
        """Those of the shared stages that nobody has finished yet."""
        return {folder for folder in self.shared if result(folder) is None}


def main(arguments: list[str] | None = None, runner: Path = RUN) -> int:
    """The program. Returns its exit status: 0 all finished, 1 some points failed, 2 bad input, 130 stopped, 75
    another process is lost (try again).

    `runner` is the program that runs a point.
    """
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')  # as launch/run.py does
    log.show_any_sign(sys.stdout, sys.stderr)
    try:
        flags = launcher.read_flags(parser(), arguments)
        launcher.check_here()
        if flags.backend == 'print':
            with contextlib.redirect_stdout(io.StringIO()):  # commands alone: what there is to say each of them says
                points = plan(flags)[1]
            print('\n'.join(shell(point, runner) for point in points))
            return 0
        if flags.backend in submit.CLUSTERS:
            return hand_over(flags, arguments)
        hosts.start(flags.hosts)
        folder, found = plan(flags)
        if hosts.count() > 1 and (flags.parallel or 1) > 1:
            raise Mistake(
                f'--parallel={flags.parallel}: {hosts.count()} processes run one point after the other, together'
            )
        with lock(folder):
            failed = run_points(found, flags.parallel or 1, runner)
            return report(folder, found, failed, flags.figures)
    except hosts.Elsewhere as mistake:
        return mistake.status
    except Mistake as mistake:
        log.error(str(mistake))
        return mistake.status
    except hosts.Lost as lost:
        log.error(f'{lost}; the same command goes on')
        return launcher.LOST
    except OSError as error:
        return launcher.refuse(error)
    except KeyboardInterrupt:
        log.error('stopped; the same command goes on with what is not finished')
        return 130


def parser() -> argparse.ArgumentParser:
    out = launcher.new_parser('launch/sweep.py', __doc__)
    launcher.add_choice(out, 'runs/sweeps/EXPERIMENT-SCALE-NAME')
    out.add_argument('--sweep', metavar='NAME', help='the points of sweep_NAME(), beside the experiment')
    out.add_argument('--zip', action='store_true', help='first values of all lists together, then the second ones, ...')
    out.add_argument('--seed', metavar='SEED|[SEED,...]', help='one for all points, or a list to sweep')
    out.add_argument(
        '--backend', choices=['local', *submit.CLUSTERS, 'print'], default='local',
        help='local: run; slurm, sky: a job for a cluster; print: the commands, run nothing',
    )  # fmt: skip
    out.add_argument('--dry_run', action='store_const', dest='backend', const='print', help='as --backend=print')
    out.add_argument(
        '--parallel', type=int, help='so many runs at once (default: 1, where they share a machine; all of a job)'
    )
    out.add_argument('--figures', help='a,b,...: columns of the table, named as in sweep.csv')
    submit.add_job(out.add_argument_group('with --backend=slurm or sky'))
    return out


# What is to run


def plan(flags: argparse.Namespace) -> tuple[Path, list[Point]]:
    """The folder of the sweep and its points. Raises `Mistake`, before anything is written, for what cannot run."""
    import experiments

    if not flags.experiment:
        raise Mistake(f'which experiment? --experiment=NAME, one of: {", ".join(experiments.experiments())}')
    experiment = experiments.find(flags.experiment)
    if flags.parallel is not None and flags.parallel < 1:
        raise Mistake(f'--parallel={flags.parallel}: at least one run at a time')
    typed = [parse_binding(text) for text in flags.binding]
    typed += [parse_binding(f'{SEED}={flags.seed}')] if flags.seed is not None else []
    lists, fixed = split(experiment, typed)
    scale = flags.scale or fixed.pop('scale', None)
    sweeps = [named(experiment, flags.sweep, scale or 'micro')] if flags.sweep else []
    sweeps += [over(path, values) for path, values in lists]
    if not sweeps:
        seeds = flags.seed if flags.seed and ',' in flags.seed else '0,1,2'
        raise Mistake(f'nothing is swept; give --sweep=NAME, or a list such as --seed=[{seeds}]')
    sweep = (zipped if flags.zip else product)(*sweeps)
    if not sweep:
        raise Mistake(f'the sweep is empty: {flags.sweep or ", ".join(path for path, values in lists if not values)}')
    if twice := sorted({path for bindings in sweep for path in bindings} & fixed.keys()):
        raise Mistake(f'{twice[0]}: is swept, and bound to {fixed[twice[0]]!r} for all points at once')

    own = [f'--bindings={file}' for file in flags.bindings] + [argument(*item) for item in sorted(fixed.items())]
    chosen = [f'--experiment={flags.experiment}', *([f'--scale={scale}'] if scale else [])]
    alone = ['--hosts=off'] * (flags.hosts == 'off')
    if flags.workdir is not None:
        folder = paths.typed(flags.workdir)
        return folder, points(sweep, [*chosen, *own, *alone], folder, launcher.stages_of(flags, folder))
    words = sorted(path.rpartition('.')[2] for path, _ in lists if path != SEED) or [SEED]  # more seeds, same folder
    always = changed(sweep, chosen, own)
    parts = [flags.experiment, scale or 'micro', flags.sweep or '-'.join(words), *([digest(always)] if always else [])]
    folder = Path('runs/sweeps') / '-'.join(map(str, parts))
    return folder, points(sweep, [*chosen, *own, *alone], folder, launcher.stages_of(flags, folder))


def changed(sweep: list[Bindings], chosen: Sequence[str], own: Sequence[str]) -> list[tuple[str, Any]]:
    """What all points bind, as their configs have it, where that is not the experiment's default."""

    def config(*arguments: str) -> Bindings:
        return parse(launcher.read_config(launcher.read_flags(launcher.parser(), [*chosen, *arguments]))[2])

    first = {path: argument(path, value) for path, value in sweep[0].items()}
    plain, paths = (
        config(*[text for path, text in first.items() if path == SEED]),
        {path for one in sweep for path in one},
    )
    bound = config(*own, *first.values())
    return sorted((path, value) for path, value in bound.items() if path not in paths and plain.get(path) != value)


def split(experiment: Callable[..., Any], typed: list[tuple[str, Any]]) -> tuple[list[tuple[str, list]], Bindings]:
    """Typed bindings as those to sweep, in order, and those that hold for every point."""
    from experiments.scales import SCALES

    kinds = {path: kind for path, kind, _ in help_text(experiment(next(iter(SCALES.values()))))}
    lists = [item for item in typed if isinstance(item[1], list) and 'tuple[' not in kinds.get(item[0], '')]
    return lists, dict(item for item in typed if item not in lists)


def named(experiment: Callable[..., Any], name: str, scale_name: str) -> list[Bindings]:
    """The points of the sweep of that name beside an experiment; one that depends on the scale is given it. Raises
    `Mistake` naming the nearest one.
    """
    beside = vars(sys.modules[experiment.__module__])
    known = {key.removeprefix('sweep_'): value for key, value in beside.items() if key.startswith('sweep_')}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.0)
        hint = f'did you mean {near[0]}?' if near else 'there is none; give lists, such as --seed=[0,1,2]'
        raise Mistake(f'no sweep {name!r} beside {experiment.__name__}; {hint}')
    from experiments.scales import scale

    row = [scale(scale_name)] if inspect.signature(known[name]).parameters else []
    return known[name](*row)


def points(sweep: list[Bindings], always: Sequence[str], folder: Path, stages: Path) -> list[Point]:
    """A point for each of the bindings, with the arguments that all share.

    Raises `Mistake` where one does not bind, comes twice, or has a folder that belongs to another config.
    """
    found = {}
    for bindings in sweep:
        changes = [argument(path, value) for path, value in bindings.items()]
        flags = launcher.read_flags(launcher.parser(), [*always, *changes])
        _, config, text = launcher.read_config(flags)
        if flags.shard:
            raise Mistake(
                f'shard={flags.shard}: a point of a sweep leaves figures, and a shard none; run it by launch/run.py'
            )
        exact = parse(text)  # 0 typed for a float is 0.0 there: one point, one name
        bindings = {path: value if path == SEED else exact.get(path, value) for path, value in bindings.items()}
        here = folder / slug(bindings)
        if here in found:
            raise Mistake(f'{here.name}: this point is there twice')
        if (here / 'config.gin').exists():
            check_folder(here, text, same(config))
        found[here] = Point(bindings, (*always, *changes), here, config, text, stages)
    return list(found.values())


def argument(path: str, value: Any) -> str:
    """A binding as one argument of launch/run.py, which reads the same value back."""
    value = value.tolist() if hasattr(value, 'tolist') else value  # of numpy, which sweeps are full of
    if path == SEED:
        if type(value) is not int:
            raise Mistake(f'{SEED}: wants int, got {value!r}')
        return f'--{SEED}={value}'
    return f'{path}={json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)}'


def slug(bindings: Bindings) -> str:
    """The name of a point's folder: the same values, in whatever order they were swept, have the same name."""
    items = sorted(bindings.items(), key=lambda item: (item[0] == SEED, item[0]))
    text = ','.join(f'{path}={value}' for path, value in items) or 'default'
    name = re.sub(r'[^\w.,=+-]+', '_', text, flags=re.ASCII)
    return name if name == text and len(name) <= 120 else f'{name[:100]}-{digest(items)}'


def digest(anything: Any) -> str:
    return hashlib.sha256(repr(anything).encode()).hexdigest()[:6]


def command(point: Point, runner: Path = RUN) -> list[str]:
    """The command line that runs a point, from the folder in which the sweep was started."""
    folders = [f'--workdir={point.folder}', f'--stages={point.stages}']
    return [sys.executable, os.path.relpath(runner), *point.arguments, *folders]


def shell(point: Point, runner: Path = RUN) -> str:
    """A line of shell that runs a point from anywhere."""
    return f'cd {shlex.quote(os.getcwd())} && {shlex.join(command(point, runner))}'


# Jobs


def hand_over(flags: argparse.Namespace, arguments: list[str] | None) -> int:
    """Write the points that are not finished as a job of a cluster, and hand it over with --go."""
    folder, points = plan(flags)
    typed = sys.argv[1:] if arguments is None else arguments
    here = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    here.add_argument('--backend')
    here.add_argument('--parallel')
    submit.add_job(here)
    table = submit.command('sweep.py', here.parse_known_args(typed)[1])
    number = {point: i for i, point in enumerate(points)}
    left = [point for point in points if result(point.folder) is None or getattr(point.config, 'always', False)]
    if not left:
        log.say(f'all {len(points)} points have finished; the table:')
        log.say(f'  {table}', whole=True)
        return 0
    jobs = submit.Jobs(
        folder.name,
        folder,
        [submit.Task(point.arguments, point.folder, point.stages, point.config) for point in points],
        [[number[point] for point in wave] for wave in waves(left)],
        submit.command('sweep.py', typed),
        parallel=flags.parallel,
        then=f'Once all have ended, the table: {table}',
    )
    return submit.hand_over(jobs, flags.backend, flags)


def waves(points: Sequence[Point]) -> list[list[Point]]:
    """Points in the order in which a cluster may run them, all of a wave at once: no two of a wave need a stage that none
    before has made. On several machines they could not wait for each other, as file locks may be lacking.
    """
    found: list[list[Point]] = []
    waiting, made = list(points), set()
    while waiting:
        wave, making = [], set()
        for point in waiting:
            if making.isdisjoint(needed := point.unmade() - made):
                wave.append(point)
                making |= needed
        found.append(wave)
        waiting = [point for point in waiting if point not in wave]
        made |= making
    return found


# Running


def run_points(points: list[Point], parallel: int = 1, runner: Path = RUN) -> dict[str, list[str]]:
    """Run what is not finished, `parallel` at once. Returns, by name, how each point that failed ended, then the last
    lines of its output.

    On Ctrl-C or SIGTERM no other point starts, and those that run are told once; they save and end.
    """
    line = {point: f'{number}/{len(points)} {point.name}' for number, point in enumerate(points, 1)}
    waiting, running, failed, told, free = [], {}, {}, False, shares(parallel)
    looked = time.monotonic()
    for point in points:
        if hosts.told(lambda: result(point.folder) is not None) and not getattr(point.config, 'always', False):  # noqa: B023
            log.say(f'{line[point]}: already finished')
        else:
            waiting.append(point)
    with stopping.stop_on_signal() as stop:
        try:
            halted = False
            while running or (waiting and not halted):
                room = waiting and len(running) < parallel
                if room and not (halted := hosts.told(lambda: stop.asked)) and (point := startable(waiting, running)):
                    waiting.remove(point)
                    log.say(f'{line[point]}: starts; its output goes to {point.folder / OUTPUT}')
                    running[point] = run_point(point, runner, share := free.pop(0)), time.monotonic(), share
                    continue
                if stop.asked and not told:
                    told = True
                    for child, *_ in running.values():
                        child.terminate()
                for point in [point for point, (child, *_) in running.items() if child.poll() is not None]:
                    child, began, share = running.pop(point)
                    free.append(share)
                    took, lines = timedelta(seconds=round(time.monotonic() - began)), ending(point, child.returncode)
                    stopped = child.returncode in (130, -signal.SIGTERM)
                    if stopped and hosts.count() > 1:  # by one of the processes, so by all
                        told = halted = stop.asked = True
                    if stopped and told:
                        log.say(f'{line[point]}: stopped')
                    elif lines:
                        failed[point.name] = lines
                        log.say(f'{line[point]}: failed after {took}: {brief(lines)}')
                    else:
                        log.say(f'{line[point]}: finished in {took}')
                if (now := time.monotonic()) - looked >= TOLD:
                    looked = now
                    for point, (_, began, _) in running.items():
                        took, last = timedelta(seconds=round(now - began)), (printed(point) or ['nothing yet'])[-1]
                        log.say(f'{line[point]}: running for {took}: {last.strip()[:WIDE]}')
                time.sleep(POLL)
        finally:  # told twice, they do not wait for their step
            for child, *_ in running.values():
                child.terminate()
            for child, *_ in running.values():
                child.wait()
    return failed


def startable(waiting: Iterable[Point], running: Iterable[Point]) -> Point | None:
    """The first point that needs no stage which a running one is still making: it would hold a place, and memory, only to
    wait for it.
    """
    making = {folder for point in running for folder in point.unmade()}
    return next((point for point in waiting if making.isdisjoint(point.unmade())), None)


def shares(parallel: int) -> list[set[int]]:
    """Cores for each of so many runs; empty sets, all cores for all, where there are fewer cores than runs.

    One run alone does not keep them busy: two side by side, a core each, take 1.2 times as long as one that has both.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    size = len(cores) // parallel
    return [set(cores[i * size : (i + 1) * size]) for i in range(parallel)]


def run_point(point: Point, runner: Path = RUN, share: Iterable[int] = ()) -> subprocess.Popen:
    """Start a point, on its share of the cores. It is in a process group of its own, so that Ctrl-C reaches it once,
    through the sweep.
    """
    point.folder.mkdir(parents=True, exist_ok=True)
    with open(output(point), 'a', encoding='utf-8') as file:
        print('$', shlex.join(command(point, runner)), file=file, flush=True)
        child = subprocess.Popen(
            command(point, runner),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {'PYTHONUNBUFFERED': '1'} | hosts.together(),
            process_group=0,
        )
    if share:
        with contextlib.suppress(ProcessLookupError):  # ended already
            os.sched_setaffinity(child.pid, share)  # before it has any thread
    return child


def ending(point: Point, status: int) -> list[str]:
    """[] for a run that finished; else how it ended, then the last lines of its output."""
    if status == 0 and result(point.folder) is not None:
        return []
    how = f'killed by {signal.Signals(-status).name}' if status < 0 else f'exit status {status}'
    return [how if status else 'left no result', *printed(point)[-SHOWN:]]


def printed(point: Point) -> list[str]:
    """What the runs of a point printed, without empty lines."""
    lines = output(point).read_text(encoding='utf-8', errors='replace').splitlines()
    return [text for text in lines if text.strip()]


def output(point: Point) -> Path:
    """Where runs of a point print; those of another process than the first in a file of their own."""
    return point.folder / (OUTPUT if hosts.first() else f'{OUTPUT}.{hosts.index()}')


def brief(lines: list[str]) -> str:
    return f'{lines[0]}: {lines[-1].strip()}'


def result(folder: Path) -> dict | None:
    """What a finished run found; None where there is nothing to read. (A damaged one is for the run to complain of.)"""
    try:
        return finished(folder)
    except Mistake:
        return None


# What was found


def report(folder: Path, points: list[Point], failed: dict[str, list[str]], figures: str | None = None) -> int:
    """Print the table, and write sweep.csv. Returns the exit status of the sweep."""
    results = {point.name: result(point.folder) for point in points if point.name not in failed}
    if left := sum(found is None for found in results.values()):
        log.error(f'stopped with {left} of {len(points)} points to do; the same command goes on')
        return 130
    rows = []
    for point in points:
        why, numbers = failed.get(point.name), sweep_table.figures_of(results.get(point.name))
        rows.append(Row(point.name, point.bindings, point.values, numbers, brief(why) if why else ''))
    from experiments import pages

    csv = sweep_table.as_csv(rows)
    log.write_whole(folder / 'sweep.csv', csv)
    try:
        wrong, chosen = '', sweep_table.choose(rows, figures)
    except Mistake as mistake:  # the points have cost hours: a wrong name costs no table
        wrong, chosen = str(mistake), sweep_table.choose(rows)
    columns, cells = sweep_table.table(rows, chosen)
    about = ''.join(f': {word}' for word in sweep_table.common(chosen))
    simulated = any(numbers.get('simulated') for numbers in results.values())
    world = 'SIMULATED world, ' if simulated else ''
    title, legend = f'{world}{len(results)} of {len(points)} points finished{about}', sweep_table.legend(cells)
    log.figures_table(title, columns, cells)
    if legend:
        log.say(f'{legend}\n')
    commands = [shlex.join(['python', 'launch/run.py', *point.arguments]) for point in points]
    hosts.told(lambda: pages.of_sweep(folder, title, columns, cells, legend, csv, commands, simulated))
    log.say(f'all figures, a line a point: {folder / "sweep.csv"}; to look at: {folder / pages.PAGE}')
    for name, lines in failed.items():
        log.error('\n  '.join([f'{name}: {lines[0]}; the end of {folder / name / OUTPUT}:', *lines[1:]]))
    if wrong:
        log.error(wrong)
    return 1 if failed else 2 if wrong else 0


if __name__ == '__main__':
    for name in ('SIGTERM', 'SIGHUP'):
        if signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:  # not under nohup
            signal.signal(getattr(signal, name), signal.default_int_handler)  # stops as Ctrl-C does, wherever it is
    sys.exit(launcher.leave(main()))
