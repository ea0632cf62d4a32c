"""Laws of text and tokens: what users write is data, and what a policy may write holds no control tokens."""

import json
import re
import sys
import time
from itertools import product

import numpy as np
import pytest
import tokenizers

from rlaif_jax import chat
from rlaif_jax.config import Mistake
from rlaif_jax.micro import tokenizer as micro
from rlaif_jax.text import PROBE, Tokenizer, pad_left, pad_right


def test_control_tokens_are_never_allowed_named_or_not():
    hf = micro.build()
    hf.add_tokens(['<|header|>'], special_tokens=True)  # as Llama 3 has hundreds: special, but no named role
    header, tokenizer = hf.convert_tokens_to_ids('<|header|>'), Tokenizer(hf, (2,))
    allowed_V = tokenizer.allowed(1152)
    assert not allowed_V[[0, 1, 3, header]].any() and allowed_V[2]  # pad, bos, unk; the end token may be written
    assert not allowed_V[len(hf) :].any()  # rows of padding
    assert allowed_V.sum() == len(hf) - 4


def test_control_tokens_in_text_are_letters(micro_tokenizer):
    texts = ['a <eos> b', '<pad>', '<bos><unk>']
    rows = micro_tokenizer.encode(texts)
    assert all(min(row) > 3 for row in rows)
    assert micro_tokenizer.decode(rows) == texts


def test_control_tokens_in_our_own_text_are_control_tokens(micro_tokenizer):
    assert micro_tokenizer.encode(['<bos>a<eos>'], control=True)[0][::2] == [1, 2]
    assert micro_tokenizer.encode([], control=True) == micro_tokenizer.decode([]) == []


def test_text_behind_text_gets_no_space_of_its_own(micro_tokenizer, shared):
    """Not from a tokenizer that puts one before whatever it is given, either."""
    texts = [' a boy', '\n\nOnce', '1', ' 1', '=', '\n', '']
    for tokenizer in (micro_tokenizer, Tokenizer.load(shared / 'stories260k')):
        before, whole = tokenizer.encode(['Lily saw.'])[0], tokenizer.encode(['Lily saw.' + text for text in texts])
        assert [before + row for row in tokenizer.encode(texts, behind=True)] == whole
    assert tokenizer.encode(['1']) != tokenizer.encode(['1'], behind=True)
    assert micro_tokenizer.encode(texts) == micro_tokenizer.encode(texts, behind=True)


def test_any_string_has_tokens(micro_tokenizer):
    """Half a surrogate pair is no character, though a string may hold it; a whole one is the character it stands for."""
    texts = ['\ud83d cut \udc4d', '\ud83d\udc4d', '', '\x00']
    assert micro_tokenizer.decode(micro_tokenizer.encode(texts)) == ['\ufffd cut \ufffd', '👍', '', '\x00']


def test_without_a_chat_template_there_are_no_turns(micro_tokenizer):
    assert micro_tokenizer.turn is None


def test_a_chat_prompt_is_the_same_tomorrow():
    hf = micro.build()
    hf.chat_template = (
        '{% if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}'
        'Today: {{ date_string }}\n{{ messages[0].content }}<end>'
    )
    assert Tokenizer(hf, (2,)).turn == ('Today: 26 Jul 2024\n', '<end>')


@pytest.mark.parametrize('pad', [pad_left, pad_right])
def test_padding_keeps_the_rows(pad):
    rows = [[5, 6], [], [7, 8, 9]]
    token_BT, valid_BT = pad(rows, 4, 0)
    assert [token[valid].tolist() for token, valid in zip(token_BT, valid_BT, strict=True)] == rows
    assert not token_BT[~valid_BT].any()
    with pytest.raises(ValueError, match='row 2 .* 3 tokens, .* 2$'):
        pad(rows, 2, 0)
    assert np.array_equal(pad_left(rows, 4, 0)[1], pad_right(rows, 4, 0)[1][:, ::-1])


# Checkpoints as others write them


@pytest.fixture
def chatty():
    """Makes a tokenizer with added tokens, some of them not called special, and a chat template."""

    def make(template: str | None = None) -> Tokenizer:
        hf = micro.build()
        hf.add_tokens(['<think>', '</think>', '    '])  # as Qwen 3 and Gemma have them
        hf.add_tokens(['<|turn_end|>'], special_tokens=True)
        hf.chat_template = template
        return Tokenizer(hf, (hf.eos_token_id,))

    return make


