"""What policies wrote to the same prompts, as a file that people can rank from and other tools can read, and a few of it
side by side to be read.

A row is {"prompt_id", "prompt", name of a policy: its response, ...}; every row has the same policies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from rlaif_jax import log
from rlaif_jax.config import Mistake, nearest
from rlaif_jax.data import files, trl
from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation import tables

PROMPT = 'prompt_id', 'prompt'
# Columns of text that are no policy's, in any case; and whatever is no text.
OTHERS = (
    *PROMPT, 'id', 'model', 'generator', 'annotator', 'rater', 'source', 'dataset', 'split', 'task', 'category',
    'subreddit', 'title', 'author', 'url', 'date', 'timestamp', 'language', 'instruction', 'input', 'system', 'metadata',
)  # fmt: skip


def check_names(names: Iterable[str]) -> None:
    """Mistake: a policy named as a column is that stands beside responses."""
    if taken := [name for name in names if name.lower() in OTHERS]:
        raise Mistake(
            f'no policy can be named {taken[0]!r}, which is a column of its own beside responses; give names=[…]'
        )


def write(path: PathLike | str, prompts: Sequence[Prompt], written: Mapping[str, Sequence[str]]) -> None:
    """Writes all responses, in the format that the suffix of `path` names. Prompts of one id have `#1`, `#2`, … behind it.
    Mistake: a policy named as a column is.
    """
    check_names(written)
    texts = [dict(zip(written, row)) for row in zip(*written.values(), strict=True)]
    names = _unique([prompt.id for prompt in prompts])
    rows = [{'prompt_id': name, 'prompt': prompt.text} for name, prompt in zip(names, prompts)]
    files.write_rows(path, [row | more for row, more in zip(rows, texts, strict=True)])


def read(
    path: PathLike | str, names: Sequence[str] = (), tell: Callable[[str], None] | None = None
) -> tuple[list[Prompt], dict[str, list[str]]]:
    """The prompts, and policy -> its responses to them. Policies are the columns of text, without those in `OTHERS`, or
    `names` where they are given; `tell` is told which columns are left out. A row without "prompt_id" is called by the text
    of its prompt, with `#1`, `#2`, … behind it where several have it.

    Mistake, which names file and line: fewer than two policies, other policies than in the first row, a response that is
    no text, a "prompt_id" that comes again; a name that is no column of text.
    """
    rows = files.read(path).located
    columns = {name: None for _, row in rows for name in row if name not in PROMPT}
    spoken = [name for name in columns if any(isinstance(row.get(name), str) for _, row in rows)]
    policies = names or [name for name in spoken if name.lower() not in OTHERS]
    for name in [name for name in policies if name not in spoken][:1]:
        hope = f'; did you mean {nearest(name, spoken)!r}?' if spoken else ''
        raise Mistake(f'{path}: no column of responses {name!r}{hope}')
    others = [name for name in columns if name not in policies]
    if tell and others:
        tell(f'{path}: the policies are {", ".join(policies)}; left out: {", ".join(others)}; names=[…] says otherwise')
    prompts: list[Prompt] = []
    written: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for where, row in rows:
        found = [name for name in policies if name in row]
        if not isinstance(row.get('prompt'), str) or len(found) < 2:
            left = f' (names=[…] takes one of {", ".join(others)}, too)' if others else ''
            raise Mistake(
                f'{where}: a row has a "prompt" and the responses of two policies or more; its columns: {[*row]}{left}'
            )
        if prompts and set(found) != set(written):
            raise Mistake(f'{where}: responses of {", ".join(found)}; in the rows before, of {", ".join(written)}')
        for name in found:
            if not isinstance(row[name], str):
                raise Mistake(f'{where}: the response of {name} is a text, not {str(row[name])[:80]!r}')
            written.setdefault(name, []).append(row[name])
        named = trl.name_of(row.get('prompt_id'))
        if named is not None and seen.setdefault(named, where) != where:
            raise Mistake(f'{where}: the prompt_id {named!r} stands in {seen[named]} already')
        prompts.append(Prompt(row['prompt'], named or ''))
    ids = _unique([prompt.id or prompt.text for prompt in prompts])
    return [Prompt(prompt.text, id) for prompt, id in zip(prompts, ids)], written


def side_by_side(
    path: str | PathLike[str],
    prompts: Sequence[Any],
    texts: Mapping[str, Sequence[str]],
    *,
    n: int = 16,
    title: str = 'Samples',
    simulated: bool = False,
) -> None:
    """The responses of every policy to the first n prompts, as `path`.jsonl and as `path`.md.

    prompts: texts, or records with a `.text`. A line of the JSONL is {"prompt", name of a policy: response, ...}, exact;
    in the Markdown every character stands for itself, white space aside. Mistake: a policy named as a column is, not one
    response a prompt, no policies.
    """
    if not texts:
        raise Mistake('samples are of one or more policies')
    check_names(texts)
    for name, responses in texts.items():
        if len(responses) != len(prompts):
            raise Mistake(f'{len(prompts)} prompts, but {len(responses)} responses of {name}')
    asked = [getattr(prompt, 'text', prompt) for prompt in prompts[:n]]
    rows = [{'prompt': prompt} | {name: texts[name][i] for name in texts} for i, prompt in enumerate(asked)]
    parts = [f'# {_markdown(tables.title(title, simulated))}']
    for i, row in enumerate(rows):
        parts += [f'## {i + 1}', _quote(row['prompt'])]
        cells = [f'| {_markdown(name)} | {_cell(row[name])} |' for name in texts]
        parts.append('\n'.join(['| policy | response |', '|---|---|', *cells]))
    files.write_rows(f'{path}.jsonl', rows)
    log.write_whole(Path(f'{path}.md'), '\n\n'.join(parts) + '\n')


def _markdown(text: str) -> str:
    """One line of `text` as Markdown shows it unchanged; what cannot be seen is written out, as in the terminal."""
    seen = ''.join(c if c.isprintable() else ' ' if c.isspace() else ascii(c)[1:-1] for c in text).strip()
    seen = re.sub(r'([\\`*_\[\]<>&~|$#])', r'\\\1', seen)
    return re.sub(r'^(?=[+=-])|^\d+(?=[.)])', r'\g<0>\\', seen)  # would begin a list or make a heading


def _quote(text: str) -> str:
    lines = [_markdown(line) for line in text.strip().split('\n')]
    return '\n'.join(f'> {line}  ' if line else '>' for line in lines)  # two spaces: the line ends here


def _cell(text: str) -> str:
    return '<br>'.join(_markdown(line) for line in text.strip().split('\n')) or '*(empty)*'


def _unique(names: Sequence[str]) -> list[str]:
    """The names; those of which there are several have `#1`, `#2`, … behind them."""
    total, seen = Counter(names), Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if total[name] == 1 else f'{name}#{seen[name]}')
    return found
