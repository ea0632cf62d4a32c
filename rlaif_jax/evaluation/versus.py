"""Policy against policy: whose responses are preferred, how sure that is, and what is left of it at equal length.

A *judge* is any function `(prompts, responses_a, responses_b) -> win_B`, floats in [0, 1]: 1 where A is preferred, 0
where B is, 1/2 where the two cannot be told apart (the same quality, or opposite verdicts in the two orders), and nan
where the judge could not say. An unscorable vote weighs nothing and is counted; it is never a half. Makers of judges
are here: of a quality that can be computed (a simulated world's), and of an LM that is shown both in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.alignment import verdicts
from rlaif_jax.evaluation.length import AtLength, LengthRatio, characters, length_adjusted_win_rate
from rlaif_jax.evaluation.statistics import (
    Interval,
    binomial_test,
    bootstrap,
    bounded_interval,
    check_resamples,
    normal_quantile,
    resampled,
    votes,
    wilson,
)  # fmt: skip

# Prompts are texts, or records with a `.text`: a judge passes on what it is given, as hidden facts may be what it
# reads.
Judge = Callable[[Sequence[Any], Sequence[str], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Config:
    """How a comparison is reported. The prompts are drawn by the caller, who answers them with both policies."""

    confidence: float = 0.95
    length_ratio: LengthRatio = 'log'  # of `length_adjusted`; the paper's, 'plain', stands beside it
    resamples: int = 1000  # of prompts, for bootstrapped intervals; 0: Wilson's, Student's and the delta method's
    length_prior: bool = True  # `jeffreys` of `logistic_at_equal_length`; the paper's fit had no prior

    def __post_init__(self) -> None:
        normal_quantile(self.confidence)
        check_resamples(self.resamples)


@dataclass(frozen=True)
class WinRate:
    """Policy A against policy B. Rates are A's, in [0, 1]; lengths are characters, averaged over the scorable prompts."""

    raw: Interval
    length_adjusted: AtLength  # by the form of `Config.length_ratio`
    plain_ratio: AtLength  # by the paper's form, the ratio len_A / len_B
    plain_ratio_swapped: AtLength  # by that of the other order, len_B / len_A, which is another fit
    mean_length_a: float
    mean_length_b: float
    n: int  # prompts with a vote
    unscorable: int  # prompts without: the judge could not say
    ties: int  # votes of exactly one half
    p_value: float  # two-sided sign test of raw against 1/2, ties left out
    name_a: str = 'A'
    name_b: str = 'B'
    length_ratio: LengthRatio = 'log'

    @property
    def in_both_orders(self) -> tuple[AtLength, AtLength]:
        """A's rate at equal length as A against B has it, and as B against A has it: the same but for the plain ratio."""
        swapped = self.length_adjusted if self.length_ratio == 'log' else self.plain_ratio_swapped
        return self.length_adjusted, swapped


def win_rate(win_B: np.ndarray, confidence: float = 0.95, *, resamples: int = 1000) -> Interval:
    """Share of prompts on which A is preferred. nan votes are left out, and n counts the rest (none: nan in [0, 1]).

    A percentile bootstrap over prompts. With `resamples` of 0, and where less than ten votes are for A, or against it, or
    differ from the rest, Wilson's interval where every vote is 0 or 1, and `statistics.bounded_interval` where some are
    ties or averages. Mistake: a vote outside [0, 1].
    """
    vote_B = votes(win_B)
    vote_B = vote_B[~np.isnan(vote_B)]
    check_resamples(resamples)
    if resamples and resampled(vote_B):
        return bootstrap(vote_B, resamples=resamples, confidence=confidence)
    if np.isin(vote_B, (0, 1)).all():
        return wilson(vote_B.sum(), vote_B.size, confidence)
    return bounded_interval(vote_B, confidence)


