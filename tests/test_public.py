"""The public surface over a grid of absurd arguments: a result or a `Mistake`, never another exception."""

import math
from pathlib import Path

import numpy as np
import pytest

import rlaif_jax
from rlaif_jax import Mistake, Pair, Prompt, evaluation
from rlaif_jax.training import reinforce, reward_model, sft

HUGE, LONG = 10**30, 'x' * 300
ABSURD = (
    None, True, -1, 0, 1, 2.5, HUGE, math.nan, math.inf, -math.inf, 1e300, '', ' ', 'x', '4', 'a\0b', '\ud800', b'x',
    LONG, [], [[]], {}, {'a': 1}, (), object(), np.nan, np.zeros(0), np.zeros((2, 3)), np.array('x'), Path('nowhere'),
    '~nobody_here/x', '$NOT_SET_HERE', 'gs://bucket/x', [None], ['x'], [1], ['\ud800'], lambda: None,
)  # fmt: skip


def holds(call, *args, **more) -> str:
    """'' where the call ends in a result or a Mistake, else what it ended in."""
    try:
        call(*args, **more)
    except Mistake as mistake:
        return '' if str(mistake).strip() else 'a Mistake that says nothing'
    except Exception as error:  # noqa: BLE001, which is what this is about
        return f'{type(error).__name__}: {error!s:.90}'
    return ''


def all_hold(call, cases) -> None:
    found = {f'{case!r:.60}': told for case in cases if (told := holds(call, case))}
    assert not found, '\n'.join(f'{case}: {told}' for case, told in found.items())


@pytest.fixture(scope='module')
def lm(models):
    return rlaif_jax.load(models / 'labeler')


PAIR = Pair(Prompt('POST: a\n\nTL;DR:', '1'), ' b', ' c')
GENERATE = {'max_new_tokens': 2, 'temperature': 0.0}


