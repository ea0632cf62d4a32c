"""Arms and variants: what they need, what they share, and a whole run of several at once."""

from __future__ import annotations

import json
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from experiments import arms, comparison, experiments, find, plan, reward_models, stages
from experiments.policies import Policies
from experiments.scales import scale
from experiments.stages import over_optimised
from rlaif_jax.config import Mistake, bind
from rlaif_jax.data import files, loader
from rlaif_jax.data.micro import tasks
from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation import rankings, responses
from rlaif_jax.models import hf, transformer
from rlaif_jax.models.hf import LM
from rlaif_jax.training import reinforce, reward_model

MICRO = scale('micro')
pytestmark = pytest.mark.usefixtures('programs')


def at(cfg, root: Path) -> dict[str, list[Path]]:
    """The folders of the stages of a config, by the kind of stage."""
    found: dict[str, list[Path]] = {}
    for stage in cfg.stages(root / 'run'):
        found.setdefault(stage.name, []).append(stage.folder)
    return found


# What an arm needs


@pytest.mark.parametrize(
    'bindings, told',
    [
        ({'arms': ('RLAF',)}, "each is one of 'RLHF'"),
        ({'arms': ()}, 'each is one of'),
        ({'labeler': 'micro_s'}, "labeler = 'micro_s' would change nothing; d-RLAIF asks same_size_labeler"),
        ({'same_size_labeler': ''}, 'same_size_labeler is empty; d-RLAIF needs one'),
        ({'arms': ('RLHF',), 'same_size_labeler': ''}, 'reward_model: needed by RLHF'),
        ({'reward_model_from_base': True}, 'reward_model_from_base is about votes of people'),
    ],
)
def test_a_config_that_would_not_do_what_it_says_is_refused(bindings, told):
    with pytest.raises(Mistake, match=told):
        bind(find('tldr_direct')(MICRO), bindings)


def test_a_reward_model_sees_what_the_policy_writes():
    with pytest.raises(Mistake, match='a reward model must see what the policy writes'):
        bind(find('tldr_rlaif')(MICRO), {'reinforce.max_new_tokens': 64})
    bind(find('tldr_rlaif')(MICRO), {'reinforce.max_new_tokens': 64, 'reward_model.max_response': 64})


def test_a_policy_without_a_policy_to_learn_from_has_no_reward_model():
    with pytest.raises(Mistake, match='has no reward model without a policy'):
        bind(find('tldr_rm_human')(MICRO), {'arms': ('d-RLAIF',), 'same_size_labeler': 'micro_xs'})


# What experiments share


def test_experiments_share_what_they_both_need(tmp_path):
    made = {name: at(find(name)(MICRO), tmp_path) for name in experiments() if name.startswith(('tldr_r', 'tldr_t'))}
    whole = made['tldr_table1']
    assert len(whole['sft']) == 1 and len(whole['reinforce']) == 4 and len(whole['reward model']) == 3
    for name in ('tldr_rlaif', 'tldr_rlhf', 'tldr_rm_human'):
        for kind, folders in made[name].items():
            assert kind == 'evaluation' or set(folders) <= set(whole[kind]), (name, kind)
    assert made['tldr_rlaif']['reinforce'] != made['tldr_rlhf']['reinforce']
    assert 'labels' not in made['tldr_rlhf']
    combined = at(find('tldr_combined')(MICRO), tmp_path)
    assert set(made['tldr_rlhf']['reinforce']) < set(combined['reinforce'])  # it writes the pairs to be labelled


@pytest.mark.parametrize(
    'bindings, same, changed',
    [
        ({'reinforce.beta': 0.1}, ['sft', 'labels', 'reward model'], ['reinforce']),
        ({'reward_model.soft': False}, ['sft', 'labels'], ['reward model', 'reinforce']),
        ({'data.pairs': 128}, ['sft'], ['labels', 'reward model', 'reinforce']),
        ({'label.technique': 'base_0shot'}, ['sft'], ['labels', 'reward model', 'reinforce']),
        ({'sft.seed': 1}, ['labels'], ['sft', 'reward model', 'reinforce']),
        ({'evaluation.prompts': 9}, ['sft', 'labels', 'reward model', 'reinforce'], []),
        ({'evaluation.selector': 'micro_s'}, ['sft', 'labels', 'reward model', 'reinforce'], []),
    ],
)
def test_a_stage_is_made_anew_where_something_that_determines_it_changes(tmp_path, bindings, same, changed):
    cfg = find('tldr_rlaif')(MICRO)
    before, after = at(cfg, tmp_path), at(bind(cfg, bindings), tmp_path)
    assert [kind for kind in before if before[kind] == after[kind]] == [*same, 'evaluation']
    assert [kind for kind in before if before[kind] != after[kind]] == changed


