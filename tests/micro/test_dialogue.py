"""Laws of the micro world's dialogue tasks, helpful and harmless, and of the module that knows all tasks."""

import dataclasses
import json
import os
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif_jax.data.records import Prompt
from rlaif_jax.micro import harmless, helpful, judges, lexicon, raters, sources, tasks, tokenizer, world
from rlaif_jax.micro.lexicon import SLOTS

N = 1000
DIALOGUES = ('helpful', 'harmless')


@pytest.fixture(scope='module')
def prompts():
    return {task: list(sources.prompts(task, 'train', N)) for task in DIALOGUES}


@pytest.fixture(scope='module')
def candidates(prompts):
    return {task: [tasks.candidate(prompt, random.Random(prompt.id)) for prompt in prompts[task]] for task in DIALOGUES}


@pytest.fixture(scope='module')
def tokens():
    built = tokenizer.build()
    return lambda text: built(text, add_special_tokens=False, split_special_tokens=True)['input_ids']


def quality(prompt, text):
    return tasks.read(prompt, text).quality


# ---------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize('task', DIALOGUES)
def test_prompts_have_the_format_of_hh_and_facts_that_json_can_hold(prompts, task):
    for prompt in prompts[task]:
        assert re.fullmatch(r'\n\nHuman: [^\n]+\n\nAssistant:', prompt.text)
        assert json.loads(json.dumps(prompt.facts)) == prompt.facts and prompt.facts['task'] == task
        assert tasks.task_of(prompt) == task and prompt.reference == prompt.reference.strip()
    assert len({prompt.id for prompt in prompts[task]}) == N


@pytest.mark.parametrize('task', DIALOGUES)
def test_no_prompt_is_in_two_splits(task):
    keys, texts = {}, {}
    names = SLOTS if task == 'helpful' else ('topic', 'relation', 'problem')
    for split in world.SPLITS:
        for prompt in sources.prompts(task, split, N):
            assert keys.setdefault(tuple(prompt.facts[name] for name in names), split) == split
            assert texts.setdefault(prompt.text, split) == split


def test_the_tasks_are_the_same_in_every_process():
    code = (
        'from rlaif_jax.micro import raters, tasks; import dataclasses, json;'
        'print(json.dumps([dataclasses.asdict(raters.pair("test", i, t)) for t in tasks.TASKS for i in range(10)]))'
    )
    here = [dataclasses.asdict(raters.pair('test', index, task)) for task in tasks.TASKS for index in range(10)]
    there = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | {'PYTHONHASHSEED': '1'},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        encoding='utf-8',
    )
    assert json.loads(there.stdout) == json.loads(json.dumps(here))


@pytest.mark.parametrize('task', DIALOGUES)
def test_a_swap_gives_the_complementary_vote_and_raters_are_as_noisy_as_for_summaries(task):
    pairs = [raters.pair('validation', index, task) for index in range(N)]
    prompts, firsts, seconds = zip(*((pair.prompt, pair.first, pair.second) for pair in pairs), strict=True)
    votes = raters.votes(prompts, firsts, seconds, seed=0)
    assert [1 - vote for vote in votes] == raters.votes(prompts, seconds, firsts, seed=0)
    assert votes == [pair.preference for pair in pairs]
    agreement = statistics.mean(p * p + (1 - p) ** 2 for p in raters.probability(prompts, firsts, seconds))
    assert 0.74 <= agreement <= 0.82
    assert statistics.mean(raters.confident(prompts, firsts, seconds)) >= 1 / 3


@pytest.mark.parametrize('task', DIALOGUES)
def test_candidates_are_of_every_quality(prompts, candidates, task):
    found = tasks.quality(prompts[task], candidates[task])
    assert statistics.pstdev(found) >= 0.25 and -1 <= min(found) and max(found) <= 1
    assert sum(q > 0.85 for q in found) >= 0.1 * N and sum(q < 0.1 for q in found) >= 0.1 * N


@pytest.mark.parametrize('task', DIALOGUES)
def test_bad_writing_costs_and_any_text_is_read(prompts, task):
    rng = random.Random(0)
    for prompt in prompts[task][:100]:
        text = best_response(prompt, rng)
        for worse in (text + ' ' + text, text + ' casino rifle', text + ' thanks for reading.', text.rstrip('.?'), ''):
            assert quality(prompt, worse) < quality(prompt, text) - 0.01, worse
        assert quality(prompt, text.upper()) == quality(prompt, ' ' + text) == quality(prompt, text)
        assert -1 <= quality(prompt, rng.randbytes(90).decode('latin-1')) < quality(prompt, text)


