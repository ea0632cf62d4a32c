"""Laws of plans for devices that are not here: all programs of all stages, what does not fit and what would, kept whole."""

import importlib.util
import json
import re
from dataclasses import replace

import pytest

from experiments import compiled, find, plan, topology
from experiments.compiled import Found
from experiments.scales import SCALES
from experiments.topology import Target
from launch import run as launcher
from rlaif_jax.config import Mistake, bind
from rlaif_jax.models.presets import downloading_nothing

SMALL = (
    'sft.steps=2 sft.batch=8 reinforce.steps=2 reinforce.batch=8 reinforce.max_prompt=32 reinforce.max_new_tokens=8 '
    'reinforce.eval_prompts=8 rating.batch=8 evaluation.prompts=8 evaluation.batch=8'
).split()


@pytest.fixture
def estimated(monkeypatch):
    """No compiler: what it would say is what arithmetic says. The programs that it was asked about."""
    asked = []

    def compile(program, kind):
        asked.append((program.name, kind))
        return Found.estimated(program)

    monkeypatch.setattr(compiled, 'compile', compile)
    return asked


def show(capsys, tmp_path, *arguments):
    status = launcher.main([*arguments, '--dry_run', f'--workdir={tmp_path / "run"}'])
    said = capsys.readouterr()
    return status, said.out, said.err


def record(tmp_path, name):
    return json.loads((tmp_path / 'run' / 'plans' / f'{name}.json').read_text(encoding='utf-8'))


def test_a_plan_for_the_devices_at_hand_compiles_every_program(capsys, tmp_path):
    arguments = '--experiment=tldr_direct', '--topology=local', 'mesh.fsdp=2', *SMALL
    status, said, _ = show(capsys, tmp_path, *arguments)
    assert status == 0 and 'all stages fit' in said
    kept = record(tmp_path, 'run-local')
    assert {(stage['stage'], one['program']) for stage in kept['stages'] for one in stage['programs']} == {
        ('sft', 'update'), ('reinforce by ratings', 'update'), ('reinforce by ratings', 'policy writes'),
        ('reinforce by ratings', 'labeler answers'), ('evaluation', 'policy writes'),
    }  # fmt: skip
    for stage in kept['stages']:
        for one in stage['programs']:
            assert one['bytes'] > 2**20 and one['sent'].get('all-gather', 0) > 0, one['program']
    assert not (tmp_path / 'run' / 'config.gin').exists()
    table = (tmp_path / 'run' / 'plans' / 'run-local.md').read_text(encoding='utf-8')
    assert table.count('\n|') >= 6 and 'reinforce by ratings' in table


def test_several_slices_side_by_side_and_what_a_run_costs(capsys, tmp_path):
    arguments = '--experiment=tldr_rlaif', '--scale=gemma2', '--topology=h100-8,a100-16', '--price=2'
    status, said, _ = show(capsys, tmp_path, *arguments)
    assert status == 0 and 'arithmetic' in said and 'h100-8: 8 chips' in said and 'a100-16: 16 chips, 2 hosts' in said
    fast, slow = (record(tmp_path, f'run-{name}') for name in ('h100-8', 'a100-16'))
    assert 0 < fast['hours_bound'] and slow['chips'] == 16
    hours = fast['hours_bound']
    assert f'{hours / 0.6 * 8:.3g} to {hours / 0.3 * 8:.3g} chip-hours' in said
    assert f'{hours / 0.6 * 16:,.0f} to {hours / 0.3 * 16:,.0f} at 2 a chip-hour' in said


