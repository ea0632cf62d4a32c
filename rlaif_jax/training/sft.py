"""Supervised fine-tuning: next-token prediction on the tokens that carry weight.

The same stage makes a policy from references (weight 1 on the response) and a base model from labelling prompts (weight
on the answers); what differs is the batches that it is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlaif_jax import axes, hosts
from rlaif_jax.batching import padded, together
from rlaif_jax.config import MOST, SAME, check_within
from rlaif_jax.data import loader
from rlaif_jax.data.records import Prompt
from rlaif_jax.models import hf, lora, transformer
from rlaif_jax.models.attention import Sees
from rlaif_jax.models.heads import CHUNK, token_logprob
from rlaif_jax.models.hf import LM
from rlaif_jax.text import Tokenizer
from rlaif_jax.training import loop
from rlaif_jax.training import state as training

READ = CHUNK  # slots are read in so many, which exist at a time anyway: few shapes


@dataclass(frozen=True)
class Config:
    """App. G: batch 128, one epoch, Adafactor at 1e-5."""

    steps: int = 900  # of the optimizer, a batch each
    batch: int = 128  # prompts with their references
    parts: int = field(default=1, metadata=SAME)  # the batch goes through the device in this many parts
    # The backward pass computes each layer again: a third more time, far less memory.
    remat: bool = field(default=False, metadata=SAME)
    # Short examples share rows: less padding, the same step. Not on GPUs, whose kernel takes a text a row.
    pack: bool = field(default=True, metadata=SAME)
    window: int = 1  # batches in a row that share out their rows by length, to pad less; 1: rows stay where they fall
    optimizer: training.Optimizer = field(default_factory=training.Optimizer)
    lora: lora.Config = field(default_factory=lora.Config)
    seed: int = 0  # of the order of the prompts, and of fresh adapters
    save_every: int = field(default=100, metadata=SAME)  # steps between two checkpoints
    log_every: int = field(default=10, metadata=SAME)  # steps between two lines of metrics

    def __post_init__(self) -> None:
        training.check_parts('batch', self.batch, self.parts)
        check_within(self, 0, MOST, 'seed')
        check_within(self, 1, MOST, 'steps', 'batch', 'window', 'save_every', 'log_every')


def loss(
    model: transformer.Config, params: transformer.Params, batch: training.Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """−Σ weight·log p(target), in nats, with the sums to divide by.

    batch: token_BT, target_BT, weight_BT, and either valid_BT (a text a row) or position_BT and until_BT (`attention.Sees`:
    several texts in a row, or branches that share a stem). target_BT is what follows token_BT: that is not always the next
    column. Where `read_BW` says which slots have weight, the vocabulary is looked at behind no others; T stands for none.
    """
    several = 'until_BT' in batch
    seen = (batch['position_BT'], Sees(batch['until_BT'])) if several else transformer.causal(batch['valid_BT'])
    given, target, weight = (model, params, batch['token_BT'], *seen), batch['target_BT'], batch['weight_BT']
    if 'read_BW' in batch:
        read_BW = batch['read_BW']
        hidden = transformer.forward_at(*given, read_BW)
        at = partial(jnp.take_along_axis, indices=read_BW, axis=1, mode='clip')
        weight, target = jnp.where(read_BW < weight.shape[1], at(weight), 0), at(target)
    else:
        hidden = axes.constrain(transformer.forward(*given)[0], 'BTD')  # so its gradient is split as it is
    logp, _ = token_logprob(model, params, hidden, target)
    return -(weight * logp).sum(), {'count': weight.sum()}


def make_step(cfg: Config, model: transformer.Config, mesh: Mesh) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(init, step)`, jitted: `init(params) -> state`, `step(state, params, batch) -> (state, metrics)`. The state, which
    holds what is trained, is donated; the params that training starts from stay.
    """
    model = training.recomputed(cfg.remat, lora.adapted(cfg.lora, model))
    shapes = jax.eval_shape(partial(transformer.init, model), jax.random.key(0))

    def begin(params: transformer.Params) -> transformer.Params:
        return training.trained(cfg.lora, model, params, jax.random.key(cfg.seed))

    return training.jitted(cfg, partial(loss, model), begin, shapes, mesh)


