"""Laws of training from Python: it learns what it is given, goes on in its folder bit for bit, and names what is wrong."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import rlaif_jax
from rlaif_jax import Mistake, Pair, Prompt, log
from rlaif_jax.training import reward_model, verbs
from rlaif_jax.training.reward_model import make_scorer

DOCUMENT = Path(__file__).resolve().parents[2] / 'docs/python.md'
ADAMW = {'name': 'adamw', 'learning_rate': 1e-2}
PROMPTS = [f'{word} problem' for word in 'first second relation cause duration action question two'.split()]
REFERENCES = ['yes', ' no no '] * 4
LEARNS = {'steps': 12, 'optimizer': ADAMW}
SHORTENS = {
    'steps': 15, 'batch': 64, 'samples': 8, 'baseline': 'batch_mean', 'max_new_tokens': 8, 'save_every': 2, 'beta': 0.0,
    'policy_optimizer': {'name': 'adamw', 'learning_rate': 3e-2},
}  # fmt: skip

pytestmark = pytest.mark.usefixtures('programs')


def shorter(prompts, responses):
    return [-len(response) / 20 for response in responses]


def pairs(count, seed=0):
    """The better response is the one that says yes."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        better, worse = (' '.join(rng.choice(['cause', 'action', 'two'], 2)) for _ in range(2))
        pair = Pair(Prompt(PROMPTS[i % 8], f'{i}'), f'yes {better}', worse, 1.0)
        found.append(pair if rng.random() < 0.5 else replace(pair, first=worse, second=pair.first, preference=0.0))
    return found


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


@pytest.fixture(scope='module')
def lm(models):
    return rlaif_jax.load(models / 'policy')


# What is learned


def test_sft_teaches_the_references(lm, tmp_path):
    before = jax.tree.map(np.array, lm.params)
    taught = rlaif_jax.sft(lm, PROMPTS, REFERENCES, folder=tmp_path, log_every=1, **LEARNS)
    losses = [row['sft/loss'] for row in log.read_metrics(tmp_path)]
    assert len(losses) == 12 and losses[-1] < 0.7 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, lm.params, before)
    same(rlaif_jax.load(tmp_path / 'export'), taught)


def test_a_reward_model_orders_pairs_that_it_has_not_seen(lm):
    """With labels it learns these, and not what people said; NaN is a pair that nobody could label."""
    given = pairs(80)
    labels = [math.nan, *[pair.preference for pair in given[1:]]]
    wrong = [replace(pair, preference=1 - pair.preference) for pair in given]
    how = {'steps': 30, 'max_prompt': 32, 'max_response': 16, 'optimizer': ADAMW}
    learned = rlaif_jax.train_reward_model(lm, wrong, labels=labels, **how)
    unseen = pairs(40, seed=1)
    score_BC = reward_model.score_pairs(make_scorer(learned, max_prompt=32, max_response=16), unseen)
    said = score_BC[:, 0] > score_BC[:, 1]
    assert np.mean(said == [pair.preference == 1 for pair in unseen]) > 0.9


def test_a_reward_of_ones_own_is_raised_and_a_run_it_ended_goes_on_bit_for_bit(lm, tmp_path):
    asked = []

    def power_cut(prompts, responses):
        asked.append((prompts, responses))
        if len(asked) == 6:  # that of the validation prompts is the first
            raise KeyError('mine')
        return np.array(shorter(prompts, responses))

    how = SHORTENS | {'validation': PROMPTS * 4}
    whole = rlaif_jax.reinforce(lm, PROMPTS, shorter, folder=tmp_path / 'whole', **how)
    rows = log.read_metrics(tmp_path / 'whole')
    assert rows[-1]['eval/score'] > rows[0]['eval/score'] + 0.5

    with pytest.raises(KeyError, match='mine'):
        rlaif_jax.reinforce(lm, PROMPTS, power_cut, folder=tmp_path / 'cut', **how)
    prompts, responses = asked[1]
    assert sorted(prompts) == sorted(PROMPTS * 8) and all(isinstance(text, str) for text in responses)

    def mended(prompts, responses):
        again.append(prompts)
        return shorter(prompts, responses)

    again = []
    ended = rlaif_jax.reinforce(lm, PROMPTS, mended, folder=tmp_path / 'cut', **how)
    assert len(again) == 12  # steps 5 to 15, and what is evaluated behind them
    same(ended, whole)


