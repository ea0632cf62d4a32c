"""The one rule by which a prompt that is too long is shortened, for policies, reward models and labelers alike.

What goes depends on what the prompt is; its shape is looked at in the whole text.

    a post, the paper's (`MARKS`)    keeps subreddit and title; the post loses its last paragraph, again and again, then
                                     characters from its end, as in OpenAI's and TRL's preparation
    other text that ends in TL;DR:   the same, without a title to keep
    a dialogue (`chat.turns`)        loses its oldest exchanges, then what the system said, then the first characters of
                                     its last turn, which is what is answered
    any other text                   loses its first paragraphs, then characters: what it asks for stands at its end

A title that is too long by itself loses its beginning.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from rlaif_jax import chat
from rlaif_jax.config import Mistake
from rlaif_jax.text import Tokenizer

MARKS = 'SUBREDDIT: r/', '\n\nTITLE: ', '\n\nPOST: ', '\n\nTL;DR:'  # of the paper's posts (arXiv 2009.01325, App. B.1)
ASKED = re.compile(r'(?:\n\n|\s|)TL;DR:\s*\Z')  # for a summary, with the white space before it
LINES = re.compile('\n+')

# What a prompt of each shape is cut to at most.
LEAST = '\n\nHuman:\n\nAssistant:', MARKS[-1], '\N{SLIGHTLY SMILING FACE}'
NOTHING = 'nothing of it fits; max_prompt leaves no room beside a chat template'

Fits = Callable[[str], bool]
Cuts = tuple[Sequence[int], Callable[[int], str]]  # places, the least is lost at the first; the text that is cut there


def shorten(text: str, fits: Fits) -> str | None:
    """As much of a prompt as `fits`; the text itself where it does. In few looks, however long the text.

    None where next to nothing of it fits. `fits` of a text holds for shorter ones, but for what tokens make of letters.
    """
    if fits(text):
        return text
    for places, kept in _cuts(text):
        at = bisect_left(places, True, key=lambda place: fits(kept(place)))
        if at < len(places):
            return kept(places[at])
    return None


@lru_cache(maxsize=10_000)  # to shorten takes several looks at a text, which comes again in the next epoch
def shortened(text: str, fits: Fits, name: str) -> str:
    """`shorten`, remembered. Raises `Mistake` for the prompt of this name where nothing of it fits."""
    if (kept := shorten(text, fits)) is None:
        raise Mistake(f'{name}: {NOTHING}')
    return kept


def check_fits(prompts: Iterable[tuple[str, str]], fits: Fits) -> None:
    """Raises `Mistake` for the first prompt, of names and texts, of which nothing fits, before a run meets it.
    They are looked at only where the least that prompts of some shape are cut to does not fit.
    """
    if not all(map(fits, LEAST)):
        for name, text in prompts:
            if shorten(text, fits) is None:
                raise Mistake(f'{name}: {NOTHING}')


@lru_cache
def reads(tokenizer: Tokenizer, most: int) -> Fits:
    """Whether a prompt has `most` tokens at most, with those that its model wants before any text and round its turns."""
    return lambda text: len(tokenizer.prompts([text])[0]) <= most


def _cuts(text: str) -> list[Cuts]:
    """All that a prompt may become, the longest first."""
    if chat.turns(text) is not None:
        return _dialogue(chat.dialogue(text))
    asked = ASKED.search(text)
    return _post(text, asked.start()) if asked else _other(text)


def _post(text: str, end: int) -> list[Cuts]:
    title = text.find(MARKS[1], 0, end)
    post = text.find(MARKS[2], title, end) if title > 0 else -1
    top = post + len(MARKS[2]) if post > 0 and text.startswith(MARKS[0]) else 0
    lines = [at for at in range(end - 1, top - 1, -1) if text[at] == '\n']
    kept = lambda at: text[:at] + text[end:]  # noqa: E731
    return [
        (lines, kept),
        (range((lines[-1] if lines else end) - 1, top - 1, -1), kept),
        (range(1, top + 1), lambda at: text[at:top] + text[end:]),
    ]


def _dialogue(text: str) -> list[Cuts]:
    human, marks = chat.SPEAKERS['user'], [(found.start(), found[0]) for found in chat.MARKERS.finditer(text)]
    exchanges = [at for (_, before), (at, mark) in pairwise([(0, ''), *marks]) if mark == human != before]
    (first, *later), asked = exchanges, marks[-1][0]
    return [
        (later, lambda at: text[:first] + text[at:]),
        (range(exchanges[-1] + len(human), asked + 1), lambda at: human + text[at:]),
    ]


def _other(text: str) -> list[Cuts]:
    end = len(text.rstrip()) or len(text)
    lines = [found.end() for found in LINES.finditer(text, 0, end) if found.end() < end]
    kept = lambda at: text[at:]  # noqa: E731
    return [(lines, kept), (range((lines[-1] if lines else 0) + 1, end), kept)]