def test_arms_differ_in_their_feedback_alone():
    cfg = find('tldr_table1')(MICRO)
    made = [arms.optimised(cfg, arm) for arm in cfg.arms]
    for one in made:
        bare = replace(one, rewarded=None, rating=None, labeler='', fingerprint='')
        assert bare == replace(made[0], rewarded=None, rating=None, labeler='', fingerprint='')


def test_variants_differ_in_what_they_bind(tmp_path):
    cfg = find('rl_kl')(MICRO)
    names, configs, _ = zip(*arms.each(cfg))
    assert names[0] == 'reinforce.beta=0.0' and [one.reinforce.beta for one in configs] == [0.0, 0.01, 0.05, 0.2, 0.5]
    assert len(at(cfg, tmp_path)['reinforce']) == 5 and len(at(cfg, tmp_path)['reward model']) == 1
    with pytest.raises(Mistake, match='did you mean reinforce.beta'):
        list(arms.each(replace(cfg, variants=('reinforce.betta=0.1',))))


def test_dialogue_starts_from_a_model_that_is_tuned_already(tmp_path):
    for name in ('helpful_rlaif', 'helpful_direct', 'harmless_rlaif'):
        cfg = find(name)(MICRO)
        assert cfg.sft is None and 'sft' not in at(cfg, tmp_path)


@pytest.mark.parametrize('name', [name for name in experiments() if name.startswith(('tldr', 'rm', 'rl', 'h'))])
def test_every_plan_passes_its_check(name, tmp_path):
    plan.check(find(name)(MICRO), tmp_path / 'run')


def test_a_model_that_chooses_among_checkpoints_is_looked_for_before_anything_runs(tmp_path):
    cfg = bind(find('tldr_direct')(MICRO), {'reinforce.candidates': 2, 'evaluation.selector': 'micro_xz'})
    with pytest.raises(Mistake, match='micro_xz: no such directory'):
        plan.check(cfg, tmp_path / 'run')


# People's votes and labels, mixed


@pytest.mark.parametrize(
    'share, human, ai', [(0.0, 0, 300), (0.25, 100, 300), (0.5, 300, 300), (0.75, 300, 100), (1.0, 300, 0)]
)
def test_votes_and_labels_are_mixed_at_their_share(share, human, ai, tmp_path, monkeypatch):
    """What is trained on, with stand-ins for a labeler and for training."""
    cfg = bind(find('tldr_combined')(MICRO), {'human_share': share, 'data.pairs': 300})
    made, seen = arms.rewarded(cfg, 'RLHF + RLAIF'), []
    labels = loader.pairs('micro_tldr', cfg.task, 'test', ai)
    monkeypatch.setattr(stages.Supervised, 'run', lambda *_: None)
    monkeypatch.setattr(stages.Labelled, 'run', lambda self, *_: labels[: self.pairs])
    monkeypatch.setattr(stages.reward_model, 'run', lambda cfg, folder, start, pairs, *_, **__: seen.append(pairs))
    monkeypatch.setattr(stages.reward_model, 'load', lambda *_, **__: None)
    made.run(tmp_path, None)
    assert seen == [loader.pairs('micro_tldr', cfg.task, 'train', human) + labels]
    result = json.loads((made.folder(tmp_path) / 'result.json').read_text(encoding='utf-8'))
    assert (result['human'], result['pairs']) == (human, human + ai)
    assert (made.ai is None) == (share == 1) and (share == 1 or made.ai.pairs == ai)


def test_a_share_of_0_or_1_is_what_a_labeler_or_people_alone_would_give(tmp_path):
    cfg = find('tldr_combined')(MICRO)
    ai, both, human = (replace(cfg, human_share=share) for share in (0.0, 0.5, 1.0))
    assert arms.counts(ai, 'RLHF + RLAIF') == arms.counts(find('tldr_rlaif')(MICRO), 'RLAIF')
    # But for where it starts: votes and labels together are learned from SFT.
    alone = replace(arms.rewarded(human, 'RLHF'), from_base=False)
    assert arms.rewarded(human, 'RLHF + RLAIF') == alone and 'labels' not in at(human, tmp_path)
    assert at(both, tmp_path)['labels'] == at(ai, tmp_path)['labels']  # as many, of the same pairs
    assert both == cfg and len({*map(str, (ai, both, human))}) == 3


