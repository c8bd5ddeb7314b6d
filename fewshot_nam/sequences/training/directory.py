"""The directory of a training run: its settings, which a resumed run must share, and its log, without rows of steps done again."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.json_files import read_mapping

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FILES = ("settings.json", "log.csv", "checkpoint.safetensors", "model.safetensors", "result.json")
"""What a run writes there."""


def claim(directory: Path, settings: DataclassInstance, resume: bool) -> None:
    """Write ``settings.json``, or check that it holds the same settings. One that an older version did not have has its default.

    Raises:
        ValueError: it holds others, or there is a run and ``resume`` is not set.
    """
    path = directory / "settings.json"
    own = json.dumps(dataclasses.asdict(settings), indent=2) + "\n"
    if path.is_file():
        if not resume:
            raise ValueError(f"{directory} holds a training run: resume it, or name another directory")
        if changed := changed_settings(directory, settings):
            raise ValueError(f"{directory} holds a run with another {changed[0]}: it cannot be resumed with these")
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_text(path, own)


def changed_settings(directory: Path, settings: DataclassInstance) -> list[str]:
    """Return the names of settings that the run in a directory has otherwise, see ``differences``."""
    return differences(read_mapping(directory / "settings.json", "holds no settings of a training run"), settings)


def differences(run: Mapping[str, Any], settings: DataclassInstance) -> list[str]:
    """Return the names of settings that a run has otherwise. One that an older version did not have has its default."""
    there = {part.name: part.default for part in dataclasses.fields(settings)} | dict(run)
    own = json.loads(json.dumps(dataclasses.asdict(settings)))
    return [name for name, value in own.items() if there.get(name) != value]


def open_log(directory: Path, step: int) -> IO[str]:
    """Return ``log.csv``, open for appending, without rows of steps after ``step``, which are done again."""
    path = directory / "log.csv"
    if path.is_file():
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))
            # A row that was being written when the run was cut is short.
            rows = [row for row in rows if len(row) == len(rows[0]) and (row[0] == "step" or int(row[0]) <= step)]
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f"{path} is no log of a training run: remove it, and the run goes on without it"
            ) from error
        with replacing(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return path.open("a", newline="", encoding="utf-8")


def finished_result(directory: Path) -> dict[str, Any] | None:
    """Return what is in ``result.json``, or None where the run has not finished."""
    path = directory / "result.json"
    if not path.is_file():
        return None
    return read_mapping(path, "holds no result of a training run")


def write_text(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
