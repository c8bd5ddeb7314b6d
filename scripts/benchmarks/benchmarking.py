"""What the benchmarks share: options, runs that take turns, what figures depend on besides the code, tables and JSON.

On a machine with other work, the same code takes longer or shorter by the minute. So runs take turns, only medians of one benchmark
are compared, and the range from the least to the most says how far to trust them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewshot_nam.cli.outputs import add_output
from fewshot_nam.io.atomic import replacing

Row = dict[str, Any]


class Timing(NamedTuple):
    """Seconds of one run: the median of its repeats, the least and the most."""

    median: float
    least: float
    most: float

    def spread(self, unit: float = 1e-3) -> str:
        """Return least to most in units of ``unit`` seconds, as a table shows it."""
        return f"{self.least / unit:.3g}-{self.most / unit:.3g}"

    def rate(self, count: float) -> float:
        """Return how many of ``count`` things a second were done, at the median."""
        return count / self.median

    def rates(self, count: float) -> str:
        """Return the range of ``rate``, as a table shows it."""
        return f"{count / self.most:,.0f}-{count / self.least:,.0f}"


def options_of(doc: str | None, short: str, repeats: int | None = None) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark has: ``--short``, ``--json`` and, unless ``None``, ``--repeats``.

    Args:
        doc: of the script, which ``--help`` prints.
        short: what ``--short`` does.
        repeats: the default.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds of all runs (default: {repeats})")
    parser.add_argument("--short", action="store_true", help=f"only check that it runs and agrees: {short}")
    add_output(parser, "--json", "write the figures to this file")
    return parser


def take_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Return the time of each run. The runs take turns, after one round to warm up.

    Args:
        runs: what to time, by name.
        repeats: rounds, at least 1.
        clock: ``time.perf_counter``, or ``time.process_time`` for the processor time of this process.

    Raises:
        ValueError: fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"take_turns: repeats must be at least 1, got {repeats}")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = clock()
            run()
            if repeat:
                seconds[name].append(clock() - began)
    return {name: Timing(statistics.median(each), min(each), max(each)) for name, each in seconds.items()}


def check_same(what: str, difference: float, limit: float) -> None:
    """Exit with a message where two ways to compute the same thing differ by more than ``limit``, or by NaN."""
    if not difference <= limit:
        raise SystemExit(
            f"not the same work: {what} differ by {difference:.1e}, allowed is {limit:.0e}: nothing is timed"
        )


def surroundings(threads: int) -> dict[str, str]:
    """Return what figures depend on besides the code's arguments, after setting torch to ``threads`` threads."""
    import numpy
    import torch

    torch.set_num_threads(threads)
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "device": f"cpu ({platform.machine()})",
        "threads": str(threads),
    }


def print_surroundings(about: Mapping[str, str]) -> None:
    """Print on one line what figures depend on."""
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of equal keys as lines: text to the left, numbers to three digits and to the right, ``None`` as nothing."""

    def text(value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, float):
            return f"{value:,}" if isinstance(value, int) else str(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    cells = [list(rows[0]), *([text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    numeric = [any(isinstance(row[name], (int, float)) for row in rows) for name in rows[0]]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def save(
    path: Path | None, about: Mapping[str, str], options: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write a benchmark's figures as JSON, with what they depend on; nothing where ``path`` is ``None``."""
    if path is None:
        return
    settings = {key: str(value) for key, value in options.items() if key not in ("json", "short")}
    with replacing(path) as unfinished:
        content = {"options": settings, "surroundings": dict(about), "rows": [dict(row) for row in rows]}
        Path(unfinished).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
