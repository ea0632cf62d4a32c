"""Harmless dialogue: the paper's experiments on Anthropic's harmless prompts. There is no SFT: the policy is tuned already.

What is published is the share of harmless responses; the labeler is asked for the more harmful of two.
"""

from __future__ import annotations

from experiments.policies import Policies, policies
from experiments.scales import Scale

__all__ = ['harmless_rlhf', 'harmless_rlaif']

TASK = 'harmless'


def harmless_rlhf(scale: Scale, seed: int = 0) -> Policies:
    """RLHF on harmless dialogue (§4.1; Table 2).

    Command: python launch/run.py --experiment=harmless_rlhf
    Published: 76 % of its responses are harmless, 78 % at SFT's mean length; of SFT's 64 %.
    """
    return policies(scale, TASK, seed, 'RLHF')


def harmless_rlaif(scale: Scale, seed: int = 0) -> Policies:
    """RLAIF on harmless dialogue, and RLHF beside it (§4.1; Table 2).

    Command: python launch/run.py --experiment=harmless_rlaif
    Published: 88 % of its responses are harmless, 91 % at SFT's mean length; of RLHF's 76 and 78 %, of SFT's 64 %.
    """
    return policies(scale, TASK, seed, 'RLAIF', 'RLHF')
