"""JSON files that hold a mapping, as results and settings do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fewshot_nam.io.naming import naming


def read_mapping(path: str | os.PathLike[str], meaning: str) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Args:
        path: the file.
        meaning: what a file that holds none is not, such as "holds no results", see ``naming``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no mapping; the message is one line that names it.
    """
    with naming(path, meaning):
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
        return found
