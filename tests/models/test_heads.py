"""Laws of what is read off the hidden states: the chunked log-probabilities are the plain ones, in a part of the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from rlaif_jax.models import heads
from rlaif_jax.models.transformer import Config, causal

CFG = Config(vocab=48, layers=1, width=12, heads=2, kv_heads=1, head_dim=4, ffn=16, tied=False)
B, T, CHUNK = 3, 11, 4  # T is not a multiple of the chunk
rng = np.random.default_rng(0)
HIDDEN_BTD = jnp.asarray(rng.standard_normal((B, T, CFG.width)), jnp.float32)
ALLOWED_V = np.arange(CFG.vocab) % 5 != 0
TARGET_BT = jnp.asarray(rng.choice(np.flatnonzero(ALLOWED_V), (B, T)))
WEIGHT_BT = jnp.asarray(rng.standard_normal((B, T)), jnp.float32)


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(CFG)


def chunked(params, hidden_BTD, allowed_V, temperature, chunk=CHUNK):
    logp_BT, entropy_BT = heads.token_logprob(
        CFG, params, hidden_BTD, TARGET_BT, allowed_V=allowed_V, temperature=temperature, chunk=chunk
    )
    return jnp.sum(WEIGHT_BT * logp_BT), (logp_BT, entropy_BT)


def plain(params, hidden_BTD, allowed_V, temperature):
    logit_BTV = jnp.einsum('BTD,DV->BTV', hidden_BTD, params['unembed_DV']) / temperature
    logp_BTV = jax.nn.log_softmax(jnp.where(allowed_V[None, None], logit_BTV, -jnp.inf))
    logp_BT = jnp.take_along_axis(logp_BTV, TARGET_BT[..., None], axis=-1)[..., 0]
    entropy_BT = -jnp.sum(jnp.where(allowed_V[None, None], jnp.exp(logp_BTV) * logp_BTV, 0.0), axis=-1)
    return jnp.sum(WEIGHT_BT * logp_BT), (logp_BT, entropy_BT)


both = [jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True)) for f in (chunked, plain)]


@pytest.mark.parametrize('temperature', [1.0, 0.7])
@pytest.mark.parametrize('allowed_V', [np.ones_like(ALLOWED_V), ALLOWED_V], ids=['all', 'some'])
def test_chunked_is_plain(params, allowed_V, temperature):
    """Values, entropies, and gradients to the hidden states and to the parameters."""
    got, expected = (f(params, HIDDEN_BTD, allowed_V, temperature) for f in both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


def test_one_chunk_is_many(params):
    _, one = jax.jit(chunked, static_argnums=4)(params, HIDDEN_BTD, ALLOWED_V, 0.9, T)
    (_, many), _ = both[0](params, HIDDEN_BTD, ALLOWED_V, 0.9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, many)


def test_a_token_that_is_not_allowed_has_no_probability_and_no_gradient(params):
    logit_BTV = heads.logits(CFG, params, HIDDEN_BTD, ALLOWED_V)
    p_BTV = jax.nn.softmax(logit_BTV)
    assert np.all(p_BTV[..., ~ALLOWED_V] == 0)
    np.testing.assert_allclose(p_BTV.sum(-1), 1, rtol=1e-6)
    _, (grads, _) = both[0](params, HIDDEN_BTD, ALLOWED_V, 1.0)
    assert np.all(grads['unembed_DV'][:, ~ALLOWED_V] == 0)
    assert np.all(np.any(grads['unembed_DV'][:, ALLOWED_V] != 0, axis=0))


def test_entropy_carries_no_gradient(params):
    grad = jax.jit(jax.grad(lambda h: jnp.sum(chunked(params, h, ALLOWED_V, 1.0)[1][1])))(HIDDEN_BTD)
    assert np.all(grad == 0)


def largest_array(jaxpr) -> int:
    """Elements of the largest value anywhere in a program, inner programs included."""
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, 'size')]
    inner = [sub for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params)]
    return max([0, *sizes, *map(largest_array, inner)])


@pytest.mark.parametrize('T', [32, 40, 64])
def test_the_logits_of_a_whole_batch_never_exist(params, T):
    """Neither forward nor backward: nothing in the program is as large as B × T × V, and no more than a chunk of it."""
    V, chunk = CFG.vocab, 8

    def total(params, hidden_BTD):
        target_BT = jnp.zeros((B, T), jnp.int32)
        return jnp.sum(heads.token_logprob(CFG, params, hidden_BTD, target_BT, chunk=chunk)[0])

    program = jax.make_jaxpr(jax.value_and_grad(total, argnums=(0, 1)))(params, jnp.ones((B, T, CFG.width)))
    assert B * chunk * V <= largest_array(program.jaxpr) < B * T * V
    compiled = jax.jit(jax.grad(total)).lower(params, jnp.ones((B, T, CFG.width))).as_text()
    assert f'tensor<{B}x{T}x{V}xf32>' not in compiled
    assert f'tensor<{B}x{chunk}x{V}xf32>' in compiled


def test_tied_logits_are_inner_products_with_the_embedding(random_params):
    cfg = Config(vocab=48, layers=1, width=12, heads=2, kv_heads=1, head_dim=4, ffn=16, tied=True)
    params = random_params(cfg)
    assert 'unembed_DV' not in params
    expected_BTV = np.asarray(HIDDEN_BTD) @ np.asarray(params['embed_VD']).T
    np.testing.assert_allclose(heads.logits(cfg, params, HIDDEN_BTD), expected_BTV, rtol=1e-5, atol=1e-5)


def test_a_fresh_head_says_zero():
    np.testing.assert_array_equal(heads.scalar(heads.scalar_head(CFG.width), HIDDEN_BTD), np.zeros((B, T)))


def test_a_score_is_read_at_the_true_last_token(params):
    """Tokens behind it, and how many there are, change nothing; the last token itself does."""
    head = {'head_D': jnp.arange(1.0, CFG.width + 1), 'head_bias': jnp.float32(0.5)}
    model = {'trunk': params, 'head': head}
    length_B = np.array([5, T, 2])
    valid_BT = np.arange(T) < length_B[:, None]
    position_BT, sees = causal(jnp.asarray(valid_BT))

    @jax.jit
    def read(token_BT):
        score_B = heads.score(CFG, model, token_BT, position_BT, sees, length_B - 1)
        return score_B, heads.value(CFG, model, token_BT, position_BT, sees)

    token_BT = rng.integers(0, CFG.vocab, (B, T))
    expected_B, value_BT = read(token_BT)
    np.testing.assert_allclose(expected_B, value_BT[np.arange(B), length_B - 1], rtol=1e-6)  # another program
    np.testing.assert_array_equal(read(np.where(valid_BT, token_BT, 1))[0], expected_B)
    changed_BT = np.where(np.arange(T) == length_B[:, None] - 1, (token_BT + 1) % CFG.vocab, token_BT)
    assert np.all(np.abs(read(changed_BT)[0] - expected_B) > 1e-3)
