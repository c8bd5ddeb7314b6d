"""Training of ``GeneratorHead`` on frozen features, in episodes that treat some base classes as novel.

Stage 1 (``train_class_weights``): a cosine classifier over all base classes is trained with cross-entropy. Stage 2
(``GeneratorTraining``): in every episode the weights of some base classes are hidden, and these classes are learned from a few
images as novel ones; the loss is the cross-entropy over the other base classes and these. The head of the epoch with the best
joint accuracy on validation classes is kept.

Source: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (2018), whose protocol Nam and Seo, "Neural
Attention Memory" (arXiv 2302.09422), use. Departures: each base query of an episode is of another class (theirs are drawn with
replacement), class weights start as class means, and features are frozen in stage 1 too, so images are not augmented.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from episodes.features.bank import FeatureBank
from episodes.metrics.measures import generalized_measures
from episodes.metrics.scores import widened
from episodes.sampling.sampler import Episodes, EpisodeSampler
from fewshot_nam._deprecation import renamed_names
from fewshot_nam.heads.generator import GeneratorHead
from fewshot_nam.io.atomic import replacing
from fewshot_nam.memory.primitives import unit

_PHASES = (
    (1 / 3, 0.1),
    (2 / 3, 0.006),
    (5 / 6, 0.0012),
    (1.0, 0.00024),
)  # each phase: the share of the epochs at which it ends, and its learning rate
_VALIDATED_AT_A_TIME = 32  # episodes


@dataclass(frozen=True)
class GeneratorRecipe:
    """How to train. Every field is part of a checkpoint, which can be resumed with the same recipe only.

    Attributes:
        epochs: how many, of ``steps`` steps each. The learning rate is 0.1 in the first third of them, 0.006 in the second, 0.0012
            until five sixths, and 0.00024 in the last sixth.
        steps: batches an epoch.
        batch: episodes in a batch; in stage 1 a batch is ``batch * 32`` images.
        ways: base classes of an episode that are treated as novel.
        shots: support images of each of them.
        queries: queries of each of them.
        other_queries: queries of other base classes, each of a class of its own.
        momentum: Nesterov momentum.
        weight_decay: of every weight.
        validation_episodes: episodes of the validation after each epoch.
        validation_queries: queries of each novel class there; there are as many base queries as novel queries.
        seed: of the episodes.
    """

    epochs: int = 60
    steps: int = 1000
    batch: int = 8
    ways: int = 5
    shots: int = 1
    queries: int = 3
    other_queries: int = 15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    validation_episodes: int = 2000
    validation_queries: int = 15
    seed: int = 0

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, the first being 0."""
        return next(rate for end, rate in _PHASES if (epoch + 1) <= end * self.epochs * (1 + 1e-9) or end == 1.0)

    def optimizer(self, parameters: Iterator[nn.Parameter] | list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return stochastic gradient descent by this recipe."""
        return torch.optim.SGD(
            parameters, lr=self.rate(0), momentum=self.momentum, weight_decay=self.weight_decay, nesterov=True
        )


def train_class_weights(
    base: FeatureBank, recipe: GeneratorRecipe, on_step: Callable[[float], object] | None = None
) -> Tensor:
    """Return the class weights ``(B, D)`` of a cosine classifier trained on all classes of ``base`` with cross-entropy: stage 1.

    Args:
        base: features to train on, at least one of every class.
        recipe: ``epochs``, ``steps``, ``batch``, the optimizer's settings and the seed are used.
        on_step: called after every step with its loss.

    Raises:
        ValueError: a class without features; it is named.
    """
    weights = nn.Parameter(unit(base.class_means()))
    scale = nn.Parameter(torch.tensor(10.0))
    optimizer = recipe.optimizer([weights, scale])
    features = unit(base.features.float())
    for epoch in range(recipe.epochs):
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        _set_rate(optimizer, recipe.rate(epoch))
        for _ in range(recipe.steps):
            chosen = torch.randint(len(base), (32 * recipe.batch,), generator=generator)
            loss = F.cross_entropy(scale * features[chosen] @ unit(weights).mT, base.labels[chosen])
            _step(optimizer, loss)
            if on_step is not None:
                on_step(loss.item())
    return weights.detach()


class GeneratorTraining:
    """A training run (stage 2). It can be stopped at any time and resumed from its last whole epoch, with the same result.

    Args:
        head: the head to train, in place; its ``base_weights`` are of the classes of ``base``, in order. Parameters that
            ``requires_grad_(False)`` has frozen, say the class weights, stay as they are.
        base: features to train on.
        validation: features of other classes, for choosing the epoch.
        base_queries: features of other images of the base classes, likewise.
        recipe: how to train.
        checkpoint: a file that is resumed if it exists, and written after every epoch; ``None`` for no file.

    Attributes:
        epoch: how many epochs are done.
        log: one dictionary for each: ``epoch``, ``loss``, ``accuracy`` (of training), and the measures of
            ``episodes.metrics.measures.generalized_measures`` on validation classes.

    Raises:
        ValueError: too few base classes for an episode, too few classes or images for validation, class weights of other classes,
            or a checkpoint of another recipe, head or data.
    """

    def __init__(
        self,
        head: GeneratorHead,
        base: FeatureBank,
        validation: FeatureBank,
        base_queries: FeatureBank,
        recipe: GeneratorRecipe,
        checkpoint: Path | None = None,
    ) -> None:
        if len(head.base_weights) != base.num_classes or base_queries.classes != base.classes:
            raise ValueError(
                f"GeneratorTraining: the head has weights of {len(head.base_weights)} classes, base has {base.num_classes}, and "
                f"base_queries "
                f"{base_queries.num_classes}: all three must be the same classes in the same order"
            )
        if recipe.ways + recipe.other_queries > base.num_classes:
            raise ValueError(
                f"GeneratorTraining: {recipe.ways} ways and {recipe.other_queries} base queries, each of a class of its own, need "
                f"{recipe.ways + recipe.other_queries} base classes, and there are {base.num_classes}: use fewer"
            )
        self.head, self.base, self.recipe, self.checkpoint = head, base, recipe, checkpoint
        # The sampler's unknown classes are here the base classes whose weights are not hidden.
        self._sampler = EpisodeSampler(
            base, recipe.ways, recipe.shots, recipe.queries, recipe.other_queries, open_queries=1, seed=recipe.seed
        )
        self._validation = EpisodeSampler(
            validation, recipe.ways, recipe.shots, recipe.validation_queries, open_ways=0, base=base_queries
        )
        self._features = unit(base.features.float())
        self._optimizer = recipe.optimizer(list(head.parameters()))
        self.epoch = 0
        self.log: list[dict[str, float]] = []
        self._best = copy.deepcopy(head.state_dict())
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)

    @property
    def best(self) -> dict[str, float]:
        """The entry of ``log`` with the largest joint accuracy on validation classes; the first one where several are equal."""
        return max(self.log, key=lambda line: line["joint_accuracy"])

    def best_head(self) -> GeneratorHead:
        """Return the head of the best epoch, with frozen weights; before the first epoch, the head as it was given."""
        head = copy.deepcopy(self.head)
        head.load_state_dict(self._best)
        return head.eval().requires_grad_(False)

    def run_epoch(self, on_step: Callable[[float], object] | None = None) -> dict[str, float]:
        """Train for one epoch, validate, write the checkpoint, and return the new entry of ``log``.

        Args:
            on_step: called after every step with its loss, for a progress bar.
        """
        recipe = self.recipe
        _set_rate(self._optimizer, recipe.rate(self.epoch))
        self.head.train()
        loss_sum = correct = 0.0
        first = self.epoch * recipe.steps
        for step in range(first, first + recipe.steps):
            episodes = self._sampler.sample(step * recipe.batch, (step + 1) * recipe.batch)
            scores, targets = self._scores(episodes)
            loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten())
            _step(self._optimizer, loss)
            loss_sum += loss.item()
            correct += (scores.detach().argmax(dim=-1) == targets).float().mean().item()
            if on_step is not None:
                on_step(loss.item())
        self.epoch += 1
        line = {"epoch": self.epoch, "loss": loss_sum / recipe.steps, "accuracy": correct / recipe.steps}
        line |= self.validate()
        self.log.append(line)
        if self.best is line:
            self._best = copy.deepcopy(self.head.state_dict())
        if self.checkpoint is not None:
            self._save(self.checkpoint)
        return line

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Return the mean of every generalized measure over the validation episodes (the same ones each time)."""
        self.head.eval()
        bank, base = self._validation.bank.features, self._validation.base
        assert base is not None
        weights = self.head.base_weights.detach()
        found: dict[str, list[Tensor]] = {}
        for batch in self._validation.batches(self.recipe.validation_episodes, _VALIDATED_AT_A_TIME):
            ways, known = batch.classes.shape[1], batch.query.flatten(1)
            query = torch.cat([bank[known], base.features[batch.base_query]], dim=1)
            scores = self.head.score_episodes(bank[batch.support], query, weights)
            of_known, of_base = torch.split(widened(scores), [known.shape[1], batch.base_query.shape[1]], dim=1)
            targets = len(weights) + torch.arange(ways).repeat_interleave(known.shape[1] // ways)
            measured = generalized_measures(of_base, batch.base_classes, of_known, targets, len(weights))
            for name, values in measured.items():
                found.setdefault(name, []).append(values)
        return {name: torch.cat(parts).mean().item() for name, parts in found.items()}

    def _scores(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Return scores ``(E, Q, B + N)`` and their targets ``(E, Q)``: novel queries first, then base queries."""
        ways = episodes.classes.shape[1]
        query = torch.cat([episodes.query.flatten(1), episodes.unknown.flatten(1)], dim=1)
        novel = len(self.head.base_weights) + torch.arange(ways).repeat_interleave(episodes.query.shape[2])
        targets = torch.cat([novel.expand(len(episodes), -1), episodes.unknown_classes], dim=1)
        scores = self.head.training_scores(
            self._features[episodes.support], self._features[query], hidden=episodes.classes
        )
        return scores, targets

    def _identity(self) -> dict[str, Any]:
        head = {name: getattr(self.head, name) for name in ("ingredients", "order", "gate_width")}
        head["rows_train"] = self.head.base_weights.requires_grad
        return {"recipe": asdict(self.recipe), "head": head, "base": self.base.fingerprint}

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            **self._identity(),
            "epoch": self.epoch,
            "log": self.log,
            "weights": self.head.state_dict(),
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
        }
        with replacing(path) as unfinished:
            torch.save(state, unfinished)

    def _resume(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for what, ours in self._identity().items():
            if state[what] != ours:
                raise ValueError(
                    f"the checkpoint {path} was made with another {what} ({state[what]}, not {ours}): remove it to start anew"
                )
        self.head.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.log, self._best = int(state["epoch"]), state["log"], state["best"]


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


__getattr__ = renamed_names(__name__, {"train_rows": "train_class_weights"})
