"""``scripts/incremental_eval.py`` on features: tables, files, the figure, and what it refuses."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from episodes import FeatureBank
from episodes.features.seen_in_training import CONV4

MAIN = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "incremental_eval.py"))["main"]


@pytest.fixture
def files(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name, first, classes in (("base", 0, 6), ("novel", 6, 4)):
        rows = torch.rand(classes, 12, 5, generator=generator) + 2 * torch.rand(classes, 1, 5, generator=generator)
        labels = torch.arange(classes).repeat_interleave(12)
        bank = FeatureBank(rows.flatten(0, 1), labels, [f"c{first + i}" for i in range(classes)])
        bank.save(tmp_path / f"{name}.safetensors")
    return tmp_path


def test_features_are_evaluated_and_files_written(files, capsys):
    given = ["--dataset", f"features:{files}/novel.safetensors", "--base", f"features:{files}/base.safetensors"]
    outputs = [f"--{kind}={files}/report.{kind}" for kind in ("json", "markdown")] + [f"--plot={files}/report.png"]
    status = MAIN([*given, "--heads", "cosine", "ncm-like", "--ways", "2", "--orders", "2", "--quiet"])
    assert (status, capsys.readouterr().err.startswith("error: no head 'ncm-like'")) == (2, True)
    assert MAIN([*given, "--heads", "cosine", "protonet", "--ways", "2", "--orders", "2", "--quiet", *outputs]) == 0
    assert "cosine - protonet" in capsys.readouterr().out
    assert json.loads((files / "report.json").read_text())["seen"] == [6, 8, 10]
    assert (
        (files / "report.markdown")
        .read_text()
        .startswith("6 base classes, then 2 sessions of 2-way 5-shot: 10 classes")
    )
    assert Image.open(files / "report.png").format == "PNG"


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_evaluated(files, capsys):
    with pytest.raises(SystemExit, match="2"):
        MAIN(["--dataset", f"features:{files}/novel.safetensors", f"--json={files}/none/x.json"])
    assert "none/x.json does not exist" in capsys.readouterr().err


def test_without_base_classes_it_says_so(files, capsys):
    assert MAIN(["--dataset", f"features:{files}/novel.safetensors", "--quiet"]) == 2
    assert "has no base classes: give some with --base" in capsys.readouterr().err


def test_open_set_scores_get_a_row_beside_their_head(files, capsys):
    given = ["--dataset", f"features:{files}/novel.safetensors", "--base", f"features:{files}/base.safetensors"]
    few = ["--heads", "cosine", "--ways", "2", "--orders", "2", "--quiet"]
    assert MAIN([*given, *few, "--score", "knn", "energy"]) == 0
    assert {"cosine", "cosine+knn", "cosine+energy"} <= {
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line
    }
    assert MAIN([*given, *few, "--score", "knm"]) == 2
    assert capsys.readouterr().err.startswith("error: no open-set score 'knm'")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("--shots=0", "shots must be at least 1, got 0"),
        ("--ways=13", "4 novel classes are not enough for a session of 13"),
        ("--ways=0", "ways must be at least 1"),
        ("--seed=-1", "seed must be at least 0, got -1"),
        ("--orders=0", "orders must be at least 1"),
        ("--ways=2 --sessions=0", "enough for 1 to 2 sessions of 2 classes, got sessions=0"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused_in_one_line(files, capsys, wrong, says):
    given = ["--dataset", f"features:{files}/novel.safetensors", "--base", f"features:{files}/base.safetensors"]
    assert MAIN([*given, "--heads", "cosine", "--quiet", *wrong.split()]) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1


def test_what_a_published_benchmark_does_not_use_is_refused(capsys):
    """Figures of ten published sessions were printed as those of one session with one image."""
    assert MAIN(["--shots", "1", "--orders", "3", "--base", "folder:none", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "--base, --shots, --orders: the sessions of omniglot-fscil are published as they are" in said
    assert said.count("\n") == 1


def test_a_report_says_what_it_is_of(files, capsys, monkeypatch):
    """Figures of a network that had seen base queries stood under "published sessions" without a word."""
    given = ["--dataset", f"features:{files}/novel.safetensors", "--base", f"features:{files}/base.safetensors"]
    few = ["--heads", "cosine", "--ways", "2", "--orders", "2", "--quiet"]
    assert MAIN([*given, *few, "--backbone", "conv5"]) == 2
    assert "--backbone: the features are given, so nothing uses it" in capsys.readouterr().err
    out = files / "report.json"
    assert MAIN([*given, *few, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert "notes" not in found
    assert found["config"]["dataset"] == given[1]
    assert "note" not in capsys.readouterr().out
    bank = FeatureBank.load(files / "base.safetensors")
    for dataset, weights, noted in (
        ("omniglot/base", CONV4, "that the backbone has seen"),
        ("omniglot-fscil/all", CONV4, "not comparable with published ones"),
        ("omniglot/base", "0" * 64, None),
        ("omniglot/novel", CONV4, None),
    ):
        provenance = {"dataset": dataset, "weights_hash": weights}
        FeatureBank(bank.features, bank.labels, bank.classes, provenance=provenance).save(files / "base.safetensors")
        assert MAIN([*given, *few, "--json", str(out), "--markdown", str(files / "report.md")]) == 0
        notes = json.loads(out.read_text()).get("notes", [])
        shown, written = capsys.readouterr().out, (files / "report.md").read_text()
        assert len(notes) == shown.count("note:") == written.count("**Note:**") == (noted is not None)
        assert noted is None or all(noted in text for text in (notes[0], shown, written))
