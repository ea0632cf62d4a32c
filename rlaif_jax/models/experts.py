"""A mixture of experts: of many MLPs with gates each token passes a few, which its router chooses.

    weight_BTE = routed(h_BTD, router_DE, chosen=8, shared=True)
    m_BTD = mixture({'h_BTD': h_BTD, 'weight_BTE': weight_BTE, 'gate_EDF': …, 'up_EDF': …, 'down_EFD': …}, silu, chosen=8)

On a mesh each device computes its own experts for its rows, or its share of every expert where the mesh does not divide
them, and the shares are added up. On TPUs tokens are sorted by expert, and each group meets its own matrix alone
(`jax.lax.ragged_dot`). Elsewhere XLA spells that product out as one of all experts with all tokens, once for each expert
chosen, so there every expert sees all tokens, one expert after the other: the work of a dense model of this size.

Experts have no limit of tokens, so nothing hangs on what else is in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from rlaif_jax import axes

# The matrices of a layer's experts, and over which axis each sums.
FAN_IN = {'gate_LEDF': 'D', 'up_LEDF': 'D', 'down_LEFD': 'F'}
WHOLE = axes.RULES | {'D': ()}  # where they are computed: gathered along fsdp, as any matrix is
Activation = Callable[[jax.Array], jax.Array]


def routed(h_BTD: jax.Array, router_DE: jax.Array, *, chosen: int, shared: bool) -> jax.Array:
    """weight_BTE, float32: how much each expert's output counts, 0 for all but the `chosen` most likely ones of a token.
    `shared`: what these have is scaled to sum to 1.
    """
    logit_BTE = jnp.einsum('BTD,DE->BTE', h_BTD.astype(jnp.float32), router_DE, precision='highest')
    probability_BTE = jax.nn.softmax(logit_BTE, axis=-1)
    _, best = jax.lax.top_k(probability_BTE, chosen)
    taken_BTE = jax.nn.one_hot(best, router_DE.shape[1], dtype=bool).any(axis=-2)
    weight_BTE = jnp.where(taken_BTE, probability_BTE, 0)
    return weight_BTE / weight_BTE.sum(axis=-1, keepdims=True) if shared else weight_BTE


def mixture(given: Mapping[str, jax.Array], activation: Activation, chosen: int) -> jax.Array:
    """m_BTD: of each token the sum of its experts' outputs, down(activation(gate(h)) · up(h)), by weight.

    given: h_BTD, weight_BTE, and in the dtype of h gate_EDF, up_EDF, down_EFD.
    """
    compute = partial(grouped, chosen=chosen) if axes.platform() == 'tpu' else in_turn

    def here(given: Mapping[str, jax.Array]) -> jax.Array:
        h, weight = (given[name].reshape(-1, given[name].shape[-1]) for name in ('h_BTD', 'weight_BTE'))
        m = compute(h, weight, given['gate_EDF'], given['up_EDF'], given['down_EFD'], activation)
        return m.reshape(given['h_BTD'].shape)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return here(given)
    specs = {name: axes.spec(axes.letters(name), x.shape, mesh, WHOLE) for name, x in given.items()}
    over = axes.RULES['E']

    def share(given: Mapping[str, jax.Array]) -> jax.Array:
        return jax.lax.psum(here(given), over) if over in specs['gate_EDF'] else here(given)

    return jax.shard_map(share, in_specs=(specs,), out_specs=specs['h_BTD'], check_vma=False)(dict(given))


# Of rows of tokens: h (rows, D), weight (rows, E).


def in_turn(
    h: jax.Array, weight: jax.Array, gate_EDF: jax.Array, up_EDF: jax.Array, down_EFD: jax.Array, activation: Activation
) -> jax.Array:
    """By one expert after the other."""

    @jax.checkpoint  # backward, too, no two experts' activations lie there at once
    def add(m: jax.Array, expert: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        share, gate_DF, up_DF, down_FD = expert
        return m + share[:, None] * ((activation(h @ gate_DF) * (h @ up_DF)) @ down_FD), None

    m, _ = jax.lax.scan(add, jnp.zeros(h.shape, jnp.float32), (weight.T, gate_EDF, up_EDF, down_EFD))
    return m.astype(h.dtype)


def grouped(
    h: jax.Array, weight: jax.Array, gate_EDF: jax.Array, up_EDF: jax.Array, down_EFD: jax.Array,
    activation: Activation, *, chosen: int,
) -> jax.Array:  # fmt: skip
    """By groups of tokens that have chosen the same expert. At most `chosen` weights of a token are above 0."""
    experts = weight.shape[1]
    chosen = min(chosen, experts)  # of those that are here
    share, expert = (x.reshape(-1) for x in jax.lax.top_k(weight, chosen))
    order = jnp.argsort(jnp.where(share > 0, expert, experts))  # what is chosen elsewhere comes last, and is no group's
    token, share = order // chosen, share[order][:, None]
    product = partial(jax.lax.ragged_dot, group_sizes=(weight > 0).sum(axis=0, dtype=jnp.int32))
    # Products leave anything in rows of no group, and hand back anything for them: nothing goes in or out there.
    x = jnp.where(share > 0, h[token], 0)
    out = product(activation(product(x, gate_EDF)) * product(x, up_EDF), down_EFD)
    out = jnp.where(share > 0, out, 0)  # before its share: 0 times anything may be no number, backwards too
    return jnp.zeros(h.shape, jnp.float32).at[token].add(share * out).astype(h.dtype)
