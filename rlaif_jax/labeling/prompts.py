"""Prompts: the text files that ask the labeler, put together as the paper does, and how a sample's text gets into them.

    preamble, [separator, exemplar, …, separator], sample, ending        (§2.1 of the paper, Tables 15 to 22)

A folder of templates holds one folder per task with these files; your own folder works the same way.

    base.txt  detailed.txt            preambles; base_cot.txt, detailed_cot.txt where the labeler explains first
    sample.txt                        one pair, with {context}, {first} and {second}
    ending.txt                        what the verdict follows, such as `Preferred Summary=`
    ending_cot.txt                    what the rationale follows; ending_cot_shots.txt (optional) where exemplars have one
    example.txt  follow.txt           the lines before each exemplar and after the last
    exemplars.jsonl                   {"context", "first", "second", "preferred": 1 or 2, "rationale"}, best first
    rating.txt  harm.txt              a whole prompt each, about one {response}: 1 to 10; yes or no

Literal text and the text of a field are encoded apart, so whatever a post or a response contains, the tokens around it
stay what they are. The last line of an ending is where a chat checkpoint's own turn begins.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from rlaif_jax.config import Mistake, nearest
from rlaif_jax.labeling.quoting import TURNS, quote
from rlaif_jax.paths import typed
from rlaif_jax.shortening import shorten
from rlaif_jax.text import Tokenizer

FOLDER = Path(__file__).parent / 'templates'
NAMED = {'micro': Path(__file__).parents[1] / 'micro' / 'templates'}  # what a simulated world's models were taught on
FIELDS = ('context', 'response', 'first', 'second', 'rationale')


@dataclass(frozen=True)
class Task:
    """What the labeler must know of a task besides its templates."""

    suffix: str  # what the policy's prompt ends in; the labeler is not shown it
    asks_for_worse: bool  # the pair prompt asks for the worse response, so P('1') is P(the first is worse)


# The harmless prompt asks which response is MORE HARMFUL (Table 22): this is the one place that says so, and
# `preference.py` flips by it.
TASKS = {
    'summarization': Task('TL;DR:', asks_for_worse=False),
    'helpful': Task('Assistant:', asks_for_worse=False),
    'harmless': Task('Assistant:', asks_for_worse=True),
}


@dataclass(frozen=True)
class Technique:
    """How the labeler is asked (Table 2 of the paper). Written as `detailed_cot_0shot`."""

    preamble: str  # 'base' or 'detailed'
    cot: bool  # chain of thought: a rationale first, then the verdict
    shots: int  # exemplars

    @classmethod
    def parse(cls, name: str) -> Technique:
        """Raises `Mistake` naming the nearest technique."""
        found = re.fullmatch(r'(base|detailed)(_cot)?_(\d+)shot', name)
        if not found:
            known = [f'{p}{c}_{n}shot' for p in ('base', 'detailed') for c in ('', '_cot') for n in (0, 1, 2, 8)]
            hope = f'did you mean {nearest(name, known)}? (base|detailed)[_cot]_<number of exemplars>shot'
            raise Mistake(f'no technique {name!r}; {hope}')
        return cls(found[1], bool(found[2]), int(found[3]))


@dataclass(frozen=True)
class Encoded:
    """A sample's prompt behind the preamble, and what was done to the sample to get there."""

    tokens: list[int]
    neutralised: int  # places in its fields that looked like the prompt's structure
    shortened: int  # characters of its context that were left out


