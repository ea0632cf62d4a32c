"""Attention on a TPU, a block of scores at a time: no array over queries x keys is ever in memory.

    a_BTNH = flash(q_BTNH, k_BTKH, v_BTKH, until_BT)

Why not a library: jax's splash attention and tokamax know texts side by side (segment ids) and windows of a static size
in slots. What is seen here is a tree (`attention.Sees`), within a window that differs between the layers of one scan and
counts positions; both would need several calls, and a gradient through their sums that neither has. The kernels are
those of FlashAttention-2 (arXiv 2307.08691).

Scores are made again in the backward pass, from the queries, the keys and the logarithm of each query's sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

NEVER = -1e30  # the score of what is not seen
LANES = 128
BLOCKS = (512, 384, 256, 128)


class Seen(NamedTuple):
    """What queries may see: their own text, or a prefix, one row for all."""

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    until_B1S: jax.Array  # int32: seen by the queries before this slot
    position_B1S: jax.Array | None  # where there is a window


@dataclass(frozen=True)
class _How:
    """What is known when a program is traced."""

    cap: float | None
    block: int
    interpret: bool


def flash(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    until_BT: jax.Array,
    *,
    prefix: tuple[jax.Array, jax.Array] | None = None,
    window: tuple[jax.Array, jax.Array, jax.Array | None] | None = None,
    scale: float | jax.Array | None = None,
    cap: float | None = None,
    block: int = 0,
    interpret: bool = False,
) -> jax.Array:
    """Attention among the tokens of whole rows, (B, T, N, H) in the queries' dtype; K divides N.

    Query t sees slot s where s <= t < until[s], and all of the `prefix`, k_PKH and v_PKH. window: its size, position_BT,
    and position_1P where there is a prefix: of all these the query sees what stands fewer than `size` positions behind it.
    A query that sees nothing gets something finite, and has no gradient. block: queries, and keys, that are computed at
    once; 0: chosen. interpret: without a TPU, slowly.
    """
    B, T, N, H = q_BTNH.shape
    block = block or min(BLOCKS, key=lambda size: _blocks(T, size) * (size + 32))  # 32: what a block costs besides
    size, at_BT, at_1P = (None, None, None) if window is None else window

    def filled(x: jax.Array, axis: int) -> jax.Array:
        """With zeros behind it up to whole blocks. Padding is seen until slot 0: by nobody."""
        more = [(0, 0)] * x.ndim
        more[axis] = (0, -x.shape[axis] % block)
        return jnp.pad(x, more)

    def keys(k_BSKH: jax.Array, v_BSKH: jax.Array, until_BS: jax.Array, at_BS: jax.Array | None) -> Seen:
        k_BKSH, v_BKSH = (filled(x.transpose(0, 2, 1, 3), 2) for x in (k_BSKH, v_BSKH))
        until_BS, at_BS = (x if x is None else filled(x.astype(jnp.int32), 1)[:, None] for x in (until_BS, at_BS))
        return Seen(k_BKSH, v_BKSH, until_BS, at_BS)

    seen = [keys(k_BTKH, v_BTKH, until_BT, at_BT)]
    if prefix is not None:
        k_PKH, v_PKH = prefix
        always_1P = jnp.full((1, k_PKH.shape[0]), jnp.iinfo(jnp.int32).max)
        seen.append(keys(k_PKH[None], v_PKH[None], always_1P, at_1P))
    q_BNTH = (q_BTNH * (H**-0.5 if scale is None else scale)).astype(q_BTNH.dtype).transpose(0, 2, 1, 3)
    size_1 = None if size is None else jnp.reshape(size, 1).astype(jnp.int32)
    a_BNTH = _flash(_How(cap, block, interpret), filled(q_BNTH, 2), size_1, tuple(seen))
    return a_BNTH[:, :, :T].transpose(0, 2, 1, 3)


def merge(outs: list[jax.Array], lses: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """What comes of all keys together, and the logarithm of their sum, from what came of each part of them. outs end in H
    more than lses.
    """
    lse = jax.nn.logsumexp(jnp.stack(lses), axis=0)
    return sum(jnp.exp(part - lse)[..., None] * out for out, part in zip(outs, lses)), lse


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(how: _How, q_BNTH: jax.Array, size_1: jax.Array | None, seen: tuple[Seen, ...]) -> jax.Array:
    return _flash_forward(how, q_BNTH, size_1, seen)[0]


def _flash_forward(how: _How, q_BNTH: jax.Array, size_1: jax.Array | None, seen: tuple[Seen, ...]) -> Any:
    dtype = q_BNTH.dtype if len(seen) == 1 else jnp.float32
    at_B1T = seen[0].position_B1S
    parts = [_forward(how, q_BNTH, at_B1T, size_1, keys, dtype, own=i == 0) for i, keys in enumerate(seen)]
    a_BNTH, lse_BN1T = parts[0]
    if len(parts) > 1:
        a_BNTH, lse_BNT = merge([a for a, _ in parts], [lse[:, :, 0] for _, lse in parts])
        a_BNTH, lse_BN1T = a_BNTH.astype(q_BNTH.dtype), lse_BNT[:, :, None]
    return a_BNTH, (q_BNTH, size_1, seen, a_BNTH, lse_BN1T)


def _flash_backward(how: _How, kept: Any, da_BNTH: jax.Array) -> Any:
    """Of all parts alike: with the sum over all keys, each part's weights are what they are in the whole."""
    q_BNTH, size_1, seen, a_BNTH, lse_BN1T = kept
    at_B1T = seen[0].position_B1S
    mean_BN1T = jnp.sum(a_BNTH.astype(jnp.float32) * da_BNTH.astype(jnp.float32), axis=-1)[:, :, None]
    given = how, q_BNTH, at_B1T, size_1, da_BNTH, lse_BN1T, mean_BN1T
    dq_BNTH, dseen = 0.0, []
    for i, keys in enumerate(seen):
        dq_BNTH += _backward_queries(*given, keys, own=i == 0)
        dk_BKSH, dv_BKSH = _backward_keys(*given, keys, own=i == 0)
        if i:
            dk_BKSH, dv_BKSH = (x.sum(0, keepdims=True) for x in (dk_BKSH, dv_BKSH))
        dseen.append(Seen(dk_BKSH.astype(keys.k_BKSH.dtype), dv_BKSH.astype(keys.v_BKSH.dtype), None, None))
    return dq_BNTH.astype(q_BNTH.dtype), None, tuple(dseen)


