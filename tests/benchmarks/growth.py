"""How time and memory grow with what is asked: python tests/benchmarks/growth.py

    --case rollouts update labels --axis batch prompt response model --repeats 5 --figure growth.png --json growth.json

rollouts: a policy writes. update: a step of REINFORCE with its value network. labels: a labeler answers about pairs, both
orders behind one prompt. Each is the jitted program of its stage, as a plan knows it (`experiments.programs`), on one
device. From one point, batch, tokens of the prompt, tokens of a response and the size of the model are doubled three times,
one at a time. Where there is an accelerator the point is larger (`--size` says otherwise).

A time is the median of `--repeats` calls behind the one that compiles; memory is what the compiler says the program needs,
arguments, results and all between. The exponent k is that of the power law `a · x^k` through the points, by least squares
in logarithms, with its standard error; `last` is that of the last doubling, which tells more where a constant part wears
off. Exponents of time on a CPU mean little below a few milliseconds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.run import begin_again  # noqa: E402

CASES = 'rollouts', 'update', 'labels'
AXES = 'batch', 'prompt', 'response', 'model'
DOUBLINGS = 3
COLOURS = '#0072b2', '#d55e00', '#009e73'


@dataclass(frozen=True)
class Point:
    """How much is asked of a program."""

    batch: int
    prompt: int  # tokens
    response: int  # tokens
    model: int  # of the model's width; heads and the MLP grow with it
    layers: int
    vocab: int
    dtype: str

    def grown(self, axis: str, times: int) -> Point:
        return replace(self, **{axis: getattr(self, axis) * times})


POINTS = {
    'small': Point(8, 64, 32, 128, 2, 1152, 'float32'),
    'large': Point(32, 256, 64, 1024, 16, 32_768, 'bfloat16'),
}


class Growth(NamedTuple):
    """A power law through points."""

    exponent: float
    error: float  # its standard error; NaN of two points
    last: float  # the exponent between the last two


def growth(x: Sequence[float], y: Sequence[float]) -> Growth:
    """The exponent k of `y = a · x^k`, by least squares in logarithms; all numbers are positive, x rises."""
    u, v = np.log(x), np.log(y)
    du = u - u.mean()
    k = float(du @ v / (du @ du))
    left = v - v.mean() - k * du
    free = len(u) - 2
    error = math.sqrt(float(left @ left) / free / float(du @ du)) if free > 0 else math.nan
    return Growth(k, error, float((v[-1] - v[-2]) / (u[-1] - u[-2])))


def model(point: Point) -> Any:
    from rlaif_jax.models.transformer import Config

    heads = point.model // 64
    return Config(
        vocab=point.vocab, layers=point.layers, width=point.model, heads=heads, kv_heads=heads, head_dim=64,
        ffn=3 * point.model, max_length=1 << 20, dtype=point.dtype,
    )  # fmt: skip


def program(case: str, point: Point) -> Any:
    """The program of a stage on one device, as a plan has it."""
    from experiments.programs import Line, Read, programs
    from rlaif_jax import axes
    from rlaif_jax.training import reinforce

    sizes = {'policy': model(point)}
    at = {'name': case, 'folder': Path(), 'steps': 1}
    if case == 'update':
        how = reinforce.Config(batch=point.batch, max_prompt=point.prompt, max_new_tokens=point.response)
        line = Line(**at, training=how, length=point.prompt + point.response)
    elif case == 'rollouts':
        line = Line(**at, reads=(Read('policy', 'writes', point.batch, point.prompt, point.response),))
    else:
        line = Line(**at, reads=(Read('policy', 'answers', point.batch, point.prompt, 2 * point.response, branches=2),))
    (found,) = programs(line, sizes, axes.make_mesh())
    return found


def measure(case: str, point: Point, repeats: int) -> dict[str, float]:
    """Seconds of a call, and bytes."""
    import floors

    seconds, need = floors.taken(program(case, point), repeats)
    return {'seconds': statistics.median(seconds), 'bytes': need}


def draw(path: Path, found: Mapping[tuple[str, str], dict[str, list[float]]], title: str) -> None:
    """Time above, memory below, a column an axis."""
    from matplotlib.figure import Figure

    cases, along = (list(dict.fromkeys(names)) for names in zip(*found))
    drawing = Figure(figsize=(3.2 * len(along), 6), dpi=110, layout='constrained')
    drawing.suptitle(title)
    panels = drawing.subplots(2, len(along), squeeze=False, sharey='row')
    for (case, axis), one in found.items():
        for row, (what, scale) in enumerate((('seconds', 1), ('bytes', 2**30))):
            ax, values = panels[row][along.index(axis)], [value / scale for value in one[what]]
            label = f'{case}: {growth(one["x"], one[what]).exponent:.2f}'
            ax.loglog(one['x'], values, 'o-', color=COLOURS[cases.index(case) % len(COLOURS)], label=label)
            ax.set_xlabel('parameters' if axis == 'model' else axis)
            ax.legend(frameon=False, fontsize=8)
    panels[0][0].set_ylabel('seconds a call')
    panels[1][0].set_ylabel('GiB')
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--case', nargs='+', choices=CASES, default=CASES, help='(all)')
    parser.add_argument('--axis', nargs='+', choices=AXES, default=AXES, help='(all)')
    parser.add_argument('--size', choices=POINTS, help='where to begin (small on a CPU)')
    parser.add_argument('--repeats', type=int, default=5, help='timed calls of each point (%(default)s)')
    parser.add_argument('--figure', type=Path, help='a .png or .svg (growth.png)', default=Path('growth.png'))
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures there')
    flags = parser.parse_args()
    if flags.repeats < 1:
        parser.error('repeats: at least 1')
    import jax

    from experiments.programs import count
    from rlaif_jax import log

    device = jax.devices()[0]
    size = flags.size or ('small' if device.platform == 'cpu' else 'large')
    start, found, rows = POINTS[size], {}, []
    log.say(f'{device.device_kind} ({device.platform}), jax {jax.__version__}; from {start}')
    done: dict[tuple[str, Point], dict[str, float]] = {}  # the first point is on every axis
    with log.progress('growth', len(flags.case) * len(flags.axis)) as bar:
        for case in flags.case:
            for axis in flags.axis:
                points = [start.grown(axis, 2**i) for i in range(DOUBLINGS + 1)]
                for point in points:
                    if (case, point) not in done:
                        done[case, point] = measure(case, point, flags.repeats)
                x = [count(model(point)) if axis == 'model' else getattr(point, axis) for point in points]
                each = [done[case, point] for point in points]
                one = {'x': x} | {what: [values[what] for values in each] for what in ('seconds', 'bytes')}
                found[case, axis] = one
                time_of, memory = growth(x, one['seconds']), growth(x, one['bytes'])
                rows.append([
                    case, axis, f'{x[0]:,} – {x[-1]:,}', f'{time_of.exponent:.2f} ± {time_of.error:.2f}',
                    f'{time_of.last:.2f}', f'{memory.exponent:.2f} ± {memory.error:.2f}', f'{memory.last:.2f}',
                    one['seconds'][-1], one['bytes'][-1] / 2**30,
                ])  # fmt: skip
                bar.advance(f'{case} by {axis}')
    columns = ['case', 'by', 'from – to', 'time', 'last', 'memory', 'last', 's at last', 'GiB at last']
    log.figures_table('exponents: doubled, time and memory grow by 2 to that power', columns, rows)
    title = f'{device.device_kind}: exponents of a power law'
    draw(flags.figure, found, title)
    log.say(f'{flags.figure} is written')
    if flags.json:
        listed = [{'case': case, 'axis': axis} | one for (case, axis), one in found.items()]
        log.write_whole(
            flags.json, json.dumps({'device': device.device_kind, 'size': size, 'figures': listed}, indent=1)
        )
    return 0


if __name__ == '__main__':
    begin_again()
    sys.exit(main())
