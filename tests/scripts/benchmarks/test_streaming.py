"""The benchmark of language models byte by byte runs and prints every row, and stops where streaming gives other numbers."""

import json
import sys

import pytest

pytest.importorskip("lightning_fabric")


def test_every_row_is_printed_and_the_state_of_nam_does_not_grow(benchmark_script, monkeypatch, capsys, tmp_path):
    script, path = benchmark_script("streaming"), tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["x", "--positions", "8", "16", "--repeats", "1", "--json", str(path)])
    script.main()
    rows = json.loads(path.read_text())["rows"]
    assert [row["model"] for row in rows] == [*script.MODELS, *script.MODELS]
    sizes = [row["kept, KiB"] for row in rows]
    assert sizes[0] == 8 * 2 * 2 * 128 * 4 / 1024  # keys and values of two layers, width 128
    assert [late / early for early, late in zip(sizes[:4], sizes[4:], strict=True)] == [2, 1, 1, 1]
    assert capsys.readouterr().out.count("transformer-causal") == 2


def test_nothing_is_timed_where_streaming_gives_other_numbers(benchmark_script, monkeypatch):
    script = benchmark_script("streaming")
    kind = script.models.registry._MODELS["lstm-forward"].build
    step = kind._extend
    monkeypatch.setattr(kind, "_extend", lambda self, x, state: step(self, x + 1, state))
    monkeypatch.setattr(sys, "argv", ["x", "--short"])
    with pytest.raises(SystemExit, match="not the same work: lstm-forward"):
        script.main()
