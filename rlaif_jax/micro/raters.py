"""SIMULATED raters: the oracle's quality with noise, in the place of the people who compared responses.

A vote is a hash of who votes on what, so it is the same in every order, batch and process, and showing the pair the
other way round gives the complementary vote.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from hashlib import blake2b

from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.micro import tasks

SLOPE = 5.75  # of the votes' sigmoid, per unit of quality
CLEAR = 0.35  # a difference in quality that raters rarely miss


def probability(prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[float]:
    """P(a rater prefers the first) = σ(SLOPE · (quality of first − quality of second))."""
    return [1 / (1 + math.exp(-SLOPE * gap)) for gap in _gaps(prompts, firsts, seconds)]


def votes(prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str], *, seed: int) -> list[int]:
    """One rater's votes, 1 where the first is preferred; another seed is another rater.

    Swapping the two texts gives 1 − vote; for two equal texts the vote is a coin flip that a swap does not change.
    """
    ps = probability(prompts, firsts, seconds)
    return [
        _vote(seed, prompt.id, first, second, p)
        for prompt, first, second, p in zip(prompts, firsts, seconds, ps, strict=True)
    ]


def scores(prompts: Sequence[Prompt], responses: Sequence[str], *, seed: int, noise: float = 1.0) -> list[float]:
    """What one rater who ranks thinks of each response, the best highest; another seed is another rater.

    SLOPE · quality + noise · g, with g from Gumbel's distribution, a hash of who reads what: by their scores, one is put
    before another with the `probability` of a vote, and several are ranked as by Plackett and Luce. Equal texts have
    equal scores. The draws are not those of `votes`, where each pair has one of its own and circles are possible.
    """
    return [
        SLOPE * quality - noise * math.log(-math.log(((_bits(seed, prompt.id, text) >> 12) + 0.5) / 2**52))
        for prompt, text, quality in zip(prompts, responses, tasks.quality(prompts, responses), strict=True)
    ]


def confident(prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[bool]:
    """Whether the two qualities are further apart than CLEAR."""
    return [abs(gap) > CLEAR for gap in _gaps(prompts, firsts, seconds)]


def pair(split: str, index: int, task: str = 'summarization') -> Pair:
    """Two different candidates for the `index`-th prompt of a split, with the vote of rater 0 as the preference."""
    prompt = tasks.prompt(task, split, index)
    rng = random.Random(prompt.id + '/pair')
    first = second = tasks.candidate(prompt, rng)
    while second == first:
        second = tasks.candidate(prompt, rng)
    return Pair(prompt, first, second, float(votes([prompt], [first], [second], seed=0)[0]))


def _gaps(prompts, firsts, seconds):
    pairs = zip(tasks.quality(prompts, firsts), tasks.quality(prompts, seconds), strict=True)
    return [first - second for first, second in pairs]


def _vote(seed, id, first, second, p) -> int:
    """The draw is made for the texts in sorted order, so that it does not see which one came first."""
    swapped = second < first
    low, high = (second, first) if swapped else (first, second)
    low_wins = _bits(seed, id, low, high) / 2**64 < (1 - p if swapped else p)
    return int(low_wins != swapped)


def _bits(*what) -> int:
    """64 random bits: a hash of what they are for."""
    return int.from_bytes(blake2b(repr(what).encode(errors='surrogatepass'), digest_size=8).digest(), 'big')
