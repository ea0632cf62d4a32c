"""What every training step does once the loss is written: gradients in parts, one guarded update, one optimizer by
name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rlaif_jax import axes
from rlaif_jax.config import MOST, Mistake, check_within
from rlaif_jax.models import lora, transformer

SKIPPED = 'skipped_in_a_row'  # of a step's numbers, the one that is watched and not written
Batch = dict[str, jax.Array]
# (params, batch) -> sum, sums; with sums['count']
Loss = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]


@dataclass(frozen=True)
class Optimizer:
    """The paper trains with Adafactor, factored and without momentum (App. G); AdamW by name.

    Optax factors a parameter along its two largest axes, where both are 128 or more. Ours of attention are (layers, width,
    heads, head dim): with a head dim of 64 they are not factored, with a larger one within each head.
    """

    name: Literal['adafactor', 'adamw'] = 'adafactor'  # which optimizer
    learning_rate: float = 1e-5  # the highest, behind the warm-up
    warmup_steps: int = 0  # in which the learning rate rises from nothing
    # From the end of the warm-up to the last step, down to a tenth.
    decay: Literal['constant', 'linear', 'cosine'] = 'constant'
    clip_norm: float = 1.0  # of the whole gradient; 0 does not clip
    weight_decay: float = 0.0  # for adamw alone
    parameter_scale: bool = False  # adafactor's steps in proportion to each parameter's size

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate <= 1e3:
            raise ValueError(f'learning_rate must be positive, 1000 at most, not {self.learning_rate}')
        if self.weight_decay and self.name == 'adafactor':
            raise ValueError('weight_decay is for adamw: adafactor would apply it without the learning rate')
        check_within(self, 0, MOST, 'warmup_steps')
        check_within(self, 0, 1e9, 'clip_norm', 'weight_decay')


def make_optimizer(cfg: Optimizer, steps: int) -> optax.GradientTransformation:
    """The optimizer for a run of `steps` steps."""
    rest = max(steps - cfg.warmup_steps, 1)
    after = {
        'constant': optax.constant_schedule(cfg.learning_rate),
        'linear': optax.linear_schedule(cfg.learning_rate, cfg.learning_rate / 10, rest),
        'cosine': optax.cosine_decay_schedule(cfg.learning_rate, rest, alpha=0.1),
    }[cfg.decay]
    warmup = optax.linear_schedule(0.0, cfg.learning_rate, cfg.warmup_steps)
    # Step 0 already moves: a warm-up of n steps takes 1/n, 2/n, ... of the rate.
    schedule = (
        optax.join_schedules([lambda count: warmup(count + 1), after], [cfg.warmup_steps])
        if cfg.warmup_steps
        else after
    )
    clip = [optax.clip_by_global_norm(cfg.clip_norm)] if cfg.clip_norm else []
    if cfg.name == 'adamw':
        return optax.chain(*clip, optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=cfg.weight_decay))
    # By default not scaled by the size of each parameter: 1e-5 would then be far below what moves a policy, and a head that
    # starts at zero would stay.
    return optax.chain(*clip, optax.adafactor(schedule, momentum=None, multiply_by_parameter_scale=cfg.parameter_scale))


def trained(
    cfg: lora.Config, model: transformer.Config, params: transformer.Params, key: jax.Array
) -> transformer.Params:
    """What of a model's parameters is trained: fresh adapters, or, without them, all."""
    return lora.init(cfg, model, key) if cfg.rank else params


def whole(params: Any, trained: Any) -> Any:
    """The network that is `params` but for what is trained of it, or beside it: two nested dicts as one."""
    if not isinstance(trained, dict):
        return trained
    return params | {name: whole(params.get(name, {}), x) for name, x in trained.items()}


