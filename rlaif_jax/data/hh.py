"""Anthropic's dialogues: people's choice between two replies, for helpfulness and for harmlessness.

They are of Bai et al. 2022 (arXiv 2204.05862). A published row is two whole dialogues, chosen and rejected. Here it is the
context that they share, which ends in `\\n\\nAssistant:`, and the two last replies, each with the space before it. A few
rows share no context (5 of 2,312 in the test file of harmless-base) or end in the human's turn; they are counted and left
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif_jax.config import Mistake
from rlaif_jax.data import files, trl
from rlaif_jax.data.published import HUB, Builder, Copy, require
from rlaif_jax.data.records import Pair, Prompt, share

VALIDATION = 2 / 3  # of the published test split; the rest is ours (§3.1)
ALIGNMENT = 0.1  # of the training pairs, for measuring labelers (App. A)
ADDRESS = HUB + 'Anthropic/hh-rlhf/resolve/main/'


class Dialogues(Builder, skip_registration=True):
    """Pairs of replies.

    Splits:
      train: as published.
      validation, test: two thirds and one third of the published test split; no prompt is in both.
      alignment: 10 % of train. The paper measures labelers on such.
    """

    SPLITS = 'train', 'validation', 'test', 'alignment'
    FEATURES = {'prompt': str, 'chosen': str, 'rejected': str}
    HOMEPAGE = 'https://github.com/anthropics/hh-rlhf'
    CITATION = 'Bai et al., Training a helpful and harmless assistant with RLHF, arXiv 2204.05862'
    LICENCE = 'MIT'

    def splits(self, published: str, example: dict[str, Any]) -> Sequence[str]:
        if published == 'test':  # by the prompt alone, so that equal prompts stay together
            return ('validation',) if share('split', example['prompt']) < VALIDATION else ('test',)
        chosen = share('alignment', *(example[name] for name in self.FEATURES)) < ALIGNMENT
        return ('train', 'alignment') if chosen else ('train',)

    def example(self, row: files.Row, where: str) -> dict[str, Any] | str:
        require(row, ('chosen', 'rejected'), where)
        try:
            pair = trl.pair_of({name: row[name] for name in ('chosen', 'rejected')}, self.name, where)
        except Mistake as mistake:
            return str(mistake)
        return {'prompt': pair.prompt.text, 'chosen': pair.first, 'rejected': pair.second}


class Helpful(Dialogues):
    """helpful-base: 43,835 training rows and 2,354 test rows as published."""

    name = 'hh_helpful'
    ABOUT = 'dialogues with a more and a less helpful reply'
    COPIES = (Copy(ADDRESS + 'helpful-base', ('train.jsonl.gz', 'test.jsonl.gz'), 'Anthropic/hh-rlhf'),)
    COUNTS = {'train': 43_835, 'test': 2_354}


class Harmless(Dialogues):
    """harmless-base: 42,537 training rows and 2,312 test rows as published."""

    name = 'hh_harmless'
    ABOUT = 'dialogues with a less and a more harmful reply'
    COPIES = (Copy(ADDRESS + 'harmless-base', ('train.jsonl.gz', 'test.jsonl.gz'), 'Anthropic/hh-rlhf'),)
    COUNTS = {'train': 42_537, 'test': 2_312}


def prompt(row: Mapping[str, Any]) -> Prompt:
    """The context of a prepared row: what the policy answers in RL."""
    return Prompt(row['prompt'].decode(), row['id'].decode())


def pair(row: Mapping[str, Any]) -> Pair:
    """The two replies of a prepared row, the chosen one first."""
    return Pair(prompt(row), row['chosen'].decode(), row['rejected'].decode(), 1.0)
