"""Laws of rlaif_jax.data.files: what is written is read back, every accepted shape is the same pair, prompt and response
are the dialogue, and whatever is wrong is said with file, line and column.
"""

import datetime
import decimal
import gzip
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif_jax import chat
from rlaif_jax.config import Mistake
from rlaif_jax.data import files, trl
from rlaif_jax.data.records import Pair, Prompt

TURN = '\n\nHuman: {}\n\nAssistant:'
MESSAGES = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]
ROWS = [
    {'prompt': 'p\u2028\0"\\', 'chosen': 'é😀\r\n', 'rejected': '', 'id': 7, 'z': None, 'messages': MESSAGES},
    {'prompt': '', 'chosen': ' b', 'rejected': 'c', 'id': 8, 'z': True, 'score': 0.1, 'messages': MESSAGES[:1]},
]
ODD = [  # what one type of Parquet cannot hold
    {'mixed': 'text', 'flags': True, 'deep': {}, 'large': 2**70, 'nested': [1, 'a']},
    {'mixed': MESSAGES, 'flags': 1, 'deep': {}, 'large': 1, 'nested': None},
]


def user(*contents):
    """Turns of a dialogue, user and assistant in turn."""
    return [{'role': ('user', 'assistant')[i % 2], 'content': content} for i, content in enumerate(contents)]


def message_list(dialogue):
    """The messages of a dialogue in HH's format, for dialogues with a space behind each name."""
    parts = re.split(r'\n\n(Human|Assistant): ', dialogue)
    roles = {'Human': 'user', 'Assistant': 'assistant'}
    return [{'role': roles[name], 'content': text} for name, text in zip(parts[1::2], parts[2::2])]


def same(pair, **row):
    assert trl.pair_of({**row, 'id': 'x'}, 'helpful', 'here') == pair


def dialogues(count):
    """Prompts that are dialogues, some with a system's text, as their turns: role and what is said."""
    rng = random.Random(0)
    words = ['yes', 'Human:', 'so, Assistant:', 'a\nb', 'a\n\nb', 'é😀', '"quoted"', "it's", '{}', '\\n']
    for _ in range(count):
        said = [' '.join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(rng.choice([1, 3, 5]))]
        yield [('system', 'Be kind.')] * rng.randint(0, 1) + list(zip(['user', 'assistant'] * 3, said))


def hh(turns):
    """A dialogue's text in HH's format."""
    names = {'system': '{}', 'user': '\n\nHuman: {}', 'assistant': '\n\nAssistant: {}'}
    return ''.join(names[role].format(said) for role, said in turns) + '\n\nAssistant:'


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


# Files


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


# Shapes


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_a_dialogue_is_one_however_its_lines_end_and_whoever_stripped_it(end):
    """As a prompt, as whole dialogues, and both; in text and in messages."""
    for turns in dialogues(60):
        text = hh(turns)
        pair = Pair(Prompt(text, 'x'), ' a', ' b', 1.0)
        shapes = [
            {'prompt': text, 'chosen': ' a', 'rejected': ' b'},
            {'chosen': f'{text} a', 'rejected': f'{text} b'},
            {'prompt': text, 'chosen': f'{text} a', 'rejected': f'{text} b'},
            {'prompt': text + ' \n', 'chosen': ' a', 'rejected': ' b'},
            {'prompt': turns[-1][1], 'chosen': f'{text} a', 'rejected': f'{text} b'} if len(turns) == 1 else {},
        ]
        for row in filter(None, shapes):
            cut = {name: value.lstrip('\n') for name, value in row.items()}  # as strip() leaves them
            for each in (row, cut):
                same(pair, **{name: value.replace('\n', end) for name, value in each.items()})
            mixed = {name: value.replace('\n', end if name == 'chosen' else '\n') for name, value in row.items()}
            same(pair, **mixed)
        assert chat.turns(text.replace('\n', end)) == chat.turns(text) == [(role, s.strip()) for role, s in turns]


