"""Images as a user gives them to the teaching page, read one after the other: features, thumbnails, and why some are left out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from fewshot_nam.io.image_folders import EXTENSIONS, directories, images_by_class
from fewshot_nam.io.image_io import UnreadableImage, decoded, read_image
from fewshot_nam.vision.image_transform import TransformFailed, transformed
from fewshot_nam.vision.model import NAMModel

MOST_IMAGES = 2000  # at a time
MOST_PIXELS = 64_000_000  # of one image, as of the server
_THUMBNAIL_SIZE = 96

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


def features_of(model: NAMModel, images: Sequence[GivenImage], progress: Progress | None = None) -> Features:
    """Return the features of images; those that cannot be read are left out.

    Raises:
        ValueError: no image, too many, or none that can be read.
    """
    if not images:
        raise ValueError("no images were given")
    if len(images) > MOST_IMAGES:
        raise ValueError(f"{len(images):,} images at a time are too many: give at most {MOST_IMAGES:,}")
    parts: list[Tensor] = []
    thumbnails: list[bytes] = []
    kept: list[int] = []
    skipped: list[str] = []
    for start in range(0, len(images), model.batch_size):
        tensors: list[Tensor] = []
        for i in range(start, min(start + model.batch_size, len(images))):
            try:
                # One image is decoded at a time: a small file may hold a large one.
                tensor, thumbnail = _prepared(images[i], model)
            except (UnreadableImage, TransformFailed, OSError, ValueError, MemoryError) as error:
                skipped.append(_reason(images[i], error))
            else:
                tensors.append(tensor)
                thumbnails.append(thumbnail)
                kept.append(i)
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
    root = Path(folder).expanduser()
    if not folder.strip() or not root.is_dir():
        raise ValueError(f"{folder!r} is no directory on this computer")
    classes = directories(root)
    if not classes:
        raise ValueError(f"{folder} holds no class directories: expected one directory of images for each class")
    return [(root / file, label) for label, files in images_by_class(folder, root, classes).items() for file in files]


def image_files(paths: Iterable[str | Path]) -> list[str | Path]:
    """Return the paths whose endings are those of images: a folder that is given as a whole may hold other files."""
    return [path for path in paths if str(path).lower().endswith(EXTENSIONS)]


def _prepared(given: GivenImage, model: NAMModel) -> tuple[Tensor, bytes]:
    """Return what the backbone takes of an image, and its thumbnail."""
    if isinstance(given, bytes):
        given = decoded(given, "the image", MOST_PIXELS)
    image = given if isinstance(given, Image.Image) else read_image(given, MOST_PIXELS)
    with torch.no_grad():
        tensor = transformed(image, model.backbone.transform, "the image")
    return tensor, _thumbnail(image)


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
