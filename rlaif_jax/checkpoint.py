"""What makes a run survive a crash: its states, which Orbax writes.

    folder/checkpoints/20/ the state after 20 steps, complete or absent

    with lock(folder), Checkpoints(folder) as checkpoints:
        if checkpoints.begun():
            step, state = checkpoints.restore(None, state)
        ...
        checkpoints.save(step, state)

Orbax writes a step into a temporary directory and renames it, so a process killed while it saves leaves no step behind.
Just before the rename the size of every file goes into `sizes.json`: a step whose files are missing or cut short, by a
copy that was stopped, say, is seen as damaged and not loaded. (Bits flipped in a file of the right size may not be.)
"""

import functools
import json
import logging
import os
import shutil
import sys
import threading
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from rlaif_jax import hosts
from rlaif_jax.config import Mistake, refusal, refused
from rlaif_jax.log import say, to_json, write_whole

State = Any  # a pytree of jax arrays
SIZES = 'sizes.json'  # of the files of a saved step
KEPT = 2  # whole steps
UNSIZED = SIZES, '_CHECKPOINT_METADATA', 'commit_success.txt'  # written behind that list


class Checkpoints(AbstractContextManager):
    """The saved states of the run in `folder`, the newest two of them.

    A state is a nested dict, tuple or namedtuple of arrays. Only the process that holds the folder's lock may save; any
    may restore. Use it in a `with`, or call `close`: a save goes on in the background after `save` returns.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder).resolve() / 'checkpoints'  # Orbax wants an absolute path
        try:
            str(self.folder).encode()
        except UnicodeEncodeError:  # bytes of another encoding, which TensorStore does not take
            raise Mistake(f'{ascii(str(self.folder))}: checkpoints want a path in UTF-8; name another folder') from None
        self._written: int | None = None  # the step on disk that is, bit for bit, what this run would write again
        self._saving: int | None = None  # the step that is being written
        self._checkpointer = None

    def save(self, step: int, state: State, block: bool = False) -> None:
        """Saves the state after `step` steps, in the background unless `block`; a step already saved is left as it is.

        Raises Mistake if the last save failed or, with `block`, this one.
        """
        if step != self._written:
            self.wait()
            checkpointer, args = self._orbax()
            if hosts.first():
                for unfinished in self.folder.glob('[0-9]*.orbax-checkpoint-tmp*'):  # of a process that was killed
                    shutil.rmtree(unfinished, ignore_errors=True)
            checkpointer.save(self.folder / str(step), args=args.PyTreeSave(state), force=True)
            self._written = self._saving = step
        if block:
            self.wait()

    def steps(self) -> list[int]:
        """The steps that can be restored: complete, and no file missing or of another size. Ascending."""
        return hosts.told(self._whole)

    def begun(self) -> bool:
        """Whether any step was ever saved here, whole or damaged: a run that begun must `restore`, and hear of damage."""
        return hosts.told(lambda: bool(self._all_steps()))

    def latest(self) -> int | None:
        """The newest step that can be restored."""
        return max(self.steps(), default=None)

    def restore(self, step: int | None, like: State) -> tuple[int, State]:
        """Loads a state: the step it was saved at, and the state with the shapes, types and shardings of `like`.

        `like` is a tree of arrays or `jax.ShapeDtypeStruct`s; a leaf without a sharding goes to the first device, and one
        of numpy stays on the host. Any mesh will do, whatever mesh it was saved on.
        Step None is the newest step that can be read, with a warning for each newer one that is damaged.
        Raises Mistake if there is nothing to read, or if the checkpoint has other leaves than `like`.
        """
        self.wait()
        steps = hosts.told(self._all_steps)
        if not steps or step not in [None, *steps]:
            wanted, there = '' if step is None else f' of step {step}', ', '.join(map(str, steps)) or 'none'
            raise Mistake(f'{self.folder}: there is no checkpoint{wanted}; steps there: {there}')
        like = jax.tree.map(_abstract, like)
        for candidate in reversed(steps) if step is None else [step]:
            path, damage = self.folder / str(candidate), hosts.told(lambda: self._damage(candidate))  # noqa: B023
            if not damage:
                try:
                    state = self._read(path, like)
                except (Mistake, MemoryError, jax.errors.JaxRuntimeError):  # nothing is wrong with the files
                    raise
                except Exception as error:  # noqa: BLE001, Orbax raises whatever its parsers raise
                    damage = _brief(error)
                if not hosts.anyone(lambda: bool(damage)):  # noqa: B023
                    self._written = candidate
                    return candidate, state
            damage = damage or 'another process could not read it'
            if step is None:
                say(f'warning: {path} is damaged ({damage}); trying an older step')
        if step is None:
            raise Mistake(f'{self.folder}: every checkpoint is damaged (see above); delete the folder to start afresh')
        whole = ', '.join(str(other) for other in self.steps() if other != step) or 'none'
        hope = f'delete it or name another (whole: {whole})'
        raise Mistake(f'{path}: the checkpoint of step {step} is damaged ({damage}); {hope}')

    def wait(self) -> None:
        """Returns when everything saved is on disk and older steps are gone. Raises Mistake if a save failed."""
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            self._checkpointer.wait_until_finished()
        except (OSError, ValueError) as error:  # a full disk, a folder taken away
            self._written = None
            told = f'{self.folder}: the checkpoint of step {step} could not be written: {_brief(error)}'
            raise refusal(error.__cause__ or error, told) from error
        if hosts.first():
            oldest = self._whole()[-KEPT:][0]
            for old in [old for old in self._all_steps() if old < oldest]:
                self._remove(old)

    def drop(self, first: int) -> None:
        """Takes back the steps from `first` on, which turned out to be no good."""
        self.wait()
        if hosts.first():
            for step in [step for step in self._all_steps() if step >= first]:
                self._remove(step)
        self._written = None

    def close(self) -> None:
        self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def _orbax(self) -> tuple[Any, Any]:
        """Orbax's checkpointer and its module of arguments; imported here because it takes a third of a second."""
        import orbax.checkpoint as ocp

        logging.getLogger('absl').setLevel(logging.CRITICAL)  # it tells every step of a save, and errors that it raises
        if self._checkpointer is None:
            _hush()
            options = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
            self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)
        return self._checkpointer, ocp.args

    def _read(self, path: Path, like: State) -> State:
        checkpointer, args = self._orbax()
        from orbax.checkpoint.checkpoint_utils import construct_restore_args

        _compare(_leaves(checkpointer.metadata(path).item_metadata.tree), _leaves(like), path)
        wanted = args.PyTreeRestore(like, restore_args=construct_restore_args(like))
        return checkpointer.restore(path, args=wanted)

    def _seal(self) -> None:
        """Notes the files of the step being saved; Orbax calls it when they are written, just before it renames."""
        for path in self.folder.glob('*.orbax-checkpoint-tmp*'):
            sizes = {str(file.relative_to(path)): file.stat().st_size for file in path.rglob('*') if file.is_file()}
            sizes.pop('_CHECKPOINT_METADATA', None)  # gets its time stamp later
            write_whole(path / SIZES, to_json(sizes))

    def _remove(self, step: int) -> None:
        """Removes a step. What somebody put beside its files keeps it, and them."""
        path = self.folder / str(step)
        try:
            own = {*json.loads((path / SIZES).read_text(encoding='utf-8')), *UNSIZED}
        except (OSError, ValueError, TypeError):
            own = set()
        there = {str(file.relative_to(path)) for file in path.rglob('*') if file.is_symlink() or not file.is_dir()}
        if there <= own:
            for name in sorted(there, key=lambda name: name == SIZES):  # the list goes last: who is killed can go on
                (path / name).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)

    def _damage(self, step: int) -> str:
        """What is wrong with the files of a step, or ''."""
        path = self.folder / str(step)
        try:
            sizes = json.loads((path / SIZES).read_text(encoding='utf-8'))
            for name, size in sizes.items():
                if (found := (path / name).stat().st_size) != size:
                    return f'{name} has {found} bytes of {size}'
        except FileNotFoundError as error:
            return f'{Path(error.filename).relative_to(path)} is missing'
        except ValueError:
            return f'{SIZES} is not JSON'
        return ''

    def _whole(self) -> list[int]:
        return [step for step in self._all_steps() if not self._damage(step)]

    def _all_steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.glob('*') if path.name.isdecimal())


