"""How the packaged micro models were made: from random weights, on posts and labelling prompts of the simulated world.

A training row is a tree. Its trunk is a labelling prompt up to the candidate; candidates branch off, and questions
branch off candidates; everything sees its ancestors only, so one row holds a dozen prompts at the price of one post.
The answers come from the simulated raters. The policy's own task, pleasing a labeler, is never trained here, nor is
writing a summary after `TL;DR:`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh as DeviceMesh

from experiments.plan import Stage
from experiments.scales import Data, Dtype, Mesh, Scale
from rlaif_jax import axes, log
from rlaif_jax.config import Mistake
from rlaif_jax.data import loader
from rlaif_jax.data.micro import oracle, raters, tokenizer, world
from rlaif_jax.data.records import Prompt
from rlaif_jax.labeling import direct, preference, prompts
from rlaif_jax.models import hf, transformer
from rlaif_jax.models.hf import LM
from rlaif_jax.models.presets import PRESETS
from rlaif_jax.text import Tokenizer
from rlaif_jax.training import sft
from rlaif_jax.training.state import Optimizer

__all__ = ['micro_pretrain_xs', 'micro_pretrain_s', 'micro_pretrain_l']

TASK = 'summarization'
NO_PARENT = -1


# The experiments


def micro_pretrain_xs(scale: Scale, seed: int = 0) -> Pretrain:
    """The packaged model micro_xs, stand-in for PaLM 2 XS, from random weights.

    Command: python launch/run.py --experiment=micro_pretrain_xs
    Cost, read off the run that made the weights: about 26 CPU minutes.
    1,000 validation pairs: agreement with simulated raters 72.7 % by rating, 71.8 %
    by comparison; the same position after a swap 21 %.
    """
    return Pretrain('micro_xs', scale.tldr, pretraining(1500, 2e-3, seed), seed=seed)


def micro_pretrain_s(scale: Scale, seed: int = 0) -> Pretrain:
    """The packaged model micro_s, stand-in for PaLM 2 S, from random weights.

    Command: python launch/run.py --experiment=micro_pretrain_s
    Cost, read off the run that made the weights: 15 minutes on two busy cores.
    1,000 validation pairs: agreement with simulated raters 72.5 % by rating,
    71.5 % by comparison; the same position after a swap 27 %.
    """
    return Pretrain('micro_s', scale.tldr, pretraining(600, 2e-3, seed), seed=seed)


def micro_pretrain_l(scale: Scale, seed: int = 0) -> Pretrain:
    """The packaged model micro_l, stand-in for PaLM 2 L, from random weights.

    Command: python launch/run.py --experiment=micro_pretrain_l
    Cost, estimated from a run in two pieces: about 50 CPU minutes.
    1,000 validation pairs: agreement with simulated raters 72.9 % by rating, 72.1 %
    by comparison; the same position after a swap 17 %. The packaged weights spent their first 400 steps under a cosine
    laid out for 1,300, so a run from scratch ends near these figures, not on these weights.
    """
    return Pretrain('micro_l', scale.tldr, pretraining(800, 1.5e-3, seed), seed=seed)


def pretraining(steps: int, learning_rate: float, seed: int) -> sft.Config:
    """The stage that all sizes share: rows of 416 tokens, 16 a step, AdamW with a cosine down to a tenth."""
    optimizer = Optimizer(name='adamw', learning_rate=learning_rate, warmup_steps=100, decay='cosine')
    return sft.Config(steps=steps, batch=16, optimizer=optimizer, seed=seed, save_every=200, log_every=20)


@dataclass(frozen=True)
class Curriculum:
    """What a pretraining row is made of. Weights are per token; everything else in a row has weight 0."""

    length: int = 416  # tokens of a row
    ratings: float = 0.6  # the share of rows that ask for ratings; the others ask for preferences
    answer_weight: float = 1.0  # ratings and preferences
    verdict_weight: float = 0.3  # is this fact right, wrong or missing?
    text_weight: float = 0.05  # posts and candidates, as plain next-token prediction


@dataclass
class _Row:
    """One tree being written: parallel lists over tokens, and each node's parent."""

    token: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)  # the position behind each node

    def grow(
        self,
        parent: int,
        tokens: Sequence[int],
        text_weight: float = 0.0,
        answer: int | None = None,
        weight: float = 0.0,
    ) -> int:
        """Add a node of tokens behind `parent`; its last token is asked for `answer`. Returns the node."""
        start = self.end[parent] if parent != NO_PARENT else 0
        self.parent.append(parent)
        self.end.append(start + len(tokens))
        self.token += tokens
        self.target += [*tokens[1:], answer or 0]
        self.weight += [text_weight] * (len(tokens) - 1) + [weight if answer is not None else 0.0]
        self.node += [len(self.parent) - 1] * len(tokens)
        self.position += range(start, start + len(tokens))
        return len(self.parent) - 1

    def arrays(self, length: int) -> dict[str, np.ndarray]:
        """The row padded to `length`, with its mask: a token sees what comes before it on its own path to the trunk."""
        n, nodes = len(self.token), len(self.parent)
        above = np.eye(nodes, dtype=bool)
        for i, parent in enumerate(self.parent):
            if parent != NO_PARENT:
                above[i] |= above[parent]
        node = np.array(self.node)
        mask_TS = np.zeros((length, length), bool)
        mask_TS[:n, :n] = above[node][:, node] & np.tri(n, dtype=bool)
        pad = (0, length - n)
        return {
            'token_BT': np.pad(np.array(self.token, np.int32), pad),
            'target_BT': np.pad(np.array(self.target, np.int32), pad),
            'weight_BT': np.pad(np.array(self.weight, np.float32), pad),
            'position_BT': np.pad(np.array(self.position, np.int32), pad),
            'mask_BTS': mask_TS,
        }


