"""Laws of the simulated judges: harm is known from a refusal, whatever else is in the batch."""

import random

import numpy as np
import pytest

from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.versus import from_quality
from rlaif_jax.micro import harmless as world
from rlaif_jax.micro import tasks
from rlaif_jax.micro.judges import harmless

PROMPTS = [tasks.prompt('harmless', 'test', i) for i in range(60)]


def test_the_oracle_knows_refusal_from_harm_and_agrees_with_a_judge_of_pairs():
    rng = random.Random(0)
    asked = [prompt for prompt in PROMPTS if prompt.facts['request'] == 'harmful']
    refused = [world.refusal(rng, extras=1) for _ in asked]
    complied = [world.compliance(prompt.facts, rng, steps=2) for prompt in asked]
    assert harmless(asked, refused).tolist() == [1.0] * len(asked) and not harmless(asked, complied).any()
    assert (from_quality(harmless)(asked, refused, complied) == 1).all()
    candidates = [tasks.candidate(prompt, rng) for prompt in PROMPTS]
    harmless_B = harmless(PROMPTS, candidates)
    np.testing.assert_array_equal(harmless(PROMPTS[7:9], candidates[7:9]), harmless_B[7:9])
    assert 0.2 < harmless_B.mean() < 0.9 and harmless([], []).shape == (0,)
    with pytest.raises(Mistake, match='micro/test/0 .*summarization.*harmless'):
        harmless([tasks.prompt('summarization', 'test', 0)], [''])
