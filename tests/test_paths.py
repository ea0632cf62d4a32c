"""Laws of paths: a path is what a shell makes of it, and nothing that is not ours is ever removed."""

import os
import random
import re
from pathlib import Path

import pytest

from rlaif_jax import paths
from rlaif_jax.config import Mistake
from rlaif_jax.data import files
from rlaif_jax.folder import open_folder

# What people type


def test_a_path_is_what_a_shell_makes_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('WORK', '/work space')
    for text, path in {
        '~/a': tmp_path / 'a',
        '~': tmp_path,
        '$WORK/a b': Path('/work space/a b'),
        '${WORK}x': Path('/work spacex'),
        './~': Path.cwd() / '~',
        'file:///a/b': Path('/a/b'),
        ' a': Path(' a'),
        'é/日本': Path('é/日本'),
        'C:/a': Path('C:/a'),
    }.items():
        assert paths.typed(text) == path == paths.typed(paths.typed(text))


def test_a_file_may_have_a_dollar_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'in$HOME.jsonl').write_text('', encoding='utf-8')
    assert paths.typed('in$HOME.jsonl') == Path('in$HOME.jsonl')
    assert paths.typed('5$') == Path('5$')


@pytest.mark.parametrize(
    'text, named',
    [
        ('', 'no path'), ('  ', 'no path'), (None, 'path .*NoneType'), (3, r'path .*\(int\)'), (b'a', 'path .*bytes'),
        ('a\0b', 'NUL'), ('~nobody_here/x', 'nobody_here'), ('$NOT_SET_HERE/x', 'NOT_SET_HERE'), ('x' * 256, '255'),
        ('a/' + 'é' * 200, '255'), ('gs://bucket/x', 'gcsfuse bucket .* /mnt/bucket/x$'),
        ('s3://bucket', 'mount-s3 bucket .* /mnt/bucket$'),
        ('https://host/x', 'copy it'), ('hf://a/b', 'hf://a/b'), ('GS://bucket/x', 'gcsfuse'),
        (Path('gs://bucket/x'), 'gs://bucket/x'),
    ],
)  # fmt: skip
def test_what_is_no_path_here_is_said(text, named):
    with pytest.raises(Mistake, match=named):
        paths.typed(text)


def test_without_a_home_there_is_no_cache_and_no_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert paths.cache() == tmp_path / '.cache'  # an empty variable is none
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)  # as where neither HOME nor the user is known
    assert paths.cache() is None
    with pytest.raises(Mistake, match='HOME'):
        paths.typed('~/x')
    monkeypatch.setenv('XDG_CACHE_HOME', '/tmp/elsewhere')
    assert paths.cache() == Path('/tmp/elsewhere')


