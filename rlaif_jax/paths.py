"""Paths as people type them, and what may be replaced at them: nothing that is not ours is ever removed.

    folder = typed('~/models/mine')        # what a shell would make of it; a `Mistake` where that is nothing
    with replacing(folder) as new:         # a new folder to fill, which then takes the place of the old one
        (new / 'config.json').write_text(…)

A folder that is written so lists its files, each with a digest, in `.saved.json`. It may be replaced, or removed, only
while it holds these files as they were written, and no others. Beside a file that a person named, `labels.jsonl`, the same
is noted in `.labels.jsonl.saved`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from rlaif_jax.config import Mistake

SAVED = '.saved.json'  # in a folder that `replacing` wrote: {file: digest}
WHOLE = 2**21  # bytes; of a larger file a digest takes pieces
_REMOTE = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/')  # 'gs://bucket', also as `Path` writes it; 'C:/' is none
_VARIABLE = re.compile(r'\$(\{[A-Za-z_]\w*\}|[A-Za-z_]\w*)')
_MOUNTS = {'gs': 'gcsfuse BUCKET /mnt/BUCKET', 's3': 'mount-s3 BUCKET /mnt/BUCKET'}


def typed(path: str | os.PathLike[str]) -> Path:
    """The path that a person typed. `~`, `~user` and `$VARIABLE` mean what they mean in a shell; spaces are part of a name.

    Raises `Mistake` for what is no path here: an empty text, an unknown user or variable, a bucket or another address,
    and a name that the file system cannot hold.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise Mistake(f'a path is text, not {path!r:.80} ({type(path).__name__})')
    text = str(path)
    if not text.strip():
        raise Mistake(f'{text!r} is no path; name a file or a folder')
    if remote := _REMOTE.match(text):
        kind = remote[1].lower()
        if kind == 'file':
            return typed('/' + text[len('file:') :].lstrip('/'))
        rest = text[remote.end() :].lstrip('/')
        mount = _MOUNTS.get(kind, '').replace('BUCKET', rest.partition('/')[0] or 'BUCKET')
        hope = f'mount it ({mount}) and give /mnt/{rest}' if mount else 'copy it to a disk, and name the copy'
        raise Mistake(f'{kind}://{rest} is no path on this machine; {hope}')
    if '$' in text and not _there(text):
        if missing := [name for name in _VARIABLE.findall(text) if name.strip('{}') not in os.environ]:
            raise Mistake(f'{text}: no variable {missing[0].strip("{}")} is set here')
        text = os.path.expandvars(text)
    if text.startswith('~'):
        try:
            text = str(Path(text).expanduser())
        except RuntimeError:  # pathlib's word for it
            user = text[1:].partition('/')[0]
            known = f'there is no user {user!r} here' if user else 'no home directory is known here: HOME is not set'
            raise Mistake(f'{text}: {known}') from None
    try:
        names = os.fsencode(text).split(b'/')
    except UnicodeEncodeError as error:
        raise Mistake(
            f'{ascii(text)}: {ascii(text[error.start])} cannot stand in a file name under this locale; '
            'LC_ALL=C.UTF-8 allows all'
        ) from None
    if b'\0' in b''.join(names):
        raise Mistake(f'{text!r}: a path holds no NUL')
    if long := [name for name in names if len(name) > 255]:
        raise Mistake(f'{text[:60]}…: a name of {len(long[0])} bytes; file systems allow 255')
    path = Path(text)
    return path.absolute() if str(path).startswith('~') else path  # './~', which asked again is still itself


def _there(text: str) -> bool:
    """Whether a file of exactly this name lies here, as a `$` may stand in one."""
    try:
        return os.path.lexists(text)
    except ValueError:  # a NUL, or half a character
        return False


def cache() -> Path | None:
    """The user's folder for what can be made again, `$XDG_CACHE_HOME` or `~/.cache`; None where there is no home."""
    return _of_user('XDG_CACHE_HOME', '.cache')


def settings() -> Path | None:
    """The user's folder for what programs are told once, `$XDG_CONFIG_HOME` or `~/.config`; None where there is no home."""
    return _of_user('XDG_CONFIG_HOME', '.config')


def _of_user(variable: str, name: str) -> Path | None:
    if given := os.environ.get(variable):
        return Path(os.path.expanduser(given))
    try:
        return Path.home() / name
    except RuntimeError:  # a container's user whom nobody knows
        return None


def writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or in the folders that are still to be made for it. Makes nothing."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


# What may be replaced


