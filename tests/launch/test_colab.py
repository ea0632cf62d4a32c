"""Laws of what people copy: every command in a document is one that the launchers take, every name of `rlaif_jax` in it
is there, and the notebook runs from its first cell to its last.
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
from launch import sweep

ROOT = Path(launcher.__file__).parents[1]
NOTEBOOK = ROOT / 'launch/colab/rlaif.ipynb'
DOCUMENTS = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
BOOK = json.loads(NOTEBOOK.read_text(encoding='utf-8'))
CODE = {cell['id']: ''.join(cell['source']) for cell in BOOK['cells'] if cell['cell_type'] == 'code'}
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
        (name, line) for name, text in texts.items() for line in re.findall(r'python (launch/\w+\.py --[^\n`|]*)', text)
    ]


def take(line: str, *more: str) -> int:
    """What a launcher says to a command line of its own."""
    program, *arguments = shlex.split(line, comments=True)
    main = {'launch/run.py': launcher.main, 'launch/sweep.py': sweep.main}[program]
    return main([*arguments, *more])


# Without running


def test_the_notebook_is_one_and_keeps_no_outputs():
    assert (BOOK['nbformat'], BOOK['metadata']['kernelspec']['name']) == (4, 'python3') and BOOK['nbformat_minor'] >= 5
    ids = [cell['id'] for cell in BOOK['cells']]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r'[\w-]{1,64}', one) for one in ids)
    for cell in BOOK['cells']:
        assert isinstance(cell['metadata'], dict) and all(isinstance(line, str) for line in cell['source'])
        assert {'code': {'execution_count', 'outputs'}, 'markdown': set()}[cell['cell_type']] == (
            cell.keys() - {'cell_type', 'id', 'metadata', 'source'}
        )
        assert not cell.get('outputs') and cell.get('execution_count') is None


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
    elif where in TO_THE_PLAN and not re.search(r'--scale|input=|policies=|responses=', line):
        assert take(line, '--dry_run') == 0, capsys.readouterr().err
    else:
        flags = launcher.read_flags(launcher.parser(), shlex.split(line, comments=True)[1:])
        assert launcher.read_config(flags)[2]
    assert not list(tmp_path.iterdir())


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
