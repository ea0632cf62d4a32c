"""Laws of every training step: parts are the whole, a bad gradient moves nothing, and a mesh changes no number."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlaif_jax import axes
from rlaif_jax.batching import together
from rlaif_jax.config import Mistake
from rlaif_jax.models.transformer import Config
from rlaif_jax.training import sft, state
from rlaif_jax.training.state import Optimizer, make_optimizer

MODEL = Config(vocab=40, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, ffn=24, max_length=32)
PAD = 0


def squares(params, batch):
    """A loss that is a sum over the tokens that count, with another sum beside it."""
    error_BT = batch['x_BT'] * params['w'] - batch['y_BT']
    weight_BT = batch['weight_BT']
    return jnp.sum(weight_BT * error_BT**2), {'count': jnp.sum(weight_BT), 'error': jnp.sum(weight_BT * error_BT)}


def uneven_batch():
    rng = np.random.default_rng(0)
    x_BT, y_BT = rng.standard_normal((2, 8, 5))
    weight_BT = np.arange(5) < np.array([5, 5, 4, 3, 1, 1, 0, 0])[:, None]  # rows 6 and 7 hold nothing
    return {'x_BT': jnp.asarray(x_BT), 'y_BT': jnp.asarray(y_BT), 'weight_BT': jnp.asarray(weight_BT, jnp.float32)}


@pytest.mark.parametrize('parts', [2, 4, 8])
def test_a_batch_in_parts_is_the_batch_whole(parts):
    """Parts with fewer tokens do not weigh more, down to a part with none; every metric is per token as well."""
    params, batch = {'w': jnp.float32(0.3)}, uneven_batch()
    whole, parted = (state.gradients(squares, params, batch, n) for n in (1, parts))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), parted, whole)
    n = float(batch['weight_BT'].sum())
    assert whole[1]['loss'] == pytest.approx(float(squares(params, batch)[0]) / n)
    assert whole[0]['w'] == pytest.approx(float(jax.grad(lambda p: squares(p, batch)[0])(params)['w']) / n)
    assert set(whole[1]) == {'loss', 'error'}


def test_a_batch_without_tokens_has_no_gradient():
    batch = uneven_batch() | {'weight_BT': jnp.zeros((8, 5))}
    grads, metrics = state.gradients(squares, {'w': jnp.float32(0.3)}, batch)
    assert grads['w'] == 0 and metrics['loss'] == 0


# updates


def test_a_bad_gradient_moves_nothing_and_is_counted():
    optimizer = make_optimizer(Optimizer(learning_rate=0.1), steps=10)
    step = jax.jit(partial(state.update, optimizer))
    good = {'w_D': jnp.array([1.0, -2.0]), 'b': jnp.array(0.5)}
    start = state.init_state(jax.tree.map(jnp.ones_like, good), optimizer)
    assert int(start['skipped']) == 0
    first, metrics = step(start, good)
    assert metrics['skipped'] == 0 and metrics['grad_norm'] == pytest.approx(np.sqrt(5.25))
    assert np.all(first['params']['w_D'] != 1)

    now = first
    for n, poison in enumerate((np.nan, np.inf, -np.inf), 1):
        now, metrics = step(now, good | {'b': jnp.array(poison, jnp.float32)})
        assert int(now['skipped']) == n and metrics['skipped'] == 1
        for kept in ('params', 'optimizer'):
            jax.tree.map(np.testing.assert_array_equal, now[kept], first[kept])
    assert int(step(now, good)[0]['skipped']) == 0  # only steps in a row count
    held, _ = step(first, good, jnp.array(False))  # a partner's gradient was bad
    jax.tree.map(np.testing.assert_array_equal, held['params'], first['params'])
    assert int(held['skipped']) == 1


def test_three_bad_steps_in_a_row_are_a_mistake():
    for n in range(3):
        state.check_finite('sft', 7, n)
    with pytest.raises(Mistake, match=r'sft: .* 3 .* step 7,.*sft\.optimizer\.learning_rate'):
        state.check_finite('sft', 7, 3)


def test_a_gradient_is_clipped_as_a_whole():
    """Longer ones keep their direction and get the length of the limit; shorter ones stay."""
    cfg = Optimizer(name='adamw', learning_rate=0.1, clip_norm=2.0)
    clip = jax.jit(lambda grads: optax.clip_by_global_norm(cfg.clip_norm).update(grads, ())[0])
    np.testing.assert_allclose(clip({'a': jnp.array([3.0]), 'b': jnp.array([-4.0])})['b'], [-1.6], rtol=1e-6)

    def moments(clip_norm, length):
        """Adam's first moment after one gradient of a length: 0.1 of what it was given."""
        optimizer = make_optimizer(dataclasses.replace(cfg, clip_norm=clip_norm), 10)
        w = {'w_D': jnp.zeros(2)}
        moved = optimizer.update({'w_D': jnp.array([0.6, 0.8]) * length}, optimizer.init(w), w)[1]
        return next(s.mu['w_D'] for s in jax.tree.leaves(moved, is_leaf=lambda s: hasattr(s, 'mu')) if hasattr(s, 'mu'))

    np.testing.assert_allclose(moments(2.0, 10.0), [0.12, 0.16], rtol=1e-5)
    np.testing.assert_allclose(moments(2.0, 1.0), [0.06, 0.08], rtol=1e-5)
    np.testing.assert_allclose(moments(0.0, 10.0), [0.6, 0.8], rtol=1e-5)


