"""A page that shows what was found: one HTML file that opens from disk, or by mail, and asks nothing of a network.

    write('report.html', Page('tldr_direct', sections=[comparisons(found), curves(runs)], samples=samples(...)))

Sections are made of values; templates, style and script lie in `pages/`. Whatever is a text of somebody, a model's above
all, is escaped, and the page's policy runs no script but its own. The same values are the same bytes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlaif_jax import log
from rlaif_jax.evaluation import tables
from rlaif_jax.evaluation.alignment import Alignment
from rlaif_jax.evaluation.figures import PANELS, curve, running_mean
from rlaif_jax.evaluation.length import characters
from rlaif_jax.evaluation.report import POLICIES, Published, by_pair, doubts, even_side, labeler_row, side, verdict
from rlaif_jax.evaluation.statistics import Interval, wilson
from rlaif_jax.evaluation.versus import WinRate, both_orders

SESSIONS = 4  # points by which two sessions of the paper's own raters differ (71 and 67, 73 and 74; App. N)
WIDEST = 20  # points of an interval that holds 50 % and still says that there is hardly a difference
LARGEST = 2_400_000  # bytes of samples; a page of more is slow to open
SKIPPED = ('I cannot judge this', 'all are bad', 'the prompt makes no sense', 'it should not be shown to anyone')
CURVE = 300  # points of a curve at most

RULE = (
    f'Reproduced: we and the paper prefer the same one, or neither, and the paper’s figure is within {SESSIONS} points of '
    f'our interval (its own sessions differ by so much). Same direction: the same one, by more or less than that. Not '
    f'shown: our interval holds 50 %, or is wider than {WIDEST} points where the paper sees no difference, or our rate '
    f'is an extrapolation (~). Otherwise: all else. The paper prefers one where its figure is more than {SESSIONS} points '
    'from 50.'
)
BANNERS = {  # posts are simulated, judges are -> what is said of it
    (False, False): '',
    (
        True,
        False,
    ): 'The posts are artificial. What people say of them is real; all other figures are of that world alone.',
    (False, True): 'A toy model of an artificial world judges or writes here: its figures say nothing of other models.',
    (True, True): 'Artificial posts, raters and an oracle, and toy models: these figures are of that world alone.',
}


@dataclass(frozen=True)
class Section:
    """A part of a page, and its name in the page's list of parts."""

    title: str
    html: Markup


@dataclass(frozen=True)
class Page:
    """What a page shows, from the top."""

    title: str
    verdicts: Sequence[str] = ()  # sentences
    simulated: str = ''  # what is, of `banner`
    sections: Sequence[Section] = ()
    samples: Mapping[str, Any] | None = None  # of `samples`
    files: Mapping[str, str] = field(default_factory=dict)  # name -> text, for download


def banner(*, posts: bool, judges: bool) -> str:
    """What is said of a page on which posts, or those who judge or write, are simulated; '' where neither are."""
    return BANNERS[posts, judges]


def write(path: str | PathLike[str], page: Page) -> None:
    """Writes a page as one file; it is there whole or not at all."""
    log.write_whole(Path(path), html(page))


def html(page: Page) -> str:
    """A page as the text of its file."""
    files = {name: text for name, text in page.files.items() if text}
    digests = {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in files.items()}
    data = {'samples': page.samples, 'files': files}
    return _file('report.html.j2', 'page.js', data, page=page, names=[*files], digests=digests)


def ranking(
    title: str,
    prompts: Sequence[tuple[str, str]],
    texts: Mapping[str, Sequence[str]],
    instructions: Sequence[str],
    simulated: bool = False,
) -> str:
    """A page on which people rank the responses to each prompt, as the text of its file; what they save is a file that
    `rankings.read` reads.

    They do not see whose responses they are. Each rater has the cards in an order of its own, equal texts on one card, and
    is asked about some prompts again. prompts: id and text; texts: policy -> responses; instructions: paragraphs;
    simulated: whether the prompts are artificial, which the page says.
    """
    rows = [{'id': id, 'prompt': prompt} for id, prompt in prompts]
    rows = [row | {'texts': list(of)} for row, of in zip(rows, zip(*texts.values(), strict=True), strict=True)]
    data = {'policies': [*texts], 'rows': rows}
    digest = hashlib.sha256(log.to_json(data).encode(errors='surrogatepass')).hexdigest()[:16]
    data['digest'] = digest  # what a browser keeps is of these policies' responses
    told = banner(posts=simulated, judges=False)
    return _file(
        'rank.html.j2', 'rank.js', data, title=title, instructions=instructions, reasons=SKIPPED, simulated=told
    )