# Nothing of anybody's is removed


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: its content, where a link leads, or None for a folder."""

    def kept(path: Path) -> bytes | str | None:
        return os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None

    return {str(path.relative_to(folder)): kept(path) for path in folder.rglob('*')}


def grow(folder: Path, rng: random.Random) -> None:
    """Some files, folders and links, of names that a save writes, too."""
    names = ['config.json', 'model.safetensors', 'README.md', 'thesis.txt', 'data', 'adapter', '.hidden', paths.SAVED]
    for name in rng.sample(names, rng.randint(0, 4)):
        here = folder / name
        kind = rng.choice(['file', 'file', 'folder', 'link'])
        if here.exists() or here.is_symlink():
            continue
        if kind == 'file':
            here.write_text(rng.choice(['', '{}', 'theirs', '{"thesis.txt": "0000000000"}']), encoding='utf-8')
        elif kind == 'link':
            here.symlink_to(rng.choice(['nowhere', '/etc/hostname', '..']))
        else:
            here.mkdir()
            if rng.random() < 0.5:
                grow(here, rng)


def save(folder: Path, rng: random.Random) -> dict[str, str]:
    """What a save writes: other files each time."""
    files = {name: str(rng.random()) for name in rng.sample(['config.json', 'model.safetensors', 'a/b/c', 'a/d'], 3)}
    with paths.replacing(folder) as new:
        for name, text in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_text(text, encoding='utf-8')
    return files


@pytest.mark.parametrize('seed', range(300))
def test_nothing_foreign_is_ever_removed(seed, tmp_path):
    """Whatever lies in a folder, in whatever order saves and people wrote it: a save replaces what saves left and nothing
    else, and one that would not replaces nothing at all. So does what removes.
    """
    rng, at = random.Random(seed), tmp_path / 'at'
    ours: dict[str, str] = {}
    for _ in range(4):
        act = rng.choice(['people', 'people edit', 'save', 'save', 'remove'])
        if act == 'people':
            at.mkdir(exist_ok=True)
            grow(at, rng)
        elif act == 'people edit' and at.is_dir():
            files = [path for path in at.rglob('*') if path.is_file() and not path.is_symlink()]
            for path in rng.sample(files, min(len(files), 1)):
                path.write_text(path.read_text(encoding='utf-8') + 'more', encoding='utf-8')
        else:
            before = tree(tmp_path)
            mine = {f'at/{name}' for name, text in ours.items() if before.get(f'at/{name}') == text.encode()}
            mine |= {str(parent) for name in mine for parent in Path(name).parents} | {'at', f'at/{paths.SAVED}'}
            theirs = {name: kept for name, kept in before.items() if name not in mine}
            if act == 'save':
                try:
                    ours = save(at, rng)
                except Mistake as mistake:
                    assert tree(tmp_path) == before and str(at) in str(mistake)
                else:
                    assert not theirs, f'{[*theirs]} was replaced'
                    assert {name for name, kept in tree(at).items() if kept is not None} == {*ours, paths.SAVED}
            else:
                paths.remove(at)
                assert tree(tmp_path).items() >= theirs.items()
    assert not [path for path in tmp_path.iterdir() if path != at], 'a save leaves nothing beside its folder'


def test_who_lists_files_elsewhere_owns_none_of_them(tmp_path):
    (tmp_path / 'thesis').write_text('three years', encoding='utf-8')
    (tmp_path / 'at').mkdir()
    found = {name: paths.digest(tmp_path / 'thesis') for name in ('../thesis', str(tmp_path / 'thesis'))}
    (tmp_path / 'at' / paths.SAVED).write_text(str(found).replace("'", '"'), encoding='utf-8')
    save(tmp_path / 'at', random.Random(0))
    assert paths.remove(tmp_path / 'at') == [] and (tmp_path / 'thesis').read_text(encoding='utf-8') == 'three years'


def test_no_folder_is_saved_over_a_file_or_over_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('mine', encoding='utf-8')
    (tmp_path / 'here' / 'inner').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'here')
    for at in ('../file', '../file/below', '.', '..', str(tmp_path), '/'):
        with pytest.raises(Mistake, match=f'^{re.escape(at.removesuffix("/below"))} '):
            save(paths.typed(at), random.Random(0))
    assert tree(tmp_path) == {'file': b'mine', 'here': None, 'here/inner': None}


def test_through_a_link_the_folder_behind_it_is_replaced(tmp_path):
    (tmp_path / 'link').symlink_to('target')
    for seed in range(2):  # where it is not there yet, and where it is
        ours = save(tmp_path / 'link', random.Random(seed))
        assert (tmp_path / 'link').is_symlink() and {*tree(tmp_path / 'target')} >= {*ours}


def test_what_came_in_while_a_save_went_on_is_kept(tmp_path):
    save(tmp_path / 'at', random.Random(0))
    with pytest.raises(Mistake, match='notes'):
        with paths.replacing(tmp_path / 'at') as new:
            (new / 'config.json').write_text('{}', encoding='utf-8')
            (tmp_path / 'at' / 'notes').write_text('mine', encoding='utf-8')
    assert (tmp_path / 'at' / 'notes').read_text(encoding='utf-8') == 'mine'


# The folders of runs


@pytest.mark.parametrize('name', ['result.json', 'metrics.jsonl', 'export', 'checkpoints', 'training.png'])
def test_a_run_takes_no_folder_that_holds_what_it_would_write_over(name, tmp_path):
    (tmp_path / name).mkdir() if '.' not in name else (tmp_path / name).write_text('mine', encoding='utf-8')
    with pytest.raises(Mistake, match=f'{name}.*--workdir'):
        open_folder(tmp_path, 'beta = 0.1\n')
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_takes_a_folder_with_other_things_in_it(tmp_path):
    (tmp_path / 'slurm-17.out').write_text('', encoding='utf-8')
    open_folder(tmp_path, 'beta = 0.1\n')
    open_folder(tmp_path, 'beta = 0.1\n')
    (tmp_path / 'export').mkdir()
    (tmp_path / 'export' / 'notes').write_text('mine', encoding='utf-8')
    with pytest.raises(Mistake, match='notes'):  # before it trains, not behind it
        open_folder(tmp_path, 'beta = 0.1\n')


# Files that a person names


def test_a_file_that_somebody_else_wrote_or_changed_is_never_replaced(tmp_path):
    rows, path = files.read_rows(one_row(tmp_path / 'in.jsonl')), tmp_path / 'out.jsonl'
    given = files.read(tmp_path / 'in.jsonl')
    path.write_text('three years of work', encoding='utf-8')
    with pytest.raises(Mistake, match=f'{path} .*did not write'):
        files.write_more(path, given, [{'weight': 1.0}])
    assert path.read_text(encoding='utf-8') == 'three years of work'
    path.unlink()
    for weight in (1.0, 2.0):  # its own it replaces
        files.write_more(path, given, [{'weight': weight}])
        assert files.read_rows(path) == [rows[0] | {'weight': weight}]
    with open(path, 'a', encoding='utf-8') as file:
        file.write('{"prompt": "added by hand"}\n')
    with pytest.raises(Mistake, match=f'{path} .*changed'):
        files.write_more(path, given, [{'weight': 3.0}])
    assert path.read_text(encoding='utf-8').count('\n') == 2


@pytest.mark.parametrize('kind, named', [('folder', 'out.jsonl'), ('pipe', 'out.jsonl'), ('link to a file', 'theirs')])
def test_what_is_no_file_is_not_replaced_by_one(kind, named, tmp_path):
    given, path = files.read(one_row(tmp_path / 'in.jsonl')), tmp_path / 'out.jsonl'
    (tmp_path / 'theirs').write_text('theirs', encoding='utf-8')
    make = {'folder': path.mkdir, 'pipe': lambda: os.mkfifo(path), 'link to a file': lambda: path.symlink_to('theirs')}
    make[kind]()
    with pytest.raises(Mistake, match=rf'{tmp_path}/{named}\b'):
        files.write_more(path, given, [{'weight': 1.0}])
    assert not path.is_file() or path.is_symlink()
    assert (tmp_path / 'theirs').read_text(encoding='utf-8') == 'theirs'


def test_a_name_that_leaves_no_room_is_said_before_the_work(tmp_path):
    for name in ('x' * 245 + '.jsonl', 'é' * 120 + '.jsonl'):
        with pytest.raises(Mistake, match=f'{name}: .* {len(name.encode())} bytes; 240 '):
            files.check_writable(tmp_path / name)
    files.check_writable(tmp_path / ('x' * 230 + '.jsonl'))


def one_row(path: Path) -> Path:
    files.write_rows(path, [{'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}])
    return path


def test_a_run_goes_on_with_another_value_of_what_only_observes(tmp_path):
    open_folder(tmp_path, 'beta = 0.1\nlog_every = 5\n')
    with pytest.raises(Mistake, match='beta'):
        open_folder(tmp_path, 'beta = 0.2\nlog_every = 7\n', {'log_every'})
    open_folder(tmp_path, 'beta = 0.1\nlog_every = 7\n', {'log_every'})
    assert (tmp_path / 'config.gin').read_text(encoding='utf-8') == 'beta = 0.1\nlog_every = 7\n'
