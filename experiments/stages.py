"""The stages that experiments are made of. Each lies in a folder named after all that determines it, `runs/stages/…`: an
experiment that needs what another one made finds it there.

    Supervised   references → the SFT policy
    Labelled     pairs → preferences of a labeler
    Rewarded     preferences, of people or of a labeler → a reward model
    Optimised    the SFT policy, and a reward model (`ByModel`) or a labeler's ratings (`ByRatings`) → a policy
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh as DeviceMesh

from experiments.label import Asking, check_prompts, labels_line, tell_worth, written
from experiments.programs import Line, Read
from experiments.scales import Dtype, Rule
from rlaif_jax import axes, chat, hosts, log, paths
from rlaif_jax.config import FILE, Mistake, dump, same, same_if
from rlaif_jax.data import files, loader, trl
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.evaluation import versus
from rlaif_jax.evaluation.statistics import Interval
from rlaif_jax.folder import finish, finished, lock, open_folder, stage_folder
from rlaif_jax.labeling import cost, direct, labelers, preference
from rlaif_jax.labeling.store import Store, store_in
from rlaif_jax.models import hf
from rlaif_jax.models.hf import LM
from rlaif_jax.shortening import reads
from rlaif_jax.training import reinforce, reward_model, sft
from rlaif_jax.training.reward_model import RewardModel

Sampled = Callable[[], list[Pair]]  # pairs that policies write
# (stage, folder, start, prompts, mesh) → how often each checkpoint in the folder is preferred to the start. Judges stand
# above, and are handed in.
Rates = Callable[['Optimised', Path, LM, Sequence[Prompt], DeviceMesh], Mapping[int, Interval]]
LABELS, COST = 'labels.parquet', 'cost.json'  # the second is another each time, and so no part of the result
ELSEWHERE = same_if(lambda config: labelers.is_address(config.labeler))  # a model that is served at another address
told: set[Path] = set()  # the stages that this process made, or said to be there: nobody wants to hear it again


def once(folder: Path, stage: Any, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The result of a stage, made now or by an earlier run. Waits where another process is making it."""
    with lock(folder, wait=True):
        open_folder(folder, dump(stage), same(stage))
        result = hosts.told(lambda: finished(folder))
        if result is None:
            finish(folder, result := make(folder))
        elif folder not in told:
            log.say(f'{folder.name.rpartition("-")[0]}: already there, in {folder}')
        told.add(folder)
        return result


