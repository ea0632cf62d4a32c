"""Several processes, each with devices of its own, that run one program together: the only file that knows of them.

    start()                        # first of all: finds the other processes, or that there are none
    mesh = axes.make_mesh(…)       # over the devices of all
    batch = to_mesh(rows, axes.rows(mesh))
    scores = to_host(score_B)      # numbers of all, on every process

Every process runs the same lines in the same order, as what they compute together has to be asked for by all. So whatever
one of them alone may see (a file, a clock, a signal) is decided by one and told to all: `told`, `anyone`. Files are
written by the first process alone: `first`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

import numpy as np

from rlaif_jax.config import Mistake

T = TypeVar('T')
Tree = Any

VARIABLES = ('RLAIF_COORDINATOR', 'RLAIF_PROCESSES', 'RLAIF_PROCESS')  # host:port of the first, how many, which this is
SLURM = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')  # of a task of srun
PATIENCE = 60 * 60  # seconds that a barrier waits for who is late
JOINING = 30 * 60  # seconds in which all processes have to start
HEARTBEAT = 300  # seconds without a sign of life; a long tokenisation may hold Python for a minute
LEAVING = 20  # seconds that a process which ends waits for the others to end, too
PIECE = 2**20  # characters that are told at a time
ROUND = 100  # times that something is told, until what was told is forgotten

_number = itertools.count()  # of what was told: the same on all, as all ask in the same order
_deciding = threading.Lock()  # held while the first process decides what it tells


class Lost(Exception):
    """Another process is gone, or too late. The same command may be tried again."""


class Elsewhere(Mistake):
    """A `Mistake` of the first process, which has said it. It ends all with the same status."""

    def __init__(self, text: str, status: int = Mistake.status):
        super().__init__(text)
        self.status = status


def start(how: str = 'auto', environ: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of this run, if there are any; to be called before JAX looks for devices.

    There are those that `VARIABLES` say; else the tasks of an `srun` of several; else the workers of a TPU slice, or of
    Open MPI, as JAX detects them. With `how` 'off' this process is alone whatever surrounds it. Raises `Mistake` for
    variables that are there in part or make no sense, `Lost` where the others do not come.
    """
    if how == 'off' or count() > 1:
        return
    if (given := detect(environ)) is None:
        return
    import jax

    # Its handler of SIGTERM would take ours away; a wish to stop is agreed on by `anyone`.
    jax.config.update('jax_enable_preemption_service', False)
    patience = {'heartbeat_timeout_seconds': int(environ.get('RLAIF_HEARTBEAT', HEARTBEAT))}
    patience |= {'initialization_timeout': int(environ.get('RLAIF_JOINING', JOINING))}
    try:
        jax.distributed.initialize(**given, **patience, shutdown_timeout_seconds=LEAVING)
    except jax.errors.JaxRuntimeError as error:
        raise Lost(f'the processes of this run did not find each other ({_brief(error)})') from error


