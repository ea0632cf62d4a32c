"""The reward model: one score for a response to a prompt, learned from which of two responses is better (§2.2.1).

    L = −[p·log σ(s₁ − s₂) + (1 − p)·log σ(s₂ − s₁)],   p = P(the first is better), nats a pair

the cross-entropy between the softmax of the two scores and the label, as it is: a labeler that is not sure says so, and
the model learns that too. With p of 0 or 1 it is Bradley and Terry's loss on votes of people. Only differences between
responses to one prompt are learned; where a score is zero means nothing.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlaif_jax import axes, hosts, log
from rlaif_jax.batching import in_batches, padded, together
from rlaif_jax.config import MOST, SAME, Mistake, check_within
from rlaif_jax.data import loader
from rlaif_jax.data.records import Pair
from rlaif_jax.models import heads, hf, lora, stored, transformer
from rlaif_jax.models.attention import Sees
from rlaif_jax.models.hf import LM
from rlaif_jax.models.presets import resolve
from rlaif_jax.shortening import check_fits, reads, shortened
from rlaif_jax.text import Tokenizer, pad_right
from rlaif_jax.training import loop
from rlaif_jax.training import state as training

EACH = 4  # pairs that share a row at most: a row has a place for so many, filled or not
Scorer = Callable[..., np.ndarray]  # (prompts, responses, ended_B=None) -> score_B; None: all responses are whole


@dataclass(frozen=True)
class Config:
    """App. G: batch 128 (dialogue: 32), Adafactor at 1e-5, 2 to 3 epochs, 1024 tokens of context + 128 of response."""

    steps: int = 2200  # three epochs of the 92,858 pairs of TL;DR
    batch: int = 128  # pairs
    parts: int = field(default=1, metadata=SAME)  # the batch goes through the device in this many parts
    # The backward pass computes each layer again: a third more time, far less memory.
    remat: bool = field(default=False, metadata=SAME)
    pack: bool = field(default=True, metadata=SAME)  # short pairs share rows: less padding, the same step
    window: int = 1  # batches in a row that share out their pairs by length, to pad less; 1: pairs stay where they fall
    optimizer: training.Optimizer = field(default_factory=training.Optimizer)
    lora: lora.Config = field(default_factory=lora.Config)
    soft: bool = True  # labels as they are; otherwise rounded to 0 or 1, and ties train nothing
    max_prompt: int = 1024  # tokens; longer prompts are shortened
    max_response: int = 128  # tokens, the end token among them; of a longer response the first ones
    eval_every: int = 200  # steps between two evaluations on held-out pairs
    score_batch: int = field(default=64, metadata=SAME)  # responses that are scored at once
    save_every: int = field(default=100, metadata=SAME)  # steps between two checkpoints
    log_every: int = field(default=10, metadata=SAME)  # steps between two lines of metrics
    seed: int = 0  # of the order of the pairs, and of fresh adapters

    def __post_init__(self) -> None:
        training.check_parts('batch', self.batch, self.parts)
        check_within(self, 0, MOST, 'seed')
        check_within(self, 1, MOST, 'steps', 'batch', 'score_batch', 'window', 'max_prompt', 'max_response')
        check_within(self, 1, MOST, 'eval_every', 'save_every', 'log_every')


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward model as values. It has no unembedding, so its config says `tied`."""

    config: transformer.Config
    params: dict[str, transformer.Params]  # {'trunk': …, 'head': {'head_D', 'head_bias'}}
    tokenizer: Tokenizer
    name: str


def from_lm(lm: LM) -> RewardModel:
    """Where training starts: the trunk of a language model (the paper: SFT for AI labels, the base model for votes of
    people) and a zero head, so every score is 0.
    """
    trunk = {name: x for name, x in lm.params.items() if name != 'unembed_DV'}
    params = {'trunk': trunk, 'head': heads.scalar_head(lm.config.width)}
    return RewardModel(replace(lm.config, tied=True), params, lm.tokenizer, lm.name)


# The loss


