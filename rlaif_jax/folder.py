"""The folder of a run: what lies in it, whose it is, and who writes there now.

    folder/config.gin      the operative config; the same folder never serves two
    folder/checkpoints/20/ the state after 20 steps; see `checkpoint`
    folder/result.json     written last: its presence means that the run is finished
    folder/.lock           held by the process that writes here, whose id it says

    with lock(folder):
        open_folder(folder, text)
        if (result := finished(folder)) is None:
            ...
            finish(folder, result)

Every file lock of the project is taken by `hold`. The system drops a lock when its file is closed, or when the process
ends, however it ends.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Set
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from rlaif_jax import hosts, paths
from rlaif_jax.config import CONTENT, Mistake, Passing, anywhere, differences, digest, refusal
from rlaif_jax.log import say, say_once, to_json, write_whole

try:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
except ImportError:  # Windows
    LOCK_EX = LOCK_NB = LOCK_SH = 0

    def flock(file: IO, how: int) -> None:
        raise OSError('not on this system')


_stages: ContextVar[Path | None] = ContextVar('stages', default=None)


@contextmanager
def sharing(stages: Path) -> Iterator[None]:
    """Within it runs keep in `stages` what they share, and find it there."""
    token = _stages.set(Path(stages))
    try:
        yield
    finally:
        _stages.reset(token)


def shared(folder: Path) -> Path:
    """Where lies what a run shares with others, its stages and its labels: as `sharing` says, else beside its folder."""
    return _stages.get() or Path(folder).parent / 'stages'


def stage_folder(stages: Path, name: str, config: Any, data: str = '') -> Path:
    """Where a stage of an experiment lives: the same config finds the same folder, another one another; so does what stands
    for its data.
    """
    return Path(stages) / f'{name}-{digest(config, data)}'


# What runs and stages write into their folder, besides config.gin.
WRITTEN = (
    'result.json', 'report.txt', 'report.html', 'made.json', 'made.jsonl', 'judged.jsonl', 'metrics.jsonl',
    'samples.jsonl', 'responses.jsonl', 'labels.parquet', 'alignment.csv', 'comparisons.csv', 'sweep.csv',
    'test_samples.jsonl', 'test_samples.md', 'alignment.png', 'lengths.png', 'matrix.png', 'training.png', 'tensorboard',
    'wandb', 'checkpoints', 'candidates', 'export', 'value', 'package', 'policies', 'models',
)  # fmt: skip


def open_folder(
    folder: Path, config_text: str, same: Set[str] = frozenset(), hope: str = 'give another --workdir'
) -> None:
    """Makes `folder` and writes config.gin. Raises Mistake if it already belongs to a config with other bindings, but for
    paths that are the `same` whatever they are bound to, and for where models are served; or holds what a run would write
    over and no run has written; with the `hope` there is. Of several processes the first one looks.
    """
    hosts.told(lambda: _open(Path(folder), config_text, same, hope))


def _open(folder: Path, config_text: str, same: Set[str], hope: str) -> None:
    found = check_folder(folder, config_text, same, hope)
    if found == []:
        return
    if found:
        say(f'{folder}: goes on with {"; ".join(found)}')
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / 'config.gin', config_text)


def check_folder(
    folder: Path, config_text: str, same: Set[str] = frozenset(), hope: str = 'give another --workdir'
) -> list[str] | None:
    """How the config of the run that began there differs, in what may; None where none began. Raises `Mistake` as
    `open_folder` does, and writes nothing.
    """
    path = folder / 'config.gin'
    if folder.exists() and not folder.is_dir():
        raise Mistake(f'{folder} is a file, and a run leaves a folder; {hope}')
    if not path.exists():
        if found := [name for name in WRITTEN if os.path.lexists(folder / name)]:
            raise Mistake(f'{folder} holds {found[0]}, which no run wrote: there is no config.gin beside it; {hope}')
        return None
    try:
        text = path.read_text(encoding='utf-8')
    except UnicodeDecodeError:
        raise Mistake(f'{path} is no text file, so no run wrote it; {hope}') from None
    before, now = (dict(re.findall(f'^{CONTENT}(.*): (.*)$', said, re.MULTILINE)) for said in (text, config_text))
    if other := [name for name in now if before.get(name, now[name]) != now[name]]:
        raise Mistake(f'{folder} was made of other data: {other[0]} has changed since; {hope}, or delete it')
    try:
        found, others = differences(text, config_text), differences(anywhere(text), anywhere(config_text))
    except Mistake as mistake:
        raise Mistake(f'{path} is no config of a run ({mistake}); {hope}') from None
    if changed := [line for line in others if line.partition(':')[0] not in same]:
        shown = changed[:8] + [f'and {len(changed) - 8} more'] * (len(changed) > 8)
        lines = '\n  '.join([f'{folder} belongs to another config:', *shown])
        raise Mistake(f'{lines}\n{hope}, or delete it')
    if finished(folder) is None:  # which would train first, and only then find that there is no place for the model
        for name in ('export', 'value'):
            if not (folder / name).is_symlink():  # to a stage, which looks for itself
                paths.check_replaceable(folder / name)
    return found


def link(stage: Path, folder: Path) -> None:
    """Shows a shared stage's files, those to come too, in the folder of a run that is this stage and little else."""
    for name in ('metrics.jsonl', 'samples.jsonl', 'tensorboard', 'checkpoints', 'export') if hosts.first() else ():
        here = Path(folder) / name
        here.parent.mkdir(parents=True, exist_ok=True)
        if not here.is_symlink() and not here.exists():
            here.symlink_to(os.path.relpath(Path(stage) / name, folder))


