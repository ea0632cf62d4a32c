"""Ours beside what people use today, transformers and TRL on torch: python tests/benchmarks/peers.py

    --shape micro|135m|all --case rollouts sft … --repeats 5 --devices 2 --one_by_one --json peers.json

Both sides have the same random weights, a Llama that `hf.save` wrote, and inputs of as many tokens; they are processes
that take turns, a step each, on all cores. The first step of each, which compiles, is not counted. A figure is the median
of `--repeats` steps. Ours has the settings of its stages and one device a core, as its scales have; `--devices` says
otherwise. Where memory is too small for both, `--one_by_one` lets one side end before the other begins. The others run
in float32, without recomputation, with as many threads as cores, each in the fastest of its settings, which are tried
beforehand and printed.

rollouts      responses of full length, `generation.sample` beside `transformers.generate`; no token ends them
rollouts4     the same with four responses to a prompt
rloo, rloo4   a step of RL without a value network, two and four responses to a prompt: `reinforce`, baseline
              leave_one_out, beside `RLOOTrainer`; the reward is a count, so it takes no time
value, value4 the same, ours with its value network, beside the same `RLOOTrainer`, which has none
reward_model  a step on pairs beside `RewardTrainer`
sft           a step on rows of unlike length beside `SFTTrainer`, padded
sft_packed    the same beside `SFTTrainer` with packing, its seconds scaled to as many tokens

`floor` is the least time that the step's products, or bytes where they take longer, need at the rates that this machine
was measured to have, by torch or by XLA, whichever is better: prefill, then decoding (parameters once a token, and what
the caches hold), then the update; of padding nothing. `of it` is how near ours comes.

The environment of the other side is made in the user's cache and kept. Exits with status 1 where the two sides do not have
the same model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import turns

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.run import begin_again  # noqa: E402

PINS = 'trl==1.16.0', 'transformers==5.24.0', 'accelerate==1.15.0', 'datasets==5.2.0'
TORCH = '2.13.0'
WHEELS = 'https://download.pytorch.org/whl/cpu'  # without CUDA, a tenth of the size
CASES = 'rollouts', 'rollouts4', 'rloo', 'rloo4', 'value', 'value4', 'reward_model', 'sft', 'sft_packed'
IDLE = 0.5  # the load of a machine that does nothing else, at most
APART = 1e-3  # nats a token: what rounding may make of one model


@dataclass(frozen=True)
class Shape:
    """A model, and how much of what it is given."""

    model: str  # a preset
    prompt: int  # tokens
    new: int  # tokens of a response
    rollouts: int  # responses at once
    rl: int  # responses a step
    pairs: int
    answer: int  # tokens of each response of a pair
    rows: tuple[int, ...]  # tokens of each row of SFT
    devices: int  # that ours has by default; 0: one a core


def spread(rows: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Lengths from the shortest to the longest, evenly, in an order that is no order."""
    lengths = [shortest + i * (longest - shortest) // (rows - 1) for i in range(rows)]
    random.Random(0).shuffle(lengths)
    return tuple(lengths)


SHAPES = {
    'micro': Shape('micro_xs', 128, 40, 64, 64, 64, 40, spread(64, 48, 168), 0),
    '135m': Shape('llama_135m', 256, 53, 32, 16, 4, 48, spread(8, 128, 512), 0),
    'accelerator': Shape('llama_135m', 512, 128, 128, 64, 32, 128, spread(32, 128, 640), 1),
}
ON_CPU = 'micro', '135m'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shape', choices=(*ON_CPU, 'all'), default='micro', help='(%(default)s)')
    parser.add_argument('--case', nargs='+', choices=(*CASES, 'all'), default=['all'], help='(all)')
    parser.add_argument('--repeats', type=int, default=5, help='timed steps of each side (%(default)s)')
    parser.add_argument('--devices', type=int, default=0, help='that ours makes of the cores (as its scale has)')
    parser.add_argument('--one_by_one', action='store_true', help='all steps of theirs, then all of ours')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures there')
    parser.add_argument('--work', nargs=2, help=argparse.SUPPRESS)  # a process of ours: its plan, its case
    flags = parser.parse_args()
    if flags.work:
        return work(*flags.work)
    if flags.repeats < 1 or flags.devices < 0:
        parser.error('repeats: at least 1; devices: not negative')
    from rlaif_jax import log
    from rlaif_jax.config import Mistake

    try:
        python = environment()
    except Mistake as mistake:
        log.error(str(mistake))
        return mistake.status
    cases = CASES if 'all' in flags.case else tuple(flags.case)
    load = os.getloadavg()[0]
    found = {'versions': versions(python), 'cores': os.cpu_count(), 'load': load, 'figures': []}
    if load > IDLE:
        log.say(f'other programs are busy (load {load:.1f}): these are not figures of an idle machine')
    log.say(', '.join(f'{name} {version}' for name, version in found['versions'].items()))
    agreed = True
    for name in ON_CPU if flags.shape == 'all' else [flags.shape]:
        with tempfile.TemporaryDirectory(prefix='peers-') as folder:
            sides = Sides(name, python, flags.devices, Path(folder))
            apart = sides.apart()
            agreed &= apart < APART  # False for NaN
            log.say(f'{name}: the two models are {apart:.0e} nats a token apart')
            found[name] = {'rates': sides.rates, 'apart': apart}
            rate = ', '.join(f'{who} {one["flops"] / 1e9:.0f}' for who, one in sides.rates.items())
            moved = ', '.join(
                f'{who} {one["copied"] / 1e9:.1f} and {one["read"] / 1e9:.1f}' for who, one in sides.rates.items()
            )
            log.say(f'products: {rate} GFLOP/s; copied and read: {moved} GB/s; the best of them make the floor')
            for case in cases:
                found['figures'].append(
                    {'shape': name, 'case': case} | sides.compare(case, flags.repeats, flags.one_by_one)
                )
                if flags.json:  # whatever happens next
                    log.write_whole(flags.json, json.dumps(found, indent=1))
            show(name, [one for one in found['figures'] if one['shape'] == name], flags.repeats)
    if not agreed:
        log.error(f'the models are more than {APART} nats a token apart')
    return 0 if agreed else 1


def show(name: str, figures: Sequence[dict[str, Any]], repeats: int) -> None:
    from rlaif_jax import log

    rows = []
    for one in figures:
        ours, theirs = one['ours'], one['theirs']
        ranges = [f'{min(side["seconds"]):.3g} – {max(side["seconds"]):.3g}' for side in (ours, theirs)]
        rows.append([
            one['case'], ours['median'], ranges[0], theirs['median'], ranges[1], f'{one["ratio"]:.2f}', one['floor'],
            f'{one["share"]:.0%}', ours['peak'], theirs['peak'], one['arm'],
        ])  # fmt: skip
    columns = [
        'case', 'ours, s', 'fastest – slowest', 'theirs, s', 'fastest – slowest', 'theirs / ours', 'floor, s', 'of it',
        'ours, GiB', 'theirs, GiB', 'their setting',
    ]  # fmt: skip
    log.figures_table(f'{name}: medians of {repeats} steps, compilation not among them', columns, rows)


# Both sides


class Sides:
    """The two sides of a shape, with what both read."""

    def __init__(
        self, name: str, python: Path, devices: int, folder: Path, dtype: str = 'float32', rates: bool = True
    ) -> None:
        from rlaif_jax import axes
        from rlaif_jax.models import presets

        self.shape, self.python, self.folder = SHAPES[name], python, folder
        self.devices = devices or self.shape.devices or axes.cores()
        self.cfg = presets.PRESETS[self.shape.model]
        self.plan = folder / 'plan.json'
        with self.ours('prepare', json.dumps({'name': name, 'folder': str(folder), 'dtype': dtype})) as one:
            self.plan.write_text(json.dumps(one.ask()), encoding='utf-8')
        self.rates: dict[str, dict[str, float]] = {}
        if rates:
            with self.ours('rates') as ours, self.theirs('rates', '') as theirs:
                self.rates = {'torch': theirs.ask(), 'XLA': ours.ask()}

    def ours(self, case: str, plan: str = '') -> turns.Worker:
        command = [sys.executable, __file__, '--devices', str(self.devices), '--work', plan or str(self.plan), case]
        return turns.Worker(command)

    def theirs(self, case: str, arm: str) -> turns.Worker:
        file = str(Path(__file__).with_name('peers_trl.py'))
        quiet = {'TRANSFORMERS_VERBOSITY': 'error', 'HF_HUB_OFFLINE': '1', 'PYTHONPATH': ''}
        return turns.Worker([str(self.python), file, self.samples(case), case_of(case), arm], quiet)

    def samples(self, case: str) -> str:
        """The plan with as many responses to a prompt as the case has."""
        if not case.startswith(('rloo', 'value')):
            return str(self.plan)
        file = self.folder / f'{case}.json'
        plan = json.loads(self.plan.read_text(encoding='utf-8'))
        file.write_text(json.dumps(plan | {'samples': samples_of(case)}), encoding='utf-8')
        return str(file)

    def apart(self) -> float:
        with self.ours('check') as ours, self.theirs('check', '') as theirs:
            return abs(ours.ask()['nll'] - theirs.ask()['nll'])

    def compare(self, case: str, repeats: int, one_by_one: bool = False) -> dict[str, Any]:
        arm, tried = self.fastest(case)
        starts = {'theirs': lambda: self.theirs(case, arm), 'ours': lambda: self.ours(case, self.samples(case))}
        answers: dict[str, list[dict[str, float]]] = {side: [] for side in starts}
        for turn in [[side] for side in starts] if one_by_one else [list(starts)]:
            with ExitStack() as open_:
                workers = {side: open_.enter_context(starts[side]()) for side in turn}
                for _ in range(repeats + 1):
                    for side, worker in workers.items():
                        answers[side].append(worker.ask())
        seconds, computed = (
            {side: [each[what] * self.scale(each) for each in found[1:]] for side, found in answers.items()}
            for what in ('seconds', 'computed')
        )
        first = {side: found[0]['seconds'] for side, found in answers.items()}
        last = {side: found[-1] for side, found in answers.items()}
        sides = {
            side: {
                'median': statistics.median(found), 'seconds': found, 'first': first[side], 'peak': last[side]['peak'],
                'threads': last[side]['threads'], 'computed': computed[side],
            }
            for side, found in seconds.items()
        }  # fmt: skip
        ours = sides['ours']['median']
        floor = self.floor(case) if self.rates else float('nan')
        ratio = sides['theirs']['median'] / ours
        return sides | {
            'ratio': ratio, 'floor': floor, 'share': floor / ours, 'arm': arm, 'tried': tried, 'devices': self.devices
        }  # fmt: skip

    def fastest(self, case: str) -> tuple[str, dict[str, float]]:
        """Their fastest setting, and the seconds of each: the better of two steps behind the first."""
        from rlaif_jax import log

        arms = THEIR_ARMS.get(case_of(case), ('as it is',))
        if len(arms) == 1:
            return arms[0], {}
        tried = {}
        for arm in arms:
            with self.theirs(case, arm) as one:
                found = [one.ask() for _ in range(3)][1:]
                tried[arm] = min(each['seconds'] * self.scale(each) for each in found)
        log.say(f'{case}, theirs: ' + ', '.join(f'{arm} {seconds:.3g} s' for arm, seconds in tried.items()))
        return min(tried, key=tried.get), tried

    def scale(self, answer: dict[str, Any]) -> float:
        """A batch of packs holds now more tokens, now less; its seconds count as those of all rows."""
        return sum(self.shape.rows) / answer['tokens'] if answer.get('tokens') else 1.0

    def floor(self, case: str) -> float:
        """Seconds."""
        import floors

        from rlaif_jax.training import sft

        found = [one for one in self.rates.values()]
        best = floors.Rates(max(one['flops'] for one in found), max(max(one['copied'], one['read']) for one in found))
        s, cfg = self.shape, self.cfg
        if case.startswith('rollouts'):
            return sum(
                best.seconds(*part) for part in floors.rollouts(cfg, s.rollouts, s.prompt, s.new, samples_of(case))
            )
        if case.startswith('sft'):
            return best.seconds(*floors.ragged(cfg, sft.Config(), [(n, n - n // 2) for n in s.rows]))
        if case == 'reward_model':
            return best.seconds(*floors.update(cfg, settings(s, case), s.prompt + 2 * s.answer))
        parts = [*floors.rollouts(cfg, s.rl, s.prompt, s.new, samples_of(case))]
        parts.append(floors.update(cfg, settings(s, case), s.prompt + s.new))
        return sum(best.seconds(*part) for part in parts)


THEIR_ARMS = {  # the settings of the other side that are tried; `peers_trl.py` knows what they are
    'rollouts': ('dynamic cache', 'static cache'),
    'rollouts4': ('dynamic cache', 'static cache'),
    'sft': ('padded', 'padded to 64'),
    'sft_packed': ('packed',),
    'reward_model': ('padded', 'padded to 64'),
}


def case_of(case: str) -> str:
    """What the other side does in a case: it has no value network."""
    return case.replace('value', 'rloo')


def samples_of(case: str) -> int:
    """Responses to a prompt."""
    return 4 if case.endswith('4') else 2 if case in ('rloo', 'value') else 1


def settings(shape: Shape, case: str) -> Any:
    """The config of ours in a case: its defaults, but for sizes and for AdamW, which both have."""
    from rlaif_jax.training import reinforce, reward_model, sft, state

    adamw = state.Optimizer(name='adamw')
    if case.startswith('sft'):
        return sft.Config(batch=len(shape.rows), optimizer=adamw)
    if case == 'reward_model':
        most = {'max_prompt': shape.prompt, 'max_response': shape.answer + 1}
        return reward_model.Config(batch=shape.pairs, optimizer=adamw, **most)
    return reinforce.Config(
        batch=shape.rl, samples=samples_of(case), baseline='value' if 'value' in case else 'leave_one_out',
        max_prompt=shape.prompt, max_new_tokens=shape.new, policy_optimizer=adamw, value_optimizer=adamw,
    )  # fmt: skip


def environment() -> Path:
    """The Python of the other side, made where it is not there yet."""
    from rlaif_jax import log, paths
    from rlaif_jax.config import Mistake

    home = paths.cache()
    if home is None:
        raise Mistake('the environment of the other side lies in the cache folder, and there is none (XDG_CACHE_HOME)')
    folder, pins = home / 'rlaif_jax' / 'peers', ' '.join((*PINS, f'torch=={TORCH}'))
    python, told = folder / 'bin' / 'python', folder / 'pins.txt'
    if told.exists() and told.read_text(encoding='utf-8') == pins:
        return python
    log.say(f'making the environment of the other side in {folder}: {pins}')
    venv.create(folder, with_pip=True)
    pip = [str(python), '-m', 'pip', 'install', '--quiet']
    ways = [f'torch=={TORCH}+cpu'], [f'torch=={TORCH}+cpu', '--index-url', WHEELS], [f'torch=={TORCH}']
    done = any(subprocess.run([*pip, *way], capture_output=way is not ways[-1]).returncode == 0 for way in ways)
    if not done or subprocess.run([*pip, *PINS]).returncode:
        raise Mistake(f'{folder}: pip could not install {pins}; the same command tries again')
    told.write_text(pins, encoding='utf-8')
    return python


def versions(python: Path) -> dict[str, str]:
    import importlib.metadata

    names = 'trl', 'transformers', 'torch'
    script = f'import importlib.metadata as m; print(*map(m.version, {names}))'
    found = subprocess.run([str(python), '-c', script], capture_output=True, encoding='utf-8', check=True)
    return {'jax': importlib.metadata.version('jax')} | dict(zip(names, found.stdout.split()))


# Our side


def work(plan: str, case: str) -> int:
    """Answer requests: each is a step."""
    out = turns.answers()
    sys.modules['torch'] = None  # as in an installation without it
    devices = int(sys.argv[sys.argv.index('--devices') + 1])
    from rlaif_jax import axes

    axes.ask_for_devices({'data': devices})
    if case == 'prepare':
        turns.serve(lambda: prepare(**json.loads(plan)), out)
        return 0
    if case == 'rates':
        turns.serve(lambda: both_rates(devices), out)
        return 0
    import jax

    from rlaif_jax.models import hf

    given = json.loads(Path(plan).read_text(encoding='utf-8'))
    mesh = axes.make_mesh({'data': devices})
    lm = hf.load(given['model'], mesh=mesh, dtype=given['dtype'])
    with jax.set_mesh(mesh):
        if case == 'check':
            turns.serve(lambda: check(given, lm), out)
        else:
            turns.serve(clock(ours(given, case, lm, mesh)), out)
    return 0


def clock(step: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    import jax

    def answer() -> dict[str, Any]:
        running = turns.Clock()
        jax.block_until_ready(step())
        return running.stopped() | {'threads': len(os.sched_getaffinity(0))}

    return answer


def ours(plan: dict[str, Any], case: str, lm: Any, mesh: Any) -> Callable[[], Any]:
    """A step of a case. Here, and nowhere else, the benchmark calls what it measures."""
    import jax
    import numpy as np

    from rlaif_jax import axes, generation, hosts
    from rlaif_jax.batching import padded, together
    from rlaif_jax.data.records import Pair, Prompt
    from rlaif_jax.text import Tokenizer
    from rlaif_jax.training import reinforce, reward_model, sft

    shape = SHAPES[plan['name']]
    endless = Tokenizer(lm.tokenizer.hf, ())  # nothing ends a response
    count, key = samples_of(case), iter(range(10**9))
    state: list[Any] = []  # each step takes the old one away
    rows = plan['prompt_rows']

    if case.startswith('rollouts'):
        prompt_BT = np.array(rows[: shape.rollouts // count], np.int32)
        given = hosts.to_mesh((prompt_BT, np.ones_like(prompt_BT, bool)), axes.rows(mesh))
        allowed_V, stop_V = endless.allowed(lm.config.vocab), endless.stops(lm.config.vocab)

        def rollouts() -> Any:
            return generation.sample(
                lm.config, lm.params, *given, jax.random.key(next(key)), allowed_V, stop_V,
                max_new_tokens=shape.new, temperature=plan['temperature'], pad=lm.tokenizer.pad, samples=count,
            )  # fmt: skip

        return rollouts

    how = settings(shape, case)
    if case.startswith('sft'):
        before = [row[:n] for row, n in zip(plan['sft_rows'], plan['sft_before'])]
        after = [row[n:] for row, n in zip(plan['sft_rows'], plan['sft_before'])]
        sizes = [len(row) - 1 for row in plan['sft_rows']]
        length = padded(sizes)
        shared = together(sizes, length, len(sizes), axes.shares(mesh)) if sft.packs(how, axes.platform()) else None
        batch = sft.example_batch(before, after, length, lm.tokenizer.pad, shared)
        init, step = sft.make_step(how, lm.config, mesh)
        return training(init, step, lm.params, hosts.to_mesh(batch, axes.rows(mesh)), state)

    if case == 'reward_model':
        pairs = [
            Pair(Prompt(prompt, str(i)), *responses, preference=1.0)
            for i, (prompt, *responses) in enumerate(plan['pair_texts'])
        ]
        start = reward_model.from_lm(lm)
        batch = reward_model.make_batch(lm.tokenizer, pairs, how, axes.shares(mesh))
        init, step = reward_model.make_step(how, start.config, mesh)
        return training(init, step, start.params, hosts.to_mesh(batch, axes.rows(mesh)), state)

    policy = replace(lm, tokenizer=endless)
    steps = reinforce.make_steps(how, policy, mesh)

    def score(_: Any, texts: Sequence[str], __: Any) -> np.ndarray:
        return np.array([len(set(text.split())) for text in texts], np.float32)

    writes = reinforce.Rollouts(how, policy, steps, score, mesh)

    def reinforced() -> Any:
        old = state.pop() if state else steps.init(lm.params)
        params = old['policy']['params']
        batch, texts, ended_B = writes.respond(params, rows[: shape.rl // count], jax.random.key(next(key)), count)
        batch['score_B'] = hosts.to_mesh(writes.score([Prompt('', '')] * shape.rl, texts, ended_B), axes.rows(mesh))
        new, numbers = steps.update(old, lm.params, batch)
        state.append(new)
        return numbers, new

    return reinforced


def training(init: Any, step: Any, params: Any, batch: Any, state: list[Any]) -> Callable[[], Any]:
    """A step of SFT or of a reward model."""

    def one() -> Any:
        new, numbers = step(state.pop() if state else init(params), params, batch)
        state.append(new)
        return numbers, new

    return one


def both_rates(devices: int) -> dict[str, float]:
    """The better of one device and of all."""
    import floors

    found = [floors.measured({'data': size}) for size in {1, devices}]
    return {name: max(one[name] for one in found) for name in found[0]}


def check(plan: dict[str, Any], lm: Any) -> dict[str, Any]:
    """Mean −log p of two rows of SFT, as the other side has it."""
    import jax
    import numpy as np

    from rlaif_jax.models import hf

    total = count = 0.0
    for row in plan['sft_rows'][:2]:
        logit_TV = np.asarray(hf.logits(lm, np.array([row])))[0, :-1]
        logp_TV = np.asarray(jax.nn.log_softmax(logit_TV))
        total -= float(logp_TV[np.arange(len(row) - 1), row[1:]].sum())
        count += len(row) - 1
    return {'nll': total / count}


def prepare(name: str, folder: str, dtype: str) -> dict[str, Any]:
    """Write the model; what both sides read, as texts and as tokens."""
    import jax

    from rlaif_jax.micro import lexicon, tokenizer
    from rlaif_jax.models import hf, presets, transformer
    from rlaif_jax.text import Tokenizer
    from rlaif_jax.training import reinforce

    shape, built = SHAPES[name], tokenizer.build()
    cfg, told = presets.PRESETS[shape.model], Tokenizer(built, (built.eos_token_id,))
    params = jax.jit(lambda: transformer.init(cfg, jax.random.key(0)))()
    hf.save(hf.LM(cfg, params, told, shape.model), Path(folder) / 'model')

    def words(count: int, seed: str) -> str:
        """Random words of the micro world; each is one token with the space before it."""
        return ' ' + ' '.join(random.Random(seed).choices(lexicon.words(), k=count))

    prompts = [words(shape.prompt, f'prompt {i}') for i in range(max(shape.rollouts, shape.rl))]
    answers = [[words(shape.answer - 1, f'{which} {i}') for which in 'ab'] for i in range(shape.pairs)]
    rows = [told.encode([words(length, f'row {i}')])[0] for i, length in enumerate(shape.rows)]
    prompt_rows = told.encode(prompts)
    pair_rows = [[prompt_rows[i], *(row + [told.eos] for row in told.encode(two))] for i, two in enumerate(answers)]
    assert {len(row) for row in prompt_rows} == {shape.prompt} and [len(row) for row in rows] == list(shape.rows)
    default = reinforce.Config()
    return {
        'name': name, 'model': f'{folder}/model', 'dtype': dtype, 'pad': told.pad, 'prompt': shape.prompt, 'new': shape.new,
        'rollouts': shape.rollouts, 'rl': shape.rl, 'pairs': shape.pairs, 'temperature': default.temperature,
        'beta': default.beta, 'prompt_texts': prompts, 'prompt_rows': prompt_rows,
        'pair_texts': [[prompts[i], *two] for i, two in enumerate(answers)], 'pair_rows': pair_rows,
        'sft_rows': rows, 'sft_before': [len(row) // 2 for row in rows],
    }  # fmt: skip


if __name__ == '__main__':
    begin_again()
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    sys.exit(main())