@pytest.mark.parametrize('task', DIALOGUES)
def test_every_word_is_one_token(prompts, candidates, tokens, task):
    for prompt, text in zip(prompts[task], candidates[task], strict=True):
        assert len(tokens(prompt.text)) == len(re.findall(r'[.,?]|[^\s.,?]+', prompt.text))
        for response in (text, prompt.reference):
            if response:
                assert len(tokens(' ' + response)) == len(re.findall(r'[.,?]|[^\s.,?]+', response))
                assert tokens(prompt.text) + tokens(' ' + response) == tokens(prompt.text + ' ' + response)


def test_prompts_are_short(prompts):
    lengths = [len(prompt.text.split()) for prompt in prompts['helpful']]
    assert 50 <= statistics.mean(lengths) <= 70 and max(lengths) <= 95
    assert max(len(prompt.text.split()) for prompt in prompts['harmless']) <= 50


def test_unknown_tasks_splits_and_prompts_without_facts_are_refused():
    with pytest.raises(ValueError, match="'chess'.* summarization, helpful, harmless"):
        tasks.prompt('chess', 'train', 0)
    for task in tasks.TASKS:
        with pytest.raises(ValueError, match="'dev'.* train, validation, test"):
            tasks.prompt(task, 'dev', 0)
        with pytest.raises(ValueError, match='index .* -1'):
            tasks.prompt(task, 'train', -1)
    for function in (tasks.quality, judges.harmless):
        with pytest.raises(ValueError, match='prompt x .*facts'):
            function([Prompt('hello', 'x')], ['hi'])


def test_summaries_keep_their_prompts_and_their_oracle():
    prompt = tasks.prompt('summarization', 'train', 3)
    assert prompt == world.prompt('train', 3) and 'task' not in prompt.facts
    assert set(tasks.read(prompt, prompt.reference).verdicts) == set(SLOTS)


def best_response(prompt, rng):
    facts = prompt.facts
    if facts['task'] == 'helpful':
        return helpful.answer(helpful.truth(facts), rng)
    if facts['request'] == 'benign':
        return harmless.compliance(facts, rng, steps=3)
    return harmless.refusal(rng, extras=1)


@pytest.mark.parametrize('task', DIALOGUES)
def test_the_best_response_is_perfect(prompts, task):
    rng = random.Random(0)
    for prompt in prompts[task]:
        assert quality(prompt, best_response(prompt, rng)) >= 0.99


# ---------------------------------------------------------------------------------------------------- helpful


def test_the_human_tells_what_is_told_and_nothing_of_the_rest(prompts):
    for prompt in prompts['helpful']:
        facts = prompt.facts
        reading = tasks.read(prompt, ' '.join(helpful.sentences(facts)))
        assert reading.junk == 0 and 'unknown' not in reading.stated
        for slot in SLOTS:
            expected = ({facts[slot]} if slot in facts['told'] else set()) | {facts['distractors'].get(slot)} - {None}
            assert set(reading.stated.get(slot, ())) == expected
        assert 2 <= len(facts['asked']) <= 3 and len(facts['told']) >= 4


def test_inventing_is_worse_than_silence_and_silence_worse_than_the_truth(prompts):
    rng = random.Random(0)
    untold = 0
    for prompt in prompts['helpful'][:300]:
        facts = prompt.facts
        right = helpful.truth(facts)
        for slot in right:
            other = world.wrong_value(rng, facts, slot)
            # Where the human did not tell, even the sheet's own value is invented.
            wrongs = [other, None if right[slot] else facts[slot]]
            silent = helpful.answer({key: value for key, value in right.items() if key != slot}, rng)
            assert tasks.read(prompt, silent).verdicts[slot] == 'missing'
            assert tasks.read(prompt, helpful.answer(right, rng)).verdicts[slot] == 'right'
            assert quality(prompt, silent) < quality(prompt, helpful.answer(right, rng)) - 0.05
            for wrong in wrongs:
                text = helpful.answer({**right, slot: wrong}, rng)
                assert tasks.read(prompt, text).verdicts[slot] == 'wrong'
                assert quality(prompt, text) < quality(prompt, silent) - 0.05
            untold += right[slot] is None
    assert untold > 60


def test_what_nobody_asked_costs_a_little(prompts):
    for prompt in prompts['helpful'][:100]:
        facts = prompt.facts
        right = helpful.truth(facts)
        slot = next(slot for slot in SLOTS if slot not in facts['asked'])
        more = helpful.answer({**right, slot: facts[slot]}, random.Random(0))
        best = quality(prompt, helpful.answer(right, random.Random(0)))
        assert best - 0.15 < quality(prompt, more) < best - 0.03
        assert set(tasks.read(prompt, more).verdicts) == set(facts['asked'])


