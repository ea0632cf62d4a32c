"""Laws of experts: a token's output is that of those that its router chose, by weight, however it is computed and over
however many devices; gradients reach these and no others.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax import axes
from rlaif_jax.models import experts, heads, transformer
from rlaif_jax.models.transformer import Config

CFG = Config(61, 2, 16, 4, 2, 8, 12, tied=False, experts=4, chosen=2)
B, T, D, F = 4, 6, 16, 12


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {'gate_EDF': (count, D, F), 'up_EDF': (count, D, F), 'down_EFD': (count, F, D)}
    matrices = {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    h_BTD, router_DE = rng.standard_normal((B, T, D)), rng.standard_normal((D, count))
    return h_BTD.astype(np.float32), router_DE.astype(np.float32), matrices


def by_hand(h_BTD, router_DE, matrices, chosen, shared):
    """Token by token, expert by expert."""
    out_BTD = np.zeros_like(h_BTD)
    for at in np.ndindex(h_BTD.shape[:2]):
        h_D = h_BTD[at]
        chance_E = np.exp(h_D @ router_DE) / np.exp(h_D @ router_DE).sum()
        best = sorted(range(len(chance_E)), key=lambda e: -chance_E[e])[:chosen]
        for e in best:
            gate_F, up_F = h_D @ matrices['gate_EDF'][e], h_D @ matrices['up_EDF'][e]
            weight = chance_E[e] / (sum(chance_E[best]) if shared else 1)
            out_BTD[at] += weight * (np.maximum(gate_F, 0) * up_F) @ matrices['down_EFD'][e]
    return out_BTD


@pytest.mark.parametrize('chosen, shared', [(1, True), (3, True), (3, False), (5, False)])
def test_a_token_passes_the_experts_that_its_router_likes_best(chosen, shared):
    h_BTD, router_DE, matrices = drawn(5)
    weight_BTE = experts.routed(h_BTD, router_DE, chosen=chosen, shared=shared)
    assert ((weight_BTE > 0).sum(axis=-1) == chosen).all()
    found = experts.mixture({'h_BTD': h_BTD, 'weight_BTE': weight_BTE} | matrices, jax.nn.relu, chosen)
    np.testing.assert_allclose(found, by_hand(h_BTD, router_DE, matrices, chosen, shared), rtol=0, atol=1e-5)


@pytest.mark.parametrize('here', [slice(0, 6), slice(2, 4)], ids=['all', 'some'])
def test_groups_say_the_same_as_one_expert_after_the_other(here, monkeypatch):
    """And give the same gradients, also on a device that has some of the experts: what it has not counts 0 there, whatever
    products leave in its rows.
    """
    plain = jax.lax.ragged_dot

    def leaves(x, matrices, group_sizes):
        in_group = jnp.arange(len(x))[:, None] < group_sizes.sum()
        return jnp.where(in_group, plain(x, matrices, group_sizes), jnp.nan)

    monkeypatch.setattr(jax.lax, 'ragged_dot', leaves)
    h_BTD, router_DE, matrices = drawn(6)
    some = {name: x[here] for name, x in matrices.items()}

    def total(compute, h_BTD, router_DE, some):
        weight_BTE = experts.routed(h_BTD, router_DE, chosen=3, shared=True)
        weight = weight_BTE[..., here].reshape(B * T, -1)
        three = (some[name] for name in ('gate_EDF', 'up_EDF', 'down_EFD'))
        out = compute(h_BTD.reshape(-1, D), weight, *three, jax.nn.silu)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    found = [
        jax.value_and_grad(partial(total, compute), (0, 1, 2), has_aux=True)(h_BTD, router_DE, some)
        for compute in (experts.in_turn, partial(experts.grouped, chosen=3))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), *found)
    assert np.abs(found[0][0][1]).max() > 0.1


def test_gradients_reach_the_chosen_alone():
    h_BTD, router_DE, matrices = drawn(5)
    router_DE = np.zeros((D, 5), np.float32)
    h_BTD[..., 0], router_DE[0] = 1.0, [3.0, 0.0, 2.0, 0.0, 0.0]  # experts 0 and 2, for all tokens

    def total(router_DE, matrices):
        weight_BTE = experts.routed(h_BTD, router_DE, chosen=2, shared=True)
        return experts.mixture({'h_BTD': h_BTD, 'weight_BTE': weight_BTE} | matrices, jax.nn.silu, 2).sum()

    router, found = jax.grad(total, (0, 1))(router_DE, matrices)
    for name, x in {'router': router.T, **found}.items():
        assert [bool(np.abs(one).max() > 1e-5) for one in x] == [True, False, True, False, False], name


@partial(jax.jit, static_argnums=0)
def loss(cfg, params, token_BT):
    hidden_BTD, _ = transformer.forward(cfg, params, token_BT, *transformer.causal(jnp.ones(token_BT.shape, bool)))
    return heads.token_logprob(cfg, params, hidden_BTD, token_BT)[0]


# Whole experts on each device, shares of each, and experts that the mesh divides in no way.
@pytest.mark.parametrize('count, ffn, split', [(4, F, 0), (5, F, 2), (5, 11, None)])
@pytest.mark.parametrize('mesh', [{'tensor': 4}, {'fsdp': 2, 'tensor': 2}], ids=str)
def test_over_devices_a_mixture_is_as_on_one(count, ffn, split, mesh):
    h_BTD, router_DE, matrices = drawn(count)
    matrices = {name: x[..., :ffn] if name.endswith('F') else x[:, :ffn] for name, x in matrices.items()}
    given = {'h_BTD': h_BTD, 'router_DE': router_DE} | matrices

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def total(given):
        weight_BTE = experts.routed(given['h_BTD'], given['router_DE'], chosen=2, shared=True)
        out_BTD = experts.mixture(
            {name: given[name] for name in ('h_BTD', *matrices)} | {'weight_BTE': weight_BTE}, jax.nn.silu, 2
        )
        return (out_BTD**2).sum(), out_BTD

    mesh = axes.make_mesh(mesh)
    placed = axes.place(given, mesh)
    assert [i for i, name in enumerate(placed['gate_EDF'].sharding.spec) if name == 'tensor'] == (
        [] if split is None else [split]
    )
    with jax.set_mesh(mesh):
        found = total(placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, total(given))


@pytest.mark.slow
def test_over_devices_a_model_is_trained_as_on_one(random_params):
    cfg = replace(CFG, layers=1)
    params, token_BT = random_params(cfg), np.random.default_rng(0).integers(0, 61, (B, T))
    step = jax.jit(jax.value_and_grad(lambda params: loss(cfg, params, token_BT).mean()))
    mesh = axes.make_mesh({'fsdp': 2, 'tensor': 2})
    with jax.set_mesh(mesh):
        found = step(axes.place(params, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), found, step(params))


def test_layers_may_lie_apart(random_params):
    params, token_BT = random_params(CFG), np.random.default_rng(0).integers(0, 61, (B, T))
    apart = transformer.apart(CFG, params)
    np.testing.assert_allclose(loss(CFG, apart, token_BT), loss(CFG, params, token_BT), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    'sizes', [{'chosen': 5}, {'chosen': 0}, {'experts': 0}, {'mlp_bias': True}, {'gated': False}], ids=str
)
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match='experts'):
        replace(CFG, **sizes)
