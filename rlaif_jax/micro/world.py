"""Task summarization of the SIMULATED world: functions of (split, index) or of an explicit `random.Random`.

A fact sheet is drawn slot by slot; a hash of its values decides to which split it belongs, so no sheet, and no post, is
in two splits. Texts of summaries come without the space that follows `TL;DR:` in a prompt.
"""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import TypedDict

from rlaif_jax.data.records import Prompt
from rlaif_jax.micro import lexicon
from rlaif_jax.micro.lexicon import SLOTS

SPLITS = ('train', 'validation', 'test')
SPLIT_OF_BUCKET = ('train', 'train', 'validation', 'test')
_SUMMARY = lexicon.summary_phrases()
_POST = lexicon.post_phrases()
_VALUES = {slot: tuple(values) for slot, values in _SUMMARY.items()}
_WORDS = lexicon.summary_words()


class Facts(TypedDict):
    """The hidden sheet behind a post: a plain dict that JSON can hold.

    The six slots hold the truth; `distractors` maps slots to values that the post mentions but that are not its point.
    """

    id: str
    relation: str
    problem: str
    cause: str
    duration: str
    action: str
    question: str
    distractors: dict[str, str]


def split_of(facts: Facts) -> str:
    """The one split that the slot values belong to."""
    key = '|'.join(facts[slot] for slot in SLOTS).encode()
    return SPLIT_OF_BUCKET[blake2b(key, digest_size=1).digest()[0] % 4]


def check(split: str, index: int) -> None:
    """Raises ValueError for an unknown split or a negative index."""
    if split not in SPLITS:
        raise ValueError(f'unknown split {split!r}; the micro world has {", ".join(SPLITS)}')
    if index < 0:
        raise ValueError(f'index must be 0 or more, got {index}')


def facts(split: str, index: int) -> Facts:
    """The `index`-th sheet of a split. Raises ValueError for an unknown split or a negative index."""
    return draw(f'micro/{split}/{index}', split, index)


def draw(id: str, split: str, index: int) -> Facts:
    """A sheet that the id determines. Raises ValueError for an unknown split or a negative index."""
    check(split, index)
    rng = random.Random(id)
    while True:
        sheet = {slot: pick(rng, _VALUES[slot]) for slot in SLOTS}
        if split_of(sheet) == split:
            break
    mentioned = some(rng, tuple(lexicon.DISTRACTOR_FRAMES), 1 + int(rng.random() * 3))
    distractors = {slot: other_value(rng, slot, sheet[slot]) for slot in mentioned}
    if 'problem' in distractors:
        distractors['relation'] = other_value(rng, 'relation', sheet['relation'])
    return Facts(id=id, **sheet, distractors=distractors)


def sentences(facts: Facts) -> list[str]:
    """The body of the post, sentence by sentence; the same for the same sheet."""
    rng = random.Random(facts['id'] + '/post')
    first = pick(rng, lexicon.OPENINGS).format(
        relation=facts['relation'], problem=pick(rng, _POST['problem'][facts['problem']])
    )
    middle = [say(rng, lexicon.POST_FRAMES[slot], slot, facts[slot]) for slot in ('cause', 'duration', 'action')]
    middle += asides(facts, rng)
    middle += [filler + '.' for filler in some(rng, lexicon.FILLERS, int(rng.random() * 3))]
    question = say(rng, lexicon.POST_FRAMES['question'], 'question', facts['question'])
    if rng.random() < 0.3:  # the question is mostly the last word, not always
        middle.append(question)
        question = ''
    rng.shuffle(middle)
    return [first, *middle, *([question] if question else [])]


def asides(facts: Facts, rng: random.Random) -> list[str]:
    """A sentence for each distractor; a distracting problem and its relation share one."""
    others, found = facts['distractors'], []
    for slot, value in others.items():
        if slot == 'problem':
            frame = pick(rng, lexicon.DISTRACTOR_FRAMES[slot])
            found.append(frame.format(relation=others['relation'], problem=pick(rng, _POST[slot][value])))
        elif slot != 'relation':
            found.append(say(rng, lexicon.DISTRACTOR_FRAMES[slot], slot, value))
    return found


