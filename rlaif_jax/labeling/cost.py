"""What labels cost (App. L of the paper): tokens read and written, seconds, chip-hours, and money where somebody knows the
price; counted behind a run, and predicted before it.

    spent = counted(labels)                     # of `preference.label_all`
    say({'labels': spent})                      # with money, within `priced`
    tokens = predict(tokenizer, cfg, pairs)     # before anything is asked

Tokens are those of every prompt, both orders, rationale and verdict, each as if it were read whole: what a server bills.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import mean, median
from typing import Any

from rlaif_jax import log
from rlaif_jax.config import MOST
from rlaif_jax.data.records import Pair
from rlaif_jax.labeling import prompts
from rlaif_jax.labeling.preference import Config, Label, Prompter, ask
from rlaif_jax.text import Tokenizer

COLUMNS = ('', 'labels', 'tokens read', 'tokens written', 'took', 'chip-hours', 'at --price')
EACH = 1000  # labels that a cost is told of, beside all
PAPER = {'by GPT-4 in 2023': 0.06, 'by people': 0.67}  # dollars a label (App. L)
PAPERS = ', '.join(f'${EACH * dollars:,.0f} {who}' for who, dollars in PAPER.items())
SAMPLE = 512  # pairs that a prediction looks at, evenly by length


@dataclass(frozen=True)
class Cost:
    """What labels cost, all of them."""

    labels: int
    read: float  # tokens
    written: float  # tokens
    seconds: float  # by the clock, at work; nan where nobody knows
    devices: int | None  # chips that were at it; 0: a server's, which nobody here sees; None: nobody counted

    @property
    def chip_hours(self) -> float:
        return self.devices * self.seconds / 3600 if self.devices else math.nan

    def of(self, labels: int = EACH) -> Cost:
        """The same of so many labels, on average."""
        share = labels / self.labels if self.labels else math.nan
        read, written, seconds = (share * x for x in (self.read, self.written, self.seconds))
        return replace(self, labels=labels, read=read, written=written, seconds=seconds)

    def money(self, price: Sequence[float]) -> float:
        """At the price of a chip-hour; of a server at that of a million tokens, read and written, or one for both."""
        if self.devices != 0:
            return self.chip_hours * price[0]
        return (self.read * price[0] + self.written * price[-1]) / 1e6

    def record(self) -> dict[str, Any]:
        """As plain values, with money where there is a price."""

        def values(one: Cost) -> dict[str, float]:
            found = {'tokens read': one.read, 'tokens written': one.written, 'seconds': one.seconds}
            found |= {'chip-hours': one.chip_hours} if one.devices else {}
            return found | ({'money': one.money(_price)} if _price else {})

        more = {'price': list(_price)} if _price else {}
        return {
            'labels': self.labels,
            'devices': self.devices,
            **values(self),
            f'per {EACH}': values(self.of()),
            **more,
        }


_price: tuple[float, ...] = ()


@contextmanager
def priced(price: Sequence[float] = ()) -> Iterator[None]:
    """Within it costs are told in money, too, in whatever currency `price` is."""
    global _price
    before, _price = _price, tuple(price)
    try:
        yield
    finally:
        _price = before


def counted(labels: Sequence[Label]) -> Cost:
    """What labels cost that were made, by whatever run: each knows its tokens, and what share of the work it was. A label
    that stands for several pairs, as `label_all` has it, was made once.
    """
    labels = [*{id(label): label for label in labels}.values()]
    known = all(label.seconds for label in labels)  # not of labels by a version that did not count
    return Cost(
        labels=len(labels),
        read=sum(label.tokens for label in labels),
        written=sum(label.written for label in labels),
        seconds=sum(label.seconds for label in labels) if known else math.nan,
        devices=max((label.devices for label in labels), default=0) if known else None,
    )


def predict(
    tokenizer: Tokenizer, cfg: Config, pairs: Sequence[Pair], *, most: int = MOST, rationale: float | None = None
) -> Cost:
    """Tokens that labels will read and write, seconds unknown: counted of `SAMPLE` pairs, evenly by length, for all. most:
    tokens of a prompt that the model allows; rationale: tokens of one, where some are known; else as those of exemplars.
    Equal pairs are asked about once.
    """
    pairs = [*{(pair.prompt.text, pair.first, pair.second): pair for pair in pairs}.values()]
    order = sorted(pairs, key=lambda pair: len(pair.prompt.text) + len(pair.first) + len(pair.second))
    step = max(1, len(order) // SAMPLE)
    sample = order[step // 2 :: step] or order
    asked = ask(tokenizer, cfg)
    prompter = Prompter(tokenizer, cfg, asked, min(cfg.max_length, most))
    if asked.rationale and rationale is None:
        known = prompts.rationales(cfg.task, prompts.folder_of(tokenizer, cfg.templates))
        rationale = mean(map(len, tokenizer.encode(known, behind=True))) if known else 0.0
    read = written = 0.0
    for orders in prompter.encode(sample):
        for one in orders:
            prompt = len(prompter.preamble) + len(one.tokens)
            if asked.rationale:
                read += cfg.samples * (2 * prompt + rationale + len(prompter.ending))
                written += cfg.samples * rationale
            else:
                read += prompt
    return Cost(len(pairs), *(len(pairs) / max(len(sample), 1) * x for x in (read, written)), math.nan, None)


def earlier(store: Path, labeler: str, template: str) -> tuple[float | None, float | None, int, set[str]]:
    """What labels in a store say of new ones by the same labeler, asked the same: tokens of a rationale, seconds a token,
    and the devices that were at it; None where there are none; and their keys. Nothing is written, as to a store that is
    opened. One or two batches, which have compiled, are no measure of speed.
    """
    rationales, speeds, batches, devices, keys = [], [], set(), 0, set()
    paths = sorted(store.parent.glob(f'{store.stem}*{store.suffix}')) if store.parent.is_dir() else []
    for path in paths:
        with open(path, encoding='utf-8', errors='replace') as lines:
            for line in lines:
                if labeler not in line or template not in line:
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if row.get('labeler') != labeler or row.get('template') != template:
                    continue
                keys.add(row.get('key'))
                if row.get('status') != 'ok':
                    continue
                if row.get('rationales') and row.get('written'):
                    rationales.append(row['written'] / len(row['rationales']))
                if row.get('seconds') and row.get('tokens'):
                    speeds.append(row['seconds'] / (row['tokens'] + row.get('written', 0)))
                    batches.add(row['seconds'])  # an equal share of its batch for each label
                    devices = row.get('devices', 0)
    return mean(rationales) if rationales else None, median(speeds) if len(batches) > 2 else None, devices, keys


# In words


def told(cost: Cost) -> str:
    """A cost in words, with money where there is a price."""
    text = f'{cost.labels:,.0f} labels: {amount(cost.read)} tokens read'
    text += f', {amount(cost.written)} written' if cost.written else ''
    if not math.isnan(cost.seconds):
        text += f', {span(cost.seconds)}'
        text += f', {cost.chip_hours:.3g} chip-hours' if cost.devices else ''
    if _price and not math.isnan(money := cost.money(_price)):
        text += f', {money:,.2f} at --price={",".join(f"{x:g}" for x in _price)}'
    return text


def say(found: Mapping[str, Cost]) -> None:
    """Prints what labels cost, name -> all of them, and so many of them, beside the paper's."""
    known = {name: one for name, one in found.items() if one.labels}
    for name, one in known.items() if len(known) == 1 else ():
        log.say(f'{name}: {told(one)}; of them {told(one.of())}')
    if len(known) > 1:
        log.figures_table('what the labels cost', COLUMNS, cells({name: one.record() for name, one in known.items()}))
    if known:
        log.say(f'{EACH} labels of the paper: {PAPERS}')


