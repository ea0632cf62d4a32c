"""What a stage computes: its jitted programs, as they will be called, without a number of any model.

    for program in programs(line, sizes, mesh):
        program.need               bytes on each device while it runs, by arithmetic
        program.compile()          the same by the compiler, for the devices of the mesh, which need not be there

A plan adds these up. Sizes of arguments are exact, as they are those of the run, placed by the same rules; what a program
needs besides is an estimate until it is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from rlaif_jax import axes, generation
from rlaif_jax.batching import padded
from rlaif_jax.labeling import scoring
from rlaif_jax.models import heads, lora, transformer
from rlaif_jax.models.hf import LM
from rlaif_jax.training import reinforce, reward_model, sft
from rlaif_jax.training import state as training

WORD = 4  # bytes of a float32
AnyMesh = Mesh | AbstractMesh
Sizes = Mapping[str, transformer.Config]  # of the models of a line, by role
Training = sft.Config | reward_model.Config | reinforce.Config


@dataclass(frozen=True)
class Read:
    """What a model of a stage does besides being trained: it answers, scores, or writes."""

    role: str  # of Line.models
    does: Literal['answers', 'scores', 'writes']
    rows: int  # at once, over all devices
    prompt: int  # tokens that a row begins with
    tail: int = 0  # and those of each branch behind it, read or written
    branches: int = 1
    prefix: int = 0  # tokens before all rows, read once for all
    calls: float = 1.0  # in the whole stage


@dataclass(frozen=True)
class Line:
    """One line of a plan: a stage, or what the run itself does. It is done when its folder holds a result."""

    name: str
    folder: Path
    steps: int
    models: dict[str, str] = field(default_factory=dict)  # role -> model
    training: Training | None = None
    length: int = 0  # tokens of a training row
    reads: tuple[Read, ...] = ()
    of: str = ''  # whose feedback it learns from, where stages of one name differ in it
    there: int | None = None  # rows to train on, of prompts a row each response; None where nobody counted
    read: int = 0  # tokens of a row of SFT behind which the vocabulary is looked at; 0: all


@dataclass(frozen=True)
class Program:
    """A jitted function of a stage with what it is called on; all figures are of one device."""

    name: str  # what it does: 'update', 'policy writes', …
    calls: float  # in the whole stage
    tokens: int  # that pass in a call, over all devices
    resident: int  # bytes of everything that lies there while it runs, its arguments among it
    arguments: int  # bytes of those
    working: int  # bytes that it needs besides, an estimate
    flops: float  # of its products in a call
    traffic: float  # bytes that a call moves between memory and chip, at least
    lower: Callable[[], jax.stages.Lowered]
    split: Mapping[str, tuple[int, ...]]  # shapes of arrays that are too large to be whole on a device of several

    @property
    def need(self) -> int:
        """Bytes, an estimate."""
        return self.resident + self.working


class Blank:
    """A tokenizer as far as programs know one: which tokens may be, and which end a response."""

    pad = 0

    def allowed(self, vocab: int) -> np.ndarray:
        return np.ones(vocab, bool)

    def stops(self, vocab: int) -> np.ndarray:
        return np.arange(vocab) == 0


def programs(line: Line, sizes: Sizes, mesh: AnyMesh) -> list[Program]:
    """Of a stage whose models have these sizes, on a mesh; those that only read stand behind the one that trains."""
    stage = _Stage(line, sizes, mesh)
    return [*stage.trains(), *map(stage.reads, line.reads)]


def memory(line: Line, sizes: Sizes, mesh: AnyMesh | None = None) -> int:
    """Bytes that a stage needs on each device of a mesh, by default of one device: an estimate."""
    return max((program.need for program in programs(line, sizes, mesh or alone())), default=0)


def alone() -> AbstractMesh:
    """The mesh of one device."""
    return AbstractMesh((1, 1, 1), axes.MESH_AXES)


@dataclass(frozen=True)
class _Stage:
    line: Line
    sizes: Sizes
    mesh: AnyMesh

    # What lies on the devices

    def state(self) -> dict[str, Any]:
        """What a stage trains, by network, as shapes: parameters, optimizer, counters."""
        how, cfg, start = self.line.training, self._model(), _shapes(self.sizes['policy'])
        if isinstance(how, reinforce.Config):
            return jax.eval_shape(partial(reinforce.begin, how, cfg), start)
        own = partial(training.trained, how.lora, cfg, key=jax.random.key(0))
        begin = own if isinstance(how, sft.Config) else lambda start: _scored(own(start), cfg)
        optimizer = training.make_optimizer(how.optimizer, how.steps)
        return {'policy': jax.eval_shape(lambda start: training.init_state(begin(start), optimizer), start)}

    def resident(self, reading: str = '') -> dict[str, int]:
        """Bytes on each device of all that a stage holds, by name; of one that trains nothing the model that reads."""
        if not self.line.training:  # one is loaded after the other
            return {reading: self.bytes_of(_frozen(self.sizes[reading]))}
        # What training goes out from stays as it was loaded; REINFORCE has it as its reference.
        found = {'state': self.bytes_of(self.state()), 'start': self.bytes_of(self._start())}
        others = {read.role for read in self.line.reads} - {'policy'}
        return found | {role: self.bytes_of(_frozen(self.sizes[role])) for role in others}

    def bytes_of(self, tree: Any) -> int:
        where = axes.shardings(tree, self.mesh)
        size = lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize  # noqa: E731
        return sum(jax.tree.leaves(jax.tree.map(size, tree, where)))

    def _model(self) -> transformer.Config:
        how = self.line.training
        return training.recomputed(how.remat, lora.adapted(how.lora, self.sizes['policy']))

    def _start(self) -> Any:
        how, cfg = self.line.training, self.sizes['policy']
        frozen = isinstance(how, reinforce.Config) or how.lora.rank
        return _frozen(cfg) if frozen else _shapes(cfg)

    # What is computed

    @property
    def shares(self) -> int:
        return axes.shares(self.mesh)

    @property
    def platform(self) -> str:
        """Of the devices; '' where they are not said."""
        return self.mesh.devices.flat[0].platform if isinstance(self.mesh, Mesh) else ''

    @property
    def tensor(self) -> int:
        return self.mesh.shape['tensor']

    def trains(self) -> Iterator[Program]:
        """A step of the optimizer."""
        how, line = self.line.training, self.line
        if how is None:
            return
        resident, cfg = self.resident(), self._model()
        networks = 2 if getattr(how, 'baseline', '') == 'value' else 1
        all_rows, T = self._rows_of_update()
        rows = -(-all_rows // how.parts // self.shares)
        word = _word(cfg)
        read = self._read_of_update()  # positions behind which the vocabulary is looked at
        layers = self._layers(cfg, T, 2 if isinstance(how, reward_model.Config) else read)
        saved = networks * layers * rows * T * (cfg.width if how.remat else _kept(cfg)) * word
        layer = _layer_work(cfg, rows, T, self.tensor) * (1.4 if how.remat else 1)
        samples = getattr(how, 'samples', 1)
        logits = 3 * rows * samples * min(read // samples, heads.CHUNK) * cfg.vocab // self.tensor * WORD
        state = self.state()
        trained = self.bytes_of({name: one['params'] for name, one in state.items()})
        gradients = trained * (1 + (how.parts > 1))
        cast = trained // 2 if word == 2 and not how.lora.rank else 0
        working = int(saved + max(layer, logits) + gradients + cast + 2 * _layer_bytes(cfg) * word // self.tensor)

        one = _forward(self._passed(cfg), T, T * T / 2, read, layers) * all_rows
        passes = (4 if how.remat else 3) * networks + (1 if isinstance(how, reinforce.Config) else 0)
        weights = count(cfg) * word / self.tensor
        moved = weights * how.parts * passes + 3 * resident['state']
        yield Program(
            name='update',
            calls=line.steps,
            tokens=all_rows * T,
            resident=sum(resident.values()),
            arguments=resident['state'] + resident['start'] * bool(how.lora.rank or isinstance(how, reinforce.Config)),
            working=working,
            flops=one * passes / self.mesh.size,
            traffic=moved,
            lower=self._lower_update,
            split=self._split(cfg, all_rows // how.parts, read),
        )

    def _rows_of_update(self) -> tuple[int, int]:
        """How many, and their tokens: responses to one prompt are one row."""
        how, length = self.line.training, self.line.length
        if isinstance(how, reinforce.Config):
            return how.batch // how.samples, length + (how.samples - 1) * how.max_new_tokens
        return how.batch, length

    def _read_of_update(self) -> int:
        how = self.line.training
        if isinstance(how, reinforce.Config):
            return how.samples * how.max_new_tokens
        return self._read_of_sft() if isinstance(how, sft.Config) else 0

    def _read_of_sft(self) -> int:
        line = self.line
        return min(padded([line.read], sft.READ), line.length) if line.read else line.length

    def _lower_update(self) -> jax.stages.Lowered:
        how, T, cfg = self.line.training, self.line.length, self._model()
        row = partial(_rows, self.mesh, how.batch)
        params, state = _shapes(self.sizes['policy']), self.state()
        if isinstance(how, reinforce.Config):
            P, R = how.max_prompt, how.max_new_tokens
            prompts = partial(_rows, self.mesh, how.batch // how.samples)
            step = _steps(how, cfg, params, self.mesh).update
            batch = {
                'prompt_BT': prompts(jnp.int32, P), 'valid_BT': prompts(bool, P), 'token_BT': row(jnp.int32, R),
                'mask_BT': row(bool, R), 'sampled_logp_BT': row(jnp.float32, R), 'ended_B': row(bool),
                'score_B': row(jnp.float32),
            }  # fmt: skip
            given = self._place(state), self._place(self._start()), batch
        elif isinstance(how, sft.Config):
            _, step = _step(how, cfg, self.mesh)
            batch = {
                'token_BT': row(jnp.int32, T), 'target_BT': row(jnp.int32, T), 'weight_BT': row(jnp.float32, T),
            }  # fmt: skip
            packed = {'position_BT': row(jnp.int32, T), 'until_BT': row(jnp.int32, T)}
            batch |= packed if sft.packs(how, self.platform) else {'valid_BT': row(bool, T)}
            batch |= {'read_BW': row(jnp.int32, self._read_of_sft())} if self.line.read else {}
            given = self._place(state['policy']), self._place(self._start()), batch
        else:
            _, step = _step(how, cfg, self.mesh)
            Q = reward_model.EACH if how.pack else 1
            batch = {
                'token_BT': row(jnp.int32, T), 'until_BT': row(jnp.int32, T), 'position_BT': row(jnp.int32, T),
                'last_BQC': row(jnp.int32, Q, 2), 'preference_BQ': row(jnp.float32, Q),
                'weight_BQ': row(jnp.float32, Q), 'full_BQ': row(bool, Q),
            }  # fmt: skip
            start = jax.eval_shape(partial(_scored, cfg=cfg), self._start())
            given = self._place(state['policy']), self._place(start), batch
        with jax.set_mesh(self.mesh):
            return step.lower(*given)

    def reads(self, read: Read) -> Program:
        """A call of a model that is not trained, or of the policy as it stands."""
        cfg, resident = self._sizes(read), self.resident(read.role)
        passed = self._passed(cfg)
        own = self.bytes_of(self._read_params(read))
        rows, word = -(-read.rows // self.shares), _word(cfg)
        weights = count(cfg) * word / self.tensor
        kept = 2 * cfg.layers * max(cfg.kv_heads // self.tensor, 1) * cfg.head_dim * word  # bytes of a slot
        T = read.prompt + read.tail * read.branches
        # Layers that are not scanned are cut out of the stack, some of them ahead.
        cut = 2 + transformer.unrolled(cfg, self.platform or 'cpu')
        layers = cut * _layer_bytes(cfg) * word // self.tensor
        if read.does == 'writes':
            slots = read.prompt + read.tail
            logits = 3 * rows * cfg.vocab // self.tensor * WORD
            work = _layer_work(cfg, rows, read.prompt, self.tensor, trained=False)
            how = self.line.training
            # What is trained is float32, and is cast once a call.
            cast = how and read.role == 'policy' and not how.lora.rank and word < WORD
            copy = count(cfg) * word // self.mesh.size * bool(cast)
            # Where layers are taken apart, parameters and the prompts' cache are there twice; the cache that a loop writes
            # is there twice anywhere.
            apart = self.platform == 'cpu' and self.mesh.shape['fsdp'] == 1
            copy += weights * apart
            cache = rows * ((1 + apart) * read.prompt + 2 * read.branches * read.tail) * kept
            working = cache + max(work, read.branches * logits) + layers + copy
            written, C = read.tail, read.branches
            seen = read.prompt * (read.prompt / 2 + read.prefix) + C * written * (slots - written / 2 + read.prefix)
            flops = _forward(passed, read.prompt + C * written, seen, C * (written + 1))
            steps = touched(passed, rows * read.prompt) + written * touched(passed, rows * C)
            traffic = steps * word / self.tensor + rows * kept * written * (read.prompt + C * written / 2)
        else:
            heads_read = 3 * read.branches if read.does == 'answers' else 0
            work = _layer_work(cfg, rows, T, self.tensor, trained=False)
            work += rows * T * (read.prefix * cfg.heads // self.tensor) * WORD
            working = max(work, 2 * rows * heads_read * cfg.vocab // self.tensor * WORD) + layers
            branch = read.tail * (read.prompt + read.tail / 2)
            seen = read.prompt**2 / 2 + read.branches * branch + T * read.prefix
            flops = _forward(passed, T, seen, heads_read)
            traffic = touched(passed, rows * T) * word / self.tensor
        return Program(
            name=f'{read.role} {read.does}',
            calls=read.calls,
            tokens=read.rows * T,
            resident=sum(resident.values()),
            arguments=own,
            working=int(working),
            flops=flops * read.rows / self.mesh.size,
            traffic=traffic,
            lower=partial(self._lower_read, read),
            split=self._split(cfg, read.rows, T),
        )

    def _passed(self, cfg: transformer.Config) -> transformer.Config:
        """The same with as many experts chosen as a token passes (`models.experts`)."""
        return cfg if self.platform == 'tpu' else replace(cfg, chosen=cfg.experts)

    def _layers(self, cfg: transformer.Config, length: int, read: int) -> float:
        """Layers that a token of an update passes. Of few, the last has keys and values of all, else what is read."""
        if not transformer.unrolled(cfg, self.platform or 'cpu'):
            return cfg.layers
        keys = 2 * cfg.width * cfg.kv_heads * cfg.head_dim / _layer_bytes(cfg)
        return cfg.layers - (1 - keys) * (1 - min(read, length) / length)

    def _split(self, cfg: transformer.Config, rows: int, length: int) -> dict[str, tuple[int, ...]]:
        """Matrices of all layers, where the mesh splits them, and the logits of every token of these rows: their shapes."""
        shapes, found = _shapes(cfg), {}
        for name, where in axes.shardings(shapes, self.mesh).items():
            if name in transformer.MATRICES and where.shard_shape(shapes[name].shape) != shapes[name].shape:
                found[name] = shapes[name].shape
        return found | ({'logits_BTV': (1, rows, length, cfg.vocab)} if length and self.mesh.size > 1 else {})

    def _sizes(self, read: Read) -> transformer.Config:
        cfg = self.sizes[read.role]
        return replace(cfg, tied=True) if read.does == 'scores' else cfg  # it has no unembedding

    def _read_params(self, read: Read) -> Any:
        """The parameters of a model that reads: as they are trained, or frozen."""
        cfg, how = self._sizes(read), self.line.training
        if not how or read.role != 'policy':
            return _frozen(cfg)
        trained = jax.eval_shape(partial(training.trained, how.lora, cfg, key=jax.random.key(0)), _shapes(cfg))
        return training.whole(_frozen(cfg), trained)

    def _lower_read(self, read: Read) -> jax.stages.Lowered:
        cfg, row = self._sizes(read), partial(_rows, self.mesh, read.rows)
        params = self._place(self._read_params(read))
        prefix = self._place(_cache(cfg, read.prefix)) if read.prefix else None
        answers = _answers(read.branches) if read.does == 'answers' else None
        W = len(answers.nodes) if answers else 0
        T = padded([read.prompt + (read.tail + W) * read.branches])
        with jax.set_mesh(self.mesh):
            if read.does == 'scores':
                held = {'trunk': params, 'head': self._place(jax.eval_shape(partial(heads.scalar_head, cfg.width)))}
                return reward_model.score_rows.lower(cfg, held, row(jnp.int32, T), row(bool, T))
            if read.does == 'answers':
                tokens = *(row(jnp.int32, T) for _ in range(3)), row(jnp.int32, read.branches, 1 + W)
                return scoring.ways.lower(cfg, params, prefix, *tokens, answers.tree)
            blank, key = Blank(), jax.eval_shape(lambda: jax.random.key(0))
            return generation.sample.lower(
                cfg, params, row(jnp.int32, read.prompt), row(bool, read.prompt), key, blank.allowed(cfg.vocab),
                blank.stops(cfg.vocab), max_new_tokens=read.tail, temperature=0.9, top_k=0, top_p=1.0, pad=0,
                prefix=prefix, samples=read.branches,
            )  # fmt: skip

    def _place(self, tree: Any) -> Any:
        """The shapes with where each lies."""
        where = axes.shardings(tree, self.mesh)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)


def _rows(mesh: AnyMesh, batch: int, dtype: Any, *more: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *more), dtype, sharding=axes.rows(mesh))


@cache
def _shapes(cfg: transformer.Config) -> Any:
    """A model's parameters as they are trained."""
    return jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))


