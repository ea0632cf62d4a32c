"""Arms: a policy, or a reward model, by what it learned from; the names are those of the paper's tables.

The functions turn the config of an experiment, `Policies` or `RewardModels`, and an arm's name into the stages that make
it. Two arms differ in nothing but their feedback.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from experiments.scales import Scale, of_task
from experiments.stages import Labelled, Optimised, Rewarded, Supervised
from rlaif_jax.config import bind, digest, parse_binding
from rlaif_jax.models import hf

# What an arm learns from: votes of people, a labeler's preferences, both, or a labeler's ratings; and who that labeler is.
ARMS = {
    'RLHF': ('human', ''),
    'RLAIF': ('ai', 'labeler'),
    'same-size RLAIF': ('ai', 'same_size_labeler'),
    'base-prompt RLAIF': ('ai', 'labeler'),  # asked by the simplest technique (App. N)
    'RLHF + RLAIF': ('both', 'labeler'),  # App. K
    'd-RLAIF': ('ratings', 'same_size_labeler'),
}

# Win rates by human raters, raw and at equal length, percent (Tables 1, 8, 10; §4).
WIN_RATES: dict[str, dict[tuple[str, str], tuple[int, int | None]]] = {
    'summarization': {
        ('RLAIF', 'SFT'): (71, 59),
        ('RLHF', 'SFT'): (73, 61),
        ('RLAIF', 'RLHF'): (50, 47),
        ('same-size RLAIF', 'SFT'): (68, 59),
        ('d-RLAIF', 'SFT'): (74, 65),
        ('d-RLAIF', 'same-size RLAIF'): (60, 56),
        ('base-prompt RLAIF', 'SFT'): (63, 59),
        ('base-prompt RLAIF', 'RLAIF'): (41, 45),
        ('RLHF + RLAIF', 'SFT'): (71, 61),
        ('RLHF + RLAIF', 'RLHF'): (48, 46),
    },
    'helpful': {
        ('RLAIF', 'SFT'): (63, 61),
        ('RLHF', 'SFT'): (64, 61),
        ('RLAIF', 'RLHF'): (52, 50),
        ('d-RLAIF', 'SFT'): (66, None),
    },
    'harmless': {},
}
# Shares of harmless responses by human raters, raw and at SFT's mean length, percent (Table 2, App. J).
HARMLESS_RATES = {'SFT': (64, 64), 'RLHF': (76, 78), 'RLAIF': (88, 91)}
# Accuracy of reward models on held-out votes of people, percent (Tables 5 to 7).
ACCURACIES = {
    'summarization': {'RLHF': 79.3, 'RLAIF': 74.2, 'base-prompt RLAIF': 77.9, 'same-size RLAIF': 66.4},
    'helpful': {'RLHF': 76.0, 'RLAIF': 67.8},
    'harmless': {'RLHF': 72.1, 'RLAIF': 69.7},
}


def fields(scale: Scale, task: str, seed: int, names: tuple[str, ...]) -> dict[str, Any]:
    """The fields that reward models and policies have in common. Dialogue has no SFT: its policy is tuned already."""
    asked, kinds = {ARMS[arm][1] for arm in names}, {ARMS[arm][0] for arm in names}
    summaries = task == 'summarization'
    return {
        'task': task,
        'arms': names,
        'policy': scale.xs if summaries else scale.labeler,
        'labeler': scale.l if 'labeler' in asked else '',
        'same_size_labeler': scale.labeler if 'same_size_labeler' in asked else '',
        'data': scale.tldr if summaries else getattr(scale, task),
        'sft': replace(scale.sft, seed=seed) if summaries else None,
        'label': replace(of_task(scale, 'label', task), task=task) if kinds & {'ai', 'both'} else None,
        'reward_model': replace(of_task(scale, 'reward_model', task), seed=seed) if kinds - {'ratings'} else None,
        'reward_model_from_base': summaries and bool(kinds & {'human', 'both'}),
        'mesh': scale.mesh,
        'dtype': scale.dtype,
    }


def check(cfg: Any) -> None:
    """Raises ValueError for an arm that there is not, and for a labeler that no arm asks: it would change nothing."""
    unknown = [arm for arm in cfg.arms if arm not in ARMS]
    if unknown or not cfg.arms:
        raise ValueError(f'arms = {cfg.arms}: each is one of {", ".join(map(repr, ARMS))}')
    for name in ('labeler', 'same_size_labeler'):
        asking = [arm for arm in cfg.arms if ARMS[arm][1] == name]
        if asking and not getattr(cfg, name):
            raise ValueError(f'{name} is empty; {asking[0]} needs one')
        if getattr(cfg, name) and not asking:
            other = {'labeler': 'same_size_labeler', 'same_size_labeler': 'labeler'}[name]
            asked = f'; {cfg.arms[0]} asks {other}' if ARMS[cfg.arms[0]][1] else ''
            raise ValueError(f'{name} = {getattr(cfg, name)!r} would change nothing{asked}')
    kinds = {ARMS[arm][0] for arm in cfg.arms}
    for name, needed in {
        'label': {'ai', 'both'},
        'reward_model': {'human', 'ai', 'both'},
        'rating': {'ratings'},
        'human_share': {'both'},
    }.items():
        if hasattr(cfg, name) and (getattr(cfg, name) is not None) != bool(kinds & needed):
            raise ValueError(f'{name}: {"needed by" if kinds & needed else "says nothing about"} {", ".join(cfg.arms)}')
    if 'both' in kinds and not 0 <= cfg.human_share <= 1:
        raise ValueError(f'human_share is a share of the pairs, from 0 to 1, not {cfg.human_share}')
    if cfg.reward_model_from_base and (cfg.sft is None or not kinds & {'human', 'both'}):
        raise ValueError('reward_model_from_base is about votes of people, and says nothing where there is no SFT')


def each(cfg: Any) -> Iterator[tuple[str, Any, str]]:
    """Name, config and arm of everything that is compared: every variant, a binding, is tried on every arm."""
    for arm in cfg.arms:
        for variant in cfg.variants or ('',):
            changed = bind(replace(cfg, variants=()), dict([parse_binding(variant)])) if variant else cfg
            yield ', '.join([arm] * (len(cfg.arms) > 1 or not variant) + [variant] * bool(variant)), changed, arm


def start(cfg: Any) -> Supervised:
    """Where all arms start."""
    reinforced = getattr(cfg, 'reinforce', None)
    return Supervised(
        policy=cfg.policy,
        fingerprint=hf.fingerprint(cfg.policy),
        task=cfg.task,
        source=cfg.data.source,
        train=cfg.data.train,
        max_prompt=reinforced.max_prompt if reinforced else cfg.reward_model.max_prompt,
        max_new_tokens=reinforced.max_new_tokens if reinforced else cfg.reward_model.max_response,
        sft=cfg.sft,
        dtype=cfg.dtype,
    )


def counts(cfg: Any, arm: str) -> tuple[int, int]:
    """How many pairs with people's votes, and how many with labels, the reward model of an arm learns from.

    Of both, `human_share` are people's, and there are `data.pairs` of the kind that is more: the paper's equal parts at
    ½, what RLAIF and RLHF have at 0 and 1.
    """
    kind, _ = ARMS[arm]
    share = cfg.human_share if kind == 'both' else float(kind == 'human')
    human, ai = (round(cfg.data.pairs * part / max(share, 1 - share)) for part in (share, 1 - share))
    return human, ai


def rewarded(cfg: Any, arm: str) -> Rewarded:
    """The reward model of an arm. That of people's votes may start from the base model (App. G)."""
    human, ai = counts(cfg, arm)
    return Rewarded(
        start=start(cfg),
        from_base=cfg.reward_model_from_base and ARMS[arm][0] == 'human',
        task=cfg.task,
        source=cfg.data.source,
        human=human,
        ai=labelled(cfg, arm) if ai else None,
        held_out=cfg.data.held_out,
        reward_model=cfg.reward_model,
        dtype=cfg.dtype,
    )


