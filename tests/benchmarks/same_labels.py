"""A server's labels beside those of the same weights here: python tests/benchmarks/same_labels.py --address URL --model DIR

    vllm serve Qwen/Qwen3-0.6B --dtype float32
    python tests/benchmarks/same_labels.py --address http://localhost:8000/v1#Qwen/Qwen3-0.6B --model Qwen/Qwen3-0.6B

    llama-server -m micro_xs.gguf --alias micro_xs -np 8 --port 8000
    python tests/benchmarks/same_labels.py --address 'http://localhost:8000/v1#micro_xs' --model micro_xs

Prints the largest difference of a preference and of its mass, without and with a chain of thought, of the ratings, and
labels a second on either side (compiling and loading included). Exits with status 1 where a label or a rating is further
off than --tolerance. With a chain of thought a difference is also that of greedy rationales, so it is only shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--address', required=True)
    parser.add_argument(
        '--model', required=True, help='the same weights: a packaged model, a folder or a name on the hub'
    )
    parser.add_argument('--pairs', type=int, default=64)
    parser.add_argument('--tolerance', type=float, default=2e-3)
    asks = 'base_0shot', 'detailed_cot_0shot', 'ratings'
    parser.add_argument('--ask', nargs='+', choices=asks, default=asks, help='what is asked (all)')
    flags = parser.parse_args()

    import numpy as np

    import rlaif_jax
    from rlaif_jax import log
    from rlaif_jax.data import loader
    from rlaif_jax.labeling import wire

    pairs = loader.pairs('micro_tldr', 'summarization', 'test', flags.pairs)
    prompts, responses = [pair.prompt.text for pair in pairs], [pair.first for pair in pairs]
    here, there = rlaif_jax.load(flags.model), rlaif_jax.served(flags.address)
    label = lambda lm, technique: rlaif_jax.label(  # noqa: E731
        lm, pairs, task='summarization', technique=technique, max_rationale=48, least_mass=0.0
    )
    asked: dict[str, Callable[[Any], list[Any]]] = {
        'base_0shot': lambda lm: label(lm, 'base_0shot'),
        'detailed_cot_0shot': lambda lm: label(lm, 'detailed_cot_0shot'),
        'ratings': lambda lm: rlaif_jax.rate(lm, prompts, responses, task='summarization'),
    }
    rows, worst = [], 0.0
    with wire.counted():
        for name in flags.ask:
            ask, found, seconds = asked[name], [], []
            for lm in (here, there):
                begun = time.monotonic()
                found.append(ask(lm))
                seconds.append(time.monotonic() - begun)
            value = 'score' if name == 'ratings' else 'preference'
            apart = [
                max(np.abs(np.subtract(*([getattr(one, field) for one in side] for side in found))), default=0.0)
                for field in (value, 'mass')
            ]
            worst = worst if 'cot' in name else float(np.max([worst, *apart]))
            rows.append([name, *(f'{x:.1e}' for x in apart), *(f'{flags.pairs / s:.3g}' for s in seconds)])
            log.say(f'{name}: at most {apart[0]:.1e} apart')
    log.figures_table(flags.address, ['', 'apart', 'mass apart', 'here, a second', 'there, a second'], rows)
    return int(not worst <= flags.tolerance)  # for NaN too


if __name__ == '__main__':
    sys.exit(main())