def finish(folder: Path, result: dict) -> None:
    """Writes result.json, which marks the run as finished: call it last. It is there when this returns, in any process."""
    hosts.told(lambda: write_whole(Path(folder) / 'result.json', to_json(result) + '\n'))


def finished(folder: Path) -> dict | None:
    """The result of a finished run, or None, as this process sees it."""
    path = Path(folder) / 'result.json'
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise Mistake(f'{path} is not JSON ({error}); delete it to finish again from the last checkpoint') from None


# Locks


def hold(file: IO, name: Path, wait: bool = True) -> bool:
    """Takes the lock of an open file until that is closed; False if another process holds it and this one does not `wait`.

    Where the system or the file system has no locks, it says so once, of `name`, and lets everybody in.
    """
    try:
        if wait:
            flock(file, LOCK_EX)
            return True
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:  # perhaps by somebody who only looks, as `busy` does
            time.sleep(0.1)
            flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems
        say_once(f'{name}: there are no file locks here ({error}); take care that one process writes here')
    return True


@contextmanager
def lock(folder: Path, wait: bool = False, hope: str = 'give another --workdir') -> Iterator[None]:
    """Lets one process at a time write in `folder`; if there is another, waits for it or raises Mistake, naming it. Of the
    processes of one run the first takes it for all.

    Raises Mistake, with the `hope` there is, where nothing can be written.
    """
    with ExitStack() as held:
        hosts.told(lambda: held.enter_context(own_lock(Path(folder), wait, hope)))
        yield


@contextmanager
def own_lock(folder: Path, wait: bool, hope: str) -> Iterator[None]:
    """`lock` for this process alone, the others of its run being others."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / '.lock', 'a+', encoding='utf-8')
    except OSError as error:  # no permission, a file where a folder should be, a full disk
        raise refusal(error, f'{folder}: nothing can be written here ({error.strerror}); {hope}') from None
    with file:
        if not hold(file, folder, wait=False):
            holder = _holder(file)
            if not wait:
                raise Passing(f'{folder}: process {holder} is writing here; wait for it, or stop it')
            say(f'{folder}: process {holder} is making this; waiting for it')
            hold(file, folder)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def busy(folder: Path) -> bool:
    """Whether another process holds the lock of `folder` now; takes nothing."""
    with suppress(OSError), open(Path(folder) / '.lock', encoding='utf-8') as file:  # no such file, or no locks here
        try:
            flock(file, LOCK_SH | LOCK_NB)
        except BlockingIOError:
            return _holder(file) != str(os.getpid())
    return False


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or '?'
