"""The benchmark of many classes times nothing where forgetting is not exact, and draws what it measured."""

import pytest

from fewshot_nam.heads import CosineHead


def test_forgetting_that_leaves_a_trace_is_not_timed(benchmark_script, monkeypatch):
    script, right = benchmark_script("many_classes"), CosineHead.forget
    script.check_forgetting("cosine", 20, 16)
    monkeypatch.setattr(CosineHead, "forget", lambda head, label: head if label == 9 else right(head, label))
    with pytest.raises(SystemExit, match="cosine: forgetting left other classes"):
        script.check_forgetting("cosine", 20, 16)


def test_rows_and_figure(benchmark_script, tmp_path, monkeypatch):
    script = benchmark_script("many_classes")
    rows = [row for head in script.HEADS for row in script.measure(head, [60, 120], 8)]
    assert [row["classes"] for row in rows] == [60, 120] * len(script.HEADS)
    kept = {head: [row["kept, bytes a class"] for row in rows if row["head"] == head] for head in script.HEADS}
    assert all(32 < each < 100 for each in kept["nam"] + kept["cosine"]), "a feature of 8 floats, a position and a name"
    assert all(100 < each < 180 for each in kept["nam-recursive"]), "and a sum in float64"
    script.draw(rows, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000
