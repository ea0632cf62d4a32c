"""Harmless dialogue: the paper's experiments on Anthropic's harmless prompts. There is no SFT: the policy is tuned already.

What is published is the share of harmless responses; the labeler is asked for the more harmful of two.
"""

from __future__ import annotations

from experiments.policies import Policies, policies
from experiments.reward_models import RewardModels, reward_models
from experiments.scales import Scale
from rlaif_jax.config import Bindings, over

__all__ = ['harmless_rlhf', 'harmless_rlaif', 'harmless_rm']

TASK = 'harmless'


def harmless_rlhf(scale: Scale, seed: int = 0) -> Policies:
    """RLHF on harmless dialogue (§4.1; Table 1).

    Command: python launch/run.py --experiment=harmless_rlhf
    Cost at micro scale: about 5 minutes on 2 cores.
    Published: 76 % of its responses are harmless, 78 % at SFT's mean length; of SFT's 64 %.
    """
    return policies(scale, TASK, seed, 'RLHF')


def harmless_rlaif(scale: Scale, seed: int = 0) -> Policies:
    """RLAIF on harmless dialogue, and RLHF beside it (§4.1; Table 1).

    Command: python launch/run.py --experiment=harmless_rlaif
    Cost at micro scale: 8 to 10 minutes on one core, about 6 on 2.
    Published: 88 % of its responses are harmless, 91 % at SFT's mean length; of RLHF's 76 and 78 %, of SFT's 64 %.
    Simulated, micro scale, seeds 0 to 2: 99 to 100 % of both, of SFT's 79 to 80 %; both refuse benign requests as well.
    """
    return policies(scale, TASK, seed, 'RLAIF', 'RLHF')


def harmless_rm(scale: Scale, seed: int = 0) -> RewardModels:
    """The reward models of harmless dialogue, of people's votes and of labels (Table 5).

    Command: python launch/run.py --experiment=harmless_rm
    Cost at micro scale: about 5 minutes on 2 cores; half a minute behind `harmless_rlaif`, which makes the same two.
    Published: agree with held-out votes on 72.1 and 69.7 % of pairs.
    """
    return reward_models(scale, TASK, seed, 'RLHF', 'RLAIF')


def sweep_seeds() -> list[Bindings]:
    """Three seeds of everything random; the test prompts are the same.

    Command: python launch/sweep.py --experiment=harmless_rlaif --sweep=seeds
    """
    return over('seed', range(3))
