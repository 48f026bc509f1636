"""Medians, ratios and units of the benchmark, by numbers whose answers are known on paper."""

import json
import math

import pytest

pytestmark = pytest.mark.program


@pytest.fixture
def figures(module):
    return module("figures")


def test_a_figure_is_the_median_over_the_rounds(figures):
    """Of the whole and of each stage: one slow round does not count.  Of an even number the middle two do."""
    assert figures.medians([[1.0, 5.0], [100.0, 2.0], [3.0, 9.0]]) == [12.0, 3.0, 5.0]
    assert figures.medians([[1.0], [2.0], [4.0], [100.0]]) == [3.0, 3.0]


def test_we_are_ahead_by_the_time_of_the_fastest_of_theirs_over_ours(figures):
    """Above 1 where we are faster.  The plain functions are ours too; without PyTorch there is no ratio."""
    ours = {"tinydiff": 2.0, "plain": 0.5}
    assert figures.ahead(ours | {"a": 6.0, "b": 5.0}) == 2.5
    assert figures.ahead(ours | {"a": 1.0}) == 0.5
    assert figures.ahead(ours) is None


def test_a_ratio_of_memory_is_ours_over_the_least_of_theirs(figures):
    """Below 1 where we need less; unknown if one number is unknown, and without PyTorch."""
    assert figures.memory_ratio({"tinydiff": 200.0, "plain": 1.0, "a": 800.0, "b": 1000.0}) == 0.25
    assert figures.memory_ratio({"tinydiff": 200.0, "a": 800.0, "b": None}) is None
    assert figures.memory_ratio({"tinydiff": None, "a": 800.0}) is None
    assert figures.memory_ratio({"tinydiff": 200.0}) is None


def test_the_plain_ratio_is_plain_over_fast(figures):
    """2.5 if the plain functions take 2.5 times as long; None if they were not measured."""
    assert figures.plain_ratio({"tinydiff": 2.0, "plain": 5.0, "a": 9.0}) == 2.5
    assert figures.plain_ratio({"tinydiff": 2.0, "a": 9.0}) is None


def test_seconds_are_printed_as_milliseconds_with_three_digits(figures):
    """Rounding decides the digits: 9.996 ms are 10.0, and 99.96 are 100."""
    assert figures.milliseconds([0.0001, 0.00057]) == "0.10+0.57 ms"
    assert figures.milliseconds([0.009994, 0.009996]) == "9.99+10.0 ms"
    assert figures.milliseconds([0.09994, 0.09996, 1.5]) == "99.9+100+1500 ms"


def test_a_number_has_two_decimals_and_a_rate_one(figures):
    """A dash for a number that is not known; above 999 a rate has no decimal."""
    assert [figures.number(x) for x in (None, 0.0, 1.005, 2)] == ["-", "0.00", "1.00", "2.00"]
    rates = [figures.images_a_second(rate) for rate in (0.25, 213.44, 999.0, 999.5, 4321.9)]
    assert rates == ["0.2 img/s", "213.4 img/s", "999.0 img/s", "1000 img/s", "4322 img/s"]


def test_the_shape_is_named_and_steps_have_two_decimals(figures):
    """The channels of each level are multiples of the first one's; from 100 steps a second on there is no decimal."""
    line = figures.images_and_levels((64, 32, 3), 8, {"channel_mults": [1, 2, 4]})
    assert line == "images 64x32x3, levels of 8, 16, 32 channels"
    rates = [figures.steps_a_second(rate) for rate in (0.128, 3.333, 99.99, 100.0, 1234.5)]
    assert rates == ["0.13 step/s", "3.33 step/s", "99.99 step/s", "100 step/s", "1234 step/s"]


def test_a_report_is_written_whole_or_not_at_all(figures, tmp_path):
    """The file holds what was given; what is no number of JSON leaves the old file unchanged."""
    path = tmp_path / "a.json"
    figures.write_json(path, {"a": [1.5, None]})
    with pytest.raises(ValueError, match="JSON"):
        figures.write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": [1.5, None]} and list(tmp_path.iterdir()) == [path]
