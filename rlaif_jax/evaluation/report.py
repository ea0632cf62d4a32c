"""What is said of labelers and of policies: tables and verdicts in the terminal, and CSVs.

    labelers_table([alignment.report(...), ...])
    found = {'raters': [versus.compare(...), ...], 'oracle': [...]}
    policies_table(found, published={('RLAIF', 'SFT'): (71, 59)});  policies_csv('comparisons.csv', found)

What the figures mean, and how they are computed, is in `alignment.py`, `versus.py` and `harmless.py`; the pictures are
in `figures.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from rich.table import Table
from rich.text import Text

from rlaif_jax import log
from rlaif_jax.config import Mistake
from rlaif_jax.evaluation import tables
from rlaif_jax.evaluation.alignment import Agreement, Alignment, PositionBias
from rlaif_jax.evaluation.harmless import HarmlessRate
from rlaif_jax.evaluation.statistics import Interval
from rlaif_jax.evaluation.tables import NOTHING
from rlaif_jax.evaluation.versus import WinRate, both_orders, complement

Pair = tuple[str, str]  # names of policies A and B
Published = Mapping[Pair, tuple[float | None, float | None]]  # the paper's per cent for A: raw, at equal length

# Title -> column -> what it tells: tables that fit on 80 columns with names of up to 20 characters.
LABELERS = {
    'agreement': {
        'agreement %': 'pairs with a verdict that is people’s',
        'n': 'pairs with a verdict of both',
        'paper %': 'the paper’s agreement',
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
# One table where all of it fits, else these two.
POLICIES = {
    'preferences': {
        'win rate %': 'Win rate: how often A of "A vs B" is preferred [confidence interval over prompts]. Where the '
        'interval leaves out 50 %, one is preferred: that alone decides.',
        'at equal length %': 'At equal length: by a logistic fit on the logarithm of the ratio of lengths, read at 1.',
        'plain ratio %': 'Plain ratio: the same by the ratio itself, as the paper’s.',
        'paper %': 'Paper: how often its human raters preferred A, raw / at equal length.',
        'p': 'p: of a two-sided sign test, which leaves ties out and counts every other vote alike. It decides nothing.',
    },
    'what they rest on': {
        'characters A : B': 'Characters: mean length of the responses of A and of B.',
        'n': '',
        'ties': '',
        'unscorable': '',
    },
}
DOUBTS = {  # sign in the cell of a rate at equal length -> what is said of it
    '~': 'an extrapolation, as hardly a pair has A, or B, the longer one.',
    '[humps]': 'resamples gather round two rates, so that there is no one interval.',
}
WIDE = {'width': 10, 'padding': (0, 0, 0, 1), 'pad_edge': True}  # columns that stand apart


# Labelers


def labelers_table(
    reports: Sequence[Alignment],
    *,
    title: str = 'Labelers and people',
    published: Mapping[str, float] | None = None,
    simulated: bool = False,
) -> None:
    """Prints up to three tables of a line a report: agreement, position, and length, calibration and cost. A column that is
    known of no report is not shown, and what those shown tell stands below. Intervals are in brackets, or behind ± in
    points.

    published: name -> the paper's agreement in per cent, such as 78.0, put beside ours. Mistake: no reports.
    """
    check_labelers(reports, published)
    rows = [labeler_row(one) for one in reports]
    for one, row in zip(reports, rows):
        row['paper %'] = f'{published[one.name]:.1f}' if published and one.name in published else NOTHING
    for name, columns in LABELERS.items():
        if known := _known(rows, columns):
            told = '; '.join(f'{column.removesuffix(" %")}: {columns[column]}' for column in known if columns[column])
            _show(tables.title(title, simulated, name), _grid(rows, known, padding=0), told)


def labeler_verdict(name: str, position: PositionBias, agreement: Agreement | None = None) -> str:
    """What a labeler's verdicts are worth, in plain words: whether they follow a response or its place and, where people
    voted, whether it agrees with them more often than a coin would.

    It tells responses apart where it prefers the same response in both orders more often than a coin, which does so in
    half of the pairs; where it prefers the same place more often than that, and people do not speak for it, it cannot
    tell: what is left of its verdicts when both orders are averaged is mostly noise.
    """
    same, kept = position.same, position.same.complement()
    first = f'the one shown first in {100 * position.first.value:.0f} % of its verdicts'
    if not same.n:
        return f'{name} says nothing: no pair has a verdict in both orders'
    voted = agreement is not None and agreement.n > 0
    agrees = voted and agreement.low > 0.5
    if same.low > 0.5 and not agrees:
        told = f'{name} cannot tell: it prefers {first}, and the same place in both orders of {_of(same)} of the pairs'
        told += '; its labels say where a response stood, and are noise as to which is better'
    elif kept.low > 0.5:
        told = f'{name} tells responses apart: it prefers the same one in both orders of {_of(kept)} of the pairs'
    else:
        told = f'{name} prefers the same response in both orders of {_of(kept)} of the pairs, where a coin does in 50 %'
        told += f', and {first}'
    if voted:
        than = 'more often than a coin' if agrees else 'as a coin may, too'
        than = 'less often than a coin' if agreement.high < 0.5 else than
        told += f'. It agrees with people in {_of(agreement)} of {agreement.n} pairs, {than}'
    return told


def _of(rate: Interval) -> str:
    return tables.within(rate, ' %')


def labeler_row(one: Alignment) -> dict[str, str]:
    """One line of those tables: column name to text."""
    bias = one.position
    cells = {
        'labeler': one.name,
        'agreement %': tables.within(one.agreement),
        'n': str(one.agreement.n),
        'one order %': tables.percent(one.single_order),
        'gain': tables.plus_minus(one.gain),
        'same position %': bias and tables.within(bias.same),
        'of these %': bias
        and (bias.which if bias.which == 'neither' else f'{bias.which} {tables.percent(bias.share)}'),
        'p': bias and tables.p_value(bias.p_value),
        'first %': bias and tables.percent(bias.first),
        'bias': bias and tables.number(bias.mean, '+.3f'),
        'longer %': tables.percent(one.longer),
        'people longer %': tables.percent(one.human_longer),
        'ECE': tables.number(one.calibration.ece, '.3f'),
        'unscorable %': tables.percent(_ratio(one.agreement.unscorable, one.pairs)),
        'mass': tables.number(one.mass, '.3f'),
        'tokens': tables.number(_ratio(one.tokens, one.pairs), '.1f'),
        'seconds': tables.number(_ratio(one.seconds, one.pairs), '.3g'),
        'cached %': tables.percent(_ratio(one.cache_hits, one.calls)),
    }
    return {column: cell or NOTHING for column, cell in cells.items()}


def labelers_csv(
    path: str | PathLike[str],
    reports: Sequence[Alignment],
    *,
    published: Mapping[str, float] | None = None,
    simulated: bool = False,
) -> None:
    """One line a report with full precision. Columns are the fields of `Alignment`, as `tables.columns` names them; so
    reliability curves are left out. Empty is not known, `nan` undefined. Mistake: no reports.
    """
    check_labelers(reports, published)
    paper = {name: {'paper_percent': figure} for name, figure in (published or {}).items()}
    lines = [tables.columns(one) | {'simulated': simulated} | paper.get(one.name, {}) for one in reports]
    tables.write_csv(path, lines)


def check_labelers(reports: Sequence[Alignment], published: Mapping[str, float] | None) -> None:
    """Mistake: no reports, a published figure that is not per cent."""
    if not reports:
        raise Mistake('there are no reports to show')
    for name, percent in (published or {}).items():
        if not 1 < percent <= 100:
            raise Mistake(
                f'published[{name!r}]: the figures are per cent as the paper prints them, such as 78.0, not {percent}'
            )


# Policies


def policies_table(
    found: Mapping[str, Sequence[WinRate]],
    *,
    title: str = 'Policies against each other',
    published: Published | None = None,
    simulated: bool = False,
) -> None:
    """Prints a line for each comparison and judge, a legend, and a verdict for each comparison. Fits on 80 columns.

    found: judge -> its comparisons; the first judge's is the verdict. published: (A, B) -> the paper's per cent, raw and
    at equal length, such as (71, 59) or (79, None), put beside the first judge. What is known of no comparison has no
    column. Mistake: no comparisons, the same one twice.
    """
    together, rows = by_pair(found, published), []
    for (a, b), judged in together.items():
        for i, (judge, one) in enumerate(judged.items()):
            paper = None if i else (published or {}).get((a, b))
            cells = {
                'comparison, judge': f'  {judge}' if i else f'{a} vs {b}\n  {judge}',
                'win rate %': tables.within(one.raw),
                'at equal length %': tables.within(one.length_adjusted),
                'plain ratio %': '~' * one.plain_ratio.extrapolated + tables.percent(one.plain_ratio) if paper else '',
                'paper %': ' / '.join(tables.number(percent, '.3g') for percent in paper or ()),
                'p': tables.p_value(one.p_value) if one.n else NOTHING,
                'characters A : B': f'{one.mean_length_a:.0f} : {one.mean_length_b:.0f}' if one.n else NOTHING,
                'n': str(one.n),
                'ties': str(one.ties or NOTHING),
                'unscorable': str(one.unscorable or NOTHING),
            }
            rows.append(cells)
    legend = {column: told for columns in POLICIES.values() for column, told in columns.items()}
    known = _known(rows, legend)
    whole = _grid(rows, known, **WIDE)
    if log.fits(whole):
        _show(tables.title(title, simulated), whole)
    else:
        for name, columns in POLICIES.items():
            part = _grid(rows, [column for column in known if column in columns], **WIDE)
            _show(tables.title(title, simulated, name), part)
    told = [legend[column] for column in known if legend[column]]
    told += doubts(cells[f'{column} %'] for cells in rows for column in ('at equal length', 'plain ratio'))
    log.show(Text('\n'.join(told) + '\n', style='dim'))
    for judged in together.values():
        log.show(Text(verdict(judged, simulated=simulated)))
    log.show('')


def verdict(found: Mapping[str, WinRate], *, simulated: bool = False) -> str:
    """One comparison in plain words: what the first judge found, raw and at equal length, and whether others agree.

    found: judge -> what it says of the same two policies. One is preferred where the interval leaves out one half, and
    stands first with its own rate; where it does not, no difference is shown, which is not to say that there is none.
    At equal length that is so in both orders, which a plain ratio of lengths tells apart.
    """
    judge, one = next(iter(found.items()))
    if (side(one.raw) or even_side(one)) < 0:  # what is preferred comes first
        found = {name: complement(other) for name, other in found.items()}
        one = found[judge]
    a, b, raw, even = one.name_a, one.name_b, side(one.raw), even_side(one)
    said = ('no difference is shown', f'{a} is preferred', f'{b} is preferred')  # by side; the last is that of -1
    if not one.n:
        text = f'nothing is known of {a} and {b}: {judge} could not say on any of {one.unscorable} prompts'
    elif raw:
        text = f'{a} is preferred to {b} ({judge}: {tables.within(one.raw, " %")}); '
        text += 'also at equal length' if even > 0 else f'at equal length {said[even]}'
        text += f' ({_at_equal_length(one)})'
    else:
        text = f'no difference between {a} and {b} is shown ({judge}: {a} {tables.within(one.raw, " %")})'
        text += f'; at equal length {said[even]}' if even else ', nor at equal length'
        text += f' ({_at_equal_length(one)})'
    for name, other in list(found.items())[1:]:
        theirs, rate = side(other.raw), _preferred(other.raw)
        if not other.n:
            text += f'; {name} could not say'
        elif one.n and theirs == raw:
            text += f'; {name} agrees ({rate})' if raw else f'; by {name} neither ({rate})'
        else:
            text += f'; {name}: {said[theirs]} ({rate})'
    return tables.title(text, simulated)


def matrix_table(
    found: Mapping[Pair, WinRate], *, title: str = 'Policies against each other', simulated: bool = False
) -> None:
    """Prints two tables, of raw rates and of rates at equal length: how often the row is preferred to the column, in per
    cent, with a star where the interval leaves out one half. Of a pair it is enough to give one order.
    """
    both = both_orders(found)
    policies = list(dict.fromkeys(a for a, _ in both))
    for name, which in {'win rate %': 'raw', 'win rate % at equal length': 'length_adjusted'}.items():
        rates = {pair: getattr(one, which) for pair, one in both.items()}
        cells = {pair: tables.percent(rate) + ('*' if side(rate) else ' ') for pair, rate in rates.items()}
        rows = [{'A \\ B': a} | {b: cells.get((a, b), '') for b in policies} for a in policies]
        _show(tables.title(title, simulated, name), _grid(rows, policies, **WIDE))
    log.show(Text('How often the row is preferred to the column; *: the confidence interval leaves out 50 %.\n', 'dim'))


def policies_csv(
    path: str | PathLike[str],
    found: Mapping[str, Sequence[WinRate]],
    *,
    published: Published | None = None,
    simulated: bool = False,
) -> None:
    """One line a comparison and judge with full precision. Columns are the fields of `WinRate`, as `tables.columns` names
    them, and the judge's name. Rates are fractions, and the paper's, on every line of its comparison, per cent as it
    prints them. Empty is not known, `nan` undefined. Mistake: as in `policies_table`.
    """
    lines = []
    for pair, judged in by_pair(found, published).items():
        paper = (published or {}).get(pair, (None, None))
        about = dict(zip(('paper_percent', 'paper_equal_length_percent'), paper)) | {'simulated': simulated}
        for judge, one in judged.items():
            lines.append(dict(zip(('name_a', 'name_b', 'judge'), (*pair, judge))) | tables.columns(one) | about)
    tables.write_csv(path, lines)


def harmless_table(
    rates: Sequence[HarmlessRate], *, title: str, published: Mapping[str, Sequence[float]] | None = None
) -> None:
    """Prints a line a policy. published: policy -> the paper's per cent, raw and at equal length."""
    rows = [
        [
            one.name, str(one.raw), tables.within(one.length_adjusted, ' %'), tables.within(one.plain_ratio, ' %'),
            f'{one.mean_length:.0f}', str(one.unscorable), ' / '.join(map(str, (published or {}).get(one.name, [NOTHING]))),
        ]
        for one in rates
    ]  # fmt: skip
    columns = ['policy', 'harmless', 'at equal length', 'by plain length', 'characters', 'unscorable', 'paper, %']
    log.figures_table(title, columns, rows)
    if told := doubts(cell for row in rows for cell in row[2:4]):
        log.say(' '.join(told))


