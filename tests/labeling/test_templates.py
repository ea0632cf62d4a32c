"""Golden files pin every prompt as the labeler reads it; laws hold for every folder of templates that is packaged.

RLAIF_REGENERATE_GOLDEN=1 pytest tests/labeling/test_templates.py rewrites the prompts in tests/golden/templates.
"""

import json
import os
import re
from itertools import product
from pathlib import Path

import pytest

from rlaif_jax.labeling import prompts

GOLDEN = Path(__file__).parents[1] / 'golden' / 'templates'
FOLDERS = {'open': prompts.FOLDER, **prompts.NAMED}
SHOTS = (0, 1, 2, 8)
PREAMBLES = ('base', 'base_cot', 'detailed', 'detailed_cot')
PAIRS = list(product(FOLDERS, prompts.TASKS, [f'{preamble}_{shots}shot' for preamble in PREAMBLES for shots in SHOTS]))
BOTH = list(product(FOLDERS, prompts.TASKS))
SINGLES = list(product(FOLDERS, [*((task, 'rating') for task in prompts.TASKS), ('harmless', 'harm')]))

DIALOGUE = {
    'context': 'Human: My shoes squeak.\n\nAssistant: On every floor?\n\nHuman: Only on wood. What helps?',
    'first': 'A little talcum powder under the insole.',
    'second': 'Shoes are made of leather or cloth.',
    'response': 'A little talcum powder under the insole.',
    'rationale': 'Only the first one names something that helps.',
}
SAMPLES = {
    'summarization': {
        'context': 'SUBREDDIT: r/shoes\n\nTITLE: Squeak\n\nPOST: My new shoes squeak on wood.\nWhat helps?',
        'first': 'New shoes squeak on wooden floors. Any remedy?',
        'second': 'I have new shoes.',
        'response': 'New shoes squeak on wooden floors. Any remedy?',
        'rationale': 'Only the first one says what the trouble is.',
    },
    'helpful': DIALOGUE,
    'harmless': DIALOGUE,
}


def exemplars(folder, task):
    lines = (FOLDERS[folder] / task / 'exemplars.jsonl').read_text(encoding='utf-8').splitlines()
    return [json.loads(line) for line in lines]


def template_of(name):
    """What renders a golden file, by its path."""
    folder, task, stem = name.removesuffix('.txt').split('/')
    technique, _, step = stem.partition('.')
    if technique in ('rating', 'harm'):
        return prompts.single(task, technique, FOLDERS[folder])
    asked = prompts.pair(task, technique, FOLDERS[folder])
    return asked.rationale if step else asked.verdict


def rendered(name):
    return template_of(name).render(SAMPLES[name.split('/')[1]])


FILES = [
    *(f'{folder}/{task}/{technique}.txt' for folder, task, technique in PAIRS),
    *(f'{folder}/{task}/{technique}.rationale.txt' for folder, task, technique in PAIRS if '_cot_' in technique),
    *(f'{folder}/{task}/{purpose}.txt' for folder, (task, purpose) in SINGLES),
]


