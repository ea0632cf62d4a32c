"""What people say of a pair, as files have it: which response is better, or neither, by one rater or by several.

    vote = reader('winner', values)               # of all values of a column
    vote('model_a'), vote('tie'), vote(None)      # 1.0, 0.5, nan
    first_row_B, raters, vote_BM = gather([('pair 1', False, [('ann', 1.0)]), ('pair 1', True, [('bob', 0.0)]), …])

A vote is 1 where a rater prefers the first response, 0 where the second, ½ where neither, nan where nobody said. Axes: B
pair, M rater.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlaif_jax.config import Mistake, nearest
from rlaif_jax.data.files import Row, short

Vote = Callable[[Any], float]

_NAMES = 'model', 'response', 'output', 'answer', 'assistant', 'completion'
_SIDES = {1.0: ('a', 'first', 'left', 'chosen'), 0.0: ('b', 'second', 'right', 'rejected')}
WORDS = (
    {word: vote for vote, words in _SIDES.items() for word in words}
    | {f'{name} {end}': vote for name in _NAMES for end, vote in (('a', 1.0), ('b', 0.0), ('1', 1.0), ('2', 0.0))}
    | dict.fromkeys(('tie', 'tied', 'draw', 'equal', 'same', 'neither', 'both', 'bothbad', 'both bad'), 0.5)
    | {'tie bothbad': 0.5, 'tie both bad': 0.5}
)


def word(value: Any) -> float | None:
    """The vote that a word is, however it is written (`model_a`, `[[A]]`, `tie (bothbad)`); None of any other value."""
    return WORDS.get(_folded(value)) if isinstance(value, str) else None


def look(row: Row, path: str) -> Any:
    """What stands in a column, or in what a column holds: `results.-1.winner` is the winner of the last of its results.
    None where there is nothing.
    """
    if path in row:
        return row[path]
    found: Any = row
    for part in path.split('.'):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list | tuple) and part.lstrip('-').isdecimal():
            found = found[int(part)] if -len(found) <= int(part) < len(found) else None
        else:
            return None
    return found


def listed(value: Any) -> list[Any]:
    """A value as the votes that it is: those of a list, or the one."""
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def reader(column: str, values: Iterable[Any], given: Sequence[str] = ()) -> Vote:
    """What the values of a column mean, read from all that stand in it.

    `given` are the values for the first response, the second and, where there is one, a tie. Without: words are what they
    say. Of numbers 0 and 1, or 1 and 2, are the first and the second, and ½ a tie in `label`; other numbers in [0, 1], and
    all in a column of probabilities (`preference`, `preference_prob`), are P(the first is better). Raises `Mistake`, which
    names the column and the value, for all else, as for 0, 1 and 2, of which any may be the tie, for 1 alone, which is
    either, and for 0, ½ and 1 elsewhere, which may be P or not.
    """
    there = [value for value in values if not missing(value)]
    if given:
        if not 2 <= len(given) <= 3:
            raise Mistake(f'values are those of the first response, the second and a tie, not {[*given]}')
        known = dict(zip(map(_folded, given), (1.0, 0.0, 0.5)))
    else:
        known = WORDS | _numbers(column, there)
    for value in there:
        if _folded(value) not in known:
            near = nearest(_folded(value), known) if known else ''
            raise Mistake(
                f'column {column!r} has {short(value)}, which is no vote that is known here (the nearest is {near!r}); '
                "say what stands for the first response, the second and a tie: values=\"['1','2','0']\""
            )
    return lambda value: math.nan if missing(value) else known[_folded(value)]


def _numbers(column: str, values: Sequence[Any]) -> dict[str, float]:
    """Of the numbers among the values: as `_folded` has them -> the vote."""
    found: dict[str, float] = {}
    for value in [value for value in values if not isinstance(value, bool)]:
        try:
            found[_folded(value)] = float(value)
        except (TypeError, ValueError):
            continue
    numbers, name = {*found.values()}, column.rpartition('.')[2]
    probable = 'preference' in name or 'prob' in name
    if not probable and numbers <= {0.0, 1.0, 2.0} and numbers >= {0.0, 2.0}:
        raise Mistake(
            f'column {column!r} has {sorted(map(int, numbers))}: which is the first response, the second, a tie? '
            "values=\"['1','2','0']\" or \"['0','1','2']\""
        )
    halves = name != 'label' and 0.5 in numbers and len(numbers) > 1 and numbers <= {0.0, 0.5, 1.0}
    if not probable and (numbers == {1.0} or halves):
        raise Mistake(
            f'column {column!r} has no numbers but {", ".join(f"{x:g}" for x in sorted(numbers))}: is 1 the first response '
            "or the second? values=\"['0','1','0.5']\" for the second, \"['1','0','0.5']\" or \"['1','2']\" for the first"
        )
    if not probable and numbers and numbers <= {1.0, 2.0} and 2.0 in numbers:
        return {key: 2.0 - number for key, number in found.items()}
    if not probable and (numbers <= {0.0, 1.0} or name == 'label' and numbers <= {0.0, 0.5, 1.0}):
        return {key: 1.0 - number for key, number in found.items()}
    return {key: number for key, number in found.items() if 0 <= number <= 1}


def gather(
    said: Sequence[tuple[Hashable, bool, Sequence[tuple[str, float]]]],
) -> tuple[list[int], tuple[str, ...], np.ndarray]:
    """Rows that are about the same pair as one: the first row of each pair, the raters, and their votes, (B, M).

    said: for each row its pair, whether its responses stand the other way round than in the first row of that pair, and
    (rater, vote). Of raters who have no name, '', each vote on the same pair is another rater's; of one who has, the first
    vote stands.
    """
    first: dict[Hashable, int] = {}
    nameless: Counter[Hashable] = Counter()  # pair -> how many of them it has had
    kind = 'unnamed' if any(rater.startswith('rater ') for *_, by in said for rater, _ in by) else 'rater'
    votes: dict[tuple[Hashable, str], float] = {}
    for i, (pair, turned, by) in enumerate(said):
        first.setdefault(pair, i)
        for rater, vote in by:
            nameless[pair] += not rater  # one who says nothing, too: a place in a list is a rater
            if not math.isnan(vote):
                votes.setdefault((pair, rater or f'{kind} {nameless[pair]}'), 1 - vote if turned else vote)
    raters = tuple(dict.fromkeys(name for _, name in votes))
    vote_BM = np.full((len(first), len(raters)), np.nan)
    place, column = ({key: i for i, key in enumerate(keys)} for keys in (first, raters))
    for (pair, name), vote in votes.items():
        vote_BM[place[pair], column[name]] = vote
    return [*first.values()], raters, vote_BM


def missing(value: Any) -> bool:
    """Whether a value is that of a column in a row that has none."""
    return value is None or value == '' or isinstance(value, float) and math.isnan(value)


def _folded(value: Any) -> str:
    """`model_a`, `Model A` and `[[model-a]]` alike; 1.0, 1 and '1' alike."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return f'{float(value):.12g}'
    except (TypeError, ValueError):
        text = ''.join(sign if sign.isalnum() else ' ' for sign in str(value).lower())
        return ' '.join(text.split())
