"""Laws of rlaif_jax.data.tokens: what is remembered is what would be encoded, and nobody encodes it again; what was cut
short, or is of another tokenizer, is not used.
"""

import copy
import threading
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from experiments import stages
from rlaif_jax.data import files, loader, tokens
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.text import Tokenizer
from rlaif_jax.training import reward_model, sft

TEXTS = [
    'a dog',
    '',
    ' ',
    'naïve Ünïcödé 🦙 日本語',
    'half \ud83d a pair',
    '<eos> is five characters',
    'a dog',
    'word ' * 900,
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where tokens are kept."""
    monkeypatch.setenv('RLAIF_DATA_DIR', str(tmp_path / 'data'))
    return tmp_path / 'data' / 'tokens'


@pytest.fixture(params=['micro', 'stories260k'])
def tokenizer(request):
    """Two of them; the second puts a space before all it is given, so it matters whether text stands behind other text."""
    if request.param == 'micro':
        return request.getfixturevalue('micro_tokenizer')
    return Tokenizer.load(request.getfixturevalue('shared') / 'stories260k')


@pytest.fixture
def encoded(monkeypatch):
    """Every text that a tokenizer really encodes."""
    texts, really = [], PreTrainedTokenizerFast.__call__

    def call(self, text, **how):
        texts.extend([text] if isinstance(text, str) else text)
        return really(self, text, **how)

    monkeypatch.setattr(PreTrainedTokenizerFast, '__call__', call)
    return texts


def remembering(tokenizer, texts=TEXTS):
    return tokens.remembering(tokenizer, texts, lambda text: ([text], [text]))


def whole(text):
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def test_what_is_remembered_is_what_would_be_encoded(tokenizer):
    found = remembering(tokenizer)
    for texts in (TEXTS, TEXTS[::-1], [*TEXTS, 'never seen before']):
        for behind in (False, True):
            assert found.encode(texts, behind=behind) == tokenizer.encode(texts, behind=behind)
    assert found.encode([]) == []
    assert found.encode(['<eos>'], control=True) == tokenizer.encode(['<eos>'], control=True)
    found = remembering(tokenizer, ['<eos>'])
    assert found.encode(['<eos>'], control=True) == tokenizer.encode(['<eos>'], control=True)
    for name in ('start', 'eos', 'pad', 'ends'):
        assert getattr(found, name) == getattr(tokenizer, name)


def test_nothing_is_encoded_twice(micro_tokenizer, encoded, folder, monkeypatch):
    monkeypatch.setattr(tokens, 'CHUNK', 3)
    remembering(micro_tokenizer)
    for text in set(map(whole, TEXTS)):
        assert 2 <= encoded.count(text) <= 3  # by itself and behind other text, which to find out may take a look
    encoded.clear()
    found = remembering(micro_tokenizer)
    rows = found.encode(TEXTS) + found.encode(TEXTS[2:4], behind=True)
    assert set(encoded) <= {'.'} and len(rows) == len(TEXTS) + 2

    more = remembering(micro_tokenizer, [*TEXTS, 'one more'])
    assert [text for text in encoded if text != '.'] == ['one more'] * 2
    encoded.clear()
    assert more.encode([*TEXTS, 'one more']) == [*rows[:-2], *micro_tokenizer.encode(['one more'])]
    assert encoded == ['one more'] and len(tokens.tables(next(folder.iterdir()))) == 2


def test_another_tokenizer_has_tokens_of_its_own(micro_tokenizer, folder):
    other = Tokenizer(copy.deepcopy(micro_tokenizer.hf), micro_tokenizer.ends)
    assert tokens.digest(other) == tokens.digest(micro_tokenizer)
    other.hf.add_tokens(['naïve'])
    assert remembering(micro_tokenizer).encode(TEXTS) == micro_tokenizer.encode(TEXTS)
    assert remembering(other).encode(TEXTS) == other.encode(TEXTS) != micro_tokenizer.encode(TEXTS)
    assert len(list(folder.iterdir())) == 2


def test_the_digest_is_that_of_the_file_however_the_tokenizer_was_used(micro_tokenizer, tmp_path):
    micro_tokenizer.hf.save_pretrained(tmp_path / 'saved')
    one, two = (Tokenizer.load(tmp_path / 'saved') for _ in range(2))
    two.hf(['some text'], max_length=2, truncation=True, padding='max_length')
    two.encode(['<eos>'], control=True)
    assert tokens.digest(one) == tokens.digest(two)


def test_a_writer_that_is_killed_leaves_nothing_that_counts(micro_tokenizer, folder, monkeypatch):
    monkeypatch.setattr(tokens, 'CHUNK', 2)
    known, really = micro_tokenizer.encode(TEXTS), Tokenizer.encode

    def encode(self, texts, **how):
        if whole(TEXTS[3]) in map(whole, texts):
            raise KeyboardInterrupt
        return really(self, texts, **how)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tokenizer, 'encode', encode)
        remembering(micro_tokenizer)
    here = next(folder.iterdir())
    assert [path.name for path in here.iterdir()] == ['.lock']

    # Killed without a word, and a table that lost its end afterwards.
    remembering(micro_tokenizer, TEXTS[:4])
    (table,) = (path for path in here.iterdir() if path.is_dir())
    table.rename(here / '.partial-1')
    assert tokens.tables(here) == ()
    remembering(micro_tokenizer, TEXTS[:4])
    (table,) = (path for path in here.iterdir() if path.is_dir())
    for name in ('token.bin', 'key.npy', 'span.npy'):
        data = (table / name).read_bytes()
        for cut in (data[:-4], b''):
            (table / name).write_bytes(cut)
            assert tokens.tables(here) == ()
        (table / name).write_bytes(data)
    assert len(tokens.tables(here)) == 1
    (table / 'token.bin').write_bytes(b'')
    assert remembering(micro_tokenizer).encode(TEXTS) == known
    assert [path != table for path in here.iterdir() if path.is_dir()] == [True]


def test_of_two_at_once_one_encodes(micro_tokenizer, encoded, folder):
    found = []
    threads = [threading.Thread(target=lambda: found.append(remembering(micro_tokenizer))) for _ in range(2)]
    micro_tokenizer.encode(TEXTS[:1], behind=True)
    encoded.clear()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encoded.count(TEXTS[-1]) == 2 and len(tokens.tables(next(folder.iterdir()))) == 1
    assert [each.encode(TEXTS) for each in found] == [micro_tokenizer.encode(TEXTS)] * 2


def test_a_run_goes_on_where_nothing_can_be_written(micro_tokenizer, folder, capsys):
    folder.parent.mkdir()
    folder.write_text('a file stands here', encoding='utf-8')
    assert remembering(micro_tokenizer).encode(TEXTS) == micro_tokenizer.encode(TEXTS)
    assert 'set RLAIF_DATA_DIR; texts are encoded as they come' in capsys.readouterr().out


# In a stage


@dataclass(frozen=True)
class Named:
    """As much of a model as making batches takes."""

    tokenizer: Tokenizer


def test_batches_of_a_run_that_remembers_are_those_of_one_that_does_not(tokenizer, tmp_path, encoded):
    post = lambda i: f'SUBREDDIT: r/a\n\nTITLE: t{i}\n\nPOST: {"ünd so weiter " * (i + 1)}\n\nthe end\n\nTL;DR:'  # noqa: E731
    rows = [{'prompt': post(i), 'completion': ' sum 日本 up ' * (i % 4)} for i in range(40)]
    (tmp_path / 'posts').mkdir()
    files.write_rows(tmp_path / 'posts' / 'train.jsonl', rows)
    source = str(tmp_path / 'posts')
    stage = stages.Supervised(
        '', '', 'summarization', source, 40, max_prompt=200, max_new_tokens=12, sft=None, dtype='float32'
    )
    prompts = loader.source(source, 'train', 40)
    assert '' in {prompt.reference.strip() for prompt in prompts}

    def batches(lm):
        fitted = stages.fitted(prompts, lm, stage.max_prompt)
        return list(map(sft.batches(sft.Config(batch=8), lm.tokenizer, fitted, stage.max_new_tokens), range(10)))

    lm = Named(tokenizer)
    remembered = stages.remembering(lm, prompts, stage.texts, source, 80)
    for found, expected in zip(batches(remembered), batches(lm), strict=True):
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])

    encoded.clear()
    again, asked = batches(remembered), set(encoded)
    lengths = [len(tokenizer.start) + len(row) for row in tokenizer.encode([prompt.text for prompt in prompts])]
    fitting = {prompt.text for prompt, length in zip(prompts, lengths) if length <= stage.max_prompt}
    assert 0 < len(fitting) < 40 and not fitting & asked and len(again) == 10  # only what was shortened


def test_a_reward_model_encodes_only_what_was_named(tokenizer, encoded):
    pairs = [Pair(Prompt(text, text), text, f' {text}\n', 0.5) for text in TEXTS]
    cfg = reward_model.Config(steps=1, batch=8, max_prompt=64, max_response=16)
    remembered = tokens.remembering(tokenizer, pairs, lambda pair: tokenizer.pieces(*reward_model.texts(pair)))
    expected = reward_model.make_batch(tokenizer, pairs, cfg)
    assert remembered.start == tokenizer.start
    encoded.clear()
    found = reward_model.make_batch(remembered, pairs, cfg)
    assert not encoded
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_what_is_simulated_or_read_in_part_is_not_remembered(micro_tokenizer, folder):
    prompts, lm = [Prompt(text, text) for text in TEXTS], Named(micro_tokenizer)
    remembering = partial(stages.remembering, lm, prompts, stages.Supervised.texts)
    assert remembering('micro_tldr', 999) is lm and remembering('posts.jsonl', len(TEXTS) - 1) is lm
    assert not folder.exists()
    assert remembering('posts.jsonl', len(TEXTS)).tokenizer.tables
