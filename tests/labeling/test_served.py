"""Laws of labelers that are servers: their labels are those of the same model here; whatever a server does, nothing that is
stored is lost, asked again or doubled, and the error names who it was; the key is nowhere.
"""

import dataclasses
import json
import math
import os
import threading
import time

import numpy as np
import pytest
from stand_in import Micro, StandIn, Status, Table

import rlaif_jax
from rlaif_jax import hosts, stopping
from rlaif_jax.config import Mistake, Passing, parse_binding
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.labeling import direct, labelers, preference, scoring, served, wire
from rlaif_jax.labeling.preference import Config, label_all, make_labeler
from rlaif_jax.labeling.store import Store
from rlaif_jax.models import presets

POSTS = ['I lost my keys again. TL;DR:', 'My roommate eats my food.\n\nTL;DR:', 'Should I move? TL;DR:']
FIRSTS = [' I lost my keys.', ' a problem with a roommate', ' my boss is a boss']
SECONDS = [' no idea', ' I eat', ' my boss, my food, my sister']
PAIRS = [Pair(Prompt(*x[:2]), *x[2:]) for x in zip(POSTS, 'abc', FIRSTS, SECONDS)]
PLAIN = Config(technique='base_0shot', batch=4, least_mass=0.01)
COT = dataclasses.replace(PLAIN, technique='base_cot_0shot', max_rationale=5)
NEAR = {'rtol': 0, 'atol': 2e-3}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting for long, no key of whoever runs the tests."""
    for name, seconds in (('FIRST_WAIT', 0.01), ('LONGEST_WAIT', 0.05), ('LOOK', 0.02), ('GRACE', 0.5)):
        monkeypatch.setattr(wire, name, seconds)
    monkeypatch.setattr(served, 'AT_ONCE', 0.2)
    for name in (wire.KEY, wire.KEY_OF_OPENAI):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope='module')
def micro(tiny_labeler):
    return Micro(tiny_labeler)


@pytest.fixture
def table(micro_tokenizer):
    with StandIn(Table(micro_tokenizer, 1152)) as server:
        yield server


def connect(server, **options):
    return served.served(server.address(**{'tokenizer': 'micro_xs', 'patience': 5, **options}))


def fields(labels, *names):
    return np.array([[getattr(label, name) for name in names] for label in labels])


# The same labels


@pytest.mark.parametrize('says', ['ids', 'text', 'content', 'chat'])
@pytest.mark.parametrize('cfg', [PLAIN, COT], ids=['verdict', 'rationale and verdict'])
def test_labels_are_those_of_the_same_model_here(tiny_labeler, micro, says, cfg):
    local = make_labeler(tiny_labeler, cfg)(PAIRS)
    with StandIn(micro, says=says) as server:
        there = connect(server, **({'api': 'chat', 'tokenizer': ''} if says == 'chat' else {}))
        labels = make_labeler(there, dataclasses.replace(cfg, templates='micro'))(PAIRS)
    names = ('preference', 'first_shown', 'second_shown', 'mass')
    np.testing.assert_allclose(fields(labels, *names), fields(local, *names), **NEAR)
    assert [one.rationales for one in labels] == [one.rationales for one in local]
    assert [one.status for one in labels] == ['ok'] * len(PAIRS)
    if says != 'chat':  # whose tokens are words
        assert [one.tokens for one in labels] == [one.tokens for one in local]


def test_what_is_not_shown_is_not_captured(table, monkeypatch):
    """Two of the four ways to write an answer, which hold 0.95 together."""
    (whole,) = make_labeler(connect(table), PLAIN)(PAIRS[:1])
    monkeypatch.setattr(served, 'COMPLETIONS', ({'max_tokens': 1, 'temperature': 0.0, 'logprobs': 2},))
    (label,) = make_labeler(connect(table), PLAIN)(PAIRS[:1])
    (none,) = make_labeler(connect(table), dataclasses.replace(PLAIN, least_mass=0.95))(PAIRS[:1])
    assert 0.3 < label.mass < 0.94 < whole.mass < 0.96 and none.status == 'unscorable'


def test_who_shows_few_tokens_is_asked_for_few(table):
    table.most = 5
    assert connect(table).how['logprobs'] == 5


@pytest.mark.parametrize('says', ['ids', 'chat'])
def test_ratings_are_those_of_the_same_model_here(tiny_labeler, micro, says):
    prompts, responses = [pair.prompt.text for pair in PAIRS], FIRSTS
    local = direct.make_rater(tiny_labeler, direct.Config(least_mass=0.01))(prompts, responses)
    with StandIn(micro, says=says) as server:
        there = connect(server, **({'api': 'chat', 'tokenizer': ''} if says == 'chat' else {}))
        ask = lambda: rlaif_jax.rate(there, prompts, responses, templates='micro')  # noqa: E731
        if says == 'chat':  # whether 10 is a token is looked at
            shown = any(one.text.strip() == '10' for one in there.first(served.TEN))
            if not shown:
                with pytest.raises(Mistake, match='does not tell 10 from 1'):
                    ask()
                return
        found = ask()
    np.testing.assert_allclose(fields(found, 'score', 'mass'), fields(local, 'score', 'mass'), rtol=0, atol=5e-3)


def test_a_prompt_is_no_longer_than_the_server_takes(micro):
    with StandIn(micro, length=200) as server:
        long = dataclasses.replace(PAIRS[0], prompt=Prompt('zq ' * 900 + 'TL;DR:', 'long'))
        (label,) = make_labeler(connect(server), PLAIN)([long])
    assert label.status == 'ok' and label.shortened > 100


# Through a store


def label(server, folder, pairs, cfg=PLAIN, **options):
    store = Store(folder / 'labels.jsonl')
    address = server.address(**{'tokenizer': 'micro_xs', 'patience': 5, **options})
    return label_all(address, cfg, pairs, store)


def many(count):
    return [Pair(Prompt(f'I lost {n} keys. TL;DR:', str(n)), f' {n} keys', ' no keys') for n in range(count)]


def lines(folder):
    """What a store holds, but for how long it took."""
    rows = [json.loads(line) for line in (folder / 'labels.jsonl').read_text(encoding='utf-8').splitlines()]
    return [{key: value for key, value in row.items() if key != 'seconds'} for row in rows]


def test_what_is_stored_is_not_asked_again_wherever_the_server_is(table, tmp_path):
    first = label(table, tmp_path, many(6))
    asked = len(table.requests)
    assert label(table, tmp_path, many(6)) == first and len(table.requests) == asked
    with StandIn(table.model) as other:
        assert label(other, tmp_path, many(6), parallel=3) == first and not other.requests
        assert label(other, tmp_path, many(8))[:6] == first
        assert len([body for body in other.asked() if 'logprobs' in body]) == 1 + 2 * 2  # the probe, and two pairs
    with StandIn(table.model, name='another') as other:
        label(other, tmp_path, many(6))
        assert len(other.requests) > 6


def test_labels_are_kept_of_whole_prompts_alone(table, tmp_path):
    """Whatever a server takes, and whatever the type of products here is."""
    table.length = 1000
    with pytest.raises(Mistake, match=r'#micro: .*label\.max_length=999'):
        label(table, tmp_path, many(2))
    cfg = dataclasses.replace(PLAIN, max_length=999)
    first = label(table, tmp_path, many(2), cfg)
    asked, address = len(table.requests), table.address(tokenizer='micro_xs')
    assert label_all(address, cfg, many(2), Store(tmp_path / 'labels.jsonl'), dtype='bfloat16') == first
    assert len(table.requests) == asked


FAULTS = {
    'drop': 'drop',
    'half': 'half',
    'garbage': 'garbage',
    '502': Status(502),
    '500': Status(500),
    '503': Status(503),
    '429': Status(429, after='0.05'),
    'a date': Status(429, after='Wed, 21 Oct 2015 07:28:00 GMT'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_what_passes_changes_nothing(table, tmp_path, fault):
    expected = label(table, tmp_path / 'alone', many(12))
    seen = set()

    def fails(number, path, body):
        """Every third prompt once."""
        asked = json.dumps(body)
        if path != '/v1/completions' or asked in seen or number % 3:
            return None
        seen.add(asked)
        return FAULTS[fault]

    table.fault = fails
    assert label(table, tmp_path / 'failing', many(12)) == expected and len(seen) > 4
    assert lines(tmp_path / 'failing') == lines(tmp_path / 'alone')


def test_a_server_that_dies_loses_nothing_that_is_stored(table, tmp_path):
    expected = label(table, tmp_path / 'alone', many(20))
    begun = len(table.requests)
    table.fault = lambda number, path, body: 'drop' if number > begun + 25 else None
    with pytest.raises(Passing, match=rf'127\.0\.0\.1:{table.port}/v1#micro'):
        label(table, tmp_path / 'dying', many(20), patience=0.3)
    stored = lines(tmp_path / 'dying')
    assert 4 <= len(stored) < 20
    table.fault, before = lambda number, path, body: None, len(table.asked())
    assert label(table, tmp_path / 'dying', many(20)) == expected
    assert lines(tmp_path / 'dying')[: len(stored)] == stored
    keys = [line['key'] for line in lines(tmp_path / 'dying')]
    assert sorted(keys) == sorted(line['key'] for line in lines(tmp_path / 'alone'))
    verdicts = [body for body in table.asked()[before:] if 'logprobs' in body]
    assert len(verdicts) <= 1 + 2 * (20 - len(stored))


def test_a_server_that_stalls_is_asked_again_and_then_named(table, tmp_path):
    seen = []
    table.fault = lambda number, path, body: seen.append(1) or 'stall' if len(seen) < 2 and number > 4 else None
    assert len(label(table, tmp_path, many(6), timeout=0.3)) == 6 and len(seen) == 2
    table.fault = lambda number, path, body: 'stall' if 'prompt' in body else None
    with pytest.raises(Passing, match='does not answer in time'):
        label(table, tmp_path, many(9), timeout=0.1, patience=0.3)


def test_retry_after_is_respected_by_all_requests(table, tmp_path):
    when, told = [], []

    def fault(number, path, body):
        when.append((time.monotonic(), path))
        if number == 4:
            told.append(time.monotonic())
            return Status(429, after='0.6')
        return None

    table.fault = fault
    label(table, tmp_path, many(12), parallel=2)
    assert not [at for at, _ in when if told[0] + 0.1 < at < told[0] + 0.55]  # but for the one that was on its way
    table.fault = lambda number, path, body: Status(429, after='3600') if 'prompt' in body else None
    with pytest.raises(Passing, match='3600 s of rest'):
        label(table, tmp_path, many(13))


def test_a_prompt_that_the_server_refuses_costs_no_other(table, tmp_path, capsys):
    """Nor one that breaks it, while it answers others."""
    (bad,) = table.model.tokenizer.encode([' 3'])
    says = {'bare': 'without log-probabilities', 'garbage': 'no JSON', 'drop': 'broke off'}
    for i, fault in enumerate((Status(400, 'a filter'), Status(500, 'a crash'), Status(502, 'a proxy'), *says)):
        table.fault = lambda number, path, body: fault if bad[0] in body.get('prompt', []) else None  # noqa: B023
        cfg = dataclasses.replace(PLAIN, most_unscorable=0.5)
        labels = label(table, tmp_path / str(i), many(9), cfg, parallel=4)
        assert [one.status for one in labels] == ['unscorable' if n == 3 else 'ok' for n in range(9)]
        assert (says[fault] if isinstance(fault, str) else fault.said) in capsys.readouterr().out


def test_a_prompt_at_which_the_server_stalls_costs_no_other(table, tmp_path):
    (bad,) = table.model.tokenizer.encode([' 3'])
    table.fault = lambda number, path, body: 'stall' if bad[0] in body.get('prompt', []) else None
    cfg = dataclasses.replace(PLAIN, most_unscorable=0.5)
    labels = label(table, tmp_path, many(6), cfg, timeout=0.3, patience=0.7)
    assert [one.status for one in labels] == ['unscorable' if n == 3 else 'ok' for n in range(6)]


def test_a_server_that_was_away_for_long_costs_no_prompt(table, tmp_path, monkeypatch):
    monkeypatch.setattr(wire, 'TRIES', 2)
    begun = len(table.requests)
    table.fault = lambda number, path, body: Status(502) if begun + 8 < number < begun + 40 else None
    assert [one.status for one in label(table, tmp_path, many(12))] == ['ok'] * 12


def test_a_field_at_which_a_server_breaks_is_left_out(table):
    table.fault = lambda number, path, body: Status(500) if 'return_tokens_as_token_ids' in body else None
    assert connect(table).how == served.COMPLETIONS[1]
    table.fault = lambda number, path, body: Status(500) if body else None
    with pytest.raises(Passing, match='500'):
        connect(table)


def test_tokens_that_decode_alike_are_summed(table):
    there = connect(table)
    answerer = there.answerer([], scoring.read_answers(there.tokenizer, ('1', '2')), 100)
    there.first = lambda prompt: [served.Shown(None, '1', math.log(p)) for p in (0.5, 0.2)]
    (token,) = there.tokenizer.encode(['1'], behind=True)[0]
    assert math.exp(answerer._tokens([5])[token]) == pytest.approx(0.7)


@pytest.mark.parametrize('api', ['completions', 'chat'])
def test_a_rationale_that_is_refused_makes_no_label(table, tmp_path, api):
    options = {'api': 'chat', 'tokenizer': ''} if api == 'chat' else {}
    told = lambda body: table.model.tokenizer.decode([body['prompt']])[0] if 'prompt' in body else str(body)  # noqa: E731
    for i, fault in enumerate((Status(400, 'a filter'), 'null')):
        table.fault = lambda number, path, body: (
            fault if 'logprobs' not in body and 'lost 3 keys' in told(body) else None  # noqa: B023
        )
        cfg = dataclasses.replace(COT, most_unscorable=0.5, least_mass=0.0)
        labels = label(table, tmp_path / str(i), many(6), cfg, **options)
        assert [one.status for one in labels] == ['unscorable' if n == 3 else 'ok' for n in range(6)]
        assert labels[3].reason == preference.NO_RATIONALE


def test_who_does_not_know_how_rationales_are_asked_for_is_named(table, tmp_path):
    cfg = dataclasses.replace(COT, samples=2)
    table.fault = lambda number, path, body: Status(400, 'what is top_k?') if 'top_k' in body else None
    with pytest.raises(Mistake, match=r'#micro: .*what is top_k\?'):
        label(table, tmp_path, many(4), cfg)
    assert not lines(tmp_path)


def test_a_server_that_takes_nothing_any_more_makes_no_labels(table, tmp_path):
    for fault, says in (
        (Status(400, 'other settings'), 'no prompts any more.*other settings'),
        ('bare', 'gives no log-p'),
    ):
        begun = len(table.requests)
        table.fault = lambda number, path, body: fault if number > begun + 20 else None  # noqa: B023
        with pytest.raises(Mistake, match=f'#micro: .*{says}'):
            label(table, tmp_path, many(40))
    assert all(line['status'] == 'ok' for line in lines(tmp_path))


def test_only_so_many_requests_are_there_at_once(table, tmp_path):
    table.fault = lambda number, path, body: time.sleep(0.01)
    label(table, tmp_path, many(16), dataclasses.replace(PLAIN, batch=16), parallel=5)
    assert 3 <= table.at_once <= 5


def test_a_run_that_is_asked_to_stop_does_not_wait_for_a_server_that_fails(table, tmp_path, monkeypatch):
    begun = len(table.requests)
    table.fault = lambda number, path, body: Status(503) if number > begun + 12 else None
    monkeypatch.setattr(stopping, 'asked', lambda: len(table.requests) > begun + 14)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        label(table, tmp_path, many(20), patience=600)
    assert time.monotonic() - began < 5 and len(lines(tmp_path)) >= 4


def test_a_stop_while_a_request_waits_costs_no_batch(table, tmp_path, monkeypatch):
    begun, asked = len(table.requests), []
    table.fault = lambda number, path, body: asked.append(1) or Status(503) if number == begun + 12 else None
    monkeypatch.setattr(stopping, 'asked', lambda: bool(asked))
    assert len(label(table, tmp_path, many(9))) == 9 and asked


def test_nobody_waits_for_requests_of_a_call_that_is_over(table):
    there = connect(table)
    table.fault = lambda number, path, body: Status(401) if body['prompt'] == [9] else Status(503)
    with pytest.raises(Mistake, match='401'):
        there.wire.each(lambda row: there.ask(row, there.how), [[5], [6], [9], [7]])
    waiting = lambda: [thread for thread in threading.enumerate() if thread.name == 'served']  # noqa: E731
    until = time.monotonic() + 10
    while waiting() and time.monotonic() < until:
        time.sleep(0.02)
    assert not waiting()


# Who cannot be asked


def test_who_is_not_there_is_named_before_the_work(tmp_path):
    with StandIn(None) as gone:
        address = gone.address(tokenizer='micro_xs')
    with pytest.raises(Passing, match=rf'127\.0\.0\.1:{gone.port}/v1#micro: cannot be reached'):
        labelers.check(address)
    with presets.downloading_nothing():
        labelers.check(address)  # only told of


def test_one_process_of_several_checks_alone(table, monkeypatch):
    monkeypatch.setattr(hosts, 'count', lambda: 2)
    monkeypatch.setattr(hosts, '_tell', lambda name, text: None)
    address = table.address(tokenizer='micro_xs')
    hosts.told(lambda: labelers.check(address))
    with pytest.raises(RuntimeError, match='told within told'):
        hosts.told(lambda: served.served(address).most)
    assert hosts.told(lambda: 1) == 1


def test_a_server_of_no_use_is_named(table, monkeypatch):
    table.fault = lambda number, path, body: 'bare'
    with pytest.raises(Mistake, match='#micro: gives no log-probabilities'):
        connect(table)
    table.fault, table.most = lambda number, path, body: None, 1
    with pytest.raises(Mistake, match='#micro: .*too many'):
        connect(table)
    table.most = 20
    with pytest.raises(Mistake, match=r'did you mean http://127\.0\.0\.1:\d+/v1#micro\?'):
        served.served(table.address(tokenizer='micro_xs').replace('#micro', '#mikro'))
    table.detokenizes = lambda tokens: 'another text'
    with pytest.raises(Mistake, match="another tokenizer than micro_xs: .*'another text'"):
        connect(table)
    table.detokenizes = lambda tokens: table.model.tokenizer.decode([tokens])[0]
    connect(table)


@pytest.mark.parametrize(
    'address, says',
    [
        ('http://host:8000/v1', 'http://host:8000/v1#MODEL'),
        ('http://host:8000', 'http://host:8000/v1#MODEL'),
        ('http:///v1#m', 'names no host'),
        ('http://host:x/v1#m', 'cannot be read'),
        ('http://host/v1?tokeniser=a#m', 'did you mean tokenizer'),
        ('http://host/v1?api=chats#m', 'did you mean chat'),
        ('http://host/v1?api=chat&tokenizer=a#m', 'would change nothing'),
        ('http://host/v1?parallel=many#m', 'no number'),
        ('http://host/v1?parallel=0#m', '1 to 4096'),
        ('http://host/v1?timeout=nan#m', 'seconds'),
        ('http://host/v1#no_such_model', r'\?tokenizer=.*#no_such_model'),
        ('http://host/v1?tokenizer=no_such#m', 'no_such: no such directory'),
        ('ftp://host/v1#m', 'http://host:8000/v1#MODEL'),
    ],
)
def test_an_address_that_is_none_is_named(address, says):
    with pytest.raises(Mistake, match=says):
        served.served(address)


def test_an_address_is_typed_as_it_is():
    address = 'http://host:8000/v1?timeout=9&api=chat#org/model'
    assert parse_binding(f'labeler={address}') == ('labeler', address)
    assert labelers.title(address) == 'model'


# The key


SECRET = 'sk-0123456789abcdef'


def test_a_key_goes_to_its_server_alone(table, tmp_path, monkeypatch):
    table.key = SECRET
    with pytest.raises(Mistake, match=f'401: it wants a key; set {wire.KEY}'):
        connect(table)
    monkeypatch.setenv(wire.KEY_OF_OPENAI, SECRET)  # which is for one host
    with pytest.raises(Mistake, match='401'):
        connect(table)
    assert SECRET not in repr(table.requests)
    monkeypatch.setenv(wire.KEY, SECRET[:-1])
    with pytest.raises(Mistake) as wrong:
        connect(table)
    assert '401: the key in RLAIF_API_KEY' in str(wrong.value) and SECRET[:-1] not in str(wrong.value)
    monkeypatch.setenv(wire.KEY, SECRET)
    assert len(label(table, tmp_path, many(3))) == 3
    table.fault = lambda number, path, body: Status(400, f'no {SECRET} here')
    with pytest.raises(Mistake) as told:
        connect(table)
    assert 'no … here' in str(told.value) and SECRET not in str(told.value)


@pytest.mark.parametrize('address', ['http://{}@host/v1#m', 'http://me:{}@host/v1#m', 'http://host/v1?api_key={}#m'])
def test_a_key_in_an_address_is_refused_and_not_repeated(address):
    with pytest.raises(Mistake, match=wire.KEY) as told:
        served.served(address.format(SECRET))
    assert SECRET not in str(told.value)


@pytest.mark.parametrize('key', ['sk-\x00', 'sk-ü'])
def test_a_key_that_no_header_holds_is_refused_and_not_repeated(table, monkeypatch, key):
    try:
        monkeypatch.setitem(os.environ, wire.KEY, key)
    except ValueError:
        pytest.skip('the system has no such variable')
    with pytest.raises(Mistake, match=wire.KEY) as told:
        connect(table)
    assert key not in str(told.value)


def test_what_was_asked_is_counted_and_priced(table, tmp_path, capsys):
    with wire.counted((2.0, 3.0)):
        label(table, tmp_path, many(4))
    asked = table.asked()
    read = sum(len(body['prompt']) for body in asked)
    told = ' '.join(capsys.readouterr().out.split())
    assert f'{len(asked)} requests, {read:,} tokens read, {len(asked)} written' in told
    assert f'{(2 * read + 3 * len(asked)) / 1e6:,.2f} at --price=2,3' in told
    table.counts, before = False, len(asked)
    with wire.counted():
        label(table, tmp_path, many(6))
    assert f'{len(table.asked()) - before} requests, 0 tokens read' in ' '.join(capsys.readouterr().out.split())


def test_the_key_of_a_host_comes_before_the_one_of_all(monkeypatch):
    monkeypatch.setenv(wire.KEY, 'of all')
    monkeypatch.setenv(wire.KEY_OF_OPENAI, 'its own')
    assert wire._key(wire.OPENAI) == 'its own' and wire._key('host') == 'of all'


def test_preferences_know_nothing_of_servers():
    for module in (preference, direct):
        assert not {'served', 'wire'} & {*vars(module)}