def detect(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be given here; None where a process is alone."""
    found = {name: environ[name] for name in VARIABLES if environ.get(name)}
    if found:
        if lacking := [name for name in VARIABLES if name not in found]:
            raise Mistake(
                f'{next(iter(found))} is set and {lacking[0]} is not; set all of {", ".join(VARIABLES)}, or none'
            )
        address, *numbers = found.values()
        if not all(number.isdecimal() for number in numbers) or not int(numbers[1]) < int(numbers[0]):
            wrong = f'{VARIABLES[1]} = {numbers[0]}, {VARIABLES[2]} = {numbers[1]}'
            raise Mistake(f'{wrong}: processes are numbered from 0 up to one less than there are')
        if ':' not in address:
            raise Mistake(f'{VARIABLES[0]} = {address!r}: give the address of the first process with a port, host:8476')
        if int(numbers[0]) == 1:
            return None
        # No devices named: a process takes all that it sees. (Named, JAX looks no further for what surrounds it.)
        return {
            'coordinator_address': address, 'num_processes': int(numbers[0]), 'process_id': int(numbers[1]),
            'cluster_detection_method': 'deactivate',
        }  # fmt: skip
    tasks = environ.get('SLURM_STEP_NUM_TASKS', '')
    if tasks.isdecimal() and int(tasks) > 1 and all(map(environ.get, SLURM)):  # not what is left in a shell of a job
        # One task a node takes all its GPUs, several one each: alone, JAX would give a single one to either.
        alone = re.fullmatch(r'1(\(x\d+\))?', environ.get('SLURM_STEP_TASKS_PER_NODE', ''))
        visible = {'local_device_ids': _visible(environ)} if alone and _visible(environ) else {}
        return {'cluster_detection_method': 'slurm', **visible}
    workers = environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
    if len(workers) > 1 or environ.get('MEGASCALE_COORDINATOR_ADDRESS') or _on_slice(environ):
        return {}
    if 'OMPI_MCA_orte_hnp_uri' in environ and int(environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
        return {'cluster_detection_method': 'ompi'}
    return None


def _visible(environ: Mapping[str, str]) -> list[int]:
    """The numbers of the GPUs of this process."""
    if named := environ.get('CUDA_VISIBLE_DEVICES'):
        return list(range(len(named.split(','))))
    there = [name for name in os.listdir('/dev') if name.startswith('nvidia') and name[6:].isdecimal()]
    return list(range(len(there)))


def _on_slice(environ: Mapping[str, str]) -> bool:
    """Whether this is a worker of a TPU slice of several hosts, by what its virtual machine says of itself."""
    if not any(map(os.path.exists, ('/dev/accel0', '/dev/vfio/0'))) or environ.get('TPU_SKIP_MDS_QUERY'):
        return False
    from jax._src.clusters import cloud_tpu_cluster

    return cloud_tpu_cluster.GceTpuCluster.is_env_present() and cloud_tpu_cluster.GceTpuCluster.get_process_count() > 1


def _joined() -> Any:
    """JAX's word on the processes of this run; None where this one is alone. Brings no JAX, and looks for no devices."""
    known = sys.modules.get('jax._src.distributed')
    return known.global_state if known and known.global_state.client is not None else None


def count() -> int:
    """How many processes there are."""
    return state.num_processes if (state := _joined()) else 1


def index() -> int:
    """Which of them this one is, from 0."""
    return state.process_id if (state := _joined()) else 0


def first() -> bool:
    """Whether this is the process that writes files and talks."""
    return index() == 0


# What one knows and all must


def told(decide: Callable[[], T]) -> T:
    """What `decide()` returns on the first process, on all. It is plain JSON (a tuple comes as a list); a `Mistake` in
    place of it is raised on all. Raises `RuntimeError` within another `decide`, which the others do not run: they would
    hear what was not meant for them.
    """
    if count() == 1:
        return decide()
    if _deciding.locked():
        raise RuntimeError('told within told: the other processes do not ask')
    number = next(_number)
    if number and number % ROUND == 0:  # what all have heard by now is forgotten
        barrier('a round')
        if first():
            _joined().client.key_value_delete('rlaif_jax/told/')
    name = f'rlaif_jax/told/{number}'
    if not first():
        kind, value = json.loads(_hear(name))
        if kind == 'mistake':
            text, status = value
            raise Elsewhere(text, status)
        return value
    try:
        with _deciding:
            value = decide()
    except Mistake as mistake:
        _tell(name, json.dumps(('mistake', (str(mistake), mistake.status))))
        raise
    _tell(name, text := json.dumps(('value', value)))
    return json.loads(text)[1]


def _tell(name: str, text: str) -> None:
    pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
    for i, piece in enumerate(pieces):
        _joined().client.key_value_set(f'{name}/{i}', f'{len(pieces)} {piece}')


def _hear(name: str) -> str:
    heard, pieces, number = [], 1, 0
    while number < pieces:
        try:
            said = _joined().client.blocking_key_value_get(f'{name}/{number}', 60_000)
        except Exception as error:  # noqa: BLE001, of another type in each version
            if 'DEADLINE_EXCEEDED' in str(
                error
            ):  # it is busy, or waits for somebody else; were it gone, so would we be
                continue
            raise Lost(f'the first process is gone ({_brief(error)})') from error
        pieces = int(said.partition(' ')[0])
        heard.append(said.partition(' ')[2])
        number += 1
    return ''.join(heard)


def barrier(what: str, seconds: float = PATIENCE) -> None:
    """Returns when all processes are here. Raises `Lost` naming those that are not, after `seconds`."""
    if count() == 1:
        return
    try:
        _joined().client.wait_at_barrier(f'rlaif_jax/{next(_number)}/{what}', int(seconds * 1000))
    except Exception as error:  # noqa: BLE001, of another type in each version
        raise Lost(f'not all processes came to the end of {what} ({_brief(error)})') from error


class anyone:  # noqa: N801, asked as a function is
    """Whether `mine()` holds on any process, now; of a process alone, when the answer is looked at. Who looks waits for the
    others, which have to ask, too.
    """

    def __init__(self, mine: Callable[[], bool]):
        self._mine, self._found = mine, _any(mine()) if count() > 1 else None

    def __bool__(self) -> bool:
        return self._mine() if self._found is None else bool(np.asarray(self._found.addressable_data(0)))


def _any(flag: bool) -> Any:
    import jax

    sharding, reduce = _everywhere()
    return reduce(jax.make_array_from_callback((jax.device_count(),), sharding, lambda _: np.array([flag])))


@cache
def _everywhere() -> tuple[Any, Callable[[Any], Any]]:
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ('device',), axis_types=(AxisType.Auto,), devices=jax.devices())
    return NamedSharding(mesh, PartitionSpec('device')), jax.jit(
        lambda flags: flags.any(), out_shardings=NamedSharding(mesh, PartitionSpec())
    )