def loss(score_C: jax.Array, preference: jax.Array) -> jax.Array:
    """−[p·log σ(s₁ − s₂) + (1 − p)·log σ(s₂ − s₁)] of one pair, in nats (§2.2.1, A.2).

    score_C: the two scores. preference: p = P(the first is better), in [0, 1]. Its gradient by the margin s₁ − s₂ is
    σ(s₁ − s₂) − p.
    """
    margin = score_C[0] - score_C[1]
    return -(preference * jax.nn.log_sigmoid(margin) + (1 - preference) * jax.nn.log_sigmoid(-margin))


def scores(model: transformer.Config, params: dict[str, transformer.Params], batch: training.Batch) -> jax.Array:
    """score_BQC of both responses of each pair of each row, in one forward: the prompt is computed once, the responses are
    branches behind it, each at the positions it would have alone.

    batch: what `make_batch` makes. Equal to two forwards of prompt and response up to rounding, at 1 / 1.8 of the cost
    where the prompt is 1024 tokens and a response 128.
    """
    last_BQC = batch['last_BQC']
    read_BW = last_BQC.reshape(len(last_BQC), -1)
    trunk, given = params['trunk'], (batch['token_BT'], batch['position_BT'], Sees(batch['until_BT']))
    hidden_BWD = transformer.forward_at(model, trunk, *given, read_BW)
    # A margin does not see the bias. What rounding leaves of its gradient, Adafactor would scale up to whole steps.
    head = params['head'] | {'head_bias': jax.lax.stop_gradient(params['head']['head_bias'])}
    return heads.scalar(head, hidden_BWD).reshape(last_BQC.shape)


def batch_loss(
    model: transformer.Config, params: dict[str, transformer.Params], batch: training.Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Σ weight·loss over pairs, and the sums that the log shows. A pair of weight 0 adds nothing.

    A margin counts towards the response that the label prefers; a tie, of scores or of labels, is half a hit.
    """
    score_BQC, preference_BQ, weight_BQ = scores(model, params, batch), batch['preference_BQ'], batch['weight_BQ']
    margin_BQ, side_BQ = score_BQC[..., 0] - score_BQC[..., 1], jnp.sign(preference_BQ - 0.5)
    sums = {
        'count': weight_BQ.sum(),
        'rewards/accuracies': jnp.sum(weight_BQ * (1 + jnp.sign(margin_BQ) * side_BQ) / 2),
        'rewards/margins': jnp.sum(weight_BQ * margin_BQ * side_BQ),
    }
    return jnp.sum(weight_BQ * jax.vmap(jax.vmap(loss))(score_BQC, preference_BQ)), sums


# The batch


def targets(pairs: Sequence[Pair], soft: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """`(preference_B, weight_B)`: P(the first is better), and 1; weight 0 (and ½) for a pair that trains nothing.

    That is one whose preference is None or NaN, as an unscorable label is, and without `soft` also a tie. Raises
    `Mistake` for a preference outside [0, 1].
    """
    preference_B = np.array([math.nan if pair.preference is None else pair.preference for pair in pairs], np.float64)
    for b in np.flatnonzero((preference_B < 0) | (preference_B > 1))[:1]:
        raise Mistake(f'pair {pairs[b].prompt.id}: a preference is a probability, in [0, 1], not {preference_B[b]}')
    if not soft:
        preference_B = np.where(np.abs(preference_B - 0.5) < 1e-6, math.nan, np.round(preference_B))
    known_B = np.isfinite(preference_B)
    return np.where(known_B, preference_B, 0.5).astype(np.float32), known_B.astype(np.float32)


def split(pairs: Sequence[Pair], held_out: float = 0.1) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on, and those held out, a share of all. Whoever adds pairs at the end keeps the others' side."""
    every = max(2, round(1 / held_out))
    return [pair for i, pair in enumerate(pairs) if i % every], list(pairs[::every])


def encode_prompts(tokenizer: Tokenizer, texts: Sequence[str], most: int) -> tuple[list[list[int]], list[bool]]:
    """Tokens of each prompt, and whether it has more than `most` and is shortened (`shortening`), as policies' are.

    Raises `Mistake` for one of which nothing fits.
    """
    rows, fits = tokenizer.prompts(texts), reads(tokenizer, most)
    long = [len(row) > most for row in rows]
    for b in np.flatnonzero(long):
        text = shortened(texts[b], fits, named(texts[b], most))
        (rows[b],) = tokenizer.prompts([text])
    return rows, long


def named(prompt: str, most: int) -> str:
    """A prompt in errors."""
    return f'max_prompt = {most}: the prompt {prompt[:60]!r}'


def encode_responses(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    texts: Sequence[str],
    most: int,
    ended_B: Sequence[bool] | None = None,
) -> list[list[int]]:
    """Tokens of the response to each prompt, as policies write them, the end token behind.

    One of `most` tokens or more is cut and has no end token. Nor has one that its policy has not `ended` (None: all are),
    which its text does not tell: the tokens of a text can be fewer than those that were sampled.
    """
    rows = tokenizer.responses(prompts, texts)
    ended_B = [True] * len(rows) if ended_B is None else ended_B
    return [row[:most] if ended else row[:-1][:most] for row, ended in zip(rows, ended_B, strict=True)]


def encode(
    tokenizer: Tokenizer, pairs: Sequence[Pair], cfg: Config
) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[bool]]:
    """Tokens of the prompts, the first and the second responses of pairs; and where a prompt was shortened."""
    prompts = [pair.prompt.text for pair in pairs]
    firsts, seconds = [pair.first for pair in pairs], [pair.second for pair in pairs]
    rows, shortened = encode_prompts(tokenizer, prompts, cfg.max_prompt)
    responses = (encode_responses(tokenizer, prompts, texts, cfg.max_response) for texts in (firsts, seconds))
    return rows, *responses, shortened


