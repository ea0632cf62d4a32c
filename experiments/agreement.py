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
from rlaif_jax.data.votes import Vote, gather, listed, look, missing, reader
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


@dataclass(frozen=True, eq=False)
class Told:
    """What a file says of pairs, in their order."""

    pairs: list[Pair | None]  # their texts; None where there are none
    raters: tuple[str, ...]
    vote_BM: np.ndarray  # of `votes.gather`
    orders: dict[
        str, list[np.ndarray]
    ]  # labeler -> P(first is better), (B,); behind it that of the other order, or of both


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
        return [Line('agreement', folder, len(self.read().pairs), {})]

    def read(self) -> Told:
        """What the file says. Raises `Mistake`, which names the nearest column, for one that is not there."""
        rows = files.read_rows(self.input)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        voted = self.people or next(((name,) for name in PEOPLE if name in columns), ())
        if not voted and 'chosen' not in columns:
            near = nearest('label', columns)
            raise Mistake(f'{self.input}: which column has people’s votes? people="[\'{near}\']"')
        said = self.verdicts or tuple(sorted(filter(generation, columns), key=generation))
        for name in (*voted, *said, *self.swapped, *self.pair, *[self.rater] * bool(self.rater)):
            if all(look(row, name) is None for row in rows):
                near = nearest(name, columns)
                raise Mistake(f'{self.input}: nothing stands in a column {name!r}; did you mean {near!r}?')
        vote: dict[str, Vote] = {}
        alike = {name: [name] for name in (*voted, *said)}  # columns of which one says what stands in the other
        for name, other in zip(said, self.swapped):
            alike[name] = [*alike[name], other]
        for name, them in alike.items():
            given = () if name in said and generation(name) else self.values  # what `label` wrote is P(first)
            values = [one for row in rows for column in them for one in listed(look(row, column))]
            vote |= dict.fromkeys(them, reader(name, values, given))
        pairs = [self._pair(row) for row in rows]
        texts: dict[Any, tuple[int, tuple[str, ...]]] = {}  # of the first row of each pair, and which it is
        entries = []
        for i, (row, pair) in enumerate(zip(rows, pairs)):
            key, turned = self._key(row, pair, i), False
            if pair:
                shown = tuple(' '.join(text.split()) for text in (pair.first, pair.second))
                j, before = texts.setdefault(key, (i, shown))
                if shown != before and shown != before[::-1]:
                    raise Mistake(
                        f'{self.input}: rows {j + 1} and {i + 1} are of one pair by {[*self.pair]}, and have other '
                        'responses; name the columns that tell them apart in pair=, too, or leave it out: then texts say it'
                    )
                turned = shown != before
            entries.append((key, turned, self._votes(row, voted, vote)))
        first, raters, vote_BM = gather(entries)

        def verdicts(name: str) -> np.ndarray:
            return np.array([np.mean([vote[name](one) for one in listed(look(rows[i], name))]) for i in first])

        orders: dict[str, list[np.ndarray]] = {}
        for name, other in zip(said, self.swapped or [''] * len(said)):
            called = _called(name, rows)
            both = [verdicts(other)] if other else _orders(name, [rows[i] for i in first])
            orders[name if called in orders else called] = [verdicts(name), *both]
        return Told([pairs[i] for i in first], raters, vote_BM, orders)

    def _pair(self, row: Row) -> Pair | None:
        """A row's texts; None where they are no pair's, which costs no vote."""
        with suppress(Mistake):
            return trl.pair_of({key: row[key] for key in row if key not in ('label', 'preference')}, self.task, '')
        return None

    def _votes(self, row: Row, voted: Sequence[str], vote: Mapping[str, Vote]) -> list[tuple[str, float]]:
        """(rater, vote) in a row, each one's; of `chosen` and `rejected` one for the first."""
        said = look(row, self.rater) if self.rater else None
        who = '' if missing(said) else str(said)
        found = [] if voted else [(who, 1.0)]
        for name in voted:
            values = [vote[name](one) for one in listed(look(row, name))]
            called = '' if len(values) > 1 else name if len(voted) > 1 else who
            found += [(called, one) for one in values]
        return found

    def _key(self, row: Row, pair: Pair | None, i: int) -> Any:
        """What rows of one pair have in common."""
        if self.pair:
            return tuple(str(look(row, name)) for name in self.pair)
        if pair:
            return pair.prompt.text, *sorted((pair.first, pair.second))
        return named if (named := trl.name_of(row.get('id'))) is not None else i

    def run(self, folder: Path) -> dict[str, Any]:
        told = self.read()
        pairs, raters, vote_BM = told.pairs, told.raters, told.vote_BM
        if not (~np.isnan(vote_BM)).any():
            raise Mistake(f'{self.input}: nobody voted on any of its {len(pairs)} pairs')
        voted, ties = (~np.isnan(vote_BM)).sum(), (vote_BM == 0.5).sum()
        log.say(f'{len(pairs)} pairs, {voted} votes of {len(raters)} raters, {ties} ties')
        result: dict[str, Any] = {'pairs': len(pairs), 'raters': len(raters), 'simulated': False}
        if len(raters) > 1:
            result['people'] = self.among(raters, vote_BM)
        if not told.orders:
            log.say('no verdicts: of people alone (verdicts="[\'column\']" names those of a labeler)')
            return result
        reports, beside, more = [], [], {}
        if all(pairs):
            for side in ('first', 'second'):
                more[f'{side}_chars_B'] = np.array([len(getattr(one, side)) for one in pairs])
        for name, (preference_B, *orders) in told.orders.items():
            if len(orders) == 1:  # of the other order; a label is the mean of its two
                orders = [preference_B, *orders]
                preference_B = np.mean(orders, 0)
            shown = dict(zip(('first_shown_B', 'second_shown_B'), orders))
            reports.append(alignment.report(name, preference_B, people.mean_vote(vote_BM), **shown, **more))
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


def _orders(column: str, rows: Sequence[Row]) -> list[np.ndarray]:
    """What a label that `label` wrote was in each order, by its position bias; nothing of other columns."""
    bias = column.removesuffix('preference_prob') + 'position_bias'
    if not generation(column) or not any(row.get(bias) is not None for row in rows):
        return []
    p_B, bias_B = (np.array([row.get(name) for row in rows], np.float64) for name in (column, bias))  # None is nan
    return [np.clip(p_B + sign * bias_B, 0, 1) for sign in (1, -1)]
