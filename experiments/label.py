"""Labels for anybody's pairs: a file in, the same file with preferences out (§2.1); and what every command that asks a
labeler shares with it.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.programs import Line, Read
from experiments.scales import Data, Dtype, Mesh, Scale
from rlaif_jax import axes, chat, log, paths
from rlaif_jax.config import SAME, Mistake
from rlaif_jax.data import files, trl
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.data.source import NOTE
from rlaif_jax.evaluation import alignment, report
from rlaif_jax.folder import shared
from rlaif_jax.labeling import cost, labelers, preference
from rlaif_jax.labeling.preference import Config, Label
from rlaif_jax.labeling.prompts import Technique, simulated
from rlaif_jax.labeling.store import Shard, Store, keeps, store_in
from rlaif_jax.models.presets import PRESETS, Absent

__all__ = ['label']

INVALID = {'preference_prob': None, 'weight': 0.0, 'status': 'invalid'}  # what a row that is no pair gets
_GENERATION = re.compile(r'(label_(?:([1-9]\d{0,8})_)?)?preference_prob')


def label(scale: Scale, seed: int = 0) -> File:
    """Preferences for anybody's pairs: a file in, the same file with `preference_prob` and its provenance out (§2.1).

    Command: python launch/run.py --experiment=label input=pairs.jsonl output=labels.parquet task=summarization
    Cost: one labeler call in each order of a pair; a repeated run costs nothing.
    Expect: every row and column of the input, in its order; rows that are no pair come with status `invalid`.
    """
    return File(labeler=scale.l, label=Config(batch=scale.label.batch, seed=seed), mesh=scale.mesh, dtype=scale.dtype)


@cache  # a plan is made before a run, too
def _warn(text: str) -> None:
    log.say(f'warning: {text}')


def warn_of_dialogues(name: str, prompts: Sequence[Prompt], task: str) -> None:
    """Says so where prompts of a file are plainly dialogues, and the task is to summarize."""
    dialogues = sum(prompt.text.endswith(trl.ASSISTANT) for prompt in prompts)
    if task == 'summarization' and 2 * dialogues > len(prompts):
        _warn(
            f'{dialogues} of {len(prompts)} prompts of {name} are dialogues, and task = {task!r}: replies will be judged '
            'as summaries. task=helpful, or task=harmless, judges replies'
        )


def toy(model: str) -> str:
    """What stands beside figures of a packaged model, said once what it means; '' of others."""
    if not simulated(labelers.tokenizer(model)):
        return ''
    log.say(f'{model} is a toy of the SIMULATED world: it reads that world’s language and no other.')
    return NOTE


def store_of(folder: Path) -> Path:
    """The labels of a run, which it shares with others."""
    return store_in(shared(folder))


@dataclass(frozen=True)
class Asking:
    """Pairs that are there, and how a labeler is asked about them."""

    title: str
    labeler: str
    label: Config
    pairs: Callable[[], Sequence[Pair]]  # reads them


def label_shard(shard: Shard, askings: Sequence[Asking], store: Path, dtype: Dtype, mesh: Mesh) -> None:
    """Makes the labels of a shard's share of all pairs, into its own store beside the one that all share."""
    kept, counts = Store(store, shard), []
    mesh = axes.make_mesh(asdict(mesh))
    load = lru_cache(maxsize=1)(partial(labelers.load, dtype=dtype, mesh=mesh))
    for one in askings:
        mine = shard.share(every := one.pairs())
        title = f'{one.title}, shard {shard}'
        made = preference.label_all(
            one.labeler, one.label, mine, kept, dtype=dtype, mesh=mesh, load=load, title=title, note=toy(one.labeler)
        )
        cost.say({title: cost.counted(made)})
        counts.append((len(mine), len(every)))
    share, of = map(sum, zip(*counts))
    log.say(
        f'shard {shard}: the labels of {share} of {of} pairs are there, in {kept.path}. The same command without shard '
        'puts all together, and makes what is missing.'
    )


