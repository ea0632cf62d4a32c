"""What a run will do, said before it starts: devices, mesh, dtypes, models, memory, stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rlaif_jax import axes, log
from rlaif_jax.config import Mistake, bind, dump, parse, parse_binding
from rlaif_jax.data import loader
from rlaif_jax.data.source import Source
from rlaif_jax.folder import busy, finished
from rlaif_jax.labeling import prompts
from rlaif_jax.models import hf, lora, transformer
from rlaif_jax.models.presets import PRESETS, Absent, resolve, sizes_of
from rlaif_jax.training import reinforce, reward_model, sft
from rlaif_jax.training import state as training

C = TypeVar('C')
WORD = 4  # bytes of a float32
ASKED = (
    'labeler',
    'judge',
    'reward model',
    'reference',
)  # nobody trains these: their matrices are in bfloat16 where products are


@dataclass(frozen=True)
class Line:
    """One line of a plan: a stage, or what the run itself does. It is done when its folder holds a result."""

    name: str
    folder: Path
    steps: int
    models: dict[str, str] = field(default_factory=dict)  # role -> model
    training: sft.Config | reward_model.Config | reinforce.Config | None = None
    length: int = 0  # tokens of a training row
    # Of models that only read and write: role -> rows at a time, and tokens of each that are not read once for several.
    reads: dict[str, tuple[int, int]] = field(default_factory=dict)
    of: str = ''  # whose feedback it learns from, where stages of one name differ in it
    there: int | None = None  # rows to train on, of prompts a row each response; None where nobody counted


def check(config: Any, folder: Path) -> None:
    """Raises `Mistake` for what would stop the run later on: a mesh the devices cannot make, a batch the mesh does not
    divide, data or a model that is not there, rows longer than the model was made for, adapters of what it does not have.

    In `presets.downloading_nothing` what a run would download is passed over; `show` says what that is.
    """
    mesh = axes.make_mesh(asdict(config.mesh))
    for _, one in variants(config):
        for name, size in batches(one).items():
            axes.check_batch(name, size, mesh)
        for name in ('sft', 'reinforce'):
            if (cfg := getattr(one, name, None)) and cfg.batch > one.data.train:
                raise Mistake(f'{name}.batch = {cfg.batch} is more than the prompts, data.train = {one.data.train}')
    if config.data:
        loader.check(config.data.source)
        evaluation = getattr(config, 'evaluation', None)
        if evaluation and evaluation.simulated and not loader.find(config.data.source).simulated:
            raise Mistake(
                f'evaluation.judge = {evaluation.judge!r} knows the simulated world alone, not {config.data.source}; '
                'name a language model'
            )
    if getattr(config, 'rating', None):
        prompts.single(config.task, 'rating')
    lines = config.lines(folder)
    made = getattr(config, 'model', None)  # by the experiment itself
    models = dict.fromkeys(model for line in lines for model in line.models.values())
    sizes = {}
    for model in [model for model in models if model != made]:
        try:
            sizes[model] = hf.check(model)
        except Absent:
            sizes |= {model: known} if (known := sizes_of(model)) else {}
    for line in lines:
        if line.training and line.there is not None:
            parts = line.training.parts * axes.shares(mesh)
            loader.check_batch(f'{line.name.replace(" ", "_")}.batch', line.training.batch, line.there, parts)
        policy = line.models.get('policy', made)
        if policy in sizes and line.training:
            lora.adapted(line.training.lora, sizes[policy])  # has what is to be adapted
        if policy in sizes and line.length > sizes[policy].max_length:
            raise Mistake(
                f'{line.name}: rows have up to {line.length} tokens, prompt and response together; {policy} was made '
                f'for {sizes[policy].max_length}. Lower max_prompt or max_new_tokens'
            )


def variants(config: C) -> Iterator[tuple[str, C]]:
    """Each of a config's variants, which are bindings, with the config that it makes; the config itself without any."""
    for variant in getattr(config, 'variants', ()) or ('',):
        yield variant, bind(replace(config, variants=()), dict([parse_binding(variant)])) if variant else config


