"""Laws of the documents: they are short enough to read, their links lead somewhere, and what they list is what is there."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import experiments
from experiments.scales import scale
from rlaif_jax.axes import ALPHABET
from rlaif_jax.config import dump, parse

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding='utf-8')
    for path in sorted((*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), ROOT / 'experiments/LOG.md'))
}
README = TEXTS['README.md']
MAP = README.partition('## Find your way')[2].partition("An array's name")[0]


def anchors(text: str) -> set[str]:
    """What a link into a document may name: its headings, as GitHub writes them."""
    headings = [line.lstrip('# ') for line in text.split('\n') if line.startswith('#')]
    return {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('name', TEXTS)
def test_lines_are_short(name):
    """A row of a table cannot be broken, nor can a command, a line of data or an address."""
    inside, long = False, []
    for number, line in enumerate(TEXTS[name].split('\n'), 1):
        inside ^= line.lstrip().startswith('```')
        if len(line) > 110 and not inside and not re.match(r'\||\[\w+\]: http', line):
            long.append(number)
    assert not long


def test_the_readme_is_one_page():
    assert README.count('\n') <= 120


@pytest.mark.parametrize('name', ['README.md', 'experiments/LOG.md'])
def test_tables_too_are_read_as_they_are(name):
    assert max(map(len, TEXTS[name].split('\n'))) <= 110


@pytest.mark.parametrize('name', TEXTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r'\]\(([^)\s]+)\)', TEXTS[name]):
        if not target.startswith('https://'):
            path, _, anchor = target.partition('#')
            found = (ROOT / name).parent / path if path else ROOT / name
            assert found.exists(), f'{name}: {target}'
            assert not anchor or anchor in anchors(found.read_text(encoding='utf-8')), f'{name}: {target}'


def test_the_map_names_every_module_and_no_other():
    named = set(re.findall(r'`([\w/]+)`', MAP))
    folders = {name for name in named if name.endswith('/')}
    modules = {
        path.stem
        for top in ('rlaif_jax', 'experiments', 'launch')
        for path in (ROOT / top).rglob('*.py')
        if path.stem != '__init__' and 'micro' not in path.parts
    }
    assert modules - named == set(), 'not on the map of README.md'
    assert named - folders - modules == set(), 'on the map of README.md, and not there'
    tops = [ROOT / top for top in ('rlaif_jax', 'experiments', 'launch', 'tests')]
    there = {f'/{path.relative_to(ROOT)}/' for top in tops for path in (top, *top.rglob('*')) if path.is_dir()}
    assert not [name for name in folders if not any(path.endswith(f'/{name}') for path in there)]


def test_the_readme_has_the_alphabet():
    assert dict(re.findall(r'\*\*([A-Z])\*\* ([^,\n]+)', README)) == dict(ALPHABET)


def test_the_guide_lists_every_experiment():
    listed = TEXTS['docs/guide.md'].partition("## The paper's experiments")[2].partition('\n## ')[0]
    assert set(experiments.experiments()) <= set(re.findall(r'`(\w+)`', listed))


def test_every_field_that_changes_a_difference_is_there():
    known = parse(dump(experiments.find('tldr_table1')(scale('micro'), 0)))
    rows = [line.split('|')[1:-1] for line in TEXTS['docs/differences.md'].split('\n') if line.startswith('| ')]
    assert len(rows) > 40 and {len(row) for row in rows} == {5}
    for _, _, _, fields, _ in rows:
        before = ''
        for name in re.findall(r'`([\w.]+)`', fields):  # `.batch` is of the one before
            before = before.rpartition('.')[0] + name if name.startswith('.') else name
            assert before in known, f'{name}: no such field'


def test_packaging_and_documents_agree():
    tree = ast.parse((ROOT / 'setup.py').read_text(encoding='utf-8'))
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == 'setup']
    said = {keyword.arg: keyword.value for keyword in call.keywords}
    extras = {key.value for key in said['extras_require'].keys}
    assert {name for text in TEXTS.values() for name in re.findall(r"'\.\[(\w+)\]'", text)} <= extras
    assert re.search(r'^## (.+)', TEXTS['CHANGELOG.md'], re.MULTILINE)[1] == said['version'].value
    oldest = said['python_requires'].value.removeprefix('>=')
    assert f'Python {oldest} or newer' in README and f'Python {oldest} to ' in TEXTS['CONTRIBUTING.md']
    tools = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
    assert tools['tool']['ruff']['target-version'] == 'py' + oldest.replace('.', '')
