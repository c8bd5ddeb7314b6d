"""A table of what agents learned: a row an environment and a model, the mean over seeds, and the curve of training."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming

_PARTS = (0.25, 0.5, 0.75, 1.0)


def table(runs: str | os.PathLike[str]) -> str:
    """Return a table in Markdown of all finished runs of agents below a directory.

    Columns are steps of training, the return of the test (the mean over seeds, in brackets the worst and the best seed), the mean
    return of the last 100 episodes after a quarter, a half, three quarters and all of the training, and steps a second.

    Raises:
        ValueError: there is no finished run.
    """
    groups: dict[tuple[str, ...], list[tuple[dict[str, Any], list[dict[str, str]]]]] = defaultdict(list)
    for path in sorted(Path(runs).rglob("result.json")):
        result = read_mapping(path, "holds no result of a run")
        if "return" not in result:
            continue
        settings = read_mapping(path.parent / "settings.json", meaning := "holds no settings of an agent")
        with naming(path.parent / "settings.json", meaning):
            options = ", ".join(f"{name} {value}" for name, value in settings["environment_options"].items())
        with (path.parent / "log.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        groups[(f"{result['task']}{f' ({options})' if options else ''}", result["model"])].append((result, rows))
    if not groups:
        raise ValueError(f"{runs}: no finished run of an agent")
    columns = ["environment", "agent", "parameters", "seeds", "steps", "return of the test"]
    columns += ["after 1/4, 1/2, 3/4 and all of training", "steps/s"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for (environment, model), found in groups.items():
        results = [result for result, _ in found]
        returns = [result["return"]["mean"] for result in results]
        spread = "" if len(returns) == 1 else f" ({min(returns):.2f} to {max(returns):.2f})"
        curve = [sum(_at(rows, part) for _, rows in found) / len(found) for part in _PARTS]
        speed = sum(result["steps"] for result in results) / sum(result["seconds"] for result in results)
        lines.append(
            f"| {environment} | {model} | {results[0]['parameters']:,} | {len(found)} | {results[0]['steps']:,} | "
            f"{sum(returns) / len(returns):.2f}{spread} | {', '.join(f'{value:.2f}' for value in curve)} | {speed:,.0f} |"
        )
    return "\n".join(lines)


def _at(rows: list[dict[str, str]], part: float) -> float:
    """Return the mean return that the log has at a part of the training."""
    whole = int(rows[-1]["step"])
    return float(next(row["return"] for row in rows if int(row["step"]) >= part * whole))
