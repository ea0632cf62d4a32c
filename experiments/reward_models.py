"""Reward models from whichever feedback, and how often they agree with people on pairs they have not seen."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import arms, stages
from experiments.label import Asking, generation, toy
from experiments.own import described
from experiments.programs import Line
from experiments.scales import Data, Dtype, Mesh, Scale
from experiments.stages import Rewarded
from rlaif_jax import axes, log
from rlaif_jax.batching import padded
from rlaif_jax.config import FILE, MOST, SAME, Mistake, bind, check_within, nearest
from rlaif_jax.data import loader, trl
from rlaif_jax.data.records import Pair
from rlaif_jax.evaluation.statistics import wilson
from rlaif_jax.folder import link, shared
from rlaif_jax.labeling import preference
from rlaif_jax.models import hf
from rlaif_jax.text import Tokenizer
from rlaif_jax.training import reward_model, sft

LARGEST = 32  # pairs of a batch, the paper's for dialogue, where a checkpoint learns from a file
AT_ONCE = 4  # of them that go through a device together
LONGEST = 64  # texts of a file that are the longest in characters: among them is the longest in tokens
COLUMNS = ('reward model', 'sure raters', 'all pairs', 'loss, nats', 'calibration error', 'length correlation', 'paper')


@dataclass(frozen=True)
class RewardModels:
    """Preferences → a reward model, for each arm and variant → a table of accuracies."""

    task: str  # summarization, helpful or harmless
    arms: tuple[str, ...]  # whose feedback reward models learn from, by the paper’s names
    policy: str  # the model that is trained: a packaged one, a folder or a name on the hub
    labeler: str  # of RLAIF; '' where no arm asks it
    same_size_labeler: str  # of same-size RLAIF; '' where no arm asks it
    data: Data
    sft: sft.Config | None
    label: preference.Config | None  # None where no arm learns from a labeler's preferences
    reward_model: reward_model.Config
    reward_model_from_base: bool  # where it learns from people's votes
    test_pairs: int = 2048  # of each kind: all, and those whose raters were sure
    variants: tuple[str, ...] = ()  # bindings, such as 'data.pairs=128', each tried on every arm
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products; what is trained stays float32
    rating = human_share = None  # of arms that have no reward model without a policy

    def __post_init__(self) -> None:
        known = [name for name in self.arms if name in arms.ARMS]
        if lacking := [name for name in known if {'rating', 'human_share'} & arms.needed([name])]:
            raise ValueError(f'arms = {self.arms}: {lacking[0]} has no reward model without a policy')
        arms.check(self)
        check_within(self, 1, MOST, 'test_pairs')

    def lengths(self) -> tuple[int, int]:
        return self.reward_model.max_prompt, self.reward_model.max_response

    def learners(self) -> dict[str, Rewarded]:
        """Everything that is compared, by its name in reports."""
        return {name: arms.rewarded(cfg, arm) for name, cfg, arm in arms.each(self)}

    def askings(self) -> list[Asking]:
        """What labelers can be asked ahead."""
        return arms.askings(self.learners().values())

    def lines(self, folder: Path) -> list[Line]:
        found: dict[Path, Line] = {}
        for one in self.learners().values():
            for line in one.lines(shared(folder)):
                found.setdefault(line.folder, line)
        return [*found.values(), Line('evaluation', folder, 2 * self.test_pairs)]

    def run(self, folder: Path) -> dict[str, Any]:
        mesh, root, source = axes.make_mesh(asdict(self.mesh)), shared(folder), loader.find(self.data.source)
        test = {kind: source.pairs('test', self.test_pairs, self.task, kind == 'sure') for kind in ('sure', 'all')}
        rows, result, learners = [], {}, self.learners()
        for name, made in learners.items():
            link(made.folder(root), folder if len(learners) == 1 else folder / 'models' / name)
            scorer = made.scorer(made.run(root, mesh), mesh)
            found = {kind: measured(scorer, pairs) for kind, pairs in test.items()}
            paper = None if self.variants else arms.ARMS[name].accuracy.get(self.task)
            rows.append(
                [name, str(found['sure']['accuracy']), str(found['all']['accuracy'])]
                + [f'{found["all"][figure]:.3f}' for figure in ('eval/loss', 'eval/ece', 'eval/length_correlation')]
                + [f'{paper} %' if paper else '–']
            )
            result[name] = {
                kind: numbers | {'accuracy': asdict(numbers['accuracy'])} for kind, numbers in found.items()
            }
        world = 'SIMULATED world: pairs and raters are artificial; ' if source.simulated else ''
        log.figures_table(f'{world}reward models against votes on {self.test_pairs} test pairs', COLUMNS, rows)
        return {'simulated': source.simulated, 'reward models': result}


def reward_models(scale: Scale, task: str, seed: int, *names: str) -> RewardModels:
    """Those of some arms at a scale."""
    return RewardModels(**arms.fields(scale, task, seed, names))


def measured(scorer: reward_model.Scorer, pairs: list[Pair]) -> dict[str, Any]:
    """`reward_model.measures`, and the accuracy with its interval; an equal score is half a hit."""
    score_BC = reward_model.score_pairs(scorer, pairs)
    preference_B, _ = reward_model.targets(pairs)
    length_BC = np.array([(len(pair.first), len(pair.second)) for pair in pairs])
    found = reward_model.measures(score_BC, preference_B, length_BC)
    return {'accuracy': wilson(found['eval/accuracy'] * len(pairs), len(pairs))} | found


@dataclass(frozen=True)
class FromFile:
    """Labelled pairs in a file → a reward model that `AutoModelForSequenceClassification` reads."""

    policy: str  # the model it starts from
    # .jsonl, .jsonl.gz, .json or .parquet, in TRL's columns; `preference_prob` is a soft label.
    input: str = field(default='', metadata=FILE)
    column: str = ''  # the soft label, P(the first is better); '' for `preference_prob`, the newest where several are
    task: str = 'summarization'  # summarization, helpful or harmless
    held_out: float = 0.1  # the share of the pairs that chooses among checkpoints
    reward_model: reward_model.Config = field(default_factory=reward_model.Config)
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products; what is trained stays float32
    data: Data | None = None  # always None: the pairs are those of `input`

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f'held_out is a share between 0 and 1, not {self.held_out}')

    def pairs(self, tell: bool = False) -> list[Pair]:
        """The pairs of the file. Raises `Mistake` for a preference that is none, with file, line and column."""
        if not self.input:
            raise Mistake('which pairs? input=labels.parquet')
        entries = trl.pairs(self.input, self.task)
        column, others = self.labelled({name: None for entry in entries for name in entry.row})
        if tell and others:
            log.say(f'{self.input}: reads {column}, and not {", ".join(others)}; column=… names another')
        for entry in [entry for entry in entries if entry.record is None][: 3 * tell]:
            log.say(f'no pair: {entry.problem}')
        found = [preferred(entry, column) for entry in entries if entry.record is not None]
        if len(found) < 2:
            raise Mistake(f'{self.input}: {len(found)} of {len(entries)} rows are pairs; two is the least')
        return found

    def labelled(self, columns: Collection[str]) -> tuple[str, list[str]]:
        """The column of preferences, and the others that may be meant. Raises `Mistake` for one that is not there."""
        labels = sorted(filter(generation, columns), key=generation)
        if self.column and self.column not in columns:
            near = nearest(self.column, labels or columns)
            raise Mistake(f'{self.input}: no column {self.column!r}' + (f'; did you mean {near!r}?' if near else ''))
        column = self.column or (labels[-1] if labels else 'preference_prob')
        return column, [name for name in labels if name != column]

    def sized(self, given: Collection[str]) -> FromFile:
        """With a batch, steps and lengths for the pairs of its file: three epochs, as the paper's. What was `given`, by
        path, stays.
        """
        try:
            (train, held_out), cfg = self.split(), self.reward_model
        except Mistake:  # which its plan says
            return self
        asked = lambda name: f'reward_model.{name}' in given  # noqa: E731
        batch = cfg.batch if asked('batch') else 2 ** (min(cfg.batch, LARGEST, len(train)).bit_length() - 1)
        steps = cfg.steps if asked('steps') else min(cfg.steps, math.ceil(3 * len(train) / batch))
        devices = self.mesh.data, self.mesh.fsdp
        # All that are left are nobody knows how many yet: as many as there are pairs.
        rows = 1 if -1 in devices else batch // math.gcd(batch, math.prod(devices))  # of a device
        parts = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= AT_ONCE)
        found = {'batch': batch, 'steps': steps, 'parts': parts}
        found |= dict.fromkeys(('eval_every', 'save_every'), math.ceil(steps / 5))
        if folder := described(self.policy):
            tokenizer, pairs = Tokenizer.load(folder), [*train, *held_out]
            prompts = [pair.prompt.text for pair in pairs]
            responses = [text for pair in pairs for text in (pair.first, pair.second)]
            most = {'max_prompt': (tokenizer.prompts, prompts), 'max_response': (tokenizer.encode, responses)}
            for name, (encode, texts) in most.items():
                longest = max(map(len, encode(sorted(texts, key=len)[-LONGEST:]))) + 1  # and an end token
                found[name] = min(getattr(cfg, name), padded([longest]))
        return bind(self, {f'reward_model.{name}': value for name, value in found.items() if not asked(name)})

    def split(self, tell: bool = False) -> tuple[list[Pair], list[Pair]]:
        """The pairs to train on, and those held out."""
        return reward_model.split(self.pairs(tell), self.held_out)

    def lines(self, folder: Path) -> list[Line]:
        cfg, (train, _) = self.reward_model, self.split()
        length = cfg.max_prompt + 2 * cfg.max_response
        return [Line('reward model', folder, cfg.steps, {'policy': self.policy}, cfg, length, there=len(train))]

    def run(self, folder: Path) -> dict[str, Any]:
        mesh, (train, held_out) = axes.make_mesh(asdict(self.mesh)), self.split(tell=True)
        cfg, note, pairs = self.reward_model, toy(self.policy), [*train, *held_out]
        start = hf.load(self.policy, dtype=self.dtype, mesh=mesh, frozen=bool(cfg.lora.rank))
        stages.tell_prompts(start, (pair.prompt.text for pair in pairs), simulated=bool(note))
        trained = reward_model.run(cfg, folder, start, train, held_out, mesh, note=note)
        scorer = reward_model.scorer_of(cfg, trained, mesh)
        known = [pair for pair, weight in zip(held_out, reward_model.targets(held_out)[1]) if weight]
        found = measured(scorer, known)
        told = f'accuracy on the {len(known)} held-out pairs: {found["accuracy"]}; the model: {folder / "export"}'
        log.say(f'{note} {told}'.lstrip())
        return {'train': len(train), 'held_out': found | {'accuracy': asdict(found['accuracy'])}}


def preferred(entry: trl.Entry, column: str) -> Pair:
    """The pair of a row with what a column of labels says, which goes before what the row says besides; null and NaN are a
    pair that could not be labelled.
    """
    if column not in entry.row:
        return entry.record
    value = entry.row[column]
    if value is None or isinstance(value, float) and math.isnan(value):
        return replace(entry.record, preference=None)
    return replace(entry.record, preference=trl.probability(value, f'{entry.where}: column {column!r}'))
