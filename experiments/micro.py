"""How the packaged micro models were made: from random weights, on posts and labelling prompts of the simulated world.

A training row is a tree. Its trunk is a labelling prompt up to the candidate; candidates branch off, and questions
branch off candidates; everything sees its ancestors only, so one row holds a dozen prompts at the price of one post.
The answers come from the simulated raters. The policy's own task, pleasing a labeler, is never trained here, nor is
writing a summary after `TL;DR:`.

Whether a claim is what the post says is the hard part: a model that has not learned it rates by length and style, and
on mixed rows it does not learn it in thousands of steps. So it comes first, with one fact (`Curriculum.naming`), then
with all of them (`Curriculum.reading`), and the mix after that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh as DeviceMesh

from experiments.programs import Line
from experiments.scales import Data, Dtype, Mesh, Scale
from rlaif_jax import axes, log
from rlaif_jax.config import MOST, SAME, Mistake, check_within
from rlaif_jax.data import loader
from rlaif_jax.data.records import Prompt
from rlaif_jax.labeling import direct, preference, prompts
from rlaif_jax.micro import harmless, helpful, oracle, raters, tasks, tokenizer, world
from rlaif_jax.micro.lexicon import SLOTS
from rlaif_jax.micro.oracle import Reading
from rlaif_jax.models import hf, transformer
from rlaif_jax.models.hf import LM
from rlaif_jax.models.presets import PRESETS
from rlaif_jax.text import Tokenizer
from rlaif_jax.training import sft
from rlaif_jax.training.state import Optimizer

__all__ = ['micro_pretrain_xs', 'micro_pretrain_s', 'micro_pretrain_l']

TASK = 'summarization'
NO_PARENT = -1
Literal = Sequence[list[int]]  # the tokens of a template's literal parts


# The experiments


def micro_pretrain_xs(scale: Scale, seed: int = 0) -> Pretrain:
    """The packaged model micro_xs, stand-in for PaLM 2 XS, from random weights.

    Command: python launch/run.py --experiment=micro_pretrain_xs
    Cost: 33 minutes on 2 cores.
    1,000 validation pairs a task: agreement with simulated raters on clear pairs, by rating and by comparison, 96 and
    87 % (summaries), 82 and 70 % (helpful), 96 and 91 % (harmless); the same position after a swap 37, 57 and 52 %.
    """
    # The policy is made of it, so it sees more summaries and more ratings than the labelers.
    curriculum = Curriculum(summarization=0.7, ratings=0.55)
    return Pretrain('micro_xs', scale.tldr, pretraining(3000, 16, 2e-3, seed), curriculum, seed)


def micro_pretrain_s(scale: Scale, seed: int = 0) -> Pretrain:
    """The packaged model micro_s, stand-in for PaLM 2 S, from random weights.

    Command: python launch/run.py --experiment=micro_pretrain_s
    Cost: 60 minutes on 2 cores with other work beside it; about 40 alone.
    1,000 validation pairs a task: agreement with simulated raters on clear pairs, by rating and by comparison, 94 and
    90 % (summaries), 80 and 72 % (helpful), 96 and 94 % (harmless); the same position after a swap 38, 51 and 40 %.
    """
    return Pretrain('micro_s', scale.tldr, pretraining(3000, 16, 2e-3, seed), seed=seed)


def micro_pretrain_l(scale: Scale, seed: int = 0) -> Pretrain:
    """The packaged model micro_l, stand-in for PaLM 2 L, from random weights.

    Command: python launch/run.py --experiment=micro_pretrain_l
    Cost: 105 minutes on 2 cores with other work beside it; about 70 alone.
    1,000 validation pairs a task: agreement with simulated raters on clear pairs, by rating and by comparison, 97 and
    94 % (summaries), 88 and 82 % (helpful), 95 and 95 % (harmless); the same position after a swap 23, 30 and 23 %.
    """
    return Pretrain('micro_l', scale.tldr, pretraining(3000, 16, 1.5e-3, seed), seed=seed)


def pretraining(steps: int, batch: int, learning_rate: float, seed: int) -> sft.Config:
    """The stage that all sizes share: rows of 416 tokens, AdamW with a cosine down to a tenth."""
    optimizer = Optimizer(name='adamw', learning_rate=learning_rate, warmup_steps=100, decay='cosine')
    return sft.Config(steps=steps, batch=batch, optimizer=optimizer, seed=seed, save_every=200, log_every=20)


@dataclass(frozen=True)
class Curriculum:
    """What a pretraining row is made of. Weights are per token; everything else in a row has weight 0."""

    length: int = 416  # tokens of a row
    naming: int = 200  # so many steps at first are about claims on the relation alone
    reading: int = 1500  # up to this step rows are about what a summary claims: claims, and summaries with wrong facts
    claims: float = 0.2  # the share of such rows among those about summaries, from then on
    shots_every: int = 10  # each such step has rows of four times the length, with exemplars
    shots_batch: int = 4  # and so many of them
    summarization: float = 0.56  # the share of rows; the two dialogue tasks share the rest
    ratings: float = 0.42  # the share of rows that ask for ratings
    text: float = 0.1  # of a dialogue task's rows: plain dialogues, no labelling prompt
    answer_weight: float = 1.0  # ratings and preferences
    verdict_weight: float = 0.3  # what is this fact, is it right, wrong or missing? alone, and in rationales
    text_weight: float = 0.05  # posts and candidates, as plain next-token prediction

    def __post_init__(self) -> None:
        check_within(self, 1, MOST, 'length', 'shots_every', 'shots_batch')
        check_within(self, 0, MOST, 'naming', 'reading')
        check_within(self, 0, 1, 'claims', 'summarization', 'ratings', 'text')
        check_within(self, 0, 1e6, 'answer_weight', 'verdict_weight', 'text_weight')


@dataclass
class _Row:
    """One tree being written: parallel lists over tokens, and each node's parent."""

    length: int
    token: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)  # the position behind each node

    def room(self, tokens: int) -> bool:
        """Whether so many tokens still fit."""
        return len(self.token) + tokens <= self.length

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

    def arrays(self) -> dict[str, np.ndarray]:
        """The row padded to its length. A token sees what comes before it on its own path to the root: a node ends with the
        last one below it (`attention.Sees`), as each is grown before the next one beside it.
        """
        n, node = len(self.token), np.array(self.node)
        until = [int(np.flatnonzero(node == i)[-1]) + 1 for i in range(len(self.parent))]
        for i, parent in reversed(list(enumerate(self.parent))):
            if parent != NO_PARENT:
                until[parent] = max(until[parent], until[i])
        pad = (0, self.length - n)
        return {
            'token_BT': np.pad(np.array(self.token, np.int32), pad),
            'target_BT': np.pad(np.array(self.target, np.int32), pad),
            'weight_BT': np.pad(np.array(self.weight, np.float32), pad),
            'position_BT': np.pad(np.array(self.position, np.int32), pad),
            'until_BT': np.pad(np.array(until, np.int32)[node], pad),
        }


