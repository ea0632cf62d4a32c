"""Laws of several processes: how they are found, and what one knows is told to all."""

import re

import pytest
from together import printed, together

from rlaif_jax import hosts
from rlaif_jax.config import Mistake

OURS = {'RLAIF_COORDINATOR': 'node1:8476', 'RLAIF_PROCESSES': '4', 'RLAIF_PROCESS': '3'}
SLURM = {
    'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'node[1-2]', 'SLURM_NTASKS': '16', 'SLURM_PROCID': '3',
    'SLURM_LOCALID': '3', 'SLURM_STEP_NUM_TASKS': '16', 'SLURM_STEP_TASKS_PER_NODE': '8(x2)',
}  # fmt: skip


@pytest.mark.parametrize(
    'environ, found',
    [
        ({}, None),
        (OURS, {'coordinator_address': 'node1:8476', 'num_processes': 4, 'process_id': 3}),
        (OURS | {'RLAIF_PROCESSES': '1', 'RLAIF_PROCESS': '0'}, None),
        (SLURM, {'cluster_detection_method': 'slurm'}),  # a task a GPU: JAX gives each its own
        (SLURM | OURS, {'coordinator_address': 'node1:8476'}),  # who is explicit is meant
        ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '16', 'SLURM_PROCID': '0'}, None),  # a shell within a job
        (SLURM | {'SLURM_STEP_NUM_TASKS': '1'}, None),
        ({name: value for name, value in SLURM.items() if name != 'SLURM_LOCALID'}, None),
        # A task a node drives all its GPUs.
        (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '1(x16)', 'CUDA_VISIBLE_DEVICES': '0,1'}, {'local_device_ids': [0, 1]}),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, {}),
        ({'TPU_WORKER_HOSTNAMES': 'a'}, None),
        (
            {'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:3', 'OMPI_COMM_WORLD_SIZE': '2'},
            {'cluster_detection_method': 'ompi'},
        ),
    ],
)
def test_who_else_is_there(environ, found):
    detected = hosts.detect(environ)
    if found is None:
        assert detected is None
    else:
        assert {name: detected[name] for name in found} == found


@pytest.mark.parametrize(
    'environ, told',
    [
        ({'RLAIF_COORDINATOR': 'a:1'}, 'RLAIF_COORDINATOR, RLAIF_PROCESSES, RLAIF_PROCESS,'),
        (OURS | {'RLAIF_PROCESS': '4'}, 'RLAIF_PROCESS = 4'),
        (OURS | {'RLAIF_PROCESSES': 'two'}, 'RLAIF_PROCESSES = two'),
        (OURS | {'RLAIF_COORDINATOR': 'node1'}, "RLAIF_COORDINATOR = 'node1': .* host:8476"),
    ],
)
def test_variables_that_make_no_sense(environ, told):
    with pytest.raises(Mistake, match=told):
        hosts.detect(environ)


def test_one_alone_asks_nobody(monkeypatch):
    for name, value in OURS.items():
        monkeypatch.setenv(name, value)
    hosts.start('off')
    assert (hosts.count(), hosts.index(), hosts.first()) == (1, 0, True)
    assert hosts.told(lambda: (1, 2)) == (1, 2)
    flag = []
    answer = hosts.anyone(lambda: bool(flag))
    flag.append(1)
    assert answer  # looked at when it is asked


TWO = """
import os
import numpy as np
from rlaif_jax import axes, hosts, log
from rlaif_jax.config import Mistake, Passing

hosts.start()
me = hosts.index()
axes.ask_for_devices({'data': 2, 'fsdp': 2})
import jax

mesh = axes.make_mesh({'data': 2, 'fsdp': 2})
assert (hosts.count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
assert hosts.told(lambda: ['first', me]) == ['first', 0]
assert hosts.told(lambda: 'x' * 3_000_000) == 'x' * 3_000_000
assert [hosts.told(lambda: i) for i in range(250)] == list(range(250))  # what was told long ago is forgotten
assert hosts.anyone(lambda: me == 1) and not hosts.anyone(lambda: False)


def wrong():
    raise Passing('the first knows better')


try:
    hosts.told(wrong)
except Mistake as mistake:
    assert str(mistake) == 'the first knows better' and isinstance(mistake, hosts.Elsewhere) == (me == 1)
    assert mistake.status == Passing.status
else:
    raise AssertionError

x_BT = np.arange(24.0).reshape(8, 3)
there = hosts.to_mesh({'x_BT': x_BT}, axes.rows(mesh))
assert not there['x_BT'].is_fully_addressable
back = hosts.to_host(there | {'sum': there['x_BT'].sum(), 'mine': np.ones(2)})
np.testing.assert_array_equal(back['x_BT'], x_BT)
assert back['sum'] == x_BT.sum() and back['mine'].shape == (2,)
for sizes in ({'data': 2}, {'data': 8}):
    try:
        axes.make_mesh(sizes)
    except Mistake as mistake:
        print(mistake)
    else:
        raise AssertionError
assert axes.make_mesh().devices.item() in jax.local_devices()
written = []
hosts.led(lambda: written.extend(together), together := (i * i for i in range(3)))
assert written == ([0, 1, 4] if me == 0 else []) and next(together, None) is None
log.say('only the first talks')
hosts.barrier('the end')
try:
    hosts.barrier('nobody comes', 0.5) if me == 0 else None
except hosts.Lost as lost:
    log.say(f'late: {lost}')
hosts.leave()
"""


def test_what_one_knows_all_know(tmp_path):
    assert together(2, ['-c', TWO], tmp_path) == [0, 0], printed(tmp_path) + printed(tmp_path, 1)
    assert 'only the first talks' in printed(tmp_path) and 'mesh.data=-1' in printed(tmp_path)
    assert re.search('late: .*nobody comes', printed(tmp_path))
    assert 'talks' not in printed(tmp_path, 1)


ALONE = """
import sys
from rlaif_jax import hosts, log

try:
    there = {'RLAIF_COORDINATOR': 'localhost:1', 'RLAIF_PROCESSES': '2', 'RLAIF_PROCESS': '1'}
    hosts.start(environ=there | {'RLAIF_JOINING': '2'})
except hosts.Lost as lost:
    log.error(str(lost))
    sys.exit(75)
"""


def test_who_waits_for_nobody_says_so(tmp_path):
    assert together(1, ['-c', ALONE], tmp_path)[0] not in (0, 2)
