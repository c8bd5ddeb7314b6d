"""The table of ``scripts/lake_runs.py``, and the summary of results beside it, which takes no closed runs."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

from episodes.reporting.report import Report

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def report():
    """Three heads over 20 runs of 20 trials: one better than cosine for sure, one as good."""
    accuracy = {"cosine": (0.9, 0.02), "nam": (0.95, 0.01), "plda": (0.9, 0.03)}
    paired = {"nam-cosine": (0.05, 0.01), "plda-cosine": (1e-18, 0.02)}

    def table(values):
        return {name: {"accuracy": {"mean": mean, "ci95": ci95}} for name, (mean, ci95) in values.items()}

    config = {"protocol": "closed", "episodes": 20, "ways": 20}
    return Report(config, table(accuracy), table(paired))


def test_lake_runs_prints_errors_lowest_first_with_paired_differences():
    lines = runpy.run_path(str(SCRIPTS / "lake_runs.py"))["table"](report())
    assert lines[2:] == [
        "| nam | 5.00 ± 1.00 | 20 of 400 | -5.00 ± 1.00* |",
        "| cosine | 10.00 ± 2.00 | 40 of 400 |  |",
        "| plda | 10.00 ± 3.00 | 40 of 400 | +0.00 ± 2.00 |",
    ]


def test_the_summary_passes_over_closed_runs(tmp_path):
    (tmp_path / "runs.json").write_text(json.dumps(report().to_dict()))
    (tmp_path / "speed.json").write_text("{}")
    command = [sys.executable, str(SCRIPTS / "summarize_results.py"), *map(str, tmp_path.glob("*.json"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "runs" not in done.stdout
    assert "harmonic_mean:frozen" in done.stdout
    (tmp_path / "list.json").write_text("[]")
    refused = subprocess.run([*command, str(tmp_path / "list.json")], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.endswith("list.json holds no results of fewshot-nam-eval: it holds no mapping\n")


def test_results_of_files_with_the_same_name_are_all_shown(tmp_path):
    """The one file's took the place of the other's, and nothing was said."""
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "run.json")
        measures = {"open_fpr@95tpr": {"mean": 0.1, "ci95": 0.0}}
        found = {"config": {"protocol": "open"}, "results": {"nam": measures, "cosine": measures}}
        files[-1].write_text(json.dumps(found | {"paired": {"nam-cosine": measures}}))
    command = [sys.executable, str(SCRIPTS / "summarize_results.py"), *map(str, files), str(files[0])]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [sum(line.startswith(f"| {file} |") for line in shown.splitlines()) for file in files] == [1, 1]
    (tmp_path / "b" / "other.json").write_text(files[1].read_text())
    command = [*command[:3], str(tmp_path / "b" / "other.json")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| run |" in shown
    assert "| other |" in shown
