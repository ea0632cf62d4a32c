"""The paper, whole: what is missing of its tables is run, and one page says what becomes of each statement."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

import experiments
from experiments import pages, plan
from experiments.programs import Line
from experiments.scales import Dtype, Mesh, Scale
from experiments.scales import scale as scale_of
from experiments.statements import BETAS, EVEN, LESS, MORE, TABLES, Statement, Table
from rlaif_jax import hosts, log
from rlaif_jax.config import SAME, Bindings, Mistake, bind, dump, nearest, parse, parse_binding, same
from rlaif_jax.evaluation import page, responses, tables
from rlaif_jax.evaluation.length import AtLength, characters
from rlaif_jax.evaluation.statistics import Interval, difference, mean_interval
from rlaif_jax.folder import finished, lock, open_folder

__all__ = ['paper']

OUTCOMES, LACKING = ('reproduced', 'same direction', 'not shown', 'otherwise'), 'not yet'
OVERVIEW = ('table', *OUTCOMES, LACKING)
CENTS = 5.7 / 1782  # US cents that the paper paid for a token, read or written (App. L)
# What is drawn, from end to end; in the middle is what is even.
SPAN = {'rate': (0, 100), 'share': (0, 100), 'difference': (-40, 40), 'length': (0, 200), 'shown': (0, 0)}
RULE = (
    'Of a difference (“beside”, in points) the same is said with 0 in the place of 50, and the paper sees one where it is '
    'more than a point; of a length with 100. A share, such as an agreement, is no statement by itself: it is held against '
    '50, and not counted above. “More” is where the paper prints no number. Intervals are over prompts, where several '
    'seeds are there over seeds (Student’s t); a difference of one seed takes its two sides for independent (Newcombe).'
)


@dataclass(frozen=True)
class Part:
    """An experiment, as the paper's tables need it."""

    experiment: str
    minutes: tuple[float, float]  # of two cores at micro scale, whole and quick, behind those above it: estimates
    bindings: Bindings = field(default_factory=dict)
    micro: Bindings = field(default_factory=dict)  # at micro scale alone
    quick: Bindings = field(default_factory=dict)  # beside `QUICK`
    seeds: bool = True  # whether a seed changes it


# What is bound of a quick run, where there is such a field.
QUICK = {
    'pairs': 32, 'data.pairs': 320, 'data.held_out': 64, 'test_pairs': 512, 'sft.steps': 50,
    'reward_model.steps': 60, 'reward_model.batch': 16, 'reward_model.eval_every': 30, 'reward_model.save_every': 30,
    'reinforce.steps': 12, 'reinforce.eval_every': 12, 'reinforce.eval_prompts': 32, 'evaluation.prompts': 128,
}  # fmt: skip
PARTS = (
    Part('tldr_table1', (20, 6)),
    Part('harmless_rlaif', (5, 1.5)),
    Part('helpful_rlaif', (12, 2)),
    Part('helpful_direct', (4, 0.5)),
    Part('labeling_sizes', (4, 1.5), micro={'pairs': 1024}, seeds=False),
    Part('labeling_techniques', (12, 8), micro={'pairs': 256}, seeds=False),
    Part('labeling_self_consistency', (8, 1), micro={'pairs': 64}, quick={'pairs': 8}),
    Part(
        'tldr_rm_ai', (6, 1),
        {'arms': ('RLHF', 'RLAIF', 'base-prompt RLAIF', 'same-size RLAIF'), 'reward_model_from_base': True},
    ),
    Part('helpful_rm', (1, 0.2)),
    Part('harmless_rm', (1, 0.3)),
    Part('rm_init', (2, 0.5)),
    Part('rm_examples', (5, 1)),
    Part('rm_soft_vs_hard', (2, 0.4)),
    Part('tldr_combined', (10, 1.2)),
    Part('tldr_base_prompt', (6, 0.5)),
    Part('rl_kl', (8, 1.3), {'variants': tuple(f'reinforce.beta={beta}' for beta in BETAS)}),
)  # fmt: skip


