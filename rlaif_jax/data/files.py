"""Anybody's pairs and prompts, in files: JSON lines, JSON lists (`.gz` or not) and Parquet, in TRL's columns.

    for entry in pairs('pairs.jsonl', 'summarization'):
        entry.row, entry.record, entry.problem       # every column; a Pair, or None and the reason

A pair's row has its two responses as `chosen`, `rejected` (the first is the better one), as `response_1`, `response_2`
(with `label`, 0 where the first is better, 1 where the second is), or as `first`, `second`; `preference`, P(the first is
better), may stand for `label`. The prompt is in `prompt`, or the responses are whole dialogues that share it. Each is
text or a list of messages, `[{'role': 'user', 'content': …}, …]`, which may be written as text, in parts of text, or with
ShareGPT's `from` and `value`. A row may have an `id`.

Text stands as it is, but for what `chat.dialogue` puts right. Messages become text as in Anthropic's HH files,
`\\n\\nHuman: …\\n\\nAssistant: …`, system messages in front of it; only a summary's lone user message is its content. So
prompt and response, one behind the other, are the dialogue.
"""

from __future__ import annotations

import ast
import base64
import codecs
import difflib
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from rlaif_jax import chat, paths
from rlaif_jax.chat import MARKERS, SPEAKERS
from rlaif_jax.config import Mistake
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.paths import typed

Row = dict[str, Any]  # column: value

SUFFIXES = ('.jsonl', '.jsonl.gz', '.json', '.json.gz', '.parquet')
READABLE = (*SUFFIXES, '.arrow')  # as `datasets` keeps rows in its cache
RESPONSES = ('chosen', 'rejected'), ('response_1', 'response_2'), ('first', 'second')  # where several are: the first
ASSISTANT = SPEAKERS['assistant']
NO_ROWS = 'state.json', 'dataset_info.json'  # what `datasets` writes beside its rows

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
# Files that are taken for files of rows, by how they begin.
KINDS = {
    b'PAR1': 'Parquet',
    b'PK\x03\x04': 'a ZIP archive, or an Excel workbook',
    b'version https://git-lfs': 'a pointer of Git LFS in the place of the file; git lfs pull fetches it',
    b'ARROW1': 'an Arrow file',
    b'\x1f\x8b': 'compressed by gzip',
    b'BZh': 'compressed by bzip2',
    b'\xfd7zXZ': 'compressed by xz',
    b'\x28\xb5\x2f\xfd': 'compressed by zstd',
    b'SQLite format 3': 'an SQLite data base',
    b'\x80\x04': 'a pickle of Python',
    b'%PDF': 'a PDF',
}
WIDE = b'\xff\xfe', b'\xfe\xff'  # the first bytes of UTF-16
CONVERT = (
    'to convert it: python -c "import csv, json, sys; [print(json.dumps(row)) for row in csv.DictReader(sys.stdin)]" '
    "< rows.csv > rows.jsonl (of tabs: DictReader(sys.stdin, delimiter='\\t'))"
)
LONE = '; one object is one row (to write a DataFrame row by row: to_json(path, orient="records", lines=True))'

DEEPEST = 200  # lists in lists that are written value by value
LONGEST = 240  # bytes of a file's name, of which file systems allow 255

_ENCODED = {b'rlaif_jax': b'json'}  # metadata of a Parquet column whose strings are JSON


