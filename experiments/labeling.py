"""Labeling: the paper's studies of the labeler (§4.4 to §4.6, App. B and M).

A study is a table of cells, labeler × task × technique × sampling, on pairs whose raters were sure, as in the paper.
Labels go into one store beside the run folders, so cells that two studies share are made once.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from experiments.label import Asking, aligned, check_prompts, labels_line, store_of, unscorable, written
from experiments.programs import Line
from experiments.scales import Data, Dtype, Mesh, Scale
from rlaif_jax import axes, log
from rlaif_jax.config import SAME
from rlaif_jax.data import files, loader
from rlaif_jax.data.records import Pair
from rlaif_jax.data.source import Source
from rlaif_jax.evaluation import report
from rlaif_jax.evaluation.figures import figure_labelers
from rlaif_jax.labeling import cost, labelers, preference
from rlaif_jax.labeling.preference import Config
from rlaif_jax.labeling.prompts import TASKS, Technique
from rlaif_jax.labeling.store import Store

__all__ = [
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


# The experiments


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
        'split': 'alignment' if loader.find(scale.tldr.source).published else 'test',  # as in the paper
    }
    return Study(data=scale.tldr, mesh=scale.mesh, dtype=scale.dtype, **(defaults | fields))


# What they run


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
                        parts = [task] * (len(self.tasks) > 1) + [labelers.title(labeler)] * (len(self.labelers) > 1)
                        parts += [technique] * (len(self.techniques) > 1 or not parts)
                        parts += [f'{n} × T {temperature}' if n > 1 else 'greedy'] * (len(self.samples) > 1)
                        found.append((' '.join(parts), labeler, cfg))
        return found

    def data_of(self, task: str) -> Source:
        """Where pairs of a task are."""
        return loader.of_task(self.data.source, task)

    def pairs_of(self, task: str) -> list[Pair]:
        """What labelers are asked about."""
        return self.data_of(task).pairs(self.split, self.pairs, task, self.confident)

    def askings(self) -> list[Asking]:
        """What labelers can be asked ahead."""
        return [Asking(name, labeler, cfg, partial(self.pairs_of, cfg.task)) for name, labeler, cfg in self.cells()]

    def lines(self, folder: Path) -> list[Line]:
        for _, labeler, cfg in self.cells():
            check_prompts(labeler, cfg)
        return [labels_line(name, folder, self.pairs, labeler, asked) for name, labeler, asked in self.cells()]

    def run(self, folder: Path) -> dict[str, Any]:
        store = Store(store_of(folder))
        simulated = loader.find(self.data.source).simulated
        chosen = {task: self.pairs_of(task) for task in self.tasks}
        reports, published, reasons, rows, spent = [], {}, {}, [], {}
        mesh = axes.make_mesh(asdict(self.mesh))
        # Cells of one labeler are neighbours: it is loaded once.
        load = lru_cache(maxsize=1)(partial(labelers.load, dtype=self.dtype, mesh=mesh))
        how = {'dtype': self.dtype, 'mesh': mesh, 'load': load, 'note': loader.find(self.data.source).note}
        for name, labeler, cfg in self.cells():
            before, start = store.added, time.monotonic()
            labels = preference.label_all(labeler, cfg, chosen[cfg.task], store, title=name, **how)
            rows += [written(pair, labeler, cfg, one) for pair, one in zip(chosen[cfg.task], labels)]
            made, seconds = store.added - before, time.monotonic() - start
            one = aligned(name, chosen[cfg.task], labels, made=made, seconds=seconds)
            reports.append(one)
            reasons |= unscorable(name, labels)
            spent[name] = cost.counted(labels)
            published |= _published(name, labeler, cfg, self)
            log.say(f'{name}: agreement {one.agreement}, same position {one.position.same}')
        show = {'published': published, 'simulated': simulated}
        title = f'labelers and {"simulated raters" if simulated else "people"}, {self.split} pairs'
        report.labelers_table(reports, title=title, **show)
        report.labelers_csv(folder / 'alignment.csv', reports, **show)
        figure_labelers(folder / 'alignment.png', reports, title=title, **show)
        cost.say(spent)
        if self.output:
            files.write_rows(folder / self.output, rows)
            log.say(f'labels: {folder / self.output}')
        log.say(f'table and figure: {folder / "alignment.csv"}, {folder / "alignment.png"}')
        return {
            'simulated': simulated,
            'cells': {one.name: report.labeler_row(one) for one in reports},
            'alignment': {one.name: asdict(one) for one in reports},
            'published': published,
            'unscorable pairs': reasons,
            'cost': {name: one.record() for name, one in spent.items()},
        }


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
