"""The decoder-only language model: tokens in, hidden states out, cache in and out.

    position_BT, sees = causal(valid_BT)
    hidden_BTD, _ = Transformer(cfg).apply({'params': params}, token_BT, position_BT, sees)

Who sees whom is the caller's to say, in `sees`: causal text, cached decoding and branches that share a prefix are
the same forward. Parameters are one flat dict; the layers are stacked along L and scanned. Heads are in `heads.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax import axes
from rlaif_jax.axes import TABLE, constrain
from rlaif_jax.models import experts
from rlaif_jax.models.attention import ALWAYS, Keys, Prefix, Sees, Text, Window, attention, look_back

Params = dict[str, jax.Array]
# key_LBKSH, value_LBKSH, and length: how many slots are filled (int32, the same for all rows). Where some layer has a
# window also position_BS, of the token in each slot; where some slots hold padding, until_BS (`attention.Sees`).
Cache = dict[str, Any]

ACTIVATIONS = {'silu': jax.nn.silu, 'gelu': lambda x: jax.nn.gelu(x, approximate=False), 'gelu_tanh': jax.nn.gelu}
# The matrices of a layer, and over which axes each sums. Those of experts stand by themselves: they get no adapters.
FAN_IN = {
    'query_LDNH': 'D', 'key_LDKH': 'D', 'value_LDKH': 'D', 'out_LNHD': 'NH', 'gate_LDF': 'D', 'up_LDF': 'D',
    'down_LFD': 'F',
}  # fmt: skip
MATRICES = FAN_IN | experts.FAN_IN  # all of them
# On a CPU as many layers stand one behind the other in a program: nothing is copied into a loop and out of it, which is a
# fifth of a training step of two layers, and compiles no slower.
UNROLLED = 8
PRODUCTS = {*MATRICES, 'embed_VD', 'unembed_DV'}  # what enters products; all else is float32 always


@dataclass(frozen=True)
class Rope:
    """Rotary positions: of the first R = fraction · H numbers of a head, pair i turns by position · theta^(-2i / R)
    radians.

    A model that was stretched to longer texts turns `factor` times slower. Llama 3 spares the fast pairs: with
    `spared` = (low, high, length), those that turn more than `high` times in `length` positions keep their speed, those
    that turn less than `low` times get the whole factor, and those in between are mixed. YaRN does so by the number
    of a pair: `ramp` = (fast, slow, length, whole) are the turns in `length` positions of the last pair that keeps its
    speed and of the first that gets the whole factor, with `whole` as whole numbers of pairs. LongRoPE has a factor for
    each pair, `each`. Both let attention see more of a long text: cos and sin are `scale` times as large. A layer without
    positions has the factor inf: it never turns.

    Some models turn otherwise in texts longer than `Config.max_length`. That is not computed; `beyond` are the words of
    their files for it.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    factor: float = 1.0
    spared: tuple[float, float, int] | None = None
    ramp: tuple[float, float, int, bool] | None = None
    each: tuple[float, ...] = ()
    scale: float = 1.0
    beyond: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not (0 < self.theta < math.inf and self.factor > 0 and 0 < self.fraction <= 1):
            raise ValueError(f'rotary positions need theta > 0, factor > 0 and a fraction in (0, 1], not {self}')
        if self.spared and not (0 < self.spared[0] < self.spared[1] < math.inf and self.spared[2] >= 1):
            raise ValueError(f'rotary positions are spared with 0 < low < high and a length above 0, not {self.spared}')
        if self.ramp and not (0 < self.ramp[1] < self.ramp[0] < math.inf and self.ramp[2] >= 1 and self.theta != 1):
            raise ValueError(f'YaRN has 0 < slow < fast and a length above 0, not {self.ramp}')
        if not (all(0 < one < math.inf for one in self.each) and 0 < self.scale < math.inf):
            raise ValueError(f'rotary positions need a scale and factors above 0, not {self.scale} and {self.each}')


