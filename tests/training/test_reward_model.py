"""Laws of the reward model: what it learns from, where its score is read, what a pair's order and padding may change."""

import itertools
import json
import math
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax import axes, checkpoint, stopping
from rlaif_jax.config import Mistake
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.models import heads, hf, transformer
from rlaif_jax.models.hf import LM
from rlaif_jax.text import Tokenizer
from rlaif_jax.training import reward_model
from rlaif_jax.training import state as training
from rlaif_jax.training.reward_model import Config, RewardModel, make_batch, make_scorer, measures

MODEL = transformer.Config(vocab=32, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, ffn=24, max_length=64)
EOS = 1
CFG = Config(steps=10, batch=8, max_prompt=12, max_response=8)


@dataclass(frozen=True)
class Letters:
    """A tokenizer of letters: a token each, and 'E' is the end token, wherever it stands."""

    pad: int = 0
    eos: int = EOS
    start: tuple[int, ...] = (2,)

    def encode(self, texts, *, behind=False):
        return [[EOS if c == 'E' else 3 if c == ' ' else ord(c) - ord('a') + 4 for c in text] for text in texts]

    def prompts(self, texts):
        return [[*self.start, *row] for row in self.encode(texts)]

    def responses(self, prompts, texts):
        return [[*row, EOS] for _, row in zip(prompts, self.encode([f' {text.strip()}'.rstrip() for text in texts]))]


PAIRS = [
    Pair(Prompt(prompt, prompt), first, second, preference)
    for prompt, first, second, preference in (
        ('abc', 'de', 'fghi', 0.8),
        ('aEbEc', 'd', 'eE', 0.3),  # end tokens within
        ('b', 'abcdefghijk', 'cd', 1.0),  # a response that never ends
        ('efghijklmnop', '', 'a', 0.0),  # a prompt that is cut, a response that ends at once
        ('E', 'EE', 'dE', 0.5),
        ('cc', 'dddddd', 'ddddddd', 0.6),  # at its most with and without an end
        ('dd', 'a', 'b', 0.9),
        ('abcabc', 'no', 'yes', 0.1),
    )
]


def turned(pair):
    return Pair(pair.prompt, pair.second, pair.first, None if pair.preference is None else 1 - pair.preference)


@pytest.fixture(scope='module')
def params(random_params):
    """Of a reward model with a mind of its own."""
    head = {'head_D': jnp.cos(jnp.arange(MODEL.width, dtype=jnp.float32)), 'head_bias': jnp.zeros(())}
    return {'trunk': random_params(MODEL), 'head': head}


@pytest.fixture(scope='module')
def letters(params):
    return RewardModel(MODEL, params, Letters(), 'letters')


score_batch = jax.jit(lambda params, batch: reward_model.scores(MODEL, params, batch)[:, 0])  # of a pair a row
gradients = jax.jit(partial(training.gradients, partial(reward_model.batch_loss, MODEL)))


def batch_of(pairs=PAIRS, **changes):
    return make_batch(Letters(), pairs, replace(CFG, **changes))


def scorer_of(model, **changes):
    return make_scorer(model, max_prompt=CFG.max_prompt, max_response=CFG.max_response, **{'batch': 8} | changes)


def close(one, other, tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=tolerance), one, other)


# The loss


@pytest.mark.parametrize('margin', [-3.0, 0.0, 0.7, 40.0])
def test_the_loss_of_a_pair(margin):
    """With hard labels that of Bradley and Terry; the gradient is what the model thinks less what the label says; in the
    other order all is the same.
    """
    value = jax.value_and_grad(reward_model.loss)
    score_C = jnp.array([margin + 0.25, 0.25])
    says = 1 / (1 + math.exp(-margin))
    for p in (0.0, 0.25, 0.5, 1.0):
        total, grad_C = value(score_C, p)
        close(grad_C, np.array([says - p, p - says]), 1e-6)
        again, other_C = value(score_C[::-1], 1 - p)
        assert again == total and np.array_equal(other_C, grad_C[::-1])
        assert value(score_C + 8, p)[0] == pytest.approx(float(total), abs=1e-5)
    assert reward_model.loss(score_C, 1.0) == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-5)