@cache
def _frozen(cfg: transformer.Config) -> Any:
    """The same as they are read: matrices in the dtype of products."""
    return jax.eval_shape(partial(transformer.rounded, cfg), _shapes(cfg))


def _cache(cfg: transformer.Config, slots: int) -> Any:
    return jax.eval_shape(partial(transformer.make_cache, cfg, 1, slots))


def _scored(trunk: Any, cfg: transformer.Config) -> Any:
    """A reward model's parameters."""
    kept = {name: x for name, x in trunk.items() if name != 'unembed_DV'}
    return {'trunk': kept, 'head': heads.scalar_head(cfg.width)}


@cache
def _step(how: sft.Config | reward_model.Config, cfg: transformer.Config, mesh: AnyMesh) -> tuple[Callable, Callable]:
    if isinstance(how, sft.Config):
        return sft.make_step(how, cfg, mesh)
    return reward_model.make_step(how, replace(cfg, tied=True), mesh)


def _steps(how: reinforce.Config, cfg: transformer.Config, params: Any, mesh: AnyMesh) -> reinforce.Steps:
    return reinforce.make_steps(how, LM(cfg, params, Blank(), ''), mesh)


@cache
def _answers(branches: int) -> scoring.Answers:
    """One of two answers behind each of two branches, or one of ten of which the last has two tokens, each written in two
    ways: as tokenizers have it.
    """
    ways = [(i,) for i in range(2)] if branches > 1 else [*((i,) for i in range(9)), (0, 9)]
    names = tuple(map(str, range(len(ways))))
    twice = [*ways, *((way[0] + 10, *way[1:]) for way in ways)]
    return scoring.Answers(names, tuple(twice), np.array([*range(len(ways))] * 2))


