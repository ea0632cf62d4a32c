"""The ladder of imports: a module knows only what stands below it, wherever in the file it imports it."""

import ast
import os
import shutil
import subprocess
import sys
import textwrap
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
    ('rlaif_jax.batching', 'rlaif_jax.checkpoint', 'rlaif_jax.generation', 'rlaif_jax.data', 'rlaif_jax.micro'),
    ('rlaif_jax.labeling',),
    ('rlaif_jax.training', 'rlaif_jax.evaluation'),
    ('experiments', 'experiments.scales'),  # the list of experiments reads them by name, when it is asked
    ('experiments.chips', 'experiments.programs', 'experiments.compiled'),
    ('experiments.plan',),
    ('experiments.topology',),
    ('experiments.label',),
    ('experiments.costs',),
    ('experiments.stages',),
    ('experiments.judging', 'experiments.arms'),
    ('experiments.report',),
    tuple(
        f'experiments.{name}'
        for name in ('policies', 'reward_models', 'compare', 'labeling', 'agreement', 'apply', 'micro')
    ),
    tuple(f'experiments.{name}' for name in ('tldr', 'helpful', 'harmless')),
    ('experiments.statements', 'experiments.pages'),
    ('experiments.paper',),
    ('launch',),
)
# A reward is a function handed in, and what is trained does not know how it is judged, nor the other way round.
STRANGERS = {
    ('rlaif_jax.training', 'rlaif_jax.labeling'),
    ('rlaif_jax.training', 'rlaif_jax.evaluation'),
    ('rlaif_jax.evaluation', 'rlaif_jax.training'),
}


# The simulated world is a plug: whoever wants its data asks for it by name, and nothing else knows that there is one. An
# experiment of its own makes its models.
PLUG = 'rlaif_jax.micro'
PLUGGED = {'rlaif_jax.data.loader', 'experiments.micro'}


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


def test_the_simulated_world_is_imported_in_one_place():
    knowing = {name for name in CHECKED if not within(name, PLUG) and any(within(one, PLUG) for one in imports(name))}
    assert knowing == PLUGGED


def test_all_else_works_where_the_simulated_world_was_taken_away(tmp_path):
    """But for the names that it provides: of data, of models and of a scale."""
    away = shutil.ignore_patterns('__pycache__', PLUG.rpartition('.')[2])
    for folder in ('rlaif_jax', 'experiments', 'launch'):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=away)
    code = """
        import sys
        # An editable install knows the folder that was not copied.
        sys.meta_path = [one for one in sys.meta_path if 'Editable' not in getattr(one, '__name__', '')]
        import experiments
        from launch.run import main
        print(main(['tldr_rlaif', '--scale=smollm2', '--dry_run']), main(['tldr_rlaif', '--dry_run']))
        print(*sorted(name for name in experiments.experiments() if 'micro' in name))
    """
    told = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)], cwd=tmp_path, capture_output=True, encoding='utf-8',
        env=os.environ | {'PYTHONPATH': str(tmp_path), 'XDG_CACHE_HOME': str(tmp_path)},
    )  # fmt: skip
    assert told.stdout.splitlines()[-2:] == ['0 2', ''], told.stderr
    assert "'micro_tldr'" in told.stderr


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