@dataclass(frozen=True)
class File:
    """Pairs in a file → the same file with labels."""

    labeler: str  # the model that is asked: a packaged one, a folder, a name on the hub, or http://host:8000/v1#MODEL
    input: str = ''  # .jsonl, .jsonl.gz, .json or .parquet, in TRL's columns
    output: str = ''  # the same suffixes
    task: str = 'summarization'  # summarization, helpful or harmless
    technique: str = 'detailed_cot_0shot'  # (base|detailed)[_cot]_<exemplars>shot
    write: Literal['labels', 'pairs'] = (
        'labels'  # beside all columns; or the pairs as the labeler prefers them, for TRL
    )
    label: Config = field(default_factory=Config)  # its task and technique are the two above
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products; what is trained stays float32
    data: Data | None = None  # always None: the pairs are those of `input`

    always = True  # a finished run looks at its files again; what the store holds is not asked again

    def __post_init__(self) -> None:
        for name in ('task', 'technique'):
            if getattr(self.label, name) not in (getattr(Config(), name), getattr(self, name)):
                raise ValueError(f'label.{name}: here it is {name}={getattr(self.label, name)}')
        self.asked()

    def asked(self) -> Config:
        return replace(self.label, task=self.task, technique=self.technique)

    def askings(self) -> list[Asking]:
        """What a labeler can be asked ahead."""
        pairs = lambda: [entry.record for entry in trl.pairs(self.input, self.task) if entry.record is not None]  # noqa: E731
        return [Asking('label', self.labeler, self.asked(), pairs)]

    def lines(self, folder: Path) -> list[Line]:
        if not self.input or not self.output:
            raise Mistake('which pairs, and where to? input=pairs.jsonl output=labels.parquet')
        check_output(self.output, self.input, folder)
        check_prompts(self.labeler, self.asked())
        entries = trl.pairs(self.input, self.task)
        pairs = [entry.record for entry in entries if entry.record is not None]
        warn_of_dialogues(self.input, [pair.prompt for pair in pairs], self.task)
        return [labels_line('label', folder, len(entries), self.labeler, self.asked())]

    def run(self, folder: Path) -> dict[str, Any]:
        rows = files.read(self.input)
        entries = trl.pairs(rows, self.task)
        pairs = [entry.record for entry in entries if entry.record is not None]
        note = toy(self.labeler)
        if not note:  # the packaged models have no chats
            template, prompts = labelers.has_template(self.labeler), [pair.prompt.text for pair in pairs]
            if told := chat.account(labelers.title(self.labeler), template, prompts, asked=True):
                log.say(told)
        store = Store(store_of(folder))
        mesh = axes.make_mesh(asdict(self.mesh))
        labels = preference.label_all(self.labeler, self.asked(), pairs, store, dtype=self.dtype, mesh=mesh, note=note)
        made = iter(labels)
        columns = [
            next(made).columns(self.labeler, self.technique) if entry.record else INVALID | {'reason': entry.problem}
            for entry in entries
        ]
        prefix = free_prefix({name for entry in entries for name in entry.row}, {n for more in columns for n in more})
        named = [{prefix + name: value for name, value in more.items()} for more in columns]
        if paths.typed(self.output).exists():  # whoever wrote it has labels that the store knows
            log.say(f'{self.output}: takes the place of labels that an earlier run wrote there')
        if self.write == 'pairs':
            found = [trl.preferred(entry.row, more['preference_prob']) for entry, more in zip(entries, columns)]
            if not any(found):
                raise Mistake(f'{self.input}: the labeler prefers no response of its {len(entries)} rows to the other')
            files.write_rows(self.output, filter(None, found), paths.put)
            log.say(
                f'{self.output}: {sum(map(bool, found))} pairs as the labeler prefers them; the others are left out'
            )
        elif changed := files.write_more(self.output, rows, named):
            log.say(f'{self.output}: has no type for all values of the columns {", ".join(changed)}, which are changed')
        if prefix and self.write == 'labels':
            log.say(f'{self.output}: the input has columns of our names, so those of the labels begin with {prefix}')
        for entry in [entry for entry in entries if entry.record is None][:3]:
            log.say(f'no pair: {entry.problem}')
        counts = {
            status: sum(more['status'] == status for more in columns) for status in ('ok', 'unscorable', 'invalid')
        }
        log.say(f'{self.output}: {len(entries)} rows, ' + ', '.join(f'{n} {status}' for status, n in counts.items()))
        known = [(label, pair) for label, pair in zip(labels, pairs) if pair.preference is not None]
        spent = {labelers.title(self.labeler): cost.counted(labels)}
        cost.say(spent)
        result = {'output': str(paths.typed(self.output).resolve()), 'simulated': bool(note), **counts}
        result['cost'] = {name: one.record() for name, one in spent.items()}
        result |= {'verdict': told} if (told := tell_worth(self.labeler, pairs, labels, note)) else {}
        if known:  # the file says what people preferred
            one = aligned(f'{self.task} {self.technique}', [pair for _, pair in known], [label for label, _ in known])
            report.labelers_table(
                [one], title=f'{labelers.title(self.labeler)} and the file’s own preferences', simulated=bool(note)
            )
            result['agreement'] = asdict(one.agreement)
            result |= {'alignment': {one.name: asdict(one)}, 'unscorable pairs': unscorable(one.name, labels)}
        return result


def check_output(output: str, source: str, folder: Path, *own: str) -> None:
    """Raises `Mistake` where a run in `folder`, where it has files of its `own`, cannot leave what it makes of `source` at
    `output`, or should not.
    """
    files.check_writable(output)
    at = Path(os.path.realpath(paths.typed(output)))
    if keeps(store_of(folder).resolve(), at) or at in [(folder / name).resolve() for name in ('result.json', *own)]:
        raise Mistake(f'output={output} is where the run keeps a file of its own; name another')
    if at.exists() and paths.typed(source).exists() and at.samefile(paths.typed(source)):
        raise Mistake(f'output={output} is the input; name another file')
    paths.check_file(at)


