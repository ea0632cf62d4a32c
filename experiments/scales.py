"""Scales: which models, data, sizes and mesh an experiment runs with. An experiment is the same at every scale; a scale
is a row here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlaif_jax.config import FILE, HOTTEST, MOST, Mistake, check_within, nearest
from rlaif_jax.data.source import JUDGES
from rlaif_jax.evaluation import versus
from rlaif_jax.evaluation.length import LengthRatio
from rlaif_jax.labeling import direct, preference
from rlaif_jax.labeling.prompts import Technique
from rlaif_jax.training import reinforce, reward_model, sft
from rlaif_jax.training.state import Optimizer

Dtype = Literal['float32', 'bfloat16']  # of the matrix products
Rule = Literal['averaged', 'both_agree']


@dataclass(frozen=True)
class Data:
    """Prompts and pairs by name, and how many of each are used."""

    source: str = field(metadata=FILE)  # a data set by name, or the path of a file or a folder
    train: int  # prompts of each split
    validation: int  # prompts that evaluate while a policy is trained
    test: int  # prompts that finished policies are compared on
    pairs: int = 4000  # of the training split, with preferences
    held_out: int = 512  # pairs of the validation split: they choose among a reward model's checkpoints

    def __post_init__(self) -> None:
        check_within(self, 1, MOST, 'train', 'validation', 'test', 'pairs', 'held_out')


@dataclass(frozen=True)
class Mesh:
    """Devices along each mesh axis; one may be -1: all that are left. `data` is 1 where another one is -1, too."""

    data: int = 1  # copies of the model, each with a share of the batch
    fsdp: int = 1  # shares of the parameters, and of the batch
    tensor: int = 1  # shares of every matrix product

    def __post_init__(self) -> None:
        if wrong := [size for size in (self.data, self.fsdp, self.tensor) if size != -1 and not 0 < size <= MOST]:
            raise ValueError(f'sizes are positive, or -1 for all devices that are left, not {wrong[0]}')


@dataclass(frozen=True)
class Evaluation:
    """How two policies are compared on test prompts."""

    prompts: int = 1024  # of the test split, at most
    temperature: float = 0.9  # the policies are judged as they were trained: sampled
    batch: int = 128  # prompts, or pairs to judge, at once
    judge: str = 'raters'  # 'raters' or 'oracle' (simulated worlds), or a model's name: an LM asked in both orders
    technique: str = 'base_0shot'  # how an LM is asked: (base|detailed)[_cot]_<exemplars>shot
    rule: Rule = 'averaged'  # an LM's two verdicts: averaged, or a tie where they differ
    selector: str = ''  # the LM that chooses among checkpoints where `reinforce.candidates` are several
    clean_up: bool = False  # strip what trails behind a response's end before it is judged (App. E)
    confidence: float = 0.95  # of the intervals
    resamples: int = 1000  # of prompts, for bootstrapped intervals; 0: intervals of closed form
    length_ratio: LengthRatio = 'log'  # of rates at equal length: on the ratio's logarithm or, 'plain', as in the paper
    length_prior: bool = True  # Jeffreys', in the fit behind rates at equal length; the paper's had none
    seed: int = 0  # of the responses, the simulated raters and the bootstrap

    def __post_init__(self) -> None:
        Technique.parse(self.technique)
        check_within(self, 1, MOST, 'prompts', 'batch')
        check_within(self, 0, MOST, 'resamples', 'seed')
        check_within(self, 0, HOTTEST, 'temperature')
        if not 0 < self.confidence < 1:
            raise ValueError(f'confidence must be between 0 and 1, not {self.confidence}')

    @property
    def simulated(self) -> bool:
        """Whether the judge is one of a simulated world, and no model."""
        return self.judge in JUDGES

    def reported(self) -> versus.Config:
        """How its rates are reported."""
        return versus.Config(self.confidence, self.length_ratio, self.resamples, self.length_prior)


@dataclass(frozen=True)
class Scale:
    """One row. xs, s and l play PaLM 2 XS, S and L."""

    name: str
    about: str  # what it is for, and what it needs
    memory: int  # GiB of the devices that it is meant for, together
    xs: str  # the base model: SFT makes the policy of it
    labeler: str  # of the same size, tuned to follow instructions: rates in direct RLAIF, and is the policy of dialogue
    s: str  # labelers, tuned too
    l: str  # noqa: E741
    tldr: Data
    helpful: Data
    harmless: Data
    sft: sft.Config
    reward_model: reward_model.Config
    reinforce: reinforce.Config
    # Of dialogue, and of one task of it; None: as for dialogue, as for summaries.
    reward_model_dialogue: reward_model.Config | None = None
    reinforce_dialogue: reinforce.Config | None = None
    reward_model_helpful: reward_model.Config | None = None
    reinforce_helpful: reinforce.Config | None = None
    label_helpful: preference.Config | None = None
    label_harmless: preference.Config | None = None
    rating: direct.Config = field(default_factory=direct.Config)
    label: preference.Config = field(default_factory=preference.Config)
    evaluation: Evaluation = field(default_factory=Evaluation)
    mesh: Mesh = field(default_factory=Mesh)
    dtype: Dtype = 'float32'


def open_models(
    name: str,
    about: str,
    memory: int,
    xs: str,
    labeler: str,
    s: str,
    l: str,
    judge: str,
    parts: int,
    mesh: Mesh,
) -> Scale:
    """A row of open checkpoints, by hub name or local path, with the paper's data and hyper-parameters (App. G).

    The `judge` is of another family than `l`, which makes labels and chooses among checkpoints: in the paper people judge,
    and whoever is trained to please l would win by its taste. `parts` is how many times a batch goes through the devices:
    more of them need less memory.
    """
    pairs = reward_model.Config(parts=parts, remat=True)
    policy = reinforce.Config(parts=parts, remat=True, candidates=4)  # 8 epochs
    return Scale(
        name=name,
        about=about,
        memory=memory,
        xs=xs,
        labeler=labeler,
        s=s,
        l=l,
        tldr=Data('tldr', train=116_722, validation=1000, test=6553, pairs=92_858, held_out=2000),
        helpful=Data('hh_helpful', train=43_835, validation=1000, test=2354, pairs=43_835, held_out=1000),
        harmless=Data('hh_harmless', train=42_537, validation=1000, test=2312, pairs=42_537, held_out=1000),
        sft=sft.Config(steps=912, parts=parts, remat=True),  # an epoch
        reward_model=pairs,
        # Batches of 32, and three epochs of them.
        reward_model_dialogue=replace(pairs, batch=32, parts=max(parts // 4, 1), steps=4000),
        reinforce=policy,
        reinforce_dialogue=replace(policy, steps=2700),
        # The techniques that agreed with people best (§4.1).
        label=preference.Config(batch=16),
        label_helpful=preference.Config(batch=16, technique='base_cot_0shot'),
        label_harmless=preference.Config(batch=16, technique='base_2shot'),
        rating=direct.Config(batch=32),
        evaluation=Evaluation(prompts=2000, judge=judge, rule='both_agree', selector=l, clean_up=True, batch=64),
        mesh=mesh,
        dtype='bfloat16',
    )


MICRO_REWARD_MODEL = reward_model.Config(
    steps=190,  # three epochs
    batch=64,
    optimizer=Optimizer(name='adafactor', learning_rate=5e-4, warmup_steps=10, decay='cosine'),
    max_prompt=128,
    max_response=40,
    eval_every=38,
    save_every=38,
)
MICRO_REINFORCE = reinforce.Config(
    steps=75,
    batch=32,
    max_prompt=128,
    max_new_tokens=40,
    policy_optimizer=Optimizer(name='adafactor', learning_rate=3e-4, warmup_steps=5),
    value_optimizer=Optimizer(name='adafactor', learning_rate=1e-3, warmup_steps=5),
    eval_every=25,
    eval_prompts=128,
    save_every=10,
)

SCALES = {
    'micro': Scale(
        name='micro',
        about='tiny transformers in an embedded, simulated world; a laptop CPU, 4 GB, minutes',
        memory=4,
        xs='micro_xs',
        labeler='micro_xs',
        s='micro_s',
        l='micro_l',
        tldr=Data(source='micro_tldr', train=100_000, validation=128, test=10_000),
        helpful=Data(source='micro_helpful', train=100_000, validation=128, test=10_000, pairs=16_000),
        harmless=Data(source='micro_harmless', train=100_000, validation=128, test=10_000),
        sft=sft.Config(
            steps=100,
            batch=64,
            optimizer=Optimizer(name='adafactor', learning_rate=2e-3, warmup_steps=10, decay='cosine'),
            save_every=25,
        ),
        reward_model=MICRO_REWARD_MODEL,
        reinforce=MICRO_REINFORCE,
        # With 4,000 pairs, or at 3e-4, the score of validation responses rose and their quality did not.
        reward_model_helpful=replace(MICRO_REWARD_MODEL, steps=375, eval_every=75, save_every=75),
        reinforce_helpful=replace(
            MICRO_REINFORCE, steps=150, policy_optimizer=replace(MICRO_REINFORCE.policy_optimizer, learning_rate=1e-4)
        ),
        label=preference.Config(max_rationale=48),
        # Of four on 512 validation pairs the one that agreed best with raters: 69.1, 81.1 %; thinking aloud 67.6, 74.6.
        label_helpful=preference.Config(technique='detailed_0shot'),
        label_harmless=preference.Config(technique='detailed_0shot'),
        evaluation=Evaluation(selector='micro_l'),
        mesh=Mesh(data=-1),
    ),
    'smollm2': open_models(
        'smollm2',
        'SmolLM2 135M, 360M and 1.7B: one small GPU, 24 GB, or a free Colab TPU; hours',
        memory=24,
        xs='HuggingFaceTB/SmolLM2-135M',
        labeler='HuggingFaceTB/SmolLM2-135M-Instruct',
        s='HuggingFaceTB/SmolLM2-360M-Instruct',
        l='HuggingFaceTB/SmolLM2-1.7B-Instruct',
        judge='Qwen/Qwen3-4B',
        parts=8,
        mesh=Mesh(data=-1),
    ),
    'pythia': open_models(
        'pythia',
        'Pythia 1B, 2.8B and 6.9B, none of them tuned: one 80 GB GPU; a day',
        memory=80,
        xs='EleutherAI/pythia-1b-deduped',
        labeler='EleutherAI/pythia-1b-deduped',
        s='EleutherAI/pythia-2.8b-deduped',
        l='EleutherAI/pythia-6.9b-deduped',
        judge='Qwen/Qwen3-4B',
        parts=16,
        mesh=Mesh(fsdp=-1),
    ),
    'qwen3': open_models(
        'qwen3',
        'Qwen3 0.6B, 4B and 32B: two 80 GB GPUs, the labeler takes half of them; a day',
        memory=160,
        xs='Qwen/Qwen3-0.6B-Base',
        labeler='Qwen/Qwen3-0.6B',
        s='Qwen/Qwen3-4B',
        l='Qwen/Qwen3-32B',
        judge='allenai/OLMo-2-0325-32B-Instruct',
        parts=16,
        mesh=Mesh(fsdp=-1),
    ),
    'llama3': open_models(
        'llama3',
        'Llama 3.2 1B, 3.1 8B and 3.3 70B: four 80 GB GPUs or a v5p-8; days',
        memory=320,
        xs='meta-llama/Llama-3.2-1B',
        labeler='meta-llama/Llama-3.2-1B-Instruct',
        s='meta-llama/Llama-3.1-8B-Instruct',
        l='meta-llama/Llama-3.3-70B-Instruct',
        judge='Qwen/Qwen3-32B',
        parts=8,
        mesh=Mesh(fsdp=-1),
    ),
    'gemma2': open_models(
        'gemma2',
        'Gemma 2 2B, 9B and 27B, nearest to the paper: four 80 GB GPUs or a v5p-8; days',
        memory=320,
        xs='google/gemma-2-2b',
        labeler='google/gemma-2-2b-it',
        s='google/gemma-2-9b-it',
        l='google/gemma-2-27b-it',
        judge='Qwen/Qwen3-32B',
        parts=8,
        mesh=Mesh(fsdp=-1),
    ),
}


def of_task(scale: Scale, name: str, task: str) -> Any:
    """A field of the scale, such as `reward_model`, for a task: its own, else that of dialogue, else that of summaries."""
    names = [name] if task == 'summarization' else [f'{name}_{task}', f'{name}_dialogue', name]
    return next(found for one in names if (found := getattr(scale, one, None)) is not None)


def scale(name: str) -> Scale:
    """The row of that name. Raises `Mistake` naming the nearest one."""
    if name not in SCALES:
        raise Mistake(f'no scale {name!r}; did you mean {nearest(name, SCALES)}? Scales: {", ".join(SCALES)}')
    return SCALES[name]
