"""Laws of rlaif_jax.data.tldr and published: every copy of the published files becomes the same rows, with their text as it
was; what is wrong with a file is said in one sentence, and leaves nothing behind.
"""

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import published_files
import pytest

from rlaif_jax.config import Mistake
from rlaif_jax.data import files, loader, published, tldr
from rlaif_jax.data.records import share

POSTS = {
    'train': [
        {
            'id': 't3_a',
            'subreddit': 'AskReddit',
            'title': ' led by a space',
            'post': 'One.\n\nTwo.',
            'summary': 'It was.',
        },
        {
            'id': 't3_b',
            'subreddit': 'tifu',
            'title': '“Ünïcode” 😀',
            'post': '\u2028 naïve\r\n\n',
            'summary': 'naïve 😀',
        },
        {
            'id': 't3_a',
            'subreddit': 'AskReddit',
            'title': ' led by a space',
            'post': 'One.\n\nTwo.',
            'summary': ' Again. ',
        },
        {'id': 't3_c', 'subreddit': 'cats', 'title': '', 'post': '', 'summary': ''},
        {'id': 't3_d', 'subreddit': 'pets', 'title': 'cut \ud83d', 'post': 'POST: TITLE: TL;DR:', 'summary': 'x\ud83d'},
    ],
    'validation': [{'id': 't3_e', 'subreddit': 'dogs', 'title': 'v', 'post': 'v', 'summary': 'v'}],
    'test': [{'id': 't3_f', 'subreddit': 'dogs', 'title': 't', 'post': 't', 'summary': 't'}],
}
PREPARED = ('train', 'validation', 'test', 'alignment')


def comparison(number, split='train', confidence=None, **more):
    """A published comparison; without a confidence its `extra` is empty, or absent."""
    extra = {'confidence': confidence} if confidence else {}
    return {
        'info': {'id': f't3_{number % 5}', 'post': f'post {number % 5} é', 'title': 'title', 'subreddit': 'tifu'},
        'summaries': [
            {'text': f' first {number}', 'policy': 'ref', 'note': None},
            {'text': '' if number % 3 == 0 else f' second {number}', 'policy': 'sup4', 'note': 'a note'},
        ],
        'choice': number % 2,
        'worker': f'w{number % 7}',
        'batch': 'batch3',
        'split': split,
        **({'extra': extra} if extra or number % 2 else {}),
        **more,
    }


COMPARISONS = [comparison(n, 'train', n % 10) for n in range(100)]
VALID = [comparison(n, f'valid{n % 2 + 1}', n % 10) for n in range(10)]
NEWS = [comparison(n, 'valid2', batch='cnndm0', info={'article': 'a', 'site': 'cnn', 'title': 't'}) for n in range(3)]


@pytest.fixture
def manual(tmp_path, monkeypatch):
    monkeypatch.setattr(tldr.Posts, 'COUNTS', {split: len(rows) for split, rows in POSTS.items()})
    monkeypatch.setattr(tldr.Comparisons, 'COUNTS', {'train': len(COMPARISONS), 'validation': len(VALID)})
    return published_files.alone(tmp_path, monkeypatch)


def posts(folder, posts=POSTS, suffix='.jsonl', validation='valid'):
    for split, rows in posts.items():
        published_files.write(folder / f'{validation if split == "validation" else split}{suffix}', rows)


def comparisons(folder, rows=(*COMPARISONS, *VALID)):
    """All rows in the last of the files; those of another split are in every file."""
    names = tldr.Comparisons.COPIES[0].files
    for name in names:
        published_files.write(folder / name, [] if name != names[-1] else rows)
    for name in names[:-1]:  # a file of rows has one at least
        published_files.write(folder / name, NEWS)


def texts(kind, splits):
    """Every row of the prepared splits by its id, text as text."""
    builder = published.prepare(kind)
    plain = lambda value: value.decode() if isinstance(value, bytes) else value  # noqa: E731
    rows = [{k: plain(v) for k, v in row.items()} for split in splits for row in builder.as_data_source(split)]
    return {row['id']: row for row in rows}


def mistake(call, *args):
    with pytest.raises(Mistake) as caught:
        call(*args)
    return str(caught.value)


# The posts


def test_text_is_as_published(manual):
    posts(manual / 'tldr')
    rows = texts(tldr.Posts, POSTS)
    assert len(rows) == 7  # also the post that comes twice, each with an id
    for split, published_rows in POSTS.items():
        for number, row in enumerate(published_rows):
            made = rows[f'tldr/{split}/{number}']
            for name in ('subreddit', 'title', 'post', 'summary'):
                assert made[name] == row[name].replace('\ud83d', '\ufffd')
    assert rows['tldr/train/2']['post_id'] == rows['tldr/train/0']['post_id'] == 't3_a'
    assert 'tensorflow' not in sys.modules


