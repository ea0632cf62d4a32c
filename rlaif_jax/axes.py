"""The alphabet of axes, meshes, and where every array lives on them.

An array's name ends in the letters of its axes (`logp_BT`, `query_LDNH`), and that is all this file needs: `RULES` maps
letters to mesh axes, `shardings` places any tree by the names of its leaves. Another layout is another table.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlaif_jax import hosts, log
from rlaif_jax.config import Mistake

ALPHABET: Mapping[str, str] = {
    'B': 'batch', 'T': 'time', 'S': 'cache slot', 'L': 'layer', 'D': 'embed', 'N': 'query head', 'K': 'key-value head',
    'G': 'query heads per key-value head', 'H': 'head dim', 'F': 'ffn', 'V': 'vocab', 'C': 'candidate', 'O': 'order shown',
    'R': 'rating', 'J': 'sampled rationale', 'A': 'way to write an answer', 'M': 'token of a way',
    'W': 'node that ways share', 'P': 'slot of a shared prefix', 'X': 'rank of an adapter', 'E': 'expert',
    'Q': 'pair in a row',
}  # fmt: skip

MESH_AXES = ('data', 'fsdp', 'tensor')
MOST_CORES = 8  # of a CPU that are devices of their own by -1: batches of 64 still divide
Rules = Mapping[str, str | tuple[str, ...]]

# Rows are split over data and fsdp; parameters over fsdp along the embedding and over tensor along heads, experts,
# ffn and vocabulary; of experts whole ones, where it divides them.
RULES: Rules = {'B': ('data', 'fsdp'), 'D': 'fsdp', **dict.fromkeys('NKFVE', 'tensor')}

# Where tokens are looked up, and where the next ones are read off, rows are whole along fsdp: they are few numbers, V x D
# are many, which so never gather on one device. D, or V, is split over it instead.
TABLE: Rules = RULES | {'B': 'data'}
HEAD: Rules = {'B': 'data', 'V': ('tensor', 'fsdp')}


def ask_for_devices(sizes: Mapping[str, int]) -> None:
    """Makes JAX see as many CPU devices as a mesh of these sizes needs; where a size is -1, one for each core.

    By itself a CPU is one device, and a core waits between two operations. Several devices keep all cores busy. For -1
    that axis has a power of two, so that it divides batches: 4 of 6 cores, and `MOST_CORES` at most. The number of
    accelerators does not change. Call this before JAX first looks for devices.
    """
    fixed = math.prod(size for size in sizes.values() if size > 0)
    # Of all processes, each of which has cores of its own; then of this one.
    left = max(1, min(cores(), MOST_CORES) * hosts.count() // fixed)
    count = fixed * (1 << left.bit_length() - 1 if -1 in sizes.values() else 1)
    count = -(-count // hosts.count())
    if count > 1 and 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
        with contextlib.suppress(RuntimeError):  # JAX has looked already; `make_mesh` says what there is
            jax.config.update('jax_num_cpu_devices', count)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def make_mesh(sizes: Mapping[str, int] | None = None, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`. `make_mesh()` is one device, of this process.

    sizes: devices along each axis. An axis that is not named has size 1; one may be -1, all devices that are left; where
    two are, `data` is 1.
    devices: which ones; by default all. Raises `Mistake` where the sizes do not fit the devices, and where a mesh of
    several processes would leave some of their devices out.
    """
    alone = sizes is None and devices is None
    sizes = dict(sizes or {})
    devices = list(jax.local_devices() if alone else jax.devices()) if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    needed = math.prod(shape)
    if hosts.count() > 1 and not alone and needed < len(devices):
        raise Mistake(
            f'mesh: {dict(zip(MESH_AXES, shape))} is {needed} of the {len(devices)} devices of {hosts.count()} processes, '
            'and each of them takes part: give mesh.data=-1, or mesh.fsdp=-1'
        )
    kinds, devices = (AxisType.Auto,) * 3, devices[:needed]
    between = _between_slices(shape, len({getattr(device, 'slice_index', 0) for device in devices}))
    if between is None:
        return jax.make_mesh(shape, MESH_AXES, axis_types=kinds, devices=devices)
    from jax.experimental import mesh_utils

    within = [size // slices for size, slices in zip(shape, between)]
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, between, devices), MESH_AXES, axis_types=kinds)


