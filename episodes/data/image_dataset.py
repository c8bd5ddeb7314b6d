"""Sets of labelled pictures: what every one of them offers, those held in memory, and those in files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from episodes.data.class_names import Label, check_classes, select_classes
from fewshot_nam.io.image_io import UnreadablePicture, leads_nowhere, read_picture


class PictureSet(Protocol):
    """Labelled pictures, opened one at a time. Instances can be pickled, so that worker processes can open them too.

    Attributes:
        name: for reports, say ``"omniglot/novel"``.
        classes: C names.
        labels: ``(n,)`` int64, positions in ``classes``.
    """

    name: str
    classes: list[str]
    labels: np.ndarray

    @property
    def fingerprint(self) -> str:
        """A hash of the pictures' identity, their labels and their order; features are cached under it."""
        ...

    def __len__(self) -> int:
        """Return n, the number of pictures."""
        ...

    def picture(self, index: int) -> Image.Image:
        """Return picture ``index`` of 0..n-1, decoded; ``UnreadablePicture`` where that fails."""
        ...

    def describe(self, index: int) -> str:
        """Return where picture ``index`` is, for errors and lists of skipped pictures."""
        ...

    def subset(self, classes: Iterable[Label]) -> PictureSet:
        """Return the set of the pictures of some classes, numbered in the order asked for."""
        ...


class ArrayPictures:
    """Pictures held in memory.

    Args:
        name: for reports and errors.
        pixels: ``(n, height, width)`` or ``(n, height, width, 3)`` uint8.
        labels: ``(n,)`` positions in ``classes``.
        classes: C names.
    """

    def __init__(self, name: str, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
        if len(pixels) != len(labels):
            raise ValueError(f"{name}: pictures and labels need equal lengths, got {len(pixels)} and {len(labels)}")
        self.name = name
        self.pixels = pixels
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = [str(c) for c in check_classes(classes, name)]

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the classes, the labels and every pixel."""
        digest = hashlib.sha256(json.dumps([self.classes, self.pixels.shape]).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.pixels).tobytes())
        return digest.hexdigest()

    def picture(self, index: int) -> Image.Image:
        """Return picture ``index``."""
        return Image.fromarray(self.pixels[index])

    def describe(self, index: int) -> str:
        """Return the set's name and the picture's number."""
        return f"{self.name}[{index}]"

    def subset(self, classes: Iterable[Label]) -> ArrayPictures:
        """Return the pictures of ``classes``; ``ValueError`` where one is not there, comes twice, or none is named."""
        names, rows, labels = select_classes(self.labels, self.classes, classes, self.name)
        return ArrayPictures(self.name, self.pixels[rows], labels, [str(c) for c in names])


class FilePictures:
    """Pictures in files below one directory.

    Args:
        name: for reports and errors.
        root: the directory.
        files: n paths relative to ``root``, with forward slashes.
        labels: ``(n,)`` positions in ``classes``.
        classes: C names.
    """

    def __init__(self, name: str, root: Path, files: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> None:
        if len(files) != len(labels):
            raise ValueError(f"{name}: files and labels need equal lengths, got {len(files)} and {len(labels)}")
        self.name = name
        self.root = root
        self.files = list(files)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = [str(c) for c in check_classes(classes, name)]

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the classes and, for each picture, its label, relative path, size and time of change.

        The contents are not read. Copy a directory with its times (``cp -p``) to keep what was cached for it.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for file, label in zip(self.files, self.labels, strict=True):
            path = self.root / file
            found = os.stat(path, follow_symlinks=not leads_nowhere(path))
            digest.update(os.fsencode(f"{label}\0{file}\0{found.st_size}\0{found.st_mtime_ns}\n"))
        return digest.hexdigest()

    def picture(self, index: int) -> Image.Image:
        """Return picture ``index``, decoded and the right way up."""
        try:
            return read_picture(self.root / self.files[index])
        except UnreadablePicture as error:
            raise UnreadablePicture(f"{error}, or skip unreadable pictures") from error

    def describe(self, index: int) -> str:
        """Return the path of picture ``index``."""
        return str(self.root / self.files[index])

    def subset(self, classes: Iterable[Label]) -> FilePictures:
        """Return the pictures of ``classes``; ``ValueError`` where one is not there, comes twice, or none is named."""
        names, rows, labels = select_classes(self.labels, self.classes, classes, self.name)
        return FilePictures(self.name, self.root, [self.files[i] for i in rows], labels, [str(c) for c in names])
