"""Laws of rlaif_jax.data.files: what is written is read back, and what is wrong with a file is said with its line."""

import datetime
import decimal
import gzip
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif_jax.config import Mistake
from rlaif_jax.data import files, trl

MESSAGES = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]
ROWS = [
    {'prompt': 'p\u2028\0"\\', 'chosen': 'é😀\r\n', 'rejected': '', 'id': 7, 'z': None, 'messages': MESSAGES},
    {'prompt': '', 'chosen': ' b', 'rejected': 'c', 'id': 8, 'z': True, 'score': 0.1, 'messages': MESSAGES[:1]},
]
ODD = [  # what one type of Parquet cannot hold
    {'mixed': 'text', 'flags': True, 'deep': {}, 'large': 2**70, 'nested': [1, 'a']},
    {'mixed': MESSAGES, 'flags': 1, 'deep': {}, 'large': 1, 'nested': None},
]


def mistake(path, content, call=files.read_rows):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Mistake) as caught:
        call(path)
    return str(caught.value)


def bad(row, task='helpful', call=trl.pair_of):
    with pytest.raises(Mistake) as caught:
        call(row, task, 'a.jsonl:3')
    assert str(caught.value).startswith('a.jsonl:3: ')
    return str(caught.value)


@pytest.mark.parametrize('suffix', files.SUFFIXES)
@pytest.mark.parametrize('rows', [ROWS, ODD, ROWS + ODD])
def test_what_is_written_is_read_back(tmp_path, suffix, rows):
    path = tmp_path / f'a{suffix}'
    files.write_rows(path, rows)
    back = files.read_rows(path)
    if suffix == '.parquet':
        columns = list(dict.fromkeys(name for row in rows for name in row))
        assert [list(row) for row in back] == [columns] * len(rows)
        back = [{name: row[name] for name in given} for row, given in zip(back, rows)]
    assert [[*row.items()] for row in back] == [[*row.items()] for row in rows]
    assert repr(back) == repr(rows)  # True is not 1, and 1 is not 1.0
    first = path.read_bytes()
    files.write_rows(path, back)
    assert path.read_bytes() == first or suffix == '.parquet'
    assert os.listdir(tmp_path) == [path.name]


def test_parquet_is_plain_parquet_for_others(tmp_path):
    pq = pytest.importorskip('pyarrow.parquet')
    path = tmp_path / 'split=test' / 'a.parquet'
    files.write_rows(path, ROWS)
    schema = pq.ParquetFile(path).schema_arrow
    assert str(schema.field('prompt').type) == 'string' and str(schema.field('id').type) == 'int64'
    assert str(schema.field('messages').type) == 'list<element: struct<role: string, content: string>>'
    assert 'split' not in files.read_rows(path)[0]  # a folder's name is no column


def test_types_that_only_parquet_has(tmp_path):
    pytest.importorskip('pyarrow')
    row = {'when': datetime.datetime(2024, 2, 3, 4, 5, 6, 7), 'raw': b'\xff', 'share': math.inf}
    files.write_rows(tmp_path / 'a.parquet', [row])
    assert files.read_rows(tmp_path / 'a.parquet') == [row]
    files.write_rows(tmp_path / 'a.jsonl', [row])
    assert files.read_rows(tmp_path / 'a.jsonl') == [
        {'when': '2024-02-03 04:05:06.000007', 'raw': '/w==', 'share': None}
    ]


def test_whole_numbers_among_fractions_are_one_column_of_numbers(tmp_path):
    pq = pytest.importorskip('pyarrow.parquet')
    files.write_rows(tmp_path / 'a.parquet', [{'score': 1}, {'score': 2.5}, {}])
    assert files.read_rows(tmp_path / 'a.parquet') == [{'score': 1}, {'score': 2.5}, {'score': None}]
    assert str(pq.ParquetFile(tmp_path / 'a.parquet').schema_arrow.field('score').type) == 'double'


def test_an_absent_key_is_null_in_parquet(tmp_path):
    pq = pytest.importorskip('pyarrow.parquet')
    files.write_rows(tmp_path / 'a.parquet', [{'facts': {'a': 1}}, {'facts': {'b': [2]}, 'none': None}, {}])
    assert files.read_rows(tmp_path / 'a.parquet') == [
        {'facts': {'a': 1, 'b': None}, 'none': None},
        {'facts': {'a': None, 'b': [2]}, 'none': None},
        {'facts': None, 'none': None},
    ]
    assert str(pq.ParquetFile(tmp_path / 'a.parquet').schema_arrow.field('facts').type).startswith('struct')