def rates(cfg, steps):
    """The learning rate of each step, read off AdamW with a constant gradient: it moves by the rate, but for epsilon."""
    optimizer = make_optimizer(cfg, steps)

    @jax.jit
    def walk():
        def step(carry, _):
            w, s = carry
            updates, s = optimizer.update(jnp.float32(1.0), s, w)
            return (w + updates, s), -updates

        return jax.lax.scan(step, (jnp.float32(0.0), optimizer.init(jnp.float32(0.0))), length=steps)[1]

    return np.asarray(walk())


@pytest.mark.parametrize('decay', ['constant', 'linear', 'cosine'])
@pytest.mark.parametrize('warmup', [0, 4])
def test_schedules(decay, warmup):
    """Up in equal steps from the first on, then constant, or down to about a tenth at the last step."""
    lr = 0.01
    rate = rates(Optimizer(name='adamw', learning_rate=lr, warmup_steps=warmup, decay=decay, clip_norm=0), 24)
    np.testing.assert_allclose(rate[:warmup], lr * np.arange(1, warmup + 1) / max(warmup, 1), rtol=1e-4)
    after = rate[warmup:]
    assert after[0] == pytest.approx(lr, rel=1e-4)
    if decay == 'constant':
        np.testing.assert_allclose(after, lr, rtol=1e-4)
    else:
        assert np.all(np.diff(after) < 0)
        t = np.arange(len(after)) / len(after)
        shape = {'linear': 1 - t, 'cosine': (1 + np.cos(np.pi * t)) / 2}[decay]
        np.testing.assert_allclose(after, lr * (0.1 + 0.9 * shape), rtol=1e-3)


def test_weight_decay_pulls_to_zero():
    optimizer = make_optimizer(Optimizer(name='adamw', learning_rate=0.1, weight_decay=0.5), 10)
    w = {'w_D': jnp.ones(2)}
    updates, _ = optimizer.update({'w_D': jnp.zeros(2)}, optimizer.init(w), w)
    np.testing.assert_allclose(updates['w_D'], -0.1 * 0.5, rtol=1e-6)  # by the learning rate, so the two scale together