@dataclass(frozen=True)
class Rows:
    """A file of rows as it was read, to be written again with more columns.

    Attributes:
      path: of the file.
      located: each row with where it stands: `file:line`, or `file: row 1` where there are no lines to speak of.
      kept: the same rows as the file itself has them: the JSON of each, or an Arrow table.
      strange: columns of a table with values that Python has not: those are read as Arrow's text, as bytes, or as null.
    """

    path: Path
    located: list[tuple[str, Row]]
    kept: list[str] | Any
    strange: tuple[str, ...] = ()


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
        raise Mistake(f"{place}: wants {{'role': …, 'content': …}}, got {_short(message)}")
    _once(message, ('role', 'content', 'from', 'value'), place)
    if any(message.get(name) for name in TOOLS):
        raise Mistake(f'{place} calls a tool; dialogues with tools are not read')
    role, content = (
        [message[name] for name in names if name in message] for names in (('role', 'from'), ('content', 'value'))
    )
    if not role or not content:
        raise Mistake(f"{place}: wants {{'role': …, 'content': …}}, got {_short(message)}")
    # A table has every key in every message, null where it has nothing.
    role, content = (next((one for one in found if one is not None), None) for found in (role, content))
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise Mistake(f'{place}: role is {_short(role)}; wants system, user or assistant')
    return known, _content(content, f'{place}: its content')


def _content(value: Any, place: str) -> str:
    """What a message says: text, or parts of which all are text."""
    parts = [value] if isinstance(value, Mapping) else value
    if not isinstance(parts, list) or not parts:
        return _text(value, place, 'text')
    for number, part in enumerate(parts, 1):
        if not isinstance(part, Mapping) or part.get('type') not in PARTS:
            kind = part.get('type') if isinstance(part, Mapping) else part
            raise Mistake(f'{place} has a part of type {_short(kind)} (part {number}); only text is read')
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
        raise Mistake(f'{place} is {_short(value)}; wants {wants}')
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
        raise Mistake(f'{place} is {_short(value)}; wants P(the first is better), 0 to 1, or null')
    return float(value)


def _preference(row: Mapping[str, Any], where: str) -> float | None:
    value, label = row.get('preference'), row.get('label')
    if value is not None:
        return probability(value, f"{where}: column 'preference'")
    if label is not None:
        if not _number(label) or label not in (0, 1):
            raise Mistake(f"{where}: column 'label' is {_short(label)}; wants 0 (the first is better), 1 or null")
        return 1.0 - float(label)
    return None


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
    shape = max(shapes, key=lambda shape: sum(like(name, best[name]) for name in shape) / len(shape))
    absent = [name for name in shape if name not in row]
    renamed = [f'is {best[name]!r} your {name!r}?' for name in absent if like(name, best[name]) >= 0.6]
    nearest = f'the nearest shape is {", ".join(shape)}, without {", ".join(map(repr, absent))} here'
    return '; '.join([f'the columns are {_listed(row)}', nearest, *renamed])


def _listed(row: Mapping[str, Any]) -> str:
    return ', '.join(map(repr, row)) or 'none'


def _short(value: Any) -> str:
    text = repr(value) if len(repr(value)) <= 60 else f'{repr(value)[:60]}…'
    return 'null' if value is None else f'{text} ({type(value).__name__})'


# Files to rows


def read_rows(path: Path | str) -> list[Row]:
    """All rows of a file, each with its columns in order; there is one at least. Reads and raises as `read` does."""
    return [row for _, row in read(path).located]


def located(path: Path | str) -> list[tuple[str, Row]]:
    """`read_rows`, each with where it stands, as in `Rows`."""
    return read(path).located


def read(path: Path | str) -> Rows:
    """The rows of a file; there is one at least.

    A file of JSON is one object a line (empty lines are skipped) or one list of objects. A Parquet file has every column
    in every row, null where it has nothing; a value that Python has not costs no other. Raises `Mistake` for a file that
    is missing, empty, of another suffix or of another kind, and for the first line that cannot be read.
    """
    path = typed(path)
    if not path.exists():
        raise Mistake(f'{path}: no such file{_nearest_file(path)}')
    if path.is_dir():
        raise Mistake(f'{path} is a folder{_nearest_file(path / path.name)}')
    suffix = _suffix(path, READABLE)
    if not path.is_file():  # what is in it can be read once only
        raise Mistake(f'{path} is a pipe or a device; save what comes out of it in a file')
    try:
        rows = _read_table(path, suffix) if suffix in ('.parquet', '.arrow') else _read_json(path)
    except OSError as error:
        raise Mistake(f'{path}: cannot be read ({error.strerror or error})') from error
    if not rows.located:
        raise Mistake(f'{path} is empty; there must be one row at least')
    for where, row in rows.located:
        if not isinstance(row, dict):
            raise Mistake(f'{where}: a row is an object, {{"column": value, …}}, not {_short(row)}')
    return rows