def test_half_a_character_costs_no_file(tmp_path):
    row = {'prompt': 'cut \ud83d', 'chosen': 'a', 'rejected': 'b'}
    files.write_rows(tmp_path / 'a.jsonl', [row])
    assert files.read_rows(tmp_path / 'a.jsonl') == [row]
    (tmp_path / 'a.jsonl').read_bytes().decode('utf-8')
    pytest.importorskip('pyarrow')
    files.write_rows(tmp_path / 'a.parquet', [row])
    assert files.read_rows(tmp_path / 'a.parquet') == [{**row, 'prompt': 'cut \ufffd'}]
    assert "column 'prompt'" in bad(row) and 'half a character' in bad(row)


def test_numpy_is_written_as_numbers(tmp_path):
    np = pytest.importorskip('numpy')
    for suffix in files.SUFFIXES:
        path = tmp_path / f'a{suffix}'
        files.write_rows(path, [{'preference_prob': np.float32(0.5), 'distribution': np.arange(3)}])
        assert files.read_rows(path) == [{'preference_prob': 0.5, 'distribution': [0, 1, 2]}]


@pytest.mark.parametrize('suffix', files.SUFFIXES)
def test_a_crash_leaves_the_old_file(tmp_path, suffix, monkeypatch):
    path = tmp_path / f'a{suffix}'
    files.write_rows(path, ROWS)
    before = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, 'replace', crash)
    with pytest.raises(KeyboardInterrupt):
        files.write_rows(path, ODD)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_lines_and_lists_and_empty_lines(tmp_path):
    path = tmp_path / 'a.json'
    for text in '{"a": 1}\n\n{"a": 2}', '\ufeff{"a": 1}\r\n{"a": 2}\r\n', '\n[{"a": 1},\n{"a": 2}]':
        path.write_text(text, encoding='utf-8', newline='')
        assert files.read_rows(path) == [{'a': 1}, {'a': 2}]


