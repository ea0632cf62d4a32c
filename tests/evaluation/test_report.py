"""Laws of what is said of labelers and of policies: what is written is what was found, words follow intervals, tables fit
on a screen, and nothing breaks where a labeler or a judge could not say.
"""

import csv
import functools
import math
import re
from dataclasses import replace
from io import StringIO
from itertools import combinations

import numpy as np
import pytest
from rich.console import Console
from test_alignment import labels

from rlaif_jax import log
from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.alignment import agreement, position_bias, report
from rlaif_jax.evaluation.harmless import compare_harmless
from rlaif_jax.evaluation.length import AtLength
from rlaif_jax.evaluation.report import (
    DOUBTS,
    harmless_table,
    labeler_row,
    labeler_verdict,
    labelers_csv,
    labelers_table,
    matrix_table,
    measures_table,
    policies_csv,
    policies_table,
    verdict,
)
from rlaif_jax.evaluation.statistics import Interval
from rlaif_jax.evaluation.versus import both_orders, compare, complement, from_quality

RNG = np.random.default_rng(0)
PROMPTS = [f'prompt {i}' for i in range(120)]
TEXTS = {
    name: ['x' * max(0, int(length)) for length in RNG.normal(mean, 20, len(PROMPTS))]
    for name, mean in {'SFT': 60, 'RLAIF': 75, 'RLHF $x_1$': 76}.items()
}


def longest(prompts, responses):
    """A quality: length with some luck in it, and a response in ten that no one can judge."""
    luck_B = [hash_of(prompt + response) for prompt, response in zip(prompts, responses)]
    return np.array([len(r) + 60 * u if u > 0.1 else math.nan for r, u in zip(responses, luck_B)])


def hash_of(text):
    return sum(i * ord(c) for i, c in enumerate(text, 1)) % 97 / 97


def mute(prompts, firsts, seconds):
    return np.full(len(prompts), np.nan)


def comparison(raw=(0.6, 0.55, 0.65), even=(0.6, 0.55, 0.65), n=400, names=('RLAIF', 'SFT')):
    return replace(
        compare(PROMPTS, TEXTS['SFT'], TEXTS['RLAIF'], from_quality(longest), names=names),
        raw=Interval(*raw, n),
        length_adjusted=AtLength(*even, n),
        n=n,
    )


SILENT = compare(PROMPTS, TEXTS['SFT'], TEXTS['RLAIF'], mute, names=('RLAIF', 'SFT'))


@pytest.fixture
def printed(monkeypatch):
    """What a function prints on a screen of some width."""

    def on_screen(show, *args, width=80, **more):
        out = StringIO()
        monkeypatch.setattr(log, 'console', functools.cache(lambda: Console(file=out, width=width)))
        show(*args, **more)
        return out.getvalue()

    return on_screen


# Labelers


def test_costs_are_per_pair_and_what_was_not_given_is_not_known():
    one = report('a', [0.4, 0.6], [1, 0], tokens=500, seconds=3.0, calls=4, cache_hits=1, mass_B=[0.5, np.nan])
    assert [labeler_row(one)[column] for column in ('tokens', 'seconds', 'cached %', 'mass')] == [
        '250.0', '1.5', '25.0', '0.500',
    ]  # fmt: skip
    known = {column for column, cell in labeler_row(report('b', [0.4, 0.6], [1, 0])).items() if cell != '–'}
    assert known == {'labeler', 'agreement %', 'n', 'ECE', 'unscorable %'}


