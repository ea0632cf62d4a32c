"""Laws of the pages in a browser: what they promise works by clicks and by keys, and no text of anybody does anything."""

import json
import re

import numpy as np
import pytest
from browser import BACKSPACE, ENTER, Browser, missing

from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation import page, rankings, versus

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

HOSTILE = [
    "<script>window.hit = 'script'</script>",
    "</script><script>window.hit = 'closed'</script>",
    '</textarea><img src=x onerror="window.hit = 1">',
    '<a href="javascript:window.hit = 2">data:text/html,<script>window.hit = 3</script></a>',
    '<iframe src="https://example.com"></iframe><link rel=stylesheet href=https://example.com/a.css>',
    'left \u202e right \u2066 isolated \u2028 line \x00 nothing \u200b thin \ufeff mark',
    '{{ 7 * 7 }} {% raw %} ${7 * 7} <!-- <!--',
    'm' + 'any words ' * 10_000,
    '',
]
POLICIES = 'RLAIF', 'RLHF', 'SFT'


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp('browser')) as found:
        yield found


@pytest.fixture(scope='module')
def written():
    """Prompts and what three policies say to them, the hostile texts among both."""
    ids = [f'p{i}' for i in range(40)]
    prompts = [(id, HOSTILE[i] if i < len(HOSTILE) else f'Question {i}?') for i, id in enumerate(ids)]
    texts = {name: [f' {name} says {i}.' for i in range(40)] for name in POLICIES}
    texts['RLAIF'][: len(HOSTILE)] = HOSTILE
    texts['SFT'][20:22] = texts['RLHF'][20:22]  # equal
    return prompts, texts


@pytest.fixture(scope='module')
def report(written, tmp_path_factory):
    """A page with a comparison by two judges who disagree, and those samples."""
    prompts, texts = written
    rng = np.random.default_rng(0)
    pairs = [('RLAIF', 'SFT'), ('RLHF', 'SFT')]
    draw = lambda: rng.choice([0.0, 0.5, 1.0, np.nan], 40, p=[0.3, 0.1, 0.5, 0.1])  # noqa: E731
    votes = {pair: {'raters': draw(), 'oracle': draw()} for pair in pairs}
    quick = versus.Config(resamples=0)
    found = {
        judge: [
            versus.compare(
                [None] * 40, texts[a], texts[b], lambda *_, vote=votes[a, b][judge]: vote, quick, names=(a, b)
            )
            for a, b in pairs
        ]
        for judge in ('raters', 'oracle')
    }
    named = {f'{a} vs {b}': by for (a, b), by in votes.items()}
    sections = [
        page.comparisons(found, {('RLAIF', 'SFT'): (71, 59)}), page.lengths(texts),
        page.against_length({pair: by['raters'] for pair, by in named.items()}, texts, found['raters']),
        page.table('<b>Texts</b>', ['', *HOSTILE[:3]], [[text, 1, text, None] for text in HOSTILE[:6]], HOSTILE[0]),
    ]  # fmt: skip
    made = page.Page(
        HOSTILE[0], [HOSTILE[1]], page.banner(posts=True, judges=True), sections,
        page.samples(prompts, texts, named), {'result.json': '{"a": "</script>"}', HOSTILE[2]: 'x'},
    )  # fmt: skip
    path = tmp_path_factory.mktemp('page') / 'report.html'
    page.write(path, made)
    return path


def harmless(browser):
    """Nothing that a text wanted was done: no script ran, nothing was asked for, and nothing failed."""
    assert browser.run('return window.hit ?? null') is None
    assert [url for url in browser.requests() if not url.startswith(('file:', 'blob:', 'data:', 'chrome'))] == []
    assert browser.errors() == []
    assert browser.run('return document.querySelectorAll("main img, iframe, link, main script").length') == 0