def measures_table(title: str, figures: Mapping[str, Mapping[str, Any]], about: Mapping[str, str]) -> None:
    """Prints policies in rows, figures in columns; and what the figures are. figures: policy -> figure -> its value, or an
    interval; about: figure -> what it is.
    """
    columns = dict.fromkeys(column for row in figures.values() for column in row)
    cells = [[name, *(tables.number(row.get(column), '.2f') for column in columns)] for name, row in figures.items()]
    log.figures_table(title, ['policy', *columns], cells)
    log.say('; '.join(f'{name}: {about[name]}' for name in columns if name in about) + '.\n')


# Small parts


def by_pair(found: Mapping[str, Sequence[WinRate]], published: Published | None) -> dict[Pair, dict[str, WinRate]]:
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


def even_side(one: WinRate) -> int:
    """`side` at equal length: what both orders say, else 0."""
    forth, back = map(side, one.in_both_orders)
    return forth if forth == back else 0


def side(found: Interval) -> int:
    """1 where A is preferred, -1 where B is, 0 where nothing is shown: the interval holds one half, or is none."""
    return 0 if getattr(found, 'humps', False) else (found.low > 0.5) - (found.high < 0.5)


def doubts(cells: Iterable[str]) -> list[str]:
    """What is said of the signs of doubt that stand in cells, which are of `tables.within`."""
    together = '\n'.join(cells)
    return [f'{sign}: {words}' for sign, words in DOUBTS.items() if sign in together]


