"""Supervised pretraining of a backbone on base classes: the training loop, and the augmentation of images for it."""

from __future__ import annotations

from backbones.pretraining.training import CosineSoftmax, Examples, Pretraining, Recipe, train

__all__ = ["CosineSoftmax", "Examples", "Pretraining", "Recipe", "train"]
