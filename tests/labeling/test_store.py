"""Laws of rlaif_jax.labeling.store: a label is asked for once, and what was stored survives whatever happens."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from rlaif_jax.config import Mistake
from rlaif_jax.labeling.store import Shard, Store, complete, key

ROOT = Path(__file__).resolve().parents[2]


def record(i):
    return {'status': 'ok', 'preference': (i * 37 % 101) / 101, 'rationale': f'“{i}”\n\u2028 å' * (i % 4)}


class Labeler:
    """Makes the label of each index, and remembers what it was asked; `bad` are unscorable."""

    def __init__(self, bad=()):
        self.asked, self.bad = [], set(bad)

    def __call__(self, indices):
        self.asked.append(indices)
        return [{'status': 'unscorable', 'preference': float('nan')} if i in self.bad else record(i) for i in indices]


def keys_of(count):
    return [key('labeler', 'template', str(i)) for i in range(count)]


def lines(path):
    data = path.read_bytes()
    assert data.endswith(b'\n')

    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    return [json.loads(line, parse_constant=refuse) for line in data.split(b'\n')[:-1]]


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'run' / 'labels.jsonl'


# Keys


def test_a_key_stands_for_its_parts_and_where_they_end():
    sequences = [(), ('',), ('', ''), ('ab', 'c'), ('a', 'bc'), ('abc',), ('a', 'b', 'c'), ('c', 'ab'), ('1:a',)]
    sequences += [('a', '1:b'), ('a1:b',), ('å',), ('a\u030a',), ('\ud800',), ('\0', ''), ('', '\0'), ('\\ud800',)]
    keys = [key(*parts) for parts in sequences]
    assert len(set(keys)) == len(sequences)
    assert all(len(k) == 32 and int(k, 16) >= 0 for k in keys)
    assert keys == [key(*parts) for parts in sequences]
    assert key('ab', 'c') == '709cf327ef95531b685902e50b513a88'  # of every version: stored labels hang on it


# The file


def test_what_comes_back_is_what_was_added_in_this_process_and_in_the_next(path):
    store = Store(path)
    assert len(store) == 0 and store.get('a') is None and 'a' not in store
    records = {str(i): record(i) for i in range(9)}
    store.append(records)
    for there in (store, Store(path)):
        assert len(there) == 9 and '3' in there and '9' not in there
        assert {k: there.get(k) for k in records} == records
    store.get('3')['status'] = 'changed by the caller'
    assert store.get('3') == record(3)


def test_the_file_is_strict_json_and_memory_holds_what_it_does(path):
    odd = {'nan': float('nan'), 'inf': [np.inf, 1.0], 'scalar': np.float32(0.5), 'flag': True, 'none': None}
    odd |= {'text': 'å\u2028\r\n\0\ud800', 'tuple': (1, 2), 'array': np.arange(2), 'nested': {'x': float('nan')}}
    store = Store(path)
    store.append({'a': odd})
    plain = odd | {
        'nan': None,
        'inf': [None, 1.0],
        'scalar': 0.5,
        'tuple': [1, 2],
        'array': [0, 1],
        'nested': {'x': None},
    }
    assert lines(path) == [{'key': 'a'} | plain]
    assert store.get('a') == Store(path).get('a') == plain


def test_a_key_keeps_its_first_record(path):
    store = Store(path)
    store.append({'a': record(1)})
    before = path.read_bytes()
    store.append({'a': record(2)})
    assert path.read_bytes() == before and store.get('a') == record(1)
    with pytest.raises(ValueError, match='key'):
        store.append({'b': {'key': 'c'}})


def test_stores_behind_each_other_are_a_store(tmp_path):
    """So that several hosts can write a file each."""
    for host, first in (('0', 0), ('1', 5)):
        Store(tmp_path / host).append({str(i): record(i) | {'host': host} for i in range(first, first + 10)})
    (tmp_path / 'all').write_bytes((tmp_path / '0').read_bytes() + (tmp_path / '1').read_bytes())
    store = Store(tmp_path / 'all')
    assert [store.get(str(i))['host'] for i in range(15)] == ['0'] * 10 + ['1'] * 5


def test_a_store_sees_what_another_added(path):
    one, other = Store(path), Store(path)
    one.append({'a': record(1)})
    assert 'a' not in other
    other.append({'a': record(2), 'b': record(3)})
    assert other.get('a') == record(1) and 'b' not in one
    one.refresh()
    assert one.get('b') == record(3) and [line['key'] for line in lines(path)] == ['a', 'b']


# Crashes


def test_a_last_line_cut_anywhere_is_repaired_and_nothing_before_is_lost(path, capsys):
    records = {str(i): record(i) for i in range(4)}
    Store(path).append(records)
    whole = path.read_bytes()
    start = whole.rindex(b'\n', 0, -1) + 1
    assert len(whole) - start > 100
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        capsys.readouterr()
        store = Store(path)
        said = capsys.readouterr().out
        there = 4 if end == len(whole) - 1 else 3  # only the line end is missing: the label is whole
        assert {k: store.get(k) for k in list(records)[:there]} == dict(list(records.items())[:there])
        assert len(store) == len(lines(path)) == there
        assert said.count('\n') == (start < end < len(whole) - 1) and (not said or f'{end - start} bytes' in said)
        store.append(records)
        assert path.read_bytes() == whole


def test_the_first_write_of_all_may_be_cut_anywhere(path):
    Store(path).append({'a': {'status': 'ok'}})
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        Store(path).append({'a': {'status': 'ok'}})
        assert path.read_bytes() == whole


def test_an_open_store_mends_what_another_left_behind(path):
    store = Store(path)
    store.append({'a': record(1)})
    with open(path, 'ab') as file:
        file.write(b'{"key": "b", "sta')
    store.append({'c': record(3)})
    assert [line['key'] for line in lines(path)] == ['a', 'c']


def test_a_damaged_line_is_skipped_and_said_and_its_label_made_again(path, capsys):
    keys = keys_of(20)
    complete(Store(path), keys, Labeler(), batch=20)
    damaged = path.read_bytes().split(b'\n')
    damaged[7], damaged[11], damaged[12] = b'\0' * 40, damaged[11][:-9], b'["not a record"]'
    path.write_bytes(b'\n'.join(damaged))
    capsys.readouterr()
    labeler = Labeler()
    store = Store(path)
    assert re.search(f'{path}: .*line 8 and 2 ', capsys.readouterr().out)
    assert complete(store, keys, labeler, batch=20) == complete(Store(path), keys, None, batch=20)
    assert labeler.asked == [[7, 11, 12]]
    assert path.read_bytes().startswith(b'\n'.join(damaged))  # nothing is taken away


@pytest.mark.parametrize('text', ['{"step": 0}\n{"step": 1}\n', 'my thesis', 'a\nb', '\0' * 50, '{"key": 3}\n', '\n'])
def test_a_file_that_is_no_store_is_left_as_it_is(path, text):
    path.parent.mkdir()
    path.write_text(text, encoding='utf-8')
    with pytest.raises(Mistake, match=f'{path} .*label store'):
        Store(path)
    assert path.read_text(encoding='utf-8') == text


def test_where_labels_cannot_be_kept_a_mistake_says_so(tmp_path):
    with pytest.raises(Mistake, match=f'{tmp_path} .*{tmp_path}/labels.jsonl$'):
        Store(tmp_path)
    (tmp_path / 'file').touch()
    with pytest.raises(Mistake, match='/file/labels.jsonl: .*File exists'):
        Store(tmp_path / 'file' / 'labels.jsonl')
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(Mistake, match=f'{tmp_path}/pipe .*/labels.jsonl$'):
        Store(tmp_path / 'pipe')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_that_may_not_be_read_is_a_mistake(path):
    Store(path).append({'a': record(1)})
    path.chmod(0)
    with pytest.raises(Mistake, match=f'{path}: .*Permission denied'):
        Store(path)


def test_a_full_disk_is_a_mistake_and_loses_nothing(path):
    store = Store(path)
    store.append({'a': record(1)})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
    try:
        with pytest.raises(Mistake, match=f'{path}: .*File too large'):
            store.append({'b': record(3)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes().startswith(before)
    store.append({'b': record(3)})
    assert [line['key'] for line in lines(path)] == ['a', 'b'] and store.get('b') == record(3)


def test_a_file_cut_by_others_while_it_is_open_is_a_mistake(path):
    store = Store(path)
    store.append({'a': record(1)})
    path.write_text('', encoding='utf-8')
    with pytest.raises(Mistake, match=f'{path} .*replaced'):
        store.append({'b': record(2)})


def test_without_locks_it_is_said_once_and_the_labels_are_stored(path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError('no locks available')

    monkeypatch.setattr('rlaif_jax.folder.flock', refuse)
    store = Store(path)
    store.append({'a': record(1)})
    assert Store(path).get('a') == record(1)
    assert capsys.readouterr().out.count(f'{path}: ') == 1


# Several processes


APPEND = """
import sys
from rlaif_jax.labeling.store import Store
who, path = sys.argv[1:]
store = Store(path)
print('open', flush=True)
sys.stdin.read()
for i in range(60):
    record = {'status': 'ok', 'who': who, 'numbers': [i] * 2000}  # slow to write: more room for a race
    store.append({f'shared {i}': record, f'of {who}: {i}': {'status': 'ok'}})
