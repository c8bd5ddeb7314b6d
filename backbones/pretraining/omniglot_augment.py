"""Omniglot's characters for pretraining, augmented: turned, shifted, sheared and scaled, with thicker, blurred or coarser strokes.

Every rotation by a multiple of 90 degrees makes a class of its own, as in Santoro et al., "One-shot Learning with Memory-Augmented
Neural Networks" (2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.pretraining.training import Recipe
from fewshot_nam._deprecation import renamed_parameter


@dataclass(frozen=True)
class InkRecipe(Recipe):
    """How to train on handwriting, beyond what ``Recipe`` says; an epoch is a pass over all images in all four rotations.

    Attributes:
        max_turn: largest further rotation in either direction, in degrees.
        max_shift: largest shift, as a share of the image's side.
        zoom: smallest and largest scale, drawn separately for height and width.
        max_shear: largest shear, as a share of the image's side.
        thicken: probability of thicker strokes.
        blur: probability of a blurred image.
        coarse: probability of a lower resolution, a quarter to a half of the side, which makes strokes broad.
    """

    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    max_turn: float = 12.0
    max_shift: float = 0.08
    zoom: tuple[float, float] = (0.8, 1.2)
    max_shear: float = 0.15
    thicken: float = 0.35
    blur: float = 0.2
    coarse: float = 0.3


class InkExamples:
    """Images of handwriting, each in four rotations, as ``Pretraining`` takes them.

    Args:
        images: ``(n, 2S, 2S)`` uint8, ink 255 on paper 0, twice the side that the model wants.
        labels: ``(n,)`` long, classes 0, 1, 2, ...
        recipe: how much to change an image.
    """

    @renamed_parameter("pictures", "images")
    def __init__(self, images: Tensor, labels: Tensor, recipe: InkRecipe) -> None:
        self.images, self.labels, self.recipe = images, labels, recipe
        self.classes = 4 * (int(labels.max()) + 1)

    def __len__(self) -> int:
        return 4 * len(self.images)

    def batch(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs ``(B, 1, S, S)`` and targets ``(B,)`` of the examples ``chosen`` ``(B,)``."""
        which, quarter = chosen % len(self.images), chosen // len(self.images)
        ink = self.images[which].float().div_(255).unsqueeze(1)
        for turns in range(1, 4):
            ink[quarter == turns] = ink[quarter == turns].rot90(turns, (2, 3))
        return augment(ink, self.recipe, generator), self.labels[which] * 4 + quarter


def augment(ink: Tensor, recipe: InkRecipe, generator: torch.Generator) -> Tensor:
    """Return augmented images at half the side length.

    Args:
        ink: ``(B, 1, 2S, 2S)`` float, ink 1 on paper 0.
        recipe: how much to change, and how often.
        generator: the source of randomness; the same state gives the same images.

    Returns:
        ``(B, 1, S, S)`` float in [0, 1].
    """
    count = ink.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    turn = uniform(-recipe.max_turn, recipe.max_turn) * (math.pi / 180)
    shear = uniform(-recipe.max_shear, recipe.max_shear)
    across, down = 1 / uniform(*recipe.zoom), 1 / uniform(*recipe.zoom)
    cos, sin = turn.cos(), turn.sin()
    shift = [2 * uniform(-recipe.max_shift, recipe.max_shift) for _ in range(2)]
    rows = [across * cos, across * (shear * cos - sin), shift[0], down * sin, down * (shear * sin + cos), shift[1]]
    grid = F.affine_grid(torch.stack(rows, dim=1).reshape(count, 2, 3), list(ink.shape), align_corners=False)
    ink = F.grid_sample(ink, grid, align_corners=False)

    def some(images: Tensor, changed: Tensor, probability: float) -> Tensor:
        return torch.where(uniform(0, 1).view(-1, 1, 1, 1) < probability, changed, images)

    ink = some(ink, F.max_pool2d(ink, 3, stride=1, padding=1), recipe.thicken)
    ink = F.avg_pool2d(ink, 2)
    ink = some(ink, F.avg_pool2d(ink, 3, stride=1, padding=1, count_include_pad=False), recipe.blur)
    side = ink.shape[-1]
    few = int(torch.randint(side // 4, side // 2 + 1, (), generator=generator))
    coarse = F.adaptive_avg_pool2d(ink, few)
    # Averaging thins the ink; a scan of few pixels is stretched to full contrast again.
    coarse = coarse / coarse.amax(dim=(2, 3), keepdim=True).clamp_min(1e-3)
    ink = some(ink, F.interpolate(coarse, size=side, mode="bilinear"), recipe.coarse)
    return ink.clamp_(0, 1)