def cells(records: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Rows of `COLUMNS`, two a name: of all labels, and of so many."""
    rows = []
    for name, one in records.items():
        for title, labels, spent in ((name, one['labels'], one), ('', EACH, one[f'per {EACH}'])):
            numbers = [spent.get(key) for key in ('seconds', 'chip-hours', 'money')]
            shown = zip((math.nan if x is None else x for x in numbers), (span, '{:.3g}'.format, '{:,.2f}'.format))
            rows.append([
                title, f'{labels:,}', amount(spent['tokens read']), amount(spent['tokens written']),
                *('–' if math.isnan(x) else show(x) for x, show in shown),
            ])  # fmt: skip
    return rows


def amount(tokens: float) -> str:
    """`41.2 M`"""
    for unit, name in ((1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
        if tokens >= unit:
            return f'{tokens / unit:.3g}{name}'
    return f'{tokens:.3g}'


def span(seconds: float) -> str:
    """`9.1 hours`, `12 minutes`, `0:00:07`"""
    if seconds >= 2 * 86400:
        return f'{seconds / 86400:.2g} days'
    if seconds >= 5400:
        return f'{seconds / 3600:.2g} hours'
    return str(timedelta(seconds=round(seconds))) if seconds >= 10 else f'{seconds:.2g} s'