def make_batch(
    tokenizer: Tokenizer, pairs: Sequence[Pair], cfg: Config, splits: int | None = None
) -> dict[str, np.ndarray]:
    """Pairs as one batch: each is its prompt, the first response and the second, one behind the other, alone in its row
    (splits None), or up to `EACH` in a row and as many rows as fall into `splits` equal parts.

    token_BT, position_BT and until_BT (`attention.Sees`: two branches behind each stem); last_BQC, the column of each
    response's true last token, known from lengths and never looked for among tokens; preference_BQ and weight_BQ, 0 too
    where a row has no further pair; full_BQ, where a prompt was shortened or a response fills its room and so was cut, most
    likely.
    """
    encoded = [*zip(*encode(tokenizer, pairs, cfg), *targets(pairs, cfg.soft))]
    sizes = [len(prompt) + len(first) + len(second) for prompt, first, second, *_ in encoded]
    length = padded(sizes)
    alone = splits is None
    rows = [[i] for i in range(len(pairs))] if alone else together(sizes, length, len(pairs), splits, EACH)
    B, Q = len(rows), 1 if alone else EACH
    token_BT = np.full((B, length), tokenizer.pad, np.int32)
    position_BT, until_BT = (np.zeros((B, length), np.int32) for _ in range(2))
    last_BQC, full_BQ = np.zeros((B, Q, 2), np.int32), np.zeros((B, Q), bool)
    preference_BQ, weight_BQ = np.full((B, Q), 0.5, np.float32), np.zeros((B, Q), np.float32)
    for b, row in enumerate(rows):
        end = 0
        for q, i in enumerate(row):
            prompt, first, second, shortened, preference, weight = encoded[i]
            start, end = end, end + sizes[i]
            behind, middle = start + len(prompt), end - len(second)
            token_BT[b, start:end] = prompt + first + second
            position_BT[b, start:end] = [*range(middle - start), *range(len(prompt), len(prompt) + len(second))]
            until_BT[b, start:end] = end
            until_BT[b, behind:middle] = middle
            last_BQC[b, q] = middle - 1, end - 1
            preference_BQ[b, q], weight_BQ[b, q] = preference, weight
            full_BQ[b, q] = shortened or max(len(first), len(second)) == cfg.max_response
    return {
        'token_BT': token_BT, 'position_BT': position_BT, 'until_BT': until_BT, 'last_BQC': last_BQC,
        'preference_BQ': preference_BQ, 'weight_BQ': weight_BQ, 'full_BQ': full_BQ,
    }  # fmt: skip