def test_showing_pairs_the_other_way_round_teaches_the_same(params):
    one, two = (gradients(params, batch_of(list(pairs))) for pairs in (PAIRS, map(turned, PAIRS)))
    assert one[1]['loss'] > 0.1 and set(one[1]) == {'loss', 'rewards/accuracies', 'rewards/margins'}
    close(two, one, 2e-5)
    score_BC = score_batch(params, batch_of())
    close(score_batch(params, batch_of(list(map(turned, PAIRS)))), score_BC[:, ::-1], 2e-5)


def test_a_tie_between_equal_responses_teaches_nothing(params):
    same = [Pair(pair.prompt, pair.first, pair.first, 0.5) for pair in PAIRS]
    grads, metrics = gradients(params, batch_of(same))
    assert metrics['loss'] == pytest.approx(math.log(2))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-5
    moved, _ = gradients(params, batch_of([*PAIRS[:1], *same[1:]]))
    assert float(jnp.abs(moved['trunk']['embed_VD']).max()) > 1e-3


def test_a_pair_without_a_preference_adds_nothing_whatever_it_says(params):
    """Bit for bit; None and NaN are one, and the mean is over the others."""
    grads = []
    for nothing in (Pair(Prompt('zz', ''), 'xxxx', '', None), Pair(Prompt('aa', ''), 'E', 'bE', math.nan)):
        batch = batch_of([nothing, *PAIRS[1:4], nothing, *PAIRS[5:]])
        assert batch['weight_BQ'][:, 0].tolist() == [0, 1, 1, 1, 0, 1, 1, 1]
        grads.append(gradients(params, batch))
    jax.tree.map(np.testing.assert_array_equal, *grads)
    alone = [
        reward_model.loss(s, p) for s, p in zip(score_batch(params, batch_of()), batch_of()['preference_BQ'][:, 0])
    ]
    assert grads[0][1]['loss'] == pytest.approx(np.mean([float(alone[b]) for b in (1, 2, 3, 5, 6, 7)]), rel=1e-5)
    none, metrics = gradients(params, batch_of([nothing] * 8))
    assert metrics['loss'] == 0 and all(np.all(g == 0) for g in jax.tree.leaves(none))


@pytest.mark.parametrize('splits', [1, 2, 4])
def test_pairs_that_share_rows_are_the_same_batch(params, splits):
    """No pair sees another: gradient and figures are those of a row each, in fewer rows."""
    pairs = [*PAIRS[:4], replace(PAIRS[4], preference=None), *PAIRS[5:]]
    alone, shared = (make_batch(Letters(), pairs, CFG, parts) for parts in (None, splits))
    rows, places = shared['weight_BQ'].shape
    assert rows % splits == 0 and rows < len(pairs) and places == reward_model.EACH
    held = [(batch['weight_BQ'].sum(), batch['full_BQ'].sum()) for batch in (alone, shared)]
    assert held[0] == held[1] == (7, 3)
    one, two = gradients(params, alone), gradients(params, shared)
    assert one[1]['loss'] > 0.1
    close(two, one, 2e-5)


def test_labels_are_kept_or_rounded():
    votes = [0.0, 0.2, 0.5, 0.5 + 1e-9, 0.7, 1.0, None, math.nan]
    pairs = [replace(PAIRS[0], preference=p) for p in votes]
    soft, hard = reward_model.targets(pairs), reward_model.targets(pairs, soft=False)
    close(soft, (np.array([0, 0.2, 0.5, 0.5, 0.7, 1, 0.5, 0.5]), np.array([1.0] * 6 + [0] * 2)), 1e-7)
    close(hard, (np.array([0, 0, 0.5, 0.5, 1, 1, 0.5, 0.5]), np.array([1.0, 1, 0, 0, 1, 1, 0, 0])), 0)
    with pytest.raises(Mistake, match=r'pair abc: .*\[0, 1\].* 7\.0'):
        reward_model.targets([replace(PAIRS[0], preference=7.0)])


# Where the score is read


