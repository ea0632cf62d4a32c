"""How policies are shown against each other: tables and verdicts in the terminal, a CSV, samples side by side.

    found = {'raters': [compare(...), ...], 'oracle': [...]}
    table(found, published={('RLAIF', 'SFT'): (71, 59)});  write_csv('policies.csv', found)
    pairs = matrix(texts, prompts, judge);  matrix_table(pairs)
    side_by_side('samples', prompts, texts)

What a comparison is, and how it is computed, is in `win_rate.py`; the pictures are in `policies_figures.py`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from os import PathLike
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlaif_jax import log
from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.statistics import Interval
from rlaif_jax.evaluation.win_rate import Config, Judge, WinRate, compare

__all__ = ['complement', 'matrix', 'matrix_table', 'side_by_side', 'table', 'verdict', 'write_csv']

Pair = tuple[str, str]  # names of policies A and B
Published = Mapping[Pair, tuple[float | None, float | None]]  # the paper's per cent for A: raw, at equal length

# Title -> columns: one table where all of it fits, else these two.
TABLES = {
    'preferences': ('win rate %', 'at equal length %', 'paper %', 'p'),
    'what they rest on': ('characters A : B', 'n', 'ties', 'unscorable'),
}
LEGEND = {
    'win rate %': 'Win rate: how often A of "A vs B" is preferred [confidence interval over prompts].',
    'at equal length %': 'At equal length: by a logistic fit on the ratio of lengths, read where it is 1.',
    'paper %': 'Paper: how often its human raters preferred A, raw / at equal length.',
    'p': 'p: of a two-sided sign test against one half.',
    'characters A : B': 'Characters: mean length of the responses of A and of B.',
}


# Comparisons


def matrix(
    texts: Mapping[str, Sequence[str]], prompts: Sequence[Any], judge: Judge, config: Config = Config()
) -> dict[Pair, WinRate]:
    """Every policy against every other, as (name of A, name of B) -> A's rate, in both orders.

    texts: policy -> its responses to `prompts`. A pair is judged once, with the policy that comes first in `texts` as A;
    the other order is its `complement`. Mistake: fewer than two policies, not one response a prompt.
    """
    if len(texts) < 2:
        raise Mistake(f'policies are compared in pairs: give two or more, not {len(texts)}')
    _check_samples(prompts, texts)
    found = {}
    for a, b in combinations(texts, 2):
        found[a, b] = compare(prompts, texts[a], texts[b], judge, config, names=(a, b))
        found[b, a] = complement(found[a, b])
    return found


def complement(one: WinRate) -> WinRate:
    """The same comparison told from the other side: B against A, each rate one minus what it was.

    The rate at equal length is that of the same fit. Judging B against A anew gives the same raw rate from a judge that
    is the same in both orders, and the same at equal length only with `length_ratio='log'`.
    """
    return replace(
        one,
        raw=_other(one.raw),
        length_adjusted=_other(one.length_adjusted),
        mean_length_a=one.mean_length_b,
        mean_length_b=one.mean_length_a,
        name_a=one.name_b,
        name_b=one.name_a,
    )


def verdict(found: Mapping[str, WinRate], *, simulated: bool = False) -> str:
    """One comparison in plain words: what the first judge found, raw and at equal length, and whether others agree.

    found: judge -> what it says of the same two policies. One is preferred where the interval leaves out one half, and
    stands first with its own rate; where it does not, no difference is shown, which is not to say that there is none.
    """
    judge, one = next(iter(found.items()))
    if (_side(one.raw) or _side(one.length_adjusted)) < 0:  # what is preferred comes first
        found = {name: complement(other) for name, other in found.items()}
        one = found[judge]
    a, b, raw, even = one.name_a, one.name_b, _side(one.raw), _side(one.length_adjusted)
    even_rate = _percent(one.length_adjusted if even >= 0 else _other(one.length_adjusted))
    if not one.n:
        text = f'nothing is known of {a} and {b}: {judge} could not say on any of {one.unscorable} prompts'
    elif raw:
        text = f'{a} is preferred to {b} ({judge}: {_percent(one.raw)}); '
        text += (
            'also at equal length',
            'at equal length no difference is shown',
            f'at equal length {b} is preferred',
        )[1 - even]
        text += f' ({even_rate})'
    else:
        text = f'no difference between {a} and {b} is shown ({judge}: {a} {_percent(one.raw)})'
        text += f'; at equal length {a} is preferred' if even else ', nor at equal length'
        text += f' ({even_rate})'
    for name, other in list(found.items())[1:]:
        side = _side(other.raw)
        rate = _percent(other.raw if side >= 0 else _other(other.raw))
        if not other.n:
            text += f'; {name} could not say'
        elif one.n and side == raw == 0:
            text += f'; by {name} neither ({rate})'
        elif one.n and side == raw:
            text += f'; {name} agrees ({rate})'
        else:
            text += f'; {name}: {("no difference is shown", f"{a} is preferred", f"{b} is preferred")[side]} ({rate})'
    return _title(text, simulated)


# The terminal


def table(
    found: Mapping[str, Sequence[WinRate]],
    *,
    title: str = 'Policies against each other',
    published: Published | None = None,
    simulated: bool = False,
    console: Console | None = None,
) -> None:
    """Prints a line for each comparison and judge, a legend, and a verdict for each comparison. Fits on 80 columns.

    found: judge -> its comparisons; the first judge's is the verdict. published: (A, B) -> the paper's per cent, raw and
    at equal length, such as (71, 59) or (79, None), put beside the first judge. What is known of no comparison has no
    column. Mistake: no comparisons, the same one twice.
    """
    together = _together(found, published)
    out, rows = console or log.console(), []
    show = console.print if console else log.show
    for pair, judged in together.items():
        for i, (judge, one) in enumerate(judged.items()):
            name = f'{pair[0]} vs {pair[1]}\n  {judge}' if not i else f'  {judge}'
            rows.append({'comparison, judge': name} | _row(one, published.get(pair) if published and not i else None))
    known = [
        column for columns in TABLES.values() for column in columns if any(row[column] not in ('–', '') for row in rows)
    ]
    whole = _grid(rows, known)
    if out.measure(whole, options=out.options.update(max_width=1000)).maximum <= out.width:
        show(Text(_title(title, simulated), style='bold'), whole, '')
    else:
        for name, columns in TABLES.items():
            part = _grid(rows, [column for column in columns if column in known])
            show(Text(_title(title, simulated, name), style='bold'), part, '')
    show(Text('\n'.join(text for column, text in LEGEND.items() if column in known) + '\n', style='dim'))
    for judged in together.values():
        show(Text(verdict(judged, simulated=simulated)))
    show('')


def matrix_table(
    found: Mapping[Pair, WinRate],
    *,
    title: str = 'Policies against each other',
    simulated: bool = False,
    console: Console | None = None,
) -> None:
    """Prints two tables, of raw rates and of rates at equal length: how often the row is preferred to the column, in per
    cent, with a star where the interval leaves out one half. Of a pair it is enough to give one order.
    """
    show, both = console.print if console else log.show, _both_orders(found)
    policies = list(dict.fromkeys(a for a, _ in both))
    for name, which in {'win rate %': 'raw', 'win rate % at equal length': 'length_adjusted'}.items():
        rows = [
            {'A \\ B': a} | {b: _starred(getattr(both[a, b], which)) if (a, b) in both else '' for b in policies}
            for a in policies
        ]
        show(Text(_title(title, simulated, name), style='bold'), _grid(rows, policies), '')
    show(Text('How often the row is preferred to the column; *: the confidence interval leaves out 50 %.\n', 'dim'))


def _row(one: WinRate, paper: tuple[float | None, float | None] | None) -> dict[str, str]:
    cells = one.row()
    return {
        'win rate %': _within(one.raw),
        'at equal length %': _within(one.length_adjusted),
        'paper %': ' / '.join('–' if percent is None else f'{percent:.3g}' for percent in paper) if paper else '',
        'p': cells['p'] if one.n else '–',
        'characters A : B': cells['characters'] if one.n else '–',
        'n': str(one.n),
        'ties': str(one.ties or '–'),
        'unscorable': str(one.unscorable or '–'),
    }


def _grid(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Table:
    """Rows of cells whose first one is a name; long names are folded, numbers never."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    first = next(iter(rows[0]))
    shown.add_column(Text(first), overflow='fold', vertical='bottom')
    for column in columns:
        shown.add_column(
            Text('\n'.join(wrap(column, 10, break_long_words=False))), justify='right', no_wrap=True, vertical='bottom'
        )
    for row in rows:
        shown.add_row(*(Text(row[column]) for column in (first, *columns)))
    return shown


