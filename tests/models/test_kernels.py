"""Laws of rlaif_jax.models.kernels and flash: a kernel computes what the formula says, or says why it does not."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from experiments import chips
from rlaif_jax import axes
from rlaif_jax.models import kernels, transformer
from rlaif_jax.models.attention import Sees
from rlaif_jax.models.flash import flash, merge
from rlaif_jax.models.kernels import Asked, computed, refused
from rlaif_jax.models.transformer import Config

B, T, N, K, H, P, BLOCK = 2, 20, 4, 2, 8, 5, 8  # no length is a multiple of the block
# Rows as they occur: what each slot's `until` is, and the positions.
TEXT = [0] * 3 + [99] * 15 + [0] * 2, [0] * 3 + [*range(15)] + [0] * 2
STEM = [18] * 8 + [13] * 5 + [18] * 5 + [0] * 2, [*range(8), *range(8, 13), *range(8, 13), 0, 0]
PACKED = [9] * 9 + [11] * 2 + [20] * 9, [*range(9), *range(2), *range(9)]
TREE = [19] * 4 + [12] * 2 + [9] * 3 + [12] * 3 + [19] * 7 + [0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8, *range(4, 11), 0]


def formula(given, *, scale=None, cap=None):
    """All scores at once, from a dense mask."""
    q, k, v, until = (given[name] for name in ('q_BTNH', 'k_BTKH', 'v_BTKH', 'until_BT'))
    at, there = given.get('position_BT'), given.get('position_BT')
    t = jnp.arange(q.shape[1])
    seen = (t[None, None] <= t[None, :, None]) & (t[None, :, None] < until[:, None])
    if 'k_PKH' in given:
        before = lambda x, to: jnp.concatenate([jnp.broadcast_to(x, (len(q), *x.shape[1:])), to], axis=1)  # noqa: E731
        k, v = before(given['k_PKH'][None], k), before(given['v_PKH'][None], v)
        seen = before(jnp.ones((1, P, q.shape[1]), bool), seen.swapaxes(1, 2)).swapaxes(1, 2)
        there = before(given['position_BP'], there) if 'position_BP' in given else there
    if 'size' in given:
        seen &= at[:, :, None] - there[:, None] < given['size']
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    score = jnp.einsum('btnh,bsnh->bnts', q * (q.shape[3] ** -0.5 if scale is None else scale), k)
    score = score if cap is None else cap * jnp.tanh(score / cap)
    weight = jax.nn.softmax(jnp.where(seen[:, None], score, -1e30).astype(jnp.float32), axis=-1)
    return jnp.einsum('bnts,bsnh->btnh', weight.astype(q.dtype), v)


def arrays(*rows, prefixed=False, size=None, dtype='float32', seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    until, position = (jnp.asarray(x, jnp.int32) for x in zip(*rows))
    size_of = len(until), until.shape[1]
    given = {'q_BTNH': draw(*size_of, N, H), 'k_BTKH': draw(*size_of, K, H), 'v_BTKH': draw(*size_of, K, H)}
    given |= {'until_BT': until}
    if prefixed:
        given |= {'k_PKH': draw(P, K, H), 'v_PKH': draw(P, K, H)}
    if size is not None:
        given |= {'size': jnp.int32(size), 'position_BT': position + P * prefixed}
        given |= {'position_BP': jnp.arange(P)[None]} if prefixed else {}
    return given


def agree(ours, given, tolerance, **how):
    """Values and gradients by all that is real are the formula's; what sees nothing is finite and moves nothing."""
    traced = {name: x for name, x in given.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    fixed = {name: x for name, x in given.items() if name not in traced}
    seen_BTNH = (given['until_BT'] > 0)[..., None, None]
    wanted = jnp.asarray(np.random.default_rng(9).standard_normal(given['q_BTNH'].shape), jnp.float32)

    def both(call, traced):
        def loss(traced):
            a_BTNH = call(traced | fixed, **how)
            return jnp.sum(jnp.where(seen_BTNH, a_BTNH.astype(jnp.float32) * wanted, 0)), a_BTNH

        return jax.grad(loss, has_aux=True)(traced)

    gradient, a_BTNH = jax.jit(partial(both, ours))(traced)
    float32 = jax.tree.map(lambda x: x.astype(jnp.float32), traced)
    expected_gradient, expected = jax.jit(partial(both, formula))(float32)
    assert a_BTNH.dtype == given['q_BTNH'].dtype and jnp.isfinite(a_BTNH).all()
    np.testing.assert_allclose(
        *(jnp.where(seen_BTNH, x, 0) for x in (a_BTNH, expected)), rtol=tolerance, atol=tolerance
    )
    for name, x in expected_gradient.items():
        assert gradient[name].dtype == traced[name].dtype and jnp.abs(x).max() > 0.01
        np.testing.assert_allclose(gradient[name], x, rtol=tolerance, atol=tolerance, err_msg=name)


def small(given, **how):
    """`flash` in blocks so small that there are several."""
    names = 'q_BTNH', 'k_BTKH', 'v_BTKH', 'until_BT'
    window = (given['size'], given['position_BT'], given.get('position_BP')) if 'size' in given else None
    prefix = (given['k_PKH'], given['v_PKH']) if 'k_PKH' in given else None
    given = [given[name] for name in names]
    return flash(*given, prefix=prefix, window=window, block=BLOCK, interpret=True, **how)


CASES = {
    'text': (arrays(TEXT, STEM), {}),
    'packed': (arrays(PACKED, TREE), {'scale': 0.7}),
    'capped': (arrays(PACKED, STEM), {'scale': 0.7, 'cap': 1.5}),
    'window': (arrays(STEM, TREE, size=4), {}),
    'prefix': (arrays(TREE, STEM, prefixed=True), {}),
    'all': (arrays(STEM, TEXT, prefixed=True, size=12), {'cap': 1.5}),
}


@pytest.mark.parametrize('case', CASES)
def test_flash_is_its_formula(case):
    """Of texts padded on both sides, side by side, in a tree: with grouped heads, forward and backward."""
    given, how = CASES[case]
    agree(small, given, 1e-5, **how)


def test_flash_in_bfloat16_is_its_formula_up_to_rounding():
    agree(small, arrays(STEM, PACKED, dtype='bfloat16'), 0.06)


def test_flash_computes_again_what_it_does_not_keep():
    agree(jax.checkpoint(small), arrays(STEM), 1e-5)


def test_parts_that_are_merged_are_the_whole():
    """Gradients through the sums too, also of a part in which nothing is seen."""
    rng = np.random.default_rng(0)
    score, value = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 7), (7, 4)))
    edges = [(0, 2), (2, 3), (3, 7)]

    def whole(score, value):
        return jax.nn.softmax(score) @ value

    def parted(score, value):
        outs = [whole(score[:, a:b], value[a:b]) for a, b in edges]
        lses = [jax.nn.logsumexp(score[:, a:b], axis=1) for a, b in edges]
        outs, lses = [*outs, jnp.ones((3, 4))], [*lses, jnp.full(3, -1e30)]
        return merge(outs, lses)[0]

    @partial(jax.jit, static_argnums=0)
    def both(f, *given):
        return f(*given), jax.grad(lambda *x: jnp.sum(jnp.sin(f(*x))), argnums=(0, 1))(*given)

    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, *(both(f, score, value) for f in (whole, parted)))


