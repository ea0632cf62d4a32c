"""Modified REINFORCE for language models (App. F of the paper): one gradient step on each batch of fresh responses.

    r_t = (1−β)·score·[t is last] − β·(log π(y_t) − log π_SFT(y_t))          reward units; logs in nats
    Z_t = Σ_{u≥t} r_u                                                         the return, γ = 1
    L_π = −Σ_t log π(y_t) · stopgrad(Z_t − V(prefix_t))                       summed over tokens, averaged over
    responses L_V = Σ_t (Z_t − V(prefix_t))²

The paper gives the objective E[(1−β)·score − β·KL(π‖π_SFT)] and not where its KL enters; here it is a reward of each
token, with the k1 estimator, so that credit for it is as local as it can be. π and π_SFT both have the sampling
temperature: what is optimised is what is sampled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rlaif_jax import axes, checkpoint, generation, hosts, log, paths
from rlaif_jax.batching import padded
from rlaif_jax.config import HOTTEST, MOST, SAME, Mistake, check_within, same_if
from rlaif_jax.data.records import Prompt
from rlaif_jax.folder import finish, finished
from rlaif_jax.models import heads, hf, lora, transformer
from rlaif_jax.models.attention import Sees, Text
from rlaif_jax.models.hf import LM
from rlaif_jax.text import pad_left
from rlaif_jax.training import loop
from rlaif_jax.training import state as training

# (prompts, responses, ended_B) -> score_B, NaN: unscorable
Scorer = Callable[[Sequence[str], Sequence[str], np.ndarray], np.ndarray]
# (prompts, ours, SFT's) -> win_B in [0, 1]
Judge = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], np.ndarray]

BUCKET = 128  # a step's prompts are padded to a multiple of this many tokens, to `max_prompt` at most


@dataclass(frozen=True)
class Config:
    """The paper: batch 128, 8 epochs, Adafactor at 1e-5, T 0.9, β 0.05, lengths 1024 + 128. The rest it leaves open."""

    steps: int = 7300  # of the optimizer, a batch each
    batch: int = 128  # responses
    parts: int = field(default=1, metadata=SAME)  # the update goes through the device in this many parts
    # The backward pass computes each layer again: a third more time, far less memory.
    remat: bool = field(default=False, metadata=SAME)
    beta: float = 0.05  # what a nat of KL to SFT costs; the score counts 1 − beta
    temperature: float = 0.9  # at which responses are sampled
    # Own network, a head on the policy's trunk, or no network: the mean return of the batch, or of a prompt's others.
    baseline: Literal['value', 'shared_value', 'batch_mean', 'leave_one_out'] = 'value'
    samples: int = 1  # responses to a prompt; a batch has batch / samples prompts
    missing_end_penalty: float = 0.0  # taken off the score of a response cut at max_new_tokens
    max_prompt: int = 1024  # tokens; longer prompts are shortened
    max_new_tokens: int = 128  # of a response, the end token among them
    policy_optimizer: training.Optimizer = field(default_factory=training.Optimizer)
    value_optimizer: training.Optimizer = field(default_factory=training.Optimizer)
    lora: lora.Config = field(default_factory=lora.Config)  # of the policy, and of the value network's own trunk
    most_kl: float = 100.0  # nats a response; a policy further than that from SFT has left the language: the run stops
    # Steps between two evaluations on validation prompts; they decide nothing but among `candidates`.
    eval_every: int = field(default=500, metadata=same_if(lambda cfg: cfg.candidates == 1))
    # Of the validation split, at most.
    eval_prompts: int = field(default=256, metadata=same_if(lambda cfg: cfg.candidates == 1))
    candidates: int = 1  # checkpoints of the highest validation reward that are kept (the paper: 4); 1: the last step
    save_every: int = field(default=50, metadata=SAME)  # steps between two checkpoints
    export_value: bool = False  # the value network too, to `value/`
    seed: int = 0  # of the order of the prompts, and of what is sampled

    def __post_init__(self) -> None:
        training.check_parts('batch', self.batch, self.parts)
        if not 0 <= self.beta <= 1:
            raise ValueError(f'beta = {self.beta} must be in [0, 1]: it weighs KL against the score')
        if not self.most_kl > 0:
            raise ValueError(f'most_kl must be positive, not {self.most_kl}')
        check_within(self, 0, 1e6, 'missing_end_penalty')
        if self.export_value and not networked(self):
            raise ValueError(f'export_value: a baseline of {self.baseline!r} has no value network')
        check_within(self, 0, MOST, 'seed')
        if not 0 < self.temperature <= HOTTEST:
            must = f'temperature must be positive, {HOTTEST} at most, not {self.temperature}'
            raise ValueError(f'{must}: greedy responses explore nothing')
        counts = 'steps', 'batch', 'samples', 'max_prompt', 'max_new_tokens', 'eval_every', 'eval_prompts', 'candidates'
        check_within(self, 1, MOST, *counts, 'save_every')
        if self.batch % (self.samples * self.parts):
            raise ValueError(
                f'batch = {self.batch} does not fall into parts = {self.parts} of groups of samples = {self.samples}'
            )
        if self.baseline == 'leave_one_out' and self.samples < 2:
            raise ValueError('baseline leave_one_out needs samples of 2 or more: other responses to the same prompt')


# The equations, for one response. vmap does the batch.


def returns(
    score: jax.Array, logp_T: jax.Array, ref_logp_T: jax.Array, mask_T: jax.Array, beta: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """`(reward_T, return_T)` as in the head of this file; zero behind the response's last token, where mask_T ends."""
    t = jnp.arange(mask_T.shape[0])
    last = t == jnp.sum(mask_T) - 1
    reward_T = jnp.where(mask_T, (1 - beta) * score * last - beta * (logp_T - ref_logp_T), 0.0)
    return reward_T, jnp.flip(jnp.cumsum(jnp.flip(reward_T))) * mask_T