def mesh_shape(sizes: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """The sizes of all three axes on so many devices. Raises `Mistake` where they do not fit them."""
    if unknown := set(sizes) - set(MESH_AXES):
        raise Mistake(f'mesh: no axis {sorted(unknown)[0]!r}; the axes are {", ".join(MESH_AXES)}')
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    if shape.count(-1) == 2 and shape[0] == -1:  # a scale's data, most likely, beside what somebody wants
        shape[0] = 1
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise Mistake(f'mesh: sizes are positive, at most one is -1 (the devices that are left); got {sizes}')
    fixed = int(np.prod([size for size in shape if size != -1]))
    if -1 in shape:
        shape[shape.index(-1)] = max(devices // fixed, 1)
    needed = math.prod(shape)
    if needed > devices or (-1 in sizes.values() and devices % fixed):
        raise Mistake(f'mesh: {dict(zip(MESH_AXES, shape))} needs {needed} devices in whole rows; there are {devices}')
    return tuple(shape)


def _between_slices(shape: Sequence[int], slices: int) -> list[int] | None:
    """How many slices each axis goes over; None where there is one slice. One axis goes over all: the first that can, as
    the network between slices is slow, and `tensor` needs it most.
    """
    if slices == 1:
        return None
    for i, axis in enumerate(MESH_AXES):
        if shape[i] % slices == 0:
            if axis == 'tensor':
                log.say_once(
                    f'mesh: data and fsdp are no multiples of the {slices} slices, so tensor goes over them, slowly'
                )
            return [slices if j == i else 1 for j in range(3)]
    raise Mistake(f'mesh: {dict(zip(MESH_AXES, shape))}: there are {slices} slices; make data a multiple of them')


def platform() -> str:
    """What kind of device a program that is being traced is for: 'cpu', 'gpu' or 'tpu'; of the mesh, where one is set."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def mesh_of(tree: Any) -> Mesh:
    """The mesh that a tree of arrays lives on. Where no array has one it is a mesh of the first device."""
    placed = [
        leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(getattr(leaf, 'sharding', None), NamedSharding)
    ]
    return placed[0].mesh if placed else make_mesh()


def letters(name: str) -> str:
    """The axes that a name declares: 'query_LDNH' -> 'LDNH'. A name without axes, as of a scalar, gives ''."""
    found = re.search(r'(?:^|_)([A-Z]+)$', name)
    return found[1] if found and set(found[1]) <= set(ALPHABET) else ''


def spec(axes: str, shape: tuple[int, ...], mesh: Any, rules: Rules | None = None) -> PartitionSpec:
    """The partition of an array with these letters.

    An axis is split over as many of its mesh axes, from the first on, as divide its size. Each mesh axis is used once.
    """
    split = (names for names, _ in _wanted(axes, shape, mesh, rules))
    return PartitionSpec(*(names if len(names) > 1 else names[0] if names else None for names in split))


def undivided(shapes: Mapping[str, tuple[int, ...]], mesh: Mesh) -> str:
    """Which arrays with these names and shapes are whole, along which axis, though the rules would split them; else ''."""
    found: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        axes = letters(name)
        for letter, size, (_, lacking) in zip(axes, shape, _wanted(axes, shape, mesh)):
            if lacking:
                over = ', '.join(f'{n} = {mesh.shape[n]}' for n in lacking)
                found.setdefault(f'{over} does not divide {letter} = {size} ({ALPHABET[letter]})', []).append(name)
    shown = lambda of: ', '.join(of[:3] + [f'{len(of) - 3} more'] * (len(of) > 3))  # noqa: E731
    return '; '.join(f'{why}, which stays whole on every device in {shown(of)}' for why, of in found.items())


def _wanted(
    axes: str, shape: tuple[int, ...], mesh: Any, rules: Rules | None = None
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Of each axis the mesh axes that split it, as many from the first on as divide it, and those that would besides."""
    used: set[str] = set()
    for letter, size in zip(axes, shape, strict=True):
        wanted = (RULES if rules is None else rules).get(letter, ())
        names = tuple(
            n for n in ((wanted,) if isinstance(wanted, str) else wanted) if n not in used and mesh.shape[n] > 1
        )
        fits = lambda n: size % math.prod(mesh.shape[name] for name in names[:n]) == 0  # noqa: B023, E731
        split = names[: max(filter(fits, range(len(names) + 1)))]
        used.update(split)
        yield split, names[len(split) :]


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The same tree with a `NamedSharding` at every leaf, by the leaf's name.

    This works for parameters, for batches and for the state of an optimizer, whose leaves have the names of their
    parameters. Where the optimizer dropped an axis (Adafactor's factored moments), the letters that remain are found by
    their sizes.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    named = [(letters(_last_name(path)), leaf) for path, leaf in flat]
    size_of = {c: n for axes, leaf in named if len(axes) == len(leaf.shape) for c, n in zip(axes, leaf.shape)}
    out = []
    for axes, leaf in named:
        if len(axes) != len(leaf.shape):
            axes = _kept(axes, leaf.shape, size_of)
        out.append(NamedSharding(mesh, spec(axes, leaf.shape, mesh) if axes else PartitionSpec()))
    return jax.tree_util.tree_unflatten(treedef, out)


def place(tree: Any, mesh: Mesh) -> Any:
    """Puts every leaf of the tree where its name says."""
    return hosts.to_mesh(tree, shardings(tree, mesh))


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of anything whose first axis is B."""
    return NamedSharding(mesh, PartitionSpec(RULES['B']))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def shares(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return int(np.prod([mesh.shape[n] for n in RULES['B']]))


def check_batch(name: str, size: int, mesh: Mesh) -> None:
    """Raises `Mistake` where `size` rows do not split evenly over the mesh. It names the nearest sizes that do.

    name: the field that holds the size, for the message.
    """
    parts = shares(mesh)
    if size < 1 or size % parts:
        low, high = size // parts * parts, max(size // parts + 1, 1) * parts
        near = f'{low} or {high}' if low > 0 else f'{high}'
        data, others = mesh.shape['data'], parts // mesh.shape['data']
        less = next((n for n in range(data - 1, 0, -1) if size % (n * others) == 0), 0)
        hint = f'mesh.data={less} fits; ' * bool(less)
        raise Mistake(
            f'{name} = {size}: {hint}the mesh splits a batch into {parts}; the nearest sizes that fit are {near}'
        )


def constrain(x: jax.Array, axes: str, rules: Rules | None = None) -> jax.Array:
    """Tells the compiler where an activation lives, by its letters. '.' stands for an axis that is whole.

    Without a mesh (see `jax.set_mesh`) it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh, rules))


def _last_name(path: tuple[Any, ...]) -> str:
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, str)]
    return names[-1] if names else ''


def _kept(axes: str, shape: tuple[int, ...], size_of: Mapping[str, int]) -> str:
    """The letters of `axes`, in order, whose sizes are `shape`; '' if there are none (a placeholder leaf)."""
    if not shape:
        return ''
    for i, letter in enumerate(axes):
        if size_of.get(letter) == shape[0]:
            rest = _kept(axes[i + 1 :], shape[1:], size_of)
            if len(rest) == len(shape) - 1:
                return letter + rest
    return ''
