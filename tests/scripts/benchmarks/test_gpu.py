"""The GPU benchmark: every part runs with tiny sizes on the CPU, no failure stops another part, and no GPU is one clear line."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)
    spec.loader.exec_module(module)
    return module


def start(*options: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("name", ["tests", "parity", "scan", "lsam", "extraction", "nccl"])
def test_every_part_runs_in_a_dry_run(gpu, name):
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        rows = gpu.PARTS[name].run(gpu.Place("cpu", dry=True))
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags
    assert rows
    assert gpu._tables(rows)
    assert set(gpu.PARTS) == {"tests", "parity", "scan", "lsam", "extraction", "nccl"}
    if name == "parity":
        assert {row["difference"] for row in rows} == {0.0}, "the CPU agrees with itself"
    if name == "scan":
        assert rows[-1] == {"problem": 'flash-linear-attention: skipped, not installed: pip install ".[cuda]"'}
    if name == "nccl":
        assert rows == [{"run": "1 of 1 processes agree (gloo, cpu)"}]


def test_the_limits_add_up_to_less_than_ten_minutes(gpu):
    assert sum(part.seconds for part in gpu.PARTS.values()) < 600


def test_a_dry_run_has_time_on_a_busy_machine(gpu):
    for name, part in gpu.PARTS.items():
        assert gpu.time_limit(name, gpu.Place("cuda", dry=False)) == part.seconds
        assert gpu.time_limit(name, gpu.Place("cpu", dry=True)) >= 4 * part.seconds


def test_a_dry_run_writes_the_report_where_out_says(tmp_path):
    done = start("--dry-run", "--part", "lsam", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert found["parts"]["lsam"]["status"] == "passed"
    assert found["surroundings"]["torch"] == torch.__version__
    report = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "`--part lsam`: passed" in report
    assert "LSAM, 4 heads  forward + backward" in report


def test_without_a_gpu_it_is_one_line_and_status_2(tmp_path):
    done = start("--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "gpu.py: no CUDA device here; --dry-run runs every part on the CPU\n"
    assert not list(tmp_path.iterdir())


def test_differences_beyond_the_tolerance_fail(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "_parity_of_evaluation", lambda place: [])
    found = gpu._parity_of_memory(gpu.Place("cpu", dry=True))
    monkeypatch.setattr(gpu, "_parity_of_memory", lambda place: [*found, {**found[0], "what": "x", "difference": 1e-3}])
    with pytest.raises(RuntimeError, match="beyond the tolerance: x\n"):
        gpu.run_parity(gpu.Place("cpu", dry=True))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("raise Skip('needs a library')", "skipped: needs a library"),
        ("raise ValueError('wrong')", "failed: ValueError: wrong"),
        ("os._exit(11)", "failed: status 11"),
        ("time.sleep(60)", "failed: not finished after 1 s"),
    ],
)
def test_a_part_that_cannot_run_is_named_and_stops_no_other(gpu, monkeypatch, tmp_path, error, status):
    # A part of a script of its own: what matters is the process around it.
    script = tmp_path / "gpu.py"
    lines = ["import json, os, sys, time", "from pathlib import Path", "class Skip(Exception): pass", "try:"]
    lines += [f"    {error}", "except Exception as e:"]
    lines += ["    kind = 'skipped' if type(e) is Skip else f'failed: {type(e).__name__}'"]
    lines += ["    rows = Path(sys.argv[sys.argv.index('--rows') + 1])"]
    lines += ["    rows.write_text(json.dumps({'status': f'{kind}: {e}', 'rows': []}))"]
    script.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(gpu, "__file__", str(script))
    began = time.perf_counter()
    found = gpu.run_part("lsam", gpu.Place("cpu", dry=True), limit=1 if "sleep" in error else 60)
    assert found["status"].startswith(status)
    assert found["rows"] == []
    assert time.perf_counter() - began < 30


def test_a_child_reports_skips_and_errors(gpu, monkeypatch, tmp_path):
    def fail(error: Exception):
        def run(place):
            raise error

        return gpu.Part(run, 1, "a part")

    for error, status in (
        (gpu.Skip("needs a library"), "skipped: needs a library"),
        (ValueError("wrong"), "failed: ValueError: wrong"),
    ):
        monkeypatch.setitem(gpu.PARTS, "lsam", fail(error))
        gpu._child("lsam", gpu.Place("cpu", dry=True), tmp_path / "rows.json")
        assert json.loads((tmp_path / "rows.json").read_text(encoding="utf-8")) == {"status": status, "rows": []}
        report = gpu.as_markdown({"torch": "2"}, {"lsam": {"status": status, "rows": [], "seconds": 1.0}})
        assert f"`--part lsam`: {status} (1.0 s)" in report
