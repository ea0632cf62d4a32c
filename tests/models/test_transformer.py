"""Laws of the model: names are shapes, the cache and the padding are invisible, the mask alone says who sees whom."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax import axes
from rlaif_jax.models import heads, transformer
from rlaif_jax.models.attention import ALWAYS, Sees
from rlaif_jax.models.transformer import Config, Rope, causal, forward, init, make_cache, rope

CFG = Config(vocab=40, layers=3, width=16, heads=4, kv_heads=2, head_dim=6, ffn=24, max_length=64)
# Layers that differ, in all that can: a window here and there, positions of two kinds and none.
MIXED = dataclasses.replace(
    CFG, windows=(3, 0, 2), ropes=(Rope(), Rope(1e3, factor=2.0), Rope(factor=math.inf)), attention_cap=2.0,
    attention_scale=0.7, qk_norm='head', norm_at='around',
)  # fmt: skip
BOTH = pytest.mark.parametrize('cfg', [CFG, MIXED], ids=['plain', 'mixed'])
B, T = 8, 8
TOKEN = np.random.default_rng(0).integers(0, CFG.vocab, (B, T))

run = jax.jit(forward, static_argnums=0)


def plain(cfg, params, token_BT):
    """Hidden states of unpadded text, without a cache."""
    return run(cfg, params, jnp.asarray(token_BT), *causal(jnp.ones(token_BT.shape, bool)))[0]


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(CFG)


@pytest.mark.parametrize(
    'more',
    [
        {},
        {'tied': False},
        {'qkv_bias': True, 'qk_norm': 'all', 'norm_at': 'after'},
        {'tied': False, 'qkv_bias': True, 'out_bias': True, 'mlp_bias': True, 'qk_norm': 'head', 'norm_at': 'around'},
        {'norm': 'layer', 'norm_at': 'around', 'gated': False, 'mlp_bias': True, 'parallel': True},
    ],
)
def test_a_parameter_has_the_shape_that_its_name_says(more):
    cfg = dataclasses.replace(CFG, **more)
    shapes = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
    assert sorted(shapes) == sorted(cfg.names)
    for name, leaf in shapes.items():
        assert leaf.shape == tuple(cfg.sizes[letter] for letter in axes.letters(name)), name
        assert leaf.dtype == jnp.float32
    assert ('unembed_DV' in shapes) == (not cfg.tied)
    assert ('query_bias_LNH' in shapes) == cfg.qkv_bias


def test_fresh_parameters_are_of_the_right_size():
    """Norms and biases do nothing; matrices keep the size of what passes through, residual branches take a share each."""
    cfg = dataclasses.replace(CFG, qkv_bias=True)
    names = ('final_norm_D', 'mlp_norm_LD', 'query_bias_LNH', 'embed_VD', 'down_LFD')
    params = jax.jit(lambda key: {name: init(cfg, key)[name] for name in names})(jax.random.key(0))
    for name in names[:3]:
        assert np.all(params[name] == ('norm' in name)), name
    assert np.std(params['embed_VD']) == pytest.approx(CFG.width**-0.5, rel=0.1)
    assert np.std(params['down_LFD']) == pytest.approx((2 * CFG.layers * CFG.ffn) ** -0.5, rel=0.1)


@pytest.mark.parametrize('cfg, chunks', [(CFG, (5, 1, 1, 1)), (CFG, (1, 1, 5, 1)), (MIXED, (5, 1, 1, 1))])
def test_the_cache_is_invisible(random_params, cfg, chunks):
    params = random_params(cfg)
    expected_BTD = plain(cfg, params, TOKEN)
    cache = make_cache(cfg, B, T + 1)  # a slot more than is filled
    start = 0
    for n in chunks:
        t = start + jnp.arange(n)
        sees = Sees(jnp.full((B, T + 1), ALWAYS), t[None])
        position_BT = jnp.broadcast_to(t, (B, n))
        hidden_BTD, cache = run(cfg, params, jnp.asarray(TOKEN[:, start : start + n]), position_BT, sees, cache)
        close(hidden_BTD, expected_BTD[:, start : start + n])
        start += n
        assert int(cache['length']) == start


@pytest.mark.parametrize('cfg', [CFG, dataclasses.replace(CFG, kv_heads=4, qkv_bias=True), MIXED])
@pytest.mark.parametrize('cached', [False, True])
def test_a_prefix_stands_before_every_row(random_params, cached, cfg):
    """Kept once as a cache of one row, seen by all: hidden states are those of prefix and row written out, with a cache
    for the rows or without.
    """
    P, params = 3, random_params(cfg)
    before_BT = np.broadcast_to(TOKEN[:1, :P], (B, P))
    expected_BTD = plain(cfg, params, np.concatenate([before_BT, TOKEN[:, P:]], axis=1))[:, P:]
    _, prefix = run(cfg, params, jnp.asarray(before_BT[:1]), *causal(jnp.ones((1, P), bool)), make_cache(cfg, 1, P))
    position_BT, sees = causal(jnp.ones((B, T - P), bool))
    cache = make_cache(cfg, B, T - P) if cached else None
    hidden_BTD, cache = run(cfg, params, jnp.asarray(TOKEN[:, P:]), P + position_BT, sees, cache, (prefix,))
    close(hidden_BTD, expected_BTD)
    assert cache is None or int(cache['length']) == T - P  # the prefix takes none of its slots


@BOTH
def test_padding_is_invisible(random_params, cfg):
    """On either side, of any length, whatever tokens it holds: logits at real positions are those of the text alone."""
    real, params = TOKEN[:, :5], random_params(cfg)
    expected_BTV = heads.logits(cfg, params, plain(cfg, params, real))
    for left in range(4):
        token_BT = np.full((B, T), 7)
        token_BT[:, left : left + 5] = real
        valid_BT = np.zeros((B, T), bool)
        valid_BT[:, left : left + 5] = True
        hidden_BTD, _ = run(cfg, params, jnp.asarray(token_BT), *causal(jnp.asarray(valid_BT)))
        assert np.isfinite(hidden_BTD).all()
        close(heads.logits(cfg, params, hidden_BTD)[:, left : left + 5], expected_BTV)


def test_a_later_token_changes_nothing_earlier(params):
    before = np.asarray(plain(CFG, params, TOKEN))
    for t in (1, 4, T - 1):
        changed = TOKEN.copy()
        changed[:, t] = (changed[:, t] + 1) % CFG.vocab
        after = np.asarray(plain(CFG, params, changed))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (
            np.abs(after[:, t:] - before[:, t:]).max(axis=(0, 2)).min() > 1e-3
        )  # and everything later does hear of it


def test_a_window_is_how_far_a_layer_sees(random_params):
    """With one layer, a token changes itself and the next window − 1, and no other."""
    cfg = dataclasses.replace(CFG, layers=1, windows=(3,))
    params = random_params(cfg)
    changed = TOKEN.copy()
    changed[:, 2] = (changed[:, 2] + 1) % cfg.vocab
    moved_T = np.abs(np.asarray(plain(cfg, params, changed) - plain(cfg, params, TOKEN))).max(axis=(0, 2)) > 0
    assert moved_T.tolist() == [2 <= t < 5 for t in range(T)]


def test_slow_pairs_turn_slower():
    """By the whole factor those that turn less than `low` times in `length` positions, not at all those above `high`."""
    stretched = Rope(1e4, factor=8.0, spared=(1.0, 4.0, 64))
    turned = lambda kind: np.arctan2(*rope(jnp.ones((1, 1)), 16, kind)[::-1]).ravel()  # noqa: E731  radians a position
    plain, slow = turned(Rope(1e4)), turned(stretched)
    turns = plain * 64 / (2 * np.pi)
    np.testing.assert_allclose(slow[turns > 4], plain[turns > 4], rtol=1e-6)
    np.testing.assert_allclose(slow[turns < 1], plain[turns < 1] / 8, rtol=1e-5)
    between = (turns > 1) & (turns < 4)
    assert between.any() and np.all((plain / 8 < slow)[between] & (slow < plain)[between])


def test_grouped_queries_are_repeated_heads(params):
    """K key-value heads are N heads of which every N/K are the same."""
    full = dataclasses.replace(CFG, kv_heads=CFG.heads)
    repeated = params | {name: jnp.repeat(params[name], 2, axis=2) for name in ('key_LDKH', 'value_LDKH')}
    close(plain(full, repeated, TOKEN), plain(CFG, params, TOKEN))


@pytest.mark.parametrize(
    'cfg', [CFG, dataclasses.replace(CFG, layers=1), MIXED, dataclasses.replace(MIXED, parallel=True)]
)
@pytest.mark.parametrize('cached', [False, True])
def test_hidden_states_are_the_same_where_only_some_are_read(random_params, cached, cfg):
    """In any order, one of them twice, with a prefix; and the cache is filled all the same."""
    P, params = 2, random_params(cfg)
    _, prefix = run(cfg, params, TOKEN[:1, :P], *causal(jnp.ones((1, P), bool)), make_cache(cfg, 1, P))
    position_BT, sees = causal(jnp.ones((B, T), bool))
    cache = make_cache(cfg, B, T) if cached else None
    hidden_BTD, all_filled = run(cfg, params, TOKEN, P + position_BT, sees, cache, (prefix,))
    read_BW = np.random.default_rng(2).integers(0, T, (B, 3))
    hidden_BWD, filled = run(cfg, params, TOKEN, P + position_BT, sees, cache, (prefix,), read_BW)
    close(hidden_BWD, np.take_along_axis(np.asarray(hidden_BTD), read_BW[..., None], axis=1))
    jax.tree.map(close, filled, all_filled)


@BOTH
def test_branches_are_separate_texts(random_params, cfg):
    """A trunk with two branches, told apart by where each ends alone: each branch is what it is behind the trunk alone."""
    params = random_params(cfg)
    trunk, one, two = TOKEN[:, :3], TOKEN[:, 3:5], TOKEN[:, 5:]
    position_T = np.array([0, 1, 2, 3, 4, 3, 4, 5])
    until_T = np.array([8, 8, 8, 5, 5, 8, 8, 8])
    position_BT, until_BT = np.broadcast_to(position_T, (B, T)), np.broadcast_to(until_T, (B, T))
    tree_BTD, _ = run(cfg, params, jnp.asarray(TOKEN), jnp.asarray(position_BT), Sees(jnp.asarray(until_BT)))
    for branch, where in ((one, [0, 1, 2, 3, 4]), (two, [0, 1, 2, 5, 6, 7])):
        alone = np.concatenate([trunk, branch], axis=1)
        filled = np.pad(alone, ((0, 0), (0, T - alone.shape[1])))  # behind the text, so nobody sees it
        close(tree_BTD[:, where], plain(cfg, params, filled)[:, : alone.shape[1]])


def test_rotary_positions_are_relative(params):
    """Hidden states depend on how far apart tokens are, not on where they stand."""
    position_BT, sees = causal(jnp.ones((B, T), bool))
    close(run(CFG, params, jnp.asarray(TOKEN), position_BT + 31, sees)[0], plain(CFG, params, TOKEN), 1e-4)


@BOTH
def test_layers_one_by_one_are_the_scan(random_params, cfg, monkeypatch):
    """Which accelerators and deep models have: for hidden states, for some of them, and for gradients through both."""
    params, token_BT, read_BW = random_params(cfg), jnp.asarray(TOKEN), jnp.full((B, 2), T - 2)
    seen, found = causal(jnp.ones((B, T), bool)), []

    def some(params):
        return forward(cfg, params, token_BT, *seen, read_BW=read_BW)[0]

    def loss(params):
        return jnp.sum(jnp.sin(forward(cfg, params, token_BT, *seen)[0]))

    def loss_of_some(params):
        return jnp.sum(jnp.sin(transformer.forward_at(cfg, params, token_BT, *seen, read_BW)))

    for most in (transformer.UNROLLED, 0):
        monkeypatch.setattr(transformer, 'UNROLLED', most)
        assert ('scan[' in str(jax.make_jaxpr(lambda params: some(params))(params))) == (most == 0)
        found.append((some(params), *(jax.value_and_grad(one)(params) for one in (loss, loss_of_some))))
    jax.tree.map(lambda a, b: close(a, b, 1e-4), *found)


def test_remat_keeps_only_what_enters_a_layer(params):
    """What the layers hand from forward to backward, in bytes. That the gradients are the same is tested with SFT."""

    def kept(cfg):
        total = lambda params: jnp.sum(forward(cfg, params, jnp.asarray(TOKEN), *causal(jnp.ones((B, T), bool)))[0])  # noqa: E731
        program = jax.make_jaxpr(lambda params: jax.vjp(total, params)[1])(params).jaxpr
        made = set(program.outvars) - set(program.invars)  # parameters are there anyway
        return sum(v.aval.size * v.aval.dtype.itemsize for v in made if v.aval.shape[:1] == (CFG.layers,))

    x_LBTD = CFG.layers * B * T * CFG.width * 4
    assert kept(dataclasses.replace(CFG, remat=True)) < 1.1 * x_LBTD < 5 * x_LBTD < kept(CFG)


def test_bfloat16_is_for_matrix_products_only(params):
    cfg = dataclasses.replace(CFG, dtype='bfloat16')
    hidden_BTD = plain(cfg, params, TOKEN)
    assert hidden_BTD.dtype == jnp.bfloat16
    logit_BTV = heads.logits(cfg, params, hidden_BTD)
    assert logit_BTV.dtype == jnp.float32
    expected_BTV = heads.logits(CFG, params, plain(CFG, params, TOKEN))
    assert 1e-4 < np.abs(logit_BTV - expected_BTV).mean() < 0.05  # another precision, the same model
    assert make_cache(cfg, 1, 2)['key_LBKSH'].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    'cfg, sizes',
    [(CFG, {'data': 8}), (CFG, {'data': 2, 'fsdp': 2, 'tensor': 2}), (MIXED, {'data': 2, 'fsdp': 2, 'tensor': 2})],
)
def test_a_mesh_changes_nothing(random_params, cfg, sizes):
    mesh, params = axes.make_mesh(sizes), random_params(cfg)
    expected_BTD = plain(cfg, params, TOKEN)
    with jax.set_mesh(mesh):
        token_BT = jax.device_put(TOKEN, axes.rows(mesh))
        hidden_BTD = plain(cfg, axes.place(params, mesh), token_BT)
    close(hidden_BTD, expected_BTD)
    assert len(hidden_BTD.sharding.device_set) == 8


@pytest.mark.parametrize(
    'more, says',
    [
        ({'layers': 0}, 'layers .*positive.* 0'),
        ({'kv_heads': 3}, 'kv_heads = 3 .* heads = 4'),
        ({'head_dim': 5}, 'head_dim = 5 .* even '),
        ({'windows': ()}, 'ropes and windows .* one '),
        ({'ropes': (Rope(), Rope(fraction=0.5))}, 'same .* head_dim = 6 '),
    ],
)
def test_sizes_that_cannot_be(more, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(CFG, **more)