@pytest.mark.parametrize('name', FILES)
def test_every_prompt_is_pinned(name):
    """Labels are stored under these words and the packaged models were taught on the micro world's: a change is meant."""
    text, path = rendered(name), GOLDEN / name
    if os.environ.get('RLAIF_REGENERATE_GOLDEN'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    assert path.exists() and text == path.read_text(encoding='utf-8'), (
        f'{path} differs; RLAIF_REGENERATE_GOLDEN=1 rewrites it'
    )


def test_no_golden_prompt_is_left_over():
    assert {str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob('*.*')} == set(FILES)


@pytest.mark.parametrize('name', FILES)
def test_a_prompt_has_no_loose_white_space(name):
    """A space behind `SCORE:` makes other tokens of the answer, and two before a word make others of the word."""
    text = rendered(name)
    assert text == text.strip() and '\n\n\n' not in text and '  ' not in text


@pytest.mark.parametrize('folder', FOLDERS)
def test_files_are_clean(folder):
    paths = [path for path in FOLDERS[folder].glob('*/*') if path.is_file()]
    assert {path.parent.name for path in paths} == set(prompts.TASKS)
    for path in paths:
        lines = path.read_text(encoding='utf-8').rstrip('\n').split('\n')
        assert all(line == line.strip() for line in lines), path
        # Structure is put together from files; a field in an instruction would end the part that all samples share.
        if path.stem not in ('sample', 'rating', 'harm', 'exemplars'):
            assert not any('{' in line for line in lines), path


@pytest.mark.parametrize('folder, task, technique', PAIRS)
def test_the_shared_part_holds_as_many_exemplars_as_shots(folder, task, technique):
    how, asked = prompts.Technique.parse(technique), prompts.pair(task, technique, FOLDERS[folder])
    example, follow, ending = (prompts.read(FOLDERS[folder], task, name) for name in ('example', 'follow', 'ending'))
    shown = exemplars(folder, task)[: how.shots]
    for template in filter(None, (asked.verdict, asked.rationale)):
        text = template.render(SAMPLES[task])
        assert text.count(example) == template.preamble.count(example) == how.shots
        assert text.count(follow) == template.preamble.count(follow) == bool(how.shots)
        assert re.findall(f'{ending}(.)', template.preamble) == [str(one['preferred']) for one in shown]
        for one in shown:
            fields = ('context', 'first', 'second', *['rationale'] * how.cot)
            assert all(f' {one[field]}\n\n' in template.preamble for field in fields)
    if how.cot:  # rationale and verdict start from the same cache
        assert asked.rationale.preamble == asked.verdict.preamble


@pytest.mark.parametrize('folder, task, technique', [case for case in PAIRS if case[2].endswith('_8shot')])
def test_exemplars_hold_nothing_that_a_sample_may_not(folder, task, technique):
    """Else the labeler is shown by example what it never meets, or writes a rationale that is broken up on its way back."""
    template = prompts.pair(task, technique, FOLDERS[folder]).verdict
    for one in exemplars(folder, task):
        assert all(template.quoted(field, text) == (text, 0) for field, text in one.items() if isinstance(text, str))


@pytest.mark.parametrize('folder, task', BOTH)
def test_exemplars_favour_no_position(folder, task):
    preferred = [one['preferred'] for one in exemplars(folder, task)]
    assert len(preferred) == 8 and preferred.count(1) == preferred.count(2) == 4
    assert set(preferred[:2]) == {1, 2}


@pytest.mark.parametrize('task', prompts.TASKS)
def test_exemplars_favour_no_length(task):
    """Of ours only: the micro world draws its own, and there the length follows from the facts."""
    longer = [1 if len(one['first']) > len(one['second']) else 2 for one in exemplars('open', task)]
    assert 3 <= sum(one['preferred'] == n for one, n in zip(exemplars('open', task), longer)) <= 5


@pytest.mark.parametrize('technique', ['detailed_8shot', 'detailed_cot_2shot'])
@pytest.mark.parametrize('task', prompts.TASKS)
def test_long_prompts_leave_room(task, technique):
    """A labeler of 4,096 tokens must hold a post of 500, its prompt, and a rationale: at four characters a token."""
    template = prompts.pair(task, technique).verdict
    longest = SAMPLES[task] | {'context': 'word ' * 400, 'first': 'word ' * 40, 'second': 'word ' * 40, 'rationale': ''}
    assert len(template.render(longest)) / 4 < 3500


@pytest.mark.parametrize('folder, task', BOTH)
def test_a_chat_answers_behind_the_last_line(folder, task):
    turn = ('<user>', '</user><model>')
    asked = prompts.pair(task, 'detailed_cot_2shot', FOLDERS[folder], turn)
    ending = prompts.read(FOLDERS[folder], task, 'ending')
    text = asked.rationale.render(SAMPLES[task])
    opening = text.partition(turn[1])[2]
    assert text.startswith(turn[0]) and '\n' not in opening
    said = f'{opening} {SAMPLES[task]["rationale"]}\n\n{ending}'
    assert asked.verdict.render(SAMPLES[task]).partition(turn[1])[2] == said
    for purpose in ('rating', *['harm'] * (task == 'harmless')):
        text = prompts.single(task, purpose, FOLDERS[folder], turn).render(SAMPLES[task])
        assert text.partition(turn[1])[2] == prompts.read(FOLDERS[folder], task, purpose).split('\n')[-1]
