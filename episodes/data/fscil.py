"""The incremental sessions of CIFAR-100, CUB and mini-ImageNet, from the lists ``session_lists/<name>-fscil.json``.

Base classes are learned from all their training images, later classes from five; queries are test images.

Source: Tao et al., "Few-Shot Class-Incremental Learning" (2020), with the lists of Zhang et al., "Few-Shot Incremental Learning
with Continually Evolved Classifiers" (2021).
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from episodes.data.cifar import read_cifar100
from episodes.data.folders import data_root
from episodes.data.image_dataset import ArrayImages, FileImages
from episodes.data.incremental import Session

_LISTS = Path(__file__).with_name("session_lists")
_SHOTS = 5


def cifar100_sessions(data_dir: str | os.PathLike[str] | None = None) -> list[Session]:
    """Return the nine sessions of CIFAR-100: 60 base classes, then five at a time.

    Args:
        data_dir: where CIFAR-100 is; see ``episodes.data.cifar.cifar100``.

    Raises:
        ValueError: it is not found, or its training images are in another order than the lists expect.
    """
    train, test = read_cifar100(data_dir)
    arrivals = _list("cifar100-fscil")["sessions"]
    base = len(train.classes) - 5 * len(arrivals)
    positions = [np.flatnonzero(train.labels < base), *(np.asarray(session) for session in arrivals)]
    sessions, seen = [], 0
    for number, rows in enumerate(positions):
        new = base if number == 0 else 5
        labels = train.labels[rows] - seen
        counts = np.bincount(labels, minlength=new) if labels.min() >= 0 else np.zeros(0)
        if len(counts) != new or (number and set(counts.tolist()) != {_SHOTS}):
            raise ValueError(
                f"cifar100-fscil: the images of session {number} are not {_SHOTS} of each of the classes {seen} to "
                f"{seen + new - 1}; the training images are in another order than published: unpack the binary version again"
            )
        support = ArrayImages(
            f"cifar100-fscil/session{number}/support", train.pixels[rows], labels, train.classes[seen : seen + new]
        )
        seen += new
        queries = test.subset(test.classes[:seen])
        queries.name = f"cifar100-fscil/session{number}/queries"
        sessions.append(Session(support, queries))
    return sessions


def cub_sessions(data_dir: str | os.PathLike[str] | None = None) -> list[Session]:
    """Return the eleven sessions of CUB-200-2011: 100 base classes, then ten at a time.

    Args:
        data_dir: a directory that contains ``CUB_200_2011`` with ``images``, ``images.txt`` and ``train_test_split.txt``.

    Raises:
        ValueError: one of these is not found, or an image of the lists is not a training image of it; it is named.
    """
    top = data_root(data_dir)
    root = top / "CUB_200_2011" if (top / "CUB_200_2011").is_dir() else top
    for name in ("images.txt", "train_test_split.txt", "images"):
        if not (root / name).exists():
            raise ValueError(f"cub-fscil: looked for {name} in {root} and did not find it; unpack CUB-200-2011 there")
    paths = dict(line.split() for line in (root / "images.txt").read_text().splitlines() if line.strip())
    is_train = dict(line.split() for line in (root / "train_test_split.txt").read_text().splitlines() if line.strip())
    train, test = (
        _by_class(path.split("/") for number, path in paths.items() if is_train.get(number) == part)
        for part in ("1", "0")
    )
    arrivals = _list("cub-fscil")["sessions"]
    first = sorted(arrivals[0])[0]
    base = {label: names for label, names in train.items() if label < first}
    return _sessions("cub-fscil", root, "images/{label}/{name}.jpg", base, arrivals, train, test)


def mini_imagenet_sessions(data_dir: str | os.PathLike[str] | None = None) -> list[Session]:
    """Return the nine sessions of mini-ImageNet: 60 base classes, then five at a time.

    Args:
        data_dir: a directory that contains ``images`` with all files and ``split/train.csv`` and ``split/test.csv`` (lines of file
            name and class, 500 and 100 for each class), or contains a directory ``mini-imagenet`` or ``miniimagenet`` that does.

    Raises:
        ValueError: one of these is not found, or an image of the lists is not in ``train.csv``; it is named.
    """
    top = data_root(data_dir)
    places = [top / name for name in ("mini-imagenet", "miniimagenet", "miniImageNet", ".")]
    root = next((place for place in places if (place / "split" / "train.csv").is_file()), None)
    if root is None or not (root / "split" / "test.csv").is_file() or not (root / "images").is_dir():
        raise ValueError(
            f"mini-imagenet-fscil: looked for images, split/train.csv and split/test.csv in {', '.join(map(str, places))}, and did "
            "not find all in one; the split of each class into 500 training and 100 test images is in these files"
        )
    train, test = (_by_class(_rows(root / "split" / f"{part}.csv")) for part in ("train", "test"))
    content = _list("mini-imagenet-fscil")
    missing = [label for label in content["base"] if label not in train]
    if missing:
        raise ValueError(f"mini-imagenet-fscil: {root}/split/train.csv has no images of {', '.join(missing[:5])}")
    base = {label: train[label] for label in content["base"]}
    return _sessions("mini-imagenet-fscil", root, "images/{name}.jpg", base, content["sessions"], train, test)


def _sessions(
    benchmark: str,
    root: Path,
    pattern: str,
    base: dict[str, list[str]],
    arrivals: list[dict[str, list[str]]],
    train: dict[str, list[str]],
    test: dict[str, list[str]],
) -> list[Session]:
    """Return the sessions of a benchmark of files; ``pattern`` says where an image is below ``root``."""
    sessions: list[Session] = []
    seen: list[str] = []
    for number, support in enumerate([base, *arrivals]):
        for label, names in support.items():
            absent = [name for name in names if name not in train.get(label, [])]
            if absent or not test.get(label):
                what = (
                    f"{label}/{absent[0]} is not among the training images" if absent else f"{label} has no test images"
                )
                raise ValueError(f"{benchmark}: {what} of {root}; unpack the whole data set there")
        seen += support
        parts = (support, {label: test[label] for label in seen})
        sets = [
            FileImages(
                f"{benchmark}/session{number}/{kind}",
                root,
                [pattern.format(label=label, name=name) for label, names in part.items() for name in names],
                np.repeat(np.arange(len(part)), [len(names) for names in part.values()]),
                list(part),
            )
            for kind, part in zip(("support", "queries"), parts, strict=True)
        ]
        sessions.append(Session(*sets))
    return sessions


def _by_class(pairs: Any) -> dict[str, list[str]]:
    """Return file names without ending by class, both sorted, of pairs of class and file name."""
    found: dict[str, list[str]] = {}
    for label, name in sorted(pairs):
        found.setdefault(label, []).append(Path(name).stem)
    return found


def _rows(path: Path) -> list[tuple[str, str]]:
    """Return class and file name of each line of a CSV file with the columns ``filename`` and ``label``."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"filename", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"mini-imagenet-fscil: {path} has the columns {reader.fieldnames}, expected filename and label"
            )
        return [(row["label"], row["filename"]) for row in reader]


def _list(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((_LISTS / f"{name}.json").read_text(encoding="utf-8"))
    return content
