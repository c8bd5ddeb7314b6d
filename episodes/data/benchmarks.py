"""Few-shot benchmarks with published class splits: mini-ImageNet, tiered-ImageNet, CIFAR-FS, FC100 and CUB.

The user brings the images, in a directory of any usual layout. The names of the classes decide which are base, validation and novel
(``episodes.data.published_splits``), not the directories that they are in.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from episodes.data.cifar import cifar100, find_cifar100
from episodes.data.folders import data_root, directories
from episodes.data.image_dataset import ArrayImages, FileImages
from episodes.data.published_splits import class_split
from fewshot_nam.io.image_folders import EXTENSIONS, images_by_class

# Where class directories may lie below the directory of a benchmark. The first directory that has a class is taken, so that
# ImageNet's own train directory goes before its val directory.
_LAYOUTS = (
    (".",),
    ("images",),
    ("data",),
    ("CUB_200_2011/images",),
    ("train", "val", "test"),
    ("base", "val", "novel"),
)
_WORDNET_ID = 9  # characters of an ImageNet class, such as n01532829, with which a flat directory's file names begin


def mini_imagenet(data_dir: str | os.PathLike[str] | None = None) -> dict[str, FileImages]:
    """Return mini-ImageNet by role: 64 base, 16 validation and 20 novel classes, called by their WordNet ids.

    Args:
        data_dir: a directory that contains the classes, or contains a directory ``mini-imagenet`` that does. A directory for each
            class, directly there or in ``images``, ``data``, ``train``, ``val`` and ``test``; or all files in ``images``, with
            names that begin with the class. Default: the environment's ``FEWSHOT_DATA``, else ``data`` in the working directory.

    Raises:
        ValueError: it is not found, or classes are missing; they are named.
    """
    names = ("mini-imagenet", "mini_imagenet", "miniImageNet", "miniimagenet", "mini_ImageNet")
    return _by_role("mini-imagenet", data_dir, names, flat=True)


def tiered_imagenet(data_dir: str | os.PathLike[str] | None = None) -> dict[str, FileImages]:
    """Return tiered-ImageNet by role: 351 base, 97 validation and 160 novel classes, called by their WordNet ids.

    Args:
        data_dir: as for ``mini_imagenet``, with ``tiered-imagenet`` in its place; ImageNet's own ``train`` directory will do.

    Raises:
        ValueError: it is not found, or classes are missing; they are named.
    """
    names = ("tiered-imagenet", "tiered_imagenet", "tieredImageNet", "tieredimagenet", "imagenet", "ILSVRC2012")
    return _by_role("tiered-imagenet", data_dir, names)


def cub(data_dir: str | os.PathLike[str] | None = None) -> dict[str, FileImages]:
    """Return CUB-200-2011 by role: 140 base, 30 validation and 30 novel species of birds (the split of easyfsl).

    Args:
        data_dir: a directory that contains ``CUB_200_2011/images``, or the directories of the classes.

    Raises:
        ValueError: it is not found, or classes are missing; they are named.
    """
    return _by_role("cub", data_dir, ("CUB_200_2011", "cub", "CUB"))


def cifar_fs(data_dir: str | os.PathLike[str] | None = None) -> dict[str, ArrayImages] | dict[str, FileImages]:
    """Return CIFAR-FS by role: 64 base, 16 validation and 20 novel classes of CIFAR-100.

    Args:
        data_dir: a directory that contains CIFAR-100 in its binary version, as for ``episodes.data.cifar.cifar100``; or contains
            ``cifar-fs`` with a directory for each class, directly there or in ``data``.

    Raises:
        ValueError: it is not found, or classes are missing; they are named.
    """
    return _of_cifar100("cifar-fs", data_dir, ("cifar-fs", "CIFAR-FS", "cifar_fs", "cifar100"))


def fc100(data_dir: str | os.PathLike[str] | None = None) -> dict[str, ArrayImages] | dict[str, FileImages]:
    """Return FC100 by role: 60 base, 20 validation and 20 novel classes of CIFAR-100, of different superclasses.

    Args:
        data_dir: as for ``cifar_fs``, with ``fc100`` in the place of ``cifar-fs``.

    Raises:
        ValueError: it is not found, or classes are missing; they are named.
    """
    return _of_cifar100("fc100", data_dir, ("fc100", "FC100", "cifar100"))


def _of_cifar100(
    name: str, data_dir: str | os.PathLike[str] | None, names: tuple[str, ...]
) -> dict[str, ArrayImages] | dict[str, FileImages]:
    if find_cifar100(data_dir) is None:
        return _by_role(name, data_dir, names)
    whole = cifar100(data_dir)
    parts = {role: whole.subset(classes) for role, classes in class_split(name).classes.items()}
    for role, part in parts.items():
        part.name = f"{name}/{role}"
    return parts


def _by_role(
    name: str, data_dir: str | os.PathLike[str] | None, names: tuple[str, ...], flat: bool = False
) -> dict[str, FileImages]:
    """Return the images of a benchmark whose classes are directories, or beginnings of the names of files if ``flat``."""
    split, top = class_split(name), data_root(data_dir)
    wanted = {label for labels in split.classes.values() for label in labels}
    root, found = top, dict[str, list[str]]()
    for place in (*(top / directory for directory in names), top):
        if place.is_dir():
            files = _files(name, place, wanted, flat)
            if len(files) > len(found):
                root, found = place, files
    if not found:
        raise ValueError(
            f"{name}: looked for directories called {sorted(wanted)[0]} and so on in {top} and in {', '.join(names)} there, also "
            f"below {', '.join(sorted({part for layout in _LAYOUTS for part in layout} - {'.'}))}, and found none; name the "
            "directory that holds the images (data_dir=, --data-dir); they are not downloaded for you"
        )
    missing = sorted(wanted - found.keys())
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(
            f"{name}: {root} has {len(found)} of the {len(wanted)} classes; missing: {', '.join(missing[:5])}{more}; unpack the "
            "whole data set there"
        )
    count = sum(map(len, found.values()))
    if count != split.images:
        warnings.warn(
            f"{name}: {root} has {count:,} images; the whole set has {split.images:,}, so figures are not comparable with "
            "published ones",
            stacklevel=3,
        )
    return {role: _set(f"{name}/{role}", root, found, labels) for role, labels in split.classes.items()}


def _set(name: str, root: Path, found: dict[str, list[str]], classes: list[str]) -> FileImages:
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found[label]) for label in classes])
    return FileImages(name, root, [file for label in classes for file in found[label]], labels, classes)


def _files(name: str, root: Path, wanted: set[str], flat: bool) -> dict[str, list[str]]:
    """Return the files of the wanted classes that are there, relative to ``root``, in the layout that has most classes."""
    best: dict[str, str] = {}
    for layout in _LAYOUTS:
        present: dict[str, str] = {}
        for part in layout:
            if (root / part).is_dir():
                for directory in directories(root / part):
                    if directory in wanted:
                        present.setdefault(directory, directory if part == "." else f"{part}/{directory}")
        if len(present) > len(best):
            best = present
    if best:
        files = images_by_class(name, root, list(best.values()))
        return {label: files[directory] for label, directory in best.items()}
    found: dict[str, list[str]] = {}
    if flat and (root / "images").is_dir():
        for file in sorted(entry.name for entry in (root / "images").iterdir()):
            if file[:_WORDNET_ID] in wanted and file.lower().endswith(EXTENSIONS):
                found.setdefault(file[:_WORDNET_ID], []).append(f"images/{file}")
    return found