def _file(template: str, script: str, data: Mapping[str, Any], **values: Any) -> str:
    """A page with its style, its script, its data, and the policy that allows these and no others."""
    allowed = {'style-src': _source('style.css'), 'script-src': _source(script)}
    policy = ["default-src 'none'", "base-uri 'none'", "form-action 'none'", 'img-src data:']
    policy += [f"{kind} 'sha256-{_hash(text)}'" for kind, text in allowed.items()]
    style, script = map(Markup, allowed.values())
    values |= {'policy': '; '.join(policy), 'style': style, 'script': script, 'data': _data(data)}
    return _template(template).render(**values)


# Policies


def comparisons(found: Mapping[str, Sequence[WinRate]], published: Published | None = None) -> Section:
    """Every comparison by every judge, raw and at equal length, the paper's figures beside the first judge's, and what
    becomes of them. Mistake: no comparisons, the same one twice.
    """
    rows = []
    for pair, judged in by_pair(found, published).items():
        for i, (judge, one) in enumerate(judged.items()):
            raw, even = ((published or {}).get(pair) or (None, None)) if not i else (None, None)
            rows.append({
                'pair': f'{pair[0]} vs {pair[1]}' if not i else '', 'judge': judge, 'one': one,
                'raw': tables.within(one.raw), 'even': tables.within(one.length_adjusted),
                'plain': tables.within(one.plain_ratio) if raw or even else '', 'sure': bool(side(one.raw)),
                'evenly': bool(even_side(one)), 'p': tables.p_value(one.p_value) if one.n else tables.NOTHING,
                'paper': ' / '.join(tables.number(percent, '.3g') for percent in (raw, even)) if raw or even else '',
                'becomes': ' / '.join(
                    outcome(rate, percent) for rate, percent in ((one.raw, raw), (one.plain_ratio, even)) if percent
                ),
                'plot': _rate_plot(one, raw, even),
            })  # fmt: skip
    first = {(one.name_a, one.name_b): one for one in next(iter(found.values()))}
    legend = [words for column in POLICIES.values() for words in column.values() if words]
    legend += doubts(row[rate] for row in rows for rate in ('even', 'plain'))
    known = {name for name in ('paper', 'plain') if any(row[name] for row in rows)}
    shown = {'rows': rows, 'legend': legend, 'known': known, 'rule': RULE if 'paper' in known else ''}
    return _section('Who is preferred', 'comparisons', **shown, matrices=_matrices(first) if len(first) > 1 else [])


def outcome(rate: Interval, percent: float, even: float = 50, near: float = SESSIONS) -> str:
    """What becomes of the paper's figure, in per cent, beside ours, by `RULE`. Of what is no win rate, `even` takes the
    place of 50, and the paper sees a difference where it is further than `near` from there. It is infinite where the
    paper has no number, and says only which way.
    """
    low, high = 100 * rate.low, 100 * rate.high
    ours = 0 if getattr(rate, 'humps', False) else (low > even) - (high < even)
    papers = (percent > even + near) - (percent < even - near)
    if not rate.n or getattr(rate, 'extrapolated', False) or (not ours and (papers or high - low > WIDEST)):
        return 'not shown'
    if ours != papers:
        return 'otherwise'
    return 'reproduced' if low - SESSIONS <= percent <= high + SESSIONS else 'same direction'


def sentences(found: Mapping[str, Sequence[WinRate]], *, simulated: bool = False) -> dict[tuple[str, str], str]:
    """A verdict for each comparison, (A, B) -> it."""
    return {pair: verdict(judged, simulated=simulated) for pair, judged in by_pair(found, None).items()}


