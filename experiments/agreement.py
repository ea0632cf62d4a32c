"""Verdicts that are there already, of labelers, judges or reward models, and people: how far they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.label import generation
from experiments.programs import Line
from experiments.scales import Data, Dtype, Mesh, Scale
from rlaif_jax import log
from rlaif_jax.config import FILE, SAME, Mistake, nearest
from rlaif_jax.data import files, trl
from rlaif_jax.data.files import Row
from rlaif_jax.data.records import Pair
from rlaif_jax.data.votes import gather, listed, look, reader
from rlaif_jax.evaluation import alignment, people, report, tables
from rlaif_jax.evaluation.figures import figure_labelers
from rlaif_jax.labeling import labelers

__all__ = ['agreement']

PEOPLE = 'votes', 'label', 'winner', 'preference', 'human'  # columns that are people's where none is named: the first
MANY = 20  # raters of whom each has a line
AGAINST = ('labeler', 'mean vote %', 'plurality %', 'three classes %', 'one rater %', 'kappa', 'ties %')
RATERS = ('rater', 'pairs', 'ties %', 'as another %', 'kappa')


def agreement(scale: Scale, seed: int = 0) -> Recorded:
    """Verdicts of a file, of any labeler, against people's votes there, by one rater a pair or several, ties among them.

    Command: python launch/run.py --experiment=agreement input=labels.jsonl
             python launch/run.py --experiment=agreement input=FILE people="['label']" verdicts="['winner_gpt4']"
    Cost: a few seconds; no model is asked.
    Expect: agreement with the mean vote and with the plurality, accuracy in three classes, Cohen's kappa, calibration.
    """
    return Recorded()


@dataclass(frozen=True)
class Recorded:
    """Verdicts and votes in a file → how far they agree."""

    input: str = field(default='', metadata=FILE)  # .jsonl, .jsonl.gz, .json or .parquet, a row a pair or a vote
    # Columns with votes, a rater each, or with lists of votes; () for votes, label, winner, preference or human, or, where
    # none of them is, for `chosen` as the better one. A column may lie in another: annotations.0.winner.
    people: tuple[str, ...] = ()
    # Columns with what labelers said; () for all preference_prob that `label` wrote.
    verdicts: tuple[str, ...] = ()
    # Columns with what each of them said where the second was shown first, about the same responses; () for none.
    swapped: tuple[str, ...] = ()
    # What stands in columns for the first response, the second, and a tie; () for words, 0 and 1, 1 and 2, or P(first).
    values: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()  # columns that say which rows are of one pair; () for its texts, or its id
    rater: str = ''  # the column that says whose vote a row is; '' for nobody's in particular
    margin: float = 0.0  # how near to one half a verdict is a tie, where there are three classes
    task: str = 'summarization'  # summarization, helpful or harmless: how dialogues are read
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # unused: nothing is computed by a model
    data: Data | None = None  # always None: the pairs are those of `input`

    def __post_init__(self) -> None:
        if self.swapped and len(self.swapped) != len(self.verdicts):
            raise ValueError(f'swapped: {len(self.swapped)} columns beside {len(self.verdicts)} of verdicts')
        if not 0 <= self.margin < 0.5:
            raise ValueError(f'margin = {self.margin} lies in [0, 1/2)')

    def lines(self, folder: Path) -> list[Line]:
        if not self.input:
            raise Mistake('which verdicts? input=labels.jsonl, a file with people’s votes, too')
        return [Line('agreement', folder, len(self.read()[0]), {})]

    def read(self) -> tuple[list[Row], tuple[str, ...], np.ndarray, dict[str, list[np.ndarray]], list[Pair | None]]:
        """The first row of each pair; raters and their votes, (B, M); labeler -> P(first) in one order, or in two; and what
        each row is as a pair, None where it is none.
        """
        rows = files.read_rows(self.input)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        voted = self.people or next(((name,) for name in PEOPLE if name in columns), ())
        if not voted and 'chosen' not in columns:
            near = nearest('label', columns)
            raise Mistake(f'{self.input}: which column has people’s votes? people="[\'{near}\']"')
        said = self.verdicts or tuple(sorted(filter(generation, columns), key=generation))
        for name in (*voted, *said, *self.swapped, *self.pair, *[self.rater] * bool(self.rater)):
            if all(look(row, name) is None for row in rows):
                raise Mistake(
                    f'{self.input}: nothing stands in a column {name!r}; did you mean {nearest(name, columns)!r}?'
                )
        read = {}
        for name in (*voted, *said, *self.swapped):
            given = self.values if name not in said or not generation(name) else ()
            read[name] = reader(name, [one for row in rows for one in listed(look(row, name))], given)
        pairs, texts = [], []
        for row in rows:
            one = None
            with suppress(Mistake):
                one = trl.pair_of({key: row[key] for key in row if key not in ('label', 'preference')}, self.task, '')
            pairs.append(one)
            texts.append(one and (one.prompt.text, one.first, one.second))
        known: dict[Any, tuple[str, str, str] | None] = {}
        entries = []
        for i, row in enumerate(rows):
            key = self._key(row, texts[i], i)
            turned = bool(texts[i]) and known.setdefault(key, texts[i]) not in (None, texts[i])
            votes = {'': 1.0} if not voted else {}
            for name in voted:
                values = [read[name](one) for one in listed(look(row, name))]
                who = name if len(voted) > 1 else str(look(row, self.rater)) if self.rater else ''
                named = {who: values[0]} if len(values) == 1 else {f'rater {n}': v for n, v in enumerate(values, 1)}
                votes |= named
            entries.append((key, turned, votes))
        first, raters, vote_BM = gather(entries)
        p = lambda name: np.array([np.mean([read[name](one) for one in listed(look(rows[i], name))]) for i in first])  # noqa: E731
        orders: dict[str, list[np.ndarray]] = {}
        for name, other in zip(said, self.swapped or [''] * len(said)):
            called = _called(name, rows)
            orders[called if called not in orders else name] = [
                p(name),
                *([p(other)] if other else _orders(name, rows, first)),
            ]
        return [rows[i] for i in first], raters, vote_BM, orders, [pairs[i] for i in first]

    def _key(self, row: Row, texts: tuple[str, str, str] | None, i: int) -> Any:
        if self.pair:
            return tuple(str(look(row, name)) for name in self.pair)
        if texts:
            return texts[0], *sorted(texts[1:])
        return named if (named := trl.name_of(row.get('id'))) is not None else i

    def run(self, folder: Path) -> dict[str, Any]:
        rows, raters, vote_BM, orders, pairs = self.read()
        if not (np.isnan(vote_BM) == 0).any():
            raise Mistake(f'{self.input}: nobody voted on any of its {len(rows)} pairs')
        log.say(
            f'{len(rows)} pairs, {(~np.isnan(vote_BM)).sum()} votes of {len(raters)} raters, {(vote_BM == 0.5).sum()} ties'
        )
        result: dict[str, Any] = {'pairs': len(rows), 'raters': len(raters), 'simulated': False}
        if len(raters) > 1:
            result['people'] = self.among(raters, vote_BM)
        if not orders:
            log.say('no verdicts: of people alone (verdicts="[\'column\']" names those of a labeler)')
            return result
        reports, beside = [], []
        chars = {}
        if all(pairs):
            chars = {
                f'{side}_chars_B': np.array([len(getattr(one, side)) for one in pairs]) for side in ('first', 'second')
            }
        mean_B = people.mean_vote(vote_BM)
        for name, (given_B, *swapped) in orders.items():
            shown = {}
            preference_B = given_B
            if len(swapped) == 2:  # of a label, which is the mean of its orders
                shown = dict(zip(('first_shown_B', 'second_shown_B'), swapped))
            elif swapped:
                shown = {'first_shown_B': given_B, 'second_shown_B': swapped[0]}
                preference_B = (given_B + swapped[0]) / 2
            reports.append(alignment.report(name, preference_B, mean_B, **shown, **chars))
            beside.append(people.against(name, preference_B, vote_BM, margin=self.margin))
        report.labelers_table(reports, title='verdicts and people')
        report.labelers_csv(folder / 'alignment.csv', reports)
        figure_labelers(folder / 'alignment.png', reports, title='verdicts and people')
        log.figures_table('in three classes, ties among them', AGAINST, against_rows(beside))
        return result | {
            'alignment': {one.name: asdict(one) for one in reports},
            'against people': {one.name: asdict(one) for one in beside},
        }

    def among(self, raters: Sequence[str], vote_BM: np.ndarray) -> dict[str, Any]:
        """How far people agree with each other, all, and each of a few; says so."""
        found = {'all': people.between(vote_BM)}
        if len(raters) <= MANY:
            found |= {name: people.with_others(vote_BM, m) for m, name in enumerate(raters)}
        most = int(np.isnan(people.plurality(vote_BM)).sum())
        log.figures_table('people with each other', RATERS, among_rows(found))
        log.say(f'{most} of {len(vote_BM)} pairs have no plurality')
        return {name: asdict(one) for name, one in found.items()}


def among_rows(found: Mapping[str, people.Agreeing]) -> list[list[Any]]:
    """Cells of `RATERS`."""
    return [
        [name, one.same.n, tables.percent(one.ties), tables.within(one.same), _kappa(one)]
        for name, one in found.items()
    ]


def against_rows(found: Sequence[people.Against]) -> list[list[Any]]:
    """Cells of `AGAINST`."""
    return [
        [one.name, *map(tables.within, (one.mean, one.plurality, one.three, one.single.same)), _kappa(one.single),
         tables.percent(one.single.ties)]
        for one in found
    ]  # fmt: skip


def _kappa(one: people.Agreeing) -> str:
    kappa = one.kappa
    return tables.NOTHING if not kappa.n else f'{kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]'


def _called(column: str, rows: Sequence[Row]) -> str:
    """The labeler and the technique of a column that `label` wrote, where rows say them; the name of another column."""
    prefix = column.removesuffix('preference_prob') if generation(column) else None
    if prefix is None:
        return column
    said = next(
        ((row[f'{prefix}labeler'], row.get(f'{prefix}technique')) for row in rows if row.get(f'{prefix}labeler')), None
    )
    return f'{labelers.title(said[0])} {said[1] or ""}'.rstrip() if said else column


def _orders(column: str, rows: Sequence[Row], first: Sequence[int]) -> list[np.ndarray]:
    """What a label that `label` wrote was in each order, by its position bias; nothing of other columns."""
    bias = column.removesuffix('preference_prob') + 'position_bias'
    if not generation(column) or not any(row.get(bias) is not None for row in rows):
        return []
    number = lambda name: np.array([np.nan if (x := rows[i].get(name)) is None else x for i in first], np.float64)  # noqa: E731
    return [np.clip(number(column) + sign * number(bias), 0, 1) for sign in (1, -1)]
