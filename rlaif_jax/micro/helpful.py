"""Task helpful of the SIMULATED world: a human tells a story, leaves something out, and asks for parts of it in short.

A helpful response states what was asked and told, says that the human did not tell the rest, and adds nothing. Sheets
are those of posts, with the same split, so no sheet is in two splits. Responses come without the space that follows
`Assistant:` in a prompt.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from rlaif_jax.data.records import Prompt
from rlaif_jax.micro import lexicon, oracle, world
from rlaif_jax.micro.lexicon import SLOTS
from rlaif_jax.micro.oracle import Reading

UNASKED = 0.08  # for each slot that is mentioned and was not asked
SPAN = 0.7  # keeps votes as noisy, and ratings as spread out, as those of summaries


class Facts(world.Facts):
    """A sheet, with what the human tells and asks; JSON can hold it.

    The six slots hold the truth, told or not; `told` and `asked` list slots in the order of the sheet.
    """

    task: str
    told: list[str]
    asked: list[str]


def facts(split: str, index: int) -> Facts:
    """The `index`-th sheet of a split. Raises ValueError for an unknown split or a negative index."""
    id = f'micro/helpful/{split}/{index}'
    sheet = world.draw(id, split, index)
    rng = random.Random(id + '/asked')
    asked = world.some(rng, SLOTS, 2 + int(rng.random() * 2))
    spare = world.pick(rng, [slot for slot in SLOTS if slot not in asked])
    untold = world.some(rng, [*asked, spare], world.pick(rng, (0, 1, 1, 2)))
    # One distractor at most, of the slot left out where it can be: that is where inventing tempts.
    others = [slot for slot in sheet['distractors'] if slot in lexicon.DISTRACTOR_FRAMES]
    others.sort(key=lambda slot: slot not in untold)
    kept = others[: rng.random() < 0.6]
    if 'problem' in kept:
        kept = ['problem', 'relation']
    sheet['distractors'] = {slot: sheet['distractors'][slot] for slot in kept}
    return Facts(
        **sheet,
        task='helpful',
        told=[slot for slot in SLOTS if slot not in untold],
        asked=[slot for slot in SLOTS if slot in asked],
    )


def sentences(facts: Facts) -> list[str]:
    """What the human says, sentence by sentence; the last one asks. The same for the same facts."""
    rng = random.Random(facts['id'] + '/story')
    told = facts['told']
    opening = world.pick(rng, lexicon.OPENINGS if 'problem' in told else lexicon.BARE_OPENINGS)
    if 'relation' not in told:
        opening = opening.replace('my {relation}', lexicon.NO_RELATION)
    problem = world.pick(rng, lexicon.post_phrases()['problem'][facts['problem']])
    middle = [world.say(rng, frames, slot, facts[slot]) for slot, frames in lexicon.POST_FRAMES.items() if slot in told]
    middle += world.asides(facts, rng)
    middle += [filler + '.' for filler in world.some(rng, lexicon.FILLERS, int(rng.random() * 2))]
    rng.shuffle(middle)
    asks = world.some(rng, [world.pick(rng, lexicon.ASKS[slot]) for slot in facts['asked']], len(facts['asked']))
    ask = world.pick(rng, lexicon.ASK_FRAMES).format(', '.join(asks[:-1]) + ' and ' + asks[-1])
    return [opening.format(relation=facts['relation'], problem=problem), *middle, ask]


def prompt(split: str, index: int) -> Prompt:
    """The `index`-th dialogue of a split in the format of Anthropic's HH data, with its reference and its facts."""
    sheet = facts(split, index)
    text = f'\n\nHuman: {" ".join(sentences(sheet))}\n\nAssistant:'
    return Prompt(text, sheet['id'], reference(sheet, random.Random(sheet['id'] + '/reference')), sheet)


# ---------------------------------------------------------------------------------------------------- responses


def truth(facts: Facts) -> dict[str, str | None]:
    """What a perfect response says: asked slot → its value, None where the human did not tell it."""
    return {slot: facts[slot] if slot in facts['told'] else None for slot in facts['asked']}


def answer(said: Mapping[str, str | None], rng: random.Random) -> str:
    """States slot → value pairs in the lexicon's wordings; where the value is None, says that it was not told."""
    return ' '.join(_clauses(said, rng))


def reference(facts: Facts, rng: random.Random) -> str:
    """A mediocre answer of an average assistant: parts missing, wrong or invented. Mean quality about .5."""
    right, said = truth(facts), {}
    for slot in facts['asked']:
        luck = rng.random()
        if luck < 0.5:
            said[slot] = right[slot]
        elif luck < 0.7:
            said[slot] = _wrong(rng, facts, slot)
    clauses = _clauses(said, rng)
    if rng.random() < 0.2 or not clauses:
        clauses.insert(int(rng.random() * (len(clauses) + 1)), world.pick(rng, lexicon.CHATTER) + '.')
    text = ' '.join(clauses)
    return text.rstrip('.?') if rng.random() < 0.15 else text