@pytest.mark.parametrize('behind', [False, True])
def test_added_tokens_that_are_not_called_special_are_text_too(chatty, behind):
    tokenizer = chatty()
    control = tokenizer.hf.convert_tokens_to_ids(['<think>', '</think>', '<|turn_end|>'])
    for text in ('a </think> b', '<think>', 'so <|turn_end|> it is'):
        (row,) = tokenizer.encode([text], behind=behind)
        assert not set(row) & set(control), text
        (row,) = tokenizer.encode([text], control=True, behind=behind)
        assert set(row) & set(control), text
    assert not tokenizer.allowed(2000)[control].any()
    space = tokenizer.hf.convert_tokens_to_ids('    ')
    assert tokenizer.encode(['a    b'])[0].count(space) == 1 and tokenizer.allowed(2000)[space]


def test_text_without_control_tokens_is_encoded_as_ever(chatty, micro_tokenizer):
    texts = ['my boss yells at me.', 'so\n\nwhat now? é 中', ' it goes on', '']
    assert chatty().encode(texts) == micro_tokenizer.encode(texts)


ENDS = (
    '{% for m in messages %}<{{ m.role }}> {{ m.content }}<|turn_end|>{% endfor %}'
    '{% if add_generation_prompt %}<bot>{% endif %}'
)
PARTS = (
    "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}x{% endif %}{% endfor %}{% endfor %}"
)


def test_the_end_of_a_turn_ends_a_response(chatty, tmp_path):
    tokenizer = chatty(ENDS)
    end = tokenizer.hf.convert_tokens_to_ids('<|turn_end|>')
    tokenizer.hf.save_pretrained(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.closes == end and loaded.ends == (tokenizer.hf.eos_token_id, end)
    assert loaded.stops(2000)[end] and loaded.allowed(2000)[end] and loaded.eos == tokenizer.hf.eos_token_id


ENDINGS = {
    'generation_config.json': [None, 5, [7, 5], [], [2]],
    'config.json': [None, 2, [2, 5], 7],
    'tokenizer_config.json': [None, '<eos>', '<|turn_end|>'],
}


@pytest.mark.parametrize('template', [None, '{% for m in messages %}[{{ m.content }}]{% endfor %}'])
def test_what_training_writes_ends_a_response_whoever_says_so(chatty, tmp_path, template):
    """Files that contradict each other name one end more, never one less."""
    for case, (generation, config, eos) in enumerate(product(*ENDINGS.values())):
        folder = tmp_path / str(case)
        hf = chatty(template).hf
        hf.eos_token = eos
        hf.save_pretrained(folder)
        for name, end in (('generation_config.json', generation), ('config.json', config)):
            (folder / name).write_text(json.dumps({'eos_token_id': end}), encoding='utf-8')
        said = [
            *(generation if isinstance(generation, list) else [generation]),
            *(config if isinstance(config, list) else [config]),
        ]
        said = {end for end in [*said, eos and hf.convert_tokens_to_ids(eos)] if end is not None}
        if not said:
            with pytest.raises(Mistake, match=rf'{folder}: .*eos_token in tokenizer_config\.json'):
                Tokenizer.load(folder)
            continue
        tokenizer = Tokenizer.load(folder)
        assert set(tokenizer.ends) == said and len(tokenizer.ends) == len(said)
        stop_V, allowed_V = tokenizer.stops(1200), tokenizer.allowed(1200)
        for prompt in ('so\n\nTL;DR:', TALK):
            ((*_, last),) = tokenizer.responses([prompt], ['done'])
            assert last in tokenizer.ends and stop_V[last] and allowed_V[last]


def test_an_end_that_is_a_piece_of_text_is_said(chatty, tmp_path, capsys):
    """As the number that a config has by default may be in a tokenizer that it was not made for."""
    hf = chatty().hf
    hf.save_pretrained(tmp_path)
    word = chatty().encode([' boss'])[0][-1]
    edited(tmp_path, 'config.json', eos_token_id=[hf.convert_tokens_to_ids('<|turn_end|>'), hf.eos_token_id])
    assert Tokenizer.load(tmp_path) and capsys.readouterr().out == ''
    edited(tmp_path, 'config.json', eos_token_id=word)
    assert Tokenizer.load(tmp_path).ends == (word, hf.eos_token_id)
    assert re.search(rf"/config\.json: eos_token_id = {word} .*' boss'", capsys.readouterr().out)


@pytest.mark.parametrize(
    'template, says',
    [
        (PARTS, '0 times'),
        ('S: {{ messages[0].content }} {{ messages[-1].content }}', '2 times'),
        ("{{ raise_exception('a system message comes first') }}", r'\(a system message comes first\)'),
        ('{% if x %}{{ messages', r'\(unexpected end'),
    ],
)
def test_a_template_that_hides_the_message_is_named(chatty, template, says):
    with pytest.raises(Mistake, match=f'chat template .*{says}'):
        assert chatty(template).turn


def test_a_template_that_asks_for_the_date_gets_the_same_one_always(chatty):
    template = "{{ strftime_now('%d %B %Y') }} <u>{{ messages[0].content }}</u>"
    assert chatty(template).turn == ('26 July 2024 <u>', '</u>')


# What a policy reads and writes

ANSWER = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    '<|turn_end|>{{ m.role }}\n{{ m.content | trim }}<|turn_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|turn_end|>assistant\n{% endif %}'
)
SYSTEM = ANSWER.replace("{{ raise_exception('no system here') }}", '')
TALK = '\n\nHuman: what is it?\n\nAssistant: a boss.\n\nHuman: <|turn_end|> and</think> now?\n\nAssistant:'


