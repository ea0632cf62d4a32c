"""The decoder-only language model: tokens in, hidden states out, cache in and out.

    position_BT, mask_BTS = causal(valid_BT)
    hidden_BTD, _ = Transformer(cfg).apply({'params': params}, token_BT, position_BT, mask_BTS)

Who sees whom is the caller's to say, in `mask_BTS`: causal text, cached decoding and branches that share a prefix are
the same forward. Parameters are one flat dict; the layers are stacked along L and scanned. Heads are in `heads.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlaif_jax.axes import constrain

Params = dict[str, jax.Array]
Cache = dict[
    str, jax.Array
]  # key_LBSKH, value_LBSKH, and length: how many slots are filled (int32, the same for all rows)

ACTIVATIONS = {'silu': jax.nn.silu, 'gelu': lambda x: jax.nn.gelu(x, approximate=False), 'gelu_tanh': jax.nn.gelu}


@dataclass(frozen=True)
class Config:
    """Sizes by letter, then what tells one family from another. A family that needs more gets a field here, not a fork."""

    vocab: int  # V, rows of the embedding, padding included
    layers: int  # L
    width: int  # D
    heads: int  # N
    kv_heads: int  # K, divides N
    head_dim: int  # H, even
    ffn: int  # F
    max_length: int = 2048  # positions the model was made for
    activation: Literal['silu', 'gelu', 'gelu_tanh'] = 'silu'
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True  # the unembedding is the embedding
    qkv_bias: bool = False
    dtype: Literal['float32', 'bfloat16'] = (
        'float32'  # of the matrix products; norms, softmax and logits are float32 always
    )
    remat: bool = False  # recompute each layer in the backward pass: memory for time

    def __post_init__(self) -> None:
        for name in ('vocab', 'layers', 'width', 'heads', 'kv_heads', 'head_dim', 'ffn', 'max_length'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be positive, not {getattr(self, name)}')
        if self.heads % self.kv_heads:
            raise ValueError(f'kv_heads = {self.kv_heads} must divide heads = {self.heads}')
        if self.head_dim % 2:
            raise ValueError(f'head_dim = {self.head_dim} must be even for rotary positions')

    @property
    def sizes(self) -> dict[str, int]:
        """letter -> size, for every letter a parameter's name may use."""
        return {
            'V': self.vocab,
            'L': self.layers,
            'D': self.width,
            'N': self.heads,
            'K': self.kv_heads,
            'H': self.head_dim,
            'F': self.ffn,
        }


