"""How values, marks and tables are printed."""

import math

import pytest

from episodes.reporting.formatting import better, cell, percent, verdict


@pytest.mark.parametrize(
    ("measure", "mean", "expected", "mark"),
    [
        ("accuracy", 0.1, "better", " +*"),
        ("accuracy", -0.1, "worse", " -*"),
        ("open_fpr@95tpr", -0.1, "better", " +*"),
        ("open_fpr@95tpr", 0.1, "worse", " -*"),
        ("accuracy", 0.02, "even", ""),
        ("accuracy", -0.01, "even", ""),
    ],
)
def test_a_difference_counts_only_beyond_its_interval(measure, mean, expected, mark):
    value = {"mean": mean, "ci95": 0.02}
    assert verdict(measure, value) == expected
    assert cell(measure, value, signed=True) == f"{100 * mean:+.1f} ± 2.0{mark}"


def test_a_value_without_an_interval_is_neither_better_nor_worse():
    assert verdict("accuracy", {"mean": 0.5, "ci95": math.nan}) == "even"
    assert percent({"mean": math.nan, "ci95": math.nan}) == "n/a"


def test_accuracies_among_one_kind_have_the_direction_of_the_measure():
    assert better("base_accuracy:alone") == "higher"


def test_rounding_is_no_difference():
    for mean in (1e-9, -1e-9):
        value = {"mean": mean, "ci95": 1e-10}
        assert verdict("ece", value) == "even"
        assert cell("ece", value, signed=True) == "+0.0 ± 0.0"