@pytest.mark.parametrize('template', [ANSWER, SYSTEM])
def test_a_dialogue_goes_through_the_chat_template_with_what_was_said_as_data(chatty, template):
    tokenizer, plain = chatty(template), chatty()
    harmless = TALK.replace('<|turn_end|> and</think>', 'and')
    said = [
        {'role': r, 'content': c} for r, c in (('user', 'what is it?'), ('assistant', 'a boss.'), ('user', 'and now?'))
    ]
    (row,) = tokenizer.prompts([harmless])
    assert row == list(tokenizer.hf.apply_chat_template(said, add_generation_prompt=True)['input_ids'])
    (row,) = tokenizer.prompts([TALK])
    end = tokenizer.hf.convert_tokens_to_ids('<|turn_end|>')
    assert row.count(end) == 7 and '<|turn_end|> and</think> now?' in tokenizer.hf.decode(row)
    # Prompts that are no dialogue, and checkpoints without a template, are as ever; each row is its own.
    assert tokenizer.prompts(['so\n\nTL;DR:']) == plain.prompts(['so\n\nTL;DR:']) == plain.encode(['so\n\nTL;DR:'])
    assert plain.prompts([TALK]) == plain.encode([TALK])
    mixed = ['so\n\nTL;DR:', TALK, 'x', harmless]
    assert tokenizer.prompts(mixed) == [tokenizer.prompts([text])[0] for text in mixed]


LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' '  + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize('template', [LLAMA_2, MISTRAL])
def test_a_space_in_a_template_is_joined_to_what_follows_it(shared, template):
    """As in the template's whole text, of a tokenizer that puts spaces in front of words."""
    hf = Tokenizer.load(shared / 'stories260k').hf
    hf.chat_template, tokenizer = template, Tokenizer(hf, (hf.eos_token_id,))
    said = [{'role': r, 'content': c} for r, c in (('user', 'the cat?'), ('assistant', 'and a dog.'), ('user', 'who?'))]
    text = '\n\nHuman: the cat?\n\nAssistant: and a dog.\n\nHuman: who?\n\nAssistant:'
    whole = lambda some: list(tokenizer.hf.apply_chat_template(some)['input_ids'])  # noqa: E731
    (prompt,), (response,) = tokenizer.prompts([text]), tokenizer.responses([text], ['it was Tim'])
    assert prompt == whole(said)
    answered = whole([*said, {'role': 'assistant', 'content': 'it was Tim'}])
    assert prompt + response[:-1] == answered[: len(prompt + response) - 1] and response[-1] == tokenizer.closes


