"""Laws of sampling: what is drawn is the model's distribution, and neither neighbours nor padding nor a mesh change it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rlaif_jax import axes, batching, generation, text
from rlaif_jax.config import Mistake
from rlaif_jax.data.records import Prompt
from rlaif_jax.generation import Sampling, extend, generate, sample
from rlaif_jax.models import heads, hf
from rlaif_jax.models.hf import LM
from rlaif_jax.models.transformer import Config, Rope, causal, forward, make_cache

CFG = Config(vocab=24, layers=2, width=16, heads=2, kv_heads=1, head_dim=8, ffn=24, max_length=64)
V, STOPS, NEW = CFG.vocab, (3, 5, 8), 6
PAD = 1
STOP_V = np.isin(np.arange(V), STOPS)
ALLOWED_V = np.isin(np.arange(V), (0, 7, 11, 20), invert=True)
PROMPTS = [[2], [4, 9, 2], [6, 6, 6, 6, 6], [10, 3, 12, 13, 14, 2, 9], [2, 4], [15, 16], [17, 18, 19, 2], [23]]
KEY = jax.random.key(7)


@pytest.fixture(scope='module')
def params(random_params):
    return random_params(CFG, seed=1)


def draw(params, prompts=PROMPTS, *, allowed_V=ALLOWED_V, stop_V=STOP_V, new=NEW, key=KEY, length=8, cfg=CFG, **how):
    """Rows with their padding on the left, all of one length, so that one program serves most tests."""
    token_BT, valid_BT = text.pad_left(prompts, length, PAD)
    how = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0} | how
    out = sample(cfg, params, token_BT, valid_BT, key, allowed_V, stop_V, max_new_tokens=new, pad=PAD, **how)
    return jax.tree.map(np.asarray, out)


def full_logits(params, rows, length=16, cfg=CFG):
    """(B, T, V) of whole texts in one forward; -inf for what may not be sampled."""
    token_BT, valid_BT = text.pad_right(rows, length, PAD)
    logit_BTV = hf.logits(LM(cfg, params, None, ''), token_BT, valid_BT)
    return np.where(ALLOWED_V, np.asarray(logit_BTV, np.float64), -np.inf)


def distribution(logit_V, temperature, top_k=0, top_p=1.0):
    """The distribution to sample from, said again in plain numpy."""
    p_V = np.exp((logit_V - logit_V.max()) / temperature)
    p_V /= p_V.sum()
    order = np.argsort(-p_V)
    kept = order[: top_k or len(order)]
    mass = p_V[kept] / p_V[kept].sum()
    kept = kept[: 1 + int(np.sum(np.cumsum(mass) < top_p))]  # the shortest head that holds top_p
    out = np.where(np.isin(np.arange(len(p_V)), kept), p_V, 0.0)
    return out / out.sum()


SETTINGS = [
    {'temperature': 1.0},
    {'temperature': 0.6},
    {'temperature': 1.7},
    {'temperature': 1.0, 'top_k': 5},
    {'temperature': 1.0, 'top_p': 0.7},
    {'temperature': 1.3, 'top_k': 6, 'top_p': 0.8},
]


@pytest.mark.parametrize('how', SETTINGS, ids=str)
def test_frequencies_follow_the_softmax(params, how):
    """Chi-square of 8192 first tokens, below the value that one seed in a million exceeds."""
    prompt, rows = PROMPTS[1], 8192
    expected_V = distribution(full_logits(params, PROMPTS)[1, len(prompt) - 1], **how)
    out = draw(params, [prompt] * rows, new=1, length=len(prompt), **how)
    counts_V = np.bincount(out.token_BT[:, 0], minlength=V)
    assert not counts_V[expected_V == 0].any()
    often = expected_V * rows >= 5
    assert often.sum() >= 3
    chi = np.sum((counts_V - expected_V * rows)[often] ** 2 / (expected_V * rows)[often])
    k = often.sum()
    assert chi < k * (1 - 2 / (9 * k) + 4.75 * np.sqrt(2 / (9 * k))) ** 3  # Wilson and Hilferty's quantile


@pytest.mark.parametrize('how', SETTINGS, ids=str)
def test_log_probabilities_are_those_of_the_full_forward(params, how):
    """Token by token, under the temperature and the truncation it was sampled with."""
    out = draw(params, **how)
    rows = [prompt + list(new[mask]) for prompt, new, mask in zip(PROMPTS, out.token_BT, out.mask_BT)]
    logit_BTV = full_logits(params, rows)
    for b, t in zip(*np.nonzero(out.mask_BT)):
        p_V = distribution(logit_BTV[b, len(PROMPTS[b]) + t - 1], **how)
        assert out.logp_BT[b, t] == pytest.approx(np.log(p_V[out.token_BT[b, t]]), abs=1e-4)


def test_greedy_is_the_argmax_of_the_full_forward(params):
    out = draw(params, temperature=0.0)
    rows = [prompt + list(new[mask]) for prompt, new, mask in zip(PROMPTS, out.token_BT, out.mask_BT)]
    best_BT = full_logits(params, rows).argmax(-1)
    for prompt, row, best_T in zip(PROMPTS, rows, best_BT):
        np.testing.assert_array_equal(row[len(prompt) :], best_T[len(prompt) - 1 : len(row) - 1])
    assert np.all(out.logp_BT == 0)  # it was certain
    again = draw(params, temperature=0.0, key=jax.random.key(8), top_k=3, top_p=0.5)
    np.testing.assert_array_equal(again.token_BT, out.token_BT)


def test_windows_and_layers_without_positions_are_sampled_as_they_are_trained(random_params):
    """Prompts and responses are longer than the window, and rows are ragged."""
    cfg = dataclasses.replace(CFG, windows=(3, 0), ropes=(Rope(), Rope(factor=math.inf)), logit_cap=2.0)
    params = random_params(cfg, seed=1)
    out = draw(params, cfg=cfg)
    rows = [prompt + list(new[mask]) for prompt, new, mask in zip(PROMPTS, out.token_BT, out.mask_BT)]
    logp_BTV = np.asarray(jax.nn.log_softmax(full_logits(params, rows, cfg=cfg)))
    for b, t in zip(*np.nonzero(out.mask_BT)):
        expected = logp_BTV[b, len(PROMPTS[b]) + t - 1, out.token_BT[b, t]]
        assert out.logp_BT[b, t] == pytest.approx(expected, abs=1e-4)


def test_what_is_not_allowed_is_never_sampled(params):
    """Not even where its logits dominate: here all others are 50 below."""
    loud = params | {'embed_VD': params['embed_VD'] * jnp.where(ALLOWED_V, 1.0, 50.0)[:, None]}
    for how in SETTINGS:
        out = draw(loud, **how)
        assert np.all(ALLOWED_V[out.token_BT[out.mask_BT]])
        assert np.all(np.isfinite(out.logp_BT))


def test_a_row_ends_with_its_stop_token(params):
    outs = [draw(params, temperature=1.5, key=jax.random.key(seed)) for seed in range(8)]
    lengths = set()
    for new, mask, logp, ended in (row for out in outs for row in zip(*out)):
        n = int(mask.sum())
        assert np.array_equal(mask, np.arange(NEW) < n) and n >= 1
        assert not STOP_V[new[: n - 1]].any()
        assert STOP_V[new[n - 1]] == ended
        assert ended or n == NEW
        assert np.all(new[n:] == PAD) and np.all(logp[n:] == 0)
        lengths.add(n)
    assert {1, 2, NEW} <= lengths and not all(out.ended_B.all() for out in outs)


def test_a_stop_token_in_the_prompt_stops_nothing(params):
    """Row 3 holds one; a row is only ended by what it wrote."""
    assert STOP_V[PROMPTS[3]].any()
    assert draw(params, temperature=0.0, stop_V=np.zeros(V, bool)).mask_BT.all()


def test_a_row_is_what_it_is_alone(params):
    together = draw(params, temperature=0.0)
    for b, prompt in enumerate(PROMPTS):
        same = draw(params, [prompt] * len(PROMPTS), temperature=0.0)
        np.testing.assert_array_equal(same.token_BT, np.broadcast_to(together.token_BT[b], same.token_BT.shape))


def test_settings_are_traced(params):
    draw(params)
    before = sample._cache_size()
    for how in ({'temperature': 0.3}, {'temperature': 0.0}, {'top_k': 2, 'top_p': 0.4}, {'key': jax.random.key(1)}):
        draw(params, **how)
    draw(params, allowed_V=~ALLOWED_V, stop_V=~STOP_V)
    assert sample._cache_size() == before


def test_the_loop_stops_with_the_last_row(params, monkeypatch):
    """Forwards are counted as they run: the prefill, then one for each token of the longest response."""
    runs = []

    def counted(*args):
        jax.debug.callback(lambda: runs.append(1))
        return forward(*args)

    forward = generation.forward
    monkeypatch.setattr(generation, 'forward', counted)
    other = Config(**{**vars(CFG), 'max_length': 63})  # its own program
    for stop_V in (np.ones(V, bool), STOP_V):
        runs.clear()
        out = draw(params, cfg=other, temperature=0.7, new=48, stop_V=stop_V, prompts=PROMPTS[:4])
        jax.effects_barrier()
        assert out.ended_B.all()
        assert len(runs) == out.mask_BT.sum(1).max() < 48  # of the last token nobody asks what comes behind it


def test_a_mesh_changes_nothing(params):
    mesh = axes.make_mesh({'data': 4, 'tensor': 2})
    expected = draw(params, temperature=0.9)
    with jax.set_mesh(mesh):
        rows = jax.device_put(text.pad_left(PROMPTS, 8, PAD), axes.rows(mesh))
        placed = axes.place(params, mesh)
        out = sample(CFG, placed, *rows, KEY, ALLOWED_V, STOP_V, max_new_tokens=NEW, temperature=0.9, pad=PAD)
    np.testing.assert_array_equal(out.token_BT, expected.token_BT)
    np.testing.assert_array_equal(out.mask_BT, expected.mask_BT)
    np.testing.assert_allclose(out.logp_BT, expected.logp_BT, rtol=0, atol=1e-5)


# generate: texts in, texts out

TEXTS = [
    'Rate this.',
    '',
    'x',
    'A good summary is a shorter piece of text.',
    'no',
    'Zażółć gęślą jaźń. ' * 2,
    'why? ' * 3,
]


@pytest.fixture(scope='module')
def lm(random_params, micro_tokenizer):
    cfg = Config(vocab=1152, layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn=16, max_length=80)
    start = text.Tokenizer(micro_tokenizer.hf, micro_tokenizer.ends)
    start.__dict__['start'] = (1,)  # as a checkpoint that wants <bos> first; so '' is a prompt too
    return LM(cfg, random_params(cfg, seed=3), start, 'tiny')


def test_texts_come_in_the_order_of_the_prompts(lm):
    """Across buckets of length and batches, with the last batch not full."""
    assert {len(row) + 1 > batching.BUCKET for row in lm.tokenizer.encode(TEXTS)} == {True, False}
    out = generate(lm, TEXTS, max_new_tokens=4, temperature=0.0, batch=2)
    assert len(set(out)) > 3
    back = generate(lm, TEXTS[::-1], max_new_tokens=4, temperature=0.0, batch=2)
    assert back[::-1] == out
    assert [generate(lm, [text], max_new_tokens=4, temperature=0.0, batch=2)[0] for text in TEXTS] == out
    assert generate(lm, [], max_new_tokens=4, batch=2) == []


def test_a_prompt_is_its_text_and_what_is_none_is_named(lm):
    prompts = [Prompt(text, id=str(i)) for i, text in enumerate(TEXTS[:3])]
    how = {'max_new_tokens': 4, 'temperature': 0.0, 'batch': 2}
    assert generate(lm, prompts, **how) == generate(lm, iter(TEXTS[:3]), **how)
    for given, says in (
        ('one text', r"prompts .* str, 'one text'; .*\[prompt\]"),
        (prompts[0], r'prompts .* Prompt, .*\[prompt\]'),
        (None, r'prompts .* None; .*\[prompt\]'),
        (['a text', 7], r'prompts\[1\] .* int, 7; .*Prompt'),
        ([Prompt(None, id='1')], r'prompts\[0\] .* None; .*Prompt'),
    ):
        with pytest.raises(Mistake, match=says):
            generate(lm, given)


def test_a_seed_is_a_text(lm):
    write = lambda seed: generate(lm, TEXTS[:3], max_new_tokens=4, temperature=0.9, seed=seed, batch=2)  # noqa: E731
    assert write(0) == write(0)
    assert write(0) != write(1)
    same = generate(lm, ['no'] * 4, max_new_tokens=4, temperature=0.9, batch=2)
    assert len(set(same)) == 4  # rows and batches draw their own


def test_a_prompt_that_does_not_fit_is_named(lm):
    with pytest.raises(Mistake, match=r'prompt 1 .* 81 tokens; .* 1 to 76$'):
        generate(lm, ['x', 'y' * 80], max_new_tokens=4, batch=2)
    with pytest.raises(Mistake, match='prompt 0 .* 0 tokens; .* 1 to 76$'):
        generate(LM(lm.config, lm.params, text.Tokenizer(lm.tokenizer.hf, (2,)), ''), [''], max_new_tokens=4, batch=2)
    with pytest.raises(Mistake, match='batch = 3: .* 8; .* 8$'):
        generate(lm, ['x'], batch=3, mesh=axes.make_mesh({'data': 8}))


@pytest.mark.parametrize('cfg', [CFG, dataclasses.replace(CFG, windows=(3, 0), layers=3)], ids=['plain', 'windows'])
def test_how_layers_lie_changes_nothing(random_params, monkeypatch, cfg):
    """Layer by layer, matrices turned, as on a CPU, or scanned: three responses to a prompt, behind a prefix."""
    params = random_params(cfg)
    _, prefix = forward(cfg, params, jnp.asarray([[5, 9]]), *causal(jnp.ones((1, 2), bool)), make_cache(cfg, 1, 2))
    token_BT, valid_BT = text.pad_left(PROMPTS[:4], 8, PAD)

    def written(params):
        given = token_BT, valid_BT, KEY, jnp.asarray(ALLOWED_V), jnp.asarray(STOP_V)
        return sample.__wrapped__(cfg, params, *given, max_new_tokens=6, pad=PAD, prefix=prefix, samples=3)

    expected = jax.jit(written)(params)
    monkeypatch.setattr(axes, 'platform', lambda: 'tpu')
    found = jax.jit(lambda params: written(params))(params)
    np.testing.assert_array_equal(found.token_BT, expected.token_BT)
    np.testing.assert_allclose(found.logp_BT, expected.logp_BT, atol=1e-5)
    assert len(np.unique(found.token_BT, axis=0)) > 4


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """Of a vocabulary of several blocks, the last one not full; what cannot be is never drawn. By a chi-squared test."""
    rng, V, n = np.random.default_rng(5), 300, 20_000
    logit_V = rng.normal(0, 2, V).astype(np.float32)
    logit_V[rng.random(V) < 0.3] = heads.NEVER
    logit_V[128:256] = heads.NEVER  # a whole block
    token_B, logp_B = jax.jit(generation.draw)(np.broadcast_to(logit_V, (n, V)), jax.random.key(1), 1.0)
    prob_V = np.exp(logit_V.astype(np.float64) - logit_V.max())
    prob_V /= prob_V.sum()
    np.testing.assert_allclose(logp_B, np.log(prob_V[token_B]), atol=1e-5)
    count_V = np.bincount(token_B, minlength=V)
    assert not count_V[prob_V == 0].any()
    often = prob_V * n > 5
    seen, due = [*count_V[often], count_V[~often].sum()], [*prob_V[often] * n, prob_V[~often].sum() * n]
    assert stats.chisquare(seen, due, sum_check=False).pvalue > 1e-3
    greedy_B, zero_B = generation.draw(logit_V[None], jax.random.key(1), 0.0)
    assert int(greedy_B[0]) == logit_V.argmax() and not zero_B.any()


# extend: tokens in, tokens out


def test_a_prefix_is_tokens_in_front_of_each_row(lm):
    """Kept once as a cache, it changes no token of what is written; rows of any length and an end token included."""
    before, rows = [4, 300, 7, 12, 500], [[9], [8, 250, 33], [40] * 35, [17, 18]]
    _, prefix = forward(
        lm.config, lm.params, jnp.asarray([before]), *causal(jnp.ones((1, 5), bool)), make_cache(lm.config, 1, 5)
    )
    how = Sampling(6, temperature=0.0, batch=2)
    written = extend(lm, rows, how, prefix=prefix)
    assert written == extend(lm, [before + row for row in rows], how) != extend(lm, rows, how)
    assert len({tuple(row) for row in written}) == len(rows) and all(1 <= len(row) <= 6 for row in written)
    with pytest.raises(Mistake, match='prompt 0 .* 70 tokens; .* 1 to 69$'):
        extend(lm, [[5] * 70], how, prefix=prefix)
