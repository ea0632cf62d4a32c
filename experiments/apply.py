"""Finished models and anybody's files: a reward model scores responses, a policy writes them.

What is made is kept while it is made, so that a run that was stopped goes on.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from experiments.label import check_output, toy, warn_of_dialogues
from experiments.programs import Line, Read
from experiments.scales import Data, Dtype, Mesh, Scale
from rlaif_jax import axes, chat, hosts, log, paths
from rlaif_jax.config import FILE, MOST, SAME, Mistake, check_within, dump
from rlaif_jax.data import files, trl
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.data.trl import Entry
from rlaif_jax.generation import Sampling, extend
from rlaif_jax.labeling.prompts import TASKS
from rlaif_jax.labeling.store import Store, complete, key
from rlaif_jax.models import hf
from rlaif_jax.models.presets import Absent, resolve
from rlaif_jax.shortening import reads, shorten
from rlaif_jax.text import Tokenizer
from rlaif_jax.training import reward_model

__all__ = ['score', 'generate']

MADE = 'made.jsonl'  # in the folder of a run


def score(scale: Scale, seed: int = 0) -> Score:
    """Scores of a reward model for the responses in a file: the same file with `score`, or with one of each of a pair.

    Command: python launch/run.py --experiment=score model=runs/NAME/export input=pairs.jsonl output=scores.jsonl
    Cost: a forward of each response.
    Expect: every row and column of the input, in its order; null in rows without a response.
    """
    cfg = scale.reward_model
    return Score(
        max_prompt=cfg.max_prompt,
        max_response=cfg.max_response,
        batch=cfg.score_batch,
        mesh=scale.mesh,
        dtype=scale.dtype,
    )


def generate(scale: Scale, seed: int = 0) -> Generate:
    """Responses of a policy to the prompts in a file: the same file with `completion`. At a terminal, without a file, it
    asks for prompts.

    Command: python launch/run.py --experiment=generate policy=runs/NAME/export input=prompts.jsonl output=out.jsonl
    Cost: a response a prompt.
    Expect: every row and column of the input, in its order; null in rows without a prompt.
    """
    return Generate(
        max_new_tokens=scale.reinforce.max_new_tokens, temperature=scale.evaluation.temperature, seed=seed,
        mesh=scale.mesh, dtype=scale.dtype,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Score:
    """Responses in a file → the same file with scores."""

    model: str = ''  # the reward model: the export of a run, a folder or a name on the hub
    # .jsonl, .jsonl.gz, .json or .parquet, in TRL's columns: pairs, or `prompt` and `completion`.
    input: str = field(default='', metadata=FILE)
    output: str = ''  # the same suffixes
    task: str = 'summarization'  # summarization, helpful or harmless
    max_prompt: int = 1024  # tokens; longer prompts are shortened
    max_response: int = 128  # tokens of a response that are read
    batch: int = 64  # responses at once
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products
    data: Data | None = None  # always None: the responses are those of `input`

    always = True  # a finished run looks at its files again; what was made is not made again

    def __post_init__(self) -> None:
        check_task(self.task)
        check_within(self, 1, MOST, 'max_prompt', 'max_response', 'batch')

    def lines(self, folder: Path) -> list[Line]:
        if not self.model or not self.input or not self.output:
            raise Mistake(
                'whose scores, of what, and where to? model=runs/NAME/export input=pairs.jsonl output=scores.jsonl'
            )
        check_output(self.output, self.input, folder, MADE)
        with suppress(Absent):
            reward_model.check(self.model)
        entries = trl.answered(self.input, self.task)
        rows = sum(2 if isinstance(entry.record, Pair) else bool(entry.record) for entry in entries)
        read = Read('reward model', 'scores', self.batch, self.max_prompt + self.max_response, calls=rows / self.batch)
        return [Line('score', folder, rows, {'reward model': self.model}, reads=(read,))]

    def run(self, folder: Path) -> dict[str, Any]:
        rows, note = files.read(self.input), toy(self.model)
        entries, mesh = trl.answered(rows, self.task), axes.make_mesh(asdict(self.mesh))
        each = [list(responses(entry)) for entry in entries]
        flat = [one for row in each for one in row]
        how = {'max_prompt': self.max_prompt, 'max_response': self.max_response}

        @cache
        def scorer() -> reward_model.Scorer:
            trained = reward_model.load(self.model, dtype=self.dtype, mesh=mesh, frozen=True)
            return reward_model.make_scorer(trained, mesh, batch=self.batch, **how)

        def make(indices: list[int]) -> list[float]:
            _, prompts, texts = zip(*(flat[i] for i in indices))
            return scorer()(prompts, texts).tolist()

        who = hf.fingerprint(self.model), self.dtype, *map(str, how.values())
        keys = [key(*who, prompt, text) for _, prompt, text in flat]
        found = iter(kept(folder, keys, make, batch=8 * self.batch, title='score', note=note, noun='scores'))
        made = [{name: next(found) for name, *_ in row} for row in each]
        return write(self.output, rows, entries, made) | {'simulated': bool(note)}


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Prompts in a file → the same file with responses."""

    policy: str = ''  # who writes: the export of a run, a packaged model, a folder or a name on the hub
    # .jsonl, .jsonl.gz, .json or .parquet with `prompt`; '' at a terminal: it asks for them.
    input: str = field(default='', metadata=FILE)
    output: str = ''  # the same suffixes
    task: str = 'summarization'  # summarization, helpful or harmless
    max_new_tokens: int = 128  # of a response, the end token among them
    temperature: float = 0.9  # 0: the likeliest token, always
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # 1: all
    batch: int = 64  # prompts at once
    seed: int = 0  # of what is sampled
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products
    data: Data | None = None  # always None: the prompts are those of `input`

    always = True  # a finished run looks at its files again, or asks again

    def __post_init__(self) -> None:
        check_task(self.task)
        check_within(self, 1, MOST, 'max_new_tokens')
        self.sampling()

    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.seed, self.batch)

    def lines(self, folder: Path) -> list[Line]:
        if not self.policy or not self.input and not sys.stdin.isatty() or self.input and not self.output:
            raise Mistake(
                'who writes, to what, and where to? policy=runs/NAME/export input=prompts.jsonl output=out.jsonl'
            )
        entries = []
        if self.input:
            check_output(self.output, self.input, folder, MADE)
            entries = [entry for entry in trl.prompts(self.input, self.task) if entry.record is not None]
            warn_of_dialogues(self.input, [entry.record for entry in entries], self.task)
        length = max((len(entry.record.text) for entry in entries), default=0) // 3 + 1  # characters a token
        read = Read('policy', 'writes', self.batch, length, self.max_new_tokens, calls=len(entries) / self.batch)
        return [Line('generate', folder, len(entries), {'policy': self.policy}, reads=(read,))]

    def run(self, folder: Path) -> dict[str, Any]:
        tokenizer, mesh = Tokenizer.load(resolve(self.policy)), axes.make_mesh(asdict(self.mesh))
        note, most = toy(self.policy), hf.read_config(resolve(self.policy)).max_length - self.max_new_tokens
        if most < 1:
            raise Mistake(f'max_new_tokens = {self.max_new_tokens} leaves no room for a prompt of {self.policy}')
        load = cache(lambda: hf.load(self.policy, dtype=self.dtype, mesh=mesh, frozen=True))

        def write_to(texts: Sequence[str], seed: int) -> list[str]:
            how = replace(self.sampling(), seed=seed % MOST)
            return tokenizer.decode(extend(load(), tokenizer.prompts(texts), how, mesh=mesh))

        def readable(text: str) -> str:
            """As much of a prompt as there is room for; '' where that is nothing."""
            text = shorten(text, reads(tokenizer, most)) or ''
            return text if text and tokenizer.prompts([text])[0] else ''

        if not self.input:
            return self.talk(write_to, readable) | {'simulated': bool(note)}
        rows = files.read(self.input)
        entries = trl.prompts(rows, self.task)
        prompts = [entry.record.text for entry in entries if entry.record is not None]
        if not note and (told := chat.account(Path(self.policy).name, bool(tokenizer.hf.chat_template), prompts)):
            log.say(told)
        shown = list(map(readable, prompts))
        if cut := sum(one != text for one, text in zip(shown, prompts)):
            log.say(f'{cut} of {len(prompts)} prompts are longer than {self.policy} reads, and are shortened, or empty')
        asked, times = [text for text in shown if text], Counter()
        who = hf.fingerprint(self.policy), self.dtype, dump(self.sampling())
        keys = []
        for text in asked:  # what stands there twice is written to twice
            times[text] += 1
            keys.append(key(*who, text, str(times[text])))

        def make(indices: list[int]) -> list[str]:
            return write_to([asked[i] for i in indices], self.seed + indices[0])

        found = iter(kept(folder, keys, make, batch=self.batch, title='generate', note=note, noun='responses'))
        left = iter(shown)
        made = [
            {'completion': as_asked(entry, next(found))} if entry.record is not None and next(left) else {}
            for entry in entries
        ]
        return write(self.output, rows, entries, made) | {'simulated': bool(note)}

    def talk(
        self, write_to: Callable[[Sequence[str], int], list[str]], readable: Callable[[str], str]
    ) -> dict[str, Any]:
        """Answers what is typed until the end of it (Ctrl-D)."""
        log.say(r'one line is one prompt, with \n for the end of a line in it; Ctrl-D ends')
        for number in count():
            if (typed := hosts.told(ask)) is None:
                return {'prompts': number}
            if self.task != 'summarization' and chat.turns(typed) is None:
                typed = f'{chat.SPEAKERS["user"]} {typed}{chat.SPEAKERS["assistant"]}'
            if typed.strip() and (text := readable(typed)):
                log.say(write_to([text], self.seed + number)[0].strip(), whole=True)