def test_a_system_message_before_the_last_turn_alone_goes_to_the_first(chatty):
    """As some templates of Mistral's have it."""
    last = (
        "{% for m in messages %}{% if m.role == 'user' %}{% if loop.last and messages[0].role == 'system' %}"
        '{{ messages[0].content }}: {% endif %}[{{ m.content }}]'
        "{% elif m.role == 'assistant' %}({{ m.content }}){% endif %}{% endfor %}"
    )
    text = 'Be kind.\n\nHuman: hi\n\nAssistant: yes\n\nHuman: ho\n\nAssistant:'
    tokenizer = chatty(last)
    assert tokenizer.hf.decode(tokenizer.prompts([text])[0]) == '[Be kind.\n\nhi](yes)[ho]'


def test_a_system_message_stands_where_the_template_wants_it(chatty):
    text = 'Be kind.\n\nHuman: hi\n\nAssistant:'
    assert chatty(SYSTEM).hf.decode(chatty(SYSTEM).prompts([text])[0]).split('<|turn_end|>')[1] == 'system\nBe kind.'
    assert (
        chatty(ANSWER).hf.decode(chatty(ANSWER).prompts([text])[0]).split('<|turn_end|>')[1] == 'user\nBe kind.\n\nhi'
    )


def test_a_response_ends_as_its_prompt_wants(chatty):
    """A completion with the end of a text and a space before it, a turn with the end of a turn and none."""
    tokenizer = chatty(ANSWER)
    end = tokenizer.hf.convert_tokens_to_ids('<|turn_end|>')
    one, other = tokenizer.responses(['so\n\nTL;DR:', TALK], ['my boss ', ' my boss'])
    assert one == [*tokenizer.encode([' my boss'], behind=True)[0], tokenizer.eos]
    assert other == [*tokenizer.encode(['my boss'], behind=True)[0], end]
    assert chatty().responses([TALK], ['my boss']) == [one]
    with pytest.raises(ValueError):
        tokenizer.responses([TALK], [])


@pytest.mark.parametrize(
    'text, turns',
    [
        ('\n\nHuman: what?\n\nAssistant:\n', [('user', 'what?')]),
        ('S\n\nHuman: a\n\nHuman: b\n\nAssistant:', [('system', 'S'), ('user', 'a\n\nb')]),
        ('\n\nHuman: a\n\nAssistant: b', None),  # nobody is asked
        ('\n\nAssistant: a\n\nHuman: b\n\nAssistant:', None),  # the user does not begin
        ('a post\n\nTL;DR:', None),
        ('\n\nAssistant:', None),
        ('', None),
    ],
)
def test_a_dialogue_is_told_by_its_text(text, turns):
    assert chat.turns(text) == turns


# Checkpoints as strangers write them


def edited(folder, name, **fields):
    """Other fields in one of a tokenizer's files."""
    path = folder / name
    raw = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    path.write_text(json.dumps(raw | fields), encoding='utf-8')


@pytest.mark.parametrize(
    'mapped', [{'AutoTokenizer': ['mine.Mine', None]}, {'AutoTokenizer': [None, 'mine.Mine']}, ['mine.Mine']]
)
@pytest.mark.parametrize('kind', ['Mine', 'LlamaTokenizerFast', 'PreTrainedTokenizerFast', None])
def test_code_of_a_checkpoint_is_neither_run_nor_asked_for(chatty, tmp_path, monkeypatch, mapped, kind):
    chatty().hf.save_pretrained(tmp_path)
    edited(tmp_path, 'tokenizer_config.json', tokenizer_class=kind, auto_map=mapped)
    edited(
        tmp_path,
        'config.json',
        model_type='mine',
        auto_map={'AutoConfig': 'mine.Config', 'AutoModelForCausalLM': 'mine.M'},
    )
    ran = tmp_path / 'ran'
    (tmp_path / 'mine.py').write_text(f"open({str(ran)!r}, 'w')\nMine = Config = M = None\n", encoding='utf-8')
    monkeypatch.setattr('builtins.input', lambda *_: pytest.fail('a question on the terminal'))
    with pytest.raises(Mistake, match=rf'^{tmp_path}: .*\(mine\.Mine\).* auto_map .*tokenizer_config\.json'):
        Tokenizer.load(tmp_path)
    edited(tmp_path, 'tokenizer_config.json', auto_map={'AutoProcessor': 'mine.Mine'})
    assert Tokenizer.load(tmp_path).encode(['my boss']) == chatty().encode(['my boss'])
    assert not ran.exists()