@pytest.mark.parametrize('pad', [0, EOS], ids=['pad', 'pad is the end'])
def test_the_score_is_read_at_the_true_last_token(letters, params, pad):
    """As if each prompt and response stood alone, without any padding: with end tokens in the prompt, in the response,
    as padding, or nowhere. And both responses of a pair behind one prompt have the scores that they have apart.
    """
    tokenizer = Letters(pad)
    score = jax.jit(partial(heads.value, MODEL))
    scorer = scorer_of(replace(letters, tokenizer=tokenizer))
    prompts, firsts = [pair.prompt.text for pair in PAIRS], [pair.first for pair in PAIRS]
    found_B = scorer(prompts, firsts)
    assert found_B.dtype == np.float32 and found_B.shape == (len(PAIRS),)
    for b in (1, 2, 3):
        (prompt,), _ = reward_model.encode_prompts(tokenizer, prompts[b : b + 1], CFG.max_prompt)
        response = reward_model.encode_responses(tokenizer, ['p'], firsts[b : b + 1], CFG.max_response)[0]
        assert (response[-1] == EOS) == (b != 2) and len(response) == (3, 8, 1)[b - 1]
        row_BT = jnp.array([prompt + response])
        value_BT = score(params, row_BT, *transformer.causal(jnp.ones_like(row_BT, bool)))
        assert found_B[b] == pytest.approx(float(value_BT[0, -1]), abs=1e-5)
        assert abs(value_BT[0, -1] - value_BT[0, -2]) > 1e-3
    score_BC = score_batch(params, make_batch(tokenizer, PAIRS, CFG))
    close(score_BC, np.stack([found_B, scorer(prompts, [pair.second for pair in PAIRS])], axis=1), 1e-5)
    assert np.abs(score_BC[:, 0] - score_BC[:, 1]).min() > 1e-3


def test_texts_that_are_too_long_keep_what_matters():
    """A prompt what `shortening` says and the tokens that begin every text, a response its beginning; both are counted."""
    tokenizer = Letters()
    found = reward_model.encode_prompts(tokenizer, ['abcdefghijklmnop', 'abcd'], 5)
    assert found == ([[2, *tokenizer.encode([text])[0]] for text in ('mnop', 'abcd')], [True, False])
    rows = reward_model.encode_responses(tokenizer, ['p'] * 5, ['abc', ' abc\n', 'abcd', 'abcde', ''], 6)
    assert rows[0] == rows[1] == [*tokenizer.encode([' abc'])[0], EOS]
    assert [len(row) for row in rows] == [5, 5, 6, 6, 1] and [row[-1] == EOS for row in rows] == [1, 1, 1, 0, 1]
    assert batch_of()['full_BQ'][:, 0].tolist() == [False, False, True, True, False, True, False, False]


def test_a_response_that_has_not_ended_has_no_end_token_however_short_its_text(micro_tokenizer):
    """What was sampled letter by letter is read back as whole words: fewer tokens than the policy wrote."""
    sampled = [token for letter in ' the only one' for token in micro_tokenizer.encode([letter], behind=True)[0]]
    (text,) = micro_tokenizer.decode([sampled])
    (whole,), (cut,) = (
        reward_model.encode_responses(micro_tokenizer, ['p'], [text], len(sampled), ended_B)
        for ended_B in ([True], [False])
    )
    assert len(whole) < len(sampled) and whole == [*cut, micro_tokenizer.eos]


def test_a_dialogue_is_read_in_its_chat_template_up_to_the_end_of_its_turn(micro_tokenizer):
    """Of a long one its user's words lose their beginning; the template stays whole."""
    from rlaif_jax.micro import tokenizer
    from rlaif_jax.text import Tokenizer

    hf = tokenizer.build()
    hf.add_tokens(['<turn>'], special_tokens=True)
    hf.chat_template = '{% for m in messages %}{{ m.content }}<turn>{% endfor %}'
    chats, text = Tokenizer(hf, (hf.eos_token_id,)), '\n\nHuman: my boss yells\n\nAssistant:'
    turn = hf.convert_tokens_to_ids('<turn>')
    batch = make_batch(
        chats, [Pair(Prompt(text, 'p'), ' so what', 'oh', 1.0)], replace(CFG, max_prompt=64, max_response=32)
    )
    asked, first, second = (
        micro_tokenizer.encode([part], behind=True)[0] for part in ('my boss yells', 'so what', 'oh')
    )
    row = [*asked, turn, *first, turn, *second, turn]
    assert batch['token_BT'][0, : len(row)].tolist() == row
    last_C = batch['last_BQC'][0, 0]
    assert batch['token_BT'][0, last_C].tolist() == [turn, turn] and last_C[1] == len(row) - 1
    (cut,), _ = reward_model.encode_prompts(chats, [text], 3)
    assert len(cut) == 3 and cut[1:] == [asked[-1], turn]


