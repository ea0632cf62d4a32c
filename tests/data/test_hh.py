"""Laws of rlaif_jax.data.hh: a prompt and a reply, one behind the other, are the published dialogue; no prompt is in two of
the splits made of the published test split; what is no pair is counted and left out.
"""

import gzip
import json
import re
import shutil

import published_files
import pytest

from rlaif_jax.config import Mistake
from rlaif_jax.data import files, hh, loader, published

TURNS = '\n\nHuman: {}\n\nAssistant: {}'


def row(question, better, worse, before=''):
    return {'chosen': before + TURNS.format(question, better), 'rejected': before + TURNS.format(question, worse)}


ODD = [
    row('ünïcode 😀', ' two spaces', ''),  # an empty reply
    row('same', 'a', 'a'),
    row('q\n\nwith paragraphs', 'a\n\nb', 'c', before=TURNS.format('earlier', 'Human: said so')),
    row('again', 'a', 'b'),
    row('again', 'c', 'd'),  # a prompt twice
]
BAD = [
    {'chosen': TURNS.format('one', 'a'), 'rejected': TURNS.format('another', 'b')},  # no context in common
    {
        'chosen': TURNS.format('q', 'a') + '\n\nHuman: so',
        'rejected': TURNS.format('q', 'b'),
    },  # ends in the human's turn
    {'chosen': 'no dialogue', 'rejected': 'at all'},
]
TRAIN = ODD + [row(f'question {n}', 'yes', 'no') for n in range(60)]
TEST = [row(f'test {n // 2}', f'yes {n}', 'no') for n in range(80)] + BAD


@pytest.fixture
def manual(tmp_path, monkeypatch):
    for kind in (hh.Helpful, hh.Harmless):
        monkeypatch.setattr(kind, 'COUNTS', {'train': len(TRAIN), 'test': len(TEST)})
    return published_files.alone(tmp_path, monkeypatch)


def write(folder, train=TRAIN, test=TEST):
    published_files.write(folder / 'train.jsonl.gz', train)
    published_files.write(folder / 'test.jsonl.gz', test)


def everything(split, name='hh_harmless'):
    return loader.pairs(name, name.removeprefix('hh_'), split, 10**6)


def mistake(call, *args):
    with pytest.raises(Mistake) as caught:
        call(*args)
    return str(caught.value)


def dialogues(pairs):
    return sorted((pair.prompt.text + pair.first, pair.prompt.text + pair.second) for pair in pairs)


def test_prompt_and_reply_are_the_dialogue(manual):
    write(manual / 'hh_harmless')
    pairs = everything('train')
    assert dialogues(pairs) == sorted((row['chosen'], row['rejected']) for row in TRAIN)
    for pair in pairs:
        assert pair.preference == 1 and pair.prompt.text.endswith('\n\nAssistant:')
        number = int(pair.prompt.id.removeprefix('hh_harmless/train/'))
        assert pair.prompt.text + pair.first == TRAIN[number]['chosen']
    prompts = loader.source('hh_harmless', 'train', 10**6)
    assert [prompt.text for prompt in prompts] == [pair.prompt.text for pair in pairs]


def test_splits(manual, capsys):
    write(manual / 'hh_harmless')
    validation, test = everything('validation'), everything('test')
    assert re.search(r'hh_harmless: 3 of 148 .*test\.jsonl\.gz:81: ', capsys.readouterr().out)
    assert dialogues(validation + test) == sorted((row['chosen'], row['rejected']) for row in TEST[:-3])
    prompts = [{pair.prompt.text for pair in pairs} for pairs in (validation, test)]
    assert not prompts[0] & prompts[1] and 16 <= len(prompts[0]) <= 36  # of 40; 27 are expected
    aligned, train = everything('alignment'), everything('train')
    assert 1 <= len(aligned) <= 16 and {pair.prompt.id for pair in aligned} <= {pair.prompt.id for pair in train}


