"""Chips: what a TPU or a GPU can do at most, and what the slices of Google's names are made of.

    v5e-16 → 16 chips, 4 x 4, 4 hosts     v5p-32 → 16 chips, 2 x 2 x 4, 4 hosts (its names count cores, two a chip)

Peaks are those of the makers' sheets, dense, without sparsity; nothing reaches them.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax

from rlaif_jax.config import Mistake

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of chip, as one device of JAX's (a tpu7x is two devices)."""

    name: str
    kinds: tuple[str, ...]  # how JAX calls it, in lower case: `device_kind` begins so
    flops: float  # bfloat16 products a second
    memory: float  # GiB that a program may use; of TPUs as their compiler says it, of GPUs what the sheet has
    bandwidth: float  # bytes a second between memory and chip
    link: float  # bytes a second that all its links to other chips send together, each one way
    counted: int = 1  # what Google's names count: 2 where they count cores
    devices: int = 1  # of JAX's on a chip
    shapes: tuple[str, ...] = ()  # of its slices, from the smallest on
    options: tuple[tuple[str, str], ...] = ()  # of the compiler's description of a slice


FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
DEEP = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16')

# TPUs: peaks, memory bandwidth and links from cloud.google.com/tpu/docs (system architecture, one page a version) and
# jax-ml.github.io/scaling-book (tpus); memory as libtpu 0.0.52 says it of a program that is too large. GPUs: NVIDIA's data
# sheets. A sheet gives both directions of links together; half of it is one way.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v4', ('tpu v4',), 275e12, 30.75, 1228e9, 270e9, 2, 1, DEEP, (('chip_config_name', 'megacore'),)),
        Chip('v5e', ('tpu v5 lite', 'tpu v5e'), 197e12, 15.75, 819e9, 200e9, shapes=FLAT),
        Chip('v5p', ('tpu v5',), 459e12, 95.73, 2765e9, 600e9, 2, 1, DEEP),
        Chip('v6e', ('tpu v6 lite', 'tpu v6e'), 918e12, 31.24, 1638e9, 400e9, shapes=FLAT),
        Chip('tpu7x', ('tpu7x', 'tpu v7'), 1153e12, 94.74, 3690e9, 300e9, 2, 2, DEEP),
        Chip('t4', ('tesla t4',), 65e12, 14.6, 320e9, 16e9),  # float16: it has no bfloat16, which is slower still
        Chip('l4', ('nvidia l4',), 121e12, 22.5, 300e9, 32e9),
        Chip('a100', ('nvidia a100',), 312e12, 79.2, 2039e9, 300e9),
        Chip('h100', ('nvidia h100',), 989e12, 79.6, 3350e9, 450e9),
        Chip('h200', ('nvidia h200',), 989e12, 140.0, 4800e9, 450e9),
        Chip('b200', ('nvidia b200',), 2250e12, 178.0, 8000e9, 900e9),
    )
}


