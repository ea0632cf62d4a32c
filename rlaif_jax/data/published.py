"""Data sets as their publishers have them: found on this machine or fetched, checked, and prepared by TFDS as ArrayRecord.

    builder = published.prepare(tldr.Posts)
    builder.as_data_source('train')[0]                 # a dict of features; text is bytes

The same rows come in several copies: the publisher's files, and tables on the Hugging Face hub. They are looked for in a
folder of one's own (`manual_dir`) and in Hugging Face's two caches; else the publisher's files are fetched. A data set
is prepared once, whole or not at all. TensorFlow is never imported.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from rlaif_jax import log, paths
from rlaif_jax.config import LASTING, Mistake, Passing, refusal, refused
from rlaif_jax.data import files
from rlaif_jax.folder import own_lock

HUB = 'https://huggingface.co/datasets/'
SECONDS = 60  # without an answer from the network
LATER = (408, 425, 429)  # what a server answers that wants to be asked again, besides errors of its own


@dataclass(frozen=True)
class Copy:
    """One form in which a data set is published.

    Attributes:
      address: of the folder on the network that holds the files.
      files: their names; what stands before the suffix is the stem, by which other forms of the same file are found.
      repository: `owner/name` on the Hugging Face hub whose caches may hold it; '' for none.
    """

    address: str
    files: tuple[str, ...]
    repository: str = ''

    @property
    def stems(self) -> tuple[str, ...]:
        return tuple(_stem(name) for name in self.files)

    @property
    def folder(self) -> str:
        """What the publisher calls the folder."""
        return self.address.rsplit('/', 1)[-1]


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder over published files. A data set says where they are and what a row becomes; see `tldr` and `hh`.

    Attributes:
      COPIES: the publisher's own files first; those are fetched where nothing is found.
      COUNTS: published split → rows; a copy with other counts is refused.
      SPLITS: the splits that are prepared.
      FEATURES: feature → numpy type, `str` for text; `id` comes by itself.
    """

    VERSION = tfds.core.Version('1.0.0')
    COPIES: ClassVar[tuple[Copy, ...]]
    COUNTS: ClassVar[Mapping[str, int]]
    SPLITS: ClassVar[tuple[str, ...]]
    FEATURES: ClassVar[Mapping[str, type]]
    ABOUT: ClassVar[str]
    HOMEPAGE: ClassVar[str]
    CITATION: ClassVar[str]
    LICENCE: ClassVar[str]
    url_infos = None  # of downloads by TFDS, which are not used; it would want a package that it does not ask for
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Optional: the published files, in a folder named after the data set.'

    def __init__(self, *, file_format: str = 'array_record', **more: Any) -> None:
        super().__init__(file_format=file_format, **more)

    @abstractmethod
    def example(self, row: files.Row, where: str) -> dict[str, Any] | str:
        """A row's features, or why it is left out. Raises `Mistake` where the whole file must be of another kind."""

    @abstractmethod
    def splits(self, published: str, example: dict[str, Any]) -> Sequence[str]:
        """The prepared splits that an example of a published split belongs to."""

    def published(self, stem: str, row: files.Row) -> str:
        """The published split of a row in a file of this stem; '' for a row of another data set in the same file."""
        return {'valid': 'validation'}.get(stem, stem)

    def _log_download_bytes(self) -> None:
        """TFDS would print that sizes are unknown."""

    _log_download_done = _log_download_bytes

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {name: text() if kind is str else kind for name, kind in self.FEATURES.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.ABOUT,
            features=tfds.features.FeaturesDict({'id': text(), **features}),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            license=self.LICENCE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        manual = Path(dl_manager._manual_dir)  # the property raises where the folder is not there; nobody need give one
        found = find(type(self), manual, Path(dl_manager.download_dir) / self.name)
        made: dict[str, list[dict[str, Any]]] = {split: [] for split in self.SPLITS}
        counts: Counter[str] = Counter()
        left_out = []
        located = ((stem, *row) for stem, paths in found.items() for path in paths for row in files.read(path).located)
        for stem, where, row in located:
            if split := self.published(stem, row):
                example = self.example(row, where)
                id = f'{self.name}/{split}/{counts[split]}'
                counts[split] += 1
                if isinstance(example, str):
                    left_out.append(example)
                else:
                    for into in self.splits(split, example):
                        made[into].append({'id': id, **example})
        self._check_counts(counts, found)
        if left_out:
            log.say(f'{self.name}: {len(left_out):,} of {counts.total():,} rows are left out; the first: {left_out[0]}')
        return {split: self._generate_examples(examples) for split, examples in made.items() if examples}

    def _generate_examples(self, examples: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        # TFDS puts rows in the order of their keys' hashes, so the first n of a split are a random n, the same everywhere.
        for example in examples:
            yield example['id'], {name: files.utf8(value) for name, value in example.items()}

    def _check_counts(self, counts: Mapping[str, int], found: Mapping[str, list[Path]]) -> None:
        for split, rows in self.COUNTS.items():
            if counts.get(split, 0) != rows:
                folder = next(iter(found.values()))[0].parent
                raise Mistake(
                    f'{self.name}: {folder} has {counts.get(split, 0):,} rows of {split}, published are {rows:,}; a file '
                    f'is cut short, or another one. Delete it and fetch it again from {self.COPIES[0].address}/'
                )


def require(row: files.Row, columns: Sequence[str], where: str) -> None:
    """Raises `Mistake`, naming the columns that are there, where a row lacks one."""
    if absent := [name for name in columns if name not in row]:
        raise Mistake(f'{where}: no {_listed(absent)} among its columns, which are {_listed(row) or "none"}')


# Preparing


def data_dir() -> Path:
    """Where prepared data lies: $RLAIF_DATA_DIR, else `rlaif_jax/data` in the user's cache. Raises `Mistake` where there is
    neither.
    """
    if given := os.environ.get('RLAIF_DATA_DIR'):
        return paths.typed(given)
    if (cache := paths.cache()) is None:
        raise Mistake('prepared data lies in the home directory, and none is known here; give --data_dir=FOLDER')
    return cache / 'rlaif_jax' / 'data'


def manual_dir() -> Path | None:
    """Where the user keeps published files: $RLAIF_MANUAL_DIR. Raises `Mistake` where that is no folder."""
    given = os.environ.get('RLAIF_MANUAL_DIR')
    if not given:
        return None
    if not (folder := paths.typed(given)).is_dir():
        raise Mistake(f'manual_dir: {given} is no folder; it holds a folder for each data set, such as hh_harmless/')
    return folder


def prepared(kind: type[Builder]) -> Path | None:
    """The folder of a data set that has been prepared, else None."""
    folder = data_dir() / kind.name / str(kind.VERSION)
    return folder if (folder / 'dataset_info.json').exists() else None


def absent(kind: type[Builder]) -> str:
    """What of a data set would have to be fetched, and from where; '' where it is on this machine, prepared or not."""
    first, downloads = kind.COPIES[0], data_dir() / 'downloads'
    fetched = _whole_copy(downloads / kind.name, first.stems)
    if prepared(kind) or fetched or local(kind, manual_dir() or downloads / 'manual'):
        return ''
    named = first.files if len(first.files) < 5 else (f'{first.files[0]} … {first.files[-1]}',)
    return f'{kind.name}: {_listed(named)} from {first.address}/ (or put them in {kind.name}/ under --manual_dir)'


def prepare(kind: type[Builder]) -> Builder:
    """A data set's builder, its data prepared in `data_dir()` now or earlier; of several processes one does it.

    Raises `Mistake`, saying what to fetch and where to put it, where the files are neither here nor to be had.
    """
    if not prepared(kind):
        with alone(data_dir()):
            if not prepared(kind):
                manual = manual_dir()
                log.say(f'{kind.name}: preparing {kind.ABOUT}, in {data_dir()}; once')
                with _no_bars():
                    kind(data_dir=data_dir()).download_and_prepare(
                        download_config=tfds.download.DownloadConfig(
                            manual_dir=manual, compute_stats=tfds.download.ComputeStatsMode.SKIP, try_download_gcs=False
                        )
                    )
    return kind(data_dir=data_dir())


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits for any other process that prepares data here."""
    with own_lock(folder, wait=True, hope='set RLAIF_DATA_DIR'):
        try:
            yield
        except OSError as error:
            raise refusal(error, f'{folder}: data cannot be prepared here ({error}); set RLAIF_DATA_DIR') from error


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()


# Finding and fetching


def find(kind: type[Builder], manual: Path, downloads: Path) -> dict[str, list[Path]]:
    """Stem → its files: of a copy that is whole on this machine, else of the first copy, fetched into `downloads`.

    Raises `Mistake`, saying what to fetch and where to put it, where nothing is here and nothing can be fetched.
    """
    if found := local(kind, manual):
        return found
    first, home = kind.COPIES[0], manual / kind.name
    try:
        for name in first.files:
            if not (downloads / name).exists():
                fetch(f'{first.address}/{name}', downloads / name)
    except Mistake as mistake:
        there = sorted(path.name for path in home.iterdir()) if home.is_dir() else []
        here = f' (in {home} there is {_listed(there)})' if there else ''
        raise type(mistake)(
            f'{kind.name}: not on this machine{here}, and {mistake}.\nFetch {_listed(first.files)}\nfrom {first.address}/\n'
            f'into {home}/ and give --manual_dir={manual}'
        ) from None
    return _whole_copy(downloads, first.stems)


def local(kind: type[Builder], manual: Path) -> dict[str, list[Path]]:
    """Stem → its files, of a copy that is whole in `manual` or in a cache of Hugging Face's; {} where none is.

    Raises `Mistake` for a copy in `manual` that lacks a part; one in a cache is passed over, as a download that broke off.
    """
    for copy in kind.COPIES:
        for folder in (kind.name, copy.folder):
            if found := _whole_copy(manual / folder, copy.stems):
                return found
        for folder, before in _cached(copy, kind.COUNTS['train']) if copy.repository else []:
            with contextlib.suppress(Mistake):
                if found := _whole_copy(folder, copy.stems, before):
                    return found
    return {}


def fetch(url: str, path: Path) -> None:
    """Fetches a file, whole or not at all. Raises `Mistake` where it cannot be had."""
    log.say(f'fetching {url}')
    partial = path.with_name(f'.{path.name}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={'User-Agent': 'rlaif_jax'})
        with urllib.request.urlopen(request, timeout=SECONDS) as response, open(partial, 'wb') as file:
            shutil.copyfileobj(response, file, 2**20)
            promised = response.headers.get('Content-Length')
        size = partial.stat().st_size
        if promised and size != int(promised):
            raise Passing(f'{url} broke off after {size:,} of {int(promised):,} bytes')
        os.replace(partial, path)
    except urllib.error.HTTPError as error:
        kind = Passing if error.code >= 500 or error.code in LATER else Mistake
        with error:  # it holds the connection
            raise kind(f'{url} cannot be fetched ({error.code}, {error.reason})') from None
    except (OSError, http.client.HTTPException) as error:
        kind = Mistake if refused(error) in LASTING else Passing  # most of what a network says passes
        raise kind(f'{url} cannot be fetched ({getattr(error, "reason", None) or error})') from None
    finally:
        partial.unlink(missing_ok=True)


def _whole_copy(folder: Path, stems: Sequence[str], before: str = '') -> dict[str, list[Path]]:
    found = {stem: files.shards(folder, before + stem) for stem in stems}
    return found if all(found.values()) else {}


def _cached(copy: Copy, train: int) -> list[tuple[Path, str]]:
    """Where Hugging Face's libraries would keep a copy: `huggingface_hub` its files, `datasets` their rows as Arrow."""
    cache = paths.cache()
    if not (cache or os.environ.get('HF_HOME')):
        return []
    home = paths.typed(os.environ.get('HF_HOME') or cache / 'huggingface')
    hub = paths.typed(os.environ.get('HF_HUB_CACHE') or home / 'hub')
    rows = paths.typed(os.environ.get('HF_DATASETS_CACHE') or home / 'datasets')
    owner, name = copy.repository.split('/')
    snapshots = sorted(hub.glob(f'datasets--{owner}--{name}/snapshots/*/{copy.folder}'))
    # The folder's name does not tell which part of a repository was loaded; the number of its rows does.
    tables = [
        path.parent
        for place in (f'{owner}___{name}', f'{owner}___{name}'.lower())
        for path in sorted(rows.glob(f'{place}/**/dataset_info.json'))
        if _train_rows(path) == train
    ]
    return [(folder, '') for folder in snapshots] + [(folder, f'{name}-') for folder in tables]


def _train_rows(info: Path) -> int | None:
    try:
        return json.loads(info.read_text(encoding='utf-8'))['splits']['train']['num_examples']
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stem(name: str) -> str:
    """`train.jsonl.gz`, `train-00000-of-00001.parquet` and `train/0000.parquet` → `train`."""
    return re.split(r'/|\.|-\d+-of-', name)[0]


def _listed(names: Iterable[str]) -> str:
    return ', '.join(names)