def test_a_post_keeps_the_ends_of_its_lines():
    for post in 'POST: a\r\n\r\nb\r\nTL;DR:\r\n', 'Human: who are you?', '\nHuman: hi\nAssistant:':
        pair = trl.pair_of({'prompt': post, 'chosen': 'a\r\n', 'rejected': 'Human: b'}, 'summarization', 'here')
        assert (pair.prompt.text, pair.first, pair.second) == (post, 'a\r\n', 'Human: b')


def test_messages_are_read_in_every_way_that_people_write_them():
    sharegpt = {'user': 'human', 'assistant': 'gpt', 'system': 'system'}
    developer = {'system': 'developer'}
    for turns in dialogues(60):
        last = [[('assistant', 'a')], [('assistant', 'b')]]
        ways = [
            lambda turns: [{'role': role, 'content': said} for role, said in turns],
            lambda turns: [{'role': role, 'content': said, 'from': None, 'value': None} for role, said in turns],
            lambda turns: [{'from': sharegpt[role], 'value': said} for role, said in turns],
            lambda turns: [{'role': developer.get(role, role).title(), 'content': said} for role, said in turns],
            lambda turns: [{'role': role, 'content': [{'type': 'text', 'text': said}]} for role, said in turns],
            lambda turns: [
                {
                    'role': role,
                    'content': [{'type': 'text', 'text': s, 'image_url': None} for s in (said[:2], said[2:])],
                }
                for role, said in turns
            ],
            lambda turns: [{'role': role, 'content': said, 'tool_calls': None} for role, said in turns],
        ]
        ways += [lambda turns, way=way, dump=dump: dump(way(turns)) for way in ways for dump in (json.dumps, repr)]
        pair = Pair(Prompt(hh(turns), 'x'), ' a', ' b', 1.0)
        for way in ways:
            same(pair, prompt=way(turns), chosen=way(last[0]), rejected=way(last[1]))
            same(pair, chosen=way(turns + last[0]), rejected=way(turns + last[1]))
        (chosen,), (rejected,) = map(ways[0], last)  # messages without a list
        same(pair, prompt=ways[0](turns), chosen=chosen, rejected=rejected)


@pytest.mark.parametrize(
    'text',
    [
        '[1, 2]', '{"from": "Paris", "to": "Rome"}', '{"name": "Bob", "role": "user"}',
        '[{"role": "king", "content": "x"}]',
        'say [{"role": "user", "content": "x"}]', '[{"role": "user", "content": "x"}] is what?', '{', '[]', '',
        '[' * 5000, '[{"role": "us' + ']' * 5000,
    ],
)  # fmt: skip
def test_text_that_is_no_messages_stays_text(text):
    same(Pair(Prompt(text, 'x'), text, '', 1.0), prompt=text, chosen=text, rejected='')


@pytest.mark.parametrize(
    'value, words',
    [
        (
            '[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"',
            [],
        ),  # cut: no bracket, so it is text
        ('[{"role": "user", "content": "x"} {"role": "assistant", "content": "y"}]', ['JSON', 'Python', 'list']),
        ("array([{'content': 'x', 'role': 'user'}], dtype=object)", ['JSON', 'Python', 'list']),
        ('{"messages": [{"role": "user", "content": "x"}]}', ['message 1', "'role'"]),
        (
            [{'role': 'user', 'content': [{'type': 'text', 'text': 'x'}, {'type': 'image_url'}]}],
            ["'image_url'", 'part 2'],
        ),
        ([{'role': 'user', 'content': [{'type': ['text'], 'text': 'x'}]}], ["['text']", 'part 1']),
        ([{'role': 'user', 'content': ['x']}], ["'x' (str)", 'part 1']),
        ([{'role': 'user', 'content': []}], ['message 1', '[] (list)']),
        ([{'role': 'user', 'content': [{'type': 'text', 'text': None}]}], ['message 1', 'part 1', 'null']),
        ([{'role': 'assistant', 'content': None, 'tool_calls': [{'id': 1}]}], ['message 1', 'tool']),
        ([{'role': 'assistant', 'function_call': {'name': 'f'}}], ['message 1', 'tool']),
        ([{'role': ['user'], 'content': 'x'}], ["['user'] (list)", 'system, user or']),
        ([{'role': None, 'content': 'x'}], ['null', 'system, user or']),
        ([{'from': 'observation', 'value': 'x'}], ["'observation'", 'system, user or']),
        ([('role', 'user')], ['message 1', "'role'"]),
    ],
)
def test_messages_that_cannot_be_read_are_named_and_never_taken_by_the_letter(value, words):
    row = {'prompt': value, 'chosen': 'a', 'rejected': 'b'}
    if not words:
        return same(Pair(Prompt(value, 'x'), 'a', 'b', 1.0), **row)
    text = bad(row)
    assert "column 'prompt'" in text
    for word in words:
        assert word in text


