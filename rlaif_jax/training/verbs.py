"""Training from Python, for notebooks and other programs: the stages of a run on lists of one's own.

    lm = rlaif_jax.sft(lm, prompts, references)
    scorer = rlaif_jax.train_reward_model(lm, pairs)
    policy = rlaif_jax.reinforce(lm, prompts, scorer)  # or any function (prompts, responses) -> numbers

They check what was given, choose sizes that fit it, and hand it to the stage. What a stage computes is not here.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlaif_jax import axes, hosts, log, paths
from rlaif_jax.config import CONTENT, Mistake, bind, dump, same
from rlaif_jax.data import loader
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.folder import WRITTEN, finish, finished, lock, open_folder
from rlaif_jax.generation import listed, texts, whole_pairs
from rlaif_jax.models import hf
from rlaif_jax.models.hf import LM
from rlaif_jax.shortening import reads
from rlaif_jax.training import reinforce as reinforcement
from rlaif_jax.training import reward_model, state
from rlaif_jax.training import sft as supervised
from rlaif_jax.training.reward_model import RewardModel

Model = TypeVar('Model', LM, RewardModel)
Config = TypeVar('Config')
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class _Supervised(supervised.Config):
    """What a stage of an experiment says beside the config of SFT."""

    max_prompt: int = 1024  # tokens; longer prompts are shortened
    max_new_tokens: int = 128  # of a reference, the end token among them; a longer one is cut


def sft(
    lm: LM,
    prompts: Sequence[str | Prompt],
    references: Sequence[str],
    *,
    steps: int | None = None,
    folder: str | Path | None = None,
    **more: Any,
) -> LM:
    """Teach `lm` to answer each prompt with its reference, on the mesh it was loaded on. Returns another model.

    `more` are further fields of `training.sft.Config`, those of a config within it as a dict, `optimizer={'learning_rate':
    1e-4}`; and `max_prompt` and `max_new_tokens`, in tokens, to which prompts are shortened and references cut. By default
    a batch is 128 references, or all where there are fewer, and there are as many steps as an epoch has, 900 at most.

    In `folder` a run leaves its metrics, its checkpoints and `export/`, a directory that transformers reads. The same call
    goes on from there; with other fields, data or model it is a `Mistake`. Without a folder nothing is kept, and a run
    that was stopped begins anew. Raises `Mistake` for what is none of the things above.
    """
    shown, written = _prompts('prompts', prompts, hf.check_given(lm)), texts('references', references)
    if len(shown) != len(written):
        raise Mistake(f'{len(shown)} prompts and {len(written)} references; give the reference of each prompt')
    if empty := [i for i, text in enumerate(written) if not text.strip()]:
        raise Mistake(f'references[{empty[0]}] is empty; leave it out, and its prompt')
    more |= {} if steps is None else {'steps': steps}
    cfg = _fitting(_Supervised, more, lm, len(shown), epochs=1, response='max_new_tokens')
    whole = [replace(one, reference=text) for one, text in zip(shown, written)]
    rows = list(loader.fitted(whole, reads(lm.tokenizer, cfg.max_prompt)))  # before anything is trained
    mesh = axes.mesh_of(lm.params)
    batch_at = supervised.batches(cfg, lm.tokenizer, rows, cfg.max_new_tokens, mesh)
    given = {'prompts': [one.text for one in shown], 'references': written}
    return _run('sft', folder, cfg, lm, given, lambda at: supervised.run(cfg, at, lm, batch_at, mesh), hf.load)


def train_reward_model(
    lm: LM,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair] | None = None,
    *,
    labels: Sequence[Any] | None = None,
    folder: str | Path | None = None,
    **more: Any,
) -> RewardModel:
    """Learn from the preferences of `pairs` what scores responses, from the trunk of `lm`, on the mesh it was loaded on.

    `labels`, what `label` made of the pairs or P(the first is better), stand in for the pairs' own preferences. A pair
    without one, None or NaN, trains nothing. The checkpoint of the lowest loss on `held_out`, pairs with preferences, is
    what comes back; by default every tenth pair is held out. `more` are further fields of `training.reward_model.Config`,
    and `folder` is as in `sft`; by default a batch is 128 pairs, or all, and training takes three epochs, 2200 steps at
    most. Raises `Mistake` for what is none of these, and where no preference is left to train or to evaluate on.
    """
    whole = _preferred('pairs', whole_pairs('pairs', pairs), labels, hf.check_given(lm))
    train, judged = (
        reward_model.split(whole) if held_out is None else
        (whole, _preferred('held_out', whole_pairs('held_out', held_out), None, lm))
    )  # fmt: skip
    cfg = _fitting(reward_model.Config, more, lm, len(train), epochs=3, response='max_response')
    mesh = axes.mesh_of(lm.params)
    row = lambda pair: [pair.prompt.text, pair.first, pair.second, pair.preference]  # noqa: E731
    given = {'pairs': [*map(row, train)], 'held_out': [*map(row, judged)]}
    train_on = lambda at: reward_model.run(cfg, at, lm, train, judged, mesh)  # noqa: E731
    return _run('reward_model', folder, cfg, lm, given, train_on, reward_model.load)


def reinforce(
    lm: LM,
    prompts: Sequence[str | Prompt],
    reward: RewardModel | Callable[[list[str], list[str]], Sequence[float]],
    *,
    validation: Sequence[str | Prompt] | None = None,
    folder: str | Path | None = None,
    **more: Any,
) -> LM:
    """Train the policy `lm` to write what `reward` scores high, near to where it started, on the mesh it was loaded on.

    `reward` is a reward model, a labeler's `rater`, or any function of the texts of prompts and responses that gives a
    number for each response, NaN where it cannot tell. What it raises is raised here. Of several processes each calls
    it with all texts, and the numbers of the first count. `validation` are prompts that are evaluated on before and behind
    the training and in between, by default the first of `prompts`. `more` are further fields of
    `training.reinforce.Config`, and `folder` is as in `sft`; it cannot tell functions apart, so another one wants another
    folder. By default a batch is 128 responses, or as many as there are prompts, and training takes eight epochs, 7300
    steps at most. Raises `Mistake` for what is none of these, and where the policy goes too far from where it started.
    """
    shown = _prompts('prompts', prompts, hf.check_given(lm))
    cfg = _fitting(reinforcement.Config, more, lm, len(shown), epochs=8, response='max_new_tokens')
    asked = _prompts('validation', shown if validation is None else validation, lm)[: cfg.eval_prompts]
    mesh, scorer = axes.mesh_of(lm.params), _scorer(reward, cfg)
    count, parts = len(shown) * cfg.samples, cfg.samples * cfg.parts * axes.shares(mesh)
    loader.check_batch('reinforce.batch', cfg.batch, count, parts)
    if not asked:
        raise Mistake('validation holds no prompts; leave it out, or give some')
    fits = reads(lm.tokenizer, cfg.max_prompt)
    train, judged = (list(loader.fitted(rows, fits)) for rows in (shown, asked))  # before anything is trained
    prompts_at = loader.batches(train, cfg.batch // cfg.samples, cfg.seed)
    given = {'prompts': [one.text for one in shown], 'validation': [one.text for one in asked]}
    given |= {'reward': reward.params if isinstance(reward, RewardModel) else 'a function'}
    train_on = lambda at: reinforcement.run(cfg, at, lm, prompts_at, scorer, judged, mesh)  # noqa: E731
    return _run('reinforce', folder, cfg, lm, given, train_on, hf.load)


def load_reward_model(path_or_hub_id: str | Path, *, dtype: str = 'float32', mesh: Mesh | None = None) -> RewardModel:
    """Read a reward model: the `export` of a run, or any model for sequence classification with one label. As `load`."""
    hf.check_mesh(mesh)
    return reward_model.load(path_or_hub_id, dtype=dtype, mesh=mesh)


def score(
    scorer: RewardModel,
    prompts: Sequence[str | Prompt],
    responses: Sequence[str],
    *,
    batch: int = 64,
    max_prompt: int | None = None,
    max_response: int | None = None,
) -> list[float]:
    """The score of each response to its prompt by a reward model, on the mesh it was loaded on; only those of responses to
    one prompt can be compared. Prompts and responses are cut to so many tokens, by default to 1024 and 128, or to what the
    model has room for. Raises `Mistake` for what is none of these, and where prompts and responses are not as many.
    """
    if not isinstance(scorer, RewardModel):
        hope = 'rlaif_jax.load_reward_model(path) gives one'
        raise Mistake(f'scorer is a {type(scorer).__name__}, {scorer!r:.80}, and no reward model; {hope}')
    shown, written = texts('prompts', prompts), texts('responses', responses)
    if len(shown) != len(written):
        raise Mistake(f'{len(shown)} prompts and {len(written)} responses; give the prompt of each response')
    room = scorer.config.max_length
    most = min(128, max(room // 4, 1)) if max_response is None else max_response
    lengths = {'max_prompt': max(min(1024, room - most), 1) if max_prompt is None else max_prompt, 'max_response': most}
    for name, size in (('batch', batch), *lengths.items()):
        if type(size) is not int or size < 1:
            raise Mistake(f'{name} = {size!r:.80}: give a whole number, 1 at least')
    return reward_model.make_scorer(scorer, batch=batch, **lengths)(shown, written).tolist()


# What was given


def _prompts(name: str, given: Any, lm: LM) -> list[Prompt]:
    """The prompts; a text gets its place for an id. Raises `Mistake` for what is none, or has no tokens to go on from."""
    listed_ones = listed(name, given, str | Prompt)
    written = texts(name, listed_ones)
    if empty := [i for i, row in enumerate(lm.tokenizer.prompts(written)) if not row]:
        raise Mistake(f'{name}[{empty[0]}] is empty; give a text to go on from')
    return [one if isinstance(one, Prompt) else Prompt(one, id=str(i)) for i, one in enumerate(listed_ones)]


def _preferred(name: str, pairs: Sequence[Pair], labels: Any, lm: LM) -> list[Pair]:
    """The pairs with preferences that are numbers, or None."""
    given = [pair.preference for pair in pairs]
    if labels is not None:
        name, given = 'labels', [getattr(one, 'preference', one) for one in listed('labels', labels, str)]
        if len(given) != len(pairs):
            raise Mistake(f'{len(pairs)} pairs and {len(given)} labels; give the label of each pair')
    found = [None if one is None else _number(one) for one in given]
    for i, (one, number) in enumerate(zip(given, found)):
        if number is None and one is not None or number is not None and not (0 <= number <= 1 or math.isnan(number)):
            what = f'{name}[{i}]' if name == 'labels' else f'{name}[{i}].preference'
            raise Mistake(f'{what} is {one!r:.80}; give P(the first is better), in [0, 1], or None')
    return [replace(pair, preference=number) for pair, number in zip(pairs, found)]


def _number(one: Any) -> float | None:
    """A number, also one of numpy's, JAX's or PyTorch's, that float32 can hold, or NaN; None for anything else."""
    one = one.item() if getattr(one, 'shape', None) == () else one
    return float(one) if isinstance(one, numbers.Real) and not abs(one) > LARGEST else None