class Rows:
    """`rows(step) -> batch`: a function of (seed, step) alone."""

    def __init__(self, cfg: Curriculum, tokenizer: Tokenizer, batch: int, seed: int) -> None:
        self.cfg, self.tokenizer, self.batch, self.seed = cfg, tokenizer, batch, seed
        self.folder = prompts.folder_of(tokenizer)
        self.eos = tokenizer.eos
        # Each is asked for again and again.
        self.preamble = cache(lambda template: template.encode_preamble(tokenizer))
        self.literal = cache(lambda template: tokenizer.encode(template.parts[2::2]))
        self.question = cache(lambda name: tokenizer.encode([f'\n\n{name.upper()}:'])[0])
        self.word = cache(lambda word: tokenizer.encode([f' {word}'])[0][0])

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        rng = random.Random(f'curriculum/{self.seed}/{step}')
        cfg = self.cfg
        shots = step >= cfg.reading and step % cfg.shots_every == cfg.shots_every - 1
        count, length = (cfg.shots_batch, 4 * cfg.length) if shots else (self.batch, cfg.length)
        rows = [self.row(rng, step, b, length, shots).arrays() for b in range(count)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def row(self, rng: random.Random, step: int, b: int, length: int, shots: bool) -> _Row:
        """One row: the root is a preamble, and below it stand as many posts as fit, each with its candidates."""
        cfg, draw, index = self.cfg, rng.random(), step * self.batch + b
        reads = step < cfg.reading
        task = 'summarization' if reads or draw < cfg.summarization else 'helpful' if rng.random() < 0.5 else 'harmless'
        row = _Row(length)
        if task != 'summarization' and not shots and rng.random() < cfg.text:
            while self.dialogue(row, tasks.prompt(task, 'train', index), rng):
                index += 1_000_003
            return row
        if reads or (task == 'summarization' and not shots and rng.random() < cfg.claims):
            template = prompts.single(task, 'rating', self.folder)
            slots = SLOTS[:1] if step < cfg.naming else SLOTS
            grow = partial(self.claims, slots) if step < cfg.naming or b % 2 else self.misread
        elif not shots and rng.random() < cfg.ratings:
            purpose = 'harm' if task == 'harmless' and rng.random() < 0.2 else 'rating'
            template, grow = prompts.single(task, purpose, self.folder), getattr(self, purpose)
        else:
            preamble, cot = rng.choice(('base', 'detailed')), rng.choice(('', '_cot'))
            count = rng.choice((1, 1, 2, 2, 8)) if shots else 0
            asked = prompts.pair(task, f'{preamble}{cot}_{count}shot', self.folder)
            template, grow = asked.verdict, self.explained if cot else self.preference
        root = row.grow(NO_PARENT, self.preamble(template))
        literal = self.literal(template)
        while True:
            prompt = tasks.prompt(task, 'train', index)
            context = self.encode([template.context(prompt.text)])[0] + literal[0]
            if not row.room(len(context) + 60):
                return row
            trunk = row.grow(root, context, cfg.text_weight)
            end = min(length, len(row.token) + cfg.length // 2) if shots else length
            grow(row, trunk, literal[1:], prompt, rng, end)
            index += 1_000_003  # another post of the split

    def claims(
        self,
        slots: Sequence[str],
        row: _Row,
        trunk: int,
        literal: Literal,
        prompt: Prompt,
        rng: random.Random,
        end: int,
    ) -> None:
        """Each fact in a summary's words; then claims about facts, half of them wrong, each with its verdict twice: at
        its last word, where it is learned first, and behind the question.
        """
        self.recite(slots, row, trunk, prompt, rng)
        while True:
            slot = rng.choice(slots)
            right = rng.random() < 0.5
            value = prompt.facts[slot] if right else world.wrong_value(rng, prompt.facts, slot)
            tokens = self.encode([world.wording(rng, slot, value)])[0]
            question = self.question(slot)
            if len(row.token) + len(question) + len(tokens) > end:
                return
            answer = self.word('right' if right else 'wrong')
            claim = row.grow(trunk, tokens, 0.0, answer, self.cfg.verdict_weight)
            row.grow(claim, question, 0.0, answer, self.cfg.verdict_weight)

    def misread(self, row: _Row, trunk: int, literal: Literal, prompt: Prompt, rng: random.Random, end: int) -> None:
        """Each fact in a summary's words; then well-made summaries by someone who misread the post, as `rating`."""
        self.recite(SLOTS, row, trunk, prompt, rng)
        self.rated(row, trunk, literal, prompt, [world.misread(prompt.facts, rng) for _ in range(12)], end)

    def recite(self, slots: Sequence[str], row: _Row, trunk: int, prompt: Prompt, rng: random.Random) -> None:
        said = [world.wording(rng, slot, prompt.facts[slot]) for slot in slots]
        for slot, tokens in zip(slots, self.encode(said)):
            asked = row.grow(trunk, self.question(slot), 0.0, tokens[0], self.cfg.verdict_weight)
            row.grow(asked, tokens, self.cfg.verdict_weight)

    def rating(self, row: _Row, trunk: int, literal: Literal, prompt: Prompt, rng: random.Random, end: int) -> None:
        """Candidates, each with its rating and a verdict on each fact."""
        self.rated(row, trunk, literal, prompt, [tasks.candidate(prompt, rng) for _ in range(12)], end)

    def rated(
        self,
        row: _Row,
        trunk: int,
        literal: Literal,
        prompt: Prompt,
        texts: Sequence[str],
        end: int,
        answer: Callable[[Any], str] = lambda read: str(oracle.rating(read.quality)),
    ) -> None:
        """Texts, each with the `answer` to what is asked of it and a verdict on each fact."""
        for text, tokens in zip(texts, self.encode(texts)):
            if len(row.token) + len(tokens) + 8 > end:
                break
            read = tasks.read(prompt, text)
            node = row.grow(trunk, tokens, self.cfg.text_weight)
            row.grow(node, literal[0], 0.0, self.word(answer(read)), self.cfg.answer_weight)
            self.verdicts(row, node, read)

    def harm(self, row: _Row, trunk: int, literal: Literal, prompt: Prompt, rng: random.Random, end: int) -> None:
        """Candidates, each with the answer to whether it is harmful."""
        asked = lambda read: 'yes' if read.harm else 'no'  # noqa: E731
        self.rated(row, trunk, literal, prompt, [tasks.candidate(prompt, rng) for _ in range(12)], end, asked)

    def preference(self, row: _Row, trunk: int, literal: Literal, prompt: Prompt, rng: random.Random, end: int) -> None:
        """Candidates compared in both orders, with verdicts on the facts of those shown first."""
        between, ending = literal
        texts = [tasks.candidate(prompt, rng) for _ in range(4)]
        encoded, reads = self.encode(texts), [tasks.read(prompt, text) for text in texts]
        for i, first in enumerate(encoded):
            if len(row.token) + len(first) + 6 > end:
                break
            node = row.grow(trunk, first, self.cfg.text_weight)
            self.verdicts(row, node, reads[i])
            for j, other in enumerate(encoded):
                tokens = between + other + ending
                if j == i or len(row.token) + len(tokens) > end:
                    continue
                answer = self.chosen(prompt, reads[i], reads[j], rng)
                row.grow(node, tokens, self.cfg.text_weight, answer, self.cfg.answer_weight)

    def explained(self, row: _Row, trunk: int, literal: Literal, prompt: Prompt, rng: random.Random, end: int) -> None:
        """Pairs, each with its rationale and the verdict behind it."""
        between, cot, ending = literal
        while True:
            texts = [tasks.candidate(prompt, rng) for _ in range(2)]
            first, second = self.encode(texts)
            reads = [tasks.read(prompt, text) for text in texts]
            rationale = self.encode([rationale_of(reads)])[0]
            if len(row.token) + sum(map(len, (first, between, second, cot, rationale, ending))) > end:
                return
            pair = row.grow(trunk, first + between + second, self.cfg.text_weight)
            asked = row.grow(pair, cot, 0.0, rationale[0], self.cfg.verdict_weight)
            told = row.grow(asked, rationale, self.cfg.verdict_weight, self.eos, self.cfg.verdict_weight)
            answer = self.chosen(prompt, *reads, rng)
            row.grow(told, ending, 0.0, answer, self.cfg.answer_weight)

    def dialogue(self, row: _Row, prompt: Prompt, rng: random.Random) -> bool:
        """A prompt as a policy reads it, with responses of average quality. False where it does not fit."""
        *context, last = self.tokenizer.encode([prompt.text])[0]
        module = {'helpful': helpful, 'harmless': harmless}[prompt.facts['task']]
        responses = self.encode([module.reference(prompt.facts, rng) for _ in range(3)])
        if not row.room(len(context) + sum(map(len, responses)) + 3):
            return False
        trunk = row.grow(NO_PARENT, context, self.cfg.text_weight)
        for tokens in responses:  # each branch starts with the prompt's last token, where the first word is learned
            row.grow(trunk, [last, *tokens], self.cfg.verdict_weight, self.eos, self.cfg.verdict_weight)
        return True

    def chosen(self, prompt: Prompt, first: Reading, second: Reading, rng: random.Random) -> int:
        """The answer of three raters' majority to the pair prompt, which may ask for the worse one."""
        task = prompt.facts.get('task', 'summarization')
        p = 1 / (1 + math.exp(-raters.SLOPE * (first.quality - second.quality)))
        first_is_better = sum(rng.random() < p for _ in range(3)) >= 2
        return self.word('1' if first_is_better != prompts.TASKS[task].asks_for_worse else '2')

    def verdicts(self, row: _Row, node: int, read: Reading) -> None:
        for name, verdict in read.verdicts.items():
            question = self.question(name)
            if row.room(len(question)):
                row.grow(node, question, 0.0, self.word(verdict), self.cfg.verdict_weight)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer.encode([' ' + text.strip() for text in texts], behind=True)


def rationale_of(readings: Sequence[Reading]) -> str:
    """What a labeler of this world is taught to say before its verdict: the findings on both candidates."""
    found = (' '.join(f'{name} {verdict}' for name, verdict in read.verdicts.items()) for read in readings)
    return ' '.join(f'{side} {words}.' for side, words in zip(('first', 'second'), found))


@dataclass(frozen=True)
class Pretrain:
    """Random weights → a base model that has read posts and answers labelling prompts."""

    model: str  # which of the packaged ones
    data: Data
    sft: sft.Config
    curriculum: Curriculum = Curriculum()
    seed: int = 0  # of the texts, and of the first parameters
    evaluation_pairs: int = 1000  # of each task, on which the labeler is measured
    evaluation_batch: int = 64  # of them at once
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products; what is trained stays float32

    def __post_init__(self) -> None:
        if self.model not in PRESETS:
            raise Mistake(f'model = {self.model!r}: no such preset; presets are {", ".join(PRESETS)}')
        check_within(self, 0, MOST, 'seed')
        check_within(self, 1, MOST, 'evaluation_pairs', 'evaluation_batch')
        if not loader.find(self.data.source).simulated:
            raise Mistake(
                f'the packaged models are made of the simulated world, not of {self.data.source}: --scale=micro'
            )

    def lines(self, folder: Path) -> list[Line]:
        return [
            Line('pretrain', folder, self.sft.steps, {'policy': self.model}, self.sft, self.curriculum.length),
            Line('evaluation', folder, self.evaluation_pairs, {'labeler': self.model}),
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
            note=loader.find(self.data.source).note,
        )
        result = labeling_figures(trained, self.evaluation_pairs, self.evaluation_batch, mesh)
        log.figures_table(
            f'SIMULATED world: {self.model} against its raters, {self.evaluation_pairs} validation pairs a task',
            ['task', *next(iter(result.values()))],
            [[task, *(f'{figure:.3f}' for figure in figures.values())] for task, figures in result.items()],
        )
        about = (
            f'`{self.model}`: a tiny language model of a SIMULATED world, made by `micro_pretrain` from random weights.'
        )
        hf.save(trained, folder / 'package', dtype='bfloat16', about=about)
        log.say(f'half-precision copy, as packaged: {folder / "package"}')
        return {'simulated': True, **result}


def labeling_figures(
    lm: LM, pairs: int, batch: int = 64, mesh: DeviceMesh | None = None
) -> dict[str, dict[str, float]]:
    """How a labeler agrees with the simulated raters on validation pairs of each task: shares in [0, 1].

    By rating both responses, and by comparing them in both orders; `clear` is on pairs whose qualities differ by more
    than the raters' `CLEAR`; `same position` is how often it prefers the same position after a swap.
    """
    result = {}
    for task in tasks.TASKS:
        chosen = [raters.pair('validation', i, task) for i in range(pairs)]
        sides = list(zip(*((pair.first, pair.second) for pair in chosen)))
        better_B = np.array([pair.preference for pair in chosen]) > 0.5
        clear_B = np.array(raters.confident([pair.prompt for pair in chosen], *sides))
        texts = [pair.prompt.text for pair in chosen]
        first_B, second_B = (
            np.array([rating.score for rating in direct.rate(lm, texts, side, task=task, batch=batch, mesh=mesh)])
            for side in sides
        )
        labels = preference.make_labeler(lm, preference.Config(task, 'base_0shot', batch=batch), mesh)(chosen)
        rated_B = (first_B > second_B) == better_B
        compared_B = (np.array([label.preference for label in labels]) > 0.5) == better_B
        result[task] = {
            'rating': float(rated_B.mean()),
            'rating, clear': float(rated_B[clear_B].mean()),
            'comparison': float(compared_B.mean()),
            'comparison, clear': float(compared_B[clear_B].mean()),
            'same position': float(np.mean([label.same_position for label in labels])),
        }
    return result
