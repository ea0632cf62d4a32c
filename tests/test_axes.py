"""Laws of placing arrays: the name is the shape is the sharding, for parameters and for the state of their optimizer."""

import itertools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rlaif_jax import axes
from rlaif_jax.config import Mistake
from rlaif_jax.models import transformer
from rlaif_jax.training.state import Optimizer, init_state, make_optimizer

# Every letter has its own size, and the two largest axes of each matrix are long enough for Adafactor to factor them.
CFG = transformer.Config(vocab=512, layers=3, width=128, heads=4, kv_heads=2, head_dim=160, ffn=256, tied=False)
LETTER = {size: letter for letter, size in CFG.sizes.items()}


@pytest.fixture(scope='module')
def mesh():
    return axes.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})


def test_a_name_ends_in_the_letters_of_its_axes():
    assert axes.letters('query_LDNH') == 'LDNH'
    assert axes.letters('key_bias_LKH') == 'LKH'
    assert axes.letters('BTV') == 'BTV'
    for scalar in ('skipped', 'head_bias', '', 'x_DU', 'D_x', 'logp_Bt'):
        assert axes.letters(scalar) == ''


def test_each_mesh_axis_is_used_once_and_divides(mesh):
    for names in itertools.product(axes.ALPHABET, repeat=3):
        for shape in ((8, 8, 8), (4, 6, 3), (2, 1, 7)):
            spec = axes.spec(''.join(names), shape, mesh)
            parts = [(part,) if isinstance(part, str) else part or () for part in spec]
            used = [name for part in parts for name in part]
            assert len(set(used)) == len(used)
            for size, part in zip(shape, parts):
                assert size % np.prod([mesh.shape[name] for name in part], dtype=int) == 0


def test_an_axis_takes_its_rule_or_stays_whole(mesh, monkeypatch):
    assert axes.spec('BTD', (4, 5, 8), mesh) == PartitionSpec(('data', 'fsdp'), None, None)  # fsdp went to the rows
    assert axes.spec('BTD', (3, 5, 8), mesh) == PartitionSpec(None, None, 'fsdp')
    assert axes.spec('DNH', (6, 4, 8), mesh) == PartitionSpec('fsdp', 'tensor', None)
    assert axes.spec('DNH', (6, 3, 8), mesh) == PartitionSpec('fsdp', None, None)
    monkeypatch.setattr(axes, 'RULES', {'F': 'fsdp'})  # another table, another layout
    assert axes.spec('DF', (6, 4), mesh) == PartitionSpec(None, 'fsdp')
    assert axes.spec('DF', (6, 4), axes.make_mesh()) == PartitionSpec(None, None)


def test_what_a_mesh_does_not_divide_is_named(mesh):
    told = axes.undivided({'key_LDKH': (3, 6, 3, 8), 'value_LDKH': (3, 6, 3, 8), 'query_LDNH': (3, 6, 4, 8)}, mesh)
    assert all(word in told for word in ('tensor = 2', 'K = 3', 'key_LDKH', 'value_LDKH')) and 'query' not in told
    assert axes.undivided({'embed_VD': (61, 6)}, mesh).count('does not divide') == 1
    assert axes.undivided({'embed_VD': (61, 7)}, axes.make_mesh()) == ''


def test_parameters_lie_where_their_names_say(mesh, random_params):
    small = transformer.Config(vocab=40, layers=2, width=8, heads=4, kv_heads=2, head_dim=6, ffn=12)
    placed = axes.place(random_params(small), mesh)
    for name, leaf in placed.items():
        assert leaf.sharding.spec == axes.spec(axes.letters(name), leaf.shape, mesh)
    assert placed['query_LDNH'].sharding.spec == PartitionSpec(None, 'fsdp', 'tensor', None)
    assert placed['query_LDNH'].addressable_shards[0].data.shape == (2, 4, 2, 6)
    for name, leaf in random_params(small).items():
        np.testing.assert_array_equal(placed[name], leaf)


