"""Helpful dialogue: the paper on Anthropic's helpful prompts. There is no SFT: the policy is tuned already."""

from __future__ import annotations

from experiments.policies import Policies, policies
from experiments.reward_models import RewardModels, reward_models
from experiments.scales import Scale
from rlaif_jax.config import Bindings, over

__all__ = ['helpful_rlhf', 'helpful_rlaif', 'helpful_direct', 'helpful_rm']

TASK = 'helpful'


def helpful_rlhf(scale: Scale, seed: int = 0) -> Policies:
    """RLHF on helpful dialogue (§4.1; Table 1).

    Command: python launch/run.py --experiment=helpful_rlhf
    Cost at micro scale: about 10 minutes on 2 cores, by what its stages take alone.
    Published: preferred to SFT in 64 % of comparisons, 61 % at equal length.
    """
    return policies(scale, TASK, seed, 'RLHF')


def helpful_rlaif(scale: Scale, seed: int = 0) -> Policies:
    """RLAIF on helpful dialogue, and RLHF beside it (§4.1; Table 1).

    Command: python launch/run.py --experiment=helpful_rlaif
    Cost at micro scale: half an hour on one core, about 20 minutes on 2.
    Published: preferred to SFT in 63 % of comparisons (61 at equal length), to RLHF in 52 % (50).
    Simulated, micro scale, seeds 0 to 2: to SFT in 52 to 56 %, and RLHF in 49 to 55 %: it gains little there
    (experiments/LOG.md).
    """
    return policies(scale, TASK, seed, 'RLAIF', 'RLHF')


def helpful_direct(scale: Scale, seed: int = 0) -> Policies:
    """Direct RLAIF on helpful dialogue, rated by a labeler of the policy's size (§4.3).

    Command: python launch/run.py --experiment=helpful_direct
    Cost at micro scale: 8 minutes on one core, about 5 on 2.
    Published: preferred to SFT in 66 % of comparisons.
    Simulated, micro scale, seeds 0 and 1: 49 and 51 %, which tells nothing apart.
    """
    return policies(scale, TASK, seed, 'd-RLAIF')


def helpful_rm(scale: Scale, seed: int = 0) -> RewardModels:
    """The reward models of helpful dialogue, of people's votes and of labels (Table 5).

    Command: python launch/run.py --experiment=helpful_rm
    Cost at micro scale: about 5 minutes on 2 cores; half a minute behind `helpful_rlaif`, which makes the same two.
    Published: agree with held-out votes on 76.0 and 67.8 % of pairs.
    """
    return reward_models(scale, TASK, seed, 'RLHF', 'RLAIF')


def sweep_seeds() -> list[Bindings]:
    """Three seeds of everything random; the test prompts are the same.

    Command: python launch/sweep.py --experiment=helpful_rlaif --sweep=seeds
    """
    return over('seed', range(3))
