"""Pictures of labelers and of policies: who agrees with people, who is preferred to whom, how long they write, how they
were trained.

    figure_labelers('alignment.png', [alignment.report(...), ...])
    figure_matrix('matrix.png', {('RLAIF', 'SFT'): versus.compare(...), ...})
    figure_lengths('lengths.png', texts)
    figure_training('training.svg', {'d-RLAIF': log.read_metrics(folder)})

Every figure is a .png or a .svg, by its suffix, and needs no display.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_jax import hosts
from rlaif_jax.config import Mistake
from rlaif_jax.evaluation import tables
from rlaif_jax.evaluation.alignment import Alignment
from rlaif_jax.evaluation.length import characters
from rlaif_jax.evaluation.report import check_labelers
from rlaif_jax.evaluation.statistics import Interval
from rlaif_jax.evaluation.versus import WinRate, both_orders

BLUE, ORANGE, GREY = '#0072b2', '#d55e00', '#8c8c8c'
COLOURS = (BLUE, ORANGE, '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
STYLES = ('-', '--', ':')  # colours come round again in another style
MARK = {'marker': 'o', 'markersize': 5, 'markeredgecolor': 'black', 'markeredgewidth': 0.6}

# Title -> unit, key in a step's metrics, key in an evaluation's, factor. The first are of the policy before the step.
PANELS = {
    'reward, each by its own scorer': ('per response', 'objective/rlhf_reward', 'eval/reward', 1),
    'score, each by its own scorer': ('per response', 'objective/scores', 'eval/score', 1),
    'KL to the SFT policy': ('nats per response', 'objective/kl', 'eval/kl', 1),
    'length': ('tokens per response', 'completions/mean_length', 'eval/mean_length', 1),
    'preferred to SFT': ('% of validation prompts', None, 'eval/win_rate', 100),
    'quality': ("the oracle's, mean", None, 'eval/quality', 1),
}


# Labelers


def figure_labelers(
    path: str | PathLike[str],
    reports: Sequence[Alignment],
    *,
    title: str = 'Labelers and people',
    published: Mapping[str, float] | None = None,
    simulated: bool = False,
) -> None:
    """Draws agreement and same-position rate with their intervals, a line a report, and the reliability curves.

    Of more than six curves those of the highest and the lowest agreement are in colour and the others grey; bins with
    fewer than one pair in a hundred are not drawn. Needs no display.
    Mistake: a suffix other than .png and .svg, no reports, matplotlib not installed.
    """
    check_labelers(reports, published)
    placed = any(one.position for one in reports)
    widths = (3.6, 2.8, 3.6) if placed else (3.6, 3.6)
    size = (0.9 + 0.08 * max(len(one.name) for one in reports) + sum(widths), max(4.6, 1.6 + 0.26 * len(reports)))
    drawing = _drawing(path, size, title, simulated)
    axes = drawing.subplots(1, len(widths), width_ratios=widths)
    _draw_agreement(axes[0], reports, published or {})
    if placed:
        _draw_positions(axes[1], reports)
        axes[1].tick_params(labelleft=False)
    _draw_curves(axes[-1], reports)
    _save(drawing, path)


def _draw_agreement(ax: Any, reports: Sequence[Alignment], published: Mapping[str, float]) -> None:
    _draw_lines(ax, reports, 'agreement, %')
    _draw_intervals(ax, [(i, one.agreement) for i, one in enumerate(reports)], BLUE, 'ours, 95 %')
    paper = [(published[one.name], i) for i, one in enumerate(reports) if one.name in published]
    if paper:
        ax.plot(*zip(*paper), 'D', markersize=5, markerfacecolor='none', color=GREY, label='paper')
    ax.axvline(50, color=GREY, linewidth=0.8, linestyle=':', label='chance')
    _legend(ax)


def _draw_positions(ax: Any, reports: Sequence[Alignment]) -> None:
    _draw_lines(ax, reports, 'same position in both orders, %')
    for which, colour in {'first': BLUE, 'second': ORANGE, 'neither': GREY}.items():
        these = [
            (i, one.position.same) for i, one in enumerate(reports) if one.position and one.position.which == which
        ]
        _draw_intervals(ax, these, colour, f'more often the {which}' if which != 'neither' else which)
    ax.set_xlim(left=0)
    _legend(ax)


def _draw_curves(ax: Any, reports: Sequence[Alignment]) -> None:
    ranked = sorted((one for one in reports if one.agreement.n), key=lambda one: -one.agreement.value)
    many = len(ranked) > len(COLOURS)
    named = {'highest: ': ranked[0], 'lowest: ': ranked[-1]} if many else {}
    ax.plot([50, 100], [50, 100], ':', color=GREY, linewidth=0.8, label='calibrated')
    for one in ranked if many else []:
        ax.plot(*_reliability(one), color='#d8d8d8', linewidth=0.8)
    chosen = list(named.items()) or [('', one) for one in ranked]
    for (what, one), colour in zip(chosen, COLOURS):
        label = f'{what}{one.name} (ECE {one.calibration.ece:.3f})'
        ax.plot(*_reliability(one), 'o-', color=colour, linewidth=1.4, markersize=4, label=label)
    ax.set(xlabel="labeler's probability of its verdict, %", ylabel='people who agree, %', xlim=(49, 101))
    ax.set_box_aspect(1)
    ax.set_anchor('N')
    _legend(ax)


def _reliability(one: Alignment) -> tuple[list[float], list[float]]:
    """Per cent predicted and observed, of the bins that hold enough pairs to say something."""
    found = one.calibration
    kept = [i for i, count in enumerate(found.count) if count and count >= 0.01 * found.n]
    return [100 * found.predicted[i] for i in kept], [100 * found.observed[i] for i in kept]


def _draw_lines(ax: Any, reports: Sequence[Alignment], label: str) -> None:
    """One line a report from the top down."""
    ax.set(xlabel=label, ylim=(len(reports) - 0.5, -0.5))
    ax.set_yticks(range(len(reports)), [one.name for one in reports])
    ax.tick_params(axis='y', length=0)
    ax.grid(axis='y', color='#e6e6e6', linewidth=0.8)
    ax.set_axisbelow(True)


def _draw_intervals(ax: Any, places: Sequence[tuple[int, Interval]], colour: str, label: str) -> None:
    places = [(i, found) for i, found in places if found.n]
    if places:
        at, found = zip(*places)
        value_B, low_B, high_B = 100 * np.array([(one.value, one.low, one.high) for one in found]).T
        style = {'fmt': 'o', 'color': colour, 'markersize': 5, 'linewidth': 1.4}
        ax.errorbar(value_B, at, xerr=[value_B - low_B, high_B - value_B], label=label, **style)


def _legend(ax: Any) -> None:
    """Above the axes, where no data can be under it."""
    ax.legend(loc='lower left', bbox_to_anchor=(0, 1), frameon=False, fontsize='small', borderaxespad=0.2)
    _bare(ax)


# Policies


def figure_matrix(
    path: str | PathLike[str],
    found: Mapping[tuple[str, str], WinRate],
    *,
    title: str = 'Policies against each other',
    simulated: bool = False,
) -> None:
    """Draws two heat maps of how often the row is preferred to the column: raw, and at equal length.

    found: (A, B) -> A's rate; of a pair it is enough to give one order. Numbers are per cent with their intervals, bold
    where those leave out one half. Mistake: no comparisons, another suffix, matplotlib not installed.
    """
    both = both_orders(found)
    policies = list(dict.fromkeys(a for a, _ in both))
    longest = max(map(len, policies))
    side = max(3.2, 1.05 * len(policies))
    drawing = _drawing(path, (2 * side + 1.6 + 0.08 * longest, side + 0.9 + 0.05 * longest), title, simulated)
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list('preferred', [ORANGE, '#f7f7f7', BLUE])
    axes = drawing.subplots(1, 2, sharey=True)
    for ax, (name, which) in zip(axes, {'all responses': 'raw', 'at equal length': 'length_adjusted'}.items()):
        rate = np.full((len(policies), len(policies)), np.nan)
        for (a, b), one in both.items():
            i, j = policies.index(a), policies.index(b)
            rate[i, j] = 100 * getattr(one, which).value
            _write_rate(ax, j, i, getattr(one, which))
        image = ax.imshow(np.ma.masked_invalid(rate), cmap=colours, vmin=0, vmax=100, aspect='auto')
        ax.set_facecolor('#dddddd')
        ax.set_title(name, fontsize='medium')
        ax.set_xlabel('policy B')
        ax.set_xticks(range(len(policies)), policies, rotation=30, ha='right', rotation_mode='anchor')
        ax.set_yticks(range(len(policies)), policies)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel('policy A')
    bar = drawing.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label('A is preferred to B, %')
    bar.outline.set_visible(False)
    _save(drawing, path)


def _write_rate(ax: Any, x: int, y: int, found: Interval) -> None:
    if math.isnan(found.value):
        ax.text(x, y, 'no votes', ha='center', va='center', fontsize='small')
        return
    sure = 0.5 not in found
    dark = {'color': 'white' if abs(found.value - 0.5) > 0.3 else 'black', 'ha': 'center'}
    ax.text(x, y - 0.02, f'{100 * found.value:.1f}', va='bottom', fontweight='bold' if sure else 'normal', **dark)
    ax.text(x, y + 0.04, f'[{100 * found.low:.0f}, {100 * found.high:.0f}]', va='top', fontsize='small', **dark)


def figure_lengths(
    path: str | PathLike[str],
    texts: Mapping[str, Sequence[str]],
    *,
    title: str = 'Lengths of responses',
    simulated: bool = False,
) -> None:
    """Draws how long each policy's responses are, in characters: a histogram a policy on one scale, and the mean.

    An empty text counts as one character, as in every ratio of lengths. Mistake: no responses at all, another suffix,
    matplotlib not installed.
    """
    lengths = {name: characters(responses) for name, responses in texts.items()}
    if not any(length_B.size for length_B in lengths.values()):
        raise Mistake('there are no responses to show the lengths of')
    drawing = _drawing(path, (7.0, 1.1 + 0.95 * len(lengths)), title, simulated)
    axes = drawing.subplots(len(lengths), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    every_B = np.concatenate(list(lengths.values()))
    width = max(1, math.ceil(np.ptp(every_B) / 40))  # whole characters, or some bins hold more lengths than others
    edges = np.arange(every_B.min(), every_B.max() + width + 1, width) - 0.5
    for i, (ax, (name, length_B)) in enumerate(zip(axes, lengths.items())):
        colour = COLOURS[i % len(COLOURS)]
        label = f'{name}\nno responses'
        if length_B.size:
            share = 100 * np.histogram(length_B, edges)[0] / length_B.size
            ax.stairs(share, edges, fill=True, color=colour, alpha=0.55)
            ax.axvline(length_B.mean(), color='black', linewidth=1.2)
            label = f'{name}\nmean {length_B.mean():.0f}'
        ax.set_ylabel(label, rotation=0, ha='right', va='center')
        _bare(ax)
    axes[-1].set_xlabel('length, characters')
    drawing.supylabel('share of responses, %', fontsize='medium')
    _save(drawing, path)


def figure_training(
    path: str | PathLike[str],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    title: str = 'REINFORCE',
    simulated: bool = False,
) -> None:
    """Draws how runs went, a panel a quantity: reward, score, KL, length, win rate and quality.

    runs: name -> rows of its metrics.jsonl. Batches of training are a thin line with its running mean over a twentieth
    of the run; evaluations on the validation prompts are marked. What no run has is not drawn. Mistake: nothing to
    draw, another suffix, matplotlib not installed.
    """
    known = {
        name: panel
        for name, panel in PANELS.items()
        if any(curve(rows, key)[0].size for rows in runs.values() for key in panel[1:3])
    }
    if not known:
        raise Mistake(f'the metrics of {", ".join(runs) or "no run"} have nothing to draw: are they of REINFORCE?')
    across = min(3, len(known)) if len(known) != 4 else 2
    down = -(-len(known) // across)
    drawing = _drawing(path, (3.6 * across, 2.5 * down + 0.8), title, simulated)
    axes = drawing.subplots(down, across, squeeze=False, sharex=True).ravel()
    looks = [
        {'color': COLOURS[i % len(COLOURS)], 'linestyle': STYLES[i // len(COLOURS) % len(STYLES)]}
        for i in range(len(runs))
    ]
    for ax, (name, (unit, training, evaluation, factor)) in zip(axes, known.items()):
        for look, rows in zip(looks, runs.values()):
            step_B, value_B = curve(rows, training)
            ax.plot(step_B, factor * value_B, linewidth=0.7, alpha=0.35, color=look['color'])
            ax.plot(step_B, factor * running_mean(value_B), linewidth=1.6, **look)
            step_B, value_B = curve(rows, evaluation)
            ax.plot(step_B + 1, factor * value_B, linewidth=0 if training else 1.2, **MARK, **look)
        if evaluation == 'eval/win_rate':
            ax.axhline(50, color=GREY, linewidth=0.8, linestyle=':')
        ax.set_title(name, fontsize='medium')
        ax.set(xlabel='steps done', ylabel=unit)
        ax.tick_params(labelbottom=True)
        _bare(ax)
    for ax in axes[len(known) :]:
        ax.set_visible(False)
    _draw_legend(drawing, runs, looks)
    _save(drawing, path)


def _draw_legend(drawing: Any, names: Iterable[str], looks: Sequence[Mapping[str, Any]]) -> None:
    """Under the panels: the runs, and what lines and marks are."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], linewidth=1.6, **look) for look in looks]
    lines += [Line2D([], [], color=GREY, linewidth=1.6), Line2D([], [], color=GREY, linewidth=0, **MARK)]
    labels = [*names, 'batches of training, running mean', 'validation prompts']
    drawing.legend(lines, labels, loc='outside lower center', ncols=3, frameon=False, fontsize='small')


