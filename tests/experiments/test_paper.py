"""Laws of the paper as one experiment: every table stands there or says why not, what is finished is not made again, and a
page of half of it says what is there. Results are stand-ins with the names that real ones have; nothing is trained.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import combinations

import pytest

from experiments import find, pages, paper, plan, statements
from experiments.labeling import Study
from experiments.paper import PARTS, Paper
from experiments.policies import Policies
from experiments.scales import SCALES, scale
from experiments.statements import MORE, TABLES, Statement
from rlaif_jax.config import Mistake, bind, digest, dump, parse, same
from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation import responses
from rlaif_jax.evaluation.statistics import Interval, difference, mean_interval
from rlaif_jax.folder import finish, finished

MICRO = scale('micro')
KNOWN = {statement.part for table in TABLES for statement in table.statements} - {''}


def rate(rng, extrapolated=None):
    value = rng.uniform(0.1, 0.9)
    told = {'value': value, 'low': value - 0.03, 'high': value + 0.03, 'n': 128}
    return told if extrapolated is None else told | {'extrapolated': extrapolated, 'humps': False}


def stand_in(config, folder):
    """A result with the names that a real one of this config has."""
    rng = random.Random(folder.name)
    if isinstance(config, Study):
        position = lambda: {'same': rate(rng), 'share': rate(rng), 'which': rng.choice(['first', 'second'])}  # noqa: E731
        cell = lambda: {'agreement': rate(rng), 'position': position(), 'tokens': 64000.0, 'pairs': 64}  # noqa: E731
        return {'simulated': True, 'alignment': {name: cell() for name, _, _ in config.cells()}}
    if not isinstance(config, Policies):
        kinds = lambda: {kind: {'accuracy': rate(rng)} for kind in ('sure', 'all')}  # noqa: E731
        return {'simulated': True, 'reward models': {name: kinds() for name in config.learners()}}
    names = [*(one.name for one in config.learners()), 'SFT']
    prompts = [Prompt(str(i), f'a post, {i}', '') for i in range(8)]
    texts = {name: ['x' * (60 + 10 * i + rng.randrange(9)) for _ in prompts] for i, name in enumerate(names)}
    responses.write(folder / 'responses.jsonl', prompts, texts)
    one = lambda: {'raters': {'raw': rate(rng), 'plain_ratio': rate(rng, False)}, 'oracle': {}}  # noqa: E731
    return {
        'simulated': True, 'concordance': rate(rng),
        'comparisons': {f'{a} vs {b}': one() for a, b in combinations(names, 2)},
        'harmless': {name: {'raw': rate(rng), 'plain_ratio': rate(rng, name == 'RLAIF')} for name in names},
        'quality': {name: {'hallucination': rate(rng)} for name in names},
    }  # fmt: skip


@pytest.fixture
def made(monkeypatch):
    """The runs that were made, by their folders; `made.stops` ends the program in one, `made.fails` fails one."""

    class Made(list):
        stops = fails = ''

    found = Made()

    def make(name, config, folder):
        found.append(folder.name)
        if folder.name == found.stops:
            raise SystemExit(130)
        if folder.name == found.fails:
            raise Mistake('half of the labels are unscorable')
        (folder / pages.PAGE).write_text('its page', encoding='utf-8')
        finish(folder, result := stand_in(config, folder))
        return result

    monkeypatch.setattr(pages, 'make', make)
    return found


def told(result):
    return {(key, says): one['becomes'] for key, rows in result['statements'].items() for says, one in rows.items()}


def test_every_table_of_the_paper_says_something_or_why_not():
    keys = [table.key for table in TABLES]
    assert len({*keys}) == len(keys)
    assert {*range(1, 8), *range(14, 19), *range(21, 25), *'GIJKLN', 'v1', 'soft'} <= {*keys}
    for table in TABLES:
        assert bool(table.statements) != bool(table.why), table.key
        for one in table.statements:
            assert bool(one.part and one.at) != bool(one.why) and bool(one.than) == (
                one.kind == 'difference' and not one.why
            )
    claims = [one.says for table in TABLES for one in table.statements if one.claims]
    assert len({*claims}) == len(claims), 'two statements say the same'
    assert [part.experiment for part in PARTS if part.experiment not in KNOWN] == []
    assert KNOWN <= {part.experiment for part in PARTS}


def test_a_whole_paper_answers_every_statement_and_makes_nothing_twice(made, tmp_path):
    cfg = find('paper')(MICRO)
    result = cfg.run(tmp_path)
    assert 'not yet' not in told(result).values() and {*told(result).values()} >= {*paper.OUTCOMES}
    assert sorted(made) == sorted(f'{part.experiment}-s0' for part in PARTS)
    html = (tmp_path / 'report.html').read_bytes()
    assert b'SIMULATED' in html and b'href="parts/tldr_table1-s0/report.html"' in html
    assert cfg.run(tmp_path) == result and len(made) == len(PARTS)
    assert (tmp_path / 'report.html').read_bytes() == html


def test_a_paper_that_is_stopped_says_what_is_there_and_goes_on_to_the_same_page(made, tmp_path, capsys):
    cfg, made.stops = find('paper')(MICRO), 'labeling_sizes-s0'
    (tmp_path / 'whole').mkdir(), (tmp_path / 'half').mkdir()
    with pytest.raises(SystemExit):
        cfg.run(tmp_path / 'half')
    assert made[-1] == 'labeling_sizes-s0' and str(tmp_path / 'half/report.html') in capsys.readouterr().out
    becomes = {
        (one.part, row['becomes'] == 'not yet')
        for table, rows in cfg.there(tmp_path / 'half')[0]
        for one, row in zip(table.statements, rows)
        if one.part
    }
    assert becomes == {(part.experiment, f'{part.experiment}-s0' not in made[:-1]) for part in PARTS}
    half = (tmp_path / 'half/report.html').read_text(encoding='utf-8')
    assert 'parts/tldr_table1-s0/report.html' in half and 'parts/rl_kl-s0/report.html' not in half
    made.stops = ''
    result = cfg.run(tmp_path / 'half')
    assert len(made) == len(PARTS) + 1  # the one that was stopped is made again
    assert repr(result) == repr(cfg.run(tmp_path / 'whole'))
    htmls = [(tmp_path / name / 'report.html').read_text(encoding='utf-8') for name in ('half', 'whole')]
    assert htmls[0].replace('half', 'whole') == htmls[1]


def test_a_run_that_fails_costs_no_other(made, tmp_path, capsys):
    cfg, made.fails = bind(find('paper')(MICRO), {'tables': [3, 4, 14, 'K']}), 'labeling_sizes-s0'
    with pytest.raises(Mistake, match='labeling_sizes, seed 0'):
        cfg.run(tmp_path)
    assert sorted(made) == ['labeling_self_consistency-s0', 'labeling_sizes-s0', 'tldr_combined-s0']
    assert 'unscorable' in capsys.readouterr().err
    made.fails = ''
    assert 'not yet' not in told(cfg.run(tmp_path)).values() and made[3:] == ['labeling_sizes-s0']


def test_other_tables_and_seeds_find_what_is_there(made, tmp_path):
    few = bind(find('paper')(MICRO), {'tables': [3, 'K']})
    one = few.run(tmp_path)
    more = bind(few, {'tables': [], 'seeds': [0, 1]})
    assert digest(few) == digest(more) and {'tables', 'seeds'} <= same(few)  # so they have one folder
    assert len(made) == 2 and 'not yet' not in told(more.run(tmp_path)).values()
    assert len(made) == len(PARTS) + sum(part.seeds for part in PARTS)
    several = more.run(tmp_path)['statements']['K']['RLHF + RLAIF preferred to SFT']['ours']
    alone = one['statements']['K']['RLHF + RLAIF preferred to SFT']['ours']
    assert several['n'] == 2 and alone['n'] == 128 and several['value'] != alone['value']


def test_several_seeds_are_an_interval_over_seeds_and_differences_are_of_a_seed_each():
    results = [{'a': {'value': 0.7 + d, 'low': 0.6, 'high': 0.8, 'n': 9}, 'b': {'value': 0.5 + d, 'low': 0.4, 'high': 0.6,
               'n': 9}} for d in (0.0, 0.1, 0.2)]  # fmt: skip
    one = Statement('a', 'share', 70, 'part', ('a',))
    assert paper.measured(one, results[:1]) == Interval(0.7, 0.6, 0.8, 9)
    assert paper.measured(one, results).low == pytest.approx(mean_interval([0.7, 0.8, 0.9]).low)
    of = replace(one, kind='difference', than=('b',))
    assert paper.measured(of, results[:1]) == difference(Interval(0.7, 0.6, 0.8, 9), Interval(0.5, 0.4, 0.6, 9))
    over = paper.measured(of, results)
    assert over.value == pytest.approx(0.2) and over.high - over.low < 1e-9
    assert paper.measured(one, [{}]) is None and paper.measured(of, [{'a': results[0]['a']}]) is None


@pytest.mark.parametrize(
    ('kind', 'says', 'rate', 'becomes'),
    [
        ('difference', 1.9, (0.02, 0.01, 0.03), 'reproduced'),
        ('difference', 1.9, (0.2, 0.1, 0.3), 'same direction'),
        ('difference', 1.9, (-0.02, -0.03, -0.01), 'otherwise'),
        ('difference', 1.9, (0.02, -0.01, 0.05), 'not shown'),
        ('difference', 0.6, (0.0, -0.02, 0.02), 'reproduced'),  # less than a point: the paper sees none
        ('difference', MORE, (0.02, 0.01, 0.03), 'same direction'),
        ('difference', -MORE, (0.02, 0.01, 0.03), 'otherwise'),
        ('length', 124, (1.22, 1.20, 1.24), 'reproduced'),
        ('length', 124, (0.9, 0.88, 0.92), 'otherwise'),
        ('share', 78, (0.92, 0.9, 0.94), 'same direction'),
        ('shown', 78, (0.92, 0.9, 0.94), ''),
        ('rate', None, (0.92, 0.9, 0.94), ''),
    ],
)
def test_what_becomes_of_a_statement(kind, says, rate, becomes):
    one = Statement('it', kind, says, 'part', ('a',))
    assert paper.outcome(one, Interval(*rate, 100)) == becomes
    assert paper.outcome(one, None) == 'not yet'


def test_a_number_of_a_result_that_is_none_is_not_there():
    assert paper.interval({'value': None, 'low': 0.0, 'high': 1.0, 'n': 0}) is None
    assert math.isnan(paper.interval({'value': 0.5, 'low': None, 'high': 1.0, 'n': 3}).low)
    assert paper.look({'a': {'x': 1, 'y': 2}}, ('a', 1)) == 2 and paper.look({'a': {}}, ('a', 0)) is None


def test_lengths_are_of_the_same_prompts():
    a_B, b_B = [110.0, 220.0, 330.0], [100.0, 200.0, 300.0]
    found = paper.ratio(*map(paper.np.array, (a_B, b_B)))
    assert (found.value, found.low, found.high) == pytest.approx((1.1, 1.1, 1.1))


def test_bindings_reach_every_run_that_has_the_field_and_quick_runs_are_small(tmp_path):
    cfg = bind(
        find('paper')(MICRO), {'bindings': ['evaluation.judge=oracle', 'data.pairs=160', 'pairs=7'], 'quick': True}
    )
    for one in cfg.runs(tmp_path):
        values = parse(dump(one.config))
        assert values.get('evaluation.judge', 'oracle') == 'oracle' and values.get('data.pairs', 160) == 160
        assert values.get('pairs', 7) == 7  # what is typed wins over what a part binds
        assert values.get('evaluation.prompts', 0) <= 128 and values.get('reinforce.steps', 0) <= 20
        if one.name == 'rm_examples':
            assert values['variants'] == ('data.pairs=128', 'data.pairs=8', 'data.pairs=160')
    for wrong in ({'bindings': ['evaluation.juge=oracle']}, {'tables': [99]}, {'tables': ['k']}, {'seeds': []}):
        with pytest.raises(Mistake, match='evaluation.judge|did you mean|seeds'):
            bind(find('paper')(MICRO), wrong)


def test_a_plan_lists_the_runs_and_refuses_what_one_of_them_would(tmp_path, made, capsys):
    cfg = bind(find('paper')(MICRO), {'tables': [3, 'K']})
    (tmp_path / 'done').mkdir()
    cfg.run(tmp_path / 'done')
    plan.show('paper', bind(cfg, {'tables': [3, 14]}), tmp_path / 'done')
    shown = {line.split()[0]: line for line in capsys.readouterr().out.split('plan\n')[1].split('\n') if line.strip()}
    assert 'done' in shown['labeling_sizes'] and 'to do' in shown['labeling_self_consistency']
    wrong = bind(cfg, {'bindings': ['reinforce.batch=31'], 'mesh.data': 2})
    with pytest.raises(Mistake, match='reinforce.batch'):
        plan.check(wrong, tmp_path / 'new')


@pytest.mark.parametrize('quick', [False, True])
def test_every_run_passes_the_check_of_its_plan(quick, tmp_path):
    plan.check(bind(find('paper')(MICRO), {'quick': quick}), tmp_path)


@pytest.mark.parametrize('name', SCALES)
def test_a_paper_is_there_at_every_scale(name, tmp_path):
    cfg = find('paper')(scale(name))
    assert isinstance(cfg, Paper) and bind(cfg, parse(dump(cfg))) == cfg
    runs = {one.name: one for one in cfg.runs(tmp_path)}
    assert {*runs} == KNOWN and all(finished(one.folder) is None for one in runs.values())
    assert statements.TABLES and (None in {one.minutes for one in runs.values()}) == (name != 'micro')
