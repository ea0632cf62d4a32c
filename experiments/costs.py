"""What the labels of an experiment will cost, said before it starts: tokens, time on the devices at hand, money."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments import chips
from experiments.label import Asking, labels_line, store_of
from experiments.plan import sizes_in
from experiments.programs import programs
from rlaif_jax import axes
from rlaif_jax.config import MOST
from rlaif_jax.data import loader
from rlaif_jax.data.records import Pair
from rlaif_jax.labeling import cost, labelers, preference
from rlaif_jax.labeling.cost import Cost
from rlaif_jax.labeling.served import Words
from rlaif_jax.models.presets import Absent
from rlaif_jax.text import Tokenizer

USE = 0.4  # of what a product of large matrices reaches here, and memory: what labelling does


def foretold(config: Any, folder: Path) -> list[str]:
    """What labels of files that are there will cost, a line a labeler; nothing of published data and of simulated ones,
    which no plan makes.
    """
    if config.data and (loader.find(config.data.source).published or loader.find(config.data.source).simulated):
        return []
    return [foretell(config, one, folder) for one in config.askings()] if hasattr(config, 'askings') else []


def foretell(config: Any, one: Asking, folder: Path) -> str:
    """The line of one labeler."""
    pairs, served = list(one.pairs()), labelers.is_address(one.labeler)
    try:
        tokenizer, who = labelers.tokenizer(one.labeler), labelers.fingerprint(one.labeler)
    except Absent:  # a plan downloads nothing
        tokenizer, who = Words(), 'absent'
    told = ', tokens counted by words' if isinstance(tokenizer, Words) else ''
    asked = preference.ask(tokenizer, one.label)
    rationale, speed, before, there = cost.earlier(store_of(folder), who, asked.digest)
    if there:  # what the store holds costs nothing
        keys = preference.keys_of(one.labeler, one.label, asked, pairs, config.dtype)
        missing = [pair for key, pair in zip(keys, pairs) if key not in there]
        if not missing:
            return f'{one.title}: all {len(pairs):,} labels are there'
        told += f', beside {len(pairs) - len(missing):,} that are there' if len(missing) < len(pairs) else ''
        pairs = missing
    known = sizes_in(labels_line('labels', folder, len(pairs), one.labeler, one.label), config).get('labeler')
    spent = cost.predict(tokenizer, one.label, pairs, most=known.max_length if known else MOST, rationale=rationale)
    mesh = axes.make_mesh(asdict(config.mesh))
    spent = replace(spent, devices=0 if served else mesh.size)
    if speed:
        seconds = speed * (spent.read + spent.written) * (1 if served else before / mesh.size)
        told += ', at the speed of earlier labels of it'
    elif known:
        seconds = bound(config, one, tokenizer, pairs, spent, folder, mesh) / USE
        told += ', an estimate by what these devices multiply, without compiling'
    else:
        return f'{one.title}: {cost.told(spent)}{told}; nobody knows yet how long it takes'
    return f'{one.title}: {cost.told(replace(spent, seconds=seconds))}{told}'


def bound(
    config: Any, one: Asking, tokenizer: Tokenizer | Words, pairs: Sequence[Pair], spent: Cost, folder: Path, mesh: Mesh
) -> float:
    """Seconds that labels take at least, by the products and the memory traffic of what is called."""
    calls = 2 * one.label.samples * spent.labels
    preamble = len(preference.ask(tokenizer, one.label).verdict.encode_preamble(tokenizer))
    rationale = spent.written / calls
    row = spent.read / calls / (2 if rationale else 1) - preamble - rationale / 2  # of one order, without a rationale
    chars = [(len(pair.prompt.text), len(pair.first) + len(pair.second)) for pair in pairs]
    share = sum(context for context, _ in chars) / max(1, sum(map(sum, chars)))
    lengths = {'context': row * share, 'responses': row * (1 - share), 'preamble': preamble, 'rationale': rationale}
    line = labels_line(
        'labels', folder, spent.labels, one.labeler, one.label, **{k: max(1, round(x)) for k, x in lengths.items()}
    )
    flops, bandwidth = speed_of(config.dtype, mesh)
    each = programs(line, sizes_in(line, config), mesh)
    return sum(max(one.flops / flops, one.traffic / bandwidth) * one.calls for one in each)


def speed_of(dtype: str, mesh: Mesh) -> tuple[float, float]:
    """Operations and bytes a second of a device: of accelerators as their sheets have it, else measured, in a second."""
    device = mesh.devices.flat[0]
    if chip := chips.of_device(device):
        return chip.flops, chip.bandwidth
    with jax.default_device(device):
        x = jnp.ones((1024, 1024), dtype)
        y = jnp.ones(2**24, jnp.float32)
        return 2 * 1024**3 / _seconds(jax.jit(lambda x: x @ x), x), 2 * y.nbytes / _seconds(jax.jit(lambda y: y + 1), y)


def _seconds(do: Any, x: jax.Array) -> float:
    """The quickest of a few calls."""
    jax.block_until_ready(do(x))
    found = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(do(x))
        found.append(time.perf_counter() - began)
    return min(found)
