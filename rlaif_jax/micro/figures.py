"""What a policy gets wrong in the SIMULATED micro world, by the oracle's reading: the figures that stand in for reading
a few dozen of its responses (Tables 23 and 24 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence

from rlaif_jax.data.records import Prompt
from rlaif_jax.data.source import Figure
from rlaif_jax.micro import tasks

ABOUT = {
    'hallucination': Figure('share of responses with a fact stated wrong', share=True),
    'coverage': Figure('share of the facts stated right'),
    'disorder': Figure('share of responses with parts out of order', share=True),
    'over_refusal': Figure('share of benign requests refused', share=True),
    'ended': Figure('share of responses that come to their end', share=True),
    'repetition': Figure('share of words that say something again'),
    'quality': Figure('the oracle’s score, from -1 to 1', least=-1.0),
}


def figures(prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
    """Figure → its value for each response that it applies to; figures that apply to none are not there.

    hallucination: at least one fact stated wrong (in helpful dialogue a claim that it was not told, too). coverage: the
    share of facts (that were asked for) stated right. disorder: parts out of order, of summaries. over_refusal: of the
    benign requests of task harmless. repetition: of responses with words. quality: the oracle's score, in [-1, 1].
    ValueError: a prompt without facts, sequences of different length.
    """
    shares: dict[str, list[float]] = {}
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
    return shares | means
