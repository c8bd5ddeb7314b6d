"""What benchmarks share: runs that take turns, what the figures depend on besides the code, tables and JSON.

On a shared machine a second is worth what the neighbours leave of it: only runs that take turns can be compared, by the medians of
one benchmark, and the spread says how far to trust them.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewshot_nam.io.atomic import replacing


class Timing(NamedTuple):
    """Seconds of one run: the median of its repeats, the least and the most."""

    median: float
    least: float
    most: float

    def spread(self, unit: float = 1e-3) -> str:
        """Return least to most in units of ``unit`` seconds, as a table shows it."""
        return f"{self.least / unit:.3g}-{self.most / unit:.3g}"


def take_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Return what each run takes, all of them taking turns after one round to warm up.

    Args:
        runs: what to time, by name.
        repeats: rounds, at least 1.
        clock: ``time.perf_counter``, or ``time.process_time`` for what this process alone uses.

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


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of equal keys as lines: names to the left, numbers to three digits and to the right."""

    def text(value: Any) -> str:
        if not isinstance(value, float):
            return f"{value:,}" if isinstance(value, int) else str(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    cells = [list(rows[0]), *([text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    numeric = [isinstance(value, (int, float)) for value in rows[0].values()]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def save(path: Path, about: Mapping[str, str], options: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a benchmark's figures as JSON, with what they depend on."""
    settings = {key: str(value) for key, value in options.items() if key != "json"}
    with replacing(path) as unfinished:
        content = {"options": settings, "surroundings": dict(about), "rows": [dict(row) for row in rows]}
        Path(unfinished).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
