"""The preference labeler beside `transformers` on torch, both on the CPU: python tests/benchmarks/labeling.py

    --case micro|135m|all --labeler micro_l --pairs 4 --repeats 3 --batches 4 8 --devices 1

Same weights, same prompts, both orders, float32. `torch` forwards whole prompts in batches sorted by length, padded on
the left, without keeping keys and values, and softmaxes the logits of the last token; `torch, last logits` does so with
`logits_to_keep=1`. The torch arms are handed tokens, ours starts from text. Ours makes a device of each core, as
`mesh.data=-1` does (`--devices 1`: one of all); torch gives all cores to each operation. Each arm is a process of its
own, for its peak memory, with the batch of those tried that was fastest; the arms take turns. A figure is the median;
`ratio` is how many times as long as ours an arm takes; `once` is what an arm does before the clock runs: ours compiles
and reads the preamble, torch forwards one prompt; `apart` is the largest difference from ours of P(first is better), in
either order.

The micro model is a packaged one on the summaries task. The 135M model has the shape of `llama_135m` and random weights;
its prompts are random words, 500 tokens each: first in the proportions of the detailed prompt with two exemplars on
Reddit posts (two thirds are the preamble), then with hardly anything but a long post before the candidates.

Exits with status 1 where arms are more than 1e-3 apart, and 2 where torch is missing. Needs
`pip install torch --index-url https://download.pytorch.org/whl/cpu`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import turns

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.run import begin_again  # noqa: E402

TOLERANCE = 1e-3  # of a preference, and of each of the two probabilities that it averages
ARMS = ('ours', 'torch', 'torch, last logits')
Shown = list[tuple[float, float]]  # of each pair: P(the first is better) when it is shown first, and shown second
Make = Callable[[int, int], Callable[[], Shown]]  # (pairs, prompts at once) -> what to time; it does what is done once


@dataclass(frozen=True)
class Case:
    """What is labelled by which model. Without `sizes` the pairs are the micro world's."""

    title: str
    model: str
    technique: str
    pairs: int
    batches: tuple[int, ...]  # prompts at once, to choose from; ours takes half as many pairs
    sizes: tuple[int, int, int] | None = None  # tokens of the preamble, the context, each candidate
    devices: int = 1  # that ours makes of the cores; torch uses all cores for each operation


def cases(flags: argparse.Namespace) -> list[Case]:
    """Those that were asked for."""
    from rlaif_jax import axes

    found = []
    each = {'devices': flags.devices or axes.cores()}
    if flags.case in ('micro', 'all'):
        n, batches = flags.pairs or 64, tuple(flags.batches or (8, 32, 128))
        for technique in ('base_0shot', 'detailed_0shot', 'base_2shot'):
            found.append(
                Case(f'{flags.labeler}, {technique} [simulated]', flags.labeler, technique, n, batches, **each)
            )
    if flags.case in ('135m', 'all'):
        n, batches = flags.pairs or 8, tuple(flags.batches or (4, 8, 16))
        more = 'llama_135m', 'detailed_0shot', n, batches, (340, 77, 40)
        found.append(Case('llama_135m, random weights, a long preamble', *more, **each))
        more = 'llama_135m', 'base_0shot', n, batches, (20, 397, 40)
        found.append(Case('llama_135m, random weights, a long context', *more, **each))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--case', choices=('micro', '135m', 'all'), default='all')
    parser.add_argument('--labeler', default='micro_l', help='the micro model: a packaged one (%(default)s)')
    parser.add_argument('--pairs', type=int, help='pairs a run (micro 64, 135m 8)')
    parser.add_argument('--repeats', type=int, default=3, help='timed runs of each arm (%(default)s)')
    parser.add_argument(
        '--batches',
        type=int,
        nargs='+',
        help='prompts at once to try, even; those above twice the pairs are left out (micro 8 32 128, 135m 4 8 16)',
    )
    parser.add_argument('--devices', type=int, help='that ours makes of the cores (one each)')
    parser.add_argument('--work', nargs=2, help=argparse.SUPPRESS)  # a process of ours: what it does, and with what
    flags = parser.parse_args()
    if flags.work:
        return work(*flags.work)
    if any(batch < 2 or batch % 2 for batch in flags.batches or ()) or (flags.pairs or 1) < 1 or flags.repeats < 1:
        parser.error('batches are even, pairs and repeats at least 1')
    if (flags.devices or 1) < 1:
        parser.error('devices: at least 1')
    from rlaif_jax import log

    if importlib.util.find_spec('torch') is None:
        log.error('this benchmark needs torch: pip install torch --index-url https://download.pytorch.org/whl/cpu')
        return 2
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'torch', 'transformers'))
    log.say(f'{versions}, {os.cpu_count()} processors, float32, GLIBC_TUNABLES={os.environ.get("GLIBC_TUNABLES")!r}')
    tuned: dict[Any, int] = {}
    agreed = [compare(case, flags.repeats, tuned) for case in cases(flags)]
    return 0 if all(agreed) else 1