@dataclass(frozen=True)
class Template:
    """`parts` alternate between literal text and the names of fields: literal, field, literal, …, literal.

    `delimiters` are the pieces of structure that no field may imitate; `suffix` is what a policy's prompt ends in.
    """

    parts: tuple[str, ...]
    delimiters: tuple[str, ...] = ()
    suffix: str = ''

    @property
    def digest(self) -> str:
        """Ten hex digits that stand for the template's text; part of a label's provenance."""
        return hashlib.sha256('\0'.join(self.parts).encode()).hexdigest()[:10]

    @property
    def preamble(self) -> str:
        """What stands before the first field: the same for all samples, so its keys and values are computed once."""
        return self.parts[0]

    def context(self, prompt: str) -> str:
        """What the labeler is shown of a policy's prompt: without the `TL;DR:` or `Assistant:` that asks for a response."""
        return prompt.rstrip().removesuffix(self.suffix).strip()

    def quoted(self, field: str, text: str) -> tuple[str, int]:
        """A field's text as it stands in the prompt, and how many places in it were neutralised.

        Of `context` the text is a policy's whole prompt. It may hold a dialogue's turns; a response that goes on with
        another turn may not. The labeler's own rationale speaks of `Summary 1 -` by right, but not for the verdict.
        """
        if field == 'rationale':
            return quote(text.strip(), (self.parts[-1].strip(),))
        if field == 'context':
            return quote(self.context(text), self.delimiters)
        return quote(text.strip(), (*self.delimiters, *TURNS))

    def render(self, sample: Mapping[str, str]) -> str:
        """The whole prompt as text, for people; the labeler reads `encode`."""
        return ''.join(
            part if i % 2 == 0 else ' ' + self.quoted(part, sample[part])[0] for i, part in enumerate(self.parts)
        )

    def encode(
        self, tokenizer: Tokenizer, samples: Sequence[Mapping[str, str]], room: int | None = None
    ) -> list[Encoded]:
        """Each sample's prompt from the first field on (the preamble's tokens are `encode_preamble`).

        In one longer than `room` tokens the policy's prompt is shortened (`shortening`); candidates and instructions are
        never cut. What cannot fit even without it comes back as long as it is; to a labeler it is unscorable.
        """

        def shown(prompt: str) -> list[int]:
            text, _ = self.quoted('context', prompt)
            return tokenizer.encode([' ' + text], behind=True)[0] if text else []

        literal = tokenizer.encode(self.parts[2::2], control=True, behind=True)
        names = self.parts[1::2]
        quoted = [self.quoted(name, sample[name]) for sample in samples for name in names]
        rows = tokenizer.encode([' ' + text for text, _ in quoted], behind=True)
        encoded = []
        for b, sample in enumerate(samples):
            mine = slice(b * len(names), (b + 1) * len(names))
            fields, shortened = rows[mine], 0
            over = sum(map(len, fields)) + sum(map(len, literal)) - (room or 0)
            if room is not None and over > 0 and 'context' in names:
                at, prompt = names.index('context'), sample['context']
                kept = shorten(prompt, lambda text, most=len(fields[at]) - over: len(shown(text)) <= most) or ''
                fields[at], shortened = shown(kept), len(self.context(prompt)) - len(self.context(kept))
            tokens = [token for field, after in zip(fields, literal) for token in (*field, *after)]
            encoded.append(Encoded(tokens, sum(count for _, count in quoted[mine]), shortened))
        return encoded

    def encode_preamble(self, tokenizer: Tokenizer) -> list[int]:
        """Tokens of what all samples share, with the checkpoint's start token where it has one."""
        tokens, start = tokenizer.encode([self.preamble], control=True)[0], list(tokenizer.start)
        return tokens if tokens[: len(start)] == start else start + tokens


@dataclass(frozen=True)
class Asked:
    """The prompts of a technique: for the verdict, and before it for the rationale where there is one."""

    verdict: Template
    rationale: Template | None = None

    def conclude(
        self, tokenizer: Tokenizer, asked: Sequence[Encoded], rationales: Sequence[str], room: int
    ) -> list[Encoded]:
        """The verdict's prompts: behind each prompt for a rationale, the rationale and the ending.

        They are what `verdict.encode` gives, but for a context that was shortened: that stays as the rationale knew it.
        A rationale that takes more tokens to read than it took to write loses what is over `room`.
        """
        (ending,) = tokenizer.encode([self.verdict.parts[-1]], control=True, behind=True)
        quoted = [self.verdict.quoted('rationale', text) for text in rationales]
        rows = tokenizer.encode([' ' + text for text, _ in quoted], behind=True)
        return [
            replace(
                one,
                tokens=[*one.tokens, *row[: room - len(one.tokens) - len(ending)], *ending],
                neutralised=one.neutralised + count,
            )
            for one, row, (_, count) in zip(asked, rows, quoted, strict=True)
        ]

    @property
    def digest(self) -> str:
        """Ten hex digits for both."""
        digests = [template.digest for template in (self.verdict, self.rationale) if template]
        return hashlib.sha256('\0'.join(digests).encode()).hexdigest()[:10]


def folder_of(tokenizer: Tokenizer, folder: str | Path | None = None) -> Path:
    """The templates to use: `folder`, else those that the checkpoint was taught on (the packaged micro models say so in
    their tokenizer's configuration), else our own.
    """
    name = folder or getattr(tokenizer.hf, 'init_kwargs', {}).get('prompt_templates')
    return (NAMED.get(str(name)) or typed(name)) if name else FOLDER


def simulated(tokenizer: Tokenizer) -> bool:
    """Whether a checkpoint was taught on the prompts of a simulated world, and so reads that world's language alone."""
    return folder_of(tokenizer) in NAMED.values()


