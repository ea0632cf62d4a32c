"""Open checkpoints and the paper's data, end to end: a real trained model is tuned on real posts and leaves for
transformers; real dialogues, as Anthropic published them, pass every stage of RLAIF and RLHF. Both at a scale of open
models, its sizes turned down.
"""

from __future__ import annotations

import json
import math

import numpy as np
import published_files
import pytest

from experiments import judging
from experiments.scales import Data
from launch import run as launcher
from rlaif_jax.data import files, hh, loader, tldr
from rlaif_jax.generation import Sampling, extend
from rlaif_jax.models import hf
from rlaif_jax.models.transformer import Config
from rlaif_jax.shortening import reads
from rlaif_jax.text import Tokenizer

pytestmark = pytest.mark.usefixtures('programs')

STEPS, PROMPT, RESPONSE = 3, 256, 12
SMALL = {
    'mesh.data': 1, 'dtype': 'float32', 'reinforce.steps': STEPS, 'reinforce.batch': 4, 'reinforce.parts': 2,
    'reinforce.max_prompt': PROMPT, 'reinforce.max_new_tokens': RESPONSE, 'reinforce.eval_every': STEPS,
    'reinforce.eval_prompts': 4, 'reinforce.candidates': 1, 'reinforce.policy_optimizer.learning_rate': 1e-4,
    'reinforce.value_optimizer.learning_rate': 1e-3, 'evaluation.prompts': 8, 'evaluation.batch': 8,
}  # fmt: skip


def run(folder, manual, experiment, **bindings) -> dict:
    """The result of the command that a user would type."""
    typed = [f'{path}={value}' for path, value in (SMALL | bindings).items()]
    flags = [f'--experiment={experiment}', '--scale=smollm2', f'--manual_dir={manual}', f'--workdir={folder}']
    assert launcher.main([*flags, *typed]) == 0
    return json.loads((folder / 'result.json').read_text(encoding='utf-8'))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def finite(row) -> bool:
    """Whether every number in it is one; what is not finite is null in our files."""
    return all(x is not None and math.isfinite(x) for x in row.values())


def step_rows(folder, steps=STEPS):
    """The metrics of a run of REINFORCE, after the laws that hold for every one. Who wins is for the caller to say."""
    rows = lines(folder / 'metrics.jsonl')
    assert [row['step'] for row in rows] == list(range(-1, steps))
    assert all(map(finite, rows))
    assert [row['step'] for row in rows if 'eval/score' in row] == [-1, steps - 1]
    rows = rows[1:]
    for row in rows:
        assert {'objective/scores', 'objective/kl', 'loss/policy', 'loss/value'} <= row.keys()
        assert row['sampler/mismatch'] < 1e-3 and row['skipped/policy'] == 0 == row['val/unscorable']
    assert abs(rows[0]['objective/kl']) < 1e-3 and rows[0]['objective/kl_k3'] < 1e-5 < rows[-1]['objective/kl_k3']
    return rows


def differ(one: hf.LM, other: hf.LM) -> bool:
    """Whether every parameter does."""
    return all((np.asarray(one.params[name]) != np.asarray(other.params[name])).any() for name in other.params)


# A real model on real posts


@pytest.fixture(scope='module')
def posts(shared):
    """Real Reddit posts in the columns that OpenAI published, the better of two summaries with each."""
    found = []
    for number, row in enumerate(files.read_rows(shared / 'tldr_pairs/pairs.jsonl')):
        title, post = row['prompt'].partition('Title: ')[2].split('\n\nPost: ', 1)
        summary = (row['response_1'], row['response_2'])[row['label']].strip()
        found.append({'id': str(number), 'subreddit': 'advice', 'title': title, 'post': post, 'summary': summary})
    return found