@pytest.mark.parametrize(
    'content, line, words',
    [
        ('{"a": 1}\n\n{"a": \n', 3, 'not JSON'),
        ('{"a": 1}\n{"a": "\0"}', 2, 'control character'),
        ('{"a": 1}\n["a"]', 2, r"\['a'\] \(list\)"),
        ('{"a": 1}\n"a"', 2, r"'a' \(str\)"),
        ('[{"a": 1},\n{"a": }]', 2, 'not JSON'),
        (b'{"a": 1}\n{"a": "\xe9"}', 2, '0xe9.* UTF-8$'),
        ('{"a": 1}'.encode('utf-16'), 1, '0xff.*UTF-16.* UTF-8$'),
        ('{"a": 1, "b": 2}'.encode('utf-16'), 1, '0xff.*UTF-16.* UTF-8$'),
        (r'"{\"a\": 1, \"b\": 2}"', 1, r'"b": 2.*\(str\)'),
        ('{"a": 1}\r{"a": }', 2, 'not JSON'),
        ('{"a": ' + '[' * 100_000, 1, 'not JSON'),
        ('{"a": ' + '9' * 10_000 + '}', 1, 'not JSON'),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, line, words):
    path = tmp_path / 'a.jsonl'
    text = mistake(path, content)
    assert text.startswith(f'{path}:{line}: ') and re.search(words, text)


@pytest.mark.parametrize('suffix', ['.jsonl', '.parquet', '.arrow'])
@pytest.mark.parametrize(
    'content, kind',
    [
        (b'<!DOCTYPE html>\n<html>', 'HTML'),
        (b'  <html>', 'HTML'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', 'git lfs pull'),
        (b'PK\x03\x04' + bytes(20), 'Excel'),
        (b'id,prompt\n1,hi\n', 'csv.DictReader'),
        (b'\xef\xbb\xbf"id"\t"prompt"\n1\thi\n', 'csv.DictReader'),
        ('{"prompt": 1}\n'.encode('utf-16-be'), 'UTF-16.* UTF-8'),
        (b'\xfd7zXZ\x00\x00', 'xz'),
        (b'\x80\x04\x95' + bytes(20), 'pickle'),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, kind, suffix):
    if suffix != '.jsonl':
        pytest.importorskip('pyarrow')
    path = tmp_path / f'a{suffix}'
    text = mistake(path, content)
    assert text.startswith(f'{path}') and re.search(kind, text)


def test_parquet_and_json_under_each_others_names_are_told(tmp_path):
    pytest.importorskip('pyarrow')
    files.write_rows(tmp_path / 'a.parquet', ROWS)
    assert 'Parquet' in mistake(tmp_path / 'b.jsonl', (tmp_path / 'a.parquet').read_bytes())
    assert 'it is JSON' in mistake(tmp_path / 'b.parquet', '{"a": 1}\n' * 9)


def test_a_table_of_csv_is_converted_as_the_error_says(tmp_path):
    text = mistake(tmp_path / 'rows.csv', 'id,prompt\n1,"é, ""b"""\n2,\n')
    code = re.search(r'python -c "(.*?)" < rows.csv', text)[1]
    ran = subprocess.run(
        [sys.executable, '-X', 'utf8', '-c', code], input=(tmp_path / 'rows.csv').read_bytes(), capture_output=True
    )
    (tmp_path / 'rows.jsonl').write_bytes(ran.stdout)
    assert files.read_rows(tmp_path / 'rows.jsonl') == [{'id': '1', 'prompt': 'é, "b"'}, {'id': '2', 'prompt': ''}]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'a.jsonl')
    with pytest.raises(Mistake, match=r'a\.jsonl.* pipe '):
        files.read(tmp_path / 'a.jsonl')


def test_arrow_is_read_as_a_file_and_as_a_stream(tmp_path):
    pa = pytest.importorskip('pyarrow')
    table = pa.table({'a': [1, 2], 'b': ['x', None]})
    for i, writer in enumerate((pa.ipc.new_file, pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / f'{i}.arrow'), 'wb') as sink, writer(sink, table.schema) as out:
            out.write_table(table)
        assert files.read_rows(tmp_path / f'{i}.arrow') == [{'a': 1, 'b': 'x'}, {'a': 2, 'b': None}]


@pytest.mark.parametrize(
    'text', ['{"prompt": {"0": "a"}, "chosen": {"0": "b"}, "rejected": {"0": "c"}}', '{"data": [{}]}']
)
def test_a_whole_table_in_one_object_is_told_from_rows(tmp_path, text):
    read = lambda path: trl.pairs(path, 'helpful')  # noqa: E731
    assert 'lines=True' in mistake(tmp_path / 'a.json', text, read)
    assert 'lines=True' not in mistake(tmp_path / 'a.jsonl', f'{text}\n{text}', read)


def test_a_row_of_a_list_is_named(tmp_path):
    assert mistake(tmp_path / 'a.json', '[{"a": 1}, 2]').startswith(f'{tmp_path / "a.json"}: row 2: ')


@pytest.mark.parametrize('suffix', files.SUFFIXES)
def test_nothing_is_not_rows(tmp_path, suffix):
    named = re.escape(f'{tmp_path}/a{suffix}') + '.* empty'
    assert re.match(named, mistake(tmp_path / f'a{suffix}', ''))
    if 'json' in suffix:
        for blank in ' \n\r\n\t', '\ufeff', '[ ]':
            assert re.match(named, mistake(tmp_path / f'a{suffix}', blank))
    files.write_rows(tmp_path / f'a{suffix}', [])
    with pytest.raises(Mistake, match=named):
        files.read_rows(tmp_path / f'a{suffix}')


@pytest.mark.parametrize('suffix', ['.jsonl.gz', '.parquet'])
@pytest.mark.parametrize('keep', [1, 20, -12])
def test_a_file_cut_short_is_said(tmp_path, suffix, keep):
    path = tmp_path / f'a{suffix}'
    files.write_rows(path, ROWS * 10)
    assert str(path) in mistake(path, path.read_bytes()[:keep])


def test_files_that_are_not_there(tmp_path):
    files.write_rows(tmp_path / 'pairs.jsonl', ROWS)
    for wrong in 'pair.jsonl', 'pairs', 'pairs.json':
        with pytest.raises(Mistake, match=rf'/{wrong}: .*/pairs\.jsonl'):
            files.read_rows(tmp_path / wrong)
    with pytest.raises(Mistake, match=rf'^{tmp_path} .*/pairs\.jsonl'):
        files.read_rows(tmp_path)
    with pytest.raises(Mistake, match=rf'/pairs\.jsonl: .*{tmp_path}/none\b'):
        files.read_rows(tmp_path / 'none' / 'pairs.jsonl')
    assert re.search(r'a\.jsnl: .* \.jsonl\?$', mistake(tmp_path / 'a.jsnl', '{}'))
    assert '.parquet' in mistake(tmp_path / 'a.csv', 'a,b')


def test_whether_a_file_can_be_written_is_known_before_the_work(tmp_path, monkeypatch):
    files.check_writable(tmp_path / 'new' / 'a.jsonl')
    (tmp_path / 'file').write_text('', encoding='utf-8')
    for wrong in 'a.csv', 'file/a.jsonl':
        with pytest.raises(Mistake, match=re.escape(str(tmp_path / wrong))):
            files.check_writable(tmp_path / wrong)
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(Mistake, match='pip install pyarrow'):
        files.check_writable(tmp_path / 'a.parquet')


def test_reading_lines_needs_neither_jax_nor_pyarrow():
    code = 'import sys, rlaif_jax.data.files; print({"jax", "pyarrow"} & set(sys.modules))'
    ran = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, encoding='utf-8', cwd=Path(files.__file__).parents[2]
    )
    assert ran.stdout == 'set()\n', ran.stderr


# Rows with more columns

# What JSON can say, to the letter: a program that reads it into numbers and writes them again says something else.
ANY_JSON = [
    '123456789012345678901234567890', '1.10', '1e400', '-0.0', '0.1234567890123456789012345', 'NaN', '-Infinity', 'null',
    'true', '""', '"\\u00e9\\ud83d\\u2028\u2028"', '[1, "a", {"b": []}]', '{}', '{"a": 1, "a": 2}', '[' * 300 + ']' * 300,
]  # fmt: skip


@pytest.mark.parametrize('suffix', ['.jsonl', '.jsonl.gz', '.json'])
@pytest.mark.parametrize('source', ['.jsonl', '.json'])
def test_json_that_gets_more_columns_stays_as_it_is_to_the_letter(tmp_path, source, suffix):
    lines = ['{' + ', '.join(f'"c{i}": {value}' for i, value in enumerate(ANY_JSON)) + '}', '{}', '{"c1": 2, "c1": 3}']
    text = '\ufeff' + '\r\n\n'.join(f' {line} ' for line in lines)
    if source == '.json':  # a list over many lines
        text = '[' + ',\n'.join(line.replace('{"c', '{\n"c') for line in lines) + '\n]'
    (tmp_path / f'a{source}').write_text(text, encoding='utf-8', newline='')
    rows = files.read(tmp_path / f'a{source}')
    more = [{'mine': 0.5, 'why': 'ä'}, {'mine': None}, {'mine': 1, 'why': ''}]
    assert files.write_more(tmp_path / f'b{suffix}', rows, more) == []
    ends = ['"mine": 0.5, "why": "ä"}', '"mine": null}', '"mine": 1, "why": ""}']
    wanted = [line[:-1] + ', ' * (line != '{}') + end for line, end in zip(lines, ends)]
    data = (tmp_path / f'b{suffix}').read_bytes()
    found = (gzip.decompress(data) if suffix.endswith('gz') else data).decode().strip('[]\n').split('\n')
    assert [line.rstrip(',') for line in found] == wanted
    assert [list(row) for row in files.read_rows(tmp_path / f'b{suffix}')] == [
        [*(f'c{i}' for i in range(len(ANY_JSON))), 'mine', 'why'], ['mine'], ['c1', 'mine', 'why'],
    ]  # fmt: skip


def every_type(pa):
    """A column of each type that a table may well have, two rows each."""
    decimals = [decimal.Decimal('1.10'), None]
    return {
        'ns': pa.array([1, None], pa.timestamp('ns')), 'zone': pa.array([1, 2], pa.timestamp('us', 'Mars/Olympus')),
        'date': pa.array([10**8, None], pa.date32()), 'time': pa.array([1, 2], pa.time64('ns')),
        'span': pa.array([1, 2], pa.duration('ns')), 'decimal': pa.array(decimals, pa.decimal128(20, 2)),
        'large': pa.array(['a', None], pa.large_string()), 'category': pa.array(['a', 'b']).dictionary_encode(),
        'fixed': pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)), 'bytes': pa.array([b'\xff', None]),
        'half': pa.array([1.5, None], pa.float16()), 'whole': pa.array([2**64 - 1, None], pa.uint64()),
        'gaps': pa.array([2**53 + 1, None]), 'nothing': pa.nulls(2), 'bits': pa.array([True, None]),
        'map': pa.array([[('a', 1)], None], pa.map_(pa.string(), pa.int8())), 'nan': pa.array([math.nan, math.inf]),
        'nested': pa.array([[{'a': [1, None], 'b': {'c': 'd'}}], None]),
        'deep': pa.array([[1], []], pa.list_(pa.timestamp('ns'))), 'cut': pa.array([b'\xff', b'a']).view(pa.string()),
        'day': pa.array([datetime.date(2024, 1, 2), None]),
    }  # fmt: skip


