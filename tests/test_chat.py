"""Laws of rlaif_jax.chat: a dialogue is told by its turns, not by the bytes between them, and a run says what was told."""

import pytest

from experiments import stages
from rlaif_jax import chat
from rlaif_jax.micro import tokenizer as micro
from rlaif_jax.models.hf import LM
from rlaif_jax.text import Tokenizer

TEMPLATE = (
    '{% for m in messages %}[{{ m.role }}] {{ m.content }}<eos>{% endfor %}'
    '{% if add_generation_prompt %}[assistant]{% endif %}'
)
TALK = '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:'
POST = 'a post\n\nTL;DR:'


@pytest.mark.parametrize(
    'text, turns',
    [
        ('Human: hi\n\nAssistant:', [('user', 'hi')]),
        ('\nHuman: hi\n\nAssistant: \n', [('user', 'hi')]),
        ('\r\n\r\nHuman: hi\r\n\r\nAssistant:', [('user', 'hi')]),
        ('\r\rHuman: hi\r\rAssistant:', [('user', 'hi')]),
        ('\n\nHuman:hi\n\nAssistant:', [('user', 'hi')]),
        ('Be kind.\r\n\r\nHuman: hi\n\nAssistant:', [('system', 'Be kind.'), ('user', 'hi')]),
        ('Human: a\r\nb\n\nAssistant:', [('user', 'a\nb')]),
        (' Human: hi\n\nAssistant:', None),  # what somebody quotes
        ('Human: hi', None),  # nobody is asked
        ('Human: hi\nAssistant:', None),
        ('\n\nhuman: hi\n\nassistant:', None),
        ('\\n\\nHuman: hi\\n\\nAssistant:', None),
    ],
)
def test_a_dialogue_is_told_however_its_lines_end(text, turns):
    assert chat.turns(text) == turns


def test_what_is_told_as_a_dialogue_is_written_as_one_and_other_text_stays():
    for text in (TALK, TALK.lstrip('\n'), TALK.replace('\n', '\r\n'), TALK.replace('\n', '\r').lstrip('\r')):
        assert chat.dialogue(text) == TALK
    for text in (POST, 'Human: hi\r\n', 'a\r\nb', '', '\n\n' + TALK):
        assert chat.dialogue(text) == text


def test_a_stripped_dialogue_goes_through_the_template_as_the_whole_one_does():
    hf = micro.build()
    hf.chat_template = TEMPLATE
    tokenizer = Tokenizer(hf, (hf.eos_token_id,))
    rows = tokenizer.prompts([TALK, TALK.strip(), TALK.replace('\n', '\r\n'), TALK + '\n'])
    assert rows[0] == rows[1] == rows[2] == rows[3] != tokenizer.encode([TALK])[0]


@pytest.mark.parametrize(
    'template, prompts, words',
    [
        (False, [POST, POST], None),  # no question
        (False, [POST, TALK], ['no chat template', 'all 2', '1 dialogues']),
        (True, [TALK, TALK], ['all 2 prompts', 'in its chat template']),
        (True, [POST, TALK, 'x'], ['1 of 3 prompts', 'plain text', repr(POST)]),
        (True, [POST], ['0 of 1 prompts', repr(POST)]),
    ],
)
def test_a_run_says_which_prompts_its_checkpoint_reads_in_its_template(template, prompts, words, capsys):
    hf = micro.build()
    hf.chat_template = TEMPLATE if template else None
    lm = LM(None, {}, Tokenizer(hf, (hf.eos_token_id,)), 'some/model/export')
    stages.tell_prompts(lm, prompts, simulated=True)
    assert not capsys.readouterr().out
    stages.tell_prompts(lm, prompts, simulated=False)
    told = ' '.join(capsys.readouterr().out.split())
    assert (told == '') == (words is None)
    assert told.startswith('model') and all(word in told for word in words) if words else True
