"""Laws of the figures of the simulated world: a truth is no hallucination, a figure belongs to the responses that it
applies to.
"""

import random

import numpy as np
import pytest

from experiments.report import intervals
from rlaif_jax.data.records import Prompt
from rlaif_jax.micro import harmless, helpful, tasks, world
from rlaif_jax.micro.figures import ABOUT, figures

N = 60


def qualities(prompts, responses):
    """As a report has them: with their intervals."""
    return intervals(figures(prompts, responses), ABOUT)


PROMPTS = {task: [tasks.prompt(task, 'test', i) for i in range(N)] for task in tasks.TASKS}


def perfect(prompt):
    """A summary of every fact, in order."""
    return world.summary({slot: prompt.facts[slot] for slot in world.SLOTS}, random.Random(prompt.id))


def test_a_perfect_summary_is_covered_ordered_ended_and_true():
    posts = PROMPTS['summarization']
    found = qualities(posts, [perfect(prompt) for prompt in posts])
    assert {name: found[name].value for name in ('hallucination', 'coverage', 'disorder', 'ended')} == {
        'hallucination': 0,
        'coverage': 1,
        'disorder': 0,
        'ended': 1,
    }
    assert found['quality'].value > 0.9 and all(interval.n == N for interval in found.values())


def test_one_wrong_fact_is_a_hallucination_and_costs_its_coverage():
    posts, rng = PROMPTS['summarization'], random.Random(0)
    texts = []
    for i, prompt in enumerate(posts):
        stated = {slot: prompt.facts[slot] for slot in world.SLOTS}
        if i % 3 == 0:
            stated['problem'] = world.other_value(rng, 'problem', prompt.facts['problem'])
        texts.append(world.summary(stated, rng))
    found = qualities(posts, texts)
    assert found['hallucination'].value == pytest.approx(1 / 3)
    assert found['coverage'].value == pytest.approx(1 - 1 / 3 / 6)


def test_silence_is_neither_true_nor_false():
    posts = PROMPTS['summarization']
    found = qualities(posts, [''] * N)
    assert found['hallucination'].value == found['coverage'].value == found['ended'].value == 0
    assert 'repetition' not in found  # of no words, no share
    twice = qualities(posts, [f'{perfect(prompt)} {perfect(prompt)}' for prompt in posts])
    assert 0.3 < twice['repetition'].value <= 0.5 and twice['disorder'].value == 1 and twice['hallucination'].value == 0


def test_an_answer_of_the_truth_is_true_and_a_false_no_is_not():
    dialogues, rng = PROMPTS['helpful'], random.Random(1)
    found = qualities(dialogues, [helpful.answer(helpful.truth(prompt.facts), rng) for prompt in dialogues])
    assert (found['hallucination'].value, found['coverage'].value) == (0, 1) and 'disorder' not in found
    denied = [helpful.answer(dict.fromkeys(prompt.facts['asked']), rng) for prompt in dialogues]
    told = [any(slot in prompt.facts['told'] for slot in prompt.facts['asked']) for prompt in dialogues]
    assert qualities(dialogues, denied)['hallucination'].value == pytest.approx(np.mean(told))


def test_refusing_everything_is_over_refusal():
    requests, rng = PROMPTS['harmless'], random.Random(2)
    benign = sum(prompt.facts['request'] == 'benign' for prompt in requests)
    refused = qualities(requests, [harmless.refusal(rng) for _ in requests])
    complied = qualities(requests, [harmless.compliance(prompt.facts, rng, steps=2) for prompt in requests])
    assert (refused['over_refusal'].value, complied['over_refusal'].value) == (1, 0)
    assert refused['over_refusal'].n == benign < N and 'hallucination' not in refused


@pytest.mark.parametrize('task', tasks.TASKS)
def test_intervals_hold_their_values_and_tasks_do_not_mix(task):
    rng = random.Random(3)
    texts = {name: [tasks.candidate(prompt, rng) for prompt in prompts] for name, prompts in PROMPTS.items()}
    alone = qualities(PROMPTS[task], texts[task])
    for name, interval in alone.items():
        assert (-1 if name == 'quality' else 0) <= interval.low <= interval.value <= interval.high <= 1, name
    # A figure that only this task has is the same among all tasks.
    mixed = qualities(sum(PROMPTS.values(), []), sum(texts.values(), []))
    only = {'summarization': ['disorder'], 'helpful': [], 'harmless': ['over_refusal']}[task]
    assert [mixed[name] for name in only] == [alone[name] for name in only]
    assert mixed['quality'].n == 3 * N and mixed['coverage'].n == 2 * N


def test_a_prompt_of_the_real_world_has_no_oracle():
    with pytest.raises(ValueError, match='prompt id .*facts'):
        qualities([Prompt('a post', 'id')], ['a summary'])
    assert qualities([], []) == {}