def test_every_table_of_a_report_is_filled_and_its_texts_do_nothing(browser, report, written):
    prompts, texts = written
    browser.open(report)
    assert browser.run('return [...document.querySelectorAll("tbody")].map(one => one.rows.length).every(n => n > 0)')
    assert len(browser.texts('table')) >= 4 and HOSTILE[0] in browser.texts('h1')[0]
    cards = browser.texts('.card .two > div:first-child .text')
    shown = [text for text in HOSTILE if text.isprintable() and text and len(text) < 1000]
    assert all(text in cards for text in shown)
    assert any('U+202E' in card and 'U+0000' in card and '\u202e' not in card for card in cards)
    assert '(empty)' in cards
    browser.run('[...document.querySelectorAll(".card button")].forEach(one => one.click())')  # all of a long text
    assert max(map(len, browser.texts('.card .text'))) >= 100_000
    harmless(browser)


def test_search_filters_order_keys_and_links_of_samples_work(browser, report, written):
    _, texts = written
    browser.open(report)
    count = lambda: browser.text('#count')  # noqa: E731
    assert count() == '20 of 40 shown'
    browser.click('#more')
    assert count() == '40 of 40 shown' and not browser.run('return document.getElementById("more").offsetParent')
    browser.write('#find', 'question 33')
    assert count() == '1 of 1 shown' and 'p33' in browser.text('.card')
    browser.run(
        "document.getElementById('find').value = ''; document.getElementById('find').dispatchEvent(new Event('input'))"
    )
    kinds = browser.texts('#show option')
    parts = {}
    for kind in kinds:
        browser.choose('#show', kind)
        parts[kind] = int(count().split()[2])
    assert parts['all'] == 40 == sum(parts[kind] for kind in ('A loses', 'A wins', 'ties', 'unscorable'))
    assert 0 < parts['raters and oracle disagree'] < 40
    browser.choose('#show', 'A loses')
    before = browser.texts('.card header a')
    browser.choose('#pair', 'RLHF vs SFT')
    assert browser.texts('.card header a') != before and 'RLHF says' in browser.text('.card')
    browser.choose('#show', 'all')
    browser.choose('#order', 'longest responses of A first')
    browser.choose('#pair', 'RLAIF vs SFT')
    assert browser.texts('.card header a')[0].startswith('#8 ')
    browser.choose('#order', 'as they came')
    browser.run('document.activeElement.blur()')  # in the search keys are letters
    browser.press('j', 'j', 'k', 'j')
    assert browser.run('return document.querySelector(".card.now").id') == 's2'
    browser.open(report, '#s37')
    browser.reload()
    assert browser.run('return document.querySelector(".card.now").id') == 's37'
    browser.press('/')
    assert browser.run('return document.activeElement.id') == 'find'
    harmless(browser)


def test_what_a_report_holds_is_saved_as_it_was(browser, report):
    browser.open(report)
    browser.click('button.file[data-name="result.json"]')
    assert browser.download('result.json') == b'{"a": "</script>"}'
    browser.click('button.file[data-name=""]')
    rows = [json.loads(line) for line in browser.download('samples.jsonl').decode().split('\n') if line]
    assert [row['RLAIF'] for row in rows[:9]] == HOSTILE
    harmless(browser)


# The page on which people rank


SHOWN = 6  # prompts; the first has hostile texts, the second three equal ones, of the third two are equal


@pytest.fixture(scope='module')
def to_rank(tmp_path_factory):
    prompts = [Prompt(f'Question {i}?', f'p{i}') for i in range(SHOWN)]
    texts = {name: [f'{name} says {i}.' for i in range(SHOWN)] for name in 'abc'}
    for name, text in zip('abc', (HOSTILE[0], HOSTILE[5], HOSTILE[7])):
        texts[name][0] = text
    texts['b'][1] = texts['c'][1] = texts['a'][1]
    texts['b'][2] = texts['a'][2]
    path = tmp_path_factory.mktemp('rank') / 'rank.html'
    asked = [(one.id, one.text) for one in prompts]
    path.write_text(page.ranking('6 prompts', asked, texts, ['Which is best?'], True), encoding='utf-8')
    return path, prompts, texts


def begin(browser, path, rater):
    browser.open(path)
    browser.write('#rater', rater)
    browser.click('#who button')


