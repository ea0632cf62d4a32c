"""Laws of rlaif_jax.training.reinforce: the averaged gradient is that of the paper's objective, and what should not
matter does not.

Compiling a step takes seconds, so all tests share a few compiled worlds: one model, one shape of batch.
"""

from __future__ import annotations

import itertools
import json
import shutil
import weakref
from dataclasses import dataclass, replace
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from experiments.report import over_optimised
from rlaif_jax import axes, checkpoint, generation, log
from rlaif_jax.config import Mistake
from rlaif_jax.data.records import Prompt
from rlaif_jax.models import hf, transformer
from rlaif_jax.models.hf import LM
from rlaif_jax.text import pad_left
from rlaif_jax.training import reinforce
from rlaif_jax.training import state as training

MODEL = transformer.Config(vocab=16, layers=1, width=16, heads=2, kv_heads=2, head_dim=8, ffn=32, max_length=32)
END = 1
WORDS = (4, 5, 6)  # the three tokens of the world
P, T = 6, 3  # tokens of a prompt and of a response, at most
BETA, PENALTY = 0.25, 0.5
BASELINES = ('value', 'shared_value', 'batch_mean', 'leave_one_out')
SAMPLES = dict.fromkeys(BASELINES, 1) | {'leave_one_out': 2}  # it needs other responses to the same prompt
MESHES = {'data 8': {'data': 8}, 'data 2, fsdp 2, tensor 2': {'data': 2, 'fsdp': 2, 'tensor': 2}}


@dataclass(frozen=True)
class Toy:
    """As much of a tokenizer as the jitted steps ask for."""

    pad: int = 0

    def allowed(self, vocab: int) -> np.ndarray:
        return np.isin(np.arange(vocab), (*WORDS, END))

    def stops(self, vocab: int) -> np.ndarray:
        return np.arange(vocab) == END


@cache
def params(seed: int = 0) -> transformer.Params:
    return jax.jit(partial(transformer.init, MODEL))(jax.random.key(seed))


@cache
def left() -> transformer.Params:
    """A policy that has left its reference, which is params()."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(np.float32), params())


def config(**changes) -> reinforce.Config:
    usual = dict(
        steps=10, batch=8, max_prompt=P, max_new_tokens=T, beta=BETA, missing_end_penalty=PENALTY,
        policy_optimizer=training.Optimizer(name='adafactor', learning_rate=1e-2),
        value_optimizer=training.Optimizer(name='adamw', learning_rate=1e-2),
    )  # fmt: skip
    return reinforce.Config(**usual | changes)


class World:
    """The jitted steps of a config on a mesh, and states to begin with."""

    def __init__(self, cfg: reinforce.Config, mesh: str) -> None:
        self.cfg, self.mesh = cfg, axes.make_mesh(MESHES.get(mesh))
        lm = LM(MODEL, axes.place(params(), self.mesh), Toy(), 'toy')  # type: ignore[arg-type]
        self.sft, self.steps = lm.params, reinforce.make_steps(cfg, lm, self.mesh)

    def state(self, policy: transformer.Params | None = None, head: float = 0.0):
        """A fresh state; with `policy` away from its reference, with `head` its values away from zero."""
        with jax.set_mesh(self.mesh):
            state = self.steps.init(self.sft if policy is None else axes.place(policy, self.mesh))
            if head and reinforce.networked(self.cfg):
                weight_D = state['value']['params']['head']['head_D']
                state['value']['params']['head']['head_D'] = weight_D + head * jnp.cos(jnp.arange(MODEL.width))
            return state

    def update(self, state, batch):
        with jax.set_mesh(self.mesh):
            return self.steps.update(state, self.sft, jax.device_put(batch, axes.rows(self.mesh)))


@cache
def world(mesh: str = '', **changes) -> World:
    """The world of that config, compiled once for all tests."""
    return World(config(**changes), mesh)


def make_batch(policy: transformer.Params, seed: int = 0, pad: int = 0, rows: int = 8) -> training.Batch:
    """Prompts of all lengths, with end tokens in them; responses sampled from `policy`; random scores."""
    rng = np.random.default_rng(seed)
    prompt_BT, valid_BT = pad_left([rng.choice(16, 1 + b % P) for b in range(rows)], P, pad)
    sample = generation.sample(
        MODEL, policy, prompt_BT, valid_BT, jax.random.key(seed), Toy().allowed(MODEL.vocab), Toy().stops(MODEL.vocab),
        max_new_tokens=T, temperature=0.9, pad=pad,
    )  # fmt: skip
    return {
        'prompt_BT': prompt_BT, 'valid_BT': valid_BT, 'token_BT': sample.token_BT, 'mask_BT': sample.mask_BT,
        'sampled_logp_BT': sample.logp_BT, 'ended_B': np.asarray(sample.ended_B),
        'score_B': rng.uniform(-1, 1, rows).astype(np.float32),
    }  # fmt: skip


def take(batch: training.Batch, rows: list[int]) -> training.Batch:
    return jax.tree.map(lambda x: np.asarray(x)[rows], batch)


def close(one, other, tolerance: float) -> None:
    """Two trees of the same shape, everywhere within `tolerance` of the largest entry of each leaf (at least 1)."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        scale = max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


