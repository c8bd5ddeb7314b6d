"""The benchmark of learning beside many classes: it runs, and times nothing where classes are scored otherwise."""

import json
import sys

import pytest

from fewshot_nam.heads import CosineHead


def test_it_times_each_head(benchmark_script, tmp_path, monkeypatch, capsys):
    script, out = benchmark_script("first_answer"), tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["first_answer.py", "--short", "--json", str(out)])
    script.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["head"] for row in rows] == list(script.HEADS)
    assert all(row[name] > 0 for row in rows for name in ("learned, ms", "answer, ms", "forgotten, ms"))
    assert "scored as those learned at once" in capsys.readouterr().out


def test_scores_that_differ_are_not_timed(benchmark_script, monkeypatch):
    script, right = benchmark_script("first_answer"), CosineHead.write
    monkeypatch.setattr(CosineHead, "write", lambda head, x, labels: right(head, x + 1.0 * (x.dim() == 1), labels))
    with pytest.raises(SystemExit, match="not the same work: scores of cosine"):
        script.check_scores("cosine", 20, 8)
