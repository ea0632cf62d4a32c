"""Kills canonical RLAIF with `kill -9` once in each of its stages, starts it again each time, and compares what it ends
with with a run left alone.

    python tests/benchmarks/kill_chain.py                        # small sizes; path=value changes them further
    python tests/benchmarks/kill_chain.py --full --seed=1        # the sizes of the experiment

A stage is killed at a random moment from its beginning to the last but one thing that it writes: by that it is told how
far it is. Prints a table of these moments, then every model and every result of both runs; exits with status 1 unless
all stages were killed, and all of that is the same bit for bit.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from kill import STORE, kill_9, launch

STAGES = ('sft', 'labels', 'reward_model', 'reinforce', 'evaluation')  # in the order in which they are finished
SMALL = [
    'sft.steps=8', 'sft.batch=16', 'sft.save_every=3', 'sft.log_every=1', 'data.pairs=64', 'data.held_out=32',
    'label.technique=base_0shot', 'label.batch=8', 'reward_model.steps=8', 'reward_model.batch=16',
    'reward_model.eval_every=4', 'reward_model.save_every=3', 'reward_model.log_every=1', 'reinforce.steps=6',
    'reinforce.batch=16', 'reinforce.eval_every=3', 'reinforce.eval_prompts=32', 'reinforce.save_every=2',
    'evaluation.prompts=64',
]  # fmt: skip
KEPT = ('stages/*/export/*.safetensors', 'stages/*/result.json', 'run/result.json')  # what must be the same
POLL = 0.02  # seconds between two looks

Marks = list[tuple[float, int]]  # of a stage, each time it had grown: seconds from its beginning, and how far


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--full', action='store_true', help='the sizes of the experiment, not small ones')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('binding', nargs='*', default=[], metavar='path=value')
    flags = parser.parse_intermixed_args()
    bindings = [*([] if flags.full else SMALL), *flags.binding]
    with tempfile.TemporaryDirectory() as home:
        alone, killed = Path(home) / 'alone', Path(home) / 'killed'
        begun = time.monotonic()
        marks = left_alone(alone, bindings)
        print(f'left alone: {time.monotonic() - begun:.0f} s; kill -9, each time started again:', flush=True)
        rng = random.Random(flags.seed)
        missed = sum(not kill_in(stage, killed, bindings, marks[stage], rng) for stage in STAGES)
        end(start(killed, bindings), killed)
        ours, theirs = kept(alone), kept(killed)
    names = sorted(ours | theirs)
    for name in names:
        print(f'{"the same" if ours.get(name) == theirs.get(name) else "DIFFERENT":10} {name}')
    different = sum(ours.get(name) != theirs.get(name) for name in names)
    print(f'killed in {len(STAGES) - missed} of {len(STAGES)} stages; {different} of {len(names)} files are different')
    return int(missed or different or not names)


def left_alone(folder: Path, bindings: list[str]) -> dict[str, Marks]:
    """Runs it to its end, and says how each stage went."""
    process, marks, begun = start(folder, bindings), {}, {}
    while process.poll() is None:
        if stage := standing(folder):
            far, now = grown(folder, stage), time.monotonic()
            seen = marks.setdefault(stage, [])
            if not seen or seen[-1][1] != far:
                seen.append((now - begun.setdefault(stage, now), far))
        time.sleep(POLL)
    end(process, folder)
    if short := [stage for stage in STAGES if len(marks.get(stage, [])) < 3]:
        raise SystemExit(f'{short[0]} is over before it could be killed; give it more to do')
    return marks


def kill_in(stage: str, folder: Path, bindings: list[str], marks: Marks, rng: random.Random) -> bool:
    """Starts the run, kills it in this stage, and says whether it did.

    The moment lies between two times at which the stage grows when left alone. It comes sooner here where programs are
    compiled already; so it is killed at the last but one of them at the latest.
    """
    which = rng.randrange(len(marks) - 2)
    wait = rng.uniform(0, marks[which + 1][0] - marks[which][0])
    process, begun, reached = start(folder, bindings), None, None
    while process.poll() is None:
        far, now = grown(folder, stage), time.monotonic()
        if standing(folder) == stage:
            begun = begun or now
            reached = reached or (now if far >= marks[which][1] else None)
            if reached and (now - reached >= wait or far >= marks[-2][1]):
                break
        elif begun:  # it is over
            break
        time.sleep(POLL)
    if ended := kill_9(process):
        end(process, folder)
    hit = not ended and standing(folder) == stage
    unit = 'files' if stage == 'evaluation' else 'lines'
    seconds = f'{now - begun:5.1f} of {marks[-1][0]:5.1f} s' if hit else 'MISSED'
    print(f'  {stage:12}  {seconds}, {grown(folder, stage)} of {marks[-1][1]} {unit}', flush=True)
    return hit


def start(folder: Path, bindings: list[str]) -> subprocess.Popen[str]:
    """The run in a process of its own; what it prints goes to output.log."""
    folder.mkdir(exist_ok=True)
    with open(folder / 'output.log', 'a', encoding='utf-8') as out:
        return launch('tldr_rlaif', folder, *bindings, out=out, err=subprocess.STDOUT)


def end(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits for its end. Raises SystemExit, with the last it printed, where that is not a good one."""
    if process.wait():
        raise SystemExit('\n'.join((folder / 'output.log').read_text(encoding='utf-8').splitlines()[-20:]))


def place(folder: Path, stage: str) -> Path:
    """The folder of a stage; there may be nothing yet."""
    return next((folder / 'stages').glob(f'{stage}-*'), folder / 'nothing') if stage != 'evaluation' else folder / 'run'


def standing(folder: Path) -> str:
    """The stage that a run is in: the first without a result; '' where all have one, or nothing has begun."""
    left = (stage for stage in STAGES if not (place(folder, stage) / 'result.json').exists())
    return next(left, '') if (folder / 'stages').exists() else ''


def grown(folder: Path, stage: str) -> int:
    """How far a stage is: lines that it wrote, or files."""
    if stage == 'evaluation':
        return sum(not path.name.startswith('.') for path in place(folder, stage).glob('*'))
    lines = folder / STORE if stage == 'labels' else place(folder, stage) / 'metrics.jsonl'
    return lines.read_bytes().count(b'\n') if lines.exists() else 0


def kept(folder: Path) -> dict[str, str]:
    """Models and results by name, as digests of what they are."""
    files = [path for pattern in KEPT for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == '__main__':
    sys.exit(main())