def free_prefix(taken: Set[str], names: Iterable[str]) -> str:
    """What the names of a file's new labels begin with, all alike: the first of '', `label_`, `label_2_`, … that makes them
    free, behind those of the labels that the file has.
    """
    oldest = max(map(generation, filter(generation, taken)), default=0)
    prefixes = ('' if n == 1 else 'label_' if n == 2 else f'label_{n - 1}_' for n in itertools.count(oldest + 1))
    return next(prefix for prefix in prefixes if not any(prefix + name in taken for name in names))


def generation(column: str) -> int:
    """1, 2, 3, … of `preference_prob`, `label_preference_prob`, `label_2_preference_prob`, …: the later, the newer; 0 of
    any other column.
    """
    found = _GENERATION.fullmatch(column)
    return 0 if not found else 1 if not found[1] else int(found[2] or 1) + 1


def labels_line(name: str, folder: Path, pairs: int, labeler: str, asked: Config, of: str = '', **lengths: int) -> Line:
    """The line of a plan for labels: pairs are read in both orders, and what their prompts share is read once. `lengths`
    are those of `judges`, where they are known.
    """
    reads = judges('labeler', labeler, asked, pairs / asked.batch, **lengths)
    return Line(name, folder, pairs, {'labeler': labeler}, reads=reads, of=of)


# Tokens that plans take a pair for: posts of TL;DR have 512 at most, and most dialogues fewer; those of the packaged world
# 128. The two responses and the question behind them, and a preamble with an exemplar or none.
CONTEXT, RESPONSES, PREAMBLE = 512, 160, 256


def judges(
    role: str, model: str, asked: Config, calls: float,
    context: int = 0, responses: int = RESPONSES, preamble: int = 0, rationale: int = 0,
) -> tuple[Read, ...]:  # fmt: skip
    """What a plan counts of a model that reads pairs in both orders, `asked.batch` of them a call; of a server nothing.
    Tokens that are not given are those that plans take: of a rationale the most.
    """
    if labelers.is_address(model):
        return ()
    how = Technique.parse(asked.technique)
    rationale = (rationale or asked.max_rationale) * how.cot
    room = asked.max_length - PREAMBLE - rationale
    context = max(min(context or (128 if model in PRESETS else CONTEXT), room - responses), 1)
    prefix, calls = preamble or PREAMBLE * (1 + how.shots), calls * asked.samples
    answers = Read(role, 'answers', asked.batch, context, responses + rationale, 2, prefix, calls)
    rationales = Read(role, 'writes', 2 * asked.batch, context + responses, rationale, 1, prefix, calls)
    return (rationales, answers) if how.cot else (answers,)


def check_prompts(labeler: str, cfg: Config) -> None:
    """Raises `Mistake` for templates that are not there, or exemplars that are too few. A labeler that a plan did not
    download is not asked.
    """
    with suppress(Absent):
        preference.ask(labelers.tokenizer(labeler), cfg)


def aligned(
    name: str, pairs: list[Pair], labels: list[Label], *, made: int | None = None, seconds: float | None = None
) -> alignment.Alignment:
    """The report on one cell. `made` of its labels were made just now, in `seconds`."""
    column = lambda field: np.array([getattr(label, field) for label in labels], np.float64)  # noqa: E731
    return alignment.report(
        name,
        column('preference'),
        np.array([pair.preference for pair in pairs], np.float64),
        first_shown_B=column('first_shown'),
        second_shown_B=column('second_shown'),
        first_chars_B=np.array([len(pair.first) for pair in pairs]),
        second_chars_B=np.array([len(pair.second) for pair in pairs]),
        mass_B=column('mass'),
        tokens=float(column('tokens').sum()),
        seconds=seconds if made == len(labels) else None,
        calls=None if made is None else len(labels),
        cache_hits=None if made is None else len(labels) - made,
    )


def tell_worth(labeler: str, pairs: Sequence[Pair], labels: Sequence[Label], note: str = '') -> str:
    """Says in plain words what labels are worth, by themselves and, where these are known, by people's votes. '' where not
    one pair has a label.
    """
    if all(label.status != 'ok' for label in labels):
        return ''
    column = lambda field: np.array([getattr(label, field) for label in labels], np.float64)  # noqa: E731
    human_B = np.array([math.nan if pair.preference is None else pair.preference for pair in pairs])
    position = alignment.position_bias(column('first_shown'), column('second_shown'))
    agreement = alignment.agreement(column('preference'), human_B)
    told = f'{note} {report.labeler_verdict(labelers.title(labeler), position, agreement)}'.lstrip()
    log.say(told)
    return told


def unscorable(name: str, labels: Sequence[Label]) -> dict[str, dict[str, int]]:
    """Name -> why pairs have no label -> how many; nothing where all have one."""
    reasons = Counter(label.reason for label in labels if label.status != 'ok')
    return {name: dict(reasons.most_common())} if reasons else {}


def written(pair: Pair, labeler: str, cfg: Config, label: Label) -> dict[str, Any]:
    """A row of a file of labels."""
    human = {} if pair.preference is None else {'preference': pair.preference}
    row = {'id': pair.prompt.id, 'prompt': pair.prompt.text, 'first': pair.first, 'second': pair.second, **human}
    return row | label.columns(labeler, cfg.technique)