def compare(case: Case, repeats: int, tuned: dict[Any, int]) -> bool:
    """Print the case's tables. Whether the arms agree. `tuned` remembers the batches found."""
    from rlaif_jax import log

    with tempfile.TemporaryDirectory(prefix='labeling-') as folder:
        with worker('prepare', json.dumps(asdict(case) | {'folder': folder})) as preparer:
            plan = preparer.ask()
        columns, row = zip(*plan['tokens'].items())
        log.figures_table(f'{case.title}: tokens, means over {case.pairs} pairs', columns, [row])
        batch = {}
        for arm in ARMS:
            alike = arm, case.model, plan['tokens'][f'{arm.split(",")[0]} reads a pair']  # the same work per prompt
            batch[arm] = tuned[alike] = tuned.get(alike) or fastest(arm, plan['file'], case)
        workers = {arm: worker(arm, plan['file']) for arm in ARMS}
        answers: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        try:
            for _ in range(repeats):
                for arm, one in workers.items():
                    answers[arm].append(one.ask(case.pairs, batch[arm]))
        finally:
            for one in workers.values():
                one.close()
    seconds = {arm: [one['seconds'] for one in answers[arm]] for arm in ARMS}
    prob = {arm: sum(answers[arm][-1]['shown'], []) for arm in ARMS}  # of each pair two neighbours
    rows, agreed = [], True
    for arm in ARMS:
        median = statistics.median(seconds[arm])
        apart = [abs(a - b) for a, b in zip(prob['ours'], prob[arm])]
        agreed &= all(x <= TOLERANCE for x in apart)  # False for NaN
        spread = f'{case.pairs / max(seconds[arm]):.3g} – {case.pairs / min(seconds[arm]):.3g}'
        ratio = f'{median / statistics.median(seconds["ours"]):.2f}'
        last = answers[arm][-1]
        rows.append([
            arm, case.pairs / median, spread, ratio, last['peak'], batch[arm], last['threads'], last['once'],
            f'{max(apart):.0e}',
        ])  # fmt: skip
    columns = ['', 'pairs/s', 'slowest – fastest', 'ratio', 'peak GiB', 'batch', 'threads', 'once, s', 'apart']
    log.figures_table(f'{case.title}: median of {repeats} runs of {case.pairs} pairs', columns, rows)
    log.say(f'P(first is better) from {min(prob["ours"]):.3f} to {max(prob["ours"]):.3f}')
    if not agreed:
        log.error(f'{case.title}: the arms are more than {TOLERANCE} apart')
    return agreed