@pytest.fixture(scope='module')
def tuned(shared, posts, programs, tmp_path_factory):
    """The folder of a run of direct RLAIF in which a model trained on children's stories is policy, value network,
    reference, labeler and judge, and its result.
    """
    root, model = tmp_path_factory.mktemp('tuned'), shared / 'stories260k'
    splits = {'train': posts[:12], 'valid': posts[12:16], 'test': posts[16:]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tldr.Posts, 'COUNTS', {'train': 12, 'validation': 4, 'test': 8})
        manual = published_files.alone(root, patch)
        for split, rows in splits.items():
            published_files.write(manual / f'tldr/{split}.jsonl', rows)
        result = run(
            root / 'runs/run', manual, 'tldr_direct',
            **{'policy': model, 'same_size_labeler': model, 'evaluation.judge': model, 'evaluation.selector': model,
               'rating.least_mass': 0.0, 'rating.batch': 4, 'data.train': 12, 'data.validation': 4, 'data.test': 8,
               'sft.steps': 2, 'sft.batch': 4, 'sft.parts': 2, 'sft.log_every': 1,
               'sft.optimizer.learning_rate': 1e-3},
        )  # fmt: skip
    return root / 'runs/run', result


def sft_of(folder):
    (found,) = folder.glob('stages/sft-*')
    return found


@pytest.mark.slow
def test_a_real_model_learns_from_ratings_of_real_posts(tuned, shared, posts, saved_state):
    folder, result = tuned
    metrics = step_rows(folder)
    assert all(-1 <= row['objective/scores'] <= 1 for row in metrics)
    # A model that was read as it was trained knows more of English than that there are so many tokens.
    assert all(0 < row['sft/loss'] < 0.9 * math.log(512) for row in lines(sft_of(folder) / 'metrics.jsonl'))

    start, sft, policy = (
        hf.load(path) for path in (shared / 'stories260k', sft_of(folder) / 'export', folder / 'export')
    )
    assert policy.config == sft.config == start.config and differ(sft, start) and differ(policy, sft)
    state = saved_state(folder, STEPS)
    for name, x in state['policy']['params'].items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(policy.params[name]), err_msg=name)

    # Posts that are too long lost their ends, never the title or what asks for a summary.
    whole = {row['title']: tldr.prompt_text(row['subreddit'], row['title'], row['post']) for row in posts}
    shown = [row['prompt'] for row in lines(folder / 'test_samples.jsonl')]
    cut = [prompt for prompt in shown if prompt not in whole.values()]
    assert len(shown) == 8 and cut
    for prompt in shown:
        original = whole[tldr.parts(prompt)['title']]
        assert original.startswith(prompt.removesuffix(tldr.MARKS[-1])) and original.endswith(tldr.MARKS[-1])
    rows = start.tokenizer.encode(shown)
    assert max(map(len, rows)) < PROMPT

    # It cannot say which of two is better, and nobody pretends that it did.
    judged = result['comparisons']['d-RLAIF vs SFT'][str(shared / 'stories260k')]
    assert (judged['n'], judged['unscorable'], result['simulated']) == (0, 8, False)
    assert judged['raw']['value'] is None


@pytest.mark.slow
def test_its_tokenizer_comes_out_as_it_went_in(tuned, shared, posts):
    from transformers import AutoTokenizer

    before, after = (AutoTokenizer.from_pretrained(path) for path in (shared / 'stories260k', tuned[0] / 'export'))
    texts = [tldr.prompt_text(row['subreddit'], row['title'], row['post']) for row in posts]
    assert after(texts)['input_ids'] == before(texts)['input_ids']
    assert after.batch_decode(after(texts)['input_ids'], skip_special_tokens=True) == texts


@pytest.mark.slow
def test_transformers_goes_on_from_the_export_as_we_do(tuned, posts):
    torch = pytest.importorskip('torch', reason='torch is not installed: nothing to compare with')
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    lm, theirs = hf.load(tuned[0] / 'export'), AutoModelForCausalLM.from_pretrained(tuned[0] / 'export').eval()
    assert theirs.dtype == torch.float32
    texts = ['Once upon a time', tldr.prompt_text('advice', posts[0]['title'], '')]
    rows = [[*lm.tokenizer.start, *row] for row in lm.tokenizer.encode(texts)]
    for row, ours in zip(rows, extend(lm, rows, Sampling(24, temperature=0.0))):
        out = theirs.generate(
            torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=int), do_sample=False, max_new_tokens=24
        )
        assert out[0].tolist() == [*row, *ours]