def emptied(state: State) -> State:
    """The shapes, types and shardings of a state, to restore another into; its arrays are deleted, so that memory holds no
    two.
    """
    shapes = jax.tree.map(_abstract, state)
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    return shapes


def _brief(error: Exception) -> str:
    error = error.__cause__ or error  # Orbax wraps TensorStore's reason in pages of its settings
    told = f'{type(error).__name__}: {error}'
    # Where the system refused, its word is the reason, and all else is how far it had come.
    return os.strerror(code) if (code := refused(error)) else told.partition('\n')[0][:600]


@functools.cache
def _hush() -> None:
    """Errors of the threads that write a checkpoint are raised again where it is waited for; nobody wants them twice, nor
    what TensorStore says when it finds that its caller is gone.
    """
    in_thread, unraisable = threading.excepthook, sys.unraisablehook

    def thread_ended(args: threading.ExceptHookArgs) -> None:
        if not any('orbax' in frame.filename for frame in traceback.extract_tb(args.exc_traceback)):
            in_thread(args)

    def nobody_listens(args: Any) -> None:
        if 'Event loop is closed' not in str(args.exc_value):
            unraisable(args)

    threading.excepthook, sys.unraisablehook = thread_ended, nobody_listens


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, np.ndarray):  # of the host, and so it stays
        return leaf
    sharding = getattr(leaf, 'sharding', None) or SingleDeviceSharding(jax.local_devices()[0])
    sharding.shard_shape(leaf.shape)  # raises here if the mesh does not divide the shape: no file is damaged
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaves(tree: State) -> dict[str, str]:
    """{'params/embed_VD': 'float32[512, 64]'} for each leaf."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _compare(there: dict[str, str], here: dict[str, str], path: Path) -> None:
    """Raises Mistake, naming the first leaf that differs, if a checkpoint is not of this architecture."""
    for name in here | there:
        if there.get(name) != here.get(name):
            raise Mistake(
                f'{path} is a checkpoint of another architecture: {name} is {there.get(name, "absent")} there and '
                f'{here.get(name, "absent")} here; give the config it was written with, or another --workdir'
            )
