"""Run an experiment: python launch/run.py --experiment=tldr_direct [reinforce.beta=0.1 ...]

A binding, `path.to.field=value`, may stand anywhere on the line; --dry_run prints all of them, and what would run,
without running it. The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python launch/run.py` puts launch/, not the root, on the path

RESERVED = ('experiment', 'scale')  # bindings that choose the config rather than change it


def main(arguments: list[str] | None = None) -> int:
    """The program. Returns its exit status: 0 done, 2 bad input, 130 stopped."""
    # Else it tells that there is no torch, which is as it should be.
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    from rlaif_jax import log
    from rlaif_jax.config import Mistake

    flags = parser().parse_intermixed_args(arguments)
    if flags.wandb:
        os.environ['RLAIF_JAX_WANDB'] = '1'  # read by log.Metrics, so that no config carries it
    try:
        if flags.list:
            return show_experiments()
        name, config, text = read_config(flags)
        folder = Path(flags.workdir).expanduser() if flags.workdir else default_folder(flags, name, config, text)
        return dry_run(name, config, text, folder) if flags.dry_run else run(name, config, text, folder)
    except Mistake as mistake:
        log.error(str(mistake))
        return 2
    except KeyboardInterrupt:
        log.error('stopped; the same command goes on from the last checkpoint, or begins where there is none')
        return 130


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog='launch/run.py',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument('--experiment', help='what to run; --list shows all')
    out.add_argument('--scale', help='which models, data and sizes (default: micro)')
    out.add_argument('--seed', type=int, help='of everything random (default: 0)')
    out.add_argument(
        '--workdir', help='the run folder (default: runs/EXPERIMENT-SCALE-sSEED); stages that runs share lie beside it'
    )
    out.add_argument(
        '--bindings',
        action='append',
        default=[],
        metavar='FILE.gin',
        help='a file of bindings; config.gin of a run repeats it',
    )
    out.add_argument('--dry_run', action='store_true', help='print config, devices, sizes, memory and stages, and stop')
    out.add_argument('--wandb', action='store_true', help='log to Weights & Biases too (pip install wandb)')
    out.add_argument('--list', action='store_true', help='print every experiment in a line')
    out.add_argument(
        'binding', nargs='*', default=[], metavar='path.to.field=value', help='change one field of the config'
    )
    return out


def read_config(flags: argparse.Namespace) -> tuple[str, Any, str]:
    """The experiment's name, its config, and the text that repeats it. The command line wins over files, later files
    over earlier.
    """
    import experiments
    from experiments.scales import scale
    from rlaif_jax.config import Mistake, bind, dump, parse, parse_binding

    in_files: dict[str, Any] = {}
    for file in flags.bindings:
        try:
            in_files |= parse(Path(file).read_text(encoding='utf-8'), file)
        except OSError as error:
            raise Mistake(f'--bindings={file}: {error.strerror or error}') from None
        except UnicodeDecodeError:
            raise Mistake(f'--bindings={file}: not a text file') from None
    typed = dict(parse_binding(text) for text in flags.binding)
    chosen = {name: str(typed.pop(name, in_files.pop(name, '')) or '') for name in RESERVED}
    name, scale_name = flags.experiment or chosen['experiment'], flags.scale or chosen['scale'] or 'micro'
    if not name:
        raise Mistake(f'which experiment? --experiment=NAME, one of: {", ".join(experiments.experiments())}')
    if (flags.seed or 0) < 0:
        raise Mistake(f'--seed={flags.seed}: a seed is 0 or more')
    flags.changed = bool(in_files or typed)
    experiment, row, seed = experiments.find(name), scale(scale_name), flags.seed or 0
    config = experiment(row, seed)
    if flags.seed is not None:  # over a file too, so that the config.gin of a run runs again with another seed
        other = parse(dump(experiment(row, seed + 1)))
        in_files |= {path: value for path, value in parse(dump(config)).items() if value != other[path]}
    config = bind(config, in_files | typed)
    return name, config, f"experiment = '{name}'\nscale = '{scale_name}'\n{dump(config)}"


def default_folder(flags: argparse.Namespace, name: str, config: Any, text: str) -> Path:
    """A folder of the config's own: bindings never collide with the plain experiment's run."""
    from rlaif_jax.config import digest, parse

    scale = parse(text)['scale']
    own = f'-{digest(config)[:6]}' if flags.changed else ''
    return Path('runs') / f'{name}-{scale}-s{flags.seed or 0}{own}'


def show_experiments() -> int:
    import experiments
    from rlaif_jax import log

    for name, experiment in experiments.experiments().items():
        log.say(f'{name:20} {experiments.summary(experiment)}')
    return 0


def start_jax() -> None:
    """Programs compiled once are kept for the next run."""
    import jax

    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'rlaif_jax' / 'programs'
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(cache))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def dry_run(name: str, config: Any, text: str, folder: Path) -> int:
    """Print everything about the run that can be known without running it."""
    from experiments import plan
    from rlaif_jax import log

    log.say(text)
    plan.check(config, folder)
    plan.show(name, config, folder)
    log.say('dry run: nothing was run, nothing was written')
    return 0


def run(name: str, config: Any, text: str, folder: Path) -> int:
    """Run the experiment in its folder, from where it stands."""
    start_jax()
    from experiments import plan
    from rlaif_jax import checkpoint, log

    if (again := getattr(config, 'always', False)) or checkpoint.finished(folder) is None:
        plan.check(config, folder)  # before anything is written, so that a corrected command finds the folder free
    with checkpoint.lock(folder):
        checkpoint.open_folder(folder, text)
        result = checkpoint.finished(folder)
        if result is not None and not again:
            log.say(f'{name}: already finished, in {folder}; its result:')
            log.say(log.to_json(result))
            return 0
        plan.show(name, config, folder)
        result = config.run(folder)
        checkpoint.finish(folder, result)
    log.say(f'done: result, config, metrics, samples and the exported model are in {folder}')
    return 0


def use_large_pages() -> None:
    """Start again with large pages for malloc, on a Linux CPU: they take a third off every training step, and must be
    asked for early.
    """
    if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
        keep = 2**34  # bytes: hand no memory back to the system between two steps
        tunables = {'hugetlb': 1, 'mmap_threshold': keep, 'trim_threshold': keep}
        os.environ['GLIBC_TUNABLES'] = ':'.join(f'glibc.malloc.{name}={value}' for name, value in tunables.items())
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == '__main__':
    use_large_pages()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does, wherever it is
    status = main()
    if status == 130:  # XLA may still compile in a thread, which does not survive the interpreter's end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
