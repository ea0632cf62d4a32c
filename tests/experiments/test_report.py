"""Laws of the report: what is simulated says so, and score and quality that part are told."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from experiments import find, judging, plan, report
from experiments.report import over_optimised
from experiments.scales import scale
from rlaif_jax.config import bind
from rlaif_jax.data import files

MICRO = scale('micro')


def test_over_optimisation_is_said_where_score_and_quality_part():
    def rows(*figures):
        names = ('eval/score', 'eval/quality', 'eval/kl')
        return [{'step': 9 + 10 * i} | dict(zip(names, row)) for i, row in enumerate(figures)] + [{'step': 40}]

    told = over_optimised(rows((0.1, 0.3, 1.0), (0.3, 0.5, 4.0), (0.6, 0.2, 30.0)))
    assert re.search(' 20 to 30,.* 3 .*quality fell', told)
    assert 'quality +0.500 → +0.200' in told and told.endswith(')')  # and nothing of later steps
    told = over_optimised(rows((0.1, 0.5, 1.0), (0.3, 0.2, 20.0), (0.6, 0.6, 30.0)))  # and recovered
    assert ' 10 to 20' in told and told.endswith(' quality +0.600')
    assert not over_optimised(rows((0.1, 0.3, 0.1), (0.3, 0.29, 0.9)))  # less than is told
    assert not over_optimised(rows((0.1, 0.3, 1.0), (0.3, 0.5, 4.0), (0.6, 0.6, 9.0)))  # both rise
    assert not over_optimised(rows((0.1, 0.3, 1.0), (0.3, 0.5, 4.0), (0.05, 0.2, 3.0)))  # both fall
    assert not over_optimised([{'step': 1, 'eval/score': 1.0}])
    assert not over_optimised(rows((None, 0.3, 1.0), (0.3, 0.1, None)))  # nothing could be scored
    # Bought for nothing: a higher score far from SFT, and quality where it was.
    told = over_optimised(rows((0.1, 0.3, 0.0), (0.3, 0.29, 2.0), (0.6, 0.31, 9.0)))
    assert ' 10 to 40' not in told and re.search(r' 10 to 30 .*quality not .*0\.02', told)
    assert not over_optimised(rows((0.1, 0.3, 0.0), (0.3, 0.29, 2.0), (0.6, 0.31, 0.9)))  # near SFT
    assert not over_optimised(rows((0.6, 0.3, 0.0), (0.3, 0.29, 2.0), (0.1, 0.31, 9.0)))  # for less


def test_what_is_said_of_over_optimisation_says_how_sure_it_is():
    def told(*figures):
        names = ('step', 'eval/score', 'eval/quality', 'eval/kl', 'eval/quality_error')
        return over_optimised([dict(zip(names, row)) for row in figures])

    start, middle = (-1, 0.1, 0.3, 0.0, 0.03), (24, 0.2, 0.5, 2.0, 0.04)
    sure = told(start, middle, (49, 0.6, 0.2, 9.0, 0.05))
    assert re.match('over-optimised: .* 25 to 50,.* 3 .*errors of quality 0.040 and 0.050', sure)
    assert re.match('perhaps .* 25 to 50', told(start, middle, (49, 0.6, 0.41, 9.0, 0.05)))
    assert re.match('perhaps .* 0 to 25 ', told(start, (24, 0.2, 0.31, 2.0, 0.04)))


@pytest.mark.parametrize('own', [True, False])
def test_prompts_of_ones_own_are_no_simulated_world_and_training_in_one_says_so(own, tmp_path, monkeypatch, capsys):
    said, run = tmp_path / 'prompts.jsonl', tmp_path / 'trained'
    said.write_text('{"prompt": "\\n\\nHuman: why?\\n\\nAssistant:"}\n' * 4, encoding='utf-8')
    run.mkdir()
    row = {'step': 0, 'eval/score': 0.5, 'eval/quality': 0.5, 'eval/kl': 0.1}
    (run / 'metrics.jsonl').write_text(f'{json.dumps(row)}\n', encoding='utf-8')
    more = {'prompts': str(said), 'evaluation.judge': 'micro_l'} if own else {'evaluation.prompts': 4}
    cfg = bind(find('compare')(MICRO), {'policies': ('micro_xs', 'micro_s'), **more})
    monkeypatch.setattr(judging, 'judge_model', lambda *_: None)
    monkeypatch.setattr(judging, 'make_judge', lambda *_: lambda prompts, a, b: np.full(len(prompts), 0.5))
    plan.check(cfg, tmp_path / 'run')
    plan.show('compare', cfg, tmp_path / 'run')
    told = capsys.readouterr().out
    assert ('SIMULATED' in told) != own and ('dialogues, and task' in told) == own and ('task=helpful' in told) == own
    prompts = list(cfg.asked())
    report.report(cfg, tmp_path / 'run', cfg.source(), prompts, {'a': ['x'] * 4, 'b': ['y'] * 4}, {'a': run})
    titles = [
        line for line in capsys.readouterr().out.splitlines() if 'their texts' in line or 'training ended' in line
    ]
    assert ['SIMULATED' in title for title in titles] == [not own, True]


def test_rates_of_harm_by_a_packaged_model_are_simulated_whatever_people_say(tmp_path, monkeypatch, capsys):
    said = {name: str(tmp_path / f'{name}.jsonl') for name in ('responses', 'rankings')}
    files.write_rows(said['responses'], [{'prompt_id': i, 'prompt': f'p{i}', 'a': 'x', 'b': 'y'} for i in range(4)])
    files.write_rows(said['rankings'], [{'prompt_id': i, 'rater': 'ann', 'ranking': ['a', 'b']} for i in range(4)])
    cfg = bind(find('compare')(MICRO), {**said, 'task': 'harmless', 'evaluation.judge': 'micro_xs'})
    monkeypatch.setattr(judging, 'make_harm_judge', lambda *_: lambda prompts, texts: np.full(len(prompts), 1.0))
    result = cfg.run(tmp_path / 'run')
    lines = capsys.readouterr().out.splitlines()
    marked = {line: line.startswith('SIMULATED') for line in lines if 'people:' in line or 'harmless responses' in line}
    assert result['simulated'] and sorted(marked.values()) == [False, True]