_flash.defvjp(_flash_forward, _flash_backward)


# The kernels. Those of a row are computed by heads, then by blocks of queries i and of keys j; `own` keys are those of the
# queries' text, of which what stands behind a block of queries is left out, as is what has ended before it.


def _forward(
    how: _How, q_BNTH: jax.Array, at_B1T: Any, size_1: Any, keys: Seen, dtype: Any, *, own: bool
) -> tuple[jax.Array, jax.Array]:
    """What comes of these keys, and the logarithms of their sums, lse_BN1T."""
    B, N, T, H = q_BNTH.shape
    K, S = keys.k_BKSH.shape[1:3]
    last = S // how.block - 1

    def kernel(ended, size, q, k, v, until, at, there, a, lse, top, total, sum_):
        b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

        @pl.when(j == 0)
        def begin():
            top[...], total[...], sum_[...] = (jnp.full_like(x, n) for x, n in ((top, NEVER), (total, 0), (sum_, 0)))

        @pl.when(_runs(how, own, ended, b, i, j, last))
        def add():
            score, mask = _scores(how, own, q[...], k[...], i, j, until, at, there, size)
            score = jnp.where(mask, score, NEVER)
            before = top[:, :1]
            now = jnp.maximum(before, score.max(axis=1, keepdims=True))
            weight, kept = jnp.exp(score - now), jnp.exp(before - now)
            total[...] = jnp.broadcast_to(kept * total[:, :1] + weight.sum(axis=1, keepdims=True), total.shape)
            top[...] = jnp.broadcast_to(now, top.shape)
            sum_[...] = kept * sum_[...] + _dot(weight.astype(v.dtype), v[...], (1, 0))

        @pl.when(j == last)
        def end():
            whole = jnp.maximum(total[:, :1], 1e-30)  # 0 where no block was of use
            a[...] = (sum_[...] / whole).astype(a.dtype)
            lse[...] = jnp.transpose(top[...] + jnp.log(jnp.broadcast_to(whole, top.shape)))[:1]

    queries, of_keys, at_queries, at_keys = _specs(how, N // K, own, last)
    return pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((B, N, T, H), dtype), jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, N, T // how.block, last + 1),
            in_specs=[queries(H), of_keys(H), of_keys(H), at_keys, *_given(size_1, at_queries, at_keys)],
            out_specs=[queries(H), queries()],
            scratch_shapes=[pltpu.VMEM((how.block, n), jnp.float32) for n in (LANES, LANES, H)],
        ),
        compiler_params=_params('parallel', 'parallel', 'parallel', 'arbitrary'),
        interpret=how.interpret,
        name='flash_forward',
    )(*_prefetched(how, keys, size_1), q_BNTH, keys.k_BKSH, keys.v_BKSH, keys.until_B1S, at_B1T, keys.position_B1S)


