"""Laws of chips: a slice is found by Google's name, and what is not there by the nearest."""

import jax
import pytest

from experiments import chips
from rlaif_jax.config import Mistake


@pytest.mark.parametrize(
    'name, count, shape, hosts',
    [
        ('v5e-16', 16, '4x4', 4), ('v5litepod-16', 16, '4x4', 4), ('v5e-1', 1, '1x1', 1), ('v6e-64', 64, '8x8', 16),
        ('v4-32', 16, '2x2x4', 4), ('v5p-32', 16, '2x2x4', 4), ('v5p-8', 4, '2x2x1', 1), ('tpu7x-16', 8, '2x2x2', 2),
    ],
)  # fmt: skip
def test_a_name_counts_cores_or_chips_as_google_does(name, count, shape, hosts):
    found = chips.find(name)
    assert (found.chips, found.shape, found.hosts) == (count, shape, hosts)
    assert f'{count} chip' in str(found) and f'{hosts} host' in str(found)
    assert ('cores' in str(found)) == (not name.startswith(('v5e', 'v5lite', 'v6e')))


@pytest.mark.parametrize(
    'name, near',
    [('v5e-20', 'v5e-16'), ('v5p-30', 'v5p-32'), ('v7e-16', 'v6e-16'), ('v6e', 'v6e-16'), ('h100-x', 'h100-8')],
)
def test_a_slice_that_there_is_not_is_a_mistake_that_names_the_nearest(name, near):
    with pytest.raises(Mistake, match=rf'--topology={name}: .* {near}\b'):
        chips.find(name)


def test_every_slice_is_found_by_its_own_name_and_the_next_one_is_larger():
    for chip in chips.CHIPS.values():
        sizes = [chips.slice_of(chip, shape) for shape in chip.shapes]
        assert [chips.find(one.name) for one in sizes] == sizes
        assert all(one.next() == other and other.chips >= 2 * one.chips for one, other in zip(sizes, sizes[1:]))
        assert not sizes or sizes[-1].next() is None


def test_gpus_are_known_by_their_number_and_not_compiled_for():
    found = chips.find('h100-8')
    assert (found.chips, found.hosts, found.devices()) == (8, 1, [])


class Fake:
    platform = 'gpu'

    def __init__(self, device_kind: str, stats: dict | None = None):
        self.device_kind, self.stats = device_kind, stats

    def memory_stats(self):
        return self.stats


@pytest.mark.parametrize(
    'kind, name',
    [
        ('NVIDIA H100 80GB HBM3', 'h100'), ('NVIDIA H200', 'h200'), ('TPU v5 lite', 'v5e'), ('TPU v5', 'v5p'),
        ('TPU v6 lite', 'v6e'), ('TPU v4', 'v4'), ('TPU7x', 'tpu7x'),
    ],
)  # fmt: skip
def test_a_device_says_what_chip_it_is(kind, name):
    assert chips.of_device(Fake(kind)) == chips.CHIPS[name]
    assert chips.memory_of(Fake(kind)) == chips.CHIPS[name].memory
    assert chips.memory_of(Fake(kind, {'bytes_limit': 3 * 2**30})) == 3.0


def test_who_stands_in_no_table_is_not_guessed():
    assert chips.of_device(Fake('Abacus 3')) is None and chips.memory_of(Fake('Abacus 3')) is None


def test_a_cpu_has_its_share_of_the_machine():
    one = chips.memory_of(jax.devices()[0])
    assert one and 0.01 < one * jax.local_device_count() < 1e5
