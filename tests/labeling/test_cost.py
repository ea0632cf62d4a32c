"""Laws of costs: what is predicted is what is counted, and prices multiply."""

import dataclasses
import math

import pytest

from rlaif_jax.data import loader
from rlaif_jax.data.records import Pair, Prompt
from rlaif_jax.labeling import cost, preference
from rlaif_jax.labeling.cost import Cost, counted, earlier, predict, priced
from rlaif_jax.labeling.preference import Config, Label, label_all, make_labeler
from rlaif_jax.labeling.scoring import Answerer
from rlaif_jax.labeling.store import Store
from rlaif_jax.models import hf

PLAIN = Config(technique='base_1shot', templates='micro', least_mass=0.0, batch=2, max_rationale=8)
PAIRS = [Pair(Prompt(f'I lost {"my keys " * n}. TL;DR:', str(n)), f' {n} keys', ' no keys at all') for n in range(5)]


class Somebody:
    """Who is asked, and computes nothing."""

    name = 'somebody'

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def answerer(self, preamble, answers, max_length):
        return Says(self.name, preamble, answers, min(max_length, 512))


class Says(Answerer):
    def _score(self, rows, group):
        return [[0.6, 0.4]] * len(rows)

    def likeliest(self, rows):
        return [[]] * len(rows)

    def write(self, rows, how, until):
        return [' I lost my keys.' * (1 + len(row) % 3) for row in rows]


@pytest.mark.parametrize('how', [{}, {'technique': 'base_cot_0shot', 'samples': 2}])
def test_what_is_predicted_is_what_is_counted(micro_tokenizer, how):
    """To the token, but for how long rationales are on average."""
    cfg = dataclasses.replace(PLAIN, **how)
    spent = counted(make_labeler(Somebody(micro_tokenizer), cfg)(PAIRS))
    rationale = spent.written / (2 * cfg.samples * len(PAIRS))
    told = predict(micro_tokenizer, cfg, PAIRS, most=512, rationale=rationale)
    assert (told.labels, told.read, told.written) == pytest.approx((5, spent.read, spent.written))
    assert bool(spent.written) == bool(how)
    assert (spent.devices, math.isnan(spent.seconds)) == (None, True)  # nobody looked at a clock


def test_a_file_of_many_pairs_is_predicted_by_a_look_at_some(micro_tokenizer, monkeypatch):
    pairs = loader.pairs('micro_tldr', 'summarization', 'test', 600)
    every = predict(micro_tokenizer, PLAIN, pairs)
    monkeypatch.setattr(cost, 'SAMPLE', 40)
    some = predict(micro_tokenizer, PLAIN, pairs)
    assert every.labels == some.labels == 600 and every.read != some.read == pytest.approx(every.read, rel=0.02)


@pytest.mark.nightly
@pytest.mark.parametrize('technique', ['detailed_0shot', 'detailed_cot_0shot', 'detailed_cot_1shot'])
@pytest.mark.parametrize('task', ['summarization', 'helpful', 'harmless'])
def test_a_labelling_run_of_the_micro_world_costs_what_was_predicted(task, technique):
    """Within 2 % where a few labels are known, or nothing is written; else, by the exemplars, within 5 %."""
    lm, cfg = hf.load('micro_s'), Config(task=task, technique=technique)
    pairs = loader.of_task('micro_tldr', task).pairs('test', 128, task, False)
    labels = make_labeler(lm, cfg)(pairs)
    spent, few = counted(labels), counted(labels[:16])
    for rationale, near in ((few.written / (2 * 16), 0.02), (None, 0.05 if spent.written else 0.02)):
        told = predict(lm.tokenizer, cfg, pairs, most=lm.config.max_length, rationale=rationale)
        assert told.read + told.written == pytest.approx(spent.read + spent.written, rel=near)


def test_the_papers_price_of_a_label_comes_out():
    """830 tokens read and 61 written in each order, at what GPT-4 cost in 2023: 30 and 60 dollars a million (App. L)."""
    one = Cost(1, 2 * 830, 2 * 61, math.nan, 0)
    assert round(one.money((30.0, 60.0)), 2) == cost.PAPER['by GPT-4 in 2023'] < cost.PAPER['by people'] / 10


def test_money_is_that_of_chip_hours_here_and_of_tokens_elsewhere():
    here, there = Cost(2000, 4e6, 1e6, 7200.0, 4), Cost(2000, 4e6, 1e6, 7200.0, 0)
    assert here.chip_hours == 8 and here.money((2.5,)) == 20 == 2 * here.of(1000).money((2.5,))
    assert there.money((0.5, 3.0)) == 5 and there.money((1.0,)) == 5
    assert math.isnan(dataclasses.replace(here, devices=None).money((1.0,)))
    assert here.of(1000) == Cost(1000, 2e6, 5e5, 3600.0, 4)
    assert 'money' not in here.record()
    with priced((2.5,)):
        told = here.record()
        assert (told['money'], told['per 1000']['money'], told['price']) == (20, 10, [2.5])
        assert '20.00 at --price=2.5' in cost.told(here)
    assert 'price' not in cost.told(here)


@pytest.fixture
def labelled(tiny_labeler, tmp_path):
    """A store with the labels of a run, the name of the labeler, and the labels."""
    hf.save(tiny_labeler, tmp_path / 'labeler')
    store = tmp_path / 'stages' / 'labels.jsonl'
    return store, tmp_path / 'labeler', label_all(tmp_path / 'labeler', PLAIN, PAIRS, Store(store))


def test_what_a_run_took_is_known_to_whoever_finds_its_labels(labelled):
    store, name, labels = labelled
    spent = counted(labels)
    assert spent.seconds > 0 and spent.devices == 1 and spent.labels == 5
    again = label_all(name, PLAIN, PAIRS, Store(store))
    assert counted(again) == spent and again == labels
    asked = preference.ask(hf.load(name).tokenizer, PLAIN)
    digest = asked.digest
    before = store.read_bytes()
    rationale, speed, devices, keys = earlier(store, hf.fingerprint(name), digest)
    assert rationale is None and devices == 1 and speed * spent.read == pytest.approx(spent.seconds, rel=2)
    rows = store.with_name('one').joinpath('labels.jsonl')
    rows.parent.mkdir()
    rows.write_text(''.join(store.read_text(encoding='utf-8').splitlines(keepends=True)[:2]), encoding='utf-8')
    assert earlier(rows, hf.fingerprint(name), digest)[1] is None  # a batch or two have compiled
    assert keys == {*preference.keys_of(name, PLAIN, asked, PAIRS, 'float32')}
    assert (
        earlier(store, 'another', digest) == earlier(store.with_name('none.jsonl'), 'x', 'y') == (None, None, 0, set())
    )
    assert store.read_bytes() == before and not store.with_name('none.jsonl').exists()


def test_a_pair_that_stands_there_twice_is_paid_for_once(labelled, micro_tokenizer):
    store, name, labels = labelled
    twice = [*PAIRS, *(dataclasses.replace(pair, prompt=Prompt(pair.prompt.text, 'again')) for pair in PAIRS[:3])]
    assert counted(label_all(name, PLAIN, twice, Store(store))) == counted(labels)
    assert predict(micro_tokenizer, PLAIN, twice).read == predict(micro_tokenizer, PLAIN, PAIRS).read


def test_a_label_of_an_earlier_version_is_read(labelled):
    _, _, labels = labelled
    record = {key: value for key, value in labels[0].record().items() if key not in ('seconds', 'devices', 'written')}
    old = Label.of(record)
    assert old == labels[0] and (old.written, old.seconds) == (0, 0.0) and counted([old, labels[1]]).devices is None
