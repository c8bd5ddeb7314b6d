"""What trained models measured, read from the directories of runs and kept in one JSON file for each experiment."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming
from fewshot_nam.io.yaml_input import shown
from fewshot_nam.sequences.reporting.plan import Experiment, is_measured, sequences


class Record(NamedTuple):
    """One run: what was trained how, what it measured, and its log."""

    label: str
    """The model, or the variant of one."""
    seed: int
    command: str
    """What makes this run."""
    result: dict[str, Any]
    """``result.json`` of the run."""
    lengths: dict[str, dict[str, float]]
    """Accuracies at exact lengths, and on how many ``sequences``; older records do not say it."""
    settings: dict[str, Any]
    log: list[list[str]]
    """``log.csv``, the names of the columns first."""


def read_runs(experiment: Experiment, runs: str | os.PathLike[str]) -> list[Record]:
    """Return the finished runs of an experiment, in the order of its models.

    Raises:
        ValueError: a run has other settings than the plan, or its files are damaged.
    """
    found = []
    for label, seeds in experiment.models.items():
        for seed in range(seeds):
            directory = Path(runs) / experiment.name / f"{label}-{seed}"
            if not is_measured(experiment, label, seed, directory):
                continue
            with (directory / "log.csv").open(newline="", encoding="utf-8") as file:
                log = list(csv.reader(file))
            result, lengths, settings = (
                read_mapping(directory / f"{name}.json", "is damaged") for name in ("result", "lengths", "settings")
            )
            found.append(Record(label, seed, experiment.command(label, seed), result, lengths, settings, log))
    return found


def write_records(records: list[Record], path: str | os.PathLike[str]) -> None:
    """Write records to a JSON file: whole or not at all."""
    lines = ",\n".join(json.dumps(record._asdict()) for record in records)
    with replacing(Path(path)) as unfinished:
        unfinished.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Return what ``write_records`` wrote.

    Raises:
        OSError: there is no such file.
        ValueError: it holds something else.
    """
    with naming(path, "holds no records of runs"):
        records = [Record(**record) for record in json.loads(Path(path).read_text(encoding="utf-8"))]
        if not records:
            raise ValueError("it is empty")
        return records


def check_records(experiment: Experiment, records: list[Record]) -> None:
    """Raise an error for records of other runs than the plan's: a table would put their figures over commands that give others.

    Raises:
        ValueError: a run of another model, of other settings than the plan and the presets have, or measured on another number of
            sequences.
        KeyError, TypeError: damaged records.
    """
    from fewshot_nam.sequences.training.directory import differences

    for record in records:
        if record.label not in experiment.models:
            raise ValueError(f"the plan has no model {shown(record.label)}: make them again with --runs")
        run = f"{record.label} seed {record.seed:d}"
        if other := differences(record.settings, experiment.settings(record.label, record.seed)):
            raise ValueError(
                f"{run} has another {', '.join(other)} than the plan and the presets: train it with --runs"
            )
        for length, values in record.lengths.items():
            if sequences(values, experiment) != experiment.size:
                raise ValueError(
                    f"{run} was measured on {values['sequences']:,} sequences at {int(length)}, and not on the plan's "
                    f"{experiment.size:,}: measure it with --runs"
                )
        if not all(test.isprintable() for test in (*record.result["accuracy"], *record.lengths)):
            raise ValueError(f"{run} names its tests by characters that cannot be shown")
