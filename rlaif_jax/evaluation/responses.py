"""What policies wrote to the same prompts, as a file that people can rank from and other tools can read.

A row is {"prompt_id", "prompt", name of a policy: its response, ...}; every row has the same policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike

from rlaif_jax.config import Mistake
from rlaif_jax.data import files
from rlaif_jax.data.records import Prompt

__all__ = ['check_names', 'read', 'write']

OTHERS = ('prompt_id', 'prompt')  # columns that are no policy


def check_names(names: Iterable[str]) -> None:
    """Mistake: a policy named as a column is."""
    if taken := set(OTHERS) & set(names):
        raise Mistake(f'no policy can be named {taken.pop()!r}, which is a column of its own beside responses')


def write(path: PathLike | str, prompts: Sequence[Prompt], written: Mapping[str, Sequence[str]]) -> None:
    """Writes all responses, in the format that the suffix of `path` names. Mistake: a policy named as a column is."""
    check_names(written)
    texts = [dict(zip(written, row)) for row in zip(*written.values(), strict=True)]
    rows = [{'prompt_id': prompt.id, 'prompt': prompt.text} | row for prompt, row in zip(prompts, texts, strict=True)]
    files.write_rows(path, rows)


def read(path: PathLike | str) -> tuple[list[Prompt], dict[str, list[str]]]:
    """The prompts, and policy -> its responses to them. A row without "prompt_id" is called by the text of its prompt.

    Mistake, which names file and line: fewer than two policies, other policies than in the first row, a response that is
    no text.
    """
    prompts: list[Prompt] = []
    written: dict[str, list[str]] = {}
    for where, row in files.located(path):
        names = [name for name in row if name not in OTHERS]
        if not isinstance(row.get('prompt'), str) or len(names) < 2:
            raise Mistake(
                f'{where}: a row has a "prompt" and the responses of two policies or more; its columns: {[*row]}'
            )
        if prompts and set(names) != set(written):
            raise Mistake(f'{where}: responses of {", ".join(names)}; in the rows before, of {", ".join(written)}')
        for name in names:
            if not isinstance(row[name], str):
                raise Mistake(f'{where}: the response of {name} is a text, not {str(row[name])[:80]!r}')
            written.setdefault(name, []).append(row[name])
        named = row['prompt'] if row.get('prompt_id') is None else row['prompt_id']
        prompts.append(Prompt(row['prompt'], str(named)))
    return prompts, written
