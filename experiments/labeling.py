"""Labeling: preferences for anybody's pairs, and the paper's studies of the labeler (§4.4 to §4.6, App. B and M).

A study is a table of cells, labeler × task × technique × sampling, on pairs whose raters were sure, as in the paper.
Labels go into one store beside the run folders, so cells that two studies share are made once.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.plan import Stage
from experiments.scales import Data, Dtype, Mesh, Scale
from rlaif_jax import axes, chat, log, paths
from rlaif_jax.config import SAME, Mistake
from rlaif_jax.data import files, loader, trl
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.evaluation import alignment, report
from rlaif_jax.evaluation.figures import figure_labelers
from rlaif_jax.folder import shared
from rlaif_jax.labeling import preference
from rlaif_jax.labeling.preference import Config
from rlaif_jax.labeling.prompts import NAMED, TASKS, Technique, folder_of
from rlaif_jax.labeling.store import Record, Store, store_in
from rlaif_jax.models import hf
from rlaif_jax.models.presets import Absent, resolve
from rlaif_jax.text import Tokenizer

__all__ = [
    'label',
    'tldr_label',
    'labeling_techniques',
    'labeling_sizes',
    'labeling_self_consistency',
    'labeling_swap',
]

TECHNIQUES = (
    'base_0shot', 'base_1shot', 'base_2shot', 'base_cot_0shot', 'detailed_0shot', 'detailed_1shot', 'detailed_2shot',
    'detailed_8shot', 'detailed_cot_0shot', 'detailed_cot_1shot', 'detailed_cot_2shot',
)  # fmt: skip

# Table 2, per cent; None where the paper has no figure.
TABLE_2 = {
    'summarization': dict(zip(TECHNIQUES, (76.1, 76.0, 75.7, 77.5, 77.4, 76.2, 76.3, 69.8, 78.0, 77.4, 76.8))),
    'helpful': dict(zip(TECHNIQUES, (67.8, 67.1, 66.8, 69.1, 67.6, 67.6, 67.3, None, 67.8, 67.4, 67.4))),
    'harmless': dict(zip(TECHNIQUES, (69.4, 71.7, 72.1, 70.6, 70.1, 71.5, 71.6, None, 70.1, 69.9, 69.2))),
}
BEST = {'summarization': 'detailed_cot_0shot', 'helpful': 'base_cot_0shot', 'harmless': 'base_2shot'}  # §4.1


_GENERATION = re.compile(r'(label_(?:([1-9]\d{0,8})_)?)?preference_prob')

# The experiments


def label(scale: Scale, seed: int = 0) -> File:
    """Preferences for anybody's pairs: a file in, the same file with `preference_prob` and its provenance out (§2.1).

    Command: python launch/run.py --experiment=label input=pairs.jsonl output=labels.parquet task=summarization
    Cost: one labeler call in each order of a pair; a repeated run costs nothing.
    Expect: every row and column of the input, in its order; rows that are no pair come with status `invalid`.
    """
    return File(labeler=scale.l, label=Config(batch=scale.label.batch, seed=seed), mesh=scale.mesh, dtype=scale.dtype)


def tldr_label(scale: Scale, seed: int = 0) -> Study:
    """Labels for the whole preference set, by the best technique: what an AI-feedback reward model is trained on (§4.1).

    Command: python launch/run.py --experiment=tldr_label
    Cost at micro scale: 20,000 pairs, about 25 minutes on 2 cores; killed at any moment, it goes on.
    Published: the labeler agrees with people on 78.0 % of confident pairs (Table 2).
    """
    cell = study(scale, seed, techniques=(scale.label.technique,), split='train', pairs=20_000)
    return replace(cell, confident=False, output='labels.parquet')


def labeling_techniques(scale: Scale, seed: int = 0) -> Study:
    """Base and detailed preambles, 0 to 8 exemplars, with and without chain of thought, on three tasks (Table 2).

    Command: python launch/run.py --experiment=labeling_techniques
    Published: detailed, chain of thought and no exemplars is best for summaries (78.0 %); exemplars hurt there.
    Cost at micro scale: about 13 minutes on 2 cores with `pairs=512`. There, too, exemplars hurt, and a chain of thought
    is best for summaries; for dialogues it harms. All 33 cells are in experiments/LOG.md.
    """
    return study(scale, seed, tasks=tuple(TASKS), techniques=TECHNIQUES)


def labeling_sizes(scale: Scale, seed: int = 0) -> Study:
    """Labelers of three sizes: agreement with people, and position bias (Tables 3 and 4, App. B).

    Command: python launch/run.py --experiment=labeling_sizes
    Cost at micro scale: about 8 minutes on 2 cores.
    Published: L 78.0, S 73.8, XS 62.7 %; the same position after a swap 18, 21 and 56 %.
    At micro scale, 2,048 pairs: 92.8 [91.6, 93.8], 83.5 [81.8, 85.0], 72.6 [70.6, 74.4] %; 10, 30 and 68 %.
    """
    return study(scale, seed, labelers=(scale.labeler, scale.s, scale.l))


def labeling_self_consistency(scale: Scale, seed: int = 0) -> Study:
    """One greedy rationale against the average of several sampled ones, at four temperatures (Table 14, App. M).

    Command: python launch/run.py --experiment=labeling_self_consistency
    Published: greedy 78.0 %; 16 samples at temperature 0.3, 0.5, 0.7, 1.0: 76.2, 75.1, 74.0, 72.8 %.
    Cost at micro scale: 81 rationales for each pair and order; 128 pairs (`pairs=128`) some 15 minutes on 2 cores.
    """
    return study(scale, seed, samples=(1, 4, 16), temperatures=(0.3, 0.5, 0.7, 1.0))


def labeling_swap(scale: Scale, seed: int = 0) -> Study:
    """One order against the average of both, for three sizes and without chain of thought (§2.1.1, App. B).

    Command: python launch/run.py --experiment=labeling_swap
    Cost at micro scale: about 10 minutes on 2 cores.
    Expect: `gain`, what averaging adds on the same pairs, is above zero, and larger for labelers with more position bias.
    At micro scale, thinking aloud: 11.9 ± 1.7, 4.5 ± 1.2 and 1.7 ± 0.7 points from XS to L.
    """
    return study(
        scale, seed, labelers=(scale.labeler, scale.s, scale.l), techniques=('base_0shot', 'detailed_cot_0shot')
    )


def study(scale: Scale, seed: int, **fields: Any) -> Study:
    """The table all studies start from: the largest labeler, summaries, the best technique, pairs with sure raters."""
    defaults = {
        'labelers': (scale.l,),
        'techniques': (scale.label.technique,),
        'label': replace(scale.label, seed=seed, most_unscorable=1.0),  # what a labeler cannot say is a finding
        'split': 'alignment' if scale.tldr.source in loader.PUBLISHED else 'test',  # as in the paper
    }
    return Study(data=scale.tldr, mesh=scale.mesh, dtype=scale.dtype, **(defaults | fields))


# What they run


@cache  # a plan is made before a run, too
def _warn(text: str) -> None:
    log.say(f'warning: {text}')


def warn_of_dialogues(name: str, prompts: Sequence[Prompt], task: str) -> None:
    """Says so where prompts of a file are plainly dialogues, and the task is to summarize."""
    dialogues = sum(prompt.text.endswith(trl.ASSISTANT) for prompt in prompts)
    if task == 'summarization' and 2 * dialogues > len(prompts):
        _warn(
            f'{dialogues} of {len(prompts)} prompts of {name} are dialogues, and task = {task!r}: replies will be judged '
            'as summaries. task=helpful, or task=harmless, judges replies'
        )


def toy(model: str) -> str:
    """What stands beside figures of a packaged model, said once what it means; '' of others."""
    if folder_of(Tokenizer.load(resolve(model))) != NAMED['micro']:
        return ''
    log.say(f'{model} is a toy of the SIMULATED world: it reads that world’s language and no other.')
    return '[simulated]'


def store_of(folder: Path) -> Path:
    """The labels of a run, which it shares with others."""
    return store_in(shared(folder))


@dataclass(frozen=True)
class File:
    """Pairs in a file → the same file with labels."""

    labeler: str  # the model that is asked: a packaged one, a folder or a name on the hub
    input: str = ''  # .jsonl, .jsonl.gz, .json or .parquet, in TRL's columns
    output: str = ''  # the same suffixes
    task: str = 'summarization'  # summarization, helpful or harmless
    technique: str = 'detailed_cot_0shot'  # (base|detailed)[_cot]_<exemplars>shot
    label: Config = field(default_factory=Config)  # its task and technique are the two above
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products; what is trained stays float32
    data: Data | None = None  # always None: the pairs are those of `input`

    always = True  # a finished run looks at its files again; what the store holds is not asked again

    def __post_init__(self) -> None:
        for name in ('task', 'technique'):
            if getattr(self.label, name) not in (getattr(Config(), name), getattr(self, name)):
                raise ValueError(f'label.{name}: here it is {name}={getattr(self.label, name)}')
        self.asked()

    def asked(self) -> Config:
        return replace(self.label, task=self.task, technique=self.technique)

    def stages(self, folder: Path) -> list[Stage]:
        if not self.input or not self.output:
            raise Mistake('which pairs, and where to? input=pairs.jsonl output=labels.parquet')
        files.check_writable(self.output)
        output = Path(os.path.realpath(paths.typed(self.output)))
        if output in (store_of(folder).resolve(), (folder / 'result.json').resolve()):
            raise Mistake(f'output={self.output} is where the run keeps a file of its own; name another')
        if output.exists() and paths.typed(self.input).exists() and output.samefile(paths.typed(self.input)):
            raise Mistake(f'output={self.output} is the input; name another file')
        paths.check_file(output)
        check_prompts(self.labeler, self.asked())
        entries = trl.pairs(self.input, self.task)
        pairs = [entry.record for entry in entries if entry.record is not None]
        warn_of_dialogues(self.input, [pair.prompt for pair in pairs], self.task)
        return [labels_stage('label', folder, len(entries), self.labeler, self.asked())]

    def run(self, folder: Path) -> dict[str, Any]:
        rows = files.read(self.input)
        entries = trl.pairs(rows, self.task)
        pairs = [entry.record for entry in entries if entry.record is not None]
        note = toy(self.labeler)
        if not note:  # the packaged models have no chats
            template = Tokenizer.load(resolve(self.labeler)).turn is not None
            name, prompts = Path(self.labeler).name, [pair.prompt.text for pair in pairs]
            if told := chat.account(name, template, prompts, asked=True):
                log.say(told)
        store = Store(store_of(folder))
        records = iter(label_all(self, self.labeler, self.asked(), pairs, store, note=note))
        labels = [None if entry.record is None else next(records) for entry in entries]
        columns = [_columns(self.labeler, self.asked(), record, e.problem) for e, record in zip(entries, labels)]
        prefix = free_prefix({name for entry in entries for name in entry.row}, {n for more in columns for n in more})
        named = [{prefix + name: value for name, value in more.items()} for more in columns]
        if paths.typed(self.output).exists():  # whoever wrote it has labels that the store knows
            log.say(f'{self.output}: takes the place of labels that an earlier run wrote there')
        if changed := files.write_more(self.output, rows, named):
            log.say(f'{self.output}: has no type for all values of the columns {", ".join(changed)}, which are changed')
        if prefix:
            log.say(f'{self.output}: the input has columns of our names, so those of the labels begin with {prefix}')
        for entry in [entry for entry in entries if entry.record is None][:3]:
            log.say(f'no pair: {entry.problem}')
        counts = {
            status: sum(more['status'] == status for more in columns) for status in ('ok', 'unscorable', 'invalid')
        }
        log.say(f'{self.output}: {len(entries)} rows, ' + ', '.join(f'{n} {status}' for status, n in counts.items()))
        known = [(r, p) for r, p in zip(filter(None, labels), pairs) if p.preference is not None]
        result = {'output': str(paths.typed(self.output).resolve()), **counts}
        if known:  # the file says what people preferred
            one = aligned(f'{self.task} {self.technique}', [p for _, p in known], [r for r, _ in known])
            report.labelers_table(
                [one], title=f'{Path(self.labeler).name} and the file’s own preferences', simulated=bool(note)
            )
            result['agreement'] = asdict(one.agreement)
        return result


@dataclass(frozen=True)
class Study:
    """Labelers × tasks × techniques × sampling → a table of alignment with raters."""

    labelers: tuple[str, ...]  # the models that are asked
    techniques: tuple[str, ...]  # how: (base|detailed)[_cot]_<exemplars>shot
    label: Config  # the rest of how the labeler is asked
    data: Data
    tasks: tuple[str, ...] = ('summarization',)  # summarization, helpful, harmless
    samples: tuple[int, ...] = (1,)  # rationales in each order; 1 is greedy
    temperatures: tuple[float, ...] = (0.7,)  # of more than one
    split: str = 'test'  # of the data that the pairs are from
    pairs: int = 2048  # in each cell
    confident: bool = True  # only pairs whose raters were sure (§3.4: confidence 1, 2, 8, 9)
    output: str = ''  # a file in the run folder for pairs and labels, '' for none
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products; what is trained stays float32

    def __post_init__(self) -> None:
        if Path(self.output).name != self.output:
            raise ValueError(f'output = {self.output!r} is a file in the run folder: its name alone')
        if self.pairs < 1 or not (self.labelers and self.techniques and self.tasks and self.samples):
            raise ValueError('a study needs pairs, labelers, tasks, techniques and samples')
        self.cells()

    def cells(self) -> list[tuple[str, str, Config]]:
        """Name, labeler and config of each line of the table, task by task."""
        found = []
        for task in self.tasks:
            for labeler in self.labelers:
                for technique in self.techniques:
                    sampling = [(1, 0.0)] * (1 in self.samples)
                    if Technique.parse(technique).cot:
                        sampling += [(n, t) for n in self.samples if n > 1 for t in self.temperatures]
                    for n, temperature in sampling:
                        cfg = replace(self.label, task=task, technique=technique, samples=n, temperature=temperature)
                        parts = [task] * (len(self.tasks) > 1) + [Path(labeler).name] * (len(self.labelers) > 1)
                        parts += [technique] * (len(self.techniques) > 1 or not parts)
                        parts += [f'{n} × T {temperature}' if n > 1 else 'greedy'] * (len(self.samples) > 1)
                        found.append((' '.join(parts), labeler, cfg))
        return found

    def source(self, task: str) -> str:
        """Where pairs of a task are: each has a published data set of its own."""
        own = {task: name for name, task in loader.PUBLISHED.items()}
        return own[task] if self.data.source in loader.PUBLISHED else self.data.source

    def stages(self, folder: Path) -> list[Stage]:
        for _, labeler, cfg in self.cells():
            check_prompts(labeler, cfg)
        return [labels_stage(name, folder, self.pairs, labeler, asked) for name, labeler, asked in self.cells()]

    def run(self, folder: Path) -> dict[str, Any]:
        store = Store(store_of(folder))
        simulated = loader.simulated(self.data.source)
        chosen = {
            task: loader.pairs(self.source(task), task, self.split, self.pairs, self.confident) for task in self.tasks
        }
        reports, published, rows = [], {}, []
        # Cells of one labeler are neighbours: it is loaded once.
        load = lru_cache(maxsize=1)(
            partial(hf.load, dtype=self.dtype, mesh=axes.make_mesh(asdict(self.mesh)), frozen=True)
        )
        for name, labeler, cfg in self.cells():
            before, start = store.added, time.monotonic()
            records = label_all(self, labeler, cfg, chosen[cfg.task], store, title=name, load=load)
            rows += [written(pair, labeler, cfg, record) for pair, record in zip(chosen[cfg.task], records)]
            made, seconds = store.added - before, time.monotonic() - start
            one = aligned(name, chosen[cfg.task], records, made=made, seconds=seconds)
            reports.append(one)
            published |= _published(name, labeler, cfg, self)
            log.say(f'{name}: agreement {one.agreement}, same position {one.position.same}')
        show = {'published': published, 'simulated': simulated}
        title = f'labelers and {"simulated raters" if simulated else "people"}, {self.split} pairs'
        report.labelers_table(reports, title=title, **show)
        report.labelers_csv(folder / 'alignment.csv', reports, **show)
        figure_labelers(folder / 'alignment.png', reports, title=title, **show)
        if self.output:
            files.write_rows(folder / self.output, rows)
            log.say(f'labels: {folder / self.output}')
        log.say(f'table and figure: {folder / "alignment.csv"}, {folder / "alignment.png"}')
        return {'simulated': simulated, 'cells': {one.name: report.labeler_row(one) for one in reports}}


def free_prefix(taken: Set[str], names: Iterable[str]) -> str:
    """What the names of a file's new labels begin with, all alike: the first of '', `label_`, `label_2_`, … that makes them
    free, behind those of the labels that the file has.
    """
    oldest = max(map(generation, filter(generation, taken)), default=0)
    prefixes = ('' if n == 1 else 'label_' if n == 2 else f'label_{n - 1}_' for n in itertools.count(oldest + 1))
    return next(prefix for prefix in prefixes if not any(prefix + name in taken for name in names))


def generation(column: str) -> int:
    """1, 2, 3, … of `preference_prob`, `label_preference_prob`, `label_2_preference_prob`, …: the later, the newer; 0 of
    any other column.
    """
    found = _GENERATION.fullmatch(column)
    return 0 if not found else 1 if not found[1] else int(found[2] or 1) + 1


def labels_stage(name: str, folder: Path, pairs: int, labeler: str, asked: Config) -> Stage:
    """The line of a plan for labels: pairs are read in both orders, and what their prompts share is read once."""
    length = min(256 + asked.max_rationale, asked.max_length)  # a quarter of the paper's 1024 is what is not shared
    return Stage(name, folder, pairs, {'labeler': labeler}, reads={'labeler': (2 * asked.batch, length)})


def check_prompts(labeler: str, cfg: Config) -> None:
    """Raises `Mistake` for templates that are not there, or exemplars that are too few. A labeler that a plan did not
    download is not asked.
    """
    with suppress(Absent):
        preference.ask(Tokenizer.load(resolve(labeler)), cfg)


def label_all(
    cfg: File | Study, labeler: str, asked: Config, pairs: list[Pair], store: Store, title: str = 'label', **more: Any
) -> list[Record]:
    """`preference.label_all` on the experiment's mesh."""
    mesh = axes.make_mesh(asdict(cfg.mesh))
    if cfg.data:
        more['note'] = loader.note(cfg.data.source)
    return preference.label_all(
        labeler, asked, pairs, store, dtype=cfg.dtype, mesh=mesh, title=title, **more,
    )  # fmt: skip


