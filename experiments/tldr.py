"""Summarization: the paper's experiments on Reddit TL;DR.

Published win rates are those of human raters (arXiv 2309.00267, Table 1), raw and at equal length.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh as DeviceMesh

from experiments.plan import Stage
from experiments.scales import Data, Dtype, Evaluation, Mesh, Scale
from rlaif_jax import axes, checkpoint, log
from rlaif_jax.config import Bindings, dump, over, product
from rlaif_jax.data import loader
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.evaluation import win_rate
from rlaif_jax.generation import generate
from rlaif_jax.labeling import direct, preference
from rlaif_jax.models import hf
from rlaif_jax.models.hf import LM
from rlaif_jax.training import reinforce, sft

__all__ = ['tldr_sft', 'tldr_direct']

TASK = 'summarization'


# The experiments


def tldr_sft(scale: Scale, seed: int = 0) -> SFT:
    """The SFT policy: the smallest base model fine-tuned on reference summaries; where all RL starts (App. G).

    Command: python launch/run.py --experiment=tldr_sft
    Cost at micro scale: a minute on 2 cores.
    Expect: its summaries and the references are preferred about equally often; it imitates them, faults included.
    """
    return SFT(
        policy=scale.xs,
        data=scale.tldr,
        max_prompt=scale.reinforce.max_prompt,
        max_new_tokens=scale.reinforce.max_new_tokens,
        sft=replace(scale.sft, seed=seed),
        evaluation=replace(scale.evaluation, seed=seed),
        mesh=scale.mesh,
        dtype=scale.dtype,
    )


def tldr_direct(scale: Scale, seed: int = 0) -> Direct:
    """Direct RLAIF: REINFORCE on the labeler's own ratings, no reward model (§2.2.2, §4.3; Table 1, 'd-RLAIF vs SFT').

    Command: python launch/run.py --experiment=tldr_direct
    Cost at micro scale: about 5 minutes on 2 cores, the SFT policy included.
    Published: preferred to SFT in 74 % of comparisons, 65 % at equal length.
    Simulated, micro scale, seeds 0 to 2: 82 to 83 %, 79 to 83 % at equal length.
    """
    return Direct(
        policy=scale.xs,
        labeler=scale.labeler,
        data=scale.tldr,
        sft=replace(scale.sft, seed=seed),
        rating=scale.rating,
        reinforce=replace(scale.reinforce, seed=seed),
        evaluation=replace(scale.evaluation, seed=seed),
        mesh=scale.mesh,
        dtype=scale.dtype,
    )


def sweep_beta() -> list[Bindings]:
    """How much the KL to SFT should cost, over three seeds (the paper's choice is 0.05, App. G).

    Command: python launch/sweep.py --experiment=tldr_direct --sweep=beta
    """
    return product(over('reinforce.beta', (0.0, 0.05, 0.2)), over('seed', range(3)))


# What they run


@dataclass(frozen=True)
class SFT:
    """References → SFT policy, then the policy against the references."""

    policy: str
    data: Data
    max_prompt: int
    max_new_tokens: int
    sft: sft.Config
    evaluation: Evaluation
    mesh: Mesh
    dtype: Dtype

    def stages(self, folder: Path) -> list[Stage]:
        return [
            supervised(self).stage(folder.parent),
            Stage('evaluation', folder, self.evaluation.prompts, judges(self.evaluation)),
        ]

    def run(self, folder: Path) -> dict[str, Any]:
        mesh = axes.make_mesh(asdict(self.mesh))
        policy = supervised(self).run(folder.parent, mesh)
        checkpoint.link(supervised(self).stage(folder.parent).folder, folder)
        prompts = test_prompts(self)
        ours = respond(policy, prompts, self.max_new_tokens, self.evaluation, mesh)
        theirs = [prompt.reference for prompt in prompts]
        samples = [
            {'step': self.sft.steps, 'prompt': prompt.text, 'response': response, 'reference': prompt.reference}
            for prompt, response in zip(prompts[:16], ours)
        ]
        log.write_whole(folder / 'samples.jsonl', ''.join(log.to_json(row) + '\n' for row in samples))
        return report(self, folder, prompts, {'SFT': ours, 'reference': theirs}, [('SFT', 'reference', None)], mesh)


@dataclass(frozen=True)
class Direct:
    """References → SFT policy → REINFORCE on the labeler's ratings → the policy against SFT."""

    policy: str
    labeler: str
    data: Data
    sft: sft.Config
    rating: direct.Config
    reinforce: reinforce.Config
    evaluation: Evaluation
    mesh: Mesh
    dtype: Dtype

    def stages(self, folder: Path) -> list[Stage]:
        cfg = self.reinforce
        models = {'policy': self.policy, 'value': self.policy, 'reference': self.policy, 'labeler': self.labeler}
        return [
            supervised(self).stage(folder.parent),
            Stage('reinforce', folder, cfg.steps, models, cfg, cfg.max_prompt + cfg.max_new_tokens),
            Stage('evaluation', folder, self.evaluation.prompts, judges(self.evaluation)),
        ]

    def run(self, folder: Path) -> dict[str, Any]:
        mesh = axes.make_mesh(asdict(self.mesh))
        start = supervised(self).run(folder.parent, mesh)
        scorer = direct.make_scorer(hf.load(self.labeler, dtype=self.dtype, mesh=mesh), self.rating, mesh)
        train = loader.source(self.data.source, 'train', self.data.train)
        validation = loader.source(self.data.source, 'validation', self.data.validation)
        policy = reinforce.run(
            self.reinforce,
            folder,
            start,
            loader.batches(train, self.reinforce.batch, self.reinforce.seed),
            scorer,
            [validation[i] for i in range(min(self.reinforce.eval_prompts, len(validation)))],
            mesh,
            judge=make_judge(self.evaluation, self.dtype, mesh),
            note=loader.note(self.data.source),
        )
        prompts = test_prompts(self)
        texts = {
            name: respond(lm, prompts, self.reinforce.max_new_tokens, self.evaluation, mesh)
            for name, lm in (('d-RLAIF', policy), ('SFT', start))
        }
        return report(self, folder, prompts, texts, [('d-RLAIF', 'SFT', (74, 65))], mesh)


# The pieces


@dataclass(frozen=True)
class Supervised:
    """What determines the SFT policy, down to the weights it starts from: experiments that need the same one share it."""

    policy: str
    fingerprint: str  # of the weights behind that name
    source: str
    train: int
    max_prompt: int
    max_new_tokens: int
    sft: sft.Config
    dtype: Dtype

    def stage(self, root: Path) -> Stage:
        folder, length = checkpoint.stage_folder(root, 'sft', self), self.max_prompt + self.max_new_tokens
        return Stage('sft', folder, self.sft.steps, {'policy': self.policy}, self.sft, length)

    def run(self, root: Path, mesh: DeviceMesh) -> LM:
        """The policy, trained now or read from where an earlier run left it."""
        folder = self.stage(root).folder
        with checkpoint.lock(folder):
            checkpoint.open_folder(folder, dump(self))
            if checkpoint.finished(folder) is None:
                lm = hf.load(self.policy, dtype=self.dtype, mesh=mesh)
                prompts_at = loader.batches(
                    loader.source(self.source, 'train', self.train), self.sft.batch, self.sft.seed
                )
                sft.run(
                    self.sft,
                    folder,
                    lm,
                    lambda step: self.batch(lm, prompts_at(step)),
                    mesh,
                    note=loader.note(self.source),
                )
                checkpoint.finish(folder, {'export': 'export'})
            else:
                log.say(f'sft: already there, in {folder}')
        return hf.load(folder / 'export', dtype=self.dtype, mesh=mesh)

    def batch(self, lm: LM, prompts: list[Prompt]) -> dict[str, np.ndarray]:
        """Prompts with their references, a space before and the end token behind."""
        tokenizer = lm.tokenizer
        before = [
            [*tokenizer.start, *row][: self.max_prompt] for row in tokenizer.encode([prompt.text for prompt in prompts])
        ]
        after = [
            [*row[: self.max_new_tokens - 1], tokenizer.eos]
            for row in tokenizer.encode([' ' + prompt.reference.strip() for prompt in prompts], behind=True)
        ]
        longest = max(len(a) + len(b) for a, b in zip(before, after))
        return sft.example_batch(before, after, -(-longest // 32) * 32, tokenizer.pad)


def supervised(cfg: SFT | Direct) -> Supervised:
    """The SFT stage that an experiment starts from."""
    lengths = cfg if isinstance(cfg, SFT) else cfg.reinforce
    return Supervised(
        policy=cfg.policy,
        fingerprint=hf.fingerprint(cfg.policy),
        source=cfg.data.source,
        train=cfg.data.train,
        max_prompt=lengths.max_prompt,
        max_new_tokens=lengths.max_new_tokens,
        sft=cfg.sft,
        dtype=cfg.dtype,
    )


def test_prompts(cfg: SFT | Direct) -> list[Prompt]:
    source = loader.source(cfg.data.source, 'test', cfg.data.test)
    return [source[i] for i in range(min(cfg.evaluation.prompts, len(source)))]


def respond(lm: LM, prompts: list[Prompt], max_new_tokens: int, cfg: Evaluation, mesh: DeviceMesh) -> list[str]:
    """A policy's responses to the test prompts; every policy gets the same randomness."""
    texts = [prompt.text for prompt in prompts]
    with log.console().status(f'{len(texts)} responses of {lm.name}'):
        return generate(
            lm,
            texts,
            max_new_tokens=max_new_tokens,
            temperature=cfg.temperature,
            seed=cfg.seed,
            batch=cfg.batch,
            mesh=mesh,
        )


def judges(cfg: Evaluation) -> dict[str, str]:
    """The models that evaluation loads: none where the judge is simulated."""
    return {} if cfg.judge in ('raters', 'oracle') else {'judge': cfg.judge}


def make_judge(cfg: Evaluation, dtype: Dtype, mesh: DeviceMesh) -> win_rate.Judge:
    """Simulated raters, the oracle, or a language model asked in both orders."""
    if cfg.judge == 'raters':
        return win_rate.raters(cfg.seed)
    if cfg.judge == 'oracle':
        return win_rate.oracle()
    asked = preference.Config(task=TASK, technique='base_0shot', batch=cfg.batch)
    labeler = preference.make_labeler(hf.load(cfg.judge, dtype=dtype, mesh=mesh), asked, mesh)
    return win_rate.from_labels(lambda prompts, firsts, seconds: labeler(list(map(Pair, prompts, firsts, seconds))))


def report(
    cfg: SFT | Direct,
    folder: Path,
    prompts: list[Prompt],
    texts: dict[str, list[str]],
    comparisons: list[tuple[str, str, tuple[int, int] | None]],
    mesh: DeviceMesh,
) -> dict[str, Any]:
    """Judge policies against each other, print the tables, and return what goes into result.json."""
    simulated = loader.simulated(cfg.data.source)
    config = win_rate.Config(confidence=cfg.evaluation.confidence)
    judging = {cfg.evaluation.judge: make_judge(cfg.evaluation, cfg.dtype, mesh)}
    if simulated:
        judging['oracle'] = win_rate.oracle()
    rows, result = [], {'simulated': simulated, 'comparisons': []}
    for a, b, published in comparisons:
        for judge_name, judge in judging.items():
            found = win_rate.compare(prompts, texts[a], texts[b], judge, config, names=(a, b))
            paper = f'{published[0]} % / {published[1]} %' if published and judge_name == cfg.evaluation.judge else '–'
            shown = found.row()
            rows.append(
                [
                    shown['comparison'],
                    judge_name,
                    shown['win rate'],
                    shown['at equal length'],
                    shown['characters'],
                    shown['p'],
                    paper,
                ]
            )
            result['comparisons'].append({'judge': judge_name, **found.as_dict()})
    note = (
        'SIMULATED world: posts, policies, raters and oracle are all artificial'
        if simulated
        else f'n = {len(prompts)} test prompts'
    )
    columns = [
        'comparison',
        'judge',
        'win rate',
        'at equal length',
        'characters',
        'p',
        'paper (people): raw / equal length',
    ]
    log.figures_table(note, columns, rows)
    samples = [{'prompt': p.text, **{name: texts[name][i] for name in texts}} for i, p in enumerate(prompts[:16])]
    log.write_whole(folder / 'test_samples.jsonl', ''.join(log.to_json(row) + '\n' for row in samples))
    return result
