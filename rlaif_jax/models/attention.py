"""Attention: who sees whom, how much, and what comes of it. The model calls these; how they are computed is known here.

    a_BTNH = attention(q_BTNH, k_BSKH, v_BSKH, Sees(until_BS))                        tokens among themselves
    a_BTNH = look_back(q_BTNH, [Keys(k_RKSH, v_RKSH), Keys(k_BKSH, v_BKSH, sees)])    new tokens before what is kept

Which computation suits is chosen by what is known when a program is traced: devices, shapes, dtypes, and which arguments
there are. Kernels for one kind of device are in `kernels`; what they do not compute, plain XLA does here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlaif_jax import axes
from rlaif_jax.models import kernels

Number = jax.Array | float
ALWAYS = 2**30  # the end of what never ends: `until`, or a window that leaves nothing out


class Sees(NamedTuple):
    """Who sees whom: a slot is seen from itself up to the slot `until`, where what belongs to it has ended.

    Of plain text that is the end of the row, of padding 0: nobody sees it. Of a stem with branches, written one behind the
    other, it is the end of the row in the stem, and in a branch the end of the branch; of several texts in one row each
    text's own end. So any tree, written parent before child, each node followed by all that is below it, is one array.
    """

    until_BS: jax.Array  # int32
    slot_BT: jax.Array | None = (
        None  # at which slot each query stands; None: queries and keys are those of the same tokens
    )

    def picked(self, read_BW: jax.Array | None) -> Sees:
        """For the queries at `read_BW` alone."""
        if read_BW is None:
            return self
        slot_BW = read_BW if self.slot_BT is None else jnp.take_along_axis(self.slot_BT, read_BW, axis=1)
        return self._replace(slot_BT=slot_BW)

    def mask(self) -> jax.Array:
        """mask_BTS: whether the query sees the slot."""
        slot_11S = jnp.arange(self.until_BS.shape[1])[None, None]
        slot_BT1 = (slot_11S[0] if self.slot_BT is None else self.slot_BT)[..., None]
        return (slot_11S <= slot_BT1) & (slot_BT1 < self.until_BS[:, None])


class Text(Sees):
    """`Sees` of rows that hold one text each, with padding anywhere. That it is so is known when a program is traced."""


class Prefix(NamedTuple):
    """Keys and values that the queries of every row see before their own: what all texts begin with."""

    k_KPH: jax.Array
    v_KPH: jax.Array
    position_BP: jax.Array | None = None  # of one row; needed where there is a window


class Keys(NamedTuple):
    """Keys and values that are kept, of R rows, each for B / R neighbouring rows of queries: one, of what all texts begin
    with; fewer than B, of prompts with several responses each; or B, of what each row has written itself.
    """

    k_RKSH: jax.Array
    v_RKSH: jax.Array
    sees: Sees | None = None  # of R rows; None: all are seen
    position_RS: jax.Array | None = None  # needed where there is a window


class Window(NamedTuple):
    """A query sees what stands fewer than `size` positions behind it."""

    size: jax.Array  # a number of positions, the query's own included; may differ between layers of one scan
    position_BT: jax.Array  # of the queries
    position_BS: jax.Array  # of the keys
    sizes: tuple[int, ...] = ()  # all that `size` may be, where that is known when a program is traced

    def sees(self, position_BS: jax.Array) -> jax.Array:
        """mask_BTS for keys at these positions."""
        return self.position_BT[:, :, None] - position_BS[:, None, :] < self.size


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    sees: Sees,
    *,
    prefix: Prefix | None = None,
    window: Window | None = None,
    scale: Number | None = None,
    cap: Number | None = None,
) -> jax.Array:
    """Grouped-query attention, (B, T, N, H) in the queries' dtype; K divides N.

    Of what a query sees, and of the `prefix`, a `window` leaves the near ones. A query that sees nothing (padding) gets a
    mean of the values, finite and unused. `scale` (default H^-½) multiplies query · key, then `cap`, where there is one,
    takes the score to cap · tanh(score / cap).
    """
    asked = kernels.Asked(
        length=q_BTNH.shape[1], head_dim=q_BTNH.shape[3], dtype=q_BTNH.dtype.name, whole=sees.slot_BT is None,
        text=isinstance(sees, Text), prefixed=prefix is not None, capped=cap is not None,
        windows=None if window is None else window.sizes,
    )  # fmt: skip
    if kernel := kernels.chosen(asked):
        given = {'q_BTNH': q_BTNH, 'k_BTKH': k_BSKH, 'v_BTKH': v_BSKH, 'until_BT': sees.until_BS}
        if prefix is not None:
            given |= {'k_PKH': prefix.k_KPH.swapaxes(0, 1), 'v_PKH': prefix.v_KPH.swapaxes(0, 1)}
            given |= {} if prefix.position_BP is None else {'position_BP': prefix.position_BP}
        if window is not None:
            given |= {'size': window.size, 'position_BT': window.position_BT}
        return kernels.computed(kernel, given, scale=scale, cap=cap, windows=asked.windows)
    among = _attend_earlier if sees.slot_BT is None else _attend
    return among(q_BTNH, k_BSKH, v_BSKH, sees, prefix, window, scale, cap)


def look_back(
    q_BTNH: jax.Array,
    kept: Sequence[Keys],
    *,
    window: Window | None = None,
    scale: Number | None = None,
    cap: Number | None = None,
) -> jax.Array:
    """`attention` of new tokens, few of them, before all that is kept: (B, T, N, H). The last of `kept` holds their own.

    Each of `kept` is read where it lies, once for all the queries that it is for: keys and values with the slots last but
    one, so that no axis moves, which on a CPU takes a fifth of the time.
    """
    B, T, N, H = q_BTNH.shape
    K = kept[0].k_RKSH.shape[1]
    q_BTKGH = (q_BTNH * (H**-0.5 if scale is None else scale)).reshape(B, T, K, N // K, H)

    def by_row(x_BTKG: jax.Array, R: int) -> jax.Array:
        """(R, K, C, T, G, …)"""
        return jnp.moveaxis(x_BTKG.reshape(R, B // R, *x_BTKG.shape[1:]), 3, 1)

    def by_query(x_RKCTG: jax.Array) -> jax.Array:
        """(B, T, K, G, …)"""
        return jnp.moveaxis(x_RKCTG, 1, 3).reshape(B, T, K, N // K, *x_RKCTG.shape[5:])

    def scores(one: Keys) -> jax.Array:
        R, _, S, _ = one.k_RKSH.shape
        q_RKCTGH = by_row(q_BTKGH, R)
        q_RKXH = q_RKCTGH.reshape(R, K, -1, H)
        if axes.platform() == 'cpu':  # where few queries are a product's right side it takes half the time
            score_RKSX = jnp.einsum('RKSH,RKXH->RKSX', one.k_RKSH, q_RKXH, preferred_element_type=jnp.float32)
            score_RKXS = jax.lax.optimization_barrier(score_RKSX).swapaxes(2, 3)
        else:
            score_RKXS = jnp.einsum('RKXH,RKSH->RKXS', q_RKXH, one.k_RKSH, preferred_element_type=jnp.float32)
        score_RKCTGS = soft_cap(score_RKXS, cap).reshape(*q_RKCTGH.shape[:-1], S)
        if one.sees is not None:
            score_RKCTGS = jnp.where(one.sees.mask()[:, None, None, :, None], score_RKCTGS, -1e30)
        if window is not None:
            near_BTS = window.sees(jnp.repeat(one.position_RS, B // R, axis=0))
            near_RCTS = near_BTS.reshape(R, B // R, *near_BTS.shape[1:])
            score_RKCTGS = jnp.where(near_RCTS[:, None, :, :, None], score_RKCTGS, -1e30)
        return score_RKCTGS

    found = [scores(one) for one in kept]
    tops = [by_query(score_RKCTGS.max(axis=-1)) for score_RKCTGS in found]
    top_BTKG = jnp.stack(tops).max(axis=0)
    sum_BTKG, a_BTKGH = jnp.zeros(()), jnp.zeros(())
    for one, score_RKCTGS in zip(kept, found):
        R = one.k_RKSH.shape[0]
        weight_RKCTGS = jnp.exp(score_RKCTGS - by_row(top_BTKG, R)[..., None])
        sum_BTKG = sum_BTKG + by_query(weight_RKCTGS.sum(axis=-1))
        weight_RKXS = weight_RKCTGS.reshape(R, K, -1, weight_RKCTGS.shape[-1]).astype(one.v_RKSH.dtype)
        a_RKXH = jnp.einsum('RKXS,RKSH->RKXH', weight_RKXS, one.v_RKSH, preferred_element_type=jnp.float32)
        a_BTKGH = a_BTKGH + by_query(a_RKXH.reshape(*weight_RKCTGS.shape[:-1], H))
    return (a_BTKGH / sum_BTKG[..., None]).astype(q_BTNH.dtype).reshape(B, T, N, H)


def soft_cap(x: jax.Array, cap: Number | None) -> jax.Array:
    """cap · tanh(x / cap): x where it is small, never beyond the cap. Without a cap x itself."""
    return x if cap is None else cap * jnp.tanh(x / cap)


# In plain XLA, for any device


def _attend_earlier(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    sees: Sees,
    prefix: Prefix | None,
    window: Window | None,
    scale: Number | None,
    cap: Number | None,
) -> jax.Array:
    """`_attend` among the tokens of a whole text, a block of queries after the other: none sees a later slot, so that of
    the keys behind its block nothing is computed.
    """
    T = q_BTNH.shape[1]
    # Of four, 3/8 of the products fall away, of eight 7/16. A block of about a hundred queries is quickest on a CPU.
    blocks = min(-(-T // 64), max(4, min(8, T // 96)))
    edges = [T * i // blocks for i in range(blocks + 1)]

    def block(a: int, b: int) -> jax.Array:
        among = Sees(sees.until_BS[:, :b], jnp.arange(a, b)[None])
        near = window and Window(window.size, window.position_BT[:, a:b], window.position_BS[:, :b])
        return _attend(q_BTNH[:, a:b], k_BTKH[:, :b], v_BTKH[:, :b], among, prefix, near, scale, cap)

    return jnp.concatenate([block(a, b) for a, b in zip(edges, edges[1:])], axis=1)


@jax.checkpoint
def _attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    sees: Sees,
    prefix: Prefix | None,
    window: Window | None,
    scale: Number | None,
    cap: Number | None,
) -> jax.Array:
    """All scores at once. With K in front its products are one for each key-value head, and no axis has to be moved in
    between: on a CPU a fifth faster than with B in front. The softmax divides after the second product. The weights over
    T x S are computed again in the backward pass, which costs no more time than keeping them.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]

    def rows(x: jax.Array) -> jax.Array:
        return x.reshape(K, B, N // K * T, -1)

    q_KBGTH = (q_BTNH * (H**-0.5 if scale is None else scale)).reshape(B, T, K, N // K, H).transpose(2, 0, 3, 1, 4)
    score_KBGTS = _matmul32(rows(q_KBGTH), k_BSKH.transpose(2, 0, 3, 1)).reshape(K, B, N // K, T, -1)
    mask_BTS = sees.mask() if window is None else sees.mask() & window.sees(window.position_BS)
    score_KBGTS = jnp.where(mask_BTS[None, :, None], soft_cap(score_KBGTS, cap), -1e30)
    top_KBGT = score_KBGTS.max(axis=-1)
    if prefix is not None:
        k_KPH, v_KPH, position_BP = prefix
        score_KBGTP = jnp.einsum('KBGTH,KPH->KBGTP', q_KBGTH, k_KPH, preferred_element_type=jnp.float32)
        score_KBGTP = soft_cap(score_KBGTP, cap)
        if window is not None:
            score_KBGTP = jnp.where(window.sees(position_BP)[None, :, None], score_KBGTP, -1e30)
        top_KBGT = jnp.maximum(top_KBGT, score_KBGTP.max(axis=-1))
    top_KBGT = jax.lax.stop_gradient(top_KBGT)  # whatever is subtracted, the result is the same

    weight_KBGTS = jnp.exp(score_KBGTS - top_KBGT[..., None])
    sum_KBGT = weight_KBGTS.sum(axis=-1)
    a_KBGTH = _matmul32(rows(weight_KBGTS).astype(v_BSKH.dtype), v_BSKH.transpose(2, 0, 1, 3)).reshape(q_KBGTH.shape)
    if prefix is not None:
        weight_KBGTP = jnp.exp(score_KBGTP - top_KBGT[..., None])
        sum_KBGT += weight_KBGTP.sum(axis=-1)
        a_KBGTH += jnp.einsum(
            'KBGTP,KPH->KBGTH', weight_KBGTP.astype(v_KPH.dtype), v_KPH, preferred_element_type=jnp.float32
        )
    a_KBGTH = (a_KBGTH / sum_KBGT[..., None]).astype(q_BTNH.dtype)
    return a_KBGTH.transpose(1, 3, 0, 2, 4).reshape(B, T, N, H)


def _matmul32(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b`, accumulated and handed back in float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)
