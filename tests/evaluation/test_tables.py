"""Laws of how figures are written: what is not known is a dash, a CSV holds every digit under names that say where from."""

import csv
import math
from dataclasses import dataclass

from rlaif_jax.evaluation import tables
from rlaif_jax.evaluation.statistics import Interval

RATE = Interval(0.689, 0.66, 0.716, 1024)


@dataclass(frozen=True)
class Found:
    name: str
    rate: Interval
    nothing: float | None = None
    curve: tuple[float, ...] = (0.1, 0.2)


def test_a_rate_is_in_per_cent_and_what_is_not_known_a_dash():
    assert (tables.percent(RATE), tables.percent(0.5), tables.within(RATE)) == ('68.9', '50.0', '68.9 [66.0, 71.6]')
    assert tables.within(RATE, ' %') == '68.9 % [66.0, 71.6]' == str(RATE).removesuffix(' n=1024')
    nothing = Interval(math.nan, 0.0, 1.0, 0)
    shown = tables.within(nothing), tables.percent(nothing), tables.percent(None), tables.number(math.nan, '.3f')
    assert {*shown} == {tables.NOTHING}
    assert (tables.p_value(0.0009), tables.p_value(0.0414)) == ('<0.001', '0.041')


def test_a_difference_has_the_wider_half_of_an_interval_that_was_cut():
    assert tables.plus_minus(Interval(0.9, 0.7, 1.0, 5)) == '+90.0 ± 20.0'
    assert tables.plus_minus(Interval(-0.1, -0.1, -0.1, 5)) == tables.plus_minus(None) == tables.NOTHING


def test_a_csv_has_a_column_for_all_that_any_line_knows(tmp_path):
    one = tables.columns(Found('a, "b"', RATE))
    assert one == {'name': 'a, "b"', 'rate': 0.689, 'rate_low': 0.66, 'rate_high': 0.716, 'rate_n': 1024}
    tables.write_csv(tmp_path / 'new' / 'a.csv', [one, {'name': 'c', 'more': 1 / 3}])
    with open(tmp_path / 'new' / 'a.csv', newline='', encoding='utf-8') as file:
        first, second = csv.DictReader(file)
    assert (first['name'], float(first['rate_low']), first['more']) == ('a, "b"', 0.66, '')
    assert (second['rate'], float(second['more'])) == ('', 1 / 3)
