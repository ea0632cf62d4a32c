"""Summarization: the paper's experiments on Reddit TL;DR.

Published win rates are those of human raters (arXiv 2309.00267), raw and at equal length. What an experiment needs, an
SFT policy, labels, a reward model, runs first by itself and is shared with the others.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.policies import SFT, Policies, policies
from experiments.reward_models import FromFile, RewardModels, reward_models
from experiments.scales import Scale
from rlaif_jax.config import Bindings, over, product

__all__ = [
    'tldr_sft', 'tldr_direct', 'tldr_rm_human', 'tldr_rm_ai', 'tldr_rlhf', 'tldr_rlaif', 'tldr_same_size',
    'tldr_base_prompt', 'tldr_combined', 'tldr_table1', 'rm_examples', 'rm_soft_vs_hard', 'rm_init', 'rl_baselines',
    'rl_kl', 'reward_model',
]  # fmt: skip

TASK = 'summarization'


def tldr_sft(scale: Scale, seed: int = 0) -> SFT:
    """The SFT policy: the smallest base model fine-tuned on reference summaries; where all RL starts (App. G).

    Command: python launch/run.py --experiment=tldr_sft
    Cost at micro scale: a minute on 2 cores.
    Expect: its summaries and the references are preferred about equally often; it imitates them, faults included.
    """
    return SFT(
        policy=scale.xs,
        data=scale.tldr,
        max_prompt=scale.reinforce.max_prompt,
        max_new_tokens=scale.reinforce.max_new_tokens,
        sft=replace(scale.sft, seed=seed),
        evaluation=replace(scale.evaluation, seed=seed),
        mesh=scale.mesh,
        dtype=scale.dtype,
    )


def tldr_direct(scale: Scale, seed: int = 0) -> Policies:
    """Direct RLAIF: REINFORCE on the labeler's own ratings, no reward model (§2.2.2, §4.3; Table 1, 'd-RLAIF vs SFT').

    Command: python launch/run.py --experiment=tldr_direct
    Cost at micro scale: about 5 minutes on 2 cores, the SFT policy included.
    Published: preferred to SFT in 74 % of comparisons, 65 % at equal length.
    Simulated, micro scale, seeds 0 to 2: 82 to 83 %, 79 to 83 % at equal length.
    """
    return policies(scale, TASK, seed, 'd-RLAIF')


def tldr_rlaif(scale: Scale, seed: int = 0) -> Policies:
    """Canonical RLAIF: labels of the largest labeler, a reward model on them, REINFORCE (§2.2.1; Table 1).

    Command: python launch/run.py --experiment=tldr_rlaif
    Cost at micro scale: 10 to 12 minutes on 2 cores, half of it labels.
    Published: preferred to SFT in 71 % of comparisons, 59 % at equal length.
    Simulated, micro scale, seeds 0 to 2: 78 to 83 %, 75 to 81 % at equal length.
    """
    return policies(scale, TASK, seed, 'RLAIF')


def tldr_rlhf(scale: Scale, seed: int = 0) -> Policies:
    """RLHF: the same with the votes of people in the place of the labels (§4.1; Table 1).

    Command: python launch/run.py --experiment=tldr_rlhf
    Cost at micro scale: about 6 minutes on 2 cores.
    Published: preferred to SFT in 73 % of comparisons, 61 % at equal length.
    Simulated, micro scale, seeds 0 to 2: 73 to 77 %, 68 to 75 % at equal length.
    """
    return policies(scale, TASK, seed, 'RLHF')


def tldr_same_size(scale: Scale, seed: int = 0) -> Policies:
    """Labels of a labeler no larger than the policy, by way of a reward model and directly (§4.2, §4.3; Table 1).

    Command: python launch/run.py --experiment=tldr_same_size
    Cost at micro scale: about 10 minutes on 2 cores.
    Published: same-size RLAIF preferred to SFT in 68 % (59 at equal length), d-RLAIF to same-size RLAIF in 60 % (56).
    Simulated, micro scale, seeds 0 to 2: 59 to 60 % (57 to 59), 74 to 80 % (74 to 81).
    """
    return policies(scale, TASK, seed, 'd-RLAIF', 'same-size RLAIF')


def tldr_base_prompt(scale: Scale, seed: int = 0) -> Policies:
    """Labels by the best technique against labels by the simplest, Base 0-shot (App. N).

    Command: python launch/run.py --experiment=tldr_base_prompt
    Cost at micro scale: about 16 minutes on 2 cores, by what its stages take alone.
    Published: the simplest is preferred to the best in 41 % (45 at equal length), though its reward model is more
    accurate, 77.9 against 74.2 %.
    """
    return policies(scale, TASK, seed, 'base-prompt RLAIF', 'RLAIF')


def tldr_combined(scale: Scale, seed: int = 0) -> Policies:
    """A reward model on people's votes and as many labels, of pairs that the RLHF and SFT policies write (App. K).

    Command: python launch/run.py --experiment=tldr_combined
    Cost at micro scale: about 20 minutes on 2 cores.
    Other mixtures: human_share=0.25, people's share of the pairs, from 0 (labels alone) to 1 (votes alone).
    Published: preferred to RLHF in 48 % (46 at equal length): no gain.
    Simulated, micro scale, seeds 0 to 2: 60, 54 and 49 % (60, 54 and 49): none is shown.
    """
    return policies(scale, TASK, seed, 'RLHF + RLAIF', 'RLHF')


def tldr_table1(scale: Scale, seed: int = 0) -> Policies:
    """The main comparison, whole: RLAIF, RLHF, same-size and direct RLAIF against SFT and each other (Table 1).

    Command: python launch/run.py --experiment=tldr_table1
    Cost at micro scale: 20 to 30 minutes on 2 cores.
    Published: 71, 73, 68 and 74 % against SFT; RLAIF against RLHF 50 %; direct against same-size 60 %.
    Simulated, micro scale, means of seeds 0 to 2: 80, 75, 59 and 82 %; 57 %; 77 %.
    """
    return policies(scale, TASK, seed, 'RLAIF', 'RLHF', 'd-RLAIF', 'same-size RLAIF')


def tldr_rm_human(scale: Scale, seed: int = 0) -> RewardModels:
    """The reward model of RLHF: votes of people, from the base model (Tables 5 and 6).

    Command: python launch/run.py --experiment=tldr_rm_human
    Cost at micro scale: about 4 minutes on 2 cores.
    Published: agrees with held-out votes on 79.3 % of pairs.
    """
    return reward_models(scale, TASK, seed, 'RLHF')


def tldr_rm_ai(scale: Scale, seed: int = 0) -> RewardModels:
    """The reward models of RLAIF: labels of the largest labeler, of Base 0-shot, of the policy's size (Tables 5 and 7).

    Command: python launch/run.py --experiment=tldr_rm_ai
    Cost at micro scale: about 16 minutes on 2 cores, by what its stages take alone; half of it labels.
    Published: agree with held-out votes on 74.2, 77.9 and 66.4 % of pairs.
    """
    return reward_models(scale, TASK, seed, 'RLAIF', 'base-prompt RLAIF', 'same-size RLAIF')


def rm_examples(scale: Scale, seed: int = 0) -> RewardModels:
    """Accuracy against the number of labels, of people and of a labeler (v1 of the paper, 'RM accuracy by examples').

    Command: python launch/run.py --experiment=rm_examples
    Cost at micro scale: twelve reward models, about 35 minutes on 2 cores, an hour on one.
    Published: AI labels are near their best at a twentieth of the data, and flat from there; people's go on helping.
    Simulated, micro scale, seed 0, sure raters: labels 83.2 % at 128, 89.3 at 512, 90.9 at 4,000; votes 75.6, 88.1, 92.2.
    """
    counts = [n for n in (128, 256, 512, 1024, 2048) if n < scale.tldr.pairs]
    variants = tuple(f'data.pairs={n}' for n in (*counts, scale.tldr.pairs))
    return replace(reward_models(scale, TASK, seed, 'RLAIF', 'RLHF'), variants=variants)


def rm_soft_vs_hard(scale: Scale, seed: int = 0) -> RewardModels:
    """Labels as the labeler is sure of them, against labels rounded to 0 and 1 (§2.2.1; not in the paper's tables).

    Command: python launch/run.py --experiment=rm_soft_vs_hard
    Cost at micro scale: about 12 minutes on 2 cores, by what its stages take alone.
    Elsewhere: soft labels make smoother curves and end at the same accuracy.
    """
    return replace(
        reward_models(scale, TASK, seed, 'RLAIF'), variants=('reward_model.soft=True', 'reward_model.soft=False')
    )


def rm_init(scale: Scale, seed: int = 0) -> RewardModels:
    """A reward model of people's votes that starts from the base model, and one that starts from SFT (Table 6).

    Command: python launch/run.py --experiment=rm_init
    Cost at micro scale: about 6 minutes on 2 cores, by what its stages take alone.
    Published: 79.3 % from the base model, 78.7 % from SFT.
    """
    variants = ('reward_model_from_base=True', 'reward_model_from_base=False')
    return replace(reward_models(scale, TASK, seed, 'RLHF'), variants=variants)


def rl_baselines(scale: Scale, seed: int = 0) -> Policies:
    """What is taken off the return: a value network, the batch's mean, or the mean of a prompt's other responses.

    Command: python launch/run.py --experiment=rl_baselines
    Cost at micro scale: about 9 minutes on 2 cores, by what its stages take alone.
    The paper has a value network (App. F); the algorithm stays its REINFORCE.
    """
    variants = tuple(f'reinforce.baseline={name}' for name in ('value', 'batch_mean', 'leave_one_out'))
    cfg = policies(scale, TASK, seed, 'd-RLAIF')
    # Four responses to each prompt for all three, so that they differ in the baseline alone.
    return replace(cfg, reinforce=replace(cfg.reinforce, samples=4), variants=variants)


def rl_kl(scale: Scale, seed: int = 0) -> Policies:
    """What the KL to SFT keeps a policy from, at five weights: with none it over-optimises the reward (App. G: 0.05).

    Command: python launch/run.py --experiment=rl_kl
    Cost at micro scale: about 20 minutes on 2 cores.
    Expect: the smaller β, the higher the score and the KL; quality by the oracle does not follow to the end.
    Simulated, micro scale, seed 0: with β = 0 the score is highest (1.79, at 15 nats), and quality 0.35; with 0.05 it is
    0.50.
    """
    cfg = policies(scale, TASK, seed, 'RLAIF')
    return replace(cfg, variants=tuple(f'reinforce.beta={beta}' for beta in (0.0, 0.01, 0.05, 0.2, 0.5)))


def reward_model(scale: Scale, seed: int = 0) -> FromFile:
    """A reward model from anybody's labels: a file in, a directory for AutoModelForSequenceClassification out.

    Command: python launch/run.py --experiment=reward_model input=labels.parquet
    Cost at micro scale: about 3 minutes on 2 cores, however many pairs.
    Expect: its accuracy on the tenth of the pairs that it does not learn from.
    """
    return FromFile(
        policy=scale.xs, reward_model=replace(scale.reward_model, seed=seed), mesh=scale.mesh, dtype=scale.dtype
    )


def sweep_beta() -> list[Bindings]:
    """How much the KL to SFT should cost, over three seeds (the paper's choice is 0.05, App. G).

    Command: python launch/sweep.py --experiment=tldr_direct --sweep=beta
    """
    return product(over('reinforce.beta', (0.0, 0.05, 0.2)), over('seed', range(3)))


def sweep_learning_rate() -> list[Bindings]:
    """How fast the policy learns, over three seeds.

    Command: python launch/sweep.py --experiment=tldr_direct --sweep=learning_rate
    """
    return product(over('reinforce.policy_optimizer.learning_rate', (1e-4, 3e-4, 1e-3)), over('seed', range(3)))


def sweep_labeler(scale: Scale) -> list[Bindings]:
    """Direct RLAIF by labelers of three sizes, over three seeds.

    Command: python launch/sweep.py --experiment=tldr_direct --sweep=labeler
    """
    return product(over('same_size_labeler', (scale.labeler, scale.s, scale.l)), over('seed', range(3)))


def sweep_seeds() -> list[Bindings]:
    """Three seeds of everything random, the training data's order among it; the test prompts are the same.

    Command: python launch/sweep.py --experiment=tldr_table1 --sweep=seeds
    """
    return over('seed', range(3))