@dataclass(frozen=True)
class Config:
    """Sizes by letter, then what tells one family from another. A family that needs more gets a field here, not a fork."""

    vocab: int  # V, rows of the embedding, padding included
    layers: int  # L
    width: int  # D
    heads: int  # N
    kv_heads: int  # K, divides N
    head_dim: int  # H, even
    ffn: int  # F, of each expert where there are several
    max_length: int = 2048  # positions the model was made for
    tied: bool = True  # the unembedding is the embedding
    embed_scale: float = 1.0  # what enters the first layer is the embedding times this; Gemma: √D
    logit_cap: float | None = None  # c: logits go through c · tanh(logit / c)

    activation: Literal['silu', 'gelu', 'gelu_tanh'] = 'silu'
    gated: bool = True  # down(activation(gate(x)) · up(x)); else down(activation(up(x)))
    experts: int = 0  # E, MLPs in the place of one, all with gates; 0: one
    chosen: int = 0  # of them, by each token
    shared: bool = True  # what the chosen ones have of the router's probabilities is scaled to sum to 1
    parallel: bool = False  # the MLP reads what attention reads; else what attention leaves
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False

    norm: Literal['rms', 'layer'] = 'rms'  # x / rms(x) · scale, or (x − mean(x)) / std(x) · scale + bias
    norm_at: Literal['before', 'after', 'around'] = 'before'  # of attention and MLP; around: before and after
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # the scale of a norm is its parameter plus this; Gemma: 1
    qk_norm: Literal['none', 'head', 'all'] = 'none'  # of queries and keys: over each head, or over all of them at once

    attention_scale: float | None = None  # of query · key; None: H^-½
    attention_cap: float | None = None  # c: attention scores go through c · tanh(score / c)
    # One a layer, from the first on; a shorter tuple is repeated.
    ropes: tuple[Rope, ...] = (Rope(),)
    windows: tuple[int, ...] = (0,)  # how many positions back a layer sees, the token's own included; 0: all
    lora_scale: float = 1.0  # of what adapters add, where the parameters hold some (`lora.py`)

    family: str = 'llama'  # whose names its files have (`families.py`); nothing is computed by it
    # Of the matrix products; norms, softmax and logits are float32 always.
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    remat: bool = False  # recompute each layer in the backward pass: memory for time

    def __post_init__(self) -> None:
        for name in ('vocab', 'layers', 'width', 'heads', 'kv_heads', 'head_dim', 'ffn', 'max_length'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be positive, not {getattr(self, name)}')
        if self.heads % self.kv_heads:
            raise ValueError(f'kv_heads = {self.kv_heads} must divide heads = {self.heads}')
        if self.head_dim % 2:
            raise ValueError(f'head_dim = {self.head_dim} must be even for rotary positions')
        if self.norm == 'layer' and self.qk_norm != 'none':
            raise ValueError(f"qk_norm = {self.qk_norm!r} goes with norm = 'rms' only")
        if not 0 <= self.chosen <= self.experts or bool(self.chosen) != bool(self.experts):
            raise ValueError(f'chosen = {self.chosen} of experts = {self.experts}: at least one, where there are any')
        if self.experts and (self.mlp_bias or not self.gated):
            raise ValueError('experts have gates and no biases')
        if not self.ropes or not self.windows or min(self.windows) < 0:
            raise ValueError('ropes and windows hold at least one each, and no window is negative')
        turned = {int(self.head_dim * rope.fraction) for rope in self.ropes}
        if len(turned) > 1 or turned.pop() % 2:
            raise ValueError(f'the same even part of head_dim = {self.head_dim} must turn in all layers')
        for rope in self.ropes:
            if rope.each and len(rope.each) != int(self.head_dim * rope.fraction) // 2:
                raise ValueError(f'{len(rope.each)} factors of rotary positions, for a head of {self.head_dim} numbers')

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
            'E': self.experts,
        }

    @property
    def names(self) -> list[str]:
        """Every parameter's name, which is its shape, in the order in which `init` draws them."""
        before, after = self.norm_at != 'after', self.norm_at != 'before'
        layered = self.norm == 'layer'
        groups = [
            (True, 'embed_VD'),
            (before, 'attention_norm_LD'),
            (True, 'query_LDNH key_LDKH value_LDKH out_LNHD'),
            (before, 'mlp_norm_LD'),
            (self.gated and not self.experts, 'gate_LDF'),
            (not self.experts, 'up_LDF down_LFD'),
            (self.experts, 'router_LDE gate_LEDF up_LEDF down_LEFD'),
            (self.qkv_bias, 'query_bias_LNH key_bias_LKH value_bias_LKH'),
            (self.out_bias, 'out_bias_LD'),
            (self.mlp_bias and self.gated, 'gate_bias_LF'),
            (self.mlp_bias, 'up_bias_LF down_bias_LD'),
            (self.qk_norm == 'head', 'query_norm_LH key_norm_LH'),
            (self.qk_norm == 'all', 'query_norm_LNH key_norm_LKH'),
            (after, 'attention_out_norm_LD mlp_out_norm_LD'),
            (layered and before, 'attention_norm_bias_LD mlp_norm_bias_LD'),
            (layered and after, 'attention_out_norm_bias_LD mlp_out_norm_bias_LD'),
            (True, 'final_norm_D'),
            (layered, 'final_norm_bias_D'),
            (not self.tied, 'unembed_DV'),
        ]
        return [name for there, names in groups if there for name in names.split()]

    @property
    def windowed(self) -> bool:
        """Some layer does not see everything."""
        return any(self.windows)

    def each(self, values: tuple) -> tuple:
        """`ropes` or `windows`, one a layer."""
        return tuple(values[i % len(values)] for i in range(self.layers))