def test_a_message_that_holds_a_turn_contradicts_no_prompt():
    """What is compared is what was said, not how turns are written; white space is folded."""
    for said in (
        'Go on:\n\nHuman: hi\n\nAssistant: hello',
        'Go on:\n\nHuman: hi\n\nAssistant:',
        'Human: x\r\n\r\ny',
        ' a\tb\n',
    ):
        wholes = {name: user(said, answer) for name, answer in (('chosen', 'yes'), ('rejected', 'no'))}
        for prompt in (said, user(said), said.replace('\r\n', '\n'), said.strip()):
            pair = trl.pair_of({'prompt': prompt, **wholes}, 'helpful', 'here')
            assert (pair.first, pair.second) == (' yes', ' no')
            turns = chat.turns(pair.prompt.text)
            assert len(turns) == 1 and turns[0][1].split() == said.split()
    bad({'prompt': 'another', **wholes})


def test_no_message_makes_a_turn_whatever_it_holds():
    tricks = [
        '\n\nHuman: x',
        '\r\n\r\nAssistant: x',
        'Human: x',
        '\nHuman:',
        '\r\rHuman: x\r\rAssistant:',
        '\n\n\nAssistant:',
        'Assistant:',
    ]
    rng = random.Random(0)
    for _ in range(300):
        roles = ['system'] * rng.randint(0, 1) + ['user', 'assistant', 'user'][: rng.choice([1, 3])]
        said = [''.join(rng.choices([*tricks, 'a', ' ', '\n', '\r\n'], k=rng.randint(1, 5))) + 'end' for _ in roles]
        messages = [{'role': role, 'content': text} for role, text in zip(roles, said)]
        text = trl.prompt_of({'prompt': messages}, 'helpful', 'here').text
        turns = chat.turns(text)
        assert [role for role, _ in turns] == roles
        assert [each.split() for _, each in turns] == [text.split() for text in said]


def test_a_column_that_stands_twice_is_refused_where_it_is_read(tmp_path):
    lines = [
        '"prompt": "p", "chosen": "a", "rejected": "b"',
        '"prompt": "p", "prompt": "q", "chosen": "a", "rejected": "b"',
    ]
    lines.append('"prompt": "p", "chosen": "a", "rejected": "b", "note": 1, "note": 2')
    lines.append('"prompt": [{"role": "user", "content": "p", "content": "q"}], "chosen": "a", "rejected": "b"')
    (tmp_path / 'a.jsonl').write_text(''.join(f'{{{line}}}\n' for line in lines), encoding='utf-8')
    found = trl.pairs(tmp_path / 'a.jsonl', 'helpful')
    assert [bool(entry.problem) for entry in found] == [False, True, False, True]
    assert re.match(rf"{tmp_path}/a\.jsonl:2: 'prompt'.* twice", found[1].problem)
    assert re.match(rf"{tmp_path}/a\.jsonl:4: column 'prompt', message 1: 'content'.* twice", found[3].problem)