def test_a_score_of_what_has_not_ended_is_read_before_any_end(letters, params):
    prompts, responses = ['abc', 'b', 'cc'], ['de', 'abc', '']
    ended_B = np.array([True, False, False])
    found_B, whole_B = scorer_of(letters)(prompts, responses, ended_B), scorer_of(letters)(prompts, responses)
    assert found_B[0] == pytest.approx(whole_B[0], abs=1e-6) and np.abs(found_B - whole_B)[1:].min() > 1e-3
    for b in (1, 2):
        row_BT = jnp.array([[2, *Letters().encode([prompts[b] + (' ' + responses[b]).rstrip()])[0]]])
        value_BT = heads.value(MODEL, params, row_BT, *transformer.causal(jnp.ones_like(row_BT, bool)))
        assert found_B[b] == pytest.approx(float(value_BT[0, -1]), abs=1e-5)


def test_a_score_depends_on_its_prompt_and_response_alone(letters):
    scorer = scorer_of(letters)
    prompts, responses = [pair.prompt.text for pair in PAIRS], [pair.first for pair in PAIRS]
    score_B = scorer(prompts, responses)
    some = [5, 0, 3]
    close(scorer([prompts[b] for b in some], [responses[b] for b in some]), score_B[some], 1e-5)
    close(scorer(prompts * 2, responses * 2), np.tile(score_B, 2), 1e-5)
    assert scorer([], []).shape == (0,)
    with pytest.raises(ValueError, match='shorter'):
        scorer(prompts, responses[1:])


def test_a_reward_model_begins_with_nothing_to_say(random_params, letters):
    lm = LM(replace(MODEL, tied=False), random_params(replace(MODEL, tied=False)), Letters(), 'lm')
    fresh = reward_model.from_lm(lm)
    assert 'unembed_DV' in lm.params and set(fresh.params['trunk']) == set(letters.params['trunk'])
    assert scorer_of(fresh)(['a', 'b'], ['c', 'dd']).tolist() == [0.0, 0.0]


# Measures


def test_measures_of_scores_that_are_known():
    score_BC = np.array([[2.0, 0.0], [1.0, 2.0], [0.0, 3.0], [1.0, 1.0]], np.float32)
    preference_B = np.array([1.0, 1.0, 0.0, 0.0], np.float32)
    length_BC = np.array([[20, 10], [10, 20], [10, 20], [10, 30]])
    found = measures(score_BC, preference_B, length_BC)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    assert found['eval/loss'] == pytest.approx((softplus(-2) + softplus(1) + softplus(-3) + softplus(0)) / 4)
    assert found['eval/accuracy'] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert found['eval/margin'] == pytest.approx((2 - 1 + 3 + 0) / 4)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    # Confidence of 0.5 agrees by half; 0.73 is wrong; 0.88 and 0.95, right, fall into bins of their own.
    gaps = (0.0, sigmoid(1), 1 - sigmoid(2), 1 - sigmoid(3))
    assert found['eval/ece'] == pytest.approx(sum(gaps) / 4)
    margin, longer = np.array([2, -1, -3, 0]), np.array([10, -10, -10, -20])
    both = lambda x: np.concatenate([x, -x])  # noqa: E731
    assert found['eval/length_correlation'] == pytest.approx(np.corrcoef(both(margin), both(longer))[0, 1])
    assert math.isnan(measures(0 * score_BC, preference_B, length_BC)['eval/length_correlation'])


def test_measures_do_not_see_the_order_of_a_pair():
    rng = np.random.default_rng(0)
    score_BC, length_BC = rng.normal(size=(64, 2)).astype(np.float32), rng.integers(1, 200, (64, 2))
    preference_B = rng.random(64).astype(np.float32)
    turn_B1 = rng.random((64, 1)) < 0.5
    turn = lambda x_BC: np.where(turn_B1, x_BC[:, ::-1], x_BC)  # noqa: E731
    other_B = np.where(turn_B1[:, 0], 1 - preference_B, preference_B)
    found = measures(score_BC, preference_B, length_BC)
    assert measures(turn(score_BC), other_B, turn(length_BC)) == pytest.approx(found, rel=1e-5)
    assert all(0.1 < abs(found[name]) or name == 'eval/length_correlation' for name in ('eval/ece', 'eval/loss'))


