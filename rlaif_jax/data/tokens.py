"""Tokens of texts that were encoded before, by this run or by another one: read from files instead of made again.

    tokenizer = tokens.remembering(lm.tokenizer, prompts, lambda prompt: ([prompt.text], [prompt.reference]))
    tokenizer.encode(texts)                     # the same tokens; only what was not remembered is encoded

A row is found by what its text is, not by where it came from, so a changed file, source or length can make encoding slow
again and never wrong. SFT, reward models and policies of one tokenizer share what they remember. It lies in

    data_dir()/tokens/<digest of the tokenizer>/<a table>/key.npy    (2, N) uint64, hashes of the texts, sorted
                                                          span.npy   (2, N) int64, where a row starts and stops
                                                          token.bin  int32, the rows one behind the other

and is mapped into memory, not read. A table is written beside and renamed, so it is whole or not there; to delete any of
it costs time only.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rlaif_jax import log
from rlaif_jax.config import Mistake
from rlaif_jax.text import Tokenizer

CHUNK = 512  # records that are encoded at a time: enough for every core
SAMPLE = 256  # records, evenly spaced: where their texts are remembered, so are those between them

Record = TypeVar('Record')
Texts = Callable[[Record], tuple[Sequence[str], Sequence[str]]]  # of a record: those by themselves, those behind others


class Table(NamedTuple):
    """Rows of tokens, in files."""

    key: np.ndarray  # (2, N) uint64; columns ascend by their first row
    span: np.ndarray  # (2, N) int64
    token: np.ndarray  # int32

    def find(self, key_2B: np.ndarray) -> dict[int, np.ndarray]:
        """Column of `key_2B` → its row, not read yet, where it is here."""
        at_B = np.minimum(np.searchsorted(self.key[0], key_2B[0]), self.key.shape[1] - 1)
        found = np.flatnonzero((self.key[:, at_B] == key_2B).all(axis=0))
        spans = self.span[:, at_B[found]].T.tolist()
        return {int(b): self.token[start:stop] for b, (start, stop) in zip(found, spans)}


@dataclass(frozen=True, eq=False)
class Remembering(Tokenizer):
    """A tokenizer that looks plain text up before it encodes it."""

    tables: tuple[Table, ...] = ()

    def encode(self, texts: Sequence[str], *, control: bool = False, behind: bool = False) -> list[list[int]]:
        found = {} if control else {b: row.tolist() for b, row in self.find(keys(texts, behind)).items()}
        new = [b for b in range(len(texts)) if b not in found]
        found |= zip(new, super().encode([texts[b] for b in new], control=control, behind=behind))
        return [found[b] for b in range(len(texts))]

    def find(self, key_2B: np.ndarray) -> dict[int, np.ndarray]:
        """Column of `key_2B` → its row, not read yet, where it is remembered."""
        return {b: row for table in self.tables for b, row in table.find(key_2B).items()}


def remembering(tokenizer: Tokenizer, records: Sequence[Record], texts: Texts, note: str = '') -> Remembering:
    """The tokenizer, with the tokens of all texts of the records to hand; those that no run encoded before are encoded
    now. Whether there are any it tells by a sample: to read all records takes a tenth of the time that encoding does. Of
    several processes one encodes, the others wait.

    `texts(record)` are the very texts that will be encoded, those with `behind` apart. Where nothing can be written it
    says so, and the tokenizer encodes whatever it is given.
    """
    from rlaif_jax.data import published  # TFDS takes a second to import

    folder = published.data_dir() / 'tokens' / digest(tokenizer)
    sample = [records[i] for i in range(0, len(records), max(len(records) // SAMPLE, 1))]

    def look() -> tuple[Remembering, bool]:
        known = Remembering(tokenizer.hf, tokenizer.ends, tokenizer.vocab, tables(folder))
        return known, not any(_new(known, some, behind) for part in _parts(sample, texts) for some, behind in part)

    known, complete = look()
    if not complete:
        try:
            with published.alone(folder):
                if not look()[1]:  # another process may just have made them
                    _write(folder, tokenizer, records, texts, note)
        except Mistake as mistake:
            log.say(f'{mistake}; texts are encoded as they come')
        known, _ = look()
    return known


def digest(tokenizer: Tokenizer) -> str:
    """Ten hex digits for what determines the tokens of a text."""
    import tokenizers

    Tokenizer.encode(tokenizer, ['.'])  # a first call sets what a file may leave open, truncation for one
    parts = type(tokenizer.hf).__name__, tokenizers.__version__, tokenizer.hf.backend_tokenizer.to_str()
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:10]


def keys(texts: Sequence[str], behind: bool = False) -> np.ndarray:
    """(2, B) uint64: 128 bits for each text, others where it goes on from other text."""
    hashes = (
        hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16, person=b'behind' if behind else b'')
        for text in texts
    )
    return np.frombuffer(b''.join(each.digest() for each in hashes), '<u8').reshape(-1, 2).T


def tables(folder: Path) -> tuple[Table, ...]:
    """The tables in a folder that are whole."""
    opened = (_open(path) for path in sorted(folder.glob('[!.]*')))
    return tuple(table for table in opened if table is not None)


def _open(path: Path) -> Table | None:
    try:
        key, span = (np.asarray(np.load(path / name, mmap_mode='r')) for name in ('key.npy', 'span.npy'))
        token = np.asarray(np.memmap(path / 'token.bin', '<i4', mode='r'))
        return Table(key, span, token) if key.shape == span.shape and span.max() == len(token) else None
    except (OSError, ValueError, EOFError):  # cut short, by a copy that was stopped or by a crash of the machine
        return None


def _parts(records: Sequence[Record], texts: Texts) -> Iterator[tuple[tuple[list[str], bool], ...]]:
    """The texts of `CHUNK` records after `CHUNK` records, each list with its `behind`."""
    for start in range(0, len(records), CHUNK):
        pairs = [texts(records[i]) for i in range(start, min(start + CHUNK, len(records)))]
        plain, after = ([text for each in pairs for text in each[side]] for side in (0, 1))
        yield (plain, False), (after, True)


def _new(known: Remembering, texts: Sequence[str], behind: bool) -> dict[bytes, str]:
    """Key → text, of those that are not remembered, each once."""
    key_2B = keys(texts, behind)
    found = known.find(key_2B)
    return {key_2B[:, b].tobytes(): text for b, text in enumerate(texts) if b not in found}


def _write(folder: Path, tokenizer: Tokenizer, records: Sequence[Record], texts: Texts, note: str) -> None:
    """One more table, with what those in the folder lack; the caller is alone here."""
    for path in folder.glob('*'):
        if path.is_dir() and _open(path) is None or path.name.startswith('.partial'):  # of a writer that was killed
            shutil.rmtree(path, ignore_errors=True)
    known = Remembering(tokenizer.hf, tokenizer.ends, tokenizer.vocab, tables(folder))
    table = folder / uuid.uuid4().hex[:10]
    partial = folder / f'.partial-{table.name}'
    partial.mkdir()
    lengths: dict[bytes, int] = {}  # key → tokens, in the order of the file
    try:
        count = math.ceil(len(records) / CHUNK)
        with open(partial / 'token.bin', 'wb') as file, log.progress(f'tokens {note}'.rstrip(), count) as bar:
            for part in _parts(records, texts):
                for some, behind in part:
                    new = {key: text for key, text in _new(known, some, behind).items() if key not in lengths}
                    rows = tokenizer.encode(list(new.values()), behind=behind)
                    lengths |= zip(new, map(len, rows))
                    file.write(np.array([i for row in rows for i in row], '<i4').tobytes())
                bar.advance(f'{len(lengths):,} texts')
            _flushed(file)
        if not sum(lengths.values()):  # another process was faster
            return
        key = np.frombuffer(b''.join(lengths), '<u8').reshape(-1, 2).T
        length = np.fromiter(lengths.values(), np.int64)
        span, order = np.stack([length.cumsum() - length, length.cumsum()]), np.argsort(key[0], kind='stable')
        for name, array in (('key.npy', key), ('span.npy', span)):
            with open(partial / name, 'wb') as file:
                np.save(file, np.ascontiguousarray(array[:, order]))
                _flushed(file)
        os.rename(partial, table)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flushed(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
