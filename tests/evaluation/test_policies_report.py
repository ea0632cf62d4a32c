"""Laws of showing policies against each other: a comparison told from the other side is its complement, what is written is
what was found, words follow intervals, and nothing breaks where a judge could not say.
"""

import csv
import json
import math
import re
import sys
from dataclasses import replace
from html import unescape
from io import StringIO
from itertools import permutations

import numpy as np
import pytest
from rich.console import Console

from rlaif_jax import log
from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.policies_figures import figure_lengths, figure_matrix, figure_training, read_metrics
from rlaif_jax.evaluation.policies_report import (
    complement,
    matrix,
    matrix_table,
    side_by_side,
    table,
    verdict,
    write_csv,
)
from rlaif_jax.evaluation.statistics import Interval
from rlaif_jax.evaluation.win_rate import Config, compare, from_quality

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
        length_adjusted=Interval(*even, n),
        n=n,
    )


SILENT = compare(PROMPTS, TEXTS['SFT'], TEXTS['RLAIF'], mute, names=('RLAIF', 'SFT'))


def printed(show, *args, width=80, **more):
    out = StringIO()
    show(*args, **more, console=Console(file=out, width=width))
    return out.getvalue()


# Every policy against every other


def test_the_matrix_told_from_the_other_side_is_its_complement():
    asked = []

    def judge(*given):
        asked.append(given)
        return from_quality(longest)(*given)

    config = Config(length_ratio='log')
    found = matrix(TEXTS, PROMPTS, judge, config)
    assert list(found) and set(found) == set(permutations(TEXTS, 2)) and len(asked) == 3  # a pair is judged once
    for (a, b), one in found.items():
        back = found[b, a]
        assert (one.name_a, one.name_b) == (a, b) and 0 < one.unscorable == back.unscorable
        for which in ('raw', 'length_adjusted'):
            forth, other = getattr(one, which), getattr(back, which)
            assert forth.value == pytest.approx(1 - other.value) and forth.low <= forth.value <= forth.high
        assert (one.mean_length_a, one.p_value, one.ties) == (back.mean_length_b, back.p_value, back.ties)
        # and that is what judging the other order anew would have found
        anew = compare(PROMPTS, TEXTS[a], TEXTS[b], from_quality(longest), config, names=(a, b))
        assert one.raw.value == pytest.approx(anew.raw.value) and one.raw.high == pytest.approx(anew.raw.high)
        assert one.length_adjusted.low == pytest.approx(anew.length_adjusted.low, abs=1e-6)
        twice = complement(complement(one))
        assert twice.raw.low == pytest.approx(one.raw.low) and twice.name_a == a


def test_a_matrix_is_printed_whole_from_either_order():
    found = matrix(TEXTS, PROMPTS, from_quality(longest))
    half = {pair: found[pair] for pair in list(found)[::2]}
    text = printed(matrix_table, found, simulated=True)
    assert text == printed(matrix_table, half, simulated=True)
    assert 'SIMULATED' in text and max(map(len, text.splitlines())) <= 80
    for (a, _), one in found.items():
        row = next(line for line in text.splitlines() if line.strip().startswith(a))
        assert f'{100 * one.raw.value:.1f}{"" if 0.5 in one.raw else "*"}' in row
    silent = {('RLAIF', 'SFT'): SILENT}
    assert '–' in printed(matrix_table, silent) and 'nan' not in printed(matrix_table, silent)


# Words


CASES = [  # raw, at equal length -> what is said, and of whom
    ((0.62, 0.59, 0.65), (0.57, 0.53, 0.61), 'RLAIF is preferred to SFT', 'also at equal length (57.0 % [53.0, 61.0])'),
    ((0.62, 0.59, 0.65), (0.52, 0.48, 0.56), 'RLAIF is preferred to SFT', 'at equal length no difference is shown'),
    ((0.62, 0.59, 0.65), (0.4, 0.35, 0.45), 'RLAIF is preferred to SFT', 'at equal length SFT is preferred (60.0 %'),
    ((0.38, 0.35, 0.41), (0.43, 0.39, 0.47), 'SFT is preferred to RLAIF', 'also at equal length (57.0 % [53.0, 61.0])'),
    (
        (0.51, 0.49, 0.53),
        (0.5, 0.45, 0.55),
        'no difference between RLAIF and SFT is shown',
        'nor at equal length (50.0',
    ),
    ((0.51, 0.5, 0.52), (0.57, 0.53, 0.61), 'no difference between', 'at equal length RLAIF is preferred (57.0 %'),
    ((0.51, 0.49, 0.53), (0.43, 0.39, 0.47), 'no difference between SFT and', 'at equal length SFT is preferred (57.0'),
]


