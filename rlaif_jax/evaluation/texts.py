"""What can be said of any text without knowing what is true: length, repetition, copying from the prompt, its end; and
the paper's clean-up before people see it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

ABOUT = {  # figure -> what it is, for whoever sees it in a table
    'ended': 'share that ends in . ! ? or …',
    'repetition': 'share of runs of three words said before',
    'copied': 'share of words in spans of five and more from the prompt',
    'longest_copy': 'words of the longest such span, of any length',
}

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_ENDED = re.compile(r"""[.!?…]["'”’)\]]*\s*\Z""")
_SUPERFLUOUS = '.' + string.whitespace + '\u00a0'


def text_statistics(
    prompts: Sequence[Any], responses: Sequence[str], *, repeated: int = 3, copied: int = 5
) -> dict[str, float]:
    """Means over responses; prompts are texts, or records with a `.text`. Words are compared without case and marks.

    characters, words: of a response, 0 for an empty one. empty, ended: share of responses without a word; that end in
    `.`, `!`, `?` or `…`. repetition: share of a response's runs of `repeated` words that it has said before, in [0, 1].
    copied: share of its words in spans of at least `copied` words that stand in the prompt. longest_copy: words of the
    longest such span, of any length. A response too short to have a share has no say in that mean; where none has, it
    is nan. ValueError: sequences of different length.
    """
    rows = [
        _statistics(getattr(prompt, 'text', prompt), response, repeated, copied)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    columns = {name: [row[name] for row in rows if row[name] is not None] for name in _statistics('', '', 1, 1)}
    return {name: float(np.mean(values)) if values else float('nan') for name, values in columns.items()}


def strip_trailing(texts: Sequence[str]) -> tuple[list[str], int]:
    """Takes superfluous periods and spaces off the ends of texts, and says how many texts that changed.

    The paper did so to the RL policies' summaries before people judged them (App. E): runs of such symbols are no
    content, and perhaps a hack of the reward. It does not say what becomes of a full stop; here one that ends a sentence
    stays: `so. . .` is `so.`, `so? ..` is `so?`. An option, to be reported where it is used.
    """
    cleaned = [_stripped(text) for text in texts]
    return cleaned, sum(one != other for one, other in zip(cleaned, texts))


def _stripped(text: str) -> str:
    bare = text.rstrip(_SUPERFLUOUS)
    stop = bare and '.' in text[len(bare) :] and not _ENDED.search(bare)
    return bare + '.' if stop else bare


def _statistics(prompt: str, response: str, repeated: int, copied: int) -> dict[str, float | None]:
    """One response's; None where it has no such thing."""
    words = _words(response)
    runs = [tuple(words[i : i + repeated]) for i in range(len(words) - repeated + 1)]
    lengths = _copied(_words(prompt), words)
    inside = {i for end, length in enumerate(lengths) if length >= copied for i in range(end - length + 1, end + 1)}
    return {
        'characters': len(response),
        'words': len(words),
        'empty': not words,
        'ended': bool(_ENDED.search(response)),
        'repetition': 1 - len(set(runs)) / len(runs) if runs else None,
        'copied': len(inside) / len(words) if words else None,
        'longest_copy': max(lengths, default=0),
    }


def _copied(prompt: list[str], words: list[str]) -> list[int]:
    """For each word, how many words up to and with it stand in the prompt in one piece.

    One word further, that is at most one more; so the search never starts over.
    """
    within, lengths, length = f' {" ".join(prompt)} ', [], 0
    for end in range(1, len(words) + 1):
        length += 1
        while length and f' {" ".join(words[end - length : end])} ' not in within:
            length -= 1
        lengths.append(length)
    return lengths


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
