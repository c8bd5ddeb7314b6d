"""Data sets that torchvision reads and downloads, as ``torchvision:<name>``: all images of all their official parts, by class.

There is no standard few-shot split of these classes, so all of them are novel until ``apply_split`` divides them. torchvision finds
the files and their labels; this toolkit opens the images, as all others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from episodes.data.cifar import cifar10, cifar100
from episodes.data.class_names import nearest
from episodes.data.folders import data_root
from episodes.data.image_dataset import FileImages, ImageSet

# By name: torchvision's class, and the arguments for each of the official parts.
_SETS: Mapping[str, tuple[str, Sequence[Mapping[str, Any]]]] = {
    "flowers102": ("Flowers102", [{"split": part} for part in ("train", "val", "test")]),
    "aircraft": ("FGVCAircraft", [{"split": part} for part in ("trainval", "test")]),
    "eurosat": ("EuroSAT", [{}]),
    "dtd": ("DTD", [{"split": part} for part in ("train", "val", "test")]),
    "food101": ("Food101", [{"split": part} for part in ("train", "test")]),
    "pets": ("OxfordIIITPet", [{"split": part} for part in ("trainval", "test")]),
}
_OF_CIFAR: Mapping[str, Callable[..., ImageSet]] = {"cifar10": cifar10, "cifar100": cifar100}


def torchvision_dataset(name: str, data_dir: str | os.PathLike[str] | None = None, download: bool = False) -> ImageSet:
    """Return the images of a data set of torchvision.

    Args:
        name: ``"flowers102"``, ``"aircraft"``, ``"eurosat"``, ``"dtd"``, ``"food101"`` or ``"pets"``; or ``"cifar10"`` or
            ``"cifar100"``, which ``episodes.data.cifar`` reads: torchvision would unpickle them.
        data_dir: torchvision's ``root``, which contains, say, ``flowers-102``. Default: the environment's ``FEWSHOT_DATA``, else
            ``data`` in the working directory.
        download: let torchvision download the data set if it is not there.

    Raises:
        ValueError: an unknown name, or the data set is not there.
        ImportError: torchvision, or a package that it needs to read the labels, is not installed.
        OSError: the download failed, or files are missing.
    """
    if name in _OF_CIFAR:
        return _OF_CIFAR[name](data_dir)
    if name not in _SETS:
        known = [*_SETS, *_OF_CIFAR]
        raise ValueError(f"torchvision:{name}: expected one of {', '.join(known)}{nearest(name, known)}")
    from torchvision import datasets

    kind, parts = _SETS[name]
    root = data_root(data_dir)
    files: list[str] = []
    labels: list[str] = []
    for options in parts:
        try:
            part = getattr(datasets, kind)(str(root), download=download, **options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            if download:
                raise OSError(f"torchvision:{name}: download into {root} failed: {reason}") from error
            raise ValueError(
                f"torchvision:{name}: torchvision does not find it in {root} ({reason}); name the directory that holds it "
                "(data_dir=, --data-dir), or download it there with --download (download=True)"
            ) from error
        paths, numbers = _files_and_labels(part)
        files += [Path(os.path.relpath(path, root)).as_posix() for path in paths]
        labels += [part.classes[number] for number in numbers]
    classes = sorted(set(labels))
    order = sorted(range(len(files)), key=lambda i: (labels[i], files[i]))
    positions = {label: i for i, label in enumerate(classes)}
    targets = np.asarray([positions[labels[i]] for i in order], dtype=np.int64)
    return FileImages(f"torchvision/{name}", root, [files[i] for i in order], targets, classes)


def _files_and_labels(part: Any) -> tuple[list[Any], list[int]]:
    """Return the files and labels of a data set of torchvision, which keeps them under one of a few names."""
    if hasattr(part, "samples"):
        paths, labels = zip(*part.samples, strict=True)
        return list(paths), list(labels)
    paths = part._image_files if hasattr(part, "_image_files") else part._images
    return list(paths), list(part._labels)