def labelled(cfg: Any, arm: str) -> Labelled:
    """The labels of an arm: of the data's own pairs or, beside people's votes, of pairs that RLHF and SFT write."""
    kind, role = ARMS[arm]
    label = replace(cfg.label, task=cfg.task)
    return Labelled(
        labeler=getattr(cfg, role),
        fingerprint=hf.fingerprint(getattr(cfg, role)),
        label=replace(label, technique='base_0shot') if arm == 'base-prompt RLAIF' else label,
        source=cfg.data.source,
        pairs=counts(cfg, arm)[1],
        writers=digest(optimised(cfg, 'RLHF')) if kind == 'both' else '',
        dtype=cfg.dtype,
    )


def optimised(cfg: Any, arm: str) -> Optimised:
    """The policy of an arm."""
    kind, role = ARMS[arm]
    rated = kind == 'ratings'
    return Optimised(
        start=start(cfg),
        rewarded=None if rated else rewarded(cfg, arm),
        labeler=getattr(cfg, role) if rated else '',
        fingerprint=hf.fingerprint(getattr(cfg, role)) if rated else '',
        rating=replace(cfg.rating, task=cfg.task) if rated else None,
        source=cfg.data.source,
        train=cfg.data.train,
        validation=cfg.data.validation,
        reinforce=cfg.reinforce,
        selector=cfg.evaluation.selector if cfg.reinforce.candidates > 1 else '',
        rule=cfg.evaluation.rule if cfg.reinforce.candidates > 1 else 'averaged',
        dtype=cfg.dtype,
    )