def aligned(
    name: str, pairs: list[Pair], records: list[Record], *, made: int | None = None, seconds: float | None = None
) -> alignment.Alignment:
    """The report on one cell. `made` of its labels were made just now, in `seconds`."""
    column = lambda field: np.array([record[field] for record in records], np.float64)  # noqa: E731  null is nan
    return alignment.report(
        name,
        column('preference'),
        np.array([pair.preference for pair in pairs], np.float64),
        first_shown_B=column('first_shown'),
        second_shown_B=column('second_shown'),
        first_chars_B=np.array([len(pair.first) for pair in pairs]),
        second_chars_B=np.array([len(pair.second) for pair in pairs]),
        mass_B=column('mass'),
        tokens=float(column('tokens').sum()),
        seconds=seconds if made == len(records) else None,
        calls=None if made is None else len(records),
        cache_hits=None if made is None else len(records) - made,
    )


def _published(name: str, labeler: str, cfg: Config, of: Study) -> dict[str, float]:
    """The paper's figure for a cell, where it has one."""
    sizes = dict(zip(of.labelers, (62.7, 73.8, 78.0))) if len(of.labelers) == 3 else {}
    if cfg.samples > 1:
        figure = {0.3: 76.2, 0.5: 75.1, 0.7: 74.0, 1.0: 72.8}.get(cfg.temperature) if cfg.samples == 16 else None
    elif sizes:
        figure = sizes[labeler] if cfg.technique == BEST['summarization'] else None
    else:
        figure = TABLE_2[cfg.task].get(cfg.technique)
    return {} if figure is None else {name: figure}


def written(pair: Pair, labeler: str, cfg: Config, record: Record) -> dict[str, Any]:
    """A row of a file of labels."""
    human = {} if pair.preference is None else {'preference': pair.preference}
    row = {'id': pair.prompt.id, 'prompt': pair.prompt.text, 'first': pair.first, 'second': pair.second, **human}
    return row | _columns(labeler, cfg, record)


def _columns(labeler: str, cfg: Config, record: Record | None, problem: str = '') -> dict[str, Any]:
    """What a label adds to its row. `preference_prob` is P(the row's first response is better), null where unscorable."""
    if record is None:
        return {'preference_prob': None, 'weight': 0.0, 'status': 'invalid', 'reason': problem}
    kept = ('weight', 'status', 'reason', 'mass', 'position_bias', 'neutralised', 'shortened')
    return {
        'preference_prob': record['preference'],
        **{name: record[name] for name in kept},
        'rationale': '\n'.join(record['rationales'][:1]),
        'labeler': labeler,
        'technique': cfg.technique,
        'template': record['template'],
        'labeler_digest': record['labeler'],
    }