def test_a_table_that_gets_more_columns_keeps_its_own_with_their_types(tmp_path):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    table = pa.table(every_type(pa)).replace_schema_metadata({b'pandas': b'{}'})
    table = table.set_column(0, pa.field('ns', table.column(0).type, metadata={b'unit': b'ns'}), table.column(0))
    pq.write_table(table, tmp_path / 'a.parquet')
    table = pq.ParquetFile(tmp_path / 'a.parquet').read()
    rows = files.read(tmp_path / 'a.parquet')
    assert files.write_more(tmp_path / 'b.parquet', rows, [{'mine': 0.5}, {'mine': None}]) == []
    again = pq.ParquetFile(tmp_path / 'b.parquet').read()
    assert again.column_names == [*table.column_names, 'mine'] and again['mine'].to_pylist() == [0.5, None]
    assert again.drop_columns(['mine', 'nan']).equals(table.drop_columns(['nan']), check_metadata=True)
    assert repr(again['nan'].to_pylist()) == '[nan, inf]'


def test_what_the_other_kind_of_file_cannot_hold_costs_itself_and_is_named(tmp_path):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    pq.write_table(pa.table(every_type(pa)), tmp_path / 'a.parquet')
    changed = files.write_more(tmp_path / 'a.jsonl', files.read(tmp_path / 'a.parquet'), [{'mine': 1}, {'mine': 2}])
    kept = {'large', 'category', 'fixed', 'half', 'whole', 'gaps', 'nothing', 'bits', 'nested'}
    assert set(changed) == set(every_type(pa)) - kept
    first, second = files.read_rows(tmp_path / 'a.jsonl')
    assert first['whole'] == 2**64 - 1 and first['nested'] == [{'a': [1, None], 'b': {'c': 'd'}}]
    assert first['day'] == '2024-01-02' and first['ns'].startswith('1970-01-01') and second['mine'] == 2
    (tmp_path / 'b.jsonl').write_text(
        '{"a": 1, "a": 2, "cut": "\\ud83d", "big": 99999999999999999999, "x": 0.5}\n', encoding='utf-8'
    )
    rows = files.read(tmp_path / 'b.jsonl')
    assert files.write_more(tmp_path / 'b.parquet', rows, [{'mine': 1}]) == ['cut', 'a']
    assert files.read_rows(tmp_path / 'b.parquet') == [
        {'a': 2, 'cut': '\ufffd', 'big': 99999999999999999999, 'x': 0.5, 'mine': 1}
    ]
    # Of Arrow's types that Parquet lacks.
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(['a', 'b'])])
    table = pa.table({'either': union, 'ns': pa.array([1, 2], pa.timestamp('ns'))})
    with pa.OSFile(str(tmp_path / 'c.arrow'), 'wb') as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    rows = files.read(tmp_path / 'c.arrow')
    assert files.write_more(tmp_path / 'c.parquet', rows, [{'mine': 1}, {'mine': 2}]) == ['either']
    assert [row['either'] for row in files.read_rows(tmp_path / 'c.parquet')] == [1, 'b']
    assert pq.ParquetFile(tmp_path / 'c.parquet').read()['ns'].equals(table['ns'])


