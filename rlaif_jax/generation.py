"""Generation: prefill, then decode until every row has ended. `sample` is one jitted function of tokens; `generate` is
it for texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlaif_jax import axes, hosts
from rlaif_jax.batching import in_batches, padded
from rlaif_jax.config import HOTTEST, MOST, Mistake, bind, check_within
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.models import heads
from rlaif_jax.models.attention import ALWAYS, Sees
from rlaif_jax.models.hf import LM, check_given
from rlaif_jax.models.transformer import Cache, Config, Params, apart, causal, forward, make_cache, rounded
from rlaif_jax.text import pad_left

BLOCK = 128  # tokens among which one is drawn at last


@dataclass(frozen=True)
class Sampling:
    """How prompts are continued, checked."""

    max_new_tokens: int = 128  # 0: nothing
    temperature: float = 0.9  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # 1: all
    seed: int = 0
    batch: int = 64  # prompts

    def __post_init__(self) -> None:
        check_within(self, 0, MOST, 'max_new_tokens', 'top_k', 'seed')
        check_within(self, 1, MOST, 'batch')
        check_within(self, 0, HOTTEST, 'temperature')
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p is a share of the probability, above 0 and 1 at most, not {self.top_p}')


class Sample(NamedTuple):
    """What was written. The end token belongs to the response; behind it everything is padding."""

    token_BT: jax.Array  # int32, T = max_new_tokens
    mask_BT: jax.Array  # bool, True on the response's tokens
    logp_BT: jax.Array  # nats, under the distribution it was sampled from; 0 on padding and at temperature 0
    ended_B: jax.Array  # bool, False where the response was cut at max_new_tokens


@partial(jax.jit, static_argnames=('cfg', 'max_new_tokens', 'samples'))
def sample(
    cfg: Config,
    params: Params,
    prompt_BT: jax.Array,
    valid_BT: jax.Array,
    key: jax.Array,
    allowed_V: jax.Array,
    stop_V: jax.Array,
    *,
    max_new_tokens: int,
    temperature: jax.Array | float = 1.0,
    top_k: jax.Array | int = 0,
    top_p: jax.Array | float = 1.0,
    pad: jax.Array | int = 0,
    prefix: Cache | None = None,
    samples: int = 1,
) -> Sample:
    """Continue ragged prompts, padded on the **left** (`valid_BT` False on padding) so that all rows write the same
    cache slot, each in `samples` ways, which are neighbours. A prompt is read once for all of them.

    allowed_V: False for what must never be sampled (padded vocabulary rows, control tokens). stop_V: True for tokens
    that end a response. temperature, top_k (0: all) and top_p (1: all) are traced: changing them compiles nothing.
    Temperature 0 is greedy. `prefix` holds keys and values of what all prompts begin with.
    """
    R, P = prompt_BT.shape
    B = R * samples
    params = rounded(cfg, params)  # once, where every token would do it again
    shared = () if prefix is None else (prefix,)
    start = 0 if prefix is None else prefix['key_LBKSH'].shape[3]
    position_RT, sees = causal(valid_BT)
    hidden_RWD, stem = forward(
        cfg, params, prompt_BT, start + position_RT, sees, make_cache(cfg, R, P), shared, jnp.full((R, 1), P - 1)
    )
    stem |= {'until_BS': sees.until_BS}
    length_B = start + jnp.repeat(jnp.sum(valid_BT, axis=1, dtype=jnp.int32), samples)

    # On a CPU what every token reads again lies as it is read. Elsewhere memory is dearer, and a scan copies less; with
    # fsdp it gathers a layer at a time.
    cache = make_cache(cfg, B, max_new_tokens)
    if axes.platform() == 'cpu' and jax.sharding.get_abstract_mesh().shape.get('fsdp', 1) == 1:
        params, stem, cache, *shared = (apart(cfg, one) for one in (params, stem, cache, *shared))
    every_BS = jnp.full((B, max_new_tokens), ALWAYS)

    def choose(state: dict, hidden_BD: jax.Array) -> dict:
        """Draw the next token of each row."""
        step, ended_B = state['step'], state['ended_B']
        logit_BV = truncate(heads.logits(cfg, params, hidden_BD, allowed_V), temperature, top_k, top_p)
        token_B, logp_B = draw(logit_BV, jax.random.fold_in(key, step), temperature)
        token_B = jnp.where(ended_B, pad, token_B).astype(jnp.int32)
        return state | {
            'step': step + 1,
            'ended_B': ended_B | stop_V[token_B],
            'last_B': token_B,
            'token_BT': state['token_BT'].at[:, step].set(token_B),
            'mask_BT': state['mask_BT'].at[:, step].set(~ended_B),
            'logp_BT': state['logp_BT'].at[:, step].set(jnp.where(ended_B, 0.0, logp_B)),
        }

    def going(state: dict) -> jax.Array:
        return (state['step'] < max_new_tokens) & ~jnp.all(state['ended_B'])

    def decode(state: dict) -> dict:
        # Row b's last token takes position length_b + step, and slot `step` like everyone's.
        step = state['step'] - 1
        hidden_BTD, cache = forward(
            cfg, params, state['last_B'][:, None], (length_B + step)[:, None], Sees(every_BS, step[None, None]),
            state['cache'], (*shared, stem),
        )  # fmt: skip
        return choose(state | {'cache': cache}, hidden_BTD[:, 0])

    empty = {
        'step': jnp.int32(0),
        'cache': cache,
        'ended_B': jnp.zeros(B, bool),
        'last_B': jnp.full(B, pad, jnp.int32),
        'token_BT': jnp.full((B, max_new_tokens), pad, jnp.int32),
        'mask_BT': jnp.zeros((B, max_new_tokens), bool),
        'logp_BT': jnp.zeros((B, max_new_tokens), jnp.float32),
    }
    state = jax.lax.while_loop(going, decode, choose(empty, jnp.repeat(hidden_RWD[:, 0], samples, axis=0)))
    return Sample(state['token_BT'], state['mask_BT'], state['logp_BT'], state['ended_B'])


def truncate(
    logit_BV: jax.Array, temperature: jax.Array | float, top_k: jax.Array | int, top_p: jax.Array | float
) -> jax.Array:
    """Logits / temperature with everything outside the top k, then outside the nucleus p, set to -1e30. Sorts only when
    asked to.
    """
    temperature = jnp.where(jnp.asarray(temperature) > 0, temperature, 1.0)
    top_k, top_p = jnp.asarray(top_k), jnp.asarray(top_p)

    def cut(logit_BV: jax.Array) -> jax.Array:
        V = logit_BV.shape[-1]
        rank_1V = jnp.arange(V)[None]
        sorted_BV = jnp.flip(jnp.sort(logit_BV, axis=-1), axis=-1)
        kept_BV = rank_1V < jnp.where(top_k > 0, top_k, V)
        p_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, heads.NEVER), axis=-1)
        kept_BV &= (jnp.cumsum(p_BV, axis=-1) - p_BV < top_p) | (rank_1V == 0)  # the token that crosses p stays
        least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logit_BV >= least_B1, logit_BV, heads.NEVER)

    logit_BV = logit_BV / temperature
    return jax.lax.cond((top_k > 0) | (top_p < 1), cut, lambda x: x, logit_BV)


def draw(logit_BV: jax.Array, key: jax.Array, temperature: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """`(token_B, logp_B)`: one token a row and its log-probability, in nats; the largest one, with 0, at temperature 0.

    Two numbers are drawn a row: one finds a block of tokens by the sum of their probabilities, one a token within it. That
    is one pass over the vocabulary, where Gumbel noise is a random number for each token of it.
    """
    B, V = logit_BV.shape

    def largest(logit_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.argmax(logit_BV, axis=-1), jnp.zeros(B)

    def drawn(logit_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
        top_B1 = jnp.max(logit_BV, axis=-1, keepdims=True)
        weight_BV = jnp.exp(logit_BV - top_B1)
        weight_BZY = jnp.pad(weight_BV, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
        which_2B = jax.random.uniform(key, (2, B))

        def found(weight_BZ: jax.Array, where_B: jax.Array) -> jax.Array:
            """The first whose share, added to those before it, is above `where` in [0, 1). What has no weight is left out,
            as sums are rounded.
            """
            sum_BZ = jnp.where(weight_BZ > 0, jnp.cumsum(weight_BZ, axis=-1), -1.0)
            return jnp.argmax(sum_BZ > where_B[:, None] * sum_BZ.max(axis=-1, keepdims=True), axis=-1)

        sum_BZ = weight_BZY.sum(axis=-1)
        block_B = found(sum_BZ, which_2B[0])
        weight_BY = jnp.take_along_axis(weight_BZY, block_B[:, None, None], axis=1)[:, 0]
        token_B = block_B * BLOCK + found(weight_BY, which_2B[1])
        logit_B = jnp.take_along_axis(logit_BV - top_B1, token_B[:, None], axis=-1)[:, 0]
        return token_B, logit_B - jnp.log(sum_BZ.sum(axis=-1))

    return jax.lax.cond(jnp.asarray(temperature) <= 0, largest, drawn, logit_BV)


def generate(
    lm: LM,
    prompts: Sequence[str | Prompt],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.9,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch: int = 64,
    mesh: Mesh | None = None,
    advance: Callable[[], None] | None = None,
) -> list[str]:
    """Continue each prompt with at most `max_new_tokens` tokens; the texts come without end tokens and in the order of
    the prompts. A dialogue, `\\n\\nHuman: …\\n\\nAssistant:`, goes through the chat template of a checkpoint that has one.
    `advance` is called behind each batch.

    The same call gives the same texts. Raises `Mistake` for a prompt that does not fit the model, or is none.
    """
    check_given(lm, mesh)
    asked = {'max_new_tokens': max_new_tokens, 'temperature': temperature, 'top_k': top_k, 'top_p': top_p}
    how = bind(Sampling(), asked | {'seed': seed, 'batch': batch})
    rows = lm.tokenizer.prompts(texts('prompts', prompts))
    if not how.max_new_tokens:
        return [''] * len(rows)
    return lm.tokenizer.decode(extend(lm, rows, how, mesh=mesh, advance=advance))


def texts(name: str, given: Sequence[str | Prompt]) -> list[str]:
    """The texts of strings or `Prompt`s. Raises `Mistake`, with the argument's `name`, for one that stands alone, whose
    letters would be taken for texts, and for what is neither.
    """
    found = [one.text if isinstance(one, Prompt) else one for one in listed(name, given, str | Prompt)]
    if wrong := [i for i, text in enumerate(found) if not isinstance(text, str)]:
        one = found[wrong[0]]
        raise Mistake(f'{name}[{wrong[0]}] is a {type(one).__name__}, {one!r:.80}; give a text or a Prompt')
    return found


def whole_pairs(name: str, given: Sequence[Pair]) -> list[Pair]:
    """Pairs with a `Prompt` each, whose prompt may have been its text alone. Raises `Mistake` for what is none, with the
    argument's `name`.
    """
    found = []
    for i, pair in enumerate(listed(name, given, Pair | str)):
        if isinstance(pair, Pair) and isinstance(pair.prompt, str):
            pair = replace(pair, prompt=Prompt(pair.prompt, id=str(i)))
        if not isinstance(pair, Pair) or not isinstance(pair.prompt, Prompt):
            raise Mistake(f"{name}[{i}] is {pair!r:.80}; give a Pair(Prompt(text, id='{i}'), first, second)")
        for field, text in (('prompt.text', pair.prompt.text), ('first', pair.first), ('second', pair.second)):
            if not isinstance(text, str):
                raise Mistake(f'{name}[{i}].{field} is a {type(text).__name__}, {text!r:.80}; give a text')
        found.append(pair)
    return found


def listed(name: str, given: Any, one: Any) -> list[Any]:
    """What was given as a list. Raises `Mistake` for a single one, and for what cannot be listed."""
    alone = isinstance(given, one | Mapping | bytes) or (isinstance(given, np.ndarray) and not given.ndim)
    if alone or not isinstance(given, Iterable):
        raise Mistake(
            f'{name} is a {type(given).__name__}, {given!r:.80}; give a list, also of one: [{name.rstrip("s")}]'
        )
    return list(given)


def extend(
    lm: LM,
    rows: Sequence[Sequence[int]],
    how: Sampling,
    *,
    mesh: Mesh | None = None,
    prefix: Cache | None = None,
    advance: Callable[[], None] | None = None,
) -> list[list[int]]:
    """`generate` for tokens: what is written behind each row, its end token included. Raises `Mistake` as it does."""
    mesh = mesh or axes.mesh_of(lm.params)
    axes.check_batch('batch', how.batch, mesh)
    before, new = 0 if prefix is None else prefix['key_LBKSH'].shape[3], how.max_new_tokens
    room = lm.config.max_length - new - before
    if room < 1:
        raise Mistake(f'max_new_tokens = {new}: the model was made for {lm.config.max_length} tokens in all')
    for i, row in enumerate(rows):
        if not 0 < len(row) <= room:
            raise Mistake(f'prompt {i} has {len(row)} tokens; with {new} new ones it may have 1 to {room}')
    allowed_V, stop_V = lm.tokenizer.allowed(lm.config.vocab), lm.tokenizer.stops(lm.config.vocab)

    def write(chosen: list[int], start: int) -> list[list[int]]:
        length = padded([len(rows[i]) for i in chosen])
        given = pad_left([list(rows[i]) for i in chosen], length, lm.tokenizer.pad)
        token_BT, valid_BT = hosts.to_mesh(given, axes.rows(mesh))
        key = jax.random.fold_in(jax.random.key(how.seed), start)
        out = sample(
            lm.config, lm.params, token_BT, valid_BT, key, allowed_V, stop_V, max_new_tokens=new,
            temperature=how.temperature, top_k=how.top_k, top_p=how.top_p, pad=lm.tokenizer.pad, prefix=prefix,
        )  # fmt: skip
        new_BT, mask_BT = hosts.to_host((out.token_BT, out.mask_BT))
        if advance:
            advance()
        return [row[mask].tolist() for row, mask in zip(new_BT, mask_BT)]

    with jax.set_mesh(mesh):
        return in_batches([len(row) for row in rows], how.batch, mesh, write)
