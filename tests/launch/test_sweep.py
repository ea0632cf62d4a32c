"""Laws of launch/sweep.py, with a stub of ten lines in place of launch/run.py: no test here trains anything."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import experiments
from experiments import tldr
from launch import run as launcher
from launch import sweep, sweep_table
from launch.sweep_table import Row
from rlaif_jax.config import Mistake, over, parse, product
from rlaif_jax.folder import lock, sharing

STUB = """
import json, os, signal, sys, time
from pathlib import Path

given = dict(argument.lstrip('-').split('=', 1) for argument in sys.argv[1:])
folder, beta, seed = Path(given['workdir']), float(given['reinforce.beta']), int(given.get('seed', 0))
place = folder.parent
folder.mkdir(parents=True, exist_ok=True)
order = lambda what: (place / what).exists() and (place / what).read_text(encoding='utf-8') == folder.name

def tell(text):
    with open(place / 'events', 'a', encoding='utf-8') as file:
        file.write(text + ' ' + folder.name + chr(10))

def save(number, frame):
    tell('saves')
    sys.exit(130)

signal.signal(signal.SIGTERM, save)
tell('begins')
print('beta is', beta)
print('cores', *sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else [])
if order('break'):
    raise ValueError('no luck')
if order('interrupt'):
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
deadline = time.monotonic() + 60
while (place / 'meet').exists() and (place / 'events').read_text(encoding='utf-8').count('begins') < 2:
    assert time.monotonic() < deadline, 'met nobody'
    time.sleep(0.01)