# The objective, enumerated


PROMPT = (7, END, 9)  # an end token in the prompt ends nothing
RESPONSES = [  # all of the world: up to T tokens, the end token only last
    *((*words, END) for n in range(T) for words in itertools.product(WORDS, repeat=n)),
    *itertools.product(WORDS, repeat=T),
]


@cache
def enumerated() -> training.Batch:
    """All responses to the prompt as one batch, each with a score of its own; padded on both sides."""
    token_BT = np.array([[*row, 0, 0, 0][:T] for row in RESPONSES], np.int32)
    mask_BT = np.arange(T) < np.array([[len(row)] for row in RESPONSES])
    prompt_BT, valid_BT = pad_left([PROMPT] * len(RESPONSES), P, 0)
    score_B = np.random.default_rng(0).uniform(-1, 1, len(RESPONSES)).astype(np.float32)
    return {
        'prompt_BT': prompt_BT, 'valid_BT': valid_BT, 'token_BT': token_BT, 'mask_BT': mask_BT, 'score_B': score_B
    }  # fmt: skip


@jax.jit
def log_probability(params: transformer.Params) -> jax.Array:
    """(B,): log π of every response at temperature 0.9, the plain way: no padding on the left, a whole log-softmax."""
    batch = enumerated()
    token_BT = jnp.concatenate([jnp.tile(jnp.array(PROMPT), (len(RESPONSES), 1)), batch['token_BT']], axis=1)
    hidden_BTD, _ = transformer.forward(MODEL, params, token_BT, *transformer.causal(jnp.ones_like(token_BT, bool)))
    allowed_C = jnp.array(sorted((*WORDS, END)))
    logp_BTC = jax.nn.log_softmax((hidden_BTD @ params['embed_VD'].T)[:, len(PROMPT) - 1 : -1, allowed_C] / 0.9)
    which_BT = jnp.searchsorted(allowed_C, jnp.where(batch['mask_BT'], batch['token_BT'], END))
    logp_BT = jnp.take_along_axis(logp_BTC, which_BT[..., None], axis=-1)[..., 0]
    return jnp.where(batch['mask_BT'], logp_BT, 0.0).sum(1)


@jax.jit
@jax.grad
def descent(policy: transformer.Params, sft: transformer.Params, beta: float) -> jax.Array:
    """−∇J, J = E[(1−β)·score − β·log(π/π_SFT)], by differentiating the sum over all responses."""
    logp_B, ref_logp_B = log_probability(policy), log_probability(sft)
    reward_B = (1 - beta) * enumerated()['score_B'] - beta * (logp_B - ref_logp_B)
    return -jnp.sum(jnp.exp(logp_B) * reward_B)


@partial(jax.jit, static_argnames='baseline')
def averaged(baseline: str, policy, sft, value, beta: float, weight_B: jax.Array, mean: float):
    """The policy's gradient of the stage's own loss, every response weighed with `weight_B`."""
    cfg = SimpleNamespace(baseline=baseline, beta=beta, temperature=0.9)  # a Config whose beta may be traced
    batch, allowed_V = enumerated(), jnp.asarray(Toy().allowed(MODEL.vocab))
    hidden_BTD = reinforce.response_states(MODEL, sft, batch)
    logp_BT, _ = reinforce.response_logp(cfg, MODEL, allowed_V, sft, hidden_BTD, batch['token_BT'])
    batch = batch | {'ref_logp_BT': logp_BT, 'sampled_logp_BT': logp_BT, 'weight_B': weight_B}
    batch['baseline_B'] = jnp.full_like(weight_B, mean)
    loss = partial(reinforce.loss, cfg, MODEL, allowed_V)
    return training.gradients(loss, {'policy': policy, 'value': value}, batch)[0]['policy']


