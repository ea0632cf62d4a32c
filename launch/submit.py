"""Write a run as a job of a cluster: python launch/submit.py --to=slurm --experiment=tldr_direct [--gpus=8 ...]

The flags and bindings of launch/run.py, and a few of the job. The file lies beside the run folder, in RUN.job/, and is
printed with the lines to type; --go hands it over at once. What a site always wants stands in a file: [slurm] or [sky] in
~/.config/rlaif_jax/site.toml, or --site=FILE. What no flag knows goes through as it is: --set qos=high.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python launch/submit.py` puts launch/, not the root, on the path

from experiments import chips, plan  # noqa: E402
from launch import run as launcher  # noqa: E402
from rlaif_jax import log, paths  # noqa: E402
from rlaif_jax.config import FILE, MOST, Mistake, bind, check_within, literal, nearest, parse_binding, same  # noqa: E402
from rlaif_jax.folder import check_folder  # noqa: E402

RUN = ROOT / 'launch' / 'run.py'
RUNTIMES = {  # of a TPU's chip: what its machines are started with
    'v4': 'tpu-ubuntu2204-base', 'v5e': 'v2-alpha-tpuv5-lite', 'v5p': 'v2-alpha-tpuv5', 'v6e': 'v2-alpha-tpuv6e',
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One run of a job."""

    arguments: tuple[str, ...]  # of launch/run.py, but for its folders
    folder: Path
    stages: Path
    config: Any


@dataclass(frozen=True)
class Jobs:
    """Runs that a cluster is given in one file."""

    name: str
    folder: Path  # what they make together; the file lies beside it
    tasks: Sequence[Task]
    waves: Sequence[
        Sequence[int]
    ]  # the tasks that are to run, by number; none before those of the wave before have ended
    typed: str  # the command that made this
    after: str = 'any'  # how the wave before has to have ended: 'any', or 'ok'
    parallel: int | None = None  # so many tasks of a wave at once; all of them where it is None
    alone: bool = False  # each is one process, which drives all that its machine has
    then: str = ''  # what to do once all have ended

    @property
    def place(self) -> Path:
        """The folder of the file, and of what the cluster prints."""
        return self.folder.with_name(f'{self.folder.name}.job')


# What a site may say, and flags


@dataclass(frozen=True)
class Job:
    """What any cluster is asked for."""

    nodes: int = 1
    gpus: int = 1  # of a node
    accelerator: str = ''
    retries: int = 3  # of a run that ended as it should not
    before: tuple[str, ...] = ()  # lines of shell before the program
    programs: str = ''  # where compiled programs are kept, for all to find; '': beside the stages
    python: str = ''  # '': the one that wrote the job, where the machines share it
    set: tuple[str, ...] = ()  # name=value, as the cluster calls it

    def __post_init__(self) -> None:
        check_within(self, 1, MOST, 'nodes')
        check_within(self, 0, MOST, 'gpus', 'retries')

    def devices(self, jobs: Jobs) -> int:
        """How many a run has; 0 where that is a CPU's own affair."""
        return self.gpus * (1 if jobs.alone else self.nodes)

    def given(self) -> dict[str, str | None]:
        """`set` by name; None where there is no value."""
        return {name: value if equals else None for name, equals, value in (text.partition('=') for text in self.set)}


