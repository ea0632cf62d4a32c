"""People rank the responses of several policies to one prompt (§3.4 of the paper): how far raters agree (Kendall's W,
App. I), and the votes between any two policies that follow.

    rankings = read('rankings.jsonl')
    concordance(rankings.rank_BMN)
    versus.compare(prompts, responses['rl'], responses['sft'], judge(rankings, 'rl', 'sft'), names=('rl', 'sft'))

A row of the file is one rater's ranking for one prompt, best first; policies that share a place stand in a list:

    {"prompt_id": "micro/test/3", "rater": "ann", "ranking": ["rl", ["sft", "reference"]]}

The prompt is named by its id, or by its text in a column `prompt`. A row with `"repeat": true` is the same rater's second
ranking for it, asked to see whether it is the same again; one with `"skipped"`, a reason, is none. Axes: B prompt, M rater,
N policy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import numpy as np

from rlaif_jax.config import Mistake, nearest
from rlaif_jax.data import annotated, files, trl
from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation.statistics import FEWEST, Interval, bootstrap, bounded_interval, resampled
from rlaif_jax.evaluation.versus import Judge


@dataclass(frozen=True, eq=False)
class Rankings:
    """Who ranked what, in the order in which the names first occur."""

    prompts: tuple[str, ...]  # their ids, or their texts
    raters: tuple[str, ...]
    policies: tuple[str, ...]
    rank_BMN: np.ndarray  # the place a policy was given: 0 the best, equal where tied, nan where it was not ranked
    again_BMN: np.ndarray | None = None  # the same when a rater was asked again
    skipped: int = 0  # rows without a ranking


@dataclass(frozen=True)
class Rater:
    """How far one rater agrees: over pairs of policies that both rankings have, 1 for the same order, 0 for the opposite,
    and half where one of them has a tie and the other an order; averaged over prompts, in [0, 1]. Pairs of equal responses
    are left out: people see them as one, and cannot but tie them.
    """

    prompts: int  # ranked
    itself: Interval  # with what the same rater said of the same prompt when asked again; nan where nobody was
    others: Interval  # with the other raters, on prompts that they ranked, too


# Agreement of raters


def kendall_w(rank_MN: np.ndarray) -> float:
    """Kendall's coefficient of concordance of M raters who rank N items, corrected for ties: 1 where all rank alike.

        W = Σ_n (Σ_m r_mn)² / (M Σ_mn r_mn²),   r the ranks of a rater round their mean, tied items sharing theirs

    Without ties that is 12 S / (M² (N³ − N)), and each tie takes off what the correction takes off. Raters who rank
    at random have 1 / M on average, not 0. Ranks may be any numbers, the order of a row is all that counts. A rater
    without a rank for anything is left out, and then each item that not all have ranked. With fewer than two raters or
    items, or where everything is tied: nan. Mistake: not a table of numbers, infinity.
    """
    rank_MN = np.asarray(rank_MN, np.float64)
    if rank_MN.ndim != 2 or np.isinf(rank_MN).any():
        raise Mistake(f'ranks are a table of finite numbers, raters by items, not of shape {rank_MN.shape}')
    rank_MN = rank_MN[~np.isnan(rank_MN).all(1)]
    rank_MN = rank_MN[:, ~np.isnan(rank_MN).any(0)]
    if min(rank_MN.shape) < 2:
        return float('nan')
    # Half of (items before it - items behind it) is an item's rank round the mean, and ties need no further care.
    centred_MN = 0.5 * np.sign(rank_MN[:, :, None] - rank_MN[:, None, :]).sum(-1)
    most = len(rank_MN) * (centred_MN**2).sum()
    return float((centred_MN.sum(0) ** 2).sum() / most) if most else float('nan')


def concordance(rank_BMN: np.ndarray, *, resamples: int = 1000, confidence: float = 0.95) -> Interval:
    """Kendall's W averaged over prompts, with a bootstrap interval over them. The paper's raters: 0.6 to 0.7 (App. I).

    Prompts without a W (see `kendall_w`) are left out, and n counts the rest (none: nan). With fewer than ten the interval
    is all of [0, 1].
    """
    w_B = np.array([kendall_w(rank_MN) for rank_MN in rank_BMN], np.float64)
    w_B = w_B[~np.isnan(w_B)]
    if w_B.size < FEWEST:
        return Interval(float(w_B.mean()) if w_B.size else float('nan'), 0.0, 1.0, w_B.size)
    if not resampled(w_B):  # nearly all the same, as where raters always agree
        return bounded_interval(w_B, confidence)
    return bootstrap(w_B, resamples=resamples, confidence=confidence)


def raters(
    rankings: Rankings, confidence: float = 0.95, responses: Mapping[str, Mapping[str, str]] = {}
) -> dict[str, Rater]:
    """How far each rater agrees with itself and with the others. responses: policy -> prompt, as the rankings name both, ->
    what it wrote; those not given are taken to differ.
    """
    text_BN = np.empty((len(rankings.prompts), len(rankings.policies)), object)
    for n, policy in enumerate(rankings.policies):
        text_BN[:, n] = [responses.get(policy, {}).get(prompt, n) for prompt in rankings.prompts]  # n is like no text
    equal_BNN = text_BN[:, :, None] == text_BN[:, None, :]
    order = partial(_same_order, equal_BNN=equal_BNN)
    rank_MBN = np.moveaxis(rankings.rank_BMN, 1, 0)
    again_MBN = np.full_like(rank_MBN, np.nan) if rankings.again_BMN is None else np.moveaxis(rankings.again_BMN, 1, 0)
    found = {}
    for m, name in enumerate(rankings.raters):
        with_others_MB = np.array([order(rank_MBN[m], other_BN) for other_BN in np.delete(rank_MBN, m, 0)])
        with_others_MB = with_others_MB.reshape(-1, len(rankings.prompts))
        said_B = (~np.isnan(with_others_MB)).sum(0)
        others_B = np.nansum(with_others_MB, 0)[said_B > 0] / said_B[said_B > 0]
        itself_B = order(rank_MBN[m], again_MBN[m])
        found[name] = Rater(
            prompts=int((~np.isnan(rank_MBN[m])).any(1).sum()),
            itself=bounded_interval(itself_B[~np.isnan(itself_B)], confidence),
            others=bounded_interval(others_B, confidence),
        )
    return found


def _same_order(rank_BN: np.ndarray, other_BN: np.ndarray, equal_BNN: np.ndarray) -> np.ndarray:
    """(B,) as `Rater` says; nan where no pair of unlike responses was ranked by both."""
    a, b = np.triu_indices(rank_BN.shape[-1], 1)
    sign_BP, other_BP = (np.sign(one_BN[:, a] - one_BN[:, b]) for one_BN in (rank_BN, other_BN))
    same_BP = np.where(equal_BNN[:, a, b], np.nan, 1 - np.abs(sign_BP - other_BP) / 2)
    said_B = (~np.isnan(same_BP)).sum(1)
    return np.where(said_B > 0, np.nansum(same_BP, 1) / np.maximum(said_B, 1), np.nan)


# Votes between two policies


def votes(rankings: Rankings, a: str, b: str) -> np.ndarray:
    """Policy A against B as `versus.win_rate` takes it, (B,) over `rankings.prompts`: the share of raters who put A
    before B, ties as halves; nan where nobody ranked both. Mistake: an unknown policy.
    """
    rank_a_BM, rank_b_BM = (rankings.rank_BMN[..., _policy(rankings, name)] for name in (a, b))
    sign_BM = np.sign(rank_b_BM - rank_a_BM)
    said_B = (~np.isnan(sign_BM)).sum(1)
    return np.where(said_B > 0, 0.5 + 0.5 * np.nansum(sign_BM, 1) / np.maximum(said_B, 1), np.nan)


def judge(rankings: Rankings, a: str, b: str) -> Judge:
    """A judge for `versus.compare`: the votes of the prompts it is given, found by id or by text, nan where a prompt
    was not ranked. It trusts that the responses are those that people saw. Mistake: an unknown policy, and when it is
    asked, not one of the prompts among those ranked.
    """
    vote_of = dict(zip(rankings.prompts, votes(rankings, a, b)))

    def look_up(prompts, responses_a, responses_b):
        keys = [[getattr(prompt, 'id', prompt), getattr(prompt, 'text', prompt)] for prompt in prompts]
        if twice := [id for id, text in keys if id != text and id in vote_of and text in vote_of]:
            raise Mistake(f'the prompt {twice[0]!r} was ranked by its id and by its text; name it by one of them')
        if keys and not any(key in vote_of for both in keys for key in both):
            raise Mistake(
                f'none of the {len(keys)} prompts was ranked: the first is {keys[0][0][:80]!r}, '
                f'the first of the rankings {rankings.prompts[0][:80]!r}'
            )
        return np.array([vote_of.get(id, vote_of.get(text, np.nan)) for id, text in keys], np.float64)

    return look_up


# Raters who score


def by_scores(
    prompts: Sequence[Any],
    responses: Mapping[str, Sequence[str]],
    raters: Mapping[str, Callable[[Sequence[Any], Sequence[str]], Sequence[float]]],
) -> Rankings:
    """How raters rank the responses of policies, policy -> its responses to `prompts`, who score each response by itself:
    rater -> `scores(prompts, responses)`, the best highest, equal ones tied.
    """
    score_MNB = [[scores(prompts, texts) for texts in responses.values()] for scores in raters.values()]
    score_BMN = np.moveaxis(np.array(score_MNB, np.float64), -1, 0)
    rank_BMN = (score_BMN[..., None, :] > score_BMN[..., :, None]).sum(-1).astype(np.float64)
    return Rankings(tuple(prompt.id for prompt in prompts), tuple(raters), tuple(responses), rank_BMN)


# Files


def read(
    path: PathLike | str,
    *,
    policies: Collection[str] = (),
    prompts: Sequence[Prompt] = (),
    responses: Mapping[str, Sequence[str]] = {},
) -> Rankings:
    """Reads a file of rankings, one a row, as JSON lines or what else `data.files` reads. `policies` and `prompts` are
    those that there are, where they are known: one misspelt would be a vote that is missing. Prompts then come by their
    ids, however they were named. `responses`, policy -> what it wrote to each of the prompts, say whose the items of an
    export are that names them otherwise: by their texts, so that equal texts are tied.

    Mistake, which names file and line: a column is missing, a ranking is not a list of at least two policies (or lists
    of tied ones), names one twice, or one that there is not, or is the rater's second for the prompt; a prompt's text
    that several have, or that is not the one of its id.
    """
    place_of: dict[tuple[str, str, str], int] = {}
    again_of: dict[tuple[str, str, str], int] = {}
    seen: dict[tuple[str, str, bool], str] = {}
    skipped = 0
    ids: dict[str, list[str]] = {}
    for one in prompts:
        ids.setdefault(one.text, []).append(one.id)
    ids |= {one.id: [one.id] for one in prompts}
    text_of = {one.id: one.text for one in prompts}
    written = {one.id: {name: texts[i] for name, texts in responses.items()} for i, one in enumerate(prompts)}
    located = [(at, one) for at, row in files.read(path).located for one in _own(row, at, ids, written, policies)]
    for where, row in located:
        prompt, rater = _prompt(row, where), str(trl.name_of(_column(row, 'rater', where)))
        if prompts and prompt not in ids:
            near = nearest(prompt, ids)[:80]
            raise Mistake(f'{where}: there is no response to a prompt {prompt[:80]!r}; did you mean {near!r}?')
        if prompts:
            prompt, *others = ids[prompt]
            if others:
                raise Mistake(
                    f'{where}: there are responses to this prompt by the ids {prompt!r}, {others[0]!r}; name one'
                )
            said = row.get('prompt')
            if isinstance(said, str) and said.split() != text_of[prompt].split():
                raise Mistake(f'{where}: the prompt {prompt!r} is {text_of[prompt][:80]!r}, not {said[:80]!r}')
        if isinstance(row.get('skipped'), str):
            skipped += 1
            continue
        again = row.get('repeat') is True
        if (prompt, rater, again) in seen:
            raise Mistake(f'{where}: rater {rater!r} has ranked this prompt before, in {seen[prompt, rater, again]}')
        seen[prompt, rater, again] = where
        for place, names in enumerate(_places(_column(row, 'ranking', where), where)):
            for name in names:
                if policies and name not in policies:
                    near = nearest(name, policies)
                    raise Mistake(f'{where}: no policy {name!r} has responses; did you mean {near!r}?')
            (again_of if again else place_of).update({(prompt, rater, name): place for name in names})
    if not place_of:
        raise Mistake(f'{path}: nobody has ranked anything; {skipped} rows are skipped prompts')
    axes = [{name: i for i, name in enumerate(dict.fromkeys(names))} for names in zip(*place_of)]
    rank_BMN, again_BMN = (np.full([len(axis) for axis in axes], np.nan) for _ in range(2))
    for table_BMN, places in ((rank_BMN, place_of), (again_BMN, again_of)):
        for names, place in places.items():
            if all(name in axis for axis, name in zip(axes, names)):  # asked again of what was skipped at first
                table_BMN[tuple(axis[name] for axis, name in zip(axes, names))] = place
    return Rankings(*map(tuple, axes), rank_BMN, again_BMN, skipped)


def _own(
    row: Mapping[str, Any],
    where: str,
    ids: Mapping[str, Sequence[str]],
    written: Mapping[str, Mapping[str, str]],
    policies: Collection[str],
) -> list[Mapping[str, Any]]:
    """A row of ours as it is, and one of an export as rows of ours, a rater each."""
    if (ranked := annotated.rankings(row, where)) is None:
        return [row]
    found, likely = [], {key.strip(): key for key in ids}
    for one in ranked:
        prompt = next(
            (likely[name.strip()] for name in one.prompts if name.strip() in likely), next(iter(one.prompts), '')
        )
        own: dict[str, Any] = {'prompt_id': prompt, 'rater': one.rater}
        if one.places is None:
            found.append(own | {'skipped': 'by the export'})
            continue
        theirs = written.get(next(iter(ids.get(prompt, ())), ''), {})
        places: list[list[str]] = []
        for names in one.places:
            of = [policy for name in names for policy in _whose(name, one, theirs, policies, where)]
            places.append([name for name in dict.fromkeys(of) if not any(name in before for before in places)])
        found.append(own | {'ranking': [names for names in places if names]})
    return found


def _whose(
    name: str, one: annotated.Ranked, theirs: Mapping[str, str], policies: Collection[str], where: str
) -> list[str]:
    """The policies that wrote what an export calls by a name."""
    if name in theirs or not theirs:
        return [name]
    text = one.texts.get(name, '').strip()
    if found := [policy for policy, written in theirs.items() if name in one.texts and written.strip() == text]:
        return found
    if policies:
        raise Mistake(f'{where}: {name!r} is no policy, and no policy wrote {text[:80]!r} to this prompt')
    return [name]


def _prompt(row: Mapping[str, Any], where: str) -> str:
    return trl.name_of(row.get('prompt_id')) or str(_column(row, 'prompt', where))


def _column(row: Mapping[str, Any], name: str, where: str) -> Any:
    if trl.name_of(row.get(name)) is None:
        wanted = "'prompt_id' or 'prompt'" if name == 'prompt' else repr(name)
        raise Mistake(f'{where}: no column {wanted}; the columns are {", ".join(map(repr, row)) or "none"}')
    return row[name]


def _places(ranking: Any, where: str) -> list[list[str]]:
    """The policies at each place, best first."""
    places = [one if isinstance(one, list) else [one] for one in ranking] if isinstance(ranking, list) else []
    names = [name for place in places for name in place]
    if len(names) < 2 or not all(places) or not all(isinstance(name, str) for name in names):
        raise Mistake(
            f'{where}: a ranking is a list of two policies or more, best first, tied ones in a list: '
            f'["a", ["b", "c"]]; not {str(ranking)[:80]}'
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise Mistake(f'{where}: the ranking names {twice[0]!r} twice')
    return places


def _policy(rankings: Rankings, name: str) -> int:
    if name not in rankings.policies:
        raise Mistake(f'no policy {name!r} among those ranked; did you mean {nearest(name, rankings.policies)!r}?')
    return rankings.policies.index(name)