@pytest.mark.parametrize(('raw', 'even', 'first', 'second'), CASES)
def test_words_follow_the_interval(raw, even, first, second):
    one = comparison(raw, even)
    said = verdict({'raters': one})
    assert said.startswith(first) and second in said and 'SIMULATED' not in said
    assert verdict({'raters': one}, simulated=True).startswith('SIMULATED')
    back = verdict({'raters': complement(one)})  # the same verdict, whichever policy was called A
    if said.startswith('no difference') and 'nor' in said:
        assert back.startswith('no difference between SFT and RLAIF')
    else:
        assert back == said


def test_other_judges_agree_or_not():
    yes, no, open_ = comparison(), comparison((0.4, 0.35, 0.45)), comparison((0.5, 0.45, 0.55))
    assert 'oracle agrees (60.0 % [55.0, 65.0])' in verdict({'raters': yes, 'oracle': yes})
    assert 'oracle agrees (60.0 % [55.0, 65.0])' in verdict({'raters': no, 'oracle': no})  # of SFT, which comes first
    assert 'oracle: SFT is preferred (60.0 %' in verdict({'raters': yes, 'oracle': no})
    assert 'oracle: RLAIF is preferred (60.0 %' in verdict({'raters': open_, 'oracle': yes})
    assert 'oracle: no difference is shown (50.0 %' in verdict({'raters': yes, 'oracle': open_})
    assert 'oracle could not say' in verdict({'raters': yes, 'oracle': SILENT})
    alone = verdict({'raters': SILENT, 'oracle': yes})
    assert alone.startswith('nothing is known') and '120 prompts' in alone and 'oracle: RLAIF is preferred' in alone


# Tables and files


@pytest.mark.parametrize('width', [80, 120])
def test_a_table_is_readable_on_80_columns(width):
    found = {
        'raters': [comparison(), comparison(names=('same-size RLAIF [b]', 'SFT')), replace(SILENT, name_a='mute')],
        'oracle': [comparison((0.51, 0.46, 0.56))],
    }
    text = printed(
        table, found, published={('RLAIF', 'SFT'): (71, None), ('RLHF', 'SFT'): (73, 61)}, simulated=True, width=width
    )
    lines = text.splitlines()
    assert max(map(len, lines)) <= width and '…' not in text and 'nan' not in text
    assert (
        text.count('60.0 [55.0, 65.0]') == 5 and '71 / –' in text and '73 / 61' not in text
    )  # beside its own comparison
    assert 'same-size RLAIF [b] vs SFT' in text and 'A : B' in text and 'unscorable' in text
    assert sum(line.startswith('SIMULATED') for line in lines) == {80: 2, 120: 1}[width] + 3  # titles and verdicts
    assert (
        'Paper:' in text and 'At equal length:' in text and 'oracle: no difference is shown' in text.replace('\n', ' ')
    )
    plain = printed(table, {'judge': [replace(comparison(), unscorable=0)]}, width=width)
    assert not any(word in plain for word in ('SIMULATED', 'unscorable', 'paper', 'Paper'))


def test_a_csv_reads_back_to_the_same_numbers(tmp_path):
    found = {'raters': [comparison(names=('a, "b"', 'SFT')), SILENT], 'oracle': [SILENT]}
    write_csv(tmp_path / 'new' / 'a.csv', found, published={('RLAIF', 'SFT'): (71, 59)}, simulated=True)
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


NASTY = ['*a* _b_ `c` **', '# no heading', '1. no list', '- [x](y) <b>&amp;</b>', 'a\\|b | c', '> ~~q~~ $x$', '---', '']


def test_samples_survive_markdown(tmp_path):
    markdown = pytest.importorskip('markdown_it').MarkdownIt('commonmark').enable(['table', 'strikethrough'])
    name = '_RLAIF_ | *x*'
    texts = {name: NASTY, 'two lines': [f'{line}\n{line}\x1b[1m' for line in NASTY]}
    side_by_side(tmp_path / 'v1.0', NASTY, texts, n=7, title='A # B #', simulated=True)
    rows = [json.loads(line) for line in (tmp_path / 'v1.0.jsonl').read_text(encoding='utf-8').splitlines()]
    assert rows == [{'prompt': p, **{k: v[i] for k, v in texts.items()}} for i, p in enumerate(NASTY[:7])]

    html = markdown.render((tmp_path / 'v1.0.md').read_text(encoding='utf-8'))
    shown = lambda part: unescape(re.sub('<[^>]*>', '', part.replace('<br>', '\n').replace('&lt;br&gt;', '\n')))  # noqa: E731
    assert shown(re.search('<h1>(.*?)</h1>', html)[1]) == 'SIMULATED · A # B #'
    assert html.count('<blockquote>') == html.count('<table>') == 7 and '<em>' not in html and '<li>' not in html
    assert [shown(found).strip() for found in re.findall('<blockquote>(.*?)</blockquote>', html, re.S)] == NASTY[:7]
    cells = [shown(found) for found in re.findall('<td>(.*?)</td>', html, re.S)]
    assert cells[::4] == [name] * 7 and cells[1::4] == NASTY[:7]
    assert cells[3::4] == [f'{line}\n{line}\\x1b[1m' for line in NASTY[:7]]


