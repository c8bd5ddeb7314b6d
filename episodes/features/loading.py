"""Batches of images: opened, transformed and stacked, in this process or in a worker process of a loader."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from episodes.data.image_dataset import ImageSet, open_image
from fewshot_nam.io.image_io import UnreadableImage
from fewshot_nam.vision.image_transform import TransformFailed, transformed


class ImageBatch(NamedTuple):
    """Transformed images of a batch, or the error that stopped it.

    Attributes:
        images: ``(k, C, H, W)``, those that could be read and transformed; None where there are none.
        kept: the k numbers of these images in their set.
        indices: the numbers of all images of the batch.
        error: an error for the receiver to raise; raised in a worker process, it would arrive wrapped in the worker's traceback.
    """

    images: Tensor | None
    kept: list[int]
    indices: range
    error: Exception | None


class ImageBatches(Dataset[ImageBatch]):
    """Batches of transformed images, by number, as a dataset for a ``DataLoader``.

    Args:
        dataset: the images.
        transform: from an image to a tensor ``(C, H, W)``.
        batch_size: images in a batch; the last one may have fewer.
        skip_unreadable: leave out images that cannot be read or transformed; else they are errors.
    """

    def __init__(
        self, dataset: ImageSet, transform: Callable[[Image.Image], Tensor], batch_size: int, skip_unreadable: bool
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.batch_size = batch_size
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __getitem__(self, number: int) -> ImageBatch:
        start = number * self.batch_size
        indices = range(start, min(start + self.batch_size, len(self.dataset)))
        images: dict[int, Tensor] = {}
        try:
            for index in indices:
                try:
                    images[index] = self._transformed(index)
                except (UnreadableImage, TransformFailed):
                    if not self.skip_unreadable:
                        raise
                    continue
                check_size(self.dataset, index, images[index], next(iter(images.values())).shape)
        except (OSError, ValueError) as error:
            return ImageBatch(None, [], indices, error)
        return ImageBatch(torch.stack(list(images.values())) if images else None, list(images), indices, None)

    def _transformed(self, index: int) -> Tensor:
        image = open_image(self.dataset, index)
        try:
            return transformed(image, self.transform, self.dataset.describe(index))
        except MemoryError as error:  # of a worker process, which can only send what the receiver catches
            raise ValueError(f"too little memory for the transform of {self.dataset.describe(index)}") from error


def check_size(dataset: ImageSet, index: int, image: Tensor, expected: torch.Size) -> None:
    """Raise ``ValueError``, naming the image, where its shape is not the expected one."""
    if image.shape != expected:
        raise ValueError(
            f"extract: the backbone's transform gave {tuple(image.shape)} for {dataset.describe(index)}, and "
            f"{tuple(expected)} for the images before; it must give one size for all, say by a centre crop"
        )


def unchanged(batch: Any) -> Any:
    """Return ``batch``: the collate function of a loader whose dataset returns whole batches; a lambda cannot be pickled."""
    return batch