def values(baseline: str):
    """A value network that means nothing: any function of the prefix is a baseline."""
    head = {'head_D': jnp.sin(jnp.arange(MODEL.width, dtype=jnp.float32)), 'head_bias': jnp.float32(0.3)}
    return {'value': {'head': head, 'trunk': params(5)}, 'shared_value': {'head': head}}.get(baseline, {})


@pytest.mark.parametrize('beta', [0.0, 0.3])
@pytest.mark.parametrize('baseline', BASELINES)
def test_the_averaged_gradient_is_that_of_the_objective(baseline, beta):
    probability_B = jnp.exp(log_probability(left()))
    assert float(probability_B.sum()) == pytest.approx(1, abs=1e-5)
    wanted = descent(left(), params(), beta)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted)) > 0.03  # there is something to compare
    close(averaged(baseline, left(), params(), values(baseline), beta, probability_B, 0.4), wanted, 1e-5)


def test_the_gradient_of_samples_approaches_that_of_the_objective():
    prompt_BT, valid_BT = (np.tile(enumerated()[name][:1], (8192, 1)) for name in ('prompt_BT', 'valid_BT'))
    index, count_B, errors = {row: b for b, row in enumerate(RESPONSES)}, np.zeros(len(RESPONSES), np.float32), []
    for n in range(16):
        sample = generation.sample(
            MODEL, left(), prompt_BT, valid_BT, jax.random.key(n), Toy().allowed(16), Toy().stops(16), max_new_tokens=T,
            temperature=0.9,
        )  # fmt: skip
        length_B = np.asarray(sample.mask_BT).sum(1)
        for row, length in zip(np.asarray(sample.token_BT).tolist(), length_B):
            count_B[index[tuple(row[:length])]] += 1
        found = averaged('value', left(), params(), values('value'), 0.3, count_B / count_B.sum(), 0.0)
        wanted = descent(left(), params(), 0.3)
        errors.append(float(optax.tree.norm(jax.tree.map(jnp.subtract, found, wanted)) / optax.tree.norm(wanted)))
    assert errors[-1] < 0.1


# Rewards and returns


