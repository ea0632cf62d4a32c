"""Laws of samples side by side: every character stands for itself, in the Markdown and in the JSON lines."""

import json
import re
from html import unescape

import pytest

from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.responses import side_by_side

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

    side_by_side(tmp_path / 's', [Prompt()] * 2, {'SFT': ['', 'b']}, n=5)
    assert {path.name for path in tmp_path.iterdir()} == {'s.jsonl', 's.md'}
    text = (tmp_path / 's.md').read_text(encoding='utf-8')
    assert text.count('> a post') == 2 and '*(empty)*' in text and 'SIMULATED' not in text


@pytest.mark.parametrize(
    ('prompts', 'texts', 'told'),
    [
        (['p'], {'prompt': ['x']}, r"'prompt'.*names=\[…\]"),
        (['p'], {}, 'samples .*policies$'),
        (['p'], {'a': ['x'], 'b': []}, '1 prompts.* 0 responses.* b$'),
    ],
)
def test_bad_input_is_refused_by_name(prompts, texts, told, tmp_path):
    with pytest.raises(Mistake, match=told):
        side_by_side(tmp_path / 'a', prompts, texts)
    assert not list(tmp_path.iterdir())