raw = {'value': beta + seed, 'low': beta - 1, 'high': beta + 9}
found = {'RLAIF vs SFT': {'raters': {'raw': raw, 'p_value': 0.1 * seed, 'n': 7}}}
result = {'simulated': True, 'comparisons': found, 'missing': None}
(folder / 'result.json').write_text(json.dumps(result), encoding='utf-8')
tell('ends')
"""
RAW = 'RLAIF vs SFT / raters / raw'
BETAS, SEEDS = 'reinforce.beta=[0.0,0.25,0.5]', '--seed=[0,1,2]'
DIRECT = '--experiment=tldr_direct'


@pytest.fixture(scope='module')
def stub(tmp_path_factory):
    path = tmp_path_factory.mktemp('stub') / 'run.py'
    path.write_text(STUB, encoding='utf-8')
    return path


@pytest.fixture
def folder(tmp_path):
    """Where a sweep of these tests lies, so that a test can leave orders for the stub in it."""
    (tmp_path / 'sweep').mkdir()
    return tmp_path / 'sweep'


def planned(*arguments: str) -> list[sweep.Point]:
    return sweep.plan(sweep.parser().parse_intermixed_args([DIRECT, *arguments]))[1]


def bindings(*arguments: str) -> list[dict]:
    return [point.bindings for point in planned(*arguments)]


def events(folder: Path, what: str) -> list[str]:
    lines = [line.split(' ') for line in (folder / 'events').read_text(encoding='utf-8').splitlines()]
    return [name for event, name in lines if event == what]


def rows(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / 'sweep.csv').read_text(encoding='utf-8').splitlines()))


# Points


def test_lists_are_crossed_and_zip_takes_them_side_by_side():
    found = bindings(BETAS, SEEDS)
    assert found == [{'reinforce.beta': beta, 'seed': seed} for beta in (0.0, 0.25, 0.5) for seed in (0, 1, 2)]
    assert found == bindings(BETAS, 'seed=[0,1,2]')
    assert bindings(BETAS, SEEDS, '--zip') == found[::4]


def test_a_point_is_the_run_that_its_command_line_makes():
    for point in planned(BETAS, SEEDS, 'reinforce.steps=7', "same_size_labeler=['micro_s', 'a b/it\\'s']"):
        flags = launcher.parser().parse_intermixed_args(shlex.split(shlex.join(sweep.command(point)))[2:])
        name, config, text = launcher.read_config(flags)
        assert (name, text, flags.workdir) == ('tldr_direct', point.text, str(point.folder))
        assert config.reinforce.steps == 7 and config.sft.seed == point.bindings['seed']
        assert {path: parse(text)[path] for path in point.bindings if path != 'seed'}.items() <= point.bindings.items()


def test_a_list_is_the_value_of_a_field_that_is_a_tuple():
    flags = ['--experiment=labeling_techniques', "techniques=['base_0shot','base_1shot']", '--seed=[0,1]']
    _, points = sweep.plan(sweep.parser().parse_intermixed_args(flags))
    assert [point.bindings for point in points] == [{'seed': 0}, {'seed': 1}]
    assert points[0].config.techniques == ('base_0shot', 'base_1shot')


def test_a_sweep_stands_beside_its_experiment_and_is_crossed_with_lists(monkeypatch):
    monkeypatch.setattr(tldr, 'sweep_toy', lambda: over('reinforce.beta', np.linspace(0, 0.5, 3)), raising=False)
    assert bindings('--sweep=toy', SEEDS) == bindings(BETAS, SEEDS)


def test_every_sweep_binds_to_an_experiment_beside_it():
    for module in {experiment.__module__ for experiment in experiments.experiments().values()}:
        beside = vars(sys.modules[module])
        for name in [name.removeprefix('sweep_') for name in beside if name.startswith('sweep_')]:
            fits, points = [], sweep.named(beside[beside['__all__'][0]], name, 'micro')
            for other in beside['__all__']:
                try:
                    fits += sweep.plan(sweep.parser().parse_args([f'--experiment={other}', f'--sweep={name}']))[1]
                except Mistake as mistake:
                    assert any(path in str(mistake) for point in points for path in point)
            assert fits, f'sweep_{name} fits no experiment'


def test_a_folder_is_a_function_of_the_values_alone():
    there = [point.folder for point in planned(BETAS, SEEDS)]
    assert there[1] == Path('runs/sweeps/tldr_direct-micro-beta/reinforce.beta=0.0,seed=1')
    assert len(set(there)) == 9
    assert {point.folder for point in planned('reinforce.beta=[0.5,0.25,0]', 'seed=[2,1,0]')} == set(there)
    assert [point.folder for point in planned('seed=[0,1,2]', BETAS)] == [*there[::3], *there[1::3], *there[2::3]]
    assert set(there) < {point.folder for point in planned('reinforce.beta=[0.0,0.25,0.5,1.0]', '--seed=[0,1,2,3]')}
    for other in ('sft.steps=3', '--scale=micro sft.steps=4'):
        assert {point.folder.parent for point in planned(BETAS, *other.split())} != {there[0].parent}
    for same in ('reinforce.steps=75', '--scale=micro', 'same_size_labeler="micro_xs"'):
        assert [point.folder for point in planned(BETAS, SEEDS, same)] == there, 'what is bound is the default'
    ways = (
        ['sft.steps=3', 'reinforce.temperature=0.50'],
        ['reinforce.temperature=5e-1', 'sft.steps=3', 'sft.batch=64'],
    )
    assert len({point.folder.parent for way in ways for point in planned(BETAS, *way)}) == 1
    assert {stage.parent for point in planned(BETAS) for stage in point.shared} == {Path('runs/stages')}


def test_names_that_no_folder_can_have_are_made_to_fit():
    odd = [{'policy': 'a/../b c'}, {'policy': 'a/../b_c'}, {'policy': 'x' * 300}, {'policy': '\n'}, {}]
    names = [sweep.slug(bindings) for bindings in odd]
    assert len(set(names)) == len(odd)
    assert all(re.fullmatch(r'[\w.,=+-]{1,120}', name) for name in names)


# Bad input


BAD = {  # what is typed -> what is said
    '--experiment=tldr_drect --seed=[0]': r"'tldr_drect'.* tldr_direct\b",
    '--sweep=bta': r"'bta' .* tldr_direct; .* beta\b",
    'reinforce.bta=[0.0,0.1]': r'reinforce\.bta: .* reinforce\.beta\b',
    'reinforce.beta=[0.0,x]': r'reinforce\.beta: \[0\.0,x\] .*quotes',
    'reinforce.beta=[0.0,"x"]': r"reinforce\.beta: .*float.* 'x'",
    'reinforce.beta=[0.0,2.0]': r'reinforce: beta = 2\.0 .*\[0, 1\]',
    'reinforce.beta=[]': r'empty: reinforce\.beta',
    '--sweep=nothing': 'empty: nothing',
    'reinforce.beta=0.1': r'--sweep=NAME.* --seed=\[0,1,2\]',
    'reinforce.beta=[0,0.0]': r'reinforce\.beta=0\.0: .*twice',
    'reinforce.beta=0.2 --sweep=beta': r'reinforce\.beta: .* 0\.2 ',
    'reinforce.beta=[0.2] --sweep=beta': r'reinforce\.beta: .*two sweeps',
    'reinforce.beta=[0.1,0.2] --seed=[0] --zip': r'zip.*\[2, 1\]',
    '--seed=[0,1.5]': r'seed: .*int.* 1\.5',
    '--seed=[0,-1]': '--seed=-1: .* 0 ',
    '--seed=[0] --scale=mikro': r"'mikro'.* micro\?",
    '--seed=[0] --bindings=/nowhere.gin': r'--bindings=/nowhere\.gin: ',
    '--seed=[0] --parallel=0': '--parallel=0: .*one',
    '--seed=[0] shard=1/2': r'shard=1/2: .*launch/run\.py',
    '--sed=[0]': r'--sed\b.* --seed\b',
    '--experimnt=tldr_sft --seed=[0]': r'--experimnt\b.* --experiment\b',
}


@pytest.mark.parametrize('typed', BAD)
def test_bad_input_is_named_before_anything_runs(typed, stub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tldr, 'sweep_beta', lambda: over('reinforce.beta', [0.0, 0.1]), raising=False)
    monkeypatch.setattr(tldr, 'sweep_nothing', lambda: product(over('reinforce.beta', [])), raising=False)
    assert sweep.main([DIRECT, *typed.split(' ')], stub) == 2
    told = capsys.readouterr().err
    assert told.startswith('error: ') and re.search(BAD[typed], told.replace('\n', ' ')), told
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_config_is_left_as_it_is(stub, folder, capsys):
    arguments = [DIRECT, BETAS, f'--workdir={folder}']
    (last := planned(*arguments[1:])[-1]).folder.mkdir()
    (last.folder / 'config.gin').write_text(
        last.text.replace('reinforce.beta = 0.5', 'reinforce.beta = 0.7'), encoding='utf-8'
    )
    assert sweep.main(arguments, stub) == 2
    told = capsys.readouterr().err
    assert re.search(rf'(?s){last.folder} .*reinforce\.beta: 0\.7 .* 0\.5 .*--workdir', told)
    assert not (folder / 'events').exists()


# Running


def test_print_writes_command_lines_and_touches_nothing(tmp_path):
    """From outside, where no accelerator would be found: the program that waits must not hold the one its points need."""
    arguments = [
        sys.executable,
        str(sweep.__file__),
        DIRECT,
        BETAS,
        '--backend=print',
        "same_size_labeler=['micro_s','a b']",
    ]
    environment = os.environ | {'JAX_PLATFORMS': 'none_such'}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, encoding='utf-8')
    assert (done.returncode, done.stderr) == (0, '')
    lines = [words[words.index(sys.executable) :] for words in map(shlex.split, done.stdout.splitlines())]
    assert len(lines) == 6 and lines[1][2:5] == [DIRECT, 'reinforce.beta=0.0', 'same_size_labeler="a b"']
    assert all((tmp_path / line[1]).resolve() == sweep.RUN for line in lines)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_the_lines(stub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed = []
    for how in ('--backend=print', '--dry_run', '--dry-run'):
        assert sweep.main([DIRECT, BETAS, how], stub) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0].count('\n') == 3 and len({*printed}) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize('own', [True, False])  # folder of the sweep
def test_a_printed_line_runs_from_anywhere_with_the_stages_of_other_runs(own, stub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [DIRECT, 'reinforce.beta=0.5', '--seed=[0,1]', '--backend=print', *['--workdir=a b/c'] * own]
    assert sweep.main(arguments, stub) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [subprocess.run(line, shell=True, cwd='/', stdout=subprocess.DEVNULL).returncode for line in lines] == [0, 0]
    folder, points = sweep.plan(launcher.read_flags(sweep.parser(), arguments))
    assert events(folder, 'ends') == ['seed=0', 'seed=1'] == [point.name for point in points]
    stages = 'a b/c/stages' if own else 'runs/stages'
    assert all(f'--stages={stages}' in shlex.split(line) for line in lines)
    assert {stage.parent for point in points for stage in point.shared} == {Path(stages)}
    (folder / 'break').write_text('seed=1', encoding='utf-8')
    assert subprocess.run(lines[1], shell=True, cwd='/', capture_output=True).returncode == 1  # as the run's


def test_a_failed_point_stops_no_other_and_is_all_that_a_second_call_runs(stub, folder, capsys):
    arguments, broken = [DIRECT, BETAS, SEEDS, f'--workdir={folder}'], 'reinforce.beta=0.25,seed=1'
    (folder / 'break').write_text(broken, encoding='utf-8')
    assert sweep.main(arguments, stub) == 1
    told = capsys.readouterr()
    assert len(events(folder, 'begins')) == 9 and len(events(folder, 'ends')) == 8
    assert told.out.count('finished in 0:00:') == 8 and 'SIMULATED world, 8 of 9 ' in told.out
    assert re.search(rf'^ *0\.25 +2 +.* {broken}: exit status 1', told.out, re.MULTILINE), told.out
    assert f'{broken}: exit status 1' in told.err and 'ValueError: no luck' in told.err
    assert 'ValueError: no luck' in (folder / broken / 'output.log').read_text(encoding='utf-8')
    assert [row['point'] for row in rows(folder) if row['failed']] == [broken]
    page = (folder / 'report.html').read_text(encoding='utf-8')
    assert 'role="note"' in page and '±' in page and 'reinforce.beta=0.5 --seed=2' in page

    (folder / 'break').unlink()
    assert sweep.main(arguments, stub) == 0
    told = capsys.readouterr()
    assert events(folder, 'begins')[9:] == [broken] and told.out.count('already finished') == 8
    assert 'failed after' not in told.out and not told.err
    assert [float(row[RAW]) for row in rows(folder)] == [beta + seed for beta in (0.0, 0.25, 0.5) for seed in (0, 1, 2)]

    assert sweep.main([*arguments, f'--figures={RAW.replace("raters", "ratres")}'], stub) == 2
    told = capsys.readouterr()  # a wrong name costs no table
    assert told.err.endswith(f' {RAW}?\n') and '±' in told.out
    assert len(events(folder, 'begins')) == 10


def test_runs_side_by_side_find_the_same_and_never_make_one_stage_at_once(stub, folder):
    """The stub ends only once two have begun, and makes no stage, so runs of one seed must wait for each other."""
    arguments = [DIRECT, 'reinforce.beta=[0.0,0.25]', '--seed=[0,1]']
    (folder / 'meet').touch()
    assert sweep.main([*arguments, f'--workdir={folder}', '--parallel=2'], stub) == 0
    assert sweep.main([*arguments, f'--workdir={folder.parent}/alone'], stub) == 0
    assert rows(folder) == rows(folder.parent / 'alone')
    open_seeds = set()
    for line in (folder / 'events').read_text(encoding='utf-8').splitlines():
        event, seed = line.split(' ')[0], line[-1]
        assert (seed in open_seeds) == (event == 'ends'), 'two runs made the same SFT policy'
        open_seeds ^= {seed}


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='no cores to give on this system')
@pytest.mark.parametrize('parallel', [1, 2, 10**4])
def test_runs_side_by_side_share_the_cores(stub, folder, parallel):
    arguments = [DIRECT, 'reinforce.beta=[0.0,0.25]', '--seed=[0,1]', f'--workdir={folder}']
    assert sweep.main([*arguments, f'--parallel={parallel}'], stub) == 0
    mine, given = os.sched_getaffinity(0), sweep.shares(parallel)
    assert len(given) == parallel and sum(map(len, given)) == len(set().union(*given)) <= len(mine)
    assert parallel > len(mine) or min(map(len, given)) == len(mine) // parallel
    for point in planned(*arguments):
        output = (folder / point.name / sweep.OUTPUT).read_text(encoding='utf-8')
        said = re.search(r'^cores (.*)$', output, re.MULTILINE)[1]
        assert set(map(int, said.split())) in [share or mine for share in given]


def sft_of(point: sweep.Point) -> Path:
    (stage,) = (folder for folder in point.shared if folder.name.startswith('sft-'))
    return stage


def test_a_stage_that_is_made_holds_nobody_up(folder):
    first, second, third = planned('reinforce.beta=[0.0,0.5]', 'seed=[0]', f'--workdir={folder}') + planned(
        'reinforce.beta=[0.25]', 'seed=[1]', f'--workdir={folder}'
    )
    assert sweep.startable([second, third], []) is second
    assert sweep.startable([second, third], [first]) is third
    assert sweep.startable([second], [first]) is None
    stage = sft_of(first)
    stage.mkdir(parents=True)
    (stage / 'result.json').write_text('{}', encoding='utf-8')
    assert sweep.startable([second, third], [first]) is second


@pytest.mark.parametrize('own', [True, False])
def test_points_share_the_stages_that_the_sweep_was_given_or_its_own(own, folder):
    where = [f'--workdir={folder}', *[f'--stages={folder.parent / "run" / "stages"}'] * (not own)]
    (point,) = planned('--seed=[3]', 'reinforce.beta=0.5', *where)
    assert sft_of(point) in point.unmade() == {*point.shared}
    with sharing((folder if own else folder.parent / 'run') / 'stages'):
        (stage,) = point.config.lines(Path('a plain run of the same config'))[:1]
    stage.folder.mkdir(parents=True)
    (stage.folder / 'result.json').write_text('{}', encoding='utf-8')
    assert point.unmade() == {*point.shared} - {sft_of(point)}


def test_a_stage_that_somebody_else_is_making_is_left_to_the_run_to_wait_for(stub, folder, capsys):
    (point,) = planned('--seed=[0]', 'reinforce.beta=0.5', f'--workdir={folder}')
    with lock(sft_of(point)):
        assert sweep.run_points([point], runner=stub) == {}  # which takes no stage
    assert events(folder, 'ends') == [point.name] and 'starts' in capsys.readouterr().out


def test_stopped_it_lets_the_run_save_and_goes_on_later(stub, folder, capsys):
    arguments = [DIRECT, BETAS, f'--workdir={folder}']
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    (folder / 'interrupt').write_text('reinforce.beta=0.25', encoding='utf-8')
    assert sweep.main(arguments, stub) == 130
    told = capsys.readouterr()
    assert re.search('stopped .* 2 of 3 .*same command', told.err)
    assert events(folder, 'begins') == ['reinforce.beta=0.0', 'reinforce.beta=0.25']
    assert events(folder, 'ends') == ['reinforce.beta=0.0'] and events(folder, 'saves') == ['reinforce.beta=0.25']
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers

    (folder / 'interrupt').unlink()
    assert sweep.main(arguments, stub) == 0
    assert events(folder, 'begins')[2:] == ['reinforce.beta=0.25', 'reinforce.beta=0.5']


def test_while_runs_go_on_it_says_what_they_printed_last(stub, folder, monkeypatch, capsys):
    monkeypatch.setattr(sweep, 'TOLD', 0.0)
    assert sweep.main([DIRECT, '--seed=[3]', 'reinforce.beta=0.5', f'--workdir={folder}'], stub) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if 'running for 0:00:0' in line]
    assert told and all(line.startswith('1/1 ') and len(line) < 160 for line in told)


def test_a_run_that_ends_well_and_leaves_nothing_has_failed(tmp_path, folder, capsys):
    silent = tmp_path / 'silent.py'
    silent.write_text('', encoding='utf-8')
    assert sweep.main([DIRECT, '--seed=[3]', f'--workdir={folder}'], silent) == 1
    assert re.search('seed=3: .*/seed=3/output.log:', capsys.readouterr().err)


# The table


def beta_rows(wins: dict[tuple[float, int], float | None], name: str = 'win') -> list[Row]:
    """Rows of beta and seed with one figure each; None is a point without it."""
    return [
        Row(f'{beta},{seed}', both := {'reinforce.beta': beta, 'seed': seed}, both, {} if win is None else {name: win})
        for (beta, seed), win in wins.items()
    ]


def test_a_row_is_a_mean_over_seeds_with_its_interval():
    rows = beta_rows({(0.1, 0): 0.0, (0.2, 0): 5.0, (0.1, 1): 1.0, (0.1, 2): 2.0, (0.2, 1): None})
    columns, (first, second) = sweep_table.table(rows, ['win'])
    assert columns == ['reinforce.beta', 'n', 'win']
    # Of 0, 1, 2: standard error 1 / sqrt(3), and Student's 97.5 % point of two degrees of freedom is 4.303.
    assert first == [0.1, 3, f'1 ± {4.303 / 3**0.5:.2g}'] and second == [0.2, 2, 5.0]


def test_shares_are_in_per_cent_come_first_and_the_legend_is_of_what_there_is():
    rows = beta_rows({(0.1, 0): 0.5, (0.1, 1): 0.75, (0.2, 0): 0.25}, RAW)
    rows = [dataclasses.replace(row, figures={'length': 9e3 * i} | row.figures) for i, row in enumerate(rows)]
    figures = sweep_table.choose(rows)
    columns, lines = sweep_table.table(rows, figures)
    assert figures == [RAW, 'length'] and columns[:2] == ['reinforce.beta', 'n']
    assert columns[2:] == ['RLAIF vs SFT raters win rate %', 'length']
    assert sweep_table.table(rows, [RAW])[0][2:] == ['win rate %'] and sweep_table.common([RAW]) == RAW.split(' / ')[:2]
    assert lines[0][2].startswith('62.5 ± 1') and lines[1][2] == 25.0 and '4500 ± 57' in lines[0][3]
    assert 'e+' not in str(lines) and 'seeds' in sweep_table.legend(lines)
    assert sweep_table.legend(lines[1:]) == ''


def test_a_point_that_failed_counts_nowhere_and_is_named_in_its_row():
    good, bad, other = beta_rows({(0.1, 0): 1.0, (0.1, 1): None, (0.2, 0): 5.0})
    bad = dataclasses.replace(bad, failed='exit status 1: ValueError: no luck')
    columns, (first, second) = sweep_table.table([good, bad, other], ['win'])
    assert columns[-1] == 'failed'
    assert first == [0.1, 1, 1.0, '0.1,1: exit status 1: ValueError: no luck'] and second == [0.2, 1, 5.0, '']


@pytest.mark.parametrize('name', ['p_value', 'ties', 'low'])
def test_what_has_no_mean_over_seeds_is_shown_only_if_asked_for_and_side_by_side(name):
    rows = beta_rows({(0.1, 0): 0.25, (0.1, 1): 0.5, (0.2, 0): 0.75}, figure := f'A vs B / raters / {name}')
    other = [dataclasses.replace(row, figures=row.figures | {'win': i}) for i, row in enumerate(rows)]
    assert sweep_table.choose(rows) == [] and sweep_table.choose(other) == ['win']
    assert sweep_table.choose(other, f'{figure}, win') == [figure, 'win']
    assert [line[-1] for line in sweep_table.table(rows, [figure])[1]] == ['0.25, 0.5', 0.75]


def test_figures_are_the_finite_numbers_by_readable_names():
    found = tldr_result(raw=0.6, length_adjusted=0.5, p_value=float('nan'))
    assert sweep_table.figures_of(json.loads(json.dumps(found))) == {
        f'{RAW} / n': 9, RAW: 0.6, f'{RAW} / low': 0.5, f'{RAW} / high': 0.7,
        'RLAIF vs SFT / raters / length_adjusted': 0.5,
    }  # fmt: skip
    text = '{"simulated": true, "a": [{"b": 1, "value": 2}, {"b": null}], "c": NaN, "name": "x", "d": {"e": 0.5}}'
    assert sweep_table.figures_of(json.loads(text)) == {'a / 0 / b': 1, 'a / 0 / value': 2, 'd / e': 0.5}


def tldr_result(raw: float, **more: float) -> dict:
    interval = {'n': 9, 'value': raw, 'low': raw - 0.1, 'high': 0.7}
    return {'simulated': True, 'comparisons': {'RLAIF vs SFT': {'raters': {'raw': interval, 'name_a': 'x', **more}}}}


def test_figures_that_differ_are_shown():
    one = Row('a', {}, {}, {'b': 1, 'a / low': 2, 'd': 0.5})
    other = Row('b', {}, {}, one.figures | {'a / low': 3, 'd': 0.6})
    assert sweep_table.choose([one, other]) == ['d']
    assert sweep_table.choose([one, one]) == ['b', 'd']
    assert sweep_table.choose([one, other], 'a / low,b') == ['a / low', 'b']
    with pytest.raises(Mistake, match=r'--figures=dd: .* d\?$'):
        sweep_table.choose([one], 'dd')
