"""Which attention suits the devices of a mesh: `flash` on TPUs, cuDNN's on GPUs of NVIDIA, and plain XLA elsewhere.

A kernel is used where it computes just what is asked; else `refused` says why not. A mesh knows its devices also where
none are there and a program is compiled for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlaif_jax import axes, log
from rlaif_jax.models.flash import flash

SHORT = 128  # tokens: a kernel's smallest block
Arrays = Mapping[str, jax.Array]

_allowed = True


def allow(kernels: bool) -> None:
    """Whether programs that are traced from now on may use a kernel."""
    global _allowed
    _allowed = kernels


@dataclass(frozen=True)
class Asked:
    """What is known of an attention when a program is traced."""

    length: int  # of the rows, in tokens
    head_dim: int
    dtype: str
    whole: bool = True  # queries and keys are those of the same rows
    text: bool = False  # each row is one text: no branches, no other texts beside it
    prefixed: bool = False
    windowed: bool = False
    windows: tuple[int, ...] = ()  # the sizes that a window may have; () if nobody knows
    capped: bool = False


def refused(asked: Asked, platform: str, kind: str = '') -> str:
    """Why the kernel of these devices, as JAX calls them, cannot compute what is asked; '' where it does."""
    if platform not in ('tpu', 'gpu'):
        return f'there is no kernel for {platform}'
    if not _allowed:
        return 'kernels are not allowed'
    if not asked.whole:
        return 'queries stand anywhere before a cache'
    if asked.length < SHORT:
        return f'rows have fewer than {SHORT} tokens'
    if platform == 'tpu':
        return '' if asked.dtype in ('bfloat16', 'float32') else f'it takes no {asked.dtype}'
    if 'nvidia' not in kind.lower():
        return f'cuDNN has none for {kind}'
    if asked.dtype not in ('bfloat16', 'float16'):
        return f'cuDNN takes no {asked.dtype}; model dtypes are float32 and bfloat16'
    if asked.head_dim > 128 or asked.head_dim % 8:
        return f'cuDNN takes heads of at most 128 numbers, a multiple of 8, not {asked.head_dim}'
    if asked.capped:
        return 'cuDNN caps no scores'
    if asked.prefixed or not asked.text:
        return 'cuDNN knows no ' + ('shared prefix' if asked.prefixed else 'branches, nor several texts in a row')
    if asked.windowed and not asked.windows:
        return 'the size of its window is not known'
    return ''


def chosen(asked: Asked) -> Literal['flash', 'cudnn', '']:
    """The kernel for the devices of the mesh (`jax.set_mesh`); '': none. It is said, once, for rows that are worth one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return ''
    platform, kind = mesh.abstract_device.platform, mesh.abstract_device.device_kind
    reason, name = refused(asked, platform, kind), {'tpu': 'flash', 'gpu': 'cudnn'}.get(platform, '')
    if name and asked.whole and asked.length >= SHORT:
        log.say_once(f'attention on {kind}: ' + (f'plain XLA, as {reason}' if reason else f'the kernel {name}'))
    return '' if reason else name


def computed(
    name: Literal['flash', 'cudnn'], given: Arrays, *, scale: float | None = None, cap: float | None = None,
    windows: tuple[int, ...] = (), interpret: bool = False,
) -> jax.Array:  # fmt: skip
    """a_BTNH, by a kernel, each device of the mesh its rows and heads.

    given: q_BTNH, k_BTKH, v_BTKH and until_BT: query t sees slot s where s <= t < until[s]. k_PKH and v_PKH, which all see.
    Where there is a window its `size`, position_BT, and position_BP of one row, of the prefix. Raises nothing that
    `refused` has not said.
    """
    kernel = {'flash': _flash, 'cudnn': _cudnn}[name]
    return _over_mesh(lambda given: kernel(given, scale, cap, windows, interpret), dict(given))


def _flash(given: Arrays, scale: Any, cap: Any, windows: tuple[int, ...], interpret: bool) -> jax.Array:
    return flash(
        *(given[name] for name in ('q_BTNH', 'k_BTKH', 'v_BTKH', 'until_BT')),
        prefix=(given['k_PKH'], given['v_PKH']) if 'k_PKH' in given else None,
        window=(given['size'], given['position_BT'], given.get('position_BP')) if 'size' in given else None,
        scale=scale,
        cap=cap,
        interpret=interpret,
    )


def _cudnn(given: Arrays, scale: Any, cap: Any, windows: tuple[int, ...], interpret: bool) -> jax.Array:
    """Texts without what pads them, which cuDNN knows at their end alone: they are pushed to the front, and back."""
    valid_BT = given['until_BT'] > 0
    order_BT = jnp.argsort(~valid_BT, axis=1, stable=True)
    back_BT = jnp.argsort(order_BT, axis=1)
    length_B = valid_BT.sum(axis=1, dtype=jnp.int32)
    pushed = lambda x, to_BT: jnp.take_along_axis(x, to_BT[:, :, None, None], axis=1)  # noqa: E731
    q, k, v = (pushed(given[name], order_BT) for name in ('q_BTNH', 'k_BTKH', 'v_BTKH'))

    def within(window: int) -> Callable[[], jax.Array]:
        return lambda: jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, query_seq_lengths=length_B, key_value_seq_lengths=length_B,
            local_window_size=(window - 1, 0) if 0 < window < q.shape[1] else None,
            implementation='xla' if interpret else 'cudnn',
        )  # fmt: skip

    if 'size' in given:  # of the text's positions, which are its slots without padding
        at = jnp.argmax(jnp.array([window or 2**30 for window in windows]) == given['size'])
        a_BTNH = jax.lax.switch(at, [within(window) for window in windows])
    else:
        a_BTNH = within(0)()
    a_BTNH = jnp.where(jnp.arange(q.shape[1])[None, :, None, None] < length_B[:, None, None, None], a_BTNH, 0)
    return pushed(a_BTNH, back_BT)


def _over_mesh(call: Callable[[Arrays], jax.Array], given: dict[str, jax.Array]) -> jax.Array:
    """`call` on every device of the mesh, with its share of the arrays, by the letters of their names."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return call(given)
    # Where heads are split further than there are keys and values, those that several devices need are repeated.
    N, (K, tensor) = given['q_BTNH'].shape[2], (given['k_BTKH'].shape[2], mesh.shape[axes.RULES['N']])
    if N % tensor == 0 and (times := tensor // math.gcd(K, tensor)) > 1:
        repeated = lambda x: jnp.repeat(x, times, axis=-2)  # noqa: E731
        given |= {name: repeated(x) for name, x in given.items() if axes.letters(name).endswith('KH')}
    specs = {name: axes.spec(axes.letters(name), x.shape, mesh) for name, x in given.items()}
    return jax.shard_map(call, in_specs=(specs,), out_specs=specs['q_BTNH'], check_vma=False)(given)
