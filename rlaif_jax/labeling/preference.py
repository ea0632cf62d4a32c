"""The preference labeler: which of two responses is better, asked in both orders and averaged (§2.1 of the paper).

    preference = ½ · P(first is better | first shown first) + ½ · P(first is better | first shown second)

P is over the two answers only. Averaging both orders removes what the labeler feels for a position. With chain of
thought a rationale is decoded first, in each order, and stands in the prompt of the verdict (§2.1.2); with several
samples their distributions are averaged (self-consistency, App. M). The verdict is read from logits, never from text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rlaif_jax import axes
from rlaif_jax.config import bind
from rlaif_jax.data.records import Pair
from rlaif_jax.generation import extend
from rlaif_jax.labeling import prompts as templates
from rlaif_jax.labeling.prompts import Asked, Technique
from rlaif_jax.labeling.scoring import Scorer, read_answers
from rlaif_jax.labeling.store import Record, Store, complete, key
from rlaif_jax.models.hf import LM, fingerprint, load
from rlaif_jax.models.presets import resolve
from rlaif_jax.text import Tokenizer

ORDERS = 2  # as given, and swapped


@dataclass(frozen=True)
class Config:
    """How the preference labeler asks, and when an answer is none."""

    task: str = 'summarization'
    technique: str = 'detailed_cot_0shot'  # (base|detailed)[_cot]_<exemplars>shot
    templates: str = ''  # a folder; '' for the checkpoint's own, or ours
    samples: int = 1  # rationales in each order; 1 is decoded greedily, more are sampled
    temperature: float = 0.7  # of more than one rationale
    top_k: int = 40  # of more than one rationale; 0: all
    max_rationale: int = 512  # tokens
    least_mass: float = 0.2  # of the two answers together, in either order; below it a pair is unscorable
    batch: int = 64  # pairs at once
    seed: int = 0

    def __post_init__(self) -> None:
        if self.task not in templates.TASKS:
            raise ValueError(f'task = {self.task!r}: tasks are {", ".join(templates.TASKS)}')
        cot = Technique.parse(self.technique).cot
        if self.samples < 1 or self.batch < 1 or self.max_rationale < 1 or self.top_k < 0 or self.temperature < 0:
            raise ValueError('samples, batch and max_rationale must be positive, top_k and temperature not negative')
        if self.samples > 1 and not cot:
            raise ValueError(f'samples = {self.samples} needs a chain of thought; {self.technique} has none')
        if not 0 <= self.least_mass < 1:
            raise ValueError('least_mass must be in [0, 1)')

    @property
    def sampling(self) -> str:
        """The part of a label's provenance that is about rationales: '' where nothing is sampled."""
        if self.samples == 1:
            return ''
        return f'{self.samples} samples, temperature {self.temperature}, top-k {self.top_k}, seed {self.seed}'


@dataclass(frozen=True)
class Label:
    """What the labeler thinks of a pair. All preferences are P(the first response of the pair is better)."""

    preference: float  # both orders averaged; NaN where unscorable
    first_shown: float  # when the first response was shown first
    second_shown: float  # when it was shown second
    mass: float  # what the two answers held before renormalising; the least over all prompts
    status: str  # 'ok' | 'unscorable'
    rationales: tuple[str, ...] = ()  # as given, then swapped; of each sample
    neutralised: int = 0  # places in its texts that looked like the prompt's structure
    shortened: int = 0  # characters of the context left out
    tokens: int = 0  # of all prompts and rationales, as if each were read whole

    @property
    def position_bias(self) -> float:
        """P(the one shown first is better) − ½, averaged over both orders; in [-½, ½]."""
        return (self.first_shown - self.second_shown) / 2

    @property
    def same_position(self) -> bool:
        """Whether the labeler preferred the same position in both orders."""
        return (self.first_shown > 0.5) != (self.second_shown > 0.5)

    @property
    def rationale(self) -> str:
        """The first rationale; '' without chain of thought."""
        return self.rationales[0] if self.rationales else ''

    @property
    def weight(self) -> float:
        """What the label counts in training: 0 where unscorable."""
        return float(self.status == 'ok')


Labeler = Callable[[Sequence[Pair]], list[Label]]


def ask(tokenizer: Tokenizer, cfg: Config) -> Asked:
    """The prompts that a labeler with this tokenizer is asked with. Raises `Mistake` for a missing template."""
    folder = templates.folder_of(tokenizer, cfg.templates)
    return templates.pair(cfg.task, cfg.technique, folder, tokenizer.turn)


