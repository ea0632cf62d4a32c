"""Laws of shortening: the most that fits, by one rule, whoever reads the prompt."""

import random

import numpy as np
import pytest

from rlaif_jax import axes, chat
from rlaif_jax.config import Mistake
from rlaif_jax.data import loader
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.labeling import prompts
from rlaif_jax.labeling.quoting import unquote
from rlaif_jax.micro import tokenizer as micro
from rlaif_jax.models import transformer
from rlaif_jax.shortening import MARKS, reads, shorten
from rlaif_jax.text import Tokenizer
from rlaif_jax.training import reward_model
from rlaif_jax.training.reward_model import RewardModel

HEAD = 'SUBREDDIT: r/tifu\n\nTITLE: my boss and me\n\nPOST: '
POST = HEAD + 'He yells at me.\n\nEvery day of the week.\nI do not know why.\n\n\nWhat would you do?' + MARKS[-1]
EXCHANGES = ''.join(f'\n\nHuman: what of part {i}?\n\nAssistant: it is part {i}.' for i in range(6))
LAST = '\n\nHuman: and what did I ask?\n\nAssistant:'
SYSTEM = 'You are kind and brief.'
TEXTS = {
    'post': POST,
    'post without marks': 'one two three\nfour five\n\nsix TL;DR:',
    'dialogue': EXCHANGES + LAST,
    'dialogue with a system': SYSTEM + EXCHANGES + LAST,
    'text': 'a first paragraph\n\na second one\n\n\nWhat do you say to it?\n',
    'line': 'a question that goes on and on ' * 9,
    'empty post': HEAD + MARKS[-1],
    'empty turn': '\n\nHuman:\n\nAssistant:',
    'stripped dialogue': (EXCHANGES + LAST).strip().replace('\n', '\r\n'),
    'two turns in a row': '\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nHuman: d\n\nHuman: e\n\nAssistant:',
    'blank': ' \n\n  \n',
    'nothing': '',
}


def within(room):
    return lambda text: len(text) <= room


@pytest.mark.parametrize('name', TEXTS)
def test_what_is_kept_fits_is_no_longer_and_stays_as_it_is(name):
    """In every room; more room keeps as much or more, and who shortens twice keeps what the smaller room does."""
    text, before = TEXTS[name], ''
    for room in range(len(text) + 2):
        kept = shorten(text, within(room))
        assert kept is None or len(kept) <= min(room, len(text)) and shorten(kept, within(room)) == kept
        assert kept is not None or not before, 'what fits a smaller room fits a larger one'
        before = kept or before
        assert len(kept or '') >= len(before)
        if kept == text:
            assert room >= len(text)
        twice = [shorten(text, within(more)) for more in (room + 1, room + 9, room + 40)]
        # A title is cut from its beginning only, and then is none.
        if HEAD not in text or kept and kept.startswith(HEAD):
            assert {shorten(more, within(room)) for more in twice if more} <= {kept}
    assert shorten(text, within(len(text))) == text
    assert shorten(text, lambda _: False) is None


def test_a_post_loses_its_last_paragraphs_then_characters_and_keeps_its_title():
    post = POST.removeprefix(HEAD).removesuffix(MARKS[-1])
    paragraphs = {post[:at] for at, c in enumerate(post) if c == '\n'}
    for room in range(len(HEAD + MARKS[-1]), len(POST)):
        kept = shorten(POST, within(room))
        assert kept.startswith(HEAD) and kept.endswith(MARKS[-1])
        kept = kept.removeprefix(HEAD).removesuffix(MARKS[-1])
        longest = max((p for p in paragraphs if len(HEAD + p + MARKS[-1]) <= room), key=len, default=None)
        first = post[: post.index('\n')]
        assert kept == (first[: room - len(HEAD + MARKS[-1])] if longest is None else longest)
    kept = shorten(POST, within(40))
    assert len(kept) == 40 and HEAD.endswith(kept.removesuffix(MARKS[-1]))  # the title's end
    assert shorten(POST, within(len(MARKS[-1]))) == MARKS[-1] and shorten(POST, within(len(MARKS[-1]) - 1)) is None