@pytest.mark.parametrize('name', ['adafactor', 'adamw'])
def test_the_state_of_an_optimizer_follows_its_parameters(mesh, name):
    """Where Adafactor dropped an axis, the letters that are left decide; all sizes differ, so a size names its letter."""
    params = jax.eval_shape(lambda: transformer.init(CFG, jax.random.key(0)))
    optimizer = make_optimizer(Optimizer(name=name), steps=10)
    state = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    where = axes.shardings(state, mesh)
    factored = 0
    for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(where)):
        if leaf.shape in ((), (1,)):  # counts, and Adafactor's placeholders
            assert not any(sharding.spec), path
            continue
        kept = ''.join(LETTER[size] for size in leaf.shape)
        assert sharding.spec == axes.spec(kept, leaf.shape, mesh), path
        factored += len(kept) < len(axes.letters(path[-1].key))
    assert (factored > 0) == (name == 'adafactor')


def test_a_mesh_takes_the_devices_that_are_left():
    assert dict(axes.make_mesh().shape) == {'data': 1, 'fsdp': 1, 'tensor': 1}
    assert dict(axes.make_mesh({'data': -1, 'tensor': 2}).shape) == {'data': 4, 'fsdp': 1, 'tensor': 2}
    assert dict(axes.make_mesh({'data': -1, 'fsdp': -1, 'tensor': 2}).shape) == {'data': 1, 'fsdp': 4, 'tensor': 2}
    assert dict(axes.make_mesh({'fsdp': 3}).shape) == {'data': 1, 'fsdp': 3, 'tensor': 1}
    mesh = axes.make_mesh({'data': -1}, devices=jax.devices()[:2])
    assert set(mesh.devices.flat) == set(jax.devices()[:2])
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    'sizes, says',
    [
        ({'tensors': 2}, "'tensors'; .* data, fsdp, tensor$"),
        ({'data': 16}, "'data': 16, .* 16 devices .* 8$"),
        ({'data': -1, 'fsdp': 3}, "'fsdp': 3, .* 8$"),
        ({'data': -1, 'fsdp': 16}, "'fsdp': 16, .* 16 devices .* 8$"),
        ({'tensor': -1, 'fsdp': -1}, "one is -1 .*'tensor': -1, 'fsdp': -1"),
        ({'data': 0}, "positive, .*'data': 0"),
        ({'tensor': -2}, "positive, .*'tensor': -2"),
    ],
)
def test_a_mesh_that_cannot_be_says_why(sizes, says):
    with pytest.raises(Mistake, match=f'^mesh: .*{says}'):
        axes.make_mesh(sizes)


@pytest.mark.parametrize('size', [-3, 0, 1, 3, 6, 7, 13])
def test_a_batch_that_does_not_split_names_sizes_that_do(mesh, size):
    with pytest.raises(Mistake, match=rf'sft\.batch = {size}: .* 4; ') as error:
        axes.check_batch('sft.batch', size, mesh)
    near = [int(n) for n in re.findall(r'\d+', str(error.value).partition(';')[2])]
    assert near and all(0 < abs(n - size) < 4 or n == 4 for n in near)
    for n in near:
        axes.check_batch('sft.batch', n, mesh)


def test_constrain_is_nothing_without_a_mesh(mesh):
    x_BTD = jnp.ones((4, 3, 8))
    assert axes.constrain(x_BTD, 'BTD') is x_BTD
    with jax.set_mesh(axes.make_mesh()):
        assert axes.constrain(x_BTD, 'BTD') is x_BTD
    with jax.set_mesh(mesh):
        out = jax.jit(lambda x: axes.constrain(x, 'BTD'))(x_BTD)
    assert out.sharding.is_equivalent_to(axes.rows(mesh), 3)


