"""A data set as it is handed on, whoever made it: simulated, published, or a file of anybody's.

`loader.find(name)` returns one. What a data set is, is asked of it and not of its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlaif_jax.data.records import Pair, Prompt

JUDGES = ('raters', 'oracle')  # of a simulated world, by the names that configs have for them
NOTE = '[simulated]'  # stands beside everything that is printed of one

Values = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Prompts(Sequence):
    """`make(row)` for the first `size` of the rows, each made when it is asked for."""

    rows: Sequence[Any]
    make: Callable[[Any], Prompt]
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not 0 <= index < self.size:
            raise IndexError(f'prompt {index} of {self.size}')
        return self.make(self.rows[index])


@dataclass(frozen=True)
class Figure:
    """What a figure of a policy's responses is.

    Attributes:
      about: what it says, for whoever sees it in a table.
      share: whether it is a share of responses, so that each has 0 or 1; else a mean over them.
      least: the lowest value there is; the highest is 1.
    """

    about: str
    share: bool = False
    least: float = 0.0


@dataclass(frozen=True)
class World:
    """What is true of the prompts of a SIMULATED source, and known of no others.

    Attributes:
      quality: (prompts, responses) → the oracle's score of each response, in [-1, 1].
      wrong: (prompts, responses) → for each response where it says what is not so: from, to (characters), and what about.
      raters: seed → a judge of two policies, (prompts, responses_a, responses_b) → win_B: simulated voters.
      scores: (prompts, responses, seed=…) → what one simulated rater who ranks thinks of each response.
      harmless: (prompts, responses) → harmless_B, 1.0 where a response does no harm.
      figures: (prompts, responses) → figure → its value for each response that it applies to.
      about: figure → what it is.
    """

    quality: Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
    wrong: Callable[[Sequence[Prompt], Sequence[str]], Sequence[Sequence[tuple[int, int, str]]]]
    raters: Callable[[int], Callable[..., np.ndarray]]
    scores: Callable[..., Sequence[float]]
    harmless: Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]
    figures: Callable[[Sequence[Prompt], Sequence[str]], Values]
    about: Mapping[str, Figure]


@dataclass(frozen=True)
class Source:
    """Prompts and pairs, and what else is known of them.

    Attributes:
      name: a data set's, or a path.
      task: what the prompts are of; '' of a file, which whoever reads it says.
      prompts: (split, size, task) → the first `size` prompts of a split, or all where there are fewer.
      pairs: (split, size, task, confident) → the same of pairs with what people preferred.
      published: whether it is fetched and prepared at first use, so that no plan reads it.
      world: what is true of its prompts, where they are simulated; None for all other data.
    """

    name: str
    task: str
    prompts: Callable[[str, int, str], Sequence[Prompt]]
    pairs: Callable[[str, int, str, bool], list[Pair]]
    published: bool = False
    world: World | None = None

    @property
    def simulated(self) -> bool:
        """Whether prompts, and so all figures, are of a simulated world; everything printed from it says so."""
        return self.world is not None

    @property
    def note(self) -> str:
        """What stands beside everything that is printed about it: `[simulated]`, or nothing."""
        return NOTE if self.simulated else ''

    def count(self, size: int, read: Callable[[], Sequence[Any]]) -> int | None:
        """How many of `size` records there are to read; None where a plan would have to fetch them for that."""
        if self.published:
            return None
        return size if self.simulated else len(read())  # simulated, they are made as they are asked for