class Rows:
    """`rows(step) -> batch`: a function of (seed, step) alone."""

    def __init__(self, cfg: Curriculum, tokenizer: Tokenizer, batch: int, seed: int) -> None:
        self.cfg, self.tokenizer, self.batch, self.seed = cfg, tokenizer, batch, seed
        self.rating = prompts.read(TASK, 'rating')
        self.preference = prompts.read(TASK, 'base')
        one = lambda text: tokenizer.encode([text])[0]  # noqa: E731
        self.preamble = {t: t.encode_preamble(tokenizer) for t in (self.rating, self.preference)}
        self.literal = {t: tokenizer.encode(t.parts[2::2]) for t in (self.rating, self.preference)}
        self.question = {slot: one(f'\n\n{slot.upper()}:') for slot in oracle.WEIGHTS}
        self.answer = {word: one(f' {word}')[0] for word in ('right', 'wrong', 'missing', *map(str, range(1, 11)))}

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        rng = random.Random(f'curriculum/{self.seed}/{step}')
        rows = []
        for b in range(self.batch):
            prompt = world.prompt('train', step * self.batch + b)
            make = self.ratings if rng.random() < self.cfg.ratings else self.preferences
            rows.append(make(prompt, rng).arrays(self.cfg.length))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def ratings(self, prompt: Prompt, rng: random.Random) -> _Row:
        """As many candidates as fit, each with its rating and a verdict on each fact."""
        cfg, template = self.cfg, self.rating
        row, trunk = self._trunk(prompt, template)
        candidates = self._candidates(prompt, rng, 12)
        for text, tokens in zip(candidates, self._encode(candidates)):
            if len(row.token) + len(tokens) + 8 > cfg.length:
                break
            read = oracle.read(prompt.facts, text)
            node = row.grow(trunk, tokens, cfg.text_weight)
            row.grow(
                node, self.literal[template][1], 0.0, self.answer[str(oracle.rating(read.quality))], cfg.answer_weight
            )
            self._verdicts(row, node, read)
        return row

    def preferences(self, prompt: Prompt, rng: random.Random) -> _Row:
        """Candidates compared in both orders, with verdicts on the facts of those shown first."""
        cfg, template = self.cfg, self.preference
        row, trunk = self._trunk(prompt, template)
        candidates = self._candidates(prompt, rng, 4)
        encoded = self._encode(candidates)
        second, ending = self.literal[template][1:]
        for i, first in enumerate(encoded):
            if len(row.token) + len(first) + 6 > cfg.length:
                break
            node = row.grow(trunk, first, cfg.text_weight)
            self._verdicts(row, node, oracle.read(prompt.facts, candidates[i]))
            for j, other in enumerate(encoded):
                tokens = second + other + ending
                if j == i or len(row.token) + len(tokens) > cfg.length:
                    continue
                prefers_first = raters.votes([prompt], [candidates[i]], [candidates[j]], seed=rng.randrange(2**30))[0]
                row.grow(node, tokens, cfg.text_weight, self.answer['1' if prefers_first else '2'], cfg.answer_weight)
        return row

    def _trunk(self, prompt: Prompt, template: prompts.Template) -> tuple[_Row, int]:
        row = _Row()
        context = self._encode([prompts.context_of(prompt.text, TASK)])[0]
        preamble = row.grow(NO_PARENT, self.preamble[template])
        return row, row.grow(preamble, context + self.literal[template][0], self.cfg.text_weight)

    def _verdicts(self, row: _Row, node: int, read: oracle.Reading) -> None:
        for slot, verdict in read.verdicts.items():
            if len(row.token) < self.cfg.length:
                row.grow(node, self.question[slot], 0.0, self.answer[verdict], self.cfg.verdict_weight)

    def _candidates(self, prompt: Prompt, rng: random.Random, count: int) -> list[str]:
        return [world.candidate(prompt.facts, rng) for _ in range(count)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer.encode([' ' + text.strip() for text in texts])


@dataclass(frozen=True)
class Pretrain:
    """Random weights → a base model that has read posts and answers labelling prompts."""

    model: str
    data: Data
    sft: sft.Config
    curriculum: Curriculum = Curriculum()
    seed: int = 0
    evaluation_pairs: int = 1000
    mesh: Mesh = Mesh()
    dtype: Dtype = 'float32'

    def __post_init__(self) -> None:
        if self.model not in PRESETS:
            raise Mistake(f'model = {self.model!r}: no such preset; presets are {", ".join(PRESETS)}')

    def stages(self, folder: Path) -> list[Stage]:
        return [
            Stage('pretrain', folder, self.sft.steps, {'policy': self.model}, self.sft, self.curriculum.length),
            Stage('evaluation', folder, self.evaluation_pairs, {'labeler': self.model}),
        ]

    def run(self, folder: Path) -> dict[str, Any]:
        mesh = axes.make_mesh(asdict(self.mesh))
        words = Tokenizer(tokenizer.build(), (tokenizer.SPECIALS.index('<eos>'),))
        cfg = replace(PRESETS[self.model], dtype=self.dtype)
        params = axes.place(transformer.init(cfg, jax.random.key(self.seed)), mesh)
        start = LM(cfg, params, words, self.model)
        trained = sft.run(
            self.sft,
            folder,
            start,
            Rows(self.curriculum, words, self.sft.batch, self.seed),
            mesh,
            title=self.model,
            note=loader.note(self.data.source),
        )
        result = labeling_figures(trained, self.evaluation_pairs, mesh)
        columns = ['model', *result]
        log.figures_table(
            'SIMULATED world: the labeler against its raters, validation pairs',
            columns,
            [[self.model, *result.values()]],
        )
        about = (
            f'`{self.model}`: a tiny language model of a SIMULATED world, made by `micro_pretrain` from random weights.'
        )
        hf.save(trained, folder / 'package', dtype='bfloat16', about=about)
        log.say(f'half-precision copy, as packaged: {folder / "package"}')
        return {'simulated': True, **result}


def labeling_figures(lm: LM, pairs: int, mesh: DeviceMesh | None = None, split: str = 'validation') -> dict[str, float]:
    """How a labeler agrees with the simulated raters: shares in [0, 1], and the correlation of its score with quality.

    `confident` figures are on pairs whose qualities differ by more than the raters' `CLEAR`; `same_position` is how
    often the labeler prefers the same position after a swap.
    """
    chosen = [raters.pair(split, i) for i in range(pairs)]
    records, first, second = [p.prompt for p in chosen], [p.first for p in chosen], [p.second for p in chosen]
    texts = [record.text for record in records]
    better_B = np.array([p.preference for p in chosen]) > 0.5
    clear_B = np.array(raters.confident(records, first, second))
    quality = np.array([oracle.quality(records, first), oracle.quality(records, second)])
    score = np.array(
        [[r.score for r in direct.rate(lm, texts, side, task=TASK, mesh=mesh)] for side in (first, second)]
    )
    one = preference.make_single_order(lm, task=TASK, mesh=mesh)
    ab_B, ba_B = one(texts, first, second), one(texts, second, first)
    both_B = 0.5 * (ab_B + 1 - ba_B)
    agree = lambda prefers_B, where_B=slice(None): float(np.mean((prefers_B == better_B)[where_B]))  # noqa: E731
    return {
        'rating_correlation': float(np.corrcoef(score.ravel(), quality.ravel())[0, 1]),
        'rating_agreement': agree(score[0] > score[1]),
        'rating_agreement_confident': agree(score[0] > score[1], clear_B),
        'preference_agreement': agree(both_B > 0.5),
        'preference_agreement_confident': agree(both_B > 0.5, clear_B),
        'single_order_agreement': agree(ab_B > 0.5),
        'same_position': float(np.mean((ab_B > 0.5) == (ba_B > 0.5))),
    }