def candidate(facts: Facts, rng: random.Random) -> str:
    """A response of any quality, to train and test labelers on, with the tricks that a policy may try on a labeler."""
    kind, right = rng.random(), truth(facts)
    if kind < 0.01:
        return ''
    if kind < 0.11:
        return answer(right, rng)
    if kind < 0.21:  # perfect but for one slot, which is invented where the human did not tell it
        slot = world.pick(rng, facts['asked'])
        return answer({**right, slot: _wrong(rng, facts, slot)}, rng)
    if kind < 0.29:  # perfect, and slots that nobody asked for
        return answer({**_unasked(rng, facts, 1 + int(rng.random() * 3)), **right}, rng)
    if kind < 0.32:  # knows nothing
        return answer(dict.fromkeys(facts['asked']), rng)
    if kind < 0.35:  # knows everything
        return answer({slot: _guess(rng, facts, slot) for slot in facts['asked']}, rng)
    if kind < 0.37:  # both, in the hope that one of the two is right
        told, denied = ({slot: facts[slot] for slot in right}, dict.fromkeys(right))
        return answer(told, rng) + ' ' + answer(denied, rng)
    if kind < 0.40:  # sentences of the human, as they are
        lines = sentences(facts)
        copied = world.some(rng, range(len(lines)), 1 + int(rng.random() * 2))
        return ' '.join(lines[i] for i in sorted(copied))
    diligence = min(1.0, 0.2 + rng.random() * 1.2)
    said = {slot: value for slot, value in right.items() if rng.random() < diligence}
    for slot in world.some(rng, facts['asked'], world.pick(rng, (0, 0, 0, 0, 0, 1, 1, 2))):
        said[slot] = _wrong(rng, facts, slot)
    if rng.random() < 0.2:
        said |= _unasked(rng, facts, 1 + int(rng.random() * 2))
    clauses = _clauses(said, rng) or [world.pick(rng, lexicon.CHATTER) + '.']
    if rng.random() < 0.45:
        clauses = world.pick(rng, (*world.BAD_WRITING, _chatty))(clauses, facts, rng)
    text = ' '.join(clauses)
    if rng.random() < 0.1:
        text = world.cut(text, rng)
    return text.rstrip('.?') if rng.random() < 0.1 else text


def _clauses(said, rng) -> list[str]:
    clauses = world.clauses_of({slot: value for slot, value in said.items() if value is not None}, rng)
    denied = [slot for slot in SLOTS if slot in said and said[slot] is None]
    return clauses + [world.pick(rng, _UNKNOWN[slot]) + '.' for slot in denied]


def _wrong(rng, facts, slot) -> str | None:
    """A wrong value, or a wrong claim that the human did not tell."""
    if slot in facts['told'] and rng.random() < 0.3:
        return None
    return world.wrong_value(rng, facts, slot)


def _guess(rng, facts, slot) -> str:
    return facts[slot] if slot in facts['told'] else world.wrong_value(rng, facts, slot)


def _unasked(rng, facts, count) -> dict[str, str]:
    slots = world.some(rng, [slot for slot in SLOTS if slot not in facts['asked']], count)
    return {slot: _guess(rng, facts, slot) for slot in slots}


def _chatty(clauses, facts, rng):
    before, after = (world.pick(rng, lexicon.CHATTER) + '.' for _ in range(2))
    return [before, *clauses, after] if rng.random() < 0.5 else [*clauses, after]


# ---------------------------------------------------------------------------------------------------- oracle


def read(facts: Mapping, text: str) -> Reading:
    """Parses any text.

    quality = 1 − SPAN · (1 − raw)
    raw     = mean over the asked slots of (right 1, missing 0, wrong −1)
              − UNASKED · slots mentioned that were not asked − cost of bad writing, as for summaries (`oracle.cost`)

    A told slot is right where its value, and no other, is stated; a slot that was not told where the text says just
    that, so stating any value for it is wrong, and so is claiming that a told slot was not told. The order of the parts
    is free. The verdicts are those of the asked slots. Below −½ quality bends towards its bound −1.
    """
    found = oracle.parse(text, _ROOT, _ORDER)
    denied = found.stated.get('unknown', ())
    verdicts = {}
    for slot in facts['asked']:
        values = found.stated.get(slot, ())
        right = ((facts[slot],), False) if slot in facts['told'] else ((), True)
        if not values and slot not in denied:
            verdicts[slot] = 'missing'
        else:
            verdicts[slot] = 'right' if (values, slot in denied) == right else 'wrong'
    unasked = ({*found.stated, *denied} & {*SLOTS}) - {*facts['asked']}
    mean = sum(_WORTH[verdict] for verdict in verdicts.values()) / len(verdicts)
    raw = mean - UNASKED * len(unasked) - oracle.cost(found)
    return Reading(**vars(found), verdicts=verdicts, quality=oracle.bend(1 - SPAN * (1 - raw)))


def wrong(facts: Mapping, text: str) -> list[tuple[int, int, str]]:
    """Where a text states a value that the human did not tell, or says of one that was told that it was not: the characters
    from and to, and which fact.
    """
    told, found = facts['told'], []
    for kind, value, start, end in oracle.places(text, _ROOT):
        if kind in SLOTS and (kind not in told or value != facts[kind]):
            found.append((start, end, kind))
        if kind == 'unknown' and value in told:
            found.append((start, end, value))
    return found


_WORTH = {'right': 1, 'missing': 0, 'wrong': -1}
_UNKNOWN = lexicon.unknown_phrases()
_ORDER = dict.fromkeys((*SLOTS, 'unknown'), 0)


def _phrases():
    for slot, phrases in _UNKNOWN.items():
        yield from oracle.each(phrases, 'unknown', slot)
    yield from oracle.facts_phrases()
    yield from oracle.each(lexicon.CHATTER, 'filler', '')
    yield from oracle.pieces(lexicon.helpful_frames())


_ROOT = oracle.trie(_phrases())
