"""Laws of the statistics of texts: what is copied is found, what is said again is counted, an empty text breaks nothing;
and the clean-up takes no words.
"""

import re
import warnings

import numpy as np
import pytest

from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation.texts import strip_trailing, text_statistics

RNG = np.random.default_rng(0)


def words(n, alphabet):
    return RNG.choice(list(alphabet), n).tolist()


def test_a_copy_is_all_copied_and_strange_words_are_none():
    prompt = 'My brother moved in two weeks ago, and he never pays. What should I do?'
    same = text_statistics([prompt], ['My brother moved in -- two weeks ago; AND he never pays'])
    assert (same['copied'], same['longest_copy']) == (1, same['words'])
    other = text_statistics([prompt], ['the cat sat there for hours'])
    assert (other['copied'], other['longest_copy']) == (0, 0)
    # Four words are a phrase that anybody might use, five are a copy.
    assert text_statistics([prompt], ['well, he never pays what I asked'])['copied'] == 0
    assert text_statistics([prompt], ['well, he never pays what I asked'], copied=4)['copied'] == pytest.approx(4 / 7)


def test_copied_spans_are_those_that_a_search_over_all_spans_finds():
    for _ in range(200):
        prompt, response = words(RNG.integers(0, 30), 'abc'), words(RNG.integers(1, 12), 'abcd')
        found = text_statistics([' '.join(prompt)], [' '.join(response)], copied=3)
        inside, longest = set(), 0
        for start in range(len(response)):
            for end in range(start + 1, len(response) + 1):
                span = response[start:end]
                if any(prompt[i : i + len(span)] == span for i in range(len(prompt))):
                    longest = max(longest, len(span))
                    inside |= set(range(start, end)) if len(span) >= 3 else set()
        assert (found['copied'], found['longest_copy']) == (pytest.approx(len(inside) / len(response)), longest)


def test_repetition_is_0_without_it_and_grows_towards_1():
    said = ' '.join(f'word{i}' for i in range(10))
    shares = [text_statistics([''], [' '.join([said] * times)])['repetition'] for times in (1, 2, 4, 40)]
    assert shares[0] == 0 and (np.diff(shares) > 0).all() and shares[-1] > 0.95
    assert text_statistics([''], ['yes ' * 5], repeated=2)['repetition'] == 0.75  # four pairs, one of them new


def test_figures_are_means_over_responses_and_empty_ones_have_no_share():
    prompts, texts = ['a b c d e f', 'x'], ['a b c d e f.', 'Not ended, not copied']
    both = text_statistics(prompts, texts)
    alone = [text_statistics([prompt], [text]) for prompt, text in zip(prompts, texts)]
    assert both == {name: pytest.approx(np.mean([one[name] for one in alone])) for name in both}
    with_empty = text_statistics([*prompts, 'y', 'z'], [*texts, '', '  ?!'])
    for name in ('repetition', 'copied'):
        assert with_empty[name] == both[name]
    for name in ('words', 'longest_copy'):
        assert with_empty[name] == both[name] / 2
    assert (with_empty['empty'], both['empty'], both['ended'], with_empty['ended']) == (0.5, 0, 0.5, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        nothing, hollow = text_statistics([], []), text_statistics([''], [''])
    assert nothing.keys() == hollow.keys() == both.keys() and all(np.isnan(value) for value in nothing.values())
    assert np.isnan(hollow['copied']) and hollow['words'] == 0


def test_a_record_is_read_as_its_text_and_lengths_must_agree():
    text = 'one two three four five six'
    assert text_statistics([Prompt(text, 'id')], [text]) == text_statistics([text], [text])
    with pytest.raises(ValueError, match='shorter'):
        text_statistics(['a', 'b'], ['c'])


@pytest.mark.parametrize('text', ['so.', 'so!', 'is it so?', 'so…', 'he said "so."', '(so.)', 'so. \n'])
def test_a_sentence_that_ends_has_ended(text):
    assert text_statistics([''], [text])['ended'] == 1
    assert text_statistics([''], [text + ' and'])['ended'] == 0


@pytest.mark.parametrize(
    ('text', 'cleaned'),
    [
        ('so.', 'so.'),
        ('so', 'so'),
        (' so . . .', ' so.'),
        ('so.....\n\n', 'so.'),
        ('so  \u00a0', 'so'),
        ('so? ..', 'so?'),
        ('he said "so." .', 'he said "so."'),
        ('3.5 of 10', '3.5 of 10'),
        ('. . .', ''),
        ('', ''),
    ],
)
def test_the_clean_up_strips_what_is_superfluous(text, cleaned):
    assert strip_trailing([text]) == ([cleaned], int(text != cleaned))


def test_the_clean_up_takes_no_words_and_is_done_once():
    texts = [''.join(words(RNG.integers(0, 9), 'ab. ?\n"')) for _ in range(500)]
    cleaned, changed = strip_trailing(texts)
    assert changed == sum(map(str.__ne__, texts, cleaned)) > 100
    assert strip_trailing(cleaned) == (cleaned, 0)
    for text, clean in zip(texts, cleaned):
        assert re.findall(r'\w', clean) == re.findall(r'\w', text) and len(clean) <= len(text)
        # No longer than the text, and the same up to its end: but for the full stop, a beginning of it.
        assert text.startswith(clean.removesuffix('.'))
