"""Run an experiment: python launch/run.py --experiment=tldr_direct [reinforce.beta=0.1 ...]

A binding, `path.to.field=value`, may stand anywhere on the line; --dry_run prints all of them, and what would run,
without running it; --explain says what they mean. The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Set
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.label import Asking
    from rlaif_jax.labeling.store import Shard

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python launch/run.py` puts launch/, not the root, on the path

RESERVED = ('experiment', 'scale', 'shard')  # bindings that choose what is run rather than change its config
FILES = {  # of a run folder, the most telling first
    'report.html': 'all of it to look at, for a browser',
    'test_samples.md': 'what each wrote to the same prompts, side by side',
    'training.png': 'how training went: score, KL, length, win rate',
    'export': 'the model, as transformers reads it',
    'policies': 'every policy with its metrics and samples, and the model in its export',
    'models': 'every reward model with its metrics, and the model in its export',
    'alignment.png': 'how far the labelers agree with people, and where not',
    'alignment.csv': 'every figure of the tables, a line a labeler',
    'matrix.png': 'who is preferred to whom',
    'samples.jsonl': 'what the model gives some held-out prompts, while it was trained',
    'report.txt': 'the tables above',
    'metrics.jsonl': 'every figure of every step',
}
SHOWN = 3  # of them
LOST = 75  # exit status where another process is gone, or too late: try again
FEW = 64  # pairs, which is the batch that a reward model has by default


def main(arguments: list[str] | None = None) -> int:
    """The program. Returns its exit status: 0 done, 2 bad input, 130 stopped, 74 the disk or the network is at fault, 75
    another process is lost. After all but 0 and 2 the same command may be given again.
    """
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')  # what does not fit a model we say ourselves
    from jax.errors import JaxRuntimeError

    from rlaif_jax import axes, hosts, log
    from rlaif_jax.config import Mistake
    from rlaif_jax.folder import sharing
    from rlaif_jax.paths import typed
    from rlaif_jax.training import profiling

    log.show_any_sign(sys.stdout, sys.stderr)
    try:
        flags = read_flags(parser(), arguments)
        for flag in ('data_dir', 'manual_dir'):  # read by data.published: where data lies does not change what is run
            if (folder := getattr(flags, flag)) is not None:
                os.environ[f'RLAIF_{flag.upper()}'] = str(typed(folder))
        if flags.list:
            return show_experiments()
        if flags.explain:
            return explain(flags)
        check_here()
        if flags.profile is not None:
            profiling.read_steps(flags.profile)  # before anything is made
        name, config, text = read_config(flags)
        folder = default_folder(flags, name, config, text) if flags.workdir is None else typed(flags.workdir)
        hosts.start('off' if flags.shard else flags.hosts)
        if flags.wandb and hosts.first() and log.wandb_ready():
            os.environ['RLAIF_JAX_WANDB'] = '1'  # read by log.Metrics, so that no config carries it
        axes.ask_for_devices(asdict(config.mesh))
        from rlaif_jax.labeling.cost import priced
        from rlaif_jax.labeling.wire import counted

        with sharing(stages_of(flags, folder)), counted(flags.price), priced(flags.price):
            if flags.topology:
                return plan_for(name, config, folder, flags)
            if flags.dry_run:
                return dry_run(name, config, text, folder, flags.shard)
            if flags.shard:
                return run_shard(name, config, folder, flags.shard)
            with profiling.profile(flags.profile, folder / 'profile'):
                return run(name, config, text, folder)
    except hosts.Elsewhere as mistake:
        return mistake.status
    except Mistake as mistake:
        log.error(str(mistake))
        return mistake.status
    except hosts.Lost as lost:
        log.error(f'{lost}; the same command goes on from what is saved')
        return LOST
    except JaxRuntimeError as error:
        if hosts.count() == 1 or 'RESOURCE_EXHAUSTED' in str(error):
            raise
        reason = str(error).partition('\n')[0][:300]
        log.error(f'another process is gone, or failed ({reason}); the same command goes on from what is saved')
        return LOST
    except OSError as error:
        return refuse(error)
    except KeyboardInterrupt:
        log.error('stopped; the same command goes on from the last checkpoint, or begins where there is none')
        return 130


def check_here() -> None:
    """Raises `Mistake` where the folder that one is in was removed, which no library bears."""
    from rlaif_jax.config import Mistake

    try:
        os.getcwd()
    except FileNotFoundError:
        raise Mistake('the folder that you are in was removed; cd to one that is there') from None


def refuse(error: OSError) -> int:
    """Says what the system would not do. Returns the exit status; raises an error of another kind again."""
    from rlaif_jax import config, log

    if isinstance(error, BrokenPipeError):  # who read what is printed, as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    if not config.refused(error):
        raise error
    told = f'{error.filename or "a file"}: {error.strerror or error}; put that right, and the same command goes on'
    log.error(told)
    return config.refusal(error, told).status


def parser() -> argparse.ArgumentParser:
    out = new_parser('launch/run.py', __doc__)
    add_choice(out, 'runs/EXPERIMENT-SCALE-sSEED')
    add_one_run(out)
    out.add_argument(
        '--shard', metavar='I/N', help='make every Nth label, from the Ith on, beside other jobs, and stop'
    )
    out.add_argument('--dry_run', action='store_true', help='print config, devices, sizes, memory and stages, and stop')
    out.add_argument(
        '--topology', metavar='SLICE,…',
        help='with --dry_run: compile for v5e-16, v5p-32, v6e-64, tpu7x-16, … or local; needs no TPU, but the extra tpu',
    )  # fmt: skip
    out.add_argument(
        '--profile',
        metavar='A:B',
        help='trace steps A to B of every training stage, counted from 0, into WORKDIR/profile',
    )
    out.add_argument(
        '--price', type=prices, default=(), metavar='X,…',
        help='in any currency: of a chip-hour or, of a served labeler, of a million tokens that it reads, and writes',
    )  # fmt: skip
    out.add_argument('--list', action='store_true', help='print what every experiment is and costs')
    out.add_argument(
        '--explain', action='append', metavar='PATH',
        help='print what a field of the config means, or all fields below it; several with commas between',
    )  # fmt: skip
    return out


def prices(text: str) -> tuple[float, ...]:
    """One price or two, with a comma between. Raises ValueError for anything else."""
    found = tuple(map(float, text.split(',')))
    if len(found) > 2 or not all(0 <= one < float('inf') for one in found):
        raise ValueError
    return found


def new_parser(name: str, doc: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_choice(out: argparse.ArgumentParser, folder: str) -> None:
    """Adds what says which config is run and where, of one run or of several; `folder` is the default of --workdir."""
    out.add_argument('--experiment', help='what to run; launch/run.py --list shows all')
    out.add_argument('--scale', help='which models, data and sizes (default: micro)')
    out.add_argument('--workdir', help=f'the folder (default: {folder}); what is made lies in it')
    out.add_argument(
        '--stages', help='where runs find and leave what they share (default: runs/stages, or WORKDIR/stages)'
    )
    out.add_argument(
        '--bindings', action='append', default=[], metavar='FILE.gin',
        help='a file of bindings; config.gin of a run repeats it',
    )  # fmt: skip
    out.add_argument(
        '--hosts', choices=('auto', 'off'), default='auto',
        help='auto: with the other processes of an srun, a slice, Open MPI, or RLAIF_COORDINATOR; off: alone',
    )  # fmt: skip
    out.add_argument(
        'binding', nargs='*', default=[], metavar='path.to.field=value', help='change one field of the config'
    )


def add_one_run(out: argparse.ArgumentParser) -> None:
    """Adds the rest of what a run is told, now or by a job."""
    out.add_argument('--seed', type=int, help='of everything random (default: 0)')
    out.add_argument(
        '--manual_dir', help='folder of published data sets that you fetched yourself, such as DIR/hh_harmless/'
    )
    out.add_argument('--data_dir', help='where prepared data sets lie (default: rlaif_jax/data in the user’s cache)')
    out.add_argument('--wandb', action='store_true', help='log to Weights & Biases too (pip install wandb)')


def read_flags(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, flags and bindings in any order. A hyphen in a flag is an underscore; a bare word is the
    experiment where there is no other. Raises `Mistake` naming the nearest flag to one that is none.
    """
    from rlaif_jax.config import Mistake

    given = sys.argv[1:] if arguments is None else arguments
    given = [re.sub('(?<=^--)[^=]+', lambda name: name[0].replace('-', '_'), text) for text in given]
    flags, unknown = parser.parse_known_intermixed_args(given)
    words = [text for text in flags.binding if '=' not in text]
    if words and not flags.experiment and not any(text.startswith('experiment=') for text in flags.binding):
        flags.experiment = words[0]
        flags.binding.remove(words[0])
    if unknown:
        typed = unknown[0].partition('=')[0]
        known = ['--help', *(f'--{name}' for name in vars(flags) if name != 'binding')]
        near = [flag for flag in known if flag.startswith(typed)] or difflib.get_close_matches(typed, known, 1, 0.0)
        raise Mistake(f'no flag {typed}; did you mean {near[0]}? (--help shows all)')
    return flags


