"""Supervised pretraining of a backbone on base classes: a cosine-softmax classifier over pictures and their rotations.

The classifier is that of Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (2018), section 3.1:
logits are ``scale * cos(features, class weight)``. Every quarter turn of a class counts as a class of its own, as in
Santoro et al., "One-shot Learning with Memory-Augmented Neural Networks" (2016). The classifier is thrown away afterwards.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """How to train. Every field is part of a checkpoint, which is only resumed with the same recipe.

    Attributes:
        epochs: passes over all pictures in all four turns.
        batch_size: pictures a step.
        learning_rate: the highest rate; it rises linearly over the first 5% of the steps and falls to 0 along a cosine.
        weight_decay: decoupled decay (AdamW).
        scale: what a cosine is multiplied by before the softmax.
        max_turn: random turn on top of the quarter turns, degrees either way.
        max_shift: random shift, as a share of the picture's side.
        zoom: smallest and largest random zoom, drawn for height and width apart.
        max_shear: random shear, as a share of the picture's side.
        thicken: probability that strokes are drawn with a thicker pen.
        blur: probability that the picture is out of focus.
        coarse: probability that the picture has few pixels, from a quarter to a half of the side, and so broad strokes.
        seed: of the initial weights, the order of the pictures and every random change of them.
    """

    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    scale: float = 20.0
    max_turn: float = 12.0
    max_shift: float = 0.08
    zoom: tuple[float, float] = (0.8, 1.2)
    max_shear: float = 0.15
    thicken: float = 0.35
    blur: float = 0.2
    coarse: float = 0.3
    seed: int = 0


class CosineSoftmax(nn.Module):
    """Training logits ``scale * cos(features, weight)``: features ``(B, D)`` to ``(B, classes)``."""

    def __init__(self, feature_dim: int, classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, feature_dim) / math.sqrt(feature_dim))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` of features ``(B, D)``."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


def augment(ink: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Return pictures as another hand, pen and scanner would have made them, at half the side length.

    Args:
        ink: ``(B, 1, 2S, 2S)`` float, ink 1 on paper 0.
        recipe: how much to change, and how often.
        generator: the source of randomness; the same state gives the same pictures.

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

    def some(pictures: Tensor, changed: Tensor, probability: float) -> Tensor:
        return torch.where(uniform(0, 1).view(-1, 1, 1, 1) < probability, changed, pictures)

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


class Pretraining:
    """A training run that can be stopped at any moment and goes on from its last whole epoch, to the same weights.

    Args:
        model: the backbone; it has ``feature_dim``.
        pictures: ``(n, 2S, 2S)`` uint8, ink 255 on paper 0, twice the side that the model wants.
        labels: ``(n,)`` long, classes 0, 1, 2, ...
        recipe: how to train.
        checkpoint: a file to go on from if it is there, and to write after every epoch; ``None`` keeps nothing.

    Raises:
        ValueError: the checkpoint was made with another recipe or other classes.
    """

    def __init__(
        self, model: nn.Module, pictures: Tensor, labels: Tensor, recipe: Recipe, checkpoint: Path | None = None
    ) -> None:
        self.recipe, self.checkpoint = recipe, checkpoint
        self.pictures, self.labels = pictures, labels
        self.model = model.to(memory_format=torch.channels_last)
        self.turned_classes = 4 * (int(labels.max()) + 1)
        self.classifier = CosineSoftmax(int(model.feature_dim), self.turned_classes, recipe.scale)  # type: ignore[arg-type]
        self.parameters = [*self.model.parameters(), *self.classifier.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.epoch = 0
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over all pictures in all four turns; a last, smaller batch is left out."""
        return 4 * len(self.pictures) // self.recipe.batch_size

    def run_epoch(self, on_step: Callable[[float], object] | None = None) -> dict[str, float]:
        """Train for one epoch, write the checkpoint, and return the mean ``loss`` and training ``accuracy`` (0 to 1).

        Args:
            on_step: called after every step with its loss, for a progress bar.
        """
        recipe, steps = self.recipe, self.steps_per_epoch
        # A generator of its own for every epoch: a resumed run then sees what an unbroken one would have seen.
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + self.epoch)
        order = torch.randperm(4 * len(self.pictures), generator=generator)
        self.model.train()
        loss_sum = correct = 0.0
        for step in range(steps):
            chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            inputs, targets = self._batch(chosen, generator)
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * self._rate(self.epoch * steps + step)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                features = self.model(inputs)
            logits = self.classifier(features.float())
            loss = F.cross_entropy(logits, targets)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            loss_sum += loss.item()
            correct += (logits.argmax(dim=-1) == targets).float().mean().item()
            if on_step is not None:
                on_step(loss.item())
        self.epoch += 1
        if self.checkpoint is not None:
            self._save(self.checkpoint)
        return {"loss": loss_sum / steps, "accuracy": correct / steps}

    def _batch(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        which, quarter = chosen % len(self.pictures), chosen // len(self.pictures)
        ink = self.pictures[which].float().div_(255).unsqueeze(1)
        for turns in range(1, 4):
            ink[quarter == turns] = ink[quarter == turns].rot90(turns, (2, 3))
        inputs = augment(ink, self.recipe, generator).contiguous(memory_format=torch.channels_last)
        return inputs, self.labels[which] * 4 + quarter

    def _rate(self, step: int) -> float:
        total = self.recipe.epochs * self.steps_per_epoch
        warm = max(1, total // 20)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": asdict(self.recipe),
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        unfinished = path.with_name(path.name + ".tmp")
        torch.save(state, unfinished)
        os.replace(unfinished, path)

    def _resume(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            theirs, ours = state["recipe"], asdict(self.recipe)
            differ = ", ".join(
                f"{key} {theirs.get(key)!r} not {ours[key]!r}" for key in ours if theirs.get(key) != ours[key]
            )
            raise ValueError(
                f"the checkpoint {path} was made with another recipe ({differ}): remove it to start afresh"
            )
        classes = len(state["classifier"]["weight"])
        if classes != self.turned_classes:
            raise ValueError(
                f"the checkpoint {path} is for {classes // 4} classes, the data have {self.turned_classes // 4}"
            )
        self.model.load_state_dict(state["model"])
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = int(state["epoch"])
