"""Images as a user gives them to the teaching page, read one after the other: features, thumbnails, and why some are left out."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from fewshot_nam.io.decoding_processes import PIXELS_A_SECOND, DecodingProcesses
from fewshot_nam.io.image_folders import EXTENSIONS, directories, images_by_class
from fewshot_nam.io.image_io import UnreadableImage, image_bytes
from fewshot_nam.vision.image_transform import TransformFailed, transformed
from fewshot_nam.vision.model import NAMModel

MOST_IMAGES = 2000  # at a time
MOST_PIXELS = 64_000_000  # of one image, as of the server
_THUMBNAIL_SIZE = 96
_DECODER = DecodingProcesses()


class Turns:
    """Places that are taken in the order in which they are waited for, unlike those of a semaphore; one owner has half of them.

    Args:
        places: how many may be taken at a time.
    """

    def __init__(self, places: int) -> None:
        self._lock, self._free, self._half = threading.Lock(), places, max(1, places // 2)
        self._held: Counter[str] = Counter()  # by owner
        self._waiting: list[tuple[threading.Event, str]] = []

    @contextlib.contextmanager
    def turn(self, owner: str = "") -> Iterator[None]:
        """Wait for a place, and give it to the next at the end; without ``owner`` any number of them."""
        begins = threading.Event()
        with self._lock:
            self._waiting.append((begins, owner))
            self._begin()
        begins.wait()
        try:
            yield
        finally:
            with self._lock:
                self._free += 1
                self._held[owner] -= 1
                if not self._held[owner]:
                    del self._held[owner]
                self._begin()

    def _begin(self) -> None:
        """Give free places to those who have waited for the longest time and whose owner does not have half of them."""
        for waiting in [*self._waiting] if self._free else ():
            begins, owner = waiting
            if self._free and (not owner or self._held[owner] < self._half):
                self._free -= 1
                self._held[owner] += 1
                self._waiting.remove(waiting)
                begins.set()


_TURNS = Turns(2)
_ALONE = Turns(4)  # of images that come one at a time; each may be 64 million pixels
asked_by: ContextVar[str] = ContextVar("asked_by", default="")
"""The address that images come from, which takes half of the turns at most; empty for this machine's, which may take all."""

GivenImage: TypeAlias = "Image.Image | bytes | str | Path"
Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of images that are done, and of all."""


class Features(NamedTuple):
    """Features of images that could be read.

    Attributes:
        values: ``(n, D)``.
        kept: the positions of these images among those given.
        thumbnails: JPEG bytes of each.
        skipped: for each other image, why.
    """

    values: Tensor
    kept: list[int]
    thumbnails: list[bytes]
    skipped: list[str]


def features_of(
    model: NAMModel, images: Sequence[GivenImage], progress: Progress | None = None, most_pixels: int | None = None
) -> Features:
    """Return the features of images; those that cannot be read are left out.

    Args:
        model: whose features.
        images: each decoded after the other.
        progress: is called after each batch.
        most_pixels: of all of them together; ``None`` for no bound.

    Raises:
        ValueError: no image, too many images or pixels, or none that can be read.
    """
    if not images:
        raise ValueError("no images were given")
    if len(images) > MOST_IMAGES:
        raise ValueError(f"{len(images):,} images at a time are too many: give at most {MOST_IMAGES:,}")
    parts: list[Tensor] = []
    thumbnails: list[bytes] = []
    kept: list[int] = []
    skipped: list[str] = []
    pixels = 0
    for start in range(0, len(images), model.batch_size):
        tensors: list[Tensor] = []
        for i in range(start, min(start + model.batch_size, len(images))):
            began = time.monotonic()
            try:
                # One image is decoded at a time: a small file may hold a large one.
                # Who gives many takes turns with others at each; one alone does not wait for these.
                with (_ALONE if len(images) == 1 else _TURNS).turn(asked_by.get()):
                    began = time.monotonic()
                    tensor, thumbnail, size = _prepared(images[i], model)
            except (UnreadableImage, TransformFailed, OSError, ValueError, MemoryError) as error:
                skipped.append(_reason(images[i], error))
                pixels += int((time.monotonic() - began) * PIXELS_A_SECOND)  # it took as long as so many
            else:
                pixels += size
                tensors.append(tensor)
                thumbnails.append(thumbnail)
                kept.append(i)
            if most_pixels is not None and pixels > most_pixels:
                raise ValueError(f"these images have more than {most_pixels:,} pixels together: give fewer at a time")
        if tensors:
            with torch.no_grad():
                parts.append(model.features(tensors))
        if progress is not None:
            progress(min(start + model.batch_size, len(images)), len(images))
    if not parts:
        more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        raise ValueError(f"no image can be used: {skipped[0]}{more}")
    return Features(torch.cat(parts), kept, thumbnails, skipped)


def images_in_folder(folder: str) -> list[tuple[GivenImage, str]]:
    """Return the images of a directory that holds a directory for each class, each with its class.

    Raises:
        ValueError: it is no such directory.
        OSError: it cannot be read.
    """
    try:
        root = Path(folder).expanduser()
        found = bool(folder.strip()) and root.is_dir()
    except (RuntimeError, ValueError):  # the home of an unknown user, a zero byte
        found = False
    if not found:
        raise ValueError(f"{folder!r} is no directory on this computer")
    classes = directories(root)
    if not classes:
        raise ValueError(f"{folder} holds no class directories: expected one directory of images for each class")
    return [(root / file, label) for label, files in images_by_class(folder, root, classes).items() for file in files]


def image_files(paths: Iterable[str | Path]) -> list[str | Path]:
    """Return the paths whose endings are those of images: a folder that is given as a whole may hold other files."""
    return [path for path in paths if str(path).lower().endswith(EXTENSIONS)]


def _prepared(given: GivenImage, model: NAMModel) -> tuple[Tensor, bytes, int]:
    """Return what the backbone takes of an image, its thumbnail, and how many pixels it has."""
    if isinstance(given, Image.Image):
        image = given
    elif isinstance(given, bytes):
        image = _DECODER.decoded(given, "the image", MOST_PIXELS)
    else:
        image = _DECODER.decoded(image_bytes(given), str(given), MOST_PIXELS)
    with torch.no_grad():
        tensor = transformed(image, model.backbone.transform, "the image")
    return tensor, _thumbnail(image), image.width * image.height


def _reason(image: GivenImage, error: Exception) -> str:
    """Return why an image was left out, with the name of the file alone: the page keeps uploads in directories of its own."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(image, Image.Image | bytes):
        return text
    path = Path(image)
    return text.replace(f"{path.parent}/", "") if path.name in text else f"{path.name}: {text}"


def _thumbnail(image: Image.Image) -> bytes:
    scale = 16 * _THUMBNAIL_SIZE / max(image.size)
    if scale < 1:  # converting the whole of a large image takes more memory than it does
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.NEAREST)
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    if max(small.size) < _THUMBNAIL_SIZE:  # a thumbnail never enlarges
        scale = _THUMBNAIL_SIZE / max(small.size)
        small = small.resize([max(1, round(side * scale)) for side in small.size], Image.Resampling.NEAREST)
    written = io.BytesIO()
    small.save(written, "JPEG", quality=80)
    return written.getvalue()