def read_config(flags: argparse.Namespace) -> tuple[str, Any, str]:
    """The experiment's name, its config, and the text that repeats it, of which a shard is no part. The command line wins
    over files, later files over earlier. What else they say of `flags` is noted there.
    """
    import experiments
    from experiments.own import ROLES, real, suited
    from experiments.scales import scale
    from rlaif_jax.config import Mistake, bind, digest, dump, parse, parse_binding, refusal
    from rlaif_jax.data.files import nearest_file
    from rlaif_jax.labeling.store import Shard
    from rlaif_jax.models.presets import downloading_nothing, downloads
    from rlaif_jax.paths import typed

    if (flags.dry_run or flags.explain) and downloads():
        with downloading_nothing():
            return read_config(flags)
    in_files: dict[str, Any] = {}
    for file in flags.bindings:
        try:
            in_files |= parse(typed(file).read_text(encoding='utf-8-sig'), file)
        except OSError as error:
            near = nearest_file(typed(file), ['.gin']) if isinstance(error, FileNotFoundError) else ''
            raise refusal(error, f'--bindings={file}: {error.strerror or error}{near}') from None
        except UnicodeDecodeError:
            raise Mistake(f'--bindings={file}: not a text file') from None
    typed = dict(parse_binding(text) for text in flags.binding)
    chosen = {name: str(typed.pop(name, in_files.pop(name, '')) or '') for name in RESERVED}
    shard = flags.shard or chosen['shard']
    flags.shard = Shard.parse(str(shard)) if shard else None
    name, scale_name = flags.experiment or chosen['experiment'], flags.scale or chosen['scale'] or 'micro'
    if not name:
        raise Mistake(f'which experiment? --experiment=NAME, one of: {", ".join(experiments.experiments())}')
    if (flags.seed or 0) < 0:
        raise Mistake(f'--seed={flags.seed}: a seed is 0 or more')
    experiment, row, seed = experiments.find(name), scale(scale_name), flags.seed or 0
    plain, given = experiment(row, seed), in_files | typed
    own = {}  # checkpoints by role, whose numbers are none of micro's
    if not (flags.scale or chosen['scale']):
        own = {role: model for role in ROLES if real(model := str(given.get(role, '')))}
    row = suited(row, own) if own else row
    config = experiment(row, seed)
    if flags.seed is not None:  # over a file too, so that the config.gin of a run runs again with another seed
        other = parse(dump(experiment(row, seed + 1)))
        in_files |= {path: value for path, value in parse(dump(config)).items() if value != other[path]}
    config = bind(config, in_files | typed)
    if own:
        config = config.sized(given.keys()) if hasattr(config, 'sized') else config
        tell_numbers(own.values(), dump(config), dump(plain), given.keys())
    flags.changed = digest(config) != digest(plain)
    return name, config, experiments.text_of(name, scale_name, config)