@pytest.mark.parametrize('train', ['sft', 'train_reward_model', 'reinforce'])
def test_a_folder_that_is_done_is_read_and_serves_nothing_else(lm, tmp_path, monkeypatch, train):
    calls = {
        'sft': lambda **more: rlaif_jax.sft(lm, PROMPTS, REFERENCES, **{'steps': 2, 'lora': {'rank': 2}} | more),
        'train_reward_model': lambda **more: rlaif_jax.train_reward_model(lm, pairs(20), **{'steps': 2} | more),
        'reinforce': lambda **more: rlaif_jax.reinforce(lm, PROMPTS, shorter, **SHORTENS | {'steps': 2} | more),
    }
    kept, gone = calls[train](folder=tmp_path / 'a'), calls[train]()
    same(kept, gone)
    assert kept.name == str(tmp_path / 'a/export') and str(gone.name).startswith(lm.name)
    for stage in (verbs.supervised, verbs.reward_model, verbs.reinforcement):
        monkeypatch.setattr(stage, 'run', None)
    same(calls[train](folder=tmp_path / 'a', save_every=9), kept)  # which only saves oftener, or less often
    with pytest.raises(Mistake, match=r'(?s)/a .*seed: 0 .* 1 .*another folder'):
        calls[train](folder=tmp_path / 'a', seed=1)


def test_a_folder_knows_its_data_and_its_model(lm, tmp_path):
    rlaif_jax.sft(lm, PROMPTS, REFERENCES, steps=1, folder=tmp_path)
    moved = replace(lm, params=lm.params | {'embed_VD': lm.params['embed_VD'] * 2})
    for name, given in (
        ('prompts', (lm, [*PROMPTS[:7], 'two'], REFERENCES)),
        ('references', (lm, PROMPTS, [*REFERENCES[:7], 'two'])),
        ('lm', (moved, PROMPTS, REFERENCES)),
    ):
        with pytest.raises(Mistake, match=f'{tmp_path} .*: {name} .*another folder'):
            rlaif_jax.sft(*given, steps=1, folder=tmp_path)


def test_a_folder_where_nothing_was_begun_is_free(lm, tmp_path):
    unknown = [Pair('a', 'b', 'c')] * 9
    with pytest.raises(Mistake, match='reward_model: .* 8 training pairs '):
        rlaif_jax.train_reward_model(lm, unknown, folder=tmp_path)
    rlaif_jax.train_reward_model(lm, pairs(20), steps=1, folder=tmp_path)
    with pytest.raises(Mistake, match=f'{tmp_path} .*: pairs .*another folder'):
        rlaif_jax.train_reward_model(lm, unknown, steps=1, batch=18, held_out=unknown, folder=tmp_path)


def test_other_rewards_are_a_reward_model_and_a_labelers_ratings(lm, tiny_labeler):
    learned = rlaif_jax.train_reward_model(lm, pairs(20), steps=1)
    ratings = rlaif_jax.rater(tiny_labeler, task='summarization', least_mass=0.0)
    score_B = ratings(['POST: a\n\nTL;DR:'] * 2, ['b', 'c d'])
    assert score_B.shape == (2,) and np.all(np.abs(score_B) <= 1)
    for reward in (learned, ratings):
        rlaif_jax.reinforce(lm, PROMPTS, reward, **SHORTENS | {'steps': 1})


def test_long_prompts_are_shortened_as_everywhere(lm):
    post = Prompt(f'SUBREDDIT: r/a\n\nTITLE: b\n\nPOST: {"my dad " * 900}\n\nTL;DR:', 'long')
    asked = []

    def reward(prompts, responses):
        asked.extend(prompts)
        return [0.0] * len(prompts)

    how = SHORTENS | {'steps': 1, 'batch': 9, 'samples': 1, 'max_prompt': 64}
    rlaif_jax.reinforce(lm, [post, *PROMPTS], reward, validation=[post], **how)
    assert len(asked) == 11 and all(len(row) <= 64 for row in lm.tokenizer.prompts(asked))
    rlaif_jax.sft(lm, ['a', 'word ' * 900], ['b', 'c'], steps=1, max_prompt=64)


# Sizes


