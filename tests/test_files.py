"""Laws of rlaif_jax.data.files: what is written is read back, every accepted shape is the same pair, prompt and response
are the dialogue, and whatever is wrong is said with file, line and column.
"""

import datetime
import gzip
import json
import math
import os
import re
import subprocess
import sys

import pytest

from rlaif_jax import chat
from rlaif_jax.config import Mistake
from rlaif_jax.data import files
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
    assert files.pair_of({**row, 'id': 'x'}, 'helpful', 'here') == pair


def mistake(path, content, call=files.read_rows):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Mistake) as caught:
        call(path)
    return str(caught.value)


def bad(row, task='helpful', call=files.pair_of):
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
        ('{"a": 1}\n["a"]', 2, 'a row is an object'),
        ('{"a": 1}\n"a"', 2, 'a row is an object'),
        ('[{"a": 1},\n{"a": }]', 2, 'not JSON'),
        (b'{"a": 1}\n{"a": "\xe9"}', 2, '0xe9 is not UTF-8'),
        ('{"a": 1}'.encode('utf-16'), 1, '0xff is not UTF-8'),
        ('{"a": ' + '[' * 100_000, 1, 'not JSON'),
        ('{"a": ' + '9' * 10_000 + '}', 1, 'not JSON'),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, line, words):
    path = tmp_path / 'a.jsonl'
    text = mistake(path, content)
    assert text.startswith(f'{path}:{line}: ') and words in text


def test_a_row_of_a_list_is_named(tmp_path):
    assert mistake(tmp_path / 'a.json', '[{"a": 1}, 2]').startswith(f'{tmp_path / "a.json"}: row 2: ')


@pytest.mark.parametrize('suffix', files.SUFFIXES)
def test_nothing_is_not_rows(tmp_path, suffix):
    assert 'is empty' in mistake(tmp_path / f'a{suffix}', '')
    files.write_rows(tmp_path / f'a{suffix}', [])
    with pytest.raises(Mistake, match='is empty'):
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
        with pytest.raises(Mistake, match=r'no such file; did you mean .*pairs\.jsonl\?'):
            files.read_rows(tmp_path / wrong)
    with pytest.raises(Mistake, match=r'is a folder; did you mean .*pairs\.jsonl\?'):
        files.read_rows(tmp_path)
    with pytest.raises(Mistake, match='nor a folder'):
        files.read_rows(tmp_path / 'none' / 'pairs.jsonl')
    assert 'did you mean .jsonl?' in mistake(tmp_path / 'a.jsnl', '{}')
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
        [sys.executable, '-c', code], capture_output=True, encoding='utf-8', cwd=os.path.dirname(__file__) + '/..'
    )
    assert ran.stdout == 'set()\n', ran.stderr


# Shapes


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
    same(Pair(voted.prompt, ' a', ' b', 0.0), prompt=context, response_1=' a', response_2=' b', label=1.0)


def test_a_post_to_summarize_is_the_same_as_text_and_as_a_message():
    post, a, b = 'A post.\n\nTL;DR:', ' a', ''
    text = files.pair_of({'prompt': post, 'chosen': a, 'rejected': b}, 'summarization', 'here')
    assert text.prompt.text == post and (text.first, text.second) == (a, b)
    for row in (
        {'prompt': user(post), 'chosen': user(post, a)[1:], 'rejected': user(post, b)[1:]},
        {'chosen': user(post, a), 'rejected': user(post, b)},
        {'prompt': post, 'chosen': user(post, a), 'rejected': user(post, b)},
    ):
        assert files.pair_of(row, 'summarization', 'here') == text
    system = [{'role': 'system', 'content': 'Be short.'}]
    row = {'prompt': system + user(post), 'first': a, 'second': b}
    assert files.pair_of(row, 'summarization', 'here').prompt.text == f'Be short.\n\n{post}'
    assert files.pair_of(row, 'helpful', 'here').prompt.text == 'Be short.' + TURN.format(post)


def test_the_id_is_that_of_the_content():
    ids = {
        files.pair_of({'prompt': p, 'first': f, 'second': s}, 'helpful', '').prompt.id
        for p in 'ab'
        for f in 'ab'
        for s in 'ab'
    }
    assert len(ids) == 8
    row = {'prompt': 'a', 'first': 'b', 'second': 'c'}
    assert files.pair_of({**row, 'more': 1}, 'helpful', 'x').prompt.id == files.pair_of(row, 'helpful', 'y').prompt.id
    assert files.pair_of({**row, 'id': 17}, 'helpful', 'x').prompt.id == '17'


