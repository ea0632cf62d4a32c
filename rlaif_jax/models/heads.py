"""What is read off the hidden states: next tokens, a value per prefix, a score per response.

Heads are plain functions of `hidden_BTD`; their parameters are plain dicts. All results are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlaif_jax.axes import HEAD, constrain
from rlaif_jax.models.attention import Sees, soft_cap
from rlaif_jax.models.transformer import Config, Params, forward

CHUNK = 64  # positions whose logits exist at a time
NEVER = -1e30  # the logit of a token that cannot be: finite, so that gradients and 0 · logit stay finite


def logits(cfg: Config, params: Params, hidden: jax.Array, allowed_V: jax.Array | None = None) -> jax.Array:
    """Logits over V of hidden states `(…, D)`. Where `allowed_V` is False (padded rows, control tokens) they are -1e30."""
    weight_VD = params['embed_VD'] if cfg.tied else params['unembed_DV'].T
    dtype = jnp.dtype(cfg.dtype)
    between = '.' * (hidden.ndim - 2)
    hidden = constrain(hidden.astype(dtype), f'B{between}D', HEAD)
    weight_VD = constrain(weight_VD.astype(dtype), 'VD', HEAD)
    out = jnp.einsum('...D,VD->...V', hidden, weight_VD, preferred_element_type=jnp.float32)
    out = soft_cap(constrain(out, f'B{between}V', HEAD), cfg.logit_cap)
    return out if allowed_V is None else jnp.where(allowed_V, out, NEVER)


def token_logprob(
    cfg: Config,
    params: Params,
    hidden_BTD: jax.Array,
    target_BT: jax.Array,
    *,
    allowed_V: jax.Array | None = None,
    temperature: jax.Array | float = 1.0,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """`(logp_BT, entropy_BT)` in nats: the log-probability of each target and the entropy of its distribution.

    The distribution is softmax(logits / temperature) over the allowed tokens. The logits of only `chunk` positions
    exist at a time, forward and backward: at V = 32,768 that is a quarter of the memory of a plain log-softmax, and a
    third of its time.
    """

    def part(hidden_BTD: jax.Array, target_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        logit_BTV = logits(cfg, params, hidden_BTD, allowed_V) / temperature
        norm_BT = jax.nn.logsumexp(logit_BTV, axis=-1)
        target_logit_BT = jnp.take_along_axis(logit_BTV, target_BT[..., None], axis=-1)[..., 0]
        mean_logit_BT = jnp.sum(jnp.exp(logit_BTV - norm_BT[..., None]) * logit_BTV, axis=-1)
        return target_logit_BT - norm_BT, jax.lax.stop_gradient(norm_BT - mean_logit_BT)

    B, T, D = hidden_BTD.shape
    if T <= chunk:
        return part(hidden_BTD, target_BT)
    extra = -T % chunk
    split_hidden = jnp.pad(hidden_BTD, ((0, 0), (0, extra), (0, 0))).reshape(B, -1, chunk, D).swapaxes(0, 1)
    split_target = jnp.pad(target_BT, ((0, 0), (0, extra))).reshape(B, -1, chunk).swapaxes(0, 1)
    _, out = jax.lax.scan(lambda _, x: (None, jax.checkpoint(part)(*x)), None, (split_hidden, split_target))
    return tuple(x.swapaxes(0, 1).reshape(B, -1)[:, :T] for x in out)  # type: ignore[return-value]


def scalar_head(width: int) -> Params:
    """A zero head: every value or score starts at 0."""
    return {'head_D': jnp.zeros((width,)), 'head_bias': jnp.zeros(())}


def scalar(head: Params, hidden: jax.Array) -> jax.Array:
    """One float per hidden state: `(…, D)` -> `(…)`."""
    return hidden.astype(jnp.float32) @ head['head_D'] + head['head_bias']


def value(cfg: Config, params: dict[str, Params], token_BT: jax.Array, position_BT: jax.Array, sees: Sees) -> jax.Array:
    """The value model, `{'trunk': …, 'head': …}`: value_BT, in reward units, of each prefix that ends with token t."""
    hidden_BTD, _ = forward(cfg, params['trunk'], token_BT, position_BT, sees)
    return scalar(params['head'], hidden_BTD)


def score(
    cfg: Config,
    params: dict[str, Params],
    token_BT: jax.Array,
    position_BT: jax.Array,
    sees: Sees,
    last_B: jax.Array,
) -> jax.Array:
    """The reward model, `{'trunk': …, 'head': …}`: score_B read at index `last_B`, the response's true last token."""
    hidden_B1D, _ = forward(cfg, params['trunk'], token_BT, position_BT, sees, read_BW=last_B[:, None])
    return scalar(params['head'], hidden_B1D[:, 0])
