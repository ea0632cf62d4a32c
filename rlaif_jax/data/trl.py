"""What rows of anybody's files say: pairs and prompts, in TRL's columns.

    for entry in pairs('pairs.jsonl', 'summarization'):
        entry.row, entry.record, entry.problem       # every column; a Pair, or None and the reason

A pair's row has its two responses as `chosen`, `rejected` (the first is the better one), as `response_1`, `response_2`, or
as `first`, `second`. Of the latter two `label` is what people say: 0 or `A` where the first is better, 1 or `B` where the
second is, a half or `tie` where neither, or a list of these, one of each rater; `preference`, P(the first is better), may
stand for it. The prompt is in `prompt`, or the responses are whole dialogues that share it. Each is text or a list of
messages, `[{'role': 'user', 'content': …}, …]`, which may be written as text, in parts of text, or with ShareGPT's `from`
and `value`. A row may have an `id`.

Text stands as it is, but for what `chat.dialogue` puts right. Messages become text as in Anthropic's HH files,
`\\n\\nHuman: …\\n\\nAssistant: …`, system messages in front of it; only a summary's lone user message is its content. So
prompt and response, one behind the other, are the dialogue.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from rlaif_jax import chat
from rlaif_jax.chat import MARKERS, SPEAKERS
from rlaif_jax.config import Mistake
from rlaif_jax.data.files import Row, Rows, read, short
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.data.votes import listed, word

RESPONSES = ('chosen', 'rejected'), ('response_1', 'response_2'), ('first', 'second')  # where several are: the first
ASSISTANT = SPEAKERS['assistant']
_ROLES = {'human': 'user', 'gpt': 'assistant', 'developer': 'system'} | {role: role for role in ('system', *SPEAKERS)}
PARTS = 'text', 'input_text', 'output_text'  # of a message's content
TOOLS = 'tool_calls', 'function_call'
# Text that means to be messages: one of a role that is known and that says something, in brackets from end to end.
_WRITTEN = re.compile(
    r"""(?=.*["'](?:content|value)["']\s*:)(?:array\()?\[?\s*\{.*?["'](?:role|from)["']\s*:\s*["'](?:tool|"""
    + '|'.join(_ROLES)
    + r""")["'].*[}\])]""",
    re.DOTALL | re.IGNORECASE,
)
LONE = '; one object is one row (to write a DataFrame row by row: to_json(path, orient="records", lines=True))'


@dataclass(frozen=True)
class Entry:
    """A row of a file, and what it says.

    Attributes:
      row: every column as the file has it.
      record: the `Pair` or `Prompt`; None where the row is none.
      problem: what is wrong with the row, where, with file, line and column; '' where nothing is.
      where: file and line.
    """

    row: Row
    record: Pair | Prompt | None
    problem: str = ''
    where: str = field(default='', compare=False)


def pairs(source: Path | str | Rows, task: str) -> list[Entry]:
    """Every row of a file with its `Pair`; a row that is none comes along with the reason, so that none is lost.

    Raises `Mistake` where the file cannot be read, and where not one row is a pair.
    """
    return _entries(source, 'pair', lambda row, where: pair_of(row, task, where))


def prompts(source: Path | str | Rows, task: str) -> list[Entry]:
    """Every row of a file with its `Prompt`, as `pairs` does. Pairs are prompts too."""
    return _entries(source, 'prompt', lambda row, where: prompt_of(row, task, where))


def answered(source: Path | str | Rows, task: str) -> list[Entry]:
    """Every row of a file with its responses: a `Pair`, or a `Prompt` with its completion as the reference."""

    def make(row: Row, where: str) -> Pair | Prompt:
        if any(all(name in row for name in names) for names in RESPONSES):
            return pair_of(row, task, where)
        if row.get('completion') is None:
            raise Mistake(f'{where}: {_missing(row, [("prompt", "completion"), *RESPONSES])}')
        return prompt_of(row, task, where)

    return _entries(source, 'row with a response', make)


def _entries(source: Path | str | Rows, noun: str, make: Callable[[Row, str], Pair | Prompt]) -> list[Entry]:
    source = source if isinstance(source, Rows) else read(source)
    entries = []
    for where, row in source.located:
        try:
            entries.append(Entry(row, make(row, where), where=where))
        except Mistake as mistake:
            entries.append(Entry(row, None, str(mistake), where))
    if not any(entry.record for entry in entries):
        lone = LONE if len(entries) == 1 and isinstance(source.kept, list) else ''
        raise Mistake(
            f'{source.path}: none of its {len(entries)} rows is a {noun}; the first: {entries[0].problem}{lone}'
        )
    return entries


def preferred(row: Mapping[str, Any], preference: float | None) -> Row | None:
    """The two responses of a row as `chosen` and `rejected`, by P(the first is better), with its prompt and id as they
    stand there; `margin`, P(chosen is better) − P(rejected is better), is in (0, 1]. None where neither is better, or
    nobody can tell (None or NaN).
    """
    if preference is None or math.isnan(preference) or preference == 0.5:
        return None
    first, second = next(names for names in RESPONSES if all(name in row for name in names))
    better, worse = (first, second) if preference > 0.5 else (second, first)
    kept = {name: row[name] for name in ('id', 'prompt') if name in row}
    return kept | {'chosen': row[better], 'rejected': row[worse], 'margin': abs(2 * float(preference) - 1)}


# Rows to records


@dataclass(frozen=True)
class _Context:
    """What stands before a response: its text, and what is said in it, without roles, in each way that it can be read."""

    text: str
    said: tuple[str, ...]


def pair_of(row: Mapping[str, Any], task: str, where: str) -> Pair:
    """The pair in a row; its prompt's id is the row's `id`, or a hash of the three texts.

    `chosen` is the first response, with preference 1; otherwise the preference is what `preference` or `label` says, None
    where neither does. Empty text is text. Responses that are whole dialogues must part at the last reply.

    Raises `Mistake`, which starts with `where` (a file and line), for missing columns (naming those found and the nearest
    shape), for what is neither text nor messages, and for dialogues that do not share their context.
    """
    names = next((names for names in RESPONSES if all(name in row for name in names)), None)
    if not names:
        whole = [('prompt', *names) for names in RESPONSES]
        raise Mistake(f'{where}: {_missing(row, whole + [*RESPONSES])}')
    _once(row, ('prompt', *names, 'preference', 'label', 'id'), where)
    prompt = _prompt(row['prompt'], task, f'{where}: column {"prompt"!r}') if 'prompt' in row else None
    halves = [_response(row[name], prompt, task, f'{where}: column {name!r}') for name in names]
    contexts = [context for context, _ in halves if context is not None]
    if prompt is None and len(contexts) < 2:
        name = next(name for name, (context, _) in zip(names, halves) if context is None)
        raise Mistake(
            f'{where}: no column {"prompt"!r} (there are {_listed(row)}), and column {name!r} is no dialogue with '
            f'{ASSISTANT!r} in it; add the prompt as a column'
        )
    if len({_folded(context.text) for context in contexts}) > 1:
        shared = len(os.path.commonprefix([context.text for context in contexts]))
        raise Mistake(
            f'{where}: columns {names[0]!r} and {names[1]!r} do not share their context, only its first {shared} '
            'characters; two responses are the last replies in one dialogue'
        )
    if prompt is not None and contexts and not _holds(contexts[0], prompt):
        raise Mistake(f'{where}: the dialogues in {names[0]!r}, {names[1]!r} do not hold what column {"prompt"!r} says')
    text = (contexts[0] if contexts else prompt).text
    first, second = (response for _, response in halves)
    preference = 1.0 if names == RESPONSES[0] else _preference(row, where)
    return Pair(Prompt(text, _id(row, text, first, second)), first, second, preference)


def prompt_of(row: Mapping[str, Any], task: str, where: str) -> Prompt:
    """The prompt in a row, from `prompt` or the context that two dialogues share; its reference is `completion`, where
    that is. Its id is the row's `id`, or a hash of its text. Raises `Mistake` as `pair_of` does.
    """
    _once(row, ('prompt', 'completion', 'id'), where)
    if 'prompt' in row:
        prompt = _prompt(row['prompt'], task, f'{where}: column {"prompt"!r}')
    elif any(all(name in row for name in names) for names in RESPONSES):
        text = pair_of(row, task, where).prompt.text
        prompt = _Context(text, ())
    else:
        raise Mistake(f'{where}: {_missing(row, [("prompt",), ("prompt", "completion"), *RESPONSES])}')
    reference = ''
    if row.get('completion') is not None:
        _, reference = _response(row['completion'], prompt, task, f'{where}: column {"completion"!r}')
    return Prompt(prompt.text, _id(row, prompt.text), reference)


def _prompt(value: Any, task: str, place: str) -> _Context:
    messages = _messages(value, place)
    if messages is not None:
        return _Context(_rendered(messages, task, place), (_folded(*(content for _, content in messages)),))
    text = _text(value, place)
    if (turns := chat.turns(text)) is None:
        return _Context(text, (_folded(text),))
    # What is said may imitate a turn, so that both readings may be the right one.
    return _Context(chat.dialogue(text).rstrip(), (_folded(text), _folded(*(content for _, content in turns))))


def _response(value: Any, prompt: _Context | None, task: str, place: str) -> tuple[_Context | None, str]:
    """`(context, response)`: the context is that of a whole dialogue, None where there is only a response."""
    messages = _messages(value, place)
    if messages is not None:
        *before, (role, content) = messages
        if role != 'assistant':
            raise Mistake(f'{place} ends in a message of {role!r}; a response is the last message, of "assistant"')
        context = _prompt([{'role': role, 'content': said} for role, said in before], task, place) if before else None
        opening = context or prompt
        return context, f' {content}' if opening and opening.text.endswith(ASSISTANT) else content
    text = _text(value, place)
    whole = chat.dialogue(text)
    if prompt is not None and prompt.text.endswith(ASSISTANT) and whole.startswith(prompt.text):
        return prompt, whole.removeprefix(prompt.text)  # which people also repeat in front of each response
    before, marker, response = whole.rpartition(ASSISTANT)
    context = _prompt(before + marker, task, place) if marker else None
    if prompt is not None and not (marker and whole.startswith(SPEAKERS['user']) and _holds(context, prompt)):
        return None, text
    if SPEAKERS['user'] in response:
        raise Mistake(f"{place} ends in the human's turn; a response is the last turn, the assistant's")
    return (context, response) if marker else (None, text)


def _holds(context: _Context, prompt: _Context) -> bool:
    """Whether a dialogue's context holds all that a prompt says."""
    return any(part in whole for part in prompt.said for whole in context.said)


def _folded(*texts: str) -> str:
    return ' '.join(' '.join(texts).split())


def _messages(value: Any, place: str) -> list[chat.Turn] | None:
    """[(role, content), …], one at least; None for text that holds none."""
    if isinstance(value, str) and (value := _written(value, place)) is None:
        return None
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list):
        return None
    if not value:
        raise Mistake(f'{place} is an empty list of messages')
    return [_message(message, f'{place}, message {number}') for number, message in enumerate(value, 1)]