def _matrices(first: Mapping[tuple[str, str], WinRate]) -> list[dict[str, Any]]:
    both = both_orders(first)
    names = list(dict.fromkeys(a for a, _ in both))

    def cell(a: str, b: str, which: str) -> dict[str, Any] | None:
        if (a, b) not in both:
            return None
        rate = getattr(both[a, b], which)
        shade = 0 if math.isnan(rate.value) else round(8 * (rate.value - 0.5))  # -4 .. 4
        return {
            'text': tables.percent(rate),
            'ends': tables.within(rate).partition(' ')[2],
            'shade': shade,
            'sure': side(rate),
        }

    kinds = {'all responses': 'raw', 'at equal length': 'length_adjusted'}
    return [
        {'title': title, 'names': names, 'rows': [(a, [cell(a, b, which) for b in names]) for a in names]}
        for title, which in kinds.items()
    ]


def _rate_plot(one: WinRate, raw: float | None, even: float | None) -> Plot:
    """Both rates on one scale, and the paper's figures as diamonds."""
    plot = Plot((0, 100), (0, 2), width=230, height=30, margins=(4, 6, 2, 6), label=f'{one.name_a} preferred, per cent')
    plot.rule(50)
    for y, rate, kind, percent in ((1.4, one.raw, 'disc', raw), (0.6, one.length_adjusted, 'ring', even)):
        if rate.n:
            if not getattr(rate, 'humps', False):
                plot.across(100 * rate.low, 100 * rate.high, y, 0)
            plot.mark(100 * rate.value, y, kind, 0, f'{tables.within(rate)} %')
        if percent:
            plot.mark(percent, y, 'diamond', 1, f'paper: {percent}')
    return plot


def results(title: str, rows: Sequence[Mapping[str, Any]], told: Sequence[str] = ()) -> Section:
    """What a paper says, a statement a row, and ours beside it. Of a row: `says`; `paper` and `ours` as texts; `rate`, ours
    as an interval or None, `percent`, the paper's or None, and the `span` on which both are drawn, its middle what is
    even; `of`, what ours is of; `becomes`, by `outcome`; `links` to where ours is from, name and relative address.
    """
    return _section(title, 'results', rows=[{**row, 'plot': _beside(row)} for row in rows], told=told)


def _beside(row: Mapping[str, Any]) -> Plot | None:
    """Ours and the paper's on one scale; None where ours is not there."""
    rate, percent, (low, high) = row['rate'], row['percent'], row['span']
    if rate is None or not rate.n or low == high:
        return None
    plot = Plot((low, high), (0, 1), width=230, height=30, margins=(4, 6, 2, 6), label=f'{row["says"]}: {row["ours"]}')
    plot.rule((low + high) / 2)
    if not getattr(rate, 'humps', False):
        plot.across(100 * rate.low, 100 * rate.high, 0.5, 0)
    plot.mark(100 * rate.value, 0.5, 'disc', 0, row['ours'])
    if percent is not None and math.isfinite(percent):
        plot.mark(percent, 0.5, 'diamond', 1, f'paper: {row["paper"]}')
    return plot


def measures(title: str, figures: Mapping[str, Mapping[str, Any]], about: Mapping[str, str]) -> Section:
    """Policies in rows, figures in columns, as `report.measures_table` prints them."""
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    rows = [[name, *(tables.number(row.get(column), '.2f') for column in columns)] for name, row in figures.items()]
    told = '; '.join(f'{name}: {about[name]}' for name in columns if name in about)
    return table(title, ['', *columns], rows, told)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], told: str = '') -> Section:
    """A table of texts and numbers; the first column names the rows."""
    return _section(
        title, 'table', columns=columns, rows=[['' if x is None else x for x in row] for row in rows], told=told
    )


# Curves


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], parted: Mapping[str, tuple[int, int, str]] = {}) -> Section:
    """How training went, a panel a quantity. runs: name -> rows of metrics; parted: name -> the steps between which the
    score rose and quality did not, and what is said of it, which are marked.
    """
    plots = []
    for name, (unit, training, evaluation, factor) in PANELS.items():
        lines = {run: (curve(rows, training), curve(rows, evaluation)) for run, rows in runs.items()}
        values = [factor * y_B for both in lines.values() for x_B, y_B in both if y_B.size]
        if not values:
            continue
        most = max(float(x_B[-1]) + 1 for both in lines.values() for x_B, _ in both if x_B.size)
        plot = Plot((0, most), _range(np.concatenate(values)), title=name, unit=unit, x_unit='steps done', label=name)
        for begin, end, _ in parted.values():
            plot.band(begin, end)
        if evaluation == 'eval/win_rate':
            plot.rule(50, along=True)
        for i, (run, ((x_B, y_B), (at_B, seen_B))) in enumerate(lines.items()):
            keep = np.unique(np.linspace(0, len(x_B) - 1, CURVE).astype(int)) if len(x_B) else []
            plot.line(x_B[keep], factor * running_mean(y_B)[keep], i)
            plot.line(at_B + 1, factor * seen_B, i, faint=bool(len(x_B)))
            for x, y in zip(at_B + 1, factor * seen_B):
                plot.mark(x, y, 'dot', i, f'{run}, step {x:.0f}: {y:.4g}')
        plots.append(plot)
    told = [f'{name}: {said}' for name, (_, _, said) in parted.items()]
    return _section('How training went', 'plots', plots=plots, series=[*runs], told=told, about=(
        'Lines: batches of training, running mean. Dots: validation prompts.'
        + (' Shaded: the score rises and quality does not, by the rule below.' if parted else '')
    ))  # fmt: skip