# Files


def write_csv(
    path: str | PathLike[str],
    found: Mapping[str, Sequence[WinRate]],
    *,
    published: Published | None = None,
    simulated: bool = False,
) -> None:
    """One line a comparison and judge with full precision. Columns are the fields of `WinRate` and the judge's name: an
    interval has its value under its name, and `_low`, `_high` and `_n` beside it. Rates are fractions, and the paper's,
    on every line of its comparison, per cent as it prints them.

    Empty is not known, `nan` undefined. The file is there whole or not at all. Mistake: as in `table`.
    """
    lines = []
    for pair, judged in _together(found, published).items():
        paper = (published or {}).get(pair, (None, None))
        for judge, one in judged.items():
            numbers = {}
            for name, value in asdict(one).items():
                parts = value if isinstance(value, dict) else {'value': value}
                numbers |= {name if part == 'value' else f'{name}_{part}': x for part, x in parts.items()}
            line = {'name_a': one.name_a, 'name_b': one.name_b, 'judge': judge} | numbers
            lines.append(
                line | dict(zip(('paper_percent', 'paper_equal_length_percent'), paper)) | {'simulated': simulated}
            )
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    _write(Path(path), text.getvalue())


def side_by_side(
    path: str | PathLike[str],
    prompts: Sequence[Any],
    texts: Mapping[str, Sequence[str]],
    *,
    n: int = 16,
    title: str = 'Samples',
    simulated: bool = False,
) -> None:
    """The responses of every policy to the first n prompts, as `path`.jsonl and as `path`.md.

    prompts: texts, or records with a `.text`. A line of the JSONL is {"prompt", name of a policy: response, ...}, exact;
    in the Markdown every character stands for itself, white space aside. Mistake: a policy named
    'prompt', not one response a prompt, no policies.
    """
    _check_samples(prompts, texts)
    if not texts or 'prompt' in texts:
        raise Mistake("samples are of one or more policies, and none can be named 'prompt', which is a column's name")
    asked = [getattr(prompt, 'text', prompt) for prompt in prompts[:n]]
    rows = [{'prompt': prompt} | {name: texts[name][i] for name in texts} for i, prompt in enumerate(asked)]
    parts = [f'# {_markdown(_title(title, simulated))}']
    for i, row in enumerate(rows):
        parts += [f'## {i + 1}', _quote(row['prompt'])]
        cells = [f'| {_markdown(name)} | {_cell(row[name])} |' for name in texts]
        parts.append('\n'.join(['| policy | response |', '|---|---|', *cells]))
    path = Path(path)
    path = path.with_suffix('') if path.suffix in ('.jsonl', '.md') else path
    _write(path.with_name(f'{path.name}.jsonl'), ''.join(log.to_json(row) + '\n' for row in rows))
    _write(path.with_name(f'{path.name}.md'), '\n\n'.join(parts) + '\n')