class Transformer(nn.Module):
    """`apply({'params': params}, token_BT, position_BT, mask_BTS, cache)` -> `(hidden_BTD, cache)`.

    mask_BTS is True where query t may see slot s. Without a cache S is T; with one, the T new tokens take the slots
    from `cache['length']` on and S is the cache's size. `prefix` is a full cache of one row that every query of every row
    sees besides: what all prompts begin with, computed once and copied nowhere.
    """

    cfg: Config

    @nn.compact
    def __call__(
        self,
        token_BT: jax.Array,
        position_BT: jax.Array,
        mask_BTS: jax.Array,
        cache: Cache | None = None,
        prefix: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        c, dtype = self.cfg, jnp.dtype(self.cfg.dtype)

        def weight(name: str, fan_in: str = '', scale: float = 1.0) -> jax.Array:
            """A parameter of the shape its name says: ones without `fan_in`, else normal with variance scale² / (size
            of fan_in).
            """
            shape = tuple(c.sizes[letter] for letter in name.rsplit('_', 1)[1])
            if not fan_in:
                return self.param(name, nn.initializers.zeros if 'bias' in name else nn.initializers.ones, shape)
            std = scale * math.prod(c.sizes[letter] for letter in fan_in) ** -0.5
            return self.param(name, nn.initializers.normal(std), shape)

        quiet = (2 * c.layers) ** -0.5  # each of the 2L residual branches adds its share
        embed_VD = weight('embed_VD', 'D')
        layer = {
            'attention_norm_LD': weight('attention_norm_LD'),
            'query_LDNH': weight('query_LDNH', 'D'),
            'key_LDKH': weight('key_LDKH', 'D'),
            'value_LDKH': weight('value_LDKH', 'D'),
            'out_LNHD': weight('out_LNHD', 'NH', quiet),
            'mlp_norm_LD': weight('mlp_norm_LD'),
            'gate_LDF': weight('gate_LDF', 'D'),
            'up_LDF': weight('up_LDF', 'D'),
            'down_LFD': weight('down_LFD', 'F', quiet),
        }
        if c.qkv_bias:
            layer |= {name: weight(name) for name in ('query_bias_LNH', 'key_bias_LKH', 'value_bias_LKH')}
        final_norm_D = weight('final_norm_D')
        if not c.tied:
            weight('unembed_DV', 'D')

        # Whole along D before the look-up, like any weight before its product: else the rows that come out are split along
        # D, and the compiler replicates them to split them along B.
        x_BTD = constrain(constrain(embed_VD, 'V.')[token_BT].astype(dtype), 'BTD')
        angle = rope(position_BT, c.head_dim, c.rope_theta)

        def block(carry: tuple, scanned: tuple) -> tuple[tuple, None]:
            x_BTD, cache = carry
            index, p = scanned
            h_BTD = rms_norm(x_BTD, p['attention_norm_LD'], c.norm_eps)
            q_BTNH = project(h_BTD, p['query_LDNH'].astype(dtype))
            k_BTKH = project(h_BTD, p['key_LDKH'].astype(dtype))
            v_BTKH = project(h_BTD, p['value_LDKH'].astype(dtype))
            if c.qkv_bias:
                q_BTNH += p['query_bias_LNH'].astype(dtype)[None, None]
                k_BTKH += p['key_bias_LKH'].astype(dtype)[None, None]
                v_BTKH += p['value_bias_LKH'].astype(dtype)[None, None]
            q_BTNH, k_BSKH, v_BSKH = rotate(q_BTNH, angle), rotate(k_BTKH, angle), v_BTKH
            if cache is not None:
                cache, k_BSKH, v_BSKH = write(cache, index, k_BSKH, v_BSKH)
            shared = prefix and (prefix['key_LBSKH'][index, 0], prefix['value_LBSKH'][index, 0])
            a_BTNH = constrain(attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, shared), 'BTNH')
            x_BTD = constrain(x_BTD + project(a_BTNH, p['out_LNHD'].astype(dtype)), 'BTD')

            h_BTD = rms_norm(x_BTD, p['mlp_norm_LD'], c.norm_eps)
            gate_BTF = ACTIVATIONS[c.activation](project(h_BTD, p['gate_LDF'].astype(dtype)))
            up_BTF = constrain(gate_BTF * project(h_BTD, p['up_LDF'].astype(dtype)), 'BTF')
            x_BTD = constrain(x_BTD + project(up_BTF, p['down_LFD'].astype(dtype)), 'BTD')
            return (x_BTD, cache), None

        body = jax.checkpoint(block) if c.remat else block
        (x_BTD, cache), _ = jax.lax.scan(body, (x_BTD, cache), (jnp.arange(c.layers), layer))
        if cache is not None:
            cache = cache | {'length': cache['length'] + token_BT.shape[1]}
        return rms_norm(x_BTD, final_norm_D, c.norm_eps), cache