@pytest.mark.parametrize(
    'name, share, told',
    [
        ('tldr_combined', 1.5, 'human_share is a share of the pairs, from 0 to 1, not 1.5'),
        ('tldr_combined', -0.1, 'from 0 to 1, not -0.1'),
        ('tldr_combined', None, 'human_share: needed by RLHF [+] RLAIF'),
        ('tldr_rlaif', 0.5, 'human_share: says nothing about RLAIF'),
    ],
)
def test_a_share_that_is_none_is_refused(name, share, told):
    with pytest.raises(Mistake, match=told):
        bind(find(name)(MICRO), {'human_share': share})


def test_who_needs_a_stage_that_is_being_made_waits_and_finds_it(tmp_path, capsys):
    made = []

    def make(folder: Path) -> dict:
        made.append(folder)
        time.sleep(0.3)
        return {'figure': len(made)}

    with ThreadPoolExecutor(2) as both:
        results = list(both.map(lambda _: stages.once(tmp_path / 'sft-0', MICRO.sft, make), range(2)))
    assert len(made) == 1 and results == [{'figure': 1}] * 2
    assert 'waiting for it' in capsys.readouterr().out


# Runs of tiny models


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


@pytest.mark.slow
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
    for model in root.glob('stages/reward_model-*'):
        assert AutoConfig.from_pretrained(model / 'export').num_labels == 1
    for policy in root.glob('stages/reinforce-*'):
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
    assert 'is a toy of the SIMULATED world' in capsys.readouterr().out  # its tokenizer says so
    assert result['train'] == 15 and result['held_out']['accuracy']['n'] == 5
    assert reward_model.load(tmp_path / 'run' / 'export').config.width == 16
    with pytest.raises(Mistake, match='which pairs'):
        bind(find('reward_model')(MICRO), {'policy': str(models / 'policy')}).stages(tmp_path)


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
    assert 'reads label_2_preference_prob, and not preference_prob, label_preference_prob; column=…' in told()
    for name, value in zip(names, (0.1, 0.3, 0.2, 0.4)):
        assert read(column=name) == [value] * 4
    assert 'reads mine, and not' in told()
    with pytest.raises(Mistake, match="no column 'label_3_preference_prob'; did you mean 'label_2_preference_prob'"):
        read(column='label_3_preference_prob')
    files.write_rows(path, [{name: row[name] for name in ('prompt', 'chosen', 'rejected')} for row in rows])
    assert read() == [1.0] * 4 and not told()
    with pytest.raises(Mistake, match="no column 'choosen'; did you mean 'chosen'"):
        read(column='choosen')


@pytest.mark.parametrize('value', [52, -0.1, math.inf, '0.9', True, 'first', [0.9], {'p': 0.9}, 10**400])
def test_a_label_that_is_no_probability_is_named_with_its_line_and_column(value, models, tmp_path):
    path = tmp_path / 'labels.jsonl'
    row = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b', 'preference_prob': 0.5}
    path.write_text(f'{json.dumps(row)}\n\n{json.dumps(row | {"preference_prob": value})}\n', encoding='utf-8')
    cfg = bind(find('reward_model')(MICRO), {'policy': str(models / 'policy'), 'input': str(path)})
    with pytest.raises(
        Mistake, match=r"labels\.jsonl:3: column 'preference_prob' is .*; wants P\(the first is better\)"
    ):
        cfg.stages(tmp_path)


