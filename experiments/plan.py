"""What a run will do, said before it starts: devices, mesh, dtypes, models, memory, stages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from jax.sharding import AbstractMesh

from experiments.chips import GIB, memory_of
from experiments.programs import AnyMesh, Line, Program, count, programs, touched
from rlaif_jax import axes, log
from rlaif_jax.config import Mistake, bind, dump, parse, parse_binding
from rlaif_jax.data import loader
from rlaif_jax.data.source import Source
from rlaif_jax.folder import busy, finished
from rlaif_jax.labeling import labelers, prompts
from rlaif_jax.models import hf, kernels, lora, transformer
from rlaif_jax.models.presets import GATED, PRESETS, Absent, resolve, sizes_of

C = TypeVar('C')
# What the interpreter and compiled programs take besides, on a CPU, GiB.
BESIDES = 0.7


def check(config: Any, folder: Path, mesh: AnyMesh | None = None) -> None:
    """Raises `Mistake` for what would stop the run later on: a mesh the devices cannot make, a batch the mesh does not
    divide, data or a model that is not there, rows longer than the model was made for, adapters of what it does not have.

    In `presets.downloading_nothing` what a run would download is passed over; `show` says what that is.
    """
    for run in runs(config, folder):
        check(run.config, run.folder, mesh)
    mesh = mesh or axes.make_mesh(asdict(config.mesh))
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
            if labelers.is_address(model):
                labelers.check(model)
            else:
                sizes[model] = hf.check(model)
        except Absent:
            sizes |= {model: known} if (known := sizes_of(model)) else {}
    for line in lines:
        if line.training and line.there is not None:
            parts = line.training.parts * getattr(line.training, 'samples', 1) * axes.shares(mesh)
            loader.check_batch(f'{line.name.replace(" ", "_")}.batch', line.training.batch, line.there, parts)
        policy = line.models.get('policy', made)
        if policy in sizes and line.training:
            lora.adapted(line.training.lora, sizes[policy])  # has what is to be adapted
        if policy in sizes and line.length > sizes[policy].max_length:
            raise Mistake(
                f'{line.name}: rows have up to {line.length} tokens, prompt and response together; {policy} was made '
                f'for {sizes[policy].max_length}. Lower max_prompt or max_new_tokens'
            )


def check_devices(config: Any, devices: int) -> None:
    """Raises `Mistake` where a mesh would leave some of so many devices out, or does not divide a batch."""
    shape = shape_of(config, devices)
    mesh = AbstractMesh(shape, axes.MESH_AXES)
    if mesh.size < devices:
        sizes = ', '.join(f'mesh.{axis}={size}' for axis, size in mesh.shape.items())
        raise Mistake(
            f'{sizes} leaves {devices - mesh.size} of {devices} devices idle; give mesh.data=-1 or mesh.fsdp=-1'
        )
    for _, one in variants(config):
        for name, size in batches(one).items():
            axes.check_batch(name, size, mesh)


def variants(config: C) -> Iterator[tuple[str, C]]:
    """Each of a config's variants, which are bindings, with the config that it makes; the config itself without any."""
    for variant in getattr(config, 'variants', ()) or ('',):
        yield variant, bind(replace(config, variants=()), dict([parse_binding(variant)])) if variant else config


def batches(config: Any) -> dict[str, int]:
    """Rows that go through the devices at once, by the name of the field that says so: every `batch`, by what it falls into
    (`falls_into`), and every `…_batch` below a config.
    """
    values, found = parse(dump(config)), {}
    for path, size in values.items():
        if path.split('.')[-1].split('_')[-1] == 'batch':
            into = falls_into(path, values)
            found[path + ''.join(f' / {name}' for name, n in into.items() if n > 1)] = size // math.prod(into.values())
    return found


def falls_into(batch: str, values: Mapping[str, Any]) -> dict[str, int]:
    """What the batch that is trained on, at this path, is divided by, by path: responses to a prompt, which are a row, and
    parts. Nothing of another.
    """
    above, _, field = batch.rpartition('.')
    if field != 'batch' or f'{above}.parts' not in values:
        return {}
    return {path: values[path] for name in ('samples', 'parts') if (path := f'{above}.{name}') in values}