CASES = {  # mask, index of the true last token
    'ended early': ([1, 1, 1, 0, 0], 2),
    'cut at the end': ([1, 1, 1, 1, 1], 4),
    'one token': ([1, 0, 0, 0, 0], 0),
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('beta', [0.0, 0.05, 1.0])
def test_the_score_is_a_reward_of_the_true_last_token(case, beta):
    mask, last = CASES[case]
    mask_T, score = jnp.array(mask, bool), 0.7
    logp_T, ref_logp_T = -jnp.arange(1.0, 6.0), -jnp.array([2.0, 1.0, 4.0, 4.0, 9.0])
    reward_T, return_T = reinforce.returns(jnp.float32(score), logp_T, ref_logp_T, mask_T, beta)
    kl_T = np.where(mask, np.asarray(logp_T - ref_logp_T), 0)
    wanted = -beta * kl_T
    wanted[last] += (1 - beta) * score
    np.testing.assert_allclose(reward_T, wanted, atol=1e-6)
    np.testing.assert_allclose(reward_T.sum(), (1 - beta) * score - beta * kl_T.sum(), atol=1e-6)
    np.testing.assert_allclose(return_T, np.where(mask, wanted[::-1].cumsum()[::-1], 0), atol=1e-6)
    assert not np.asarray(reward_T)[last + 1 :].any() and not np.asarray(return_T)[last + 1 :].any()


def test_what_stands_behind_the_response_never_matters():
    mask_T, behind_T = jnp.array([True, True, False]), jnp.array([0.0, 0.0, jnp.nan])
    reward_T, return_T = reinforce.returns(jnp.float32(1), behind_T - 1, behind_T - 2, mask_T, 0.5)
    assert np.isfinite(reward_T).all() and np.isfinite(return_T).all()
    losses = [reinforce.policy_loss(behind_T, return_T, mask_T), reinforce.value_loss(behind_T, return_T, mask_T)]
    assert np.isfinite(losses).all()


def test_the_state_that_chooses_a_token_has_not_seen_it():
    batch = enumerated()
    token_BT = batch['token_BT'].copy()
    token_BT[:, 1] = WORDS[2]
    states_BTD, changed_BTD = (
        np.asarray(reinforce.response_states(MODEL, params(), batch | {'token_BT': token}))
        for token in (batch['token_BT'], token_BT)
    )
    np.testing.assert_array_equal(states_BTD[:, :2], changed_BTD[:, :2])
    assert (states_BTD[:, 2] != changed_BTD[:, 2]).any()


def alone(batch: training.Batch, row: int) -> dict[str, float]:
    """The metrics of a step on one response: the others have no score."""
    score_B = np.where(np.arange(8) == row, batch['score_B'], np.nan).astype(np.float32)
    _, metrics = world().update(world().state(left()), batch | {'score_B': score_B})
    return {name: float(value) for name, value in metrics.items()}


def test_with_pad_equal_to_end_the_reward_is_where_the_response_ends():
    padded, plain = make_batch(left(), pad=END), make_batch(left())
    length_B = np.asarray(padded['mask_BT']).sum(1)
    np.testing.assert_array_equal(padded['mask_BT'], plain['mask_BT'])
    assert set(length_B) >= {1, T} and 0 < padded['ended_B'].sum() < 8  # of one token, and one that never ends
    for row in (int(length_B.argmin()), int(padded['ended_B'].argmin())):
        cut = not padded['ended_B'][row]
        metrics = alone(padded, row)
        assert metrics['completions/mean_length'] == length_B[row] and metrics['val/num_eos_tokens'] == sum(
            padded['ended_B']
        )
        assert metrics['objective/scores'] == pytest.approx(padded['score_B'][row] - PENALTY * cut, abs=1e-6)
        reward = (1 - BETA) * metrics['objective/scores'] - BETA * metrics['objective/kl']
        assert metrics['objective/rlhf_reward'] == pytest.approx(reward, abs=1e-6)
        assert metrics == pytest.approx(alone(plain, row), abs=1e-6)


# The sampler and the trainer


def test_the_trainer_sees_the_log_probabilities_of_the_sampler():
    here, batch = world(), make_batch(params())
    assert here.cfg.temperature == 0.9
    _, metrics = here.update(here.state(), batch)
    assert float(metrics['sampler/mismatch']) < 1e-5
    assert abs(float(metrics['objective/kl'])) < 1e-5 and float(metrics['objective/kl_k3']) < 1e-5
    sample = here.steps.sample(params(), batch['prompt_BT'], batch['valid_BT'], jax.random.key(0))
    np.testing.assert_array_equal(sample.token_BT, batch['token_BT'])


def test_kl_is_the_gap_of_the_two_log_probabilities():
    here, batch = world(), make_batch(left())
    assert not np.asarray(here.steps.measure(params(), params(), batch)).any()
    kl_B = np.asarray(here.steps.measure(left(), params(), batch))
    _, metrics = here.update(here.state(left()), batch)
    assert float(metrics['objective/kl']) == pytest.approx(kl_B.mean(), abs=1e-5) and np.abs(kl_B).max() > 0.1
    assert float(metrics['sampler/mismatch']) < 1e-5


def test_a_prompt_is_computed_once_for_all_responses_to_it():
    """Sampled and trained on as if it stood before each of them: the same tokens, the same step."""
    here, batch = world(), make_batch(left())
    shared = take({name: batch[name] for name in ('prompt_BT', 'valid_BT')}, [1, 6])
    twice = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), shared)
    several = here.steps.sample(left(), shared['prompt_BT'], shared['valid_BT'], jax.random.key(3), 4)
    alone = here.steps.sample(left(), twice['prompt_BT'], twice['valid_BT'], jax.random.key(3))
    np.testing.assert_array_equal(several.token_BT, alone.token_BT)
    np.testing.assert_allclose(several.logp_BT, alone.logp_BT, atol=1e-5)
    assert len(np.unique(several.token_BT, axis=0)) > 4 and len(set(np.asarray(several.mask_BT).sum(1))) > 1
    more = {'token_BT': several.token_BT, 'mask_BT': several.mask_BT, 'sampled_logp_BT': several.logp_BT}
    more |= {'ended_B': several.ended_B, 'score_B': batch['score_B']}
    close(*(here.update(here.state(left(), head=0.1), prompts | more) for prompts in (shared, twice)), 1e-5)
    kl_B, apart_B = (here.steps.measure(left(), params(), prompts | more) for prompts in (shared, twice))
    np.testing.assert_allclose(kl_B, apart_B, atol=1e-5)


# Scores that are none


