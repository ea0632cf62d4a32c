"""The stages that experiments are made of. Each lies in a folder named after all that determines it, `runs/stages/…`: an
experiment that needs what another one made finds it there.

    Supervised   references → the SFT policy
    Labelled     pairs → preferences of a labeler
    Rewarded     preferences, of people or of a labeler → a reward model
    Optimised    the SFT policy, and a reward model or a labeler's ratings → a policy
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from jax.sharding import Mesh as DeviceMesh

from experiments.labeling import check_prompts, labels_stage, written
from experiments.plan import Stage
from experiments.scales import Data, Dtype, Evaluation, Rule
from rlaif_jax import axes, chat, hosts, log, paths
from rlaif_jax.config import FILE, Mistake, dump, same
from rlaif_jax.data import files, loader, tokens, trl
from rlaif_jax.data.micro import tasks
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.evaluation import versus
from rlaif_jax.folder import finish, finished, lock, open_folder, stage_folder
from rlaif_jax.generation import generate
from rlaif_jax.labeling import direct, preference
from rlaif_jax.labeling.store import Store, store_in
from rlaif_jax.models import hf
from rlaif_jax.models.hf import LM
from rlaif_jax.training import reinforce, reward_model, sft
from rlaif_jax.training.reward_model import RewardModel

Sampled = Callable[[], list[Pair]]  # pairs that policies write
Model = TypeVar('Model', LM, RewardModel)
LABELS = 'labels.parquet'
told: set[Path] = set()  # the stages that this process made, or said to be there: nobody wants to hear it again


def once(folder: Path, stage: Any, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The result of a stage, made now or by an earlier run. Waits where another process is making it."""
    with lock(folder, wait=True):
        open_folder(folder, dump(stage), same(type(stage)))
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

    def stages(self, root: Path) -> list[Stage]:
        if self.sft is None:
            return []
        read = lambda: self.referenced(loader.source(self.source, 'train', self.train, self.task))  # noqa: E731
        there = counted(self.source, self.train, read)
        if there is None and loader.PUBLISHED[self.source] != 'summarization':
            raise Mistake(f'{self.source}: dialogues have no references for SFT to imitate; sft=None starts without')
        length = self.max_prompt + self.max_new_tokens
        return [Stage('sft', self.folder(root), self.sft.steps, {'policy': self.policy}, self.sft, length, there=there)]

    def folder(self, root: Path) -> Path:
        return stage_folder(root, 'sft', self, loader.contents(self))

    def run(self, root: Path, mesh: DeviceMesh, frozen: bool = False) -> LM:
        """`frozen`: whoever goes on from here trains none of its parameters, but adapters."""
        if self.sft is None:
            return hf.load(self.policy, dtype=self.dtype, mesh=mesh, frozen=frozen)
        cfg, note = self.sft, loader.note(self.source)

        def make(folder: Path) -> dict[str, Any]:
            prompts = self.referenced(every := loader.source(self.source, 'train', self.train, self.task))
            if lacking := len(every) - len(prompts):
                log.say(f'{lacking} of {len(every)} prompts have no reference; SFT leaves them out')
            lm = hf.load(self.policy, dtype=self.dtype, mesh=mesh, frozen=bool(cfg.lora.rank))
            tell_prompts(lm, (prompt.text for prompt in prompts), loader.simulated(self.source))
            lm = remembering(lm, prompts, self.texts, self.source, cfg.steps * cfg.batch)
            batch_at = sft.batches(cfg, lm.tokenizer, fitted(prompts, lm, self.max_prompt), self.max_new_tokens)
            sft.run(cfg, folder, lm, batch_at, mesh, note=note)
            return {'export': 'export'}

        once(self.folder(root), self, make)
        return hf.load(self.folder(root) / 'export', dtype=self.dtype, mesh=mesh, frozen=frozen)

    def referenced(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """The prompts that have a reference to imitate. Raises `Mistake` where none has."""
        if loader.simulated(self.source):
            return prompts
        if not (found := [prompt for prompt in prompts if prompt.reference.strip()]):
            raise Mistake(
                f'{self.source}: SFT imitates references, and none of {len(prompts)} prompts has one (column '
                '"completion"); sft=None starts from the policy as it is'
            )
        return found

    @staticmethod
    def texts(prompt: Prompt) -> tuple[str, list[str]]:
        """What of a prompt is encoded: itself, and its reference."""
        return prompt.text, [prompt.reference]


@dataclass(frozen=True)
class Labelled:
    """Pairs with a labeler's preferences, which go through the store: what it holds is not asked again."""

    labeler: str
    fingerprint: str  # of the weights behind that name
    label: preference.Config
    source: str = field(metadata=FILE)
    pairs: int
    writers: str  # '': the data's own pairs; else the digest of a policy that wrote the first, beside SFT's (App. K)
    dtype: Dtype

    def stages(self, root: Path) -> list[Stage]:
        check_prompts(self.labeler, self.label)
        return [labels_stage('labels', self.folder(root), self.pairs, self.labeler, self.label)]

    def folder(self, root: Path) -> Path:
        return stage_folder(root, 'labels', self, loader.contents(self))

    def count(self) -> int | None:
        """How many pairs there are; None where nobody knows yet."""
        if self.writers:
            return None
        return counted(self.source, self.pairs, lambda: loader.pairs(self.source, self.label.task, 'train', self.pairs))

    def run(self, root: Path, mesh: DeviceMesh, sampled: Sampled | None = None) -> list[Pair]:
        """The pairs, each with the labeler's preference; None where it is unscorable. The file in the folder says more."""

        def make(folder: Path) -> dict[str, Any]:
            pairs = sampled() if sampled else loader.pairs(self.source, self.label.task, 'train', self.pairs)
            records = preference.label_all(
                self.labeler, self.label, pairs, Store(store_in(root)), dtype=self.dtype, mesh=mesh,
                title=f'labels of {Path(self.labeler).name}', note=loader.note(self.source),
            )  # fmt: skip
            rows = [written(pair, self.labeler, self.label, record) for pair, record in zip(pairs, records)]
            files.write_rows(folder / LABELS, rows)
            return {'labels': len(rows), 'unscorable': sum(row['preference_prob'] is None for row in rows)}

        once(self.folder(root), self, make)
        return [
            replace(entry.record, preference=entry.row['preference_prob'])
            for entry in trl.pairs(self.folder(root) / LABELS, self.label.task)
        ]


@dataclass(frozen=True)
class Rewarded:
    """A reward model: whose preferences it learns, of how many pairs, and what it starts from."""

    start: Supervised
    from_base: bool  # from the base model, not from what SFT made of it (Table 6)
    task: str
    source: str = field(metadata=FILE)
    human: int  # pairs with the votes of people
    ai: Labelled | None  # and pairs with a labeler's preferences
    held_out: int  # pairs with votes of people that choose among checkpoints
    reward_model: reward_model.Config
    dtype: Dtype

    def stages(self, root: Path) -> list[Stage]:
        cfg, models = self.reward_model, {'policy': self.start.policy}
        length = cfg.max_prompt + 2 * cfg.max_response
        before = [] if self.from_base else self.start.stages(root)
        before += self.ai.stages(root) if self.ai else []
        votes = counted(self.source, self.human, lambda: loader.pairs(self.source, self.task, 'train', self.human))
        labels = self.ai.count() if self.ai else 0
        there = None if None in (votes, labels) else votes + labels
        return [
            *before,
            Stage('reward model', self.folder(root), cfg.steps, models, cfg, length, of=f'of {self.of}', there=there),
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
            frozen = bool(self.reward_model.lora.rank)
            start = (replace(self.start, sft=None) if self.from_base else self.start).run(root, mesh, frozen)
            votes = loader.pairs(self.source, self.task, 'train', self.human)
            labels = self.ai.run(root, mesh, sampled) if self.ai else []
            held_out = loader.pairs(self.source, self.task, 'validation', self.held_out)
            cfg, note = self.reward_model, loader.note(self.source)
            if self.human and self.ai:  # data may hold fewer than were asked for
                log.say(f'{note} {len(votes)} pairs with votes of people, {len(labels)} with labels'.lstrip())
            pairs = votes + labels
            tell_prompts(start, (pair.prompt.text for pair in pairs), loader.simulated(self.source))
            start = remembering(start, [*pairs, *held_out], reward_model.texts, self.source, cfg.steps * cfg.batch)
            reward_model.run(cfg, folder, start, pairs, held_out, mesh, note=note)
            return {'export': 'export', 'pairs': len(pairs), 'human': len(votes)}

        once(self.folder(root), self, make)
        return reward_model.load(self.folder(root) / 'export', dtype=self.dtype, mesh=mesh, frozen=True)

    def scorer(self, trained: RewardModel, mesh: DeviceMesh) -> reward_model.Scorer:
        cfg = self.reward_model
        return reward_model.scorer_of(cfg, trained, mesh)


@dataclass(frozen=True)
class Optimised:
    """A policy: where it starts, what rewards it, how it is trained, and who chooses among its checkpoints."""

    start: Supervised
    rewarded: Rewarded | None
    labeler: str  # whose ratings are the reward where there is no reward model
    fingerprint: str  # of the weights behind that name
    rating: direct.Config | None
    source: str = field(metadata=FILE)
    train: int
    validation: int
    reinforce: reinforce.Config
    selector: str  # the LM that chooses among `reinforce.candidates` checkpoints
    rule: Rule  # how its verdicts in both orders count
    dtype: Dtype

    def stages(self, root: Path) -> list[Stage]:
        cfg, policy = self.reinforce, self.start.policy
        models = {'policy': policy, 'value': policy, 'reference': policy}
        models |= {'labeler': self.labeler} if self.rewarded is None else {'reward model': policy}
        models |= {'selector': self.selector} if cfg.candidates > 1 else {}
        before = (self.rewarded or self.start).stages(root)
        before += self.start.stages(root) if self.rewarded and self.rewarded.from_base else []
        length = cfg.max_prompt + cfg.max_new_tokens
        reads = {'policy': (cfg.batch, length)}
        reads |= {} if self.rewarded else {'labeler': (self.rating.batch, length)}
        of = self.rewarded.of if self.rewarded else 'ratings'
        prompts = counted(self.source, self.train, lambda: loader.source(self.source, 'train', self.train, self.task()))
        there = None if prompts is None else prompts * cfg.samples
        return [
            *before,
            Stage('reinforce', self.folder(root), cfg.steps, models, cfg, length, reads, f'by {of}', there),
        ]

    def folder(self, root: Path) -> Path:
        return stage_folder(root, 'reinforce', self, loader.contents(self))

    def run(
        self, root: Path, mesh: DeviceMesh, judge: versus.Judge | None = None, sampled: Sampled | None = None
    ) -> LM:
        """`judge` shows in the log how often validation responses beat SFT's; it decides nothing."""

        def make(folder: Path) -> dict[str, Any]:
            cfg, note = self.reinforce, loader.note(self.source)
            train, validation = (
                loader.source(self.source, split, size, self.task())
                for split, size in (('train', self.train), ('validation', self.validation))
            )
            count = cfg.steps * cfg.batch // cfg.samples
            known = lambda model: remembering(model, train, lambda p: (p.text, []), self.source, count)  # noqa: E731
            start = known(self.start.run(root, mesh, frozen=bool(cfg.lora.rank)))
            tell_prompts(start, (prompt.text for prompt in train), loader.simulated(self.source))
            if self.rewarded:
                scorer = self.rewarded.scorer(known(self.rewarded.run(root, mesh, sampled)), mesh)
            else:
                labeler = hf.load(self.labeler, dtype=self.dtype, mesh=mesh, frozen=True)
                scorer = direct.make_scorer(labeler, self.rating, mesh)
            train, validation = (fitted(prompts, start, cfg.max_prompt) for prompts in (train, validation))
            loader.check_batch('reinforce.batch', cfg.batch, len(train) * cfg.samples, cfg.parts * axes.shares(mesh))
            prompts_at = loader.batches(train, cfg.batch // cfg.samples, cfg.seed)
            validation = validation[: cfg.eval_prompts]
            quality = tasks.quality if loader.simulated(self.source) else None
            reinforce.run(cfg, folder, start, prompts_at, scorer, validation, mesh, judge, quality, note)
            over = over_optimised(hosts.told(lambda: log.read_metrics(folder)))
            told = {'over_optimised': over} if over else {}
            for text in told.values():
                log.say(f'{note} {text}'.lstrip())
            return {'export': 'export'} | told | self.select(folder, start, validation, mesh)

        once(self.folder(root), self, make)
        return hf.load(self.folder(root) / 'export', dtype=self.dtype, mesh=mesh, frozen=True)

    def select(self, folder: Path, start: LM, prompts: list[Prompt], mesh: DeviceMesh) -> dict[str, Any]:
        """The paper's choice among checkpoints (App. G): those of the highest validation reward, each judged against SFT
        by a language model in both orders; here the highest win rate is taken, where the authors also looked at a dozen.
        """
        cfg = self.reinforce
        if cfg.candidates == 1:
            return {}
        asked = Evaluation(judge=self.selector, rule=self.rule, batch=cfg.batch, seed=cfg.seed)
        judge = make_judge(asked, self.task(), judge_model(asked, self.dtype, mesh), mesh)
        how = cfg.max_new_tokens, cfg.temperature, cfg.seed, cfg.batch, mesh
        theirs, rates = respond(start, prompts, *how, 'SFT'), {}
        for step in hosts.told(lambda: reinforce.candidates(folder)):
            model = hf.load(reinforce.candidate(folder, step), dtype=self.dtype, mesh=mesh, frozen=True)
            ours = respond(model, prompts, *how, f'step {step}')
            rates[step] = versus.win_rate(judge(prompts, ours, theirs))
            log.say(
                f'{loader.note(self.source)} step {step}: {self.selector} prefers it to SFT, {rates[step]}'.lstrip()
            )
        best = max(rates, key=lambda step: rates[step].value)
        log.say(f'chosen: step {best}')

        def choose() -> None:
            with paths.replacing(folder / 'export') as new:
                shutil.copytree(reinforce.candidate(folder, best), new, dirs_exist_ok=True)

        hosts.told(choose)
        return {'step': best, 'win rates': {step: rate.value for step, rate in rates.items()}}

    def task(self) -> str:
        return self.rewarded.task if self.rewarded else self.rating.task


def counted(source: str, size: int, read: Callable[[], Sequence[Any]]) -> int | None:
    """How many of `size` records there are to read; None of published data, which no plan fetches."""
    if source in loader.PUBLISHED:
        return None
    return size if loader.simulated(source) else len(read())  # simulated, they are made as they are asked for


def over_optimised(rows: Sequence[Mapping[str, Any]], least: float = 0.02, far: float = 1.0) -> str:
    """What to say of metrics whose score and quality part, '' of others. Quality is known in a simulated world only.

    That is where the score rose while quality fell by `least` and more, between any two evaluations: told of those where
    it fell most. Or where from first to last the score rose, quality did not by `least`, and KL passed `far` nats: it was
    bought for nothing. With 128 validation prompts either may be chance: what is not a fall of two standard errors is
    called perhaps one.
    """
    known = [row for row in rows if all(row.get(f'eval/{name}') is not None for name in ('score', 'quality', 'kl'))]
    spans = [(a, b) for a, b in combinations(known, 2) if b['eval/score'] > a['eval/score']]
    fall = lambda span: span[0]['eval/quality'] - span[1]['eval/quality']  # noqa: E731
    if not spans:
        return ''
    whole, worst = (known[0], known[-1]), max(spans, key=fall)
    fell = fall(worst) >= least
    flat = whole in spans and fall(whole) > -least and known[-1]['eval/kl'] >= far
    if not fell and not flat:
        return ''
    a, b = worst if fell else whole
    moved = ', '.join(
        f'{name} {a[f"eval/{name}"]:+.3f} → {b[f"eval/{name}"]:+.3f}' for name in ('score', 'quality', 'kl')
    )
    errors = [row['eval/quality_error'] for row in (a, b) if row.get('eval/quality_error') is not None]
    sure = fell and fall(worst) >= 2 * math.hypot(*errors)
    moved += f'; standard errors of quality {errors[0]:.3f} and {errors[1]:.3f}' if len(errors) == 2 else ''
    end = '' if b is known[-1] else f'; at the end, quality {known[-1]["eval/quality"]:+.3f}'
    return (
        ('' if sure else 'perhaps ')
        + f'over-optimised: from step {a["step"] + 1} to {b["step"] + 1}'
        + (f', the worst of {len(spans)} spans,' if fell and len(spans) > 1 else '')
        + f' the score rose and quality {"fell" if fell else f"not by {least}"} ({moved}){end}'
    )


def sampled_pairs(of: Optimised, root: Path, count: int, mesh: DeviceMesh) -> list[Pair]:
    """Pairs for a labeler (App. K): responses of a policy, first, and of SFT to training prompts, at temperature 1."""
    cfg, policy, start = of.reinforce, of.run(root, mesh), of.start.run(root, mesh)
    prompts = fitted(loader.source(of.source, 'train', of.train, of.task()), start, cfg.max_prompt)[:count]
    write = lambda lm, seed, name: respond(lm, prompts, cfg.max_new_tokens, 1.0, seed, cfg.batch, mesh, name)  # noqa: E731
    return list(map(Pair, prompts, write(policy, cfg.seed, 'RLHF'), write(start, cfg.seed + 1, 'SFT')))


def remembering(
    model: Model, records: Sequence[Any], texts: Callable[[Any], tuple[str, list[str]]], source: str, count: int
) -> Model:
    """The model of a run that reads `count` records, with their tokens to hand, of prompts and the responses to them, as
    `texts` names them: where it reads all of them, and they are not simulated, which are made when they are asked for.
    """
    if loader.simulated(source) or count < len(records):
        return model
    pieces = lambda record: model.tokenizer.pieces(*texts(record))  # noqa: E731
    return replace(model, tokenizer=tokens.remembering(model.tokenizer, records, pieces, loader.note(source)))


def tell_prompts(model: Model, prompts: Iterable[str], simulated: bool) -> None:
    """Says how a model reads its prompts, in its chat template or as plain text, where that is a question."""
    if simulated:
        return
    name = Path(model.name.removesuffix('/export')).name
    if told := chat.account(name, bool(model.tokenizer.hf.chat_template), prompts):
        log.say(told)


def fitted(prompts: Sequence[Prompt], lm: LM, most: int) -> Sequence[Prompt]:
    """The same prompts, those of more than `most` tokens shortened as the paper's data is."""
    return loader.fitted(prompts, loader.reads(lm.tokenizer, most))


def respond(
    lm: LM,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch: int,
    mesh: DeviceMesh,
    name: str,
) -> list[str]:
    """The responses to prompts of a policy, called by the name that reports have for it."""
    with log.progress(f'{len(prompts)} responses of {name}', math.ceil(len(prompts) / batch)) as bar:
        return generate(
            lm, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, batch=batch, mesh=mesh,
            advance=bar.advance,
        )  # fmt: skip


def test_prompts(data: Data, task: str, count: int, lm: LM, most: int) -> Sequence[Prompt]:
    """The first prompts of the test split, of `most` tokens at most."""
    return fitted(loader.source(data.source, 'test', data.test, task), lm, most)[:count]


def judge_model(cfg: Evaluation, dtype: str, mesh: DeviceMesh) -> LM | None:
    """The language model that judges; None where the judge is simulated."""
    return None if cfg.judge in ('raters', 'oracle') else hf.load(cfg.judge, dtype=dtype, mesh=mesh, frozen=True)


def make_judge(cfg: Evaluation, task: str, lm: LM | None, mesh: DeviceMesh) -> versus.Judge:
    """Simulated raters, the oracle, or a language model asked in both orders."""
    if cfg.judge == 'raters':
        return versus.raters(cfg.seed)
    if cfg.judge == 'oracle':
        return versus.oracle()
    asked = preference.Config(task=task, technique=cfg.technique, batch=cfg.batch)
    labeler = preference.make_labeler(lm, asked, mesh)

    def labels(prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[preference.Label]:
        pairs, found = list(map(Pair, prompts, firsts, seconds)), []
        with log.progress(f'{Path(cfg.judge).name} judges pairs', math.ceil(len(pairs) / cfg.batch)) as bar:
            for start in range(0, len(pairs), cfg.batch):
                found += labeler(pairs[start : start + cfg.batch])
                bar.advance()
        return found

    return versus.from_labels(labels, rule=cfg.rule)
