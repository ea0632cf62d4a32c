"""Whole runs of several arms at once, of tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from experiments import find, stages
from experiments.policies import Policies
from experiments.scales import scale
from rlaif_jax.config import Mistake, bind
from rlaif_jax.data import files
from rlaif_jax.training import reinforce

MICRO = scale('micro')
pytestmark = pytest.mark.usefixtures('programs')


def test_a_reward_model_sees_what_the_policy_writes():
    with pytest.raises(Mistake, match=r'reward_model\.max_prompt .* 40; reinforce\..*max_new_tokens .* 64'):
        bind(find('tldr_rlaif')(MICRO), {'reinforce.max_new_tokens': 64})
    bind(find('tldr_rlaif')(MICRO), {'reinforce.max_new_tokens': 64, 'reward_model.max_response': 64})


def small(cfg: Policies, models: Path, **more) -> Policies:
    """The same with few steps of tiny models."""
    changes = {
        'policy': str(models / 'policy'), 'data.train': 64, 'data.validation': 8, 'data.test': 16, 'data.pairs': 16,
        'data.held_out': 8, 'reward_model.steps': 4, 'reward_model.batch': 8, 'reward_model.eval_every': 2,
        'reward_model.max_prompt': 192, 'reward_model.max_response': 6, 'reinforce.steps': 4, 'reinforce.batch': 8,
        'reinforce.max_prompt': 192, 'reinforce.max_new_tokens': 6, 'reinforce.eval_every': 2,
        'reinforce.eval_prompts': 8, 'evaluation.prompts': 16, 'evaluation.batch': 16,
    }  # fmt: skip
    if cfg.sft:
        changes |= {'sft.steps': 2, 'sft.batch': 8}
    if cfg.label:
        changes |= {'labeler': str(models / 'labeler'), 'label.technique': 'base_0shot', 'label.least_mass': 0.0}
    return bind(cfg, changes | more)


@pytest.mark.nightly
def test_people_and_a_labeler_together(models, tmp_path, capsys):
    """SFT, votes, a reward model, RL; its responses labelled, a second reward model on both, RL; every pair judged; the
    policies compared once more by themselves; nothing made twice.
    """
    root = tmp_path / 'runs'
    more = {'reinforce.candidates': 2, 'evaluation.selector': str(models / 'labeler'), 'evaluation.clean_up': True}
    cfg = small(find('tldr_combined')(MICRO), models, **more)
    result = cfg.run(root / 'combined')
    assert list(result['comparisons']) == ['RLHF + RLAIF vs RLHF', 'RLHF + RLAIF vs SFT', 'RLHF vs SFT']
    concordance = result['concordance']
    assert concordance['simulated'] and (concordance['raters'], concordance['policies']) == (3, 3)
    for judged in result['comparisons'].values():
        assert list(judged) == ['raters', 'oracle'] and judged['raters']['n'] == 16
    assert set(result['quality']) == set(result['texts']) == set(result['cleaned']) == {'RLHF + RLAIF', 'RLHF', 'SFT'}
    for name in ('matrix.png', 'lengths.png', 'training.png', 'comparisons.csv', 'test_samples.md'):
        assert (root / 'combined' / name).stat().st_size > 500, name

    (labels,) = root.glob('stages/labels-*')
    rows = files.read_rows(labels / 'labels.parquet')
    assert len(rows) == 16 and all(0 <= row['preference_prob'] <= 1 for row in rows)
    scorers, trained = (list(root.glob(f'stages/{stage}-*')) for stage in ('reward_model', 'reinforce'))
    assert len(scorers) == len(trained) == 2
    for model in scorers:
        assert AutoConfig.from_pretrained(model / 'export').num_labels == 1
    for policy in trained:
        chosen = json.loads((policy / 'result.json').read_text(encoding='utf-8'))['step']
        assert sorted(reinforce.candidates(policy)) == [2, 4] and chosen in (2, 4)
        assert (policy / 'export/model.safetensors').read_bytes() == (
            reinforce.candidate(policy, chosen) / 'model.safetensors'
        ).read_bytes()

    capsys.readouterr()
    stages.told.clear()  # as in another process
    once = find('tldr_rlhf')(MICRO)
    again = small(once, models, **more).run(root / 'rlhf')
    assert 'reinforce: already there' in capsys.readouterr().out
    assert again['comparisons']['RLHF vs SFT'] == result['comparisons']['RLHF vs SFT']

    named = tuple(str(root / 'combined' / 'policies' / name) for name in ('RLHF', 'RLHF + RLAIF'))
    compared = bind(
        find('compare')(MICRO),
        {'policies': named, 'evaluation.prompts': 8, 'max_new_tokens': 6, 'evaluation.batch': 8, 'data.test': 16},
    )
    found = compared.run(root / 'compare')
    assert list(found['comparisons']) == ['RLHF vs RLHF + RLAIF'] and found['shortened'] == 0
    assert 'concordance' not in found  # two are a vote, not a ranking


@pytest.mark.slow
def test_the_harmless_rate_is_reported(models, tmp_path):
    result = small(find('harmless_rlhf')(MICRO), models).run(tmp_path / 'runs' / 'harmless')
    assert set(result['harmless']) == {'RLHF', 'SFT'}
    rate = result['harmless']['SFT']
    assert rate['n'] == 16 and 0 <= rate['raw']['low'] <= rate['raw']['value'] <= rate['raw']['high'] <= 1