def test_a_model_that_votes_are_drawn_from_is_calibrated():
    rng = np.random.default_rng(1)
    score_BC = rng.normal(0, 1.5, (20_000, 2)).astype(np.float32)
    vote_B = rng.random(20_000) < 1 / (1 + np.exp(score_BC[:, 1] - score_BC[:, 0]))
    calibrated = measures(score_BC, vote_B.astype(np.float32), np.ones((20_000, 2)))
    sure = measures(3 * score_BC, vote_B.astype(np.float32), np.ones((20_000, 2)))
    assert calibrated['eval/ece'] < 0.02 < 0.1 < sure['eval/ece']
    assert calibrated['eval/loss'] < sure['eval/loss'] and calibrated['eval/accuracy'] == sure['eval/accuracy']


# The run


WORDS = 'first second relation problem cause duration action question'.split()
TOY = Config(
    steps=48, batch=16, max_prompt=16, max_response=8, eval_every=12, save_every=20, log_every=4,
    optimizer=training.Optimizer(learning_rate=1e-2),
)  # fmt: skip


def toy_pairs(count, seed, label=1.0):
    """The better response is the one that says 'yes'; every fifth pair nobody could label."""
    rng, pairs = np.random.default_rng(seed), []
    for i in range(count):
        prompt = Prompt(' '.join(rng.choice(WORDS, 3)), f'toy/{i}')
        better, worse = (rng.choice(WORDS, rng.integers(2, 5)) for _ in range(2))
        better[rng.integers(len(better))] = 'yes'
        pair = Pair(prompt, ' '.join(better), ' '.join(worse), None if i % 5 == 0 else label)
        pairs.append(pair if rng.random() < 0.5 else turned(pair))
    return pairs