@pytest.mark.parametrize('sizes', [{'data': 2, 'tensor': 2}, {'tensor': 4}])
def test_on_a_mesh_every_device_has_its_rows_and_heads(sizes):
    """Also where there are fewer keys and values than devices that share the heads."""
    mesh = axes.make_mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])
    with jax.set_mesh(mesh):
        agree(partial(computed, 'flash', interpret=True), arrays(STEM, TEXT), 1e-5)


@pytest.mark.parametrize('window', [None, 6])
def test_texts_are_pushed_together_for_cudnn(window):
    """With XLA in its place, which is asked the same."""
    holes = [0, 99, 99, 0, 0] + [99] * 14 + [0], [0, 0, 1, 2, 2, *range(2, 16), 0]
    given = arrays(TEXT, holes, size=window)
    agree(partial(computed, 'cudnn', windows=(0, 6), interpret=True), given, 1e-5)


@pytest.mark.slow
def test_a_model_is_the_same_by_kernels(monkeypatch, random_params):
    """On a mesh, behind a prefix, with windows that differ, computing layers again; and a cache is filled alike."""
    cfg = Config(vocab=40, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=24, windows=(0, 6), remat=True)
    params, token_BT = random_params(cfg), np.random.default_rng(0).integers(0, cfg.vocab, (2, T))
    until_BT, position_BT = (jnp.asarray(x, jnp.int32) for x in zip(STEM, TEXT))

    def loss(params, prefix):
        cache = transformer.make_cache(cfg, 2, T + 3)
        given = cfg, params, token_BT, P + position_BT, Sees(until_BT)
        hidden_BTD, _ = transformer.forward(*given, before=(prefix,))
        again_BTD, cache = transformer.forward(*given, cache, (prefix,))
        real_BT1 = (until_BT > 0)[..., None]
        return jnp.sum(jnp.where(real_BT1, jnp.sin(hidden_BTD) + again_BTD**2, 0)), cache['value_LBKSH']

    def both():
        first = transformer.causal(jnp.ones((1, P), bool))
        _, prefix = transformer.forward(cfg, params, token_BT[:1, :P], *first, transformer.make_cache(cfg, 1, P))
        with jax.set_mesh(axes.make_mesh({'data': 2, 'tensor': 2})):
            (total, value_LBKSH), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, prefix)
        return total, jnp.where((until_BT > 0)[None, :, None, :, None], value_LBKSH[:, :, :, :T], 0), gradient

    expected, asked = both(), []
    monkeypatch.setattr(kernels, 'chosen', lambda one: asked.append(one) or ('flash' if one.length == T else ''))
    monkeypatch.setattr(kernels, 'computed', partial(computed, interpret=True))
    found = both()
    assert sum(one.whole and one.prefixed for one in asked if one.length == T) >= 2
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