def pieces(path: Path) -> Iterator[bytes]:
    """A file's content, or, where it has more than 2 MiB, 512 pieces of 4 KiB from its beginning to its end.

    That is quick, and a fine-tuned copy differs in it, whatever part was trained.
    """
    size = path.stat().st_size
    with open(path, 'rb') as stream:
        for piece in range(512 if size > WHOLE else 1):
            stream.seek(piece * (size - 4096) // 511 if size > WHOLE else 0)
            yield stream.read(4096 if size > WHOLE else WHOLE)


def digest(path: Path) -> str:
    """Ten hex digits for a file's size and its `pieces`."""
    return sha256(b''.join([f'{path.stat().st_size} '.encode(), *pieces(path)])).hexdigest()[:10]


def foreign(folder: Path) -> list[str]:
    """What lies in a folder and is not ours: all but the files that `replacing` wrote there and nobody changed. Sorted."""
    listed = _listed(folder)
    ours = {str(parent) for name in listed for parent in Path(name).parents}
    found = []
    for path in sorted(folder.rglob('*')):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            found.append(name)
        elif path.is_dir():
            found += [f'{name}/'] * (name not in ours)
        elif name != SAVED and listed.get(name) != digest(path):
            found.append(f'{name} (changed since)' if name in listed else name)
    return found


def check_replaceable(folder: Path) -> None:
    """Raises `Mistake` where something would be lost if `folder` were replaced, or where no folder can be made.

    `replacing` asks the same at its end; this asks before the work.
    """
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise Mistake(f'{place} is a file; name a folder')
    here = Path(os.path.realpath(folder))
    if here in (cwd := Path.cwd(), *cwd.parents):
        raise Mistake(f'{folder} is the folder that you are in; name a new one, such as {folder / "my_model"}')
    if not writable(folder.parent) and not (folder.is_dir() and writable(folder)):
        raise Mistake(f'{folder}: nothing can be written here; name a folder in one that is yours')
    if folder.is_dir() and (found := foreign(folder)):
        more = f' and {len(found) - 3} more' * (len(found) > 3)
        raise Mistake(
            f'{folder} holds what was not saved there by this program: {", ".join(found[:3])}{more}; '
            'name another folder, or move that away'
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Gives a new folder to fill. When the block ends without an error, it takes the place of `folder`.

    So `folder` appears whole or not at all. Until then, and if the block fails, what lay there stays. Where `folder` is a
    link, the folder behind it is replaced. Raises `Mistake` as `check_replaceable` does.
    """
    check_replaceable(folder)
    at = Path(os.path.realpath(folder))
    at.parent.mkdir(parents=True, exist_ok=True)
    # A mounted folder cannot be renamed, and beside it there may be no place for us.
    inside = at.is_dir() and (os.path.ismount(at) or not os.access(at.parent, os.W_OK))
    work = Path(tempfile.mkdtemp(prefix=f'.{at.name[:40]}-', dir=at if inside else at.parent))
    new, old = work / 'new', work / 'old'
    try:
        new.mkdir()
        yield new
        files = [path for path in sorted(new.rglob('*')) if path.is_file() and path.name != SAVED]
        found = {str(path.relative_to(new)): digest(path) for path in files}
        (new / SAVED).write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
        if late := [name for name in foreign(at) if not (inside and name.startswith(work.name))]:
            raise Mistake(f'{folder} holds {late[0]} since the work began; move that away, or name another folder')
        if inside:
            _unlink(at)
            for path in sorted(new.iterdir(), key=lambda path: path.name == SAVED):
                os.replace(path, at / path.name)
        else:
            if at.exists():
                os.replace(at, old)
            try:
                os.replace(new, at)
            except OSError:
                if old.exists():
                    os.replace(old, at)
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists():
            _unlink(old)
        with suppress(OSError):  # what came in meanwhile keeps its folder
            if old.exists():
                old.rmdir()
            work.rmdir()


def check_file(path: Path) -> None:
    """Raises `Mistake` where a file lies at `path` that `put` did not write, or that was changed since."""
    if os.path.lexists(path) and not (path.is_file() and digest(path) in _digests(path)):
        raise Mistake(
            f'{path} is there already, and this program did not write it, or it was changed since; name another file, or '
            'move it away'
        )


def put(partial: Path, path: Path) -> None:
    """Moves a finished file to `path`, where `check_file` allows it, and notes that it is ours.

    Whenever the program is ended, either the old file or the new one is there, and either is known as ours.
    """
    check_file(path)
    path, known = Path(os.path.realpath(path)), _digests(path)
    new, note = digest(partial), path.with_name(f'.{path.name}.saved')
    note.write_text('\n'.join([*known, new, '']), encoding='utf-8')
    os.replace(partial, path)
    note.write_text(f'{new}\n', encoding='utf-8')


def _digests(path: Path) -> list[str]:
    path = Path(os.path.realpath(path))
    try:
        return path.with_name(f'.{path.name}.saved').read_text(encoding='utf-8').split()
    except (OSError, ValueError):
        return []


def remove(folder: Path) -> list[str]:
    """Removes a folder that `replacing` wrote. Returns what in it is not ours; where there is such, all of it stays."""
    kept = foreign(folder)
    if folder.is_dir() and not kept:
        _unlink(folder)
        folder.rmdir()
    return kept


def _unlink(folder: Path) -> None:
    """Removes the files that are listed, and the folders below that this leaves empty."""
    listed = _listed(folder)
    for name in [*listed, *[SAVED] * bool(listed)]:
        (folder / name).unlink(missing_ok=True)
    for below in sorted({str(parent) for name in listed for parent in Path(name).parents} - {'.'}, reverse=True):
        with suppress(OSError):
            (folder / below).rmdir()


def _listed(folder: Path) -> dict[str, str]:
    """What `.saved.json` says; {} where there is none, or somebody's own. No file outside the folder is ever ours."""
    try:
        found = json.loads((folder / SAVED).read_text(encoding='utf-8'))
        return {name: value for name, value in found.items() if not {'..', '/'} & {*Path(name).parts}}
    except (OSError, ValueError, AttributeError):
        return {}