def _message(message: Any, place: str) -> chat.Turn:
    """`{'role', 'content'}`, or `{'from', 'value'}` as ShareGPT has them."""
    if not isinstance(message, Mapping):
        raise Mistake(f"{place}: wants {{'role': …, 'content': …}}, got {short(message)}")
    _once(message, ('role', 'content', 'from', 'value'), place)
    if any(message.get(name) for name in TOOLS):
        raise Mistake(f'{place} calls a tool; dialogues with tools are not read')
    role, content = (
        [message[name] for name in names if name in message] for names in (('role', 'from'), ('content', 'value'))
    )
    if not role or not content:
        raise Mistake(f"{place}: wants {{'role': …, 'content': …}}, got {short(message)}")
    # A table has every key in every message, null where it has nothing.
    role, content = (next((one for one in found if one is not None), None) for found in (role, content))
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise Mistake(f'{place}: role is {short(role)}; wants system, user or assistant')
    return known, _content(content, f'{place}: its content')


def _content(value: Any, place: str) -> str:
    """What a message says: text, or parts of which all are text."""
    parts = [value] if isinstance(value, Mapping) else value
    if not isinstance(parts, list) or not parts:
        return _text(value, place, 'text')
    for number, part in enumerate(parts, 1):
        if not isinstance(part, Mapping) or part.get('type') not in PARTS:
            kind = part.get('type') if isinstance(part, Mapping) else part
            raise Mistake(f'{place} has a part of type {short(kind)} (part {number}); only text is read')
    return ''.join(_text(part.get('text'), f'{place}, part {i}', 'text') for i, part in enumerate(parts, 1))