@pytest.mark.parametrize('file', ['tokenizer_config.json', 'special_tokens_map.json', None])
def test_a_tokenizer_without_a_class_is_what_its_file_says(chatty, tmp_path, file):
    chatty().hf.save_pretrained(tmp_path)
    (tmp_path / 'tokenizer_config.json').unlink()
    if file:
        edited(tmp_path, file, eos_token='<eos>')
    else:
        edited(tmp_path, 'generation_config.json', eos_token_id=2)
    (tmp_path / 'chat_template.jinja').write_text(ENDS, encoding='utf-8')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos == 2 and tokenizer.turn == ('<user> ', '<|turn_end|><bot>')


BYTES = tokenizers.pre_tokenizers.ByteLevel.alphabet()


@pytest.fixture(scope='module')
def bytewise():
    """A tokenizer of bytes, as most of today's are."""
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    special = ['<|end|>', '<|begin|>', '<unk>', '<pad>']
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=BYTES, special_tokens=special, show_progress=False
    )
    words.train_from_iterator(['hello world, you are here again and again'] * 20, trainer)
    return words


def saved(words, folder, **named):
    words.save(str(folder / 'tokenizer.json'))
    edited(folder, 'tokenizer_config.json', **{'eos_token': '<|end|>', 'bos_token': '<|begin|>'} | named)
    return folder


@pytest.mark.parametrize(
    'kind',
    ['LlamaTokenizerFast', 'LlamaTokenizer', 'CodeLlamaTokenizer', 'GemmaTokenizer', 'GemmaTokenizerFast', 'GPT2Tokenizer',
     'GPTNeoXTokenizerFast', 'Qwen2Tokenizer', 'PreTrainedTokenizerFast', 'TokenizersBackend', 'NobodysTokenizer'],
)  # fmt: skip
@pytest.mark.parametrize('model', ['llama', 'gemma', 'qwen2', 'phi3', 'mine'])
@pytest.mark.filterwarnings('ignore')  # of other people's code
def test_tokens_are_those_of_the_file_whatever_class_it_names(bytewise, tmp_path, kind, model):
    """transformers makes some tokenizers anew, and leaves out what the file has."""
    folder = saved(bytewise, tmp_path, tokenizer_class=kind)
    edited(folder, 'config.json', model_type=model)
    tokenizer = Tokenizer.load(folder)
    for text in (PROBE, 'hello world again', "  you're\n\n\there 12345"):
        assert tokenizer.encode([text]) == [bytewise.encode(text, add_special_tokens=False).ids]
    assert tokenizer.decode(tokenizer.encode([PROBE])) == [PROBE] and (tokenizer.ends, tokenizer.start) == ((0,), ())


@pytest.mark.parametrize('kind', ['Qwen2Tokenizer', 'GPTNeoXTokenizer', 'GPT2Tokenizer', 'GemmaTokenizer'])
@pytest.mark.parametrize('normalizer', [None, tokenizers.normalizers.NFC(), tokenizers.normalizers.NFKC()])
@pytest.mark.filterwarnings('ignore')  # of other people's code
def test_letters_in_pieces_are_what_the_file_makes_of_them(bytewise, tmp_path, kind, normalizer):
    words = tokenizers.Tokenizer.from_str(bytewise.to_str())
    if normalizer:
        words.normalizer = normalizer
    tokenizer = Tokenizer.load(saved(words, tmp_path, tokenizer_class=kind))
    for text in ('e\u0301', '\ufb01', 'é'):
        assert tokenizer.encode([text]) == [words.encode(text, add_special_tokens=False).ids]


@pytest.fixture
def spaced():
    """A tokenizer as Llama 2's: a space is a letter, and stands before every text."""
    words = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True))
    put = [tokenizers.normalizers.Prepend('▁'), tokenizers.normalizers.Replace(' ', '▁')]
    words.normalizer = tokenizers.normalizers.Sequence(put)
    of = tokenizers.decoders
    words.decoder = of.Sequence([of.Replace('▁', ' '), of.ByteFallback(), of.Fuse(), of.Strip(' ', 1, 0)])
    special = [
        tokenizers.AddedToken(token, normalized=True, special=True) for token in ('<unk>', '<|begin|>', '<|end|>')
    ]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=200, initial_alphabet=sorted(set(PROBE)), special_tokens=special, show_progress=False
    )
    words.train_from_iterator(['hello world, you are here again and again'] * 20, trainer)
    return words


