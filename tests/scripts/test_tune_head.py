"""The search of ``scripts/tune_head.py`` over the constants of heads, on synthetic banks."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from episodes import FeatureBank
from fewshot_nam.heads import create
from fewshot_nam.heads.registry import spec

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "tune_head.py"


@pytest.fixture(scope="module")
def script():
    loaded = importlib.util.spec_from_file_location("tune_head", SCRIPT)
    module = importlib.util.module_from_spec(loaded)
    sys.modules["tune_head"] = module
    loaded.loader.exec_module(module)
    yield module
    del sys.modules["tune_head"]


def bank(seed: int, classes: int = 12) -> FeatureBank:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(20 * classes) % classes
    features = torch.rand(classes, 8, generator=generator)[labels]
    return FeatureBank(features + 0.7 * torch.rand(len(labels), 8, generator=generator), labels)


@pytest.fixture(scope="module")
def sets(script):
    base = bank(1, 20).base_statistics()
    return {name: script.Validation(bank(seed), base) for name, seed in (("one", 2), ("two", 3))}


def found(**changed: float) -> dict:
    """What ``compared`` returns for a head that is as good as the best cosine in all but some measures."""
    level = {"accuracy": 0.0, "auroc": 0.0}
    names = (
        "accuracy",
        "auroc",
        "open_fpr@95tpr",
        "class_fpr@95tpr",
        "class_fpr@95tpr:known",
        "class_fpr@95tpr:unknown",
        "wrong_answers@95tpr",
    )
    values = {name: {"mean": level.get(name, 1.0), "worst": level.get(name, 1.0)} for name in names}
    for name, value in changed.items():
        measure, which = name.rsplit("_", 1)
        values[
            {"open": "open_fpr@95tpr", "class": "class_fpr@95tpr", "unknown": "class_fpr@95tpr:unknown"}.get(
                measure, measure
            )
        ][which] = value
    return values


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 0.0),
        ({"accuracy_mean": 0.5, "auroc_mean": 2.0}, 3.0),
        ({"open_mean": 0.94, "class_mean": 0.75, "unknown_mean": 0.92}, 1 + 0.5 + 0.5),
        ({"accuracy_worst": -0.5, "auroc_worst": -1.0, "open_worst": 1.06}, -6.0),
        ({"accuracy_worst": 0.5, "auroc_worst": 1.0, "open_worst": 0.9, "class_worst": 2.0}, 0.0),
    ],
)
def test_objective_is_the_sum_of_gains_less_twice_the_losses(script, changed, expected):
    assert script.objective(found(**changed)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["nam", "cosine-snorm", "lda-snorm", "plda-snorm"])
def test_shipped_constants_are_those_of_the_head_and_on_its_grid(script, sets, name):
    constants, base = script.shipped(name), sets["one"].base
    features = bank(5).features
    heads = [create(name, base), script.with_constants(name, base, constants)]
    scores = [head.write(features[:12], list(range(12)))(features[12:]) for head in heads]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)
    for option, values in script.GRIDS[name].items():
        assert constants[option] in values, option


def test_trials_of_rows_differ_only_in_what_is_fixed(script):
    full = script.trials_of(script.Row("nam", {}, 20), 0)
    assert full[0] == script.shipped("nam")
    assert len({tuple(trial.values()) for trial in full}) == 20
    for option, values in script.GRIDS["nam"].items():
        drawn = {trial[option] for trial in full}
        assert len(drawn) > 1
        assert drawn <= set(values)
    fixed = {"between_power": 0.0, "identity_share": 1.0}
    without = script.trials_of(script.Row("nam", fixed, 20), 0)
    assert without == [{**trial, **fixed} for trial in full]
    assert script.trials_of(script.Row("nam", {}, 20), 1) != full


@pytest.mark.parametrize("name", ["nam", "cosine-snorm", "lda-snorm"])
def test_heads_that_are_copies_score_as_heads_made_anew(script, sets, name):
    base, features = sets["one"].base, bank(6).features
    for constants in script.trials_of(script.Row(name, {}, 8), 3):
        copied = script.with_constants(name, base, constants)
        fresh = spec(name).builder()(base, settings=constants)
        scores = [head.write(features[:24], list(range(12)) * 2)(features[24:]) for head in (copied, fresh)]
        torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)


def test_without_joint_write_and_ratio_the_head_is_score_normalised_cosine(script, sets):
    base, features = sets["one"].base, bank(7).features
    constants = {**script.shipped("nam"), **script.ABLATION["no joint write"], **script.ABLATION["no likelihood ratio"]}
    ours = script.with_constants("nam", base, constants)
    plain = {
        name: value for name, value in constants.items() if not name.startswith("ri") and not name.startswith("ra")
    }
    heads = [ours, script.with_constants("lda-snorm", base, plain)]
    scores = [head.write(features[:36], list(range(12)) * 3)(features[36:]) for head in heads]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_a_search_keeps_the_trial_with_the_best_objective(script, sets):
    row = script.Row("lda-snorm", {}, 3)
    result = script.search(row, sets, 0, 20)
    assert result["objective"] == max(result["objectives"])
    assert len(result["objectives"]) == 3
    assert len(set(result["objectives"])) > 1
    assert result["best"] == script.trials_of(row, 0)[result["best_trial"]]
    alone = script.search(script.Row("lda-snorm", result["best"], 1), sets, 1, 20)
    assert alone["found"] == result["found"]
    assert list(result["lines"]) == ["one, 1-shot", "one, 5-shot", "two, 1-shot", "two, 5-shot"]
    means = [line["accuracy"]["mean"] for line in result["lines"].values()]
    assert result["found"]["accuracy"] == {"mean": pytest.approx(sum(means) / 4), "worst": pytest.approx(min(means))}


def test_a_run_writes_rows_and_goes_on_where_it_stopped(script, sets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "validation_sets", lambda data, conv5: {"one": sets["one"]})
    monkeypatch.setattr(script, "SHOTS", (5,))
    out = tmp_path / "found.json"
    given = ["data", "--trials", "2", "--episodes", "10", "--json", str(out)]
    script.main([*given, "--head", "cosine-snorm"])
    assert "| cosine-snorm | " in capsys.readouterr().out
    first = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert list(first) == ["cosine-snorm"]
    searched = []
    search = script.search
    monkeypatch.setattr(script, "search", lambda row, *rest: searched.append(row.head) or search(row, *rest))
    script.main([*given, "--head", "cosine-snorm", "nam", "--ablation"])
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert searched == ["nam"] * (2 + len(script.ABLATION))
    assert rows["cosine-snorm"] == first["cosine-snorm"]
    assert rows["nam, no penalty"]["best"]["log_partition_penalty"] == 0
    assert rows[script.FULL]["objective"] >= rows["nam, as shipped"]["objective"]
    text = capsys.readouterr().out
    assert "--head cosine-snorm nam --ablation --json" in text
    full, without = rows[script.FULL], rows["nam, no penalty"]
    gains = [full["objective"] - without["objective"], full["objectives"][0] - without["objectives"][0]]
    penalty = next(line for line in text.splitlines() if line.startswith("| penalty | "))
    assert penalty.endswith(f" | {gains[0]:+.2f} | {gains[1]:+.2f} |")
    assert "the joint write earns " in text
    with pytest.raises(SystemExit):
        script.main([*given, "--seed", "1"])
    assert "rows of other settings or data" in capsys.readouterr().err
