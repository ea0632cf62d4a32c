"""What a run will do, said before it starts: devices, mesh, dtypes, models, memory, stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlaif_jax import axes, checkpoint, log
from rlaif_jax.config import Mistake
from rlaif_jax.data import loader
from rlaif_jax.labeling import prompts
from rlaif_jax.models import hf, lora, transformer
from rlaif_jax.models.presets import PRESETS, resolve
from rlaif_jax.training import reinforce, reward_model, sft
from rlaif_jax.training import state as training

WORD = 4  # bytes of a float32


@dataclass(frozen=True)
class Stage:
    """One line of a plan. A stage is done when its folder holds a result."""

    name: str
    folder: Path
    steps: int
    models: dict[str, str] = field(default_factory=dict)  # role -> model
    training: sft.Config | reward_model.Config | reinforce.Config | None = None
    length: int = 0  # tokens of a training row


def check(config: Any, folder: Path) -> None:
    """Raises `Mistake` for what would stop the run later on: a mesh the devices cannot make, a batch the mesh does not
    divide, data or a model that is not there, rows longer than the model was made for, adapters of what it does not have.
    """
    mesh = axes.make_mesh(asdict(config.mesh))
    for name in ('sft', 'reward_model', 'reinforce', 'rating', 'label', 'evaluation'):
        if cfg := getattr(config, name, None):
            parts = getattr(cfg, 'parts', 1)
            axes.check_batch(f'{name}.batch' + f' / {name}.parts' * (parts > 1), cfg.batch // parts, mesh)
            if name in ('sft', 'reinforce') and cfg.batch > config.data.train:
                raise Mistake(f'{name}.batch = {cfg.batch} is more than the prompts, data.train = {config.data.train}')
    if config.data:
        loader.check(config.data.source)
        evaluation = getattr(config, 'evaluation', None)
        if evaluation and evaluation.judge in ('raters', 'oracle') and not loader.simulated(config.data.source):
            raise Mistake(
                f'evaluation.judge = {evaluation.judge!r} knows the simulated world alone, not {config.data.source}; '
                'name a language model'
            )
    if getattr(config, 'rating', None):
        prompts.single(config.task, 'rating')
    stages = config.stages(folder)
    made = getattr(config, 'model', None)  # by the experiment itself
    models = dict.fromkeys(model for stage in stages for model in stage.models.values())
    sizes = {model: hf.check(model) for model in models if model != made}
    for stage in stages:
        policy = stage.models.get('policy', made)
        if policy in sizes and stage.training:
            lora.adapted(stage.training.lora, sizes[policy])  # has what is to be adapted
        if policy in sizes and stage.length > sizes[policy].max_length:
            raise Mistake(
                f'{stage.name}: rows have up to {stage.length} tokens, prompt and response together; {policy} was made '
                f'for {sizes[policy].max_length}. Lower max_prompt or max_new_tokens'
            )


def show(name: str, config: Any, folder: Path) -> None:
    """Print the plan of an experiment that `check` has passed."""
    import jax

    mesh, devices = axes.make_mesh(asdict(config.mesh)), jax.devices()
    shape = ' × '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
    log.say(f'{name}: {len(devices)} device(s) of kind {devices[0].device_kind}, mesh {shape}')
    log.say(
        f'parameters float32, matrix products {config.dtype}, attention as plain XLA operations with float32 softmax'
    )
    if config.data and loader.simulated(config.data.source):
        log.say('This is a SIMULATED world: posts, people and oracle are artificial; all figures are about it alone.')
    rows, folders = [], {}
    for stage in config.stages(folder):
        sizes = {role: _sizes(model, config.dtype) for role, model in stage.models.items()}
        models = '\n'.join(f'{role}: {stage.models[role]}, {count(cfg) / 1e6:.2f} M' for role, cfg in sizes.items())
        rows.append([stage.name, models or 'simulated', stage.steps, _bytes(memory(stage, sizes)), _standing(stage)])
        folders.setdefault(stage.folder, []).append(stage.name)
    log.figures_table('plan', ['stage', 'models', 'steps', 'memory', 'state'], rows)
    for where, names in folders.items():  # not a column: a path is wider than all others together
        log.say(f'{", ".join(names) if len(folders) > 1 else "folder"}: {where}')


def count(cfg: transformer.Config) -> int:
    """Parameters of a model of these sizes."""
    import jax

    return _floats(jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0))))


def memory(stage: Stage, sizes: dict[str, transformer.Config]) -> int:
    """Bytes over all devices, about: parameters, their gradients and optimizers, and what the backward pass keeps.

    With adapters, policy, value network and reference stand on one copy of the parameters. The interpreter and compiled
    programs come on top, some 700 MB on a CPU.
    """
    import jax

    how = stage.training
    shared = ('value', 'reference') if how and how.lora.rank else ()
    total = sum(count(cfg) for role, cfg in sizes.items() if role not in shared) * WORD
    if how is None:
        return total
    optimizers = {'policy': getattr(how, 'policy_optimizer', None) or how.optimizer}
    if getattr(how, 'baseline', '') == 'value':
        optimizers['value'] = how.value_optimizer
    rows, key = how.batch // how.parts, jax.random.key(0)
    for role, optimizer in optimizers.items():
        cfg = sizes[role]
        # Of one token in one layer: norms and residuals, queries to outputs, gates, and its row of attention before and
        # after softmax.
        token = 6 * cfg.width + 4 * cfg.heads * cfg.head_dim + 4 * cfg.ffn + 2 * cfg.heads * stage.length
        kept = rows * stage.length * (cfg.layers * token + 2 * cfg.width) + 3 * rows * min(stage.length, 64) * cfg.vocab
        begin = lambda: training.trained(how.lora, cfg, transformer.init(cfg, key), key)  # noqa: B023, E731
        trained = jax.eval_shape(begin)
        moments = jax.eval_shape(training.make_optimizer(optimizer, how.steps).init, trained)
        total += (_floats(trained) * (2 if how.lora.rank else 1) + _floats(moments) + kept) * WORD
    return total


def _floats(shapes: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _sizes(model: str, dtype: str) -> transformer.Config:
    return PRESETS[model] if model in PRESETS else hf.read_config(resolve(model), dtype=dtype)


def _standing(stage: Stage) -> str:
    if checkpoint.finished(stage.folder) is not None:
        return 'done, reused'
    steps = [int(path.name) for path in (stage.folder / 'checkpoints').glob('*') if path.name.isdecimal()]
    return f'goes on from step {max(steps)}' if steps and stage.training else 'to do'


def _bytes(number: int) -> str:
    return f'~{number / 2**20:.0f} MiB' if number < 2**30 else f'~{number / 2**30:.1f} GiB'
