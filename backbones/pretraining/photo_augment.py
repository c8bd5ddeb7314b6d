"""Photographs for pretraining: a random part of each, mirrored or not, in another light.

Parts are smaller than the images that the network will see later, which saves time and makes objects look as large in training
as they do then: Touvron et al., "Fixing the train-test resolution discrepancy" (2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.conv5 import standardize
from backbones.pretraining.training import Recipe


@dataclass(frozen=True)
class PhotoRecipe(Recipe):
    """How to train on photographs, beyond what ``Recipe`` says.

    Attributes:
        side: of the part that the network sees in training, pixels.
        smallest_part: share of an image's area, at least, that is seen; above 0, up to 1.
        stretch: largest ratio by which the sides of that part differ, at least 1.
        light: how much brightness, contrast and saturation may change, as a share either way.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 5e-2
    side: int = 48
    smallest_part: float = 0.25
    stretch: float = 4 / 3
    light: float = 0.3


class PhotoExamples:
    """Photographs of one size, as ``Pretraining`` takes them.

    Args:
        images: ``(n, 3, S, S)`` uint8, RGB.
        labels: ``(n,)`` long, classes 0, 1, 2, ...
        recipe: how much to change an image.
    """

    def __init__(self, images: Tensor, labels: Tensor, recipe: PhotoRecipe) -> None:
        self.images, self.labels, self.recipe = images, labels, recipe
        self.classes = int(labels.max()) + 1

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs ``(B, 3, side, side)`` and targets ``(B,)`` of the examples ``chosen`` ``(B,)``."""
        levels = self.images[chosen].float().div_(255)
        return standardize(augment(levels, self.recipe, generator)), self.labels[chosen]


def augment(images: Tensor, recipe: PhotoRecipe, generator: torch.Generator) -> Tensor:
    """Return a random part of every image, mirrored with probability 1/2, with brightness, contrast and saturation changed.

    Args:
        images: ``(B, 3, S, S)`` float in [0, 1].
        recipe: how much to change.
        generator: the source of randomness; the same state gives the same images.

    Returns:
        ``(B, 3, side, side)`` float in [0, 1].
    """
    count, side = images.shape[0], recipe.side

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    area, stretch = uniform(recipe.smallest_part, 1), uniform(-1, 1) * math.log(recipe.stretch) / 2
    width, height = ((area.sqrt() * (sign * stretch).exp()).clamp(max=1) for sign in (1, -1))
    mirror = uniform(-1, 1).sign()
    across, down = (uniform(-1, 1) * (1 - extent) for extent in (width, height))
    nothing = torch.zeros(count)
    rows = torch.stack([mirror * width, nothing, across, nothing, height, down], dim=1).reshape(count, 2, 3)
    grid = F.affine_grid(rows, [count, 3, side, side], align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def factor() -> Tensor:
        return uniform(1 - recipe.light, 1 + recipe.light).view(-1, 1, 1, 1)

    images = images * factor()
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, factor())
    grey = images.mean(dim=1, keepdim=True)
    return torch.lerp(grey, images, factor()).clamp(0, 1)
