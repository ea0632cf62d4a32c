"""Laws of reward models by themselves: from arms, and from anybody’s file of labels."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from experiments import find, reward_models
from experiments.scales import scale
from rlaif_jax.config import Mistake, bind
from rlaif_jax.data import files, loader
from rlaif_jax.training import reward_model

MICRO = scale('micro')


def test_a_policy_without_a_policy_to_learn_from_has_no_reward_model():
    with pytest.raises(Mistake, match=r"arms = \('d-RLAIF',\): .*reward model"):
        bind(find('tldr_rm_human')(MICRO), {'arms': ('d-RLAIF',), 'same_size_labeler': 'micro_xs'})


def test_a_reward_model_from_a_file(models, tmp_path, capsys):
    rows = [
        {'prompt': f'post {i}\n\nTL;DR:', 'chosen': f'good {i}', 'rejected': f'bad {i}', 'preference_prob': p}
        for i, p in enumerate([0.9, None, 0.2, 0.7] * 5)
    ]
    files.write_rows(tmp_path / 'labels.jsonl', rows)
    cfg = bind(
        find('reward_model')(MICRO),
        {'policy': str(models / 'policy'), 'input': str(tmp_path / 'labels.jsonl'), 'reward_model.steps': 2,
         'reward_model.batch': 8, 'held_out': 0.25},
    )  # fmt: skip
    assert [pair.preference for pair in cfg.pairs()][:4] == [0.9, None, 0.2, 0.7]
    result = cfg.run(tmp_path / 'run')
    assert re.search('/policy .* toy .*SIMULATED world', capsys.readouterr().out)  # its tokenizer says so
    assert result['train'] == 15 and result['held_out']['accuracy']['n'] == 5
    assert reward_model.load(tmp_path / 'run' / 'export').config.width == 16
    with pytest.raises(Mistake, match='input='):
        bind(find('reward_model')(MICRO), {'policy': str(models / 'policy')}).lines(tmp_path)


def test_of_several_labels_the_newest_is_read_and_the_others_are_named(models, tmp_path, capsys):
    path = tmp_path / 'labels.jsonl'
    names = ('preference_prob', 'label_2_preference_prob', 'label_preference_prob', 'mine')
    rows = [
        {'prompt': f'p{i}', 'chosen': 'a', 'rejected': 'b', **dict(zip(names, (0.1, 0.3, 0.2, 0.4)))} for i in range(4)
    ]
    files.write_rows(path, rows)
    cfg = bind(find('reward_model')(MICRO), {'policy': str(models / 'policy'), 'input': str(path)})
    read = lambda **more: [pair.preference for pair in bind(cfg, more).pairs(tell=True)]  # noqa: E731
    told = lambda: ' '.join(capsys.readouterr().out.split())  # noqa: E731
    assert read() == [0.3] * 4
    assert re.search('label_2_preference_prob, .* preference_prob, label_preference_prob; column=', told())
    for name, value in zip(names, (0.1, 0.3, 0.2, 0.4)):
        assert read(column=name) == [value] * 4
    assert re.search('mine, .* preference_prob, label_preference_prob, label_2_preference_prob; column=', told())
    with pytest.raises(Mistake, match=r"/labels\.jsonl: .*'label_3_preference_prob'.*'label_2_preference_prob'"):
        read(column='label_3_preference_prob')
    files.write_rows(path, [{name: row[name] for name in ('prompt', 'chosen', 'rejected')} for row in rows])
    assert read() == [1.0] * 4 and not told()
    with pytest.raises(Mistake, match=r"/labels\.jsonl: .*'choosen'.*'chosen'"):
        read(column='choosen')


@pytest.mark.parametrize('value', [52, -0.1, math.inf, '0.9', True, 'first', [0.9], {'p': 0.9}, 10**400])
def test_a_label_that_is_no_probability_is_named_with_its_line_and_column(value, models, tmp_path):
    path = tmp_path / 'labels.jsonl'
    row = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'preference_prob': 0.5}
    path.write_text(f'{json.dumps(row)}\n\n{json.dumps(row | {"preference_prob": value})}\n', encoding='utf-8')
    cfg = bind(find('reward_model')(MICRO), {'policy': str(models / 'policy'), 'input': str(path)})
    kind = type(value).__name__
    with pytest.raises(Mistake, match=rf"/labels\.jsonl:3: column 'preference_prob' .*\({kind}\).* 0 to 1"):
        cfg.lines(tmp_path)


def test_a_label_that_is_missing_weighs_nothing_however_a_column_says_so(models, tmp_path):
    row = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}
    rows = [row | {'preference_prob': value} for value in (None, math.nan, 0, 1, 0.25)]
    (tmp_path / 'labels.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in [*rows, row]), encoding='utf-8')
    cfg = bind(find('reward_model')(MICRO), {'policy': str(models / 'policy'), 'input': str(tmp_path / 'labels.jsonl')})
    assert [pair.preference for pair in cfg.pairs()] == [None, None, 0.0, 1.0, 0.25, 1.0]


def test_accuracy_is_that_of_the_scores():
    cfg = find('tldr_rm_human')(MICRO)

    pairs = loader.pairs(cfg.data.source, cfg.task, 'test', 64)
    better = {pair.first if pair.preference > 0.5 else pair.second for pair in pairs}
    found = reward_models.measured(lambda prompts, texts: np.array([float(text in better) for text in texts]), pairs)
    assert found['accuracy'].value == 1.0 and found['accuracy'].n == 64
    tied = reward_models.measured(lambda prompts, texts: np.zeros(len(texts)), pairs)
    assert tied['accuracy'].value == 0.5
