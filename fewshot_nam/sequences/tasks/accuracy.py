"""How right the predictions for a batch are: whole sequences, whole padded rows, single tokens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fewshot_nam.sequences.tasks.task import Batch


class Accuracy(NamedTuple):
    """Shares from 0 to 1.

    Attributes:
        exact: sequences whose every asked token is right.
        row: sequences whose every token is right, padding and repeated input included: what the NAM paper publishes.
        token: asked tokens that are right, averaged over all asked tokens of the batch; where a position has several answers,
            each counts.
    """

    exact: float
    row: float
    token: float


def accuracy(predictions: Tensor, batch: Batch) -> Accuracy:
    """Return how right ``predictions`` of tokens, in the shape of the targets, are.

    Raises:
        ValueError: predictions of another shape than the targets, or a batch that asks for nothing.

    >>> import torch
    >>> targets, mask = torch.tensor([[7, 1, 2], [7, 3, 4]]), torch.tensor([[False, True, True]] * 2)
    >>> accuracy(torch.tensor([[0, 1, 2], [7, 3, 0]]), Batch(targets, targets, mask))
    Accuracy(exact=0.5, row=0.0, token=0.75)
    """
    if predictions.shape != batch.targets.shape:
        raise ValueError(
            f"accuracy: predictions {tuple(predictions.shape)} must have the shape of targets {tuple(batch.targets.shape)}"
        )
    if not bool(batch.mask.any()):
        raise ValueError("accuracy: the batch asks for no token: mask is False everywhere")
    right = predictions == batch.targets
    token = float(right[batch.mask].double().mean())
    if right.dim() == 3:
        right = right.all(dim=2)
    exact = (right | ~batch.mask).all(dim=1).double().mean()
    return Accuracy(float(exact), float(right.all(dim=1).double().mean()), token)
