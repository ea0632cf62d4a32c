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
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif_jax.micro import lexicon

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIALS = ('<pad>', '<bos>', '<eos>', '<unk>')  # ids 0 to 3
MAX_LENGTH = 2048  # tokens
MAX_VOCABULARY = 1152

TEMPLATES = Path(__file__).parent / 'templates'

# Whole pieces, spaces and newlines included. Extend freely, as long as the vocabulary stays within MAX_VOCABULARY.
TEMPLATE_PIECES = (
    'SUBREDDIT: r/',
    '\n\nTITLE:',
    '\n\nPOST:',
    '\n\nTL;DR:',
    'Human:',
    '\n\nHuman:',
    '\n\nAssistant:',
    '\n\nText -',
    '\n\nContext -',
    *(f'\n\n{what}{number} -' for what in ('Summary', 'Response') for number in ('', ' 1', ' 2')),
    '\n\nPreferred Summary=',
    '\n\nPreferred Response=',
    '\n\nHarmful=',
    '\n\nSCORE:',
    '\n\nConsider',
    '\n\nRationale:',
    '\n\nExample',
    '>>>>>>>>',
    '\n\n>>>>>>>>',
    # Questions about single findings, asked in pretraining.
    *(f'\n\n{name}:' for name in ('RELATION', 'PROBLEM', 'CAUSE', 'DURATION', 'ACTION', 'QUESTION')),
    *(f'\n\n{name}:' for name in ('REQUEST', 'RESPONSE', 'INSULT')),
    '\n\n',
)

# The findings, as questions and rationales name them.
FINDINGS = """first second relation problem cause duration action question right wrong missing request response insult
harmful benign refuses partly complies unrelated yes no"""


def template_words() -> list[str]:
    """The words of this world's labelling prompts as they stand: bare at the start of a line, else with their space."""
    texts = [path.read_text(encoding='utf-8') for path in sorted(TEMPLATES.glob('*/*.txt'))]
    return re.findall(r" ?[A-Za-z']+", '\n'.join(re.sub(r' ?\{\w+\}', '', text) for text in texts))


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
        *(' ' + word for word in [*lexicon.words(), *numbers]),
        *template_words(),
        *(f' {word}' for word in FINDINGS.split()),
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
        prompt_templates='micro',  # the labelling prompts that models with this tokenizer know
    )


def _openings() -> list[str]:
    """What a response, whole or partly given, can start with."""
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
        *(phrase for phrases in lexicon.unknown_phrases().values() for phrase in phrases),
        *(step for table in (lexicon.HARMFUL, lexicon.BENIGN) for _, steps in table.values() for step in steps),
        *lexicon.CHATTER,
        *lexicon.REFUSALS,
        *lexicon.REASONS,
        *lexicon.ALTERNATIVES,
        *lexicon.HEDGES,
        *lexicon.AGREEMENTS,
        *lexicon.INSULTS,
    ]