def test_prepared_once_and_in_the_same_order(manual, tmp_path, monkeypatch):
    posts(manual / 'tldr')
    first = list(loader.source('tldr', 'train', 9))
    shutil.rmtree(manual / 'tldr')
    assert list(loader.source('tldr', 'train', 3)) == first[:3]
    monkeypatch.setenv('RLAIF_DATA_DIR', str(tmp_path / 'other'))
    posts(manual / 'tldr')
    assert list(loader.source('tldr', 'train', 9)) == first
    with pytest.raises(IndexError):
        loader.source('tldr', 'train', 9)[5]


def trl(rows):
    whole = [row for row in rows if '\ud83d' not in row['title']]
    return [
        {
            'prompt': tldr.prompt_text(row['subreddit'], row['title'], row['post']),
            'completion': ' ' + row['summary'],
        }
        for row in whole
    ]


@pytest.mark.parametrize('place', ['publisher', 'parquet', 'shards', 'hub', 'datasets', 'saved'])
def test_every_copy_is_the_same_rows(manual, tmp_path, monkeypatch, place):
    whole = {split: [row for row in rows if '\ud83d' not in row['title']] for split, rows in POSTS.items()}
    monkeypatch.setattr(tldr.Posts, 'COUNTS', {split: len(rows) for split, rows in whole.items()})
    of_trl = {split: trl(rows) for split, rows in whole.items()}
    here, hf = manual / 'tldr', tmp_path / 'hf'
    if place == 'publisher':
        posts(manual / 'tldr_3_filtered', whole)
    elif place == 'parquet':
        posts(here, of_trl, '.parquet', 'validation')
    elif place == 'shards':
        posts(here, of_trl, '-00000-of-00001.parquet', 'validation')
    elif place == 'hub':
        posts(hf / 'hub/datasets--trl-lib--tldr/snapshots/1a2b/data', of_trl, '-00000-of-00001.parquet', 'validation')
    elif place == 'datasets':
        published_files.cache(hf / 'datasets/trl-lib___tldr/default/0.0.0/1a2b', 'tldr', of_trl)
    else:
        for split, rows in of_trl.items():
            published_files.write(here / split / 'data-00000-of-00001.arrow', rows)
            (here / split / 'state.json').write_text('{}', encoding='utf-8')
    found = texts(tldr.Posts, POSTS)
    monkeypatch.setenv('RLAIF_DATA_DIR', str(tmp_path / 'other'))
    monkeypatch.setenv('RLAIF_MANUAL_DIR', str(tmp_path))
    posts(tmp_path / 'tldr', whole)
    assert {id: row | {'post_id': ''} for id, row in texts(tldr.Posts, POSTS).items()} == {
        id: row | {'post_id': ''} for id, row in found.items()
    }


def test_prompts(manual):
    posts(manual / 'tldr')
    found = {prompt.id: prompt for prompt in loader.source('tldr', 'train', 100)}
    assert len(found) == 5
    assert (
        found['tldr/train/0'].text == 'SUBREDDIT: r/AskReddit\n\nTITLE:  led by a space\n\nPOST: One.\n\nTwo.\n\nTL;DR:'
    )
    assert found['tldr/train/1'].reference == 'naïve 😀'
    for prompt in found.values():
        assert tldr.prompt_text(**tldr.parts(prompt.text)) == prompt.text


# The prompt


def test_what_is_no_post_has_no_parts():
    assert re.match('here: .*SUBREDDIT: .*TL;DR:', mistake(tldr.parts, 'hello', 'here'))


# The comparisons


def test_splits_of_the_comparisons(manual):
    comparisons(manual / 'tldr_comparisons')
    rows = {split: texts(tldr.Comparisons, [split]) for split in PREPARED}
    assert [len(rows[split]) for split in PREPARED[:3]] == [100, 5, 5]
    assert {row['split'] for row in rows['validation'].values()} == {'valid1'}
    assert {row['split'] for row in rows['test'].values()} == {'valid2'}  # and no news
    assert rows['alignment'].items() <= rows['train'].items()
    assert {row['confidence'] for row in rows['alignment'].values()} <= set(tldr.CONFIDENT)
    sure = sum(row['confidence'] in tldr.CONFIDENT for row in rows['train'].values())
    assert sure == 40 and 1 <= len(rows['alignment']) <= 14  # 6 are expected
    for split in PREPARED:
        for id, row in rows[split].items():
            source = (COMPARISONS if split in ('train', 'alignment') else VALID)[int(id.rsplit('/')[-1])]
            assert (row['first'], row['second']) == tuple(summary['text'] for summary in source['summaries'])
            assert (row['first_policy'], row['second_policy']) == ('ref', 'sup4')
            assert row['confidence'] == source.get('extra', {}).get('confidence', 0)
            assert [row[name] for name in ('choice', 'worker', 'batch')] == [
                source[name] for name in ('choice', 'worker', 'batch')
            ]


