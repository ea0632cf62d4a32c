"""What a run will do, said before it starts: devices, mesh, dtypes, models, memory, stages."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlaif_jax import axes, checkpoint, log
from rlaif_jax.models import hf, transformer
from rlaif_jax.models.presets import PRESETS, resolve

WORD = 4  # bytes of a float32


def show(name: str, config: Any, folder: Path) -> None:
    """Print the plan of an experiment's config. Raises `Mistake` for a mesh that the devices cannot make or a model that is not there."""
    import jax

    from rlaif_jax.data import loader

    mesh = axes.make_mesh(asdict(config.mesh))
    devices = jax.devices()
    log.say(f'{name}: {len(devices)} {devices[0].device_kind} device(s), mesh {dict(mesh.shape)}, compute {config.dtype}, parameters float32')
    if loader.simulated(config.data.source):
        log.say('This is a SIMULATED world: its posts, people and oracle are artificial, and every figure below is about it alone.')
    sizes: dict[str, transformer.Config] = {}
    rows = []
    for stage in config.stages(folder):
        for model in stage.models.values():
            sizes[model] = sizes.get(model) or _sizes(model, config.dtype)
        models = ', '.join(f'{role} {model} ({count(sizes[model]) / 1e6:.2f} M)' for role, model in stage.models.items())
        state = 'done, reused' if checkpoint.finished(stage.folder) else _standing(stage.folder, stage.name)
        rows.append([stage.name, models or 'simulated judges', stage.steps, _bytes(memory(stage, config, sizes)), state, str(stage.folder)])
    log.figures_table('plan', ['stage', 'models', 'steps', 'memory, about', 'state', 'folder'], rows)


def count(cfg: transformer.Config) -> int:
    """Parameters of a model of these sizes."""
    import jax

    shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def memory(stage: Any, config: Any, sizes: dict[str, transformer.Config]) -> int:
    """Bytes over all devices, about: parameters, gradients, optimizer, and the activations of the widest step. Compiled code and the interpreter
    come on top (some 500 MB)."""
    params = {role: count(sizes[model]) * WORD for role, model in stage.models.items()}
    if stage.name not in ('sft', 'reinforce', 'pretrain'):
        return sum(params.values())
    cfg = getattr(config, stage.name if stage.name != 'pretrain' else 'sft')
    trained = [params[role] for role in ('policy', 'value') if role in params and not (role == 'value' and cfg.baseline != 'value')]
    optimizer = {'adamw': 2.0, 'adafactor': 0.1}[getattr(cfg, 'policy_optimizer', None) and cfg.policy_optimizer.name or cfg.optimizer.name]
    model = sizes[stage.models['policy']]
    length = cfg.max_prompt + cfg.max_new_tokens if hasattr(cfg, 'max_prompt') else getattr(config, 'max_prompt', 0) + getattr(config, 'max_new_tokens', 0)
    rows = cfg.batch // cfg.parts
    # What the backward pass keeps of one token in one layer: its norms, projections and gates, and its row of attention, twice.
    token = 8 * model.width + 3 * model.ffn + 4 * model.heads * model.head_dim + 2 * model.heads * length
    activations = rows * length * (model.layers * token + 4 * model.width) * WORD * len(trained)
    logits = rows * min(length, 64) * model.vocab * WORD * 3
    return int(sum(params.values()) + sum(trained) * (1 + optimizer) + activations + logits)


def _sizes(model: str, dtype: str) -> transformer.Config:
    return hf.read_config(resolve(model), dtype=dtype) if model not in PRESETS else PRESETS[model]


def _standing(folder: Path, stage: str) -> str:
    steps = [int(path.name) for path in (folder / 'checkpoints').glob('*') if path.name.isdecimal()]
    return f'goes on from step {max(steps)}' if steps and stage != 'evaluation' else 'to do'


def _bytes(number: int) -> str:
    return f'{number / 2**20:.0f} MiB' if number < 2**30 else f'{number / 2**30:.1f} GiB'