def test_helpful_and_harmless_are_told_apart(manual, tmp_path, monkeypatch):
    """`datasets` names the folder of its cache by a hash; the number of rows says what is in it."""
    monkeypatch.setattr(hh.Helpful, 'COUNTS', {'train': 5, 'test': 9})
    cached = tmp_path / 'hf/datasets/Anthropic___hh-rlhf'
    published_files.cache(cached / 'default-1a2b/0.0.0/c3', 'hh-rlhf', {'train': TRAIN, 'test': TEST})
    published_files.cache(cached / 'default-4d5e/0.0.0/c3', 'hh-rlhf', {'train': ODD, 'test': TEST[:9]})
    assert len(everything('train', 'hh_helpful')) == 5
    assert len(everything('train')) == len(TRAIN)


def test_the_files_of_the_hub(manual, tmp_path):
    write(tmp_path / 'hf/hub/datasets--Anthropic--hh-rlhf/snapshots/1a2b/harmless-base')
    assert dialogues(everything('train')) == sorted((row['chosen'], row['rejected']) for row in TRAIN)
    assert 'Name' not in mistake(everything, 'train', 'hh_helpful')


def test_a_copy_in_a_cache_that_lacks_a_part_is_passed_over(manual, tmp_path):
    """A download that broke off there is no reason to give up; in one's own folder it is said."""
    snapshots = tmp_path / 'hf/hub/datasets--Anthropic--hh-rlhf/snapshots'
    for folder in (snapshots / '1a2b/harmless-base', manual / 'hh_harmless'):
        published_files.write(folder / 'test.jsonl.gz', TEST)
        published_files.write(folder / 'train-00000-of-00002.parquet', TRAIN[:9])
    assert re.search('manual/hh_harmless: 1 of .* 2 parts of train ', mistake(everything, 'train'))
    shutil.rmtree(manual / 'hh_harmless')
    assert 'parts' not in mistake(everything, 'train')  # it is not to be had elsewhere either
    write(snapshots / '2c3d/harmless-base')
    assert len(everything('train')) == len(TRAIN)


def test_what_is_wrong_with_a_file(manual, tmp_path):
    write(manual / 'hh_harmless', TRAIN[1:])
    assert re.search('manual/hh_harmless .*64 .*train.* 65.*https://', mistake(everything, 'train'))
    write(manual / 'hh_harmless', [{'prompt': 'p', 'chosen': 'a', 'rejcted': 'b'}])
    named = r'/train\.jsonl\.gz:1: no rejected .*prompt, chosen, rejcted'
    assert re.search(named, mistake(everything, 'train'))
    whole = gzip.compress(b''.join(json.dumps(row).encode() + b'\n' for row in TRAIN))
    (manual / 'hh_harmless/train.jsonl.gz').write_bytes(whole[:-30])
    assert re.search(r'/train\.jsonl\.gz: .*fetch it again', mistake(everything, 'train'))
    assert published.prepared(hh.Harmless) is None
    shutil.rmtree(manual / 'hh_harmless')
    said = mistake(everything, 'train')
    assert 'train.jsonl.gz, test.jsonl.gz' in said and 'https://huggingface.co/datasets/Anthropic/hh-rlhf/' in said


# Anthropic's own file


def test_the_published_test_split(manual, shared, monkeypatch):
    write(manual / 'hh_harmless')
    shutil.copyfile(shared / 'hh_harmless/test.jsonl.gz', manual / 'hh_harmless/test.jsonl.gz')
    monkeypatch.setattr(hh.Harmless, 'COUNTS', {'train': len(TRAIN), 'test': 2312})
    validation, test = everything('validation'), everything('test')
    assert len(validation) + len(test) == 2307 and abs(len(validation) / 2307 - 2 / 3) < 0.03
    assert not {pair.prompt.text for pair in validation} & {pair.prompt.text for pair in test}
    rows = files.read_rows(shared / 'hh_harmless/test.jsonl.gz')
    for pair in test[:100]:
        number = int(pair.prompt.id.rsplit('/')[-1])
        assert (pair.prompt.text + pair.first, pair.prompt.text + pair.second) == tuple(rows[number].values())