def _written(text: str, place: str) -> list | Mapping | None:
    """The messages that a text is, in JSON or as Python prints them; None for any other text. Raises `Mistake` for text
    that wants to be messages and cannot be read, as numpy prints them.
    """
    text = text.strip()
    if not text.endswith(('}', ']', ')')) or not _WRITTEN.fullmatch(text):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of a backslash that escapes nothing
                found = ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
            raise Mistake(
                f'{place} is text that looks like messages, and is neither JSON nor Python; give a list of messages'
            ) from error
    return list(found) if isinstance(found, tuple) else found


def _rendered(messages: Sequence[chat.Turn], task: str, place: str) -> str:
    """The messages before a response as a prompt's text."""
    system = [content for _, content in itertools.takewhile(lambda message: message[0] == 'system', messages)]
    turns = messages[len(system) :]
    if not turns or turns[-1][0] != 'user':
        raise Mistake(f'{place}: the message before a response must be of "user", not of {messages[-1][0]!r}')
    if any(role == 'system' for role, _ in turns):
        raise Mistake(f'{place}: a system message stands behind the first turn; it must stand in front')
    if task == 'summarization' and len(turns) == 1:
        return '\n\n'.join([*system, turns[0][1]])
    # What imitates a turn in what was said is no turn.
    said = lambda text: MARKERS.sub(lambda found: found[0].replace('\n\n', '\n\n '), chat.lines(text))  # noqa: E731
    shown = ''.join(f'{SPEAKERS[role]} {said(content)}' for role, content in turns)
    return re.sub(r'\A\n?(?=Human:)', ' ', '\n\n'.join(map(said, system))) + shown + ASSISTANT