def test_an_absurd_row_is_a_pair_or_a_mistake_that_says_where():
    """Whatever stands in whichever column."""
    odd = [
        None, True, 0, -1, 7.0, math.nan, math.inf, 2**70, 10**400, '', ' ', 'x', 'Human:', '\ud83d', b'\xff', [], {}, [[]],
        [{}], [None], ['a'], object(), {1, 2}, (('role', 'user'),), datetime.datetime(2024, 1, 1), datetime.timedelta(1),
        decimal.Decimal('0.5'), decimal.Decimal('NaN'), decimal.Decimal('sNaN'), TURN.format('q'), TURN.format('q') + ' a',
        'Human: a\n\nAssistant: b\n\nHuman: c', {'role': 'user', 'content': 'q'}, user('q'), user('q', 'a'),
        user('', 'a')[1:],
        [{'role': None, 'content': None}], [{'role': ['user'], 'content': 1}], [{'role': 'tool', 'content': 'x'}],
        [{'role': 'user', 'content': [{'type': []}]}], [{'from': 'human', 'value': {'type': 'text', 'text': 'q'}}],
        json.dumps(user('q', 'a')), repr(user('q\\d')), '[{"role": "user", "content": x}]',
        '{"role": "user", "content": ' + '[' * 3000 + ']' * 3000 + '}',
        '{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}',
    ]  # fmt: skip
    names = 'prompt chosen rejected first second response_1 response_2 preference label id completion other'.split()
    rng, pairs = random.Random(0), 0
    for _ in range(1500):
        row = {name: rng.choice(odd) if rng.random() < 0.6 else 'text' for name in names if rng.random() < 0.6}
        for make in (trl.pair_of, trl.prompt_of):
            for task in ('helpful', 'summarization'):
                try:
                    made = make(row, task, 'a.jsonl:3')
                except Mistake as wrong:
                    assert str(wrong).startswith('a.jsonl:3: ')
                else:
                    pairs += isinstance(made, Pair)
                    assert isinstance(getattr(made, 'prompt', made).text, str)
    assert pairs > 10


def test_an_id_is_called_the_same_however_a_column_has_it():
    assert [trl.name_of(value) for value in (7, 7.0, '7', 2**70, float(2**53), -0.0)] == [
        '7', '7', '7', str(2**70), str(2**53), '0',
    ]  # fmt: skip
    assert [trl.name_of(value) for value in (None, math.nan, '')] == [None] * 3
    assert trl.name_of(1.5) == '1.5' and trl.name_of(True) == 'True' and trl.name_of(0) == '0'
    row = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}
    plain = trl.pair_of(row, 'helpful', '').prompt.id
    assert {trl.pair_of(row | {'id': none}, 'helpful', '').prompt.id for none in (None, math.nan, '')} == {plain}


def test_every_shape_is_the_same_pair():
    context = TURN.format('q') + ' r' + TURN.format('s')
    voted = Pair(Prompt(context, 'x'), ' a', ' b', 1.0)
    turns = user('q', 'r', 's')
    a, b = ([{'role': 'assistant', 'content': content}] for content in 'ab')
    same(voted, prompt=context, chosen=' a', rejected=' b')
    same(voted, prompt=context, chosen=context + ' a', rejected=context + ' b')
    same(voted, prompt=context, chosen=a, rejected=' b')
    same(voted, chosen=context + ' a', rejected=context + ' b')
    same(voted, chosen=turns + a, rejected=context + ' b')
    same(voted, prompt=turns, chosen=a, rejected=b)
    same(voted, chosen=turns + a, rejected=turns + b)
    same(voted, prompt=turns, chosen=turns + a, rejected=turns + b)
    same(voted, prompt='s', chosen=turns + a, rejected=turns + b)
    same(voted, prompt=context, response_1=' a', response_2=' b', label=0)
    same(voted, prompt=turns, first=a, second=b, preference=1)
    for unknown in {}, {'label': None}, {'preference': None}:
        same(Pair(voted.prompt, ' a', ' b', None), prompt=context, first=' a', second=' b', **unknown)
    for label, vote in (1.0, 0.0), ('tie', 0.5), (0.5, 0.5), ('model_b', 0.0), ([0, 'A', 'tie', 1, None], 0.625):
        same(Pair(voted.prompt, ' a', ' b', vote), prompt=context, response_1=' a', response_2=' b', label=label)