def shards(folder: Path, stem: str) -> list[Path]:
    """The files that make up `stem` in a folder: `stem.jsonl`, `stem-00000-of-00002.parquet` and its like, or what lies in
    `stem/`; any suffix of `READABLE`. [] where there are none. Raises `Mistake` where a part is missing.
    """
    for pattern in (f'{stem}.*', f'{stem}-*-of-*', f'{stem}/*'):
        found = [path for path in folder.glob(pattern) if path.name.lower().endswith(READABLE) and path.is_file()]
        found = sorted(path for path in found if path.name not in NO_ROWS)
        if pattern.endswith('.*'):  # train.jsonl, but not train.backup.jsonl; of several suffixes the first
            found = [path for path in found if path.name[len(stem) :].lower() in READABLE][:1]
            if found:
                return found
            continue
        if found:
            total = re.search(r'-of-(\d+)', found[0].name)
            if total and len(found) != int(total[1]):
                raise Mistake(
                    f'{folder}: {len(found)} of the {int(total[1])} parts of {stem} are there; fetch the others'
                )
            return found
    return []


class _Object(dict):
    """An object of JSON that has keys twice, of which the last one counts here as everywhere."""

    twice: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    found = _Object(found)
    found.twice = tuple(name for name in found if sum(other == name for other, _ in pairs) > 1)
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_object)
_SPACE = re.compile(r'[ \t\n\r]*')


def _read_json(path: Path) -> Rows:
    data = path.read_bytes()
    if data.startswith(b'\x1f\x8b'):
        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Mistake(f'{path}: its compressed data is cut short or damaged ({error}); fetch it again') from error
    if kind := _kind(data[:512]):
        raise Mistake(f'{path} is no JSON but {kind}')
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line, byte = data.count(b'\n', 0, error.start) + 1, data[error.start]
        wide = ' (it is UTF-16)' if data[:2] in WIDE else ''
        raise Mistake(f'{path}:{line}: byte {byte:#04x} is not UTF-8{wide}; save the file as UTF-8') from error
    if re.match(r'\s*\[', text):
        items = _items(text, path)
        return Rows(
            path, [(f'{path}: row {i}', row) for i, (row, _) in enumerate(items, 1)], [kept for _, kept in items]
        )
    # No sign but these two ends a line: JSON lets U+2028 and its like stand in text.
    lines = [(number, line) for number, line in enumerate(chat.lines(text).split('\n'), 1) if line.strip()]
    found = [(f'{path}:{number}', _parsed(line, path, number)) for number, line in lines]
    return Rows(path, found, [line for _, line in lines])


def _items(text: str, path: Path) -> list[tuple[Any, str]]:
    """The items of a list in JSON, each with its own JSON."""
    found, at = [], text.index('[')
    for value in _parsed(text, path, 1):
        start = _SPACE.match(text, at + 1).end()
        _, end = _JSON.raw_decode(text, start)
        found.append((value, text[start:end]))
        at = _SPACE.match(text, end).end()  # of the comma
    return found


def _kind(head: bytes) -> str:
    """What a file is that is none of rows, by its first bytes; '' where they do not tell."""
    for start, kind in KINDS.items():
        if head.startswith(start):
            return kind
    if head.lstrip()[:1] == b'<':
        return 'a page of HTML or XML, as a download that was refused leaves; fetch it again'
    if b'\0' in head[:4]:
        return '' if head[:2] in WIDE else 'UTF-16; save it as UTF-8'
    first = head.removeprefix(codecs.BOM_UTF8).lstrip().split(b'\n')[0]
    if first.lstrip(b'"')[:1] not in (b'{', b'[') and (b',' in first or b'\t' in first):
        return f'a table, CSV or TSV; {CONVERT}'
    return ''


