"""Laws of rlaif_jax.log: every step is in the file once, every line is JSON, and a sample's text is only text."""

import functools
import importlib
import io
import json
import math
import re
import sys
import time
import types

import numpy as np
import pytest
from rich.console import Console

from rlaif_jax import log
from rlaif_jax.config import Mistake


def lines(path):
    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding='utf-8').splitlines()]


def run(folder, steps, **options):
    with log.Metrics(folder, start_step=steps[0], **options) as metrics:
        for step in steps:
            metrics.write(step, {'objective/kl': step / 2})
            metrics.samples(step + 1, [{'prompt': 'a'}, {'prompt': 'b'}])


def test_a_resumed_run_has_every_step_once(tmp_path):
    run(tmp_path, range(8))
    run(tmp_path, range(5, 10))
    assert [line['step'] for line in lines(tmp_path / 'metrics.jsonl')] == list(range(10))
    assert [line['step'] for line in lines(tmp_path / 'samples.jsonl')] == [
        step + 1 for step in range(10) for _ in 'ab'
    ]
    run(tmp_path, range(2))
    assert [line['step'] for line in lines(tmp_path / 'metrics.jsonl')] == [0, 1]


@pytest.mark.parametrize('cut', range(1, 40, 3))
def test_a_line_cut_short_is_repaired(tmp_path, cut):
    run(tmp_path, range(3))
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(path.read_bytes()[:-cut])
    run(tmp_path, [2])
    assert [line['step'] for line in lines(path)] == [0, 1, 2]
    run(tmp_path, [3])
    assert [line['objective/kl'] for line in lines(path)] == [0, 0.5, 1, 1.5]


def test_a_crash_while_a_file_is_rewritten_leaves_the_old_one(tmp_path, monkeypatch):
    run(tmp_path, range(3))
    before = (tmp_path / 'metrics.jsonl').read_text(encoding='utf-8')

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(log.os, 'replace', crash)
    with pytest.raises(KeyboardInterrupt):
        log.Metrics(tmp_path, start_step=1)
    assert (tmp_path / 'metrics.jsonl').read_text(encoding='utf-8') == before


def test_each_line_is_on_disk_when_write_returns(tmp_path):
    with log.Metrics(tmp_path) as metrics:
        metrics.write(0, {'x': 1})
        assert len(lines(tmp_path / 'metrics.jsonl')) == 1


def test_what_is_not_finite_is_null_and_every_kind_of_scalar_is_a_number(tmp_path):
    with log.Metrics(tmp_path) as metrics:
        metrics.write(np.int64(0), {'a': float('nan'), 'b': -np.inf, 'c': np.float32(0.5), 'd': np.array(2), 'e': True})
        metrics.samples(0, [{'score': np.float32('nan'), 'text': 'å\u2028\ud800\n[b]', 'scores': np.arange(2)}])
    (line,) = lines(tmp_path / 'metrics.jsonl')
    assert line.pop('time') > 1e9
    assert line == {'step': 0, 'a': None, 'b': None, 'c': 0.5, 'd': 2, 'e': 1}
    (sample,) = map(json.loads, (tmp_path / 'samples.jsonl').read_text(encoding='utf-8').split('\n')[:-1])
    assert sample == {'step': 0, 'score': None, 'text': 'å\u2028\ud800\n[b]', 'scores': [0, 1]}


def test_a_metric_cannot_take_the_name_of_the_step(tmp_path):
    with log.Metrics(tmp_path) as metrics, pytest.raises(ValueError, match="'step'"):
        metrics.write(0, {'step': 3})


def test_tensorboard_reads_the_same_numbers(tmp_path):
    run(tmp_path, range(3))
    proto = importlib.import_module('tensorboardX.proto.event_pb2')
    (file,) = (tmp_path / 'tensorboard').iterdir()
    data, events = file.read_bytes(), []
    while data:  # a record: its length in 8 bytes, a checksum in 4, itself, a checksum in 4
        size = int.from_bytes(data[:8], 'little')
        events.append(proto.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    scalars = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert scalars == [(step, 'objective/kl', step / 2) for step in range(3)]


def test_without_tensorboardx_or_wandb_the_lines_are_written_and_it_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    monkeypatch.setitem(sys.modules, 'wandb', None)
    log.say_once.cache_clear()
    run(tmp_path, range(2), wandb=True)
    run(tmp_path, range(2, 4), wandb=True)
    log.say_once.cache_clear()
    assert len(lines(tmp_path / 'metrics.jsonl')) == 4 and not (tmp_path / 'tensorboard').exists()
    said = capsys.readouterr().out
    assert said.count('pip install tensorboardX') == said.count('pip install wandb') == 1


def test_wandb_gets_the_same_numbers_and_a_folder_is_one_run(tmp_path, monkeypatch):
    logged, ids = [], []
    one = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **options: ids.append(options['id']) or one)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    log.say_once.cache_clear()
    run(tmp_path, [0], wandb=True)
    run(tmp_path, [1], wandb=True)
    log.say_once.cache_clear()
    assert logged == [(0, {'objective/kl': 0}), (1, {'objective/kl': 0.5})] and ids[0] == ids[1]


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 2))  # seconds; read once a step, once more for a line, and once behind the first step
    monkeypatch.setattr(log.time, 'monotonic', lambda: next(clock))
    with log.progress('sft', 40, start=10) as bar:
        for step in range(30):
            bar.advance(f'loss {step} [b]')
    begins, *printed = capsys.readouterr().out.splitlines()
    assert begins.startswith('sft 10/40') and log.FIRST in begins
    assert 5 <= len(printed) <= 7
    assert printed[0].startswith('sft 14/40  3.3 s/it  87 s left  loss 3 [b]')
    assert printed[-1].startswith('sft 40/40') and '  0 s left  loss 29 [b]' in printed[-1]


