"""What benchmarks share: runs take turns, medians and spreads are those of their repeats, tables and JSON are complete."""

import json

import pytest
import torch
from benchmarking import Timing, check_same, options_of, save, surroundings, table, take_turns


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
    assert (found["a"].rate(6), found["a"].rates(7)) == (2.0, "1-7")


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
    assert table([{"run": "a", "x": None}, {"run": "b", "x": 2.0}]).splitlines() == ["run  x", "a", "b    2"]
    save(None, {}, {}, rows)
    save(tmp_path / "found.json", {"torch": "2"}, {"repeats": 3, "json": "x", "short": False}, rows)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"options": {"repeats": "3"}, "surroundings": {"torch": "2"}, "rows": rows}


def test_what_differs_is_not_timed():
    check_same("scores", 1e-5, 1e-4)
    for difference, printed in ((2e-4, "2.0e-04"), (float("nan"), "nan")):
        with pytest.raises(SystemExit, match=f"not the same work: scores differ by {printed}, allowed is 1e-04"):
            check_same("scores", difference, 1e-4)


def test_every_benchmark_has_the_same_options():
    options = options_of("What it does.", "few", repeats=4).parse_args(["--short", "--json", "x"])
    assert (options.repeats, options.short, options.json.name) == (4, True, "x")
    assert not hasattr(options_of("What it does.", "few").parse_args([]), "repeats")
