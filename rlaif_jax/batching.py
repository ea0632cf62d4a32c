"""Rows of tokens in batches: those of like length go together, padded to few shapes, and what comes of them returns in the
order in which they were given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from rlaif_jax import axes
from rlaif_jax.stopping import stop_together

BUCKET = 32  # rows are padded to a multiple of this many tokens: few shapes to compile, little padding to compute


def padded(lengths: Sequence[int], bucket: int = BUCKET) -> int:
    """The length of a batch whose rows have these."""
    return -(-max(lengths) // bucket) * bucket


def together(lengths: Sequence[int], room: int, most: int, splits: int = 1, each: int | None = None) -> list[list[int]]:
    """Which texts stand in which row: each where there is room for it, the longest first, `each` in a row at most. As many
    rows as that takes, in whole units, so that there are few shapes to compile: an eighth of `most`, which is where each
    text is alone, or what falls into `splits` equal parts.
    """
    unit = -(-most // 8 // splits) * splits
    rows: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = (row for row, free in enumerate(left) if free >= lengths[i] and (not each or len(rows[row]) < each))
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(i)
        left[row] -= lengths[i]
    return rows + [[]] * (min(-(-len(rows) // unit) * unit, most) - len(rows))


def in_batches(
    lengths: Sequence[int], batch: int, mesh: Mesh, call: Callable[[list[int], int], Sequence[Any]]
) -> list[Any]:
    """What `call(rows, number)` gives for each row, in order. It gets the indices of up to `batch` rows of like length, and
    how many came before them; where these do not split evenly over the mesh, or would be a new shape, the first stands
    there again, and what it gives then is not looked at.
    """
    found: list[Any] = [None] * len(lengths)
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), batch):
        stop_together()
        chosen = order[start : start + batch]
        size = smaller(batch, len(chosen), mesh)
        for i, one in zip(chosen, call(chosen + chosen[:1] * (size - len(chosen)), start)):
            found[i] = one
    return found


def smaller(size: int, needed: int, mesh: Mesh) -> int:
    """`size`, halved as long as it holds `needed` rows and splits evenly over the mesh: few shapes, little padding."""
    parts = axes.shares(mesh)
    while size % 2 == 0 and size // 2 >= needed and size // 2 % parts == 0:
        size //= 2
    return size
