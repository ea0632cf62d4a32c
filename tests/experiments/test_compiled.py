"""Laws of reading what a compiler made: what devices send each other is counted as often as it happens, once each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compiled
from experiments.programs import Program
from rlaif_jax import axes

TEXT = """\
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %g = f32[64,16]{1,0} all-gather(%x), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %h = f32[8,16]{1,0} all-reduce(%y), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%condition (p: (s32[], f32[8,16])) -> pred[] {
  %n = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%fused.1 (p: f32[2,4]) -> f32[8,4] {
  ROOT %g2 = f32[8,4]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
}

%fused.2 (p: f32[2,4]) -> f32[8,4] {
  ROOT %g3 = f32[8,4]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
}

ENTRY %main (p: f32[8,16]) -> f32[8,16] {
  %loop = (s32[], f32[8,16]) while(%t), condition=%condition, body=%body
  %a = f32[8,4] fusion(%q), kind=kLoop, calls=%fused.1
  %b = f32[8,4] fusion(%q), kind=kLoop, calls=%fused.2
  %c = (bf16[4,4]{1,0}, bf16[4,4]{1,0}, u32[]) collective-permute-start(%z), channel_id=4, source_target_pairs={{0,1}}
  %d = bf16[4,4]{1,0} collective-permute-done(%c)
}
"""


def test_each_collective_counts_as_often_as_its_loop_turns_and_once_over_its_pieces():
    assert compiled.collectives(TEXT) == {
        'all-gather': 12 * 64 * 16 * 4 * 7 / 8 + 8 * 4 * 4 * 3 / 4,
        'all-reduce': 12 * 2 * 8 * 16 * 4 * 3 / 4,
        'collective-permute': 4 * 4 * 2,
    }


def test_a_program_of_real_devices_sends_what_its_arithmetic_says():
    mesh = axes.make_mesh({'fsdp': 4})
    split, whole = axes.rows(mesh), axes.replicated(mesh)

    def f(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: jax.lax.with_sharding_constraint(
            jax.lax.with_sharding_constraint(x * 2, whole) @ np.ones((8, 8), np.float32), split), x)  # fmt: skip

    given = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=split)
    found = compiled.collectives(jax.jit(f, out_shardings=split).lower(given).compile().as_text())
    assert found['all-gather'] == pytest.approx(5 * 16 * 8 * 4 * 3 / 4)


def test_a_text_that_cannot_be_read_costs_no_compilation(tmp_path, monkeypatch, capsys):
    """As where libtpu is newer than jaxlib: memory is known, and kept."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    lowered = jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8)))
    compiles = []

    class Unread:
        def __init__(self):
            compiles.append(1)

        def as_text(self):
            raise jax.errors.JaxRuntimeError('INTERNAL: RET_CHECK failure')

        def memory_analysis(self):
            return lowered.compile().memory_analysis()

    class Lowered:
        def as_text(self):
            return lowered.as_text()

        def compile(self):
            return Unread()

    program = Program('p', 1.0, 8, 0, 0, 0, 0.0, 0.0, Lowered, {})
    first, again = (compiled.compile(program, 'here') for _ in range(2))
    assert first == again and first.need >= 8 * 8 * 4 and first.sent == {} and len(compiles) == 1
    assert 'not counted' in capsys.readouterr().out


def test_an_array_that_is_whole_somewhere_is_named_and_no_other_with_as_many_numbers():
    split = {'a_LDF': (16, 8, 8), 'b_LDF': (15, 8, 8), 'c_LDF': (4, 16, 16), 'logits_BTV': (1, 2, 4, 16)}
    assert compiled.gathered(TEXT, split) == ('a_LDF', 'logits_BTV')
    split = {'key_LDKH': (16, 2048, 8, 64)}
    assert compiled.gathered('%up = f32[2048,8192]{1,0} all-gather(%x)', split) == ()
    assert compiled.gathered('%cache = bf16[16,2,8,1024,64]{4,3,2,1,0} parameter(0)', split) == ()
    assert compiled.gathered('%key = bf16[2048,16,512]{2,1,0} all-gather(%x)', split) == ('key_LDKH',)
    assert compiled.gathered('%key = bf16[16,64,1,16384]{3,2,1,0} all-gather(%x)', split) == ('key_LDKH',)
