"""The engine under every labeler: how likely each of a few short answers is, behind each of many prompts.

What all prompts share is computed once and kept as a cache; the head is applied at one position per prompt; prompts of
like length go together. An answer may be written in several ways (`1`, ` 1`) and in several tokens (`10`); its
probability is the sum over ways, each the product of its tokens, and a way that another one continues counts only where
it is not continued.

What answers may be a model here (`Scorer`) or one elsewhere (`served`): whoever asks knows of an `Answerer` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlaif_jax import axes, hosts
from rlaif_jax.batching import in_batches, padded
from rlaif_jax.config import Mistake
from rlaif_jax.generation import Sampling, extend
from rlaif_jax.models import heads
from rlaif_jax.models.attention import Sees
from rlaif_jax.models.hf import LM, check_given, check_mesh
from rlaif_jax.models.transformer import Cache, Config, Params, causal, forward, make_cache
from rlaif_jax.text import Tokenizer, pad_right

SHOWN = 5  # of the tokens that are likelier than an answer


@dataclass(frozen=True)
class Answers:
    """What may be answered. A way to write an answer is a path of tokens behind the prompt; together they are a tree."""

    names: tuple[str, ...]  # C
    ways: tuple[tuple[int, ...], ...]  # A
    owner_A: np.ndarray  # which answer each way belongs to

    @cached_property
    def nodes(self) -> list[tuple[int, ...]]:
        """W beginnings of ways, as `1` of `10`, each followed by those that go on from it."""
        return sorted({way[:i] for way in self.ways for i in range(1, len(way))})

    @cached_property
    def tree(self) -> dict[str, np.ndarray]:
        """Way a is the tokens token_AM, each read behind its node, of which 0 is the prompt; token −1 is none."""
        nodes = [(), *self.nodes]
        step_AM2 = np.full((len(self.ways), self.depth + 1, 2), (0, -1), np.int32)
        for a, way in enumerate(self.ways):
            step_AM2[a, : len(way)] = [(nodes.index(way[:i]), token) for i, token in enumerate(way)]
        return {'node_AM': step_AM2[..., 0], 'token_AM': step_AM2[..., 1]}

    @property
    def depth(self) -> int:
        """How many tokens an answer adds to the prompt before its last one."""
        return max(map(len, self.ways)) - 1

    def probability(self, logp_BA: np.ndarray) -> np.ndarray:
        """(B, C): the sum over an answer's ways; a way that another one continues counts only where it is not continued."""
        way_BA = np.exp(logp_BA.astype(np.float64))
        for i in sorted(range(len(self.ways)), key=lambda i: -len(self.ways[i])):
            way = self.ways[i]
            way_BA[:, i] -= way_BA[:, [len(w) > len(way) and w[: len(way)] == way for w in self.ways]].sum(1)
        prob_BC = np.zeros((len(logp_BA), len(self.names)))
        np.add.at(prob_BC.T, self.owner_A, way_BA.T)
        return np.maximum(prob_BC, 0.0)


def read_answers(tokenizer: Tokenizer, names: Sequence[str]) -> Answers:
    """Every way to write each answer: bare and behind a space. Raises `Mistake` for one that cannot be written, or not
    told from another.
    """
    ways: dict[tuple[int, ...], int] = {}
    for c, name in enumerate(names):
        for tokens in map(tuple, tokenizer.encode([name, f' {name}'], behind=True)):
            if not tokens or tokenizer.hf.unk_token_id in tokens:
                continue
            if ways.setdefault(tokens, c) != c:
                raise Mistake(f'the tokenizer writes {names[ways[tokens]]!r} and {name!r} alike')
    if missing := set(range(len(names))) - set(ways.values()):
        raise Mistake(f'the tokenizer has no tokens for the answer {names[min(missing)]!r}')
    return Answers(tuple(names), tuple(ways), np.array(list(ways.values())))


