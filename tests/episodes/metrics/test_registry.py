"""The registry of measures: what is listed is computed, and what is added shows everywhere."""

import pytest
import torch

from episodes import FeatureBank, evaluate
from episodes.metrics.registry import MEASURES, PROTOCOLS, Measure, measured, register, short_table
from episodes.metrics.scores import Frozen, Scores
from episodes.reporting.collectors import ReportCollector
from episodes.reporting.html_report import write_page

GENERATOR = torch.Generator().manual_seed(0)


def drawn(queries: int) -> torch.Tensor:
    return torch.randn(7, queries, 5, generator=GENERATOR)


ALL = Frozen(temperature=1.5, open_threshold=0.1, class_threshold=0.2, bias=0.3)
SCORES = {
    "closed": Scores(drawn(11), torch.arange(11) % 5, frozen=ALL),
    "open": Scores(drawn(11), torch.arange(11) % 5, drawn(13), frozen=ALL),
    "generalized": Scores(
        drawn(11),
        2 + torch.arange(11) % 3,
        drawn(13),
        base=drawn(6),
        base_targets=torch.arange(6) % 2,
        num_base=2,
        frozen=ALL,
    ),
}


@pytest.fixture
def gap():
    """A new measure, registered for one test."""
    measure = Measure(
        "gap",
        "mean largest score of known less that of unknown queries",
        "higher",
        ("open",),
        lambda scores: scores.known.amax(-1).mean(-1) - scores.unknown.amax(-1).mean(-1),
        needs=("unknown",),
        short=("open",),
        unit="number",
    )
    register(measure)
    yield measure
    del MEASURES["gap"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_reports_what_it_lists(protocol):
    found = measured(SCORES[protocol])
    assert list(found) == [name for name, measure in MEASURES.items() if protocol in measure.protocols]
    assert all(len(values) == 7 and values.dtype == torch.float64 for values in found.values())
    assert set(short_table(protocol)) <= set(found)


def test_measures_of_thresholds_and_bias_need_them():
    found = measured(SCORES["generalized"].with_frozen(Frozen()))
    assert found
    assert not [name for name in found if name.endswith(":frozen")]


def test_every_measure_says_what_it_means_and_which_direction_is_better():
    for name, measure in MEASURES.items():
        assert name == measure.name
        assert measure.meaning
        assert measure.better in ("lower", "higher")
        if "fpr" in name or "_to_" in name or "wrong" in name or name == "ece":
            assert measure.better == "lower", name
        if "accuracy" in name or name.startswith(("au", "oscr", "harmonic", "tpr", "class_tpr")):
            assert measure.better == "higher", name


def test_a_registered_measure_shows_in_results_tables_and_markdown(gap):
    bank = FeatureBank(torch.rand(200, 8, generator=GENERATOR), torch.arange(200) % 10)
    report = evaluate(bank, ["cosine", "protonet"], episodes=5, queries=4)
    assert report.columns[-1] == gap.name
    assert set(report.results["cosine"]["gap"]) == {"mean", "ci95"}
    for text in (report.table(), report.markdown()):
        assert "gap" in text.split("cosine")[0]
        assert gap.meaning in text
    assert gap.name not in evaluate(bank, ["cosine"], "closed", episodes=5, queries=4).results["cosine"]


@pytest.mark.usefixtures("gap")
def test_what_a_measure_computes_in_float32_is_reported_in_float64():
    assert SCORES["open"].known.dtype == torch.float32
    assert measured(SCORES["open"])["gap"].dtype == torch.float64


@pytest.mark.usefixtures("gap")
def test_a_number_is_printed_as_it_is_in_every_table(tmp_path):
    bank = FeatureBank(torch.rand(200, 8, generator=GENERATOR), torch.arange(200) % 10)
    collected = ReportCollector()
    report = evaluate(bank, ["cosine", "protonet"], episodes=5, queries=4, callback=collected)
    page = write_page(tmp_path / "page", report, collected, {"novel": bank}, {}, "fewshot-nam-eval")
    for name in ("cosine", "protonet"):
        value = report.results[name]["gap"]
        printed = f"{value['mean']:.3f} ± {value['ci95']:.3f}"
        for text in (report.table(), report.markdown(), page.read_text("utf-8")):
            assert printed in text
            assert "(number) ↑" in text
    assert report.results["cosine"]["accuracy"]["mean"] > 0
    assert f"{100 * report.results['cosine']['accuracy']['mean']:.1f} ±" in report.table(), "shares are in percent"


def test_a_name_is_given_once_and_protocols_must_exist(gap):
    with pytest.raises(ValueError, match="there is a measure 'gap' already"):
        register(gap)
    with pytest.raises(ValueError, match="needs protocols among"):
        register(Measure("other", "nothing", "higher", ("opened",), lambda scores: scores.best))
    with pytest.raises(ValueError, match="is 'share' or 'number', got 'metres'"):
        register(Measure("other", "nothing", "higher", ("open",), lambda scores: scores.best, unit="metres"))
