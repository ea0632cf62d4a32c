"""Laws of what comes from elsewhere: a model or a data set that cannot be had, or not whole, costs one clear sentence and
exit status 2, and nothing half-written is ever taken for whole.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import published_files
import pytest
from huggingface_hub import constants, errors

from launch import run as launcher
from rlaif_jax.config import Mistake, Passing
from rlaif_jax.data import loader, published, tldr
from rlaif_jax.models import hf, presets
from rlaif_jax.models.transformer import Config

ROOT = Path(launcher.__file__).parents[1]
POST = {'id': 't3_a', 'subreddit': 'cats', 'title': 'A title', 'post': 'A post.', 'summary': 'It was.'}
SPLITS = {'train': 5, 'validation': 1, 'test': 2}
SIZES = Config(vocab=1152, layers=2, width=8, heads=2, kv_heads=1, head_dim=4, ffn=12)


@pytest.fixture(scope='module')
def sharded(random_params, micro_tokenizer, tmp_path_factory):
    """A checkpoint in several files."""
    folder = tmp_path_factory.mktemp('checkpoint') / 'sharded'
    hf.save(hf.LM(SIZES, random_params(SIZES), micro_tokenizer, 'tiny'), folder, shard_bytes=20_000)
    assert len(list(folder.glob('*.safetensors'))) > 1
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A machine without a network, and the cache that it has of the hub: empty."""
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    return tmp_path / 'hub'


# Models


def raised(kind, *arguments):
    """An error as the library raises it; some are made from a response of the hub, which it takes a network to have."""
    return kind.__new__(kind, *arguments)


HUB = {  # what the library raises -> what is said; only what is not the hub's last word may be tried again
    'gated': (raised(errors.GatedRepoError, 'no'), 'gated; .*`hf auth login`'),
    'no repository': (raised(errors.RepositoryNotFoundError, 'no'), 'no such model .*`hf auth login`'),
    'no file': (
        raised(errors.EntryNotFoundError, 'config.json'),
        r'\(EntryNotFoundError: config\.json\).* local directory',
    ),
    'no revision': (raised(errors.RevisionNotFoundError, 'main'), r'\(RevisionNotFoundError: .* local directory'),
    'no network': (errors.LocalEntryNotFoundError('offline'), '/hub; .*network.* local directory'),
    'no connection': (ConnectionError('refused'), '/hub; .*network'),
    'disk full': (OSError(errno.ENOSPC, 'No space left'), 'no space .*/hub; .*HF_HOME'),
    'quota': (OSError(errno.EDQUOT, 'Disk quota exceeded'), 'no space .*/hub; .*HF_HOME'),
    'broken off': (OSError('size is 5 of 8'), r'\(OSError: size is 5 of 8\); .*same command'),
    'another library': (RuntimeError('reset\nby peer'), r'\(RuntimeError: reset\); .*same command'),
}


@pytest.mark.parametrize('name', HUB)
def test_a_model_that_the_hub_does_not_give_is_one_sentence(name, tmp_path, monkeypatch, capsys):
    (error, says), final = HUB[name], name in ('gated', 'no repository', 'no file', 'no revision')

    def snapshot_download(*_, local_files_only=False, **__):
        raise errors.LocalEntryNotFoundError('nothing is here') if local_files_only else error

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    arguments = ['--experiment=tldr_sft', f'--workdir={tmp_path / "run"}', 'policy=someone/model']
    assert launcher.main(arguments) == (2 if final else 74)
    told = capsys.readouterr().err
    assert told.startswith('error: someone/model: ') and re.search(says, told.replace('\n', ' ')), told
    assert 'Traceback' not in told and not list(tmp_path.iterdir())


