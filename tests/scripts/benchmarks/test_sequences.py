"""The benchmark of sequence models runs, prints and writes every row, and stops where compiled code gives other numbers."""

import json
import sys

import pytest


def test_every_row_is_printed_and_written(benchmark_script, monkeypatch, capsys, tmp_path):
    script, path = benchmark_script("sequences"), tmp_path / "found.json"
    given = ["--size", "tiny", "--batch", "2", "--length", "3", "--repeats", "1", "--threads", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["sequences.py", *given])
    script.main()
    rows, out = json.loads(path.read_text())["rows"], capsys.readouterr().out
    plain = [f"{name}, no compiled code" for name in script.COMPILED]
    assert [row["model"] for row in rows] == [*script.MODELS, *plain]
    assert rows[0]["x lstm"] == 1
    assert all(f"{row['parameters']:,}" in out for row in rows)
    assert "2 sequences of 9 tokens" in out


def test_nothing_is_timed_where_compiled_code_gives_other_numbers(benchmark_script, monkeypatch):
    script = benchmark_script("sequences")

    def spoilt(run):
        return lambda: run() + 1

    monkeypatch.setattr(script, "plain", spoilt)
    monkeypatch.setattr(sys, "argv", ["sequences.py", "--short"])
    with pytest.raises(SystemExit, match="not the same work: logits of lsam"):
        script.main()
