"""How figures are written: rates and their intervals in the cells of a table, in per cent, and whole in a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isnan
from os import PathLike
from pathlib import Path
from typing import Any

from rlaif_jax import log
from rlaif_jax.evaluation.statistics import Interval

NOTHING = '–'  # in the cell of what is not known, or is of nothing (nan)


def title(text: str, simulated: bool, *more: str) -> str:
    return ' · '.join([*['SIMULATED'] * simulated, text, *more])


def number(value: Interval | float | None, form: str) -> str:
    value = value.value if isinstance(value, Interval) else value
    return NOTHING if value is None or isnan(value) else f'{value:{form}}'


def percent(share: Interval | float | None) -> str:
    """`78.0`"""
    return number(share, '.1%').removesuffix('%')


def within(share: Interval, unit: str = '') -> str:
    """`78.0 [75.3, 80.4]`; of a rate at one length `~78.0 [75.3, 80.4]` where it is an extrapolation, and `78.0 [humps]`
    where it has no one interval.
    """
    value = percent(share)
    if value == NOTHING:
        return value
    about = '~' if getattr(share, 'extrapolated', False) else ''
    ends = 'humps' if getattr(share, 'humps', False) else f'{100 * share.low:.1f}, {100 * share.high:.1f}'
    return f'{about}{value}{unit} [{ends}]'


def plus_minus(difference: Interval | None) -> str:
    """`+1.2 ± 0.8`, in points; nothing where there is no interval to give: for fewer than two pairs, or all alike."""
    if difference is None or difference.n < 2 or difference.low == difference.high:
        return NOTHING
    half = max(difference.high - difference.value, difference.value - difference.low)  # one end may be clipped
    return f'{100 * difference.value:+.1f} ± {100 * half:.1f}'


def p_value(p: float) -> str:
    return '<0.001' if p < 0.001 else f'{p:.3f}'


def columns(found: Any, column: str = '') -> dict[str, Any]:
    """Column -> number or text of all that a dataclass knows: `position_same` is `position.same`, an interval has its value
    under its name, and `_low`, `_high` and `_n` beside it. Tuples, such as curves, are left out.
    """
    if not is_dataclass(found):
        return {} if found is None or isinstance(found, tuple) else {column: found}
    names = {one.name: column if one.name == 'value' else f'{column}_{one.name}'.lstrip('_') for one in fields(found)}
    return {key: cell for name, inner in names.items() for key, cell in columns(getattr(found, name), inner).items()}


def as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines under the columns that any of them has; what one does not have is empty there."""
    text = io.StringIO()
    out = csv.DictWriter(text, dict.fromkeys(column for line in lines for column in line), lineterminator='\n')
    out.writeheader()
    out.writerows(lines)
    return text.getvalue()


def write_csv(path: str | PathLike[str], lines: Sequence[Mapping[str, Any]]) -> None:
    """The file is there whole or not at all; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    log.write_whole(Path(path), as_csv(lines))