@pytest.mark.parametrize(
    'more, says',
    [
        ({'learning_rate': 0.0}, r'learning_rate .*positive.* 0\.0'),
        ({'learning_rate': float('nan')}, 'learning_rate .*positive.* nan'),
        ({'warmup_steps': -1}, 'warmup_steps .*negative.* -1'),
        ({'weight_decay': 0.1}, 'weight_decay .*adamw'),
        ({'clip_norm': -1.0}, r'clip_norm .*negative.* -1\.0'),
    ],
)
def test_an_optimizer_that_cannot_be(more, says):
    with pytest.raises(ValueError, match=says):
        Optimizer(**more)


def test_a_batch_that_does_not_fall_into_parts():
    state.check_parts('batch', 8, 4)
    for batch, parts, told in ((8, 3, 'batch = 8 .* 3 '), (8, 0, 'batch = 8 .* 0 '), (0, 1, 'batch .* 0$')):
        with pytest.raises(ValueError, match=told):
            state.check_parts('batch', batch, parts)
    with pytest.raises(ValueError, match='batch = 8 .* 3 .*parts'):
        sft.Config(batch=8, parts=3)


# supervised fine-tuning

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [], [12, 13], [14, 15, 16, 17], [18], [19, 20]]
RESPONSES = [[21, 2], [22, 23, 24, 2], [25, 2], [26, 27, 2], [2], [28, 29, 30, 31, 32, 2], [33, 34, 2], [35] * 12]
LENGTH = 8


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(MODEL)


@pytest.fixture(scope='module')
def batch():
    return sft.example_batch(PROMPTS, RESPONSES, LENGTH, PAD)


def test_targets_are_what_follows(batch):
    """Column t predicts the token behind it; the weight is 1 where that is of the response, the end token included."""
    for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES)):
        row = (prompt + response)[: LENGTH + 1]
        n = len(row) - 1
        assert batch['token_BT'][b, :n].tolist() == row[:n]
        assert batch['target_BT'][b, :n].tolist() == row[1:]
        assert np.all(batch['token_BT'][b, n:] == PAD)
        weighted = batch['target_BT'][b, batch['weight_BT'][b] == 1].tolist()
        assert weighted == row[max(len(prompt), 1) :]  # nothing predicts a first token
        assert batch['valid_BT'][b].sum() == n
    assert set(np.unique(batch['weight_BT'])) == {0.0, 1.0}
    assert {x.shape for name, x in batch.items() if name != 'read_BW'} == {(len(PROMPTS), LENGTH)}


def test_only_weighted_targets_are_learned(params, batch):
    loss = jax.jit(partial(sft.loss, MODEL))
    total, sums = loss(params, batch)
    assert sums['count'] == batch['weight_BT'].sum()
    other = np.where(batch['weight_BT'] == 0, 39, batch['target_BT'])
    assert loss(params, batch | {'target_BT': other})[0] == total
    padded = np.where(batch['valid_BT'], batch['token_BT'], 39)
    assert loss(params, batch | {'token_BT': padded})[0] == pytest.approx(float(total), rel=1e-6)
    assert loss(params, batch | {'weight_BT': 0 * batch['weight_BT']})[0] == 0
    half = loss(params, batch | {'weight_BT': batch['weight_BT'] / 2})
    assert half[0] == pytest.approx(float(total) / 2, rel=1e-6)
    # One row after another is the batch.
    one = lambda b: batch | {'weight_BT': batch['weight_BT'] * (np.arange(8) == b)[:, None]}  # noqa: E731
    assert sum(float(loss(params, one(b))[0]) for b in range(8)) == pytest.approx(float(total), rel=1e-5)


def test_texts_that_share_rows_are_the_same_batch(params, batch):
    """Packed as tightly as it goes, no text sees another; gradient and loss are those of a row each."""
    sizes = [min(len(a) + len(b) - 1, LENGTH) for a, b in zip(PROMPTS, RESPONSES)]
    rows = together(sizes, LENGTH, 8)
    assert sorted(sum(rows, [])) == list(range(8)) and max(sum(sizes[i] for i in row) for row in rows) <= LENGTH
    assert -(-sum(sizes) // LENGTH) <= len(rows) < 8
    loss = jax.jit(jax.value_and_grad(partial(sft.loss, MODEL), has_aux=True))
    (total, sums), grads = loss(params, batch)
    (found, counts), others = loss(params, sft.example_batch(PROMPTS, RESPONSES, LENGTH, PAD, rows))
    assert counts == sums and float(found) == pytest.approx(float(total), rel=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-4), others, grads)
    assert [len(together(sizes, LENGTH, 8, splits)) % splits for splits in (1, 2, 4, 8)] == [0] * 4