def test_load_and_save(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    all_hold(rlaif_jax.load, ABSURD)
    all_hold(lambda value: rlaif_jax.load('micro_xs', dtype=value), ABSURD)
    all_hold(lambda value: rlaif_jax.save(lm, value), ABSURD)
    for name in ('dtype', 'shard_bytes', 'about'):
        all_hold(lambda value: rlaif_jax.save(lm, 'out', **{name: value}), ABSURD)  # noqa: B023
    all_hold(lambda value: rlaif_jax.save(value, 'out'), ABSURD)


def test_logits(lm):
    tokens = (
        [[5, 6], [7]],
        [5, 6],
        5,
        [[5.0, 6.0]],
        [[5.5]],
        [[5, 5000]],
        [[5, -1]],
        [[True]],
        [['a']],
        [[HUGE]],
        [[[5]]],
    )
    all_hold(
        lambda value: rlaif_jax.logits(lm, value), [*ABSURD, *tokens, np.ones((1, 3000), int), np.zeros((0, 4), int)]
    )
    all_hold(
        lambda value: rlaif_jax.logits(lm, [[5, 6]], value),
        [*ABSURD, [[True]], [[True, False, True]], [[1, 0]], [[2, 1]]],
    )
    assert rlaif_jax.logits(lm, [[5, 6]], [[True, False]]).shape == (1, 2, lm.config.vocab)
    for wrong in ([[5, lm.config.vocab]], [[5, -1]]):
        with pytest.raises(Mistake, match=rf'token_BT: .* {wrong[0][1]}\b'):
            rlaif_jax.logits(lm, wrong)


def test_generate(lm):
    all_hold(
        lambda value: rlaif_jax.generate(lm, value, **GENERATE),
        [*ABSURD, [''], ['x' * 5000], np.array(['a']), iter(['a'])],
    )
    for name in ('max_new_tokens', 'temperature', 'top_k', 'top_p', 'seed', 'batch', 'mesh'):
        all_hold(lambda value: rlaif_jax.generate(lm, ['a'], **GENERATE | {name: value}), ABSURD)  # noqa: B023
    assert rlaif_jax.generate(lm, ['a', 'b'], max_new_tokens=0) == ['', '']
    all_hold(lambda value: rlaif_jax.generate(value, ['a'], **GENERATE), ABSURD)


def test_two_seeds_are_never_one_run(lm):
    for seed in (-1, 2**31, 2**32, 2**32 + 5, 2**64):
        with pytest.raises(Mistake, match='seed'):
            rlaif_jax.generate(lm, ['a'], max_new_tokens=1, seed=seed)
    one, other = (
        rlaif_jax.generate(lm, ['a'], max_new_tokens=8, temperature=9.0, seed=seed) for seed in (0, 2**31 - 1)
    )
    assert one != other


def test_label(lm):
    ask = {'task': 'summarization', 'technique': 'base_0shot', 'least_mass': 0.0}
    pairs = [Pair(PAIR.prompt, text, ' c') for text in ('', 'x' * 9000, '\ud800', '\0\x1b[31m', '\u202eabc')]
    all_hold(lambda value: rlaif_jax.label(lm, value, **ask), [*ABSURD, [('a', 'b', 'c')], *([pair] for pair in pairs)])
    all_hold(lambda value: rlaif_jax.label(lm, [Pair(PAIR.prompt, value, ' c')], **ask), ABSURD)
    all_hold(lambda value: rlaif_jax.label(lm, [Pair(value, ' b', ' c')], **ask), ABSURD)
    names = (
        'task',
        'technique',
        'samples',
        'temperature',
        'top_k',
        'max_rationale',
        'max_length',
        'least_mass',
        'batch',
    )
    for name in (*names, 'templates', 'seed', 'mesh', 'unknown'):
        all_hold(lambda value: rlaif_jax.label(lm, [PAIR], **ask | {name: value}), ABSURD)  # noqa: B023


def test_rate(lm):
    all_hold(lambda value: rlaif_jax.rate(lm, value, ['b']), ABSURD)
    all_hold(lambda value: rlaif_jax.rate(lm, ['a'], value), ABSURD)
    for name in ('task', 'templates', 'batch', 'mesh'):
        all_hold(lambda value: rlaif_jax.rate(lm, ['a'], ['b'], **{name: value}), ABSURD)  # noqa: B023


def test_served_and_preferred(lm):
    all_hold(rlaif_jax.served, [*ABSURD, 'http://', 'http://x', 'https://#', 'http://[x/v1#m', 'http://x/v1?\ud800#m'])
    all_hold(lambda value: rlaif_jax.preferred(value, [0.5]), ABSURD)
    all_hold(lambda value: rlaif_jax.preferred([PAIR], value), [*ABSURD, [HUGE], [True], [object()]])


def test_score(lm):
    all_hold(lambda value: rlaif_jax.score(value, ['a'], ['b']), [*ABSURD, lm])
    all_hold(rlaif_jax.load_reward_model, ABSURD)
    all_hold(lambda value: rlaif_jax.load_reward_model('micro_xs', mesh=value), ABSURD)


@pytest.fixture
def untrained(lm, tmp_path, monkeypatch):
    """Each stage of training, once it has all that it needs, gives back what it was to train."""
    monkeypatch.chdir(tmp_path)
    for stage in (sft, reward_model, reinforce):
        monkeypatch.setattr(stage, 'run', lambda *_, **__: lm)


@pytest.mark.usefixtures('untrained')
def test_training(lm):
    texts = [*ABSURD, [''], ['x' * 9000, 'y'], ['\ud800', '\0\x1b[31m'], [Prompt('a', 1), 'b'], iter(['a', 'b'])]
    pairs = [*ABSURD, [PAIR], [PAIR] * 9, [Pair('a', 'b', 'c', 1.0)] * 9, [('a', 'b', 'c')] * 9]
    votes = [[Pair(PAIR.prompt, ' b', ' c', case)] * 2 for case in ABSURD]
    reward, two = lambda prompts, responses: [0.0] * len(prompts), ['a', 'b']
    cases = {
        rlaif_jax.sft: {'lm': ABSURD, 'prompts': texts, 'references': texts},
        rlaif_jax.train_reward_model: {
            'lm': ABSURD,
            'pairs': pairs + votes,
            'held_out': pairs + votes,
            'labels': texts,
        },
        rlaif_jax.reinforce: {'lm': ABSURD, 'prompts': texts, 'reward': ABSURD, 'validation': texts},
    }
    voted = [Pair(PAIR.prompt, ' b', ' c', 1.0)] * 2
    good = {'prompts': two, 'references': two, 'reward': reward, 'pairs': voted, 'held_out': voted}
    fields = 'steps batch parts seed lora save_every max_prompt folder mesh unknown window samples max_new_tokens'
    for train, given in cases.items():
        right = {'lm': lm} | {name: good[name] for name in given if name in good}
        assert not holds(train, **right)
        for name, wrong in [*given.items(), *((name, ABSURD) for name in fields.split())]:
            all_hold(lambda value: train(**right | {name: value}), wrong)  # noqa: B023


def test_rater(lm):
    for name in ('lm', 'task', 'templates', 'batch', 'least_mass', 'max_length', 'mesh', 'unknown'):
        all_hold(lambda value: rlaif_jax.rater(**{'lm': lm, name: value}), ABSURD)  # noqa: B023


def test_evaluation():
    rows = [*ABSURD, [0.5], [0.5, math.nan], [2.0, 0], [math.inf], [1, 0, 1], [[1], [0]], ['1'], range(3)]
    all_hold(evaluation.win_rate, rows)
    all_hold(evaluation.harmless_rate, rows)
    all_hold(lambda value: evaluation.agreement(value, [1, 0, 1]), rows)
    all_hold(lambda value: evaluation.agreement([1, 0, 1], value), rows)
    all_hold(lambda value: evaluation.position_bias(value, [1, 0, 1]), rows)
    for i in range(3):
        given = [[1, 0, 1], [10, 20, 30], [20, 10, 30]]
        all_hold(lambda value: evaluation.length_adjusted_win_rate(*given[:i], value, *given[i + 1 :]), rows)  # noqa: B023
    for call in (evaluation.win_rate, evaluation.harmless_rate):
        all_hold(lambda value: call([1, 0, 1], confidence=value), ABSURD)  # noqa: B023
    all_hold(lambda value: evaluation.win_rate([1, 0] * 12, resamples=value), ABSURD)
    all_hold(lambda value: evaluation.agreement([1, 0], [1, 0], confidence=value), ABSURD)