class Transformer(nn.Module):
    """`apply({'params': params}, token_BT, position_BT, sees, cache)` -> `(hidden_BTD, cache)`.

    `sees` says which slots each token sees; a layer with a window sees of these the ones near enough in position. The T new
    tokens take the slots of the cache, where there is one, from `cache['length']` on. They see each other alone where
    `sees` is of them alone, as when they are the first; else the slots are those of the cache.

    `before` are full caches that queries see as well, computed once and copied nowhere. One of one row holds what all
    prompts begin with. One of R rows holds prompts: each belongs to B / R neighbouring rows, its responses. Tokens that see
    each other alone take one of the first kind at most.

    Where only the hidden states at the slots `read_BW` of the new tokens are wanted, hidden is `(B, W, D)` and the last
    layer computes no others.

    A layer does what it has parameters for: a norm, bias or gate that `cfg.names` does not list is left out, an adapter
    that the parameters hold besides adds its share.
    """

    cfg: Config

    @nn.compact
    def __call__(
        self,
        token_BT: jax.Array,
        position_BT: jax.Array,
        sees: Sees,
        cache: Cache | None = None,
        before: Sequence[Cache] = (),
        read_BW: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        params = {name: self.param(name, *drawn(self.cfg, name)) for name in self.cfg.names}
        params |= adapters(self.variables['params'])
        return forward(self.cfg, params, token_BT, position_BT, sees, cache, before, read_BW)


def forward(
    cfg: Config,
    params: Params,
    token_BT: jax.Array,
    position_BT: jax.Array,
    sees: Sees,
    cache: Cache | None = None,
    before: Sequence[Cache] = (),
    read_BW: jax.Array | None = None,
) -> tuple[jax.Array, Cache | None]:
    """`Transformer(cfg)` as the pure function that every stage calls: `(hidden_BTD, cache)`. Layers that lie one by one
    (`apart`), and few on a CPU, are computed one by one, without a scan.
    """
    dtype, length = jnp.dtype(cfg.dtype), token_BT.shape[1]
    # Every device looks up its share of D for the rows of all; then rows change places. The table stays where it is.
    x_BTD = constrain(params['embed_VD'].astype(dtype), 'VD')[constrain(token_BT, 'BT', TABLE)]
    x_BTD = constrain(constrain(x_BTD, 'BTD', TABLE), 'BTD')
    if cfg.embed_scale != 1:
        x_BTD *= jnp.asarray(cfg.embed_scale, dtype)

    # What differs between layers is scanned with their parameters; what does not is computed here, once.
    layer = {name: x for name, x in params.items() if '_L' in name}
    ropes = list(dict.fromkeys(cfg.each(cfg.ropes)))
    angles = [rope(position_BT, cfg.head_dim, kind) for kind in ropes]
    angle = angles[0]
    if len(ropes) > 1:
        layer['rope_L'] = np.array([ropes.index(kind) for kind in cfg.each(cfg.ropes)])
        angle = jax.tree.map(lambda *kinds: jnp.stack(kinds), *angles)
    if cfg.windowed:
        layer['window_L'] = np.array([window or ALWAYS for window in cfg.each(cfg.windows)])
        if cache is not None:
            at = (0, cache['length'])
            cache = cache | {'position_BS': jax.lax.dynamic_update_slice(cache['position_BS'], position_BT, at)}
    given = Given(cfg, position_BT, sees, angle, tuple(before))

    def body(carry: tuple, scanned: tuple, read_BW: jax.Array | None = None) -> tuple[tuple, None]:
        return block(given, *scanned, *carry, read_BW), None

    def numbered(i: Any) -> tuple[Any, Params]:
        return i, {name: x[i] if isinstance(x, tuple) else jnp.asarray(x)[i] for name, x in layer.items()}

    carry = x_BTD, cache
    if isinstance(layer['query_LDNH'], tuple) or (unrolled(cfg, axes.platform()) and read_BW is not None):
        for i in range(cfg.layers):
            carry, _ = body(carry, numbered(i), read_BW if i == cfg.layers - 1 else None)
    elif read_BW is None:
        body = jax.checkpoint(body) if cfg.remat else body
        scanned = jnp.arange(cfg.layers), jax.tree.map(jnp.asarray, layer)
        carry, _ = jax.lax.scan(body, carry, scanned, unroll=cfg.layers if unrolled(cfg, axes.platform()) else 1)
    else:  # no gradient comes this way: one through `numbered` would be as large as all layers, once a layer
        carry, _ = jax.lax.scan(lambda carry, i: body(carry, numbered(i)), carry, jnp.arange(cfg.layers - 1))
        carry, _ = body(carry, numbered(cfg.layers - 1), read_BW)
    x_BTD, cache = carry
    if cache is not None:
        cache = cache | {'length': cache['length'] + length}
    return norm(cfg, params, 'final_norm_D', x_BTD), cache


def forward_at(
    cfg: Config, params: Params, token_BT: jax.Array, position_BT: jax.Array, sees: Sees, read_BW: jax.Array
) -> jax.Array:
    """hidden_BWD of `forward` at the slots `read_BW`, through which gradients pass. A slot of T reads any.

    Of few layers the last computes no others: of two layers with a token read of each text that is nearly a half of all.
    A gradient through a scan of all layers but one would copy the parameters, for one layer of many.
    """
    if unrolled(cfg, axes.platform()):
        return forward(cfg, params, token_BT, position_BT, sees, read_BW=read_BW)[0]
    hidden_BTD, _ = forward(cfg, params, token_BT, position_BT, sees)
    return picked(constrain(hidden_BTD, 'BTD'), read_BW)  # so that the gradient is split as the hidden states are


def unrolled(cfg: Config, platform: str) -> bool:
    """Whether layers are computed one by one, without a scan. Not where the backward pass computes them again: outside of a
    loop the compiler keeps what was to be computed again.
    """
    return cfg.layers <= UNROLLED and platform == 'cpu' and not cfg.remat


class Given(NamedTuple):
    """What all layers are given alike."""

    cfg: Config
    position_BT: jax.Array
    sees: Sees
    angle: tuple[jax.Array, jax.Array]  # of `rope`; where layers turn differently, of each kind, stacked
    before: tuple[Cache, ...]


def block(
    given: Given, index: Any, p: Params, x_BTD: jax.Array, cache: Cache | None, read_BW: jax.Array | None
) -> tuple[jax.Array, Cache | None]:
    """The layer `index`, whose parameters are `p`: `(hidden_BTD, cache)`, with `read_BW` of these tokens alone."""
    cfg = given.cfg
    h_BTD = norm(cfg, p, 'attention_norm_LD', x_BTD)
    a_BTD, cache = attend(given, index, p, h_BTD, cache, read_BW)
    x_BTD = picked(x_BTD, read_BW)
    a_BTD = constrain(x_BTD + norm(cfg, p, 'attention_out_norm_LD', a_BTD), 'BTD')
    m_BTD = mlp(cfg, p, norm(cfg, p, 'mlp_norm_LD', x_BTD if cfg.parallel else a_BTD))
    return constrain(a_BTD + norm(cfg, p, 'mlp_out_norm_LD', m_BTD), 'BTD'), cache


def attend(
    given: Given, index: Any, p: Params, h_BTD: jax.Array, cache: Cache | None, read_BW: jax.Array | None
) -> tuple[jax.Array, Cache | None]:
    """What the tokens of `h_BTD`, or of them those at `read_BW`, take from those that they see."""
    cfg = given.cfg
    k_BTKH = linear(cfg, p, 'key_LDKH', 'key_bias_LKH', h_BTD)
    v_BTKH = linear(cfg, p, 'value_LDKH', 'value_bias_LKH', h_BTD)
    q_BTNH = linear(cfg, p, 'query_LDNH', 'query_bias_LNH', picked(h_BTD, read_BW))
    if cfg.qk_norm != 'none':
        N, K = ('NH', 'KH') if cfg.qk_norm == 'all' else 'HH'
        q_BTNH, k_BTKH = norm(cfg, p, f'query_norm_L{N}', q_BTNH), norm(cfg, p, f'key_norm_L{K}', k_BTKH)
    angle = jax.tree.map(lambda kinds: kinds[p['rope_L']], given.angle) if 'rope_L' in p else given.angle
    q_BTNH = rotate(q_BTNH, tuple(picked(x, read_BW) for x in angle))
    k_BSKH, v_BSKH = rotate(k_BTKH, angle), v_BTKH
    if cache is not None:
        cache = write(cache, index, k_BSKH, v_BSKH)
    how = {'scale': cfg.attention_scale, 'cap': cfg.attention_cap}
    if cfg.windowed:
        how['window'] = Window(p['window_L'], picked(given.position_BT, read_BW), given.position_BT, cfg.windows)
    sees, before = given.sees.picked(read_BW), [kept(one, index) for one in given.before]
    if cache is None or given.sees.slot_BT is None:
        prefix = Prefix(before[0].k_RKSH[0], before[0].v_RKSH[0], before[0].position_RS) if before else None
        a_BTNH = attention(q_BTNH, k_BSKH, v_BSKH, sees, prefix=prefix, **how)
    else:
        a_BTNH = look_back(q_BTNH, [*before, kept(cache, index)._replace(sees=sees)], **how)
    return linear(cfg, p, 'out_LNHD', 'out_bias_LD', constrain(a_BTNH, 'BTNH')), cache


def mlp(cfg: Config, p: Params, h_BTD: jax.Array) -> jax.Array:
    """down(activation(gate(h)) · up(h)), or down(activation(up(h))) where there is no gate; where there are experts the
    sum of some of them.
    """
    activation = ACTIVATIONS[cfg.activation]
    if cfg.experts:
        weight_BTE = experts.routed(h_BTD, p['router_LDE'], chosen=cfg.chosen, shared=cfg.shared)
        given = {'h_BTD': h_BTD, 'weight_BTE': weight_BTE}
        given |= {name.replace('_L', '_'): p[name].astype(cfg.dtype) for name in experts.FAN_IN}
        return experts.mixture(given, activation, cfg.chosen)
    if cfg.gated:
        gate_BTF = activation(linear(cfg, p, 'gate_LDF', 'gate_bias_LF', h_BTD))
        up_BTF = gate_BTF * linear(cfg, p, 'up_LDF', 'up_bias_LF', h_BTD)
    else:
        up_BTF = activation(linear(cfg, p, 'up_LDF', 'up_bias_LF', h_BTD))
    return linear(cfg, p, 'down_LFD', 'down_bias_LD', constrain(up_BTF, 'BTF'))


def picked(x_BT: jax.Array, read_BW: jax.Array | None) -> jax.Array:
    """Of the tokens along T those at `read_BW`, where it is given; the last one for those behind it."""
    return x_BT if read_BW is None else jax.vmap(lambda x_T, at_W: x_T.at[at_W].get(mode='clip'))(x_BT, read_BW)


def drawn(cfg: Config, name: str) -> tuple[nn.initializers.Initializer, tuple[int, ...]]:
    """How a parameter begins, and its shape: matrices normal with variance 1 / fan-in, so that what passes through keeps
    its size; norms and biases so that they do nothing.
    """
    letters = name.rsplit('_', 1)[1]
    shape = tuple(cfg.sizes[letter] for letter in letters)
    if 'bias' in name:
        return nn.initializers.zeros, shape
    if 'norm' in name:
        return nn.initializers.constant(1.0 - cfg.norm_offset), shape
    std = math.prod(cfg.sizes[letter] for letter in MATRICES.get(name, 'D')) ** -0.5
    if name in ('out_LNHD', 'down_LFD', 'down_LEFD'):
        std *= (2 * cfg.layers) ** -0.5  # each of the 2L residual branches adds its share
    return nn.initializers.normal(std), shape


def factors(matrix: str) -> tuple[str, str]:
    """The names of an adapter's two factors: 'query_LDNH' -> 'query_lora_in_LDX', 'query_lora_out_LXNH'."""
    role, letters = matrix.split('_L')
    return f'{role}_lora_in_L{FAN_IN[matrix]}X', f'{role}_lora_out_LX{letters.removeprefix(FAN_IN[matrix])}'


def rounded(cfg: Config, params: Params) -> Params:
    """The parameters with all that enters products in the dtype of these, which round it anyway: the same numbers come out
    of fewer bytes.
    """
    if cfg.dtype == 'float32':
        return params
    return {name: x.astype(cfg.dtype) if name in PRODUCTS or '_lora_' in name else x for name, x in params.items()}


def adapters(params: Params) -> Params:
    """Those of the parameters that are adapters."""
    return {name: x for name, x in params.items() if '_lora_' in name}


def init(cfg: Config, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    one = jnp.zeros((1, 1), jnp.int32)
    return Transformer(cfg).init(key, one, one, Sees(one + 1))['params']


def make_cache(cfg: Config, batch: int, slots: int) -> Cache:
    """An empty cache in the dtype of the matrix products."""
    shape = (cfg.layers, batch, cfg.kv_heads, slots, cfg.head_dim)
    empty = jnp.zeros(shape, cfg.dtype)
    cache = {'key_LBKSH': empty, 'value_LBKSH': empty, 'length': jnp.int32(0)}
    return cache | {'position_BS': jnp.zeros((batch, slots), jnp.int32)} if cfg.windowed else cache


def causal(valid_BT: jax.Array) -> tuple[jax.Array, Sees]:
    """`(position_BT, sees)` of ordinary text: padding, left or right, takes no position and is seen by nobody."""
    position_BT = jnp.maximum(jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32) - 1, 0)
    return position_BT, Text(jnp.where(valid_BT, ALWAYS, 0))


def apart(cfg: Config, tree: dict[str, Any]) -> dict[str, Any]:
    """Parameters, or a cache, with each layer's part as an array of its own, matrices `Turned`: a program that reads them
    again and again finds them where they lie, where a scan would copy each out of the stack.
    """

    def part(name: str, x: jax.Array) -> Any:
        return Turned.of(x, len(FAN_IN[name])) if name in FAN_IN else x

    return {name: tuple(part(name, x[i]) for i in range(cfg.layers)) if '_L' in name else x for name, x in tree.items()}


@partial(jax.tree_util.register_dataclass, data_fields=('weight_FD',), meta_fields=('shape',))
@dataclass(frozen=True)
class Turned:
    """A layer's matrix as its transpose, all axes that it sums over last. On a CPU its product with few tokens takes two
    thirds of the time: it is read along its rows, as it lies.
    """

    weight_FD: jax.Array
    shape: tuple[int, ...]  # of the matrix itself

    @classmethod
    def of(cls, weight: jax.Array, inner: int) -> Turned:
        size = math.prod(weight.shape[:inner])
        return cls(weight.reshape(size, -1).T, weight.shape)

    def astype(self, dtype: Any) -> Turned:
        return replace(self, weight_FD=self.weight_FD.astype(dtype))


def linear(cfg: Config, p: Params, name: str, bias: str, x_BT: jax.Array) -> jax.Array:
    """The product with the matrix `name`, with what `p` has besides: its adapter, its bias."""
    y_BT = project(x_BT, p[name].astype(cfg.dtype))
    into, out = factors(name)
    if into in p:
        y_BT += project(project(x_BT, p[into].astype(cfg.dtype)), p[out].astype(cfg.dtype)) * cfg.lora_scale
    return y_BT + p[bias].astype(cfg.dtype)[None, None] if bias in p else y_BT


def project(x_BT: jax.Array, weight: jax.Array | Turned) -> jax.Array:
    """The product over all axes of `x_BT` behind B and T, as many as `weight` begins with.

    As one flat matrix product: on a CPU its weight gradient takes half the time of the einsum's.
    """
    inner = x_BT.ndim - 2
    size = math.prod(weight.shape[:inner])
    if isinstance(weight, Turned):
        # Behind a barrier: else the product itself writes its transpose, in twice the time.
        flat = jax.lax.optimization_barrier(jnp.einsum('FD,BD->FB', weight.weight_FD, x_BT.reshape(-1, size))).T
    else:
        flat = x_BT.reshape(-1, size) @ weight.reshape(size, -1)
    return flat.reshape(*x_BT.shape[:2], *weight.shape[inner:])


def norm(cfg: Config, p: Params, name: str, x: jax.Array) -> jax.Array:
    """x by the norm `name`, where `p` has it; else x itself."""
    if name not in p:
        return x
    if cfg.norm == 'layer':
        return layer_norm(x, p[name], p[name.replace('norm', 'norm_bias')], cfg.norm_eps)
    return rms_norm(x, p[name] + cfg.norm_offset if cfg.norm_offset else p[name], cfg.norm_eps)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) · scale over the last axes, as many as `scale` has, in float32."""
    x32 = x.astype(jnp.float32).reshape(*x.shape[: x.ndim - scale.ndim], -1)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
    # Not an einsum, which is not fused with the rest: three times as long on a CPU.
    x32 *= scale.reshape(*[1] * (x32.ndim - 1), -1)
    return x32.astype(x.dtype).reshape(x.shape)


def layer_norm(x_BTD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float) -> jax.Array:
    """(x − mean(x)) / std(x) · scale + bias over the last axis, in float32."""
    x32 = x_BTD.astype(jnp.float32)
    x32 = x32 - jnp.mean(x32, -1, keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
    return (x32 * scale_D[None, None] + bias_D[None, None]).astype(x_BTD.dtype)


def rope(position_BT: jax.Array, head_dim: int, kind: Rope) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), each (B, T, 1, R/2), float32."""
    turned = int(head_dim * kind.fraction)
    frequency = kind.theta ** (-jnp.arange(0, turned, 2, dtype=jnp.float32) / turned)
    if kind.each:
        frequency /= jnp.array(kind.each, jnp.float32)
    elif kind.factor != 1:
        slow, kept = frequency / kind.factor, 0.0
        if kind.spared:
            low, high, length = kind.spared
            kept = jnp.clip((frequency * length / (2 * math.pi) - low) / (high - low), 0, 1)
        elif kind.ramp:
            fast, last = ramp(kind, turned)
            kept = 1 - jnp.clip((jnp.arange(turned // 2, dtype=jnp.float32) - fast) / (last - fast), 0, 1)
        frequency = (1 - kept) * slow + kept * frequency
    angle = position_BT[:, :, None, None].astype(jnp.float32) * frequency[None, None, None]
    return kind.scale * jnp.cos(angle), kind.scale * jnp.sin(angle)


def ramp(kind: Rope, turned: int) -> tuple[float, float]:
    """Between which pairs YaRN mixes: those of `ramp`'s turns, as transformers bounds them (arXiv 2309.00071, eq. 20)."""
    fast, slow, length, whole = kind.ramp
    pair = lambda turns: turned * math.log(length / (2 * math.pi * turns)) / (2 * math.log(kind.theta))  # noqa: E731
    first, last = (math.floor(pair(fast)), math.ceil(pair(slow))) if whole else (pair(fast), pair(slow))
    first, last = max(first, 0), min(last, turned - 1)
    return first, last + 0.001 * (first == last)


def rotate(x_BTNH: jax.Array, angle: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions in the Hugging Face layout: of what turns, the first half of H pairs with the second."""
    cos, sin = angle
    turned = 2 * cos.shape[-1]
    a, b = jnp.split(x_BTNH[..., :turned].astype(jnp.float32), 2, axis=-1)
    x_BTNR = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
    return x_BTNR if turned == x_BTNH.shape[-1] else jnp.concatenate([x_BTNR, x_BTNH[..., turned:]], axis=-1)


def write(cache: Cache, layer: Any, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Cache:
    """Put the new keys and values into the layer's next slots.

    The cache is carried from layer to layer and updated in place: scanning over it would copy all of it at every token.
    """

    def written(held: Any, new_BTKH: jax.Array) -> Any:
        new_BKTH = new_BTKH.swapaxes(1, 2)
        if isinstance(held, tuple):
            mine = held[layer]
            mine = jax.lax.dynamic_update_slice(mine, new_BKTH.astype(mine.dtype), (0, 0, cache['length'], 0))
            return (*held[:layer], mine, *held[layer + 1 :])
        return jax.lax.dynamic_update_slice(held, new_BKTH[None].astype(held.dtype), (layer, 0, 0, cache['length'], 0))

    new = {'key_LBKSH': k_BTKH, 'value_LBKSH': v_BTKH}
    return cache | {name: written(cache[name], x_BTKH) for name, x_BTKH in new.items()}


def kept(cache: Cache, layer: Any) -> Keys:
    """What a layer has in a cache. In a full one later tokens see every slot that is not padding."""
    key_BKSH, until_BS = cache['key_LBKSH'][layer], cache.get('until_BS')
    sees = None if until_BS is None else Sees(until_BS, jnp.full((1, 1), until_BS.shape[1]))
    return Keys(key_BKSH, cache['value_LBKSH'][layer], sees, cache.get('position_BS'))
