"""The preference labeler: which of two responses is better, asked in both orders and averaged (§2.1 of the paper).

    preference = ½ · P(first is better | first shown first) + ½ · P(first is better | first shown second)

P is over the two answers only. Averaging both orders removes what the labeler feels for a position. With chain of
thought a rationale is decoded first, in each order, and stands in the prompt of the verdict (§2.1.2); with several
samples their distributions are averaged (self-consistency, App. M). The verdict is read from logits, never from text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache, partial
from hashlib import blake2b
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from rlaif_jax import axes
from rlaif_jax.config import HOTTEST, MOST, Mistake, bind, check_within
from rlaif_jax.data import trl
from rlaif_jax.data.records import Pair
from rlaif_jax.generation import Sampling, listed, whole_pairs
from rlaif_jax.labeling import labelers
from rlaif_jax.labeling import prompts as templates
from rlaif_jax.labeling.prompts import Asked, Encoded, Technique
from rlaif_jax.labeling.scoring import Answerer, Model, answerer, check_labeler, read_answers
from rlaif_jax.labeling.store import Record, Store, complete, key
from rlaif_jax.text import Tokenizer

ORDERS = 2  # as given, and swapped
NO_RATIONALE = 'the labeler refuses to write a rationale'
FEW = 8  # pairs: smaller batches leave too much of a machine idle


@dataclass(frozen=True)
class Config:
    """How the preference labeler asks, and when an answer is none."""

    task: str = 'summarization'  # summarization, helpful or harmless: what is asked
    technique: str = 'detailed_cot_0shot'  # (base|detailed)[_cot]_<exemplars>shot
    templates: str = ''  # a folder; '' for the checkpoint's own, or ours
    samples: int = 1  # rationales in each order; 1 is decoded greedily, more are sampled
    temperature: float = 0.7  # of more than one rationale
    top_k: int = 40  # of more than one rationale; 0: all
    max_rationale: int = 512  # tokens
    max_length: int = 4096  # tokens of a whole prompt, if the model allows it; a longer one loses context (App. D)
    least_mass: float = 0.01  # of the two answers together, in each order; below it a pair is unscorable
    most_unscorable: float = 0.2  # share of the labels of a run; above it the run stops and says why
    batch: int = 64  # pairs at once
    seed: int = 0  # of sampled rationales

    def __post_init__(self) -> None:
        if self.task not in templates.TASKS:
            raise ValueError(f'task = {self.task!r}: tasks are {", ".join(templates.TASKS)}')
        cot = Technique.parse(self.technique).cot
        check_within(self, 1, MOST, 'samples', 'batch', 'max_rationale', 'max_length')
        check_within(self, 0, MOST, 'top_k', 'seed')
        check_within(self, 0, HOTTEST, 'temperature')
        if self.samples > 1 and not cot:
            raise ValueError(f'samples = {self.samples} needs a chain of thought; {self.technique} has none')
        if not 0 <= self.least_mass < 1 or not 0 < self.most_unscorable <= 1:
            raise ValueError('least_mass must be in [0, 1) and most_unscorable in (0, 1]')

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
    mass: float  # what the two answers held before renormalising: the mean over samples, the lesser of both orders
    status: str  # 'ok' | 'unscorable'
    reason: str = ''  # why it is unscorable
    rationales: tuple[str, ...] = ()  # as given, then swapped; of each sample
    neutralised: int = 0  # places in its texts that looked like the prompt's structure
    shortened: int = 0  # characters of the context left out
    tokens: int = 0  # of all prompts, for rationales and for verdicts, as if each were read whole
    written: int = 0  # tokens of its rationales, as the verdict reads them
    seconds: float = field(default=0.0, compare=False)  # its share of the work, by the clock; 0: nobody counted
    devices: int = field(default=0, compare=False)  # that were at it; 0: a server's
    labeler: str = ''  # who said so: the digest of its weights, where it went through a store
    template: str = ''  # and that of what it was asked

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

    def record(self) -> Record:
        """The label as a store keeps it: its fields, and what follows from them; null for what an unscorable pair lacks."""
        return asdict(self) | {'position_bias': self.position_bias, 'weight': self.weight}

    @classmethod
    def of(cls, record: Record) -> Label:
        """The label that a store has."""
        known = [one.name for one in fields(cls) if one.name in record or one.default is MISSING]  # of any version
        own = {name: math.nan if record[name] is None else record[name] for name in known}
        return cls(**own | {'rationales': tuple(own.get('rationales', ()))})

    def columns(self, labeler: str, technique: str) -> dict[str, Any]:
        """What a label adds to its row of a file. `preference_prob` is P(the row's first response is better), null where
        unscorable.
        """
        known = self.status == 'ok'
        return {
            'preference_prob': self.preference if known else None,
            'weight': self.weight,
            'status': self.status,
            'reason': self.reason,
            'mass': self.mass,
            'position_bias': self.position_bias if known else None,
            'neutralised': self.neutralised,
            'shortened': self.shortened,
            'rationale': self.rationale,
            'labeler': labeler,
            'technique': technique,
            'template': self.template,
            'labeler_digest': self.labeler,
        }


Labeler = Callable[[Sequence[Pair]], list[Label]]


def ask(tokenizer: Tokenizer, cfg: Config) -> Asked:
    """The prompts that a labeler with this tokenizer is asked with. Raises `Mistake` for a missing template."""
    folder = templates.folder_of(tokenizer, cfg.templates)
    return templates.pair(cfg.task, cfg.technique, folder, tokenizer.turn)


class Prompter:
    """What a labeler is shown of pairs, in both orders."""

    def __init__(self, tokenizer: Tokenizer, cfg: Config, asked: Asked, max_length: int, depth: int = 0) -> None:
        """max_length: tokens of a whole prompt; depth: those that an answer adds to it. Raises `Mistake` where not even an
        empty pair would fit.
        """
        self.tokenizer, self.first = tokenizer, asked.rationale or asked.verdict
        self.preamble = asked.verdict.encode_preamble(tokenizer)
        # A rationale is written behind its prompt, and the verdict is asked for behind both.
        (self.ending,) = tokenizer.encode([asked.verdict.parts[-1]], control=True, behind=True)
        behind = max_length - len(self.preamble) - depth
        self.room = behind - (cfg.max_rationale + len(self.ending) if asked.rationale else 0)
        if self.room < 1:
            raise Mistake(
                f'max_rationale = {cfg.max_rationale} leaves no room for a pair: a prompt may have {max_length} tokens, '
                f'{len(self.preamble)} of which the preamble and its exemplars take'
            )

    def encode(self, pairs: Sequence[Pair]) -> list[list[Encoded]]:
        """The prompts of each pair behind the preamble, in both orders: of the rationale, or of the verdict without one."""
        prompts = self.first.encode(self.tokenizer, [sample for pair in pairs for sample in _orders(pair)], self.room)
        return [prompts[i : i + ORDERS] for i in range(0, len(prompts), ORDERS)]


class _Asking(NamedTuple):
    """How a labeler is asked, who answers, and what is shown."""

    asked: Asked
    scorer: Answerer  # of two answers, the one that prefers the response shown first before the other
    prompter: Prompter


def _asking(lm: Model, cfg: Config, mesh: Mesh | None) -> _Asking:
    """Raises as `make_labeler` does."""
    asked, tokenizer = ask(lm.tokenizer, cfg), lm.tokenizer
    # The harmless prompt asks which one is worse: then '2' is the answer that prefers the one shown first.
    better = ('2', '1') if templates.TASKS[cfg.task].asks_for_worse else ('1', '2')
    preamble = asked.verdict.encode_preamble(tokenizer)
    answers = read_answers(tokenizer, better)
    scorer = answerer(lm, preamble, answers, mesh, batch=cfg.batch, max_length=cfg.max_length)
    prompter = Prompter(tokenizer, cfg, asked, scorer.max_length, answers.depth)
    return _Asking(asked, scorer, prompter)


def make_labeler(lm: Model, cfg: Config, mesh: Mesh | None = None) -> Labeler:
    """`pairs -> labels`, with the preamble and its exemplars read once, and each context once for both orders.

    A label depends on its pair alone, except for the noise of sampled rationales, which is drawn for a call as a whole.
    A pair that does not fit the model even without its context is unscorable. Raises `Mistake` where not even an empty
    one would fit, or the template is missing.
    """
    (asked, scorer, prompter), tokenizer = _asking(lm, cfg, mesh), lm.tokenizer
    room = prompter.room

    def reason(rows: Sequence[Sequence[int]]) -> list[str | None]:
        """A rationale behind each prompt; None where the labeler refuses to write one."""
        temperature, top_k = (0.0, 0) if cfg.samples == 1 else (cfg.temperature, cfg.top_k)
        seed, batch = _seed(cfg.seed, rows), ORDERS * cfg.batch
        how = Sampling(cfg.max_rationale, temperature, top_k, seed=seed, batch=batch)
        # A labeler that goes on to its verdict is cut there: verdicts are read from logits.
        mark = asked.verdict.parts[-1].strip()
        written = scorer.write(rows, how, mark)
        return [None if text is None else text.partition(mark)[0].strip() for text in written]

    def labeler(pairs: Sequence[Pair]) -> list[Label]:
        both = prompter.encode(pairs)
        fits = [max(len(one.tokens) for one in orders) <= room for orders in both]
        # Sample by sample both orders of a pair are neighbours, so that the scorer computes their context once.
        todo = [one for orders, fit in zip(both, fits) if fit for one in orders * cfg.samples]
        each = cfg.samples * ORDERS
        rationales: list[str] = []
        before: list[Encoded] = []  # of which the rationales were written
        explained = [True] * sum(fits)
        if asked.rationale:
            written = reason([one.tokens for one in todo])
            explained = [None not in written[i : i + each] for i in range(0, len(written), each)]
            todo = [one for i, one in enumerate(todo) if explained[i // each]]
            rationales = [text for i, text in enumerate(written) if text is not None and explained[i // each]]
            before, todo = todo, asked.conclude(tokenizer, todo, rationales, scorer.room)
        prob_BJOC = scorer([one.tokens for one in todo], group=ORDERS).reshape(-1, cfg.samples, ORDERS, 2)
        made = (
            _label(
                prob_JOC, todo[i : i + each], before[i : i + each], rationales[i : i + each], prompter, cfg.least_mass
            )
            for prob_JOC, i in zip(prob_BJOC, range(0, len(todo), each))
        )
        fitting = iter([next(made) if yes else _unscorable(0.0, NO_RATIONALE) for yes in explained])
        return [next(fitting) if fit else _too_long(orders, room) for orders, fit in zip(both, fits)]

    return labeler


def instead(
    lm: Model, cfg: Config, pairs: Sequence[Pair], labels: Sequence[Label], mesh: Mesh | None = None
) -> list[Sequence[tuple[str, float]]]:
    """The likeliest tokens where the verdict on each pair should stand, as its label knows it, in the order given, and how
    likely each is; none where it was not asked for.
    """
    asked, scorer, prompter = _asking(lm, cfg, mesh)
    known = [i for i, label in enumerate(labels) if label.tokens]
    prompts = [orders[0] for orders in prompter.encode([pairs[i] for i in known])]
    if asked.rationale:
        prompts = asked.conclude(lm.tokenizer, prompts, [labels[i].rationale for i in known], scorer.room)
    found = dict(zip(known, scorer.likeliest([prompt.tokens for prompt in prompts])))
    return [found.get(i, ()) for i in range(len(pairs))]


def answered(lm: Model, cfg: Config, pairs: Sequence[Pair], mesh: Mesh | None = None) -> tuple[str, float] | None:
    """Another technique by which `lm` answers all these pairs, and the mean mass of its answers; None where none of the
    likely ones helps.
    """
    how = Technique.parse(cfg.technique)
    for shots in dict.fromkeys((how.shots, 0, 2)):
        for preamble in dict.fromkeys((how.preamble, 'base')):
            if (other := f'{preamble}_{shots}shot') != cfg.technique:
                with suppress(Mistake):  # templates of one's own may have fewer examples
                    labels = make_labeler(lm, replace(cfg, technique=other, samples=1), mesh)(pairs)
                    if all(label.status == 'ok' for label in labels):
                        return other, float(np.mean([label.mass for label in labels]))
    return None


def _label(
    prob_JOC: np.ndarray,
    prompts: Sequence[Encoded],
    before: Sequence[Encoded],
    rationales: Sequence[str],
    prompter: Prompter,
    least_mass: float,
) -> Label:
    """The label that the answers' probabilities amount to; sample by sample, `before` are the prompts of `rationales`."""
    mass_JO = prob_JOC.sum(-1)
    mass = float(mass_JO.mean(0).min())
    about = {
        'rationales': tuple(rationales),
        'neutralised': max(one.neutralised for one in prompts),
        'shortened': max(one.shortened for one in prompts),
        'tokens': sum(len(prompter.preamble) + len(one.tokens) for one in (*before, *prompts)),
        'written': sum(
            len(one.tokens) - len(first.tokens) - len(prompter.ending) for first, one in zip(before, prompts)
        ),
    }
    if not mass >= max(least_mass, 1e-12):  # for NaN too
        return _unscorable(mass, f'the two answers hold {mass:.3f} of the probability', **about)
    shown_O = (prob_JOC[..., 0] / np.maximum(mass_JO, 1e-12)).mean(0)
    first_shown, second_shown = float(shown_O[0]), 1 - float(shown_O[1])
    return Label((first_shown + second_shown) / 2, first_shown, second_shown, mass, 'ok', **about)


def _too_long(orders: Sequence[Encoded], room: int) -> Label:
    longest = max(len(one.tokens) for one in orders)
    return _unscorable(0.0, f'{longest} tokens even without its context; behind the preamble {room} fit')


def _unscorable(mass: float, reason: str, **about: Any) -> Label:
    return Label(math.nan, math.nan, math.nan, mass, 'unscorable', reason, **about)


def label(
    lm: Model, pairs: Sequence[Pair], *, task: str, technique: str = 'detailed_cot_0shot', mesh: Mesh | None = None,
    **more: Any,
) -> list[Label]:  # fmt: skip
    """Label each pair: which response is better, by `lm`, on the mesh it was loaded on (default: one device).

    `more` are further fields of `Config`: samples, temperature, top_k, max_rationale, max_length, least_mass,
    batch, templates, seed.
    However many pairs are unscorable, all come back; look at `.status` and `.reason`. Raises `Mistake` for an unknown
    field, task or technique, and for what is no pair. The prompt of a pair may be its text alone.
    """
    check_labeler(lm, mesh)
    cfg, whole = bind(Config(), {'task': task, 'technique': technique, **more}), whole_pairs('pairs', pairs)
    return make_labeler(lm, cfg, mesh)(whole)


def preferred(pairs: Sequence[Pair], labels: Sequence[Label | float | None]) -> list[dict[str, Any]]:
    """Pairs as their labels have it, whatever their order was: rows of `prompt`, `chosen`, `rejected` and `margin`, which
    trainers of TRL read (`datasets.Dataset.from_list`). A margin is P(chosen is better) − P(rejected is better).

    Left out are pairs of which a label says nothing: unscorable ones, and those that it finds equal. Raises `Mistake`
    where there are not as many labels as pairs.
    """
    whole = whole_pairs('pairs', pairs)
    known = [getattr(label, 'preference', label) for label in listed('labels', labels, Label | str)]
    if len(known) != len(whole):
        raise Mistake(f'{len(whole)} pairs and {len(known)} labels; give the label of each pair')
    for i, one in enumerate(known):
        if one is not None and not (isinstance(one, Real) and (0 <= one <= 1 or one != one)):
            raise Mistake(f'labels[{i}] is {one!r:.80}; give a label, or P(the first is better)')
    rows = [{'prompt': one.prompt.text, 'first': one.first, 'second': one.second} for one in whole]
    return [found for row, one in zip(rows, known) if (found := trl.preferred(row, one))]


def label_all(
    name: str | Path,
    cfg: Config,
    pairs: Sequence[Pair],
    store: Store,
    *,
    dtype: str = 'float32',
    mesh: Mesh | None = None,
    title: str = 'label',
    note: str = '',
    load: Callable[[str | Path], Model] | None = None,
) -> list[Label]:
    """Label every pair through a store: what is there is not asked again, and the model is loaded only if something is not.

    `load` is for whoever labels in turns and keeps the model. Long pairs come first: what does not fit the memory shows at
    once, pairs of like length share a batch, and the time left is no promise too fair.

    Equal pairs are asked about once, and have one and the same label, which `cost.counted` counts once.

    Raises `Mistake` where more than `cfg.most_unscorable` of the labels are unscorable; those made until then are kept.
    """
    asked, who = ask(labelers.tokenizer(name), cfg), labelers.fingerprint(name)
    keys = keys_of(name, cfg, asked, pairs, dtype)
    load = load or partial(labelers.load, dtype=dtype, mesh=mesh)

    @cache
    def model() -> Model:
        labelers.check_length(lm := load(name), cfg.max_length)
        return lm

    @cache
    def labeler() -> Labeler:
        return make_labeler(model(), cfg, mesh)

    devices = 0 if labelers.is_address(name) else mesh.size if mesh else 1

    def make(indices: list[int]) -> list[Record]:
        ask_all, began = labeler(), time.monotonic()  # reading a model is no labelling
        labels = ask_all([pairs[i] for i in indices])
        spent = {'seconds': (time.monotonic() - began) / len(indices), 'devices': devices}
        return [replace(label, labeler=who, template=asked.digest, **spent).record() for label in labels]

    def advise(bad: list[int]) -> str:
        """What the labeler says in the place of an answer, and what would make it answer, tried on examples."""
        found, labels = [pairs[i] for i in bad], [Label.of(store.get(keys[i])) for i in bad]
        told = ''
        for pair, label, tokens in zip(found, labels, instead(model(), cfg, found, labels, mesh)):
            told += f'\n  {pair.prompt.id}: {pair.first[:80]!r} or {pair.second[:80]!r} ({label.reason})'
            if tokens:
                told += ', where it says ' + ', '.join(f'{text!r} {prob:.2f}' for text, prob in tokens)
        if other := answered(model(), cfg, found, mesh):
            technique, mass = other
            hope = f'technique={technique} is answered on these: there the two answers hold {mass:.2f}'
        else:
            hope = 'no other technique that was tried is answered; use a labeler that follows instructions'
        return f'{told}\n{hope}'

    sizes = [len(pair.prompt.text) + len(pair.first) + len(pair.second) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda i: -sizes[i])
    complete(
        store, [keys[i] for i in order], lambda indices: make([order[i] for i in indices]),
        batch=at_once(cfg.batch, len({*keys}), axes.shares(mesh) if mesh else 1), title=title, note=note,
        most_unscorable=cfg.most_unscorable, advise=lambda bad: advise([order[i] for i in bad]),
    )  # fmt: skip
    made = {key: Label.of(store.get(key)) for key in keys}
    return [made[key] for key in keys]


def keys_of(name: str | Path, cfg: Config, asked: Asked, pairs: Sequence[Pair], dtype: str) -> list[str]:
    """What the labels of pairs are called in a store, by all that they depend on; asked: of `ask`."""
    limits = f'{cfg.max_length} {cfg.max_rationale if asked.rationale else 0} {cfg.least_mass}'
    who = labelers.fingerprint(name), labelers.products(name, dtype)
    provenance = *who, asked.digest, cfg.task, cfg.technique, cfg.sampling, limits
    return [key(*provenance, pair.prompt.text, pair.first, pair.second) for pair in pairs]


def at_once(batch: int, count: int, parts: int = 1) -> int:
    """Pairs in a batch, of `batch` at most: halved where `count` pairs would be fewer than four batches, so that whoever
    labels few sees them come and can stop. It falls into as many `parts` as a mesh splits batches into, and depends on
    nothing else, as sampled rationales are those of a batch.
    """
    while batch % (2 * parts) == 0 and batch >= 2 * FEW and count <= 3 * batch:
        batch //= 2
    return batch


def _orders(pair: Pair) -> tuple[dict[str, str], dict[str, str]]:
    context = pair.prompt.text
    return (
        {'context': context, 'first': pair.first, 'second': pair.second},
        {'context': context, 'first': pair.second, 'second': pair.first},
    )


def _seed(seed: int, rows: Sequence[Sequence[int]]) -> int:
    """From what is asked, so that sampled rationales are the same in a repeated run and differ from batch to batch."""
    return int.from_bytes(blake2b(repr((seed, rows)).encode(), digest_size=4).digest()) >> 1