class Answerer(ABC):
    """What says how likely each of the `answers` is behind `preamble + row`, and goes on from such prompts."""

    def __init__(self, name: str, preamble: Sequence[int], answers: Answers, max_length: int) -> None:
        self.answers, self.preamble, self.max_length = answers, list(preamble), max_length
        if self.room < 1:
            raise Mistake(
                f'the prompt of {name} has {len(self.preamble)} tokens before its first field, of {max_length} in '
                'all: take fewer exemplars, or raise max_length where the model allows it'
            )

    @property
    def room(self) -> int:
        """How many tokens a row may have behind the preamble."""
        return self.max_length - len(self.preamble) - self.answers.depth

    def __call__(self, rows: Sequence[Sequence[int]], group: int = 1) -> np.ndarray:
        """(B, C) float64, not renormalised: a row sums to the captured mass, the probability that the model answers as
        asked. Each `group` neighbouring rows have much in common, as a pair shown in both orders. Raises `Mistake` for a
        row that does not fit the model, naming it.
        """
        for b, row in enumerate(rows):
            if not 0 < len(row) <= self.room:
                raise Mistake(
                    f'prompt {b} has {len(row)} tokens behind the preamble; the labeler takes 1 to {self.room}'
                )
        if len(rows) % group:
            raise ValueError(f'{len(rows)} rows are no groups of {group}')
        return np.reshape(self._score(rows, group), (-1, len(self.answers.names)))

    @abstractmethod
    def _score(self, rows: Sequence[Sequence[int]], group: int) -> Sequence[Any]:
        """The same of rows that fit."""

    @abstractmethod
    def likeliest(self, rows: Sequence[Sequence[int]]) -> Sequence[Sequence[tuple[str, float]]]:
        """The few likeliest tokens behind each `preamble + row`, as text, and how likely each is: what stands in the place
        of an answer.
        """

    @abstractmethod
    def write(self, rows: Sequence[Sequence[int]], how: Sampling, until: str) -> Sequence[str | None]:
        """What is written behind each `preamble + row`, None where it refuses to; nobody reads on from where it says
        `until`.
        """


class Remote(Protocol):
    """A model that is not here."""

    tokenizer: Tokenizer
    name: str

    def answerer(self, preamble: Sequence[int], answers: Answers, max_length: int) -> Answerer:
        """What answers as it does."""


Model = LM | Remote  # what can be asked


def answerer(
    lm: Model, preamble: Sequence[int], answers: Answers, mesh: Mesh | None, *, batch: int, max_length: int
) -> Answerer:
    """What answers as `lm` does: on the mesh, by default its own, `batch` rows or groups of them at once; or wherever it
    is.
    """
    if isinstance(lm, LM):
        return Scorer(lm, preamble, answers, mesh or axes.mesh_of(lm.params), batch=batch, max_length=max_length)
    return lm.answerer(preamble, answers, max_length)


def check_labeler(lm: Any, mesh: Any = None) -> Model:
    """What was given. Raises `Mistake` for what is nobody to ask, or no mesh, in the place of one."""
    if not hasattr(lm, 'answerer'):
        return check_given(lm, mesh)
    check_mesh(mesh)
    return lm


class Scorer(Answerer):
    """The answers of a model on this mesh. Of each group of rows the common beginning is computed once."""

    def __init__(
        self, lm: LM, preamble: Sequence[int], answers: Answers, mesh: Mesh, *, batch: int = 64, max_length: int = 4096
    ) -> None:
        axes.check_batch('labeler batch', batch, mesh)
        super().__init__(lm.name, preamble, answers, min(max_length, lm.config.max_length))
        self.lm, self.mesh, self.batch = lm, mesh, batch
        self.prefix = prefill(lm, self.preamble, mesh)

    def write(self, rows: Sequence[Sequence[int]], how: Sampling, until: str) -> list[str]:
        return self.lm.tokenizer.decode(extend(self.lm, rows, how, mesh=self.mesh, prefix=self.prefix))

    def _score(self, rows: Sequence[Sequence[int]], group: int) -> list[np.ndarray]:
        groups = [Group.of(rows[b : b + group], self.answers.nodes) for b in range(0, len(rows), group)]
        lengths = [len(group.tokens) for group in groups]
        return in_batches(lengths, self.batch, self.mesh, lambda chosen, _: self._batch([groups[b] for b in chosen]))

    def likeliest(self, rows: Sequence[Sequence[int]]) -> list[list[tuple[str, float]]]:
        texts = self.lm.tokenizer.hf.batch_decode

        def batch(chosen: list[int], _: int) -> list[list[tuple[str, float]]]:
            found = self._run(likeliest, [Group.of([rows[b]]) for b in chosen])
            return [[*zip(texts(token_A[:, None]), prob_A.tolist())] for prob_A, token_A in zip(*found)]

        return in_batches(list(map(len, rows)), self.batch, self.mesh, batch)

    def _batch(self, groups: list[Group]) -> np.ndarray:
        logp_BOA = self._run(ways, groups, self.answers.tree)
        B, O, A = logp_BOA.shape
        return self.answers.probability(logp_BOA.reshape(B * O, A)).reshape(B, O, -1)

    def _run(self, program: Callable[..., Any], groups: list[Group], *more: Any) -> Any:
        """What a program makes of the groups, as numpy has it."""
        length = padded([len(group.tokens) for group in groups])
        token_BT, valid_BT = pad_right([group.tokens for group in groups], length, self.lm.tokenizer.pad)
        until_BT, _ = pad_right([group.until for group in groups], length, 0)
        position_BT, _ = pad_right([group.position for group in groups], length, 0)
        read_BOW = np.array([group.read for group in groups], np.int32)
        rows = hosts.to_mesh((token_BT, until_BT, position_BT, read_BOW), axes.rows(self.mesh))
        with jax.set_mesh(self.mesh):
            return hosts.to_host(program(self.lm.config, self.lm.params, self.prefix, *rows, *more))


