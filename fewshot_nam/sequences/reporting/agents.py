"""A table of what agents learned: runs that differ in nothing but the seed are a row, with means and the curve of training."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming

_PARTS = (0.25, 0.5, 0.75, 1.0)


class _Run(NamedTuple):
    directory: Path
    settings: dict[str, Any]
    parameters: int
    steps: int
    seconds: float
    mean: float
    """The return of the test."""
    curve: list[float]
    """The return that the log has after each of ``_PARTS`` of the training."""


def table(runs: str | os.PathLike[str]) -> str:
    """Return a table in Markdown of all finished runs of agents below a directory.

    Columns are steps of training, the return of the test (the mean over seeds, in brackets the worst and the best seed), the mean
    return of the last 100 episodes after a quarter, a half, three quarters and all of the training, and steps a second. Runs of one
    environment and one agent that differ in other settings than the seed have rows of their own, which name these settings.

    Raises:
        ValueError: there is no finished run, two are of one seed and the same settings, or the files of one are damaged.
    """
    groups: dict[str, dict[int, _Run]] = defaultdict(dict)
    for path in sorted(Path(runs).rglob("result.json")):
        result = read_mapping(path, "holds no result of a run")
        if "return" not in result:
            continue
        run = _read(path.parent, result)
        others = {name: value for name, value in run.settings.items() if name != "seed"}
        same = groups[json.dumps(others, sort_keys=True)]
        if (seed := run.settings["seed"]) in same:
            raise ValueError(f"{run.directory} and {same[seed].directory} are runs of one seed and the same settings")
        same[seed] = run
    if not groups:
        raise ValueError(f"{runs}: no finished run of an agent")
    columns = ["environment", "agent", "parameters", "seeds", "steps", "return of the test"]
    columns += ["after 1/4, 1/2, 3/4 and all of training", "steps/s"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rows = [list(same.values()) for same in groups.values()]
    for found in rows:
        settings = found[0].settings
        alike = [row[0].settings for row in rows if _names(row[0].settings) == _names(settings)]
        differ = {name: settings[name] for name in settings if any(other[name] != settings[name] for other in alike)}
        own = _listed({name: value for name, value in differ.items() if name != "seed"})
        environment, agent = _names(settings)
        returns = [run.mean for run in found]
        spread = "" if len(returns) == 1 else f" ({min(returns):.2f} to {max(returns):.2f})"
        curve = [sum(run.curve[i] for run in found) / len(found) for i in range(len(_PARTS))]
        speed = sum(run.steps for run in found) / sum(run.seconds for run in found)
        lines.append(
            f"| {environment} | {agent}{own} | {found[0].parameters:,} | {len(found)} | {found[0].steps:,} | "
            f"{sum(returns) / len(returns):.2f}{spread} | {', '.join(f'{value:.2f}' for value in curve)} | {speed:,.0f} |"
        )
    return "\n".join(lines)


def _read(directory: Path, result: Mapping[str, Any]) -> _Run:
    """Return a finished run; ``ValueError`` that names the file whose content is damaged."""
    from fewshot_nam.sequences.reinforcement.settings import AgentSettings

    path = directory / "settings.json"
    found = read_mapping(path, meaning := "holds no settings of an agent")
    with naming(path, meaning):
        settings = AgentSettings.from_dict(found).as_dict()
        if not "".join([_listed(settings), *_names(settings)]).isprintable():
            raise ValueError("it has characters that cannot be shown")
    with naming(directory / "log.csv", "holds no log of an agent"):
        with (directory / "log.csv").open(newline="", encoding="utf-8") as file:
            log = [(int(row["step"]), float(row["return"])) for row in csv.DictReader(file)]
        curve = [next(value for step, value in log if step >= part * log[-1][0]) for part in _PARTS]
    with naming(directory / "result.json", "holds no result of an agent"):
        numbers = int(result["parameters"]), int(result["steps"]), float(result["seconds"])
        if min(numbers) <= 0:
            raise ValueError("parameters, steps and seconds are above 0")
        return _Run(directory, settings, *numbers, float(result["return"]["mean"]), curve)


def _names(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return how an environment, with its options, and an agent are called in the table."""
    return settings["environment"] + _listed(settings["environment_options"]), settings["model"]


def _listed(options: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else ""
