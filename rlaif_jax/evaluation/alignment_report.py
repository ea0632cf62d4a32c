"""How alignment is shown: tables in the terminal, a CSV, a figure.

    table([one, ...]);  write_csv('alignment.csv', [one, ...]);  figure('alignment.png', [one, ...])

What the figures mean, and how they are computed, is in `alignment.py`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlaif_jax import log
from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.alignment import Alignment
from rlaif_jax.evaluation.statistics import Interval

__all__ = ['figure', 'table', 'write_csv']

# Title -> column -> what it tells: tables that fit on 80 columns with names of up to 20 characters.
TABLES = {
    'agreement': {
        'agreement %': 'pairs with a verdict that is people’s',
        'n': 'pairs with a verdict of both',
        'paper %': 'the paper’s agreement',
        'confident %': 'agreement where people were sure',
        'one order %': 'agreement of a single order',
        'gain': 'points that averaging both orders adds to it',
    },
    'position': {
        'same position %': 'pairs with the same position preferred in both orders',
        'of these %': 'the position that more of these prefer, and how many do',
        'p': 'of these against an even split',
        'bias': 'P(the one shown first is better) − ½',
        'first %': 'verdicts for the one shown first',
    },
    'length, calibration, and the cost of a pair': {
        'longer %': 'verdicts for the longer one',
        'people longer %': 'those of people',
        'ECE': 'expected calibration error',
        'unscorable %': 'pairs without a verdict',
        'mass': 'probability of its answers among all tokens',
        'tokens': '',
        'seconds': '',
        'cached %': 'labels that were there already',
    },
}


def table(
    reports: Sequence[Alignment],
    *,
    title: str = 'Labelers and people',
    published: Mapping[str, float] | None = None,
    simulated: bool = False,
    console: Console | None = None,
) -> None:
    """Prints up to four tables of a line a report: agreement, position and length, calibration and cost, and agreement
    by band. A column that is known of no report is not shown, and what those shown tell stands below. Intervals are in
    brackets, or behind ± in points.

    published: name -> the paper's agreement in per cent, such as 78.0, put beside ours. Mistake: no reports.
    """
    _check_shown(reports, published)
    rows = [one.row() for one in reports]
    for one, row in zip(reports, rows):
        row['paper %'] = f'{published[one.name]:.1f}' if published and one.name in published else '–'
    bands = dict.fromkeys((f'band {band} %' for one in reports for band, _ in one.bands), '')
    for name, columns in {**TABLES, 'agreement by band': bands}.items():
        known = [column for column in columns if any(row.get(column, '–') != '–' for row in rows)]
        if not known:
            continue
        shown = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
        shown.add_column('labeler', overflow='fold')
        for column in known:
            width = max(len(row.get(column, '–')) for row in rows)
            head = Text('\n'.join(wrap(column, width, break_long_words=False)))
            shown.add_column(head, justify='right', no_wrap=True, vertical='bottom')
        for row in rows:
            shown.add_row(*(Text(row.get(column, '–')) for column in ('labeler', *known)))
        told = '; '.join(f'{column.removesuffix(" %")}: {columns[column]}' for column in known if columns[column])
        # Not the table's own title and caption, which would be folded to the width of the table.
        heading, legend = Text(_title(title, simulated, name), style='bold'), Text(told, style='dim')
        for part in (heading, shown, *([legend] if told else []), ''):
            (console.print if console else log.show)(part)


def write_csv(
    path: str | PathLike[str],
    reports: Sequence[Alignment],
    *,
    published: Mapping[str, float] | None = None,
    simulated: bool = False,
) -> None:
    """One line a report with full precision. Columns are the fields of `Alignment`, `position_same` for `position.same`:
    an interval has its value under its name, and `_low`, `_high` and `_n` beside it. Reliability curves are left out.

    Empty is not known, `nan` undefined. The file is there whole or not at all. Mistake: no reports.
    """
    _check_shown(reports, published)
    lines = [{**_columns(one), 'simulated': simulated} for one in reports]
    for one, line in zip(reports, lines):
        if published and one.name in published:
            line['paper_percent'] = published[one.name]
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(column for line in lines for column in line), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    log.write_whole(path, text.getvalue())


def _columns(value: Any, column: str = '') -> dict[str, Any]:
    """Column -> number or text, of all that is known."""
    if is_dataclass(value):
        found = {}
        for field in fields(value):
            inner = column if field.name == 'value' else f'{column}_{field.name}'.lstrip('_')
            found.update(_columns(getattr(value, field.name), inner))
        return found
    if column == 'bands':
        return {name: number for band, share in value for name, number in _columns(share, f'band_{band}').items()}
    return {} if value is None or isinstance(value, tuple) else {column: value}


BLUE, ORANGE, GREY = '#0072b2', '#d55e00', '#8c8c8c'
COLOURS = (BLUE, ORANGE, '#009e73', '#cc79a7', '#e69f00', '#56b4e9')


def figure(
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
    _check_shown(reports, published)
    path = Path(path)
    if path.suffix.lower() not in ('.png', '.svg'):
        raise Mistake(f'{path}: a figure is a .png or a .svg')
    try:
        from matplotlib.figure import Figure  # not pyplot: that has global state, and looks for a display
    except ImportError as error:
        raise Mistake(f'a figure needs matplotlib, which is not here ({error}): pip install matplotlib') from error

    placed = any(one.position for one in reports)
    widths = (3.6, 2.8, 3.6) if placed else (3.6, 3.6)
    size = (0.9 + 0.08 * max(len(one.name) for one in reports) + sum(widths), max(4.6, 1.6 + 0.26 * len(reports)))
    drawing = Figure(figsize=size, dpi=110, layout='constrained')
    axes = drawing.subplots(1, len(widths), width_ratios=widths)
    drawing.suptitle(
        _title(title, simulated), color=ORANGE if simulated else 'black', fontweight='bold', parse_math=False
    )
    _draw_agreement(axes[0], reports, published or {})
    if placed:
        _draw_positions(axes[1], reports)
        axes[1].tick_params(labelleft=False)
    _draw_curves(axes[-1], reports)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path)


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
        ax.plot(*_curve(one), color='#d8d8d8', linewidth=0.8)
    chosen = list(named.items()) or [('', one) for one in ranked]
    for (what, one), colour in zip(chosen, COLOURS):
        label = f'{what}{one.name} (ECE {one.calibration.ece:.3f})'
        ax.plot(*_curve(one), 'o-', color=colour, linewidth=1.4, markersize=4, label=label)
    ax.set(xlabel="labeler's probability of its verdict, %", ylabel='people who agree, %', xlim=(49, 101))
    ax.set_box_aspect(1)
    ax.set_anchor('N')
    _legend(ax)


def _curve(one: Alignment) -> tuple[list[float], list[float]]:
    """Per cent predicted and observed, of the bins that hold enough pairs to say something."""
    found = one.calibration
    kept = [i for i, count in enumerate(found.count) if count and count >= 0.01 * found.n]
    return [100 * found.predicted[i] for i in kept], [100 * found.observed[i] for i in kept]


def _draw_lines(ax: Any, reports: Sequence[Alignment], label: str) -> None:
    """One line a report from the top down."""
    ax.set(xlabel=label, ylim=(len(reports) - 0.5, -0.5))
    ax.set_yticks(range(len(reports)), [one.name for one in reports], parse_math=False)
    ax.tick_params(axis='y', length=0)
    ax.grid(axis='y', color='#e6e6e6', linewidth=0.8)
    ax.set_axisbelow(True)


def _draw_intervals(ax: Any, places: Sequence[tuple[int, Interval]], colour: str, label: str) -> None:
    places = [(i, found) for i, found in places if found.n]
    if places:
        value_B, low_B, high_B = (
            np.array([100 * getattr(found, end) for _, found in places]) for end in ('value', 'low', 'high')
        )
        error = np.stack([value_B - low_B, high_B - value_B])
        ax.errorbar(
            value_B, [i for i, _ in places], xerr=error, fmt='o', color=colour, markersize=5, linewidth=1.4, label=label
        )


def _legend(ax: Any) -> None:
    """Above the axes, where no data can be under it."""
    legend = ax.legend(loc='lower left', bbox_to_anchor=(0, 1), frameon=False, fontsize='small', borderaxespad=0.2)
    for text in legend.get_texts():
        text.set_parse_math(False)
    for side in ('top', 'right'):
        ax.spines[side].set_visible(False)


# Small parts


def _check_shown(reports: Sequence[Alignment], published: Mapping[str, float] | None) -> None:
    if not reports:
        raise Mistake('there are no reports to show')
    for name, percent in (published or {}).items():
        if not 1 < percent <= 100:
            raise Mistake(
                f'published[{name!r}]: the figures are per cent as the paper prints them, such as 78.0, not {percent}'
            )


def _title(title: str, simulated: bool, *more: str) -> str:
    return ' · '.join([*['SIMULATED'] * simulated, title, *more])