@dataclass(frozen=True)
class Slurm(Job):
    account: str = ''
    partition: str = ''
    qos: str = ''
    constraint: str = ''
    time: str = ''  # as sbatch has it, 24:00:00; '': the partition's own
    grace: int = 300  # seconds before the end of its time in which a run stops and saves
    container: str = ''  # an image, where pyxis is
    mounts: str = ''  # more folders in it than the one that one is in, FROM:TO,FROM:TO

    file, command = 'slurm.sh', 'sbatch'

    def text(self, jobs: Jobs) -> str:
        several, here = len(jobs.tasks) > 1, os.getcwd()
        ranks = 1 if jobs.alone else max(self.gpus, 1)
        log_file = f'{Path(here, jobs.place)}'.replace('%', '%%') + f'/slurm-{"%A_%a" if several else "%j"}.log'
        kind = f'{self.accelerator}:' if self.accelerator else ''
        options = {
            'job-name': jobs.name, 'account': self.account, 'partition': self.partition, 'qos': self.qos,
            'constraint': self.constraint, 'nodes': self.nodes, 'ntasks-per-node': ranks,
            # With gpus-per-task each task would see one GPU, number 0, and JAX look for the one of its own number.
            'gpus-per-node': f'{kind}{self.gpus}' if self.gpus else '', 'time': self.time,
            'signal': f'TERM@{self.grace}',  # no B:, which is for the shell alone
            'requeue': None, 'open-mode': 'append', 'output': log_file,
            'array': array(jobs.waves[0], jobs.parallel) if several else '',
        }  # fmt: skip
        mounts = ','.join(filter(None, [f'{here}:{here}', self.mounts]))
        within = [f'--container-image={self.container}', f'--container-mounts={mounts}', f'--container-workdir={here}']
        python = self.python or ('python' if self.container else sys.executable)
        return rendered(
            self.file,
            jobs=jobs,
            job=self,
            lines=self.lines(jobs),
            options={name: value for name, value in (options | self.given()).items() if value != ''},
            here=here,
            together=self.nodes * ranks > 1,
            container=within if self.container else [],
            programs=self.programs or str(jobs.tasks[-1].stages.with_name('programs')),
            runs=[run_line(python, os.path.relpath(RUN), task, task.folder, task.stages) for task in jobs.tasks],
        )

    def lines(self, jobs: Jobs) -> list[str]:
        """Lines of shell that hand the job over. All may be typed at once: a wave waits for the one before."""
        file, found = shlex.quote(str(jobs.place / self.file)), []
        for number, wave in enumerate(jobs.waves):
            words, last = ['sbatch'], number + 1 == len(jobs.waves)
            words += [] if last else ['--parsable']  # which says its number and no more, or NUMBER;CLUSTER
            words += [f'--array={array(wave, jobs.parallel)}'] * (len(jobs.waves) > 1)
            words += [f'--dependency=after{jobs.after}:${{wave%;*}}'] * (number > 0)
            line = ' '.join([*words, file])
            found.append(line if last else f'wave=$({line})')
        return found

    def trial(self, file: Path) -> str:
        """A line of shell that asks what the cluster thinks of it."""
        return f'sbatch --test-only {shlex.quote(str(file))}'


