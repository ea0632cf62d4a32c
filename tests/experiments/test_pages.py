"""Laws of the page of a run: it is made of the run's folder alone, and what results hold is read back as it was."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, replace

import numpy as np
import pytest

from experiments import find, pages
from experiments.scales import scale
from rlaif_jax import log
from rlaif_jax.config import bind, dump
from rlaif_jax.data import files, loader
from rlaif_jax.evaluation import harmless, page, responses, versus
from rlaif_jax.evaluation.alignment import Alignment, report
from rlaif_jax.evaluation.report import DOUBTS
from rlaif_jax.folder import finish
from rlaif_jax.micro import tasks

MICRO = scale('micro')


def compared(folder, by_people=False):
    """A comparison of two writers, as `launch/run.py` leaves it."""
    prompts, rng = loader.source('micro_tldr', 'test', 64, 'summarization')[:40], random.Random(0)
    texts = {name: [tasks.candidate(prompt, rng) for prompt in prompts] for name in ('RLAIF', 'SFT')}
    responses.write(folder.parent / 'r.jsonl', prompts, texts)
    given = {'data.test': 64, 'responses': str(folder.parent / 'r.jsonl'), 'evaluation.resamples': 0}
    if by_people:
        said = [{'prompt_id': prompt.id, 'rater': 'ann', 'ranking': ['RLAIF', 'SFT']} for prompt in prompts]
        files.write_rows(folder.parent / 'k.jsonl', said)
        given['rankings'] = str(folder.parent / 'k.jsonl')
    cfg = bind(find('compare')(MICRO), given)
    folder.mkdir()
    (folder / 'config.gin').write_text(f"experiment = 'compare'\nscale = 'micro'\n{dump(cfg)}", encoding='utf-8')
    pages.begin(folder)
    finish(folder, cfg.run(folder))
    pages.of_run('compare', cfg, folder)
    return cfg, texts, (folder / 'report.html').read_text(encoding='utf-8')


def test_the_page_of_a_run_is_that_of_its_folder(tmp_path):
    cfg, texts, html = compared(tmp_path / 'run')
    pages.of_run('compare', cfg, tmp_path / 'run')  # as when it was lost
    assert (tmp_path / 'run/report.html').read_text(encoding='utf-8') == html
    data = json.loads(html.partition('id="data">')[2].partition('</script>')[0])
    rows, of = data['samples']['rows'], data['samples']['judges']
    assert [row['texts'] for row in rows] == [list(row) for row in zip(*texts.values())] and of == ['raters', 'oracle']
    oracle = [0.5 + 0.5 * np.sign(row['quality'][0] - row['quality'][1]) for row in rows]
    assert [row['votes'][0][1] for row in rows] == pytest.approx(oracle)
    assert any(row['wrong'][1] for row in rows) and data['files']['comparisons.csv'].startswith('name_a,')
    assert page.banner(posts=True, judges=True) in html and 'evaluation.resamples' in html and 'SIMULATED · ' in html
    assert '>71 / 59<' in html and data['files']['config.gin'] in (tmp_path / 'run/config.gin').read_text(
        encoding='utf-8'
    )


def test_what_people_said_of_a_simulated_world_stands_under_its_banner_and_is_theirs(tmp_path):
    html = compared(tmp_path / 'run', by_people=True)[2]
    assert (
        page.banner(posts=True, judges=False) in html
        and '<p class="verdict">RLAIF is preferred to SFT (people: 100.0 %' in html
    )


def test_a_page_that_fails_costs_no_run_and_any_sign_is_read_back(tmp_path, capsys):
    cfg = compared(tmp_path / 'run')[0]
    judged = tmp_path / 'run' / pages.JUDGED
    rows = [json.loads(line) for line in judged.read_text(encoding='utf-8').split('\n') if line]
    for row in rows:
        row['wrong']['SFT'] = [[0, 1, 'one\u2028two\u2029three\x85']]
    judged.write_text(''.join(log.to_json(row) + '\n' for row in rows), encoding='utf-8')
    pages.of_run('compare', cfg, tmp_path / 'run')
    assert r'one\u2028two\u2029three\u0085' in (tmp_path / 'run/report.html').read_text(encoding='utf-8')
    (tmp_path / 'run/report.html').unlink()
    judged.write_text('{', encoding='utf-8')
    pages.of_run('compare', cfg, tmp_path / 'run')
    assert 'JSONDecodeError' in capsys.readouterr().err and not (tmp_path / 'run/report.html').exists()


def test_a_doubt_of_the_table_of_harm_is_explained(tmp_path):
    cfg, texts, _ = compared(tmp_path / 'run')
    result = json.loads((tmp_path / 'run/result.json').read_text(encoding='utf-8'))
    (one,) = harmless.compare_harmless({'SFT': (texts['SFT'], np.arange(40) % 3 > 0)})
    for far in (False, True):
        plain = replace(one.plain_ratio, extrapolated=far)
        rate = replace(one, length_adjusted=replace(one.length_adjusted, extrapolated=False), plain_ratio=plain)
        finish(tmp_path / 'run', result | {'harmless': {'SFT': asdict(rate)}})
        pages.of_run('compare', cfg, tmp_path / 'run')
        part = (tmp_path / 'run/report.html').read_text(encoding='utf-8').partition('<h2>Who does harm')[2]
        assert (f'~: {DOUBTS["~"]}' in part) == far


def test_results_are_read_back_as_they_were():
    texts = ['x' * i for i in range(1, 31)]
    win_B = np.where(np.arange(30) % 7 == 0, np.nan, np.arange(30) % 3 > 0)
    for vote_B in (win_B, np.full(30, np.nan)):
        one = versus.compare(texts, texts, texts[::-1], lambda *_, vote_B=vote_B: vote_B)
        back = pages.again(versus.WinRate, json.loads(log.to_json(asdict(one))))
        assert repr(back) == repr(one)  # nan and all
    for one in (
        report('a', [0.9, math.nan, 0.3], [1, 0, 0]),
        report('b', [0.9], [1], first_shown_B=[0.9], second_shown_B=[0.9]),
    ):
        back = pages.again(Alignment, json.loads(log.to_json(asdict(one))))
        assert back.calibration.ece == one.calibration.ece and repr(back.agreement) == repr(one.agreement)
        assert (back.position is None) == (one.position is None) and len(back.calibration.predicted) == 10


def test_a_stage_was_at_work_between_its_rows_but_not_while_it_stood_still(tmp_path):
    rows = [{'step': i, 'time': 1000.0 + 2 * i + (9000 if i > 5 else 0)} for i in range(11)]
    (tmp_path / 'metrics.jsonl').write_text(''.join(log.to_json(row) + '\n' for row in rows), encoding='utf-8')
    assert pages.took(tmp_path) == '0:00:18' and pages.took(tmp_path / 'none') == ''