def test_the_references_of_helpful_are_mediocre(prompts):
    found = tasks.quality(prompts['helpful'], [prompt.reference for prompt in prompts['helpful']])
    assert 0.42 <= statistics.mean(found) <= 0.58


# ---------------------------------------------------------------------------------------------------- harmless


def test_harm_decides_first(prompts, candidates):
    for request in ('harmful', 'benign'):
        highest, lowest = {}, {}
        for prompt, text in zip(prompts['harmless'], candidates['harmless'], strict=True):
            if prompt.facts['request'] == request:
                reading = tasks.read(prompt, text)
                highest[reading.harm] = max(highest.get(reading.harm, -1), reading.quality)
                lowest[reading.harm] = min(lowest.get(reading.harm, 1), reading.quality)
        assert set(highest) == {0, 0.5, 1}
        assert lowest[0] > highest[0.5] and lowest[0.5] > highest[1]


def test_refusing_harms_nobody_and_complying_does(prompts):
    rng = random.Random(0)
    for prompt in prompts['harmless'][:300]:
        facts = prompt.facts
        texts = [
            harmless.refusal(rng, extras=1),
            harmless.refusal(rng),
            harmless.compliance(facts, rng, steps=1),
            harmless.refusal(rng) + ' ' + harmless.compliance(facts, rng, steps=3),
            harmless.compliance(facts, rng, steps=3),
        ]
        verdicts = ['refuses', 'refuses', 'partly', 'complies', 'complies']
        readings = [tasks.read(prompt, text) for text in texts]
        assert [reading.verdicts['response'] for reading in readings] == verdicts
        harmful = (judges.harmless([prompt] * 5, texts) == 0).tolist()
        qualities = [reading.quality for reading in readings]
        if facts['request'] == 'harmful':
            assert harmful == [False, False, True, True, True] and qualities == sorted(qualities, reverse=True)
        else:
            assert not any(harmful) and qualities[4] > qualities[2] > max(qualities[:2])


def test_insults_and_steps_of_other_harmful_topics_harm_everywhere(prompts):
    rng = random.Random(0)
    for prompt in prompts['harmless'][:300]:
        best = best_response(prompt, rng)
        rude = best + ' ' + rng.choice(lexicon.INSULTS) + '.'
        topic = next(topic for topic in lexicon.HARMFUL if topic != prompt.facts['topic'])
        other = ', then '.join(lexicon.HARMFUL[topic][1]) + '.'
        assert judges.harmless([prompt] * 3, [best, rude, other]).tolist() == [1, 0, 0]
        assert tasks.read(prompt, rude).verdicts['insult'] == 'yes' and tasks.read(prompt, other).harm == 1
        assert quality(prompt, rude) < quality(prompt, '') < quality(prompt, best)


def test_every_phrase_says_what_it_should_and_nothing_else(prompts):
    facts = prompts['harmless'][0].facts
    tables = {
        'step': [step for table in (lexicon.HARMFUL, lexicon.BENIGN) for _, steps in table.values() for step in steps],
        'insult': lexicon.INSULTS,
        'refusal': lexicon.REFUSALS,
        'reason': lexicon.REASONS,
        'alternative': lexicon.ALTERNATIVES,
        'hedge': lexicon.HEDGES,
        'agreement': lexicon.AGREEMENTS,
    }
    for kind, phrases in tables.items():
        for phrase in phrases:
            reading = harmless.read(facts, phrase)
            assert set(reading.stated) == {kind} and reading.junk == reading.filler == reading.repetition == 0, phrase
            assert not any(f' {phrase} ' in f' {other} ' for other in phrases if other != phrase), phrase
    for slot, phrases in lexicon.unknown_phrases().items():
        for phrase in phrases:
            assert helpful.read(tasks.prompt('helpful', 'train', 0).facts, phrase).stated == {'unknown': (slot,)}


def test_people_ask_for_harm_in_seven_of_ten_prompts_and_get_it_in_four_of_ten(prompts):
    asked = [prompt for prompt in prompts['harmless'] if prompt.facts['request'] == 'harmful']
    assert 0.65 <= len(asked) / N <= 0.75
    for prompt in prompts['harmless']:
        reading = tasks.read(prompt, ' '.join(harmless.sentences(prompt.facts)))
        assert reading.junk == reading.harm == 0
    assert 0.54 <= judges.harmless(asked, [prompt.reference for prompt in asked]).mean() <= 0.66
