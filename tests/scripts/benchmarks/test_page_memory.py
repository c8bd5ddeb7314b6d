"""The benchmark of a page's memory: it runs, and every answer of the page is checked."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")


@pytest.fixture
def script(benchmark_script, monkeypatch):
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is read from /proc")
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[3] / "scripts" / "benchmarks")
    return benchmark_script("page_memory")


def test_it_teaches_a_page_and_reads_its_memory(script, tmp_path, monkeypatch):
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["page_memory.py", "--rounds", "20", "--json", str(out)])
    script.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["rounds"] for row in rows] == list(range(2, 21, 2))
    assert all(row["MiB"] > 50 and row["ms a round"] > 0 for row in rows)


def test_an_answer_that_is_wrong_ends_it(script, monkeypatch):
    images = script.digit_images()
    images[7][61] = images[0][0]  # asked for first
    monkeypatch.setattr(script, "digit_images", lambda: images)
    with pytest.raises(SystemExit, match="round 1: "):
        script.measured(10)