def test_without_a_terminal_a_unit_that_takes_long_is_told_of(monkeypatch, capsys):
    monkeypatch.setattr(log, 'PLAIN_SECONDS', 0.05)
    with log.progress('label', 2) as bar:
        time.sleep(0.3)
        bar.advance()
    told = [line for line in capsys.readouterr().out.splitlines() if line.endswith('s so far')]
    assert len(told) >= 2 and all(line.startswith('label 0/2') for line in told)


def test_in_a_notebook_progress_is_lines_too(monkeypatch, capsys):
    """What its `!` runs sees a terminal, and FORCE_COLOR."""
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('FORCE_COLOR', '1')
    for pid, live in ((None, True), ('1', False)):
        monkeypatch.setenv('JPY_PARENT_PID', pid) if pid else monkeypatch.delenv('JPY_PARENT_PID', raising=False)
        monkeypatch.setattr(log, 'console', functools.cache(log.console.__wrapped__))
        with log.progress('sft', 1) as bar:
            bar.advance('loss 1')
        assert ('\x1b' in capsys.readouterr().out) == live


def test_on_a_terminal_progress_counts_from_the_start_and_shows_the_latest_numbers(monkeypatch, tmp_path):
    with open(tmp_path / 'screen', 'w+', encoding='utf-8') as screen:
        terminal = Console(file=screen, force_terminal=True, width=120, _environ={'TERM': 'xterm'})
        monkeypatch.setattr(log, 'console', lambda: terminal)
        with log.progress('sft [1]', 12, start=10) as bar:
            bar.advance('loss 1')
            log.say('a line between')
            bar.advance('loss [b] 2')
        screen.seek(0)
        shown = screen.read()
    assert log.FIRST in shown.partition('loss 1')[0] and log.FIRST not in shown.partition('loss 1')[2]
    assert '12/12' in shown and 'sft [1]' in shown and 'loss [b] 2' in shown and 'a line between' in shown


def test_a_bar_is_one_line_of_which_the_latest_numbers_give_way(monkeypatch):
    screen = io.StringIO()
    narrow = Console(file=screen, force_terminal=True, width=80, _environ={'TERM': 'xterm'}, no_color=True)
    monkeypatch.setattr(log, 'console', lambda: narrow)
    with log.progress('reinforce [simulated]', 6) as bar:
        for _ in range(6):
            bar.advance('score -0.565  KL 4.07  35 tokens, and more than there is room for')
    *_, last = re.sub(r'\x1b\[[^A-Za-z]*[A-Za-z]', '', screen.getvalue().rstrip()).replace('\r', '\n').splitlines()
    assert 'reinforce [simulated]' in last and '6/6' in last and '0:00:00' in last and last.rstrip().endswith('…')
    assert len(last.rstrip()) <= 80


def test_text_is_shown_as_it_stands_and_control_characters_are_not(capsys):
    log.say('[red]x[/red] \x1b[31m ' + 'z' * 300)
    assert capsys.readouterr().out == '[red]x[/red] \\x1b[31m ' + 'z' * 300 + '\n'


def test_a_long_cell_is_folded_and_nothing_of_it_is_lost(capsys):
    log.sample_table('samples [b]', [{'prompt': 'w' * 500, 'score': 0.123456}, {'prompt': '[/b]'}], ['prompt', 'score'])
    out = capsys.readouterr().out
    assert out.count('w') == 500 and '0.123' in out and '[/b]' in out and 'samples [b]' in out
    assert max(map(len, out.splitlines())) <= log.console().width


@pytest.fixture
def terminal(monkeypatch):
    """A terminal 40 columns wide; a function that returns what was written to it."""
    screen = io.StringIO()
    monkeypatch.setattr(
        log, 'console', lambda: Console(file=screen, force_terminal=True, width=40, no_color=True, highlight=False)
    )
    return lambda: screen.getvalue()


