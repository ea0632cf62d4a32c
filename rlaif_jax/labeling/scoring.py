"""The engine under every labeler: how likely each of a few short answers is, behind each of many prompts.

What all prompts share is computed once and kept as a cache; the head is applied at one position per prompt; prompts of
like length go together. An answer may be written in several ways (`1`, ` 1`) and in several tokens (`10`); its
probability is the sum over ways, each the product of its tokens, and a way that another one continues counts only where
it is not continued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlaif_jax import axes
from rlaif_jax.config import Mistake
from rlaif_jax.models import heads
from rlaif_jax.models.hf import LM
from rlaif_jax.models.transformer import Cache, Config, Params, causal, forward, make_cache
from rlaif_jax.text import Tokenizer, pad_right

BUCKET = 32  # prompts are padded to a multiple of this many tokens: few shapes to compile, little padding to compute


@dataclass(frozen=True)
class Answers:
    """What may be answered, as tokens. `first_A` and `second_A` are the tokens of each way (second −1: it has one
    token).
    """

    names: tuple[str, ...]  # C
    owner_A: np.ndarray  # which answer each way belongs to
    first_A: np.ndarray
    second_A: np.ndarray

    @property
    def continued(self) -> np.ndarray:
        """(A,) bool: ways of one token that another way begins with, as `1` begins `10` where that is two tokens."""
        return (self.second_A < 0) & np.isin(self.first_A, self.first_A[self.second_A >= 0])


def read_answers(tokenizer: Tokenizer, names: Sequence[str]) -> Answers:
    """Every way to write each answer: bare and behind a space. Raises `Mistake` for one of more than two tokens, or an
    ambiguous one.
    """
    ways: dict[tuple[int, ...], int] = {}
    for c, name in enumerate(names):
        for tokens in map(tuple, tokenizer.encode([name, f' {name}'])):
            if len(tokens) > 2:
                continue  # a tokenizer that spells ' 10' as ' ', '1', '0' still has '10'; with neither, c is missing below
            if ways.setdefault(tokens, c) != c:
                raise Mistake(f'the tokenizer writes {names[ways[tokens]]!r} and {name!r} alike')
    if missing := set(range(len(names))) - set(ways.values()):
        raise Mistake(f'the answer {names[min(missing)]!r} takes more than two tokens with this tokenizer')
    padded = np.array([[*tokens, -1][:2] for tokens in ways], np.int32)
    return Answers(tuple(names), np.array(list(ways.values())), padded[:, 0], padded[:, 1])


class Scorer:
    """`Scorer(lm, preamble, answers, mesh)(rows) -> prob_BC`: probabilities of the answers behind `preamble + row`, for
    each row of tokens.

    prob_BC is not renormalised: a row sums to the captured mass, the probability that the model answers as asked.
    """

    def __init__(self, lm: LM, preamble: Sequence[int], answers: Answers, mesh: Mesh, *, batch: int = 64) -> None:
        axes.check_batch('labeler batch', batch, mesh)
        self.lm, self.answers, self.mesh, self.batch = lm, answers, mesh, batch
        self.preamble = jnp.asarray([list(preamble)], jnp.int32)
        with jax.set_mesh(mesh):
            self.prefix = jax.jit(partial(_prefill, lm.config))(lm.params, self.preamble) if len(preamble) else None

    def __call__(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """(B, C) float64. Raises `Mistake` for a row that does not fit the model, naming it."""
        longest = self.lm.config.max_length - self.preamble.shape[1] - 1
        for b, row in enumerate(rows):
            if len(row) > longest:
                raise Mistake(f'prompt {b} has {len(row)} tokens behind the preamble; the labeler takes {longest}')
        prob_BC = np.zeros((len(rows), len(self.answers.names)))
        order = sorted(range(len(rows)), key=lambda b: len(rows[b]))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            prob_BC[chosen] = self._batch([rows[b] for b in chosen])[: len(chosen)]
        return prob_BC

    def _batch(self, rows: list[Sequence[int]]) -> np.ndarray:
        length = -(-max(map(len, rows)) // BUCKET) * BUCKET
        rows = rows + [rows[0]] * (self.batch - len(rows))  # one shape a bucket; the extra rows are thrown away
        token_BT, valid_BT = pad_right(rows, length, self.lm.tokenizer.pad)
        here = axes.rows(self.mesh)
        a = self.answers
        with jax.set_mesh(self.mesh):
            first_BA, second_BA = _ways(
                self.lm.config,
                self.lm.params,
                self.prefix,
                jax.device_put(token_BT, here),
                jax.device_put(valid_BT, here),
                a.first_A,
                a.second_A,
                bool((a.second_A >= 0).any()),
            )
        way_BA = np.exp(np.asarray(first_BA, np.float64) + np.asarray(second_BA, np.float64))
        for i in np.flatnonzero(a.continued):
            way_BA[:, i] -= way_BA[:, (a.first_A == a.first_A[i]) & (a.second_A >= 0)].sum(1)
        prob_BC = np.zeros((len(rows), len(a.names)))
        np.add.at(prob_BC.T, a.owner_A, way_BA.T)
        return np.maximum(prob_BC, 0.0)


def _prefill(cfg: Config, params: Params, token_BT: jax.Array) -> Cache:
    """The keys and values of the preamble: a cache of one row with exactly its slots."""
    position_BT, mask_BTS = causal(jnp.ones_like(token_BT, bool))
    return forward(cfg, params, token_BT, position_BT, mask_BTS, make_cache(cfg, 1, token_BT.shape[1]))[1]


@partial(jax.jit, static_argnames=('cfg', 'chained'))
def _ways(
    cfg: Config,
    params: Params,
    prefix: Cache | None,
    token_BT: jax.Array,
    valid_BT: jax.Array,
    first_A: jax.Array,
    second_A: jax.Array,
    chained: bool,
) -> tuple[jax.Array, jax.Array]:
    """log P(first token) and log P(second | first) of every way, `(B, A)` each, the second 0 where there is none."""
    B, T = token_BT.shape
    P = 0 if prefix is None else prefix['key_LBSKH'].shape[2]
    cache = make_cache(cfg, B, P + T + 1)
    if prefix is not None:
        for name in ('key_LBSKH', 'value_LBSKH'):
            cache[name] = cache[name].at[:, :, :P].set(prefix[name])
        cache['length'] = jnp.int32(P)
    position_BT, mask_BTT = causal(valid_BT)
    seen_BTP = jnp.ones((B, T, P), bool)
    mask_BTS = jnp.concatenate([seen_BTP, mask_BTT, jnp.zeros((B, T, 1), bool)], axis=-1)
    hidden_BTD, cache = forward(cfg, params, token_BT, P + position_BT, mask_BTS, cache)
    last_B = jnp.sum(valid_BT, axis=1) - 1
    hidden_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
    logp_BV = jax.nn.log_softmax(heads.logits(cfg, params, hidden_BD))
    first_BA = logp_BV[:, first_A]
    if not chained:
        return first_BA, jnp.zeros_like(first_BA)

    def behind(token: jax.Array) -> jax.Array:
        """log P(· | prompt, token), one token further."""
        mask_B1S = jnp.concatenate([seen_BTP[:, :1], valid_BT[:, None], jnp.ones((B, 1, 1), bool)], axis=-1)
        hidden_B1D, _ = forward(cfg, params, jnp.full((B, 1), token), (P + last_B + 1)[:, None], mask_B1S, cache)
        return jax.nn.log_softmax(heads.logits(cfg, params, hidden_B1D[:, 0]))

    # Few ways have two tokens (`10`, ` 10`), so one more token for each costs little beside the prompt.
    second_BA = jax.lax.map(lambda way: behind(way[0])[:, jnp.maximum(way[1], 0)], (first_A, second_A)).T
    return first_BA, jnp.where(second_A >= 0, second_BA, 0.0)
