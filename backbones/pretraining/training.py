"""Supervised pretraining of a backbone on base classes: by default a cosine-softmax classifier on augmented images.

This classifier is that of Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (2018), section 3.1:
logits are ``scale * cos(features, class weight)``. The images and their augmentation are in
``backbones.pretraining.omniglot_augment`` (handwriting) and ``backbones.pretraining.photo_augment``, a classifier that is trained
in episodes in ``backbones.pretraining.episodic``. In a group of processes each computes its share of every batch
(``backbones.pretraining.distributed``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from backbones.pretraining.distributed import begin_alike, sum_over_processes
from fewshot_nam.distributed import processes, wait_for_all


@dataclass(frozen=True)
class Recipe:
    """How to train. Every field is part of a checkpoint, which is only resumed with the same recipe.

    Attributes:
        epochs: passes over all examples.
        batch_size: images a step.
        learning_rate: the highest rate; it rises linearly over the first 5% of the steps and falls to 0 along a cosine.
        weight_decay: decoupled decay (AdamW).
        scale: what a cosine is multiplied by before the softmax.
        seed: of the initial weights, the order of the images and their augmentation.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    scale: float = 20.0
    seed: int = 0


class Examples(Protocol):
    """A set of labelled examples to learn from.

    Attributes:
        classes: the number of different targets.
    """

    classes: int

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def batch(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs ``(B, channels, height, width)`` float and targets ``(B,)`` long of the examples ``chosen`` ``(B,)``.

        The same state of the generator gives the same inputs.
        """
        ...


class Objective(nn.Module):
    """What is trained besides the backbone: it says which examples make a batch, and scores their features.

    It has a parameter ``weight`` ``(classes, D)``.

    Attributes:
        divisible: whether the images of a batch can be scored apart from one another, by several processes.
    """

    divisible = True
    weight: nn.Parameter

    def check(self, examples: Examples) -> None:
        """Raise ``ValueError`` where the examples cannot be trained on; here any can."""

    def batches(self, examples: Examples, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the numbers of the examples ``(batch_size,)`` of each step of an epoch: here each example once, in random order.

        A last, smaller batch is left out, so that there are ``len(examples) // batch_size`` steps.
        """
        order = torch.randperm(len(examples), generator=generator)
        for step in range(len(examples) // batch_size):
            yield order[step * batch_size : (step + 1) * batch_size]

    def logits(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits that the loss is taken of, ``(n, classes)``, and their targets ``(n,)``.

        Args:
            features: ``(B, D)`` of a batch.
            targets: ``(B,)`` long, of the same images.
        """
        raise NotImplementedError


class CosineSoftmax(Objective):
    """Training logits ``scale * cos(features, weight)``: features ``(B, D)`` to ``(B, classes)``."""

    def __init__(self, feature_dim: int, classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, feature_dim) / math.sqrt(feature_dim))
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` of features ``(B, D)``."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))

    def logits(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, classes)`` of all images, and the targets as given."""
        return self(features), targets


class Pretraining:
    """A training run that can be stopped at any moment and resumed at its last complete epoch, with the same final weights.

    Args:
        model: the backbone; it has ``feature_dim``.
        examples: images and targets.
        recipe: how to train.
        checkpoint: a file to resume from if it exists, and to write after every epoch; ``None`` for none. All processes read
            it, and the first writes it.
        device: where to train; images are augmented on the CPU.
        classifier: what is trained besides the backbone; ``None`` for a new ``CosineSoftmax``.

    Raises:
        ValueError: the checkpoint was made with another recipe or other classes; the examples do not suit the classifier; or
            several processes resume at different epochs, are more than the images of a batch, or would divide the batches of a
            classifier that needs them whole.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        recipe: Recipe,
        checkpoint: Path | None = None,
        device: str | torch.device = "cpu",
        classifier: Objective | None = None,
    ) -> None:
        self.recipe, self.checkpoint = recipe, checkpoint
        self.examples = examples
        self.device = torch.device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        if classifier is None:
            classifier = CosineSoftmax(int(model.feature_dim), examples.classes, recipe.scale)  # type: ignore[arg-type]
        if processes()[1] > 1 and not classifier.divisible:
            raise ValueError("an episode cannot be divided among processes: train with one")
        classifier.check(examples)
        self.classifier = classifier.to(self.device)
        self.parameters = [*self.model.parameters(), *self.classifier.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.epoch = 0
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)
        if processes()[1] > recipe.batch_size:
            raise ValueError(f"a batch of {recipe.batch_size} images is too small for {processes()[1]} processes")
        if processes()[1] > 1:
            begin_alike([self.model, self.classifier], self.epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over all examples; a last, smaller batch is left out."""
        return len(self.examples) // self.recipe.batch_size

    def run_epoch(self, on_step: Callable[[float], object] | None = None) -> dict[str, float]:
        """Train for one epoch, write the checkpoint, and return the mean ``loss`` and training ``accuracy`` (0 to 1).

        Args:
            on_step: called after every step with its loss, for a progress bar.
        """
        recipe, steps, (rank, count) = self.recipe, self.steps_per_epoch, processes()
        # Every epoch has a generator of its own, so that a resumed run sees the same images as one that was not interrupted.
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + self.epoch)
        self.model.train()
        self.classifier.train()
        loss_sum = correct = 0.0
        for step, chosen in enumerate(self.classifier.batches(self.examples, recipe.batch_size, generator)):
            # Every process augments the whole batch, so that all generators stay in step and the images are the same.
            inputs, targets = self.examples.batch(chosen, generator)
            inputs = inputs[rank::count].to(self.device).contiguous(memory_format=torch.channels_last)
            targets = targets[rank::count].to(self.device)
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * self._rate(self.epoch * steps + step)
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                features = self.model(inputs)
            share = len(targets) / len(chosen)  # 1 for a process alone
            logits, targets = self.classifier.logits(features.float(), targets)
            loss = share * F.cross_entropy(logits, targets)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            outcome = torch.stack([loss.detach(), share * (logits.argmax(dim=-1) == targets).float().mean()])
            if count > 1:
                sum_over_processes(self.parameters, outcome)
            self.optimizer.step()
            step_loss, step_accuracy = outcome.tolist()
            loss_sum += step_loss
            correct += step_accuracy
            if on_step is not None:
                on_step(step_loss)
        self.epoch += 1
        if self.checkpoint is not None:
            if rank == 0:
                self._save(self.checkpoint)
            if count > 1:
                wait_for_all()  # the next process that reads the checkpoint finds this epoch's
        return {"loss": loss_sum / steps, "accuracy": correct / steps}

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
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            theirs, ours = state["recipe"], asdict(self.recipe)
            differ = ", ".join(
                f"{key} {theirs.get(key)!r} not {ours.get(key)!r}"
                for key in {**ours, **theirs}
                if theirs.get(key) != ours.get(key)
            )
            raise ValueError(
                f"the checkpoint {path} was made with another recipe ({differ}): remove it to start afresh"
            )
        classes = len(state["classifier"]["weight"])
        if classes != self.examples.classes:
            raise ValueError(f"the checkpoint {path} is for {classes} classes, the data have {self.examples.classes}")
        self.model.load_state_dict(state["model"])
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = int(state["epoch"])


def train(run: Pretraining, check: Callable[[], str], check_every: int = 5) -> None:
    """Train to the end, with a progress bar, and print a line for every epoch; of several processes, the first does.

    Args:
        run: the training run, fresh or resumed.
        check: called after every ``check_every``-th epoch and the last; what it returns ends that epoch's line.
        check_every: at least 1.
    """
    epochs, first = run.recipe.epochs, processes()[0] == 0
    while run.epoch < epochs:
        title, hide = f"epoch {run.epoch + 1}/{epochs}", None if first else True
        with tqdm(total=run.steps_per_epoch, desc=title, leave=False, mininterval=1, disable=hide) as bar:
            trained = run.run_epoch(on_step=lambda _loss, bar=bar: bar.update())  # type: ignore[misc]
        if not first:
            continue
        line = f"epoch {run.epoch}: loss {trained['loss']:.3f}, training accuracy {100 * trained['accuracy']:.1f}%"
        if run.epoch % check_every == 0 or run.epoch == epochs:
            line += f", {check()}"
        print(line, flush=True)