def policy_loss(logp_T: jax.Array, advantage_T: jax.Array, mask_T: jax.Array) -> jax.Array:
    """−Σ_t log π(y_t) · stopgrad(advantage_t): its gradient, averaged over samples, is that of −J."""
    return -jnp.sum(jnp.where(mask_T, logp_T * jax.lax.stop_gradient(advantage_T), 0.0))


def value_loss(value_T: jax.Array, return_T: jax.Array, mask_T: jax.Array) -> jax.Array:
    """Σ_t (Z_t − V_t)², reward units squared."""
    return jnp.sum(jnp.where(mask_T, (jax.lax.stop_gradient(return_T) - value_T) ** 2, 0.0))


# The batch


def response_states(model: transformer.Config, params: transformer.Params, batch: training.Batch) -> jax.Array:
    """hidden_BTD over the response, T = max_new_tokens: the state in which token t is chosen, which has not seen it.

    A prompt is computed once: the responses to it, which are neighbours, are branches behind it.
    """
    (R, P), (B, T) = batch['prompt_BT'].shape, batch['token_BT'].shape
    C = B // R
    of_prompt = lambda x_BT: x_BT.reshape(R, C * T)  # noqa: E731
    token_RS = jnp.concatenate([batch['prompt_BT'], of_prompt(batch['token_BT'])], axis=1)
    end_1S = P + T * (1 + jnp.arange(C * T) // T)[None]
    until_RS = [jnp.where(batch['valid_BT'], P + C * T, 0), jnp.where(of_prompt(batch['mask_BT']), end_1S, 0)]
    position_RP = jnp.maximum(jnp.cumsum(batch['valid_BT'], axis=1, dtype=jnp.int32) - 1, 0)
    position_RS = jnp.concatenate([position_RP, position_RP[:, -1:] + 1 + jnp.arange(C * T)[None] % T], axis=1)
    sees = (Text if C == 1 else Sees)(jnp.concatenate(until_RS, axis=1))
    # A token is chosen where the one before it stands: the first of each response at the end of the prompt.
    before_S = jnp.arange(P - 1, P - 1 + C * T).at[::T].set(P - 1)
    read_RS = jnp.broadcast_to(before_S, (R, C * T))
    return transformer.forward_at(model, params, token_RS, position_RS, sees, read_RS).reshape(B, T, -1)


def response_logp(
    cfg: Config,
    model: transformer.Config,
    allowed_V: jax.Array,
    params: transformer.Params,
    hidden_BTD: jax.Array,
    token_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`(logp_BT, entropy_BT)` in nats, under the distribution that is sampled from."""
    return heads.token_logprob(model, params, hidden_BTD, token_BT, allowed_V=allowed_V, temperature=cfg.temperature)


def loss(
    cfg: Config, model: transformer.Config, allowed_V: jax.Array, networks: dict[str, Any], batch: training.Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L_π + L_V summed over responses, and the sums that the log shows. A response of weight 0 (unscorable) adds
    nothing.

    batch: prompt_BT and valid_BT (padded on the left, a row for all responses to it), token_BT and mask_BT (the response),
    sampled_logp_BT, ref_logp_BT, score_B, weight_B, baseline_B (what `baseline` makes of the batch's returns; not read with
    a network).
    """
    mask_BT, weight_B = batch['mask_BT'], batch['weight_B']
    hidden_BTD = response_states(model, networks['policy'], batch)
    logp_BT, entropy_BT = response_logp(cfg, model, allowed_V, networks['policy'], hidden_BTD, batch['token_BT'])
    fixed_BT = jax.lax.stop_gradient(logp_BT)
    reward_BT, return_BT = jax.vmap(returns, (0, 0, 0, 0, None))(
        batch['score_B'], fixed_BT, batch['ref_logp_BT'], mask_BT, cfg.beta
    )
    if not networked(cfg):
        value_BT = jnp.broadcast_to(batch['baseline_B'][:, None], return_BT.shape)
    elif cfg.baseline == 'shared_value':
        value_BT = heads.scalar(networks['value']['head'], jax.lax.stop_gradient(hidden_BTD))
    else:
        value_BT = heads.scalar(networks['value']['head'], response_states(model, networks['value']['trunk'], batch))

    policy_B = jax.vmap(policy_loss)(logp_BT, return_BT - value_BT, mask_BT)
    value_B = jax.vmap(value_loss)(value_BT, return_BT, mask_BT)
    log_ratio_BT = jnp.where(mask_BT, fixed_BT - batch['ref_logp_BT'], 0.0)
    length_B = jnp.maximum(mask_BT.sum(1), 1)
    total = lambda x_B: jnp.sum(weight_B * x_B)  # noqa: E731
    sums = {
        'count': weight_B.sum(),
        'loss/policy': total(policy_B),
        'loss/value': total(value_B / length_B),
        'objective/scores': total(batch['score_B']),
        'objective/kl': total(log_ratio_BT.sum(1)),
        'objective/kl_k3': total((jnp.expm1(-log_ratio_BT) + log_ratio_BT).sum(1)),
        'objective/rlhf_reward': total(reward_BT.sum(1)),
        'objective/entropy': total(jnp.where(mask_BT, entropy_BT, 0.0).sum(1) / length_B),
        'completions/mean_length': total(mask_BT.sum(1)),
        'sampler/mismatch': total(
            jnp.abs(jnp.where(mask_BT, fixed_BT - batch['sampled_logp_BT'], 0.0)).sum(1) / length_B
        ),
    }
    return total(policy_B) + (total(value_B) if networked(cfg) else 0.0), sums


def networked(cfg: Config) -> bool:
    """Whether the baseline is learned."""
    return cfg.baseline in ('value', 'shared_value')


def baseline(cfg: Config, return_B: jax.Array, known_B: jax.Array) -> jax.Array:
    """What is taken off each response's return where no network is: the mean of all, or of the prompt's other responses.

    return_B: Z_0, the responses to one prompt are neighbours. known_B: whether a response has a score; the others count
    for nothing. `leave_one_out` never knows the response that it is taken off: where none of a prompt's others has a score
    it is the mean over the other prompts, and 0 where nothing else is known. The mean of all holds the response itself,
    which makes its gradient 1 − 1/B of what it would be.
    """
    return_B = jnp.where(known_B, return_B, 0.0)
    if cfg.baseline != 'leave_one_out':
        return jnp.full_like(return_B, return_B.sum() / jnp.maximum(known_B.sum(), 1))
    return_BC, known_BC = return_B.reshape(-1, cfg.samples), known_B.reshape(-1, cfg.samples)
    sum_B1, count_B1 = return_BC.sum(1, keepdims=True), known_BC.sum(1, keepdims=True)
    others_BC = count_B1 - known_BC
    elsewhere_B1 = (sum_B1.sum() - sum_B1) / jnp.maximum(count_B1.sum() - count_B1, 1)
    return jnp.where(others_BC > 0, (sum_B1 - return_BC) / jnp.maximum(others_BC, 1), elsewhere_B1).reshape(-1)


class Steps(NamedTuple):
    """The jitted functions of a run, with their shardings; `update` donates the state."""

    init: Callable[..., Any]  # (policy params) -> state
    # (policy params, prompt_BT, valid_BT, key, samples=1) -> generation.Sample
    sample: Callable[..., generation.Sample]
    update: Callable[..., Any]  # (state, SFT params, batch) -> (state, metrics); the state holds what is trained
    measure: Callable[..., Any]  # (policy params, SFT params, batch) -> kl_B, nats


def make_optimizers(cfg: Config) -> dict[str, optax.GradientTransformation]:
    """By network."""
    of = {'policy': cfg.policy_optimizer, 'value': cfg.value_optimizer}
    return {name: training.make_optimizer(optimizer, cfg.steps) for name, optimizer in of.items()}


def begin(cfg: Config, model: transformer.Config, params: transformer.Params) -> dict[str, Any]:
    """The state, by network, before the first step; `params` are SFT's."""
    keys = jax.random.split(jax.random.key(cfg.seed))
    value: dict[str, Any] = {'head': heads.scalar_head(model.width)} if networked(cfg) else {}
    if cfg.baseline == 'value':
        value['trunk'] = training.trained(cfg.lora, model, params, keys[1])
    policy = training.trained(cfg.lora, model, params, keys[0])
    # A copy each, so that donating the state destroys neither the other network nor what was handed in.
    copy = jax.tree.map(lambda x: x + 0, {'policy': policy, 'value': value})
    return {name: training.init_state(copy[name], optimizer) for name, optimizer in make_optimizers(cfg).items()}


def make_steps(cfg: Config, lm: LM, mesh: Mesh) -> Steps:
    """Compile-ready functions for this model on this mesh."""
    model = training.recomputed(cfg.remat, lora.adapted(cfg.lora, lm.config))
    allowed_V, stop_V = jnp.asarray(lm.tokenizer.allowed(model.vocab)), jnp.asarray(lm.tokenizer.stops(model.vocab))
    optimizers, init = make_optimizers(cfg), partial(begin, cfg, model)

    def reference(params: transformer.Params, batch: training.Batch) -> jax.Array:
        return response_logp(cfg, model, allowed_V, params, response_states(model, params, batch), batch['token_BT'])[0]

    def update(
        state: dict[str, Any], sft: transformer.Params, batch: training.Batch
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        known_B = jnp.isfinite(batch['score_B'])
        score_B = jnp.where(known_B, batch['score_B'], 0.0) - cfg.missing_end_penalty * ~batch['ended_B']
        batch = batch | {'score_B': score_B, 'weight_B': known_B.astype(jnp.float32)}
        split = jax.tree.map(lambda x: x.reshape(cfg.parts, -1, *x.shape[1:]), batch)
        batch['ref_logp_BT'] = jax.lax.map(partial(reference, sft), split).reshape(batch['token_BT'].shape)
        kl_B = jnp.sum(jnp.where(batch['mask_BT'], batch['sampled_logp_BT'] - batch['ref_logp_BT'], 0.0), axis=1)
        batch['baseline_B'] = baseline(cfg, (1 - cfg.beta) * score_B - cfg.beta * kl_B, known_B)

        def of_trained(trained: dict[str, Any], batch: training.Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
            networks = training.whole({'policy': sft, 'value': {'trunk': sft}}, trained)
            return loss(cfg, model, allowed_V, networks, batch)

        trained = {name: state[name]['params'] for name in state}
        grads, metrics = training.gradients(of_trained, trained, batch, cfg.parts)
        finite = jnp.isfinite(optax.tree.norm(grads))
        for name in state:
            moved, more = training.update(optimizers[name], state[name], grads[name], finite)
            state = state | {name: moved}
            metrics |= {f'{key}/{name}': x for key, x in more.items()}
        metrics[training.SKIPPED] = metrics.pop(f'{training.SKIPPED}/policy')
        metrics.pop(f'{training.SKIPPED}/value', None)
        metrics['val/num_eos_tokens'] = batch['ended_B'].sum()
        metrics['val/eos_rate'] = batch['ended_B'].mean()
        metrics['val/unscorable'] = (~known_B).sum()
        return state, metrics

    def measure(params: transformer.Params, sft: transformer.Params, batch: training.Batch) -> jax.Array:
        return jnp.sum(jnp.where(batch['mask_BT'], reference(params, batch) - reference(sft, batch), 0.0), axis=1)

    here, everywhere = axes.rows(mesh), axes.replicated(mesh)
    where_params = axes.shardings(lm.params, mesh)
    shapes = jax.eval_shape(init, lm.params)
    where_state = axes.shardings(shapes, mesh)
    where_policy = axes.shardings(training.whole(lm.params, shapes['policy']['params']), mesh)

    pad = lm.tokenizer.pad  # alone: whoever holds `lm` holds its parameters

    def sample(
        params: transformer.Params, prompt_BT: jax.Array, valid_BT: jax.Array, key: jax.Array, samples: int = 1
    ) -> generation.Sample:
        return generation.sample(
            model, params, prompt_BT, valid_BT, key, allowed_V, stop_V, max_new_tokens=cfg.max_new_tokens,
            temperature=cfg.temperature, pad=pad, samples=samples,
        )  # fmt: skip

    return Steps(
        init=jax.jit(init, in_shardings=(where_params,), out_shardings=where_state),
        sample=jax.jit(
            sample, static_argnums=4, in_shardings=(where_policy, here, here, everywhere), out_shardings=here
        ),
        update=jax.jit(
            update,
            in_shardings=(where_state, where_params, here),
            out_shardings=(where_state, everywhere),
            donate_argnums=0,
        ),
        measure=jax.jit(measure, in_shardings=(where_policy, where_params, here), out_shardings=here),
    )


# Responses, and what they are like


@dataclass(frozen=True, eq=False)
class Rollouts:
    """How policies that go out from `lm` respond to prompts, and what is said of their responses."""

    cfg: Config
    lm: LM
    steps: Steps
    scorer: Scorer
    mesh: Mesh

    def read(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Tokens of each prompt."""
        rows = self.lm.tokenizer.prompts([prompt.text for prompt in prompts])
        for prompt, row in zip(prompts, rows):
            if len(row) > self.cfg.max_prompt:
                most = f'reinforce.max_prompt = {self.cfg.max_prompt}'
                raise Mistake(f'prompt {prompt.id} has {len(row)} tokens; {most}')
        return rows

    def respond(
        self, params: transformer.Params, rows: Sequence[Sequence[int]], key: jax.Array, samples: int = 1
    ) -> tuple[training.Batch, list[str], np.ndarray]:
        """`samples` responses to each prompt: the arrays of a batch, the texts, and whether each has ended."""
        length = min(padded([len(row) for row in rows], BUCKET), self.cfg.max_prompt)
        given = hosts.to_mesh(pad_left(rows, length, self.lm.tokenizer.pad), axes.rows(self.mesh))
        sample = self.steps.sample(params, *given, key, samples)
        batch = {
            'prompt_BT': given[0], 'valid_BT': given[1], 'token_BT': sample.token_BT, 'mask_BT': sample.mask_BT,
            'sampled_logp_BT': sample.logp_BT, 'ended_B': sample.ended_B,
        }  # fmt: skip
        token_BT, mask_BT, ended_B = hosts.to_host((sample.token_BT, sample.mask_BT, sample.ended_B))
        return batch, self.lm.tokenizer.decode([row[mask] for row, mask in zip(token_BT, mask_BT)]), ended_B

    def respond_all(
        self, params: transformer.Params, prompts: Sequence[Prompt], key: jax.Array
    ) -> tuple[list[training.Batch], list[str], np.ndarray]:
        """As `respond`, a batch at a time; the last batch is filled up from the front."""
        n = self.cfg.batch
        count = math.ceil(len(prompts) / n)
        rows = self.read([prompts[i % len(prompts)] for i in range(count * n)])
        parts = [self.respond(params, rows[i * n : (i + 1) * n], jax.random.fold_in(key, i)) for i in range(count)]
        texts = [text for _, texts, _ in parts for text in texts]
        ended_B = np.concatenate([ended_B for *_, ended_B in parts])
        return [batch for batch, *_ in parts], texts[: len(prompts)], ended_B[: len(prompts)]

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str], ended_B: np.ndarray) -> np.ndarray:
        return np.asarray(self.scorer([prompt.text for prompt in prompts], texts, ended_B), np.float32)

    def evaluate(
        self,
        params: transformer.Params,
        prompts: Sequence[Prompt],
        batches: list[training.Batch],
        texts: list[str],
        ended_B: np.ndarray,
        truths: Mapping[str, Callable[[Sequence[str]], np.ndarray]],
    ) -> tuple[dict[str, float], np.ndarray]:
        """What a policy's responses to validation prompts are like, and the score of each; `truths`: texts → a figure of
        each, where more than the score is known.
        """
        cfg, n = self.cfg, len(prompts)
        found = [hosts.to_host(self.steps.measure(params, self.lm.params, batch)) for batch in batches]
        kl_B = np.concatenate(found)[:n]
        length_B = np.concatenate([hosts.to_host(batch['mask_BT']).sum(1) for batch in batches])[:n]
        score_B = self.score(prompts, texts, ended_B)
        penalty_B = cfg.missing_end_penalty * ~ended_B
        numbers = {
            'eval/score': _mean(score_B),
            'eval/kl': float(kl_B.mean()),
            'eval/reward': (1 - cfg.beta) * _mean(score_B - penalty_B) - cfg.beta * float(kl_B.mean()),
            'eval/mean_length': float(length_B.mean()),
            'eval/eos_rate': float(ended_B.mean()),
            'eval/unscorable': float(np.isnan(score_B).sum()),
        }
        for name, truth in truths.items():
            true_B = np.asarray(truth(texts), np.float64)
            numbers[f'eval/{name}'] = _mean(true_B)
            if name == 'quality':
                numbers['eval/quality_error'] = float(true_B.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
        return numbers, score_B


# The run


def run(
    cfg: Config,
    folder: Path,
    lm: LM,
    prompts_at: Callable[[int], list[Prompt]],
    scorer: Scorer,
    validation: Sequence[Prompt],
    mesh: Mesh,
    judge: Judge | None = None,
    quality: Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]] | None = None,
    note: str = '',
) -> LM:
    """Train the policy `lm` (the SFT policy, which also becomes value network and frozen reference) and export it to
    `folder/export`.

    `prompts_at(step)` are the step's prompts, batch / samples of them. Goes on from the last checkpoint; everything random
    is a function of (seed, step), so a resumed run ends with the parameters of an uninterrupted one. Raises `Mistake`
    where the KL runs away or steps are not finite. `judge` and `quality`, where the truth is known, go into the log of
    validation responses and decide nothing. `note` stands beside everything that is printed.
    """
    rows = cfg.batch // cfg.samples // cfg.parts
    axes.check_batch('reinforce.batch / reinforce.samples / reinforce.parts', rows, mesh)
    steps, model = make_steps(cfg, lm, mesh), lora.adapted(cfg.lora, lm.config)
    seed = jax.random.key(cfg.seed)

    def policy(state: dict[str, Any]) -> transformer.Params:
        return training.whole(lm.params, state['policy']['params'])

    def read(i: int) -> tuple[list[Prompt], list[list[int]]]:
        prompts = prompts_at(i)
        return [prompt for prompt in prompts for _ in range(cfg.samples)], rollouts.read(prompts)

    told = {'save_every': cfg.save_every, 'note': note, 'optimizer': 'policy_optimizer'}
    with jax.set_mesh(mesh):
        state = steps.init(lm.params)
        if not cfg.lora.rank:  # from here on nobody trains or exports them; whoever gave them away has the memory back
            lm = replace(lm, params=transformer.rounded(model, lm.params))
        rollouts = Rollouts(cfg, lm, steps, scorer, mesh)
        written = rollouts.respond_all(policy(state), validation, jax.random.fold_in(seed, 2))  # by what is SFT still
        _, sft_texts, _ = written
        truths = {'win_rate': lambda texts: judge(validation, texts, sft_texts)} if judge else {}
        truths |= {'quality': lambda texts: quality(validation, texts)} if quality else {}
        with loop.opened('reinforce', folder, cfg.steps, state, **told) as going:
            if not going.start:  # what the score, and quality, were before any step
                numbers, _ = rollouts.evaluate(policy(going.state), validation, *written, truths)
                going.metrics.write(-1, numbers)
                log.say(f'{note} {_line(0, numbers)}'.lstrip())
            del written, state
            prompt_lines = 4
            for i, (prompts, rows) in going.steps_left(read):
                began = time.perf_counter()
                key = jax.random.fold_in(jax.random.fold_in(seed, 0), i)
                batch, texts, ended_B = rollouts.respond(policy(going.state), rows, key, cfg.samples)
                sampled = time.perf_counter()
                score_B = rollouts.score(prompts, texts, ended_B)
                scored = time.perf_counter()
                batch['score_B'] = hosts.to_mesh(score_B, axes.rows(mesh))
                going.state, numbers = steps.update(going.state, lm.params, batch)
                kl = float(numbers['objective/kl'])  # the next response waits for the update anyway
                more = {
                    'seconds/sample': sampled - began,
                    'seconds/score': scored - sampled,
                    'seconds/update': time.perf_counter() - scored,
                }
                done, params, found = i + 1, policy(going.state), None
                if done % cfg.eval_every == 0 or done == cfg.steps:
                    key = jax.random.fold_in(jax.random.fold_in(seed, 1), done)
                    written = rollouts.respond_all(params, validation, key)
                    found, eval_score_B = rollouts.evaluate(params, validation, *written, truths)
                    samples = [
                        {'prompt': p.text, 'sft': s, 'policy': t, 'score': float(q)}
                        for p, s, t, q in zip(validation[:4], sft_texts, written[1], eval_score_B)
                    ]
                    going.metrics.samples(done, samples)
                    log.say(f'{note} {_line(done, found)}'.lstrip())
                    log.sample_table(
                        f'{note} samples at step {done}'.lstrip(), samples[:2], ['prompt', 'sft', 'policy', 'score'],
                        lines={'prompt': prompt_lines},
                    )  # fmt: skip
                    prompt_lines = 1  # the prompts are the same: so that one knows them again
                going.tell(i, numbers, _beside_bar, more | (found or {}))
                going.catch_up()
                _check_kl(cfg, i, kl, going.checkpoints)
                if found:  # of the policy behind this step
                    _check_kl(cfg, done, found['eval/kl'], going.checkpoints)
                    if cfg.candidates > 1:
                        _offer(cfg, folder, done, replace(lm, config=model, params=params), found, note)
        return _export(cfg, folder, lm, going.state, note)


def _export(cfg: Config, folder: Path, lm: LM, state: dict[str, Any], note: str) -> LM:
    """The trained policy, as it is written to `folder/export`; and to `folder/value` its value network, if wanted."""
    model, policy = lora.adapted(cfg.lora, lm.config), training.whole(lm.params, state['policy']['params'])
    about = (
        f'The policy `{lm.name}` after {cfg.steps} steps of REINFORCE on the scores of a reward model or a labeler: '
        f'{cfg.batch} '
        f'responses a step, β = {cfg.beta}, temperature {cfg.temperature}, seed {cfg.seed}. '
        f'For text like its training prompts only. {note}'
    )
    hf.save(replace(lm, config=model, params=policy), folder / 'export', about=about)
    if cfg.export_value:
        value = state['value']['params']
        trunk = training.whole(lm.params, value['trunk']) if 'trunk' in value else policy
        about = f'The value network beside a policy after {cfg.steps} steps of REINFORCE from `{lm.name}`. {note}'
        hf.save(replace(lm, params=lora.merge(model, trunk) | value['head']), folder / 'value', about=about)
    return LM(lm.config, lora.merge(model, policy), lm.tokenizer, str(folder / 'export'))


def candidate(folder: Path, step: int) -> Path:
    """The policy after `step` steps, if it is among the candidates; its figures lie beside it."""
    return Path(folder) / 'candidates' / str(step) / 'export'


def candidates(folder: Path) -> list[int]:
    """The steps of the checkpoints that were kept, the highest validation reward first."""
    steps = [int(path.name) for path in (Path(folder) / 'candidates').glob('*') if path.name.isdecimal()]
    found = {step: finished(candidate(folder, step).parent) for step in steps}
    return sorted((step for step in steps if found[step]), key=lambda step: (-found[step]['eval/reward'], step))


def _offer(cfg: Config, folder: Path, step: int, lm: LM, numbers: dict[str, float], note: str) -> None:
    """Keep the policy as it is, and let go of the one of the lowest validation reward if they are too many."""
    about = f'A candidate: the policy `{lm.name}` after {step} of {cfg.steps} steps of REINFORCE. {note}'
    hf.save(lm, candidate(folder, step), about=about)
    finish(candidate(folder, step).parent, numbers)

    def let_go() -> None:
        for lesser in candidates(folder)[cfg.candidates :]:
            (candidate(folder, lesser).parent / 'result.json').unlink()
            paths.remove(candidate(folder, lesser))
            with suppress(OSError):  # not empty: what somebody put there stays
                candidate(folder, lesser).parent.rmdir()

    hosts.told(let_go)


def _check_kl(cfg: Config, step: int, kl: float, checkpoints: checkpoint.Checkpoints) -> None:
    """Raises `Mistake` where the policy after `step` steps is too far from SFT; what was saved of it is taken back."""
    if not kl > cfg.most_kl:  # NaN is no distance: steps that are not finite are counted and reported elsewhere
        return
    checkpoints.drop(step)
    kept = checkpoints.latest()
    raise Mistake(
        f'reinforce: KL to the SFT policy reached {kl:.1f} nats a response after step {step}, above '
        f'reinforce.most_kl = {cfg.most_kl}: the policy is leaving the language that the scorer knows. Try a larger '
        'reinforce.beta or a lower reinforce.policy_optimizer.learning_rate; '
        + ('no checkpoint was saved before' if kept is None else f'the checkpoint of step {kept} is kept')
    )


def _mean(x_B: np.ndarray) -> float:
    """Of what could be scored; NaN where nothing could."""
    known_B = x_B[~np.isnan(x_B)]
    return float(known_B.mean()) if known_B.size else math.nan


def _beside_bar(shown: dict[str, float]) -> str:
    return (
        f'score {shown["objective/scores"]:+.3f}  KL {shown["objective/kl"]:.2f}  '
        f'{shown["completions/mean_length"]:.0f} tokens'
    )


def _line(step: int, numbers: dict[str, float]) -> str:
    line = (
        f'step {step}: reward {numbers["eval/reward"]:+.3f}, score {numbers["eval/score"]:+.3f}, '
        f'KL {numbers["eval/kl"]:.2f} nats, '
        f'{numbers["eval/mean_length"]:.1f} tokens, ended {numbers["eval/eos_rate"]:.0%}'
    )
    line += f', win rate against SFT {numbers["eval/win_rate"]:.1%}' if 'eval/win_rate' in numbers else ''
    return line + (f', quality {numbers["eval/quality"]:+.3f}' if 'eval/quality' in numbers else '')
