"""Low-rank adapters (LoRA; PERL trains reward models and policies so): a matrix W acts as W + scale · in · out.

Adapters are parameters like any other, named after their matrix: `query_lora_in_LDX` and `query_lora_out_LXNH`, X the
rank. A model that has them in its parameters computes with them (`transformer.py`); here they are made, and merged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp

from rlaif_jax import axes
from rlaif_jax.config import MOST, Mistake, check_within
from rlaif_jax.models import transformer
from rlaif_jax.models.transformer import Params, factors

Target = Literal['query', 'key', 'value', 'out', 'gate', 'up', 'down']
MATRICES = {matrix.split('_L')[0]: matrix for matrix in transformer.FAN_IN}  # target -> the matrix


@dataclass(frozen=True)
class Config:
    """PERL: attention projections; ranks of 1 to 16 do alike, at ten times the learning rate and more (1e-4)."""

    rank: int = 0  # X; 0: no adapters, all parameters are trained
    alpha: float = 16.0  # what an adapter adds is multiplied by alpha / rank
    targets: tuple[Target, ...] = ('query', 'key', 'value', 'out')  # which matrices of each layer get an adapter

    def __post_init__(self) -> None:
        check_within(self, 0, MOST, 'rank')
        if not 0 < self.alpha <= 1e6:
            raise ValueError(f'alpha must be positive, 1,000,000 at most, not {self.alpha}')
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f'targets = {self.targets}: at least one, and each once')


def adapted(cfg: Config, model: transformer.Config) -> transformer.Config:
    """The config of `model` with these adapters. Raises `Mistake` for a target that the model does not have."""
    if not cfg.rank:
        return model
    there = [target for target, matrix in MATRICES.items() if matrix in model.names]
    for target in cfg.targets:
        if target not in there:
            raise Mistake(f'lora.targets: {model.family} has no {target} matrix; it has {", ".join(there)}')
    return replace(model, lora_scale=cfg.alpha / cfg.rank)


def init(cfg: Config, model: transformer.Config, key: jax.Array) -> Params:
    """Fresh float32 adapters, and nothing else: `in` normal with variance 1 / fan-in, `out` zero, so that at first they
    add nothing.
    """
    params, sizes = {}, model.sizes | {'X': cfg.rank}
    for i, target in enumerate(cfg.targets):
        into, out = factors(MATRICES[target])
        shape, out_shape = (tuple(sizes[c] for c in axes.letters(name)) for name in (into, out))
        drawn = jax.random.normal(jax.random.fold_in(key, i), shape)
        fan_in = drawn.size // (model.layers * cfg.rank)
        params |= {into: drawn * fan_in**-0.5, out: jnp.zeros(out_shape)}
    return params


def merge(model: transformer.Config, params: Params) -> Params:
    """The parameters of a model without adapters that computes the same."""
    adapters = transformer.adapters(params)
    merged = {name: x for name, x in params.items() if name not in adapters}
    for matrix in MATRICES.values():
        into, out = factors(matrix)
        if into in adapters:
            sum_over_x = f'{axes.letters(into)},{axes.letters(out)}->{axes.letters(matrix)}'
            added = jnp.einsum(sum_over_x, adapters[into], adapters[out], precision='highest')
            merged[matrix] = merged[matrix] + model.lora_scale * added
    return merged
