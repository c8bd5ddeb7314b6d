"""One table over many reports: NAM beside a reference head, a line for each report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from episodes.reporting.formatting import markdown_table

# How each measure is shown: as a ratio to the reference (x) or as a difference to it (+).
SUMMARY_MEASURES: dict[str, dict[str, str]] = {
    "open": {
        "open_fpr@95tpr": "x",
        "wrong_answers@95tpr": "x",
        "class_fpr@95tpr:unknown": "x",
        "class_fpr@95tpr:known": "x",
        "accuracy": "+",
        "auroc": "+",
    },
    "generalized": {
        "ausuc": "+",
        "harmonic_mean:frozen": "+",
        "harmonic_mean": "+",
        "novel_to_base": "x",
        "base_to_novel": "x",
    },
}


def summary(reports: Mapping[str, Mapping[str, Any]], head: str = "nam", reference: str = "cosine") -> str:
    """Return Markdown tables of a head beside a reference, one table for each protocol with false alarms.

    Args:
        reports: by name, as ``Report.to_dict`` returns them or as read from JSON; others are passed over.
        head: the head to show.
        reference: the head it is compared with.
    """
    tables = []
    for protocol, measures in SUMMARY_MEASURES.items():
        rows = [[f"{reference} → {head}", *measures]]
        for name, report in reports.items():
            if report.get("config", {}).get("protocol") == protocol and "results" in report:
                rows.append([name, *(_cell(report, m, kind, head, reference) for m, kind in measures.items())])
        tables.append("\n".join(markdown_table(rows)))
    return "\n\n".join(tables)


def ratio_to_best(reports: Sequence[Any], head: str, others: Sequence[str], measure: str) -> tuple[float, float]:
    """Return the geometric mean and the largest, over reports, of a head's value divided by the smallest of the others'.

    Args:
        reports: of the same heads, as ``evaluate`` returns them.
        head: the head to judge.
        others: heads to compare with; the best of them is taken anew for every report.
        measure: one that is better when lower, such as ``"open_fpr@95tpr"``.
    """
    ratios = []
    for report in reports:
        values = {name: found[measure]["mean"] for name, found in report.results.items()}
        ratios.append(values[head] / min(values[name] for name in others))
    return math.exp(sum(map(math.log, ratios)) / len(ratios)), max(ratios)


def gain_over_best(reports: Sequence[Any], head: str, others: Sequence[str], measure: str) -> tuple[float, float]:
    """Return the mean and the smallest, over reports, of a head's value minus the largest of the others'.

    Arguments as ``ratio_to_best``, but for a measure that is better when higher.
    """
    gains = []
    for report in reports:
        values = {name: found[measure]["mean"] for name, found in report.results.items()}
        gains.append(values[head] - max(values[name] for name in others))
    return sum(gains) / len(gains), min(gains)


def _cell(report: Mapping[str, Any], measure: str, kind: str, head: str, reference: str) -> str:
    """Return both means in percent with their ratio, or the reference's and the paired difference to it."""
    if measure not in report["results"][head]:
        return "n/a"  # a report of an earlier version
    theirs, ours = (100 * report["results"][name][measure]["mean"] for name in (reference, head))
    difference = report["paired"][f"{head}-{reference}"][measure]
    mean, ci95 = 100 * difference["mean"], 100 * difference["ci95"]
    if kind == "+":
        return f"{theirs:.1f} {mean:+.1f} ± {ci95:.1f}"
    ratio = f" (x {ours / theirs:.2f})" if theirs >= 1 else ""  # a ratio to almost nothing says nothing
    return f"{theirs:.1f} → {ours:.1f}{ratio}{'' if abs(mean) > ci95 else ' (even)'}"
