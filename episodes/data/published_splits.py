"""Published class splits of few-shot benchmarks, from the files ``class_splits/<name>.json`` beside this one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from episodes.data.class_names import ROLES

_SPLITS = Path(__file__).with_name("class_splits")


@dataclass(frozen=True)
class ClassSplit:
    """A published split.

    Attributes:
        classes: names under ``"base"``, ``"val"`` and ``"novel"``, sorted.
        images: how many images the whole data set has.
        source: the publication.
    """

    classes: dict[str, list[str]]
    images: int
    source: str


@cache
def class_split(name: str) -> ClassSplit:
    """Return the published split of a benchmark, say ``"mini-imagenet"``.

    Raises:
        ValueError: there is no split of this name.

    Example:
        >>> {role: len(names) for role, names in class_split("cifar-fs").classes.items()}
        {'base': 64, 'val': 16, 'novel': 20}
    """
    path = _SPLITS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _SPLITS.glob("*.json")))
        raise ValueError(f"class_split: there is no split {name!r}; there are {known}")
    content = json.loads(path.read_text(encoding="utf-8"))
    return ClassSplit({role: content[role] for role in ROLES}, content["images"], content["source"])