def test_the_hub_has_the_same_comparisons(manual, tmp_path, monkeypatch):
    comparisons(manual / 'comparisons')
    here = texts(tldr.Comparisons, PREPARED)
    monkeypatch.setenv('RLAIF_DATA_DIR', str(tmp_path / 'other'))
    shutil.rmtree(manual / 'comparisons')
    fill = {'id': None, 'post': None, 'subreddit': None, 'article': None, 'site': None}

    def filled(row):
        extra = {'confidence': row.get('extra', {}).get('confidence')}
        return row | {'info': fill | row['info'], 'extra': extra}

    splits = {'train': list(map(filled, COMPARISONS)), 'validation': list(map(filled, [*VALID, *NEWS]))}
    folder = tmp_path / 'hf/datasets/openai___summarize_from_feedback'
    published_files.cache(folder / 'axis/0.0.0/1a2b', 'summarize_from_feedback', {'train': [{'a': 1}]})
    published_files.cache(folder / 'comparisons/0.0.0/1a2b', 'summarize_from_feedback', splits)
    assert texts(tldr.Comparisons, PREPARED) == here


def test_pairs(manual):
    comparisons(manual / 'tldr_comparisons')
    found = loader.pairs('tldr', 'summarization', 'train', 1000)
    assert len(found) == 100 and len({pair.prompt.id for pair in found}) == 100
    for pair in found:
        number = int(pair.prompt.id.rsplit('/')[-1])
        assert pair.first == f' first {number}' and pair.preference == 1 - number % 2
        assert pair.prompt.text.endswith('\n\nTL;DR:') and f'POST: post {number % 5} é' in pair.prompt.text
    sure = loader.pairs('tldr', 'summarization', 'train', 1000, confident=True)
    assert sure == [pair for pair in found if int(pair.prompt.id.rsplit('/')[-1]) % 10 in tldr.CONFIDENT]
    assert loader.pairs('tldr', 'summarization', 'train', 7, confident=True) == sure[:7]
    both = loader.pairs('tldr', 'summarization', 'validation+test', 1000)
    assert len(both) == len(VALID)
    aligned = loader.pairs('tldr', 'summarization', 'alignment', 1000)
    assert aligned and {pair.prompt.id for pair in aligned} <= {pair.prompt.id for pair in sure}


# What is wrong


@pytest.mark.parametrize('split', POSTS)
def test_other_counts_are_refused(manual, tmp_path, split):
    posts(manual / 'tldr', POSTS | {split: POSTS[split][1:] or POSTS[split] * 2})
    said = mistake(loader.source, 'tldr', 'train', 1)
    assert f'rows of {split}' in said and str(manual) in said and 'openaipublic' in said
    assert not list((tmp_path / 'prepared').rglob('*.array_record*'))
    posts(manual / 'tldr')
    assert len(loader.source('tldr', 'train', 9)) == 5


def test_missing_columns(manual):
    rows = [{'id': row['id'], 'title': row['title'], 'text': row['post']} for row in POSTS['train']]
    posts(manual / 'tldr', POSTS | {'train': rows})
    said = mistake(loader.source, 'tldr', 'train', 1)
    assert re.search(r'/train\.jsonl:1: no subreddit, post, summary .* id, title, text', said)
    comparisons(manual / 'tldr_comparisons', [{**COMPARISONS[0], 'info': {'title': 'a'}}])
    said = mistake(loader.pairs, 'tldr', 'summarization', 'train', 1)
    assert re.search(r'/edit_b2_eval_test\.json:1: info: no subreddit, post .* title$', said)


@pytest.mark.parametrize('wrong', [{'choice': 2}, {'summaries': []}, {'split': 'dev'}, {'choice': None}])
def test_a_comparison_of_another_kind(manual, wrong):
    comparisons(manual / 'tldr_comparisons', [comparison(0), comparison(1, **wrong)])
    said = mistake(loader.pairs, 'tldr', 'summarization', 'train', 1)
    assert re.search(r'/edit_b2_eval_test\.json:2: .* valid1 or valid2.*got ', said)


