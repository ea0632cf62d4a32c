"""The report on policies: who is preferred, raw and at equal length, how harmless they are, what they get wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from experiments import judging
from experiments.arms import ARMS, SFT_HARMLESS, published
from experiments.scales import Dtype, Evaluation, Mesh
from rlaif_jax import axes, log
from rlaif_jax.data.records import Prompt
from rlaif_jax.data.source import Figure, Source, Values, World
from rlaif_jax.evaluation import harmless, rankings, responses, tables, texts, versus
from rlaif_jax.evaluation.figures import figure_lengths, figure_matrix, figure_training
from rlaif_jax.evaluation.report import harmless_table, matrix_table, measures_table, policies_csv, policies_table
from rlaif_jax.evaluation.statistics import Interval, mean_interval, wilson
from rlaif_jax.labeling.prompts import simulated

TRAINED = {  # figure -> what it is, of the last evaluation in a run of REINFORCE
    'reward': 'score and KL together',
    'score': 'by the policy’s own scorer',
    'kl': 'nats a response, to SFT',
    'mean_length': 'tokens',
    'quality': 'by the oracle',
}
RATERS_TABLE = ('rater', 'prompts', 'same order when asked again %', 'as the others %')
RATERS = 3  # who rank, where they are simulated; the paper asked as many (App. I)
Written = Mapping[str, Sequence[str]]  # policy -> its responses


class Judged(Protocol):
    """What is read of the config of an experiment that compares policies."""

    task: str
    evaluation: Evaluation
    mesh: Mesh
    dtype: Dtype


def report(
    cfg: Judged,
    folder: Path,
    source: Source,
    prompts: Sequence[Prompt],
    written: Written,
    runs: Mapping[str, Path],
    people: str = '',
) -> dict[str, Any]:
    """Judge every pair of policies, print tables, write figures, a CSV and samples into the folder, and return what goes
    into result.json.

    Args:
      source: where the prompts are from.
      runs: the folders of those policies that were trained, by name.
      people: a file of people's rankings, which then judge; '' for the judge of `cfg`.
    """
    mesh, world = axes.make_mesh(asdict(cfg.mesh)), source.world
    needed = cfg.task == 'harmless' or not people
    lm = judging.judge_model(cfg.evaluation, cfg.dtype, mesh) if needed else None
    ranked = rankings.read(people, prompts=prompts, responses=written) if people else None
    # Verdicts of a simulated world's model are simulated, too; those of people are not, whatever they read.
    toy = lm is not None and simulated(lm.tokenizer)
    about = {'simulated': not ranked and (source.simulated or toy)}
    result: dict[str, Any] = {'simulated': source.simulated or toy}
    responses.write(folder / 'responses.jsonl', prompts, written)
    if cfg.evaluation.clean_up and not people:  # who saw them as they are
        written, result['cleaned'] = cleaned(written)

    judge = None if ranked else judging.make_judge(cfg.evaluation, cfg.task, lm, mesh, world)
    found: dict[str, list[versus.WinRate]] = {}
    votes: dict[str, dict[str, Sequence[float]]] = {}
    for a, b in combinations(written, 2):
        judges = {'people': rankings.judge(ranked, a, b)} if ranked else {cfg.evaluation.judge: judge}
        judges |= {'simulated oracle' if ranked else 'oracle': judging.oracle(world)} if world else {}
        for name, asked in judges.items():
            voted = votes.setdefault(f'{a} vs {b}', {})[name] = asked(prompts, written[a], written[b])
            how = cfg.evaluation.reported()
            one = versus.compare(prompts, written[a], written[b], lambda *_, voted=voted: voted, how, names=(a, b))
            found.setdefault(name, []).append(one)
    judged(folder / 'judged.jsonl', prompts, written, votes, world)
    title = f'{len(prompts)} test prompts' + (' of the SIMULATED world, ranked by people' if ranked and world else '')
    policies_table(found, title=title, published=published(cfg.task), **about)
    if ranked or (world and len(written) > 2):
        result['concordance'] = concordance(cfg.evaluation, prompts, written, ranked, world)
    if ranked:
        result['raters'] = raters(ranked, cfg.evaluation.confidence, prompts, written)
    result['comparisons'] = comparisons(cfg.task, folder, found, **about)
    if cfg.task == 'harmless' and (world or lm):
        judge = judging.make_harm_judge(cfg.evaluation, lm, mesh, world)
        result['harmless'] = harmless_rates(cfg.evaluation, prompts, written, judge, source.simulated or toy)
    if world:
        result['quality'] = qualities(cfg.evaluation, prompts, written, world)
    result['texts'] = {name: texts.text_statistics(prompts, theirs) for name, theirs in written.items()}
    measures_table('SIMULATED world: their texts' if world else 'their texts', result['texts'], texts.ABOUT)

    figure_lengths(folder / 'lengths.png', written, simulated=source.simulated)
    if runs:
        training(folder, runs, source.simulated)
    responses.side_by_side(folder / 'test_samples', prompts, written, simulated=source.simulated)
    return result


def judged(
    path: Path, prompts: Sequence[Prompt], written: Written, votes: Mapping[str, Mapping[str, Any]], world: World | None
) -> None:
    """Writes what is said of the responses to each prompt: votes, pair of policies -> judge, and what is true of them where
    the world is simulated.
    """
    known = {}
    if world:
        known['quality'] = {name: world.quality(prompts, texts) for name, texts in written.items()}
        known['wrong'] = {name: world.wrong(prompts, texts) for name, texts in written.items()}
    rows = []
    for i, prompt in enumerate(prompts):
        said = {pair: {judge: voted[i] for judge, voted in by.items()} for pair, by in votes.items()}
        true = {what: {name: values[i] for name, values in of.items()} for what, of in known.items()}
        rows.append({'prompt_id': prompt.id, 'votes': said, **true})
    log.write_whole(path, ''.join(log.to_json(row) + '\n' for row in rows))


def comparisons(
    task: str, folder: Path, found: Mapping[str, Sequence[versus.WinRate]], *, simulated: bool
) -> dict[str, Any]:
    """Every comparison as plain values, pair of policies -> judge; also as a CSV and, of several, as a matrix."""
    first = {(one.name_a, one.name_b): one for one in next(iter(found.values()))}
    if len(first) > 1:
        matrix_table(first, simulated=simulated)
        figure_matrix(folder / 'matrix.png', first, simulated=simulated)
    policies_csv(folder / 'comparisons.csv', found, published=published(task), simulated=simulated)
    return {f'{a} vs {b}': {name: asdict(each[i]) for name, each in found.items()} for i, (a, b) in enumerate(first)}


def cleaned(written: Written) -> tuple[Written, dict[str, int]]:
    """The responses without superfluous symbols at their ends, and how many of each policy's had some; says so."""
    found = {name: texts.strip_trailing(responses) for name, responses in written.items()}
    counts = {name: count for name, (_, count) in found.items()}
    told, total = ', '.join(f'{name} {count}' for name, count in counts.items()), len(next(iter(written.values())))
    log.say(f'superfluous symbols at the end were stripped before judging (App. E): {told} of {total}')
    return {name: responses for name, (responses, _) in found.items()}, counts