def asked(browser):
    """The number of the prompt that is shown, and of its cards the texts, without what is marked."""
    return int(browser.text('#asked').split()[1].rstrip('?')), browser.texts('#cards .text')


def wanted(number, again=False):
    """A ranking of a, b and c that depends on the prompt; another one when asked again."""
    orders = [['a', 'b', 'c'], ['c', ['a', 'b']], [['b', 'c'], 'a'], ['b', 'a', 'c']]
    return orders[(number + again) % 4]


def cards_of(texts, number, shown):
    """Policy -> the number of its card. What cannot be seen is written out on a card."""
    seen = lambda text: re.sub(r'U\+[0-9A-F]{4}|[^a-zA-Z0-9]', '', text)[-60:]  # noqa: E731
    return {name: next(k for k, card in enumerate(shown) if seen(texts[name][number]) == seen(card)) for name in texts}


def rank(browser, texts, how):
    """Ranks what is shown as `wanted`, by `how(card, tied)` for each card. Returns the row expected of it."""
    number, shown = asked(browser)
    cards = cards_of(texts, number, shown)
    done, expected = [], []
    for place in wanted(number):
        place = [place] if isinstance(place, str) else place
        chosen = [card for card in dict.fromkeys(cards[name] for name in place) if card not in done]
        for i, card in enumerate(chosen):
            if len(shown) > 1:
                how(card, i > 0)
        done += chosen
        expected += [sorted(name for name in texts if cards[name] in chosen)] if chosen else []
    return f'p{number}', expected


def by_keys(browser):
    return lambda card, tied: browser.press(*['='] * tied, str(card + 1))


def by_buttons(browser):
    def click(card, tied):
        if tied:
            browser.click('#tie')
        browser.click(f'#cards article:nth-child({card + 1}) button')

    return click


def saved(browser, rater):
    (browser.downloads / f'rankings-{rater}.jsonl').unlink(missing_ok=True)
    browser.click('#save')
    return browser.download(f'rankings-{rater}.jsonl')


def sorted_places(row):
    return [sorted([one] if isinstance(one, str) else one) for one in row['ranking']]


@pytest.mark.parametrize(('rater', 'hand', 'go'), [('ann', by_keys, None), ('bob', by_buttons, '#next')])
def test_what_is_ranked_by_keys_and_by_buttons_is_the_file_expected(browser, to_rank, rater, hand, go, tmp_path):
    path, prompts, texts = to_rank
    begin(browser, path, rater)
    expected, hands = [], hand(browser)
    while not browser.text('#count').startswith('All'):
        if len(expected) == 3:  # whoever closes the page goes on where it was
            begin(browser, path, rater)
            assert f', {len(expected)} done' in browser.text('#count')
        expected.append(rank(browser, texts, hands))
        browser.click(go) if go else browser.press(ENTER)
    assert len(expected) >= SHOWN
    harmless(browser)
    file = tmp_path / 'rankings.jsonl'
    file.write_bytes(saved(browser, rater))
    rows = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()]
    assert [(row['prompt_id'], sorted_places(row)) for row in rows] == expected
    assert {row['rater'] for row in rows} == {rater} and sum(not row.get('repeat') for row in rows) == SHOWN
    found = rankings.read(file, policies=texts, prompts=prompts)
    assert found.raters == (rater,) and set(found.prompts) == {one.id for one in prompts}