def tell_numbers(models: Iterable[str], ours: str, micro: str, given: Set[str]) -> None:
    """Says which numbers checkpoints get that are not those of the packaged models, where no scale was named. Those that
    were `given`, by path, everybody knows.
    """
    from experiments.own import described
    from rlaif_jax import log

    before, models = set(micro.splitlines()), dict.fromkeys(models)
    changed = ', '.join(
        line for line in ours.splitlines() if line not in before and line.partition(' = ')[0] not in given
    )
    told = (
        f'{", ".join(models)}: no packaged model, so these numbers are those of open models, and not those of micro: '
    )
    log.say_once(f'{told}{changed}. A binding changes one; --scale names another row of them')
    if lacking := [model for model in models if described(model) is None]:
        log.say_once(f'{lacking[0]}: is not here, so dtype and lengths are guesses until a run fetches what says them')


def stages_of(flags: argparse.Namespace, folder: Path) -> Path:
    """Where runs keep what they share: with the runs, or within the one folder that was named."""
    from rlaif_jax.paths import typed

    if flags.stages is not None:
        return typed(flags.stages)
    return Path('runs/stages') if flags.workdir is None else folder / 'stages'


def default_folder(flags: argparse.Namespace, name: str, config: Any, text: str) -> Path:
    """A folder of the config's own, and of the data's: bindings never collide with the plain experiment's run."""
    from rlaif_jax.config import digest, parse
    from rlaif_jax.data.loader import contents

    scale = parse(text)['scale']
    own = f'-{digest(config, contents(config))[:6]}' if flags.changed else ''
    return Path('runs') / f'{name}-{scale}-s{flags.seed or 0}{own}'


