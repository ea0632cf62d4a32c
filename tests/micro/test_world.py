"""Laws of the micro world: its splits, its oracle, its raters and its tokenizer."""

import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif_jax.data.records import Prompt
from rlaif_jax.micro import lexicon, oracle, raters, tasks, tokenizer, world
from rlaif_jax.micro.lexicon import SLOTS

N = 1000


@pytest.fixture(scope='module')
def prompts():
    return [world.prompt('train', index) for index in range(N)]


@pytest.fixture(scope='module')
def candidates(prompts):
    rng = random.Random(0)
    return [world.candidate(prompt.facts, rng) for prompt in prompts]


@pytest.fixture(scope='module')
def tokens():
    built = tokenizer.build()
    return lambda text: built(text, add_special_tokens=False, split_special_tokens=True)['input_ids']


def qualities(prompt, text):
    return oracle.read(prompt.facts, text).quality


# ---------------------------------------------------------------------------------------------------- lexicon


def test_every_phrase_says_its_own_value_and_nothing_else():
    facts = world.facts('train', 0)
    for table in (lexicon.summary_phrases(), lexicon.post_phrases()):
        for slot, values in table.items():
            for value, phrases in values.items():
                for phrase in phrases:
                    reading = oracle.read(facts, phrase)
                    assert reading.stated == {slot: (value,)}, phrase
                    assert reading.junk == reading.filler == reading.repetition == 0, phrase


def test_a_phrase_belongs_to_one_value_only():
    phrases = [phrase for values in lexicon.summary_phrases().values() for group in values.values() for phrase in group]
    assert len(set(phrases)) == len(phrases)


@pytest.mark.parametrize('table', [lexicon.PROBLEMS, lexicon.CAUSES], ids=['problems', 'causes'])
def test_posts_and_summaries_share_no_content_word(table):
    for value, (in_summary, in_post) in table.items():
        shared = set(' '.join(in_summary).split()) & set(' '.join(in_post).split()) - lexicon.GLUE
        assert not shared, (value, shared)


# ---------------------------------------------------------------------------------------------------- posts


def test_no_sheet_and_no_post_is_in_two_splits():
    sheets, bodies = {}, {}
    for split in world.SPLITS:
        for index in range(N):
            sheet = world.facts(split, index)
            assert world.split_of(sheet) == split
            assert sheets.setdefault(tuple(sheet[slot] for slot in SLOTS), split) == split
            assert bodies.setdefault(' '.join(world.sentences(sheet)), split) == split


def test_bad_coordinates_are_refused():
    with pytest.raises(ValueError, match="'dev'.* train, validation, test"):
        world.facts('dev', 0)
    with pytest.raises(ValueError, match='index .* -1'):
        world.facts('train', -1)