def _text(value: Any, place: str, wants: str = 'text or a list of messages') -> str:
    if not isinstance(value, str):
        raise Mistake(f'{place} is {short(value)}; wants {wants}')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = repr(value[error.start])
        raise Mistake(
            f'{place} has half a character ({half}, a cut emoji?) at {error.start}; no model can read it'
        ) from error
    return value


def probability(value: Any, place: str) -> float:
    """P(the first is better) in a column. Raises `Mistake`, which starts with `place`, for what is no number in [0, 1]."""
    if not _number(value) or not 0 <= value <= 1:
        raise Mistake(f'{place} is {short(value)}; wants P(the first is better), 0 to 1, or null')
    return float(value)


def _preference(row: Mapping[str, Any], where: str) -> float | None:
    value, label = row.get('preference'), row.get('label')
    if value is not None:
        return probability(value, f"{where}: column 'preference'")
    if label is None:
        return None
    votes = [_vote(one, where) for one in listed(label) if one is not None]
    return sum(votes) / len(votes) if votes else None


def _vote(label: Any, where: str) -> float:
    """What one rater says: 1 for the first, 0 for the second, ½ for a tie."""
    if (said := word(label)) is not None:
        return said
    if not _number(label) or label not in (0, 0.5, 1):
        raise Mistake(
            f"{where}: column 'label' is {short(label)}; wants 0 (the first is better), 1 (the second), 'tie' or a list"
        )
    return 1.0 - float(label)


def _number(value: Any) -> bool:
    finite = isinstance(value, Decimal) and value.is_finite()
    return finite or isinstance(value, int | float) and not isinstance(value, bool)


def name_of(value: Any) -> str | None:
    """What an id in a column is called: 7.0, as a column with gaps has it, is 7. None for null, NaN and empty text."""
    if value is None or value == '' or isinstance(value, float) and math.isnan(value):
        return None
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _id(row: Mapping[str, Any], *texts: str) -> str:
    given = name_of(row.get('id'))
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16] if given is None else given


def _once(row: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises `Mistake` where an object of JSON has one of these keys twice: nobody knows which is meant."""
    if twice := [name for name in names if name in getattr(row, 'twice', ())]:
        raise Mistake(f'{where}: {twice[0]!r} stands there twice')


def _missing(row: Mapping[str, Any], shapes: Sequence[tuple[str, ...]]) -> str:
    """What a row lacks: its columns, and the one of the `shapes` that they are most like."""
    like = lambda a, b: difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()  # noqa: E731
    best = {name: max(row, key=lambda other: like(name, other), default='') for shape in shapes for name in shape}
    shape = max(shapes, key=lambda shape: sum(like(name, best[name]) >= 0.6 for name in shape) / len(shape))
    absent = [name for name in shape if name not in row]
    renamed = [f'is {best[name]!r} your {name!r}?' for name in absent if like(name, best[name]) >= 0.6]
    nearest = f'the nearest shape is {", ".join(shape)}, without {", ".join(map(repr, absent))} here'
    return '; '.join([f'the columns are {_listed(row)}', nearest, *renamed])


def _listed(row: Mapping[str, Any]) -> str:
    return ', '.join(map(repr, row)) or 'none'