store.refresh()
assert len(store) >= 120
"""


def test_what_another_one_added_is_not_counted_as_added_here(path):
    mine, other = Store(path), Store(path)
    mine.append({'a': record(0), 'b': record(1)})
    other.append({'b': record(1), 'c': record(2)})  # one of them is there already
    mine.refresh()
    mine.append({'c': record(2), 'd': record(3)})
    assert (mine.added, other.added, len(mine), Store(path).added) == (3, 1, 4, 0)


def test_processes_that_add_at_once_leave_every_key_once_and_every_line_whole(path):
    command = [sys.executable, '-c', APPEND]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with (
        subprocess.Popen([*command, '0', path], cwd=ROOT, **pipes) as one,
        subprocess.Popen([*command, '1', path], cwd=ROOT, **pipes) as other,
    ):
        for process in (one, other):
            assert process.stdout.readline() == b'open\n'
        for process in (one, other):
            process.stdin.close()
    assert one.returncode == other.returncode == 0
    there = lines(path)
    names = [name for i in range(60) for name in (f'shared {i}', f'of 0: {i}', f'of 1: {i}')]
    assert sorted(line['key'] for line in there) == sorted(names)
    assert len(Store(path)) == len(names)


def test_reading_a_store_does_not_bring_jax():
    code = 'import sys, rlaif_jax.labeling.store; assert "jax" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


# Forks a process that labels, kills it at a random moment, and so on until one gets to its end. The processes are real;
# that they are forked spares them the imports.
KILLED = """
import os, random, signal, sys, time
import rlaif_jax.checkpoint
from rlaif_jax.labeling.store import Shard, Store, complete, key

