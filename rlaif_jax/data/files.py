"""Anybody's pairs and prompts, in files: JSON lines, JSON lists (`.gz` or not) and Parquet, in TRL's columns.

    for entry in pairs('pairs.jsonl', 'summarization'):
        entry.row, entry.record, entry.problem       # every column; a Pair, or None and the reason

A pair's row has its two responses as `chosen`, `rejected` (the first is the better one), as `response_1`, `response_2`
(with `label`, 0 where the first is better, 1 where the second is), or as `first`, `second`; `preference`, P(the first is
better), may stand for `label`. The prompt is in `prompt`, or the responses are whole dialogues that share it. Each is
text or a list of messages, `[{'role': 'user', 'content': …}, …]`. A row may have an `id`.

Text stands as it is. Messages become text as in Anthropic's HH files, `\\n\\nHuman: …\\n\\nAssistant: …`, system messages
in front of it; only a summary's lone user message is its content. So prompt and response, one behind the other, are the
dialogue.
"""

from __future__ import annotations

import base64
import difflib
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

_ENCODED = {b'rlaif_jax': b'json'}  # metadata of a Parquet column whose strings are JSON


@dataclass(frozen=True)
class Entry:
    """A row of a file, and what it says.

    Attributes:
      row: every column as the file has it.
      record: the `Pair` or `Prompt`; None where the row is none.
      problem: what is wrong with the row, where, with file, line and column; '' where nothing is.
    """

    row: Row
    record: Pair | Prompt | None
    problem: str = ''


def pairs(path: Path | str, task: str) -> list[Entry]:
    """Every row of a file with its `Pair`; a row that is none comes along with the reason, so that none is lost.

    Raises `Mistake` where the file cannot be read, and where not one row is a pair.
    """
    return _entries(path, 'pair', lambda row, where: pair_of(row, task, where))


def prompts(path: Path | str, task: str) -> list[Entry]:
    """Every row of a file with its `Prompt`, as `pairs` does. Pairs are prompts too."""
    return _entries(path, 'prompt', lambda row, where: prompt_of(row, task, where))


def _entries(path: Path | str, noun: str, make: Callable[[Row, str], Pair | Prompt]) -> list[Entry]:
    entries = []
    for where, row in located(path):
        try:
            entries.append(Entry(row, make(row, where)))
        except Mistake as mistake:
            entries.append(Entry(row, None, str(mistake)))
    if not any(entry.record for entry in entries):
        raise Mistake(f'{path}: none of its {len(entries)} rows is a {noun}; the first: {entries[0].problem}')
    return entries


# Rows to records


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
    prompt = _prompt_text(row['prompt'], task, f'{where}: column {"prompt"!r}') if 'prompt' in row else None
    halves = [_response(row[name], prompt, task, f'{where}: column {name!r}') for name in names]
    contexts = [context for context, _ in halves if context is not None]
    if prompt is None and len(contexts) < 2:
        name = next(name for name, (context, _) in zip(names, halves) if context is None)
        raise Mistake(
            f'{where}: no column {"prompt"!r} (there are {_listed(row)}), and column {name!r} is no dialogue with '
            f'{ASSISTANT!r} in it; add the prompt as a column'
        )
    if len(set(contexts)) > 1:
        shared = len(os.path.commonprefix(contexts))
        raise Mistake(
            f'{where}: columns {names[0]!r} and {names[1]!r} do not share their context, only its first {shared} '
            'characters; two responses are the last replies in one dialogue'
        )
    if prompt is not None and contexts and prompt.strip() not in contexts[0]:
        raise Mistake(f'{where}: the dialogues in {names[0]!r}, {names[1]!r} do not hold what column {"prompt"!r} says')
    text = contexts[0] if contexts else prompt
    first, second = (response for _, response in halves)
    preference = 1.0 if names == RESPONSES[0] else _preference(row, where)
    return Pair(Prompt(text, _id(row, text, first, second)), first, second, preference)


def prompt_of(row: Mapping[str, Any], task: str, where: str) -> Prompt:
    """The prompt in a row, from `prompt` or the context that two dialogues share; its reference is `completion`, where
    that is. Its id is the row's `id`, or a hash of its text. Raises `Mistake` as `pair_of` does.
    """
    if 'prompt' in row:
        text = _prompt_text(row['prompt'], task, f'{where}: column {"prompt"!r}')
    elif any(all(name in row for name in names) for names in RESPONSES):
        text = pair_of(row, task, where).prompt.text
    else:
        raise Mistake(f'{where}: {_missing(row, [("prompt",), ("prompt", "completion"), *RESPONSES])}')
    reference = ''
    if row.get('completion') is not None:
        _, reference = _response(row['completion'], text, task, f'{where}: column {"completion"!r}')
    return Prompt(text, _id(row, text), reference)


def _prompt_text(value: Any, task: str, place: str) -> str:
    return _rendered(_messages(value, place), task, place) if isinstance(value, list) else _text(value, place)