def fastest(arm: str, plan: str, case: Case) -> int:
    """The batch that takes the least time a prompt, on as many prompts as the largest one holds, or as there are."""
    rows = 2 * case.devices if arm == 'ours' else 1  # a device takes whole pairs
    fit = [batch for batch in case.batches if batch <= 2 * case.pairs and not batch % rows] or [2 * case.pairs]
    if len(fit) == 1:
        return fit[0]
    with worker(arm, plan) as one:
        return min(fit, key=lambda batch: one.ask(max(fit) // 2, batch)['seconds'])


def worker(what: str, plan: str) -> turns.Worker:
    """A process of ours."""
    return turns.Worker([sys.executable, __file__, '--work', what, plan])


def work(what: str, plan: str) -> int:
    """Answer the requests on standard input; what libraries print goes to standard error."""
    out = turns.answers()
    if not what.startswith('torch'):
        sys.modules['torch'] = None  # as in an installation without it: transformers would load it beside the tokenizer
    if what == 'prepare':
        answer = lambda: prepare(**json.loads(plan))  # noqa: E731
    else:
        loaded = json.loads(Path(plan).read_text(encoding='utf-8'))
        answer = clock(ours(loaded) if what == 'ours' else theirs(loaded, last='last' in what))
    turns.serve(answer, out)
    return 0


def clock(make: Make) -> Callable[[int, int], dict[str, Any]]:
    """`(pairs, batch) ->` what was shown, its seconds, those of what is done once, and the peak memory so far in GiB."""

    @cache
    def once(pairs: int, batch: int) -> tuple[Callable[[], Shown], float]:
        began = time.perf_counter()
        return make(pairs, batch), time.perf_counter() - began

    def answer(pairs: int, batch: int) -> dict[str, Any]:
        run, before = once(pairs, batch)
        began = time.perf_counter()
        shown = run()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        torch = sys.modules.get('torch')
        threads = torch.get_num_threads() if torch else len(os.sched_getaffinity(0))
        return {'shown': shown, 'seconds': seconds, 'once': before, 'peak': peak, 'threads': threads}

    return answer


def ours(plan: dict[str, Any]) -> Make:
    """The labeler as it is."""
    from rlaif_jax import axes
    from rlaif_jax.data.records import Pair, Prompt
    from rlaif_jax.labeling import preference
    from rlaif_jax.models import hf

    axes.ask_for_devices({'data': plan['devices']})
    lm = hf.load(plan['model'], mesh=axes.make_mesh({'data': plan['devices']}))
    pairs = [Pair(Prompt(text, ''), first, second) for text, first, second in plan['pairs']]

    def make(count: int, batch: int) -> Callable[[], Shown]:
        # Random weights answer anything but 1 or 2.
        how = preference.Config(
            technique=plan['technique'], templates=plan['templates'], least_mass=0.0, batch=batch // preference.ORDERS
        )
        labeler = preference.make_labeler(lm, how)
        labeler(pairs[:count])
        return lambda: [(label.first_shown, label.second_shown) for label in labeler(pairs[:count])]

    return make


def theirs(plan: dict[str, Any], last: bool) -> Make:
    """Full forwards by `transformers`; with `last`, the head at the last position only."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(plan['model'], dtype=torch.float32).eval()
    rows, more = plan['rows'], {'logits_to_keep': 1} if last else {}

    @torch.inference_mode()
    def answers(chosen: Sequence[int]) -> list[float]:
        """P('1') of '1' and '2'."""
        longest = max(len(rows[b]) for b in chosen)
        token_BT = torch.tensor([[plan['pad']] * (longest - len(rows[b])) + rows[b] for b in chosen])
        mask_BT = torch.tensor([[0] * (longest - len(rows[b])) + [1] * len(rows[b]) for b in chosen])
        position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        out = model(token_BT, attention_mask=mask_BT, position_ids=position_BT, use_cache=False, **more)
        prob_BV = out.logits[:, -1].softmax(-1)
        one_B, two_B = (prob_BV[:, ways].sum(1) for ways in plan['ways'])
        return (one_B / (one_B + two_B)).tolist()

    def make(count: int, batch: int) -> Callable[[], Shown]:
        order = sorted(range(2 * count), key=lambda b: len(rows[b]))

        def run() -> Shown:
            shown = {}
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                shown |= zip(chosen, answers(chosen))
            return [(shown[2 * i], 1 - shown[2 * i + 1]) for i in range(count)]

        answers(order[:1])
        return run

    return make


def prepare(
    title: str, model: str, technique: str, pairs: int, batches: Any, sizes: Any, devices: int, folder: str
) -> dict[str, Any]:
    """Write the model and the plan that all arms read, with every prompt as tokens; what the prompts consist of."""
    import micro

    from rlaif_jax.data import loader
    from rlaif_jax.labeling import preference
    from rlaif_jax.labeling.scoring import Group, read_answers
    from rlaif_jax.models import hf

    lm, templates, task = micro.model(model), 'micro', 'summarization'
    hf.save(lm, Path(folder) / 'model')
    if sizes:
        templates = str(Path(folder) / 'templates')
        write_templates(Path(templates) / task, technique, sizes[0])
        made = [random_pair(i, *sizes[1:]) for i in range(pairs)]
    else:
        made = loader.pairs('micro_tldr', task, 'test', pairs)
    template = preference.ask(lm.tokenizer, preference.Config(task, technique, templates)).verdict
    samples = [
        {'context': pair.prompt.text, 'first': first, 'second': second}
        for pair in made
        for first, second in ((pair.first, pair.second), (pair.second, pair.first))
    ]
    preamble = template.encode_preamble(lm.tokenizer)
    rows = [one.tokens for one in template.encode(lm.tokenizer, samples, lm.config.max_length - len(preamble))]
    groups = [Group.of(rows[b : b + 2]) for b in range(0, len(rows), 2)]
    answers = read_answers(lm.tokenizer, ('1', '2'))
    if answers.depth:
        sys.exit(f'{model} writes an answer in several tokens; the torch arms read one')

    def mean(rows: Sequence[Sequence[int]]) -> float:
        return statistics.mean(map(len, rows))

    def field(name: str) -> float:
        return mean(lm.tokenizer.encode([' ' + template.quoted(name, sample[name])[0] for sample in samples[::2]]))

    parts = {'preamble': len(preamble), 'context': field('context'), 'first': field('first'), 'second': field('second')}
    prompt = len(preamble) + mean(rows)
    plan = {
        'model': f'{folder}/model', 'technique': technique, 'templates': templates, 'pad': lm.tokenizer.pad,
        'devices': devices,
        'pairs': [(pair.prompt.text, pair.first, pair.second) for pair in made],
        'rows': [preamble + row for row in rows],
        'ways': [[way[0] for way, owner in zip(answers.ways, answers.owner_A) if owner == c] for c in range(2)],
    }  # fmt: skip
    file = Path(folder) / 'plan.json'
    file.write_text(json.dumps(plan), encoding='utf-8')
    read = {'torch reads a pair': 2 * prompt, 'ours reads a pair': mean([group.tokens for group in groups])}
    rest = {'headings': prompt - sum(parts.values()), 'prompt': prompt}
    return {'file': str(file), 'tokens': parts | rest | read}


def write_templates(folder: Path, technique: str, size: int) -> None:
    """The micro world's, with a preamble of random words that is `size` tokens up to the context."""
    from rlaif_jax.labeling import prompts

    folder.mkdir(parents=True)
    for name in ('sample', 'ending'):
        (folder / f'{name}.txt').write_text(
            prompts.read(prompts.NAMED['micro'], 'summarization', name), encoding='utf-8'
        )
    text = ' ' + words(size - 1, 'preamble')  # and the context's heading
    (folder / f'{technique.split("_")[0]}.txt').write_text(text, encoding='utf-8')


def random_pair(index: int, context: int, candidate: int) -> Any:
    """A pair of random words, of as many tokens."""
    from rlaif_jax.data.records import Pair, Prompt

    prompt = Prompt(words(context, f'context {index}'), str(index))
    return Pair(prompt, words(candidate, f'first {index}'), words(candidate, f'second {index}'))


def words(count: int, seed: str) -> str:
    """Random words of the micro world; each is one token with the space before it."""
    from rlaif_jax.micro import lexicon

    return ' '.join(random.Random(seed).choices(lexicon.words(), k=count))


if __name__ == '__main__':
    begin_again()
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    os.environ.setdefault('HF_HUB_DISABLE_PROGRESS_BARS', '1')
    sys.exit(main())
