"""The benchmark of attention over long sequences runs and prints every row, and stops where streaming gives other numbers."""

import json
import sys

import pytest


def test_every_row_is_printed_and_written(benchmark_script, monkeypatch, capsys, tmp_path):
    script, path = benchmark_script("long_range"), tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["long_range.py", "--short", "--json", str(path)])
    script.main()
    rows, out = json.loads(path.read_text())["rows"], capsys.readouterr().out
    training, streaming = rows[:4], rows[4:]
    assert [row["attention"] for row in training] == ["softmax", "linear", "nam", "nam, erase"]
    assert [row["attention"] for row in streaming] == ["softmax", "nam", "nam, erase"]
    assert training[0]["x softmax"] == streaming[0]["x softmax"] == 1
    assert out.count("one more token") == 3


def test_nothing_is_timed_where_streaming_gives_other_numbers(benchmark_script, monkeypatch):
    script = benchmark_script("long_range")
    step = script.SoftmaxLayer.step
    monkeypatch.setattr(script.SoftmaxLayer, "step", lambda self, *given: step(self, *given) + 1)
    monkeypatch.setattr(sys, "argv", ["long_range.py", "--short"])
    with pytest.raises(SystemExit, match="not the same work: softmax attention"):
        script.main()
