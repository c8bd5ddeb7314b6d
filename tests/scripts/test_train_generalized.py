"""The script that trains and compares classifiers of base and novel classes: whole runs on digits, and runs that go on."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = ["averaging", "nam gates"]
OPTIONS = {
    **{"--dataset": "digits", "--split": "6/2/2", "--ways": "2", "--other-queries": "4", "--test-ways": "2"},
    **{"--epochs": "2", "--steps": "3", "--batch": "2", "--episodes": "8"},
    **{"--validation-episodes": "5", "--validation-queries": "5"},
}


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("train_generalized", ROOT / "scripts" / "train_generalized.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_generalized", module)
    spec.loader.exec_module(module)
    return module


def run(script, folder: Path, *more: str, without: str | None = None) -> None:
    given = [word for pair in OPTIONS.items() if pair[0] != without for word in pair]
    out = ["--out", str(folder / "found"), "--checkpoints", str(folder / "runs")]
    script.main([*given, "--all-shots", "1", "2", "--generators", *BUILT, *out, *more])


def test_a_run_writes_both_files_and_a_second_trains_nothing_anew(script, tmp_path, capsys):
    run(script, tmp_path)
    assert capsys.readouterr().out.count("loss") == 2 * 2 * 2  # shots, generators, epochs
    first = (tmp_path / "found.json").read_text(encoding="utf-8")
    report = json.loads(first)
    assert list(report["shots"]) == ["1", "2"]
    for found in report["shots"].values():
        assert list(found["results"]) == [*script.UNTRAINED, "cosine, trained rows", *BUILT]
        assert set(found["chosen"]) == set(BUILT)
        assert set(script.COLUMNS) <= set(found["results"]["nam gates"])
    text = (tmp_path / "found.md").read_text(encoding="utf-8")
    for line in ("## 1-shot", "## 2-shot", "gates: nam gates - averaging", "- base: 6 classes", "joint_accuracy ↑"):
        assert line in text
    run(script, tmp_path)
    assert "loss" not in capsys.readouterr().out
    assert (tmp_path / "found.json").read_text(encoding="utf-8") == first


def test_what_does_not_fit_is_refused(script, tmp_path):
    with pytest.raises(SystemExit, match="digits has no base classes: give --split"):
        run(script, tmp_path, without="--split")
    run(script, tmp_path)
    with pytest.raises(SystemExit, match="made with another recipe or other data"):
        run(script, tmp_path, "--momentum", "0.5")
