"""The engine under every labeler: how likely each of a few short answers is, behind each of many prompts.

What all prompts share is computed once and kept as a cache; the head is applied at one position per prompt; prompts of
like length go together. An answer may be written in several ways (`1`, ` 1`) and in several tokens (`10`); its
probability is the sum over ways, each the product of its tokens, and a way that another one continues counts only where
it is not continued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

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
    """What may be answered. A way to write an answer is a path of tokens behind the prompt; together they are a tree."""

    names: tuple[str, ...]  # C
    ways: tuple[tuple[int, ...], ...]  # A
    owner_A: np.ndarray  # which answer each way belongs to

    @cached_property
    def tree(self) -> dict[str, np.ndarray]:
        """The tree as arrays. Node 0 is the prompt; the other W are what some way goes on from, as `1` of `10`."""
        inner = {way[:i] for way in self.ways for i in range(1, len(way))}
        nodes = [(), *sorted(inner, key=lambda node: (len(node), node))]
        W, M = len(nodes) - 1, self.depth + 1
        step_AM2 = np.full((len(self.ways), M, 2), (0, -1), np.int32)
        for a, way in enumerate(self.ways):
            step_AM2[a, : len(way)] = [(nodes.index(way[:i]), token) for i, token in enumerate(way)]
        return {
            'token_W': np.array([node[-1] for node in nodes[1:]], np.int32),
            'depth_W': np.array([len(node) for node in nodes[1:]], np.int32),
            'sees_WW': np.array([[a[: len(b)] == b for b in nodes[1:]] for a in nodes[1:]], bool).reshape(W, W),
            # Way a is the tokens token_AM, each read behind its node; token −1 is none.
            'node_AM': step_AM2[..., 0],
            'token_AM': step_AM2[..., 1],
        }

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
        for tokens in map(tuple, tokenizer.encode([name, f' {name}'])):
            if not tokens or tokenizer.hf.unk_token_id in tokens:
                continue
            if ways.setdefault(tokens, c) != c:
                raise Mistake(f'the tokenizer writes {names[ways[tokens]]!r} and {name!r} alike')
    if missing := set(range(len(names))) - set(ways.values()):
        raise Mistake(f'the tokenizer has no tokens for the answer {names[min(missing)]!r}')
    return Answers(tuple(names), tuple(ways), np.array(list(ways.values())))


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
            self.prefix = _prefill(lm.config, lm.params, self.preamble) if len(preamble) else None

    def __call__(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """(B, C) float64. Raises `Mistake` for a row that does not fit the model, naming it."""
        longest = self.lm.config.max_length - self.preamble.shape[1] - self.answers.depth
        for b, row in enumerate(rows):
            if not 0 < len(row) <= longest:
                raise Mistake(f'prompt {b} has {len(row)} tokens behind the preamble; the labeler takes 1 to {longest}')
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
        with jax.set_mesh(self.mesh):
            logp_BA = _ways(
                self.lm.config, self.lm.params, self.prefix, jax.device_put(token_BT, here), jax.device_put(valid_BT, here),
                self.answers.tree,
            )  # fmt: skip
        return self.answers.probability(np.asarray(logp_BA))


@partial(jax.jit, static_argnames='cfg')
def _prefill(cfg: Config, params: Params, token_BT: jax.Array) -> Cache:
    """The keys and values of the preamble: a cache of one row with exactly its slots."""
    position_BT, mask_BTS = causal(jnp.ones_like(token_BT, bool))
    return forward(cfg, params, token_BT, position_BT, mask_BTS, make_cache(cfg, 1, token_BT.shape[1]))[1]


@partial(jax.jit, static_argnames='cfg')
def _ways(
    cfg: Config, params: Params, prefix: Cache | None, token_BT: jax.Array, valid_BT: jax.Array, tree: dict[str, jax.Array]
) -> jax.Array:  # fmt: skip
    """log P(way) behind each prompt, `(B, A)`, in one forward: the tree's inner nodes are branches behind the prompt."""
    B, T = token_BT.shape
    W = len(tree['token_W'])
    P = 0 if prefix is None else prefix['key_LBSKH'].shape[2]
    cache = make_cache(cfg, B, P + T + W)
    if prefix is not None:
        for name in ('key_LBSKH', 'value_LBSKH'):
            cache[name] = cache[name].at[:, :, :P].set(prefix[name])
        cache['length'] = jnp.int32(P)

    # A prompt's token sees the preamble and what stands before it; a node sees the preamble, the prompt and its ancestors.
    position_BT, mask_BTT = causal(valid_BT)
    last_B = jnp.sum(valid_BT, axis=1, dtype=jnp.int32) - 1
    row_BTS = jnp.pad(mask_BTT, ((0, 0), (0, 0), (0, W)))
    valid_BWT, sees_BWW = (jnp.broadcast_to(x, (B, W, x.shape[-1])) for x in (valid_BT[:, None], tree['sees_WW']))
    mask_BTS = jnp.concatenate([row_BTS, jnp.concatenate([valid_BWT, sees_BWW], axis=-1)], axis=1)
    mask_BTS = jnp.pad(mask_BTS, ((0, 0), (0, 0), (P, 0)), constant_values=True)
    position_BT = P + jnp.concatenate([position_BT, last_B[:, None] + tree['depth_W'][None]], axis=1)
    token_BT = jnp.concatenate([token_BT, jnp.broadcast_to(tree['token_W'], (B, W))], axis=1)
    hidden_BTD, _ = forward(cfg, params, token_BT, position_BT, mask_BTS, cache)

    # The head is applied to the prompt's last token and to the nodes only.
    at_BW = jnp.concatenate([last_B[:, None], jnp.broadcast_to(T + jnp.arange(W), (B, W))], axis=1)
    logit_BWV = heads.logits(cfg, params, jnp.take_along_axis(hidden_BTD, at_BW[..., None], axis=1))
    logp_BAM = logit_BWV[:, tree['node_AM'], tree['token_AM']]
    logp_BAM -= jax.nn.logsumexp(logit_BWV, axis=-1)[:, tree['node_AM']]
    return jnp.sum(jnp.where(tree['token_AM'] >= 0, logp_BAM, 0.0), axis=-1)