def _backward_queries(
    how: _How, q_BNTH: jax.Array, at_B1T: Any, size_1: Any, da_BNTH: Any, lse_BN1T: Any, mean_BN1T: Any, keys: Seen,
    *, own: bool,
) -> jax.Array:  # fmt: skip
    """dq_BNTH, float32."""
    B, N, T, H = q_BNTH.shape
    K, S = keys.k_BKSH.shape[1:3]
    last = S // how.block - 1

    def kernel(ended, size, q, k, v, until, at, there, da, lse, mean, dq, sum_):
        b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

        @pl.when(j == 0)
        def begin():
            sum_[...] = jnp.zeros_like(sum_)

        @pl.when(_runs(how, own, ended, b, i, j, last))
        def add():
            score, mask = _scores(how, own, q[...], k[...], i, j, until, at, there, size)
            weight = jnp.where(mask, jnp.exp(score - _column(lse)), 0)
            dscore = weight * (_dot(da[...], v[...], (1, 1)) - _column(mean)) * _slope(how, score)
            sum_[...] += _dot(dscore.astype(k.dtype), k[...], (1, 0))

        @pl.when(j == last)
        def end():
            dq[...] = sum_[...]

    queries, of_keys, at_queries, at_keys = _specs(how, N // K, own, last)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((B, N, T, H), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, N, T // how.block, last + 1),
            in_specs=[
                *(queries(H), of_keys(H), of_keys(H), at_keys, *_given(size_1, at_queries, at_keys)),
                *(queries(H), queries(), queries()),
            ],
            out_specs=queries(H),
            scratch_shapes=[pltpu.VMEM((how.block, H), jnp.float32)],
        ),
        compiler_params=_params('parallel', 'parallel', 'parallel', 'arbitrary'),
        interpret=how.interpret,
        name='flash_backward_queries',
    )(
        *_prefetched(how, keys, size_1),
        *(q_BNTH, keys.k_BKSH, keys.v_BKSH, keys.until_B1S, at_B1T, keys.position_B1S, da_BNTH, lse_BN1T, mean_BN1T),
    )


def _backward_keys(
    how: _How, q_BNTH: jax.Array, at_B1T: Any, size_1: Any, da_BNTH: Any, lse_BN1T: Any, mean_BN1T: Any, keys: Seen,
    *, own: bool,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """dk_BKSH and dv_BKSH, float32, of each row. Here scores stand the other way round, a key a line."""
    B, N, T, H = q_BNTH.shape
    K, S = keys.k_BKSH.shape[1:3]
    G, last, final = N // K, S // how.block - 1, T // how.block - 1

    def kernel(ended, size, q, k, v, until, at, there, da, lse, mean, dk, dv, dk_sum, dv_sum):
        b, j, g, i = pl.program_id(0), pl.program_id(2), pl.program_id(3), pl.program_id(4)

        @pl.when((g == 0) & (i == 0))
        def begin():
            dk_sum[...], dv_sum[...] = jnp.zeros_like(dk_sum), jnp.zeros_like(dv_sum)

        @pl.when(_runs(how, own, ended, b, i, j, last))
        def add():
            score, mask = _scores(how, own, q[...], k[...], i, j, until, at, there, size, keys_first=True)
            weight = jnp.where(mask, jnp.exp(score - lse[...]), 0)
            dscore = weight * (_dot(v[...], da[...], (1, 1)) - mean[...]) * _slope(how, score)
            dk_sum[...] += _dot(dscore.astype(q.dtype), q[...], (1, 0))
            dv_sum[...] += _dot(weight.astype(da.dtype), da[...], (1, 0))

        @pl.when((g == G - 1) & (i == final))
        def end():
            dk[...], dv[...] = dk_sum[...], dv_sum[...]

    def queries(*ends: int) -> pl.BlockSpec:
        def at(b, k, j, g, i, *_):
            i = jnp.maximum(i, j) if own else i
            return (b, k * G + g, i, 0) if ends else (b, k * G + g, 0, i)

        return pl.BlockSpec((None, None, how.block, *ends) if ends else (None, None, 1, how.block), at)

    row = (lambda b: b) if own else (lambda b: 0)
    of_keys = pl.BlockSpec((None, None, how.block, H), lambda b, k, j, g, i, *_: (row(b), k, j, 0))
    at_keys = pl.BlockSpec((None, 1, how.block), lambda b, k, j, g, i, *_: (row(b), 0, j))
    at_queries = pl.BlockSpec((None, 1, how.block), lambda b, k, j, g, i, *_: (b, 0, jnp.maximum(i, j) if own else i))
    out = pl.BlockSpec((None, None, how.block, H), lambda b, k, j, g, i, *_: (b, k, j, 0))
    return pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((B, K, S, H), jnp.float32)] * 2,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, last + 1, G, final + 1),
            in_specs=[
                *(queries(H), of_keys, of_keys, at_keys, *_given(size_1, at_queries, at_keys)),
                *(queries(H), queries(), queries()),
            ],
            out_specs=[out, out],
            scratch_shapes=[pltpu.VMEM((how.block, H), jnp.float32)] * 2,
        ),
        compiler_params=_params('parallel', 'parallel', 'parallel', 'arbitrary', 'arbitrary'),
        interpret=how.interpret,
        name='flash_backward_keys',
    )(
        *_prefetched(how, keys, size_1),
        *(q_BNTH, keys.k_BKSH, keys.v_BKSH, keys.until_B1S, at_B1T, keys.position_B1S, da_BNTH, lse_BN1T, mean_BN1T),
    )