@dataclass(frozen=True)
class Sky(Job):
    infra: str = ''  # gcp/us-central1/us-central1-a; '': SkyPilot chooses
    spot: bool = True
    queued: bool = True  # a TPU slice is waited for
    bucket: str = ''  # where runs are kept
    store: str = 'gcs'  # whose bucket it is
    mount: str = '/bucket'  # where machines see it

    file, command = 'sky.yaml', 'sky'

    def text(self, jobs: Jobs) -> str:
        if not self.bucket:
            raise Mistake('which bucket? Runs have to outlive their machines: --set bucket=NAME, or bucket in [sky]')
        tpus = slice_of(self.accelerator)
        if not self.accelerator or not (tpus or self.gpus):
            raise Mistake('which accelerator? --accelerator=v5e-16, or --accelerator=H100 --gpus=8')
        if tpus and self.nodes > 1:
            raise Mistake(f'--nodes={self.nodes}: a TPU slice is one node, however many machines it has')
        if jobs.parallel:
            raise Mistake(f'--parallel={jobs.parallel}: SkyPilot starts all at once; leave it out')
        output = getattr(jobs.tasks[-1].config, 'output', '')
        if getattr(jobs.tasks[-1].config, 'input', '') and output and not output.startswith(f'{self.mount}/'):
            kept = Path(self.mount, Path(output).name)
            raise Mistake(f'output={output} would be lost with the machine; name a path in the bucket, output={kept}')
        given = getattr(jobs.tasks[-1].config, 'input', '')
        if Path(given).is_absolute() and not given.startswith(f'{self.mount}/'):
            kept = Path(self.mount, Path(given).name)
            raise Mistake(
                f'input={given} is not on the machine; name a path in this clone or in the bucket, input={kept}'
            )
        kind, slice_args = f'{self.accelerator}:{self.gpus}', ''
        if tpus:
            kind = f'tpu-{tpus.name.replace("v5e", "v5litepod")}:1'
            slice_args = {'runtime_version': RUNTIMES[tpus.chip.name], 'gcp_queued_resource': self.queued}
        recovery = {'max_restarts_on_errors': self.retries, 'recover_on_exit_codes': [130]}
        resources = {
            'infra': self.infra, 'accelerators': kind, 'accelerator_args': slice_args, 'use_spot': self.spot,
            'job_recovery': recovery,
        }  # fmt: skip
        resources = {name: json.dumps(value) for name, value in resources.items() if value != ''} | self.given()
        return rendered(
            self.file,
            jobs=jobs,
            job=self,
            name=re.sub(r'[^a-z0-9-]+', '-', jobs.name.lower()).strip('-')[:60],
            root=str(ROOT),
            lines=self.lines(jobs),
            resources=resources,
            extra='tpu' if tpus else 'gpu',
            programs=self.programs or str(Path(self.mount, jobs.tasks[-1].stages.with_name('programs'))),
            runs=[
                run_line(self.python or 'python', 'launch/run.py', task, self.kept(task.folder), self.kept(task.stages))
                for task in jobs.tasks
            ],
        )

    def devices(self, jobs: Jobs) -> int:
        tpus = slice_of(self.accelerator)
        return tpus.chips * tpus.chip.devices if tpus else super().devices(jobs)

    def kept(self, folder: Path) -> Path:
        """Where machines see what lies in `folder` here."""
        if folder.is_absolute() or '..' in folder.parts:
            raise Mistake(f'{folder}: lies on this machine; name a path from here, which is one in the bucket, too')
        return Path(self.mount, folder)

    def lines(self, jobs: Jobs) -> list[str]:
        """Lines of shell that hand the job over, a line a wave; the next one is for when these have ended."""
        file, found = shlex.quote(str(jobs.place / self.file)), []
        for wave in jobs.waves:
            words = ['sky', 'jobs', 'launch']
            if len(jobs.tasks) > 1:
                words += [f'--num-jobs={len(wave)}', f"--env TASKS='{' '.join(map(str, wave))}'"]
            found.append(' '.join([*words, file]))
        return found

    def trial(self, file: Path) -> str:
        """A line of shell that asks what it would cost."""
        return f'sky launch --dryrun {shlex.quote(str(file))}'


CLUSTERS: dict[str, type[Slurm] | type[Sky]] = {'slurm': Slurm, 'sky': Sky}


def slice_of(accelerator: str) -> chips.Slice | None:
    """The TPU slice that is named v5e-16, or tpu-v5litepod-16; None of anything else. Raises `Mistake` for one that there
    is not.
    """
    called_so = re.fullmatch(r'(?:tpu-)?v\d+\w*-\d+', accelerator.lower())
    return chips.find(accelerator, '--accelerator') if called_so else None


def array(tasks: Iterable[int], parallel: int | None = None) -> str:
    """Numbers as sbatch has them: '0-2,5%4' of 0, 1, 2 and 5, four at once."""
    runs: list[list[int]] = []
    for number in tasks:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ','.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)
    return text + (f'%{parallel}' if parallel else '')


def run_line(python: str, runner: str, task: Task, folder: Path, stages: Path) -> str:
    """The words of a run, as bash reads them."""
    return shlex.join([python, runner, *task.arguments, f'--workdir={folder}', f'--stages={stages}'])


def rendered(template: str, /, **values: Any) -> str:
    """A template of launch/jobs/."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name('jobs')),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters['quote'] = lambda value: shlex.quote(str(value))
    return templates.get_template(f'{template}.j2').render(values)


# The command


def main(arguments: list[str] | None = None) -> int:
    """The program. Returns its exit status: 0 written, 2 bad input; with --go what the cluster's own command returns."""
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')  # as launch/run.py does
    log.show_any_sign(sys.stdout, sys.stderr)
    try:
        flags = launcher.read_flags(parser(), arguments)
        launcher.check_here()
        if not flags.to:
            raise Mistake(f'to which kind of cluster? --to={" or --to=".join(CLUSTERS)}')
        return hand_over(jobs_of(flags, arguments), flags.to, flags)
    except Mistake as mistake:
        log.error(str(mistake))
        return mistake.status
    except OSError as error:
        return launcher.refuse(error)
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    out = launcher.new_parser('launch/submit.py', __doc__)
    launcher.add_choice(out, 'runs/EXPERIMENT-SCALE-sSEED')
    launcher.add_one_run(out)
    out.add_argument('--to', choices=[*CLUSTERS], help='the kind of cluster')
    out.add_argument('--shards', type=int, help='label in so many jobs, and put their labels together in one more')
    out.add_argument('--parallel', type=int, help='so many of them at once (default: all)')
    add_job(out)
    return out