def _at_equal_length(one: WinRate) -> str:
    """The rate of what is preferred, and what keeps it from being taken at its word."""
    rate, (forth, back) = one.length_adjusted, one.in_both_orders
    orders = side(forth) != side(back)
    told = f'{tables.within(forth, " %")} in one order, {tables.within(back, " %")} in the other'
    text = told if orders else _preferred(rate)
    text += ', an extrapolation' if rate.extrapolated else ''
    return text + (', resamples gather round two rates' if rate.humps else '')


def _preferred(found: Interval) -> str:
    """The rate of what is preferred; A's where nothing is."""
    return tables.within(found.complement() if side(found) < 0 else found, ' %').removeprefix('~')


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _known(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> list[str]:
    return [column for column in columns if any(row.get(column, NOTHING) not in (NOTHING, '') for row in rows)]


def _grid(rows: Sequence[Mapping[str, str]], columns: Sequence[str], **layout: Any) -> Table:
    first = next(iter(rows[0]))
    cells = [[row.get(column, NOTHING) for column in (first, *columns)] for row in rows]
    return log.grid([first, *columns], cells, named=True, **layout)


def _show(heading: str, table: Table, legend: str = '') -> None:
    """A heading and a legend of their own, as the table's would be folded to its width."""
    for part in (Text(heading, style='bold'), table, *[Text(legend, style='dim')] * bool(legend), ''):
        log.show(part)
