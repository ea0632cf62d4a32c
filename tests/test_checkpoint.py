"""Laws of rlaif_jax.checkpoint: what comes back is bit for bit what went in, or a Mistake says what to do."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlaif_jax import checkpoint
from rlaif_jax.checkpoint import Checkpoints
from rlaif_jax.config import Mistake, Passing

Moments = namedtuple('Moments', ['mu', 'nu', 'empty'])


def make_state(seed=0, width=256):
    weights = jax.random.normal(jax.random.key(seed), (8, width)).at[0, 0].set(jnp.nan)
    return {
        'params': {'w_DF': weights, 'half_D': weights[:, 0].astype(jnp.bfloat16)},
        'optimizer': (Moments(weights * 2, weights[0], ()), None, {}),
        'step': jnp.int32(seed),
        'bits': jnp.array([seed, 2**32 - 1], jnp.uint32),
        'flags': jnp.array([True, False]),
    }


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def place(state, sharding):
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding(leaf)), state)


def over_all_devices(leaf):
    mesh = Mesh(np.array(jax.devices()), ('data',))
    whole = leaf.ndim == 0 or leaf.shape[0] % len(jax.devices())
    return NamedSharding(mesh, PartitionSpec() if whole else PartitionSpec('data'))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A run folder with steps 10 and 20; a test that changes it copies it."""
    folder = tmp_path_factory.mktemp('written')
    with Checkpoints(folder) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, make_state(step))
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / 'run')


# Checkpoints


def test_what_comes_back_is_what_went_in(written):
    checkpoints = Checkpoints(written)
    for step in (10, 20):
        found, state = checkpoints.restore(step, make_state())
        assert found == step
        same(state, make_state(step))
    assert checkpoints.restore(None, make_state())[0] == checkpoints.latest() == 20
    checkpoints.close()


@pytest.mark.parametrize('there, here', [('one', 'all'), ('all', 'one')])
def test_a_state_moves_between_meshes(tmp_path, there, here):
    shardings = {'one': lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), 'all': over_all_devices}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, place(make_state(1), shardings[there]))
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[here](leaf)), make_state()
        )
        _, state = checkpoints.restore(1, like)
    same(state, make_state(1))
    assert jax.tree.all(jax.tree.map(lambda got, want: got.sharding == want.sharding, state, like))


def test_a_leaf_without_a_sharding_goes_to_the_first_device(written):
    _, state = Checkpoints(written).restore(20, jax.eval_shape(make_state))
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {jax.sharding.SingleDeviceSharding(jax.devices()[0])}


def test_a_save_is_of_the_state_at_that_moment(tmp_path):
    move = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        state = make_state(1)
        checkpoints.save(1, state)
        jax.block_until_ready(move(state))  # overwrites the buffers while Orbax writes
        same(checkpoints.restore(1, make_state())[1], make_state(1))


def test_the_newest_are_kept_and_a_step_saved_twice_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        for step in (5, 10, 15):
            checkpoints.save(step, make_state(step))
        checkpoints.save(15, make_state(15), block=True)
        assert checkpoints.steps() == [10, 15]
    assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['10', '15']


def test_a_checkpoint_half_written_is_not_seen_and_is_cleared_away(folder):
    half = folder / 'checkpoints' / '30.orbax-checkpoint-tmp-7'
    shutil.copytree(folder / 'checkpoints' / '20', half)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 20 and checkpoints.restore(None, make_state())[0] == 20
        checkpoints.save(30, make_state(30))
    assert sorted(os.listdir(folder / 'checkpoints')) == ['20', '30']


def largest(path):
    return max((file for file in path.rglob('*') if file.is_file()), key=lambda file: file.stat().st_size)


def cut(path):
    os.truncate(largest(path), 100)


def remove(path):
    largest(path).unlink()


def unseal(path):
    (path / 'sizes.json').unlink()


def scribble(path):  # the sizes agree, so it is Orbax that finds it
    metadata = path / '_METADATA'
    metadata.write_bytes(b'#' * metadata.stat().st_size)


@pytest.mark.parametrize('harm', [cut, remove, unseal, scribble])
def test_a_damaged_checkpoint_is_passed_over_then_written_again(folder, harm, capsys):
    harm(folder / 'checkpoints' / '20')
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(Mistake, match=rf'{folder}/checkpoints/20: .*damaged.*delete.* 10\)'):
            checkpoints.restore(20, make_state())
        step, state = checkpoints.restore(None, make_state())
        same(state, make_state(10))
        assert step == 10 and capsys.readouterr().out.count(f'{folder}/checkpoints/20 ') == 1
        checkpoints.save(20, make_state(21), block=True)
        step, state = checkpoints.restore(None, make_state())
        same(state, make_state(21))