def show(name: str, config: Any, folder: Path) -> None:
    """Print the plan of an experiment that `check` has passed."""
    import jax

    mesh, devices = axes.make_mesh(asdict(config.mesh)), jax.devices()
    shape = ' × '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
    log.say(f'{name}: {len(devices)} device(s) of kind {devices[0].device_kind}, mesh {shape}')
    attention = kernels.expected(mesh, config.dtype)
    log.say(f'what is trained float32, matrix products {config.dtype}, attention as {attention} with float32 softmax')
    if (found := source(config)) and found.simulated:
        log.say('This is a SIMULATED world: posts, people and oracle are artificial; all figures are about it alone.')
    if several := runs(config, folder):
        show_runs(several)
        return
    lines, usable = config.lines(folder), memory_of(devices[0])
    rows, folders, large = [], {}, []
    for line in lines:
        sizes = sizes_in(line, config)
        known = {role: _count(cfg) for role, cfg in sizes.items()}
        models = '\n'.join(f'{role}: {model}, {known.get(role, "served")}' for role, model in line.models.items())
        largest = largest_of(line, sizes, mesh)
        models = models or 'simulated' * bool(found and found.simulated)
        need = '?' if None in sizes.values() else gib(largest.need) if largest else '–'
        if largest and usable and largest.need > usable * GIB:
            large.append((line, largest))
        rows.append([title(line), models, line.steps, need, largest.name if largest else '', _standing(line)])
        folders.setdefault(line.folder, []).append(title(line).replace('\n', ' '))
    log.figures_table('plan', ['stage', 'models', 'steps', 'memory a device', 'most in', 'state'], rows)
    for where, names in folders.items():  # not a column: a path is wider than all others together
        log.say(f'{", ".join(names) if len(folders) > 1 else "folder"}: {where}')
    if usable:
        of = ', its share of this machine' if devices[0].platform == 'cpu' else ''
        log.say(f'a device has {usable:.4g} GiB{of}: {verdict(large, usable)}')
    for line, _ in large:
        found = fitting(config, folder, line, usable, mesh)
        log.say(
            f'{title(line, " ")}: {found or "no setting of its own makes it fit; use more devices, or a smaller model"}'
        )
    if told := circular(lines):
        log.say(told)
    for text in needed(config, folder):
        log.say(text)


def runs(config: Any, folder: Path) -> Sequence[Any]:
    """The runs that an experiment is made of; none of what is one run."""
    return config.runs(folder) if hasattr(config, 'runs') else ()


def show_runs(several: Sequence[Any]) -> None:
    """Print the plan of an experiment that is made of runs."""
    minutes = ['?' if one.minutes is None else f'{one.minutes:g}' for one in several]
    rows = [[one.name, one.seed, one.serves, told, standing(one.folder)] for one, told in zip(several, minutes)]
    log.figures_table('plan', ['run', 'seed', 'for', 'minutes', 'state'], rows)
    left = [one.minutes for one in several if finished(one.folder) is None]
    if None not in left:
        log.say(f'{len(left)} of {len(several)} runs are to do: about {sum(left):.0f} minutes on two cores')
    lacking = dict.fromkeys(what for one in several for what in absent(one.config, one.folder))
    if lacking:
        log.say('\n'.join(['not on this machine; a run would fetch', *lacking]))


def needed(config: Any, folder: Path) -> list[str]:
    """What a run would fetch and write, in words."""
    lacking = absent(config, folder)
    found = ['\n'.join(['not on this machine; a run would fetch', *lacking])] if lacking else []
    return [*found, f'on disk, besides what is fetched, once all is made: {gib(disk(config.lines(folder), config))}']


def verdict(large: Sequence[tuple[Line, Program]], usable: float) -> str:
    """Whether all stages fit, and by how much they do not."""
    if not large:
        return 'all fits'
    over = [f'{title(line, " ")} by {one.need / GIB - usable:.3g} GiB' for line, one in large]
    return f'too little for {", ".join(over)} (an estimate)'


def title(line: Line, between: str = '\n') -> str:
    return between.join(filter(None, (line.name, line.of)))


def largest_of(line: Line, sizes: Mapping[str, transformer.Config | None], mesh: AnyMesh) -> Program | None:
    """The program of a stage that needs most memory; None where it has none, or sizes are unknown."""
    if None in sizes.values():
        return None
    return max(programs(line, sizes, mesh), key=lambda program: program.need, default=None)


def fitting(config: Any, folder: Path, line: Line, usable: float, mesh: AnyMesh) -> str:
    """The first setting with which a stage fits the memory of a device, in words; '' of none."""
    for changes in settings(config, line, mesh.size):
        changed = bind(config, changes)
        same = next((one for one in changed.lines(folder) if title(one) == title(line)), None)
        if same is None:
            continue
        found = largest_of(same, sizes_in(same, config), AbstractMesh(shape_of(changed, mesh.size), axes.MESH_AXES))
        if found and found.need <= usable * GIB:
            return f'{spelled(changes)} fits ({gib(found.need)})'
    return ''