def test_the_world_is_the_same_in_every_process():
    code = (
        'from rlaif_jax.micro import raters; import dataclasses, json;'
        'print(json.dumps([dataclasses.asdict(raters.pair("test", i)) for i in range(20)]))'
    )
    here = json.dumps([dataclasses.asdict(raters.pair('test', index)) for index in range(20)])
    for seed in ('1', '2'):
        there = subprocess.run(
            [sys.executable, '-c', code],
            env=os.environ | {'PYTHONHASHSEED': seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
            encoding='utf-8',
        )
        assert there.stdout.strip() == here


def test_a_post_states_its_facts_its_distractors_and_nothing_else(prompts):
    for prompt in prompts:
        facts = prompt.facts
        title = prompt.text.split('TITLE: ')[1].split('\n')[0]
        reading = oracle.read(facts, ' '.join(world.sentences(facts)))
        assert reading.junk == 0
        for slot in SLOTS:
            expected = {facts[slot]} | ({facts['distractors'][slot]} if slot in facts['distractors'] else set())
            assert set(reading.stated[slot]) == expected
        assert oracle.read(facts, title).verdicts['relation'] in ('right', 'missing')
        assert prompt.text.startswith('SUBREDDIT: r/') and prompt.text.endswith('\n\nTL;DR:')


def test_posts_are_short(prompts):
    n_words = [sum(len(sentence.split()) for sentence in world.sentences(prompt.facts)) for prompt in prompts]
    assert 58 <= statistics.mean(n_words) <= 70 and max(n_words) <= 95


# ---------------------------------------------------------------------------------------------------- quality


def test_a_full_summary_is_perfect(prompts):
    rng = random.Random(0)
    for prompt in prompts:
        reading = oracle.read(prompt.facts, world.summary(prompt.facts, rng))
        assert reading.quality >= 0.95 and set(reading.verdicts.values()) == {'right'}


@pytest.mark.parametrize('slot', SLOTS)
def test_a_missing_fact_costs_and_a_wrong_one_costs_more(prompts, slot):
    for prompt in prompts[:100]:
        facts = prompt.facts
        other = next(value for value in lexicon.summary_phrases()[slot] if value != facts[slot])
        without = {key: facts[key] for key in SLOTS if key != slot}
        whole, less, wrong = (
            qualities(prompt, world.summary(stated, random.Random(0)))
            for stated in (facts, without, {**without, slot: other})
        )
        assert whole - 0.05 > less > wrong + 0.05
        both = world.summary(facts, random.Random(0)) + ' ' + lexicon.summary_phrases()[slot][other][0] + '.'
        assert oracle.read(facts, both).verdicts[slot] == 'wrong' and qualities(prompt, both) < less


def test_bad_writing_costs(prompts):
    for prompt in prompts[:100]:
        text = world.summary(prompt.facts, random.Random(0))
        best, words, clauses = qualities(prompt, text), text.split(), text.split('. ')
        worse = {
            'restated': text + ' ' + clauses[0] + '.',
            'stuttered': ' '.join([words[0], *words[:1] * 5, *words[1:]]),
            'junk': text + ' casino rifle plates',
            'filler': text + ' thanks for reading.',
            'shuffled': clauses[-1] + ' ' + '. '.join(clauses[:-1]) + '.',
            'no end': text.rstrip('.?'),
            'dots': text.replace('.', '...'),
            'long': text + ' a the of to and' * 4 + '.',
            'second post': text + ' ' + ' '.join(world.sentences(prompt.facts)),
        }
        for name, spoiled in worse.items():
            assert qualities(prompt, spoiled) < best - 0.03, (name, spoiled)
        endless = text + ' trouble with' * 200
        assert -1 <= qualities(prompt, endless) < -0.9


def test_the_oracle_reads_any_text(prompts):
    rng = random.Random(0)
    for prompt in prompts[:300]:
        text = rng.randbytes(rng.randrange(120)).decode(rng.choice(['latin-1', 'utf-8']), errors='replace')
        reading = oracle.read(prompt.facts, text)
        assert -1 <= reading.quality <= 0.3 and 1 <= oracle.rating(reading.quality) <= 10
    assert -0.1 <= qualities(prompts[0], '') <= 0 and qualities(prompts[0], ' \n') == qualities(prompts[0], '')


def test_case_and_a_leading_space_do_not_matter(prompts, candidates):
    for prompt, text in zip(prompts, candidates, strict=True):
        assert oracle.read(prompt.facts, text) == oracle.read(prompt.facts, ' ' + text.upper())


def test_references_are_mediocre(prompts):
    found = tasks.quality(prompts, [prompt.reference for prompt in prompts])
    assert 0.42 <= statistics.mean(found) <= 0.52


def test_candidates_are_of_every_quality(prompts, candidates):
    found = tasks.quality(prompts, candidates)
    assert statistics.pstdev(found) >= 0.25
    assert sum(q > 0.85 for q in found) >= 0.1 * N and sum(q < 0.1 for q in found) >= 0.1 * N
    assert {oracle.rating(q) for q in found} == set(range(1, 11))


# ---------------------------------------------------------------------------------------------------- raters


def test_a_swap_gives_the_complementary_vote_and_batches_do_not_matter():
    pairs = [raters.pair('validation', index) for index in range(300)]
    prompts, firsts, seconds = zip(*((pair.prompt, pair.first, pair.second) for pair in pairs), strict=True)
    votes = raters.votes(prompts, firsts, seconds, seed=0)
    assert [1 - vote for vote in votes] == raters.votes(prompts, seconds, firsts, seed=0)
    assert votes[::-1] == raters.votes(prompts[::-1], firsts[::-1], seconds[::-1], seed=0)
    assert votes == [pair.preference for pair in pairs] and votes != raters.votes(prompts, firsts, seconds, seed=1)
    assert raters.confident(prompts, firsts, seconds) == raters.confident(prompts, seconds, firsts)
    assert all(first != second for first, second in zip(firsts, seconds, strict=True))


def test_votes_are_as_frequent_as_their_probability():
    pairs = [raters.pair('train', index) for index in range(N)]
    arguments = tuple(zip(*((pair.prompt, pair.first, pair.second) for pair in pairs), strict=True))
    ps = raters.probability(*arguments)
    first, second = (raters.votes(*arguments, seed=seed) for seed in (0, 1))
    for low, high in ((0, 0.3), (0.3, 0.7), (0.7, 1.01)):
        chosen = [
            (p, vote)
            for p, votes in ((ps, first), (ps, second))
            for p, vote in zip(p, votes, strict=True)
            if low <= p < high
        ]
        mean_p, mean_vote = (statistics.mean(column) for column in zip(*chosen, strict=True))
        assert abs(mean_p - mean_vote) < 4 * 0.5 / len(chosen) ** 0.5
    agreement = statistics.mean(a == b for a, b in zip(first, second, strict=True))
    assert abs(agreement - statistics.mean(p * p + (1 - p) ** 2 for p in ps)) < 0.05
    assert 0.7 <= agreement <= 0.85


def test_raters_want_facts():
    with pytest.raises(ValueError, match='prompt x .*facts'):
        tasks.quality([Prompt('hello', 'x')], ['hi'])


# ---------------------------------------------------------------------------------------------------- tokenizer

TEXTS = [
    '',
    ' ',
    '  two  spaces ',
    '\ttab\n\nline\r\n',
    'emoji 🙂👩‍👩‍👧',
    'a ▁ b▁',
    '<eos>',
    'x<eos> <pad><0x41><0xF0>',
    'é ü 漢字 \u2028',
    '\x00\x01\x7f',
    " don't , stop .",
    'SUMMARY: 10 100 1',
    ' my boss lies to me.',
]


@pytest.fixture(scope='module', params=['built', 'loaded'])
def either(request, tmp_path_factory):
    built = tokenizer.build()
    if request.param == 'built':
        return built
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp('tokenizer')
    built.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize('text', TEXTS, ids=range(len(TEXTS)))
def test_any_text_comes_back_and_holds_no_control_token(either, text):
    encoded = either(text, add_special_tokens=False, split_special_tokens=True)['input_ids']
    assert either.decode(encoded) == text
    assert not set(encoded) & set(range(4))


def test_the_tokenizer_has_what_its_users_count_on(either):
    assert (either.pad_token_id, either.bos_token_id, either.eos_token_id, either.unk_token_id) == (0, 1, 2, 3)
    assert len(either) <= tokenizer.MAX_VOCABULARY and either.model_max_length == tokenizer.MAX_LENGTH == 2048
    assert either('my boss')['input_ids'] == either('my boss', add_special_tokens=False)['input_ids']


def test_random_text_comes_back(either):
    rng = random.Random(0)
    for _ in range(200):
        text = rng.randbytes(rng.randrange(60)).decode('utf-8', errors='ignore') + ' my boss' * rng.randrange(2)
        text += ''.join(chr(rng.choice([rng.randrange(1, 0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(9))
        assert either.decode(either(text, add_special_tokens=False, split_special_tokens=True)['input_ids']) == text


def test_words_and_template_pieces_are_one_token_each(tokens):
    singles = [
        *(' ' + word for word in lexicon.words()),
        *tokenizer.TEMPLATE_PIECES,
        *tokenizer.template_words(),
        *lexicon.SUBREDDITS,
        *(str(n) for n in range(1, 11)),
        *(f' {n}' for n in range(1, 11)),
    ]
    assert [text for text in singles if len(tokens(text)) != 1] == []


def test_a_response_is_cut_the_same_alone_and_after_its_prompt(prompts, candidates, tokens):
    for prompt, text in zip(prompts[:300], candidates, strict=False):
        assert tokens(prompt.text) + tokens(' ' + text) == tokens(prompt.text + ' ' + text)


def test_texts_are_short_in_tokens(prompts, tokens):
    posts = [len(tokens(prompt.text)) for prompt in prompts]
    rng = random.Random(0)
    full = [len(tokens(' ' + world.summary(prompt.facts, rng))) for prompt in prompts]
    assert 75 <= statistics.mean(posts) <= 105 and max(posts) <= 125
    assert 19 <= statistics.mean(full) <= 24 and max(full) <= 27


@pytest.mark.parametrize('task', tasks.TASKS)
def test_what_is_stated_wrong_is_marked_where_it_stands(task):
    rng = random.Random(0)
    for prompt in (tasks.prompt(task, 'test', i) for i in range(150)):
        text = tasks.candidate(prompt, rng)
        (found,) = tasks.wrong([prompt], [text])
        verdicts = tasks.read(prompt, text).verdicts
        if task == 'summarization':
            assert {what for _, _, what in found} == {slot for slot, said in verdicts.items() if said == 'wrong'}
        if task == 'helpful':
            assert {slot for slot, said in verdicts.items() if said == 'wrong'} <= {what for _, _, what in found}
        for start, end, _ in found:
            assert 0 <= start < end <= len(text) and text[start:end] == text[start:end].strip()
        assert not (task == 'harmless' and found)
    shouted = tasks.candidate(prompt, rng).upper() + ' İ'
    assert len(tasks.wrong([prompt], [shouted])[0]) == len(tasks.wrong([prompt], [shouted.lower()])[0])