def test_if_all_are_damaged_it_says_so(folder):
    cut(folder / 'checkpoints' / '10')
    remove(folder / 'checkpoints' / '20')
    assert Checkpoints(folder).latest() is None
    with pytest.raises(Mistake, match=f'{folder}/checkpoints: every .*delete'):
        Checkpoints(folder).restore(None, make_state())


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda state: make_state(width=128), r'\w+ .*float32\[8, 256\] .*float32\[8, 128\]'),
        (lambda state: state | {'step': jnp.float32(0)}, r' step .*int32\[\] .*float32\[\]'),
        (lambda state: state | {'value': jnp.zeros(2)}, r' value .*absent .*float32\[2\]'),
        (lambda state: {'params': state['params']}, r' \w+\[.*\] .* absent'),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(written, change, message):
    for step in (None, 20):
        with pytest.raises(Mistake, match=f'{written}/checkpoints/20 .*{message}.*--workdir'):
            Checkpoints(written).restore(step, change(make_state()))


def test_a_mesh_that_does_not_divide_a_shape_is_not_called_damage(written):
    if 256 % (len(jax.devices()) - 1 or 256) == 0:
        pytest.skip('every mesh divides it')
    mesh = Mesh(np.array(jax.devices()[1:]), ('data',))
    sharding = NamedSharding(mesh, PartitionSpec(None, 'data'))
    like = make_state()
    like['params']['w_DF'] = jax.ShapeDtypeStruct((8, 256), jnp.float32, sharding=sharding)
    with pytest.raises(ValueError, match='evenly divide'):
        Checkpoints(written).restore(None, like)


def test_where_there_is_nothing_it_says_so(tmp_path, written):
    with pytest.raises(Mistake, match='/absent/checkpoints: .* none$'):
        Checkpoints(tmp_path / 'absent').restore(None, make_state())
    assert Checkpoints(tmp_path / 'absent').latest() is None and not (tmp_path / 'absent').exists()
    with pytest.raises(Mistake, match=f'{written}/checkpoints: .*step 15; .* 10, 20$'):
        Checkpoints(written).restore(15, make_state())


def test_a_save_that_fails_in_the_background_is_a_mistake(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoint, 'write_whole', full)
    checkpoints.save(1, make_state(1))
    with pytest.raises(Passing, match=f'{tmp_path}/checkpoints: .*step 1 .*No space left'):
        checkpoints.wait()
    monkeypatch.undo()
    checkpoints.save(1, make_state(1))
    checkpoints.close()
    assert checkpoints.steps() == [1]


def test_sizes_are_of_every_file_that_counts(written):
    path = written / 'checkpoints' / '20'
    files = {str(file.relative_to(path)) for file in path.rglob('*') if file.is_file()}
    unlisted = files - set(json.loads((path / 'sizes.json').read_text(encoding='utf-8')))
    assert unlisted <= {'sizes.json', 'commit_success.txt', '_CHECKPOINT_METADATA'}


def test_a_run_whose_checkpoints_are_all_damaged_has_begun_and_must_hear_of_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.begun()
        checkpoints.save(3, {'w_D': jnp.ones(4)}, block=True)
    (tmp_path / 'checkpoints' / '3' / 'sizes.json').unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.begun() and checkpoints.latest() is None
        with pytest.raises(Mistake, match=f'{tmp_path}/checkpoints: every .*delete'):
            checkpoints.restore(None, {'w_D': jnp.ones(4)})


def test_what_somebody_put_beside_a_checkpoint_keeps_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (5, 10, 15):
            checkpoints.save(step, make_state(step), block=True)
            (tmp_path / 'checkpoints' / '5' / 'notes.txt').write_text('the best so far', encoding='utf-8')
        checkpoints.drop(1)
    assert os.listdir(tmp_path / 'checkpoints') == ['5']
    assert (tmp_path / 'checkpoints' / '5' / 'notes.txt').exists()


def test_a_disk_that_is_full_is_one_sentence(tmp_path):
    """Whatever threads of whatever library have to say of it."""
    program = """
import resource, sys, time
import jax.numpy as jnp
from rlaif_jax import log
from rlaif_jax.checkpoint import Checkpoints
from rlaif_jax.config import Mistake
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with Checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(1, {'a': jnp.arange(100_000.0), 'b': jnp.ones((300, 300))})
        time.sleep(1)
except Mistake as mistake:
    log.error(str(mistake))
"""
    done = subprocess.run(
        [sys.executable, '-c', program, tmp_path],
        cwd=Path(checkpoint.__file__).parents[1],
        capture_output=True,
        encoding='utf-8',
    )
    named = f'{tmp_path}/checkpoints: .*step 1 .*File too large'
    assert done.stderr.count('\n') == 1 and re.search(named, done.stderr), done.stderr


def test_a_path_that_is_not_utf_8_is_said(tmp_path):
    with pytest.raises(Mistake, match='UTF-8'):
        Checkpoints(tmp_path / os.fsdecode(b'caf\xe9'))