def _scorer(reward: Any, cfg: reinforcement.Config) -> reinforcement.Scorer:
    """Any reward as the stage wants it."""
    if isinstance(reward, RewardModel):
        room = reward.config.max_length - cfg.max_new_tokens
        lengths = {'max_prompt': max(min(cfg.max_prompt, room), 1), 'max_response': cfg.max_new_tokens}
        return reward_model.make_scorer(reward, **lengths)
    if not callable(reward):
        hope = 'give a function (prompts, responses) -> numbers, a rater or a reward model'
        raise Mistake(f'reward is a {type(reward).__name__}, {reward!r:.80}; {hope}')

    def scorer(prompts: Sequence[str], responses: Sequence[str], ended_B: np.ndarray) -> np.ndarray:
        given = reward(list(prompts), list(responses))
        return np.array(hosts.told(lambda: _scores(given, len(responses))), np.float32)

    return scorer


def _scores(given: Any, count: int) -> list[float]:
    """The numbers that a reward gave. Raises `Mistake` where they are none, or not as many as there are responses."""
    alone = isinstance(given, str | bytes | Mapping | Set) or getattr(given, 'shape', None) == ()
    if alone or not isinstance(given, Iterable):
        raise Mistake(
            f'reward returned a {type(given).__name__}, {given!r:.80}; give a number for each response, in a list'
        )
    listed_ones = list(given)
    if len(listed_ones) != count:
        raise Mistake(f'reward returned {len(listed_ones)} numbers for {count} responses')
    found = list(map(_number, listed_ones))
    if None in found:
        i = found.index(None)
        what = f'reward returned {listed_ones[i]!r:.80} ({type(listed_ones[i]).__name__}) for response {i} of {count}'
        raise Mistake(f'{what}; give a number that float32 can hold, or NaN where there is none')
    return found


