"""The comparison of methods: every head of easyfsl and every open-set score is in it, and its tables hold what was measured."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from episodes import FeatureBank
from fewshot_nam.heads import open_scores
from fewshot_nam.heads.registry import specs

MODULE = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "compare_methods.py"))


def test_every_score_and_every_transductive_head_is_compared():
    assert list(MODULE["SCORES"]) == list(open_scores.available())
    assert set(MODULE["TRANSDUCTIVE"]) == {entry.name for entry in specs() if entry.transductive}


def test_one_run_makes_the_tables(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for role, classes in (("base", 8), ("val", 8), ("novel", 9)):
        labels = torch.arange(classes).repeat_interleave(9)
        rows = torch.rand(len(labels), 8, generator=generator) + torch.rand(classes, 8, generator=generator)[labels]
        FeatureBank(rows, labels).save(tmp_path / f"small-{role}.safetensors")
    few = {"INDUCTIVE": {"nam": {}, "cosine-centred": {}}, "SCORES": {"knn": {"neighbours": [1, 2]}, "rmds": {}}}
    few["TRANSDUCTIVE"] = {"tim": {}}
    for name, value in few.items():
        monkeypatch.setitem(MODULE["compare"].__globals__, name, value)
    out, text = tmp_path / "out.json", tmp_path / "out.md"
    options = ["--shots", "2", "--ways", "3", "--queries", "3", "--episodes", "5", "--tune", "3"]
    MODULE["main"](["--banks", str(tmp_path / "small"), *options, "--json", str(out), "--markdown", str(text)])
    found = json.loads(out.read_text())["results"]["2"]
    assert list(found) == ["nam", "cosine-centred", "cosine-centred+knn", "cosine-centred+rmds", "tim"]
    assert found["cosine-centred"]["open"]["accuracy"] == found["cosine-centred+rmds"]["open"]["accuracy"]
    assert found["cosine-centred+knn"]["settings"]["neighbours"] in (1, 2)
    assert set(found["tim"]) >= {"open", "closed", "closed, unequal"}
    written = text.read_text()
    assert "| `tim` (transductive) |" in written
    accuracy = found["nam"]["open"]["accuracy"]
    assert f"| `nam` | {100 * accuracy['mean']:.1f} ± {100 * accuracy['ci95']:.1f} |" in written
    assert "all queries at once" in found["tim"]["needs"]
    again = ["--banks", str(tmp_path / "small"), *options[2:], "--json", str(out), "--markdown", str(text)]
    MODULE["main"]([*again, "--shots", "1"])  # what was measured with two shots stays
    MODULE["main"]([*again, "--shots", "2", "--only", "tim"])
    both = json.loads(out.read_text())["results"]
    assert list(both) == ["1", "2"]
    assert list(both["2"]) == list(found)
    assert both["2"]["nam"] == found["nam"]
    assert both["2"]["tim"]["open"] == found["tim"]["open"]
    alone = ["--json", str(tmp_path / "alone.json"), "--markdown", str(text), "--shots", "1", "--only", "tim"]
    MODULE["main"]([*again, *alone])  # without the heads that stand beside others
    assert "| `tim` (transductive) |" in text.read_text()
    with pytest.raises(SystemExit):
        MODULE["main"]([*again, *alone, "nosuch"])
    # Rows of other settings are not lost, and a run that ends early keeps those that were there.
    before = out.read_bytes()
    for other in (["--seed", "1"], ["--episodes", "6"]):
        with pytest.raises(SystemExit):
            MODULE["main"]([*again, "--shots", "2", *other])
        assert out.read_bytes() == before
    monkeypatch.setitem(MODULE["compare"].__globals__, "SCORES", {"knn": {"no such setting": [1]}})
    with pytest.raises((TypeError, ValueError)):
        MODULE["main"]([*again, "--shots", "2"])
    assert list(json.loads(out.read_text())["results"]["2"]) == list(found)