@pytest.mark.parametrize(
    'sizes, flags, devices',
    [
        ({'data': 1, 'fsdp': 1}, '', 1),
        ({'data': 3, 'fsdp': 2}, '', 6),
        ({'data': -1, 'fsdp': 1}, '', 1 << axes.cores().bit_length() - 1),
        ({'data': 2}, '--xla_force_host_platform_device_count=4', 4),  # whoever says it otherwise is heard
    ],
)
def test_a_cpu_is_as_many_devices_as_a_mesh_asks_for(sizes, flags, devices):
    told = f'from rlaif_jax import axes; axes.ask_for_devices({sizes}); axes.make_mesh({sizes})'
    program = f'{told}; import jax; print(len(jax.devices()))'
    env = os.environ | {'XLA_FLAGS': flags, 'PYTHONPATH': os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, '-c', program], env=env, capture_output=True, encoding='utf-8')
    assert (run.stdout, run.returncode) == (f'{devices}\n', 0), run.stderr


def test_who_asks_for_devices_too_late_is_told_by_the_mesh():
    asked = "axes.ask_for_devices({'data': 3}); axes.make_mesh({'data': 3})"
    program = f'import jax; jax.devices(); from rlaif_jax import axes; {asked}'
    env = os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, '-c', program], env=env, capture_output=True, encoding='utf-8')
    assert run.returncode == 1 and re.search("mesh: .*'data': 3, .* 3 devices .* 1$", run.stderr.rstrip())


class Chip:
    """A device of a slice."""

    platform, device_kind, process_index = 'cpu', 'chip', 0

    def __init__(self, number, slice_index):
        self.id, self.slice_index = number, slice_index


@pytest.mark.parametrize(
    'sizes, over',
    [
        ({'data': 4, 'tensor': 2}, 0),
        ({'data': 2, 'fsdp': 4}, 0),
        ({'fsdp': 8}, 1),
        ({'data': 1, 'fsdp': 2, 'tensor': 4}, 1),
        ({'tensor': 8}, 2),
    ],
)
def test_what_is_split_over_slices_is_the_batch(sizes, over):
    """Only the axis that goes over them has neighbours in another slice."""
    chips = [Chip(i, i % 2) for i in range(8)]  # in no order
    found = axes.make_mesh(sizes, chips).devices
    slice_of = np.vectorize(lambda chip: chip.slice_index)(found)
    crossing = [axis for axis in range(3) if (np.diff(slice_of, axis=axis) != 0).any()]
    assert found.shape == tuple(sizes.get(axis, 1) for axis in axes.MESH_AXES)
    assert crossing == [over]
    assert {chip.id for chip in found.flat} == set(range(8))


def test_slices_that_no_axis_goes_over():
    with pytest.raises(Mistake, match="^mesh: .*'data': 8, .* 3 slices; .*data"):
        axes.make_mesh({'data': 8}, [Chip(i, i % 3) for i in range(8)])


@pytest.mark.parametrize('cores, processes, sizes, wanted', [
    (2, 1, {'data': -1}, 2), (6, 1, {'data': -1}, 4), (64, 1, {'data': -1}, 8), (6, 8, {'data': -1}, 4),
    (6, 2, {'data': -1, 'tensor': 4}, 4), (6, 1, {'data': -1, 'fsdp': 3}, 6), (1, 1, {'data': -1, 'tensor': 2}, 2),
    (6, 2, {'data': 2, 'fsdp': 2}, 2), (4, 1, {'data': -1, 'fsdp': -1}, 4),
])  # fmt: skip
def test_each_process_is_as_many_devices_as_its_own_cores_or_its_share(cores, processes, sizes, wanted, monkeypatch):
    """Of cores, of which -1 takes a power of two."""
    asked = {}
    monkeypatch.setenv('XLA_FLAGS', '')
    monkeypatch.setattr(axes, 'cores', lambda: cores)
    monkeypatch.setattr(axes.hosts, 'count', lambda: processes)
    monkeypatch.setattr(jax.config, 'update', asked.__setitem__)
    axes.ask_for_devices(sizes)
    assert asked == {'jax_num_cpu_devices': wanted}