@dataclass(frozen=True)
class Group:
    """Rows that begin alike, laid out as one sequence: the stem once, then what is each row's own, and behind each row
    the nodes of its answers.
    """

    tokens: list[int]
    until: list[int]  # of each token: `attention.Sees`
    position: list[int]  # of each token in its own row
    read: list[list[int]]  # of each row: where it ends in `tokens`, and where its nodes stand

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], nodes: Sequence[tuple[int, ...]] = ()) -> Group:
        first, W = list(rows[0]), len(nodes)
        stem = min(map(len, rows)) - 1  # every branch keeps a token to be read at
        stem = next((t for t in range(stem) if any(row[t] != first[t] for row in rows)), stem)
        # Behind how many nodes each one's own have ended.
        ends = [next((j for j in range(i, W) if nodes[j][: len(node)] != node), W) for i, node in enumerate(nodes)]
        tokens, position = first[:stem], list(range(stem))
        until, read = [stem + sum(len(row) - stem + W for row in rows)] * stem, []
        for row in rows:
            end = len(tokens) + len(row) - stem
            tokens += [*row[stem:], *(node[-1] for node in nodes)]
            until += [end + W] * (len(row) - stem) + [end + w for w in ends]
            position += [*range(stem, len(row)), *(len(row) - 1 + len(node) for node in nodes)]
            read.append(list(range(end - 1, end + W)))
        return cls(tokens, until, position, read)


def prefill(lm: LM, preamble: Sequence[int], mesh: Mesh) -> Cache | None:
    """The keys and values of what all prompts share: a cache of one row with exactly its slots. None for no tokens."""
    if not preamble:
        return None
    with jax.set_mesh(mesh):
        return _prefill(lm.config, lm.params, np.array([list(preamble)], np.int32))


@partial(jax.jit, static_argnames='cfg')
def _prefill(cfg: Config, params: Params, token_BT: jax.Array) -> Cache:
    seen = causal(jnp.ones_like(token_BT, bool))
    return forward(cfg, params, token_BT, *seen, make_cache(cfg, 1, token_BT.shape[1]))[1]


def _logits(
    cfg: Config,
    params: Params,
    prefix: Cache | None,
    token_BT: jax.Array,
    until_BT: jax.Array,
    position_BT: jax.Array,
    read_BOW: jax.Array,
) -> jax.Array:
    """Those behind each row and its nodes, `(B, O, W, V)`, in one forward: the rows of a group are branches behind their
    stem, and the nodes of the answers are branches behind each row (`Group`).
    """
    P = 0 if prefix is None else prefix['key_LBKSH'].shape[3]
    # Wanted are each row's last token and the nodes only; the head is over all of V, for the captured mass.
    read_BW = read_BOW.reshape(len(read_BOW), -1)
    before = () if prefix is None else (prefix,)
    hidden_BWD, _ = forward(cfg, params, token_BT, P + position_BT, Sees(until_BT), before=before, read_BW=read_BW)
    return heads.logits(cfg, params, hidden_BWD).reshape(*read_BOW.shape, -1)


@partial(jax.jit, static_argnames='cfg')
def ways(cfg: Config, params: Params, prefix: Cache | None, *rows: jax.Array | dict[str, jax.Array]) -> jax.Array:
    """log P(way) behind each row, `(B, O, A)`; `rows` are those of `_logits`, and the tree of the answers."""
    *rows, tree = rows
    logit_BOWV = _logits(cfg, params, prefix, *rows)
    logp_BOAM = logit_BOWV[:, :, tree['node_AM'], tree['token_AM']]
    logp_BOAM -= jax.nn.logsumexp(logit_BOWV, axis=-1)[:, :, tree['node_AM']]
    return jnp.sum(jnp.where(tree['token_AM'] >= 0, logp_BOAM, 0.0), axis=-1)


@partial(jax.jit, static_argnames='cfg')
def likeliest(cfg: Config, params: Params, prefix: Cache | None, *rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The likeliest tokens behind rows, each a group of its own: how likely, and which, `(B, A)` each."""
    prob_BV = jax.nn.softmax(_logits(cfg, params, prefix, *rows)[:, 0, 0])
    return jax.lax.top_k(prob_BV, SHOWN)
