"""Reads any text of the SIMULATED world: what it states, what else is in it, and how good it is as a summary.

A text is lower-cased and cut into words and marks; the longest phrase of the lexicon that starts at a word is what is
said there. The wordings of summaries and of posts both state a fact, so a copied sentence counts, at the cost of its
length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rlaif_jax.micro import lexicon
from rlaif_jax.micro.lexicon import SLOTS

WEIGHTS = {
    'relation': 0.15,
    'problem': 0.25,
    'cause': 0.15,
    'duration': 0.10,
    'action': 0.15,
    'question': 0.20,
}  # sum to 1
REPEATED_WORD = 0.03
FILLER_WORD = 0.02
JUNK_WORD = 0.04
STEP_BACK = 0.04  # one slot told before a slot that comes earlier in a well-made summary
NO_END = 0.06
LONG_WORD = 0.02  # each word over LONG
LONG = 26
FREE_GLUE = 2  # small words outside phrases that cost nothing

_TOKEN = re.compile(r"[a-z0-9']+|[^\sa-z0-9']")
_MARKS = frozenset('.,?')
_HERE = ''  # the key under which a node of the trie keeps what ends there


@dataclass(frozen=True)
class Found:
    """What is in a text, whatever was asked.

    Attributes:
      stated: kind of phrase (for summaries: the slot) → its values in the order of their first mention; kinds that do
        not occur are left out.
      repetition: words that say again what was said: restated values, and words doubled on the spot.
      filler: words of filler and of a prompt's frames, and small words beyond the two free ones.
      junk: words and marks that belong to nothing.
      disorder: how often a kind comes right after one that should follow it.
      ended: whether the text ends in `.` or `?`.
      n_words: words, without marks.
    """

    stated: Mapping[str, tuple[str, ...]]
    repetition: int
    filler: int
    junk: int
    disorder: int
    ended: bool
    n_words: int


@dataclass(frozen=True)
class Reading(Found):
    """What was found in a text, and what it means for the facts.

    Attributes:
      verdicts: slot → 'right' (its value, and no other), 'wrong' (another one, alone or beside it), 'missing'.
      quality: 1 for a perfect summary, near 0 for none, down to -1 for harm; see `read`.
    """

    verdicts: Mapping[str, str]
    quality: float


def read(facts: Mapping, text: str) -> Reading:
    """Parses any text.

    quality = Σ weight · right − Σ weight · (1 + ½ · further wrong values) · wrong − REPEATED_WORD · repetition
              − FILLER_WORD · filler − JUNK_WORD · junk − STEP_BACK · disorder − NO_END · not ended
              − LONG_WORD · words over LONG

    Not clipped at 0, so that bad and worse stay apart; below −½ it bends towards its bound −1.
    """
    found = parse(text, _ROOT, _ORDER)
    verdicts, quality = {}, 0.0
    for slot, weight in WEIGHTS.items():
        values = found.stated.get(slot)
        if not values:
            verdicts[slot] = 'missing'
        elif values == (facts[slot],):
            verdicts[slot] = 'right'
            quality += weight
        else:
            verdicts[slot] = 'wrong'
            quality -= weight * (1 + 0.5 * (len(values) - 1 - (facts[slot] in values)))
    return Reading(**vars(found), verdicts=verdicts, quality=bend(quality - cost(found)))


def wrong(facts: Mapping, text: str) -> list[tuple[int, int, str]]:
    """Where a text states a value that is not the fact's: the characters from and to, and which fact."""
    return [
        (start, end, kind) for kind, value, start, end in places(text, _ROOT) if kind in SLOTS and value != facts[kind]
    ]


def rating(quality: float) -> int:
    """The rating from 1 (none of it) to 10 (perfect) nearest to a quality."""
    return min(10, max(1, round(1 + 9 * quality)))


# ---------------------------------------------------------------------------------------------------- phrases

_ORDER = {slot: order for order, slot in enumerate(SLOTS)}