def _parsed(text: str, path: Path, line: int) -> Any:
    """The value of a piece of JSON that starts on `line`."""
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError as error:
        line, problem = line + error.lineno - 1, f'{error.msg}, at character {error.colno}'
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        problem = str(error)
    raise Mistake(f'{path}:{line}: not JSON ({problem}); wants one object a line, or one list of objects')


def _read_table(path: Path, suffix: str) -> Rows:
    pa, pq = _arrow(path)
    if not path.stat().st_size:
        return Rows(path, [], [])
    name = suffix[1:].title()
    try:
        if suffix == '.arrow':
            with pa.memory_map(str(path)) as source:
                kept = source.read(6) == b'ARROW1'  # on a disk, as Feather and Polars do; `datasets` writes a stream
                source.seek(0)
                table = (pa.ipc.open_file if kept else pa.ipc.open_stream)(source).read_all()
        else:
            with pq.ParquetFile(path) as file:  # read_table would add columns named in the path
                table = file.read()
    except (pa.ArrowException, ValueError) as error:
        with open(path, 'rb') as file:
            head = file.read(512)
        kind = 'JSON' if head.lstrip()[:1] in (b'{', b'[') else _kind(head)
        kind = '' if kind == KINDS.get(head[:4]) == name else kind
        reason = f'it is {kind}' if kind else str(error).splitlines()[0]
        raise Mistake(f'{path}: cannot be read as {name} ({reason})') from error
    if len(set(table.column_names)) < table.num_columns:
        raise Mistake(f'{path}: two columns have one name among {", ".join(map(repr, table.column_names))}')
    columns, strange = {}, []
    for kind, column in zip(table.schema, table.columns):
        if (values := _values(column, pa)) is None:
            values = [_value(column.slice(i, 1), pa) for i in range(len(column))]
            strange.append(kind.name)
        if (kind.metadata or {}).items() >= _ENCODED.items():
            values = [value if value is None else json.loads(value) for value in values]
        columns[kind.name] = values
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    return Rows(path, [(f'{path}: row {number}', row) for number, row in enumerate(rows, 1)], table, tuple(strange))


def _values(column: Any, pa: Any) -> list | None:
    """A column's values in Python; None where it has not all of them, as of nanoseconds, or of text that is not UTF-8."""
    try:
        return column.to_pylist()
    except (pa.ArrowException, ArithmeticError, ImportError, LookupError, TypeError, ValueError):
        return None


def _value(one: Any, pa: Any) -> Any:
    """The value of a column of one, in Python, else as Arrow's text, else as bytes, else null."""
    for kind in (one.type, pa.string(), pa.binary()):
        with suppress(pa.ArrowException):
            if found := _values(one.cast(kind), pa):
                return found[0]
    return None


def _arrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise Mistake(
            f'{path}: {path.suffix[1:].title()} needs pyarrow (pip install pyarrow); or use .jsonl'
        ) from error
    return pyarrow, pyarrow.parquet


def _suffix(path: Path, suffixes: Sequence[str] = SUFFIXES) -> str:
    found = [suffix for suffix in suffixes if path.name.lower().endswith(suffix)]
    if not found:
        near = difflib.get_close_matches(''.join(path.suffixes[-2:]).lower(), SUFFIXES, 1, 0.6)
        hope = f'; did you mean {near[0]}?' if near else ''
        if suffixes is READABLE and path.suffix.lower() in ('.csv', '.tsv'):
            hope = f'; {CONVERT}'
        raise Mistake(f'{path}: the name of a file of rows ends in {", ".join(suffixes)}{hope}')
    return found[0]


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f' (nor a folder {folder})'
    names = sorted(other.name for other in folder.iterdir() if other.is_file() and other.name[0] != '.')
    near = difflib.get_close_matches(path.name, names, 1, 0.4) or [n for n in names if n.endswith(SUFFIXES)]
    return f'; did you mean {folder / near[0]}?' if near else ''