def run(
    cfg: Config,
    folder: Path,
    lm: LM,
    batch_at: Callable[[int], training.Batch],
    mesh: Mesh,
    *,
    title: str = 'sft',
    note: str = '',
) -> LM:
    """Train `lm` on `batch_at(0), batch_at(1), …` and export it to `folder/export`; goes on from the last checkpoint.

    `batch_at` is a function of the step alone, so a resumed run sees what an uninterrupted one does.
    """
    axes.check_batch(f'{title}.batch', cfg.batch // cfg.parts, mesh)
    init, step = make_step(cfg, lm.config, mesh)
    told = {'save_every': cfg.save_every, 'log_every': cfg.log_every, 'title': title, 'note': note}
    with jax.set_mesh(mesh), loop.opened('sft', folder, cfg.steps, init(lm.params), **told) as steps:
        for i, batch in steps.steps_left(batch_at):
            steps.state, numbers = step(steps.state, lm.params, hosts.to_mesh(batch, axes.rows(mesh)))
            steps.tell(i, numbers, lambda shown: f'loss {shown["sft/loss"]:.3f} nats')
    model, params = lora.adapted(cfg.lora, lm.config), training.whole(lm.params, steps.state['params'])
    about = f'`{lm.name}` after {cfg.steps} steps of supervised fine-tuning, {cfg.batch} examples a step. {note}'
    hf.save(replace(lm, config=model, params=params), folder / 'export', about=about)
    return LM(lm.config, lora.merge(model, params), lm.tokenizer, str(folder / 'export'))


def batches(
    cfg: Config, tokenizer: Tokenizer, prompts: Sequence[Prompt], max_new_tokens: int, mesh: Mesh
) -> Callable[[int], training.Batch]:
    """`batch_at(step)` of prompts with their references, for `run`. Rows are padded to the next multiple of 32 tokens.
    A reference of more than `max_new_tokens`, its end token among them, is cut and ends all the same.

    Raises `Mistake` where there is not even one batch of them.
    """

    def encode(prompts: Sequence[Prompt]) -> tuple[list[list[int]], list[list[int]]]:
        texts, references = [prompt.text for prompt in prompts], [prompt.reference for prompt in prompts]
        after = tokenizer.responses(texts, references)
        return tokenizer.prompts(texts), [[*row[:-1][: max_new_tokens - 1], row[-1]] for row in after]

    def lengths(prompts: Sequence[Prompt]) -> list[int]:
        return [len(before) + len(after) for before, after in zip(*encode(prompts))]

    packed = packs(cfg, mesh.devices.flat[0].platform)
    splits = cfg.parts * axes.shares(mesh)
    rows_at = loader.batches(prompts, cfg.batch, cfg.seed, window=cfg.window, lengths=lengths, name='sft.batch')

    def batch_at(step: int) -> training.Batch:
        before, after = encode(rows_at(step))
        sizes = [len(a) + len(b) - 1 for a, b in zip(before, after)]  # the last token is only foretold
        length = padded(sizes)
        rows = together(sizes, length, cfg.batch, splits) if packed else None
        return example_batch(before, after, length, tokenizer.pad, rows)

    return batch_at


def packs(cfg: Config, platform: str) -> bool:
    """Whether examples share rows on such devices."""
    return cfg.pack and platform != 'gpu'


def slots(weight_BT: np.ndarray) -> np.ndarray:
    """read_BW: at which slots of each row there is weight, in whole `READ`s if T has so many; behind them T, for none."""
    T, some_BT = weight_BT.shape[1], weight_BT > 0
    W = min(padded([int(some_BT.sum(axis=1).max(initial=1))], READ), T)
    return np.sort(np.where(some_BT, np.arange(T, dtype=np.int32), np.int32(T)), axis=1)[:, :W]


def example_batch(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    length: int,
    pad: int,
    rows: Sequence[Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Prompts and responses (end token included) as one batch of T = length: weight 1 where a token of the response
    follows, 0 elsewhere. `rows` says which stand in each row, one behind the other (None: each in its own); none sees
    another.
    """
    texts = [(prompt + response)[: length + 1] for prompt, response in zip(prompts, responses, strict=True)]
    alone = rows is None
    rows = [[i] for i in range(len(texts))] if alone else rows
    token_BT, target_BT = (np.full((len(rows), length), pad, np.int32) for _ in range(2))
    weight_BT = np.zeros((len(rows), length), np.float32)
    position_BT, until_BT = (np.zeros((len(rows), length), np.int32) for _ in range(2))
    for b, row in enumerate(rows):
        start = 0
        for text, prompt in ((texts[i], prompts[i]) for i in row):
            end = start + len(text) - 1
            token_BT[b, start:end], target_BT[b, start:end] = text[:-1], text[1:]
            weight_BT[b, start + max(len(prompt) - 1, 0) : end] = 1.0
            position_BT[b, start:end], until_BT[b, start:end] = np.arange(end - start), end
            start = end
    batch = {'token_BT': token_BT, 'target_BT': target_BT, 'weight_BT': weight_BT, 'read_BW': slots(weight_BT)}
    return batch | ({'valid_BT': until_BT > 0} if alone else {'position_BT': position_BT, 'until_BT': until_BT})