def add_job(out: argparse.ArgumentParser) -> None:
    """Adds what a job is told beside its runs."""
    out.add_argument('--site', metavar='FILE', help='what the site wants (default: ~/.config/rlaif_jax/site.toml)')
    out.add_argument('--nodes', type=int, help='machines of a run (default: 1)')
    out.add_argument('--gpus', type=int, help='of each machine (default: 1)')
    out.add_argument('--accelerator', help='their kind: H100; on SkyPilot also a TPU slice, v5e-16')
    out.add_argument('--time', help='of SLURM, such as 24:00:00')
    out.add_argument('--retries', type=int, help='of a run that ended as it should not (default: 3)')
    out.add_argument(
        '--set', action='append', default=[], metavar='NAME=VALUE',
        help='anything else: a key of the site’s file, else an option of sbatch, or of resources in SkyPilot’s file',
    )  # fmt: skip
    out.add_argument('--go', action='store_true', help='hand the job over now')


def jobs_of(flags: argparse.Namespace, arguments: list[str] | None) -> Jobs:
    """The run of the command line; or its shards, then the run that puts them together. Raises `Mistake` where the config
    does not bind, or the folder belongs to another one.
    """
    plain = ('experiment', 'scale', 'seed', 'manual_dir', 'data_dir')
    words = [f'--{flag}={value}' for flag in plain if (value := getattr(flags, flag)) is not None]
    words += [f'--bindings={file}' for file in flags.bindings] + ['--wandb'] * flags.wandb
    words += ['--hosts=off'] * (flags.hosts == 'off') + flags.binding
    run = launcher.read_flags(launcher.parser(), words)
    name, config, text = launcher.read_config(run)
    folder = launcher.default_folder(run, name, config, text) if flags.workdir is None else paths.typed(flags.workdir)
    check_folder(folder, text, same(config))
    whole = Task(tuple(words), folder, launcher.stages_of(flags, folder), config)
    typed = command('submit.py', sys.argv[1:] if arguments is None else arguments)
    if flags.shards is None:
        if flags.parallel is not None:
            raise Mistake(f'--parallel={flags.parallel}: a run is one job; --shards makes several of its labels')
        return Jobs(folder.name, folder, [whole], [[0]], typed)
    if flags.shards < 2:
        raise Mistake(f'--shards={flags.shards}: two or more; without it the run is one job')
    names = [literal(f'{number}/{flags.shards}') for number in range(1, flags.shards + 1)]
    tasks = [replace(whole, arguments=(*words, f'shard={name}')) for name in names]
    waves = [range(flags.shards), [flags.shards]]
    return Jobs(folder.name, folder, [*tasks, whole], waves, typed, 'ok', flags.parallel, alone=True)


def command(program: str, arguments: Sequence[str]) -> str:
    """What was typed, in one line."""
    words = ['python', os.path.relpath(ROOT / 'launch' / program), *arguments]
    return shlex.join(words).replace('\n', '\\n')


def job(kind: str, flags: argparse.Namespace) -> Slurm | Sky:
    """What a cluster of that kind is asked for: the site's file, and over it the flags. Raises `Mistake` naming the nearest
    of what neither knows.
    """
    out = site(kind, flags.site)
    plain = {field.name for field in fields(out) if isinstance(getattr(out, field.name), str)}  # text, as it stands
    known = {field.name for field in fields(out)}
    typed = {name: getattr(flags, name) for name in ('nodes', 'gpus', 'accelerator', 'time', 'retries')}
    typed = {name: value for name, value in typed.items() if value is not None}
    others = list(out.set)
    for text in flags.set:
        name, _, value = text.partition('=')
        if name in known:
            typed |= {name: value} if name in plain else dict([parse_binding(text)])
        else:
            others.append(text)
    return bound(out, typed | {'set': others}, f'--to={kind}')


