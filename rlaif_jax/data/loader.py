"""Which prompt stands where in the stream: a function of the seed and the step, so that the step is the whole position."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence

import grain

from rlaif_jax.config import Mistake
from rlaif_jax.data.records import Pair, Prompt

SOURCES = ('micro_tldr',)


def source(name: str, split: str, size: int) -> Sequence[Prompt]:
    """The first `size` prompts of a split (`train`, `validation`, `test`) of a data set. Raises `Mistake` for an
    unknown name.
    """
    if name == 'micro_tldr':
        from rlaif_jax.data.micro import world

        return world.Posts(split, size)
    near = difflib.get_close_matches(name, SOURCES, 1, 0.0)
    raise Mistake(f'no data set {name!r}; did you mean {near[0]}?')


def pairs(name: str, task: str, split: str, size: int, confident: bool = False) -> list[Pair]:
    """The first `size` pairs of a split with what people preferred; `confident`: of those whose raters were sure.

    Raises `Mistake` for an unknown name.
    """
    source(name, split, 1)  # raises
    from rlaif_jax.data.micro import raters

    found: list[Pair] = []
    for index in itertools.count():
        if len(found) == size:
            return found
        pair = raters.pair(split, index, task)
        if not confident or raters.confident([pair.prompt], [pair.first], [pair.second])[0]:
            found.append(pair)


def batches(prompts: Sequence[Prompt], batch: int, seed: int) -> Callable[[int], list[Prompt]]:
    """`at(step)`: the step's prompts, every epoch in another order, for ever. Nothing is kept between calls."""
    if not 0 < batch <= len(prompts):
        raise Mistake(f'a batch of {batch} from {len(prompts)} prompts: there must be at least one batch')
    stream = grain.MapDataset.source(prompts).seed(seed).shuffle().repeat()
    return lambda step: [stream[i] for i in range(step * batch, (step + 1) * batch)]


def simulated(name: str) -> bool:
    """Whether a data set is of a simulated world; everything printed from it says so."""
    return name.startswith('micro')


def note(name: str) -> str:
    """What stands beside everything that is printed about a data set: `[simulated]`, or nothing."""
    return '[simulated]' if simulated(name) else ''