def batches(config: Any) -> dict[str, int]:
    """Rows that go through the devices at once, by the name of the field that says so: every `batch`, by its `parts` where
    it has some, and every `…_batch` below a config.
    """
    values, found = parse(dump(config)), {}
    for path, size in values.items():
        above, _, field = path.rpartition('.')
        parts = values.get(f'{above}.parts', 1) if field == 'batch' else 1
        if field.split('_')[-1] == 'batch':
            found[path + f' / {above}.parts' * (parts > 1)] = size // parts
    return found


def show(name: str, config: Any, folder: Path) -> None:
    """Print the plan of an experiment that `check` has passed."""
    import jax

    mesh, devices = axes.make_mesh(asdict(config.mesh)), jax.devices()
    shape = ' × '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
    log.say(f'{name}: {len(devices)} device(s) of kind {devices[0].device_kind}, mesh {shape}')
    log.say(
        f'what is trained float32, matrix products {config.dtype}, attention as plain XLA operations with float32 softmax'
    )
    if (found := source(config)) and found.simulated:
        log.say('This is a SIMULATED world: posts, people and oracle are artificial; all figures are about it alone.')
    rows, folders = [], {}
    for line in config.lines(folder):
        sizes = {role: _sizes(model, config.dtype) for role, model in line.models.items()}
        models = '\n'.join(f'{role}: {line.models[role]}, {_count(cfg)}' for role, cfg in sizes.items())
        needed = '?' if None in sizes.values() else _bytes(memory(line, sizes))
        optimizer = _bytes(optimizer_memory(line, sizes)) if line.training and needed != '?' else '–'
        name = list(filter(None, (line.name, line.of)))
        rows.append(['\n'.join(name), models or 'simulated', line.steps, needed, optimizer, _standing(line)])
        folders.setdefault(line.folder, []).append(' '.join(name))
    log.figures_table('plan', ['stage', 'models', 'steps', 'memory, in all', 'of it optimizer', 'state'], rows)
    for where, names in folders.items():  # not a column: a path is wider than all others together
        log.say(f'{", ".join(names) if len(folders) > 1 else "folder"}: {where}')
    if told := circular(config.lines(folder)):
        log.say(told)
    if lacking := absent(config, folder):
        log.say('\n'.join(['not on this machine; a run would fetch', *lacking]))


def source(config: Any) -> Source | None:
    """Where the prompts of an experiment are from, and so its figures; None where a file's own pairs are labelled."""
    own = getattr(config, 'source', None)  # as `Compare` has it, whose prompts may be others than its data's
    return own() if own else config.data and loader.find(config.data.source)


def circular(lines: Sequence[Line]) -> str:
    """What to say of a model that makes labels or chooses among checkpoints, and judges what comes of it; '' of none."""
    made = {line.models[role] for line in lines for role in ('labeler', 'selector') if role in line.models}
    both = sorted(made & {line.models['judge'] for line in lines if 'judge' in line.models})
    if not both:
        return ''
    return (
        f'{both[0]} makes labels, or chooses among checkpoints, and judges, too: policies that please it win. Another '
        'judge, evaluation.judge=…, or people’s rankings say more; in the paper people judge.'
    )


def absent(config: Any, folder: Path) -> list[str]:
    """The models and the data that a run would download."""
    found, lines = [], config.lines(folder)
    for model in dict.fromkeys(model for line in lines for model in line.models.values()):
        if model not in PRESETS:
            try:
                resolve(model)
            except Absent:
                found.append(f'  {model} from the hub')
    pairs = any(line.name not in ('sft', 'reinforce', 'evaluation') for line in lines)
    return found + [f'  {what}' for what in (loader.absent(config.data.source, pairs) if config.data else [])]


@cache
def count(cfg: transformer.Config) -> int:
    """Parameters of a model of these sizes."""
    import jax

    return _floats(jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0))))