@dataclass(frozen=True)
class Supervised:
    """The policy that reinforcement learning starts from, down to the weights behind its name."""

    policy: str
    fingerprint: str  # of the weights behind that name
    task: str
    source: str = field(metadata=FILE)
    train: int
    max_prompt: int
    max_new_tokens: int
    sft: sft.Config | None  # None: the model is one already, as the paper's is for dialogue (App. G)
    dtype: Dtype

    def lines(self, root: Path) -> list[Line]:
        if self.sft is None:
            return []
        read = lambda: self.referenced(loader.source(self.source, 'train', self.train, self.task))  # noqa: E731
        there = counted(self.source, self.train, read)
        if there is None and loader.find(self.source).task != 'summarization':
            raise Mistake(f'{self.source}: dialogues have no references for SFT to imitate; sft=None starts without')
        length = self.max_prompt + self.max_new_tokens
        told = {'there': there, 'read': self.max_new_tokens}
        return [Line('sft', self.folder(root), self.sft.steps, {'policy': self.policy}, self.sft, length, **told)]

    def folder(self, root: Path) -> Path:
        return stage_folder(root, 'sft', self, loader.contents(self))

    def run(self, root: Path, mesh: DeviceMesh, frozen: bool = False) -> LM:
        """`frozen`: whoever goes on from here trains none of its parameters, but adapters."""
        if self.sft is None:
            return hf.load(self.policy, dtype=self.dtype, mesh=mesh, frozen=frozen)
        cfg, note = self.sft, loader.find(self.source).note

        def make(folder: Path) -> dict[str, Any]:
            prompts = self.referenced(every := loader.source(self.source, 'train', self.train, self.task))
            if lacking := len(every) - len(prompts):
                log.say(f'{lacking} of {len(every)} prompts have no reference; SFT leaves them out')
            lm = hf.load(self.policy, dtype=self.dtype, mesh=mesh, frozen=bool(cfg.lora.rank))
            tell_prompts(lm, (prompt.text for prompt in prompts), loader.find(self.source).simulated)
            prompts = loader.fitted(prompts, reads(lm.tokenizer, self.max_prompt))
            batch_at = sft.batches(cfg, lm.tokenizer, prompts, self.max_new_tokens, mesh)
            sft.run(cfg, folder, lm, batch_at, mesh, note=note)
            return {'export': 'export'}

        once(self.folder(root), self, make)
        return hf.load(self.folder(root) / 'export', dtype=self.dtype, mesh=mesh, frozen=frozen)

    def referenced(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """The prompts that have a reference to imitate. Raises `Mistake` where none has."""
        if loader.find(self.source).simulated:
            return prompts
        if not (found := [prompt for prompt in prompts if prompt.reference.strip()]):
            raise Mistake(
                f'{self.source}: SFT imitates references, and none of {len(prompts)} prompts has one (column '
                '"completion"); sft=None starts from the policy as it is'
            )
        return found


@dataclass(frozen=True)
class Labelled:
    """Pairs with a labeler's preferences, which go through the store: what it holds is not asked again."""

    labeler: str = field(metadata=ELSEWHERE)
    fingerprint: str  # of the weights behind that name
    label: preference.Config
    source: str = field(metadata=FILE)
    split: str  # of the data that the pairs, or the prompts that are written to, are from
    pairs: int
    writers: str  # '': the data's own pairs; else the digest of a policy that wrote the first, beside SFT's (App. K)
    dtype: Dtype

    def lines(self, root: Path) -> list[Line]:
        check_prompts(self.labeler, self.label)
        of = '' if self.split == 'train' else f'of {self.split} pairs'
        return [labels_line('labels', self.folder(root), self.pairs, self.labeler, self.label, of)]

    def folder(self, root: Path) -> Path:
        return stage_folder(root, 'labels', self, loader.contents(self))

    def count(self) -> int | None:
        """How many pairs there are; None where nobody knows yet."""
        if self.writers:
            return None
        return counted(self.source, self.pairs, self.read)

    def read(self) -> list[Pair]:
        """The data's own pairs."""
        return loader.pairs(self.source, self.label.task, self.split, self.pairs)

    def asking(self) -> Asking:
        """What its labeler is asked about the data's own pairs."""
        return Asking(self.title, self.labeler, self.label, self.read)

    @property
    def title(self) -> str:
        return f'labels of {labelers.title(self.labeler)}'

    def run(self, root: Path, mesh: DeviceMesh, sampled: Sampled | None = None) -> list[Pair]:
        """The pairs, each with the labeler's preference; None where it is unscorable. The file in the folder says more."""

        def make(folder: Path) -> dict[str, Any]:
            pairs = sampled() if self.writers else self.read()
            labels = preference.label_all(
                self.labeler, self.label, pairs, Store(store_in(root)), dtype=self.dtype, mesh=mesh,
                title=self.title, note=loader.find(self.source).note,
            )  # fmt: skip
            rows = [written(pair, self.labeler, self.label, label) for pair, label in zip(pairs, labels)]
            files.write_rows(folder / LABELS, rows)
            cost.say({self.title: (spent := cost.counted(labels))})
            hosts.told(lambda: log.write_whole(folder / COST, log.to_json(spent.record()) + '\n'))
            told = tell_worth(self.labeler, pairs, labels, loader.find(self.source).note)
            counts = {'labels': len(rows), 'unscorable': sum(row['preference_prob'] is None for row in rows)}
            return counts | ({'verdict': told} if told else {})

        once(self.folder(root), self, make)
        return [
            replace(entry.record, preference=entry.row['preference_prob'])
            for entry in trl.pairs(self.folder(root) / LABELS, self.label.task)
        ]


@dataclass(frozen=True)
class Rewarded:
    """A reward model: whose preferences it learns, of how many pairs, and what it starts from.

    Held-out preferences of the same kind choose among its checkpoints: votes of people where it learns from votes, else
    the labeler's. A model of labels alone needs no vote; where there are votes, it is measured on them, too.
    """

    start: Supervised
    from_base: bool  # from the base model, not from what SFT made of it (Table 6)
    task: str
    source: str = field(metadata=FILE)
    human: int  # pairs with the votes of people
    ai: Labelled | None  # and pairs with a labeler's preferences
    held_out: int  # pairs of the validation split that choose among checkpoints
    reward_model: reward_model.Config
    dtype: Dtype

    @property
    def choosing(self) -> Labelled | None:
        """The held-out labels that choose among checkpoints; None where votes do."""
        return None if self.human else replace(self.ai, split='validation', pairs=self.held_out, writers='')

    @property
    def labels(self) -> tuple[Labelled, ...]:
        """All labels that it learns from, or is chosen by."""
        return tuple(filter(None, (self.ai, self.choosing)))

    def lines(self, root: Path) -> list[Line]:
        cfg, models = self.reward_model, {'policy': self.start.policy}
        length = cfg.max_prompt + 2 * cfg.max_response
        before = [] if self.from_base else self.start.lines(root)
        for labels in self.labels:
            before += labels.lines(root)
        votes = counted(self.source, self.human, lambda: loader.pairs(self.source, self.task, 'train', self.human))
        labels = self.ai.count() if self.ai else 0
        there = None if None in (votes, labels) else votes + labels
        return [
            *before,
            Line(
                'reward model',
                self.folder(root),
                cfg.steps,
                models,
                cfg,
                length,
                scores(cfg, self.held_out),
                f'of {self.of}',
                there,
            ),
        ]

    @property
    def of(self) -> str:
        """Whose preferences it learns."""
        return ' and '.join(['votes of people'] * bool(self.human) + ['labels'] * bool(self.ai))

    def folder(self, root: Path) -> Path:
        return stage_folder(root, 'reward_model', self, loader.contents(self))

    def run(self, root: Path, mesh: DeviceMesh, sampled: Sampled | None = None) -> RewardModel:
        """`sampled` makes the pairs to label where policies write them."""

        def make(folder: Path) -> dict[str, Any]:
            cfg, data = self.reward_model, loader.find(self.source)
            before = replace(self.start, sft=None) if self.from_base else self.start
            start = before.run(root, mesh, frozen=bool(cfg.lora.rank))
            votes = data.pairs('train', self.human, self.task, False) if self.human else []
            labels = self.ai.run(root, mesh, sampled) if self.ai else []
            held_out, beside = data.pairs('validation', self.held_out, self.task, False), []
            if self.choosing:
                held_out, beside = self.choosing.run(root, mesh), held_out
            if self.human and self.ai:  # data may hold fewer than were asked for
                log.say(f'{data.note} {len(votes)} pairs with votes of people, {len(labels)} with labels'.lstrip())
            pairs = votes + labels
            tell_prompts(start, (pair.prompt.text for pair in pairs), data.simulated)
            reward_model.run(cfg, folder, start, pairs, held_out, mesh, votes=beside, note=data.note)
            return {'export': 'export', 'pairs': len(pairs), 'human': len(votes)}

        once(self.folder(root), self, make)
        return reward_model.load(self.folder(root) / 'export', dtype=self.dtype, mesh=mesh, frozen=True)

    def scorer(self, trained: RewardModel, mesh: DeviceMesh) -> reward_model.Scorer:
        return reward_model.scorer_of(self.reward_model, trained, mesh)


@dataclass(frozen=True, kw_only=True)
class Optimised(ABC):
    """A policy: where it starts, how it is trained, and who chooses among its checkpoints. What rewards it is said by its
    two kinds, `ByModel` and `ByRatings`.
    """

    start: Supervised
    source: str = field(metadata=FILE)
    train: int
    validation: int
    reinforce: reinforce.Config
    selector: str  # the LM that chooses among `reinforce.candidates` checkpoints
    rule: Rule  # how its verdicts in both orders count
    dtype: Dtype

    @property
    def task(self) -> str:
        return self.start.task

    @abstractmethod
    def scorer(self, root: Path, mesh: DeviceMesh, sampled: Sampled | None) -> reward_model.Scorer:
        """What rewards it, made now where it is not there."""

    def line(self, root: Path, models: dict[str, str], of: str, does: Literal['answers', 'scores'], rows: int) -> Line:
        """Its own line of a plan: `models` is who rewards it, by answers or scores, `rows` at a time; `of` is whose
        feedback that is.
        """
        cfg, policy = self.reinforce, self.start.policy
        length = cfg.max_prompt + cfg.max_new_tokens
        evaluated = (1 + cfg.steps / cfg.eval_every) * min(cfg.eval_prompts, self.validation)  # responses
        rewards = [
            Read(role, does, rows, length, calls=cfg.steps * cfg.batch / rows + evaluated / rows)
            for role, model in models.items()
            if not labelers.is_address(model)
        ]
        models = {'policy': policy, 'value': policy, 'reference': policy} | models
        models |= {'selector': self.selector} if cfg.candidates > 1 else {}
        lengths = cfg.max_prompt, cfg.max_new_tokens
        writes = [Read('policy', 'writes', cfg.batch, *lengths, calls=cfg.steps + evaluated / cfg.batch)]
        if cfg.samples > 1:  # of validation prompts one each
            sampled = Read('policy', 'writes', cfg.batch // cfg.samples, *lengths, cfg.samples, calls=cfg.steps)
            writes = [sampled, replace(writes[0], calls=evaluated / cfg.batch)]
        prompts = counted(self.source, self.train, lambda: loader.source(self.source, 'train', self.train, self.task))
        there = None if prompts is None else prompts * cfg.samples
        reads = (*writes, *rewards)
        return Line('reinforce', self.folder(root), cfg.steps, models, cfg, length, reads, f'by {of}', there)

    def folder(self, root: Path) -> Path:
        return stage_folder(root, 'reinforce', self, loader.contents(self))

    def run(
        self,
        root: Path,
        mesh: DeviceMesh,
        rates: Rates,
        judge: versus.Judge | None = None,
        sampled: Sampled | None = None,
    ) -> LM:
        """`rates` says which of several checkpoints is best. `judge` shows in the log how often validation responses beat
        SFT's; it decides nothing. `sampled` makes the pairs to label where policies write them.
        """

        def make(folder: Path) -> dict[str, Any]:
            cfg, data = self.reinforce, loader.find(self.source)
            train, validation = (
                data.prompts(split, size, self.task)
                for split, size in (('train', self.train), ('validation', self.validation))
            )
            start = [self.start.run(root, mesh, frozen=bool(cfg.lora.rank))]
            tell_prompts(start[0], (prompt.text for prompt in train), data.simulated)
            scorer = self.scorer(root, mesh, sampled)
            fits = reads(start[0].tokenizer, cfg.max_prompt)
            train, validation = (loader.fitted(prompts, fits) for prompts in (train, validation))
            parts = cfg.samples * cfg.parts * axes.shares(mesh)
            loader.check_batch('reinforce.batch', cfg.batch, len(train) * cfg.samples, parts)
            prompts_at = loader.batches(train, cfg.batch // cfg.samples, cfg.seed)
            validation = validation[: cfg.eval_prompts]
            quality = data.world.quality if data.world else None
            # Given away: what it does not need of the parameters leaves the memory.
            reinforce.run(cfg, folder, start.pop(), prompts_at, scorer, validation, mesh, judge, quality, data.note)
            if cfg.candidates == 1:
                return {'export': 'export'}
            start = self.start.run(root, mesh, frozen=True)
            return {'export': 'export'} | self.select(folder, rates(self, folder, start, validation, mesh))

        once(self.folder(root), self, make)
        return hf.load(self.folder(root) / 'export', dtype=self.dtype, mesh=mesh, frozen=True)

    def select(self, folder: Path, rates: Mapping[int, Interval]) -> dict[str, Any]:
        """The paper's choice among checkpoints (App. G): those of the highest validation reward, each judged against SFT
        by a language model in both orders; here the highest win rate is taken, where the authors also looked at a dozen.
        """
        best = max(rates, key=lambda step: rates[step].value)
        log.say(f'chosen: step {best}')

        def choose() -> None:
            with paths.replacing(folder / 'export') as new:
                shutil.copytree(reinforce.candidate(folder, best), new, dirs_exist_ok=True)

        hosts.told(choose)
        return {'step': best, 'win rates': {step: rate.value for step, rate in rates.items()}}


@dataclass(frozen=True, kw_only=True)
class ByModel(Optimised):
    """A policy that a reward model rewards."""

    rewarded: Rewarded

    def lines(self, root: Path) -> list[Line]:
        before = self.rewarded.lines(root)
        before += self.start.lines(root) if self.rewarded.from_base else []
        rows = self.rewarded.reward_model.score_batch
        own = self.line(root, {'reward model': self.start.policy}, self.rewarded.of, 'scores', rows)
        return [*before, own]

    def scorer(self, root: Path, mesh: DeviceMesh, sampled: Sampled | None) -> reward_model.Scorer:
        return self.rewarded.scorer(self.rewarded.run(root, mesh, sampled), mesh)


@dataclass(frozen=True, kw_only=True)
class ByRatings(Optimised):
    """A policy that a labeler's ratings reward: direct RLAIF."""

    labeler: str = field(metadata=ELSEWHERE)
    fingerprint: str  # of the weights behind that name
    rating: direct.Config

    def lines(self, root: Path) -> list[Line]:
        own = self.line(root, {'labeler': self.labeler}, 'ratings', 'answers', self.rating.batch)
        return [*self.start.lines(root), own]

    def scorer(self, root: Path, mesh: DeviceMesh, sampled: Sampled | None) -> reward_model.Scorer:
        labeler = labelers.load(self.labeler, dtype=self.dtype, mesh=mesh)
        return direct.make_scorer(labeler, self.rating, mesh)


def scores(cfg: reward_model.Config, held_out: int) -> tuple[Read, ...]:
    """What a plan counts of a reward model that is evaluated on held-out pairs."""
    calls = 2 * held_out / cfg.score_batch * cfg.steps / cfg.eval_every
    return (Read('policy', 'scores', cfg.score_batch, cfg.max_prompt + cfg.max_response, calls=calls),)


def counted(source: str, size: int, read: Callable[[], Sequence[Any]]) -> int | None:
    """How many of `size` records there are to read; None of published data, which no plan fetches."""
    return loader.find(source).count(size, read)


def tell_prompts(model: LM | RewardModel, prompts: Iterable[str], simulated: bool) -> None:
    """Says how a model reads its prompts, in its chat template or as plain text, where that is a question."""
    if simulated:
        return
    name = Path(model.name.removesuffix('/export')).name
    if told := chat.account(name, bool(model.tokenizer.hf.chat_template), prompts):
        log.say(told)