def init_state(params: Any, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """One network's trained state: its parameters, its optimizer, and how many non-finite steps in a row were skipped."""
    return {'params': params, 'optimizer': optimizer.init(params), 'skipped': jnp.int32(0)}


def jitted(
    cfg: Any, loss: Loss, begin: Callable[[Any], Any], shapes: Any, mesh: Mesh
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(init, step)` of one network whose parameters have these shapes, placed by their names: `init(params) -> state`,
    `step(state, params, batch) -> (state, metrics)`. The state holds what is trained, at first `begin(params)`, and is
    donated; what else the network consists of is read from `params`, which stay. `cfg` is the stage's, of which the
    optimizer, its steps and the parts of a batch are read.
    """
    optimizer = make_optimizer(cfg.optimizer, cfg.steps)

    def init(params: Any) -> dict[str, Any]:
        # A copy, so that donating the state never destroys the parameters that were handed in.
        return init_state(jax.tree.map(lambda x: x + 0, begin(params)), optimizer)

    def step(state: dict[str, Any], params: Any, batch: Batch) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        of_trained = lambda trained, batch: loss(whole(params, trained), batch)  # noqa: E731
        grads, metrics = gradients(of_trained, state['params'], batch, cfg.parts)
        state, more = update(optimizer, state, grads)
        return state, metrics | more

    where = axes.shardings(jax.eval_shape(init, shapes), mesh)
    in_shardings = (where, axes.shardings(shapes, mesh), axes.rows(mesh))
    out_shardings = (where, axes.replicated(mesh))
    return (
        jax.jit(init, out_shardings=where),
        jax.jit(step, in_shardings=in_shardings, out_shardings=out_shardings, donate_argnums=0),
    )


def recomputed(remat: bool, model: transformer.Config) -> transformer.Config:
    """The model whose backward pass, with `remat`, keeps what enters each layer and computes the rest again."""
    return replace(model, remat=True) if remat else model


def gradients(loss: Loss, params: Any, batch: Batch, parts: int = 1) -> tuple[Any, dict[str, jax.Array]]:
    """The gradient of (Σ sum) / (Σ count) over `parts` equal parts of the batch, and every sum divided likewise.

    The sums are divided once, at the end, so a batch in parts gives the same gradient as the batch whole: parts with
    fewer tokens do not weigh more per token (the mistake of averaging averages).
    """

    def part(batch: Batch) -> tuple[Any, dict[str, jax.Array]]:
        (total, sums), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return grads, sums | {'loss': total}

    if parts == 1:
        grads, sums = part(batch)
    else:
        split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)
        zero = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, jax.tree.map(lambda x: x[0], split))
        )
        add = lambda total, batch: (jax.tree.map(jnp.add, total, part(batch)), None)  # noqa: E731
        (grads, sums), _ = jax.lax.scan(add, zero, split)
    count = jnp.maximum(sums.pop('count'), 1)
    return jax.tree.map(lambda g: g / count, (grads, sums))  # type: ignore[return-value]


def update(
    optimizer: optax.GradientTransformation, state: dict[str, Any], grads: Any, finite: jax.Array | None = None
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """One step of the optimizer; a gradient that is not finite changes nothing but the count of steps skipped in a row.

    Networks that are trained together hand in `finite` for all of them: they step together or not at all.
    """
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) if finite is None else finite
    safe = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
    updates, moved = optimizer.update(safe, state['optimizer'], state['params'])
    new = {
        'params': optax.apply_updates(state['params'], updates),
        'optimizer': moved,
        'skipped': jnp.int32(0),
    }
    old = state | {'skipped': state['skipped'] + 1}
    state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    return state, {'grad_norm': norm, 'skipped': 1.0 - finite, SKIPPED: state['skipped']}


def check_finite(stage: str, step: int, skipped_in_a_row: int, optimizer: str = 'optimizer', patience: int = 3) -> None:
    """Raises `Mistake` once `patience` steps in a row were not finite: more of the same will not help.

    `optimizer` is the field of the stage's config that holds it, for the message.
    """
    if skipped_in_a_row >= patience:
        raise Mistake(
            f'{stage}: the last {skipped_in_a_row} steps, up to step {step}, had a gradient that is not finite and were '
            f'skipped. Try a lower learning rate ({stage}.{optimizer}.learning_rate), a smaller clip_norm, or float32; '
            'the last good checkpoint is kept'
        )


def check_parts(name: str, batch: int, parts: int) -> None:
    """Raises ValueError where a batch does not fall into equal parts."""
    if batch < 1:
        raise ValueError(f'{name} must be positive, not {batch}')
    if parts < 1 or batch % parts:
        raise ValueError(f'{name} = {batch} does not fall into {parts} equal parts')


def check_room(model: str, room: int, max_prompt: int, **response: int) -> None:
    """Raises `Mistake` where a prompt and a response, whose field is named, are more tokens than the model was made for."""
    ((name, tokens),) = response.items()
    if max_prompt + tokens > room:
        hope = f'max_prompt to {room - tokens}' if tokens < room else f'{name}, too'
        raise Mistake(
            f'max_prompt = {max_prompt} and {name} = {tokens} are {max_prompt + tokens} tokens; '
            f'{model} was made for {room}: lower {hope}'
        )