def concordance(
    cfg: Evaluation,
    prompts: Sequence[Prompt],
    written: Written,
    ranked: rankings.Rankings | None,
    world: World | None,
) -> dict[str, Any]:
    """How far raters who rank the responses of all policies agree: those of a file, or where there is none, simulated."""
    who = range(cfg.seed * RATERS, (cfg.seed + 1) * RATERS)
    panel = ranked or rankings.by_scores(
        prompts, written, {f'simulated {one}': partial(world.scores, seed=one) for one in who}
    )
    w, (_, raters, policies) = rankings.concordance(panel.rank_BMN, confidence=cfg.confidence), panel.rank_BMN.shape
    if not w.n:
        log.say('Kendall’s W: no prompt was ranked by two raters')
        return {'simulated': ranked is None, 'raters': raters, 'policies': policies} | asdict(w)
    log.say(
        f'{raters} {"" if ranked else "SIMULATED "}raters rank {policies} responses to a prompt: Kendall’s W {w.value:.2f} '
        f'[{w.low:.2f}, {w.high:.2f}], n={w.n} (by chance {1 / raters:.2f}; people in the paper 0.6 to 0.7)\n'
    )
    return {'simulated': ranked is None, 'raters': raters, 'policies': policies} | asdict(w)


def raters(ranked: rankings.Rankings, confidence: float, prompts: Sequence[Prompt], written: Written) -> dict[str, Any]:
    """How far each rater agrees with what it said itself, where it was asked again, and with the others."""
    ids = [prompt.id for prompt in prompts]
    seen = {name: dict(zip(ids, responses)) for name, responses in written.items()}
    found = rankings.raters(ranked, confidence, seen)
    cells = [[name, one.prompts, tables.within(one.itself), tables.within(one.others)] for name, one in found.items()]
    log.figures_table('raters', RATERS_TABLE, cells)
    if ranked.skipped:
        log.say(f'{ranked.skipped} times a prompt was skipped')
    return {name: asdict(one) for name, one in found.items()}


