"""Means over episodes with their 95% intervals, and paired differences of two heads on the same episodes."""

import math
from typing import NamedTuple

from torch import Tensor

from episodes.metrics.scores import shape_and_dtype


class Interval(NamedTuple):
    """Mean over episodes, and half the width of its 95% confidence interval."""

    mean: float
    ci95: float


def interval(values: Tensor) -> Interval:
    """Mean of per-episode values `(E,)` and 1.96 sd / sqrt(E), with the sample standard deviation.

    It covers the choice of episodes only: the classes and images they are drawn from stay fixed. One episode has no
    standard deviation, so its ci95 is NaN.

    Raises:
        ValueError: anything but one value or more in one dimension. A NaN value is passed on.

    """
    if values.dim() != 1 or values.numel() == 0:
        raise ValueError(f"interval: expected one value per episode (E,), E > 0, got {shape_and_dtype(values)}")
    values = values.double()
    error = 1.96 * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Interval(values.mean().item(), error)


def paired(values_a: Tensor, values_b: Tensor) -> Interval:
    """Interval of a - b, two heads' values `(E,)` on the same episodes in the same order."""
    if values_a.shape != values_b.shape:
        raise ValueError(
            f"paired: expected values of the same episodes, got {shape_and_dtype(values_a)} and {shape_and_dtype(values_b)}"
        )
    return interval(values_a.double() - values_b.double())