# Rows to files


def write_rows(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as the suffix of `path` says, whole or not at all: whoever reads finds the old file or the new one.

    JSON keeps each row as it is, except for what JSON lacks: a number that is not finite becomes null, bytes become
    base64, dates and the like their text. Parquet has one type a column: what a row lacks, at the top or inside, is null;
    whole numbers among fractions become fractions; half a character becomes U+FFFD; a column that fits no one type (text
    in one row, messages in the next) is kept as JSON and marked so, and `read_rows` has it back as it was.

    Raises `Mistake` as `check_writable` does, and where the system refuses, as on a full disk.
    """
    path, rows = typed(path), list(rows)
    check_writable(path)
    _write(path, _formatted(path, rows))


def _formatted(path: Path, rows: Sequence[Mapping[str, Any]]) -> bytes | list[str]:
    return _parquet(path, rows) if _suffix(path) == '.parquet' else [_json(row) for row in rows]


def write_more(path: Path | str, rows: Rows, more: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes the rows of a file with more columns, of names that are free, in `more`, as `write_rows` does, to a file that
    a person named: it replaces none but its own (`paths.put`). What there was stays as it is: the JSON of a row to the
    letter, a column of a table with its type.

    Returns the columns that could not stay as they are, where the two files are not of one kind.
    """
    path, given = typed(path), [row for _, row in rows.located]
    check_writable(path)
    into_table, of_table = _suffix(path) == '.parquet', not isinstance(rows.kept, list)
    if into_table and of_table:
        data, changed = _wider(path, rows, more)
    elif into_table or of_table:
        data = _formatted(path, [row | dict(new) for row, new in zip(given, more, strict=True)])
        leaf = _utf8 if into_table else _json_leaf
        odd = [name for row in given for name in row if not _same(_mapped(row[name], leaf), row[name])]
        changed = [*rows.strange, *odd, *(name for row in given for name in getattr(row, 'twice', ()))]
    else:
        data, changed = [_longer(text, new) for text, new in zip(rows.kept, more, strict=True)], []
    _write(path, data, paths.put)
    return list(dict.fromkeys(changed))


def _longer(text: str, more: Mapping[str, Any]) -> str:
    """An object's JSON with more columns, on one line: between values the end of a line is white space."""
    body = text.strip()[1:-1].replace('\n', ' ').replace('\r', ' ').strip()
    return '{' + ', '.join(filter(None, [body, _json(more)[1:-1]])) + '}'


def _write(path: Path, data: bytes | Sequence[str], put: Callable[[Path, Path], None] | None = None) -> None:
    """A file of these bytes, or of these rows in JSON, whole or not at all: `put` moves it to its place."""
    if not isinstance(data, bytes):
        lines = '.jsonl' in path.name.lower()[-len('.jsonl.gz') :]
        text = '\n'.join([*data, '']) if lines else '[\n' + ',\n'.join(data) + '\n]\n'
        data = text.encode('utf-8', 'backslashreplace')  # half a character becomes its JSON escape
    if path.name.lower().endswith('.gz'):
        data = gzip.compress(data, mtime=0)  # equal rows, equal bytes
    path = Path(os.path.realpath(path))  # through a link the file behind it is written
    partial = path.with_name(f'.{path.name}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        (put or os.replace)(partial, path)
    except OSError as error:
        raise Mistake(f'{path}: cannot be written ({error.strerror or error})') from error
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path | str) -> None:
    """Raises `Mistake` where `write_rows` could not write `path`, for asking before the work rather than after it."""
    path = typed(path)
    if _suffix(path) == '.parquet':
        _arrow(path)
    if path.is_dir() or not paths.writable(path.parent):
        raise Mistake(f'{path}: cannot be written; name a file in a folder that is yours')
    if (length := len(os.fsencode(path.name))) > LONGEST:
        raise Mistake(f'{path}: a name of {length} bytes; {LONGEST} leave room for what is written beside it')


def _json(value: Any) -> str:
    return json.dumps(_mapped(value, _json_leaf), ensure_ascii=False, allow_nan=False)


def _parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> bytes:
    pa, pq = _arrow(path)
    return _in_parquet(_columns(rows, pa, pq), pa, pq)


def _wider(path: Path, rows: Rows, more: Sequence[Mapping[str, Any]]) -> tuple[bytes, list[str]]:
    """A table with more columns, and which of its own are of a type that Arrow has and Parquet lacks."""
    pa, pq = _arrow(path)
    table, new, lacking = rows.kept, _columns(more, pa, pq), []
    for i, name in enumerate(table.column_names if rows.path.suffix.lower() == '.arrow' else ()):
        try:
            _in_parquet(table.select([i]), pa, pq)
        except pa.ArrowException:
            lacking.append(name)
            array, mark = _column([_mapped(row[name], _utf8) for _, row in rows.located], pa, pq)
            table = table.set_column(i, pa.field(name, array.type, metadata=mark), array)
    for kind, column in zip(new.schema, new.columns):
        table = table.append_column(kind, column)
    return _in_parquet(table, pa, pq), lacking


def _columns(rows: Sequence[Mapping[str, Any]], pa: Any, pq: Any) -> Any:
    """An Arrow table of rows."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [_mapped(row.get(name), _utf8) for row in rows] for name in names}
    arrays = [_column(values, pa, pq) for values in columns.values()]
    fields = [pa.field(_utf8(name), array.type, metadata=mark) for name, (array, mark) in zip(names, arrays)]
    return pa.Table.from_arrays([array for array, _ in arrays], schema=pa.schema(fields))


def _column(values: list, pa: Any, pq: Any) -> tuple[Any, dict | None]:
    """`(array, metadata)` of a column: what Arrow makes of it if Parquet gives the same back, otherwise JSON."""
    try:
        array = pa.array(values)
        data = _in_parquet(pa.table([array], names=['']), pa, pq)
        if _same(pq.read_table(pa.BufferReader(data)).column(0).to_pylist(), values):
            return array, None
    # Mixed types; an integer of more than 64 bits; lists in lists in lists.
    except (pa.ArrowException, ArithmeticError, OSError, TypeError, ValueError):
        pass
    return pa.array([None if value is None else _json(value) for value in values], pa.string()), _ENCODED


def _in_parquet(table: Any, pa: Any, pq: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _mapped(value: Any, leaf: Callable[[Any], Any], deeper: int = DEEPEST) -> Any:
    """`value` as dicts with text for keys, lists, and `leaf` of everything else; what lies too deep for Python as `…`."""
    if not deeper and isinstance(value, Mapping | list | tuple):
        return '…'
    if isinstance(value, Mapping):
        return {leaf(str(key)): _mapped(item, leaf, deeper - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, leaf, deeper - 1) for item in value]
    if hasattr(value, 'tolist'):  # of numpy
        return _mapped(value.tolist(), leaf, deeper)
    return leaf(value)


def _json_leaf(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _utf8(value: Any) -> Any:
    """Text without halves of characters, which neither UTF-8 nor Parquet has; anything else as it is."""
    return re.sub('[\ud800-\udfff]', '\ufffd', value) if isinstance(value, str) else value


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same to whoever reads them: an absent key is null, 1 is 1.0 but not True."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_same(one.get(key), other.get(key)) for key in one | other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return one == other or (one != one and other != other)  # nan