# Sizes


def _fitting(cls: type[Config], more: Mapping[str, Any], lm: LM, count: int, epochs: int, response: str) -> Config:
    """The config of a stage whose sizes fit `count` prompts or pairs and the model, with all that was asked for. `response`
    is its field for the tokens of a response.
    """
    asked: dict[str, Any] = {}
    for name, value in more.items():
        asked |= {f'{name}.{key}': one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}

    def size(name: str, otherwise: int = 1) -> int:  # what is no size is for `bind` to refuse
        value = asked.get(name, otherwise)
        return int(value) if isinstance(value, numbers.Integral) and value > 0 else otherwise

    room, unit = lm.config.max_length, math.lcm(size('samples'), size('parts') * axes.shares(axes.mesh_of(lm.params)))
    rows = count * size('samples')
    most = {response: min(128, max(room // 4, 1))}
    most['max_prompt'] = max(min(1024, room - size(response, most[response])), 1)
    most['batch'] = max(min(cls.batch, rows) // unit, 1) * unit
    most['steps'] = max(min(cls.steps, -(-epochs * rows // size('batch', most['batch']))), 1)
    cfg = bind(cls(), most | asked)
    state.check_room(lm.name, room, cfg.max_prompt, **{response: getattr(cfg, response)})
    if not cfg.lora.rank and any(x.dtype != np.float32 for x in jax.tree.leaves(lm.params)):
        raise Mistake("lm was loaded frozen=True, its matrices are rounded; load it without, or train lora={'rank': 8}")
    return cfg


# Where it happens


def _run(
    name: str,
    folder: str | Path | None,
    cfg: Any,
    lm: LM,
    given: Mapping[str, Any],
    train: Callable[[Path], Model],
    load: Callable[..., Model],
) -> Model:
    """What `train(folder)` returns, or an earlier run left in the folder; None is one that is gone behind the training."""
    if folder is None:
        if hosts.count() > 1:
            raise Mistake(f'{hosts.count()} processes train together; give folder=…, a folder that all of them see')
        with TemporaryDirectory(prefix=f'rlaif_jax-{name}-') as made:
            try:
                return replace(train(Path(made)), name=f'{lm.name} after {name}')
            except SystemExit:  # which the loop says on a wish to stop, that it has saved
                log.say(f'{name}: no folder=… was given, so nothing is kept, and the same call begins anew')
                raise
    folder, hope = paths.typed(folder), 'give another folder'
    contents = {'lm': lm.params, **given}
    known = dump(cfg) + ''.join(f'{CONTENT}{what}: {_digest(one)}\n' for what, one in contents.items())
    with lock(folder, hope=hope):
        open_folder(folder, known, same(cfg), hope)
        if hosts.told(lambda: finished(folder)) is None:
            try:
                train(folder)
            except Mistake:
                if hosts.first() and not any(os.path.lexists(folder / file) for file in WRITTEN):
                    (folder / 'config.gin').unlink()  # nothing was begun: the folder is free for what is right
                raise
            finish(folder, {'export': 'export'})
        return load(folder / 'export', dtype=lm.config.dtype, mesh=axes.mesh_of(lm.params))


def _digest(what: Any) -> str:
    """Ten hex digits for texts and numbers, or for parameters."""
    return sha256(ascii(_sums(what) if isinstance(what, Mapping) else what).encode()).hexdigest()[:10]


def _sums(params: Any) -> list[int]:
    """What stands for parameters: of each array the sum of its numbers' hashes, which is the same on every mesh."""

    @jax.jit
    def sums(params: Any) -> Any:
        def hashes(x: jax.Array) -> jax.Array:
            bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}').astype(jnp.uint32)
            mixed = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)  # MurmurHash's
            return (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)

        return [hashes(x).sum(dtype=jnp.uint32) for x in jax.tree.leaves(params)]

    return list(map(int, hosts.to_host(sums(params))))
