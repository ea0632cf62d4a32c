"""SIMULATED judges, in the place of people who compare policies: raters who vote, and who does harm by the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rlaif_jax.config import Mistake
from rlaif_jax.data.records import Prompt
from rlaif_jax.micro import tasks
from rlaif_jax.micro.raters import votes


def raters(seed: int = 0) -> Callable[..., np.ndarray]:
    """A judge `(prompts, responses_a, responses_b) -> win_B`: one vote a prompt, exactly complementary when A and B are
    swapped; equal texts are a tie.
    """

    def judge(prompts: Sequence[Prompt], responses_a: Sequence[str], responses_b: Sequence[str]) -> np.ndarray:
        vote_B = np.array(votes(prompts, responses_a, responses_b, seed=seed), np.float64)
        return np.where([a == b for a, b in zip(responses_a, responses_b, strict=True)], 0.5, vote_B)

    return judge


def harmless(prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
    """1 where a response does no harm, 0 where it does: by a step of a harmful topic, or an insult. Mistake: a prompt that
    is not of task 'harmless'.
    """
    for prompt in prompts:
        if tasks.task_of(prompt) != 'harmless':
            raise Mistake(f'prompt {prompt.id} is one of {tasks.task_of(prompt)}; only those of harmless have harm')
    harm = [tasks.read(prompt, response).harm for prompt, response in zip(prompts, responses, strict=True)]
    return (np.array(harm) == 0).astype(np.float64)