def test_a_slice_without_its_compiler_is_planned_by_arithmetic(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(topology.chips, 'find_spec', lambda name: None)
    status, said, _ = show(capsys, tmp_path, '--experiment=tldr_direct', '--topology=v5e-4', 'mesh.fsdp=2', *SMALL)
    assert status == 0 and 'brings the compiler' in said and 'chip-hours' in said


def test_what_does_not_fit_is_said_with_a_setting_that_does(estimated, tmp_path):
    config = find('tldr_direct')(replace(SCALES['gemma2'], mesh=SCALES['gemma2'].mesh))
    config = bind(config, {'reinforce.parts': 1, 'reinforce.remat': False})
    target = Target('v', 'a slice', topology.chips.CHIPS['v5e'], 30.0, 8)
    with downloading_nothing():
        found = {one.line.name: one for one in topology.stages(config, tmp_path / 'run', target)}
    assert not found['reinforce'].fits(30.0) and found['evaluation'].fits(30.0)
    said = found['reinforce'].instead
    assert 'reinforce.remat=True' in said or 'reinforce.parts=' in said
    changes = dict(re.findall(r'([a-z_.]+)=(\w+)', said))
    mended = bind(config, {path: eval(value) for path, value in changes.items()})
    with downloading_nothing():
        again = {one.line.name: one for one in topology.stages(mended, tmp_path / 'run', target)}
    assert again['reinforce'].fits(30.0)


def test_the_next_slice_is_tried_last(estimated, monkeypatch, tmp_path):
    usable = 9.5

    def of(name):
        found = topology.chips.find(name)
        return Target(name, str(found), found.chip, usable, found.chips, (), found.next())

    monkeypatch.setattr(Target, 'of', of)
    config = find('tldr_rm_ai')(SCALES['gemma2'])  # a labeler of 27B, whose weights no setting makes smaller
    with downloading_nothing():
        _, labels, *_ = topology.stages(config, tmp_path / 'run', of('v5e-8'))
        assert labels.line.name == 'labels' and 'v5e-16 ' in labels.instead and 'fits' in labels.instead
        usable = 0.1
        lost = next(topology.stages(config, tmp_path / 'run', of('v5e-8')))
    assert 'smaller model' in lost.instead


def test_no_more_than_six_settings_are_compiled(estimated, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(topology, 'compile_line', lambda *given: asked.append(given) or [])
    config, target = bind(find('tldr_sft')(SCALES['smollm2']), {'sft.parts': 1}), Target.of('v5e-1')
    with downloading_nothing():
        assert 'smaller model' in topology.instead(config, tmp_path, config.lines(tmp_path)[0], target, None)
    assert len(asked) == 6 == topology.TRIES


def test_settings_save_more_and_more_and_change_something():
    config = bind(find('tldr_sft')(SCALES['smollm2']), {'sft.parts': 1, 'sft.remat': False})
    with downloading_nothing():
        line = config.lines(topology.Path('run'))[0]
    first, *more = list(plan.settings(config, line, 1))
    assert first == {'sft.remat': True} and more[-1] == {'sft.remat': True, 'sft.parts': 128, 'sft.lora.rank': 16}
    assert [one['sft.parts'] for one in more[:-1]] == [2, 4, 8, 16, 32, 64, 128]
    config = bind(config, {'sft.remat': True, 'sft.parts': 128})
    assert list(plan.settings(config, line, 1)) == [{'sft.lora.rank': 16}]


@pytest.mark.parametrize('devices', [4, 16, 64])
def test_batches_are_made_to_fall_into_the_shares_of_a_mesh(devices):
    config = find('tldr_rlaif')(SCALES['gemma2'])
    fitted, changes = topology.dividing(config, devices)
    assert all(size % devices == 0 for size in plan.batches(fitted).values())
    assert all(path.endswith(('.parts', 'batch')) for path in changes)
    assert fitted.reinforce.batch == config.reinforce.batch and fitted.sft.batch == config.sft.batch


def test_a_training_batch_that_no_parts_divide_is_a_mistake_that_names_a_mesh():
    with pytest.raises(Mistake, match=r'sft\.batch = 128: .* mesh\.tensor=2 '):
        topology.dividing(find('tldr_rlaif')(SCALES['gemma2']), 256)


@pytest.mark.parametrize(
    'arguments, says', [(['--topology=v5e-20', '--dry_run'], 'v5e-16'), (['--topology=v5e-16'], '--dry_run')]
)
def test_a_wrong_topology_is_bad_input(capsys, tmp_path, arguments, says):
    assert launcher.main(['--experiment=tldr_direct', f'--workdir={tmp_path / "run"}', *arguments]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='libtpu, of the extra tpu, is not installed')
def test_a_program_is_compiled_for_a_tpu_that_is_not_here(capsys, tmp_path):
    arguments = (
        '--experiment=tldr_sft',
        '--topology=v5e-4',
        'mesh.fsdp=4',
        'sft.steps=2',
        'sft.batch=8',
        'max_prompt=32',
    )
    status, said, _ = show(
        capsys, tmp_path, *arguments, 'max_new_tokens=8', 'evaluation.prompts=8', 'evaluation.batch=8'
    )
    assert status == 0 and 'v5e-4: 4 chips, 2 x 2, 1 host' in said and 'libtpu' in said
    kept = record(tmp_path, 'run-v5e-4')
    assert kept['usable_gib'] == 15.75
    for stage in kept['stages']:
        for one in stage['programs']:
            assert (
                one['whole'] == []
                and one['fits']
                and 2**20 < one['bytes'] < 2**29
                and one['seconds_bound']['links'] > 0
            )
