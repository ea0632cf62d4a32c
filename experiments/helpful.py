"""Helpful dialogue: the paper on Anthropic's helpful prompts. There is no SFT: the policy is tuned already."""

from __future__ import annotations

from experiments.policies import Policies, policies
from experiments.scales import Scale

__all__ = ['helpful_rlhf', 'helpful_rlaif', 'helpful_direct']

TASK = 'helpful'


def helpful_rlhf(scale: Scale, seed: int = 0) -> Policies:
    """RLHF on helpful dialogue (§4.1; Table 1).

    Command: python launch/run.py --experiment=helpful_rlhf
    Published: preferred to SFT in 64 % of comparisons, 61 % at equal length.
    """
    return policies(scale, TASK, seed, 'RLHF')


def helpful_rlaif(scale: Scale, seed: int = 0) -> Policies:
    """RLAIF on helpful dialogue, and RLHF beside it (§4.1; Table 1).

    Command: python launch/run.py --experiment=helpful_rlaif
    Published: preferred to SFT in 63 % of comparisons (61 at equal length), to RLHF in 52 % (50).
    """
    return policies(scale, TASK, seed, 'RLAIF', 'RLHF')


def helpful_direct(scale: Scale, seed: int = 0) -> Policies:
    """Direct RLAIF on helpful dialogue, rated by a labeler of the policy's size (§4.3).

    Command: python launch/run.py --experiment=helpful_direct
    Published: preferred to SFT in 66 % of comparisons.
    """
    return policies(scale, TASK, seed, 'd-RLAIF')
