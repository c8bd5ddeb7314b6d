"""Tasks on points in the plane: the convex hull, and the shortest round trip (the travelling salesman).

Source: Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020), section 4, on the tasks of Vinyals et al.,
"Pointer Networks" (2015). A point is two numbers from 0 to 1 and a label, one-hot, drawn anew for every sequence; answers are
labels. Published are the accuracy of single answers (``token``) and the mean length of a tour, for training on 5 to 20 points
and tests on 5 and 10.

Departures. Points are drawn here, not read from the files of Pointer Networks. Answer rows are marked. There are as many as
the longest answer needs, so that their number does not show how long the answer is. By default training has fewer points, so
that there are longer tests.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch
from fewshot_nam.sequences.tasks.vectors import VectorTask, check_lengths, one_hot, random_labels, splits_up_to


class _PointTask(VectorTask):
    def __init__(self, name: str, train: tuple[int, int], labels: int) -> None:
        check_lengths(name, train, 3, labels)
        super().__init__(2 + labels)
        self.labels = labels
        self.vocabulary = (*map(str, range(labels)), ".", "pad")
        self.splits = splits_up_to(train, labels)

    def _points(self, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return points ``(B, length, 2)``, their labels ``(B, length)``, and the rows that show both."""
        if not 3 <= length <= self.labels:
            raise ValueError(f"{self.name}: needs 3 to {self.labels} points, got {length}")
        points = torch.rand(count, length, 2, generator=generator)
        labels = random_labels(count, length, self.labels, generator)
        return points, labels, torch.cat([points, one_hot(labels, self.labels)], dim=2)


@register("convex_hull")
class ConvexHull(_PointTask):
    """Walk around the convex hull of points, counterclockwise from the one of its points that was shown first. Length: the points.

    The answer is the labels of its points, then ``.``.

    Args:
        train: the fewest and the most points of training and of ``id``; ``(5, 20)`` as published.
        labels: how many labels there are, the most points of a test.

    Raises:
        ValueError: less than 3 points, or more than labels.
    """

    def __init__(self, train: tuple[int, int] = (5, 10), labels: int = 20) -> None:
        super().__init__("convex_hull", train, labels)

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        from scipy import spatial

        points, labels, shown = self._points(count, length, generator)
        answer = torch.full((count, length + 1), self.labels)
        counts = torch.zeros(count, length + 1, dtype=torch.bool)
        for row, one in enumerate(points.double().numpy()):
            around = spatial.ConvexHull(one).vertices.tolist()  # counterclockwise
            first = around.index(min(around))
            around = [*around[first:], *around[:first]]
            answer[row, : len(around)] = labels[row, around]
            counts[row, : len(around) + 1] = True
        return self._asked(shown, answer, counts)


@register("travelling_salesman")
class TravellingSalesman(_PointTask):
    """List points in the order of the shortest round trip. Length: the points, at most as many as labels.

    A tour begins with the point that was shown first, in the direction in which its second point was shown before its last
    one. Optimal tours come from the algorithm of Held and Karp (1962), whose work grows with ``2^N N^2``.

    Args:
        train: the fewest and the most points of training and of ``id``; published are ``(5, 5)`` and ``(10, 10)``.
        labels: how many labels there are, the most points of a test.

    Raises:
        ValueError: less than 3 points, or more than labels.
    """

    def __init__(self, train: tuple[int, int] = (5, 8), labels: int = 12) -> None:
        super().__init__("travelling_salesman", train, labels)

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        points, labels, shown = self._points(count, length, generator)
        return self._asked(shown, labels.gather(1, shortest_tours(points)))

    def tour_lengths(self, batch: Batch, predictions: Tensor) -> Tensor:
        """Return the length ``(B,)`` of predicted round trips, NaN where a prediction is none.

        Args:
            batch: of this task.
            predictions: tokens ``(B, T)``; those at ``batch.mask`` count.
        """
        lengths = []
        for inputs, mask, tokens in zip(batch.inputs, batch.mask, predictions, strict=True):
            shown = inputs[: int(mask.long().argmax())]
            labels, tour = shown[:, 2 : 2 + self.labels].argmax(1).tolist(), tokens[mask].tolist()
            if sorted(labels) != sorted(tour):
                lengths.append(torch.tensor(float("nan")))
                continue
            path = shown[[labels.index(label) for label in tour], :2]
            lengths.append(torch.linalg.vector_norm(path - path.roll(1, 0), dim=1).sum())
        return torch.stack(lengths)


def shortest_tours(points: Tensor) -> Tensor:
    """Return the points ``(B, N)`` of the shortest round trips through ``points`` ``(B, N, 2)``, each from 0, see the task."""
    count, number, _ = points.shape
    distance = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    others, start = distance[:, 1:, 1:], distance[:, 0, 1:]
    size = number - 1
    # cost[:, s, j]: the shortest path from point 0 through the set s of other points (a bit each) to j, which is in s.
    cost = torch.full((count, 1 << size, size), torch.inf, dtype=torch.float64)
    for j in range(size):
        cost[:, 1 << j, j] = start[:, j]
    for of_size in _sets_by_size(size)[1:]:
        for j in range(size):
            sets = of_size[(of_size >> j) % 2 == 1]
            cost[:, sets, j] = (cost[:, sets ^ (1 << j)] + others[:, :, j].unsqueeze(1)).amin(dim=2)
    rows = torch.arange(count)
    left = torch.full((count,), (1 << size) - 1)
    last = (cost[rows, left] + start).argmin(dim=1)
    tour = [last]
    for _ in range(size - 1):
        left = left ^ (1 << last)
        last = (cost[rows, left] + others[rows, :, last]).argmin(dim=1)
        tour.append(last)
    around = torch.stack(tour, dim=1) + 1
    around = torch.where((around[:, :1] > around[:, -1:]), around.flip(1), around)
    return torch.nn.functional.pad(around, (1, 0))


@functools.cache
def _sets_by_size(size: int) -> list[Tensor]:
    """Return the subsets of ``size`` things as numbers with a bit for each, the smallest subsets first."""
    return [
        torch.tensor([sum(1 << j for j in chosen) for chosen in itertools.combinations(range(size), members)])
        for members in range(1, size + 1)
    ]