def lengths(texts: Mapping[str, Sequence[str]]) -> Section:
    """How long the responses of each policy are, in characters."""
    size = {name: characters(responses) for name, responses in texts.items() if len(responses)}
    every_B = np.concatenate([*size.values()])
    top = max(float(np.quantile(every_B, 0.995)), every_B.min() + 1.0)
    width = max(1, math.ceil((top - every_B.min()) / 40))
    edges = np.arange(every_B.min(), top + width + 1, width) - 0.5
    shares = {name: 100 * np.histogram(length_B, edges)[0] / length_B.size for name, length_B in size.items()}
    most, plots = max(float(share.max()) for share in shares.values()), []
    for i, (name, share) in enumerate(shares.items()):
        mean = size[name].mean()
        plot = Plot(
            (float(edges[0]), float(edges[-1])), (0, most), height=110, title=f'{name}: {mean:.0f} on average',
            x_unit='characters', unit='% of responses', label=f'lengths of {name}',
        )  # fmt: skip
        for left, right, percent in zip(edges, edges[1:], share):
            plot.bar(left, right, percent, i)
        plot.rule(mean)
        plots.append(plot)
    about = 'Beyond the 99.5th percentile of all is not shown.'
    return _section('How long the responses are', 'plots', plots=plots, series=[], told=[], about=about)


