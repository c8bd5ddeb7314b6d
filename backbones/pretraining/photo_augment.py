"""Photographs for pretraining, augmented: a random crop, mirrored or not, with other brightness, contrast and saturation.

Crops have fewer pixels than the images that the network sees after training. This saves time, and makes objects about as large in
training as later: Touvron et al., "Fixing the train-test resolution discrepancy" (2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.conv5 import standardize
from backbones.pretraining.training import Recipe
from fewshot_nam._deprecation import renamed_parameter


@dataclass(frozen=True)
class PhotoRecipe(Recipe):
    """How to train on photographs, beyond what ``Recipe`` says.

    Attributes:
        side: side of a crop in training, in pixels.
        smallest_part: smallest share of an image's area in a crop; above 0, at most 1.
        stretch: largest ratio of a crop's sides, at least 1.
        light: largest change of brightness, contrast and saturation, as a share up or down.
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

    @renamed_parameter("pictures", "images")
    def __init__(self, images: Tensor, labels: Tensor, recipe: PhotoRecipe) -> None:
        self.images, self.labels, self.recipe = images, labels, recipe
        self.classes = int(labels.max()) + 1

    @property
    def targets(self) -> Tensor:
        """The targets ``(n,)`` of all examples."""
        return self.labels

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