# Scoring and evaluation


def make_scorer(
    reward_model: RewardModel,
    mesh: Mesh | None = None,
    *,
    batch: int = 64,
    max_prompt: int = 1024,
    max_response: int = 128,
) -> Scorer:
    """`(prompts, responses, ended_B=None) -> score_B`, the type of every scorer: float32, any real number.

    The score is read at the response's last token: of one that has not ended, that is not an end token. Longer texts are
    cut as in training, so give the lengths of its config. Raises `Mistake` where the two together are more than the model
    was made for.
    """
    model, params, tokenizer = reward_model.config, reward_model.params, reward_model.tokenizer
    mesh = mesh or axes.mesh_of(params)
    axes.check_batch('reward model batch', batch, mesh)
    _check_lengths(reward_model, max_prompt, max_response)

    def scorer(prompts: Sequence[str], responses: Sequence[str], ended_B: Sequence[bool] | None = None) -> np.ndarray:
        before, _ = encode_prompts(tokenizer, prompts, max_prompt)
        behind = encode_responses(tokenizer, prompts, responses, max_response, ended_B)
        rows = [prompt + response for prompt, response in zip(before, behind, strict=True)]

        def score(chosen: list[int], _: int) -> np.ndarray:
            filled = [rows[b] for b in chosen]
            given = pad_right(filled, padded([len(row) for row in filled]), tokenizer.pad)
            return hosts.to_host(score_rows(model, params, *hosts.to_mesh(given, axes.rows(mesh))))

        with jax.set_mesh(mesh):
            return np.array(in_batches([len(row) for row in rows], batch, mesh, score), np.float32)

    return scorer


def scorer_of(cfg: Config, trained: RewardModel, mesh: Mesh | None = None) -> Scorer:
    """The scorer of a reward model by the config that it was trained with."""
    return make_scorer(trained, mesh, batch=cfg.score_batch, max_prompt=cfg.max_prompt, max_response=cfg.max_response)


@partial(jax.jit, static_argnames='model')
def score_rows(
    model: transformer.Config, params: dict[str, transformer.Params], token_BT: jax.Array, valid_BT: jax.Array
) -> jax.Array:
    """score_B of whole rows, each read at its last valid token."""
    return heads.score(model, params, token_BT, *transformer.causal(valid_BT), valid_BT.sum(1) - 1)


def score_pairs(scorer: Scorer, pairs: Sequence[Pair]) -> np.ndarray:
    """score_BC of both responses of each pair, by any scorer."""
    prompts = [pair.prompt.text for pair in pairs]
    responses = [pair.first for pair in pairs] + [pair.second for pair in pairs]
    return scorer(prompts * 2, responses).reshape(2, -1).T


def measures(score_BC: np.ndarray, preference_B: np.ndarray, length_BC: np.ndarray) -> dict[str, float]:
    """How scores fit preferences. Showing any pair the other way round changes none of it.

    eval/loss: nats a pair, that of training. eval/accuracy: how often the preferred response has the higher score; ties
    are half. eval/margin: its score minus the other's, on average. eval/ece: the expected calibration error of P(first
    is better) = σ(s₁ − s₂), |mean confidence − mean agreement| in ten bins of confidence from ½ to 1.
    eval/length_correlation: of scores with lengths within pairs, so between margins and differences of length, as scores
    of different prompts have no common zero; in [-1, 1], NaN where one of them never differs.
    """
    margin_B = (score_BC[:, 0] - score_BC[:, 1]).astype(np.float64)
    longer_B = (length_BC[:, 0] - length_BC[:, 1]).astype(np.float64)
    side_B, decided_B = np.sign(preference_B - 0.5), np.sign(margin_B)
    loss_B = preference_B * np.logaddexp(0, -margin_B) + (1 - preference_B) * np.logaddexp(0, margin_B)

    confidence_B = 1 / (1 + np.exp(-np.abs(margin_B)))
    agreement_B = 0.5 + decided_B * (preference_B - 0.5)
    bin_B = np.minimum((20 * (confidence_B - 0.5)).astype(int), 9)
    gap_of_bin = np.bincount(bin_B, confidence_B - agreement_B, minlength=10)

    scale = math.sqrt(float(margin_B @ margin_B) * float(longer_B @ longer_B))
    return {
        'eval/loss': float(loss_B.mean()),
        'eval/accuracy': float((1 + decided_B * side_B).mean() / 2),
        'eval/margin': float((margin_B * side_B).mean()),
        'eval/ece': float(np.abs(gap_of_bin).sum() / len(margin_B)),
        'eval/length_correlation': float(margin_B @ longer_B) / scale if scale else math.nan,
    }