def against_length(
    votes: Mapping[str, np.ndarray], texts: Mapping[str, Sequence[str]], found: Sequence[WinRate]
) -> Section:
    """How often A is preferred where it is shorter, and where it is longer: a point for each tenth of the prompts. votes:
    'A vs B' -> the first judge's, (B,).
    """
    plots = []
    for one in found:
        vote_B = np.asarray(votes[f'{one.name_a} vs {one.name_b}'], np.float64)
        ratio_B = np.log2(characters(texts[one.name_a]) / characters(texts[one.name_b]))
        kept_B = ~np.isnan(vote_B)
        vote_B, ratio_B = vote_B[kept_B], ratio_B[kept_B]
        if not vote_B.size:
            continue
        far = max(1.0, float(np.quantile(np.abs(ratio_B), 0.98)))
        plot = Plot(
            (-far, far), (0, 100), title=f'{one.name_a} vs {one.name_b}', unit='A preferred, %',
            x_unit='A’s length as a multiple of B’s', label=f'win rate against length, {one.name_a} vs {one.name_b}',
            x_ticks=[(x, f'{2.0**x:.3g}×') for x in range(-math.floor(far), math.floor(far) + 1)],
        )  # fmt: skip
        plot.rule(50, along=True)
        plot.rule(0)
        order = np.argsort(ratio_B, kind='stable')
        for rows in np.array_split(order, min(10, max(1, vote_B.size // 10))):
            rate, x = wilson(float(vote_B[rows].sum()), rows.size), float(np.median(ratio_B[rows]))
            plot.upright(x, 100 * rate.low, 100 * rate.high, 0)
            plot.mark(x, 100 * rate.value, 'disc', 0, f'{rate.n} prompts: {tables.within(rate)} %')
        if not math.isnan(one.length_adjusted.value):
            plot.mark(
                0,
                100 * one.length_adjusted.value,
                'ring',
                1,
                f'at equal length: {tables.within(one.length_adjusted)} %',
            )
        plots.append(plot)
    about = (
        'Points: tenths of the prompts by ratio of lengths, with 95 % intervals. Ring: the fit, read at equal length.'
    )
    return _section('Win rate and length', 'plots', plots=plots, series=[], told=[], about=about)


# Labelers


def labelers(
    reports: Sequence[Alignment],
    published: Mapping[str, float] | None = None,
    reasons: Mapping[str, Mapping[str, int]] = {},
) -> Section:
    """How far labelers agree with people, what the position of a response does, whether they mean what they say, and why
    some pairs have no label. reasons: labeler -> reason -> pairs.
    """
    rows = []
    for one in reports:
        plot = Plot(
            (0, 100), (0, 2), width=230, height=30, margins=(4, 6, 2, 6), label=f'{one.name}: agreement, position'
        )
        plot.rule(50)
        for y, rate, kind in ((1.4, one.agreement, 'disc'), (0.6, one.position and one.position.same, 'ring')):
            if rate and rate.n:
                plot.across(100 * rate.low, 100 * rate.high, y, 0)
                plot.mark(100 * rate.value, y, kind, 0, f'{tables.within(rate)} %')
        if published and one.name in published:
            plot.mark(published[one.name], 1.4, 'diamond', 1, f'paper: {published[one.name]}')
        rows.append((labeler_row(one), plot))
    curve = Plot((50, 100), (0, 100), width=420, height=300, title='Does it mean what it says?', unit='people who agree, %',
                 x_unit='its probability of its verdict, %', label='reliability curve')  # fmt: skip
    curve.line([50, 100], [50, 100], 0, faint=True)
    named = reports if len(reports) <= 6 else [max(reports, key=_agrees), min(reports, key=_agrees)]
    for i, one in enumerate(named):
        found = one.calibration
        kept = [k for k, count in enumerate(found.count) if count and count >= 0.01 * found.n]
        xs, ys = ([100 * values[k] for k in kept] for values in (found.predicted, found.observed))
        curve.line(xs, ys, i)
        for k, x, y in zip(kept, xs, ys):
            curve.mark(x, y, 'dot', i, f'{one.name}: {found.count[k]} pairs')
    columns = [name for name in rows[0][0] if name != 'labeler' and any(row[name] != tables.NOTHING for row, _ in rows)]
    lost = [(name, reason, count) for name, counts in reasons.items() for reason, count in counts.items()]
    return _section(
        'Can the labeler be trusted?', 'labelers', columns=columns, rows=rows, curve=curve, lost=lost,
        series=[one.name for one in named],
    )  # fmt: skip


def _agrees(one: Alignment) -> float:
    return one.agreement.value if one.agreement.n else 0.5


# Samples, and where all of it is from


def samples(
    prompts: Sequence[tuple[str, str]],
    texts: Mapping[str, Sequence[str]],
    votes: Mapping[str, Mapping[str, Sequence[float]]],
    quality: Mapping[str, Sequence[float]] = {},
    wrong: Mapping[str, Sequence[Sequence[tuple[int, int, str]]]] = {},
) -> dict[str, Any]:
    """What the page's script shows of each prompt, as many of the first as `LARGEST` bytes hold.

    prompts: id and text; texts: policy -> responses; votes: 'A vs B' -> judge -> votes, nan where it could not say;
    quality: policy -> the oracle's; wrong: policy -> where a response says what is not so: from, to (characters), and what.
    """
    policies, rows, size = [*texts], [], 0
    judges = list(dict.fromkeys(judge for judged in votes.values() for judge in judged))
    for i, (id, prompt) in enumerate(prompts):
        row: dict[str, Any] = {'id': id, 'prompt': prompt, 'texts': [texts[name][i] for name in policies]}
        row['votes'] = [[_vote(judged, judge, i) for judge in judges] for judged in votes.values()]
        if quality:
            row['quality'] = [round(float(quality[name][i]), 3) for name in policies]
        if wrong:
            row['wrong'] = [[list(span) for span in wrong[name][i]] for name in policies]
        size += len(_data(row))
        if size > LARGEST:
            break
        rows.append(row)
    places = {f'{a} vs {b}': [i, j] for i, a in enumerate(policies) for j, b in enumerate(policies)}
    pairs = [places[pair] for pair in votes]
    return {'policies': policies, 'pairs': pairs, 'judges': judges, 'rows': rows, 'total': len(prompts)}


def _vote(judged: Mapping[str, Sequence[float]], judge: str, i: int) -> float | None:
    vote = judged[judge][i] if judge in judged else None
    return None if vote is None or math.isnan(vote) else round(float(vote), 3)


def made(
    changed: Sequence[tuple[str, str, str]],
    facts: Sequence[tuple[str, str]],
    command: str,
    stages: Sequence[Sequence[str]],
) -> Section:
    """How to repeat it. changed: path, the experiment's default, and the run's value; facts: what, and its value; stages:
    name, folder, seconds, and what its result says.
    """
    return _section('How it was made', 'made', changed=changed, facts=facts, command=command, stages=stages)


# Drawing


class Plot:
    """A picture in one pair of axes, as the coordinates and texts of an SVG; `pages/macros.j2` writes it."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], *, label: str, width: int = 340, height: int = 190,
        margins: tuple[int, int, int, int] | None = None, title: str = '', unit: str = '', x_unit: str = '',
        x_ticks: Sequence[tuple[float, str]] | None = None,
    ):  # fmt: skip
        self.label, self.title, self.unit, self.x_unit, self.width, self.height = (
            label,
            title,
            unit,
            x_unit,
            width,
            height,
        )
        self.top, self.right, self.bottom, self.left = margins or (8, 12, 34, 44)
        self.x, self.y = ((low, high if high > low else low + 1) for low, high in (x, y))
        self.lines, self.marks, self.bars, self.bands, self.rules = [], [], [], [], []
        self.frame = margins is None
        self.x_ticks = [(self._x(at), text) for at, text in (x_ticks or _ticks(*self.x, most=6))]
        self.y_ticks = [(self._y(at), text) for at, text in _ticks(*self.y, most=5)]

    def _x(self, x: float) -> float:
        inner = self.width - self.left - self.right
        return round(self.left + inner * (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / (self.x[1] - self.x[0]), 1)

    def _y(self, y: float) -> float:
        inner = self.height - self.top - self.bottom
        return round(
            self.top + inner * (1 - (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / (self.y[1] - self.y[0])), 1
        )

    def line(self, xs: Iterable[float], ys: Iterable[float], series: int, faint: bool = False) -> None:
        points = ' '.join(f'{self._x(x)},{self._y(y)}' for x, y in zip(xs, ys))
        if points:
            self.lines.append((points, series, faint))

    def mark(self, x: float, y: float, kind: str, series: int, tip: str) -> None:
        self.marks.append((self._x(x), self._y(y), kind, series, tip))

    def across(self, low: float, high: float, y: float, series: int) -> None:
        self.line((low, high), (y, y), series)

    def upright(self, x: float, low: float, high: float, series: int) -> None:
        self.line((x, x), (low, high), series)

    def bar(self, left: float, right: float, y: float, series: int) -> None:
        if y > 0:
            x, top = self._x(left), self._y(y)
            self.bars.append((x, top, round(self._x(right) - x, 1), round(self._y(0) - top, 1), series))

    def band(self, left: float, right: float) -> None:
        self.bands.append((self._x(left), round(self._x(right) - self._x(left), 1)))

    def rule(self, at: float, along: bool = False) -> None:
        self.rules.append((self._y(at), True) if along else (self._x(at), False))


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) or abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round numbers between the ends, `most` at most."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * (1 - 1e-9))
    return [
        (k * step, f'{k * step:g}') for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


# Small parts


def seen(value: Any) -> Any:
    """A text of which everything can be seen: what cannot be is written out, as in the terminal. Else the value."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return ''.join(c if c.isprintable() or c in '\n\t' else ascii(c)[1:-1] for c in value)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader('rlaif_jax.evaluation', 'pages'), autoescape=True, finalize=seen, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def _template(name: str) -> Any:
    return _environment().get_template(name)


def _section(title: str, macro: str, **values: Any) -> Section:
    return Section(title, getattr(_template('macros.j2').module, macro)(**values))


def _source(name: str) -> str:
    return _environment().loader.get_source(_environment(), name)[0]


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(value: Any) -> Markup:
    """JSON that can stand in a script element of a UTF-8 file, whatever the texts in it hold."""
    hidden = '[<>&\x7f-\x9f\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]'
    return Markup(re.sub(hidden, lambda sign: f'\\u{ord(sign[0]):04x}', log.to_json(value)))