def test_a_label_that_is_missing_weighs_nothing_however_a_column_says_so(models, tmp_path):
    row = {'prompt': 'p', 'chosen': 'a', 'rejected': 'b'}
    rows = [row | {'preference_prob': value} for value in (None, math.nan, 0, 1, 0.25)]
    (tmp_path / 'labels.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in [*rows, row]), encoding='utf-8')
    cfg = bind(find('reward_model')(MICRO), {'policy': str(models / 'policy'), 'input': str(tmp_path / 'labels.jsonl')})
    assert [pair.preference for pair in cfg.pairs()] == [None, None, 0.0, 1.0, 0.25, 1.0]


def test_accuracy_is_that_of_the_scores():
    cfg = find('tldr_rm_human')(MICRO)
    from rlaif_jax.data import loader

    pairs = loader.pairs(cfg.data.source, cfg.task, 'test', 64)
    better = {pair.first if pair.preference > 0.5 else pair.second for pair in pairs}
    found = reward_models.measured(lambda prompts, texts: np.array([float(text in better) for text in texts]), pairs)
    assert found['accuracy'].value == 1.0 and found['accuracy'].n == 64
    tied = reward_models.measured(lambda prompts, texts: np.zeros(len(texts)), pairs)
    assert tied['accuracy'].value == 0.5


def test_over_optimisation_is_said_where_score_and_quality_part():
    def rows(*figures):
        names = ('eval/score', 'eval/quality', 'eval/kl')
        return [{'step': 9 + 10 * i} | dict(zip(names, row)) for i, row in enumerate(figures)] + [{'step': 40}]

    told = over_optimised(rows((0.1, 0.3, 1.0), (0.3, 0.5, 4.0), (0.6, 0.2, 30.0)))
    assert 'from step 20 to 30, the worst of 3 spans, the score rose and quality fell' in told
    assert 'quality +0.500 → +0.200' in told and 'at the end' not in told
    told = over_optimised(rows((0.1, 0.5, 1.0), (0.3, 0.2, 20.0), (0.6, 0.6, 30.0)))  # and recovered
    assert 'from step 10 to 20' in told and told.endswith('at the end, quality +0.600')
    assert not over_optimised(rows((0.1, 0.3, 0.1), (0.3, 0.29, 0.9)))  # less than is told
    assert not over_optimised(rows((0.1, 0.3, 1.0), (0.3, 0.5, 4.0), (0.6, 0.6, 9.0)))  # both rise
    assert not over_optimised(rows((0.1, 0.3, 1.0), (0.3, 0.5, 4.0), (0.05, 0.2, 3.0)))  # both fall
    assert not over_optimised([{'step': 1, 'eval/score': 1.0}])
    assert not over_optimised(rows((None, 0.3, 1.0), (0.3, 0.1, None)))  # nothing could be scored
    # Bought for nothing: a higher score far from SFT, and quality where it was.
    told = over_optimised(rows((0.1, 0.3, 0.0), (0.3, 0.29, 2.0), (0.6, 0.31, 9.0)))
    assert 'from step 10 to 40' not in told and 'from step 10 to 30 the score rose and quality not by 0.02' in told
    assert not over_optimised(rows((0.1, 0.3, 0.0), (0.3, 0.29, 2.0), (0.6, 0.31, 0.9)))  # near SFT
    assert not over_optimised(rows((0.6, 0.3, 0.0), (0.3, 0.29, 2.0), (0.1, 0.31, 9.0)))  # for less


def test_what_is_said_of_over_optimisation_says_how_sure_it_is():
    def told(*figures):
        names = ('step', 'eval/score', 'eval/quality', 'eval/kl', 'eval/quality_error')
        return over_optimised([dict(zip(names, row)) for row in figures])

    start, middle = (-1, 0.1, 0.3, 0.0, 0.03), (24, 0.2, 0.5, 2.0, 0.04)
    sure = told(start, middle, (49, 0.6, 0.2, 9.0, 0.05))
    assert sure.startswith('over-optimised: from step 25 to 50, the worst of 3 spans, the score rose')
    assert 'standard errors of quality 0.040 and 0.050' in sure
    assert told(start, middle, (49, 0.6, 0.41, 9.0, 0.05)).startswith('perhaps over-optimised: from step 25 to 50')
    assert told(start, (24, 0.2, 0.31, 2.0, 0.04)).startswith(
        'perhaps over-optimised: from step 0 to 25 the score rose and'
    )


# Finished policies


@pytest.mark.parametrize(
    'policies, told',
    [
        ((), 'which policies'),
        (('micro_xs',), 'two or more'),
        (('micro_xs', 'micro_xs'), 'two policies have one name'),
    ],
)
def test_what_cannot_be_compared_is_said(policies, told, tmp_path):
    with pytest.raises(Mistake, match=told):
        bind(find('compare')(MICRO), {'policies': policies}).stages(tmp_path)


def test_sft_imitates_the_references_that_there_are(tmp_path):
    """And none of them: not an empty one."""
    said = lambda role, text: {'role': role, 'content': text}  # noqa: E731
    rows = [{'prompt': [said('user', f'question {i}')], 'completion': [said('assistant', 'so')]} for i in range(4)]
    lacking = [{'prompt': row['prompt'], 'completion': [said('assistant', ' ')]} for row in rows]
    for name, found in (('all', rows), ('some', rows[:3] + lacking[3:]), ('none', lacking)):
        (tmp_path / name).mkdir()
        files.write_rows(tmp_path / name / 'train.jsonl', found)

    def start(name):
        changes = {'data.source': str(tmp_path / name), 'sft.steps': 1, 'evaluation.judge': 'micro_l'}
        return arms.start(bind(find('helpful_direct')(MICRO), changes))

    for name, count in (('all', 4), ('some', 3)):
        stage = start(name)
        found = stage.referenced(loader.source(stage.source, 'train', 9, stage.task))
        assert [p.text for p in found] == [f'\n\nHuman: question {i}\n\nAssistant:' for i in range(count)]
        assert [one.name for one in stage.stages(tmp_path)] == ['sft']
    with pytest.raises(Mistake, match='none of 4 prompts has one .*sft=None'):
        start('none').stages(tmp_path)
    assert bind(start('none'), {'sft': None}).stages(tmp_path) == []


def test_raters_of_the_simulated_world_do_not_judge_other_prompts(tmp_path):
    files.write_rows(tmp_path / 'prompts.jsonl', [{'prompt': 'one'}, {'prompt': 'two'}])
    cfg = bind(
        find('compare')(MICRO), {'policies': ('micro_xs', 'micro_s'), 'prompts': str(tmp_path / 'prompts.jsonl')}
    )
    with pytest.raises(Mistake, match='knows the simulated world alone'):
        cfg.stages(tmp_path)
    judged = bind(cfg, {'evaluation.judge': 'micro_l'})
    assert judged.stages(tmp_path)[0].steps == 2


def test_people_rank_responses_that_are_there(tmp_path, capsys):
    """A run's responses, and rankings of them: no policy writes, lengths are those of what people saw."""
    cfg = bind(find('compare')(MICRO), {'data.test': 64, 'responses': str(tmp_path / 'responses.jsonl')})
    prompts = loader.source('micro_tldr', 'test', 64, 'summarization')[:40]
    texts = {'long': [' far too long a summary'] * 40, 'short': [' short'] * 40}
    responses.write(tmp_path / 'responses.jsonl', prompts, texts)
    best = ['long' if i % 4 else 'short' for i in range(40)]
    rows = [
        {'prompt_id': prompt.id, 'rater': 'ann', 'ranking': [name, *({'long', 'short'} - {name})]}
        for prompt, name in zip(prompts, best)
    ]
    files.write_rows(tmp_path / 'rankings.jsonl', rows)
    ranked = bind(cfg, {'rankings': str(tmp_path / 'rankings.jsonl')})
    (stage,) = ranked.stages(tmp_path / 'run')
    assert stage.steps == 40 and stage.models == {}
    judged = ranked.run(tmp_path / 'run')['comparisons']['long vs short']
    assert list(judged) == ['people', 'oracle']  # what is true of the prompts is known by their ids
    assert judged['people']['raw']['value'] == 0.75 and judged['people']['n'] == 40
    assert (judged['people']['mean_length_a'], judged['people']['mean_length_b']) == (23, 6)
    assert responses.read(tmp_path / 'run' / 'responses.jsonl') == responses.read(tmp_path / 'responses.jsonl')
    # Without rankings, the judge reads the same texts.
    assert list(cfg.run(tmp_path / 'other')['comparisons']['long vs short']) == ['raters', 'oracle']

    # Of some of them only: the others are not there at all.
    files.write_rows(tmp_path / 'rankings.jsonl', rows[:12])
    some = ranked.run(tmp_path / 'some')['comparisons']['long vs short']
    assert some['people']['n'] == some['oracle']['n'] == 12 and some['people']['unscorable'] == 0
    for wrong, told in (
        ({'ranking': ['long', 'shorrt']}, r"rankings\.jsonl:2: no policy 'shorrt' has responses; did you mean 'short'"),
        (
            {'prompt_id': 'micro/tst/1'},
            r"rankings\.jsonl:2: there is no response to a prompt 'micro/tst/1'; did you mean",
        ),
    ):
        files.write_rows(tmp_path / 'rankings.jsonl', [rows[0], rows[1] | wrong, *rows[2:]])
        with pytest.raises(Mistake, match=told):
            ranked.stages(tmp_path / 'run')
    texts = {'prompt': 'anything', 'a': ' one', 'b': ' two'}
    files.write_rows(tmp_path / 'responses.jsonl', [texts])
    with pytest.raises(Mistake, match='knows the simulated world alone, .*give people’s rankings'):
        cfg.stages(tmp_path / 'run')
    for changes, told in (
        ({'policies': ('micro_xs', 'micro_s')}, 'policies and prompts stay empty'),
        ({'responses': '', 'rankings': 'r.jsonl'}, 'name those, too, responses='),
    ):
        with pytest.raises(Mistake, match=told):
            bind(cfg, changes)


def test_prompts_are_named_as_in_rankings(tmp_path):
    """By any id, 0 too, else by their texts."""
    rows = [{'prompt_id': i, 'prompt': f'p{i}', 'a': 'one', 'b': 'two'} for i in (0, 1, None)]
    files.write_rows(tmp_path / 'r.jsonl', rows)
    prompts, _ = responses.read(tmp_path / 'r.jsonl')
    assert [prompt.id for prompt in prompts] == ['0', '1', 'pNone']
    files.write_rows(tmp_path / 'k.jsonl', [row | {'rater': 'ann', 'ranking': ['b', 'a']} for row in rows])
    assert rankings.judge(rankings.read(tmp_path / 'k.jsonl'), 'a', 'b')(prompts, [], []).tolist() == [0, 0, 0]


BESIDE = {
    'prompt_id': 3, 'id': 'x', 'generator': 'gpt', 'Model': 'm', 'annotator': 'ann', 'length': 7, 'score': 0.5,
    'tags': ['x'], 'meta': {'a': 'b'}, 'when': None,
}  # fmt: skip


def test_columns_beside_responses_are_no_policies_unless_they_are_named(tmp_path, capsys):
    rows = [{'prompt': f'p{i}', **BESIDE, 'prompt_id': i, 'b': 'two', 'a': 'one', 'source': 'same'} for i in range(3)]
    files.write_rows(tmp_path / 'r.jsonl', rows)
    told = []
    prompts, written = responses.read(tmp_path / 'r.jsonl', tell=told.append)
    assert written == {'b': ['two'] * 3, 'a': ['one'] * 3} and [prompt.id for prompt in prompts] == ['0', '1', '2']
    (line,) = told
    assert all(name in line for name in [*BESIDE, 'source', 'names=[…]'] if name != 'prompt_id')
    _, written = responses.read(tmp_path / 'r.jsonl', names=('a', 'generator'))
    assert written == {'a': ['one'] * 3, 'generator': ['gpt'] * 3}
    for wrong, near in (('generatr', 'generator'), ('score', "'source'")):
        with pytest.raises(Mistake, match=f'no column of responses .{wrong}.; did you mean .*{near}'):
            responses.read(tmp_path / 'r.jsonl', names=('a', wrong))
    files.write_rows(tmp_path / 'r.jsonl', [{'prompt': 'p', 'model': 'one', 'a': 'two'}])
    with pytest.raises(Mistake, match=r'two policies or more.*names=\[…\] takes one of model'):
        responses.read(tmp_path / 'r.jsonl')
    cfg = bind(find('compare')(MICRO), {'responses': str(tmp_path / 'r.jsonl'), 'names': ('a', 'model')})
    assert cfg.written()[1] == {'a': ['two'], 'model': ['one']}
    for name in ('model', 'Generator'):  # what is written is read back
        with pytest.raises(Mistake, match=f"no policy can be named '{name}'"):
            bind(find('compare')(MICRO), {'policies': ('micro_xs', 'micro_s'), 'names': ('a', name)}).named()


def test_responses_and_rankings_meet_by_one_key(tmp_path):
    """A key that stands twice is named with both lines; a prompt that is asked twice has two."""
    path = tmp_path / 'r.jsonl'
    say = {'prompt': 'p', 'a': 'one', 'b': 'two'}
    for first, second in ((7, 7.0), ('x', 'x')):
        files.write_rows(
            path, [say | {'prompt_id': first}, {'prompt': 'q', 'a': '', 'b': ''}, say | {'prompt_id': second}]
        )
        with pytest.raises(Mistake, match=rf"r\.jsonl:3: the prompt_id '{first}' stands in .*r\.jsonl:1 already"):
            responses.read(path)
    files.write_rows(path, [say, say | {'prompt': 'q', 'prompt_id': None}, say | {'a': 'other', 'prompt_id': math.nan}])
    prompts, written = responses.read(path)
    assert [prompt.id for prompt in prompts] == ['p#1', 'q', 'p#2'] and written['a'] == ['one', 'one', 'other']
    same = [Prompt('p', 'x'), Prompt('q', 'y'), Prompt('p', 'x')]
    responses.write(path, same, written)
    assert [(prompt.text, prompt.id) for prompt in responses.read(path)[0]] == [('p', 'x#1'), ('q', 'y'), ('p', 'x#2')]

    prompts = [Prompt('p', '1'), Prompt('p', '2'), Prompt('q', '3')]

    def ranked(*rows):
        files.write_rows(tmp_path / 'k.jsonl', [{'rater': 'ann', 'ranking': ['a', 'b'], **row} for row in rows])
        return rankings.read(tmp_path / 'k.jsonl', prompts=prompts).prompts

    assert ranked({'prompt_id': 1.0}, {'prompt': 'q'}, {'prompt_id': '2', 'prompt': 'p'}) == ('1', '3', '2')
    for rows, told in (
        (
            [{'prompt': 'q'}, {'prompt_id': 3}],
            r'k\.jsonl:2: rater .ann. has ranked this prompt before, in .*k\.jsonl:1',
        ),
        ([{'prompt_id': 3, 'rater': 1}, {'prompt_id': 3, 'rater': 1.0}], r'k\.jsonl:2: rater .1. has ranked'),
        ([{'prompt': 'p'}], r"k\.jsonl:1: there are responses to this prompt by the ids '1', '2'"),
        ([{'prompt_id': 3, 'prompt': 'p'}], r"k\.jsonl:1: the prompt '3' is 'q', not 'p'"),
        ([{'prompt_id': 3, 'rater': math.nan}], r"k\.jsonl:1: no column 'rater'"),
    ):
        with pytest.raises(Mistake, match=told):
            ranked(*rows)
    files.write_rows(
        tmp_path / 'k.jsonl',
        [{'rater': 'ann', 'ranking': ['a', 'b'], **by} for by in ({'prompt': 'q'}, {'prompt_id': 3})],
    )
    with pytest.raises(Mistake, match="'3' was ranked by its id and by its text"):
        rankings.judge(rankings.read(tmp_path / 'k.jsonl'), 'a', 'b')(prompts, [], [])


@pytest.mark.parametrize(
    'row, told',
    [
        ({'prompt': 'x', 'a': 'one'}, 'two policies or more'),
        ({'a': 'one', 'b': 'two'}, 'a row has a "prompt"'),
        ({'prompt': 'x', 'a': 'one', 'c': 'two'}, 'responses of a, c; in the rows before, of a, b'),
        ({'prompt': 'x', 'a': 'one', 'b': None}, 'the response of b is a text, not'),
    ],
)
def test_a_file_of_responses_that_is_none_is_refused(row, told, tmp_path):
    files.write_rows(tmp_path / 'r.jsonl', [{'prompt': 'p', 'a': 'one', 'b': 'two'}, row])
    with pytest.raises(Mistake, match=rf'r\.jsonl:2: .*{told}'):
        responses.read(tmp_path / 'r.jsonl')
    with pytest.raises(Mistake, match="no policy can be named 'prompt'"):
        responses.write(tmp_path / 'w.jsonl', [], {'prompt': [], 'a': []})


def test_all_policies_get_the_prompts_that_the_shortest_can_read(
    tmp_path, micro_tokenizer, random_params, monkeypatch, capsys
):
    sizes = transformer.Config(vocab=1152, layers=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8, max_length=512)
    for name, most in (('long', 512), ('short', 90), ('shorter', 80)):
        hf.save(LM(replace(sizes, max_length=most), random_params(sizes), micro_tokenizer, name), tmp_path / name)
    named = tuple(str(tmp_path / name) for name in ('long', 'short', 'shorter'))
    cfg = bind(
        find('compare')(MICRO), {'policies': named, 'max_new_tokens': 10, 'data.test': 32, 'evaluation.prompts': 32}
    )
    seen = {}

    def respond(lm: LM, prompts: list[Prompt], *_) -> list[str]:
        seen[lm.name], rng = prompts, random.Random(lm.name)
        return [tasks.candidate(prompt, rng) for prompt in prompts]

    monkeypatch.setattr(stages, 'respond', respond)
    result = cfg.run(tmp_path / 'run')
    before, (after, *others) = cfg.asked(), seen.values()
    assert list(seen) == list(named) and others == [after, after]
    lengths = [[len(row) for row in micro_tokenizer.encode([one.text for one in some])] for some in (before, after)]
    assert max(lengths[1]) <= 70
    assert [one == other for one, other in zip(before, after)] == [length <= 70 for length in lengths[0]]
    assert 0 < result['shortened'] == sum(length > 70 for length in lengths[0]) < 32
    told = capsys.readouterr().out
    assert f'{result["shortened"]} of 32 prompts were shortened, for all policies alike' in told
    # Three policies at once: so they are ranked, too.
    w = result['concordance']
    assert w['simulated'] and 1 / 3 < w['low'] < w['value'] < w['high'] < 1 and w['n'] == 32
    assert f'3 SIMULATED raters rank 3 responses to a prompt: Kendall’s W {w["value"]:.2f}' in told
    assert cfg.fitted(before) == replace(cfg, policies=named[::-1]).fitted(before) == (after, result['shortened'])
    assert replace(cfg, policies=named[:1] * 2, names=('a', 'b')).fitted(before) == (before, 0)
    (other,), count = cfg.fitted([Prompt('no post ' * 80, 'x')])
    assert count == 1 and other.text.endswith('no post ' * 9) and len(micro_tokenizer.encode([other.text])[0]) <= 70
    with pytest.raises(Mistake, match='shorter was made for 80 tokens; max_new_tokens = 80'):
        replace(cfg, max_new_tokens=80).fitted(before)


def test_a_run_with_other_fields_is_named_where_the_plain_one_is_not_there(tmp_path):
    there = tmp_path / 'tldr_rlaif-micro-s0-1a2b3c'
    there.mkdir()
    (there / 'config.gin').write_text('', encoding='utf-8')
    with pytest.raises(Mistake, match='no such run; there is .*/tldr_rlaif-micro-s0-1a2b3c$'):
        comparison.exported(str(tmp_path / 'tldr_rlaif-micro-s0'))
    cfg = bind(find('compare')(MICRO), {'responses': str(tmp_path / 'tldr_rlaif-micro-s0/responses.jsonl')})
    with pytest.raises(Mistake, match='there is .*/tldr_rlaif-micro-s0-1a2b3c/responses.jsonl$'):
        cfg.stages(tmp_path / 'run')


def test_a_run_that_is_not_finished_is_not_compared(tmp_path):
    (tmp_path / 'config.gin').write_text('', encoding='utf-8')
    with pytest.raises(Mistake, match='not finished'):
        comparison.exported(str(tmp_path))
    (tmp_path / 'result.json').write_text('{}', encoding='utf-8')
    with pytest.raises(Mistake, match='no policy of its own'):
        comparison.exported(str(tmp_path))
    (tmp_path / 'export').mkdir()
    assert comparison.exported(str(tmp_path)) == tmp_path / 'export'
    assert comparison.exported('micro_xs') == 'micro_xs'


@pytest.mark.parametrize(
    'policies, names',
    [
        (('runs/a/export', 'runs/b/export/'), ['a', 'b']),
        (('runs/a', 'Qwen/Qwen3-4B'), ['a', 'Qwen3-4B']),
        (('a/policies/RLAIF/export', 'a/policies/RLHF'), ['RLAIF', 'RLHF']),
        (('seed0/policies/RLAIF', 'seed1/policies/RLAIF'), ['seed0', 'seed1']),
        (('micro_xs', 'micro_xs'), ['micro_xs', 'micro_xs']),  # nothing does
    ],
)
def test_policies_are_called_by_the_folders_that_tell_them_apart(policies, names):
    assert comparison.called(policies) == names


@pytest.mark.parametrize('own', [True, False])
def test_prompts_of_ones_own_are_no_simulated_world_and_training_in_one_says_so(own, tmp_path, monkeypatch, capsys):
    said, run = tmp_path / 'prompts.jsonl', tmp_path / 'trained'
    said.write_text('{"prompt": "\\n\\nHuman: why?\\n\\nAssistant:"}\n' * 4, encoding='utf-8')
    run.mkdir()
    row = {'step': 0, 'eval/score': 0.5, 'eval/quality': 0.5, 'eval/kl': 0.1}
    (run / 'metrics.jsonl').write_text(f'{json.dumps(row)}\n', encoding='utf-8')
    more = {'prompts': str(said), 'evaluation.judge': 'micro_l'} if own else {'evaluation.prompts': 4}
    cfg = bind(find('compare')(MICRO), {'policies': ('micro_xs', 'micro_s'), **more})
    monkeypatch.setattr(stages, 'judge_model', lambda *_: None)
    monkeypatch.setattr(stages, 'make_judge', lambda *_: lambda prompts, a, b: np.full(len(prompts), 0.5))
    plan.check(cfg, tmp_path / 'run')
    plan.show('compare', cfg, tmp_path / 'run')
    told = capsys.readouterr().out
    assert ('SIMULATED' in told) != own and ('dialogues, and task' in told) == own and ('task=helpful' in told) == own
    prompts = list(cfg.asked())
    comparison.report(cfg, tmp_path / 'run', prompts, {'a': ['x'] * 4, 'b': ['y'] * 4}, {'a': run})
    titles = [
        line for line in capsys.readouterr().out.splitlines() if 'their texts' in line or 'training ended' in line
    ]
    assert ['SIMULATED' in title for title in titles] == [not own, True]