def test_a_damaged_file(manual):
    posts(manual / 'tldr')
    whole = (manual / 'tldr/train.jsonl').read_bytes()
    (manual / 'tldr/train.jsonl').write_bytes(whole[:-20])
    assert 'train.jsonl:5: not JSON' in mistake(loader.source, 'tldr', 'train', 1)


def test_nothing_here_and_no_network(manual, tmp_path, monkeypatch):
    said = mistake(loader.source, 'tldr', 'train', 1)
    for part in ('the network is unreachable', tldr.Posts.COPIES[0].address, 'train.jsonl, valid.jsonl, test.jsonl'):
        assert part in said
    assert re.search(f'{manual}/tldr/ .*--manual_dir={manual}', said)
    published_files.write(manual / 'tldr/train.jsonl', POSTS['train'])
    assert re.search(rf'{manual}/tldr .* train\.jsonl\)', mistake(loader.source, 'tldr', 'train', 1))
    monkeypatch.delenv('RLAIF_MANUAL_DIR')
    assert 'prepared/downloads/manual/tldr/ ' in mistake(loader.source, 'tldr', 'train', 1)  # TFDS's own place
    monkeypatch.setenv('RLAIF_MANUAL_DIR', str(tmp_path / 'nowhere'))
    assert f'manual_dir: {tmp_path}/nowhere ' in mistake(loader.source, 'tldr', 'train', 1)


def test_fetched(manual, tmp_path, monkeypatch):
    posts(tmp_path / 'served')
    with published_files.served(tmp_path / 'served', monkeypatch, cut=3) as address:
        copy = replace(tldr.Posts.COPIES[0], address=address)
        monkeypatch.setattr(tldr.Posts, 'COPIES', (copy,))
        size = (tmp_path / 'served/train.jsonl').stat().st_size
        said = mistake(loader.source, 'tldr', 'train', 1)
        assert f'{address}/train.jsonl ' in said and f'{size - 3:,} of {size:,} bytes' in said
        assert not list((tmp_path / 'prepared').rglob('*.jsonl*'))
    with published_files.served(tmp_path / 'served', monkeypatch) as address:
        monkeypatch.setattr(tldr.Posts, 'COPIES', (replace(copy, address=address),))
        assert len(loader.source('tldr', 'train', 9)) == 5
        monkeypatch.setattr(tldr.Posts, 'COPIES', (replace(copy, address=address + '/nowhere'),))
        monkeypatch.setenv('RLAIF_DATA_DIR', str(tmp_path / 'other'))
        assert re.search(r'/nowhere/train\.jsonl .*404', mistake(loader.source, 'tldr', 'train', 1))


def test_a_part_that_is_missing(manual):
    here = manual / 'tldr'
    posts(here, {split: trl(rows) for split, rows in POSTS.items()}, '-00000-of-00002.parquet', 'validation')
    assert re.match(f'{here}: 1 of .* 2 parts of train ', mistake(loader.source, 'tldr', 'train', 1))


def test_an_unknown_split(manual):
    posts(manual / 'tldr')
    assert re.match("tldr .*'tain'.* train, validation, test", mistake(loader.source, 'tldr', 'tain', 1))
    assert len(loader.source('tldr', 'train[:2]+test', 9)) == 3


def test_a_share_is_a_uniform_hash():
    found = np.array([share('a', str(i)) for i in range(2000)])
    assert found.min() >= 0 and found.max() < 1 and abs(found.mean() - 0.5) < 0.03
    assert share('ab', 'c') != share('a', 'bc')
    assert share('a\ud83d') == share('a\ud83d')  # half a character, as in files


def test_the_suffixes_that_are_read(tmp_path):
    rows = [{'a': 1, 'b': [{'c': 'é'}]}, {'a': 2, 'b': []}]
    for suffix in files.READABLE:
        if suffix not in ('.json', '.json.gz'):
            published_files.write(tmp_path / f'x{suffix}', rows)
            assert files.read_rows(tmp_path / f'x{suffix}') == rows
    (tmp_path / 'cut.arrow').write_bytes((tmp_path / 'x.arrow').read_bytes()[:100])
    assert re.search(r'/cut\.arrow: .* Arrow', mistake(files.read_rows, tmp_path / 'cut.arrow'))
    assert json.loads((tmp_path / 'x.jsonl').read_text(encoding='utf-8').splitlines()[0]) == rows[0]


def test_a_full_disk_is_said(manual, tmp_path, monkeypatch):
    posts(manual / 'tldr')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(tldr.Posts, '_generate_examples', full)
    said = mistake(loader.source, 'tldr', 'train', 1)
    assert re.search('/prepared: .*No space left.*RLAIF_DATA_DIR', said)
    assert published.prepared(tldr.Posts) is None
