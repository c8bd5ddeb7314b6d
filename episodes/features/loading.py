"""Batches of pictures, opened, transformed and stacked, here or in a loader's worker process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from episodes.data.image_dataset import PictureSet
from fewshot_nam.io.image_io import UnreadablePicture


class TransformFailed(ValueError):
    """A picture for which the backbone's transform raised an error. The message names it."""


class PictureBatch(NamedTuple):
    """What became of some pictures.

    Attributes:
        pictures: ``(k, C, H, W)``, those that could be read and transformed; None without any.
        kept: k numbers of these pictures in their set.
        indices: the numbers of all pictures of the batch.
        error: what went wrong, for the receiver to raise: raised in a worker, it would arrive in a page of traceback.
    """

    pictures: Tensor | None
    kept: list[int]
    indices: range
    error: Exception | None


class PictureBatches(Dataset[PictureBatch]):
    """Batches of transformed pictures, by number; opened and stacked wherever the loader runs it."""

    def __init__(
        self, dataset: PictureSet, transform: Callable[[Image.Image], Tensor], batch_size: int, skip_unreadable: bool
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.batch_size = batch_size
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __getitem__(self, number: int) -> PictureBatch:
        start = number * self.batch_size
        indices = range(start, min(start + self.batch_size, len(self.dataset)))
        pictures: dict[int, Tensor] = {}
        try:
            for index in indices:
                try:
                    transformed = self._transformed(self.dataset.picture(index), index)
                except (UnreadablePicture, TransformFailed):
                    if not self.skip_unreadable:
                        raise
                    continue
                pictures[index] = transformed
                check_size(self.dataset, index, pictures[index], next(iter(pictures.values())).shape)
        except (OSError, ValueError) as error:
            return PictureBatch(None, [], indices, error)
        return PictureBatch(torch.stack(list(pictures.values())) if pictures else None, list(pictures), indices, None)

    def _transformed(self, picture: Image.Image, index: int) -> Tensor:
        try:
            transformed = self.transform(picture)
        except Exception as error:
            # Too little memory is no fault of the picture, which must not be skipped for it.
            failure = ValueError if isinstance(error, MemoryError) else TransformFailed
            raise failure(
                f"extract: the backbone's transform failed on {self.dataset.describe(index)}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if not isinstance(transformed, Tensor) or transformed.ndim != 3:
            got = tuple(transformed.shape) if isinstance(transformed, Tensor) else type(transformed).__name__
            raise ValueError(
                f"extract: the backbone's transform gave {got} for {self.dataset.describe(index)}, expected a tensor (C, H, W)"
            )
        return transformed


def check_size(dataset: PictureSet, index: int, picture: Tensor, expected: torch.Size) -> None:
    """Raise ``ValueError``, naming the picture, where its shape is not the expected one."""
    if picture.shape != expected:
        raise ValueError(
            f"extract: the backbone's transform gave {tuple(picture.shape)} for {dataset.describe(index)}, and "
            f"{tuple(expected)} for the pictures before; it must give one size for all, say by a centre crop"
        )


def as_it_is(batch: Any) -> Any:
    """Return ``batch``: a loader that is to collate nothing wants a function that says so, and can be pickled."""
    return batch