def test_other_text_to_summarize_loses_its_end():
    text = TEXTS['post without marks']
    found = [shorten(text, within(room)).removesuffix(' TL;DR:') for room in (len(text) - 1, 30, 29, 20, 18, 7)]
    assert found == [
        'one two three\nfour five\n',
        'one two three\nfour five',
        *['one two three'] * 2,
        'one two thr',
        '',
    ]


@pytest.mark.parametrize('system', ['', SYSTEM])
def test_a_dialogue_loses_its_oldest_exchanges_then_the_beginning_of_its_last_turn(system):
    text = system + EXCHANGES + LAST
    starts = [at for at in range(len(EXCHANGES)) if EXCHANGES.startswith('\n\nHuman:', at)]
    whole = [system + EXCHANGES[start:] + LAST for start in [*starts, len(EXCHANGES)]]
    for room in range(len(LAST), len(text)):
        kept = shorten(text, within(room))
        longest = next((some for some in whole if len(some) <= room), LAST)
        assert kept == longest and chat.turns(kept)[-1] == ('user', 'and what did I ask?')
    for room in range(len('\n\nHuman:\n\nAssistant:'), len(LAST)):
        kept = shorten(text, within(room))
        assert len(kept) == room and kept.startswith('\n\nHuman:') and LAST.endswith(kept.removeprefix('\n\nHuman:'))
        assert chat.turns(kept)
    assert shorten(text, within(room - len(LAST))) is None
    assert shorten(TEXTS['two turns in a row'], within(45)) == '\n\nHuman: d\n\nHuman: e\n\nAssistant:'


def test_any_other_text_keeps_its_end():
    text = TEXTS['text']
    assert shorten(text, within(len(text) - 1)) == text[text.index('a second') :]
    assert shorten(text, within(37)) == text[text.index('What') :] and shorten(text, within(5)) == ' it?\n'


def test_no_text_is_too_strange():
    """Random pieces of prompts; what does not fit is None, or next to nothing is left of it."""
    rng = random.Random(0)
    pieces = [*MARKS, *chat.SPEAKERS.values(), 'Human:', 'TL;DR:', '\n', '\r\n', ' ', 'word', 'a b c', '\ud83d', '👍']
    for _ in range(3000):
        text = ''.join(rng.choices(pieces, k=rng.randrange(12)))
        room = rng.randrange(60)
        kept = shorten(text, within(room))
        if kept is None:
            assert room < max(1, len(''.join(chat.SPEAKERS.values())), len(MARKS[-1]))
        else:
            assert len(kept) <= min(room, len(text)) and bool(kept) == bool(text)
            assert chat.turns(text) is None or chat.turns(kept) is not None
            assert kept.rstrip().endswith('TL;DR:') or not text.rstrip().endswith('TL;DR:')


@pytest.mark.parametrize(
    'text',
    ['x\n' * 50_000, 'x' * 100_000, HEAD + 'x\n' * 50_000 + MARKS[-1], EXCHANGES * 3000 + 'x' * 90_000 + LAST],
    ids=['lines', 'a line', 'post', 'dialogue'],
)
def test_a_very_long_text_is_shortened_in_few_looks(text):
    for room in (len(text) - 1, 90_000, 1000, 60, 3):
        looks = []
        shorten(text, lambda text, room=room, looks=looks: looks.append(text) or len(text) <= room)
        assert len(looks) < 60


# one rule for everybody

PLAIN = None
CHAT = (
    '{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}'
    '{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}'
)


@pytest.fixture(params=[PLAIN, CHAT], ids=['plain', 'chat'])
def tokenizer(request):
    hf = micro.build()
    hf.add_tokens(['<|turn|>', '<|end|>'], special_tokens=True)
    hf.chat_template = request.param
    return Tokenizer(hf, (hf.eos_token_id,))


