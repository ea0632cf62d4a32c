"""Where the time of a REINFORCE step goes, at the shapes of the micro scale: python tests/benchmarks/micro.py

    --policy micro_xs --labeler micro_l --repeats 5 --batch 32

Medians of several repeats, with the fastest and the slowest. A model that is not packaged gets random weights, which
take as long. The pieces of the update are compiled apart, so their sum is not exactly the update.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.run import begin_again  # noqa: E402

PROMPT, NEW = 128, 40  # tokens


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--policy', default='micro_xs', help='a packaged model, a preset or a directory (%(default)s)')
    flags.add_argument('--labeler', default='micro_l', help='likewise (%(default)s)')
    flags.add_argument('--batch', type=int, default=32, help='responses a step (%(default)s)')
    flags.add_argument('--repeats', type=int, default=5, help='timed runs of each piece, after one for compiling')
    show(flags.parse_args())


def show(flags: argparse.Namespace) -> None:
    import jax

    from rlaif_jax import log

    times, tokens = measure(flags)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    step = median['step']
    rows = []
    for name, seconds in times.items():
        spread = f'{1e3 * min(seconds):.0f} – {1e3 * max(seconds):.0f}'
        rows.append([name, f'{1e3 * median[name]:.0f}', spread, f'{median[name] / step:.0%}'])
    device = jax.devices()[0]
    log.say(f'{device.device_kind} ({device.platform}), jax {jax.__version__}, one device of {len(jax.devices())}')
    log.say(
        f'policy {flags.policy}, labeler {flags.labeler}, batch {flags.batch}, prompt {PROMPT}, up to {NEW} new tokens'
    )
    columns = ['piece', 'ms, median', 'fastest – slowest', 'of a step']
    log.figures_table(f'{flags.repeats} repeats', columns, rows)
    rates = [
        ['generated tokens/s', f'{tokens / median["sample"]:.0f}', f'{tokens / flags.batch:.1f} tokens a response'],
        ['scored responses/s', f'{flags.batch / median["score"]:.1f}', ''],
        ['REINFORCE steps/s', f'{1 / step:.3f}', f'{step:.2f} s a step'],
    ]
    log.figures_table('rates', ['', 'median', ''], rows=rates)
    log.say(f'peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB')


def timed(repeats: int, piece: Callable[[], Any]) -> list[float]:
    """Seconds of each of `repeats` calls, behind one that compiles."""
    import jax

    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(piece())
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def model(name: str) -> Any:
    """The packaged model or directory, else the preset of that name with random weights and the micro tokenizer."""
    import jax

    from rlaif_jax import log
    from rlaif_jax.config import Mistake
    from rlaif_jax.micro import tokenizer
    from rlaif_jax.models import hf, presets, transformer
    from rlaif_jax.text import Tokenizer

    try:
        return hf.load(name)
    except Mistake:
        if name not in presets.PRESETS:
            raise
    log.say(f'{name} is not packaged: random weights')
    words, sizes = tokenizer.build(), presets.PRESETS[name]
    params = jax.jit(partial(transformer.init, sizes))(jax.random.key(0))
    return hf.LM(sizes, params, Tokenizer(words, (words.eos_token_id,)), name)


def measure(flags: argparse.Namespace) -> tuple[dict[str, list[float]], int]:
    """piece -> the seconds of each repeat, and the number of tokens that `sample` writes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from experiments.scales import SCALES
    from rlaif_jax import axes
    from rlaif_jax.labeling import direct
    from rlaif_jax.micro import world
    from rlaif_jax.models import heads
    from rlaif_jax.text import pad_left
    from rlaif_jax.training import reinforce
    from rlaif_jax.training import state as training

    mesh = axes.make_mesh()
    cfg = replace(SCALES['micro'].reinforce, batch=flags.batch, max_prompt=PROMPT, max_new_tokens=NEW)
    lm, labeler = model(flags.policy), model(flags.labeler)
    lm = replace(lm, params=axes.place(lm.params, mesh))
    steps = reinforce.make_steps(cfg, lm, mesh)
    # Every answer is timed, whether or not it is a rating.
    scorer = direct.make_scorer(labeler, direct.Config(least_mass=0.0, most_unscorable=1.0), mesh)
    texts = [world.prompt('train', i).text for i in range(flags.batch)]
    prompts = jax.device_put(pad_left(lm.tokenizer.encode(texts), PROMPT, lm.tokenizer.pad), axes.rows(mesh))
    allowed_V = jnp.asarray(lm.tokenizer.allowed(lm.config.vocab))
    state = [steps.init(lm.params)]  # in a list, because each update takes the old one away

    def sample() -> Any:
        return steps.sample(state[0]['policy']['params'], *prompts, jax.random.key(0))

    def decode(written: Any) -> list[str]:
        token_BT, mask_BT = np.asarray(written.token_BT), np.asarray(written.mask_BT)
        return lm.tokenizer.decode([row[mask] for row, mask in zip(token_BT, mask_BT)])

    def make_batch(written: Any, score_B: np.ndarray) -> training.Batch:
        return {
            'prompt_BT': prompts[0], 'valid_BT': prompts[1], 'token_BT': written.token_BT, 'mask_BT': written.mask_BT,
            'sampled_logp_BT': written.logp_BT, 'ended_B': written.ended_B,
            'score_B': jax.device_put(np.nan_to_num(score_B), axes.rows(mesh)),
        }  # fmt: skip

    def update(batch: training.Batch) -> Any:
        state[0], metrics = steps.update(state[0], lm.params, batch)
        return metrics

    def step() -> Any:
        written = sample()
        return update(make_batch(written, scorer(texts, decode(written))))

    @jax.jit
    def reference(params: Any, batch: training.Batch) -> Any:
        hidden_BTD = reinforce.response_states(lm.config, params, batch)
        return reinforce.response_logp(cfg, lm.config, allowed_V, params, hidden_BTD, batch['token_BT'])[0]

    @jax.jit
    def policy_gradient(params: Any, batch: training.Batch) -> Any:
        zero_B = jnp.zeros(flags.batch)
        batch = batch | {'ref_logp_BT': batch['sampled_logp_BT'], 'weight_B': zero_B + 1, 'baseline_B': zero_B}
        loss = partial(reinforce.loss, replace(cfg, baseline='batch_mean'), lm.config, allowed_V)
        return training.gradients(loss, {'policy': params, 'value': {}}, batch)[0]

    @jax.jit
    @jax.grad
    def value_gradient(value: Any, batch: training.Batch) -> Any:
        value_BT = heads.scalar(value['head'], reinforce.response_states(lm.config, value['trunk'], batch))
        return jax.vmap(reinforce.value_loss)(value_BT, batch['sampled_logp_BT'], batch['mask_BT']).sum()

    optimizers = {
        'policy': training.make_optimizer(cfg.policy_optimizer, cfg.steps),
        'value': training.make_optimizer(cfg.value_optimizer, cfg.steps),
    }

    @partial(jax.jit, donate_argnums=0)
    def optimize(state: Any, grads: Any) -> Any:
        return {name: training.update(optimizers[name], state[name], grads[name])[0] for name in state}

    def optimizer() -> Any:
        state[0] = optimize(state[0], grads)
        return state[0]

    with jax.set_mesh(mesh):
        written = sample()
        responses = decode(written)
        batch = make_batch(written, scorer(texts, responses))
        grads = jax.tree.map(jnp.ones_like, {name: state[0][name]['params'] for name in state[0]})
        pieces = {
            'step': step,
            'sample': sample,
            'score': lambda: scorer(texts, responses),
            'update': lambda: update(batch),
            '· reference forward': lambda: reference(lm.params, batch),
            '· policy forward + backward': lambda: policy_gradient(state[0]['policy']['params'], batch),
            '· value forward + backward': lambda: value_gradient(state[0]['value']['params'], batch),
            '· optimizer, both networks': optimizer,
        }
        return {name: timed(flags.repeats, piece) for name, piece in pieces.items()}, int(written.mask_BT.sum())


if __name__ == '__main__':
    begin_again()
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')  # else it tells that there is no torch
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    main()