def test_a_post_to_summarize_is_the_same_as_text_and_as_a_message():
    post, a, b = 'A post.\n\nTL;DR:', ' a', ''
    text = trl.pair_of({'prompt': post, 'chosen': a, 'rejected': b}, 'summarization', 'here')
    assert text.prompt.text == post and (text.first, text.second) == (a, b)
    for row in (
        {'prompt': user(post), 'chosen': user(post, a)[1:], 'rejected': user(post, b)[1:]},
        {'chosen': user(post, a), 'rejected': user(post, b)},
        {'prompt': post, 'chosen': user(post, a), 'rejected': user(post, b)},
    ):
        assert trl.pair_of(row, 'summarization', 'here') == text
    system = [{'role': 'system', 'content': 'Be short.'}]
    row = {'prompt': system + user(post), 'first': a, 'second': b}
    assert trl.pair_of(row, 'summarization', 'here').prompt.text == f'Be short.\n\n{post}'
    assert trl.pair_of(row, 'helpful', 'here').prompt.text == 'Be short.' + TURN.format(post)


def test_the_id_is_that_of_the_content():
    ids = {
        trl.pair_of({'prompt': p, 'first': f, 'second': s}, 'helpful', '').prompt.id
        for p in 'ab'
        for f in 'ab'
        for s in 'ab'
    }
    assert len(ids) == 8
    row = {'prompt': 'a', 'first': 'b', 'second': 'c'}
    assert trl.pair_of({**row, 'more': 1}, 'helpful', 'x').prompt.id == trl.pair_of(row, 'helpful', 'y').prompt.id
    assert trl.pair_of({**row, 'id': 17}, 'helpful', 'x').prompt.id == '17'


def test_a_cut_runs_into_no_response():
    context = TURN.format('q')
    for a, b in (' yes', ' yes, but'), (' no', ''), (' same', ' same'), ('\n\nAss', '\n\nAssent'):
        pair = trl.pair_of({'chosen': context + a, 'rejected': context + b}, 'helpful', 'here')
        assert (pair.prompt.text, pair.first, pair.second) == (context, a, b)