def test_a_gain_is_shown_with_an_interval_or_not_at_all():
    def shown(first_B, second_B, human_B):
        first_B, second_B = np.array(first_B), np.array(second_B)
        both = {'first_shown_B': first_B, 'second_shown_B': second_B}
        return labeler_row(report('a', (first_B + second_B) / 2, human_B, **both))['gain']

    assert shown([0.9], [0.4], [1]) == '–'  # one pair
    assert shown([0.9, 0.9], [0.4, 0.4], [1, 1]) == '–'  # two that are alike
    assert re.fullmatch(r'\+25\.0 ± \d+\.\d', shown([0.9, 0.9], [0.4, 0.8], [1, 1]))
    many = labels()
    one = report('a', **many)
    assert labeler_row(one)['gain'] == f'{100 * one.gain.value:+.1f} ± {100 * (one.gain.high - one.gain.value):.1f}'


def test_a_table_of_labelers_is_readable_on_80_columns(printed):
    reports = [
        report(name, **labels(seed=i)) for i, name in enumerate(['detailed_cot_0shot_l', 'base_0shot [b]', 'x' * 60])
    ]
    reports.append(report('bare', [0.9, np.nan], [1, 0]))
    text = printed(labelers_table, reports, published={'detailed_cot_0shot_l': 78.0}, simulated=True)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and '…' not in text
    assert sum('SIMULATED' in line for line in lines) == 3
    rows = [line for line in lines if line.strip().startswith('detailed_cot_0shot_l ')]
    assert len(rows) == 3  # a name of 20 characters is whole in each table
    row = rows[0]
    assert ' 78.0 ' in row and labeler_row(reports[0])['agreement %'] in row
    assert 'base_0shot [b]' in text
    told = ' '.join(text.split())
    assert 'gain: ' in told and 'cached:' not in told
    assert not any('seconds' in line for line in lines)  # known of no report
    text = printed(labelers_table, reports[-1:], width=100)
    assert 'SIMULATED' not in text and 'position' not in text


def test_a_csv_of_labelers_reads_back_to_the_same_numbers(tmp_path):
    reports = [report('a, "b"', **labels(), tokens=12.5), report('bare', [np.nan], [1])]
    labelers_csv(tmp_path / 'new' / 'a.csv', reports, published={'bare': 62.7}, simulated=True)
    with open(tmp_path / 'new' / 'a.csv', newline='', encoding='utf-8') as file:
        full, bare = csv.DictReader(file)
    one = reports[0]
    assert full['name'] == 'a, "b"' and full['simulated'] == 'True' and full['position_which'] == 'first'
    expected = {
        'agreement': one.agreement.value,
        'agreement_low': one.agreement.low,
        'agreement_undecided': one.agreement.undecided,
        'gain_high': one.gain.high,
        'position_same_n': one.position.same.n,
        'calibration_ece': one.calibration.ece,
        'human_longer': one.human_longer.value,
        'tokens': 12.5,
    }
    assert {column: float(full[column]) for column in expected} == expected
    assert (bare['agreement'], bare['gain'], bare['tokens'], bare['paper_percent']) == ('nan', '', '', '62.7')
    assert full['paper_percent'] == '' and full.keys() == bare.keys()


# Policies


CASES = [  # raw, at equal length -> what is said, and of whom
    ((0.62, 0.59, 0.65), (0.57, 0.53, 0.61), 'RLAIF .*preferred.* SFT ', r'also .*57\.0 % \[53\.0, 61\.0\]'),
    ((0.62, 0.59, 0.65), (0.52, 0.48, 0.56), 'RLAIF .*preferred.* SFT ', r'length no difference.*52\.0 %'),
    ((0.62, 0.59, 0.65), (0.4, 0.35, 0.45), 'RLAIF .*preferred.* SFT ', r'length SFT .*60\.0 %'),
    ((0.38, 0.35, 0.41), (0.43, 0.39, 0.47), 'SFT .*preferred.* RLAIF ', r'also .*57\.0 % \[53\.0, 61\.0\]'),
    ((0.51, 0.49, 0.53), (0.5, 0.45, 0.55), 'no difference.* RLAIF .*SFT ', r'nor .*50\.0'),
    ((0.51, 0.5, 0.52), (0.57, 0.53, 0.61), 'no difference.* RLAIF .*SFT ', r'length RLAIF .*57\.0 %'),
    ((0.51, 0.49, 0.53), (0.43, 0.39, 0.47), 'no difference.* SFT .*RLAIF ', r'length SFT .*57\.0'),
]


