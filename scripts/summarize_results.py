"""Print one table over all result files: ``python scripts/summarize_results.py results/*.json``, NAM against cosine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OPEN = {"class_fpr@95tpr": "x", "open_fpr@95tpr": "x", "accuracy": "+", "auroc": "+"}
GENERALIZED = {
    "novel_to_base": "x",
    "base_to_novel": "x",
    "harmonic_mean": "+",
    "harmonic_mean:frozen": "+",
    "ausuc": "+",
}


def cell(report: dict[str, Any], measure: str, kind: str) -> str:
    """Return the means of cosine and NAM in percent with their ratio, or cosine's and the paired difference to it."""
    cosine, nam = (100 * report["results"][head][measure]["mean"] for head in ("cosine", "nam"))
    difference = report["paired"]["nam-cosine"][measure]
    mean, ci95 = 100 * difference["mean"], 100 * difference["ci95"]
    sure = "" if abs(mean) > ci95 else " (even)"
    if kind == "x":
        ratio = f" (x {nam / cosine:.2f})" if cosine >= 1 else ""  # of next to nothing a ratio says nothing
        return f"{cosine:.1f} → {nam:.1f}{ratio}{sure}"
    return f"{cosine:.1f} {mean:+.1f} ± {ci95:.1f}"


def table(reports: dict[str, dict[str, Any]], measures: dict[str, str]) -> list[str]:
    """Return the lines of one table."""
    lines = [f"| cosine → nam | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    for name, report in reports.items():
        lines.append(f"| {name} | {' | '.join(cell(report, measure, kind) for measure, kind in measures.items())} |")
    return lines


def main() -> None:
    """Read the files and print the tables."""
    reports = {Path(name).stem: json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]}
    reports = {name: report for name, report in reports.items() if "results" in report}
    protocols = {"open": OPEN, "generalized": GENERALIZED}  # closed runs have no false alarms to set side by side
    tables = [
        table({name: report for name, report in reports.items() if report["config"]["protocol"] == protocol}, measures)
        for protocol, measures in protocols.items()
    ]
    print("\n\n".join("\n".join(lines) for lines in tables))


if __name__ == "__main__":
    main()