WHOLE = Asked(1024, 64, 'bfloat16', text=True)
H100 = 'gpu', 'NVIDIA H100 80GB HBM3'


@pytest.mark.parametrize('changed, device, word', [
    ({}, ('cpu',), 'cpu'), ({'whole': False}, ('tpu',), 'cache'), ({'length': 100}, ('tpu',), '128'),
    ({'head_dim': 512}, ('tpu',), '512'), ({'dtype': 'float16'}, ('tpu',), 'float16'),
    ({'dtype': 'float32'}, H100, 'float32'),
    ({'head_dim': 256}, H100, '256'), ({'capped': True}, H100, 'cap'), ({'prefixed': True}, H100, 'prefix'),
    ({'text': False}, H100, 'branches'), ({'windows': ()}, H100, 'window'), ({}, ('gpu', 'gfx942'), 'gfx942'),
])  # fmt: skip
def test_what_a_kernel_cannot_do_is_refused_by_name(changed, device, word):
    kernel = 'tpu' if device == ('cpu',) else device[0]
    assert not refused(WHOLE, kernel, H100[1])
    asked = Asked(**{**WHOLE.__dict__, **changed})
    assert word in refused(asked, *device)


def test_no_kernel_is_used_where_none_is_wanted(monkeypatch):
    monkeypatch.setenv('RLAIF_ATTENTION', 'xla')
    assert 'RLAIF_ATTENTION' in refused(WHOLE, 'tpu') and 'RLAIF_ATTENTION' in refused(WHOLE, *H100)


def test_the_mesh_says_which_kernel(capsys):
    """Also of devices that are not here."""

    def on(platform, kind):
        device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
        mesh = AbstractMesh((1, 1, 1), axes.MESH_AXES, (jax.sharding.AxisType.Auto,) * 3, abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            return kernels.chosen(WHOLE)

    assert [on('tpu', 'TPU v5 lite'), on(*H100), on('cpu', 'cpu'), kernels.chosen(WHOLE)] == ['flash', 'cudnn', '', '']
    said = capsys.readouterr().out
    assert 'TPU v5 lite' in said and 'flash' in said and 'cudnn' in said and 'cpu' not in said


def test_cudnn_is_asked_without_a_mask(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)  # there is none here
    T = 512
    shapes = jax.eval_shape(lambda: arrays(([99] * T, [*range(T)]), dtype='bfloat16'))

    def loss(given):
        return jax.grad(lambda q: computed('cudnn', given | {'q_BTNH': q}).astype(jnp.float32).sum())(given['q_BTNH'])

    text = jax.jit(loss).trace(shapes).lower(lowering_platforms=('cuda',)).as_text()
    assert text.count('__cudnn$fmhaSoftmax') >= 2 and f'{T}x{T}' not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    'chip, head_dim, dtype', [('v5e', 64, 'bfloat16'), ('v5p', 256, 'float32'), ('v6e', 128, 'bfloat16')]
)
def test_flash_compiles_for_a_tpu_and_holds_no_matrix_of_scores(chip, head_dim, dtype):
    pytest.importorskip('libtpu')
    T = 1024
    device = chips.slice_of(chips.CHIPS[chip], chips.CHIPS[chip].shapes[0]).devices()[0]
    mesh = axes.make_mesh({}, [device])
    shapes = jax.eval_shape(lambda: arrays(([99] * T, [*range(T)]), prefixed=True, size=700, dtype=dtype))
    shapes = {name: jax.ShapeDtypeStruct(
        x.shape[:-1] + (head_dim,) if name.endswith('H') else x.shape, x.dtype, sharding=axes.replicated(mesh)
    ) for name, x in shapes.items()}  # fmt: skip

    def loss(given):
        trained = {name: given[name] for name in ('q_BTNH', 'k_BTKH', 'v_BTKH')}
        call = jax.checkpoint(partial(computed, 'flash', cap=50.0))
        return jax.grad(lambda trained: call(given | trained).astype(jnp.float32).sum())(trained)

    with jax.set_mesh(mesh):
        text = jax.jit(loss).lower(shapes).compile().as_text()
    assert {'flash_forward', 'flash_backward_queries', 'flash_backward_keys'} <= set(
        re.findall(r'flash_\w+[a-z]', text)
    )
    assert not re.search(rf'\b{T},{T}\b', text)