@pytest.mark.parametrize(('raw', 'even', 'first', 'second'), CASES)
def test_words_follow_the_interval(raw, even, first, second):
    one = comparison(raw, even)
    said = verdict({'raters': one})
    assert re.match(first, said) and re.search(second, said) and 'SIMULATED' not in said
    assert verdict({'raters': one}, simulated=True).startswith('SIMULATED')
    back = verdict({'raters': complement(one)})  # the same verdict, whichever policy was called A
    if said.startswith('no difference') and 'nor' in said:
        assert re.match('no difference.* SFT .*RLAIF ', back)
    else:
        assert back == said


def test_other_judges_agree_or_not():
    yes, no, open_ = comparison(), comparison((0.4, 0.35, 0.45)), comparison((0.5, 0.45, 0.55))
    agrees = r'oracle .*agree.*60\.0 % \[55\.0, 65\.0\]'
    assert re.search(agrees, verdict({'raters': yes, 'oracle': yes}))
    assert re.search(agrees, verdict({'raters': no, 'oracle': no}))  # of SFT, which comes first
    assert re.search(r'oracle: SFT .*60\.0 %', verdict({'raters': yes, 'oracle': no}))
    assert re.search(r'oracle: RLAIF .*60\.0 %', verdict({'raters': open_, 'oracle': yes}))
    assert re.search(r'oracle: no difference.*50\.0 %', verdict({'raters': yes, 'oracle': open_}))
    assert re.search('oracle [^%]*not[^%]*$', verdict({'raters': yes, 'oracle': SILENT}))
    assert re.match('nothing .*raters .*120 prompts.*oracle: RLAIF ', verdict({'raters': SILENT, 'oracle': yes}))


def test_at_equal_length_is_said_what_both_orders_say_and_how_sure_it_is():
    forth, back = AtLength(0.567, 0.537, 0.597, 400), AtLength(0.488, 0.45, 0.52, 400)
    one = replace(comparison(), length_ratio='plain', length_adjusted=forth, plain_ratio=forth)
    for other, told in ((forth, 'also at equal length (56.7 %'), (back, 'at equal length no difference is shown')):
        two = replace(one, plain_ratio_swapped=other)
        said = [verdict({'raters': each}) for each in (two, complement(two))]
        assert told in said[0] and told in said[1]
        assert all('56.7 % [53.7, 59.7]' in text and ('48.8 %' in text) == (other is back) for text in said)
    for doubt, told in (
        ({'extrapolated': True}, 'also at equal length (60.0 % [55.0, 65.0], an extrapolation)'),
        ({'humps': True}, 'at equal length no difference is shown (60.0 % [humps], resamples gather round two rates)'),
    ):
        one = comparison()
        assert told in verdict({'raters': replace(one, length_adjusted=replace(one.length_adjusted, **doubt))})


