"""Laws of what people copy: every command in a document is one that the launchers take, every name of `rlaif_jax` in it
is there, and the notebook runs from its first cell to its last. The outputs that it is kept with are its own.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from launch import run as launcher
from launch import submit, sweep
from launch.colab import renew
from launch.colab.renew import NOTEBOOK, ROOT

DOCUMENTS = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
BOOK = json.loads(NOTEBOOK.read_text(encoding='utf-8'))
CODE = renew.code(BOOK)
OUTPUTS = {cell['id']: cell['outputs'] for cell in BOOK['cells'] if cell['cell_type'] == 'code'}
TO_THE_PLAN = (*(path.name for path in DOCUMENTS), NOTEBOOK.name)
SMALLER = {  # what the notebook's settings are when it is run here
    'SIZE': 'data.train=64 data.validation=8 data.test=16 sft.steps=2 sft.batch=8 rating.batch=8 reinforce.steps=2 '
    'reinforce.batch=8 reinforce.max_new_tokens=8 reinforce.eval_every=1 reinforce.eval_prompts=8 '
    'evaluation.prompts=16 evaluation.batch=16',
    'MESH': 'mesh.data=1',
    'PAIRS': 4,
    'OPEN': True,
    'SCALE': 'micro',
}


def python(source: str) -> str:
    """A cell as Python alone: a line that begins with `!` becomes a call of `shell`."""
    return re.sub(r'^( *)!(.*)$', lambda found: f'{found[1]}shell({found[2]!r})', source, flags=re.MULTILINE)


def filled(line: str, names: dict) -> str:
    """A line for the shell with values in the place of `{…}`, as IPython does it."""
    return re.sub(r'\{([^{}]+)\}', lambda found: str(eval(found[1], names)), line)


def settings() -> dict:
    names: dict = {}
    exec(CODE['settings'], names)
    return names


def commands() -> list[tuple[str, str]]:
    """Where, and what: every command line of a launcher that a document shows."""
    texts = {
        path.name: path.read_text(encoding='utf-8') for path in (*DOCUMENTS, *sorted(ROOT.glob('experiments/*.py')))
    }
    shown = re.findall(r'^ *!(python launch/.*)', '\n'.join(CODE.values()), re.MULTILINE)
    texts[NOTEBOOK.name] = '\n'.join(filled(line, settings()) for line in shown)
    return [
        (name, line)
        for name, text in texts.items()
        for line in re.findall(r"(?<!['/])python (launch/\w+\.py --[^\n`|]*)", text)
    ]


def take(line: str, *more: str) -> int:
    """What a launcher says to a command line of its own."""
    program, *arguments = shlex.split(line, comments=True)
    main = {'launch/run.py': launcher.main, 'launch/sweep.py': sweep.main}[program]
    return main([*arguments, *more])


# Without running


def test_the_notebook_is_one():
    assert (BOOK['nbformat'], BOOK['metadata']['kernelspec']['name']) == (4, 'python3') and BOOK['nbformat_minor'] >= 5
    ids = [cell['id'] for cell in BOOK['cells']]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r'[\w-]{1,64}', one) for one in ids)
    for cell in BOOK['cells']:
        assert isinstance(cell['metadata'], dict) and all(isinstance(line, str) for line in cell['source'])
        assert {'code': {'execution_count', 'outputs'}, 'markdown': set()}[cell['cell_type']] == (
            cell.keys() - {'cell_type', 'id', 'metadata', 'source'}
        )


@pytest.mark.parametrize('where', ['documents', NOTEBOOK.name])
def test_every_name_of_ours_is_there(where):
    text = '\n'.join(path.read_text(encoding='utf-8') for path in DOCUMENTS)
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    tree = ast.parse('\n'.join(blocks if where == 'documents' else map(python, CODE.values())))
    names: dict = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and 'rlaif_jax' in ast.unparse(node):
            exec(ast.unparse(node), names)
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used = {name for name in used if re.fullmatch(r'\w+(\.\w+)+', name) and name.partition('.')[0] in names}
    assert {'rlaif_jax.load', 'rlaif_jax.label', 'rlaif_jax.rate', 'rlaif_jax.generate', 'rlaif_jax.logits'} <= used
    for name in used:
        eval(name, names)


def test_documents_show_commands():
    found = [where for where, _ in commands()]
    assert sum(path.name in found for path in DOCUMENTS) > 3 and found.count('guide.md') > 8
    assert found.count('tldr.py') > 15 and found.count(NOTEBOOK.name) > 5


@pytest.mark.parametrize('where, line', commands())
def test_every_command_that_is_shown_is_taken(where, line, tmp_path, monkeypatch, capsys):
    """Those of the documents and of the notebook down to their plans, where these need nothing but the package."""
    monkeypatch.chdir(tmp_path)
    if line.startswith('launch/sweep.py'):
        assert take(line, '--backend=print') == 0 and '--experiment' in capsys.readouterr().out
    elif line.startswith('launch/submit.py'):
        arguments = shlex.split(line, comments=True)[1:]
        assert submit.jobs_of(launcher.read_flags(submit.parser(), arguments), arguments).tasks
    elif where in TO_THE_PLAN and not re.search(r'--scale|input=|policies=|responses=', line):
        assert take(line, '--dry_run') == 0, capsys.readouterr().err
    else:
        flags = launcher.read_flags(launcher.parser(), shlex.split(line, comments=True)[1:])
        assert launcher.read_config(flags)[2]
    assert not list(tmp_path.iterdir())


# What the notebook is kept with


def said(outputs: list) -> str:
    """The texts of outputs."""
    texts = [one['text'] if one['output_type'] == 'stream' else one['data'].get('text/markdown', []) for one in outputs]
    return ''.join(line for text in texts for line in text)


def test_outputs_are_those_of_the_cells():
    command = f'python {Path(renew.__file__).relative_to(ROOT)}'
    assert BOOK['metadata']['outputs_of'] == renew.digest(BOOK), f'cells were edited; `{command}` runs them again'
    assert [cell['execution_count'] for cell in BOOK['cells'] if 'outputs' in cell] == [*range(1, len(CODE) + 1)]
    for name, source in CODE.items():
        lines = [one for one in ast.parse(python(source)).body if not ast.unparse(one).startswith('if OPEN')]
        shows = re.search(r"\b(print|display|plt\.subplots)\(|'python launch/", '\n'.join(map(ast.unparse, lines)))
        assert bool(shows) == bool(OUTPUTS[name]), name
    assert '\ndone in ' in said(OUTPUTS['run'])


@pytest.mark.parametrize('name', CODE)
def test_outputs_are_clean(name):
    text = said(OUTPUTS[name])
    assert {one['output_type'] for one in OUTPUTS[name]} <= {'stream', 'display_data'}
    assert renew.keep(OUTPUTS[name]) == OUTPUTS[name] and renew.clean(text) == text
    foreign = (
        r'(?<![\w.)~])~?/\w+/|\b[A-Z]:\\|Traceback|\w+Warning|^error'  # paths of a machine, and what went wrong on it
    )
    assert not re.search(foreign, text, re.MULTILINE)


def test_the_notebook_is_small():
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_figures_of_the_simulated_world_say_so():
    shown = {name for name, outputs in OUTPUTS.items() if '%' in said(outputs) or 'image/png' in str(outputs)}
    assert {'alignment', 'ratings', 'run', 'training', 'evaluation'} <= shown
    for name in shown:
        assert 'simulated' in (said(OUTPUTS[name]) or CODE[name]).lower(), name


def test_renewing_replaces_outputs_and_badges_and_nothing_else(tmp_path, monkeypatch):
    notebook, guide = tmp_path / 'launch/colab/rlaif.ipynb', tmp_path / 'guide.md'
    source = ["REPOSITORY = 'https://github.com/NAME/code'\n", 'print(1)']
    cell = {'cell_type': 'code', 'execution_count': None, 'id': 'settings', 'metadata': {}, 'outputs': []}
    ran = [
        {'output_type': 'stream', 'name': 'stdout', 'text': '\x1b[1mold\x1b[0m\rsft 1/3  a\r\nsft 2/3  b\r\n'},
        {'output_type': 'stream', 'name': 'stderr', 'text': 'noise'},
        {'output_type': 'stream', 'name': 'stdout', 'text': 'sft 3/3  c\nrl 1/3  d\n'},
        {'output_type': 'display_data', 'data': {'image/png': 'x', 'text/plain': '<I>'}, 'metadata': {'a': 1}},
    ]
    badge = f'# π\n[colab]: {renew.COLAB}\nmore'
    text = {'cell_type': 'markdown', 'id': 'text', 'metadata': {}, 'source': badge.splitlines(keepends=True)}
    before = {'cells': [text, cell | {'source': source}], 'metadata': {'kernelspec': {}}}
    notebook.parent.mkdir(parents=True)
    notebook.write_text(json.dumps(before), encoding='utf-8')
    guide.write_text(badge, encoding='utf-8')
    for name, value in {'ROOT': tmp_path, 'NOTEBOOK': notebook, 'BADGED': (notebook, guide)}.items():
        monkeypatch.setattr(renew, name, value)
    other = {'cells': [text, cell | {'source': ['what was executed'], 'outputs': ran}]}
    monkeypatch.setattr(renew, 'execute', lambda folder: other)
    renew.main()

    after = json.loads(notebook.read_text(encoding='utf-8'))
    there = f'# π\n[colab]: {renew.COLAB}github/NAME/code/blob/main/launch/colab/rlaif.ipynb\nmore'
    assert ''.join(after['cells'][0]['source']) == guide.read_text(encoding='utf-8') == there
    assert after['metadata'] == {'kernelspec': {}, 'outputs_of': renew.digest(other)}
    assert after['cells'][1] == cell | {
        'source': source,
        'execution_count': 1,
        'outputs': [
            {'output_type': 'stream', 'name': 'stdout', 'text': ['sft 3/3  c\n', 'rl 1/3  d\n']},
            {'output_type': 'display_data', 'data': {'image/png': 'x'}, 'metadata': {}},
        ],
    }
    assert renew.digest(other) != renew.digest(before) == renew.digest(after)


def test_badges_lead_to_the_notebook_where_its_address_is_known():
    repository = settings()['REPOSITORY']
    for path in renew.BADGED:
        text = path.read_text(encoding='utf-8')
        assert '[![Open in Colab][badge]][colab]' in text
        assert re.findall(r'\[colab\]: ([^\s"\\]*)', text) == [renew.address(repository)]
    assert BOOK['cells'][0]['source'][0].startswith('[![Open in Colab]')
    known = renew.address('https://github.com/NAME/code.git')
    assert known == renew.address('https://github.com/NAME/code/') != renew.COLAB
    assert (ROOT / known.removeprefix(f'{renew.COLAB}github/NAME/code/blob/main/')).samefile(NOTEBOOK)
    assert renew.address('') == renew.address('https://example.com/NAME/code') == renew.COLAB


# The notebook


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(sys, 'path', sys.path[:])
    monkeypatch.setenv('PATH', os.environ['PATH'])
    monkeypatch.setenv('MPLBACKEND', 'agg')
    monkeypatch.setattr(launcher, 'start_jax', lambda: None)  # programs are not kept
    shown: list = []
    display = types.SimpleNamespace(
        Image=lambda path: Path(path).read_bytes(), Markdown=str, display=lambda *what: shown.extend(what)
    )
    ipython = types.SimpleNamespace(display=display, get_ipython=lambda: None, version_info=(9, 0))  # matplotlib asks
    monkeypatch.setitem(sys.modules, 'IPython', ipython)
    monkeypatch.setitem(sys.modules, 'IPython.display', display)

    def shell(line: str) -> None:
        line = filled(line, cells).partition(' | ')[0]
        if line.startswith('python launch/'):  # the run that is not of the micro world is planned only
            assert take(line.removeprefix('python '), *['--dry_run'] * ('tldr_direct --scale' in line)) == 0, line
        else:
            assert '-m pip install' in line, line

    cells: dict = {'shell': shell}
    for name, source in CODE.items():
        exec(compile(python(source), f'{NOTEBOOK.name}: {name}', 'exec'), cells)
        if name == 'settings':
            assert SMALLER.keys() <= cells.keys()
            cells |= SMALLER | {'RUN': f'{tmp_path}/run', 'MINE': f'{tmp_path}/mine'}
    cells['plt'].close('all')

    picture, samples = shown
    assert picture.startswith(b'\x89PNG') and samples.startswith('# SIMULATED') and samples.count('| SFT |') == 3
    printed = capsys.readouterr().out
    for said in (
        'agrees with the raters',
        'd-RLAIF preferred to SFT',
        'after:',
        'P(chosen is better)',
        "(None, 'fsdp')",
    ):
        assert said in printed, said