# Real dialogues


@pytest.fixture(scope='module')
def talkers(shared, random_params, tmp_path_factory):
    """A policy of random weights with a chat template, and a labeler that answers what it is asked, `1`, `2`, yes or no, at
    random; both with a real tokenizer, in which ` yes` is two tokens.
    """
    folder, tokenizer = tmp_path_factory.mktemp('talkers'), Tokenizer.load(shared / 'stories260k')
    cfg = Config(vocab=512, layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn=16, max_length=1024, tied=False)
    tokenizer.hf.chat_template = (
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
        '{% endif %}{% endfor %}'
    )
    hf.save(hf.LM(cfg, random_params(cfg, 0), tokenizer, 'policy'), folder / 'policy')
    tokenizer.hf.chat_template = None
    params = {name: np.array(x) for name, x in random_params(cfg, 1).items()}
    words = tokenizer.encode(['1', '2', ' yes', ' no'], behind=True)
    # A few channels that no layer touches: all tokens draw those that begin an answer, and these what they go on with.
    pairs = [pair for word in words for pair in zip(word, word[1:])]
    for name in ('embed_VD', 'out_LNHD', 'down_LFD'):
        params[name][..., : 1 + len(pairs)] = 0.0
    params['embed_VD'][:, 0] = 3.0
    params['unembed_DV'][0, [word[0] for word in words]] += 4.0
    for c, (first, then) in enumerate(pairs, 1):
        params['embed_VD'][first, [0, c]] = 0.0, 3.0
        params['unembed_DV'][c, then] += 4.0
    hf.save(hf.LM(cfg, params, tokenizer, 'labeler'), folder / 'labeler')
    return folder


@pytest.mark.nightly
def test_real_dialogues_pass_every_stage(talkers, shared, tmp_path, monkeypatch):
    """Anthropic's file of test dialogues, a part of it as the training file: labels, reward models of labels and of
    people's choices, RL from both, judged against where they started, and how harmless they all are.
    """
    rows = files.read_rows(shared / 'hh_harmless/test.jsonl.gz')
    monkeypatch.setattr(hh.Harmless, 'COUNTS', {'train': 1700, 'test': len(rows) - 1700})
    manual, folder = published_files.alone(tmp_path, monkeypatch), tmp_path / 'runs/run'
    for name, part in (('train', rows[:1700]), ('test', rows[1700:])):
        published_files.write(manual / f'hh_harmless/{name}.jsonl.gz', part)
    room = 96
    result = run(
        folder, manual, 'harmless_rlaif',
        **{'policy': talkers / 'policy', 'labeler': talkers / 'labeler', 'evaluation.judge': talkers / 'labeler',
           'evaluation.selector': talkers / 'labeler', 'data.train': 64, 'data.validation': 8, 'data.test': 16,
           'data.pairs': 16, 'data.held_out': 8, 'label.technique': 'base_0shot', 'label.batch': 8, 'label.max_length': 768,
           'reward_model.steps': 3, 'reward_model.batch': 4, 'reward_model.parts': 2, 'reward_model.log_every': 1,
           'reward_model.eval_every': 3, 'reward_model.max_prompt': room, 'reward_model.max_response': RESPONSE,
           'reward_model.optimizer.learning_rate': 1e-3, 'reinforce.max_prompt': room,
           'reinforce.policy_optimizer.learning_rate': 1e-2},
    )  # fmt: skip
    names = ['RLAIF', 'RLHF', 'SFT']
    assert set(result['harmless']) == set(result['texts']) == set(result['cleaned']) == set(names)
    for rate in result['harmless'].values():
        assert rate['n'] == 8 and rate['unscorable'] == 0
        for share in (rate['raw'], rate['length_adjusted']):
            assert 0 <= share['low'] <= share['value'] <= share['high'] <= 1
    assert list(result['comparisons']) == ['RLAIF vs RLHF', 'RLAIF vs SFT', 'RLHF vs SFT']
    for judged in result['comparisons'].values():
        (votes,) = judged.values()
        assert votes['n'] == 8 and 0 <= votes['raw']['value'] <= 1

    of = {kind: sorted(folder.glob(f'stages/{kind}-*')) for kind in ('sft', 'labels', 'reward_model', 'reinforce')}
    assert [len(found) for found in of.values()] == [0, 2, 2, 2]  # the policy of dialogue is tuned already
    # Labels to learn from, and held-out ones that choose among checkpoints.
    few, labels = sorted((files.read_rows(made / 'labels.parquet') for made in of['labels']), key=len)
    assert [row['status'] for row in few + labels] == ['ok'] * (8 + 16)
    assert all(0 < row['preference_prob'] < 1 for row in labels)
    assert any(row['shortened'] for row in labels)
    start = hf.load(talkers / 'policy')
    for made in of['reward_model']:
        learned = lines(made / 'metrics.jsonl')
        assert len(learned) == 3 and all(map(finite, learned)) and 'eval/accuracy' in learned[-1]
        assert (made / 'export/model.safetensors').exists() and (made / 'result.json').exists()
    for made in of['reinforce']:
        assert (
            'eval/win_rate' not in step_rows(made)[-1]
        )  # a model that judges is not kept in memory while others train
        assert differ(hf.load(made / 'export'), start)

    # Dialogues that are too long lost what was said first.
    whole = [row['chosen'] for row in rows]
    for path in (folder / 'test_samples.jsonl', *(made / 'samples.jsonl' for made in of['reinforce'])):
        shown = [row['prompt'] for row in lines(path)]
        assert max(map(len, start.tokenizer.prompts(shown))) <= room
        assert all(prompt.startswith('\n\nHuman:') and prompt.endswith('\n\nAssistant:') for prompt in shown)
        assert any(not any(text.startswith(prompt) for text in whole) for prompt in shown)
        assert all(any(prompt.removeprefix('\n\nHuman:') in text for text in whole) for prompt in shown)