def make(indices):
    with open(sys.argv[2], 'ab') as file:
        file.write(bytes(indices))
    time.sleep(0.002)
    return [{'status': 'unscorable' if i % 7 == 3 else 'ok', 'x': i / 7, 'text': 'å' * 2000 * (i % 5)} for i in indices]

def label(path):
    complete(Store(path), [key(str(i)) for i in range(200)], make, batch=4)

if len(sys.argv) == 4:
    label(sys.argv[3])
random.seed(0)
kills = 0
while True:
    worker = os.fork()
    if not worker:
        label(sys.argv[1])
        os._exit(0)
    if kills < 15:
        time.sleep(random.uniform(0, 0.05))
        os.kill(worker, signal.SIGKILL)
    if os.waitpid(worker, 0)[1] == 0:
        break
    kills += 1
print(kills, file=sys.stderr)
"""


def test_killed_at_any_moment_it_ends_as_if_never_killed(path, tmp_path):
    made, whole = tmp_path / 'made', tmp_path / 'whole.jsonl'
    path.parent.mkdir()
    arguments = [sys.executable, '-W', 'ignore', '-c', KILLED, path, made, whole]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, encoding='utf-8', timeout=60)
    assert done.returncode == 0, done.stderr
    kills, asked = int(done.stderr), made.read_bytes()
    assert kills >= 5
    assert path.read_bytes() == whole.read_bytes() and len(lines(path)) == 200
    assert set(asked) == set(range(200)) and len(asked) <= 400 + 4 * kills  # at most the batch in flight is lost


# Shards


def test_shares_are_all_items_each_once_and_as_long_as_each_other():
    for count in range(20):
        for of in range(1, 24):
            shares = [Shard(number, of).share(range(count)) for number in range(1, of + 1)]
            assert sorted(i for share in shares for i in share) == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_shard_is_read_as_it_is_written():
    assert (Shard.parse('3/16'), Shard.parse('03/16')) == (Shard(3, 16),) * 2
    assert str(Shard.parse('3/16')) == '3/16' and Shard(1, 1).share('ab') == 'ab'
    for text, nearest in (
        ('0/16', '1/16'), ('17/16', '16/16'), ('0/0', '1/1'), ('x', '3/16'), ('3', '3/16'), ('3/16/2', '3/16'),
        ('-1/16', '3/16'), ('1.5/16', '3/16'), ('٣/16', '3/16'),
    ):  # fmt: skip
        with pytest.raises(Mistake, match=rf'shard={text}: .*shard={nearest}\b'):
            Shard.parse(text)


def test_every_shard_has_a_file_of_its_own(path):
    files = [Shard(number, of).store(path) for of in range(1, 30) for number in range(1, of + 1)]
    assert len({path, *files}) == len(files) + 1 and {file.parent for file in files} == {path.parent}
    assert Shard(3, 16).store(path).name == 'labels-03-of-16.jsonl'


def test_who_reads_a_store_reads_its_shards_too_and_adds_to_its_own_file_alone(path):
    one, two = Shard(1, 2), Shard(2, 2)
    whole = Store(path)
    Store(path, one).append({'a': record(1), 'b': record(2)})
    Store(path, two).append({'c': record(3)})
    (path.parent / 'labels-of-mine.jsonl').write_text('of somebody', encoding='utf-8')
    assert len(whole) == 0
    for store in (whole, Store(path), Store(path, one), Store(path, Shard(1, 4))):
        store.refresh()
        assert {k: store.get(k) for k in 'abc'} == {'a': record(1), 'b': record(2), 'c': record(3)}
        assert store.added == 0
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    whole.append({'a': record(9), 'd': record(4)})
    assert Store(path, two).get('d') == record(4)
    after = {file: file.read_bytes() for file in path.parent.iterdir()}
    assert [file for file in after if after[file] != before.get(file)] == [path]
    assert [line['key'] for line in lines(path)] == ['d']


def test_what_another_shard_left_unfinished_is_not_touched(path):
    """It may be writing now. A line that lacks its end alone is a label."""
    file = Shard(1, 2).store(path)
    Store(path, Shard(1, 2)).append({'a': record(1), 'b': record(2)})
    data = file.read_bytes()
    start = data.index(b'\n') + 1
    store = Store(path.parent / 'labels.jsonl')
    for end in range(start, len(data) + 1):
        file.write_bytes(data[:end])
        found = Store(path)
        assert len(found) == 1 + (end >= len(data) - 1) and file.read_bytes() == data[:end]
    store.refresh()  # it has read up to the end of a line, and goes on from there
    Store(path, Shard(1, 2)).append({'c': record(3)})
    store.refresh()
    assert [store.get(k) for k in 'abc'] == [record(1), record(2), record(3)]


# Forks a process for each of four shards of forty keys, all at once, and kills each of them with its batches half made.
SHARDS = """
import os, signal, sys, time
import rlaif_jax.checkpoint
from rlaif_jax.labeling.store import Shard, Store, complete, key