def test_a_run_says_so_and_no_more(tmp_path):
    """In a process of its own, where nothing else has loaded the hub's library."""
    command = [sys.executable, ROOT / 'launch/run.py', '--experiment=tldr_direct', '--scale=gemma2']
    more = {'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path), 'XLA_FLAGS': ''}
    run = subprocess.run(command, env=os.environ | more, capture_output=True, encoding='utf-8')
    assert run.returncode == 2
    assert re.fullmatch(rf'error: google/gemma-2-2b: .*{tmp_path}/hub; .*\n', run.stderr)


@pytest.mark.parametrize(
    'address', ['https://huggingface.co/a-b/c.d/tree/main', 'https://hf.co/a-b/c.d', 'hf://a-b/c.d']
)
def test_an_address_of_the_hub_leads_to_its_id(address):
    with pytest.raises(Mistake, match=rf'^{address}: .* a-b/c\.d$'):
        hf.check(address)


def test_a_name_that_no_hub_can_have(cache):
    with pytest.raises(Mistake, match='^some one/model!: .* no name '):
        hf.load('some one/model!')


def test_without_a_network_what_was_downloaded_is_used_and_nothing_less(sharded, cache):
    with pytest.raises(Mistake, match=f'someone/model: .*{cache};'):
        hf.load('someone/model')
    repository = cache / 'models--someone--model'
    snapshot = repository / 'snapshots' / ('0123456789' * 4)
    shutil.copytree(sharded, snapshot)
    (repository / 'refs').mkdir()
    (repository / 'refs/main').write_text(snapshot.name, encoding='utf-8')
    assert hf.load('someone/model').config == SIZES
    shards = sorted(path.name for path in snapshot.glob('*.safetensors'))
    for name in ('config.json', 'tokenizer.json', 'model.safetensors.index.json', *shards):
        (snapshot / name).rename(cache / name)
        with pytest.raises(Mistake, match=f'{snapshot}: .*{name}'):
            hf.load('someone/model')
        (cache / name).rename(snapshot / name)
    assert hf.load('someone/model').config == SIZES


@pytest.mark.parametrize('kept', [0.0, 4, 0.02, 0.5, -1], ids=str)
def test_a_shard_that_is_cut_short_is_named(sharded, tmp_path, kept):
    """At any length: a share of it, or bytes from its beginning, or from its end."""
    folder = shutil.copytree(sharded, tmp_path / 'cut')
    shard = sorted(folder.glob('*.safetensors'))[1]
    size = shard.stat().st_size
    os.truncate(shard, int(kept * size) if isinstance(kept, float) else kept % size)
    with pytest.raises(Mistake, match=f'{shard}: .*fetch'):
        hf.load(folder)
    with pytest.raises(Mistake, match=shard.name):  # and before anything runs
        hf.check(folder)


def test_a_shard_that_is_not_there_is_named(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / 'less')
    shard = sorted(folder.glob('*.safetensors'))[-1]
    shard.unlink()
    with pytest.raises(Mistake, match=f'{folder}: {shard.name} .*fetch'):
        hf.check(folder)


def test_shards_that_an_index_does_not_name_are_not_read(sharded, tmp_path):
    """As of an earlier download of another version."""
    folder = shutil.copytree(sharded, tmp_path / 'more')
    index = folder / 'model.safetensors.index.json'
    first = sorted(folder.glob('*.safetensors'))[0].name
    named = json.loads(index.read_text(encoding='utf-8'))['weight_map']
    index.write_text(
        json.dumps({'weight_map': {name: file for name, file in named.items() if file != first}}), encoding='utf-8'
    )
    with pytest.raises(Mistake, match=rf'{folder}: .* 1 tensors .* model\.embed_tokens\.weight'):
        hf.check(folder)


# Published data


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The posts on a server, and the folder where what is fetched arrives."""
    published_files.alone(tmp_path, monkeypatch)
    monkeypatch.setattr(tldr.Posts, 'COUNTS', SPLITS)
    for name, count in zip(tldr.Posts.COPIES[0].files, SPLITS.values()):
        published_files.write(tmp_path / 'served' / name, [POST] * count)
    with published_files.served(tmp_path / 'served', monkeypatch) as address:
        monkeypatch.setattr(tldr.Posts, 'COPIES', (replace(tldr.Posts.COPIES[0], address=address),))
        yield tmp_path / 'prepared/downloads/tldr'


@pytest.mark.parametrize(
    'error, says',
    [
        (OSError(errno.ENOSPC, 'No space left on device'), r'(?s)/valid\.jsonl .*No space left.*--manual_dir='),
        (ConnectionResetError('reset by peer'), r'(?s)/valid\.jsonl .*reset by peer.*--manual_dir='),
        (KeyboardInterrupt(), None),
    ],
    ids=['disk full', 'reset', 'stopped'],
)
def test_a_download_that_breaks_off_leaves_whole_files_only(served, monkeypatch, error, says):
    copy, begun = shutil.copyfileobj, []

    def breaks(source, file, *more):
        begun.append(file.name)
        if len(begun) == 1:
            return copy(source, file, *more)
        file.write(source.read(20))
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(published.shutil, 'copyfileobj', breaks)
        with pytest.raises(Passing if says else KeyboardInterrupt, match=says):
            loader.source('tldr', 'train', 1)
    assert [path.name for path in served.iterdir()] == ['train.jsonl'] and len(begun) == 2
    assert published.prepared(tldr.Posts) is None
    assert len(loader.source('tldr', 'train', 9)) == 5  # goes on with the others


def test_what_a_killed_download_leaves_is_not_taken_for_the_file(served):
    served.mkdir(parents=True)
    for name in tldr.Posts.COPIES[0].files:
        (served / f'.{name}.partial').write_text(json.dumps(POST) + '\n', encoding='utf-8')
    assert len(loader.source('tldr', 'train', 9)) == 5
    assert sorted(path.name for path in served.iterdir()) == sorted(tldr.Posts.COPIES[0].files)


def test_without_a_home_a_download_asks_for_a_folder_and_a_plan_does_without(monkeypatch):
    for name in ('XDG_CACHE_HOME', 'HF_HOME', 'HF_HUB_CACHE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(presets, 'cache', lambda: None)  # as for a user whom nobody knows
    with presets.downloading_nothing(), pytest.raises(presets.Absent):
        presets.resolve('someone/model')
    with pytest.raises(Mistake, match='HF_HOME'):
        presets.resolve('someone/model')
