"""Sets of labelled images: what every one of them offers, those held in memory, and those in files."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from episodes.data.class_names import Label, check_classes, select_classes
from fewshot_nam._deprecation import renamed_names, warn_renamed
from fewshot_nam.io.image_io import UnreadableImage, leads_nowhere, read_image

_FILES_READ = 256  # files whose content is part of a fingerprint: enough to tell data sets apart, and soon read
_BYTES_READ = 1 << 16  # of each of them


class ImageSet(Protocol):
    """Labelled images, opened one at a time. Instances can be pickled, so that worker processes can open images too.

    A set may also have an attribute ``change_token``: a text that changes whenever the images may have changed. Features are
    cached under it; without one, they are cached under ``fingerprint``.

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
        """A hash of which images these are, their labels and their order; the same on every machine."""
        ...

    def __len__(self) -> int:
        """Return n, the number of images."""
        ...

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` of 0..n-1, decoded; ``UnreadableImage`` where that fails."""
        ...

    def describe(self, index: int) -> str:
        """Return where image ``index`` is, for errors and lists of skipped images."""
        ...

    def subset(self, classes: Iterable[Label]) -> ImageSet:
        """Return the images of some classes, which are numbered in the order given."""
        ...


def open_image(images: ImageSet, index: int) -> Image.Image:
    """Return image ``index`` of a set, also of one that was written for version 0.1 and calls the method ``picture``."""
    if not hasattr(images, "image") and hasattr(images, "picture"):
        warn_renamed(f"{type(images).__name__}.picture", "image")
        former: Image.Image = images.picture(index)
        return former
    return images.image(index)


class ArrayImages:
    """Images held in memory.

    Args:
        name: for reports and errors.
        pixels: ``(n, height, width)`` or ``(n, height, width, 3)`` uint8.
        labels: ``(n,)`` positions in ``classes``.
        classes: C names.

    Raises:
        ValueError: images and labels differ in number, or ``classes`` is empty or names a class twice.

    Example:
        >>> images = ArrayImages("shades", np.array([[[0]], [[9]]], dtype=np.uint8), [0, 1], ["dark", "light"])
        >>> len(images), images.image(1).getpixel((0, 0)), images.subset(["light"]).labels.tolist()
        (2, 9, [0])
    """

    def __init__(
        self, name: str, pixels: np.ndarray, labels: np.ndarray | Sequence[int], classes: Sequence[str]
    ) -> None:
        if len(pixels) != len(labels):
            raise ValueError(f"{name}: images and labels need equal lengths, got {len(pixels)} and {len(labels)}")
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

    def image(self, index: int) -> Image.Image:
        """Return image ``index``."""
        return Image.fromarray(self.pixels[index])

    def picture(self, index: int) -> Image.Image:
        """Return image ``index``; deprecated, use ``image``."""
        warn_renamed("ArrayImages.picture", "image")
        return self.image(index)

    def describe(self, index: int) -> str:
        """Return the set's name and the image's number."""
        return f"{self.name}[{index}]"

    def subset(self, classes: Iterable[Label]) -> ArrayImages:
        """Return the images of ``classes``; ``ValueError`` where one does not exist, comes twice, or none is named."""
        names, rows, labels = select_classes(self.labels, self.classes, classes, self.name)
        return ArrayImages(self.name, self.pixels[rows], labels, [str(c) for c in names])


class FileImages:
    """Images in files below one directory.

    Args:
        name: for reports and errors.
        root: the directory.
        files: n paths relative to ``root``, with forward slashes.
        labels: ``(n,)`` positions in ``classes``.
        classes: C names.

    Raises:
        ValueError: files and labels differ in number, or ``classes`` is empty or names a class twice.
    """

    def __init__(
        self, name: str, root: Path, files: Sequence[str], labels: np.ndarray | Sequence[int], classes: Sequence[str]
    ) -> None:
        if len(files) != len(labels):
            raise ValueError(f"{name}: files and labels need equal lengths, got {len(files)} and {len(labels)}")
        self.name = name
        self.root = root
        self.files = list(files)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = [str(c) for c in check_classes(classes, name)]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the classes, over label, relative path and size of each image, and over the content of some images.

        It holds no times and no absolute paths, so that a copy of the data has the same one. Content is read of up to 256 files,
        evenly spread, the first 64 KiB of each: images of one size and one name in two data sets would look alike otherwise.
        """
        return self._digests[0]

    @property
    def change_token(self) -> str:
        """SHA-256 over what ``fingerprint`` covers and over the times of each image. Features are cached under this.

        The times are that of the content (``mtime``), which an archive may set, and that of the file (``ctime``), which only the
        system sets. So a copy of the data has another one, and a file that is replaced is noticed whatever time it carries.
        """
        return self._digests[1]

    @cached_property
    def _digests(self) -> tuple[str, str]:
        """``fingerprint`` and ``change_token``, computed together, so that every file is examined once."""
        fingerprint, token = hashlib.sha256(json.dumps(self.classes).encode()), hashlib.sha256()
        step = max(-(-len(self) // _FILES_READ), 1)
        contents = []
        for number, (file, label) in enumerate(zip(self.files, self.labels.tolist(), strict=True)):
            path = os.path.join(self.root, file)
            found = _status(path)
            fingerprint.update(os.fsencode(f"{label}\0{file}\0{found.st_size}\n"))
            token.update(f"{found.st_mtime_ns}\0{found.st_ctime_ns}\n".encode())
            if number % step == 0 and stat.S_ISREG(
                found.st_mode
            ):  # a pipe or broken link is named when it is read as an image
                with open(path, "rb") as content:
                    contents.append(hashlib.sha256(content.read(_BYTES_READ)).digest())
        fingerprint.update(b"".join(contents))
        token.update(fingerprint.digest())
        return fingerprint.hexdigest(), token.hexdigest()

    def image(self, index: int) -> Image.Image:
        """Return image ``index``, decoded and the right way up.

        Raises:
            UnreadableImage: the file is not an image or is cut short, or a link that leads nowhere; it is named.
            OSError: the file is missing or cannot be read.
        """
        try:
            return read_image(self.root / self.files[index])
        except UnreadableImage as error:
            raise UnreadableImage(f"{error}, or skip unreadable images") from error

    def picture(self, index: int) -> Image.Image:
        """Return image ``index``; deprecated, use ``image``."""
        warn_renamed("FileImages.picture", "image")
        return self.image(index)

    def describe(self, index: int) -> str:
        """Return the path of image ``index``."""
        return str(self.root / self.files[index])

    def subset(self, classes: Iterable[Label]) -> FileImages:
        """Return the images of ``classes``; ``ValueError`` where one does not exist, comes twice, or none is named."""
        names, rows, labels = select_classes(self.labels, self.classes, classes, self.name)
        return FileImages(self.name, self.root, [self.files[i] for i in rows], labels, [str(c) for c in names])


def _status(path: str) -> os.stat_result:
    """Return the status of a file, or of the link itself where a link leads nowhere."""
    try:
        return os.stat(path)
    except OSError:
        if leads_nowhere(path):
            return os.lstat(path)
        raise


__getattr__ = renamed_names(
    __name__, {"PictureSet": "ImageSet", "ArrayPictures": "ArrayImages", "FilePictures": "FileImages"}
)
