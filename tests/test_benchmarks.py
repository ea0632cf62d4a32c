"""What benchmarks compute themselves: least times, exponents, how busy a device is."""

import math

import accelerator
import floors
import growth
import numpy as np
import peers
import pytest
import turns

from rlaif_jax.models.presets import PRESETS
from rlaif_jax.models.transformer import Config
from rlaif_jax.training import reinforce, sft

CFG = Config(vocab=96, layers=3, width=64, heads=4, kv_heads=2, head_dim=16, ffn=160)
LAYER = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160  # numbers in the matrices of a layer


def near(count):
    """Of products; plans count the norms' numbers as if they were a matrix."""
    return pytest.approx(count, rel=0.02)


def test_the_least_time_is_the_longer_of_computing_and_moving():
    rates = floors.Rates(flops=100.0, bytes=10.0)
    assert rates.seconds(200, 10) == 2 and rates.seconds(200, 50) == 5


def test_the_floor_of_rollouts_counts_each_prompt_once_and_each_parameter_once_a_token():
    B, P, R = 8, 32, 16
    (flops, _), (decoded, moved) = floors.rollouts(CFG, B, P, R)
    attended = 4 * 3 * 4 * 16
    head = 2 * 96 * 64
    assert flops == near(B * (2 * 3 * LAYER * P + attended * P * P / 2 + head))
    assert decoded == near(B * R * (2 * 3 * LAYER + attended * (P + R / 2) + head))
    params, slot = 4 * (3 * LAYER + 96 * 64), 4 * 2 * 3 * 2 * 16
    assert moved == pytest.approx(R * params + B * R * slot * (P + R / 2), rel=0.02)
    (once, _), (again, _) = floors.rollouts(CFG, B, P, R, samples=4)
    assert once == pytest.approx(flops / 4) and again == decoded


def test_a_value_network_costs_three_passes_more_and_padding_nothing():
    alone, beside = (
        floors.update(CFG, reinforce.Config(batch=4, samples=2, baseline=name, max_prompt=32, max_new_tokens=16), 48)[0]
        for name in ('leave_one_out', 'value')
    )
    assert beside / alone == pytest.approx(7 / 4)  # a pass of the reference, three of each network
    rows = (64, 0), (192, 64), (128, 128)
    each = [floors.update(CFG, sft.Config(batch=1), *row)[0] for row in rows]
    assert floors.ragged(CFG, sft.Config(batch=64), rows)[0] == pytest.approx(sum(each))
    assert floors.update(CFG, sft.Config(batch=1), 192)[0] > each[1]  # all of them learned


def test_zero_arguments_run_every_step_of_a_program():
    seconds, need = floors.taken(growth.program('rollouts', growth.Point(2, 8, 4, 64, 1, 32, 'float32')), 1)
    assert len(seconds) == 1 and seconds[0] > 0 and need > 4 * 32 * 64


def test_a_power_law_is_found():
    x = np.array([1.0, 2, 4, 8])
    exact = growth.growth(x, 3 * x**1.5)
    assert exact == pytest.approx((1.5, 0, 1.5), abs=1e-6)
    bent = growth.growth(x, 1 + x**2)  # a constant part wears off
    assert bent.exponent < bent.last < 2 and bent.error > 0.05
    assert math.isnan(growth.growth(x[:2], x[:2]).error)


def test_a_figure_of_growth_is_drawn(tmp_path):
    found = {('update', 'batch'): {'x': [1, 2, 4], 'seconds': [0.1, 0.2, 0.4], 'bytes': [1e6, 2e6, 4e6]}}
    growth.draw(tmp_path / 'growth.png', found, 'a device')
    assert (tmp_path / 'growth.png').stat().st_size > 1000


def events(*at, pid=1, tid=1, **more):
    return [{'ph': 'X', 'ts': begin, 'dur': end - begin, 'pid': pid, 'tid': tid, **more} for begin, end in at]


def test_a_device_is_busy_where_some_lane_is():
    named = [
        {'ph': 'M', 'name': 'process_name', 'pid': 1, 'args': {'name': '/device:GPU:0'}},
        {'ph': 'M', 'name': 'process_name', 'pid': 2, 'args': {'name': '/host:CPU'}},
        {'ph': 'M', 'name': 'thread_name', 'pid': 1, 'tid': 3, 'args': {'name': 'XLA Modules'}},
    ]
    steps = events((0, 50), (50, 100), pid=2, args={'step_num': '0'})
    busy = events((-20, 10), (5, 20), (40, 60)) + events((55, 70), tid=2)  # 20 + 30; what is before does not count
    besides = events((0, 100), tid=3) + events((0, 100), pid=2, tid=7)
    assert accelerator.busy_share(named + steps + busy + besides) == pytest.approx(0.5)


def test_every_case_has_a_floor_and_an_optimizer_that_both_sides_have():
    for name, shape in peers.SHAPES.items():
        sides = object.__new__(peers.Sides)  # without the processes
        sides.shape, sides.cfg = shape, PRESETS[shape.model]
        sides.rates = {'XLA': {'flops': 1e11, 'copied': 1e10, 'read': 2e10}}
        floor = {case: sides.floor(case) for case in peers.CASES}
        assert all(0 < seconds < math.inf for seconds in floor.values()), name
        # A prompt that more responses share is read once; a value network costs.
        assert floor['rollouts4'] < floor['rollouts'] and floor['rloo4'] < floor['rloo'] < floor['value']
        for case in peers.CASES:
            if not case.startswith('rollouts'):
                cfg = peers.settings(shape, case)
                assert getattr(cfg, 'optimizer', getattr(cfg, 'policy_optimizer', None)).name == 'adamw'
    assert len(peers.spread(8, 128, 512)) == 8 and {128, 512} <= {*peers.spread(8, 128, 512)}


def test_workers_answer_in_turn_and_one_that_died_is_named():
    import sys

    script = (
        'import turns, sys; sys.path; turns.serve(lambda x: {"twice": 2 * x} if x else sys.exit(3), turns.answers())'
    )
    with turns.Worker([sys.executable, '-c', script], {'PYTHONPATH': str(turns.__file__).rpartition('/')[0]}) as one:
        assert [one.ask(x)['twice'] for x in (1, 5)] == [2, 10]
        with pytest.raises(SystemExit, match='status 3'):
            one.ask(0)