@pytest.mark.parametrize('kind', ['LlamaTokenizerFast', 'LlamaTokenizer', 'GemmaTokenizer', 'PreTrainedTokenizerFast'])
@pytest.mark.filterwarnings('ignore')  # of other people's code
def test_a_space_before_a_text_is_what_the_file_makes_of_it(spaced, tmp_path, kind):
    tokenizer = Tokenizer.load(saved(spaced, tmp_path, tokenizer_class=kind, unk_token='<unk>'))
    for text in ('hello', ' hello world', '  hello', '▁hello', '\n hello '):
        assert tokenizer.encode([text]) == [spaced.encode(text, add_special_tokens=False).ids]


def test_control_tokens_are_no_text_whether_they_are_normalized_or_not(spaced, tmp_path, capsys):
    tokenizer = Tokenizer.load(saved(spaced, tmp_path, unk_token='<unk>'))
    (row,) = tokenizer.encode(['hello again'])
    assert tokenizer.decode([[1, *row, 2]]) == tokenizer.decode([row]) and 'hello again' in tokenizer.decode([row])[0]
    assert tokenizer.ends == (2,) and not tokenizer.allowed(200)[[0, 1]].any()


@pytest.mark.parametrize('named', [{'model_max_length': '512'}, {'eos_token': ''}])
def test_what_is_no_number_and_no_token_is_named(bytewise, tmp_path, named):
    with pytest.raises(Mistake, match=f'{next(iter(named))} = '):
        Tokenizer.load(saved(bytewise, tmp_path, **named))


PROCESSORS = {  # what is put round a text -> what stands before it
    ('<|begin|> $A', '<|end|>'): [1], ('<|end|> $A', '<|end|>'): [0], ('$A <|end|>', '<|end|>'): [],
    ('<|begin|> $A <|end|>', '<|end|>'): [1], ('<|end|> $A <|end|>', '<|end|>'): [0],
    ('<|begin|> <pad> $A', '<|begin|>'): [1, 3],
    ('$A', '<|end|>'): [], ('<|begin|> <|begin|> $A', '<|begin|>'): [1, 1],
}  # fmt: skip


@pytest.mark.parametrize('single, eos', PROCESSORS)
def test_a_text_begins_with_what_stands_before_it(bytewise, tmp_path, single, eos):
    """Not with what stands behind it, and also where it is the token that ends a text."""
    words = tokenizers.Tokenizer.from_str(bytewise.to_str())
    pairs = [(token, words.token_to_id(token)) for token in set(single.split()) - {'$A'}]
    words.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=pairs)
    tokenizer = Tokenizer.load(saved(words, tmp_path, eos_token=eos))
    assert list(tokenizer.start) == PROCESSORS[single, eos]
    (row,) = tokenizer.prompts(['hello world'])
    assert row == [*tokenizer.start, *tokenizer.encode(['hello world'])[0]]


def test_a_file_that_cuts_or_pads_texts_cuts_and_pads_none_of_ours(bytewise, tmp_path):
    words = tokenizers.Tokenizer.from_str(bytewise.to_str())
    words.enable_truncation(4)
    words.enable_padding(length=64)
    tokenizer = Tokenizer.load(saved(words, tmp_path, model_max_length=8))
    assert tokenizer.encode([PROBE]) == [bytewise.encode(PROBE, add_special_tokens=False).ids]