def bound(to: Slurm | Sky, values: dict[str, Any], where: str) -> Slurm | Sky:
    try:
        return bind(to, values)
    except Mistake as mistake:
        raise Mistake(f'{where}: {mistake}') from None


def site(kind: str, named: str | None) -> Slurm | Sky:
    """What the site's file asks of clusters of that kind; nothing where there is no file, and none was named."""
    plain, home = CLUSTERS[kind](), paths.settings()
    if named is None and (home is None or not (home / 'rlaif_jax' / 'site.toml').exists()):
        return plain
    file = home / 'rlaif_jax' / 'site.toml' if named is None else paths.typed(named)
    try:
        said = tomllib.loads(file.read_text(encoding='utf-8-sig'))
    except OSError as error:
        raise Mistake(f'{file}: {error.strerror}') from None
    except ValueError as error:  # of TOML, or no text at all
        raise Mistake(f'{file}: {error}') from None
    for name, table in said.items():
        if name not in CLUSTERS or not isinstance(table, dict):
            raise Mistake(f'{file}: {name} is no table of it; did you mean [{nearest(name, CLUSTERS)}]?')
    return bound(plain, said.get(kind, {}), f'{file}: [{kind}]')


def hand_over(jobs: Jobs, kind: str, flags: argparse.Namespace) -> int:
    """Write the job, print it, and say what to type; with --go, do that."""
    asked = job(kind, flags)
    if jobs.parallel is not None and jobs.parallel < 1:
        raise Mistake(f'--parallel={jobs.parallel}: at least one run at a time')
    if jobs.alone and asked.nodes > 1:
        raise Mistake(f'--nodes={asked.nodes}: a shard is labelled on one machine; more --shards take more machines')
    if flags.go and not shutil.which(asked.command):
        raise Mistake(
            f'--go: there is no {asked.command} here; without it the job is written, to be taken where one is'
        )
    file, text, lines = jobs.place / asked.file, asked.text(jobs), asked.lines(jobs)
    if devices := asked.devices(jobs):
        for task in jobs.tasks:
            plan.check_devices(task.config, devices)
    paths.check_file(file)
    jobs.place.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f'.{file.name}.partial')
    log.write_whole(partial, text)
    paths.put(partial, file)
    log.say(text, whole=True)
    log.say(f'written to {file}')
    for name, value in elsewhere(jobs.tasks[-1].config).items():
        if not (kind == 'sky' and Path(value).is_absolute()):  # in the bucket
            log.say(f'{name}={value} is not here; the job needs it where it runs')
    now = lines if kind == 'slurm' else lines[:1]  # SkyPilot has no jobs that wait for others
    status = 0
    if flags.go:
        status = subprocess.run(['bash', '-ec', '\n'.join(now)]).returncode
        later = lines[len(now) :] if status == 0 else []
    else:
        log.say('to see whether it would be taken, without running anything:')
        log.say(f'  {asked.trial(file)}', whole=True)
        log.say('to run it:')
        say_lines(now)
        later = lines[len(now) :]
    for line in later:
        log.say('once these have ended:')
        say_lines([line])
    if jobs.then and status == 0:
        log.say(jobs.then, whole=True)
    return status


def elsewhere(config: Any) -> dict[str, str]:
    """The files that a config names and that are not on this machine, by field."""
    # `label` keeps labels by the row, so that its file may grow: it is not marked.
    names = [one.name for one in fields(config) if FILE.items() <= one.metadata.items() or one.name == 'input']
    found = {}
    for name in names:
        if value := getattr(config, name):
            with suppress(Mistake):  # such as a variable that is set where it runs
                if paths.typed(value).exists():
                    continue
            found[name] = value
    return found


def say_lines(lines: Iterable[str]) -> None:
    for line in lines:
        log.say(f'  {line}', whole=True)


if __name__ == '__main__':
    sys.exit(main())