# The run


def make_step(cfg: Config, model: transformer.Config, mesh: Mesh) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(init, step)`, jitted: `init(params) -> state`, `step(state, params, batch) -> (state, metrics)`. The state, which
    holds what is trained, is donated; the params that training starts from stay.
    """
    model = training.recomputed(cfg.remat, lora.adapted(cfg.lora, model))
    shapes = jax.eval_shape(
        lambda: {'trunk': transformer.init(model, jax.random.key(0)), 'head': heads.scalar_head(model.width)}
    )

    def begin(params: dict[str, transformer.Params]) -> dict[str, transformer.Params]:
        return params | {'trunk': training.trained(cfg.lora, model, params['trunk'], jax.random.key(cfg.seed))}

    return training.jitted(cfg, partial(batch_loss, model), begin, shapes, mesh)


def run(
    cfg: Config,
    folder: Path,
    start: LM,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    mesh: Mesh,
    *,
    votes: Sequence[Pair] = (),
    note: str = '',
) -> RewardModel:
    """Train a reward model on `pairs`, from the trunk of `start`, and return the one of lowest loss on `held_out`.

    The labels of `pairs` are their preferences; a pair without one has weight 0 and is counted. The preferences of
    `held_out`, people's or a labeler's, choose among checkpoints. Of `votes`, pairs that people judged, loss and accuracy
    are reported beside, and choose nothing. The best is in `folder/export`, from the first evaluation on. Goes on from the
    last checkpoint and ends with what an uninterrupted run ends with. Raises `Mistake` where no pair is left to train or to
    evaluate on, or steps are not finite. `note` stands beside everything that is printed.
    """
    axes.check_batch('reward_model.batch / reward_model.parts', cfg.batch // cfg.parts, mesh)
    fresh = from_lm(start)
    model, tokenizer, export = lora.adapted(cfg.lora, fresh.config), fresh.tokenizer, Path(folder) / 'export'
    _check_lengths(fresh, cfg.max_prompt, cfg.max_response)
    texts = dict.fromkeys(pair.prompt.text for pair in (*pairs, *held_out, *votes))
    check_fits(((named(text, cfg.max_prompt), text) for text in texts), reads(tokenizer, cfg.max_prompt))
    _with_pad(tokenizer)  # raises now what `save` would raise behind the first evaluation
    init, step = make_step(cfg, model, mesh)
    lengths = lambda pairs: [sum(map(len, row)) for row in zip(*encode(tokenizer, pairs, cfg)[:3])]  # noqa: E731
    splits = cfg.parts * axes.shares(mesh) if cfg.pack else None
    pairs_at = loader.batches(pairs, cfg.batch, cfg.seed, window=cfg.window, lengths=lengths, name='reward_model.batch')

    usable = int(targets(pairs, cfg.soft)[1].sum())
    judged = [pair for pair, weight in zip(held_out, targets(held_out)[1]) if weight]
    for name, count, all_pairs in (('training', usable, pairs), ('held-out', len(judged), held_out)):
        if not count:
            raise Mistake(f'reward_model: none of the {len(all_pairs)} {name} pairs has a preference to go by')
    why = 'unscorable' if cfg.soft else 'unscorable or ties'
    without = f'{len(pairs) - usable} of {len(pairs)} pairs are {why} and train nothing'
    log.say(f'{note} reward_model: {without}; {len(judged)} of {len(held_out)} held-out pairs evaluate'.lstrip())
    preference_B, _ = targets(judged)
    length_BC = np.array([(len(pair.first), len(pair.second)) for pair in judged])  # characters, as in the paper
    votes = [pair for pair, weight in zip(votes, targets(votes)[1]) if weight]

    def evaluate(trained: RewardModel) -> tuple[dict[str, float], list[dict[str, Any]]]:
        scorer = scorer_of(cfg, trained, mesh)
        score_BC = score_pairs(scorer, judged)
        rows = [
            {'prompt': pair.prompt.text, 'first': pair.first, 'second': pair.second, 'preference': pair.preference,
             'first_score': score_C[0], 'second_score': score_C[1]}
            for pair, score_C in zip(judged[:4], score_BC)
        ]  # fmt: skip
        found = measures(score_BC, preference_B, length_BC)
        if votes:
            beside = measures(score_pairs(scorer, votes), targets(votes)[0], np.zeros((len(votes), 2)))
            found |= {f'votes/{name}': beside[f'eval/{name}'] for name in ('loss', 'accuracy')}
        return found, rows

    # Which step is in the export, and its loss on the held-out pairs; float32, so that it is restored as it was.
    best = {'loss': np.array(np.inf, np.float32), 'step': np.array(0, np.int32)}
    state = {'training': init(fresh.params), 'best': best}
    told = {'save_every': cfg.save_every, 'log_every': cfg.log_every, 'note': note}
    with jax.set_mesh(mesh), loop.opened('reward_model', folder, cfg.steps, state, **told) as steps:
        for i, batch in steps.steps_left(lambda i: make_batch(tokenizer, pairs_at(i), cfg, splits)):
            state, numbers = step(steps.state['training'], fresh.params, hosts.to_mesh(batch, axes.rows(mesh)))
            numbers |= {'without_label': cfg.batch - batch['weight_BQ'].sum(), 'full': batch['full_BQ'].sum()}
            done, best, shown = i + 1, steps.state['best'], {}
            if done % cfg.eval_every == 0 or done == cfg.steps:
                trained = replace(fresh, config=model, params=training.whole(fresh.params, state['params']))
                found, rows = evaluate(trained)
                better = hosts.told(partial(operator.lt, np.float32(found['eval/loss']).item(), best['loss'].item()))
                if better:
                    best = {'loss': np.array(found['eval/loss'], np.float32), 'step': np.array(done, np.int32)}
                    save(trained, export, about=_about(cfg, start, done, found, note))
                shown = found | {'eval/best_step': int(best['step'])}
                steps.metrics.samples(done, rows)
                log.say(f'{note} {_line(done, found)}{", the best so far" if better else ""}'.lstrip())
            steps.state = {'training': state, 'best': best}
            steps.tell(i, numbers, _beside_bar, shown)
    return load(export, dtype=model.dtype, mesh=mesh)


def _beside_bar(shown: dict[str, float]) -> str:
    return f'loss {shown["reward_model/loss"]:.3f} nats  accuracy {shown["rewards/accuracies"]:.0%}'


def _line(step: int, numbers: dict[str, float]) -> str:
    return (
        f'step {step}: held-out loss {numbers["eval/loss"]:.4f} nats, accuracy {numbers["eval/accuracy"]:.1%}, '
        f'margin {numbers["eval/margin"]:+.3f}, calibration error {numbers["eval/ece"]:.3f}, '
        f'correlation with length {numbers["eval/length_correlation"]:+.2f}'
        + (f'; accuracy on votes {numbers["votes/accuracy"]:.1%}' if 'votes/accuracy' in numbers else '')
    )


def _about(cfg: Config, start: LM, step: int, numbers: dict[str, float], note: str) -> str:
    labels = 'soft labels' if cfg.soft else 'labels rounded to 0 or 1'
    return (
        f'A reward model: `{start.name}` after {step} of {cfg.steps} steps on {cfg.batch} pairs each with {labels}, the '
        f'step of the lowest held-out loss ({numbers["eval/loss"]:.4f} nats, accuracy {numbers["eval/accuracy"]:.1%}). '
        f'{_READ} {note}'.rstrip()
    )


def _check_lengths(reward_model: RewardModel, max_prompt: int, max_response: int) -> None:
    training.check_room(reward_model.name, reward_model.config.max_length, max_prompt, max_response=max_response)
    if max_prompt <= (start := len(reward_model.tokenizer.start)):
        raise Mistake(f'max_prompt = {max_prompt}: {reward_model.name} begins every text with {start} tokens already')


# Files

_READ = (
    'Its score is that of the last token of `prompt + " " + response + end token`; of a dialogue, where the tokenizer has '
    'a chat template, of the end of the last turn in it. Only scores of responses to one prompt are comparable.'
)


def save(reward_model: RewardModel, folder: str | Path, *, about: str = '') -> None:
    """Write a directory that `AutoModelForSequenceClassification` reads: the family's model for sequence classification
    (`LlamaForSequenceClassification`, …) with one label, and no pickle.

    transformers knows no mask here: it reads the score at the last token that is not `pad_token_id`. With a tokenizer
    that pads with a token that ends responses (or with none) it would read the token before it. Such a tokenizer goes out
    with its first control token that neither ends nor starts a text as its pad token; scores here do not depend on it.

    Raises `Mistake` for a tokenizer that has none, and for a head with a bias, which the layout has no place for
    (training leaves it at 0).
    """
    head = reward_model.params['head']
    if bias := float(hosts.to_host(head['head_bias'])):
        raise Mistake(f'{folder}: a reward model is written without a bias; this one has {bias}')
    params = reward_model.params['trunk'] | {'score_D': head['head_D']}
    lm = LM(reward_model.config, params, _with_pad(reward_model.tokenizer), reward_model.name)
    hf.save(lm, folder, about=about or f'A copy of the reward model `{reward_model.name}`. {_READ}')


def load(
    path_or_hub_id: str | Path, *, dtype: str = 'float32', mesh: Mesh | None = None, frozen: bool = False
) -> RewardModel:
    """Read what `save` writes, or another model for sequence classification with one label, onto the mesh (default: the
    first device); `frozen` as in `hf.load`. Raises `Mistake` as `hf.load` does, also for a language model, which has no
    score.
    """
    folder = resolve(path_or_hub_id)
    config, tokenizer = replace(hf.read_config(folder, dtype=dtype), tied=True), Tokenizer.load(folder)
    trunk = stored.read_params(folder, config, mesh or axes.make_mesh(), frozen=frozen, score=True)
    head = heads.scalar_head(config.width) | {'head_D': trunk.pop('score_D')}
    return RewardModel(config, {'trunk': trunk, 'head': head}, tokenizer, str(path_or_hub_id))


def check(path_or_hub_id: str | Path) -> transformer.Config:
    """The sizes of a reward model that `load` can read. Raises what `load` would raise, and reads no parameters."""
    folder = resolve(path_or_hub_id)
    config = replace(hf.read_config(folder), tied=True)
    Tokenizer.load(folder)
    stored.find_tensors(folder, config, score=True)
    return config


def _with_pad(tokenizer: Tokenizer) -> Tokenizer:
    taken = {*tokenizer.ends, tokenizer.eos, *tokenizer.start, tokenizer.hf.bos_token_id}
    if tokenizer.hf.pad_token_id is not None and tokenizer.pad not in taken:
        return tokenizer
    added = sorted(tokenizer.hf.added_tokens_decoder.items())
    there = len(tokenizer.hf) if tokenizer.vocab is None else tokenizer.vocab
    control = [i for i, token in added if token.special and i not in taken and i < there]
    if not control:
        raise Mistake('the tokenizer has no token to pad with that ends no response; add a pad_token to the model')
    changed = copy.deepcopy(tokenizer.hf)
    changed.pad_token = changed.convert_ids_to_tokens(control[0])
    return replace(tokenizer, hf=changed)
