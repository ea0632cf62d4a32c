"""Laws of arms: one table says what each needs, and two differ in nothing but their feedback."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import arms, experiments, find, stages
from experiments.policies import policies
from experiments.scales import scale
from rlaif_jax.config import Mistake, bind, digest
from rlaif_jax.data import loader

MICRO = scale('micro')


def at(cfg, root: Path) -> dict[str, list[Path]]:
    """The folders of the stages of a config, by the kind of stage."""
    found: dict[str, list[Path]] = {}
    for stage in cfg.lines(root / 'run'):
        found.setdefault(stage.name, []).append(stage.folder)
    return found


@pytest.mark.parametrize(
    'bindings, told',
    [
        ({'arms': ('RLAF',)}, r"arms = \('RLAF',\): .*'RLHF', 'RLAIF'"),
        ({'arms': ()}, r"arms = \(\): .*'RLHF', 'RLAIF'"),
        ({'labeler': 'micro_s'}, "labeler = 'micro_s' .*d-RLAIF .*same_size_labeler"),
        ({'same_size_labeler': ''}, 'same_size_labeler .*d-RLAIF'),
        ({'arms': ('RLHF',), 'same_size_labeler': ''}, 'reward_model: .* RLHF'),
        ({'reward_model_from_base': True}, 'reward_model_from_base .*SFT'),
    ],
)
def test_a_config_that_would_not_do_what_it_says_is_refused(bindings, told):
    with pytest.raises(Mistake, match=told):
        bind(find('tldr_direct')(MICRO), bindings)


@pytest.mark.parametrize('name', arms.ARMS)
def test_a_config_has_what_its_arms_need_and_nothing_else(name):
    """One table says so, of what an experiment is made with and of what is refused."""
    cfg, fields = policies(MICRO, 'summarization', 0, name), ('label', 'reward_model', 'rating', 'human_share')
    given = {field for field in fields if getattr(cfg, field) is not None}
    given |= {role for role in ('labeler', 'same_size_labeler') if getattr(cfg, role)}
    assert given == arms.ARMS[name].needs
    for field in fields:
        other = None if field in given else getattr(policies(MICRO, 'summarization', 0, *arms.ARMS), field)
        with pytest.raises(ValueError, match=f'^{field}: '):
            replace(cfg, **{field: other})


def test_an_arm_carries_the_configs_of_its_feedback_and_no_others():
    for name, arm in arms.ARMS.items():
        (one,) = policies(MICRO, 'summarization', 0, name).learners()
        rates, kinds = isinstance(one.policy, stages.ByRatings), set(arm.feedback.split(' and '))
        made = None if rates else one.policy.rewarded
        found = (
            {'ratings'} if rates else {kind for kind, there in (('votes', made.human), ('labels', made.ai)) if there}
        )
        assert found == kinds
        asked = one.policy if rates else made.ai
        labeler = {'': None, 'labeler': MICRO.l, 'same_size_labeler': MICRO.labeler}[arm.labeler]
        assert getattr(asked, 'labeler', None) == labeler
        assert rates or not asked or asked.label.technique == (arm.technique or MICRO.label.technique)
        assert bool(one.writer) == (len(kinds) == 2) and (not one.writer or asked.writers == digest(one.writer))


def test_arms_differ_in_their_feedback_alone():
    own = {'rewarded', 'labeler', 'fingerprint', 'rating'}
    made = [vars(one.policy) for one in find('tldr_table1')(MICRO).learners()]
    assert len(made) == 4 and all(own & one.keys() for one in made)
    for one in made:
        assert {name: one[name] for name in one.keys() - own} == {name: made[0][name] for name in made[0].keys() - own}


def test_variants_differ_in_what_they_bind(tmp_path):
    cfg = find('rl_kl')(MICRO)
    names, configs, _ = zip(*arms.each(cfg))
    assert names[0] == 'reinforce.beta=0.0' and [one.reinforce.beta for one in configs] == [0.0, 0.01, 0.05, 0.2, 0.5]
    assert len(at(cfg, tmp_path)['reinforce']) == 5 and len(at(cfg, tmp_path)['reward model']) == 1
    with pytest.raises(Mistake, match=r'reinforce\.betta: .* reinforce\.beta\b'):
        list(arms.each(replace(cfg, variants=('reinforce.betta=0.1',))))


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


def test_dialogue_starts_from_a_model_that_is_tuned_already(tmp_path):
    for name in ('helpful_rlaif', 'helpful_direct', 'harmless_rlaif'):
        cfg = find(name)(MICRO)
        assert cfg.sft is None and 'sft' not in at(cfg, tmp_path)


@pytest.mark.parametrize(
    'share, human, ai', [(0.0, 0, 300), (0.25, 100, 300), (0.5, 300, 300), (0.75, 300, 100), (1.0, 300, 0)]
)
def test_votes_and_labels_are_mixed_at_their_share(share, human, ai, tmp_path, monkeypatch):
    """What is trained on, with stand-ins for a labeler and for training."""
    cfg = bind(find('tldr_combined')(MICRO), {'human_share': share, 'data.pairs': 300})
    made, seen = arms.learner(cfg, '', arms.ARMS['RLHF + RLAIF']).policy.rewarded, []
    labels = loader.pairs('micro_tldr', cfg.task, 'test', ai)
    monkeypatch.setattr(stages.Supervised, 'run', lambda *_, **__: None)
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
    made = lambda cfg, name: arms.learner(cfg, '', arms.ARMS[name]).policy.rewarded  # noqa: E731
    labels, plain = made(ai, 'RLHF + RLAIF'), made(find('tldr_rlaif')(MICRO), 'RLAIF')
    assert (labels.human, labels.ai.pairs) == (plain.human, plain.ai.pairs)
    # But for where it starts: votes and labels together are learned from SFT.
    alone = replace(made(human, 'RLHF'), from_base=False)
    assert made(human, 'RLHF + RLAIF') == alone and 'labels' not in at(human, tmp_path)
    of_both, (of_ai, held_out) = at(both, tmp_path)['labels'], at(ai, tmp_path)['labels']
    assert of_both == [of_ai] and held_out != of_ai  # as many, of the same pairs; and labels that choose
    assert both == cfg and len({*map(str, (ai, both, human))}) == 3


@pytest.mark.parametrize(
    'name, share, told',
    [
        ('tldr_combined', 1.5, r'human_share .* 0 to 1.* 1\.5'),
        ('tldr_combined', -0.1, r'human_share .* 0 to 1.* -0\.1'),
        ('tldr_combined', None, 'human_share: .* RLHF [+] RLAIF'),
        ('tldr_rlaif', 0.5, 'human_share: .* RLAIF$'),
    ],
)
def test_a_share_that_is_none_is_refused(name, share, told):
    with pytest.raises(Mistake, match=told):
        bind(find(name)(MICRO), {'human_share': share})