def settings(config: Any, line: Line, devices: int) -> Iterator[dict[str, Any]]:
    """What may make a stage smaller, the cheapest first, as bindings: what only saves memory, more and more of it, then
    another mesh, then adapters, which train something else.
    """
    values = parse(dump(config))
    path = line.name.replace(' ', '_')
    spread = {'mesh.data': 1, 'mesh.fsdp': -1, 'mesh.tensor': 1}
    meshes = [spread] * (devices > 1 and config.mesh.fsdp != -1)
    meshes += [{**spread, 'mesh.tensor': n} for n in (4, 8) if devices % n == 0 and config.mesh.tensor < n <= devices]
    if line.training and values.get(f'{path}.parts'):
        rows = values[f'{path}.batch'] // values.get(f'{path}.samples', 1)
        found = [{f'{path}.remat': True}]
        found += [found[0] | {f'{path}.parts': n} for n in doubled(values[f'{path}.parts'], rows, devices)]
        adapted = [{f'{path}.lora.rank': 16}] * (not values[f'{path}.lora.rank'])
        found += [found[-1] | one for one in meshes + adapted]
        found = [{name: x for name, x in changes.items() if x != values[name]} for changes in found]
    else:
        field = {'labels': 'label.batch', 'label': 'label.batch', 'evaluation': 'evaluation.batch'}.get(line.name, '')
        rows = values.get(field, 0)
        found = [{field: rows // n} for n in doubled(1, rows, devices)] + meshes
    yield from filter(None, found)


def doubled(parts: int, rows: int, devices: int) -> Iterator[int]:
    """2, 4, 8, … times `parts`, into which rows fall so that each device has one at least."""
    while (parts := 2 * parts) * devices <= rows and rows % parts == 0:
        yield parts


def spelled(changes: Mapping[str, Any]) -> str:
    """Bindings as they are typed."""
    return ' '.join(f'{path}={value}' for path, value in changes.items() if value != 1 or not path.startswith('mesh.'))


def shape_of(config: Any, devices: int) -> tuple[int, ...]:
    """The mesh of a config on so many devices. Raises `Mistake` where it does not fit them."""
    return axes.mesh_shape(asdict(config.mesh), devices)


def sizes_in(line: Line, config: Any) -> dict[str, transformer.Config | None]:
    """The sizes of a line's models, by role; None of a model that nobody here knows. Those of servers are not here."""
    return {role: _sizes(one, config.dtype) for role, one in line.models.items() if not labelers.is_address(one)}


def disk(lines: Sequence[Line], config: Any) -> int:
    """Bytes that a run leaves at most, about: of each stage that trains two checkpoints and what it exports."""
    total = 0
    for line in lines:
        cfg = sizes_in(line, config).get('policy')
        if line.training and cfg:
            networks = 2 if getattr(line.training, 'baseline', '') == 'value' else 1
            kept = 1 + getattr(line.training, 'candidates', 1)
            total += (2 * networks * (not line.training.lora.rank) + kept) * 4 * count(cfg)
    return total


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
        if model not in PRESETS and not labelers.is_address(model):
            try:
                resolve(model)
            except Absent:
                found.append(f'  {model} from the hub{_download(model)}')
    pairs = any(line.name not in ('sft', 'reinforce', 'evaluation') for line in lines)
    return found + [f'  {what}' for what in (loader.absent(config.data.source, pairs) if config.data else [])]


def _sizes(model: str, dtype: str) -> transformer.Config | None:
    """None: nobody here knows them."""
    if model in PRESETS:
        return PRESETS[model]
    try:
        return hf.read_config(resolve(model), dtype=dtype)
    except Absent:
        return (known := sizes_of(model)) and replace(known, dtype=dtype)


def _count(cfg: transformer.Config | None) -> str:
    if cfg is None:
        return '? M'
    shown = lambda n: f'{n / 1e6:.2f} M' if n < 1e9 else f'{n / 1e9:.2f} B'  # noqa: E731
    return shown(count(cfg)) + (f', {shown(touched(cfg))} active' if cfg.experts else '')


def _download(model: str) -> str:
    """How large a model of the hub is, as far as it is known, and where its terms are accepted."""
    known = sizes_of(model)
    size = f', {gib(2 * count(known))}' if known else ''
    gated = f'; gated: accept its terms at https://huggingface.co/{model}, then `hf auth login`'
    return size + gated * model.startswith(GATED)


def standing(folder: Path) -> str:
    """Whether what lies in a folder is made."""
    return 'done, reused' if finished(folder) is not None else 'being made' if busy(folder) else 'to do'


def _standing(line: Line) -> str:
    if (found := standing(line.folder)) != 'to do':
        return found
    steps = [int(path.name) for path in (line.folder / 'checkpoints').glob('*') if path.name.isdecimal()]
    return f'goes on from step {max(steps)}' if steps and line.training else 'to do'


def gib(number: float) -> str:
    """Bytes in words."""
    if number < 2**20:
        return f'~{number / 2**10:.0f} KiB'
    return f'~{number / 2**20:.0f} MiB' if number < 2**30 else f'~{number / 2**30:.1f} GiB'