@cache
def pair(task: str, technique: str, folder: Path = FOLDER, turn: tuple[str, str] | None = None) -> Asked:
    """The prompts that ask which of two responses is better. `turn` is what a chat checkpoint wants before and after the
    user's message (`Tokenizer.turn`).

    Raises `Mistake` for an unknown task or technique, a missing file, or fewer exemplars than asked for.
    """
    how = Technique.parse(technique)
    sample, ending = _parts(folder, task, 'sample'), read(folder, task, 'ending')
    cot = read(folder, task, 'ending_cot') if how.cot else ''
    if how.cot and how.shots and (folder / task / 'ending_cot_shots.txt').exists():
        cot = read(folder, task, 'ending_cot_shots')
    head = [read(folder, task, how.preamble + '_cot' * how.cot)]
    delimiters = {part.strip() for part in sample[::2]} | {ending}
    if how.cot:
        delimiters.add(cot.splitlines()[-1])
    if how.shots:
        before, after = read(folder, task, 'example'), read(folder, task, 'follow')
        for one in _exemplars(folder, task, how.shots):
            shown = ''.join(part if i % 2 == 0 else f' {one[part].strip()}' for i, part in enumerate(sample))
            reason = f'\n\n{cot} {one["rationale"].strip()}' if how.cot else ''
            head += [before, f'{shown}{reason}\n\n{ending}{one["preferred"]}']
        head.append(after)
        delimiters |= {before, after}
    parts = ('\n\n'.join([*head, sample[0]]), *sample[1:])
    delimiters = tuple(sorted(filter(None, delimiters)))
    suffix = TASKS[task].suffix if task in TASKS else ''
    if not how.cot:
        return Asked(Template(_ask(parts, ending, turn), delimiters, suffix))
    rationale = Template(_ask(parts, cot, turn), delimiters, suffix)
    return Asked(replace(rationale, parts=(*rationale.parts, 'rationale', f'\n\n{ending}')), rationale)


@cache
def single(task: str, purpose: str, folder: Path = FOLDER, turn: tuple[str, str] | None = None) -> Template:
    """The prompt about one response: purpose `rating` (1 to 10) or `harm` (yes or no). Raises as `pair` does."""
    parts = _parts(folder, task, purpose)
    *lines, ending = parts[-1].rstrip('\n').split('\n')
    parts = (*parts[:-1], '\n'.join(lines).rstrip())
    delimiters = tuple(sorted(filter(None, {parts[0].split('\n')[-1], *(p.strip() for p in parts[2::2]), ending})))
    return Template(_ask(parts, ending, turn), delimiters, TASKS[task].suffix if task in TASKS else '')


@cache
def read(folder: Path, task: str, purpose: str) -> str:
    """The text of `folder/task/purpose.txt`. Raises `Mistake` naming the nearest one where there is none."""
    path = folder / task / f'{purpose}.txt'
    if not path.exists():
        there = sorted(str(p.relative_to(folder).with_suffix('')) for p in folder.glob('*/*.txt'))
        near = difflib.get_close_matches(f'{task}/{purpose}', there, 1, 0.3) or there
        raise Mistake(f'no template {task}/{purpose} in {folder}; the nearest is {near[0] if near else "none"}')
    return path.read_text(encoding='utf-8').strip('\n')


def rationales(task: str, folder: Path = FOLDER) -> list[str]:
    """Those of the exemplars of a task, as many as there are."""
    path = folder / task / 'exemplars.jsonl'
    lines = [line for line in path.read_text(encoding='utf-8').split('\n') if line.strip()] if path.exists() else []
    return [one['rationale'].strip() for one in _exemplars(folder, task, len(lines))]


def _parts(folder: Path, task: str, purpose: str) -> tuple[str, ...]:
    """Literal, field, literal, …; a space before a field belongs to the field: tokenizers join it to the word behind."""
    text = read(folder, task, purpose)
    where = folder / task / f'{purpose}.txt'
    parts = re.split(r' ?\{(\w+)\}', text)
    if unknown := set(parts[1::2]) - set(FIELDS):
        raise Mistake(f'{where}: unknown field {{{sorted(unknown)[0]}}}; fields are {", ".join(FIELDS)}')
    if not all(re.findall(r'( ?)\{\w+\}', text)):
        raise Mistake(f'{where}: put one space before each field, as in "SUMMARY: {{response}}"')
    needed = {'first', 'second'} if purpose == 'sample' else {'response'}
    if missing := needed - set(parts[1::2]):
        raise Mistake(f'{where}: the field {{{sorted(missing)[0]}}} is missing')
    return tuple(parts)


def _ask(parts: tuple[str, ...], ending: str, turn: tuple[str, str] | None) -> tuple[str, ...]:
    """The parts with their ending behind them; in a chat, its last line is where the assistant's turn begins."""
    *lines, last = ending.split('\n')
    if turn is None:
        return (*parts[:-1], f'{parts[-1]}\n\n{ending}')
    before, after = turn
    told = '\n'.join(['', '', *lines]).rstrip()
    return (before + parts[0], *parts[1:-1], f'{parts[-1]}{told}{after}{last}')


def _exemplars(folder: Path, task: str, count: int) -> list[dict[str, str]]:
    path = folder / task / 'exemplars.jsonl'
    text = path.read_text(encoding='utf-8') if path.exists() else ''
    lines = [line for line in text.split('\n') if line.strip()]
    if len(lines) < count:
        raise Mistake(f'{path}: {len(lines)} exemplars, but {count} are asked for')
    rows = []
    for number, line in enumerate(lines[:count], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise Mistake(f'{path}:{number}: not valid JSON ({error})') from None
        if missing := {'context', 'first', 'second', 'preferred', 'rationale'} - set(rows[-1]):
            raise Mistake(f'{path}:{number}: the exemplar has no {sorted(missing)[0]!r}')
    return rows