def init(cfg: Config, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    one = jnp.zeros((1, 1), jnp.int32)
    return Transformer(cfg).init(key, one, one, jnp.ones((1, 1, 1), bool))['params']


def forward(
    cfg: Config,
    params: Params,
    token_BT: jax.Array,
    position_BT: jax.Array,
    mask_BTS: jax.Array,
    cache: Cache | None = None,
    prefix: Cache | None = None,
) -> tuple[jax.Array, Cache | None]:
    """`Transformer(cfg)` as the pure function that every stage calls: `(hidden_BTD, cache)`."""
    return Transformer(cfg).apply({'params': params}, token_BT, position_BT, mask_BTS, cache, prefix)


def make_cache(cfg: Config, batch: int, slots: int) -> Cache:
    """An empty cache in the dtype of the matrix products."""
    shape = (cfg.layers, batch, slots, cfg.kv_heads, cfg.head_dim)
    empty = jnp.zeros(shape, cfg.dtype)
    return {'key_LBSKH': empty, 'value_LBSKH': empty, 'length': jnp.int32(0)}


def causal(valid_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(position_BT, mask_BTS)` of ordinary text: padding, left or right, takes no position and is seen by nobody."""
    position_BT = jnp.maximum(jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32) - 1, 0)
    t = jnp.arange(valid_BT.shape[1])
    return position_BT, valid_BT[:, None, :].astype(bool) & (t[None, :, None] >= t[None, None, :])


def project(x_BT: jax.Array, weight: jax.Array) -> jax.Array:
    """The product over all axes of `x_BT` behind B and T, as many as `weight` begins with.

    As one flat matrix product: on a CPU its weight gradient takes half the time of the einsum's.
    """
    inner = x_BT.ndim - 2
    size = math.prod(weight.shape[:inner])
    flat = x_BT.reshape(-1, size) @ weight.reshape(size, -1)
    return flat.reshape(*x_BT.shape[:2], *weight.shape[inner:])


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) · scale over the last axis, in float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
    return jnp.einsum('...D,D->...D', x32, scale_D).astype(x.dtype)


def rope(position_BT: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), each (B, T, 1, H/2), float32."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = position_BT[:, :, None, None].astype(jnp.float32) * frequency[None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, angle: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions in the Hugging Face layout: the first half of H pairs with the second."""
    cos, sin = angle
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


@jax.checkpoint
def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array,
    shared: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Grouped-query attention; a query that may see nothing (padding) gets a mean of the values, finite and unused.

    `shared`: keys and values (P, K, H) that every query of every row sees, before its own. With K in front its products are
    one for each key-value head, and no axis has to be moved in between: on a CPU a fifth faster than with B in front. The
    softmax divides after the second product. The weights over T x S are computed again in the backward pass, which costs
    no more time than keeping them.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]

    def rows(x_KBGTX: jax.Array) -> jax.Array:
        return x_KBGTX.reshape(K, B, N // K * T, -1)

    q_KBGTH = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H).transpose(2, 0, 3, 1, 4)
    score_KBGTS = matmul32(rows(q_KBGTH), k_BSKH.transpose(2, 0, 3, 1)).reshape(K, B, N // K, T, -1)
    score_KBGTS = jnp.where(mask_BTS[None, :, None], score_KBGTS, -1e30)
    top_KBGT = score_KBGTS.max(axis=-1)
    if shared is not None:
        k_PKH, v_PKH = shared
        score_KBGTP = jnp.einsum('KBGTH,PKH->KBGTP', q_KBGTH, k_PKH, preferred_element_type=jnp.float32)
        top_KBGT = jnp.maximum(top_KBGT, score_KBGTP.max(axis=-1))
    top_KBGT = jax.lax.stop_gradient(top_KBGT)  # whatever is subtracted, the result is the same

    weight_KBGTS = jnp.exp(score_KBGTS - top_KBGT[..., None])
    sum_KBGT = weight_KBGTS.sum(axis=-1)
    a_KBGTH = matmul32(rows(weight_KBGTS).astype(v_BSKH.dtype), v_BSKH.transpose(2, 0, 1, 3)).reshape(q_KBGTH.shape)
    if shared is not None:
        weight_KBGTP = jnp.exp(score_KBGTP - top_KBGT[..., None])
        sum_KBGT += weight_KBGTP.sum(axis=-1)
        a_KBGTH += jnp.einsum(
            'KBGTP,PKH->KBGTH', weight_KBGTP.astype(v_PKH.dtype), v_PKH, preferred_element_type=jnp.float32
        )
    a_KBGTH = (a_KBGTH / sum_KBGT[..., None]).astype(q_BTNH.dtype)
    return a_KBGTH.transpose(1, 3, 0, 2, 4).reshape(B, T, N, H)


def matmul32(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b`, accumulated and handed back in float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def write(cache: Cache, layer: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> tuple[Cache, jax.Array, jax.Array]:
    """Put the new keys and values into the layer's next slots; returns the cache and the layer's whole key_BSKH,
    value_BSKH.

    The cache is carried through the scan and updated in place: scanning over it would copy all of it at every token.
    """
    at = (layer, 0, cache['length'], 0, 0)
    key = jax.lax.dynamic_update_slice(cache['key_LBSKH'], k_BTKH[None].astype(cache['key_LBSKH'].dtype), at)
    value = jax.lax.dynamic_update_slice(cache['value_LBSKH'], v_BTKH[None].astype(cache['value_LBSKH'].dtype), at)
    return cache | {'key_LBSKH': key, 'value_LBSKH': value}, key[layer], value[layer]
