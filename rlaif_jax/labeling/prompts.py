"""Templates: the text files that ask the labeler, and how a sample's text gets into them as data.

`templates/<task>/<purpose>.txt` is plain text with fields in braces. Literal text and the text of a field are encoded
apart, so whatever a post or a response contains, the tokens around it stay what they are.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rlaif_jax.config import Mistake
from rlaif_jax.text import Tokenizer

FOLDER = Path(__file__).parent / 'templates'
FIELDS = ('context', 'response', 'first', 'second')


@dataclass(frozen=True)
class Template:
    """`parts` alternate between literal text and the names of fields: literal, field, literal, …, literal."""

    parts: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Ten hex digits that stand for the template's text; part of a label's provenance."""
        return hashlib.sha256('\0'.join(self.parts).encode()).hexdigest()[:10]

    @property
    def preamble(self) -> str:
        """What stands before the first field: the same for all samples, so its keys and values are computed once."""
        return self.parts[0]

    def render(self, sample: Mapping[str, str]) -> str:
        """The whole prompt as text, for people; the labeler reads `encode`."""
        return ''.join(part if i % 2 == 0 else _data(sample[part]) for i, part in enumerate(self.parts))

    def encode(self, tokenizer: Tokenizer, samples: Sequence[Mapping[str, str]]) -> list[list[int]]:
        """Tokens of each sample's prompt from the first field on (the preamble's are `encode_preamble`)."""
        literal = dict(zip(self.parts[2::2], tokenizer.encode(self.parts[2::2])))
        texts = [_data(sample[name]) for sample in samples for name in self.parts[1::2]]
        fields = iter(tokenizer.encode(texts))
        return [[token for part in self.parts[2::2] for token in next(fields) + literal[part]] for _ in samples]

    def encode_preamble(self, tokenizer: Tokenizer) -> list[int]:
        """Tokens of what all samples share, with the checkpoint's start token where it has one."""
        return [*tokenizer.start, *tokenizer.encode([self.preamble])[0]]


@cache
def read(task: str, purpose: str, folder: Path = FOLDER) -> Template:
    """The template `folder/task/purpose.txt`. Raises `Mistake` naming the nearest one where there is none."""
    path = folder / task / f'{purpose}.txt'
    if not path.exists():
        there = sorted(str(p.relative_to(folder).with_suffix('')) for p in folder.glob('*/*.txt'))
        near = difflib.get_close_matches(f'{task}/{purpose}', there, 1, 0.3) or there
        raise Mistake(f'no template {task}/{purpose} in {folder}; the nearest is {near[0] if near else "none"}')
    # A space before a field belongs to the field: tokenizers join a space to the word behind it.
    parts = re.split(r' ?\{(\w+)\}', path.read_text(encoding='utf-8'))
    spaced = re.findall(r'( ?)\{\w+\}', path.read_text(encoding='utf-8'))
    if unknown := set(parts[1::2]) - set(FIELDS):
        raise Mistake(f'{path}: unknown field {{{sorted(unknown)[0]}}}; fields are {", ".join(FIELDS)}')
    if not all(spaced):
        raise Mistake(f'{path}: put one space before each field, as in "SUMMARY: {{response}}"')
    return Template(tuple(parts))


def context_of(prompt: str, task: str) -> str:
    """What the labeler is shown of a policy's prompt: for summaries the post, without the `TL;DR:` that asks for one."""
    return prompt.removesuffix('TL;DR:').rstrip() if task == 'summarization' else prompt


def _data(text: str) -> str:
    """A field's text as it stands in the prompt: one space, then the text without the space around it."""
    return ' ' + text.strip()
