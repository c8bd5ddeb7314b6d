"""CIFAR-10 and CIFAR-100: 32x32 images in colour. Of CIFAR-10 the 10,000 test images, of CIFAR-100 all 60,000.

The published binary versions are read: a record is a label byte (CIFAR-100: one for the superclass, then one for the class) and
32 rows of 32 bytes of red, then of green, then of blue. CIFAR-10 may also be a directory of images for each class. The published
Python versions are pickled, and this toolkit unpickles nothing.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TypeVar

import numpy as np

from episodes.data.folders import data_root, folder
from episodes.data.image_dataset import ArrayImages, FileImages, ImageSet
from episodes.data.published_splits import class_split

_Images = TypeVar("_Images", ArrayImages, FileImages)

_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_SIDE = 32
_EACH = 1000
_BINARY_100, _EACH_100 = "cifar-100-binary", 600
_BINARY, _PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"


def cifar10(data_dir: str | os.PathLike[str] | None = None) -> ImageSet:
    """Return the 10,000 test images of CIFAR-10: classes "airplane" to "truck".

    Args:
        data_dir: a directory that contains ``cifar-10-batches-bin/test_batch.bin`` or ``test`` with a directory for each class, or
            contains a directory ``cifar10`` that does. The binary version is preferred. Default: the environment's
            ``FEWSHOT_DATA``, else ``data`` in the working directory.

    Returns:
        The images, all classes in one set. Its name says so where they are JPEG files, which are not exact copies.

    Raises:
        ValueError: neither form is found; or the batch is cut short, has labels outside 0 to 9, or the classes are others.
    """
    top = data_root(data_dir)
    for place in (top, top / "cifar10"):
        batch = place / _BINARY / "test_batch.bin"
        if batch.is_file():
            return _checked(
                ArrayImages("cifar10", *_binary("cifar10", batch, 1, len(_CLASSES)), _CLASSES), batch, _EACH
            )
    for place in (top, top / "cifar10"):
        if (place / "test" / _CLASSES[0]).is_dir():
            return _checked(_folder(place / "test"), place / "test", _EACH)
    pickled = next((place / _PYTHON for place in (top, top / "cifar10") if (place / _PYTHON).is_dir()), None)
    advice = (
        f"{pickled} is the Python version, which is pickled and never opened: unpack the binary version beside it"
        if pickled is not None
        else "name the directory that holds it (data_dir=, --data-dir); CIFAR-10 is not downloaded for you: unpack the published "
        "binary version there"
    )
    raise ValueError(
        f"cifar10: looked for {_BINARY}/test_batch.bin and test/{_CLASSES[0]} in {top} and {top / 'cifar10'}, and found "
        f"neither; {advice}"
    )


def cifar100(data_dir: str | os.PathLike[str] | None = None) -> ArrayImages:
    """Return the 60,000 images of CIFAR-100, training images before test images: classes "apple" to "worm".

    Args:
        data_dir: a directory that contains ``cifar-100-binary`` with ``train.bin`` and ``test.bin``, or contains a directory
            ``cifar100`` that does. Default: the environment's ``FEWSHOT_DATA``, else ``data`` in the working directory.

    Raises:
        ValueError: it is not found, is cut short, or has other labels.
    """
    parts = read_cifar100(data_dir)
    pixels, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("pixels", "labels"))
    return _checked(ArrayImages("cifar100", pixels, labels, parts[0].classes), data_root(data_dir), _EACH_100)


def read_cifar100(data_dir: str | os.PathLike[str] | None = None) -> tuple[ArrayImages, ArrayImages]:
    """Return the training and the test images of CIFAR-100, in the order of its files; see ``cifar100``."""
    place = find_cifar100(data_dir)
    if place is None:
        top = data_root(data_dir)
        raise ValueError(
            f"cifar100: looked for {_BINARY_100}/train.bin and test.bin in {top} and {top / 'cifar100'}, and did not find both; "
            "name the directory that holds them (data_dir=, --data-dir); CIFAR-100 is not downloaded for you: unpack the published "
            "binary version there"
        )
    classes = sorted(name for names in class_split("cifar-fs").classes.values() for name in names)
    train, test = (
        ArrayImages(f"cifar100/{part}", *_binary("cifar100", place / f"{part}.bin", 2, len(classes)), classes)
        for part in ("train", "test")
    )
    return train, test


def find_cifar100(data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the directory of CIFAR-100's binary version, or ``None`` where there is none."""
    top = data_root(data_dir)
    for place in (top / _BINARY_100, top / "cifar100" / _BINARY_100):
        if (place / "train.bin").is_file() and (place / "test.bin").is_file():
            return place
    return None


def _binary(name: str, path: Path, label_bytes: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels ``(n, 32, 32, 3)`` and labels ``(n,)`` of a binary file; the last label byte of a record counts."""
    content, record = np.fromfile(path, dtype=np.uint8), label_bytes + 3 * _SIDE * _SIDE
    if not len(content) or len(content) % record:
        raise ValueError(
            f"{name}: {path} has {len(content)} bytes, expected records of {record}: it is cut short or another file; unpack it "
            "again"
        )
    records = content.reshape(-1, record)
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= classes:
        row = int((labels >= classes).argmax())
        raise ValueError(
            f"{name}: {path} has label {labels[row]} in record {row}, expected 0 to {classes - 1}: it is damaged or of another "
            "data set; unpack it again"
        )
    pixels = records[:, label_bytes:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), labels


def _folder(path: Path) -> FileImages:
    found = folder(path)
    if found.classes != _CLASSES:
        raise ValueError(f"cifar10: {path} holds {', '.join(found.classes)}; expected {', '.join(_CLASSES)}")
    lossy = any(file.lower().endswith((".jpg", ".jpeg")) for file in found.files)
    found.name = "cifar10 (JPEG copies)" if lossy else "cifar10"
    return found


def _checked(images: _Images, where: Path, each: int) -> _Images:
    """Return ``images``; warn where a class has another number of images than ``each``."""
    counts = np.bincount(images.labels, minlength=len(images.classes)).tolist()
    if counts != [each] * len(images.classes):
        warnings.warn(
            f"{images.name}: {where} has {len(images)} images, {min(counts)} to {max(counts)} a class; the whole set has "
            f"{each} a class, so figures are not comparable with published ones",
            stacklevel=3,
        )
    return images
