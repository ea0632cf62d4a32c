"""Which attention suits the devices of a mesh: `flash` on TPUs, cuDNN's on GPUs of NVIDIA, and plain XLA elsewhere.

A kernel is used where it computes just what is asked; else `refused` says why not. A mesh knows its devices also where
none are there and a program is compiled for them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlaif_jax import axes, log

SHORT = 128  # tokens: the smallest block of a kernel
KERNELS = {'tpu': 'flash', 'gpu': 'cudnn'}  # by platform
Arrays = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Asked:
    """What is known of an attention when a program is traced."""

    length: int  # of the rows, in tokens
    head_dim: int
    dtype: str
    whole: bool = True  # queries and keys are those of the same rows
    text: bool = False  # each row is one text: no branches, no other texts beside it
    prefixed: bool = False
    windows: tuple[int, ...] | None = None  # the sizes that a window may have; () if nobody knows, None without one
    capped: bool = False


def refused(asked: Asked, platform: str, kind: str = '') -> str:
    """Why the kernel of these devices, as JAX calls them, cannot compute what is asked; '' where it does."""
    if platform not in KERNELS:
        return f'there is no kernel for {platform}'
    if os.environ.get('RLAIF_ATTENTION') == 'xla':
        return 'RLAIF_ATTENTION is xla'
    if not asked.whole:
        return 'queries stand anywhere before a cache'
    if asked.length < SHORT:
        return f'rows have fewer than {SHORT} tokens'
    if platform == 'tpu':
        if asked.dtype not in ('bfloat16', 'float32'):
            return f'it takes no {asked.dtype}'
        return '' if asked.head_dim <= 256 else f'it takes heads of at most 256 numbers, not {asked.head_dim}'
    if 'nvidia' not in kind.lower():
        return f'cuDNN has none for {kind}'
    if asked.dtype not in ('bfloat16', 'float16'):
        return f'cuDNN takes no {asked.dtype}'
    if asked.head_dim > 128 or asked.head_dim % 8:
        return f'cuDNN takes heads of at most 128 numbers, a multiple of 8, not {asked.head_dim}'
    if asked.capped:
        return 'cuDNN caps no scores'
    if asked.prefixed or not asked.text:
        return 'cuDNN knows no ' + ('shared prefix' if asked.prefixed else 'branches, nor several texts in a row')
    if asked.windows == ():
        return 'the size of its window is not known'
    return ''


def chosen(asked: Asked) -> str:
    """The kernel for the devices of the mesh (`jax.set_mesh`), of `KERNELS`; '' where it does not compute what is asked.
    Which it is, or why none, is said once, of rows that are worth one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    if device is None or device.platform not in KERNELS:
        return ''
    reason = refused(asked, device.platform, device.device_kind)
    if asked.whole and asked.length >= SHORT:
        log.say_once(f'attention on {device.device_kind}: {told(KERNELS[device.platform], reason)}')
    return '' if reason else KERNELS[device.platform]


def told(kernel: str, reason: str) -> str:
    """How attention is computed, in words: by the kernel, or, where there is a reason, without."""
    return f'plain XLA operations ({reason})' if reason else f'the kernel {kernel}'


def expected(mesh: Mesh, dtype: str) -> str:
    """How attention is computed on a mesh where nothing is special, in words: of long rows with one text each."""
    device = mesh.devices.flat[0]
    if device.platform not in KERNELS:
        return 'plain XLA operations'
    reason = refused(Asked(1024, 64, dtype, text=True), device.platform, device.device_kind)
    return told(KERNELS[device.platform], reason) + (' where it can' if not reason else '')


def computed(
    name: str, given: Arrays, *, scale: float | None = None, cap: float | None = None,
    windows: tuple[int, ...] | None = None, interpret: bool = False,
) -> jax.Array:  # fmt: skip
    """a_BTNH, by a kernel, each device of the mesh its rows and heads.

    given: q_BTNH, k_BTKH, v_BTKH and until_BT: query t sees slot s where s <= t < until[s]. k_PKH and v_PKH, which all see.
    Where there is a window its `size`, position_BT, and position_BP of one row, of the prefix. What `refused`
    allows raises nothing.
    """
    kernel = {'flash': _flash, 'cudnn': _cudnn}[name]
    return _over_mesh(lambda given: kernel(given, scale, cap, windows, interpret), dict(given))


def _flash(given: Arrays, scale: Any, cap: Any, windows: Any, interpret: bool) -> jax.Array:
    from rlaif_jax.models.flash import flash  # Pallas, which few need, takes time to import

    return flash(
        *(given[name] for name in ('q_BTNH', 'k_BTKH', 'v_BTKH', 'until_BT')),
        prefix=(given['k_PKH'], given['v_PKH']) if 'k_PKH' in given else None,
        window=(given['size'], given['position_BT'], given.get('position_BP')) if 'size' in given else None,
        scale=scale,
        cap=cap,
        interpret=interpret,
    )


def _cudnn(given: Arrays, scale: Any, cap: Any, windows: Any, interpret: bool) -> jax.Array:
    """Texts without what pads them, which cuDNN knows at their end alone: they are pushed to the front, and back."""
    valid_BT = given['until_BT'] > 0
    order_BT = jnp.argsort(~valid_BT, axis=1, stable=True)
    back_BT = jnp.argsort(order_BT, axis=1)
    length_B = jnp.maximum(valid_BT.sum(axis=1, dtype=jnp.int32), 1)  # of a softmax over nothing comes no number
    pushed = lambda x, to_BT: jnp.take_along_axis(x, to_BT[:, :, None, None], axis=1)  # noqa: E731
    text_BT11 = (jnp.arange(valid_BT.shape[1])[None] < length_B[:, None])[..., None, None]
    fill = ((0, 0), (0, -valid_BT.shape[1] % SHORT), (0, 0), (0, 0))
    # What it leaves behind a text's end, also in gradients, goes nowhere.
    ready = lambda x: jnp.pad(jnp.where(text_BT11, pushed(x, order_BT), 0), fill)  # noqa: E731
    q, k, v = (ready(given[name]) for name in ('q_BTNH', 'k_BTKH', 'v_BTKH'))

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
    return pushed(jnp.where(text_BT11, a_BTNH[:, : valid_BT.shape[1]], 0), back_BT)


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