def test_a_value_that_python_has_not_costs_no_other_row(tmp_path):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    text, same = pa.array([b'good', b'\xff bad', b'good']).view(pa.string()), pa.array(['a'] * 3)
    when = pa.array([1000, 1, None], pa.timestamp('ns'))
    table = pa.table({'prompt': text, 'chosen': same, 'rejected': same, 'when': when})
    pq.write_table(table, tmp_path / 'a.parquet')
    entries = trl.pairs(tmp_path / 'a.parquet', 'helpful')
    assert [entry.record is None for entry in entries] == [False, True, False]
    assert re.search(r"row 2: .*'prompt'.* b'\\xff bad' \(bytes\)", entries[1].problem)
    assert [entry.row['when'] for entry in entries] == [
        datetime.datetime(1970, 1, 1, microsecond=1), '1970-01-01 00:00:00.000000001', None,
    ]  # fmt: skip


def test_lists_in_lists_without_end_cost_no_file(tmp_path):
    pytest.importorskip('pyarrow')
    for deep in 150, 250, 800:
        (tmp_path / 'a.jsonl').write_text('{"a": 1, "deep": ' + '[' * deep + ']' * deep + '}\n', encoding='utf-8')
        rows = files.read(tmp_path / 'a.jsonl')
        assert files.write_more(tmp_path / 'a.parquet', rows, [{'mine': 1}]) == ['deep'] * (deep > files.DEEPEST)
        (row,) = files.read_rows(tmp_path / 'a.parquet')
        assert (row['a'], row['mine']) == (1, 1) and (row['deep'] == rows.located[0][1]['deep'] or deep > files.DEEPEST)