def _scores(
    how: _How, own: bool, q: Any, k: Any, i: Any, j: Any, until: Any, at: Any, there: Any, size: Any,
    keys_first: bool = False,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The scores between block i of the queries and block j of the keys, and which of them are of use."""
    score = _dot(k, q, (1, 1)) if keys_first else _dot(q, k, (1, 1))
    if how.cap is not None:
        score = how.cap * jnp.tanh(score / how.cap)
    of_query, of_key = (lambda x: x[...], _column) if keys_first else (_column, lambda x: x[...])
    t = i * how.block + jax.lax.broadcasted_iota(jnp.int32, score.shape, 1 if keys_first else 0)
    mask = t < of_key(until)
    if own:
        mask &= j * how.block + jax.lax.broadcasted_iota(jnp.int32, score.shape, 0 if keys_first else 1) <= t
    if size is not None:
        mask &= of_query(at) - of_key(there) < size[0]
    return score, mask


def _slope(how: _How, score: jax.Array) -> jax.Array | float:
    """By how much a capped score grows with what was capped."""
    return 1.0 if how.cap is None else 1 - jnp.square(score / how.cap)


def _runs(how: _How, own: bool, ended: Any, b: Any, i: Any, j: Any, last: int) -> Any:
    """Whether any query of block i may see any key of block j."""
    if not own:
        return True
    return (j <= i) & (ended[b * (last + 1) + j] > i * how.block)


def _dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    return jax.lax.dot_general(a, b, ((axes[:1], axes[1:]), ((), ())), preferred_element_type=jnp.float32)


def _column(x: Any) -> jax.Array:
    """A line, one number a column, as a column, one number a line."""
    return x[0][:, None]


def _blocks(T: int, block: int) -> int:
    return -(-T // block)


def _prefetched(how: _How, keys: Seen, size_1: Any) -> tuple[jax.Array, jax.Array | None]:
    """What is known before a block is fetched: for each block of keys, where the last of them ends; the window."""
    return keys.until_B1S.reshape(-1, how.block).max(axis=1), size_1


def _given(size_1: Any, *specs: pl.BlockSpec) -> list[pl.BlockSpec | None]:
    """The specs of positions, which are there where a window is."""
    return [spec if size_1 is not None else None for spec in specs]


def _specs(how: _How, G: int, own: bool, last: int) -> Any:
    """Where blocks lie, of queries and keys, and of what is known of each; by rows, heads, i and j."""
    row = (lambda b: b) if own else (lambda b: 0)
    near = (lambda i, j: jnp.minimum(i, j)) if own else (lambda i, j: j)  # what is not used is not fetched

    def queries(*ends: int) -> pl.BlockSpec:
        if not ends:
            return pl.BlockSpec((None, None, 1, how.block), lambda b, n, i, j, *_: (b, n, 0, i))
        return pl.BlockSpec((None, None, how.block, *ends), lambda b, n, i, j, *_: (b, n, i, 0))

    def of_keys(H: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, how.block, H), lambda b, n, i, j, *_: (row(b), n // G, near(i, j), 0))

    at_queries = pl.BlockSpec((None, 1, how.block), lambda b, n, i, j, *_: (b, 0, i))
    at_keys = pl.BlockSpec((None, 1, how.block), lambda b, n, i, j, *_: (row(b), 0, near(i, j)))
    return queries, of_keys, at_queries, at_keys


def _params(*semantics: str) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=semantics)