@pytest.mark.parametrize('baseline', [name for name in BASELINES if SAMPLES[name] == 1])
def test_an_unscorable_response_adds_nothing(baseline):
    """Four responses beside four without a score make the step of the four responses twice."""
    here, batch = world(baseline=baseline), make_batch(left())
    gaps = batch | {'score_B': batch['score_B'].copy()}
    gaps['score_B'][[0, 3, 4, 7]] = [np.nan, np.inf, np.nan, -np.inf]
    state, metrics = here.update(here.state(left(), head=0.1), gaps)
    twice = take(batch, [1, 2, 5, 6] * 2)
    wanted, others = here.update(here.state(left(), head=0.1), twice)
    close(state, wanted, 1e-5)
    assert float(metrics['val/unscorable']) == 4 and float(others['val/unscorable']) == 0
    for name in set(metrics) - {'val/unscorable', 'val/num_eos_tokens', 'val/eos_rate'}:
        assert float(metrics[name]) == pytest.approx(float(others[name]), abs=1e-5), name


def test_a_batch_without_any_score_moves_nothing():
    here, batch = world(), make_batch(left()) | {'score_B': np.full(8, np.nan, np.float32)}
    before = here.state(left(), head=0.1)
    state, metrics = here.update(here.state(left(), head=0.1), batch)
    close(state['policy']['params'], before['policy']['params'], 0.0)
    assert float(metrics['grad_norm/policy']) == 0 == float(metrics['grad_norm/value'])
    assert float(metrics['val/unscorable']) == 8


# A baseline without a network


def test_leaving_one_out_compares_a_response_with_the_others_to_its_prompt():
    cfg = config(baseline='leave_one_out', samples=4, batch=12)
    rng = np.random.default_rng(0)
    return_B, known_B = rng.normal(size=12).astype(np.float32), np.arange(12) % 5 != 1
    found_B = np.asarray(reinforce.baseline(cfg, return_B, known_B))
    for b in range(12):
        others = [i for i in range(b - b % 4, b - b % 4 + 4) if i != b and known_B[i]]
        assert found_B[b] == pytest.approx(return_B[others].mean(), abs=1e-6)
        changed_B = return_B + 7.0 * (np.arange(12) == b)  # what a response gets does not move its own baseline
        assert reinforce.baseline(cfg, changed_B, known_B)[b] == pytest.approx(found_B[b], abs=1e-6)
    alone_B = np.arange(12) % 4 == 0  # no other to the same prompt is known: those to others are
    found_B = np.asarray(reinforce.baseline(cfg, return_B, alone_B))
    for b in (0, 4, 8):
        assert found_B[b] == pytest.approx(return_B[[i for i in (0, 4, 8) if i != b]].mean(), abs=1e-6)
    assert not np.asarray(reinforce.baseline(cfg, return_B, np.arange(12) == 4))[4]  # nothing else is known


def test_the_mean_of_a_batch_is_that_of_what_has_a_score():
    return_B, known_B = np.array([1.0, 3.0, np.nan, 5.0], np.float32), np.array([True, True, False, True])
    np.testing.assert_allclose(reinforce.baseline(config(baseline='batch_mean'), return_B, known_B), 3.0, atol=1e-6)


@pytest.mark.parametrize(
    'changes, told',
    [({'samples': 3}, 'batch = 8 .* samples = 3'), ({'baseline': 'leave_one_out'}, 'leave_one_out .*samples of 2 ')],
)
def test_groups_that_do_not_come_out_even_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        config(**changes)


# One step


@pytest.mark.parametrize('baseline', ['value', 'batch_mean'])
def test_a_step_in_parts_is_the_step_whole(baseline):
    batch = make_batch(left())
    batch['score_B'][:3] = np.nan  # parts of unequal weight: the first of the four has none at all
    whole, parts = (world(**how) for how in ({'baseline': baseline}, {'baseline': baseline, 'parts': 4}))
    close(*(here.update(here.state(left(), head=0.1), batch) for here in (parts, whole)), 1e-5)


