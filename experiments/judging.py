"""Finished policies answer, and somebody says which answer is better: simulated raters or an oracle, or a language model.

Also what judges during training: who chooses among checkpoints, and the pairs that policies write for a labeler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh as DeviceMesh

from experiments.label import judges
from experiments.programs import Line, Read
from experiments.scales import Data, Evaluation
from experiments.stages import Optimised
from rlaif_jax import hosts, log
from rlaif_jax.data import loader
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.data.source import World
from rlaif_jax.evaluation import harmless, versus
from rlaif_jax.evaluation.statistics import Interval
from rlaif_jax.generation import generate
from rlaif_jax.labeling import direct, labelers, preference
from rlaif_jax.labeling.scoring import Model
from rlaif_jax.models import hf
from rlaif_jax.models.hf import LM
from rlaif_jax.shortening import reads
from rlaif_jax.training import reinforce

# Answers


def test_prompts(data: Data, task: str, count: int, lm: LM, most: int) -> Sequence[Prompt]:
    """The first prompts of the test split, of `most` tokens at most."""
    return loader.fitted(loader.source(data.source, 'test', data.test, task), reads(lm.tokenizer, most))[:count]


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


def sampled_pairs(of: Optimised, policy: LM, start: LM, count: int, mesh: DeviceMesh) -> list[Pair]:
    """Pairs for a labeler (App. K): responses of a policy, first, and of SFT to training prompts, at temperature 1."""
    cfg = of.reinforce
    fits = reads(start.tokenizer, cfg.max_prompt)
    prompts = loader.fitted(loader.source(of.source, 'train', of.train, of.task), fits)[:count]
    write = lambda lm, seed, name: respond(lm, prompts, cfg.max_new_tokens, 1.0, seed, cfg.batch, mesh, name)  # noqa: E731
    return list(map(Pair, prompts, write(policy, cfg.seed, 'RLHF'), write(start, cfg.seed + 1, 'SFT')))


# Judges


def models(cfg: Evaluation) -> dict[str, str]:
    """The models that evaluation loads: none where the judge is simulated."""
    return {} if cfg.simulated else {'judge': cfg.judge}


def line(cfg: Evaluation, folder: Path, policies: dict[str, str], length: int) -> Line:
    """The line of a plan for an evaluation: policies write, responses and prompts of up to `length` tokens, and a judge,
    where it is a model, reads each pair in both orders.
    """
    calls, tail = cfg.prompts / cfg.batch, max(length // 9, 1)  # the paper's are 1,024 and 128 tokens
    reads = [Read(role, 'writes', cfg.batch, length - tail, tail, calls=calls) for role in policies]
    if not cfg.simulated:
        asked = preference.Config(technique=cfg.technique, batch=cfg.batch)
        reads += judges('judge', cfg.judge, asked, calls * max(len(policies), 1))
    return Line('evaluation', folder, cfg.prompts, policies | models(cfg), reads=tuple(reads))


def judge_model(cfg: Evaluation, dtype: str, mesh: DeviceMesh) -> Model | None:
    """The language model that judges; None where the judge is simulated."""
    return None if cfg.simulated else labelers.load(cfg.judge, dtype=dtype, mesh=mesh)


def make_judge(
    cfg: Evaluation, task: str, lm: Model | None, mesh: DeviceMesh, world: World | None = None
) -> versus.Judge:
    """Raters or the oracle of a simulated world, or a language model asked in both orders."""
    if cfg.simulated:
        return oracle(world) if cfg.judge == 'oracle' else world.raters(cfg.seed)
    asked = preference.Config(task=task, technique=cfg.technique, batch=cfg.batch)
    labeler = preference.make_labeler(lm, asked, mesh)

    def labels(prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[preference.Label]:
        pairs, found = list(map(Pair, prompts, firsts, seconds)), []
        with log.progress(f'{labelers.title(cfg.judge)} judges pairs', math.ceil(len(pairs) / cfg.batch)) as bar:
            for start in range(0, len(pairs), cfg.batch):
                found += labeler(pairs[start : start + cfg.batch])
                bar.advance()
        return found

    return versus.from_labels(labels, rule=cfg.rule)


def oracle(world: World) -> versus.Judge:
    """The response of higher quality wins."""
    return versus.from_quality(world.quality)


def make_harm_judge(cfg: Evaluation, lm: Model | None, mesh: DeviceMesh, world: World | None) -> harmless.HarmJudge:
    """Who says whether a response does harm: the oracle of a simulated world, else the language model that judges."""
    if world:
        return world.harmless
    return harmless.from_probability(direct.make_harm_judge(lm, direct.Config('harmless', batch=cfg.batch), mesh))


def rates(of: Optimised, folder: Path, start: LM, prompts: Sequence[Prompt], mesh: DeviceMesh) -> dict[int, Interval]:
    """How often a language model, asked in both orders, prefers each of the checkpoints in `folder` to where it started."""
    cfg, note = of.reinforce, loader.find(of.source).note
    asked = Evaluation(judge=of.selector, rule=of.rule, batch=cfg.batch, seed=cfg.seed)
    judge = make_judge(asked, of.task, judge_model(asked, of.dtype, mesh), mesh)
    how = cfg.max_new_tokens, cfg.temperature, cfg.seed, cfg.batch, mesh
    theirs, found = respond(start, prompts, *how, 'SFT'), {}
    for step in hosts.told(lambda: reinforce.candidates(folder)):
        model = hf.load(reinforce.candidate(folder, step), dtype=of.dtype, mesh=mesh, frozen=True)
        ours = respond(model, prompts, *how, f'step {step}')
        found[step] = versus.win_rate(judge(prompts, ours, theirs))
        log.say(f'{note} step {step}: {of.selector} prefers it to SFT, {found[step]}'.lstrip())
    return found
