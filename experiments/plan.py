"""What a run will do, said before it starts: devices, mesh, dtypes, models, memory, stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlaif_jax import axes, checkpoint, log
from rlaif_jax.config import Mistake
from rlaif_jax.data import loader
from rlaif_jax.labeling import prompts
from rlaif_jax.models import hf, transformer
from rlaif_jax.models.presets import PRESETS, resolve
from rlaif_jax.training import reinforce, reward_model, sft

WORD = 4  # bytes of a float32
OPTIMIZER = {'adamw': 2.0, 'adafactor': 0.1}  # floats kept for each parameter


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
    divide, data or a model that is not there, rows longer than the model was made for.
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

    shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def memory(stage: Stage, sizes: dict[str, transformer.Config]) -> int:
    """Bytes over all devices, about: parameters, their gradients and optimizers, and what the backward pass keeps.

    The interpreter and compiled programs come on top, some 700 MB on a CPU.
    """
    total = sum(count(cfg) for cfg in sizes.values()) * WORD
    training = stage.training
    if training is None:
        return total
    optimizers = {'policy': getattr(training, 'policy_optimizer', None) or training.optimizer}
    if getattr(training, 'baseline', '') == 'value':
        optimizers['value'] = training.value_optimizer
    rows = training.batch // training.parts
    for role, optimizer in optimizers.items():
        cfg = sizes[role]
        # Of one token in one layer: norms and residuals, queries to outputs, gates, and its row of attention before and
        # after softmax.
        token = 6 * cfg.width + 4 * cfg.heads * cfg.head_dim + 4 * cfg.ffn + 2 * cfg.heads * stage.length
        kept = rows * stage.length * (cfg.layers * token + 2 * cfg.width) + 3 * rows * min(stage.length, 64) * cfg.vocab
        total += int((count(cfg) * (1 + OPTIMIZER[optimizer.name]) + kept) * WORD)
    return total


def _sizes(model: str, dtype: str) -> transformer.Config:
    return PRESETS[model] if model in PRESETS else hf.read_config(resolve(model), dtype=dtype)


def _standing(stage: Stage) -> str:
    if checkpoint.finished(stage.folder) is not None:
        return 'done, reused'
    steps = [int(path.name) for path in (stage.folder / 'checkpoints').glob('*') if path.name.isdecimal()]
    return f'goes on from step {max(steps)}' if steps and stage.training else 'to do'


def _bytes(number: int) -> str:
    return f'~{number / 2**20:.0f} MiB' if number < 2**30 else f'~{number / 2**30:.1f} GiB'