@pytest.mark.parametrize('mesh, parts', [('data 8', 1), ('data 2, fsdp 2, tensor 2', 2)])
def test_steps_on_eight_devices_are_those_on_one(mesh, parts):
    here, there = world(), world(mesh, parts=parts, remat=parts > 1)
    batch = make_batch(left())
    policy = axes.place(left(), there.mesh)
    with jax.set_mesh(there.mesh):
        rows = jax.device_put((batch['prompt_BT'], batch['valid_BT']), axes.rows(there.mesh))
        sample = there.steps.sample(policy, *rows, jax.random.key(0))
    np.testing.assert_array_equal(sample.token_BT, batch['token_BT'])
    np.testing.assert_allclose(sample.logp_BT, batch['sampled_logp_BT'], atol=1e-5)
    one, eight = here.state(left(), head=0.1), there.state(left(), head=0.1)
    for _ in range(2):
        one, metrics = here.update(one, batch)
        eight, others = there.update(eight, batch)
    close(eight, one, 1e-5)
    close(others, metrics, 1e-5)
    split = [leaf for leaf in jax.tree.leaves(eight['policy']) if not leaf.sharding.is_fully_replicated]
    assert bool(split) == ('fsdp' in mesh)


@pytest.mark.parametrize('baseline', BASELINES)
def test_every_baseline_learns_to_say_what_scores(baseline):
    here, scores = world(baseline=baseline, samples=SAMPLES[baseline]), []
    state = here.state()
    for i in range(60):
        batch = make_batch(state['policy']['params'], seed=i)
        batch['score_B'] = np.asarray((batch['token_BT'] == WORDS[0]).sum(1) - 1.0, np.float32)
        scores.append(batch['score_B'].mean())
        state, metrics = here.update(state, batch)
    assert np.mean(scores[-10:]) > np.mean(scores[:10]) + 0.5
    assert float(metrics['objective/kl']) > 0.1 and float(metrics['sampler/mismatch']) < 1e-4
    assert set(state['value']['params']) == set(values(baseline))


def test_the_state_is_donated_and_the_reference_stays():
    here = world()
    before = jax.tree.map(np.array, here.sft)
    state = here.state()
    here.update(state, make_batch(params()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state['policy']['params']))
    close(here.sft, before, 0.0)


@pytest.mark.parametrize('broken', ['policy', 'value'])
def test_networks_skip_a_step_that_is_not_finite_together(broken):
    here, batch = world(), make_batch(params())
    state = here.state(head=0.1)
    network = {'policy': state['policy']['params'], 'value': state['value']['params']['trunk']}[broken]
    network['final_norm_D'] = jax.device_put(np.full(MODEL.width, np.nan, np.float32), axes.replicated(here.mesh))
    before = jax.tree.map(np.array, state)
    for times in (1, 2):
        state, metrics = here.update(state, batch)
        for name in ('policy', 'value'):
            kept = {key: state[name][key] for key in ('params', 'optimizer')}
            close(kept, {key: before[name][key] for key in kept}, 0.0)
            assert int(state[name]['skipped']) == times and float(metrics[f'skipped/{name}']) == 1
    training.check_finite('reinforce', 7, 2)
    with pytest.raises(Mistake, match=r'reinforce: .* 3 .* step 7,.*reinforce\.optimizer\.learning_rate'):
        training.check_finite('reinforce', 7, 3)


def test_skipped_steps_in_a_row_are_forgotten_after_a_good_one():
    state = world().state()
    state['policy']['skipped'] = jax.device_put(np.int32(2), axes.replicated(world().mesh))
    assert int(world().update(state, make_batch(params()))[0]['policy']['skipped']) == 0


# The config, and the run


