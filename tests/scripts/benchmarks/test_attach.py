"""The benchmark of attached models runs, prints and writes every row, and stops where a model is not its parts."""

import json
import sys

import pytest
import torch


@pytest.fixture
def script(benchmark_script):
    pytest.importorskip("timm")
    return benchmark_script("attach")


def test_every_row_is_printed_and_written(script, monkeypatch, capsys, tmp_path):
    path = tmp_path / "found.json"
    options = ["--model", "test_resnet", "--batch", "2", "--classes", "3", "40", "--repeats", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["attach.py", *options])
    script.main()
    found, out = json.loads(path.read_text()), capsys.readouterr().out.splitlines()
    assert found["surroundings"]["torch"] == torch.__version__
    assert [row["classes"] for row in found["rows"]] == [3, 40]
    for row, line in zip(found["rows"], out[-2:], strict=True):
        assert row["head / forward"] == row["seconds"]["head"] / row["seconds"]["forward"]
        assert row["learn / forward of one"] == row["seconds"]["learn"] / row["seconds"]["forward of one"]
        assert line.split()[0] == str(row["classes"])
        assert f"{row['head / forward']:.3g}" in line.split()


def test_nothing_is_timed_where_a_model_is_not_its_parts(script, monkeypatch):
    nam = script.model_with("test_resnet", 3, 0)
    monkeypatch.setattr(nam, "features", lambda images: nam.backbone(images) + 1)
    with pytest.raises(SystemExit, match="not the same work"):
        script.measure(nam, torch.rand(2, 3, 160, 160), 1)