def show_experiments() -> int:
    import experiments
    from rlaif_jax import log

    longest = max(map(len, experiments.experiments()))
    for title, known in experiments.grouped().items():
        log.say(title, 'bold')
        for name, experiment in known.items():
            log.entry(
                f'  {name:{longest}}  ', f'{experiments.summary(experiment)} {experiments.cost(experiment)}'.strip()
            )
    return 0


def explain(flags: argparse.Namespace) -> int:
    """Print what fields mean, and all below them, in the experiment of the command line or the first that has each; of the
    name of an experiment what it is, and all its fields.
    """
    for asked in ','.join(flags.explain).split(','):
        _explain(flags, asked.strip(' .'))
    return 0


def _explain(flags: argparse.Namespace, asked: str) -> None:
    import experiments
    from rlaif_jax import config, log

    paths: list[str] = []
    known = experiments.experiments()
    if not flags.experiment and asked in known:  # some are fields of others, too
        flags = argparse.Namespace(**vars(flags) | {'experiment': asked})
    for name in [flags.experiment] if flags.experiment else known:
        rows = config.explain(read_config(argparse.Namespace(**vars(flags) | {'experiment': name}))[1])
        if found := [row for row in rows if name == asked or f'{row[0]}.'.startswith(f'{asked}.')]:
            log.say(f'in {name}', 'bold')
            if name == asked:
                log.say(f'{inspect.getdoc(known[name])}\n')
            for path, kind, literal, said in found:
                log.say(f'{path} = {literal}  ({kind})' if literal else f'{path}  ({kind})')
                for line in said.splitlines():
                    log.entry('    ', line)
            return
        paths += [row[0] for row in rows]
    raise config.Mistake(f'--explain={asked}: no such field; did you mean {config.nearest(asked, [*paths, *known])}?')