def parse(text: str, root: Mapping, order: Mapping[str, int]) -> Found:
    """Cuts a text into the phrases of a trie.

    Args:
      root: phrases, from `trie`.
      order: kind of phrase that states something → its place in a well-made text. Kinds that share a place can come
        in any order. The other kinds are 'filler', 'glue', and 'free': a stand-in that may occur once.
    """
    tokens = _TOKEN.findall(text.lower())
    stated: dict[str, list[str]] = {}
    repetition = filler = junk = disorder = glue = n_words = 0
    at, latest, before, has_stand_in = 0, -1, '', False
    while at < len(tokens):
        token = tokens[at]
        if token in _MARKS or not (token[0].isalnum() or token[0] == "'"):
            junk += token not in _MARKS or before in _MARKS or at == 0
            before = token
            at += 1
            continue
        kind, value, length = _longest(root, tokens, at)
        n_words += length
        if kind in order:
            values = stated.setdefault(kind, [])
            if value in values:
                repetition += length
            else:
                values.append(value)
            disorder += order[kind] < latest
            latest = order[kind]
        elif kind == 'filler':
            filler += length
        elif kind == 'free':
            repetition += length * has_stand_in
            has_stand_in = True
        elif token == before:
            repetition += 1
        elif kind == 'glue':
            glue += 1
        elif kind == 'junk':
            junk += 1
        at += length
        before = tokens[at - 1]
    filler += max(0, glue - FREE_GLUE)
    ended = text.rstrip()[-1:] in ('.', '?')
    stated = {kind: tuple(values) for kind, values in stated.items()}
    return Found(stated, repetition, filler, junk, disorder, ended, n_words)


def places(text: str, root: Mapping) -> Iterator[tuple[str, str, int, int]]:
    """Kind, value, and the characters from and to, of each phrase of a trie in a text."""
    lower = ''.join(sign.lower() if len(sign.lower()) == 1 else sign for sign in text)  # as long as the text
    found = list(_TOKEN.finditer(lower))
    tokens, at = [one[0] for one in found], 0
    while at < len(tokens):
        kind, value, length = _longest(root, tokens, at)
        if kind != 'junk':
            yield kind, value, found[at].start(), found[at + length - 1].end()
        at += length


def cost(found: Found) -> float:
    """What bad writing costs, in units of quality; see `read`."""
    return (
        REPEATED_WORD * found.repetition
        + FILLER_WORD * found.filler
        + JUNK_WORD * found.junk
        + STEP_BACK * found.disorder
        + NO_END * (not found.ended)
        + LONG_WORD * max(0, found.n_words - LONG)
    )


def bend(quality: float) -> float:
    """The same down to -½; below, a quality bends towards its bound -1."""
    return quality if quality >= -0.5 else -0.5 + 0.5 * math.tanh(2 * quality + 1)


def trie(phrases: Iterable[tuple[str, str, str]]) -> dict:
    """word → word → ... → {'': (kind, value)}, of (phrase, kind, value); of two equal phrases the first one counts."""
    root: dict = {}
    for phrase, kind, value in phrases:
        node = root
        for word in phrase.split():
            node = node.setdefault(word, {})
        node.setdefault(_HERE, (kind, value))
    return root


def each(phrases: Iterable[str], kind: str, value: str | None = None) -> Iterator[tuple[str, str, str]]:
    """Phrases of one kind, for `trie`, which all state the `value`; None: each states itself."""
    for phrase in phrases:
        yield phrase, kind, phrase if value is None else value


def facts_phrases() -> Iterator[tuple[str, str, str]]:
    """What posts and summaries are made of, for `trie`."""
    for table in (lexicon.summary_phrases(), lexicon.post_phrases()):
        for slot, values in table.items():
            for value, phrases in values.items():
                yield from each(phrases, slot, value)
    yield from each((lexicon.NO_RELATION, lexicon.NO_PROBLEM), 'free', '')
    yield from small_phrases()
    yield from pieces(lexicon.frames())


def small_phrases() -> Iterator[tuple[str, str, str]]:
    """Fillers and small words, for `trie`."""
    yield from each(lexicon.SUMMARY_FILLERS, 'filler', '')
    yield from each(lexicon.GLUE, 'glue', '')


def pieces(frames: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """What frames say round their holes, as filler, for `trie`."""
    for frame in frames:
        yield from each(filter(str.strip, re.split(r'my \{\}|\{\}|[.,?]', frame)), 'filler', '')


def _longest(root: Mapping, tokens: list[str], at: int) -> tuple[str, str, int]:
    """Kind, value and length of the longest phrase that starts at a token; ('junk', '', 1) where none does."""
    node, found, length = root, ('junk', ''), 1
    for end in range(at, len(tokens)):
        node = node.get(tokens[end])
        if node is None:
            break
        if _HERE in node:
            found, length = node[_HERE], end + 1 - at
    return *found, length


_ROOT = trie(facts_phrases())
