"""Training in episodes: classifiers whose class weights are written from a few images, inside the training loop.

Every batch is one episode, as in the second stage of Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting"
(2018), which the few-shot code of Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422), follows: a few base classes play novel
ones. Their class weights are written from their support images, the other base classes keep trained weights, and all classes
share one label space. The gradient of the cross-entropy of the queries flows through the write into the backbone.

``write_jointly`` (head ``nam``) and ``write_means`` (head ``cosine``) differ in the write alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.pretraining.photo_augment import PhotoRecipe
from backbones.pretraining.training import Examples, Objective
from fewshot_nam.memory import unit, write_block

HEADS = ("nam", "cosine")

_CENTRE_RATE = 0.01
"""Share of a batch's mean feature in the running mean."""


@dataclass(frozen=True)
class StartedRecipe(PhotoRecipe):
    """How to train on photographs from given weights on.

    Attributes:
        start: the fingerprint of the weights that training starts from; empty for random ones.
    """

    start: str = ""


@dataclass(frozen=True)
class EpisodeRecipe(StartedRecipe):
    """How to train on photographs in episodes. A batch is one episode.

    Attributes:
        head: how class weights are written, ``"nam"`` or ``"cosine"``.
        ways: classes of an episode whose weights are written from images.
        shots: the numbers of images that weights are written from; each episode has a loss for each of them.
        queries: query images of each of these classes. The rest of the batch are queries of other classes.
        ridge: damping of the joint write, above 0; not used by ``"cosine"``.
    """

    head: str = "nam"
    ways: int = 10
    shots: tuple[int, ...] = (1, 5)
    queries: int = 4
    ridge: float = 1.0


def write_means(weights: Tensor, support: Tensor, labels: Tensor) -> Tensor:
    """Return class weights ``(C, D)`` in which those of ``labels`` are the unit mean keys of their support; the others stay.

    Args:
        weights: ``(C, D)``, unit class weights.
        support: ``(N, K, D)``, unit keys.
        labels: ``(N,)`` long, the class of each row of ``support``, all different.
    """
    return weights.index_copy(0, labels, unit(support.mean(dim=1)))


def write_jointly(weights: Tensor, support: Tensor, labels: Tensor, ridge: float) -> Tensor:
    """Return class weights ``(C, D)`` after a joint write of all supports into a memory that holds the other classes' weights.

    This is the rule of the paper, ``W <- WR(W, y, x, 1, 1)``, for all pairs at once (``write_block``): the classes in ``labels``
    are written into empty rows, and their keys are erased from the rows of the others. With
    ``R = (ridge I + sum of x x^T)^-1``, the sum over all keys, and the mean key ``u_c`` of class c, a written class then gets
    ``w_c = R u_c / (u_c^T R u_c)``: it is divided by what it reads for its own mean key, so that ``w_c . u_c = 1`` at any ridge,
    as after a single write of the paper (Theorem 1).

    Args:
        weights: ``(C, D)``, unit class weights; those of ``labels`` are not used.
        support: ``(N, K, D)``, unit keys.
        labels: ``(N,)`` long, the class of each row of ``support``, all different.
        ridge: above 0.
    """
    values = F.one_hot(labels.repeat_interleave(support.shape[1]), len(weights)).to(support.dtype)
    memory = write_block(weights.index_fill(0, labels, 0.0), support.flatten(0, 1), values, ridge=ridge)
    written = memory[labels]
    reads = (written * support.mean(dim=1)).sum(dim=-1, keepdim=True)
    return memory.index_copy(0, labels, written / reads)