def ask() -> str | None:
    """What somebody types; None at its end."""
    try:
        return input('prompt> ').replace('\\n', '\n')
    except EOFError:
        return None


def check_task(task: str) -> None:
    """Raises ValueError for a task that there is not."""
    if task not in TASKS:
        raise ValueError(f'task = {task!r}: tasks are {", ".join(TASKS)}')


def responses(entry: Entry) -> Iterator[tuple[str, str, str]]:
    """(column of its score, prompt, response) of each response in a row."""
    if isinstance(entry.record, Pair):
        first, second = next(names for names in trl.RESPONSES if all(name in entry.row for name in names))
        yield f'{first}_score', entry.record.prompt.text, entry.record.first
        yield f'{second}_score', entry.record.prompt.text, entry.record.second
    elif isinstance(entry.record, Prompt):
        yield 'score', entry.record.text, entry.record.reference


def as_asked(entry: Entry, text: str) -> Any:
    """A response as its prompt is: a message where that is a list of them."""
    return [{'role': 'assistant', 'content': text.strip()}] if isinstance(entry.row.get('prompt'), list) else text


def kept(folder: Path, keys: Sequence[str], make: Callable[[list[int]], Sequence[Any]], **how: Any) -> list[Any]:
    """What `make` gives for each key, made in batches and kept in the folder of the run until all is there."""
    records = complete(Store(folder / MADE), keys, lambda i: [{'status': 'ok', 'made': x} for x in make(i)], **how)
    return [record['made'] for record in records]


def write(output: str, rows: files.Rows, entries: Sequence[Entry], made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Writes the rows with what was made, in columns of names that are free, and says what came of them."""
    taken = {name for entry in entries for name in entry.row}
    names = {name: free_name(name, taken) for row in made for name in row}
    more = [{new: row.get(name) for name, new in names.items()} for row in made]
    if changed := files.write_more(output, rows, more):
        log.say(f'{output}: has no type for all values of the columns {", ".join(changed)}, which are changed')
    for entry in [entry for entry in entries if entry.record is None][:3]:
        log.say(f'left empty: {entry.problem}')
    done = sum(map(bool, made))
    log.say(f'{output}: {len(entries)} rows, {done} with {", ".join(names.values())}')
    return {'output': str(paths.typed(output).resolve()), 'rows': len(entries), 'made': done}


def free_name(name: str, taken: set[str]) -> str:
    """The name of a new column: itself, or with the first number behind it that makes it free."""
    return next(one for n in count(1) if (one := name if n == 1 else f'{name}_{n}') not in taken)