def memory(line: Line, sizes: dict[str, transformer.Config]) -> int:
    """Bytes over all devices, about: parameters, their gradients and optimizers, and what the backward pass keeps.

    With adapters, policy, value network and reference stand on one copy of the parameters. What only reads and writes
    keeps keys and values of all layers, and what one layer computes. The interpreter and compiled programs come on top,
    some 700 MB on a CPU. With `remat` it is a little to a third more than XLA says of compiled steps (experiments/LOG.md).
    """
    how = line.training
    adapted = bool(how and how.lora.rank)
    shared = ('value', 'reference') if adapted else ()
    later = sum(_parameters(cfg, True) for role, cfg in sizes.items() if role == 'selector')  # once all are trained
    held = {role: cfg for role, cfg in sizes.items() if role not in (*shared, 'selector')}
    total = sum(_parameters(cfg, adapted or not how or role in ASKED) for role, cfg in held.items())
    reading = [_reading(sizes[role], *read) for role, read in line.reads.items()]
    kept = 0
    for cfg, trained, moments in _learned(line, sizes):
        rows = how.batch // how.parts
        token = _token(cfg) + 2 * cfg.heads * line.length  # and its row of attention before and after softmax
        layers = cfg.layers * cfg.width + token if how.remat else cfg.layers * token
        kept += rows * line.length * (layers + 2 * cfg.width) * WORD
        kept += 3 * rows * min(line.length, 64) * cfg.vocab * WORD
        copies = 1 + (how.parts > 1) + bool(how.lora.rank)  # its gradient, that of a part, and adapters themselves
        total += (trained * copies + moments) * WORD
    return total + max([kept, later, *reading])


def optimizer_memory(line: Line, sizes: dict[str, transformer.Config]) -> int:
    """Bytes of what the optimizers of a stage keep."""
    return sum(moments for _, _, moments in _learned(line, sizes)) * WORD


def _learned(line: Line, sizes: dict[str, transformer.Config]) -> Iterator[tuple[transformer.Config, int, int]]:
    """Of each network that a stage trains: its sizes, how many numbers are trained, and how many its optimizer keeps."""
    import jax

    how, key, found = line.training, jax.random.key(0), {}
    if how:
        found = {'policy': getattr(how, 'policy_optimizer', None) or how.optimizer}
    if getattr(how, 'baseline', '') == 'value':
        found['value'] = how.value_optimizer
    for role, optimizer in found.items():
        cfg = sizes[role]
        begin = lambda: training.trained(how.lora, cfg, transformer.init(cfg, key), key)  # noqa: B023, E731
        trained = jax.eval_shape(begin)
        moments = jax.eval_shape(training.make_optimizer(optimizer, how.steps).init, trained)
        yield cfg, _floats(trained), _floats(moments)


def _token(cfg: transformer.Config) -> int:
    """Numbers that one layer computes of a token: norms and residuals, queries to outputs, gates."""
    return 6 * cfg.width + 4 * cfg.heads * cfg.head_dim + 4 * cfg.ffn


def _parameters(cfg: transformer.Config, frozen: bool) -> int:
    """Bytes."""
    return count(cfg) * (2 if frozen and cfg.dtype == 'bfloat16' else WORD)


def _reading(cfg: transformer.Config, rows: int, length: int) -> int:
    """Bytes that rows take where nothing is trained."""
    word = 2 if cfg.dtype == 'bfloat16' else WORD
    kept = 2 * cfg.layers * cfg.kv_heads * cfg.head_dim
    return rows * length * ((kept + _token(cfg)) * word + 2 * cfg.heads * length * WORD)


def _floats(shapes: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _sizes(model: str, dtype: str) -> transformer.Config | None:
    """None: nobody here knows them."""
    if model in PRESETS:
        return PRESETS[model]
    try:
        return hf.read_config(resolve(model), dtype=dtype)
    except Absent:
        return (known := sizes_of(model)) and replace(known, dtype=dtype)


def _count(cfg: transformer.Config | None) -> str:
    return '? M' if cfg is None else f'{count(cfg) / 1e6:.2f} M' if count(cfg) < 1e9 else f'{count(cfg) / 1e9:.2f} B'


def _standing(line: Line) -> str:
    if finished(line.folder) is not None:
        return 'done, reused'
    if busy(line.folder):
        return 'being made'
    steps = [int(path.name) for path in (line.folder / 'checkpoints').glob('*') if path.name.isdecimal()]
    return f'goes on from step {max(steps)}' if steps and line.training else 'to do'


def _bytes(number: int) -> str:
    if number < 2**20:
        return f'~{number / 2**10:.0f} KiB'
    return f'~{number / 2**20:.0f} MiB' if number < 2**30 else f'~{number / 2**30:.1f} GiB'