def prompt(split: str, index: int) -> Prompt:
    """The `index`-th post of a split in the format of OpenAI's TL;DR data, with its reference and its hidden facts."""
    sheet = facts(split, index)
    rng = random.Random(sheet['id'] + '/title')
    title = pick(rng, lexicon.TITLES).format(sheet['relation'])
    text = (
        f'SUBREDDIT: r/{pick(rng, lexicon.SUBREDDITS)}\n\nTITLE: {title}\n\n'
        f'POST: {" ".join(sentences(sheet))}\n\nTL;DR:'
    )
    return Prompt(text, sheet['id'], reference(sheet, random.Random(sheet['id'] + '/reference')), sheet)


# ---------------------------------------------------------------------------------------------------- summaries


def summary(stated: dict[str, str], rng: random.Random) -> str:
    """States slot → value pairs in canonical order, in one of the lexicon's wordings. All six: 16 to 21 words."""
    return ' '.join(clauses_of(stated, rng))


def reference(facts: Facts, rng: random.Random) -> str:
    """A mediocre summary, as busy people write: facts left out or wrong, filler, no end. Mean quality about .48."""
    diligence = rng.uniform(0.35, 0.85)
    clauses = clauses_of(
        {
            slot: wrong_value(rng, facts, slot) if rng.random() < 0.08 else facts[slot]
            for slot in SLOTS
            if rng.random() < diligence
        },
        rng,
    )
    if rng.random() < 0.2:
        clauses.insert(int(rng.random() * (len(clauses) + 1)), pick(rng, lexicon.SUMMARY_FILLERS) + '.')
    text = ' '.join(clauses or [pick(rng, lexicon.SUMMARY_FILLERS) + '.'])
    return text[:-1] if rng.random() < 0.15 else text


def candidate(facts: Facts, rng: random.Random) -> str:
    """A summary of any quality, to train and test labelers on, with the tricks that a policy may try on a labeler."""
    kind = rng.random()
    if kind < 0.01:
        return ''
    if kind < 0.09:
        return summary(facts, rng)
    if kind < 0.10:  # perfect, of another post
        return summary({slot: pick(rng, _VALUES[slot]) for slot in SLOTS}, rng)
    if kind < 0.22:  # perfect but for one slot
        slot = pick(rng, SLOTS)
        return summary({**facts, slot: wrong_value(rng, facts, slot)}, rng)
    if kind < 0.28:  # everything, and invented facts on top
        clauses = clauses_of(facts, rng)
        for slot in some(rng, SLOTS, 1 + int(rng.random() * 2)):
            clauses.insert(
                int(rng.random() * (len(clauses) + 1)), clauses_of({slot: wrong_value(rng, facts, slot)}, rng)[0]
            )
        return ' '.join(clauses)
    if kind < 0.31:  # sentences of the post, as they are
        lines = sentences(facts)
        copied = some(rng, tuple(range(len(lines))), 1 + int(rng.random() * 3))
        return ' '.join(lines[i] for i in sorted(copied))
    diligence = min(1.0, rng.random() * 1.6)
    wrongs = pick(rng, (0, 0, 0, 0, 0, 0, 1, 1, 2, 3))
    stated = {slot: facts[slot] for slot in SLOTS if rng.random() < diligence}
    for slot in some(rng, SLOTS, wrongs):
        stated[slot] = wrong_value(rng, facts, slot)
    clauses = clauses_of(stated, rng) or [pick(rng, lexicon.SUMMARY_FILLERS) + '.']
    if rng.random() < 0.5:
        clauses = pick(rng, _SPOILERS)(clauses, facts, rng)
    text = ' '.join(clauses)
    if rng.random() < 0.12:
        text = cut(text, rng)
    return text[:-1] if rng.random() < 0.1 else text