def test_a_terminal_gets_lines_between_words_and_long_words_whole(terminal, tmp_path):
    path, command = '/runs/' + 'x' * 50, 'python launch/run.py --experiment=tldr_direct --dry_run'
    text = f'all figures of a world that is simulated are about it alone\n  {path} holds them [b]'
    with log.ending(tmp_path / 'report.txt'):
        log.say(text)
        log.say(command, whole=True)
    lines = terminal().splitlines()
    assert (
        path in terminal()
        and command in lines
        and ' '.join(terminal().split()) == ' '.join(f'{text} {command}'.split())
    )
    assert all(len(line) <= 40 or path in line or line == command for line in lines)
    assert all(word in terminal().split() for word in text.split())
    assert (tmp_path / 'report.txt').read_text(encoding='utf-8') == f'{text}\n{command}\n'  # a file has no edge


def test_a_row_of_a_wide_table_is_wrapped_beside_its_columns(terminal):
    log.figures_table('a plan for a small screen', ['stage', 'models'], [['reward model\nof labels', 'word ' * 20]])
    title, first, *rest = terminal().rstrip().splitlines()
    assert first == 'stage: reward model, of labels'
    assert rest[0].startswith('  models  word') and all(line.startswith('          word') for line in rest[1:])
    assert max(map(len, rest)) <= 40 and ' '.join(rest).split() == ['models', *['word'] * 20]


def test_of_a_column_with_few_lines_the_rest_is_left_out(terminal):
    prompt = 'a post of many words\n\nand more ' * 30
    for most in (1, 3):
        log.sample_table(
            'samples', [{'prompt': prompt, 'policy': 'short\ntwo'}], ['prompt', 'policy'], {'prompt': most}
        )
    shown = terminal().splitlines()
    assert len(shown) == 2 * (1 + 2 + 1) + 1 + 3 and sum(line.endswith(' …') for line in shown) == 2
    assert max(map(len, shown)) <= 40 and shown[2:4] == ['policy  short', '        two']


def test_figures(capsys):
    log.figures_table('result', ['name', 'x', 'n'], [['a', 1.23456789, np.int64(12345)], ['b', None, float('nan')]])
    out = capsys.readouterr().out
    assert '1.235' in out and '12345' in out and ' - ' in out and 'nan' in out


def test_a_table_wider_than_the_screen_is_a_block_for_each_row(capsys, monkeypatch):
    columns, rows = (
        ['stage', 'models', 'about [b]'],
        [['sft', 'policy: x\nvalue: y', 'z' * 30], ['end', None, 0.123456]],
    )
    shown = {}
    for width in (80, 40):
        monkeypatch.setattr(log, 'console', lambda width=width: Console(width=width))
        log.figures_table('plan', columns, rows)
        shown[width] = capsys.readouterr().out
    assert max(map(len, shown[80].splitlines())) <= 80 and 'stage  models' in shown[80]
    assert max(map(len, shown[40].splitlines())) <= 45
    said = [line.rstrip() for line in shown[40].splitlines()]
    assert said[:5] == [
        'plan',
        'stage: sft',
        '  models     policy: x',
        '             value: y',
        '  about [b]  ' + 'z' * 30,
    ]
    assert said[5:8] == ['stage: end', '  models     -', '  about [b]  0.1235']


def test_the_ending_of_a_run_is_what_it_printed_behind_its_last_bar(tmp_path, capsys):
    log.say('before')
    with log.ending(tmp_path / 'report.txt'):
        with log.progress('sft', 1) as bar:
            log.say('a step')
            bar.advance()
        log.say('result [b]')
        log.figures_table('figures', ['name', 'x'], [['a', 0.5]])
    log.say('behind')
    printed, kept = capsys.readouterr().out, (tmp_path / 'report.txt').read_text(encoding='utf-8')
    assert (
        kept.startswith('result [b]\nfigures') and kept in printed and not {'a step', 'behind'} & {*kept.splitlines()}
    )
    with pytest.raises(ZeroDivisionError), log.ending(tmp_path / 'none.txt'):
        log.say(f'{1 / 0}')
    assert not (tmp_path / 'none.txt').exists()


def test_metrics_are_read_as_the_log_writes_them(tmp_path):
    lines = [{'step': 0, 'objective/kl': 0.5}, {'step': 1, 'objective/kl': math.nan, 'eval/kl': 2}]
    crash = '{"step": 2, "objec'
    (tmp_path / 'metrics.jsonl').write_text('\n'.join([*map(log.to_json, lines), crash]), encoding='utf-8')
    rows = log.read_metrics(tmp_path)
    assert rows == log.read_metrics(tmp_path / 'metrics.jsonl') and [row['step'] for row in rows] == [0, 1]
    assert (rows[0]['objective/kl'], rows[1]['objective/kl'], rows[1]['eval/kl']) == (0.5, None, 2)
    with pytest.raises(Mistake, match=r'/elsewhere: .* metrics\.jsonl '):
        log.read_metrics(tmp_path / 'elsewhere')
