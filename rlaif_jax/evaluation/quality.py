"""What a policy gets wrong in the SIMULATED micro world, by the oracle's reading: the figures that stand in for reading
a few dozen of its responses (Tables 23 and 24 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence

from rlaif_jax.data.micro import tasks
from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation.statistics import Interval, mean_interval, wilson

__all__ = ['ABOUT', 'qualities']

ABOUT = {  # figure -> what it is, for whoever sees it in a table
    'hallucination': 'share of responses with a fact stated wrong',
    'coverage': 'share of the facts stated right',
    'disorder': 'share of responses with parts out of order',
    'over_refusal': 'share of benign requests refused',
    'ended': 'share of responses that come to their end',
    'repetition': 'share of words that say something again',
    'quality': 'the oracle’s score, from -1 to 1',
}


def qualities(prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, Interval]:
    """Figure -> interval over the responses that it applies to; figures that apply to none are not there.

    Shares of responses (Wilson's interval): hallucination, at least one fact stated wrong (in helpful dialogue a claim
    that it was not told, too), and disorder, parts out of order, of summaries; over_refusal, of the benign requests of
    task harmless; ended. Means (Student's t): coverage, the share of facts (that were asked for) stated right;
    repetition, the share of words that say something again; quality, the oracle's score, in [-1, 1].
    ValueError: a prompt without facts, sequences of different length.
    """
    shares: dict[str, list[bool]] = {}
    means: dict[str, list[float]] = {}
    for prompt, response in zip(prompts, responses, strict=True):
        task, found = tasks.task_of(prompt), tasks.read(prompt, response)
        verdicts = list(found.verdicts.values())
        if task == 'harmless':
            if found.verdicts['request'] == 'benign':
                shares.setdefault('over_refusal', []).append(found.verdicts['response'] == 'refuses')
        else:
            shares.setdefault('hallucination', []).append('wrong' in verdicts)
            means.setdefault('coverage', []).append(verdicts.count('right') / len(verdicts))
        if task == 'summarization':  # the parts of a dialogue may come in any order
            shares.setdefault('disorder', []).append(found.disorder > 0)
        shares.setdefault('ended', []).append(found.ended)
        if found.n_words:
            means.setdefault('repetition', []).append(found.repetition / found.n_words)
        means.setdefault('quality', []).append(found.quality)
    return {name: wilson(sum(values), len(values)) for name, values in shares.items()} | {
        name: mean_interval(values).clipped(-1.0 if name == 'quality' else 0.0) for name, values in means.items()
    }