def _response(value: Any, prompt: str | None, task: str, place: str) -> tuple[str | None, str]:
    """`(context, response)`: the context is that of a whole dialogue, None where there is only a response."""
    if isinstance(value, list):
        *before, (role, content) = _messages(value, place)
        if role != 'assistant':
            raise Mistake(f'{place} ends in a message of {role!r}; a response is the last message, of "assistant"')
        context = _rendered(before, task, place) if before else None
        opening = prompt if context is None else context
        return context, f' {content}' if (opening or '').endswith(ASSISTANT) else content
    text = _text(value, place)
    if prompt is not None:  # which people also repeat in front of each response
        repeated = prompt.endswith(ASSISTANT) and text.startswith(prompt)
        return (prompt, text.removeprefix(prompt)) if repeated else (None, text)
    context, marker, response = text.rpartition(ASSISTANT)
    if SPEAKERS['user'] in response:
        raise Mistake(f"{place} ends in the human's turn; a response is the last turn, the assistant's")
    return (context + marker, response) if marker else (None, text)


def _messages(value: list, place: str) -> list[tuple[str, str]]:
    """[(role, content), …], one at least."""
    if not value:
        raise Mistake(f'{place} is an empty list of messages')
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not {'role', 'content'} <= message.keys():
            raise Mistake(f"{place}, message {number}: wants {{'role': …, 'content': …}}, got {_short(message)}")
        if message['role'] not in ('system', *SPEAKERS):
            raise Mistake(
                f'{place}, message {number}: role is {_short(message["role"])}; wants system, user or assistant'
            )
        _text(message['content'], f'{place}, message {number}: its content')
    return [(message['role'], message['content']) for message in value]


def _rendered(messages: Sequence[tuple[str, str]], task: str, place: str) -> str:
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
    said = [MARKERS.sub(lambda found: found[0].replace('\n\n', '\n\n '), content) for _, content in turns]
    shown = ''.join(f'{SPEAKERS[role]} {content}' for (role, _), content in zip(turns, said))
    return '\n\n'.join(system) + shown + ASSISTANT


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise Mistake(f'{place} is {_short(value)}; wants text or a list of messages')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = repr(value[error.start])
        raise Mistake(
            f'{place} has half a character ({half}, a cut emoji?) at {error.start}; no model can read it'
        ) from error
    return value


def _preference(row: Mapping[str, Any], where: str) -> float | None:
    number = lambda value: isinstance(value, int | float) and not isinstance(value, bool)  # noqa: E731
    value, label = row.get('preference'), row.get('label')
    if value is not None:
        if not number(value) or not 0 <= value <= 1:
            raise Mistake(
                f"{where}: column 'preference' is {_short(value)}; wants P(the first is better), 0 to 1, or null"
            )
        return float(value)
    if label is not None:
        if not number(label) or label not in (0, 1):
            raise Mistake(f"{where}: column 'label' is {_short(label)}; wants 0 (the first is better), 1 or null")
        return 1.0 - label
    return None


def _id(row: Mapping[str, Any], *texts: str) -> str:
    given = row.get('id')
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16] if given is None else str(given)


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
    """All rows of a file, each with its columns in order; there is one at least.

    A file of JSON is one object a line (empty lines are skipped) or one list of objects. A Parquet file has every column
    in every row, null where it has nothing. Raises `Mistake` for a file that is missing, empty or of another suffix, and
    for the first line that cannot be read.
    """
    return [row for _, row in located(path)]


def located(path: Path | str) -> list[tuple[str, Row]]:
    """`read_rows`, each with where it stands: `file:line`, or `file: row 1` where there are no lines to speak of."""
    path = typed(path)
    if not path.exists():
        raise Mistake(f'{path}: no such file{_nearest_file(path)}')
    if path.is_dir():
        raise Mistake(f'{path} is a folder{_nearest_file(path / path.name)}')
    read = {'.parquet': _read_parquet, '.arrow': _read_arrow}.get(_suffix(path, READABLE), _read_json)
    try:
        rows = read(path)
    except OSError as error:
        raise Mistake(f'{path}: cannot be read ({error.strerror or error})') from error
    if not rows:
        raise Mistake(f'{path} is empty; there must be one row at least')
    for where, row in rows:
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


def _read_json(path: Path) -> list[tuple[str, Any]]:
    data = path.read_bytes()
    if data.startswith(b'\x1f\x8b'):
        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Mistake(f'{path}: its compressed data is cut short or damaged ({error}); fetch it again') from error
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line, byte = data.count(b'\n', 0, error.start) + 1, data[error.start]
        raise Mistake(f'{path}:{line}: byte {byte:#04x} is not UTF-8; save the file as UTF-8') from error
    if re.match(r'\s*\[', text):
        return [(f'{path}: row {number}', row) for number, row in enumerate(_parsed(text, path, 1), 1)]
    # Only '\n' ends a line: JSON lets U+2028 and its like stand in text.
    lines = [(number, line) for number, line in enumerate(text.split('\n'), 1) if line.strip()]
    return [(f'{path}:{number}', _parsed(line, path, number)) for number, line in lines]