def make(indices):
    time.sleep(0.05)
    return [{'status': 'ok', 'text': 'å' * 2000} for i in indices]

keys = [key(str(i)) for i in range(40)]

def start(shard):
    if worker := os.fork():
        return worker
    complete(Store(sys.argv[1], shard), shard.share(keys), make, batch=1)
    os._exit(0)

shards = [Shard(number, 4) for number in range(1, 5)]
workers = [start(shard) for shard in shards]
time.sleep(0.2)
for worker in workers:
    os.kill(worker, signal.SIGKILL)
statuses = [os.waitpid(worker, 0)[1] for worker in workers]
there = len(Store(sys.argv[1]))
workers = [start(shard) for shard in shards]
statuses += [os.waitpid(worker, 0)[1] for worker in workers]
print(there, *statuses, file=sys.stderr)
"""


def test_shards_that_are_killed_and_started_again_are_one_store(path):
    path.parent.mkdir()
    arguments = [sys.executable, '-W', 'ignore', '-c', SHARDS, path]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, encoding='utf-8', timeout=60)
    there, *statuses = map(int, done.stderr.split())
    assert 0 < there < 40 and statuses == [signal.SIGKILL] * 4 + [0] * 4
    found = [line['key'] for file in path.parent.glob('labels-*-of-4.jsonl') for line in lines(file)]
    keys = [key(str(i)) for i in range(40)]
    assert sorted(found) == sorted(keys)  # nothing is lost, and nothing made twice
    assert [r['status'] for r in complete(Store(path), keys, None, batch=4)] == ['ok'] * 40


# complete


def test_a_second_run_asks_for_nothing(path, capsys):
    labeler, keys = Labeler(bad=[3]), keys_of(10)
    first = complete(Store(path), keys, labeler, batch=4)
    assert labeler.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert re.search(f'0 of 10 .*{path} ', capsys.readouterr().out)
    before = path.read_bytes()
    assert complete(Store(path), keys, labeler, batch=4) == first
    assert len(labeler.asked) == 3 and path.read_bytes() == before
    said = capsys.readouterr().out
    assert '10 of 10 ' in said and '1 unscorable' in said and '0 to make' in said
    assert [r['preference'] for i, r in enumerate(first) if i != 3] == [
        record(i)['preference'] for i in range(10) if i != 3
    ]


def test_only_what_is_absent_is_made_and_records_come_in_the_order_of_the_keys(path):
    keys, labeler = keys_of(30), Labeler()
    complete(Store(path), keys[10:20], lambda indices: [record(i + 10) for i in indices], batch=3)
    assert [r['preference'] for r in complete(Store(path), keys, labeler, batch=100)] == [
        record(i)['preference'] for i in range(30)
    ]
    assert labeler.asked == [[*range(10), *range(20, 30)]]
    back = complete(Store(path), keys[::-1], None, batch=1)
    assert [r['preference'] for r in back] == [record(i)['preference'] for i in reversed(range(30))]


def test_a_key_that_stands_twice_is_made_once(path):
    labeler, (a, b, c) = Labeler(), keys_of(3)
    records = complete(Store(path), [a, b, a, c, b, a], labeler, batch=2)
    assert labeler.asked == [[0, 1], [3]]
    assert records == [records[i] for i in (0, 1, 0, 3, 1, 0)] and len(lines(path)) == 3


def test_nothing_to_label_is_no_mistake(path):
    assert complete(Store(path), [], None, batch=1) == []


def test_the_unscorable_is_not_asked_for_again(path):
    labeler = Labeler(bad=[1])
    records = complete(Store(path), keys_of(8), labeler, batch=8)
    assert records[1] == {'status': 'unscorable', 'preference': None}
    assert complete(Store(path), keys_of(8), labeler, batch=8) == records and len(labeler.asked) == 1


def test_too_many_unscorable_stop_it_with_examples_and_stay_stored(path):
    labeler, keys = Labeler(bad=range(0, 100, 3)), keys_of(100)
    with pytest.raises(Mistake) as stopped:
        complete(Store(path), keys, labeler, batch=20, advise=lambda bad: f'<examples {bad}>', title='detailed')
    assert len(labeler.asked) == 3  # it looks from the 50th on
    text = str(stopped.value)
    assert re.match(r'(?s)detailed: 20 of 60 .*33%.* 20%.*label\.most_unscorable', text)
    assert '<examples [0, 3, 6]>' in text
    assert len(Store(path)) == len(lines(path)) == 60
    complete(Store(path), keys, labeler, batch=20, most_unscorable=0.5)
    assert sum(labeler.asked, []) == list(range(100))


def test_as_many_as_may_be_unscorable_go_through(path):
    complete(Store(path), keys_of(100), Labeler(bad=range(29)), batch=100, most_unscorable=0.29)
    with pytest.raises(Mistake, match='(?s)30 of 100 .*"status": "unscorable"'):
        complete(Store(path.with_name('more')), keys_of(100), Labeler(bad=range(30)), batch=100, most_unscorable=0.29)


def test_few_are_judged_at_the_end_and_a_resumed_run_as_an_uninterrupted_one(path):
    with pytest.raises(Mistake, match='4 of 10 '):
        complete(Store(path), keys_of(10), Labeler(bad=range(4)), batch=2)
    assert len(Store(path)) == 10

    resumed, labeler = path.with_name('resumed'), Labeler(bad=[9])
    complete(Store(resumed), keys_of(9), labeler, batch=9)
    assert complete(Store(resumed), keys_of(10), labeler, batch=9)[9]['status'] == 'unscorable'  # 1 of 10, not of 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_behind_a_batch_and_the_same_call_goes_on(path, number, capsys):
    labeler = Labeler()

    def make(indices):
        if len(labeler.asked) == 2:
            os.kill(os.getpid(), number)
        return labeler(indices)

    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        complete(Store(path), keys_of(50), make, batch=8)
    assert left.value.code == 130 and len(lines(path)) == 24 and signal.getsignal(number) == handler
    said = capsys.readouterr().out
    assert re.search('label: stopped .*24 of 50 ', said)
    complete(Store(path), keys_of(50), labeler, batch=8)
    assert sum(labeler.asked, []) == list(range(50))


def test_an_error_of_the_labeler_loses_only_its_batch(path):
    def make(indices):
        if 20 in indices:
            raise Mistake('the labeler fell over')
        return [record(i) for i in indices]

    with pytest.raises(Mistake, match='fell over'):
        complete(Store(path), keys_of(50), make, batch=8)
    assert [line['key'] for line in lines(path)] == keys_of(16)


def test_it_works_in_a_thread_of_its_own(path):
    thread = threading.Thread(target=lambda: complete(Store(path), keys_of(9), Labeler(), batch=4))
    thread.start()
    thread.join()
    assert len(Store(path)) == 9


@pytest.mark.parametrize(
    'made, told',
    [
        ([], 'shorter'),
        ([record(0)] * 3, 'longer'),
        ([{'status': 'maybe'}] * 2, "'ok' or 'unscorable', .*'maybe'"),
        ([{}, {}], "'ok' or 'unscorable', .*None"),
    ],
)
def test_what_is_not_a_label_for_each_index_is_refused(path, made, told):
    with pytest.raises(ValueError, match=told):
        complete(Store(path), keys_of(2), lambda _: made, batch=2)
    assert len(Store(path)) == 0
    with pytest.raises(ValueError, match='batch .*positive.* 0'):
        complete(Store(path), keys_of(2), Labeler(), batch=0)
