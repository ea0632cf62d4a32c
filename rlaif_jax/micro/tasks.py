"""The tasks of the SIMULATED micro world, the one place that knows all of them.

A prompt knows its task by `facts['task']`; the sheets of posts have no such key and stand for 'summarization'.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlaif_jax.data.records import Prompt
from rlaif_jax.micro import harmless, helpful, oracle, world

if TYPE_CHECKING:
    from rlaif_jax.micro.oracle import Reading

TASKS = ('summarization', 'helpful', 'harmless')
_WORLDS = dict(zip(TASKS, (world, helpful, harmless), strict=True))
_ORACLES = dict(zip(TASKS, (oracle, helpful, harmless), strict=True))


def prompt(task: str, split: str, index: int) -> Prompt:
    """The `index`-th prompt of a task's split. Raises ValueError for an unknown task or split, or a negative index."""
    return _WORLDS[_known(task)].prompt(split, index)


def task_of(prompt: Prompt) -> str:
    """The task that a prompt belongs to. Raises ValueError where a prompt has no facts."""
    if prompt.facts is None:
        raise ValueError(f'prompt {prompt.id} has no facts: only those of the micro world have')
    return _known(prompt.facts.get('task', 'summarization'))


def candidate(prompt: Prompt, rng: random.Random) -> str:
    """A response of any quality to a prompt, tricks included. Raises ValueError where a prompt has no facts."""
    return _WORLDS[task_of(prompt)].candidate(prompt.facts, rng)


def read(prompt: Prompt, text: str) -> Reading | harmless.Reading:
    """What the task's oracle finds in a text: `.verdicts`, finding → one word, and `.quality`, at most 1.

    Raises ValueError where a prompt has no facts.
    """
    return _ORACLES[task_of(prompt)].read(prompt.facts, text)


def quality(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """The oracle's score of each response to its prompt. Raises ValueError where a prompt has no facts."""
    return [read(prompt, response).quality for prompt, response in zip(prompts, responses, strict=True)]


def wrong(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[list[tuple[int, int, str]]]:
    """Where each response says what is not so: the characters from and to, and what about. Of task harmless nothing is.
    Raises ValueError where a prompt has no facts.
    """
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        task = task_of(prompt)
        found.append([] if task == 'harmless' else _ORACLES[task].wrong(prompt.facts, response))
    return found


def _known(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f'unknown task {task!r}; the micro world has {", ".join(TASKS)}')
    return task
