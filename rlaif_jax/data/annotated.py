"""Rankings that people gave elsewhere: exports of Label Studio and of Argilla, row by row.

    for one in rankings(row, 'file:1') or ():       # None: a row of neither
        one.rater, one.places                       # 'ann', [['a'], ['b', 'c']], best first; None where it was skipped
        one.prompts, one.texts                      # what may name the prompt; name in the places -> its text

Label Studio: a task with `data` and `annotations`, by `Pairwise` or by `Ranker`: one list, or buckets, each a tie.
Argilla: records of its 2.x SDK, flat ones, too, and rows as 1.x put them on the hub; equal ranks are ties.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rlaif_jax.config import Mistake
from rlaif_jax.data.files import Row

_TEXTS = 'body', 'html', 'text', 'title', 'value'  # of an item in Label Studio's lists
_UNSORTED = '_'  # its bucket of what is in none; where it is alone, the list itself
_FLAT = '.responses'


@dataclass(frozen=True)
class Ranked:
    """One rater's ranking of the responses to one prompt."""

    rater: str
    places: list[list[str]] | None  # names, best first, tied ones together; None: skipped
    prompts: tuple[str, ...]  # ids and texts, of which one is the prompt's, the likeliest first
    texts: Mapping[str, str]  # name -> the response, where the export says it


def rankings(row: Row, where: str) -> list[Ranked] | None:
    """What people ranked in a row; None of a row that is no export's. Raises `Mistake`, which starts with `where`, for an
    export without rankings, or with what these do not write.
    """
    tool = 'Label Studio'
    try:
        if isinstance(row.get('data'), Mapping) and isinstance(row.get('annotations'), list):
            return list(_label_studio(row, where))
        tool = 'Argilla'
        if (answers := _argilla_answers(row)) is not None:
            return list(_argilla(row, answers, where))
    except (AttributeError, TypeError, KeyError) as error:  # of whatever stands where another kind of value should
        raise Mistake(
            f'{where}: begins as an export of {tool}, and goes on as none ({error}); export it whole, as JSON, with its '
            'annotations'
        ) from error
    return None


def _label_studio(row: Row, where: str) -> Iterator[Ranked]:
    data = row['data']
    lists = [value for value in data.values() if isinstance(value, list)]
    items = [item for value in lists for item in value if isinstance(item, Mapping) and 'id' in item]
    texts = {str(item['id']): next((str(item[name]) for name in _TEXTS if item.get(name)), '') for item in items}
    prompts = _named(data.get('prompt_id'), data.get('prompt'), *data.values())
    for one in row['annotations']:
        by = one.get('completed_by')
        rater = str(by.get('email') or by.get('id') if isinstance(by, Mapping) else by)
        if one.get('was_cancelled'):
            yield Ranked(rater, None, prompts, texts)
            continue
        found = [(part.get('type'), part.get('value') or {}) for part in one.get('result') or ()]
        value = next((value for kind, value in found if kind in ('ranker', 'pairwise')), None)
        if value is None:
            raise Mistake(f'{where}: the annotation of {rater!r} has neither a ranker nor a pairwise result')
        if 'selected' in value:
            sides = {
                name: text for name, text in data.items() if isinstance(text, str) and not name.startswith('prompt')
            }
            if len(sides) != 2 or value['selected'] not in ('left', 'right'):
                raise Mistake(
                    f'{where}: which are left and right of {", ".join(map(repr, sides))}? A pairwise task has two texts '
                    'beside its prompt'
                )
            names = list(sides)[:: 1 if value['selected'] == 'left' else -1]
            yield Ranked(rater, [[name] for name in names], prompts, sides)
            continue
        ranked = value.get('ranker')
        if isinstance(ranked, Mapping) and (ranked.keys() - {_UNSORTED}):
            places = [list(map(str, ids)) for bucket, ids in ranked.items() if bucket != _UNSORTED and ids]
        else:
            ids = ranked.get(_UNSORTED) if isinstance(ranked, Mapping) else ranked
            places = [[str(id)] for id in ids or ()]
        yield Ranked(rater, places, prompts, texts)


def _argilla_answers(row: Row) -> list[tuple[Any, Any, Any]] | None:
    """(user, value, status) of everything that people answered in a row; None of a row that is no record."""
    if isinstance(row.get('fields'), Mapping) and isinstance(row.get('responses'), Mapping | list):
        told = row['responses']
        if isinstance(told, list):  # as its server has them: of a user all questions
            each = [(one, part) for one in told for part in (one.get('values') or {}).values()]
            return [(one.get('user_id'), part.get('value'), one.get('status')) for one, part in each]
        return [
            (one.get('user_id'), one.get('value'), one.get('status')) for part in told.values() for one in part or ()
        ]
    if flat := [name for name in row if name.endswith(_FLAT)]:
        return [
            answer
            for name in flat
            for answer in zip(
                *(row.get(name + end) or [None] * len(row[name] or ()) for end in ('.users', '', '.status'))
            )
        ]
    lists = [value for value in row.values() if isinstance(value, list)]
    answers = [
        one for value in lists for one in value if isinstance(one, Mapping) and {'user_id', 'value'} <= one.keys()
    ]
    return [(one['user_id'], one['value'], one.get('status')) for one in answers] or None


def _argilla(row: Row, answers: Sequence[tuple[Any, Any, Any]], where: str) -> Iterator[Ranked]:
    fields = row['fields'] if isinstance(row.get('fields'), Mapping) else row
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    more = row.get('metadata')
    with suppress(ValueError):
        more = json.loads(more) if isinstance(more, str) else more
    named = more.get('prompt_id') if isinstance(more, Mapping) else None
    prompts = _named(named, row.get('external_id'), fields.get('prompt'), row.get('id'), *texts.values())
    for rater, value, status in answers:
        if status in ('draft', 'pending'):
            continue
        if status == 'discarded':
            yield Ranked(str(rater), None, prompts, texts)
        elif (places := _places(value, texts)) is not None:
            yield Ranked(str(rater), places, prompts, texts)


def _places(value: Any, texts: Mapping[str, str]) -> list[list[str]] | None:
    """A ranking as names, best first; None of the answer to another question."""
    if isinstance(value, Mapping) and {'rank', 'value'} <= value.keys() and isinstance(value['value'], list):
        value = [
            {'rank': rank, 'value': name} for rank, name in zip(value['rank'], value['value'])
        ]  # as a table has it
    if not isinstance(value, list) or len(value) < 2:
        return None
    if all(isinstance(one, Mapping) and one.get('rank') is not None and 'value' in one for one in value):
        ranks = sorted({one['rank'] for one in value})
        return [[str(one['value']) for one in value if one['rank'] == rank] for rank in ranks]
    return [[str(one)] for one in value] if all(isinstance(one, str) and one in texts for one in value) else None


def _named(*values: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(value) for value in values if isinstance(value, str | int) and value != ''))
