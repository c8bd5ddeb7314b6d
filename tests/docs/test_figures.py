"""Figures on the pages are those of the result files."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_speed_is_that_of_the_benchmark():
    rows = json.loads((ROOT / "results" / "benchmarks" / "episodes.json").read_text(encoding="utf-8"))["rows"]
    found = {(row["run"], row["shots"]): row for row in rows}
    settings = [(dtype, shots) for shots in (1, 5) for dtype in ("float32", "bfloat16")]
    page = (ROOT / "docs" / "how-to" / "speed.md").read_text(encoding="utf-8")
    table = page.split("| x easyfsl")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 5
    for line in table:
        head, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for (dtype, shots), cell in zip(settings, cells, strict=True):
            row = found[f"{dtype} closed {head.strip('`')}", shots]
            assert cell == f"{row['ratio']:.1f} ({row['share_of_index_select']:.2f})"


def test_the_table_of_kept_classes_is_that_of_its_study():
    points = json.loads((ROOT / "results" / "keep_classes.json").read_text(encoding="utf-8"))["points"]
    page = (ROOT / "docs" / "how-to" / "keep_classes.md").read_text(encoding="utf-8")
    for line, rule in (("now", "kept"), ("version 0.1", "erased")):
        found = [f"{100 * points[rule][measure]['mean']:.1f}" for measure in ("before", "base", "new")]
        row = next(row for row in page.splitlines() if row.startswith(f"| {line} |"))
        assert [cell.strip(" *") for cell in row.strip("|").split("|")[1:]] == found