@pytest.fixture(scope='module')
def toy(tiny_labeler):
    """`toy(folder, ...)`: the stage on toy pairs, its step compiled once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_model, 'make_step', cache(reward_model.make_step))

        def run(folder, pairs=None, held_out=None, votes=(), **changes):
            pairs = toy_pairs(80, 0, 0.9) if pairs is None else pairs
            held_out = toy_pairs(50, 1) if held_out is None else held_out
            cfg, mesh = replace(TOY, **changes), axes.make_mesh()
            return reward_model.run(cfg, folder, tiny_labeler, pairs, held_out, mesh, votes=votes)

        yield run


@pytest.fixture(scope='module')
def learned(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp('learned')
    with jax.numpy_rank_promotion('raise'):  # as in tests: another context would compile again
        return toy(folder), folder


def lines(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    return [{name: x for name, x in row.items() if name != 'time'} for row in rows]


def test_a_step_on_a_mesh_is_the_step(toy, tiny_labeler, capfd):
    """Eight devices in two parts, with remat, take the step that one takes plainly; the scores are the same there, too."""
    fresh = reward_model.from_lm(tiny_labeler)
    head = fresh.params['head'] | {'head_D': jnp.cos(jnp.arange(16, dtype=jnp.float32))}
    params = fresh.params | {'head': head}
    batch, after, scored = make_batch(fresh.tokenizer, toy_pairs(16, 3, 0.9), TOY), [], []
    for sizes, parts in (({}, 1), ({'data': 2, 'fsdp': 2, 'tensor': 2}, 2)):
        mesh = axes.make_mesh(sizes)
        with jax.set_mesh(mesh):
            init, step = reward_model.make_step(replace(TOY, parts=parts, remat=parts > 1), fresh.config, mesh)
            now, metrics = step(init(params), params, jax.device_put(batch, axes.rows(mesh)))
        where = axes.shardings(now, mesh)
        jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(str(s)), now, where)
        after.append(jax.device_get((now, metrics)))
        scorer = make_scorer(replace(fresh, params=now['params']), mesh, batch=8, max_prompt=16, max_response=8)
        scored.append(scorer(['the first', 'question'], ['yes', 'cause']))
    close(after[1], after[0], 1e-5)
    close(scored[1], scored[0], 1e-4)
    moved, metrics = after[0][0]['params'], after[0][1]
    assert all(np.abs(moved['trunk'][name] - x).max() > 1e-3 for name, x in params['trunk'].items())
    assert metrics['loss'] > 0 and moved['head']['head_bias'] == 0
    assert np.isfinite(params['head']['head_D']).all()  # what was handed in is still there
    assert 'full rematerialization' not in capfd.readouterr().err  # nothing is replicated only to be split otherwise


def test_it_learns_what_is_preferred(learned):
    model, folder = learned
    fresh = toy_pairs(100, 2)
    scorer = make_scorer(model, batch=32, max_prompt=16, max_response=8)
    score_BC = reward_model.score_pairs(scorer, fresh)
    hit = [(s[0] > s[1]) == (pair.preference > 0.5) for s, pair in zip(score_BC, fresh) if pair.preference is not None]
    assert np.mean(hit) > 0.9
    logged = lines(folder)
    evaluated = [row for row in logged if 'eval/loss' in row]
    assert [row['step'] for row in evaluated] == [11, 23, 35, 47] and evaluated[-1]['eval/accuracy'] > 0.9
    assert all(0 <= row['rewards/accuracies'] <= 1 for row in logged if 'reward_model/loss' in row)
    # 16 of the 80 pairs nobody could label: about a fifth of each batch.
    assert 1 < np.mean([row['reward_model/without_label'] for row in logged if 'reward_model/loss' in row]) < 6
    assert (folder / 'samples.jsonl').read_text(encoding='utf-8').count('first_score') == 16
    assert float(model.params['head']['head_bias']) == 0


def test_a_run_that_was_stopped_ends_like_one_that_was_not(learned, toy, tmp_path, monkeypatch):
    """Bit for bit, between two evaluations, two saves and two lines of the log."""

    @contextmanager
    def soon():
        count = itertools.count(1)

        class Stop(stopping.Stop):
            asked = property(lambda self: next(count) == 27, lambda self, value: None)

        yield Stop()

    with monkeypatch.context() as patch:
        patch.setattr(stopping, 'stop_on_signal', soon)
        with pytest.raises(SystemExit):
            toy(tmp_path)
    assert checkpoint.Checkpoints(tmp_path).latest() == 27
    model, folder = learned
    again = toy(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert lines(tmp_path) == lines(folder)
    finished = toy(tmp_path)  # nothing is left to do
    jax.tree.map(np.testing.assert_array_equal, finished.params, model.params)
    assert lines(tmp_path) == lines(folder)


def test_the_step_of_the_lowest_held_out_loss_is_returned(toy, tmp_path, monkeypatch):
    losses, kept, real = iter([0.5, 0.4, 0.6, 0.4]), [], reward_model.save
    found = {'eval/accuracy': 0.5, 'eval/margin': 0.0, 'eval/ece': 0.0, 'eval/length_correlation': 0.0}
    monkeypatch.setattr(reward_model, 'measures', lambda *_: found | {'eval/loss': next(losses)})
    monkeypatch.setattr(
        reward_model, 'save', lambda m, *a, **k: kept.append(jax.device_get(m.params)) or real(m, *a, **k)
    )
    model = toy(tmp_path)
    assert len(kept) == 2
    jax.tree.map(np.testing.assert_array_equal, model.params, kept[1])
    assert [row['eval/best_step'] for row in lines(tmp_path) if 'eval/loss' in row] == [12, 24, 24, 24]
    assert 'after 24 of 48 steps' in (tmp_path / 'export' / 'README.md').read_text(encoding='utf-8')


def test_votes_beside_the_pairs_that_choose_are_reported_and_choose_nothing(toy, learned, tmp_path):
    """Even those of people who want the opposite of what the labels say."""
    model, folder = learned
    against = toy_pairs(50, 1)
    against = [replace(p, preference=None if p.preference is None else 1 - p.preference) for p in against]
    beside = toy(tmp_path, votes=against)
    jax.tree.map(np.testing.assert_array_equal, beside.params, model.params)
    for row, plain in zip(lines(tmp_path), lines(folder), strict=True):
        told = {name: row.pop(name) for name in ('votes/loss', 'votes/accuracy') if name in row}
        assert row == plain and bool(told) == ('eval/loss' in row)
        if told:
            assert told['votes/accuracy'] == pytest.approx(1 - row['eval/accuracy'])
            assert told['votes/loss'] > row['eval/loss']
    toy(tmp_path / 'nobody', votes=[replace(pair, preference=None) for pair in against])  # was asked
    assert lines(tmp_path / 'nobody') == lines(folder)


def test_a_run_that_cannot_be_is_refused(toy, tmp_path):
    unknown = [replace(pair, preference=None) for pair in toy_pairs(20, 0)]
    with pytest.raises(Mistake, match='reward_model: .* 20 training pairs '):
        toy(tmp_path, pairs=unknown)
    with pytest.raises(Mistake, match='reward_model: .* 20 held-out pairs '):
        toy(tmp_path, held_out=unknown)
    with pytest.raises(Mistake, match='1032 tokens; tiny .* 512: .*max_prompt to 504'):
        toy(tmp_path, max_prompt=1024)
    with pytest.raises(Mistake, match=r'reward_model\.batch = 16: .* 3 .*reward_model\.batch=2'):
        toy(tmp_path, pairs=toy_pairs(3, 0))
    for wrong in ({'batch': 9, 'parts': 2}, {'seed': -1}, {'max_response': 0}, {'eval_every': 0}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f'^{name} .*{value}'):
            Config(**wrong)


# Files


@pytest.fixture(scope='module')
def padded_with_end(micro_tokenizer):
    """The micro world's tokenizer as many are: the end token pads."""
    changed = deepcopy(micro_tokenizer.hf)
    changed.pad_token = changed.eos_token
    return Tokenizer(changed, micro_tokenizer.ends)


