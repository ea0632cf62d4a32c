"""The label store: what a labeler was asked once it is not asked again, whatever happens to the process in between.

    store = Store(folder / 'labels.jsonl')
    keys = [key(lm.digest, template.digest, 'detailed', prompt, first, second) for prompt, first, second in pairs]
    labels = complete(store, keys, lambda indices: [ask(pairs[i]) for i in indices], batch=64)

A store is a text file to which whole lines of JSON are added, `{"key": …, "status": …, …}`, and which nothing rewrites.
A key stands for everything that a label depends on, so another labeler, template or pair is another key and nothing is
ever stale. The first line with a key counts. Hence independent jobs may write a file each, a `Shard`, and whoever reads
one reads those beside it, too; put one behind the other (`cat`) they are a store again. Runs on one machine may write
the same file. Of the processes of one run the first reads and writes it, and tells the others.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from rlaif_jax import hosts, log
from rlaif_jax.config import Mistake, Passing, refusal
from rlaif_jax.folder import hold
from rlaif_jax.stopping import stop_on_signal

Record = dict[str, Any]  # plain JSON
T = TypeVar('T')

_ENOUGH = 50  # labels, before their unscorable share says something
_START = b'{"key": "'  # of every line


def key(*parts: str) -> str:
    """32 hex digits (128 bits) that stand for the sequence of `parts`: ('ab', 'c') and ('a', 'bc') have other keys."""
    digest = blake2b(digest_size=16)
    for part in parts:
        data = part.encode('utf-8', 'surrogatepass')
        digest.update(b'%d:' % len(data) + data)  # with its length before it, no part runs into the next
    return digest.hexdigest()


@dataclass(frozen=True)
class Shard:
    """One of `of` jobs that label the same pairs and know nothing of each other: its share of them, and its own store."""

    number: int  # from 1
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that '3/16' says. Raises `Mistake` for any other text, and for a number beyond the last."""
        found = re.fullmatch(r'([0-9]{1,9})/([0-9]{1,9})', text)
        if not found:
            raise Mistake(f'shard={text}: which one, of how many? Write shard=3/16 for the third of sixteen')
        number, of = map(int, found.groups())
        if not 1 <= number <= of:
            nearest = f'shard=1/{max(of, 1)} is the first' if number < 1 or of < 1 else f'shard={of}/{of} is the last'
            raise Mistake(f'shard={text}: {nearest}')
        return cls(number, of)

    def __str__(self) -> str:
        return f'{self.number}/{self.of}'

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Those of the items that are its own: all shares together are all items, each once, and they are as long, or one
        item longer than others.
        """
        return items[self.number - 1 :: self.of]

    def store(self, path: Path) -> Path:
        """The file that it alone writes, beside the store that all share: `labels-03-of-16.jsonl`."""
        return path.with_name(f'{path.stem}-{self.number:0{len(str(self.of))}}-of-{self.of}{path.suffix}')


def keeps(store: Path, path: Path) -> bool:
    """Whether a file is the store or, by its name, that of one of its shards."""
    names = re.escape(store.stem) + '(-[0-9]+-of-[0-9]+)?' + re.escape(store.suffix)
    return path.parent == store.parent and bool(re.fullmatch(names, path.name))


class Store:
    """The labels in the file `path`, which is made where it is absent, and in those of shards beside it: `{key: record}`,
    read whole into memory. A `shard` reads the same files, and writes its own.

    Every reading and writing holds the file's lock, so any number of processes may share it (a `Store` is for one
    thread). Where the system or the file system has no locks it says so, and one process at a time may write.

    A last line cut short, by a crash in the middle of a write, is dropped, and said. A damaged line before it is skipped
    and said, not an error: its label is made again and added, and the line itself stays for whoever wants to look. So
    no label that was paid for is lost and no run is held up. A file without any label is not ours and is not touched.

    Raises `Mistake` for what is not a label store, and where the system lets it not be read or written.
    """

    def __init__(self, path: Path | str, shard: Shard | None = None):
        self._shared = Path(path)
        self.path = shard.store(self._shared) if shard else self._shared  # which this store adds to
        self._records: dict[str, Record] = {}
        self._come: dict[Path, tuple[int, int]] = {}  # how far each file has been read: bytes, lines
        self._own: set[str] = set()  # of the records, those that this run added, and not another one meanwhile
        self.refresh()

    @property
    def added(self) -> int:
        """How many records this run added."""
        return len(self._own)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def get(self, key: str) -> Record | None:
        """A copy of the record, as the file has it (null is None, a tuple a list), or None where there is none."""
        record = self._records.get(key)
        return None if record is None else dict(record)

    def append(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds `{key: record}` in one locked write of whole lines, on disk when this returns.

        A key that is there already, if another process wrote it meanwhile, too, stays what it is. A number that is not
        finite becomes null. Raises ValueError for a record with a field `key`, `Mistake` where the disk is full.
        """
        if any('key' in record for record in records.values()):
            raise ValueError('a record cannot have a field named key')
        hosts.told(lambda: self._append(records))
        if not hosts.first():
            self._records = {key: json.loads(log.to_json(record)) for key, record in records.items()} | self._records

    def _append(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        with self._open() as file:
            new = {key: record for key, record in records.items() if key not in self._records}
            if not new:
                return
            text = ''.join(log.to_json({'key': key, **record}) + '\n' for key, record in new.items())
            file.write(text.encode('utf-8', 'backslashreplace'))  # a lone surrogate becomes its JSON escape
            file.flush()
            os.fsync(file.fileno())
            self._read(file)  # so that memory holds what the file does
            self._own |= new.keys()

    def refresh(self) -> None:
        """Reads what other runs added, here and in the files beside."""

        def read() -> None:
            with self._open():
                pass
            for path in sorted(self._shared.parent.iterdir()):
                if path != self.path and path.is_file() and keeps(self._shared, path):
                    self._look(path)

        hosts.told(read)

    def where(self) -> str:
        """The files that it reads, in words."""
        beside = sum(path != self.path for path in self._come)
        return f'{self.path}' + f' and {beside} beside it' * bool(beside)

    def share(self, keys: Iterable[str]) -> None:
        """Has every process of this run hold for these keys what the first one does, which alone has the file. What they
        made together all of them have.
        """
        others = lambda: {key: self._records[key] for key in keys if key in self._records.keys() - self._own}  # noqa: E731
        self._records |= hosts.told(others)

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """The file, locked, mended, read to its end."""
        with _explained(self.path):
            if self.path.exists() and not self.path.is_file():
                raise Mistake(f'{self.path} is not a file; name one, such as {self.path / "labels.jsonl"}')
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, 'a+b') as file:  # closing it drops the lock
                hold(file, self.path)
                self._read(file)
                yield file

    def _read(self, file: BinaryIO) -> None:
        """Takes in every line from where the last reading ended, and mends the end of the file."""
        found, size, tail = self._unread(file, self.path)
        last = _parse(tail)
        ours = any(found) if found else last or _START.startswith(tail[: len(_START)])
        if not self._records and not ours:
            raise Mistake(f'{self.path} is not a label store: no line of it is a label; name another file')
        if last:  # only its line end is missing
            file.write(b'\n')
            file.flush()
            found.append(last)
            size += len(tail) + 1
        elif tail:
            file.truncate(size)
            log.say(f'{self.path}: dropped the last line, which a crash cut short ({len(tail)} bytes)')
        self._take(self.path, found, size)

    def _look(self, path: Path) -> None:
        """The same of a file that another job writes, perhaps now: its end is that job's to mend."""
        with _explained(path), open(path, 'rb') as file:
            found, size, tail = self._unread(file, path)
        self._take(path, found, size)
        if last := _parse(tail):
            self._records.setdefault(last.pop('key'), last)

    def _unread(self, file: BinaryIO, path: Path) -> tuple[list[Record | None], int, bytes]:
        """The lines since the last reading of `path`, None for damaged ones; where they end; what stands behind."""
        come, _ = self._come.get(path, (0, 0))
        if file.seek(0, os.SEEK_END) < come:
            raise Passing(f'{path} was cut or replaced while labels were added to it; start again')
        file.seek(come)
        *lines, tail = (data := file.read()).split(b'\n')
        return [_parse(line) for line in lines], come + len(data) - len(tail), tail

    def _take(self, path: Path, found: Sequence[Record | None], size: int) -> None:
        """Keeps what was found in a file up to `size` bytes, and says what is damaged."""
        _, lines = self._come.get(path, (0, 0))
        if damaged := [number for number, record in enumerate(found, lines + 1) if record is None]:
            which = f'line {damaged[0]}' + f' and {len(damaged) - 1} more' * (len(damaged) > 1)
            log.say(f'{path}: skipped {which}, damaged; asked for again when needed')
        for record in filter(None, found):
            self._records.setdefault(record.pop('key'), record)
        self._come[path] = size, lines + len(found)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Says of what the system refuses that labels are what it is about."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        hope = 'put that right, or name another file; what is stored is kept'
        raise refusal(error, f'{path}: labels cannot be kept here ({reason}); {hope}') from error


