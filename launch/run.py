"""Run an experiment: python launch/run.py --experiment=tldr_direct [reinforce.beta=0.1 ...]

A binding, `path.to.field=value`, may stand anywhere on the line; --dry_run prints all of them, and what would run,
without running it. The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python launch/run.py` puts launch/, not the root, on the path

RESERVED = ('experiment', 'scale')  # bindings that choose the config rather than change it


def main(arguments: list[str] | None = None) -> int:
    """The program. Returns its exit status: 0 done, 2 bad input, 130 stopped."""
    os.environ.setdefault(
        'TRANSFORMERS_VERBOSITY', 'error'
    )  # else it tells that there is no torch, which is as it should be
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    from rlaif_jax import log
    from rlaif_jax.config import Mistake

    flags = parser().parse_intermixed_args(arguments)
    try:
        if flags.list:
            return show_experiments()
        name, config, text = read_config(flags)
        folder = Path(flags.workdir) if flags.workdir else default_folder(flags, name, config, text)
        return dry_run(name, config, text, folder) if flags.dry_run else run(name, config, text, folder)
    except Mistake as mistake:
        log.error(str(mistake))
        return 2
    except KeyboardInterrupt:
        log.error('stopped; the same command goes on from the last checkpoint')
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

    bindings: dict[str, Any] = {}
    for file in flags.bindings:
        try:
            bindings |= parse(Path(file).read_text(encoding='utf-8'), file)
        except OSError as error:
            raise Mistake(f'--bindings={file}: {error.strerror or error}') from None
    bindings |= dict(parse_binding(text) for text in flags.binding)
    chosen = {name: bindings.pop(name, None) for name in RESERVED}
    name, scale_name = flags.experiment or chosen['experiment'], flags.scale or chosen['scale'] or 'micro'
    if not name:
        raise Mistake(f'which experiment? --experiment=NAME, one of: {", ".join(experiments.experiments())}')
    config = bind(experiments.find(name)(scale(scale_name), flags.seed or 0), bindings)
    flags.changed = bool(bindings)
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
    plan.show(name, config, folder)
    log.say('dry run: nothing was run, nothing was written')
    return 0


def run(name: str, config: Any, text: str, folder: Path) -> int:
    """Run the experiment in its folder, from where it stands."""
    start_jax()
    from experiments import plan
    from rlaif_jax import checkpoint, log

    with checkpoint.lock(folder):
        checkpoint.open_folder(folder, text)
        result = checkpoint.finished(folder)
        if result is not None:
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
        os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
        os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == '__main__':
    use_large_pages()
    sys.exit(main())