def paper(scale: Scale, seed: int = 0) -> Paper:
    """Every table of the paper: what is missing is run, and a page says of each statement what becomes of it here.

    Command: python launch/run.py --experiment=paper
             python launch/run.py --experiment=paper tables="[1,2,4]"
             python launch/run.py --experiment=paper quick=True
    Cost at micro scale: one to two hours on 2 cores, by what its stages take alone; 27 minutes with quick=True.
    Expect: a page on which each table stands beside the paper's, with intervals, and *reproduced*, *same direction*, *not
    shown* or *otherwise* by a rule that is printed. Stop it at any moment: the page says what is there.
    """
    return Paper(of=scale.name, seeds=(seed,), mesh=scale.mesh, dtype=scale.dtype)


@dataclass(frozen=True)
class Run:
    """A part with one seed."""

    name: str
    seed: int
    config: Any
    folder: Path
    serves: str  # the tables that need it
    minutes: float | None  # of two cores, an estimate; None at scales that nobody has timed

    @property
    def title(self) -> str:
        return f'{self.name}, seed {self.seed}'


@dataclass(frozen=True)
class Paper:
    """Runs of other experiments → one page, table by table."""

    of: str  # the scale of the runs
    # Which tables: numbers of the paper's, its appendices such as 'J', or v1, soft; () for all. Not what they say.
    tables: tuple[int | str, ...] = field(default=(), metadata=SAME)
    seeds: tuple[int, ...] = field(default=(0,), metadata=SAME)  # of everything random, a run of each part for each
    quick: bool = False  # few prompts, pairs and steps: every table is filled, and says next to nothing
    bindings: tuple[str, ...] = ()  # such as 'evaluation.judge=oracle', for every run that has the field
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products; what is trained stays float32
    data = None  # those of the runs

    def __post_init__(self) -> None:
        scale_of(self.of)
        known = {table.key: table for table in TABLES}
        for key in self.tables:
            if key not in known:
                near = nearest(str(key), map(str, known))
                raise Mistake(f'tables: none is {key!r}; did you mean {near}? There are {", ".join(map(str, known))}')
        if not self.seeds or len({*self.seeds}) < len(self.seeds) or min(self.seeds) < 0:
            raise Mistake(f'seeds = {self.seeds}: one or more, each of them once, 0 or more')
        if self.bindings:
            known = {path for part in PARTS for path in parse(dump(self.plain(part, 0)))}
            for path, _ in map(parse_binding, self.bindings):
                if path not in known:
                    raise Mistake(f'bindings: no run has {path}; did you mean {nearest(path, known)}?')

    @property
    def always(self) -> bool:
        """Whether a finished run is made again: other tables and seeds are of the same one."""
        return True

    def chosen(self) -> list[Table]:
        return [table for table in TABLES if not self.tables or table.key in self.tables]

    def plain(self, part: Part, seed: int) -> Any:
        """The config of its experiment."""
        return experiments.find(part.experiment)(scale_of(self.of), seed)

    def config(self, part: Part, seed: int) -> Any:
        """The config of a part: its experiment's with what the part binds, then a quick run, then the user."""
        plain = self.plain(part, seed)
        known = parse(dump(plain))
        those = lambda bindings: {path: value for path, value in bindings.items() if path in known}  # noqa: E731
        changes = part.bindings | (part.micro if self.of == 'micro' else {})
        changes |= (those(QUICK) | part.quick) if self.quick else {}
        changes |= those(dict(map(parse_binding, self.bindings)))
        found = replace(bind(plain, changes), mesh=self.mesh, dtype=self.dtype)
        if part.experiment == 'rm_examples':  # of labels, and of votes: a few, a twentieth, all
            every = found.data.pairs
            found = replace(found, variants=tuple(f'data.pairs={n}' for n in (128, max(every // 20, 1), every)))
        return found

    @functools.cache  # noqa: B019
    def runs(self, folder: Path) -> list[Run]:
        """What the chosen tables need, in the order in which it is run."""
        found = []
        for seed in self.seeds:
            for part in PARTS:
                serves = [str(table.key) for table in self.chosen() if part.experiment in needs(table)]
                if serves and (part.seeds or seed == self.seeds[0]):
                    there = folder / 'parts' / f'{part.experiment}-s{seed}'
                    minutes = part.minutes[self.quick] if self.of == 'micro' else None
                    config = self.config(part, seed)
                    found.append(Run(part.experiment, seed, config, there, ', '.join(serves), minutes))
        return found

    def lines(self, folder: Path) -> list[Line]:
        return [Line(one.title, one.folder, 0) for one in self.runs(folder)]

    def run(self, folder: Path) -> dict[str, Any]:
        failed, several = {}, self.runs(folder)
        self.write(folder)
        for number, one in enumerate(several, 1):
            said, began = f'{number}/{len(several)} {one.title}', time.monotonic()
            try:
                with lock(one.folder):
                    open_folder(one.folder, experiments.text_of(one.name, self.of, one.config), same(one.config))
                    if hosts.told(lambda: finished(one.folder)) is not None:  # noqa: B023
                        log.say(f'{said}: already finished')
                        if hosts.told(lambda: not (one.folder / pages.PAGE).exists()):  # noqa: B023
                            pages.of_run(one.name, one.config, one.folder)
                        continue
                    log.say(f'{said}: starts, in {one.folder}')
                    pages.make(one.name, one.config, one.folder)
                log.say(f'{said}: finished in {timedelta(seconds=round(time.monotonic() - began))}')
            except Mistake as mistake:  # which costs no other part
                failed[one.title] = str(mistake)
                log.error(f'{said}: {mistake}')
            except (KeyboardInterrupt, SystemExit):
                self.tell(folder)
                raise
            self.write(folder)
        if failed:
            self.tell(folder)
            raise Mistake(
                f'{len(failed)} of {len(several)} parts failed: {"; ".join(failed)}; the same command tries again'
            )
        return self.tell(folder)

    # What is there

    def there(self, folder: Path) -> tuple[list[tuple[Table, list[dict[str, Any]]]], bool]:
        """Table by table, its rows as `page.results` has them, of the runs that are finished; whether any is simulated."""
        found: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
        for one in self.runs(folder):
            if (result := finished(one.folder)) is not None:
                found.setdefault(one.name, []).append((one, enriched(result, one.folder)))
        every = []
        for table in self.chosen():
            rows = []
            for one in table.statements:
                of = found.get(one.part, [])
                links = [(f'seed {run.seed}', f'{run.folder.relative_to(folder)}/{pages.PAGE}') for run, _ in of]
                rows.append(row(one, measured(one, [result for _, result in of]), len(of), links))
            every.append((table, rows))
        return every, any(result.get('simulated') for of in found.values() for _, result in of)

    def write(self, folder: Path) -> None:
        """Writes the page of what is there."""
        hosts.told(lambda: page.write(folder / pages.PAGE, self.page(folder)))

    def page(self, folder: Path) -> page.Page:
        """The page of what is there."""
        every, simulated = self.there(folder)
        lines, sections = [], [page.table('How many statements became what', OVERVIEW, overview(every))]
        if others := [one for _, rows in every for one in rows if claimed(one) and one['becomes'] == 'otherwise']:
            sections.append(page.results('Otherwise than in the paper', others))
        for table, rows in every:
            told = [text for text in (table.why and f'Not run: {table.why}.', table.told) if text]
            name = f'Table {table.key}: ' if isinstance(table.key, int) else ''
            if rows or self.tables:  # all others stand together
                sections.append(page.results(name + table.title, rows, told))
            lines += [csv_row(table, one) for one in rows]
        without = [[f'Table {table.key}: {table.title}', table.why] for table, rows in every if not rows]
        if without and not self.tables:
            sections.append(page.table('Without a statement', ['table', 'why'], without))
        sections.append(page.results('The rule', [], [page.RULE, RULE]))
        stages = [(one.title, f'parts/{one.folder.name}', '', plan.standing(one.folder)) for one in self.runs(folder)]
        if (folder / 'config.gin').exists():
            sections.append(pages.made('paper', self, folder, stages))
        about = page.banner(posts=simulated, judges=simulated)
        files = {'statements.csv': tables.as_csv(lines)}
        if (folder / 'config.gin').exists():
            files['config.gin'] = (folder / 'config.gin').read_text(encoding='utf-8')
        return page.Page(f'The paper: {folder.name}', [sentence(every, simulated)], about, sections, None, files)

    def tell(self, folder: Path) -> dict[str, Any]:
        """Prints how many statements became what, and returns that with each of them."""
        every, simulated = self.there(folder)
        log.figures_table(tables.title('statements of the paper', simulated), OVERVIEW, overview(every))
        log.say(sentence(every, simulated))
        log.say(f'all of it: {folder / pages.PAGE}')
        found = {str(table.key): {one['says']: told(one) for one in rows} for table, rows in every if rows}
        return {'simulated': simulated, 'statements': found}


def needs(table: Table) -> set[str]:
    """The experiments that a table is made of."""
    return {one.part for one in table.statements} - {''}


# From a result to a row


def enriched(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A result, and what else of the paper follows from it and the responses beside it."""
    found = dict(result)
    if cells := result.get('alignment'):
        found['first position'] = {name: towards_first(one) for name, one in cells.items()}
        each = {name: one['tokens'] / one['pairs'] for name, one in cells.items() if one.get('tokens')}
        found['tokens'], found['cents'] = each, {name: CENTS * count for name, count in each.items()}
    if 'comparisons' in result and (folder / 'responses.jsonl').exists():
        _, written = responses.read(folder / 'responses.jsonl')
        size = {name: characters(texts) for name, texts in written.items()}
        found['lengths'] = {f'{a} vs {b}': asdict(ratio(size[a], size[b])) for a, b in combinations(size, 2)}
    return found


def towards_first(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Of the pairs on which a labeler stays with a position, the share where that is the first one."""
    position = cell['position']
    share = Interval(**{name: number(position['share'][name]) for name in Interval.__dataclass_fields__})
    return asdict(share.complement() if position['which'] == 'second' else share)


def number(value: float | None) -> float:
    """A number of a result, where null is nan."""
    return math.nan if value is None else value


def ratio(a_B: np.ndarray, b_B: np.ndarray) -> Interval:
    """The mean of a as a share of the mean of b, both of the same prompts, by the delta method."""
    value, mean = a_B.mean() / b_B.mean(), b_B.mean()
    half = mean_interval((a_B - value * b_B) / mean)
    return Interval(float(value), float(value + half.low), float(value + half.high), half.n)


def look(found: Mapping[str, Any], at: Sequence[str | int]) -> Any:
    """What stands there in a result; None where nothing does."""
    for key in at:
        if isinstance(key, int) and isinstance(found, Mapping) and key < len(found):
            key = list(found)[key]
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def interval(told: Any) -> Interval | None:
    """An interval of a result, read back; a number by itself has no width."""
    if isinstance(told, int | float):
        return Interval(told, told, told, 1)
    if not isinstance(told, Mapping) or told.get('value') is None:
        return None
    kind = AtLength if 'extrapolated' in told else Interval
    return kind(**{name: number(told[name]) for name in kind.__dataclass_fields__ if name in told})


def measured(one: Statement, results: Sequence[Mapping[str, Any]]) -> Interval | None:
    """Ours, of the results of some seeds: of one its own interval over prompts, of several Student's over seeds. None where
    it is not there.
    """
    each = []
    for result in results:
        rate = interval(look(result, one.at))
        other = interval(look(result, one.than)) if one.than else None
        if rate is None or (one.than and other is None):
            continue
        doubt = any(getattr(value, 'extrapolated', False) for value in (rate, other))
        rate = difference(rate, other) if other else rate
        each.append(AtLength(*asdict(rate).values(), extrapolated=True) if doubt and other else rate)
    if len(each) < 2:
        return each[0] if each else None
    mean = mean_interval([rate.value for rate in each])
    mean = mean.clipped() if one.kind in ('rate', 'share') else mean
    doubt = any(getattr(rate, 'extrapolated', False) for rate in each)
    return AtLength(*asdict(mean).values(), extrapolated=True) if doubt else mean


def outcome(one: Statement, rate: Interval | None) -> str:
    """What becomes of a statement: one of `OUTCOMES`, '' where there is nothing to compare, 'not yet' where ours lacks."""
    if one.why:
        return ''
    if rate is None:
        return LACKING
    return '' if one.paper is None or one.kind == 'shown' else page.outcome(rate, one.paper, *EVEN[one.kind])


def row(one: Statement, rate: Interval | None, seeds: int, links: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A row of the page."""
    signed = '+' if one.kind == 'difference' else ''
    paper = {None: tables.NOTHING, MORE: 'more', LESS: 'less'}.get(one.paper) or f'{one.paper:{signed}.3g}'
    if rate is None:
        ours = ''
    elif one.kind == 'shown':
        ours = f'{rate.value:.3g}'
    elif one.kind == 'difference':
        ours = f'{100 * rate.value:+.1f} [{100 * rate.low:+.1f}, {100 * rate.high:+.1f}]'
    else:
        ours = tables.within(rate)
    return {
        'says': one.says, 'paper': paper, 'percent': one.paper, 'ours': ours, 'rate': rate, 'span': SPAN[one.kind],
        'of': '' if rate is None else f'{seeds} seeds' if seeds > 1 else '' if one.kind == 'shown' else f'n={rate.n}',
        'becomes': one.why or outcome(one, rate), 'links': links, 'claims': one.claims and not one.why,
    }  # fmt: skip


def told(one: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the result has it."""
    return {'becomes': one['becomes'], 'paper': one['percent'], 'ours': one['rate'] and asdict(one['rate'])}


def claimed(one: Mapping[str, Any]) -> bool:
    return one['claims']


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many of the claims among rows became what."""
    told = [one['becomes'] for one in rows if claimed(one)]
    return {name: told.count(name) for name in (*OUTCOMES, LACKING)}


def overview(every: Sequence[tuple[Table, Sequence[Mapping[str, Any]]]]) -> list[list[Any]]:
    """How many statements of each table became what."""
    return [[str(table.key), *counts(rows).values()] for table, rows in every if any(map(claimed, rows))]


def sentence(every: Sequence[tuple[Table, Sequence[Mapping[str, Any]]]], simulated: bool) -> str:
    """The same of all tables, in words."""
    of = counts([one for _, rows in every for one in rows])
    told = ', '.join(f'{of[name]} {name}' for name in OUTCOMES if of[name]) or 'nothing is there yet'
    of_all = f'{sum(of.values()) - of[LACKING]} of {sum(of.values())} statements can be told: {told}'
    return tables.title(of_all, simulated)


def csv_row(table: Table, one: Mapping[str, Any]) -> dict[str, Any]:
    rate = one['rate']
    ends = {} if rate is None else {'value': rate.value, 'low': rate.low, 'high': rate.high}
    told = {
        'table': table.key,
        'statement': one['says'],
        'paper': one['paper'],
        'of': one['of'],
        'result': one['becomes'],
    }
    return told | ends
