"""Laws of rlaif_jax.models.attention: it is its formula, however it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax import axes
from rlaif_jax.models.attention import ALWAYS, Keys, Prefix, Sees, Window, attention, look_back


def formula(q_TNH, k_SKH, v_SKH, seen_TS, scale=None, cap=None):
    """One query at a time, one head at a time, in float64."""
    out = np.zeros(q_TNH.shape)
    for t, n in np.ndindex(q_TNH.shape[:2]):
        head = n * k_SKH.shape[1] // q_TNH.shape[1]
        score = k_SKH[seen_TS[t], head] @ q_TNH[t, n] * (q_TNH.shape[2] ** -0.5 if scale is None else scale)
        weight = np.exp(score if cap is None else cap * np.tanh(score / cap))
        out[t, n] = weight @ v_SKH[seen_TS[t], head] / weight.sum()
    return out


@pytest.mark.parametrize('windowed', [False, True])
@pytest.mark.parametrize('prefixed', [False, True])
@pytest.mark.parametrize('how', [{}, {'scale': 0.7, 'cap': 1.5}], ids=['plain', 'capped'])
def test_attention_is_its_formula(windowed, prefixed, how):
    """Whatever a query may see of the slots, of a prefix before them, and within a window of both."""
    rng = np.random.default_rng(1)
    B, T, S, P = 2, 3, 5, 4
    q, k, v = (rng.standard_normal((B, n, h, 6)) for n, h in ((T, 4), (S, 2), (S, 2)))
    before_k, before_v = (rng.standard_normal((2, P, 6)) for _ in range(2))
    # Some slots are padding, some have ended at one query and not yet at another; all see the slot 2.
    until = np.where(rng.random((B, S)) < 0.3, 0, rng.integers(0, S + 2, (B, S)))
    until[:, 2] = S
    slot = np.array([[2, 3, 4], [3, 4, 2]])
    seen = (np.arange(S) <= slot[..., None]) & (slot[..., None] < until[:, None])
    place, there = np.array([[7, 8, 9], [6, 7, 8]]), np.array([[4, 5, 6, 7, 8], [4, 5, 6, 7, 8]])
    near = lambda at: place[:, :, None] - at[:, None] < (5 if windowed else 99)  # noqa: E731
    float32 = lambda *xs: [jnp.asarray(x, jnp.float32) for x in xs]  # noqa: E731
    out = jax.jit(attention)(
        *float32(q, k, v),
        Sees(jnp.asarray(until), jnp.asarray(slot)),
        prefix=Prefix(*float32(before_k, before_v), jnp.arange(P)[None]) if prefixed else None,
        window=Window(jnp.int32(5), jnp.asarray(place), jnp.asarray(there)) if windowed else None,
        **how,
    )
    seen &= near(there)
    for b in range(B):
        keys, values, seen_TS = k[b], v[b], seen[b]
        if prefixed:
            keys, values = (np.concatenate([x.swapaxes(0, 1), y]) for x, y in ((before_k, keys), (before_v, values)))
            seen_TS = np.concatenate([near(np.arange(P)[None])[b], seen_TS], axis=1)
        np.testing.assert_allclose(out[b], formula(q[b], keys, values, seen_TS, **how), rtol=0, atol=1e-5)


@pytest.mark.parametrize('T', [1, 63, 64, 65, 150, 300, 600])
def test_of_a_whole_text_what_stands_later_is_left_out(T):
    """And nothing else: whatever of the earlier slots a query may see, of a prefix, and within a window."""
    rng = np.random.default_rng(T)
    q, k, v = (jnp.asarray(rng.standard_normal((2, T, h, 6)), jnp.float32) for h in (4, 2, 2))
    until_BT = jnp.asarray(np.where(rng.random((2, T)) < 0.3, 0, np.arange(T) + rng.integers(1, T + 1, (2, T))))
    prefix = Prefix(*(jnp.asarray(rng.standard_normal((2, 5, 6)), jnp.float32) for _ in range(2)), jnp.arange(5)[None])
    place = jnp.broadcast_to(5 + jnp.arange(T), (2, T))
    for before, window in ((None, None), (prefix, None), (prefix, Window(jnp.int32(T // 2 + 3), place, place))):
        whole, any_way = (
            jax.jit(attention)(q, k, v, Sees(until_BT, slot_BT), prefix=before, window=window)
            for slot_BT in (None, jnp.arange(T)[None])
        )
        seeing = np.asarray(Sees(until_BT).mask().any(-1)) | (before is not None)
        np.testing.assert_allclose(whole[seeing], any_way[seeing], rtol=0, atol=1e-5)


@pytest.mark.parametrize('T', [1, 3])
@pytest.mark.parametrize('how', [{}, {'scale': 0.7, 'cap': 1.5}], ids=['plain', 'capped'])
@pytest.mark.parametrize('windowed', [False, True])
@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_looking_back_is_its_formula(platform, windowed, how, T, monkeypatch):
    """New tokens before what one row has for all, what a row has for two each, some of it padding, and their own."""
    rng = np.random.default_rng(3)
    B, P, S, R = 4, 3, 5, 6
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    q = draw(B, T, 4, 6)
    rows = {'all': (1, P), 'pair': (2, S), 'own': (4, R)}
    k, v = ({name: draw(n, 2, slots, 6) for name, (n, slots) in rows.items()} for _ in range(2))
    valid = np.array([[False, True, True, True, True], [True] * S])
    slot = 2 + np.arange(T)[None]  # each row has written two tokens before
    at = {'all': np.arange(P)[None], 'pair': P + np.cumsum(valid, 1) - 1}
    at['own'] = np.repeat(P + valid.sum(1), 2)[:, None] + np.arange(R)
    position = np.take_along_axis(at['own'], np.repeat(slot, B, 0), axis=1)
    monkeypatch.setattr(axes, 'platform', lambda: platform)  # where the products are written otherwise
    out = jax.jit(lambda *given, **how: look_back(*given, **how))(
        q,
        [
            Keys(k['all'], v['all'], None, at['all']),
            Keys(k['pair'], v['pair'], Sees(np.where(valid, ALWAYS, 0), np.full((1, 1), S)), at['pair']),
            Keys(k['own'], v['own'], Sees(np.full((B, R), ALWAYS), slot), at['own']),
        ],
        window=Window(jnp.int32(5), position, position) if windowed else None,
        **how,
    )
    for b in range(B):
        one = lambda of: np.concatenate([of['all'][0], of['pair'][b // 2], of['own'][b]], axis=1).swapaxes(0, 1)  # noqa: B023, E731
        there = np.concatenate([at['all'][0], at['pair'][b // 2], at['own'][b]])
        fixed = np.concatenate([[True] * P, valid[b // 2]])
        seen = np.stack([np.concatenate([fixed, np.arange(R) <= slot[0, t]]) for t in range(T)])
        seen &= (position[b][:, None] - there[None] < 5) | (not windowed)
        np.testing.assert_allclose(out[b], formula(q[b], one(k), one(v), seen, **how), rtol=0, atol=1e-5)


def test_a_query_that_sees_nothing_gets_finite_numbers():
    q, k, v = (jnp.ones((1, 2, 2, 4)) * n for n in (1, 2, 3))
    out = attention(q, k, v, Sees(jnp.zeros((1, 2), int)))
    np.testing.assert_array_equal(out, 3)
