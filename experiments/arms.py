"""Arms: a policy, or a reward model, by what it learned from; the names are those of the paper's tables.

`ARMS` says what each arm learns from and whom it asks; all else follows from that: which fields a config needs, how many
pairs there are of each kind, which stages are made. Two arms differ in nothing but their feedback.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

from experiments.label import Asking
from experiments.plan import variants
from experiments.scales import Data, Dtype, Evaluation, Scale, of_task
from experiments.stages import ByModel, ByRatings, Labelled, Optimised, Rewarded, Supervised
from rlaif_jax.config import digest
from rlaif_jax.labeling import direct, labelers, preference
from rlaif_jax.models import hf
from rlaif_jax.training import reinforce, reward_model, sft

Feedback = Literal['votes', 'labels', 'votes and labels', 'ratings']  # of people, or of a labeler
NEEDED: dict[Feedback, set[str]] = {  # the fields of a config that say something about it, and must
    'votes': {'reward_model'},
    'labels': {'label', 'reward_model'},
    'votes and labels': {'label', 'reward_model', 'human_share'},
    'ratings': {'rating'},
}


@dataclass(frozen=True)
class Arm:
    """One row of the paper's tables."""

    name: str
    feedback: Feedback
    labeler: Literal['', 'labeler', 'same_size_labeler'] = ''  # the field of a config that names whom it asks
    technique: str = ''  # how it asks; '' as the config says
    # What the paper found. Preferred to whom by human raters, in percent, raw and at equal length (Tables 1, 8, 10; §4).
    preferred: Mapping[str, Mapping[str, tuple[int, int | None]]] = field(default_factory=dict)
    # The share of harmless responses by human raters, raw and at SFT's mean length, percent (Table 2, App. J).
    harmless: tuple[int, int] | None = None
    # How often its reward model agrees with held-out votes of people, percent (Tables 5 to 7).
    accuracy: Mapping[str, float] = field(default_factory=dict)

    @property
    def votes(self) -> bool:
        """Whether it learns from votes of people."""
        return self.feedback in ('votes', 'votes and labels')

    @property
    def needs(self) -> set[str]:
        """The fields of a config that say something about it, and must."""
        return NEEDED[self.feedback] | {self.labeler} - {''}


ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            'RLHF', 'votes', harmless=(76, 78),
            preferred={'summarization': {'SFT': (73, 61)}, 'helpful': {'SFT': (64, 61)}},
            accuracy={'summarization': 79.3, 'helpful': 76.0, 'harmless': 72.1},
        ),
        Arm(
            'RLAIF', 'labels', 'labeler', harmless=(88, 91),
            preferred={
                'summarization': {'SFT': (71, 59), 'RLHF': (50, 47)},
                'helpful': {'SFT': (63, 61), 'RLHF': (52, 50)},
            },
            accuracy={'summarization': 74.2, 'helpful': 67.8, 'harmless': 69.7},
        ),
        Arm(
            'same-size RLAIF', 'labels', 'same_size_labeler',
            preferred={'summarization': {'SFT': (68, 59)}}, accuracy={'summarization': 66.4},
        ),
        Arm(  # asked by the simplest technique (App. N)
            'base-prompt RLAIF', 'labels', 'labeler', 'base_0shot',
            preferred={'summarization': {'SFT': (63, 59), 'RLAIF': (41, 45)}}, accuracy={'summarization': 77.9},
        ),
        Arm(  # App. K
            'RLHF + RLAIF', 'votes and labels', 'labeler',
            preferred={'summarization': {'SFT': (71, 61), 'RLHF': (48, 46)}},
        ),
        Arm(
            'd-RLAIF', 'ratings', 'same_size_labeler',
            preferred={
                'summarization': {'SFT': (74, 65), 'same-size RLAIF': (60, 56)},
                'helpful': {'SFT': (66, None)},
            },
        ),
    )
}  # fmt: skip
TASKS = ('summarization', 'helpful', 'harmless')
SFT_HARMLESS = (64, 64)  # the share of SFT's own responses (Table 2, App. J)