def test_what_was_said_can_be_taken_back_changed_skipped_and_carried_elsewhere(browser, to_rank, tmp_path):
    path, _, texts = to_rank
    begin(browser, path, 'eve')
    places = lambda: browser.texts('#cards .place')  # noqa: E731
    while len(places()) < 3:  # to a prompt with three cards
        browser.choose('#skip', browser.texts('#skip option')[1])
        browser.click('#leave')
    browser.press('1', '2')
    browser.press('u')
    assert places() == ['place 1', '', '']
    browser.press(BACKSPACE)
    assert places() == ['', '', ''] and browser.run('return document.getElementById("undo").disabled')
    browser.press(ENTER)  # which does nothing before all have a place
    browser.press('3', '=', '1', '2')
    assert places() == ['place 1', 'place 2', 'place 1']
    browser.write('#comment', 'hard u 1 2')
    number, _ = asked(browser)
    browser.click('#next')
    browser.click('#back')
    assert asked(browser)[0] == number and places() == ['place 1', 'place 2', 'place 1']
    browser.click('#undo')
    browser.click('#undo')
    assert places() == ['place 1', '', '']
    browser.press('3', '2', ENTER)
    rows = [json.loads(line) for line in saved(browser, 'eve').splitlines()]
    last = next(row for row in rows if row['prompt_id'] == f'p{number}' and 'ranking' in row)
    assert [len(one) for one in sorted_places(last)] == [1, 1, 1] and last['comment'] == 'hard u 1 2'
    assert {row.get('skipped') for row in rows if row is not last} <= {page.SKIPPED[0]}
    # A browser that keeps nothing says so, and the file goes on elsewhere.
    file = tmp_path / 'rankings-eve.jsonl'
    file.write_bytes((browser.downloads / 'rankings-eve.jsonl').read_bytes())
    browser.open(path)
    browser.run("localStorage.clear(); Storage.prototype.setItem = () => { throw new Error('full'); }")
    browser.write('#load', str(file))
    assert f', {len(rows)} done' in browser.text('#count') and 'save the file' in browser.text('#count')
    # What was said later stands, whether the browser or the file has it.
    for at, comment, kept in (('2001', 'mid', 'mid'), ('2002', 'new', 'new'), ('2000', 'old', 'new')):
        text = ''.join(json.dumps(row | {'at': at, 'comment': comment}) + '\n' for row in rows)
        file.write_text(text, encoding='utf-8')
        browser.open(path)
        browser.write('#load', str(file))
        assert {json.loads(line)['comment'] for line in saved(browser, 'eve').splitlines()} == {kept}
    other = tmp_path / 'other.jsonl'
    other.write_text('{"prompt_id": "of another run", "rater": "max", "ranking": ["a", "b"]}\n', encoding='utf-8')
    browser.open(path)
    browser.write('#load', str(other))
    assert 'other prompts' in browser.text('#wrong') and not browser.run(
        'return document.getElementById("begin").hidden'
    )
    harmless(browser)


# What takes longer


@pytest.mark.nightly
@pytest.mark.parametrize('width', [1200, 360])
@pytest.mark.parametrize('dark', [False, True])
def test_pages_are_as_wide_as_a_screen_and_can_be_read_on_it(report, to_rank, width, dark, tmp_path):
    """Nothing but what is meant to scroll is wider than the screen, and text stands out from what is behind it."""
    with Browser(tmp_path, width, dark) as browser:
        for path in report, to_rank[0]:
            browser.open(path)
            assert browser.run('return document.documentElement.scrollWidth <= window.innerWidth')
            colours = browser.run('const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]')
            ink, back = (sum(map(float, one[one.index('(') + 1 : -1].split(',')[:3])) / 3 for one in colours)
            assert abs(ink - back) > 150


@pytest.mark.nightly
def test_a_large_report_opens_soon(browser, tmp_path):
    """1,024 prompts by five policies."""
    rng = np.random.default_rng(0)
    some = lambda n: ' '.join(rng.choice(['post', 'about', 'my', 'brother', 'and', 'money'], n))  # noqa: E731
    prompts = [(f'p{i}', some(80)) for i in range(1024)]
    texts = {name: [some(25) for _ in prompts] for name in 'abcde'}
    votes = {f'{a} vs {b}': {'raters': rng.random(1024).round()} for a in 'abcde' for b in 'abcde' if a < b}
    page.write(tmp_path / 'report.html', page.Page('large', samples=page.samples(prompts, texts, votes)))
    assert (tmp_path / 'report.html').stat().st_size <= 3_000_000
    browser.open(tmp_path / 'report.html')
    took = browser.run('const t = performance.getEntriesByType("navigation")[0]; return t.loadEventEnd - t.startTime')
    assert browser.text('#count') == '20 of 1024 shown' and took < 2000
