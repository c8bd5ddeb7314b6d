"""Where a memory's file notes that the weights of its backbone are: published, random, or a file relative to its directory.

Relative, so that a memory tells nothing about the machine it was made on, and can be moved together with the weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_FILES = ("published", "random")
"""Sources of weights that are no files."""


def weights_source(weights: str | None, memory: str | os.PathLike[str]) -> str | None:
    """Return where weights come from, as the memory notes it: the option, or a file relative to the memory's directory."""
    if weights is None or weights == "random":
        return weights
    path, directory = Path(weights).expanduser().resolve(), Path(memory).resolve().parent
    try:
        return Path(os.path.relpath(path, directory)).as_posix()
    except ValueError:  # on Windows, another drive
        return path.name


def weights_file(memory: str | os.PathLike[str], source: str) -> Path:
    """Return the file of weights that a memory notes; memories of the first releases note an absolute path, which stays."""
    return Path(memory).resolve().parent / source


def notes_for(
    memory: str | os.PathLike[str], notes: Mapping[str, Any], read_from: str | os.PathLike[str]
) -> dict[str, Any]:
    """Return the notes of one memory's file as they hold for another, which may be elsewhere."""
    source = notes.get("weights", "published")
    if source in NOT_FILES:
        return dict(notes)
    return {**notes, "weights": weights_source(str(weights_file(read_from, source)), memory)}