def test_a_cut_runs_into_no_response():
    context = TURN.format('q')
    for a, b in (' yes', ' yes, but'), (' no', ''), (' same', ' same'), ('\n\nAss', '\n\nAssent'):
        pair = files.pair_of({'chosen': context + a, 'rejected': context + b}, 'helpful', 'here')
        assert (pair.prompt.text, pair.first, pair.second) == (context, a, b)


@pytest.mark.parametrize(
    'row, words',
    [
        (
            {'question': 'q', 'chosen': 'a', 'reject': 'b'},
            ["'question', 'chosen', 'reject'", "is 'reject' your 'rejected'"],
        ),
        (
            {'prompt': 'q', 'response_1': 'a'},
            ['the nearest shape is prompt, response_1, response_2', "without 'response_2'"],
        ),
        ({}, ['columns are none']),
        ({'chosen': 'a', 'rejected': 'b', 'question': 'q'}, ["no column 'prompt'", "'question'"]),
        ({'prompt': 'q', 'chosen': None, 'rejected': 'b'}, ["column 'chosen' is null"]),
        ({'prompt': 3, 'chosen': 'a', 'rejected': 'b'}, ["column 'prompt' is 3 (int)"]),
        ({'prompt': 'q', 'chosen': ['a'], 'rejected': 'b'}, ["column 'chosen', message 1", "'role'"]),
        ({'prompt': 'q', 'chosen': [], 'rejected': 'b'}, ["column 'chosen' is an empty list"]),
        ({'prompt': 'q', 'chosen': user('a'), 'rejected': 'b'}, ["column 'chosen' ends", "'user'"]),
        ({'prompt': user('a', 'b'), 'chosen': 'a', 'rejected': 'b'}, ["column 'prompt'", "'assistant'"]),
        ({'prompt': user(None), 'chosen': 'a', 'rejected': 'b'}, ["column 'prompt', message 1: its content is null"]),
        ({'prompt': [{'role': 'tool', 'content': ''}], 'chosen': '', 'rejected': ''}, ["'tool'", 'system, user or']),
        (
            {'prompt': [*user('a'), {'role': 'system', 'content': ''}, *user('b')], 'chosen': '', 'rejected': ''},
            ["column 'prompt'", 'in front'],
        ),
        (
            {'prompt': 'q', 'chosen': user('z', 'a'), 'rejected': user('z', 'b')},
            ["do not hold what column 'prompt' says"],
        ),
        ({'chosen': user('y', 'a'), 'rejected': user('z', 'b')}, ["'chosen' and 'rejected' do not share"]),
        (
            {'chosen': TURN.format('q'), 'rejected': TURN.format('q') + ' a\n\nHuman: more'},
            ["'rejected' ends in the human"],
        ),
        ({'prompt': 'q', 'first': 'a', 'second': 'b', 'label': 2}, ["column 'label' is 2"]),
        ({'prompt': 'q', 'first': 'a', 'second': 'b', 'label': True}, ["column 'label' is True"]),
        ({'prompt': 'q', 'first': 'a', 'second': 'b', 'preference': math.nan}, ["column 'preference' is nan"]),
        ({'prompt': 'q', 'first': 'a', 'second': 'b', 'preference': '1'}, ["column 'preference' is '1' (str)"]),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row, words):
    text = bad(row)
    for word in words:
        assert word in text


def test_prompts_and_their_references():
    of = lambda row, task='helpful': files.prompt_of({**row, 'id': 1}, task, 'here')  # noqa: E731
    assert of({'prompt': 'p'}) == of({'prompt': 'p', 'completion': None}) == Prompt('p', '1')
    assert of({'prompt': 'p', 'completion': ' c'}) == Prompt('p', '1', ' c')
    assert of({'prompt': user('q'), 'completion': user('', 'c')[1:]}) == Prompt(TURN.format('q'), '1', ' c')
    assert of({'prompt': user('p')}, 'summarization') == Prompt('p', '1')
    assert of({'chosen': user('q', 'a'), 'rejected': user('q', 'b')}) == Prompt(TURN.format('q'), '1')
    assert "is 'prompts' your 'prompt'?" in bad({'prompts': 'p'}, call=files.prompt_of)
    assert "column 'completion' is 1" in bad({'prompt': 'p', 'completion': 1}, call=files.prompt_of)


# Files to records


def test_a_bad_row_comes_along(tmp_path):
    path = tmp_path / 'a.jsonl'
    rows = [{'prompt': 'p', 'chosen': 'a', 'rejected': b, 'more': i} for i, b in enumerate(['b', None, ''])]
    path.write_text('\n' + '\n\n'.join(map(json.dumps, rows)), encoding='utf-8')
    entries = files.pairs(path, 'helpful')
    assert [entry.row for entry in entries] == rows
    assert [entry.record is None for entry in entries] == [False, True, False]
    assert [bool(entry.problem) for entry in entries] == [False, True, False]
    assert entries[1].problem.startswith(f"{path}:4: column 'rejected' is null")
    assert [entry.record.text for entry in files.prompts(path, 'helpful')] == ['p'] * 3
    text = mistake(path, '{"post": 1}\n{"post": 2}', lambda path: files.pairs(path, 'helpful'))
    assert 'none of its 2 rows is a pair' in text and f'{path}:1: ' in text


def test_dialogues_of_hh(shared):
    path = shared / 'hh_harmless' / 'test.jsonl.gz'
    entries = files.pairs(path, 'harmless')
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
    assert all('do not share their context' in entry.problem for entry in entries if not entry.record)
    assert len({entry.record.prompt.id for entry in good}) == len({(e.row['chosen'], e.row['rejected']) for e in good})


def test_what_imitates_a_turn_in_a_message_is_no_turn():
    said = [{'role': 'user', 'content': 'say "\n\nAssistant: yes" and\n\nHuman: no'}]
    prompt = files.prompt_of({'prompt': said}, 'helpful', 'here')
    assert chat.turns(prompt.text) == [('user', 'say "\n\n Assistant: yes" and\n\n Human: no')]


def test_dialogues_of_hh_are_the_same_as_messages_and_with_their_prompts(shared, tmp_path):
    rows = [e for e in files.pairs(shared / 'hh_harmless' / 'test.jsonl.gz', 'harmless') if e.record]
    clean = lambda text: not re.search(r'\n\n(Human|Assistant):(?! )', text)  # noqa: E731
    checked = 0
    for entry in rows:
        texts = [entry.row['chosen'], entry.row['rejected']]
        pair = entry.record
        explicit = {'prompt': pair.prompt.text, 'chosen': pair.first, 'rejected': pair.second}
        assert files.pair_of(explicit, 'harmless', '') == pair
        if all(map(clean, texts)) and message_list(texts[0])[-2]['role'] == 'user':
            messages = dict(zip(('chosen', 'rejected'), map(message_list, texts)))
            assert files.pair_of(messages, 'harmless', '') == pair
            checked += 1
    assert checked > 2000


def test_summaries_with_labels(shared, tmp_path):
    path = shared / 'tldr_pairs' / 'pairs.jsonl'
    entries = files.pairs(path, 'summarization')
    assert len(entries) == 24 and all(entry.record for entry in entries)
    assert {entry.record.preference for entry in entries} == {0.0, 1.0}
    for entry in entries:
        pair, row = entry.record, entry.row
        better = (row['response_1'], row['response_2'])[row['label']]
        assert (pair.first if pair.preference == 1 else pair.second) == better and pair.prompt.text == row['prompt']
    for suffix in files.SUFFIXES:
        files.write_rows(tmp_path / f'a{suffix}', [entry.row for entry in entries])
        assert files.pairs(tmp_path / f'a{suffix}', 'summarization') == entries


def test_a_copy_beside_a_file_is_not_taken_for_it(tmp_path):
    for name in ('train.backup.jsonl', 'train.jsonl', 'train.old.parquet'):
        (tmp_path / name).write_text('{}', encoding='utf-8')
    assert files.shards(tmp_path, 'train') == [tmp_path / 'train.jsonl']
    (tmp_path / 'train.jsonl').unlink()
    assert files.shards(tmp_path, 'train') == []
