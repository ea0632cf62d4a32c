"""The two records that every stage passes on: a prompt, and a pair of responses to it; and a hash that splits them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """What the policy reads.

    Attributes:
      text: the whole prompt; for summaries it ends in `TL;DR:`, so a response starts with a space.
      id: unique and stable, such as `micro/train/17`.
      reference: a response written by a person (or by the simulated writer); '' where there is none.
      facts: the hidden truth behind the prompt; simulated worlds only, otherwise None. Not for the models' eyes.
    """

    text: str
    id: str
    reference: str = ''
    facts: Mapping | None = None


@dataclass(frozen=True)
class Pair:
    """A prompt with two candidate responses.

    Attributes:
      preference: P(`first` is better), in [0, 1]; 0 or 1 where one rater voted; None where nobody was asked.
    """

    prompt: Prompt
    first: str
    second: str
    preference: float | None = None


def share(*texts: str) -> float:
    """A number in [0, 1) that is a hash of the texts: what falls below 0.1 is a random tenth, the same everywhere."""
    digest = hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') / 2**64