def _markdown(text: str) -> str:
    """One line of `text` as Markdown shows it unchanged; what cannot be seen is written out, as in the terminal."""
    seen = ''.join(c if c.isprintable() else ' ' if c.isspace() else ascii(c)[1:-1] for c in text).strip()
    seen = re.sub(r'([\\`*_\[\]<>&~|$#])', r'\\\1', seen)
    return re.sub(r'^(?=[+=-])|^\d+(?=[.)])', r'\g<0>\\', seen)  # would begin a list or make a heading


def _quote(text: str) -> str:
    lines = [_markdown(line) for line in text.strip().split('\n')]
    return '\n'.join(f'> {line}  ' if line else '>' for line in lines)  # two spaces: the line ends here


def _cell(text: str) -> str:
    return '<br>'.join(_markdown(line) for line in text.strip().split('\n')) or '*(empty)*'


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    log.write_whole(path, text)


# Small parts


def _together(found: Mapping[str, Sequence[WinRate]], published: Published | None) -> dict[Pair, dict[str, WinRate]]:
    """(A, B) -> judge -> its comparison."""
    together: dict[Pair, dict[str, WinRate]] = {}
    for judge, comparisons in found.items():
        for one in comparisons:
            judged = together.setdefault((one.name_a, one.name_b), {})
            if judge in judged:
                raise Mistake(
                    f'{judge} has two comparisons of {one.name_a} vs {one.name_b}: give policies unlike names'
                )
            judged[judge] = one
    if not together:
        raise Mistake('there are no comparisons to show')
    for pair, figures in (published or {}).items():
        if len(figures) != 2 or not all(percent is None or 1 < percent <= 100 for percent in figures):
            raise Mistake(
                f'published[{pair!r}]: per cent as the paper prints them, raw and at equal length, such as (71, 59) or '
                f'(79, None), not {figures}'
            )
    return together


def _both_orders(found: Mapping[Pair, WinRate]) -> dict[Pair, WinRate]:
    if not found:
        raise Mistake('there are no comparisons to show')
    both = {}
    for (a, b), one in found.items():  # in the order of the policies, that of `matrix`
        both[a, b] = one
        both[b, a] = found.get((b, a)) or complement(one)
    return both


def _check_samples(prompts: Sequence[Any], texts: Mapping[str, Sequence[str]]) -> None:
    for name, responses in texts.items():
        if len(responses) != len(prompts):
            raise Mistake(f'{len(prompts)} prompts, but {len(responses)} responses of {name}')


def _other(found: Interval) -> Interval:
    return Interval(1 - found.value, 1 - found.high, 1 - found.low, found.n)


def _side(found: Interval) -> int:
    """1 where A is preferred, -1 where B is, 0 where the interval holds one half: nothing is shown."""
    return (found.low > 0.5) - (found.high < 0.5)


def _within(found: Interval, unit: str = '') -> str:
    if math.isnan(found.value):
        return '–'
    return f'{100 * found.value:.1f}{unit} [{100 * found.low:.1f}, {100 * found.high:.1f}]'


def _percent(found: Interval) -> str:
    return _within(found, ' %')


def _starred(found: Interval) -> str:
    return '–' if math.isnan(found.value) else f'{100 * found.value:.1f}' + ('*' if _side(found) else ' ')


def _title(title: str, simulated: bool, *more: str) -> str:
    return ' · '.join([*['SIMULATED'] * simulated, title, *more])
