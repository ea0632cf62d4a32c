"""Builds the micro world's tokenizer: its words are one token each, yet any text goes in and comes out unchanged.

A Unigram model with an explicit vocabulary, nothing trained: special tokens, bytes, printable ASCII, template pieces,
words with the space before them. Every piece costs the same, so the cut with the fewest tokens wins. What no piece
covers falls back to UTF-8 bytes. Pieces carry real spaces rather than a stand-in such as U+2581, so decoding is exact
for that character too.
"""

from __future__ import annotations

import re
import string
from functools import lru_cache
from typing import TYPE_CHECKING

from rlaif_jax.data.micro import lexicon

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIALS = ('<pad>', '<bos>', '<eos>', '<unk>')  # ids 0 to 3
MAX_LENGTH = 512  # tokens
MAX_VOCABULARY = 1024

# Whole pieces, spaces and newlines included. Extend freely, as long as the vocabulary stays within MAX_VOCABULARY.
TEMPLATE_PIECES = (
    'SUBREDDIT: r/',
    '\n\nTITLE:',
    '\n\nPOST:',
    '\n\nTL;DR:',
    'TEXT:',
    'TEXT -',
    '\n\nTEXT:',
    '\nTEXT -',
    '\n\nTEXT -',
    '\n\nSUMMARY:',
    '\nSUMMARY:',
    '\n\nSCORE:',
    '\nSCORE:',
    'SUMMARY -',
    '\nSUMMARY -',
    '\n\nSUMMARY -',
    'Text -',
    '\nText -',
    '\n\nText -',
    '\nSummary 1 -',
    '\n\nSummary 1 -',
    '\nSummary 2 -',
    '\n\nSummary 2 -',
    '\n\nSUMMARY 1:',
    '\n\nSUMMARY 2:',
    '\n\nPreferred Summary=',
    '\nPreferred Summary=',
    'Preferred Summary=',
    '\n\nRationale:',
    '\nRationale:',
    '\n\nRELATION:',
    '\n\nPROBLEM:',
    '\n\nCAUSE:',
    '\n\nDURATION:',
    '\n\nACTION:',
    '\n\nQUESTION:',
    '\n\nConsider',
    ' Summary',
    ' Score:',
    '\nScore:',
    '\n\nScore:',
    '\n\n',
    '>>>>>>>>',
)

# Text of instructions. Each word becomes a piece as it stands: bare at the start of a line, else with its space.
INSTRUCTION_WORDS = """
You are an expert rater of summaries. Given a TEXT and its SUMMARY, answer with a SCORE from 1 to 10, \
where 1 is awful and 10 is perfect.
You are an expert rater of summaries. Given a Text and two Summaries of it, answer 1 or 2 to say which \
Summary is better.
You are an expert rater of summaries. Given a TEXT and a SUMMARY, your task is to give a SCORE from 1 to 10, \
where 1 is awful and 10 is perfect.
A good summary is a shorter piece of text that has the essence of the original.
Given a piece of text and two of its possible summaries, output 1 or 2 to indicate which summary best adheres to \
coherence, accuracy, coverage, and overall quality as defined above.
Consider the facts of each summary and explain which one is better. The first, the second. Rate this. Which? yes no
relation problem cause duration action question right wrong missing
problem relation
cause
duration
action
question
"""


def world_words() -> list[str]:
    """The lexicon's words, sorted."""
    return lexicon.words()


def pieces() -> list[str]:
    """The vocabulary in the order of its ids; deterministic, without duplicates."""
    printable = [c for c in string.printable if c.isprintable()]
    # Only bytes that UTF-8 can hold and that are not printable ASCII, which has pieces of its own.
    fallback = [f'<0x{b:02X}>' for b in range(0xF5) if chr(b) not in printable and b not in (0xC0, 0xC1)]
    starts = sorted({phrase.split()[0] for phrase in _openings()})
    numbers = [str(n) for n in range(1, 11)]
    everything = [
        *SPECIALS,
        *fallback,
        *printable,
        *TEMPLATE_PIECES,
        *lexicon.SUBREDDITS,
        *starts,
        *numbers,
        *(' ' + word for word in [*world_words(), *numbers]),
        *re.findall(r" ?[A-Za-z']+", INSTRUCTION_WORDS.strip()),
    ]
    vocabulary = list(dict.fromkeys(everything))
    if len(vocabulary) > MAX_VOCABULARY:
        raise ValueError(f'the vocabulary has {len(vocabulary)} pieces, more than {MAX_VOCABULARY}')
    return vocabulary


@lru_cache
def _model():
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import Unigram

    # Names of control tokens and bytes are also plain text that a user may write: dear enough that letters win.
    vocabulary = [(piece, -1000.0 if re.fullmatch(r'<(pad|bos|eos|unk|0x..)>', piece) else -10.0) for piece in pieces()]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=SPECIALS.index('<unk>'), byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def build() -> PreTrainedTokenizerFast:
    """A new tokenizer, in Hugging Face's format; `save_pretrained` writes what `AutoTokenizer` reads back.

    Encoding adds no special tokens. Encode text of users and policies with `split_special_tokens=True`, so that the
    letters `<eos>` in it stay letters.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_model(),
        pad_token='<pad>',
        bos_token='<bos>',
        eos_token='<eos>',
        unk_token='<unk>',
        model_max_length=MAX_LENGTH,
        padding_side='right',
        clean_up_tokenization_spaces=False,
    )


def _openings() -> list[str]:
    """What a summary, whole or partly given, can start with."""
    slots = lexicon.summary_phrases()
    return [
        lexicon.NO_RELATION,
        lexicon.NO_PROBLEM,
        *lexicon.SUMMARY_FILLERS,
        *(
            phrase
            for slot in ('relation', 'cause', 'duration', 'action', 'question')
            for phrases in slots[slot].values()
            for phrase in phrases
        ),
    ]
