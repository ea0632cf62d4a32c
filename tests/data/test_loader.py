"""Laws of rlaif_jax.data.loader: the step is the position, an epoch shows every prompt once; a
path serves as a data set, its splits disjoint by prompt.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rlaif_jax.config import FILE, Mistake, dump, parse
from rlaif_jax.data import files, loader
from rlaif_jax.data.records import Prompt
from rlaif_jax.folder import open_folder, stage_folder

PROMPTS = [Prompt(f'p{i}', str(i)) for i in range(24)]
ROWS = [{'prompt': f'prompt {i // 2}', 'chosen': f'a {i}', 'rejected': f'b {i}'} for i in range(200)]


def mistake(call, *args):
    with pytest.raises(Mistake) as caught:
        call(*args)
    return str(caught.value)


# The stream


def test_the_step_is_the_position():
    at = loader.batches(PROMPTS, 5, seed=3)
    straight = [at(step) for step in range(12)]
    again = loader.batches(PROMPTS, 5, seed=3)  # of a run that was stopped
    assert [again(step) for step in (11, 7, 0, 7)] == [straight[step] for step in (11, 7, 0, 7)]


def test_an_epoch_shows_every_prompt_once_in_its_own_order():
    at = loader.batches(PROMPTS, 6, seed=0)
    epochs = [[prompt for step in range(4 * epoch, 4 * epoch + 4) for prompt in at(step)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch, key=lambda prompt: int(prompt.id)) == PROMPTS
    orders = [*epochs, [prompt for step in range(4) for prompt in loader.batches(PROMPTS, 6, seed=1)(step)], PROMPTS]
    assert len({tuple(order) for order in orders}) == 5


@pytest.mark.parametrize('epoch', [24, 20])  # windows of 12 that do, and do not, fill an epoch
def test_batches_of_a_window_share_out_its_rows_by_length(epoch):
    prompts = [Prompt('x' * (7 * i % 24), str(i)) for i in range(epoch)]
    lengths = lambda prompts: [len(prompt.text) for prompt in prompts]  # noqa: E731
    make = lambda **more: loader.batches(prompts, 4, 5, window=3, lengths=lengths, **more)  # noqa: E731
    at, plain = make(), loader.batches(prompts, 4, 5)
    straight = [at(step) for step in range(30)]
    spans = []
    for start in range(0, 30, 3):
        window = straight[start : start + 3]
        ids = lambda batches: sorted(prompt.id for batch in batches for prompt in batch)  # noqa: E731
        assert ids(window) == ids(map(plain, range(start, start + 3)))  # so each row is there once an epoch
        by_length = sorted(window, key=lambda batch: max(lengths(batch)))
        assert all(max(lengths(a)) <= min(lengths(b)) for a, b in zip(by_length, by_length[1:]))
        spans.append([window.index(batch) for batch in by_length])
    assert len({tuple(order) for order in spans}) > 2  # short and long ones take turns at random

    again = make()  # of a run that was stopped, wherever in a window
    assert [again(step) for step in (13, 14, 15, 2, 29)] == [straight[step] for step in (13, 14, 15, 2, 29)]


def test_batches_that_cannot_be():
    assert re.search('batch = 25.* 24 .*batch=24', mistake(loader.batches, PROMPTS, 25, 0))


# Names


def test_names():
    assert len(loader.source('micro_tldr', 'train', 10)) == 10
    assert re.search("'hh_harmles'.* hh_harmless", mistake(loader.source, 'hh_harmles', 'train', 1))
    assert re.search("'micro_tdlr'.* micro_tldr", mistake(loader.check, 'micro_tdlr'))
    assert 'nowhere/pairs.jsonl: ' in mistake(loader.check, 'nowhere/pairs.jsonl')


def test_to_check_prepares_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('RLAIF_DATA_DIR', str(tmp_path / 'prepared'))
    monkeypatch.delenv('RLAIF_MANUAL_DIR', raising=False)
    for name in loader.known():
        loader.check(name)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv('RLAIF_MANUAL_DIR', str(tmp_path / 'nowhere'))
    assert f'manual_dir: {tmp_path}/nowhere ' in mistake(loader.check, 'tldr')


# Paths


@pytest.mark.parametrize('suffix', ['.jsonl', '.parquet', '.json.gz'])
def test_a_file_is_split_by_its_prompts(tmp_path, suffix):
    path = str(tmp_path / f'pairs{suffix}')
    files.write_rows(path, ROWS)
    loader.check(path)
    pairs = {split: loader.pairs(path, 'summarization', split, 1000) for split in loader.SPLITS}
    assert sorted(pair.first for split in pairs.values() for pair in split) == sorted(row['chosen'] for row in ROWS)
    prompts = {split: {pair.prompt.text for pair in pairs[split]} for split in pairs}
    assert not prompts['train'] & prompts['validation'] and not prompts['test'] & (
        prompts['train'] | prompts['validation']
    )
    assert 65 <= len(prompts['train']) <= 95
    for split in pairs:
        assert {prompt.text for prompt in loader.source(path, split, 1000)} == prompts[split]
        assert loader.pairs(path, 'summarization', split, 3) == pairs[split][:3]


@pytest.mark.parametrize('names', [('train.jsonl', 'valid.jsonl', 'test.json'), ('data/train-0-of-1.parquet',) * 1])
def test_a_folder_has_a_file_a_split(tmp_path, names):
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        files.write_rows(tmp_path / name, ROWS[number : number + 2])
    for number, (_, split) in enumerate(zip(names, loader.SPLITS)):
        assert [pair.first for pair in loader.pairs(str(tmp_path), 'helpful', split, 9)] == [
            f'a {number}',
            f'a {number + 1}',
        ]
    if len(names) == 1:
        assert re.match(rf'{tmp_path}: .* test, .*test\.jsonl', mistake(loader.source, str(tmp_path), 'test', 1))


@dataclass(frozen=True)
class OfData:
    source: str = field(metadata=FILE)
    steps: int = 100


@pytest.mark.parametrize('name', ['mine.jsonl', 'mine/train.jsonl'])
def test_other_data_of_the_same_name_is_other_data(name, tmp_path):
    path, run = tmp_path / name, tmp_path / 'run'
    config = OfData(str(tmp_path / 'mine' if '/' in name else path))
    (tmp_path / 'mine').mkdir(exist_ok=True)
    folders, open_run = [], lambda: open_folder(run, dump(config) + loader.contents(config))
    for i, text in enumerate(('a\n', 'b\n', 'a\n')):
        path.write_text(text, encoding='utf-8')
        os.utime(path, (i, i))  # nobody types as quickly as a test
        (tmp_path / 'mine' / 'notes.txt').write_text(f'{i}', encoding='utf-8')  # is no data
        folders.append(stage_folder(tmp_path, 'sft', config, loader.contents(config)))
        if text == 'a\n':
            open_run()
            continue
        with pytest.raises(Mistake, match=f'{tmp_path}/run .*: source .*--workdir'):
            open_run()
    Path(config.source).rename(tmp_path / 'away')  # whoever cleaned up still sees what was found
    open_run()
    assert folders[0] == folders[2] != folders[1]
    assert loader.contents(OfData('tldr')) == '' and parse((run / 'config.gin').read_text(encoding='utf-8'))


def test_rows_that_are_no_pairs_are_counted(tmp_path, capsys):
    path = str(tmp_path / 'pairs.jsonl')
    files.write_rows(path, [*ROWS, {'prompt': 'p', 'chosen': None, 'rejected': 'x'}])
    loader.pairs(path, 'helpful', 'train', 9)
    assert re.search(rf"{path}: 1 of 201 .*{path}:201: .*'chosen'", capsys.readouterr().out)
    files.write_rows(path, ROWS[:1])
    empty = [split for split in loader.SPLITS if not _has(path, split)]
    assert len(empty) == 2
    assert re.search(rf'{path}: .* {empty[0]}; .*folder', mistake(loader.source, path, empty[0], 1))
    assert re.search(f"{path} .*'alignment'.* train, validation, test", mistake(loader.source, path, 'alignment', 1))


def _has(path, split):
    try:
        return bool(loader.source(path, split, 1))
    except Mistake:
        return False


def test_fitted():
    post = 'SUBREDDIT: r/a\n\nTITLE: t\n\nPOST: one\n\ntwo\n\nTL;DR:'
    dialogue = '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:'
    prompts = [Prompt(post, '1', 'ref'), Prompt(dialogue, '2'), Prompt('short', '3'), Prompt('another text ' * 9, '4')]
    found = loader.fitted(prompts, lambda text: len(text) < 45)
    assert found[0] == Prompt(post.replace('\n\ntwo', '\n'), '1', 'ref')
    assert found[1] == Prompt('\n\nHuman: c\n\nAssistant:', '2') and found[2] == prompts[2] and len(found) == 4
    assert found[3].text == ('another text ' * 9)[-44:]
    with pytest.raises(Mistake, match='prompt 2: .*max_prompt'):
        loader.fitted(prompts, lambda text: len(text) < 20)  # before one is read