def test_control_tokens_have_rows_in_the_embedding(chatty, tmp_path):
    """Whatever may be written: ends, padding, what begins a text, what the template puts round turns. Others need none."""
    rng, roles = np.random.default_rng(3), ('eos_token', 'bos_token', 'pad_token')
    for case in range(40):
        hf = chatty(str(rng.choice([ENDS, ANSWER, SYSTEM])) if rng.random() < 0.5 else None).hf
        hf.add_tokens([f'<|more{i}|>' for i in range(4)], special_tokens=True)
        for role in roles:
            if rng.random() < 0.5:
                setattr(hf, role, f'<|more{rng.integers(4)}|>')
        folder = tmp_path / str(case)
        hf.save_pretrained(folder)
        end = hf.convert_tokens_to_ids('<|turn_end|>')
        rows = int(rng.integers(end - 1, len(hf) + 2))
        edited(folder, 'config.json', vocab_size=rows, eos_token_id=int(rng.choice([2, end])))
        needed = {
            hf.eos_token_id,
            hf.pad_token_id,
            json.loads((folder / 'config.json').read_text(encoding='utf-8'))['eos_token_id'],
        }
        needed |= {end} if hf.chat_template else set()
        if max(needed) >= rows:
            with pytest.raises(Mistake, match=f'^{folder}: .* {rows} rows .*vocab_size') as error:
                Tokenizer.load(folder)
            assert any(f'token {one},' in str(error.value) for one in needed if one >= rows)
            continue
        tokenizer = Tokenizer.load(folder)
        texts = [TALK, 'so\n\nTL;DR:', 'S' + TALK]
        made = [
            *tokenizer.prompts(texts),
            *tokenizer.responses(texts, ['a', ' b', '']),
            [tokenizer.pad, *tokenizer.ends],
        ]
        assert max(map(max, made)) < rows and tokenizer.eos in tokenizer.ends
        assert not tokenizer.allowed(rows)[len(hf) :].any()


def test_a_text_whose_tokens_have_no_row_is_an_error(chatty, tmp_path):
    hf = chatty().hf
    hf.save_pretrained(tmp_path)
    space = hf.convert_tokens_to_ids('    ')  # an added token of white space, which text may hold
    edited(tmp_path, 'config.json', vocab_size=space)
    tokenizer = Tokenizer.load(tmp_path)
    for texts in (['a    b'], ['so', 'a    b', '']):
        for behind in (False, True):
            with pytest.raises(Mistake, match=f"^{tmp_path}: '    ' .*token {space}, .* {space} rows"):
                tokenizer.encode(texts, behind=behind)
    assert tokenizer.encode(['a b', '']) == chatty().encode(['a b', ''])


HOSTILE = {
    'a class': "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    'a class by name': "{{ messages|attr('__class__') }}",
    'globals': "{{ cycler.__init__.__globals__.os.system('true') }}",
    'a format': "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    'an import': "{% import 'os' as os %}{{ os }}",
    'a file': "{% include '/etc/passwd' %}",
    'other messages': '{{ messages.append(1) }}',
    'a long range': '{% for i in range(10**9) %}{% endfor %}',
    'loops in loops': '{% for i in range(9999) %}' * 4 + '{{ i }}' + '{% endfor %}' * 4,
    'loops over text': "{% set t = 'x' * 9999 %}{% for i in t %}{% for j in t %}{{ loop.index }}{% endfor %}{% endfor %}",
    'no end': '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
    'a book': "{{ 'x' * 2000000 }}{% for m in messages %}{{ m.content }}{% endfor %}",
    'no such filter': '{{ messages | nothing }}',
}


@pytest.mark.parametrize('template', HOSTILE.values(), ids=HOSTILE.keys())
def test_a_template_reaches_nothing_and_ends(chatty, template):
    begun, traced = time.process_time(), sys.gettrace()
    with pytest.raises(Mistake, match='chat template'):
        assert chatty(template + ENDS * ('class by' in template)).turn
    assert time.process_time() - begun < 20 and sys.gettrace() is traced


@pytest.mark.parametrize('filter', ['e', 'escape', 'tojson', 'upper', 'title', "replace('<', '')", 'urlencode'])
def test_a_template_that_writes_messages_otherwise_is_named(chatty, filter):
    """What is said goes to the model as it is: through such a template it would not."""
    with pytest.raises(Mistake, match='chat template .* 0 times'):
        assert chatty(ENDS.replace('m.content', f'm.content | {filter}')).turn


@pytest.mark.parametrize(
    'ends, open',
    [
        ('<think>', True),
        ('<think>\n', True),
        ('<thinking>\n\n', True),
        ('<think>\n\n</think>\n\n', False),
        ('', False),
        ('<bot>', False),
    ],
)
def test_an_answer_within_a_thought_is_said(chatty, tmp_path, capsys, ends, open):
    chatty(ENDS.replace('<bot>', ends)).hf.save_pretrained(tmp_path)
    for _ in range(2):
        assert Tokenizer.load(tmp_path).turn == ('<user> ', f'<|turn_end|>{ends}')
    assert re.fullmatch(f'{tmp_path}: .* {ends.strip()} .*\n' if open else '', capsys.readouterr().out)  # once
