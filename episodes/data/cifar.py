"""CIFAR-10: the 10,000 test images, 32x32 in colour, 1,000 of each of ten classes.

Two forms are read. One is the published binary version: in ``test_batch.bin`` each record is a label byte and 32 rows of 32 bytes
of red, then of green, then of blue. The other is a directory of images for each class. The published Python version is pickled,
and this toolkit unpickles nothing.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from episodes.data.folders import data_root, folder
from episodes.data.image_dataset import ArrayImages, FileImages, ImageSet

_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_SIDE = 32
_RECORD = 1 + 3 * _SIDE * _SIDE
_EACH = 1000
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
            return _checked(_binary(batch), batch)
    for place in (top, top / "cifar10"):
        if (place / "test" / _CLASSES[0]).is_dir():
            return _checked(_folder(place / "test"), place / "test")
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


def _binary(path: Path) -> ArrayImages:
    content = np.fromfile(path, dtype=np.uint8)
    if not len(content) or len(content) % _RECORD:
        raise ValueError(
            f"cifar10: {path} has {len(content)} bytes, expected {10 * _EACH} records of {_RECORD}: it is cut short or "
            "another file; unpack it again"
        )
    records = content.reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(_CLASSES):
        row = int((labels >= len(_CLASSES)).argmax())
        raise ValueError(
            f"cifar10: {path} has label {labels[row]} in record {row}, expected 0 to 9: it is damaged or of another data "
            "set; unpack it again"
        )
    pixels = records[:, 1:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return ArrayImages("cifar10", np.ascontiguousarray(pixels), labels, _CLASSES)


def _folder(path: Path) -> FileImages:
    found = folder(path)
    if found.classes != _CLASSES:
        raise ValueError(f"cifar10: {path} holds {', '.join(found.classes)}; expected {', '.join(_CLASSES)}")
    lossy = any(file.lower().endswith((".jpg", ".jpeg")) for file in found.files)
    found.name = "cifar10 (JPEG copies)" if lossy else "cifar10"
    return found


def _checked(images: ArrayImages | FileImages, where: Path) -> ImageSet:
    counts = np.bincount(images.labels, minlength=len(_CLASSES)).tolist()
    if counts != [_EACH] * len(_CLASSES):
        warnings.warn(
            f"cifar10: {where} has {len(images)} images, {min(counts)} to {max(counts)} a class; the whole set has "
            f"{_EACH} a class, so figures are not comparable with published ones",
            stacklevel=3,
        )
    return images