LONG = {
    'summarization': HEAD + '\n\n'.join(f'my boss yells at me on day {i}.' for i in range(40)) + MARKS[-1],
    'helpful': ''.join(f'\n\nHuman: my boss {i}?\n\nAssistant: so what {i}.' for i in range(40)) + LAST,
}


@pytest.mark.parametrize('room', [40, 64, 100, 200])
@pytest.mark.parametrize('task', LONG)
def test_policy_reward_model_and_labeler_keep_the_same_of_a_prompt(tokenizer, task, room, monkeypatch):
    """In training and in scoring; the labeler where its room for a context is what the policy's prompt takes of it."""
    text = LONG[task]
    (policy,) = loader.fitted([Prompt(text, 'p')], reads(tokenizer, room))
    (row,) = tokenizer.prompts([policy.text])
    assert len(row) <= room < len(tokenizer.prompts([text])[0]) and len(policy.text) < len(text)
    assert policy.text.endswith(MARKS[-1] if task == 'summarization' else LAST)

    cfg = reward_model.Config(max_prompt=room, max_response=8)
    responses = tokenizer.responses([text] * 2, ['so what', 'no'])
    batch = reward_model.make_batch(tokenizer, [Pair(Prompt(text, 'p'), 'so what', 'no', 1.0)], cfg)
    assert batch['token_BT'][0, : len(row) + 1 + len(responses[0])].tolist()[:-1] == row + responses[0]
    assert (batch['until_BT'][0] == batch['until_BT'][0, 0])[: len(row) + 1].sum() == len(row) and batch[
        'full_BQ'
    ].all()

    model = transformer.Config(vocab=1154, layers=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8, max_length=512)
    seen = []

    def score(model, params, token_BT, valid_BT):
        seen.extend(row[valid].tolist() for row, valid in zip(np.asarray(token_BT), np.asarray(valid_BT)))
        return np.zeros(len(token_BT))

    monkeypatch.setattr(reward_model, 'score_rows', score)
    scored = RewardModel(model, {}, tokenizer, 'scored')
    scorer = reward_model.make_scorer(scored, axes.make_mesh(), batch=1, max_prompt=room, max_response=8)
    scorer([text, policy.text], ['so what', 'no'])
    assert sorted(seen) == sorted([row + responses[0], row + responses[1]])

    template = prompts.single(task, 'rating', turn=tokenizer.turn)
    sample = lambda text: {'context': text, 'response': 'no'}  # noqa: E731
    kept, whole = template.encode(tokenizer, [sample(policy.text), sample(text)])
    for more in (0, 1):  # a token more is not enough for a paragraph or an exchange more
        (cut,) = template.encode(tokenizer, [sample(text)], len(kept.tokens) + more)
        assert cut.tokens == kept.tokens
        assert cut.shortened == len(template.context(text)) - len(template.context(policy.text)) > 0
    assert len(whole.tokens) > len(kept.tokens) and whole.shortened == kept.shortened == 0
    shown = unquote(tokenizer.decode([kept.tokens])[0])
    assert shown.strip().startswith(template.context(policy.text))


def test_where_a_template_leaves_no_room_the_prompt_or_the_field_is_named(tokenizer):
    text, least = LONG['helpful'], len(tokenizer.prompts(['\n\nHuman:\n\nAssistant:'])[0])
    (prompt,) = loader.fitted([Prompt(text, 'p7')], reads(tokenizer, least))
    assert len(tokenizer.prompts([prompt.text])[0]) == least
    assert reward_model.encode_prompts(tokenizer, [text], least)[0] == tokenizer.prompts([prompt.text])
    with pytest.raises(Mistake, match='prompt p7: .*max_prompt'):
        loader.fitted([Prompt('hi', 'p6'), Prompt(text, 'p7')], reads(tokenizer, least - 1))  # before one is read
    with pytest.raises(Mistake, match=f'max_prompt = {least - 1}: .*my boss 0'):
        reward_model.encode_prompts(tokenizer, [text], least - 1)