@pytest.fixture(scope='module')
def model(random_params, padded_with_end):
    cfg = replace(MODEL, vocab=1152)
    head = {'head_D': jnp.sin(jnp.arange(MODEL.width, dtype=jnp.float32)), 'head_bias': jnp.zeros(())}
    return RewardModel(cfg, {'trunk': random_params(cfg), 'head': head}, padded_with_end, 'model')


def test_a_reward_model_comes_back_bit_by_bit(model, tmp_path):
    reward_model.save(model, tmp_path / 'out')
    for mesh in (None, axes.make_mesh({'fsdp': 4})):
        again = reward_model.load(tmp_path / 'out', mesh=mesh)
        assert again.config == model.config and again.tokenizer.ends == model.tokenizer.ends
        jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert model.tokenizer.pad == model.tokenizer.eos != again.tokenizer.pad
    with pytest.raises(Mistake, match=r'/out: .* score\.weight .*reward_model\.load'):
        hf.load(tmp_path / 'out')
    hf.save(LM(model.config, model.params['trunk'], model.tokenizer, 'lm'), tmp_path / 'lm')
    with pytest.raises(Mistake, match=r'/lm: .*lacks 1 .* score\.weight'):
        reward_model.load(tmp_path / 'lm')


def test_what_transformers_would_read_wrongly_is_not_written(model, tmp_path):
    head = model.params['head'] | {'head_bias': jnp.float32(0.5)}
    with pytest.raises(Mistake, match=r'/out: .*bias.* 0\.5'):
        reward_model.save(replace(model, params=model.params | {'head': head}), tmp_path / 'out')
    bare = deepcopy(model.tokenizer.hf)
    control = {i for i, token in bare.added_tokens_decoder.items() if token.special}
    with pytest.raises(Mistake, match='pad_token'):
        reward_model.save(replace(model, tokenizer=Tokenizer(bare, tuple(control))), tmp_path / 'out')
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings('ignore')  # of other people's code
@pytest.mark.parametrize('side', ['right', 'left'])
def test_transformers_reads_the_same_scores(model, tmp_path, side):
    torch = pytest.importorskip('torch', reason='torch is not installed: nothing to compare with')
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward_model.save(model, tmp_path / 'out')
    theirs, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path / 'out', output_loading_info=True)
    assert not any(loading[what] for what in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    assert type(theirs).__name__ == 'LlamaForSequenceClassification' and theirs.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'out', padding_side=side)
    assert tokenizer.pad_token_id == theirs.config.pad_token_id != tokenizer.eos_token_id
    prompts = ['the first problem', 'a', 'the cause of the second question was the duration']
    responses = ['yes', 'no relation, and no action', 'the first']
    # What the card says: end tokens are one token each here.
    texts = [f'{prompt} {response}{tokenizer.eos_token}' for prompt, response in zip(prompts, responses)]
    with torch.no_grad():
        found_B = theirs(**tokenizer(texts, padding=True, return_tensors='pt')).logits[:, 0].numpy()
    score_B = make_scorer(model, batch=4, max_prompt=24, max_response=24)(prompts, responses)
    assert np.abs(np.diff(score_B)).min() > 1e-2
    np.testing.assert_allclose(found_B, score_B, rtol=0, atol=1e-4)
