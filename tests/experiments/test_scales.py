"""Laws of scales: a real checkpoint gets no number that was found for the packaged models, and what is typed stays."""

import json
import shutil
from fnmatch import fnmatch

import huggingface_hub
import pytest
from huggingface_hub import errors

from experiments.own import real
from experiments.scales import scale
from launch import run as launcher
from rlaif_jax.config import Mistake, parse
from rlaif_jax.data import files
from rlaif_jax.models.presets import downloading_nothing


@pytest.fixture(scope='module')
def checkpoint(models, tmp_path_factory):
    """A model whose tokenizer does not say that it was taught on a simulated world's prompts, stored in bfloat16."""
    folder = tmp_path_factory.mktemp('real') / 'model'
    shutil.copytree(models / 'policy', folder)
    for name, change in (('tokenizer_config.json', {'prompt_templates': None}), ('config.json', {'dtype': 'bfloat16'})):
        known = json.loads((folder / name).read_text(encoding='utf-8')) | change
        (folder / name).write_text(json.dumps(known), encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp('pairs') / 'pairs.jsonl'
    long = 'my boss yells at me and I do not know why. ' * 20
    rows = [{'prompt': f'{long if i == 7 else ""}post {i}', 'chosen': 'yes', 'rejected': 'no'} for i in range(40)]
    files.write_rows(path, rows)
    return path


@pytest.fixture
def hub(checkpoint, tmp_path, monkeypatch):
    """A hub that has the checkpoint, and the folder that what is asked for comes to."""
    here = tmp_path / 'hub'

    def snapshot_download(_, local_files_only=False, allow_patterns=('*',), **__):
        for file in [] if local_files_only else checkpoint.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                here.mkdir(exist_ok=True)
                shutil.copy(file, here)
        if not here.exists():
            raise errors.LocalEntryNotFoundError('offline')
        return str(here)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    return here


def read(*arguments):
    flags = launcher.read_flags(launcher.parser(), [str(one) for one in arguments])
    return parse(launcher.read_config(flags)[2])


def test_who_is_real(models, checkpoint):
    with downloading_nothing():
        assert real(str(checkpoint)) and real('somebody/on-the-hub')
    assert not any(map(real, ('', 'micro_xs', str(models / 'policy'), 'http://host:8000/v1#model')))


def test_a_reward_model_of_a_real_checkpoint_has_the_open_scales_numbers_and_its_files_sizes(
    checkpoint, pairs, models, capsys
):
    asked = '--experiment=reward_model', f'input={pairs}'
    got, toy = read(*asked, f'policy={checkpoint}'), read(*asked, f'policy={models / "policy"}')
    told = ' '.join(capsys.readouterr().out.split())
    assert str(checkpoint) in told and 'reward_model.optimizer.learning_rate = 1e-05' in told and '--scale' in told
    assert str(models / 'policy') not in told
    open_scale, of = scale('smollm2').reward_model, lambda found, name: found[f'reward_model.{name}']
    assert (
        of(got, 'optimizer.learning_rate') == open_scale.optimizer.learning_rate != of(toy, 'optimizer.learning_rate')
    )
    assert of(toy, 'batch') == scale('micro').reward_model.batch and of(toy, 'max_prompt') == 128
    assert (of(got, 'batch'), of(got, 'parts'), of(got, 'remat')) == (32, 8, True)
    assert of(got, 'steps') == -(-3 * 36 // 32)  # epochs of what is not held out
    assert 128 < of(got, 'max_prompt') < 512 and of(got, 'max_response') < 64  # the longest whole, and no padding
    assert got['dtype'] == 'bfloat16' and got['mesh.data'] == 1  # a copy of it


def test_what_is_typed_stays_and_a_named_scale_is_that(checkpoint, pairs):
    asked = '--experiment=reward_model', f'input={pairs}', f'policy={checkpoint}'
    got = read(*asked, 'reward_model.batch=6', 'reward_model.max_prompt=64', 'dtype=float32')
    assert (got['reward_model.batch'], got['reward_model.parts'], got['reward_model.max_prompt']) == (6, 2, 64)
    assert got['dtype'] == 'float32'
    named = read(*asked, '--scale=micro')
    assert named['reward_model.optimizer.learning_rate'] == scale('micro').reward_model.optimizer.learning_rate


@pytest.mark.parametrize(
    ('mesh', 'parts'),
    [(['data=2'], 4), (['data=8'], 1), (['data=2', 'fsdp=2'], 2), (['data=3'], 8), (['data=64'], 1), (['data=-1'], 1)],
    ids=str,
)
def test_each_device_of_a_mesh_has_its_share_of_a_part(checkpoint, pairs, mesh, parts):
    got = read(
        '--experiment=reward_model', f'input={pairs}', f'policy={checkpoint}', *(f'mesh.{size}' for size in mesh)
    )
    assert (got['reward_model.batch'], got['reward_model.parts']) == (32, parts)


def test_what_is_typed_has_to_fit_the_numbers_that_it_changes_and_not_those_of_micro(checkpoint, capsys):
    parts = 2 * scale('micro').reinforce.batch
    got = read('tldr_rlaif', f'policy={checkpoint}', f'reinforce.parts={parts}', 'sft.steps=7')
    assert (got['reinforce.parts'], got['sft.steps']) == (parts, 7)
    told = capsys.readouterr().out
    assert 'sft.optimizer.learning_rate = ' in told and 'sft.steps' not in told and 'reinforce.parts' not in told


@pytest.mark.parametrize(
    ('experiment', 'role', 'path', 'value'),
    [('label', 'labeler', 'label.batch', 16), ('generate', 'policy', 'max_new_tokens', 128),
     ('score', 'model', 'max_prompt', 1024), ('tldr_sft', 'policy', 'sft.optimizer.learning_rate', 1e-5)],
)  # fmt: skip
def test_so_do_the_other_commands(checkpoint, pairs, experiment, role, path, value):
    given = [f'--experiment={experiment}', *([f'input={pairs}'] if experiment != 'tldr_sft' else [])]
    got, toy = read(*given, f'{role}={checkpoint}'), read(*given)
    assert got[path] == value != toy[path] and got['dtype'] == 'bfloat16'


@pytest.mark.parametrize(('experiment', 'role'), [('label', 'labeler'), ('reward_model', 'policy')])
def test_a_model_of_the_hub_has_the_same_numbers_before_it_is_here_and_after(
    checkpoint, pairs, hub, experiment, role, capsys
):
    model = f'somebody/{role}'
    asked = experiment, f'input={pairs}', f'{role}={model}'
    planned = read(*asked, '--dry_run')
    assert not hub.exists() and planned['dtype'] == 'bfloat16'  # a guess
    assert f'{model}: is not here' in capsys.readouterr().out
    before = read(*asked)
    assert (hub / 'config.json').exists() and not list(hub.glob('*.safetensors'))  # which numbers do not hang on
    shutil.copytree(checkpoint, hub, dirs_exist_ok=True)
    assert before == read(*asked) == read(*asked, '--dry_run')
    assert before | {role: str(checkpoint)} == read(experiment, f'input={pairs}', f'{role}={checkpoint}')


def test_numbers_are_not_guessed_where_the_hub_does_not_answer(pairs, monkeypatch):
    def snapshot_download(*_, **__):
        raise errors.LocalEntryNotFoundError('offline')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    with pytest.raises(Mistake, match='^somebody/model: '):
        read('label', f'input={pairs}', 'labeler=somebody/model')


@pytest.mark.parametrize(
    ('experiment', 'roles', 'changed'),
    [('tldr_rlaif', ['policy'], {'sft', 'reward_model', 'reinforce'}), ('tldr_rlaif', ['labeler'], {'label'}),
     ('tldr_rlaif', ['labeler', 'policy'], {'sft', 'reward_model', 'reinforce', 'label'}),
     ('tldr_direct', ['policy'], {'sft', 'reinforce'}), ('tldr_direct', ['same_size_labeler'], {'rating'}),
     ('helpful_rlaif', ['labeler'], {'label'})],
)  # fmt: skip
def test_a_checkpoint_changes_the_numbers_of_its_own_role_alone(checkpoint, experiment, roles, changed):
    before, got = read(experiment), read(experiment, *(f'{role}={checkpoint}' for role in roles))
    found = {path.split('.')[0] for path in got if got[path] != before.get(path)}
    assert found == {*roles, *changed, 'mesh', 'dtype'}


def test_what_a_run_was_it_is_again(checkpoint, pairs, tmp_path):
    flags = launcher.read_flags(
        launcher.parser(), ['--experiment=reward_model', f'input={pairs}', f'policy={checkpoint}', 'held_out=0.2']
    )
    text = launcher.read_config(flags)[2]
    (tmp_path / 'config.gin').write_text(text, encoding='utf-8')
    assert parse(text) == read(f'--bindings={tmp_path / "config.gin"}')
