"""What tasks with vectors as inputs share: answer rows, splits by length, and labels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fewshot_nam.sequences.tasks.task import Batch, SequenceTask, Split


class VectorTask(SequenceTask):
    """A task with vectors as inputs.

    Args:
        features: numbers in a row, without the last two, which mark answer rows and padding.
    """

    input_size: int

    def __init__(self, features: int) -> None:
        self.features, self.input_size = features, features + 2

    def _asked(self, shown: Tensor, answer: Tensor, counts: Tensor | None = None) -> Batch:
        """Return sequences of the rows shown, and then an answer row for every part of the answer.

        Args:
            shown: ``(B, R, features)``.
            answer: ``(B, Q)`` long, or with several answers at a position ``(B, Q, A)``.
            counts: ``(B, Q)`` bool, which parts of the answer count; ``None`` for all.
        """
        batch, rows, asked = len(shown), shown.shape[1], answer.shape[1]
        inputs = torch.zeros(batch, rows + asked, self.input_size)
        inputs[:, :rows, :-2] = shown
        inputs[:, rows:, -2] = 1.0
        targets = torch.cat([torch.full((batch, rows, *answer.shape[2:]), self.pad), answer], dim=1)
        mask = torch.zeros(batch, rows + asked, dtype=torch.bool)
        mask[:, rows:] = True if counts is None else counts
        return Batch(inputs, targets, mask)


def splits_up_to(train: tuple[int, int], most: int, size: int = 2048) -> Mapping[str, Split]:
    """Return splits of lengths up to ``most``: ``train``, ``id``, and where there are longer ones ``ood_easy`` and ``ood_hard``."""
    splits = {"train": Split(train, 100_000), "id": Split(train, size)}
    longer = most - train[1]
    if longer >= 2:
        middle = train[1] + (longer + 1) // 2
        splits["ood_easy"] = Split((train[1] + 1, middle), size // 2)
        splits["ood_hard"] = Split((middle + 1, most), size // 2)
    return splits


def check_lengths(where: str, train: tuple[int, int], least: int, most: int) -> None:
    """Raise unless lengths of training are (shortest, longest) from ``least`` to ``most``.

    Raises:
        ValueError: they are not.
    """
    if not least <= train[0] <= train[1] <= most:
        raise ValueError(f"{where}: train must be (shortest, longest) from {least} to {most}, got {train}")


def random_labels(count: int, things: int, labels: int, generator: torch.Generator) -> Tensor:
    """Return different labels ``(count, things)`` below ``labels`` for the things of every sequence."""
    return torch.rand(count, labels, generator=generator).argsort(dim=1, stable=True)[:, :things]


def one_hot(labels: Tensor, count: int) -> Tensor:
    """Return labels as float one-hot vectors ``(..., count)``."""
    return F.one_hot(labels, count).float()
