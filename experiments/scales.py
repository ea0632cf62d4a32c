"""Scales: which models, data, sizes and mesh an experiment runs with. An experiment is the same at every scale; a scale
is a row here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Literal

from rlaif_jax.config import Mistake
from rlaif_jax.labeling import direct, preference
from rlaif_jax.training import reinforce, sft
from rlaif_jax.training.state import Optimizer

Dtype = Literal['float32', 'bfloat16']  # of the matrix products


@dataclass(frozen=True)
class Data:
    """Prompts by name, and how many of each split are used."""

    source: str
    train: int
    validation: int
    test: int

    def __post_init__(self) -> None:
        if min(self.train, self.validation, self.test) < 1:
            raise ValueError('train, validation and test must be positive')


@dataclass(frozen=True)
class Mesh:
    """Devices along each mesh axis; one may be -1: all that are left."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class Evaluation:
    """How two policies are compared on test prompts."""

    prompts: int = 1024
    temperature: float = 0.9  # the policies are judged as they were trained: sampled
    batch: int = 128
    judge: str = 'raters'  # 'raters' or 'oracle' (simulated worlds), or a model's name: an LM asked in both orders
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.batch < 1 or self.temperature < 0 or not 0 < self.confidence < 1:
            raise ValueError('prompts and batch must be positive, temperature not negative, confidence between 0 and 1')


@dataclass(frozen=True)
class Scale:
    """One row. xs, s and l play PaLM 2 XS, S and L: the policy is xs; labelers are any of them."""

    name: str
    about: str
    xs: str
    s: str
    l: str  # noqa: E741
    labeler: str  # of direct RLAIF
    tldr: Data
    sft: sft.Config
    reinforce: reinforce.Config
    rating: direct.Config = field(default_factory=direct.Config)
    label: preference.Config = field(default_factory=preference.Config)
    evaluation: Evaluation = field(default_factory=Evaluation)
    mesh: Mesh = field(default_factory=Mesh)
    dtype: Dtype = 'float32'


SCALES = {
    'micro': Scale(
        name='micro',
        about='tiny transformers in an embedded, simulated world; a laptop CPU, 4 GB, minutes',
        xs='micro_xs',
        s='micro_s',
        l='micro_l',
        labeler='micro_xs',
        tldr=Data(source='micro_tldr', train=100_000, validation=128, test=10_000),
        sft=sft.Config(
            steps=100,
            batch=64,
            optimizer=Optimizer(name='adafactor', learning_rate=2e-3, warmup_steps=10, decay='cosine'),
            save_every=25,
        ),
        reinforce=reinforce.Config(
            steps=75,
            batch=32,
            max_prompt=128,
            max_new_tokens=40,
            policy_optimizer=Optimizer(name='adafactor', learning_rate=3e-4, warmup_steps=5),
            value_optimizer=Optimizer(name='adafactor', learning_rate=1e-3, warmup_steps=5),
            eval_every=25,
            eval_prompts=128,
            save_every=10,
        ),
        label=preference.Config(max_rationale=48),
        mesh=Mesh(),
    ),
}


def scale(name: str) -> Scale:
    """The row of that name. Raises `Mistake` naming the nearest one."""
    if name not in SCALES:
        near = difflib.get_close_matches(name, SCALES, 1, 0.0)
        raise Mistake(f'no scale {name!r}; did you mean {near[0]}? Scales: {", ".join(SCALES)}')
    return SCALES[name]
