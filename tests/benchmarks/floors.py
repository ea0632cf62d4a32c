"""The least time that a stage's products and bytes can take on a machine whose rates were measured.

Products and bytes are those that plans count (`experiments.programs`); the rates are what the machine does at its best.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.programs import Line, Program, Read, Training, alone, programs
from rlaif_jax import axes
from rlaif_jax.models import transformer


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second, measured."""

    flops: float  # operations of a product of two large matrices
    bytes: float  # read or written, of arrays too large for any cache

    def seconds(self, flops: float, traffic: float) -> float:
        """The longer of the two: what is computed hides what is moved, at best, or the other way round."""
        return max(flops / self.flops, traffic / self.bytes)


def measured(sizes: dict[str, int] | None = None, dtype: Any = jnp.float32, product: int = 2048) -> dict[str, float]:
    """`flops`, and bytes `copied` and `read` a second, by XLA on a mesh: the best of several."""
    mesh = axes.make_mesh(sizes)
    rows = axes.rows(mesh)
    a, b = jnp.ones((product, product), dtype), jnp.ones((product, product), dtype)
    source = jax.device_put(jnp.ones((2**14, 2**12), jnp.float32), rows)  # 256 MiB
    a, b = jax.device_put(a, rows), jax.device_put(b, axes.replicated(mesh))

    def best(piece: Callable[..., Any], *given: Any) -> float:
        return min(timed(partial(jax.jit(piece, out_shardings=rows), *given), 5))

    return {
        'flops': 2 * product**3 / best(jnp.matmul, a, b),
        'copied': 2 * source.nbytes / best(lambda x: x + 1, source),
        'read': source.nbytes / best(lambda x: x.sum(axis=1), source),
    }


def timed(piece: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, behind one that compiles."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(piece())
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def taken(program: Program, repeats: int) -> tuple[list[float], int]:
    """Seconds of each of `repeats` calls of a program on the devices of its mesh, behind one that warms up, and the bytes
    that the compiler says it needs on each: arguments, results and all between. All arguments are zero, which takes as long
    (no token ends a response, as no token is named to).
    """
    lowered = program.lower()
    compiled = lowered.compile()
    of = compiled.memory_analysis()
    need = of.argument_size_in_bytes + of.output_size_in_bytes + of.temp_size_in_bytes - of.alias_size_in_bytes

    def zero(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.zeros(x.shape, x.dtype)

    seconds = []
    for _ in range(repeats + 1):
        given, named = jax.block_until_ready(jax.tree.map(zero, lowered.args_info))  # anew: some are given away
        began = time.perf_counter()
        jax.block_until_ready(compiled(*given, **named))
        seconds.append(time.perf_counter() - began)
    return seconds[1:], need


def rollouts(
    cfg: transformer.Config, rows: int, prompt: int, new: int, samples: int = 1
) -> tuple[tuple[float, float], tuple[float, float]]:
    """`(flops, bytes)` of the prefill, of each prompt once, and of all decoding."""
    whole, first = (_writes(cfg, rows, prompt, tail) for tail in (new, 0))
    once = _writes(cfg, rows // samples, prompt, 0)
    return (once.flops, once.traffic), (whole.flops - first.flops, whole.traffic - first.traffic)


def update(cfg: transformer.Config, training: Training, length: int, read: int = 0) -> tuple[float, float]:
    """`(flops, bytes)` of a step of the optimizer on rows of `length` tokens. SFT's learn `read` of them, 0: all."""
    (program,) = programs(Line('', Path(), 1, training=training, length=length, read=read), {'policy': cfg}, alone())
    return program.flops, program.traffic


def ragged(cfg: transformer.Config, training: Training, rows: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """`update` for rows of these lengths, of which so many tokens are learned, none of them padded."""
    each = [update(cfg, replace(training, batch=1, parts=1), *row) for row in rows]
    return sum(flops for flops, _ in each), statistics.mean(moved for _, moved in each)


def prefill(cfg: transformer.Config, read: Read) -> tuple[float, float]:
    """`(flops, bytes)` of a model that answers or scores."""
    (program,) = programs(Line('', Path(), 1, reads=(read,)), {read.role: cfg}, alone())
    return program.flops, program.traffic


def _writes(cfg: transformer.Config, rows: int, prompt: int, tail: int) -> Program:
    read = Read('policy', 'writes', rows, prompt, tail)
    (program,) = programs(Line('', Path(), 1, reads=(read,)), {'policy': cfg}, alone())
    return program