def start_jax() -> None:
    """Programs compiled once are kept for the next run, where the user has a place for them."""
    import jax

    from rlaif_jax import log, paths

    if jax.config.jax_compilation_cache_dir:
        return
    cache = paths.cache()
    if cache is None or not paths.writable(cache / 'rlaif_jax' / 'programs'):
        log.say('compiled programs are not kept: there is no cache folder to write in (XDG_CACHE_HOME names one)')
        return
    jax.config.update('jax_compilation_cache_dir', str(cache / 'rlaif_jax' / 'programs'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def dry_run(name: str, config: Any, text: str, folder: Path, shard: Shard | None) -> int:
    """Print everything about the run that can be known without running it."""
    from experiments import costs, plan
    from experiments.label import store_of
    from rlaif_jax import log
    from rlaif_jax.config import same
    from rlaif_jax.folder import check_folder
    from rlaif_jax.models.presets import downloading_nothing

    check_folder(folder, text, same(config))
    log.say(text, whole=True)
    with downloading_nothing():
        plan.check(config, folder)
        plan.show(name, config, folder)
        for told in costs.foretold(config, folder):
            log.say(told)
        if shard:
            of = ', '.join(dict.fromkeys(one.title for one in ahead(name, config, shard)))
            log.say(
                f'shard {shard}: of all this its share of the labels alone ({of}), in {shard.store(store_of(folder))}'
            )
    log.say('dry run: nothing was run, nothing was written')
    return 0


def plan_for(name: str, config: Any, folder: Path, flags: argparse.Namespace) -> int:
    """Plan the run for devices that need not be here. The plan is all that is written."""
    from experiments import topology
    from rlaif_jax import log
    from rlaif_jax.config import Mistake
    from rlaif_jax.models.presets import downloading_nothing

    if not flags.dry_run:
        raise Mistake(f'--topology={flags.topology}: is for plans; add --dry_run')
    plans = stages_of(flags, folder).with_name('plans')
    try:
        with downloading_nothing():
            topology.show(
                f'{name}-{flags.scale or "micro"}', config, folder, flags.topology, *flags.price[:1] or [None], plans
            )
    except KeyboardInterrupt:
        log.error('stopped; what was compiled is kept, and the same command goes on')
        return 130
    return 0


def ahead(name: str, config: Any, shard: Shard) -> list[Asking]:
    """What labelers can be asked before anything else is made. Raises `Mistake` where that is nothing."""
    from rlaif_jax.config import Mistake

    if found := config.askings() if hasattr(config, 'askings') else []:
        return found
    raise Mistake(f'shard={shard}: {name} asks no labeler about pairs that are there before it starts; leave shard out')


def run_shard(name: str, config: Any, folder: Path, shard: Shard) -> int:
    """Make a shard's labels for the run in `folder`, which it leaves alone: so all shards may run at once, and anywhere."""
    start_jax()
    from experiments import label, plan
    from rlaif_jax import stopping
    from rlaif_jax.models.presets import downloading_nothing

    with stopping.stop_on_signal(loop=False):
        with downloading_nothing():  # of models that others need
            plan.check(config, folder)
            askings = ahead(name, config, shard)
        label.label_shard(shard, askings, label.store_of(folder), config.dtype, config.mesh)
    return 0


def run(name: str, config: Any, text: str, folder: Path) -> int:
    """Run the experiment in its folder, from where it stands."""
    began = time.monotonic()
    start_jax()
    import jax

    from experiments import pages, plan
    from rlaif_jax import hosts, log, stopping
    from rlaif_jax.config import Mistake, same
    from rlaif_jax.folder import finished, lock, open_folder

    if hosts.count() > 1:
        there = f'{hosts.count()} processes, {jax.local_device_count()} devices each, {jax.device_count()} in all'
        log.say(f'{there}; this is process {hosts.index()}, which writes and talks')
    theirs = hosts.told(lambda: text)
    if hosts.anyone(lambda: theirs != text):
        raise Mistake('the processes of this run have unlike configs, or unlike data')
    if (again := getattr(config, 'always', False)) or hosts.told(lambda: finished(folder)) is None:
        hosts.told(
            lambda: plan.check(config, folder)
        )  # before anything is written, so that a corrected command finds the folder free
    with stopping.stop_on_signal(loop=False), lock(folder):
        open_folder(folder, text, same(config))
        result = hosts.told(lambda: finished(folder))
        if result is not None and not again:
            log.say(f'{name}: already finished, in {folder}')
            if hosts.told(lambda: (folder / pages.MADE).exists() and not (folder / pages.PAGE).exists()):
                pages.of_run(name, config, folder)  # which is all that was missing
            report = folder / pages.REPORT
            log.say(report.read_text(encoding='utf-8').rstrip() if report.exists() else log.to_json(result))
            return 0
        plan.show(name, config, folder)
        result = pages.make(name, config, folder)
    took = timedelta(seconds=round(time.monotonic() - began))
    log.say(f'done in {took}; {result["output"]} is written' if 'output' in result else f'done in {took}')
    look(name, config, folder, result)
    return 0


def look(name: str, config: Any, folder: Path, result: dict[str, Any]) -> None:
    """Say what of a finished run to look at first, and what may come next."""
    from rlaif_jax import log
    from rlaif_jax.config import literal
    from rlaif_jax.labeling.labelers import is_address
    from rlaif_jax.models.presets import PRESETS

    there = {file: what for file, what in FILES.items() if (folder / file).exists()}
    log.say(f'in {folder}, to begin with:')
    for file in list(there)[:SHOWN]:
        log.entry(f'  {file:{max(map(len, there))}}  ', there[file])
    if 'output' in result and hasattr(config, 'labeler'):
        log.say('and a reward model of the labels:')
        given = {'input': result['output'], 'task': config.task}
        given |= {} if config.labeler in PRESETS or is_address(config.labeler) else {'policy': config.labeler}
        following = [
            'run.py',
            '--experiment=reward_model',
            *(f'{path}={literal(text)}' for path, text in given.items()),
        ]
        usable = result['ok'] * 9 // 10  # a tenth is held out
        following += [f'reward_model.batch={2 ** (usable.bit_length() - 1)}'] if 0 < usable < FEW else []
    elif 'comparisons' in result and (folder / 'export').exists():
        log.say('and the same for three seeds, with an interval over them:')
        following = ['sweep.py', f'--experiment={name}', f'--bindings={folder / "config.gin"}', '--seed=[0,1,2]']
    else:
        return
    following[0] = os.path.relpath(Path(__file__).with_name(following[0]))
    log.say(f'  python {shlex.join(following)}', whole=True)


def leave(status: int) -> int:
    """Ends the program with its status, together with the other processes where there are some."""
    from rlaif_jax import hosts

    several = hosts.count() > 1
    if several and status != LOST:
        hosts.leave()
    if several or status == 130:  # XLA may still compile in a thread, which does not survive the interpreter's end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def begin_again() -> None:
    """Start again where Python has to be told something early: to call files by UTF-8 names whatever the locale, as the
    libraries below do; and on a Linux CPU to take large pages for memory, a third off every training step.
    """
    early = {}
    if sys.getfilesystemencoding() != 'utf-8' and not sys.flags.ignore_environment:  # else for ever
        early |= {'PYTHONUTF8': '1', 'PYTHONIOENCODING': getattr(sys.stdout, 'encoding', None) or 'utf-8'}
    accelerated = any(map(os.path.exists, ('/dev/nvidia0', '/dev/accel0', '/dev/vfio/0', '/dev/kfd')))
    on_cpu = os.environ.get('JAX_PLATFORMS') == 'cpu' or not accelerated
    if sys.platform == 'linux' and on_cpu and 'GLIBC_TUNABLES' not in os.environ:
        keep = 2**34  # bytes: hand no memory back to the system between two steps
        # One arena: of a thread's own, which is small, whatever is large goes back all the same.
        tunables = {'hugetlb': 1, 'mmap_threshold': keep, 'trim_threshold': keep, 'arena_max': 1}
        early['GLIBC_TUNABLES'] = ':'.join(f'glibc.malloc.{name}={value}' for name, value in tunables.items())
    if early:
        os.environ |= early
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == '__main__':
    begin_again()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does, wherever it is
    sys.exit(leave(main()))