def test_a_file_of_dialogues_is_every_split(shared, micro_tokenizer):
    """Who has the test file alone names its path; none of its dialogues is too long to be asked."""
    path, lm = str(shared / 'hh_harmless/test.jsonl.gz'), hf.LM(None, {}, micro_tokenizer, '')
    of = {split: loader.pairs(path, 'harmless', split, 10**4) for split in loader.SPLITS}
    texts = {split: {pair.prompt.text for pair in pairs} for split, pairs in of.items()}
    assert sum(map(len, of.values())) == 2307 and min(map(len, of.values())) > 150
    assert not (texts['train'] & texts['validation'] or texts['train'] & texts['test'])
    longest = max(texts['train'], key=len)
    asked = loader.fitted(loader.source(path, 'train', 10**4, 'harmless'), reads(lm.tokenizer, 128))
    at = [pair.prompt.text for pair in of['train']].index(longest)
    assert len(asked) == len(of['train']) and len(micro_tokenizer.encode([asked[at].text])[0]) <= 128
    assert asked[at].text != longest and longest.endswith(asked[at].text.removeprefix('\n\nHuman:'))


def test_chats_are_the_same_dialogues_to_every_stage(micro_tokenizer, tmp_path):
    """As lists of messages: what a reward model learns from is what the policy is asked."""
    said = lambda role, content: {'role': role, 'content': content}  # noqa: E731
    rows = [
        {'prompt': [said('user', f'question {n}')], **{name: [said('assistant', name)] for name in ('chosen', 'rejected')}}
        for n in range(3)
    ]  # fmt: skip
    published_files.write(tmp_path / 'test.jsonl', rows)
    data = Data(str(tmp_path), train=1, validation=1, test=3)
    asked = judging.test_prompts(data, 'harmless', 3, hf.LM(None, {}, micro_tokenizer, ''), 64)
    assert [p.text for p in asked] == [f'\n\nHuman: question {n}\n\nAssistant:' for n in range(3)]
    assert [p.text for p in asked] == [pair.prompt.text for pair in loader.pairs(data.source, 'harmless', 'test', 3)]