def published(task: str) -> dict[tuple[str, str], tuple[int, int | None]]:
    """The paper's win rates: (one, other) → how often it is preferred, raw and at equal length, %. Both ways round."""
    found = {(arm.name, other): rate for arm in ARMS.values() for other, rate in arm.preferred.get(task, {}).items()}
    return found | {(b, a): tuple(rate and 100 - rate for rate in rates) for (a, b), rates in found.items()}


def needed(names: Iterable[str]) -> set[str]:
    """The fields of a config that say something about any of these arms."""
    return set().union(*(ARMS[name].needs for name in names))


class Experiment(Protocol):
    """What arms read of the config of an experiment, `Policies` or `RewardModels`."""

    task: str
    arms: tuple[str, ...]
    policy: str
    labeler: str
    same_size_labeler: str
    data: Data
    sft: sft.Config | None
    label: preference.Config | None
    rating: direct.Config | None
    reward_model: reward_model.Config | None
    reward_model_from_base: bool
    human_share: float | None
    variants: tuple[str, ...]
    dtype: Dtype

    def lengths(self) -> tuple[int, int]:
        """Tokens of a prompt, and of a response, at most."""


class PolicyExperiment(Experiment, Protocol):
    """The same of `Policies`."""

    reinforce: reinforce.Config
    evaluation: Evaluation


E = TypeVar('E', bound=Experiment)


def fields(scale: Scale, task: str, seed: int, names: tuple[str, ...]) -> dict[str, Any]:
    """The fields that reward models and policies have in common. Dialogue has no SFT: its policy is tuned already."""
    asked, summaries = needed(names), task == 'summarization'
    return {
        'task': task,
        'arms': names,
        'policy': scale.xs if summaries else scale.labeler,
        'labeler': scale.l if 'labeler' in asked else '',
        'same_size_labeler': scale.labeler if 'same_size_labeler' in asked else '',
        'data': scale.tldr if summaries else getattr(scale, task),
        'sft': replace(scale.sft, seed=seed) if summaries else None,
        'label': replace(of_task(scale, 'label', task), task=task) if 'label' in asked else None,
        'reward_model': replace(of_task(scale, 'reward_model', task), seed=seed) if 'reward_model' in asked else None,
        'reward_model_from_base': summaries and any(ARMS[name].votes for name in names),
        'mesh': scale.mesh,
        'dtype': scale.dtype,
    }


def check(cfg: Experiment) -> None:
    """Raises ValueError for an arm that there is not, and for a field that no arm needs: it would change nothing."""
    if not cfg.arms or not {*cfg.arms} <= {*ARMS}:
        raise ValueError(f'arms = {cfg.arms}: each is one of {", ".join(map(repr, ARMS))}')
    own = [ARMS[name] for name in cfg.arms]
    for role, named in (('labeler', cfg.labeler), ('same_size_labeler', cfg.same_size_labeler)):
        asking = [arm.name for arm in own if arm.labeler == role]
        if asking and not named:
            raise ValueError(f'{role} is empty; {asking[0]} needs one')
        if named and not asking:
            asked = f'; {own[0].name} asks {own[0].labeler}' if own[0].labeler else ''
            raise ValueError(f'{role} = {named!r} would change nothing{asked}')
    given = {'label': cfg.label, 'reward_model': cfg.reward_model, 'rating': cfg.rating, 'human_share': cfg.human_share}
    for name, value in given.items():
        if (value is not None) != (name in needed(cfg.arms)):
            raise ValueError(f'{name}: {"needed by" if value is None else "says nothing about"} {", ".join(cfg.arms)}')
    if cfg.human_share is not None and not 0 <= cfg.human_share <= 1:
        raise ValueError(f'human_share is a share of the pairs, from 0 to 1, not {cfg.human_share}')
    if cfg.reward_model_from_base and (cfg.sft is None or not any(arm.votes for arm in own)):
        raise ValueError('reward_model_from_base is about votes of people, and says nothing where there is no SFT')


def each(cfg: E) -> Iterator[tuple[str, E, Arm]]:
    """Name, config and arm of everything that is compared: every variant, a binding, is tried on every arm."""
    for name in cfg.arms:
        for variant, changed in variants(cfg):
            parts = [name] * (len(cfg.arms) > 1 or not variant) + [variant] * bool(variant)
            yield ', '.join(parts), changed, ARMS[name]


