"""Laws of a stage's programs: what a plan counts is what a run calls, and what its compiler needs is near."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from experiments import programs as module
from experiments.programs import Line, Read, memory, programs
from rlaif_jax import axes, generation
from rlaif_jax.models import lora, transformer
from rlaif_jax.models.presets import PRESETS
from rlaif_jax.training import reinforce, reward_model, sft

MODEL = replace(PRESETS['micro_xs'], layers=4)
PROMPT, NEW = 96, 32
COMMON = {'batch': 16, 'parts': 2}
LINES = {
    'sft': Line('sft', Path(), 10, {'policy': 'm'}, sft.Config(remat=True, **COMMON), PROMPT + NEW, read=NEW),
    'reward model': Line(
        'reward model', Path(), 10, {'policy': 'm'},
        reward_model.Config(max_prompt=PROMPT, max_response=NEW, **COMMON), PROMPT + 2 * NEW,
        (Read('policy', 'scores', 8, PROMPT + NEW, calls=3),),
    ),
    'reinforce': Line(
        'reinforce', Path(), 10, dict.fromkeys(('policy', 'value', 'reference', 'labeler'), 'm'),
        reinforce.Config(max_prompt=PROMPT, max_new_tokens=NEW, **COMMON), PROMPT + NEW,
        (Read('policy', 'writes', 16, PROMPT, NEW), Read('labeler', 'answers', 8, PROMPT + NEW)),
    ),
    'labels': Line(
        'labels', Path(), 100, {'labeler': 'm'},
        reads=(Read('labeler', 'writes', 16, PROMPT, NEW, 1, 16), Read('labeler', 'answers', 8, PROMPT, NEW, 2, 16)),
    ),
}  # fmt: skip


def made(name: str, mesh, model=MODEL):
    line = LINES[name]
    return programs(line, dict.fromkeys(line.models, model), mesh)


@cache
def found(name: str, fsdp: int):
    mesh = axes.make_mesh({'fsdp': fsdp})
    return [(one, one.lower().compile().memory_analysis()) for one in made(name, mesh)]


@pytest.mark.parametrize('fsdp', [1, 4])
@pytest.mark.parametrize('name', LINES)
def test_the_arguments_of_a_plan_are_those_that_the_compiler_counts(name, fsdp):
    """Exactly, but for batches and a few scalars: so nothing that lies on a device is forgotten, or counted twice."""
    for program, of in found(name, fsdp):
        batches = 16 * (PROMPT + 2 * NEW) * 24 + MODEL.vocab * 2 + 4 * 16 * MODEL.layers * MODEL.width * 2
        assert program.arguments <= of.argument_size_in_bytes <= program.arguments + batches, program.name


@pytest.mark.parametrize('name', LINES)
def test_what_a_plan_says_of_a_program_is_what_a_cpu_needs(name):
    for program, of in found(name, 1):
        needed = of.argument_size_in_bytes + of.temp_size_in_bytes
        assert needed < program.arguments + program.working < 1.6 * needed, program.name


def test_a_program_is_the_one_that_a_run_calls():
    """To the letter of its text."""
    line, mesh = LINES['sft'], axes.make_mesh({'fsdp': 2})
    (program,) = made('sft', mesh)
    params = axes.place(transformer.init(MODEL, jax.random.key(0)), mesh)
    init, step = sft.make_step(line.training, MODEL, mesh)
    batch = {name: jnp.zeros((16, PROMPT + NEW), kind) for name, kind in (
        ('token_BT', jnp.int32), ('target_BT', jnp.int32), ('weight_BT', jnp.float32), ('position_BT', jnp.int32),
        ('until_BT', jnp.int32))}  # fmt: skip
    batch['read_BW'] = jnp.zeros((16, min(sft.READ, PROMPT + NEW)), jnp.int32)
    batch = jax.device_put(batch, axes.rows(mesh))
    with jax.set_mesh(mesh):
        assert step.lower(init(params), params, batch).as_text() == program.lower().as_text()


def test_who_writes_is_the_sampler():
    mesh = axes.make_mesh()
    (program,) = (one for one in made('reinforce', mesh) if one.name == 'policy writes')
    assert generation.sample.__name__ in program.lower().as_text()[:200]


@pytest.mark.parametrize('name', LINES)
def test_more_devices_hold_less_each_and_calculate_less(name):
    one, eight = (made(name, AbstractMesh((1, n, 1), axes.MESH_AXES)) for n in (1, 8))
    for alone, shared in zip(one, eight):
        assert shared.name == alone.name and shared.need < alone.need
        assert shared.flops == pytest.approx(alone.flops / 8) and shared.traffic <= alone.traffic


def test_remat_parts_and_adapters_save_memory():
    line = LINES['reinforce']
    need = lambda **more: memory(  # noqa: E731
        replace(line, training=replace(line.training, **more)), dict.fromkeys(line.models, replace(MODEL, layers=12))
    )
    assert need(remat=True) < need()
    assert need(parts=8) < need()
    assert need(lora=lora.Config(rank=4)) < need()


def test_operations_are_those_of_the_products():
    """Against XLA's count of a step; it counts a loop once, so there is one turn of each."""
    line = replace(LINES['sft'], training=sft.Config(batch=16), length=64)
    (program,) = programs(line, {'policy': replace(MODEL, layers=1)}, axes.make_mesh())
    counted = program.lower().compile().cost_analysis()['flops']
    assert 0.8 * counted < program.flops < 1.2 * counted


def test_a_count_is_that_of_the_parameters():
    params = transformer.init(PRESETS['micro_l'], jax.random.key(0))
    assert module.count(PRESETS['micro_l']) == sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def test_of_experts_a_token_passes_those_that_it_chooses():
    model = replace(MODEL, experts=8, chosen=2)
    expert = 3 * model.width * model.ffn * model.layers
    assert module.count(model) - module.touched(model) == 6 * expert
    assert module.count(model) - module.touched(model, 1000) < 1
    # On a CPU it passes all of them, and that is what the program does.
    line = replace(LINES['sft'], training=sft.Config(batch=16), length=64)
    one, all_of_them = (replace(model, layers=1, experts=n, chosen=n) for n in (1, 8))
    few, many = (programs(line, {'policy': cfg}, axes.make_mesh())[0] for cfg in (one, replace(all_of_them, chosen=2)))
    assert many.flops - few.flops == pytest.approx(3 * 2 * 16 * 64 * 7 * expert / model.layers, rel=0.01)