@pytest.mark.parametrize(
    'row, words',
    [
        (
            {'question': 'q', 'chosen': 'a', 'reject': 'b'},
            ["'question', 'chosen', 'reject'", "'rejected'?"],
        ),
        (
            {'prompt': 'q', 'response_1': 'a'},
            ['prompt, response_1, response_2', "'response_2'?"],
        ),
        ({}, ['none', 'prompt, chosen, rejected']),
        ({'chosen': 'a', 'rejected': 'b', 'question': 'q'}, ["no column 'prompt'", "'question'"]),
        ({'prompt': 'q', 'chosen': None, 'rejected': 'b'}, ["column 'chosen'", 'null', 'list of messages']),
        ({'prompt': 3, 'chosen': 'a', 'rejected': 'b'}, ["column 'prompt'", '3 (int)', 'list of messages']),
        ({'prompt': 'q', 'chosen': ['a'], 'rejected': 'b'}, ["column 'chosen', message 1", "'role'"]),
        ({'prompt': 'q', 'chosen': [], 'rejected': 'b'}, ["column 'chosen'", 'empty']),
        ({'prompt': 'q', 'chosen': user('a'), 'rejected': 'b'}, ["column 'chosen'", "'user'", '"assistant"']),
        ({'prompt': user('a', 'b'), 'chosen': 'a', 'rejected': 'b'}, ["column 'prompt'", "'assistant'"]),
        ({'prompt': user(None), 'chosen': 'a', 'rejected': 'b'}, ["column 'prompt', message 1", 'null']),
        ({'prompt': [{'role': 'tool', 'content': ''}], 'chosen': '', 'rejected': ''}, ["'tool'", 'system, user or']),
        (
            {'prompt': [*user('a'), {'role': 'system', 'content': ''}, *user('b')], 'chosen': '', 'rejected': ''},
            ["column 'prompt'", 'in front'],
        ),
        (
            {'prompt': 'q', 'chosen': user('z', 'a'), 'rejected': user('z', 'b')},
            ["'chosen', 'rejected'", "column 'prompt'"],
        ),
        ({'chosen': user('y', 'a'), 'rejected': user('z', 'b')}, ["'chosen' and 'rejected'", ' 9 ']),
        (
            {'chosen': TURN.format('q'), 'rejected': TURN.format('q') + ' a\n\nHuman: more'},
            ["column 'rejected'", 'human', 'assistant'],
        ),
        ({'prompt': 'q', 'first': 'a', 'second': 'b', 'label': 2}, ["column 'label'", '2 (int)', ' 1 ']),
        ({'prompt': 'q', 'first': 'a', 'second': 'b', 'label': True}, ["column 'label'", 'True (bool)']),
        (
            {'prompt': 'q', 'first': 'a', 'second': 'b', 'preference': math.nan},
            ["column 'preference'", 'nan (float)', '0 to 1'],
        ),
        ({'prompt': 'q', 'first': 'a', 'second': 'b', 'preference': '1'}, ["column 'preference'", "'1' (str)"]),
        ({'prompt': 'q', 'first': 'a', 'second': 'b', 'preference': True}, ["column 'preference'", 'True (bool)']),
        ({'prompt': 'q', 'first': 'a', 'second': 'b', 'preference': 90}, ["column 'preference'", '90 (int)']),
        ({'prompt': 'q', 'first': 'a', 'second': 'b', 'preference': [1]}, ["column 'preference'", '[1] (list)']),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row, words):
    text = bad(row)
    for word in words:
        assert word in text


def test_prompts_and_their_references():
    of = lambda row, task='helpful': trl.prompt_of({**row, 'id': 1}, task, 'here')  # noqa: E731
    assert of({'prompt': 'p'}) == of({'prompt': 'p', 'completion': None}) == Prompt('p', '1')
    assert of({'prompt': 'p', 'completion': ' c'}) == Prompt('p', '1', ' c')
    assert of({'prompt': user('q'), 'completion': user('', 'c')[1:]}) == Prompt(TURN.format('q'), '1', ' c')
    assert of({'prompt': user('p')}, 'summarization') == Prompt('p', '1')
    assert of({'chosen': user('q', 'a'), 'rejected': user('q', 'b')}) == Prompt(TURN.format('q'), '1')
    assert bad({'prompts': 'p'}, call=trl.prompt_of).endswith("'prompt'?")
    assert re.search(r"'completion'.* 1 \(int\)", bad({'prompt': 'p', 'completion': 1}, call=trl.prompt_of))


# Files to records


def test_a_bad_row_comes_along(tmp_path):
    path = tmp_path / 'a.jsonl'
    rows = [{'prompt': 'p', 'chosen': 'a', 'rejected': b, 'more': i} for i, b in enumerate(['b', None, ''])]
    path.write_text('\n' + '\n\n'.join(map(json.dumps, rows)), encoding='utf-8')
    entries = trl.pairs(path, 'helpful')
    assert [entry.row for entry in entries] == rows
    assert [entry.record is None for entry in entries] == [False, True, False]
    assert [bool(entry.problem) for entry in entries] == [False, True, False]
    assert re.match(rf"{path}:4: column 'rejected'.* null", entries[1].problem)
    assert [entry.record.text for entry in trl.prompts(path, 'helpful')] == ['p'] * 3
    text = mistake(path, '{"post": 1}\n{"post": 2}', lambda path: trl.pairs(path, 'helpful'))
    assert re.match(rf'{path}: .* 2 rows.*{path}:1: ', text)


def test_dialogues_of_hh(shared):
    path = shared / 'hh_harmless' / 'test.jsonl.gz'
    entries = trl.pairs(path, 'harmless')
    assert len(entries) == 2312
    good = [entry for entry in entries if entry.record]
    assert len(good) == 2307
    for entry in good:
        pair = entry.record
        assert pair.prompt.text + pair.first == entry.row['chosen']
        assert pair.prompt.text + pair.second == entry.row['rejected']
        assert pair.prompt.text.endswith('\n\nAssistant:') and pair.preference == 1.0
        assert not re.search(r'\n\n(Human|Assistant):', pair.first + pair.second)
    bad_lines = [int(entry.problem.removeprefix(f'{path}:').split(':')[0]) for entry in entries if not entry.record]
    lines = gzip.decompress(path.read_bytes()).split(b'\n')
    assert [json.loads(lines[number - 1]) for number in bad_lines] == [e.row for e in entries if not e.record]
    assert all("'chosen' and 'rejected'" in entry.problem for entry in entries if not entry.record)
    assert len({entry.record.prompt.id for entry in good}) == len({(e.row['chosen'], e.row['rejected']) for e in good})


def test_what_imitates_a_turn_in_a_message_is_no_turn():
    said = [{'role': 'user', 'content': 'say "\n\nAssistant: yes" and\n\nHuman: no'}]
    prompt = trl.prompt_of({'prompt': said}, 'helpful', 'here')
    assert chat.turns(prompt.text) == [('user', 'say "\n\n Assistant: yes" and\n\n Human: no')]


def test_dialogues_of_hh_are_the_same_as_messages_and_with_their_prompts(shared, tmp_path):
    rows = [e for e in trl.pairs(shared / 'hh_harmless' / 'test.jsonl.gz', 'harmless') if e.record]
    clean = lambda text: not re.search(r'\n\n(Human|Assistant):(?! )', text)  # noqa: E731
    checked = 0
    for entry in rows:
        texts = [entry.row['chosen'], entry.row['rejected']]
        pair = entry.record
        explicit = {'prompt': pair.prompt.text, 'chosen': pair.first, 'rejected': pair.second}
        assert trl.pair_of(explicit, 'harmless', '') == pair
        if all(map(clean, texts)) and message_list(texts[0])[-2]['role'] == 'user':
            messages = dict(zip(('chosen', 'rejected'), map(message_list, texts)))
            assert trl.pair_of(messages, 'harmless', '') == pair
            checked += 1
    assert checked > 2000


def test_summaries_with_labels(shared, tmp_path):
    path = shared / 'tldr_pairs' / 'pairs.jsonl'
    entries = trl.pairs(path, 'summarization')
    assert len(entries) == 24 and all(entry.record for entry in entries)
    assert {entry.record.preference for entry in entries} == {0.0, 1.0}
    for entry in entries:
        pair, row = entry.record, entry.row
        better = (row['response_1'], row['response_2'])[row['label']]
        assert (pair.first if pair.preference == 1 else pair.second) == better and pair.prompt.text == row['prompt']
    for suffix in files.SUFFIXES:
        files.write_rows(tmp_path / f'a{suffix}', [entry.row for entry in entries])
        assert trl.pairs(tmp_path / f'a{suffix}', 'summarization') == entries


def test_a_copy_beside_a_file_is_not_taken_for_it(tmp_path):
    for name in ('train.backup.jsonl', 'train.jsonl', 'train.old.parquet'):
        (tmp_path / name).write_text('{}', encoding='utf-8')
    assert files.shards(tmp_path, 'train') == [tmp_path / 'train.jsonl']
    (tmp_path / 'train.jsonl').unlink()
    assert files.shards(tmp_path, 'train') == []