# An arm as the stages of an experiment


def start(cfg: Experiment) -> Supervised:
    """Where all arms start."""
    most_prompt, most_response = cfg.lengths()
    return Supervised(
        policy=cfg.policy,
        fingerprint=hf.fingerprint(cfg.policy),
        task=cfg.task,
        source=cfg.data.source,
        train=cfg.data.train,
        max_prompt=most_prompt,
        max_new_tokens=most_response,
        sft=cfg.sft,
        dtype=cfg.dtype,
    )


def rewarded(cfg: Experiment, arm: Arm, writer: Optimised | None = None) -> Rewarded:
    """What makes the reward model of an arm. Of votes and labels, `human_share` are people's, and there are `data.pairs` of
    the kind that is more: the paper's equal parts at ½, what RLAIF and RLHF have at 0 and 1. Labels are of pairs that
    the `writer` writes, and SFT (App. K); without one, of the data's own.
    """
    share = {'votes': 1.0, 'labels': 0.0}.get(arm.feedback, cfg.human_share)
    human, ai = (round(cfg.data.pairs * part / max(share, 1 - share)) for part in (share, 1 - share))
    return Rewarded(
        start=start(cfg),
        from_base=cfg.reward_model_from_base and arm.feedback == 'votes',
        task=cfg.task,
        source=cfg.data.source,
        human=human,
        ai=labelled(cfg, arm, ai, digest(writer) if writer else '') if ai else None,
        held_out=cfg.data.held_out,
        reward_model=cfg.reward_model,
        dtype=cfg.dtype,
    )


def labelled(cfg: Experiment, arm: Arm, pairs: int, writers: str) -> Labelled:
    """What has the labeler of an arm label so many training pairs."""
    return Labelled(
        labeler=getattr(cfg, arm.labeler),
        fingerprint=labelers.fingerprint(getattr(cfg, arm.labeler)),
        label=replace(cfg.label, task=cfg.task, technique=arm.technique or cfg.label.technique),
        source=cfg.data.source,
        split='train',
        pairs=pairs,
        writers=writers,
        dtype=cfg.dtype,
    )


def optimised(cfg: PolicyExperiment, arm: Arm, writer: Optimised | None = None) -> Optimised:
    """What makes the policy of an arm, by its ratings or by its reward model; `writer` as in `rewarded`."""
    several = cfg.reinforce.candidates > 1
    common = {
        'start': start(cfg),
        'source': cfg.data.source,
        'train': cfg.data.train,
        'validation': cfg.data.validation,
        'reinforce': cfg.reinforce,
        'selector': cfg.evaluation.selector if several else '',
        'rule': cfg.evaluation.rule if several else 'averaged',
        'dtype': cfg.dtype,
    }
    if arm.feedback != 'ratings':
        return ByModel(rewarded=rewarded(cfg, arm, writer), **common)
    labeler, rating = getattr(cfg, arm.labeler), replace(cfg.rating, task=cfg.task)
    return ByRatings(labeler=labeler, fingerprint=labelers.fingerprint(labeler), rating=rating, **common)


@dataclass(frozen=True)
class Learner:
    """What makes a policy, and who writes the pairs that its labeler is asked about; None: they are the data's own."""

    name: str  # in reports: the arm's, the variant's, or both
    policy: Optimised
    writer: Optimised | None


def learner(cfg: PolicyExperiment, name: str, arm: Arm) -> Learner:
    """An arm whose policy is made; that of RLHF writes pairs where votes and labels are learned together (App. K)."""
    writer = optimised(cfg, ARMS['RLHF']) if arm.feedback == 'votes and labels' else None
    policy = optimised(cfg, arm, writer)
    return Learner(name, policy, writer if writer and policy.rewarded.ai else None)


def askings(made: Iterable[Rewarded]) -> list[Asking]:
    """What labelers can be asked ahead for reward models, each of it once: about the data's own pairs, not those that
    policies write.
    """
    found = dict.fromkeys(labels for rewarded in made for labels in rewarded.labels if not labels.writers)
    return [labels.asking() for labels in found]