def make_labeler(lm: LM, cfg: Config, mesh: Mesh | None = None) -> Labeler:
    """`pairs -> labels`, with the preamble and its exemplars read once, and each context once for both orders.

    A label depends on its pair alone, except for the noise of sampled rationales, which is drawn for a call as a whole.
    Raises `Mistake` for a pair that does not fit the model even without its context.
    """
    mesh = mesh or axes.make_mesh()
    asked, tokenizer = ask(lm.tokenizer, cfg), lm.tokenizer
    # The harmless prompt asks which one is worse: then '2' is the answer that prefers the one shown first.
    better = ('2', '1') if templates.TASKS[cfg.task].asks_for_worse else ('1', '2')
    preamble = asked.verdict.encode_preamble(tokenizer)
    scorer = Scorer(lm, preamble, read_answers(tokenizer, better), mesh, batch=cfg.batch)

    def reason(samples: Sequence[dict[str, str]]) -> list[str]:
        """A rationale for each sample's prompt."""
        rows = [one.tokens for one in asked.rationale.encode(tokenizer, samples, scorer.room - cfg.max_rationale)]
        greedy = cfg.samples == 1
        written = extend(
            lm, rows, max_new_tokens=cfg.max_rationale, temperature=0.0 if greedy else cfg.temperature,
            top_k=0 if greedy else cfg.top_k, seed=_seed(cfg.seed, rows), batch=ORDERS * cfg.batch, mesh=mesh,
            prefix=scorer.prefix,
        )  # fmt: skip
        # A labeler that goes on to its verdict is cut there: verdicts are read from logits.
        ending = asked.verdict.parts[-1].strip()
        return [text.partition(ending)[0].strip() for text in tokenizer.decode(written)]

    def labeler(pairs: Sequence[Pair]) -> list[Label]:
        # Sample by sample both orders of a pair are neighbours, so that the scorer computes their context once.
        samples = [sample for pair in pairs for _ in range(cfg.samples) for sample in _orders(pair, cfg.task)]
        if asked.rationale:
            rationales = reason(samples)
            samples = [sample | {'rationale': text} for sample, text in zip(samples, rationales)]
        encoded = asked.verdict.encode(tokenizer, samples, scorer.room)
        prob_NC = scorer([one.tokens for one in encoded], group=ORDERS)
        shape = (len(pairs), cfg.samples, ORDERS)
        mass_BNO = prob_NC.sum(1).reshape(shape)
        shown_BO = (prob_NC[:, 0] / np.maximum(prob_NC.sum(1), 1e-12)).reshape(shape).mean(1)
        labels, each = [], cfg.samples * ORDERS
        for b in range(len(pairs)):
            mine = slice(b * each, (b + 1) * each)
            first_shown, second_shown = float(shown_BO[b, 0]), 1 - float(shown_BO[b, 1])
            mass = float(mass_BNO[b].min())
            ok = mass >= max(cfg.least_mass, 1e-12)  # False for NaN too
            labels.append(
                Label(
                    preference=(first_shown + second_shown) / 2 if ok else float('nan'),
                    first_shown=first_shown if ok else float('nan'),
                    second_shown=second_shown if ok else float('nan'),
                    mass=mass,
                    status='ok' if ok else 'unscorable',
                    rationales=tuple(rationales[mine]) if asked.rationale else (),
                    neutralised=max(one.neutralised for one in encoded[mine]),
                    shortened=max(one.shortened for one in encoded[mine]),
                    tokens=sum(len(preamble) + len(one.tokens) for one in encoded[mine]),
                )
            )
        return labels

    return labeler


def label(
    lm: LM, pairs: Sequence[Pair], *, task: str, technique: str = 'detailed_cot_0shot', mesh: Mesh | None = None,
    **more: Any,
) -> list[Label]:  # fmt: skip
    """Label each pair: which response is better, by `lm`, on the mesh it was loaded on (default: one device).

    `more` are further fields of `Config`: samples, temperature, top_k, max_rationale, least_mass, batch, templates, seed.
    However many pairs are unscorable, all come back; look at `.status`. Raises `Mistake` for an unknown field, task or
    technique, and for a pair that does not fit the model even without its context.
    """
    return make_labeler(lm, bind(Config(), {'task': task, 'technique': technique, **more}), mesh)(pairs)


def label_all(
    labeler: str | Path,
    cfg: Config,
    pairs: Sequence[Pair],
    store: Store,
    *,
    dtype: str = 'float32',
    mesh: Mesh | None = None,
    most_unscorable: float = 0.2,
    title: str = 'label',
    note: str = '',
) -> list[Record]:
    """Label every pair through a store: what is there is not asked again, and the model is loaded only if something is not.

    A record holds the fields of `Label`, with null for what an unscorable pair has not, its `position_bias`, and the
    digests of labeler and template.

    Raises `Mistake` for a labeler whose unscorable share exceeds `most_unscorable`; the labels made until then are kept.
    """
    folder = resolve(labeler)
    asked = ask(Tokenizer.load(folder), cfg)
    limits = f'{cfg.max_rationale} {cfg.least_mass}'
    provenance = fingerprint(folder), dtype, asked.digest, cfg.task, cfg.technique, cfg.sampling, limits
    keys = [key(*provenance, pair.prompt.text, pair.first, pair.second) for pair in pairs]
    made: list[Labeler] = []

    def make(indices: list[int]) -> list[Record]:
        if not made:
            made.append(make_labeler(load(folder, dtype=dtype, mesh=mesh), cfg, mesh))
        labels = made[0]([pairs[i] for i in indices])
        more = {'labeler': provenance[0], 'template': asked.digest}
        return [asdict(label) | {'position_bias': label.position_bias} | more for label in labels]

    def describe(index: int) -> str:
        pair = pairs[index]
        return f'{pair.prompt.id}: {pair.first[:80]!r} or {pair.second[:80]!r}'

    return complete(
        store, keys, make, batch=cfg.batch, title=title, note=note, most_unscorable=most_unscorable, describe=describe
    )


def _orders(pair: Pair, task: str) -> tuple[dict[str, str], dict[str, str]]:
    context = templates.context_of(pair.prompt.text, task)
    return (
        {'context': context, 'first': pair.first, 'second': pair.second},
        {'context': context, 'first': pair.second, 'second': pair.first},
    )


def _seed(seed: int, rows: Sequence[Sequence[int]]) -> int:
    """From what is asked, so that sampled rationales are the same in a repeated run and differ from batch to batch."""
    return int.from_bytes(blake2b(repr((seed, rows)).encode(), digest_size=4).digest()) >> 1
