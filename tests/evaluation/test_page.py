"""Laws of the page: no text on it is more than a text, it asks nothing of a network, it runs its own script alone, and the
same values are the same bytes.
"""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from rlaif_jax.evaluation import page
from rlaif_jax.evaluation.alignment import report
from rlaif_jax.evaluation.length import AtLength, characters
from rlaif_jax.evaluation.report import DOUBTS
from rlaif_jax.evaluation.statistics import Interval
from rlaif_jax.evaluation.versus import compare, from_quality

HOSTILE = [
    '<script>alert(1)</script>',
    '</script><script>alert(2)</script><!-- <img src=x onerror=alert(3)>',
    '</textarea></style></title><iframe src="https://example.com/">',
    '<a href="data:text/html,<script>alert(4)</script>">javascript:alert(5)</a>',
    'left \u202eright\u202c \u2066here\u2069 \u2028 \x00\x1b[31m',
    'half a character \ud83d, a whole one 😀',
    '{{ 7 * 7 }} {% raw %} " onmouseover="alert(6) \\u003c',
    'long ' * 20_000,
    '',
]
TAGS = set(
    'a article b body br button caption circle code details div figcaption figure form h1 h2 head header html input kbd '
    'label li line main meta nav noscript option p path polyline pre rect script section select small span strong style '
    'summary svg table tbody td text th thead title tr ul'.split()
)


