"""What attention takes of a TPU's memory, with its kernel and without, compiled for TPUs that are not here:
python tests/benchmarks/square.py

    --topology v5e-16 v5p-16 --tokens 1152 4096 --scale smollm2

Two programs of `tldr_rlaif`: the update of REINFORCE, and the labeler's answers about pairs. Prompts are so long that a row
has the tokens that are asked for. Memory is what the compiler plans besides arguments and results. `square` are the arrays
of the compiled text with two axes of a whole row or several: what attention by a kernel must not have. Exits with status 1
where a program with a kernel has one. Needs libtpu, `pip install -e '.[tpu]'`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.run import begin_again  # noqa: E402

NEW = 128  # tokens of a response
ARRAY = re.compile(r'\b(?:f32|bf16|pred|s32)\[([\d,]+)\]')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--topology', nargs='+', default=['v5e-16', 'v5p-16'], help='(%(default)s)')
    parser.add_argument('--tokens', nargs='+', type=int, default=[1152, 4096], help='of a row (%(default)s)')
    parser.add_argument('--scale', default='smollm2', help='(%(default)s)')
    flags = parser.parse_args()
    import jax

    from rlaif_jax import log

    rows, wrong = [], False
    for topology in flags.topology:
        for tokens in flags.tokens:
            for kernel in (True, False):
                os.environ['RLAIF_ATTENTION'] = '' if kernel else 'xla'
                jax.clear_caches()  # which computation attention is was decided when a function was traced
                for name, program, lengths in found(topology, tokens, flags.scale):
                    began = time.monotonic()
                    compiled = program.lower().compile()
                    memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
                    squares, how = square(compiled.as_text(), lengths), 'kernel' if kernel else 'XLA'
                    rows.append([topology, f'{name}: {program.name}', tokens, how, memory, ' '.join(squares) or 'none'])
                    took = f'{time.monotonic() - began:.0f} s to compile'
                    log.say(f'{topology}, {program.name}, {tokens} tokens, {how}: {memory:.2f} GiB, {took}')
                    wrong |= kernel and bool(squares)
    columns = ['slice', 'program', 'tokens', 'attention', 'GiB', 'square']
    log.figures_table(f'{flags.scale}: memory between arguments and results, a chip', columns, rows)
    return int(wrong)


def found(topology: str, tokens: int, scale: str) -> Iterator[tuple[str, Any, set[int]]]:
    """The programs, as their plan has them, with the stage that calls each and the lengths of its rows."""
    from experiments import plan, programs
    from experiments.topology import Target, dividing, spread
    from launch import run
    from rlaif_jax.models.presets import downloading_nothing

    asked = ['--experiment=tldr_rlaif', f'--scale={scale}', '--dry_run', f'--topology={topology}']
    prompts = [f'{stage}.max_prompt={tokens - NEW}' for stage in ('reward_model', 'reinforce')]
    asked += [*prompts, f'label.max_length={tokens}']
    _, config, _ = run.read_config(run.read_flags(run.parser(), asked))
    target = Target.of(topology)
    config, _ = dividing(spread(config, target.count), target.count)
    mesh, seen = target.mesh(config), set()
    with downloading_nothing():
        for line in config.lines(Path('none')):
            models = plan.sizes_in(line, config)
            if not models or None in models.values():
                continue
            answers = [read for read in line.reads if read.does == 'answers']
            lengths = {tokens} | {read.prompt + read.tail * read.branches for read in answers}
            for program in programs.programs(line, models, mesh):
                wanted = program.name == 'update' if line.name == 'reinforce' else program.name == 'labeler answers'
                if wanted and program.name not in seen:  # several stages ask a labeler
                    seen.add(program.name)
                    yield line.name, program, lengths


def square(text: str, lengths: set[int]) -> list[str]:
    """Shapes in a program's text that have two axes of one row's length, or of several such rows'."""
    shapes = {tuple(map(int, one.split(','))) for one in ARRAY.findall(text)}
    twice = lambda shape, length: sum(n >= length and n % length == 0 for n in shape) > 1  # noqa: E731
    found = [shape for shape in shapes if any(twice(shape, length) for length in lengths)]
    return sorted(str(list(shape)).replace(' ', '') for shape in found)


if __name__ == '__main__':
    begin_again()
    sys.exit(main())