def test_samples_are_of_prompts_that_are_records_too(tmp_path):
    class Prompt:
        text = 'a post'

    side_by_side(tmp_path / 's.jsonl', [Prompt()] * 2, {'SFT': ['', 'b']}, n=5)
    assert {path.name for path in tmp_path.iterdir()} == {'s.jsonl', 's.md'}
    text = (tmp_path / 's.md').read_text(encoding='utf-8')
    assert text.count('> a post') == 2 and '*(empty)*' in text and 'SIMULATED' not in text


# Pictures


def metrics(n=30, key='objective/kl', **more):
    rows = [{'step': i, 'objective/scores': 0.1 * i, key: None if i == 3 else i, **more} for i in range(n)]
    rows[-1] |= {'eval/score': 0.5, 'eval/win_rate': 0.7, 'eval/kl': math.nan}
    return rows


DRAW = {
    'matrix.png': lambda path, **more: figure_matrix(path, matrix(TEXTS, PROMPTS, from_quality(longest)), **more),
    'lengths.png': lambda path, **more: figure_lengths(path, {**TEXTS, 'none': [], 'empty': [''] * 3}, **more),
    'training.png': lambda path, **more: figure_training(path, {f'$run_{i}': metrics() for i in range(7)}, **more),
    'no_votes.svg': lambda path, **more: figure_matrix(path, {('RLAIF', 'SFT'): SILENT}, **more),
    'one_length.svg': lambda path, **more: figure_lengths(path, {'a': ['xx']}, **more),
    'one_step.svg': lambda path, **more: figure_training(path, {'run': metrics(1), 'not begun': []}, **more),
}


@pytest.mark.parametrize('name', DRAW)
def test_a_figure_is_a_picture_and_says_what_is_simulated(name, tmp_path):
    import matplotlib

    before, path = 'matplotlib.pyplot' in sys.modules, tmp_path / 'new' / name
    with matplotlib.rc_context({'svg.fonttype': 'none'}):
        DRAW[name](path, title='our title', simulated=True)
    assert ('matplotlib.pyplot' in sys.modules) == before  # no state shared with the user's own figures
    data = path.read_bytes()
    if path.suffix == '.png':
        assert data[:8] == b'\x89PNG\r\n\x1a\n' and data[-8:-4] == b'IEND' and 10_000 < len(data) < 500_000
    else:
        text = data.decode()
        assert '<svg' in text and 'SIMULATED · our title' in text and '>nan<' not in text
        assert ('no votes' in text) == (name == 'no_votes.svg')


def test_metrics_are_read_as_the_log_writes_them(tmp_path):
    lines = [{'step': 0, 'objective/kl': 0.5}, {'step': 1, 'objective/kl': math.nan, 'eval/kl': 2}]
    crash = '{"step": 2, "objec'
    (tmp_path / 'metrics.jsonl').write_text('\n'.join([*map(log.to_json, lines), crash]), encoding='utf-8')
    rows = read_metrics(tmp_path)
    assert rows == read_metrics(tmp_path / 'metrics.jsonl') and [row['step'] for row in rows] == [0, 1]
    assert (rows[0]['objective/kl'], rows[1]['objective/kl'], rows[1]['eval/kl']) == (0.5, None, 2)


@pytest.mark.parametrize(
    ('call', 'told'),
    [
        (lambda path: matrix({'a': []}, [], mute), 'two or more'),
        (lambda path: matrix({'a': ['x'], 'b': []}, ['p'], mute), '1 prompts, but 0 responses of b'),
        (lambda path: table({}), 'no comparisons'),
        (lambda path: table({'raters': [SILENT, SILENT]}), 'two comparisons of RLAIF vs SFT'),
        (lambda path: table({'raters': [SILENT]}, published={('RLAIF', 'SFT'): (0.71, 0.59)}), 'per cent'),
        (lambda path: write_csv(path / 'a.csv', {'raters': []}), 'no comparisons'),
        (lambda path: matrix_table({}), 'no comparisons'),
        (lambda path: side_by_side(path / 'a', ['p'], {'prompt': ['x']}), "named 'prompt'"),
        (lambda path: side_by_side(path / 'a', ['p'], {}), 'one or more policies'),
        (lambda path: figure_matrix(path / 'a.png', {}), 'no comparisons'),
        (lambda path: figure_lengths(path / 'a.png', {'a': []}), 'no responses'),
        (lambda path: figure_lengths(path / 'a.pdf', TEXTS), r'a\.pdf.*\.png'),
        (lambda path: figure_training(path / 'a.png', {'sft run': [{'step': 0, 'loss': 1}]}), 'sft run'),
        (lambda path: read_metrics(path), r'metrics\.jsonl'),
    ],
)
def test_bad_input_is_refused_by_name(call, told, tmp_path):
    with pytest.raises(Mistake, match=told):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_figure_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(Mistake, match='pip install matplotlib'):
        figure_lengths(tmp_path / 'a.png', TEXTS)
