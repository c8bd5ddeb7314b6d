"""Means with their 95% intervals, over episodes and over classes, and paired differences on the same episodes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from episodes.metrics.scores import shape_and_dtype
from fewshot_nam.intervals import errors_of


class Interval(NamedTuple):
    """Mean over episodes, and half the width of its 95% confidence interval."""

    mean: float
    ci95: float


def interval(values: Tensor) -> Interval:
    """Mean of per-episode values `(E,)` and 1.96 sd / sqrt(E), with the sample standard deviation.

    Of fewer than 100 values, such as runs, 1.96 standard errors are too narrow: Student's t takes the place of 1.96, which is 12.7
    for two. It covers the choice of episodes only: the classes and images they are drawn from stay fixed. One episode has no
    standard deviation, so its ci95 is NaN.

    Raises:
        ValueError: anything but one value or more in one dimension. A NaN value is passed on.

    >>> interval(torch.tensor([1.0, 2.0, 3.0]))
    Interval(mean=2.0, ci95=2.484...)
    """
    if values.dim() != 1 or values.numel() == 0:
        raise ValueError(f"interval: expected one value per episode (E,), E > 0, got {shape_and_dtype(values)}")
    values = values.double()
    error = errors_of(len(values)) * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Interval(values.mean().item(), error)


def paired(values_a: Tensor, values_b: Tensor) -> Interval:
    """Interval of a - b, two heads' values `(E,)` on the same episodes in the same order."""
    if values_a.shape != values_b.shape:
        raise ValueError(
            f"paired: expected values of the same episodes, got {shape_and_dtype(values_a)} and {shape_and_dtype(values_b)}"
        )
    return interval(values_a.double() - values_b.double())


def class_groups(classes: Sequence[object]) -> tuple[Tensor, str]:
    """Return the group of each class, `(C,)` from 0, and what a group is: `"class"`, or the directory in its name.

    Classes whose names share a directory resemble each other, so they are left out together. Otherwise each class is a
    group.

    >>> class_groups(["a/1", "a/2", "b/1", "c/1", "d/1", "e/1"])
    (tensor([0, 0, 1, 2, 3, 4]), 'directory of classes')
    >>> class_groups(["cat", "dog"])
    (tensor([0, 1]), 'class')
    """
    parents = [str(name).rpartition("/")[0] for name in classes]
    number = {parent: i for i, parent in enumerate(dict.fromkeys(parents))}
    if all(parents) and _LEAST_GROUPS <= len(number) < len(parents):
        return torch.tensor([number[parent] for parent in parents]), "directory of classes"
    return torch.arange(len(parents)), "class"


def ci95_over_classes(values: Tensor, present: Tensor) -> Tensor:
    """Half the width of the 95% interval of means over episodes, where the classes are a sample as well.

    A jackknife over groups of classes: the mean over the episodes without any class of group g is what the evaluation
    would have given without these classes. The variance of these means over g, times G - 1, estimates the variance that
    the choice of classes causes. Part of it is chance, because each mean is over fewer episodes: `s^2 (1 / E_g - 1 / E)`
    for E_g of E episodes with variance s^2. This is subtracted, and the variance of the mean over all episodes is added.

    Source: Efron and Stein, "The Jackknife Estimate of Variance" (1981): the estimate is too large rather than too small.

    Args:
        values: one value per episode and measure, `(E, k)`.
        present: whether a class of the group is in the episode, `(E, G)` bool.

    Returns:
        `(k,)` float64; NaN where it cannot be computed: fewer than 5 groups, or a group that is missing from fewer than
        20 episodes.

    """
    if values.dim() != 2 or present.dim() != 2 or len(values) != len(present):
        raise ValueError(
            f"ci95_over_classes: expected values (E, k) and present (E, G), got {shape_and_dtype(values)} and "
            f"{shape_and_dtype(present)}"
        )
    values, absent = values.double(), (~present).double()
    episodes, groups = absent.shape
    left = absent.sum(0)
    if groups < _LEAST_GROUPS or bool((left < _LEAST_EPISODES).any()):
        return values.new_full((values.shape[1],), math.nan)
    without = absent.T @ values / left[:, None]
    spread = (without - without.mean(0)).square().sum(0)
    of_episodes = values.var(0)
    by_chance = of_episodes * (1 / left - 1 / episodes).sum()
    of_classes = (groups - 1) / groups * (spread - by_chance)
    return 1.96 * (of_classes.clamp(min=0) + of_episodes / episodes).sqrt()


_LEAST_GROUPS, _LEAST_EPISODES = 5, 20
