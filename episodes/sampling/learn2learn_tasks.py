"""Conversion from and to learn2learn: images and banks to its ``MetaDataset`` and ``Taskset``, its tasks to ``Episodes``.

learn2learn is imported when a function is called. What to know about its version 0.2.0:

- It draws tasks with Python's global ``random``: seed that to repeat them. Only a ``Taskset`` with ``num_tasks`` keeps its tasks.
- The samples or shots of its task transforms are support and queries together.
- It unpickles the file at a dataset's ``_bookkeeping_path``; the datasets made here have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from episodes.data.image_dataset import ImageSet, open_image
from episodes.features.bank import FeatureBank
from episodes.sampling.sampler import Episodes, check_enough

__all__ = ["as_meta_dataset", "as_taskset", "episodes_from_taskset", "require_learn2learn"]


def require_learn2learn() -> Any:
    """Return the package learn2learn.

    Raises:
        ImportError: it cannot be imported; the message says how to install it.
    """
    try:
        import learn2learn
    except ImportError as error:
        raise ImportError(
            f"learn2learn cannot be imported ({error}): in a virtual environment of its own, "
            "pip install -r requirements/learn2learn.txt"
        ) from error
    return learn2learn


class _Items(Dataset[tuple[Any, int]]):
    """Features or images with the positions of their classes, as a dataset of torch."""

    def __init__(self, data: FeatureBank | ImageSet, transform: Callable[[Any], Any] | None) -> None:
        self.data, self.transform = data, transform
        self.labels = [int(label) for label in data.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        item = self.data.features[index] if isinstance(self.data, FeatureBank) else open_image(self.data, index)
        return (item if self.transform is None else self.transform(item)), self.labels[index]


def as_meta_dataset(data: FeatureBank | ImageSet, transform: Callable[[Any], Any] | None = None) -> Any:
    """Return a ``learn2learn.data.MetaDataset`` of ``(item, label)``, where a label is a position in ``data.classes``.

    No item is loaded yet. Item ``i`` is row ``i`` of a bank, ``(D,)``, or image ``i`` of a set.

    Args:
        data: features or images.
        transform: applied to an item when it is loaded, say a backbone's ``transform``; images need one that returns tensors.

    Raises:
        ImportError: learn2learn is not installed.
        ValueError: images without a transform.
    """
    if transform is None and not isinstance(data, FeatureBank):
        raise ValueError("as_meta_dataset: images need transform=, from an image to a tensor: say backbone.transform")
    items = _Items(data, transform)
    meta_dataset = require_learn2learn().data.MetaDataset
    return meta_dataset(items, indices_to_labels=dict(enumerate(items.labels)))


def as_taskset(
    data: FeatureBank | ImageSet,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    num_tasks: int = -1,
    transform: Callable[[Any], Any] | None = None,
) -> Any:
    """Return a ``learn2learn.data.Taskset`` of N-way tasks with ``shots + queries`` items a class, for ``partition_task``.

    A task is ``(items, labels)``, labels 0 to ``ways - 1`` in a random order of the classes, items sorted by their class.

    Args:
        data: features or images.
        ways: classes a task.
        shots: support items of each.
        queries: query items of each.
        num_tasks: how many tasks are drawn and kept; -1 for an endless number of tasks, none of which is kept.
        transform: as in ``as_meta_dataset``.

    Raises:
        ImportError: learn2learn is not installed.
        ValueError: a number below 1, too few classes or items in a class (it is named), or images without a transform.
    """
    for name, number in {"ways": ways, "shots": shots, "queries": queries}.items():
        if number < 1:
            raise ValueError(f"as_taskset: {name} must be at least 1, got {number}")
    if num_tasks != -1 and num_tasks < 1:
        raise ValueError(f"as_taskset: num_tasks must be at least 1, or -1 for an endless number, got {num_tasks}")
    try:
        check_enough(data, ways, shots, queries, open_ways=0)
    except ValueError as error:
        raise ValueError(f"as_taskset: {error}") from None
    dataset = as_meta_dataset(data, transform)
    learn2learn = require_learn2learn()
    steps = learn2learn.data.transforms
    transforms = [
        steps.FusedNWaysKShots(dataset, n=ways, k=shots + queries),
        steps.LoadData(dataset),
        steps.RemapLabels(dataset),
        steps.ConsecutiveLabels(dataset),
    ]
    return learn2learn.data.Taskset(dataset, transforms, num_tasks=num_tasks)


def episodes_from_taskset(
    taskset: Any, bank: FeatureBank, shots: int = 1, episodes: int | None = None, open_ways: int = 0, seed: int = 0
) -> Episodes:
    """Return the tasks of a learn2learn ``Taskset`` as episodes over a bank, for ``evaluate(bank, episodes=...)``.

    The first ``shots`` items of each class are the support and the others the queries, as in ``partition_task``. Episode ``i`` is
    task ``i`` of a taskset that keeps its tasks. No item is loaded: the taskset may be of images, and the bank of the features of
    the same images in the same order.

    Args:
        taskset: all tasks have the same number of classes, and of items a class.
        bank: row ``i`` is item ``i`` of ``taskset.dataset``, with the same class; the class may have another name.
        shots: support items a class, fewer than a task has of each class.
        episodes: how many; ``None`` for all of a taskset that keeps its tasks.
        open_ways: how many classes of each task are unknown classes; all their items but ``shots`` are unknown queries. 0 for the
            closed protocol. The unknown classes are drawn at random, since learn2learn often sorts the classes of a task.
        seed: of that draw; any integer from 0.

    Raises:
        ValueError: no number of episodes for an endless number of tasks, or more than the taskset keeps; a bank of other items;
            tasks that differ in shape, repeat an item, or have too few items or classes.
    """
    kept = int(taskset.num_tasks)
    count = kept if episodes is None else episodes
    if count == -1:
        raise ValueError("episodes_from_taskset: this taskset draws tasks without end: give their number, episodes=")
    if count < 1 or (kept != -1 and count > kept):
        raise ValueError(
            "episodes_from_taskset: episodes must be from 1"
            + (f" to the {kept} tasks of this taskset" if kept != -1 else "")
            + f", got {count}"
        )
    if shots < 1 or open_ways < 0:
        raise ValueError(
            f"episodes_from_taskset: needs shots of at least 1 and open_ways of at least 0, got {shots} and {open_ways}"
        )
    _check_same_items(taskset.dataset, bank)
    tasks = torch.stack(
        _same_shape([_by_class(_description(taskset, i), bank, i) for i in range(count)], shots, open_ways)
    )
    if open_ways:
        ways = tasks.shape[1]
        raw = np.random.Philox(np.random.SeedSequence([seed])).random_raw(count * ways).reshape(count, ways)
        order = torch.from_numpy(np.argsort(raw, axis=1, kind="stable"))
        tasks = tasks.gather(1, order.unsqueeze(-1).expand_as(tasks))
    known, unknown = tasks[:, : tasks.shape[1] - open_ways], tasks[:, tasks.shape[1] - open_ways :]
    none = torch.empty(count, 0, dtype=torch.long)
    return Episodes(
        classes=bank.labels[known[:, :, 0]],
        support=known[:, :, :shots].contiguous(),
        query=known[:, :, shots:].contiguous(),
        unknown_classes=bank.labels[unknown[:, :, 0]],
        unknown=(unknown[:, :, shots:] if open_ways else unknown[:, :, :0]).contiguous(),
        base_query=none,
        base_classes=none,
    )


def _description(taskset: Any, number: int) -> list[int]:
    """Return the items of task ``number``, as positions, without loading them."""
    if taskset.num_tasks == -1:
        description = taskset.sample_task_description()
    else:
        description = taskset.sampled_descriptions.get(number)
        if description is None:  # as the taskset does when a task is indexed
            description = taskset.sampled_descriptions[number] = taskset.sample_task_description()
    return [item.index for item in description]


def _by_class(items: list[int], bank: FeatureBank, number: int) -> list[list[int]]:
    """Return the items of each class; classes and items are in the order of the task."""
    if len(set(items)) != len(items):
        raise ValueError(
            f"episodes_from_taskset: task {number} repeats an item, which would be support and query at once: "
            "draw without replacement"
        )
    groups: dict[int, list[int]] = {}
    for item, label in zip(items, bank.labels[items].tolist(), strict=True):
        groups.setdefault(label, []).append(item)
    return list(groups.values())


def _same_shape(tasks: list[list[list[int]]], shots: int, open_ways: int) -> list[Tensor]:
    """Return every task as ``(classes, items a class)``; ``ValueError`` where they differ or have too few."""
    shapes = {(len(task), *{len(items) for items in task}) for task in tasks}
    if len(shapes) > 1 or len(shape := shapes.pop()) != 2:
        raise ValueError(
            "episodes_from_taskset: all tasks must have the same number of classes, and all classes the same number of items: "
            "use NWays and KShots, or FusedNWaysKShots"
        )
    classes, items = shape
    if classes <= open_ways or items <= shots:
        raise ValueError(
            f"episodes_from_taskset: tasks of {classes} classes with {items} items each are too small for {shots} shots and "
            f"{open_ways} unknown classes: at least one known class and one query of it must be left"
        )
    return [torch.tensor(task) for task in tasks]


def _check_same_items(dataset: Any, bank: FeatureBank) -> None:
    """Raise ``ValueError`` unless both have as many items, in the same classes."""
    if len(dataset) != len(bank):
        raise ValueError(
            f"episodes_from_taskset: the taskset is over {len(dataset)} items, and the bank has {len(bank)}: give the bank of "
            "the same items in the same order"
        )
    theirs = [dataset.indices_to_labels[i] for i in range(len(dataset))]
    pairs = set(zip(theirs, bank.labels.tolist(), strict=True))
    if not len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
        raise ValueError(
            "episodes_from_taskset: items of one class in the taskset are of several in the bank, or the other way round: give "
            "the bank of the same items in the same order"
        )
