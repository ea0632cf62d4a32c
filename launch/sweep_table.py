"""What a sweep found, as a table and a CSV: a row for each point, which the table averages over seeds."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlaif_jax.config import Bindings, Mistake

SEED = 'seed'  # the binding that stands for --seed
PLUS_MINUS = '±'
SHOWN = 6  # figures in the table, unless they are named
SILENT = ('published', 'unscorable pairs')  # of a result: what is no finding
GROUPS = ('comparisons', 'alignment', 'reward models')  # of a result: what they hold has names of its own
# The ends of one point's interval say little beside the interval over seeds, and the mean of p values is none.
APART = ('low', 'high', 'p_value', 'ties', 'n')
WORDS = {'raw': 'win rate', 'length_adjusted': 'at equal length'}  # as other tables call them
SHARES = ('raw', 'length_adjusted', 'accuracy', 'agreement')  # in per cent here as in other tables; shown first


@dataclass(frozen=True)
class Row:
    """A point of a sweep that was run."""

    name: str
    swept: Bindings  # what the sweep changes; the seed among them
    values: Bindings  # all of its config by path, changed or not
    figures: dict[str, float] = field(default_factory=dict)
    failed: str = ''  # how; '' for one that finished


def figures_of(found: Any, *name: str) -> dict[str, float]:
    """The numbers in a result by name: {'RLAIF vs SFT / raters / raw': 0.6, 'RLAIF vs SFT / raters / raw / low': 0.5}.

    An interval is its value, with the rest below it. No truth values, nothing that is nan.
    """
    if isinstance(found, int | float) and not isinstance(found, bool):
        return {' / '.join(name): found} if math.isfinite(found) else {}
    inner = found if isinstance(found, dict) else dict(enumerate(found)) if isinstance(found, list) else {}
    is_interval, figures = {'value', 'low', 'high'} <= inner.keys(), {}
    for key, item in inner.items():
        if key in SILENT and not name:
            continue
        silent = (key in GROUPS and not name) or (key == 'value' and is_interval)
        figures |= figures_of(item, *name, *([] if silent else [str(key)]))
    return figures


def choose(rows: Sequence[Row], wanted: str | None = None) -> list[str]:
    """The figures to show: those wanted, else the first few that differ. Raises `Mistake` for one that is not there."""
    known = list(dict.fromkeys(name for row in rows for name in row.figures))
    if wanted:
        names = [name.strip() for name in wanted.split(',')]
        for name in set(names) - set(known) if known else ():
            near = difflib.get_close_matches(name, known, 1, 0.0)[0]
            raise Mistake(f'--figures={name}: no such figure; did you mean {near}?')
        return names
    known = sorted([name for name in known if not apart(name)], key=lambda name: not share(name))
    done = [row.figures for row in rows if not row.failed]
    return ([name for name in known if len({figures.get(name) for figures in done}) > 1] or known)[:SHOWN]


def table(rows: Sequence[Row], figures: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Columns and lines, a line for each combination of swept values but the seed: n, the points that finished, and of
    each figure the mean and, over several seeds, the half width of Student's 95 % interval. Figures that have no mean
    stand side by side.
    """
    from rlaif_jax.evaluation.statistics import mean_interval

    paths = [path for path in swept(rows) if path != SEED]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr([row.values.get(path) for path in paths]), []).append(row)

    def cell(name: str, done: list[Row]) -> str | float | None:
        seen = [row.figures[name] * (100 if share(name) else 1) for row in done if name in row.figures]
        if len(seen) < 2:
            return seen[0] if seen else None
        if apart(name):
            return ', '.join(f'{number:.4g}' for number in seen)
        mean = mean_interval(seen)
        half = mean.high - mean.value
        width = f'{half:.2g}' if half < 100 else f'{half:.0f}'  # no exponents
        return f'{mean.value:.4g} {PLUS_MINUS} {width}' + (f' (n={mean.n})' if mean.n < len(done) else '')

    any_failed, lines = any(row.failed for row in rows), []
    for group in groups.values():
        done = [row for row in group if not row.failed]
        why = '\n'.join(f'{row.name}: {row.failed}' for row in group if row.failed)
        values = [group[0].values.get(path) for path in paths]
        lines.append([*values, len(done), *[cell(name, done) for name in figures], *([why] if any_failed else [])])
    said = len(common(figures))
    words = [[WORDS.get(word, word) for word in name.split(' / ')[said:]] for name in figures]
    heads = [' '.join([*row, *['%'] * share(name)]) for row, name in zip(words, figures)]
    return [*paths, 'n', *heads, *(['failed'] if any_failed else [])], lines


def common(figures: Sequence[str]) -> list[str]:
    """With what the names of all figures begin: a table says it once, above."""
    rows = [name.split(' / ')[:-1] for name in figures]
    return [words[0] for words in itertools.takewhile(lambda words: len({*words}) == 1, zip(*rows))]


def legend(lines: Sequence[Sequence[Any]]) -> str:
    """What the cells of a table say, '' where it is plain."""
    averaged = any(PLUS_MINUS in str(cell) for line in lines for cell in line)
    return f'n: points; {PLUS_MINUS}: half the 95 % interval of the mean over seeds (Student’s t).' if averaged else ''


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each point: the swept values, how it failed, all its figures."""
    from rlaif_jax.evaluation import tables

    paths = swept(rows)
    return tables.as_csv([
        {'point': row.name} | {path: row.values.get(path) for path in paths} | {'failed': row.failed} | row.figures
        for row in rows
    ])  # fmt: skip


def swept(rows: Sequence[Row]) -> list[str]:
    """Every path that some point changes."""
    return list(dict.fromkeys(path for row in rows for path in row.swept))


def share(figure: str) -> bool:
    """Whether a figure is a share, from 0 to 1."""
    return figure.rpartition(' / ')[2] in SHARES


def apart(figure: str) -> bool:
    """Whether a figure is never averaged over seeds."""
    return figure.rpartition(' / ')[2] in APART