def complete(
    store: Store,
    keys: Sequence[str],
    make: Callable[[list[int]], Sequence[Mapping[str, Any]]],
    *,
    batch: int,
    title: str = 'label',
    note: str = '',
    noun: str = 'labels',
    most_unscorable: float = 0.2,
    advise: Callable[[list[int]], str] | None = None,
) -> list[Record]:
    """The records of `keys`, in their order; those that the store lacks are made first, and stored batch by batch.

    `make(indices)` gets up to `batch` indices into `keys` (of a key that stands there more than once, the first) and
    returns as many records, each with a `status`, 'ok' or 'unscorable'. What is unscorable stays so: it is not asked for
    again. `noun` is what the records are.

    Ctrl-C or SIGTERM ends the program behind a batch; a crash loses the batch in flight; the same call goes on.

    Raises `Mistake`, with what `advise` says of the indices of three, when more than `most_unscorable` (a share)
    of the labels made by this call are unscorable; it looks from the 50th on. Where fewer were left to make it looks at
    the end and at all of `keys`, so that a run resumed for its last labels is not judged by these few. What was made
    stays stored.
    """
    if batch < 1:
        raise ValueError(f'batch must be positive, not {batch}')
    store.refresh()
    first = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    store.share(first)
    todo = [i for key, i in first.items() if key not in store]
    old_bad = [i for key, i in first.items() if key in store and _unscorable(store.get(key))]
    there = f'{len(first) - len(todo)} of {len(first)} are in {store.where()} ({len(old_bad)} unscorable)'
    log.say(f'{title}: {there}, {len(todo)} to make')
    if not todo:
        return [store.get(key) for key in keys]
    parts = [todo[i : i + batch] for i in range(0, len(todo), batch)]
    made, bad, began = 0, [], time.monotonic()
    # The bar counts batches: labels come in bursts, which make nonsense of a rate.
    with log.progress(f'{title} {note}'.rstrip(), len(parts)) as bar, stop_on_signal() as stop:
        for part in parts:
            records = {i: _checked(record) for i, record in zip(part, make(list(part)), strict=True)}
            store.append({keys[i]: record for i, record in records.items()})
            made += len(part)
            bad += [i for i in part if _unscorable(records[i])]
            rate = made / max(time.monotonic() - began, 1e-9)
            bar.advance(f'{made} {noun}, {rate:.3g} a second, {len(bad)} unscorable')
            enough = made >= _ENOUGH
            among, count = (bad, made) if enough else (bad + old_bad, len(first))
            if (enough or made == len(todo)) and len(among) / count > most_unscorable:
                tell = advise or (lambda bad: ''.join(f'\n  {log.to_json(store.get(keys[i]))[:200]}' for i in bad))
                raise Mistake(
                    f'{title}: {len(among)} of {count} labels are unscorable ({len(among) / count:.0%}, of which at most '
                    f'{most_unscorable:.0%} may be): the labeler gave no answer that can be read. For '
                    f'example{tell(among[:3])}\n'
                    f'label.most_unscorable, raised, goes on without them; all are kept in {store.path}'
                )
            if hosts.anyone(lambda: stop.asked):
                stop.exit(f'{title}: stopped after {made} of {len(todo)} {noun}')
    store.share(first)  # another run may have been quicker with some of them
    return [store.get(key) for key in keys]


def _checked(record: Mapping[str, Any]) -> Mapping[str, Any]:
    if record.get('status') not in ('ok', 'unscorable'):
        raise ValueError(f"a label's status is 'ok' or 'unscorable', not {record.get('status')!r}")
    return record


def _unscorable(record: Mapping[str, Any]) -> bool:
    return record.get('status') == 'unscorable'


def store_in(stages: Path) -> Path:
    """The store that runs share: in the folder of their stages or, where an earlier version kept it, beside that."""
    here, before = Path(stages) / 'labels.jsonl', Path(stages).parent / 'labels.jsonl'
    return before if not here.exists() and _begins(before) else here


def _begins(path: Path) -> bool:
    """Whether a file is a store, by how it begins."""
    try:
        with open(path, 'rb') as file:
            return file.read(len(_START)) == _START
    except OSError:
        return False


def _parse(line: bytes) -> Record | None:
    """A line as a record with its key; None where it is damaged. What is cut off a line's end never leaves a whole one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get('key'), str) else None
