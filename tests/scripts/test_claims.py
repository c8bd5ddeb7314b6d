"""The tables of claims: those that are published, and one line for results that lack what they show."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from fewshot_nam.cli.errors import exit_status

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
MAIN = runpy.run_path(str(ROOT / "scripts" / "claims.py"))["main"]


def test_the_published_tables_are_those_of_the_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["claims.py", "--results", str(RESULTS)])
    assert exit_status(MAIN) == 0
    assert capsys.readouterr().out == (RESULTS / "claims.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [["results", "nam"], ["results", "nam", "accuracy", "mean"], ["paired"], ["results"]])
@pytest.mark.parametrize("value", [None, [1], {}])
def test_results_that_lack_what_is_shown_are_named_in_one_line(tmp_path, monkeypatch, capsys, path, value):
    """They ended in a traceback."""
    for file in RESULTS.glob("*-*shot.json"):
        shutil.copy(file, tmp_path)
    damaged = tmp_path / "digits-5way-1shot.json"
    report = json.loads(damaged.read_text())
    part = report
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    damaged.write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["claims.py", "--results", str(tmp_path)])
    assert exit_status(MAIN) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {damaged} holds no results of fewshot-nam-eval: ")
    assert said.err.count("\n") == 1
    assert not said.out