@pytest.mark.parametrize(
    'count, more, batch, steps',
    [
        (5, {}, 5, 1),
        (5, {'steps': 7}, 5, 7),
        (300, {}, 128, 3),
        (10**6, {}, 128, 900),
        (7, {'parts': 2}, 6, 2),
        (7, {'batch': 2}, 2, 4),
    ],
)
def test_sizes_are_the_papers_or_what_is_there(lm, count, more, batch, steps):
    cfg = verbs._fitting(verbs._Supervised, more, lm, count, 1, 'max_new_tokens')
    assert (cfg.batch, cfg.steps) == (batch, steps)
    assert cfg.max_prompt + cfg.max_new_tokens == lm.config.max_length == 512


def test_a_batch_holds_whole_groups_of_responses(lm):
    cfg = verbs._fitting(verbs.reinforcement.Config, {'samples': 3}, lm, 4, 8, 'max_new_tokens')
    assert (cfg.batch, cfg.steps) == (12, 8)
    assert verbs._fitting(verbs.reinforcement.Config, {'samples': 3}, lm, 99, 8, 'max_new_tokens').batch == 126


# What is wrong


@pytest.mark.parametrize(
    'given, told',
    [
        (None, 'NoneType, None; .*list'),
        (0.5, r'float, 0\.5; .*list'),
        ('yes', "str, 'yes'; .*list"),
        ({0: 1.0}, 'dict, .*list'),
        (np.float32(1), 'float32, .*list'),
        ([1.0], '1 numbers .* 2 responses'),
        (np.zeros((2, 3)), r'array\(\[0.* response 0 '),
        ([1.0, None], r'None \(NoneType\) .* response 1 of 2.*NaN'),
        ([1.0, '2'], r"'2' \(str\) .* response 1 "),
        ([1j, 1.0], r'1j \(complex\) .* response 0 '),
        ([1.0, math.inf], ' inf .*response 1 '),
        ([1.0, 1e300], r'1e\+300 .*response 1 '),
        ([[1.0], [2.0]], r'\[1\.0\] \(list\) .* response 0 '),
    ],
)
def test_a_reward_gives_a_number_for_each_response(given, told):
    score = verbs._scorer(lambda prompts, responses: given, None)
    with pytest.raises(Mistake, match=f'reward .*{told}'):
        score(['a', 'b'], ['c', 'd'], None)


@pytest.mark.parametrize(
    'given', [[1, 0.5], (True, np.float64(0.5)), np.array([1, 0.5]), jax.numpy.array([1, 0.5]), iter([1, 0.5])]
)
def test_numbers_are_anybodys(given):
    assert verbs._scorer(lambda prompts, responses: given, None)(['a', 'b'], ['c', 'd'], None).tolist() == [1, 0.5]


def test_what_cannot_be_scored_is_no_mistake():
    assert np.isnan(verbs._scorer(lambda prompts, responses: [math.nan], None)(['a'], ['b'], None)).all()


