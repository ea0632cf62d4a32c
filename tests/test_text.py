"""Laws of text and tokens: what users write is data, and what a policy may write holds no control tokens."""

import numpy as np
import pytest

from rlaif_jax.data.micro import tokenizer as micro
from rlaif_jax.text import Tokenizer, pad_left, pad_right


def test_control_tokens_are_never_allowed_named_or_not():
    hf = micro.build()
    hf.add_tokens(['<|header|>'], special_tokens=True)  # as Llama 3 has hundreds: special, but no named role
    header, tokenizer = hf.convert_tokens_to_ids('<|header|>'), Tokenizer(hf, (2,))
    allowed_V = tokenizer.allowed(1152)
    assert not allowed_V[[0, 1, 3, header]].any() and allowed_V[2]  # pad, bos, unk; the end token may be written
    assert not allowed_V[len(hf) :].any()  # rows of padding
    assert allowed_V.sum() == len(hf) - 4


def test_control_tokens_in_text_are_letters(micro_tokenizer):
    texts = ['a <eos> b', '<pad>', '<bos><unk>']
    rows = micro_tokenizer.encode(texts)
    assert all(min(row) > 3 for row in rows)
    assert micro_tokenizer.decode(rows) == texts


def test_control_tokens_in_our_own_text_are_control_tokens(micro_tokenizer):
    assert micro_tokenizer.encode(['<bos>a<eos>'], control=True)[0][::2] == [1, 2]
    assert micro_tokenizer.encode([], control=True) == micro_tokenizer.decode([]) == []


def test_text_behind_text_gets_no_space_of_its_own(micro_tokenizer, shared):
    """Not from a tokenizer that puts one before whatever it is given, either."""
    texts = [' a boy', '\n\nOnce', '1', ' 1', '=', '\n', '']
    for tokenizer in (micro_tokenizer, Tokenizer.load(shared / 'stories260k')):
        before, whole = tokenizer.encode(['Lily saw.'])[0], tokenizer.encode(['Lily saw.' + text for text in texts])
        assert [before + row for row in tokenizer.encode(texts, behind=True)] == whole
    assert tokenizer.encode(['1']) != tokenizer.encode(['1'], behind=True)
    assert micro_tokenizer.encode(texts) == micro_tokenizer.encode(texts, behind=True)


def test_any_string_has_tokens(micro_tokenizer):
    """Half a surrogate pair is no character, though a string may hold it; a whole one is the character it stands for."""
    texts = ['\ud83d cut \udc4d', '\ud83d\udc4d', '', '\x00']
    assert micro_tokenizer.decode(micro_tokenizer.encode(texts)) == ['\ufffd cut \ufffd', '👍', '', '\x00']


def test_without_a_chat_template_there_are_no_turns(micro_tokenizer):
    assert micro_tokenizer.turn is None


def test_a_chat_prompt_is_the_same_tomorrow():
    hf = micro.build()
    hf.chat_template = (
        '{% if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}'
        'Today: {{ date_string }}\n{{ messages[0].content }}<end>'
    )
    assert Tokenizer(hf, (2,)).turn == ('Today: 26 Jul 2024\n', '<end>')


@pytest.mark.parametrize('pad', [pad_left, pad_right])
def test_padding_keeps_the_rows(pad):
    rows = [[5, 6], [], [7, 8, 9]]
    token_BT, valid_BT = pad(rows, 4, 0)
    assert [token[valid].tolist() for token, valid in zip(token_BT, valid_BT, strict=True)] == rows
    assert not token_BT[~valid_BT].any()
    with pytest.raises(ValueError, match='row 2 has 3 tokens'):
        pad(rows, 2, 0)
    assert np.array_equal(pad_left(rows, 4, 0)[1], pad_right(rows, 4, 0)[1][:, ::-1])