@pytest.mark.parametrize('rows', [None, [[0, 1], [2], [3, 4], [5, 6, 7]]], ids=['alone', 'shared'])
def test_slots_without_weight_are_not_read_and_nothing_else_is_left_out(params, rows, monkeypatch):
    monkeypatch.setattr(sft, 'READ', 4)
    whole = sft.example_batch([row[:3] for row in PROMPTS], [row[:4] for row in RESPONSES], 24, PAD, rows)
    read_BW = whole.pop('read_BW')
    assert read_BW.shape[1] % 4 == 0 and read_BW.shape[1] < 24
    for b, row_W in enumerate(read_BW):
        assert row_W[row_W < 24].tolist() == np.flatnonzero(whole['weight_BT'][b]).tolist()
    loss = jax.jit(jax.value_and_grad(partial(sft.loss, MODEL), has_aux=True))
    (total, sums), grads = loss(params, whole)
    (found, counts), others = loss(params, whole | {'read_BW': read_BW})
    assert counts == sums and float(found) == pytest.approx(float(total), rel=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), others, grads)


def test_a_longer_batch_has_the_same_loss(params):
    """How far a batch is padded is a matter of speed alone."""
    rows = PROMPTS[:-1], RESPONSES[:-1]  # which fit
    of_length = lambda length: sft.loss(MODEL, params, sft.example_batch(*rows, length, PAD))  # noqa: E731
    (total, sums), (found, counts) = of_length(LENGTH + 1), of_length(LENGTH + 8)
    assert counts == sums and float(found) == pytest.approx(float(total), rel=1e-6)


def test_a_step_on_a_mesh_is_the_step(params, batch, capfd):
    """Eight devices, in two parts and with remat, take the step that one device takes plainly; Adafactor's state lies where
    its names say, and the parameters that were handed in are still there.
    """
    after = []
    capfd.readouterr()
    for sizes, parts, remat in (({}, 1, False), ({'data': 2, 'fsdp': 2, 'tensor': 2}, 2, True)):
        mesh = axes.make_mesh(sizes)
        moves = Optimizer(learning_rate=1e-2, clip_norm=0.5)
        cfg = sft.Config(steps=10, batch=8, parts=parts, remat=remat, optimizer=moves)
        with jax.set_mesh(mesh):
            init, step = sft.make_step(cfg, MODEL, mesh)
            now, metrics = step(init(params), params, jax.device_put(batch, axes.rows(mesh)))
        assert np.isfinite(params['embed_VD']).all()
        where = axes.shardings(now, mesh)
        jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(str(s)), now, where)
        after.append(jax.device_get((now, metrics)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), after[1], after[0])
    moved = after[0][0]['params']
    assert all(np.abs(moved[name] - params[name]).max() > 1e-3 for name in params)
    assert after[0][1]['loss'] > 0 and after[0][1]['skipped'] == 0
    assert 'full rematerialization' not in capfd.readouterr().err  # nothing is replicated only to be split otherwise


def test_remat_recomputes_layers(params, batch):
    def program(remat: bool) -> str:
        init, step = sft.make_step(sft.Config(steps=10, batch=8, remat=remat), MODEL, mesh)
        return str(jax.make_jaxpr(step)(jax.eval_shape(init, params), params, batch))

    mesh = axes.make_mesh()
    with jax.set_mesh(mesh):
        assert program(True).count('remat') > program(False).count('remat')  # logits are computed again in any case