@pytest.mark.parametrize(
    'call, told',
    [
        (lambda lm: rlaif_jax.sft('micro_l', PROMPTS, REFERENCES), r'lm .* str.*rlaif_jax\.load'),
        (lambda lm: rlaif_jax.sft(lm, PROMPTS, REFERENCES[:3]), '8 prompts .* 3 references'),
        (lambda lm: rlaif_jax.sft(lm, ['a', 3], ['b', 'c']), r'prompts\[1\] .* int, 3'),
        (lambda lm: rlaif_jax.sft(lm, ['a', ''], ['b', 'c']), r'prompts\[1\] .*empty'),
        (lambda lm: rlaif_jax.sft(lm, ['a', 'b'], ['c', ' ']), r'references\[1\] .*empty'),
        (lambda lm: rlaif_jax.sft(lm, [], []), r'sft\.batch = 1: .* 0 '),
        (lambda lm: rlaif_jax.sft(lm, PROMPTS, REFERENCES, step=3), r'step: .* steps\b'),
        (lambda lm: rlaif_jax.sft(lm, PROMPTS, REFERENCES, steps=0), 'steps .*positive.* 0'),
        (lambda lm: rlaif_jax.sft(lm, PROMPTS, REFERENCES, batch=16), r'sft\.batch = 16: .* 8 .*sft\.batch=8'),
        (
            lambda lm: rlaif_jax.sft(lm, PROMPTS, REFERENCES, optimizer={'learning': 1.0}),
            r'optimizer\.learning: .* optimizer\.learning_rate',
        ),
        (
            lambda lm: rlaif_jax.sft(lm, PROMPTS, REFERENCES, max_prompt=500),
            'max_prompt = 500 .*max_new_tokens = 128 .* 628 .*/policy .* 512: .*max_prompt to 384',
        ),
        (
            lambda lm: rlaif_jax.reinforce(lm, PROMPTS, shorter, max_new_tokens=600),
            'max_new_tokens = 600 .* 512: .*max_new_tokens,',
        ),
        (lambda lm: rlaif_jax.train_reward_model(lm, [('a', 'b', 'c')]), r"pairs\[0\] .*\('a', 'b', 'c'\); .* Pair\("),
        (
            lambda lm: rlaif_jax.train_reward_model(lm, [Pair('a', 'b', 'c', 'first')]),
            r"pairs\[0\]\.preference .*'first'.*\[0, 1\]",
        ),
        (
            lambda lm: rlaif_jax.train_reward_model(lm, [Pair('a', 'b', 'c', 7)]),
            r'pairs\[0\]\.preference .* 7;.*\[0, 1\]',
        ),
        (lambda lm: rlaif_jax.train_reward_model(lm, pairs(3), labels=[1.0]), '3 pairs .* 1 labels'),
        (lambda lm: rlaif_jax.train_reward_model(lm, pairs(2), labels=[1.0, 'x']), r"labels\[1\] .*'x'"),
        (lambda lm: rlaif_jax.train_reward_model(lm, pairs(3), held_out=[]), 'reward_model: .* 0 held-out pairs '),
        (lambda lm: rlaif_jax.train_reward_model(lm, [Pair('a', 'b', 'c')] * 9), 'reward_model: .* 8 training pairs '),
        (lambda lm: rlaif_jax.reinforce(lm, PROMPTS, 'shorter'), 'reward .* str, .*function'),
        (lambda lm: rlaif_jax.reinforce(lm, 'a', shorter), r'prompts .* str, .*\[prompt\]'),
        (lambda lm: rlaif_jax.reinforce(lm, PROMPTS, shorter, validation=[]), 'validation .*no prompts'),
        (lambda lm: rlaif_jax.reinforce(lm, PROMPTS, shorter, validation=[None]), r'validation\[0\] .* None;'),
        (lambda lm: rlaif_jax.reinforce(lm, PROMPTS, shorter, folder='gs://b/x'), 'gs://b/x .*gcsfuse b .*/mnt/b/x'),
        (lambda lm: rlaif_jax.rater(lm, task='summary'), "task = 'summary'"),
        (lambda lm: rlaif_jax.rater(lm, least=0.0), 'least: .* least_mass'),
    ],
)
def test_what_is_wrong_is_named(lm, call, told):
    with pytest.raises(Mistake, match=f'(?s){told}'):
        call(lm)


def test_rounded_parameters_are_not_trained_but_adapters_on_them_are(models):
    frozen = rlaif_jax.load(models / 'policy', dtype='bfloat16', frozen=True)
    with pytest.raises(Mistake, match='lm .*frozen=True.*lora='):
        rlaif_jax.sft(frozen, PROMPTS, REFERENCES, steps=1)
    rlaif_jax.sft(frozen, PROMPTS, REFERENCES, steps=1, lora={'rank': 2})


# The document


def test_the_document_trains(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = DOCUMENT.read_text(encoding='utf-8').partition('## Train\n')[2].partition('\n## ')[0]
    (code,) = re.findall(r'```python\n(.*?)```', section, re.DOTALL)
    assert len(code.splitlines()) <= 20
    monkeypatch.setattr(rlaif_jax, 'load', lambda name: lm, raising=False)
    given = [replace(pair, prompt=replace(pair.prompt, reference='yes')) for pair in pairs(12)]
    names = {'rlaif_jax': rlaif_jax, 'lm': lm, 'pairs': given, 'labels': [pair.preference for pair in given]}
    names |= {'prompts': [pair.prompt.text for pair in given]}
    exec(re.sub(r'steps=\d+', 'steps=1', code), names)
    assert isinstance(names['policy'], rlaif_jax.LM) and isinstance(names['scorer'], rlaif_jax.RewardModel)
    assert (tmp_path / 'my_run/export/config.json').is_file() and (tmp_path / 'my_run/metrics.jsonl').is_file()