class Reader(HTMLParser):
    """What a browser makes of a file: its tags with their attributes, and what scripts and styles hold."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.within, self.held, self.said = [], '', {}, ''
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.within = tag + dict(attributes).get('id', '')

    def handle_endtag(self, tag):
        self.within = ''

    def handle_data(self, data):
        self.held[self.within] = self.held.get(self.within, '') + data
        self.said += data


def longest(prompts, responses):
    return characters(responses) + np.array([len(prompt) % 7 for prompt in prompts])


def shown(texts, prompts, title='a page'):
    names, found = [*texts], []
    votes = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            judge = from_quality(longest)
            found.append(compare(prompts, texts[a], texts[b], judge, names=(a, b)))
            votes[f'{a} vs {b}'] = {'raters': judge(prompts, texts[a], texts[b])}
    wrong = {name: [[(0, min(3, len(text)), name)] for text in texts[name]] for name in names}
    metrics = [{'step': i, 'eval/reward': i / 7, 'eval/quality': 1 - i / 9, 'objective/kl': i} for i in range(9)]
    aligned = report(
        names[0], [0.9, 0.2, 0.6], [1, 0, 0], first_shown_B=[0.9, 0.2, 0.6], second_shown_B=[0.9, 0.2, 0.6]
    )
    return page.Page(
        title,
        list(page.sentences({'raters': found}).values()),
        page.banner(posts=True, judges=True),
        [
            page.comparisons({'raters': found}, {(names[0], names[1]): (71, 59)}),
            page.curves({name: metrics for name in names}, {names[0]: (2, 5, f'{names[0]} over-optimised')}),
            page.lengths(texts),
            page.against_length({pair: one['raters'] for pair, one in votes.items()}, texts, found),
            page.labelers([aligned], {names[0]: 78.0}, {names[0]: {names[1]: 3}}),
            page.measures('measures', {name: {name: 0.5} for name in names}, {name: name for name in names}),
            page.made([(names[0], names[1], title)], [(title, title)], title, [(title, title, '', title)]),
        ],
        page.samples([(text, text) for text in prompts], texts, votes, wrong=wrong),
        {'report.txt': title, 'empty.csv': ''},
    )  # fmt: skip


@pytest.fixture(scope='module')
def hostile():
    names = [text[:200] for text in HOSTILE[:4]]
    texts = {name: HOSTILE[i:] + HOSTILE[:i] for i, name in enumerate(names)}
    return texts, page.html(shown(texts, HOSTILE, HOSTILE[1]))


def test_of_what_is_no_win_rate_something_else_is_even():
    assert page.outcome(Interval(0.02, 0.01, 0.03, 400), 1.9, 0, 1) == 'reproduced'
    assert page.outcome(Interval(0.02, 0.01, 0.03, 400), 0.9, 0, 1) == 'otherwise'  # less than a point is no difference
    assert page.outcome(Interval(1.24, 1.22, 1.26, 400), 132, 100) == 'same direction'
    assert page.outcome(Interval(0.02, 0.01, 0.03, 400), np.inf, 0, 1) == 'same direction'  # more, and no number
    assert page.outcome(Interval(0.02, 0.01, 0.03, 400), -np.inf, 0, 1) == 'otherwise'


def test_a_row_of_results_has_its_links_and_its_texts_are_texts():
    row = {
        'says': HOSTILE[0], 'paper': '71', 'percent': 71.0, 'ours': '68', 'rate': Interval(0.68, 0.6, 0.7, 9),
        'span': (0, 100), 'of': 'n=9', 'becomes': 'reproduced', 'links': [('seed 0', 'parts/a-s0/report.html')],
    }  # fmt: skip
    lacking = row | {'rate': None, 'percent': float('inf'), 'links': []}
    read = Reader(page.html(page.Page('x', sections=[page.results('Table 1', [row, lacking], [HOSTILE[1]])])))
    assert [one['href'] for tag, one in read.tags if tag == 'a'] == ['#part-1', 'parts/a-s0/report.html']
    assert sum(tag == 'script' for tag, _ in read.tags) == 2 and sum(tag == 'svg' for tag, _ in read.tags) == 1


def test_whatever_a_text_says_it_is_a_text(hostile):
    texts, html = hostile
    read = Reader(html)
    assert {tag for tag, _ in read.tags} <= TAGS
    assert sum(tag == 'script' for tag, _ in read.tags) == 2 and sum(tag == 'style' for tag, _ in read.tags) == 1
    for tag, attributes in read.tags:
        assert not any(name.startswith('on') or name in ('style', 'src', 'srcset', 'action') for name in attributes), (
            tag
        )
        assert attributes.get('href', '#')[:1] == '#'
    data = json.loads(read.held['scriptdata'])
    assert [row['prompt'] for row in data['samples']['rows']] == HOSTILE
    assert [row['texts'] for row in data['samples']['rows']] == [list(row) for row in zip(*texts.values())]
    for name in texts:  # in tables and legends they are read as they are
        assert name in read.said
    assert not re.search('[\u202a-\u202e\u2066-\u2069\x00\x1b\ud800-\udfff]', html)
    assert html.encode().decode() == html


def test_a_page_runs_its_own_script_alone_and_fetches_nothing(hostile):
    read = Reader(hostile[1])
    (policy,) = [one['content'] for tag, one in read.tags if one.get('http-equiv') == 'Content-Security-Policy']
    rules = dict(rule.strip().split(' ', 1) for rule in policy.split(';'))
    assert rules.pop('default-src') == rules.pop('base-uri') == rules.pop('form-action') == "'none'"
    assert rules.pop('img-src') == 'data:'
    for kind, held in (('script-src', read.held['script']), ('style-src', read.held['style'])):
        assert rules.pop(kind) == f"'sha256-{base64.b64encode(hashlib.sha256(held.encode()).digest()).decode()}'"
        assert not re.search(
            r'https?://|@import|url\(|fetch|XMLHttp|innerHTML|insertAdjacent|document\.write|eval', held
        )
    assert not rules


def test_the_same_values_are_the_same_bytes(hostile, tmp_path):
    texts, html = hostile
    page.write(tmp_path / 'report.html', shown(texts, HOSTILE, HOSTILE[1]))
    assert (tmp_path / 'report.html').read_bytes() == html.encode()


def test_a_page_of_many_prompts_is_small_and_says_what_it_leaves_out():
    rng = np.random.default_rng(0)
    words = ['summary', 'of', 'a', 'post', 'and', 'what', 'it', 'asks']

    def some(characters):
        return ' '.join(rng.choice(words, characters // 5))

    prompts = [some(1200) for _ in range(1024)]
    texts = {name: [some(150) for _ in prompts] for name in ('RLAIF', 'RLHF', 'same-size RLAIF', 'd-RLAIF', 'SFT')}
    votes = {f'{a} vs {b}': {'raters': [1.0] * 1024, 'oracle': [0.5] * 1024} for a in texts for b in texts if a < b}
    samples = page.samples([(f'id {i}', prompt) for i, prompt in enumerate(prompts)], texts, votes)
    assert (len(samples['rows']), samples['total']) == (1024, 1024)
    assert len(page.html(page.Page('x', samples=samples)).encode()) < 3_000_000
    most = page.samples([('x', some(30_000))] * 1024, {name: [''] * 1024 for name in texts}, {})
    assert 0 < len(most['rows']) < 1024 and len(page.html(page.Page('x', samples=most)).encode()) < 3_000_000


@pytest.mark.parametrize(
    ('rate', 'percent', 'becomes'),
    [
        ((0.71, 0.68, 0.74), 71, 'reproduced'),
        ((0.82, 0.80, 0.84), 74, 'same direction'),
        ((0.60, 0.57, 0.63), 71, 'same direction'),
        ((0.52, 0.49, 0.55), 71, 'not shown'),
        ((0.45, 0.42, 0.48), 71, 'otherwise'),
        ((0.50, 0.47, 0.53), 52, 'reproduced'),
        ((0.57, 0.53, 0.61), 50, 'otherwise'),
        ((0.50, 0.20, 0.80), 50, 'not shown'),  # nothing is known, which is no agreement
        ((0.29, 0.26, 0.32), 29, 'reproduced'),
        ((float('nan'), 0.0, 1.0), 71, 'not shown'),
    ],
)
def test_what_becomes_of_the_papers_figure_follows_the_rule(rate, percent, becomes):
    for turned in (False, True):
        one = Interval(*rate, 0 if np.isnan(rate[0]) else 400)
        assert page.outcome(one.complement() if turned else one, 100 - percent if turned else percent) == becomes


def test_a_doubt_is_explained_wherever_it_stands_and_reproduces_nothing():
    texts = ['x' * i for i in range(1, 41)]
    one = compare(texts, texts, texts[::-1], lambda *_: np.arange(40) % 3 > 0, names=('a', 'b'))
    sure = {
        rate: replace(getattr(one, rate), extrapolated=False, humps=False)
        for rate in ('length_adjusted', 'plain_ratio')
    }
    for doubt, sign in (('extrapolated', '~'), ('humps', '[humps]')):
        plain = replace(sure['plain_ratio'], **{doubt: True})
        html = page.comparisons(
            {'raters': [replace(one, **sure | {'plain_ratio': plain})]}, {('a', 'b'): (66, 66)}
        ).html
        assert f'{sign}: {DOUBTS[sign]}' in html
    assert '~: ' not in page.comparisons({'raters': [replace(one, **sure)]}, {('a', 'b'): (66, 66)}).html
    told = [page.outcome(AtLength(0.71, 0.68, 0.74, 400, extrapolated), 71) for extrapolated in (False, True)]
    assert told == ['reproduced', 'not shown']


def test_a_plot_keeps_within_its_frame():
    plot = page.Plot((0, 10), (-1, 1), label='x')
    plot.line([-5, 5, 20], [-9, 0, 9], 0)
    points = [tuple(map(float, point.split(','))) for point in plot.lines[0][0].split()]
    assert all(0 <= x <= plot.width and 0 <= y <= plot.height for x, y in points)
    assert [text for _, text in plot.y_ticks] == ['-1', '-0.5', '0', '0.5', '1']
    for low, high in ((0, 1e-9), (3, 3), (-1e9, 1e9), (0.1, 0.7)):
        assert 2 <= len(page.Plot((0, 1), (low, high), label='x').y_ticks) <= 7


def test_raters_are_shown_texts_and_no_names_and_all_of_it_is_text():
    texts = {name: HOSTILE[i:] + HOSTILE[:i] for i, name in enumerate(['policy <b>one</b>', 'policy two'])}
    html = page.ranking('9 <prompts>', [(text, text) for text in HOSTILE], texts, ['Which is <best>?'])
    read = Reader(html)
    assert {tag for tag, _ in read.tags} <= TAGS | {'progress'} and sum(tag == 'script' for tag, _ in read.tags) == 2
    data = json.loads(read.held.pop('scriptdata'))
    assert data['policies'] == [*texts] and [row['texts'] for row in data['rows']] == [
        list(row) for row in zip(*texts.values())
    ]
    assert not any('policy' in held for within, held in read.held.items() if not within.startswith(('script', 'style')))
    assert 'Which is <best>?' in read.said and html == page.ranking(
        '9 <prompts>', [(text, text) for text in HOSTILE], texts, ['Which is <best>?']
    )
    renamed = page.ranking('x', [(text, text) for text in HOSTILE], dict(zip('ab', texts.values())), [])
    assert (
        json.loads(Reader(renamed).held['scriptdata'])['digest'] != data['digest']
    )  # under which a browser keeps rankings
    (policy,) = [one['content'] for tag, one in read.tags if one.get('http-equiv') == 'Content-Security-Policy']
    hashed = base64.b64encode(hashlib.sha256(read.held['script'].encode()).digest()).decode()
    assert f"script-src 'sha256-{hashed}'" in policy and "default-src 'none'" in policy
