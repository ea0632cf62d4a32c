"""Arms: a policy, or a reward model, by what it learned from; the names are those of the paper's tables.

`ARMS` says what each arm learns from and whom it asks; all else follows from that: which fields a config needs, how many
pairs there are of each kind, which stages are made. Two arms differ in nothing but their feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from experiments.label import Asking
from experiments.plan import variants
from experiments.scales import Data, Dtype, Evaluation, Scale, of_task
from experiments.stages import ByModel, ByRatings, Labelled, Optimised, Rewarded, Supervised
from rlaif_jax.config import digest
from rlaif_jax.labeling import direct, preference
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
    """The paper's win rates: (one, other) → how often it is preferred, raw and at equal length, percent."""
    return {(arm.name, other): rate for arm in ARMS.values() for other, rate in arm.preferred.get(task, {}).items()}


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


# An arm as an experiment has it


@dataclass(frozen=True)
class Votes:
    """Preferences of people."""

    pairs: int


@dataclass(frozen=True)
class Labels:
    """Preferences of a labeler, of the data's own pairs."""

    pairs: int
    labeler: str
    label: preference.Config

    @property
    def writers(self) -> str:
        """Who wrote the pairs, as a digest; '' where nobody had to."""
        return ''


@dataclass(frozen=True)
class LabelsOfWritten(Labels):
    """Preferences of a labeler, of pairs that a policy, first, and SFT write (App. K)."""

    writer: Optimised

    @property
    def writers(self) -> str:
        return digest(self.writer)


@dataclass(frozen=True)
class Preferences:
    """Preferences of people, of a labeler, or of both, and the reward model that is made of them."""

    of: tuple[Votes | Labels, ...]
    reward_model: reward_model.Config
    from_base: bool  # from the base model, not from what SFT made of it (App. G)


@dataclass(frozen=True)
class Ratings:
    """A labeler's ratings, which are themselves the reward."""

    labeler: str
    rating: direct.Config


@dataclass(frozen=True)
class Learner:
    """What an arm is in an experiment: where it starts, and what it learns from, with the configs of that and no others."""

    name: str  # in reports: the arm's, the variant's, or both
    start: Supervised
    data: Data
    feedback: Preferences | Ratings
    dtype: Dtype

    @property
    def written(self) -> tuple[LabelsOfWritten, ...]:
        """The labels of pairs that have to be written first: one such feedback, or none."""
        of = self.feedback.of if isinstance(self.feedback, Preferences) else ()
        return tuple(one for one in of if isinstance(one, LabelsOfWritten))

    def rewarded(self) -> Rewarded:
        """The stage that makes its reward model. Raises TypeError where ratings take its place."""
        if not isinstance(self.feedback, Preferences):
            raise TypeError(f'{self.name} has no reward model')
        labels = [self.labelled(one) for one in self.feedback.of if isinstance(one, Labels)]
        return Rewarded(
            start=self.start,
            from_base=self.feedback.from_base,
            task=self.start.task,
            source=self.data.source,
            human=sum(one.pairs for one in self.feedback.of if isinstance(one, Votes)),
            ai=labels[0] if labels else None,
            held_out=self.data.held_out,
            reward_model=self.feedback.reward_model,
            dtype=self.dtype,
        )

    def labelled(self, labels: Labels) -> Labelled:
        return Labelled(
            labeler=labels.labeler,
            fingerprint=hf.fingerprint(labels.labeler),
            label=labels.label,
            source=self.data.source,
            split='train',
            pairs=labels.pairs,
            writers=labels.writers,
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class PolicyLearner(Learner):
    """The same, of an arm whose policy is trained, too."""

    reinforce: reinforce.Config
    evaluation: Evaluation

    def optimised(self) -> Optimised:
        """The stage that makes its policy."""
        several = self.reinforce.candidates > 1
        common = {
            'start': self.start,
            'source': self.data.source,
            'train': self.data.train,
            'validation': self.data.validation,
            'reinforce': self.reinforce,
            'selector': self.evaluation.selector if several else '',
            'rule': self.evaluation.rule if several else 'averaged',
            'dtype': self.dtype,
        }
        match self.feedback:
            case Ratings(labeler, rating):
                return ByRatings(labeler=labeler, fingerprint=hf.fingerprint(labeler), rating=rating, **common)
            case Preferences():
                return ByModel(rewarded=self.rewarded(), **common)


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


def learner(cfg: Experiment, name: str, arm: Arm) -> Learner:
    """An arm whose reward model is made."""
    return Learner(name, start(cfg), cfg.data, preferences(cfg, arm), cfg.dtype)


def policy_learner(cfg: PolicyExperiment, name: str, arm: Arm) -> PolicyLearner:
    """An arm whose policy is made."""
    if arm.feedback == 'ratings':
        feedback = Ratings(asked(cfg, arm), replace(cfg.rating, task=cfg.task))
    elif arm.feedback == 'votes and labels':
        writer = policy_learner(cfg, 'RLHF', ARMS['RLHF']).optimised()
        feedback = preferences(cfg, arm, partial(LabelsOfWritten, writer=writer))
    else:
        feedback = preferences(cfg, arm)
    return PolicyLearner(name, start(cfg), cfg.data, feedback, cfg.dtype, cfg.reinforce, cfg.evaluation)


def askings(learners: Iterable[Learner]) -> list[Asking]:
    """What labelers can be asked ahead, each of it once: about the data's own pairs, not those that policies write."""
    made = [one.rewarded() for one in learners if isinstance(one.feedback, Preferences)]
    found = dict.fromkeys(labels for rewarded in made for labels in rewarded.labels if not labels.writers)
    return [labels.asking() for labels in found]


def preferences(cfg: Experiment, arm: Arm, kind: Callable[..., Labels] = Labels) -> Preferences:
    """What the reward model of an arm learns from. Of votes and labels, `human_share` are people's, and there are
    `data.pairs` of the kind that is more: the paper's equal parts at ½, what RLAIF and RLHF have at 0 and 1.
    """
    share = {'votes': 1.0, 'labels': 0.0}.get(arm.feedback, cfg.human_share)
    human, ai = (round(cfg.data.pairs * part / max(share, 1 - share)) for part in (share, 1 - share))
    of = [Votes(human)] * bool(human)
    if ai:
        label = replace(cfg.label, task=cfg.task, technique=arm.technique or cfg.label.technique)
        of.append(kind(ai, asked(cfg, arm), label))
    return Preferences(tuple(of), cfg.reward_model, cfg.reward_model_from_base and arm.feedback == 'votes')


def asked(cfg: Experiment, arm: Arm) -> str:
    """The model that an arm asks; '' where it asks none."""
    return {'': '', 'labeler': cfg.labeler, 'same_size_labeler': cfg.same_size_labeler}[arm.labeler]