# Arithmetic


@cache
def count(cfg: transformer.Config) -> int:
    """Parameters of a model of these sizes."""
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(cfg)))


def touched(cfg: transformer.Config, tokens: float = 1) -> float:
    """Of these the parameters that so many tokens pass, where experts are chosen evenly; of one token the active ones."""
    untouched = cfg.experts and cfg.experts * (1 - cfg.chosen / cfg.experts) ** tokens
    return count(cfg) - untouched * cfg.layers * 3 * cfg.width * cfg.ffn


def _word(cfg: transformer.Config) -> int:
    """Bytes of what layers hand on."""
    return 2 if cfg.dtype == 'bfloat16' else WORD


def _layer_bytes(cfg: transformer.Config) -> int:
    """Numbers of one layer's parameters."""
    return (count(cfg) - cfg.vocab * cfg.width * (1 if cfg.tied else 2)) // cfg.layers


def _kept(cfg: transformer.Config, trained: bool = True) -> int:
    """Numbers that a layer makes of a token: norms and residuals, queries to outputs, gates. Each expert chosen has gates,
    and a row of its own, in and out. Without a backward pass to
    keep them for, those of one step give way to those of the next.
    """
    width, heads, ffn = (8, 6, 6) if trained else (2, 4, 2)
    width += (4 if trained else 2) * cfg.chosen
    return width * cfg.width + heads * cfg.heads * cfg.head_dim + max(cfg.chosen, 1) * ffn * cfg.ffn


def _layer_work(cfg: transformer.Config, rows: int, length: int, tensor: int, trained: bool = True) -> int:
    """Bytes that one layer computes on the way: what is kept of it, and a block of attention's rows before and behind
    softmax.
    """
    blocks = min(-(-length // 64), max(4, min(8, length // 96)))
    scores = 2 * rows * (cfg.heads // min(tensor, cfg.heads)) * -(-length // blocks) * length * WORD
    return rows * length * _kept(cfg, trained) * _word(cfg) + scores


def _forward(cfg: transformer.Config, tokens: float, seen: float, logits: float, layers: float | None = None) -> float:
    """Operations of a forward over a row: `tokens` pass the `layers` (None: all), of their experts those chosen, queries
    see `seen` keys in all, and `logits` positions get logits. A product of two matrices counts two for each number that
    it multiplies.
    """
    passed = (cfg.layers if layers is None else layers) / cfg.layers
    params = cfg.layers * _layer_bytes(cfg) - (count(cfg) - touched(cfg))
    return passed * (2 * params * tokens + 4 * cfg.layers * cfg.heads * cfg.head_dim * seen) + (
        2 * cfg.vocab * cfg.width * logits
    )