def _parsed(text: str, path: Path, line: int) -> Any:
    """The value of a piece of JSON that starts on `line`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, problem = line + error.lineno - 1, f'{error.msg}, at character {error.colno}'
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        problem = str(error)
    raise Mistake(f'{path}:{line}: not JSON ({problem}); wants one object a line, or one list of objects')


def _read_parquet(path: Path) -> list[tuple[str, Row]]:
    pa, pq = _arrow(path)
    if not path.stat().st_size:
        return []
    try:
        with pq.ParquetFile(path) as file:  # read_table would add columns named in the path
            table = file.read()
        columns = [column.to_pylist() for column in table.columns]
    except (pa.ArrowException, ValueError) as error:
        raise Mistake(f'{path}: cannot be read as Parquet ({str(error).splitlines()[0]})') from error
    if len(set(table.column_names)) < table.num_columns:
        raise Mistake(f'{path}: two columns have one name among {", ".join(map(repr, table.column_names))}')
    for i, field in enumerate(table.schema):
        if (field.metadata or {}).items() >= _ENCODED.items():
            columns[i] = [value if value is None else json.loads(value) for value in columns[i]]
    rows = [dict(zip(table.column_names, values)) for values in zip(*columns)]
    return [(f'{path}: row {number}', row) for number, row in enumerate(rows, 1)]


def _read_arrow(path: Path) -> list[tuple[str, Row]]:
    pa, _ = _arrow(path)
    if not path.stat().st_size:
        return []
    try:
        with pa.memory_map(str(path)) as source:
            rows = pa.ipc.open_stream(source).read_all().to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise Mistake(f'{path}: cannot be read as Arrow ({str(error).splitlines()[0]})') from error
    return [(f'{path}: row {number}', row) for number, row in enumerate(rows, 1)]


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
    path = typed(path)
    check_writable(path)
    rows = list(rows)
    suffix = _suffix(path)
    if suffix == '.parquet':
        data = _parquet(path, rows)
    else:
        lines = [_json(row) for row in rows]
        text = '\n'.join([*lines, '']) if suffix.startswith('.jsonl') else '[\n' + ',\n'.join(lines) + '\n]\n'
        data = text.encode('utf-8', 'backslashreplace')  # half a character becomes its JSON escape
    if suffix.endswith('.gz'):
        data = gzip.compress(data, mtime=0)  # equal rows, equal bytes
    partial = path.with_name(f'.{path.name}.partial')
    try:
        with open(partial, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise Mistake(f'{path}: cannot be written ({error.strerror or error})') from error
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path | str) -> None:
    """Raises `Mistake` where `write_rows` could not write `path`, for asking before the work rather than after it. Makes
    its folder where there is none.
    """
    path = typed(path)
    if _suffix(path) == '.parquet':
        _arrow(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f'{path}: its folder cannot be made ({error.strerror or error})') from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise Mistake(f'{path}: cannot be written; name a file in a folder that is yours')


def _json(value: Any) -> str:
    return json.dumps(_mapped(value, _json_leaf), ensure_ascii=False, allow_nan=False)


def _parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> bytes:
    pa, pq = _arrow(path)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [_mapped(row.get(name), _utf8) for row in rows] for name in names}
    arrays = [_column(values, pa, pq) for values in columns.values()]
    fields = [pa.field(_utf8(name), array.type, metadata=mark) for name, (array, mark) in zip(names, arrays)]
    return _in_parquet([array for array, _ in arrays], pa.schema(fields), pa, pq)


def _column(values: list, pa: Any, pq: Any) -> tuple[Any, dict | None]:
    """`(array, metadata)` of a column: what Arrow makes of it if Parquet gives the same back, otherwise JSON."""
    try:
        array = pa.array(values)
        data = _in_parquet([array], pa.schema([pa.field('', array.type)]), pa, pq)
        if _same(pq.read_table(pa.BufferReader(data)).column(0).to_pylist(), values):
            return array, None
    except (pa.ArrowException, ArithmeticError, TypeError, ValueError):  # mixed types; an integer of more than 64 bits
        pass
    return pa.array([None if value is None else _json(value) for value in values], pa.string()), _ENCODED


def _in_parquet(arrays: list, schema: Any, pa: Any, pq: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
    return sink.getvalue().to_pybytes()


def _mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """`value` as dicts with text for keys, lists, and `leaf` of everything else."""
    if isinstance(value, Mapping):
        return {leaf(str(key)): _mapped(item, leaf) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, leaf) for item in value]
    if hasattr(value, 'tolist'):  # of numpy
        return _mapped(value.tolist(), leaf)
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