def led(write: Callable[[], None], together: Iterator[Any]) -> None:
    """Has the first process `write`, out of what all compute `together`, an item after the other, which the rest look
    through; returns when it is written. A `Mistake` of the first is raised on all.
    """
    failed: list[Mistake] = []
    if first():
        try:
            write()
        except Mistake as mistake:
            failed.append(mistake)
    if count() > 1:
        for _ in together:  # what the first one did not come to is waited for elsewhere
            pass

    def end() -> None:
        for mistake in failed:
            raise mistake

    told(end)


# Between host and mesh


def to_mesh(tree: Tree, sharding: Any) -> Tree:
    """Arrays of the host, the same on every process, where `sharding` says: each process puts its own parts, and none
    asks the others.
    """
    import jax

    if count() == 1:
        return jax.device_put(tree, sharding)

    def put(x: Any, where: Any) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, where)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

    everywhere = jax.tree.map(lambda _: sharding, tree) if isinstance(sharding, jax.sharding.Sharding) else sharding
    return jax.tree.map(put, tree, everywhere)


def to_host(tree: Tree) -> Tree:
    """All numbers of arrays, on every process. All have to ask, as parts come from the others."""
    import jax

    def fetch(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(fetch, tree)


# Programs that they start together


def together(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What each process has to tell a program that it starts, so that these programs find each other: another port. Nothing
    of a process alone.
    """
    if count() == 1:
        return {}
    port = str(told(_free_port))
    if VARIABLES[0] not in environ:
        return {'JAX_COORDINATOR_PORT': port}
    return {VARIABLES[0]: f'{environ[VARIABLES[0]].rpartition(":")[0]}:{port}'}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(('', 0))
        return free.getsockname()[1]


# The end


def leave() -> None:
    """Ends together with the others, waiting a little: where the first is gone before, the others end with an error."""
    if count() > 1:
        import jax

        try:
            jax.distributed.shutdown()
        except Exception:  # noqa: BLE001, what is to be said was said
            pass


def _brief(error: Exception) -> str:
    return str(error).partition('\n')[0][:300]