def compare(
    prompts: Sequence[Any],
    responses_a: Sequence[str],
    responses_b: Sequence[str],
    judge: Judge,
    config: Config = Config(),
    *,
    names: tuple[str, str] = ('A', 'B'),
) -> WinRate:
    """Judges two policies' responses to the same prompts. Mistake: sequences, or votes, of different length."""
    if not len(prompts) == len(responses_a) == len(responses_b):
        raise Mistake(f'{len(prompts)} prompts, but {len(responses_a)} and {len(responses_b)} responses')
    vote_B = votes(judge(prompts, responses_a, responses_b))
    if vote_B.size != len(prompts):
        raise Mistake(f'the judge gave {vote_B.size} votes for {len(prompts)} prompts')
    scorable_B = ~np.isnan(vote_B)
    length_a_B, length_b_B = characters(responses_a), characters(responses_b)
    how = {'confidence': config.confidence, 'resamples': config.resamples}
    n, ties, wins = (int(which_B.sum()) for which_B in (scorable_B, vote_B == 0.5, vote_B > 0.5))
    even = partial(length_adjusted_win_rate, jeffreys=config.length_prior, **how)
    plain = even(vote_B, length_a_B, length_b_B, length_ratio='plain')
    adjusted = plain if config.length_ratio == 'plain' else even(vote_B, length_a_B, length_b_B)
    mean_a, mean_b = (float(x_B[scorable_B].mean()) if n else float('nan') for x_B in (length_a_B, length_b_B))
    return WinRate(
        raw=win_rate(vote_B, **how),
        length_adjusted=adjusted,
        plain_ratio=plain,
        plain_ratio_swapped=even(1 - vote_B, length_b_B, length_a_B, length_ratio='plain').complement(),
        mean_length_a=mean_a,
        mean_length_b=mean_b,
        n=n,
        unscorable=len(prompts) - n,
        ties=ties,
        p_value=binomial_test(wins, n - ties),
        name_a=names[0],
        name_b=names[1],
        length_ratio=config.length_ratio,
    )


def complement(one: WinRate) -> WinRate:
    """The same comparison told from the other side: what judging B against A finds, of a judge that is the same in both
    orders.
    """
    return replace(
        one,
        raw=one.raw.complement(),
        length_adjusted=one.in_both_orders[1].complement(),
        plain_ratio=one.plain_ratio_swapped.complement(),
        plain_ratio_swapped=one.plain_ratio.complement(),
        mean_length_a=one.mean_length_b,
        mean_length_b=one.mean_length_a,
        name_a=one.name_b,
        name_b=one.name_a,
    )


def both_orders(found: Mapping[tuple[str, str], WinRate]) -> dict[tuple[str, str], WinRate]:
    """(A, B) -> A's rate, and (B, A) -> B's, of which one is enough. Mistake: no comparisons."""
    if not found:
        raise Mistake('there are no comparisons to show')
    both = {}
    for (a, b), one in found.items():
        both[a, b] = one
        both[b, a] = found.get((b, a)) or complement(one)
    return both


def from_quality(quality: Callable[[Sequence[Any], Sequence[str]], np.ndarray]) -> Judge:
    """A judge that knows the quality of a response, `quality(prompts, responses) -> (B,)`, nan where there is none (so
    is the vote).

    The higher quality wins and equals are 1/2.
    """

    def judge(prompts, responses_a, responses_b):
        q_a_B = np.asarray(quality(prompts, responses_a), np.float64)
        q_b_B = np.asarray(quality(prompts, responses_b), np.float64)
        return np.where(np.isnan(q_a_B) | np.isnan(q_b_B), np.nan, 0.5 * (q_a_B > q_b_B) + 0.5 * (q_a_B >= q_b_B))

    return judge


def from_labels(
    labeler: Callable[[Sequence[Any], Sequence[str], Sequence[str]], Sequence[Any]],
    rule: Literal['averaged', 'both_agree'] = 'averaged',
) -> Judge:
    """A judge from an LM that is shown each pair in both orders: `labeler(prompts, responses_a, responses_b)` gives labels
    with `first_shown` and `second_shown`, both P(A is better), nan if unscorable.

    'averaged': A wins if the averaged preference is above one half (a tie at that). 'both_agree' (PERL, arXiv
    2403.10704): A wins only if it wins in both orders, loses only if it loses in both, and all else is a tie.
    """
    if rule not in ('averaged', 'both_agree'):
        raise Mistake(f"the rule is 'averaged' or 'both_agree', not {rule!r}")

    def judge(prompts, responses_a, responses_b):
        labels = labeler(prompts, responses_a, responses_b)
        first_B, second_B = [label.first_shown for label in labels], [label.second_shown for label in labels]
        shown_OB = np.array([first_B, second_B], np.float64)
        if rule == 'averaged':
            return verdicts(shown_OB.mean(0))
        return 0.5 + 0.5 * np.trunc(verdicts(shown_OB).sum(0) - 1)

    return judge
