"""Data by name or by path, and which prompt stands where in the stream: a function of the seed and the step, so that the
step is the whole position.

    find('tldr')                              # a `Source`; published: prepared at first, see `published`
    source('posts.jsonl', 'train', 1000)      # the prompts of anybody's, see `files`
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlaif_jax import log
from rlaif_jax.config import CONTENT, Mistake, dump, marked, nearest, parse
from rlaif_jax.data import files, trl
from rlaif_jax.data.records import Pair, Prompt, share
from rlaif_jax.data.source import Prompts, Source
from rlaif_jax.paths import typed
from rlaif_jax.shortening import check_fits, shortened

TASKS = {'tldr': 'summarization', 'hh_helpful': 'helpful', 'hh_harmless': 'harmless'}  # of published data sets
SPLITS = ('train', 'validation', 'test')
STEMS = {'validation': ('validation', 'valid', 'val', 'dev'), 'test': ('test', 'eval')}  # of files in a folder
EDGES = {'train': (0.0, 0.8), 'validation': (0.8, 0.9), 'test': (0.9, 1.0)}  # shares of a single file

Record = TypeVar('Record', Prompt, Pair)


def find(name: str) -> Source:
    """The data set of that name, or the one in a file or a folder of anybody's. Raises `Mistake` naming the nearest."""
    if name in known():
        return known()[name]
    _path(name)
    return own(name)


def own(path: str) -> Source:
    """The data set in a file or a folder of anybody's."""
    return Source(path, '', partial(_mine, path, trl.prompts), partial(_mine, path, trl.pairs))


@functools.cache
def known() -> dict[str, Source]:
    """The data sets that have a name, the simulated ones first."""
    return _simulated() | {name: _published(name, task) for name, task in TASKS.items()}


def of_task(name: str, task: str) -> Source:
    """Where the prompts of a task are that go with a data set: each published and each simulated task has a data set of
    its own, a file is of any.
    """
    data = find(name)
    alike = (one for one in known().values() if (one.published, one.simulated) == (data.published, data.simulated))
    return next((one for one in alike if one.task == task), data)


def source(name: str, split: str, size: int, task: str = 'summarization') -> Sequence[Prompt]:
    """The first `size` prompts of a split, or all where there are fewer; `train`, `validation` and `test` are always there.

    Args:
      name: one of `known()`, or the path of anybody's prompts or pairs: a folder with a file a split (`train.jsonl`,
        `data/test-00000-of-00001.parquet`, as `datasets` writes them), or a file, which the hashes of its prompts split
        into 80 % train, 10 % validation and 10 % test.
      split: of a published data set also `alignment`, or anything in TFDS's syntax, such as `train[:10%]`.
      task: how messages in a file become text.

    Raises `Mistake` for an unknown name or split, a file that cannot be read, and published data that is not to be had.
    """
    return find(name).prompts(split, size, task)


def pairs(name: str, task: str, split: str, size: int, confident: bool = False) -> list[Pair]:
    """The first `size` pairs of a split with what people preferred, or all where there are fewer; names and splits as in
    `source`. The pairs of `tldr` are the published comparisons, those of the dialogues have the chosen reply first.

    With `confident`, of those whose raters were sure, where they were asked (simulated raters, and `tldr`: 1, 2, 8 or 9 of
    9).
    The split `alignment` is what the paper measures labelers on; that of `tldr` is `confident` already.
    """
    return find(name).pairs(split, size, task, confident)


def check(name: str) -> None:
    """Raises `Mistake` for a name or a path that `source` could not read; fetches and prepares nothing."""
    data = find(name)
    if data.published:
        from rlaif_jax.data import published

        published.manual_dir()
    elif name not in known() and not typed(name).exists():
        raise Mistake(f'data: {name}: no such file or folder')


