"""What real people's pairs say of a labeler with real weights, by technique: python tests/benchmarks/real_labels.py

    --model DIR --keep FOLDER --sets tldr llmbar hh study --techniques base_0shot detailed_0shot base_2shot

Reads `../shared/data`: 24 Reddit TL;DR comparisons, the 100 pairs of LLMBar's natural part, 200 pairs of HH's harmless
test split, and for `study` 100 others of that, which no other figure uses. Without --model the labeler is SmolLM2 135M,
fetched into --keep. Nothing is called unscorable while labels are made. The first table is at `least_mass` as it is by
default. The second is what `study` is for: of the pairs above each threshold of captured mass, how many people agree
with. Labels stay in --keep: what was stopped goes on, and a rate is of the labels that a run makes all of.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

import real_weights  # noqa: E402

ROOT = Path(__file__).resolve().parents[3] / 'shared/data'
THRESHOLDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', help='a folder or a name on the hub')
    parser.add_argument('--keep', type=Path, required=True, help='a folder for labels, and for what is fetched')
    parser.add_argument('--sets', nargs='+', choices=SETS, default=['tldr'])
    parser.add_argument('--techniques', nargs='+', default=['base_0shot', 'detailed_0shot'])
    parser.add_argument('--pairs', type=int, help='at most')
    parser.add_argument('--rationale', type=int, default=512, help='tokens of a rationale (%(default)s)')
    parser.add_argument('--batch', type=int, default=8)
    flags = parser.parse_args()

    from launch.run import start_jax
    from rlaif_jax.labeling import preference
    from rlaif_jax.labeling.store import Store

    start_jax()
    model = flags.model or str(real_weights.model(flags.keep))
    store = Store(flags.keep / 'labels.jsonl')
    for name in flags.sets:
        task, read = SETS[name]
        pairs = read()[: flags.pairs]
        for technique in flags.techniques:
            cfg = preference.Config(
                task, technique, max_rationale=flags.rationale, least_mass=0.0, most_unscorable=1.0, batch=flags.batch
            )
            begun, had = time.monotonic(), len(store)
            labels = preference.label_all(model, cfg, pairs, store, title=f'{name} {technique}')
            made, seconds = len(store) - had, time.monotonic() - begun
            tell(f'{name} {technique}', pairs, labels, seconds / made if made >= len(pairs) else None)
    return 0


def tell(name: str, pairs: list, labels: list, seconds: float | None) -> None:
    """The tables of one cell; `seconds` a pair, where they are known."""
    from experiments.label import aligned
    from rlaif_jax import log
    from rlaif_jax.evaluation import report
    from rlaif_jax.labeling.preference import Config

    def above(least: float) -> list:
        """The labels as they would be with this threshold."""
        lacks = {'preference': float('nan'), 'first_shown': float('nan'), 'second_shown': float('nan')}
        return [one if one.mass >= least else dataclasses.replace(one, status='unscorable', **lacks) for one in labels]

    least = Config().least_mass
    report.labelers_table([aligned(name, pairs, above(least))], title=f'least_mass = {least}')
    rows = []
    for threshold in THRESHOLDS:
        one = aligned(name, pairs, above(threshold))
        agreed, first = one.agreement, one.position.first if one.position else None
        rows.append([
            f'{threshold}', str(agreed.n), *(f'{100 * x:.1f}' for x in (agreed.value, agreed.low, agreed.high)),
            f'{100 * first.value:.1f}',
        ])  # fmt: skip
    log.figures_table(name, ['least mass', 'pairs', 'agreement %', 'low', 'high', 'first %'], rows)
    masses = sorted(one.mass for one in labels)
    few = [round(masses[i * (len(masses) - 1) // 4], 4) for i in range(5)]
    log.say(f'{name}: mass, quartiles {few}' + (f'; {seconds:.2f} s a pair' if seconds else ''))


def tldr() -> list:
    """24 comparisons of summaries, with whom people prefer."""
    return records([json.loads(line) for line in (ROOT / 'tldr_pairs/pairs.jsonl').open(encoding='utf-8')])


def llmbar() -> list:
    """100 instructions, each with a response that follows it and one that does not."""
    rows = json.loads((ROOT / 'llmbar_natural/dataset.json').read_text(encoding='utf-8'))
    asked = ('input', 'prompt'), ('output_1', 'response_1'), ('output_2', 'response_2')
    return records([{ours: row[name] for name, ours in asked} | {'label': row['label'] - 1} for row in rows], 'helpful')


def harmless(low: int, high: int) -> list:
    """Dialogues of the harmless test split, the reply that people chose first."""
    from rlaif_jax.data import trl

    entries = trl.pairs(ROOT / 'hh_harmless/test.jsonl.gz', 'harmless')
    return [entry.record for entry in entries if entry.record is not None][low:high]  # five rows are no pairs


def records(rows: list[dict], task: str = 'summarization') -> list:
    """The pairs that these rows are."""
    from rlaif_jax.data import trl

    return [trl.pair_of(row, task, f'row {number}') for number, row in enumerate(rows)]


SETS = {  # task, and what reads it
    'tldr': ('summarization', tldr),
    'llmbar': ('helpful', llmbar),
    'hh': ('harmless', lambda: harmless(0, 200)),
    'study': ('harmless', lambda: harmless(2000, 2100)),
}


if __name__ == '__main__':
    sys.exit(main())