def curve(rows: Sequence[Mapping[str, Any]], key: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, (B,) each, of the rows that have a finite one."""
    pairs = [(row['step'], row[key]) for row in rows if key and row.get(key) is not None]
    step_B, value_B = (np.array(column, np.float64) for column in (zip(*pairs) if pairs else ((), ())))
    return step_B[np.isfinite(value_B)], value_B[np.isfinite(value_B)]


def running_mean(value_B: np.ndarray) -> np.ndarray:
    """Over a twentieth of the run, centred; over fewer at its ends."""
    window = np.ones(max(1, len(value_B) // 20))
    if len(value_B) < 2:
        return value_B
    return np.convolve(value_B, window, 'same') / np.convolve(np.ones_like(value_B), window, 'same')


# Small parts


def _drawing(path: str | PathLike[str], size: tuple[float, float], title: str, simulated: bool) -> Any:
    """An empty figure of `size` inches with its title."""
    if Path(path).suffix.lower() not in ('.png', '.svg'):
        raise Mistake(f'{path}: a figure is a .png or a .svg')
    try:
        from matplotlib.figure import Figure  # not pyplot: that has global state, and looks for a display
    except ImportError as error:
        raise Mistake(f'a figure needs matplotlib, which is not here ({error}): pip install matplotlib') from error
    drawing = Figure(figsize=size, dpi=110, layout='constrained')
    colour = ORANGE if simulated else 'black'
    drawing.suptitle(tables.title(title, simulated), color=colour, fontweight='bold')
    return drawing


def _save(drawing: Any, path: str | PathLike[str]) -> None:
    from matplotlib.text import Text

    if not hosts.first():
        return
    for text in drawing.findobj(Text):
        text.set_parse_math(False)  # a `$` in a name is no mathematics
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path)


def _bare(ax: Any) -> None:
    for side in ('top', 'right'):
        ax.spines[side].set_visible(False)
