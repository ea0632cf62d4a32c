"""The SIMULATED world as the rest of the project meets it: its data sets as sources. `data.loader` reads them here, and
nothing else of the project knows the world.
"""

from __future__ import annotations

import itertools
from functools import partial

from rlaif_jax.data.records import Pair
from rlaif_jax.data.source import Prompts, Source, World
from rlaif_jax.micro import figures, judges, raters, tasks

WORLD = World(
    quality=tasks.quality,
    wrong=tasks.wrong,
    raters=judges.raters,
    scores=raters.scores,
    harmless=judges.harmless,
    figures=figures.figures,
    about=figures.ABOUT,
)


def prompts(own: str, split: str, size: int, task: str = '') -> Prompts:
    """The first `size` prompts of a split; they are of the data set's `own` task, whatever is asked."""
    return Prompts(range(size), partial(tasks.prompt, own, split), size)


def pairs(own: str, split: str, size: int, task: str = '', confident: bool = False) -> list[Pair]:
    """The first `size` pairs of a split; with `confident`, of those whose raters were sure. They are of the `own` task."""
    made = (raters.pair(split, index, own) for index in itertools.count())
    sure = lambda pair: raters.confident([pair.prompt], [pair.first], [pair.second])[0]  # noqa: E731
    return list(itertools.islice(filter(sure, made) if confident else made, size))


SOURCES = {
    name: Source(name, task, partial(prompts, task), partial(pairs, task), world=WORLD)
    for name, task in zip(('micro_tldr', 'micro_helpful', 'micro_harmless'), tasks.TASKS, strict=True)
}
