"""Tables of claims: the best of several heads, stars over episodes and classes, means and worst lines."""

import math

import pytest

from episodes.reporting.claims import Difference, against_best, against_each, best_of, difference, losses

MEASURES = {"accuracy": "+", "open_fpr@95tpr": "x"}


def report(
    nam: tuple[float, float], cosine: tuple[float, float], other: tuple[float, float], over_classes: float | None
):
    values = {"nam": nam, "cosine": cosine, "other": other}
    results = {
        name: {measure: {"mean": v, "ci95": 0.01} for measure, v in zip(MEASURES, of, strict=True)}
        for name, of in values.items()
    }

    def pairs(ci95):
        return {
            f"{a}-{b}": {m: {"mean": results[a][m]["mean"] - results[b][m]["mean"], "ci95": ci95} for m in MEASURES}
            for a, b in (("nam", "cosine"), ("other", "nam"))
        }

    return {"results": results, "paired": pairs(0.02), "paired_over_classes": pairs(over_classes)}


LINES = {
    "first": report((0.9, 0.2), (0.8, 0.4), (0.85, 0.1), 0.03),
    "second": report((0.7, 0.5), (0.71, 0.5), (0.6, 0.6), 0.15),
}


def test_the_best_of_several_is_taken_by_the_direction_of_the_measure():
    assert best_of(LINES["first"], ["cosine", "other"], "accuracy") == "other"
    assert best_of(LINES["first"], ["cosine", "other"], "open_fpr@95tpr") == "other"
    assert best_of(LINES["second"], ["cosine", "other"], "accuracy") == "cosine"


def test_a_pair_may_stand_in_either_order():
    found = difference(LINES["first"], "nam", "other", "open_fpr@95tpr")
    assert found == Difference(pytest.approx(0.1), pytest.approx(2.0), "worse", "worse")
    assert difference(LINES["first"], "nam", "cosine", "accuracy").over_episodes == "better"


def test_a_report_with_too_few_classes_has_no_verdict_over_classes():
    few = report((0.9, 0.2), (0.8, 0.4), (0.85, 0.1), None)
    found = difference(few, "nam", "cosine", "accuracy")
    assert (found.over_episodes, found.over_classes) == ("better", "even")
    assert math.isnan(difference(report((1, 0.1), (1, 0.0), (1, 0.0), None), "nam", "cosine", "open_fpr@95tpr").ratio)


def test_against_the_best_there_is_a_line_for_each_report_and_means_over_the_first():
    text = against_best(LINES, "nam", ["cosine", "other"], MEASURES, 1)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2] == r"| first | +5.00 +\*\* | x 2.000 -\*\* |"
    assert rows[3] == "| second | -1.00 | x 1.000 |"
    assert rows[4] == "| **mean of 1** | +5.00 | x 2.000 |"
    assert rows[5] == "| **worst of 1** | +5.00 | x 2.000 |"
    assert text.endswith(
        "2 of 4 differences are starred (about 0 would be by chance if heads did not differ), 2 of them over classes too."
    )


def test_losses_are_those_over_episodes():
    rows = losses(LINES, "nam", ["cosine", "other"], MEASURES).splitlines()
    assert rows[2:] == [r"| other | first | open_fpr@95tpr | x 2.000 -\*\* |"]


def test_against_each_counts_better_and_worse():
    text = against_each(LINES, "nam", ["cosine", "other"], MEASURES)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2] == "| cosine | +4.50; 1/0 (1/0) | x 0.707; 1/0 (1/0) |"
    assert rows[3] == "| other | +7.50; 2/0 (1/0) | x 1.291; 1/1 (0/1) |"
