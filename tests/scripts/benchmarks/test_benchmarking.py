"""What benchmarks share: runs take turns, medians and spreads are those of their repeats, tables and JSON say all of it."""

import json

import pytest
import torch
from benchmarking import Timing, save, surroundings, table, take_turns


def test_runs_take_turns_and_the_first_round_is_not_counted():
    order, now = [], [0.0]
    lasts = {"a": iter([100.0, 3.0, 1.0, 7.0]), "b": iter([100.0, 2.0, 2.0, 2.0])}

    def run(name):
        order.append(name)
        now[0] += next(lasts[name])

    found = take_turns({name: lambda name=name: run(name) for name in lasts}, repeats=3, clock=lambda: now[0])
    assert order == ["a", "b"] * 4
    assert found == {"a": Timing(3.0, 1.0, 7.0), "b": Timing(2.0, 2.0, 2.0)}
    assert found["a"].spread(unit=0.5) == "2-14"


def test_no_repeat_is_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        take_turns({}, 0)


def test_surroundings_fix_the_threads_that_they_name():
    before = torch.get_num_threads()
    try:
        about = surroundings(2)
        assert torch.get_num_threads() == 2
        assert about["threads"] == "2"
        assert about["torch"] == torch.__version__
    finally:
        torch.set_num_threads(before)


def test_tables_line_up_and_files_keep_what_figures_depend_on(tmp_path):
    rows = [{"run": "a", "n": 12_345, "x": 0.123456}, {"run": "longer", "n": 7, "x": 54_321.9}]
    assert table(rows).splitlines() == [
        "run          n       x",
        "a       12,345   0.123",
        "longer       7  54,322",
    ]
    save(tmp_path / "found.json", {"torch": "2"}, {"repeats": 3, "json": "x"}, rows)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"options": {"repeats": "3"}, "surroundings": {"torch": "2"}, "rows": rows}