@pytest.mark.parametrize('width', [80, 120])
def test_a_table_of_policies_is_readable_on_80_columns(printed, width):
    found = {
        'raters': [comparison(), comparison(names=('same-size RLAIF [b]', 'SFT')), replace(SILENT, name_a='mute')],
        'oracle': [comparison((0.51, 0.46, 0.56))],
    }
    paper = {('RLAIF', 'SFT'): (71, None), ('RLHF', 'SFT'): (73, 61)}
    text = printed(policies_table, found, published=paper, simulated=True, width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width and '…' not in text and 'nan' not in text
    assert (
        text.count('60.0 [55.0, 65.0]') == 5 and '71 / –' in text and '73 / 61' not in text
    )  # beside its own comparison
    assert 'same-size RLAIF [b] vs SFT' in text and 'A : B' in text and 'unscorable' in text
    assert sum(line.startswith('SIMULATED') for line in lines) == {80: 2, 120: 1}[width] + 3  # titles and verdicts
    parts = 'Paper:', 'At equal length:', 'Plain ratio:', 'oracle: no difference'
    assert all(part in text.replace('\n', ' ') for part in parts)
    plain = printed(policies_table, {'judge': [replace(comparison(), unscorable=0)]}, width=width)
    assert not any(word in plain for word in ('SIMULATED', 'unscorable', 'paper', 'Paper', 'plain', '~'))
    one = comparison()
    for doubt, sign, cell in (('extrapolated', '~', '~60.0 [55.0, 65.0]'), ('humps', '[humps]', '60.0 [humps]')):
        doubtful = replace(one, length_adjusted=replace(one.length_adjusted, **{doubt: True}))
        text = printed(policies_table, {'judge': [doubtful]}, width=width)
        assert cell in text and f'{sign}: {DOUBTS[sign]}' in ' '.join(text.split())
    doubtful = replace(one, plain_ratio=replace(one.plain_ratio, extrapolated=True))
    text = printed(policies_table, {'judge': [doubtful]}, published={('RLAIF', 'SFT'): (71, 59)}, width=width)
    assert max(map(len, text.splitlines())) <= width and f'~: {DOUBTS["~"]}' in ' '.join(text.split())
    assert '~' not in printed(policies_table, {'judge': [doubtful]}, width=width)  # where it does not stand


def test_a_csv_of_policies_reads_back_to_the_same_numbers(tmp_path):
    found = {'raters': [comparison(names=('a, "b"', 'SFT')), SILENT], 'oracle': [SILENT]}
    policies_csv(tmp_path / 'new' / 'a.csv', found, published={('RLAIF', 'SFT'): (71, 59)}, simulated=True)
    with open(tmp_path / 'new' / 'a.csv', newline='', encoding='utf-8') as file:
        full, silent, oracle = csv.DictReader(file)
    one = found['raters'][0]
    assert (full['name_a'], full['judge'], full['simulated'], full['paper_percent']) == ('a, "b"', 'raters', 'True', '')
    expected = {'mean_length_a': one.mean_length_a, 'p_value': one.p_value, 'n': one.n, 'ties': one.ties}
    for column in ('raw', 'length_adjusted'):
        rate = getattr(one, column)
        expected |= {column: rate.value, f'{column}_low': rate.low, f'{column}_high': rate.high, f'{column}_n': rate.n}
    assert {column: float(full[column]) for column in expected} == expected
    assert (silent['raw'], silent['raw_high'], silent['unscorable'], silent['judge']) == ('nan', '1.0', '120', 'raters')
    assert oracle['judge'] == 'oracle' and {row['paper_equal_length_percent'] for row in (silent, oracle)} == {'59'}


def test_a_matrix_is_printed_whole_from_either_order(printed):
    half = {
        (a, b): compare(PROMPTS, TEXTS[a], TEXTS[b], from_quality(longest), names=(a, b))
        for a, b in combinations(TEXTS, 2)
    }
    found = both_orders(half)
    text = printed(matrix_table, found, simulated=True)
    assert text == printed(matrix_table, half, simulated=True)
    assert 'SIMULATED' in text and max(map(len, text.splitlines())) <= 80
    for (a, _), one in found.items():
        row = next(line for line in text.splitlines() if line.strip().startswith(a))
        assert f'{100 * one.raw.value:.1f}{"" if 0.5 in one.raw else "*"}' in row
    silent = {('RLAIF', 'SFT'): SILENT}
    assert '–' in printed(matrix_table, silent) and 'nan' not in printed(matrix_table, silent)


def test_other_tables_name_what_is_in_them(printed):
    rates = compare_harmless({'RLAIF': (['a'] * 4, [1, 1, 0, np.nan]), 'SFT': (['bb'] * 4, np.ones(4))})
    text = printed(harmless_table, rates, title='harm', width=120, published={'SFT': (64, 65)})
    assert str(rates[0].raw) in text and '64 / 65' in text and text.count('–') == 1
    figures = {'SFT': {'ended': Interval(0.256, 0.1, 0.4, 9)}, 'RLAIF': {'words': 3, 'ended': math.nan}}
    lines = printed(measures_table, 'texts', figures, {'ended': 'with a full stop', 'empty': 'no words'}).splitlines()
    assert lines[1].split() == ['policy', 'ended', 'words']
    assert [line.split() for line in lines[3:5]] == [['SFT', '0.26', '–'], ['RLAIF', '–', '3.00']]
    assert 'ended: with a full stop.' in lines and 'no words' not in str(lines)


@pytest.mark.parametrize(
    ('call', 'told'),
    [
        (lambda path: labelers_table([]), 'no reports'),
        (
            lambda path: labelers_table([report('a', [0.5], [1])], published={'a': 0.78}),
            r"published\['a'\].*78\.0.* 0\.78",
        ),
        (lambda path: labelers_csv(path / 'a.csv', []), 'no reports'),
        (lambda path: policies_table({}), 'no comparisons'),
        (lambda path: policies_table({'raters': [SILENT, SILENT]}), 'raters .*RLAIF vs SFT: .*names'),
        (
            lambda path: policies_table({'raters': [SILENT]}, published={('RLAIF', 'SFT'): (0.71, 0.59)}),
            r'\(71, 59\).*\(0\.71, 0\.59\)',
        ),
        (lambda path: policies_csv(path / 'a.csv', {'raters': []}), 'no comparisons'),
        (lambda path: matrix_table({}), 'no comparisons'),
    ],
)
def test_bad_input_is_refused_by_name(call, told, tmp_path):
    with pytest.raises(Mistake, match=told):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


# A labeler's verdict on itself


def worth(first_B, second_B, human_B=None):
    """What is said of verdicts in both orders, each P(the first is better)."""
    first_B, second_B = np.array(first_B, float), np.array(second_B, float)
    voted = None if human_B is None else agreement((first_B + second_B) / 2, np.array(human_B, float))
    return labeler_verdict('it', position_bias(first_B, second_B), voted)


def test_who_names_a_place_cannot_tell_with_votes_or_without():
    """Whichever place it is, and even where the averages happen to be people's."""
    human_B = np.arange(24) % 2
    for one, other in ((0.7, 0.3), (0.3, 0.7)):
        first_B, second_B = np.full(24, one), np.full(24, other) + np.where(human_B, -0.01, 0.01)
        for said in (worth(first_B, second_B), worth(first_B, second_B, human_B)):
            assert 'cannot tell' in said and f'{100 * (one > 0.5):.0f} % of its verdicts' in said and '100.0 %' in said
        assert 'people' in worth(first_B, second_B, human_B) and 'people' not in worth(first_B, second_B)


def test_who_names_a_response_tells_them_apart_and_people_have_the_last_word():
    better_B = np.arange(40) % 2
    sure_B = np.where(better_B, 0.8, 0.2)
    assert 'tells responses apart' in worth(sure_B, sure_B)
    assert 'less often than a coin' in worth(sure_B, sure_B, 1 - better_B)
    assert 'more often than a coin' in worth(sure_B, sure_B, better_B)
    # It likes the first place, but what is better a little more: averaged over both orders people agree.
    biased = worth(np.where(better_B, 0.9, 0.6), np.where(better_B, 0.4, 0.1), better_B)
    assert 'cannot tell' not in biased and 'more often than a coin' in biased


def test_a_coin_is_neither_and_no_verdict_is_none():
    rng = np.random.default_rng(0)
    said = worth(rng.random(30), rng.random(30))
    assert 'cannot tell' not in said and 'tells responses apart' not in said and 'coin' in said
    assert 'says nothing' in worth([0.5, np.nan], [0.5, np.nan])
