"""Laws of rlaif_jax.data.trl: every accepted shape is the same pair, prompt and response are the dialogue, and whatever is
wrong with a row is said with file, line and column.
"""

import datetime
import decimal
import gzip
import json
import math
import random
import re

import pytest

from rlaif_jax import chat
from rlaif_jax.config import Mistake
from rlaif_jax.data import files, trl
from rlaif_jax.data.records import Pair, Prompt

TURN = '\n\nHuman: {}\n\nAssistant:'


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