def misread(facts: Facts, rng: random.Random) -> str:
    """A well-made summary by someone who misread the post: of what it tells, two facts in five are wrong."""
    stated = {slot: facts[slot] for slot in SLOTS if rng.random() < 0.9}
    return summary(
        {slot: wrong_value(rng, facts, slot) if rng.random() < 0.4 else value for slot, value in stated.items()}, rng
    )


def _shuffled(clauses, facts, rng):
    return some(rng, tuple(clauses), len(clauses))


def _repeated(clauses, facts, rng):
    at = int(rng.random() * len(clauses))
    return clauses[:at] + [clauses[at]] * (2 + int(rng.random() * 2)) + clauses[at + 1 :]


def _stuttered(clauses, facts, rng):
    words = ' '.join(clauses).split()
    at = int(rng.random() * len(words))
    return words[:at] + [words[at].strip('.,?')] * (1 + int(rng.random() ** 2 * 12)) + words[at:]


def _filled(clauses, facts, rng):
    return clauses + [filler + '.' for filler in some(rng, lexicon.SUMMARY_FILLERS, 1 + int(rng.random() * 3))]


def _copied(clauses, facts, rng):
    return clauses + [pick(rng, sentences(facts))]


def _junked(clauses, facts, rng):
    words = ' '.join(clauses).split()
    for _ in range(1 + int(rng.random() ** 2 * 8)):
        words.insert(int(rng.random() * (len(words) + 1)), pick(rng, _WORDS))
    return words


def _doubled(clauses, facts, rng):
    """A second duration or a second question, in the hope that one of the two is right."""
    slot = pick(rng, ('duration', 'question'))
    return clauses + clauses_of({slot: wrong_value(rng, facts, slot)}, rng)


def _punctuated(clauses, facts, rng):
    mark = pick(rng, ('..', ',', '??', '', '...', ',,'))
    return [clause.rstrip('.,?') + mark for clause in clauses]


_SPOILERS = (_shuffled, _shuffled, _repeated, _repeated, _stuttered, _filled, _copied, _junked, _doubled, _punctuated)
BAD_WRITING = (_shuffled, _repeated, _repeated, _stuttered, _filled, _junked, _punctuated)  # for the other tasks


def cut(text: str, rng: random.Random) -> str:
    """The first words of a text, as at the limit of a response's length."""
    words = text.split()
    return ' '.join(words[: max(1, int(len(words) * rng.uniform(0.3, 1.0)))])


# ---------------------------------------------------------------------------------------------------- pieces


def wording(rng: random.Random, slot: str, value: str) -> str:
    """How a summary tells a value."""
    return pick(rng, _SUMMARY[slot][value])


def clauses_of(stated, rng) -> list[str]:
    """One text for relation and problem, one for each other slot stated; each sentence's last one carries its mark."""
    wording = {slot: pick(rng, _SUMMARY[slot][stated[slot]]) for slot in SLOTS if slot in stated}
    relation, problem = wording.pop('relation', None), wording.pop('problem', None)
    story = []
    if problem:
        story.append(f'{relation or lexicon.NO_RELATION} {problem}')
    elif relation:
        story.append(f'{lexicon.NO_PROBLEM} {relation}')
    story += [wording[slot] for slot in ('cause', 'duration') if slot in wording]
    if story:
        story[-1] += '.'
    return story + [wording[slot] + mark for slot, mark in (('action', '.'), ('question', '?')) if slot in wording]


def say(rng, frames, slot, value) -> str:
    return pick(rng, frames).format(pick(rng, _POST[slot][value]))


def wrong_value(rng, facts, slot) -> str:
    """A wrong value: half of the time the one that the post mentions in passing, if it does."""
    mentioned = facts['distractors'].get(slot)
    return mentioned if mentioned and rng.random() < 0.5 else other_value(rng, slot, facts[slot])


def other_value(rng, slot, value) -> str:
    while True:
        other = pick(rng, _VALUES[slot])
        if other != value:
            return other


def pick(rng, items):
    return items[int(rng.random() * len(items))]  # several times faster than rng.choice


def some(rng, items, count) -> list:
    """`count` different items, in random order."""
    return rng.sample(items, count)