@pytest.mark.parametrize(
    'wrong, message',
    [
        ({'beta': 1.5}, 'beta = 1.5'),
        ({'beta': float('nan')}, 'beta = nan'),
        ({'temperature': 0.0}, r'temperature .*positive.* 0\.0'),
        ({'batch': 0}, 'batch .*positive.* 0'),
        ({'batch': 8, 'parts': 3}, 'batch = 8 .* 3 .*parts'),
        ({'baseline': 'batch_mean', 'export_value': True}, "export_value: .*'batch_mean'"),
        ({'steps': 0}, 'steps .*positive.* 0'),
        ({'max_new_tokens': -1}, 'max_new_tokens .*positive.* -1'),
        ({'most_kl': 0.0}, r'most_kl .*positive.* 0\.0'),
        ({'missing_end_penalty': -1.0}, r'missing_end_penalty .*negative.* -1\.0'),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        config(**wrong)


@pytest.fixture(scope='module')
def spelling():
    """The model with a real tokenizer, of letters: WORDS are c, d and e."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from rlaif_jax.text import Tokenizer as Ours

    letters = Tokenizer(models.WordLevel({t: i for i, t in enumerate(['<pad>', '<eos>', *'abcdefghijklmn'])}, '<pad>'))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex('.'), 'isolated')
    letters.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token='<pad>', eos_token='<eos>')
    return LM(MODEL, world().sft, Ours(fast, (END,)), 'spelling')


PROMPTS = [Prompt(text, f'p{i}') for i, text in enumerate(('abc', 'd', 'efghij', 'kl', 'mn', 'aa', 'bb', 'cc'))]


@pytest.fixture
def run(spelling, tmp_path, monkeypatch):
    """The stage with the steps that the other tests have compiled."""
    steps = {'value': world().steps, 'shared_value': world(baseline='shared_value').steps}
    monkeypatch.setattr(reinforce, 'make_steps', lambda cfg, lm, mesh: steps[cfg.baseline])

    def run(
        lm=spelling, scorer=lambda prompts, texts, ended_B: np.array([t.count('c') - 1.0 for t in texts]), **changes
    ):
        cfg = config(eval_every=2, eval_prompts=3, **changes)
        return reinforce.run(cfg, tmp_path, lm, lambda step: PROMPTS, scorer, PROMPTS[:3], axes.make_mesh())

    return run


def test_a_run_trains_and_exports_a_policy_and_leaves_the_reference_as_it_was(spelling, run, tmp_path):
    before, seen = jax.tree.map(np.array, spelling.params), []

    def scorer(prompts, texts, ended_B):
        seen.append((prompts, texts))
        assert ended_B.shape == (len(texts),) and all(ended or len(text) == T for text, ended in zip(texts, ended_B))
        return np.array([text.count('c') for text in texts])

    trained = run(scorer=scorer, steps=3)
    close(spelling.params, before, 0.0)
    close(hf.load(tmp_path / 'export').params, trained.params, 0.0)
    assert all((np.asarray(trained.params[name]) != before[name]).any() for name in before)
    prompts, texts = seen[1]
    assert prompts == [p.text for p in PROMPTS] and all(len(text) <= T and set(text) <= set('cde') for text in texts)
    assert [len(texts) for _, texts in seen] == [3, 8, 8, 3, 8, 3]  # evaluated before any step, after steps 2 and 3
    rows = log.read_metrics(tmp_path)
    assert [row['step'] for row in rows] == [-1, 0, 1, 2]
    assert rows[0]['eval/kl'] == pytest.approx(0, abs=1e-5) and 'objective/kl' not in rows[0]
    assert rows[0]['eval/score'] == pytest.approx(np.mean([text.count('c') for text in seen[0][1]]))


@pytest.mark.slow
def test_without_kl_a_policy_takes_what_scores_for_what_is_good(spelling, tmp_path, monkeypatch):
    """A scorer that wants ever more of what is good once or twice: the score rises, quality falls, and the log can tell.
    Who stays near the reference, which seldom writes it, gets better.
    """
    slow, told = training.Optimizer(name='adafactor', learning_rate=2e-3), {}
    how = {'batch': 16, 'missing_end_penalty': 0.0, 'policy_optimizer': slow}
    for beta, here in {beta: world(beta=beta, **how) for beta in (0.0, 0.8)}.items():
        monkeypatch.setattr(reinforce, 'make_steps', lambda *_, steps=here.steps: steps)
        cfg = replace(here.cfg, steps=60, eval_every=20, eval_prompts=48)
        reinforce.run(
            cfg, tmp_path / str(beta), spelling, lambda step: PROMPTS * 2,
            lambda prompts, texts, ended_B: np.array([float(text.count('c')) for text in texts]),
            PROMPTS * 6, axes.make_mesh(),
            quality=lambda prompts, texts: [-abs(text.count('c') - 1.5) for text in texts],
        )  # fmt: skip
        rows = [row for row in log.read_metrics(tmp_path / str(beta)) if 'eval/score' in row]
        told[beta] = over_optimised(rows), rows[-1]['eval/score'] - rows[0]['eval/score'], rows[-1]['eval/kl']
        assert [row['step'] for row in rows] == [-1, 19, 39, 59]
    (said, rise, kl), (nothing, _, near) = told.values()
    assert said.startswith('over-optimised') and 'quality fell' in said and rise > 1 and kl > 3
    assert nothing == '' and near < 0.5


@pytest.mark.parametrize('baseline', ['value', 'shared_value'])
def test_a_value_network_travels(run, tmp_path, saved_state, baseline):
    """Out in TRL's layout, and back as it was trained; whoever wants a language model passes its head over."""
    trained = run(steps=2, baseline=baseline, export_value=True)
    trunk = hf.load(tmp_path / 'value').params
    tensors = safetensors.numpy.load_file(tmp_path / 'value/model.safetensors')
    head = saved_state(tmp_path, 2)['value']['params']['head']
    assert tensors['v_head.summary.weight'].tolist() == [head['head_D'].tolist()] and np.abs(head['head_D']).max() > 0
    assert tensors['v_head.summary.bias'].tolist() == [head['head_bias'].tolist()]
    same = all((np.asarray(trunk[name]) == np.asarray(x)).all() for name, x in trained.params.items())
    assert same == (baseline == 'shared_value')


def test_a_run_whose_kl_runs_away_stops_and_says_what_to_change(run):
    with pytest.raises(Mistake, match=r'reinforce: KL .*nats.*\.most_kl = 1e-06.*reinforce\.beta'):
        run(most_kl=1e-6)


def test_a_run_that_runs_away_keeps_its_last_good_checkpoint(run, tmp_path):
    run(steps=12, save_every=1)
    measured = []  # (steps done, KL of the policy then), in the order in which it is measured
    for row in map(json.loads, (tmp_path / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()):
        measured += [(row['step'], row['objective/kl'])] if 'objective/kl' in row else []
        measured += [(row['step'] + 1, row['eval/kl'])] if 'eval/kl' in row else []
    limit, bad = next(
        (before, step)
        for i, (step, kl) in enumerate(measured)
        if step > 2 and kl > (before := max(kl for _, kl in measured[:i])) > 0
    )
    for path in tmp_path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(Mistake, match=rf'reinforce: .*step {bad}, .*\.most_kl = {limit}.* step {bad - 1}\b'):
        run(steps=12, save_every=1, most_kl=limit)
    assert checkpoint.Checkpoints(tmp_path).steps()[-1] == bad - 1 and not (tmp_path / 'export').exists()


def test_a_run_that_is_not_finite_stops_and_says_so(spelling, run):
    bad = jax.device_put(np.full(MODEL.width, np.nan, np.float32), axes.replicated(world().mesh))
    broken = replace(spelling, params=spelling.params | {'final_norm_D': bad})
    with pytest.raises(Mistake, match=r'reinforce: .* 3 .*not finite.*learning_rate'):
        run(broken)


@pytest.mark.parametrize('most, padded', [(P, P), (100, 100), (128, 128), (1024, 128)])
def test_prompts_are_padded_no_further_than_they_need(run, monkeypatch, most, padded):
    class Seen(Exception):
        pass

    def sample(params, prompt_BT, valid_BT, key, samples):
        raise Seen(prompt_BT.shape, valid_BT.shape, int(valid_BT.sum()))

    steps = world().steps._replace(sample=sample)
    monkeypatch.setattr(reinforce, 'make_steps', lambda cfg, lm, mesh: steps)
    with pytest.raises(Seen) as seen:
        run(max_prompt=most)
    tokens = sum(len(PROMPTS[i % 3].text) for i in range(8))  # the validation prompts come first
    assert seen.value.args == ((8, padded), (8, padded), tokens)


def test_a_prompt_that_does_not_fit_is_named(run):
    with pytest.raises(Mistake, match=r'prompt p2 .* 6 tokens; reinforce\.max_prompt = 5'):
        run(max_prompt=5)


def test_parameters_that_are_given_away_leave_the_memory_but_for_a_rough_copy(spelling, tmp_path):
    """The reference is in the dtype of the products, and says the same as the parameters that it was made of."""
    model = replace(MODEL, dtype='bfloat16')
    given = [replace(spelling, config=model, params=jax.tree.map(lambda x: x + 0, spelling.params))]
    master = weakref.ref(given[0].params['embed_VD'])
    assert transformer.rounded(model, spelling.params)['embed_VD'].dtype == jnp.bfloat16
    gone = []

    def scorer(prompts, texts, ended_B):
        gone.append(master() is None)
        return np.zeros(len(texts))

    cfg = config(steps=1, eval_every=1, eval_prompts=3)
    policy = reinforce.run(cfg, tmp_path, given.pop(), lambda step: PROMPTS, scorer, PROMPTS[:3], axes.make_mesh())
    assert all(gone) and policy.params['embed_VD'].dtype == jnp.float32
    rows = log.read_metrics(tmp_path)
    assert rows[0]['eval/kl'] == 0 and rows[1]['sampler/mismatch'] < 0.05