def absent(name: str, pairs: bool = True) -> list[str]:
    """What of a published data set a run would fetch, and from where; [] where it is all on this machine. Without `pairs`
    its prompts alone are asked for.
    """
    if not find(name).published:
        return []
    from rlaif_jax.data import published

    _, of_prompts, of_pairs = _kinds(name)
    kinds = dict.fromkeys([of_prompts, *[of_pairs] * pairs])
    return list(filter(None, map(published.absent, kinds)))


def fitted(prompts: Sequence[Prompt], fits: Callable[[str], bool]) -> Sequence[Prompt]:
    """The same prompts, those that do not fit shortened when they are read (`shortening`). Raises `Mistake`, now, where
    there is one of which nothing fits.
    """
    check_fits(((f'prompt {prompt.id}', prompt.text) for prompt in prompts), fits)

    def fit(prompt: Prompt) -> Prompt:
        if fits(prompt.text):
            return prompt
        return replace(prompt, text=shortened(prompt.text, fits, f'prompt {prompt.id}'))

    return Prompts(prompts, fit, len(prompts))


def batches(
    prompts: Sequence[Record],
    batch: int,
    seed: int,
    *,
    window: int = 1,
    lengths: Callable[[list[Record]], Sequence[int]] | None = None,
    name: str = 'batch',
) -> Callable[[int], list[Record]]:
    """`at(step)`: the step's prompts (or pairs), every epoch in another order, for ever. Raises `Mistake`, as
    `check_batch`, where there is not even one batch of them; `name` is the config's for it.

    Nothing is kept between calls, so the step is the position: whoever restores it goes on exactly. Each of several
    processes reads the whole batch, which is text, and puts its own devices' part of it onto the mesh.

    With a `window` of several batches, those batches share out their rows by length (`lengths` of the rows, in tokens):
    one has the shortest, another the longest, in random order, so that padding to the longest of a batch computes less.
    Which rows a window holds stays as it was; which of them are averaged in one step no longer is independent of length.
    """
    import grain  # which brings Orbax and Flax, as nothing else does before a run

    check_batch(name, batch, len(prompts))
    stream = grain.MapDataset.source(prompts).seed(seed).shuffle().repeat()
    if window == 1:
        return lambda step: [stream[step * batch + i] for i in range(batch)]

    @functools.lru_cache(maxsize=2)
    def shared_out(number: int) -> list[list[Record]]:
        found = [stream[i] for i in range(number * window * batch, (number + 1) * window * batch)]
        row_WB = np.argsort(np.asarray(lengths(found)), kind='stable').reshape(window, batch)
        return [[found[i] for i in row_B] for row_B in np.random.default_rng((seed, number)).permutation(row_WB)]

    return lambda step: shared_out(step // window)[step % window]


def check_batch(name: str, size: int, count: int, parts: int = 1) -> None:
    """Raises `Mistake` where `count` prompts or pairs are no batch of `size`, naming a size that fits: the largest half,
    quarter, … of it, as sizes are in whole `parts`. Of one with several responses to a prompt, `count` is of responses.
    """
    if 0 < size <= count:
        return
    halves = [size // 2**i for i in range(1, max(size, 1).bit_length()) if size % 2**i == 0]
    fit = [half for half in halves if half <= count and half % parts == 0] or [count // parts * parts]
    hope = f'give {name}={fit[0]}' if fit[0] else f'it takes {parts} at least'
    raise Mistake(f'{name} = {size}: there are {count} to train on, fewer than a batch; {hope}')


def _simulated() -> dict[str, Source]:
    """Those of the simulated world; none where its folder was taken away. Nothing else below `experiments` imports it."""
    if getattr(importlib.util.find_spec('rlaif_jax.micro'), 'origin', None) is None:  # or an empty folder is left of it
        return {}
    from rlaif_jax.micro import sources

    return sources.SOURCES


def _published(name: str, task: str) -> Source:
    def prompts(split: str, size: int, task: str = '') -> Sequence[Prompt]:
        module, kind, _ = _kinds(name)
        rows = _rows(kind, split)
        return Prompts(rows, module.prompt, min(size, len(rows)))

    def pairs(split: str, size: int, task: str = '', confident: bool = False) -> list[Pair]:
        module, _, kind = _kinds(name)
        rows = _rows(kind, split)
        if confident and name == 'tldr':
            rows = filter(module.confident, rows)
        return [module.pair(row) for row in itertools.islice(rows, size)]

    return Source(name, task, prompts, pairs, published=True)


def _kinds(name: str) -> tuple[Any, Any, Any]:
    """The module of published data, which makes records of its rows; and the builders of its prompts and of its pairs."""
    from rlaif_jax.data import hh, tldr  # TFDS takes a second to import

    return {
        'tldr': (tldr, tldr.Posts, tldr.Comparisons),
        'hh_helpful': (hh, hh.Helpful, hh.Helpful),
        'hh_harmless': (hh, hh.Harmless, hh.Harmless),
    }[name]


def _rows(kind: Any, split: str) -> Sequence[Any]:
    from rlaif_jax.data import published

    builder = published.prepare(kind)
    try:
        return builder.as_data_source(split)
    except (ValueError, KeyError) as error:
        there = ', '.join(kind.SPLITS)
        raise Mistake(
            f'{kind.name} has no split {split!r}; it has {there}, and parts of them as train[:10%]'
        ) from error


def _mine(
    name: str,
    read: Callable[[Path, str], list[trl.Entry]],
    split: str,
    size: int,
    task: str = 'summarization',
    confident: bool = False,  # nobody was asked how sure
) -> list[Any]:
    """The first records of a split of anybody's file or folder; rows that are none are counted and left out."""
    path = _path(name)
    if split not in SPLITS:
        raise Mistake(f'{path} has no split {split!r}; it has {", ".join(SPLITS)}')
    if not (found := _files(path, split)):
        raise Mistake(f'{path}: no file of the split {split}, such as {split}.jsonl or {split}-00000-of-00001.parquet')
    entries = [entry for file in found for entry in read(file, task)]
    problems = [entry.problem for entry in entries if entry.record is None]
    if problems:
        log.say(f'{path}: {len(problems)} of {len(entries)} rows are left out; the first: {problems[0]}')
    records = [entry.record for entry in entries if entry.record is not None]
    if not path.is_dir():
        low, high = EDGES[split]
        text = lambda record: getattr(record, 'prompt', record).text  # noqa: E731  of a pair, its prompt's
        records = [record for record in records if low <= share(text(record)) < high]
        if not records:
            raise Mistake(f'{path}: by the hashes of its prompts none is in {split}; give a folder with a file a split')
    return records[:size]


def _files(path: Path, split: str) -> list[Path]:
    """The files of a split of anybody's file or folder; [] where there are none."""
    if not path.is_dir():
        return [path]
    places = [(folder, stem) for folder in (path, path / 'data') for stem in STEMS.get(split, (split,))]
    return next(filter(None, (files.shards(*place) for place in places)), [])


def contents(config: Any) -> str:
    """A comment for each path of `config` that names data of one's own, where it is there: what is in it, as a digest."""
    named = parse(dump(config))
    noted = []
    for path in sorted(marked(type(config), 'file')):
        if (name := named.get(path)) and name not in known():
            found = sorted({file for split in SPLITS for file in _files(typed(name), split) if file.is_file()})
            sums = [_sum(file, file.stat().st_size, file.stat().st_mtime_ns) for file in found]
            noted += [f'{CONTENT}{path}: {hashlib.sha256("".join(sums).encode()).hexdigest()[:10]}\n'] * bool(sums)
    return ''.join(noted)


@functools.cache
def _sum(path: Path, size: int, changed: int) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _path(name: str) -> Path:
    """The path that a name is, where it looks like one. Raises `Mistake` naming the nearest data set."""
    if name.lower().endswith(files.READABLE) or '/' in name or Path(name).exists():
        return typed(name)
    near = nearest(name, known())
    raise Mistake(f'no data set {name!r}; did you mean {near}? A path of prompts or pairs will do, too')