def harmless_rates(
    cfg: Evaluation, prompts: Sequence[Prompt], written: Written, judge: harmless.HarmJudge, simulated: bool
) -> dict[str, Any]:
    """The share of harmless responses of each policy, at their own length and at SFT's."""
    votes = {name: (responses, judge(prompts, responses)) for name, responses in written.items()}
    rates = harmless.compare_harmless(votes, cfg.reported(), at='SFT' if 'SFT' in votes else None)
    paper = {name: arm.harmless for name, arm in ARMS.items() if arm.harmless} | {'SFT': SFT_HARMLESS}
    harmless_table(rates, title=tables.title('share of harmless responses', simulated), published=paper)
    return {rate.name: asdict(rate) for rate in rates}


def qualities(cfg: Evaluation, prompts: Sequence[Prompt], written: Written, world: World) -> dict[str, Any]:
    """What each policy gets wrong, and right, in a simulated world."""
    found = {
        name: intervals(world.figures(prompts, responses), world.about, cfg.confidence)
        for name, responses in written.items()
    }
    about = {name: figure.about for name, figure in world.about.items()}
    measures_table('SIMULATED world: what they get wrong, and right, by the oracle', found, about)
    return {name: {key: asdict(x) for key, x in row.items()} for name, row in found.items()}


def intervals(found: Values, about: Mapping[str, Figure], confidence: float = 0.95) -> dict[str, Interval]:
    """Figure -> its interval over responses: Wilson's of a share, Student's of a mean, within what the figure can be."""
    return {
        name: wilson(sum(values), len(values), confidence)
        if about[name].share
        else mean_interval(values, confidence).clipped(about[name].least)
        for name, values in found.items()
    }


def training(folder: Path, runs: Mapping[str, Path], simulated: bool) -> None:
    """How training went, by the metrics of each run."""
    metrics = {name: log.read_metrics(run) for name, run in runs.items()}
    # Whatever it is compared on, a run that an oracle looked at was one of the simulated world.
    simulated = simulated or any('eval/quality' in row for rows in metrics.values() for row in rows)
    figure_training(folder / 'training.png', metrics, simulated=simulated)
    world = 'SIMULATED world: ' if simulated else ''
    measures_table(f'{world}where training ended, on validation prompts', trained(metrics), TRAINED)


def trained(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Policy -> what its last evaluation on validation prompts found; of those that have one."""
    last = {
        name: next((row for row in reversed(rows) if row.get('eval/score') is not None), None)
        for name, rows in metrics.items()
    }
    return {
        name: {figure: row[f'eval/{figure}'] for figure in TRAINED if f'eval/{figure}' in row}
        for name, row in last.items()
        if row
    }


def over_optimised(rows: Sequence[Mapping[str, Any]], least: float = 0.02, far: float = 1.0) -> str:
    """What to say of metrics whose score and quality part, as `parted` finds, '' of others."""
    return found[2] if (found := parted(rows, least, far)) else ''


def parted(rows: Sequence[Mapping[str, Any]], least: float = 0.02, far: float = 1.0) -> tuple[int, int, str] | None:
    """The steps between which score and quality part, and what to say of it; None where they do not. Quality is known in a
    simulated world only.

    That is where the score rose while quality fell by `least` and more, between any two evaluations: told of those where
    it fell most. Or where from first to last the score rose, quality did not by `least`, and KL passed `far` nats: it was
    bought for nothing. With 128 validation prompts either may be chance: what is not a fall of two standard errors is
    called perhaps one.
    """
    known = [row for row in rows if all(row.get(f'eval/{name}') is not None for name in ('score', 'quality', 'kl'))]
    spans = [(a, b) for a, b in combinations(known, 2) if b['eval/score'] > a['eval/score']]
    fall = lambda span: span[0]['eval/quality'] - span[1]['eval/quality']  # noqa: E731
    if not spans:
        return None
    whole, worst = (known[0], known[-1]), max(spans, key=fall)
    fell = fall(worst) >= least
    flat = whole in spans and fall(whole) > -least and known[-1]['eval/kl'] >= far
    if not fell and not flat:
        return None
    a, b = worst if fell else whole
    moved = ', '.join(
        f'{name} {a[f"eval/{name}"]:+.3f} → {b[f"eval/{name}"]:+.3f}' for name in ('score', 'quality', 'kl')
    )
    errors = [row['eval/quality_error'] for row in (a, b) if row.get('eval/quality_error') is not None]
    sure = fell and fall(worst) >= 2 * math.hypot(*errors)
    moved += f'; standard errors of quality {errors[0]:.3f} and {errors[1]:.3f}' if len(errors) == 2 else ''
    end = '' if b is known[-1] else f'; at the end, quality {known[-1]["eval/quality"]:+.3f}'
    told = (
        ('' if sure else 'perhaps ')
        + f'over-optimised: from step {a["step"] + 1} to {b["step"] + 1}'
        + (f', the worst of {len(spans)} spans,' if fell and len(spans) > 1 else '')
        + f' the score rose and quality {"fell" if fell else f"not by {least}"} ({moved}){end}'
    )
    return a['step'] + 1, b['step'] + 1, told
