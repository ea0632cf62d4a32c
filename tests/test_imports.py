"""The ladder of imports: a module knows only what stands below it, wherever in the file it imports it."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
    for folder in ('rlaif_jax', 'experiments', 'launch')
    for path in sorted((ROOT / folder).rglob('*.py'))
}
# From the bottom to the top; a module stands at its longest match. What shares a rung may import each other, in no circle.
LADDER = (
    tuple(
        f'rlaif_jax.{name}'
        for name in 'axes chat config folder foreign hosts log paths shortening stopping text'.split()
    ),
    ('rlaif_jax.models', 'rlaif_jax.data.records'),
    ('rlaif_jax.batching', 'rlaif_jax.checkpoint', 'rlaif_jax.generation', 'rlaif_jax.data'),
    ('rlaif_jax.labeling',),
    ('rlaif_jax.training', 'rlaif_jax.evaluation'),
    ('experiments',),
    ('launch',),
)
# A reward is a function handed in, and what is trained does not know how it is judged, nor the other way round.
STRANGERS = {
    ('rlaif_jax.training', 'rlaif_jax.labeling'),
    ('rlaif_jax.training', 'rlaif_jax.evaluation'),
    ('rlaif_jax.evaluation', 'rlaif_jax.training'),
}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + '.')


def rung(module: str) -> int:
    found = [(len(name), i) for i, names in enumerate(LADDER) for name in names if within(module, name)]
    assert found, f'{module} stands nowhere on the ladder'
    return max(found)[1]


def imports(module: str) -> set[str]:
    """Modules of the project that a module imports, in functions and under conditions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{module}: a relative import hides where it leads'
            # `from package import module` names a module, `from module import thing` does not.
            names = [f'{node.module}.{alias.name}' for alias in node.names]
            found |= {name if known(name) else str(node.module) for name in names}
    return {name for name in found if name.split('.')[0] in ('rlaif_jax', 'experiments', 'launch')}


def known(name: str) -> bool:
    return name in MODULES or f'{name}.__init__' in MODULES


CHECKED = [name for name in MODULES if name != 'rlaif_jax.__init__']  # the public surface, which imports lazily


@pytest.mark.parametrize('module', CHECKED)
def test_imports_point_downward(module):
    for other in imports(module) - {'rlaif_jax'}:
        assert known(other), f'{module} imports {other}, which is not there'
        assert rung(other) <= rung(module), f'{module} imports {other}, which stands above it'
        for one, stranger in STRANGERS:
            assert not (within(module, one) and within(other, stranger)), f'{module} imports {other}'


def test_no_circles():
    graph = {name: {other if other in MODULES else f'{other}.__init__' for other in imports(name)} for name in CHECKED}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_every_module_says_what_it_is_for():
    for name, path in MODULES.items():
        text = path.read_text(encoding='utf-8')
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f'{name} has no docstring'


def test_transformers_does_not_speak_of_pytorch_behind_our_import_and_goes_on_with_the_rest():
    code = 'import rlaif_jax, logging, transformers; logging.getLogger("transformers").warning("all else")'
    quiet = {name: value for name, value in os.environ.items() if not name.startswith('TRANSFORMERS_')}
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=quiet, capture_output=True, encoding='utf-8')
    assert (done.returncode, done.stdout) == (0, '') and done.stderr.splitlines() == ['[transformers] all else']
