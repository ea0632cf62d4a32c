"""Experiments: each is a function named after itself that returns a config, and a config knows how to run.

find('tldr_direct')(scale('micro'), seed=0).run(folder)
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from rlaif_jax.config import Mistake, dump, nearest
from rlaif_jax.data import loader

# Each lists its experiments in __all__.
MODULES = ('tldr', 'helpful', 'harmless', 'label', 'agreement', 'apply', 'labeling', 'compare', 'paper', 'micro')


def grouped() -> dict[str, dict[str, Callable[..., Any]]]:
    """Every experiment by name, below the first sentence of its module, in the order in which a reader meets them."""
    world = any(source.simulated for source in loader.known().values())  # which one may have taken away
    there = [name for name in MODULES if world or name != 'micro']
    modules = [importlib.import_module(f'experiments.{name}') for name in there]
    return {  # python -OO leaves no docstrings
        _paragraph(module) or module.__name__: {name: getattr(module, name) for name in module.__all__}
        for module in modules
    }


def experiments() -> dict[str, Callable[..., Any]]:
    """Every experiment by name, in the order in which a reader meets them."""
    return {name: experiment for group in grouped().values() for name, experiment in group.items()}


def find(name: str) -> Callable[..., Any]:
    """The experiment of that name. Raises `Mistake` naming the nearest one."""
    known = experiments()
    if name not in known:
        raise Mistake(f'no experiment {name!r}; did you mean {nearest(name, known)}? (--list shows all)')
    return known[name]


def text_of(name: str, scale: str, config: Any) -> str:
    """The text that repeats a run of an experiment, as its config.gin has it."""
    return f"experiment = '{name}'\nscale = '{scale}'\n{dump(config)}{loader.contents(config)}"


def summary(experiment: Callable[..., Any]) -> str:
    """The first paragraph of an experiment's docstring, in one line."""
    return _paragraph(experiment)


def cost(experiment: Callable[..., Any]) -> str:
    """What an experiment costs, by its docstring."""
    lines = (inspect.getdoc(experiment) or '').splitlines()
    return next((line.split('. ')[0].rstrip('.') + '.' for line in lines if line.startswith('Cost')), '')


def _paragraph(documented: Any) -> str:
    return ' '.join((inspect.getdoc(documented) or '').split('\n\n')[0].split())