@dataclass(frozen=True)
class Slice:
    """Chips of one kind that are used together."""

    name: str  # as Google calls it: v5p-32
    chip: Chip
    shape: str  # 2x2x4

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.shape.split('x')))

    @property
    def hosts(self) -> int:
        """Machines: of four TPU chips each, of eight GPUs, or fewer where there are fewer."""
        return -(-self.chips // (4 if self.chip.shapes else 8))

    def devices(self) -> list[Any]:
        """JAX's devices of such a slice, for programs that are compiled and not run. No TPU is asked: none need be here.

        None of GPUs, whose programs are compiled where there is one, and where libtpu is not installed. Raises `Mistake`
        where that fails.
        """
        if not self.chip.shapes or not find_spec('libtpu'):
            return []
        from jax.experimental import topologies

        # The library is meant for one process, which holds the chips; who only compiles may be one of several.
        os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
        os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no question to a cloud that is not there
        more: dict[str, Any] = dict(self.chip.options)
        if self.chips == 1:
            more['chips_per_host_bounds'] = [1, 1, 1]
        try:
            with _silent():
                found = topologies.get_topology_desc(f'{self.chip.name}:{self.shape}', 'tpu', **more)
        except (ImportError, RuntimeError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
            reason = str(error).partition('\n')[0][:200]
            raise Mistake(
                f'--topology={self.name}: libtpu, which compiles for TPUs, fails ({reason}); '
                "pip install 'rlaif_jax[tpu]' brings one that goes with jax"
            ) from None
        return list(found.devices)

    def next(self) -> Slice | None:
        """The same chips, twice as many; None of the largest."""
        shapes = self.chip.shapes
        if not shapes:
            return slice_of(self.chip, str(2 * self.chips))
        at = shapes.index(self.shape) + 1
        return slice_of(self.chip, shapes[at]) if at < len(shapes) else None

    def __str__(self) -> str:
        hosts = f'{self.hosts} host' + 's' * (self.hosts > 1)
        chips = f'{self.chips} chip' + 's' * (self.chips > 1)
        cores = f' ({self.chips * 2} cores)' if self.chip.counted == 2 else ''
        shape = f', {self.shape.replace("x", " x ")}' if self.chip.shapes else ''
        return f'{self.name}: {chips}{cores}{shape}, {hosts}'


@contextmanager
def _silent() -> Iterator[None]:
    """Drops what a library writes past Python to standard error: libtpu looks for a TPU there, and complains of none."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def slice_of(chip: Chip, shape: str) -> Slice:
    count = math.prod(map(int, shape.split('x'))) * chip.counted
    return Slice(f'{chip.name}-{count}', chip, shape)


def find(name: str, flag: str = '--topology') -> Slice:
    """The slice of that name, such as v5e-16 (or v5litepod-16), v5p-32, v6e-64, tpu7x-16.

    Raises `Mistake` naming the nearest ones.
    """
    typed = name.strip().lower().replace('v5litepod', 'v5e').removeprefix('tpu-')
    known = {one.name: one for chip in CHIPS.values() for one in (slice_of(chip, shape) for shape in chip.shapes)}
    if typed in known:
        return known[typed]
    kind, _, count = typed.partition('-')
    if kind in CHIPS and not CHIPS[kind].shapes and re.fullmatch('[1-9][0-9]{0,4}', count or '1'):
        return slice_of(CHIPS[kind], count or '1')
    gpus = [f'{one}-8' for one, chip in CHIPS.items() if not chip.shapes]
    own = [one for one in known if one.startswith(f'{kind}-')]
    if own and re.fullmatch(r'\d+', count):
        near = sorted(own, key=lambda one: abs(math.log(int(one.partition('-')[2]) / max(int(count), 1))))[:2]
    else:
        near = own or ([f'{kind}-8'] if kind in CHIPS else difflib.get_close_matches(typed, [*known, *gpus], 3, 0.0))
    raise Mistake(f'{flag}={name}: no such slice; did you mean {" or ".join(near)}? GPUs: {", ".join(gpus)}')


def of_device(device: jax.Device) -> Chip | None:
    """The kind of chip that a device is; None of one that stands in no table, as a CPU."""
    kind = device.device_kind.lower()
    found = [(len(start), chip) for chip in CHIPS.values() for start in chip.kinds if kind.startswith(start)]
    return max(found, key=lambda one: one[0])[1] if found else None


def memory_of(device: jax.Device) -> float | None:
    """GiB that a program may use on this device: as it says itself, else by the table; of a CPU its share of the machine's.

    None where nobody knows.
    """
    if device.platform == 'cpu':
        try:
            return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB / jax.local_device_count()
        except (AttributeError, OSError, ValueError):
            return None
    stats = device.memory_stats() or {}
    if limit := stats.get('bytes_limit'):
        return limit / GIB
    chip = of_device(device)
    return chip.memory if chip else None
