"""The benchmark of the memory networks runs, prints every row, measures memory right, and stops where numbers differ."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "benchmarks" / "memory.py"
SCANS = [
    "tuned loop",
    "loop",
    "chunk",
    "chunk-autograd",
    "linear causal",
    "linear bidirectional",
    "SDPA causal",
    "SDPA full",
]
ROWS = {
    "scan: T = 64": SCANS,
    "scan: T = 128": SCANS,
    "lsam: T = 8": ["nn.LSTM", "LSAM", "LSAM autograd"],
    "stm: T = 4": ["nn.LSTM", "STM"],
    "turing: T = 8": ["loop", "scan"],
    "turing, no jump: T = 8": ["loop", "scan"],
}


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("memory")


def test_the_quick_form_prints_every_row_and_writes_it(tmp_path):
    options = ["--quick", "--no-kernels", "--threads", "1", "--json", str(tmp_path / "found.json")]
    command = [sys.executable, str(SCRIPT), *options]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert f"torch {torch.__version__}" in done.stdout
    assert "threads 1" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    parity = found["surroundings"]["parity"].split("; ")
    assert len(parity) == 7
    for line in parity:
        assert line in done.stdout.splitlines()
    # A title goes on with the other sizes, hence its first two words.
    rows = [(row["problem"].split(", B")[0], row["direction"], row["run"]) for row in found["rows"]]
    wanted = [
        (title, way, run) for title, runs in ROWS.items() for way in ("forward", "forward + backward") for run in runs
    ]
    assert rows == wanted
    for row in found["rows"]:
        assert row["tokens_per_second"] > 0
        printed = [line for line in done.stdout.splitlines() if line.startswith(f"{row['run']:20}")]
        assert any(f"{row['tokens_per_second']:,.0f}" in line for line in printed)
    if Path("/proc/self/clear_refs").exists():
        kept = {(row["problem"][:13], row["run"]): row["kept_bytes"] for row in found["rows"] if "kept_bytes" in row}
        assert kept["scan: T = 128", "loop"] > 10 * kept["scan: T = 128", "chunk"]  # a memory a token, against a few
        assert all(row["peak_bytes"] > 0 for row in found["rows"] if row["direction"] != "forward")


def test_compiled_runs_come_on_top_and_are_compiled(script):
    problems = [
        script.Plan(("lsam", "stm", "turing"), (), True, with_kernels).problems() for with_kernels in (False, True)
    ]
    for without, with_kernels in zip(*problems, strict=True):
        (name,) = set(with_kernels.runs) - set(without.runs)
        assert "compiled" in name
        assert [run for run in with_kernels.runs if with_kernels.runs[run]().compiled] == [name]


def test_nothing_is_timed_where_two_ways_differ(script, monkeypatch):
    scan = script.memory_scan

    def wrong(*args, backend, **kwargs):
        reads, memory = scan(*args, backend=backend, **kwargs)
        return (reads, memory * (1 + 1e-6)) if backend == "chunk" else (reads, memory)

    assert len(script.same_numbers(("scan",), False)) == 4
    monkeypatch.setattr(script, "memory_scan", wrong)
    with pytest.raises(SystemExit, match="not the same work: memory_scan by chunk and loop differ by"):
        script.same_numbers(("scan",), False)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_memory_is_counted_to_the_byte_and_without_inputs(script):
    def work(size: int) -> object:
        x = torch.randn(size, requires_grad=True)
        return script.Work(
            lambda: (x * x).exp(), [x]
        )  # the product keeps x, an input; the exponential keeps its result

    found = script.memory_of(lambda: work(2**20), lambda: work(8))
    assert found["kept_bytes"] == 4 * 2**20
    assert 2 * 4 * 2**20 <= found["peak_bytes"] < 2**26  # the result and a gradient at least


def test_ratios_are_those_of_the_medians(script, capsys):
    problem = script.Problem("scan", "T", 100, ("b",), {"a": None, "b": None, "c": None}, {"c": 2**30})
    times = {("a", "forward"): [1.0, 2.0, 9.0], ("b", "forward"): [5.0, 4.0, 1.0], ("c", "forward"): [1.0]}
    times |= {(run, "forward + backward"): [2.0] for run in "ab"}
    rows = script.report(problem, times, {"a": {"peak_bytes": 3 * 2**20, "kept_bytes": 2**20}})
    assert (rows[0]["x b"], rows[0]["tokens_per_second"], rows[0]["repeats"]) == (2.0, 50.0, 3)
    assert rows[5]["skipped"] == "would keep 1.0 GiB"
    out = capsys.readouterr().out.splitlines()
    assert out[3].split() == ["a", "50", "(11-100)", "3", "2.00"]
    assert out[7].split() == ["a", "50", "(50-50)", "1", "1.00", "3.0", "1.0"]
    assert out[9].endswith("skipped: would keep 1.0 GiB")
