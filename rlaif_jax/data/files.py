"""Anybody's rows, in files: JSON lines, JSON lists (`.gz` or not), Parquet and Arrow, and out again with more columns.

rows = read('pairs.jsonl')                       # each row with where it stands; what columns mean is `trl.py`'s to know
write_more('labelled.jsonl', rows, [{'weight': 1.0}, …])   # what there was stays as it is
"""

from __future__ import annotations

import base64
import codecs
import difflib
import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif_jax import chat, hosts, log, paths
from rlaif_jax.config import Mistake, refusal
from rlaif_jax.paths import typed

Row = dict[str, Any]  # column: value

SUFFIXES = ('.jsonl', '.jsonl.gz', '.json', '.json.gz', '.parquet')
READABLE = (*SUFFIXES, '.arrow')  # as `datasets` keeps rows in its cache
NO_ROWS = 'state.json', 'dataset_info.json'  # what `datasets` writes beside its rows


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


# Files to rows


def read_rows(path: Path | str) -> list[Row]:
    """All rows of a file, each with its columns in order; there is one at least. Reads and raises as `read` does."""
    return [row for _, row in read(path).located]


def read(path: Path | str) -> Rows:
    """The rows of a file; there is one at least.

    A file of JSON is one object a line (empty lines are skipped) or one list of objects. A Parquet file has every column
    in every row, null where it has nothing; a value that Python has not costs no other. Raises `Mistake` for a file that
    is missing, empty, of another suffix or of another kind, and for the first line that cannot be read.
    """
    path = typed(path)
    if not path.exists():
        raise Mistake(f'{path}: no such file{nearest_file(path)}')
    if path.is_dir():
        raise Mistake(f'{path} is a folder{nearest_file(path / path.name)}')
    suffix = _suffix(path, READABLE)
    if not path.is_file():  # what is in it can be read once only
        raise Mistake(f'{path} is a pipe or a device; save what comes out of it in a file')
    try:
        rows = _read_table(path, suffix) if suffix in ('.parquet', '.arrow') else _read_json(path)
    except OSError as error:
        raise refusal(error, f'{path}: cannot be read ({error.strerror or error})') from error
    if not rows.located:
        raise Mistake(f'{path} is empty; there must be one row at least')
    for where, row in rows.located:
        if not isinstance(row, dict):
            raise Mistake(f'{where}: a row is an object, {{"column": value, …}}, not {short(row)}')
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


def nearest_file(path: Path, suffixes: Sequence[str] = SUFFIXES) -> str:
    """What an error says behind the name of a file that is not there: the most like it in its folder, else the first with
    such a suffix, else nothing.
    """
    folder = path.parent
    if not folder.is_dir():
        return f' (nor a folder {folder})'
    names = sorted(other.name for other in folder.iterdir() if other.is_file() and other.name[0] != '.')
    near = difflib.get_close_matches(path.name, names, 1, 0.4) or [n for n in names if n.endswith(tuple(suffixes))]
    return f'; did you mean {folder / near[0]}?' if near else ''


# Rows to files


def write_rows(
    path: Path | str, rows: Iterable[Mapping[str, Any]], put: Callable[[Path, Path], None] | None = None
) -> None:
    """Writes rows as the suffix of `path` says, whole or not at all: whoever reads finds the old file or the new one.

    JSON keeps each row as it is, except for what JSON lacks: a number that is not finite becomes null, bytes become
    base64, dates and the like their text. Parquet has one type a column: what a row lacks, at the top or inside, is null;
    whole numbers among fractions become fractions; half a character becomes U+FFFD; a column that fits no one type (text
    in one row, messages in the next) is kept as JSON and marked so, and `read_rows` has it back as it was.

    `put` moves what is finished to its place: `paths.put` where a person named that. Raises `Mistake` as `check_writable`
    does, and where the system refuses, as on a full disk.
    """
    path, rows = typed(path), list(rows)
    check_writable(path)
    _write(path, _formatted(path, rows), put)


def _formatted(path: Path, rows: Sequence[Mapping[str, Any]]) -> bytes | list[str]:
    if _suffix(path) != '.parquet':
        return [_json(row) for row in rows]
    pa, pq = _arrow(path)
    return _in_parquet(_columns(rows, pa, pq), pa, pq)


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
        leaf = utf8 if into_table else _json_leaf
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
    hosts.told(lambda: _put(path, data, put))


def _put(path: Path, data: bytes | Sequence[str], put: Callable[[Path, Path], None] | None) -> None:
    if not isinstance(data, bytes):
        lines = '.jsonl' in path.name.lower()[-len('.jsonl.gz') :]
        text = '\n'.join([*data, '']) if lines else '[\n' + ',\n'.join(data) + '\n]\n'
        data = text.encode('utf-8', 'backslashreplace')  # half a character becomes its JSON escape
    if path.name.lower().endswith('.gz'):
        data = gzip.compress(data, mtime=0)  # equal rows, equal bytes
    path = Path(os.path.realpath(path))  # through a link the file behind it is written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log.write_whole(path, data, put)
    except OSError as error:
        raise refusal(error, f'{path}: cannot be written ({error.strerror or error})') from error


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


def _wider(path: Path, rows: Rows, more: Sequence[Mapping[str, Any]]) -> tuple[bytes, list[str]]:
    """A table with more columns, and which of its own are of a type that Arrow has and Parquet lacks."""
    pa, pq = _arrow(path)
    table, new, lacking = rows.kept, _columns(more, pa, pq), []
    for i, name in enumerate(table.column_names if rows.path.suffix.lower() == '.arrow' else ()):
        try:
            _in_parquet(table.select([i]), pa, pq)
        except pa.ArrowException:
            lacking.append(name)
            array, mark = _column([_mapped(row[name], utf8) for _, row in rows.located], pa, pq)
            table = table.set_column(i, pa.field(name, array.type, metadata=mark), array)
    for kind, column in zip(new.schema, new.columns):
        table = table.append_column(kind, column)
    return _in_parquet(table, pa, pq), lacking


def _columns(rows: Sequence[Mapping[str, Any]], pa: Any, pq: Any) -> Any:
    """An Arrow table of rows."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [_mapped(row.get(name), utf8) for row in rows] for name in names}
    arrays = [_column(values, pa, pq) for values in columns.values()]
    fields = [pa.field(utf8(name), array.type, metadata=mark) for name, (array, mark) in zip(names, arrays)]
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


def utf8(value: Any) -> Any:
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


def short(value: Any) -> str:
    text = repr(value) if len(repr(value)) <= 60 else f'{repr(value)[:60]}…'
    return 'null' if value is None else f'{text} ({type(value).__name__})'