class EpisodeClassifier(Objective):
    """Class weights that are written from the support images of an episode, and trained ones of all other classes.

    Features are centred by their running mean and brought to unit length; a query's logits are ``scale`` times its products with
    the class weights, and the scale is trained.

    Args:
        weight: ``(classes, D)``, the class weights to begin with, for centred features.
        centre: ``(D,)``, the mean feature to begin with.
        recipe: form of the episodes, the head, and the scale to begin with.

    Raises:
        ValueError: an unknown head, no room for the episode in a batch, or a number outside its range.
    """

    divisible = False
    centre: Tensor

    def __init__(self, weight: Tensor, centre: Tensor, recipe: EpisodeRecipe) -> None:
        super().__init__()
        if recipe.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {recipe.head!r}")
        if not recipe.shots or min(recipe.shots) < 1:
            raise ValueError(f"shots must be numbers of at least 1, got {recipe.shots}")
        if not 2 <= recipe.ways < len(weight):
            raise ValueError(
                f"ways must be from 2 to {len(weight) - 1}, one less than there are classes, got {recipe.ways}"
            )
        if recipe.queries < 1:
            raise ValueError(f"queries must be at least 1, got {recipe.queries}")
        if not 0 < recipe.ridge < math.inf:
            raise ValueError(f"ridge must be above 0, got {recipe.ridge}")
        taken = recipe.ways * (max(recipe.shots) + recipe.queries)
        if taken > recipe.batch_size:
            raise ValueError(
                f"an episode of {recipe.ways} ways with {max(recipe.shots)} shots and {recipe.queries} queries each has {taken} "
                f"images, the batch {recipe.batch_size}: take fewer, or a larger batch"
            )
        self.recipe = recipe
        self.weight = nn.Parameter(weight.clone())
        self.register_buffer("centre", centre.clone())
        # The logarithm of scale / recipe.scale: weight decay draws it to the scale to begin with.
        self.log_factor = nn.Parameter(torch.zeros(()))

    @classmethod
    def from_means(cls, means: Tensor, recipe: EpisodeRecipe) -> EpisodeClassifier:
        """Return the classifier whose class weights are the mean features ``(classes, D)`` of all classes, centred."""
        centre = means.mean(dim=0)
        return cls(unit(means - centre), centre, recipe)

    @property
    def scale(self) -> Tensor:
        """What products are multiplied by before the softmax."""
        return self.recipe.scale * self.log_factor.exp()

    def check(self, examples: Examples) -> None:
        """Raise ``ValueError`` where a class has too few examples for an episode."""
        images = max(self.recipe.shots) + self.recipe.queries
        fewest = int(torch.bincount(_targets(examples), minlength=examples.classes).min())
        if fewest < images:
            raise ValueError(
                f"every class needs {images} images for {max(self.recipe.shots)} shots and {self.recipe.queries} queries, "
                f"one has {fewest}"
            )

    def batches(self, examples: Examples, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the examples of each episode: the supports class by class, the queries of these classes, and other queries."""
        recipe, targets = self.recipe, _targets(examples)
        shots, images = max(recipe.shots), max(recipe.shots) + recipe.queries
        by_class = [torch.nonzero(targets == label).flatten() for label in range(examples.classes)]
        for _ in range(len(examples) // batch_size):
            ways = torch.randperm(examples.classes, generator=generator)[: recipe.ways].tolist()
            drawn = torch.stack(
                [by_class[way][torch.randperm(len(by_class[way]), generator=generator)[:images]] for way in ways]
            )
            rest = batch_size - drawn.numel()
            others = torch.cat([members for label, members in enumerate(by_class) if label not in ways])
            others = others[torch.randperm(len(others), generator=generator)[:rest]]
            yield torch.cat([drawn[:, :shots].flatten(), drawn[:, shots:].flatten(), others])

    def logits(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(len(shots) * Q, classes)`` and targets of the ``Q`` queries of an episode from ``batches``.

        Args:
            features: ``(B, D)``, of the whole episode.
            targets: ``(B,)``.
        """
        if self.training:
            with torch.no_grad():
                self.centre.lerp_(features.detach().mean(dim=0), _CENTRE_RATE)
        keys = unit(features - self.centre)
        ways, most = self.recipe.ways, max(self.recipe.shots)
        support, query = keys[: ways * most].view(ways, most, -1), keys[ways * most :]
        labels = targets[: ways * most : most]
        scores = [query @ self.class_weights(support[:, :shots], labels).mT for shots in self.recipe.shots]
        return self.scale * torch.cat(scores), targets[ways * most :].repeat(len(self.recipe.shots))

    def class_weights(self, support: Tensor, labels: Tensor) -> Tensor:
        """Return the weights ``(classes, D)`` of all classes, those in ``labels`` written from their support.

        Args:
            support: ``(N, K, D)``, unit keys.
            labels: ``(N,)``, the class of each N.
        """
        weights = unit(self.weight)
        if self.recipe.head == "cosine":
            return write_means(weights, support, labels)
        return write_jointly(weights, support, labels, self.recipe.ridge)


def _targets(examples: Examples) -> Tensor:
    """Return the targets ``(n,)`` of all examples.

    Raises:
        ValueError: the examples have no ``targets``.
    """
    targets = getattr(examples, "targets", None)
    if not isinstance(targets, Tensor):
        raise ValueError(f"episodes need examples with targets (n,), {type(examples).__name__} has none")
    return targets
