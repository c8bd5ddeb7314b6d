"""Tasks on weighted graphs, shown edge by edge: the shortest path, and the minimum spanning tree.

Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020), publish the accuracy of single answers on tasks of
these names, but neither code nor sizes, so the design is ours: a graph is connected, with ``N`` nodes and twice as many edges
(all, where there are fewer), whose weights are uniform from 0 to 1; a row is the labels of both ends of an edge, one-hot, and
its weight. Labels, the order of edges and the order of ends are drawn anew for every sequence. Published figures are
therefore not comparable.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch
from fewshot_nam.sequences.tasks.vectors import VectorTask, check_lengths, one_hot, random_labels, splits_up_to


class _GraphTask(VectorTask):
    def __init__(self, train: tuple[int, int] = (5, 8), labels: int = 12) -> None:
        check_lengths(type(self).__name__, train, 3, labels)
        super().__init__(2 * labels + 2)  # both ends, the weight, and whether the row is a question
        self.labels = labels
        self.vocabulary = (*map(str, range(labels)), ".", "pad")
        self.splits = splits_up_to(train, labels)

    def _graphs(self, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the ends ``(B, E, 2)`` of edges, as labels, and their weights ``(B, E)``."""
        if not 3 <= length <= self.labels:
            raise ValueError(f"{self.name}: needs 3 to {self.labels} nodes, got {length}")
        pairs = torch.tensor(list(itertools.combinations(range(length), 2)))
        edges = min(2 * length, len(pairs))
        # Node i is joined to a node before it, so that the graph is connected; other edges are drawn from all that are left.
        score = torch.rand(count, len(pairs), generator=generator)
        for node in range(1, length):
            ends_here = (pairs[:, 1] == node).nonzero().squeeze(1)
            joined = ends_here[torch.randint(len(ends_here), (count,), generator=generator)]
            score[torch.arange(count), joined] += 1
        chosen = pairs[score.topk(edges, dim=1).indices]
        order = torch.rand(count, edges, generator=generator).argsort(dim=1)
        chosen = chosen.gather(1, order.unsqueeze(2).expand(-1, -1, 2))
        turned = torch.rand(count, edges, 1, generator=generator) < 0.5
        chosen = torch.where(turned, chosen.flip(2), chosen)
        labels = random_labels(count, length, self.labels, generator)
        ends = torch.unflatten(labels.gather(1, chosen.flatten(1)), 1, (edges, 2))
        # Never 0, which scipy takes for no edge.
        return ends, 1 - torch.rand(count, edges, generator=generator)

    def _rows(self, ends: Tensor, weights: Tensor, question: float = 0.0) -> Tensor:
        last = torch.stack([weights, torch.full_like(weights, question)], dim=2)
        return torch.cat([one_hot(ends, self.labels).flatten(2), last], dim=2)

    def _matrix(self, ends: Tensor, weights: Tensor) -> Tensor:
        """Return the weights ``(B, labels, labels)`` of graphs, 0 where there is no edge."""
        matrix = torch.zeros(len(ends), self.labels, self.labels, dtype=torch.float64)
        rows = torch.arange(len(ends)).unsqueeze(1)
        matrix[rows, ends[..., 0], ends[..., 1]] = weights.double()
        matrix[rows, ends[..., 1], ends[..., 0]] = weights.double()
        return matrix


@register("shortest_path")
class ShortestPath(_GraphTask):
    """List the nodes of the shortest path between two nodes of a weighted graph. Length: the nodes of the graph.

    Behind the edges stands a question with the labels of both nodes. The answer is the nodes behind the first one, up to and
    with the second, then ``.``.

    Args:
        train: the fewest and the most nodes of training and of ``id``.
        labels: how many labels there are, the most nodes of a test.

    Raises:
        ValueError: less than 3 nodes, or more than labels.
    """

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        from scipy.sparse.csgraph import dijkstra

        ends, weights = self._graphs(count, length, generator)
        answer = torch.full((count, length), self.labels)
        counts = torch.zeros(count, length, dtype=torch.bool)
        asked = torch.zeros(count, 1, 2, dtype=torch.long)
        for row, matrix in enumerate(self._matrix(ends, weights).numpy()):
            nodes = torch.unique(ends[row])
            source, goal = nodes[torch.randperm(length, generator=generator)[:2]].tolist()
            asked[row, 0] = torch.tensor([source, goal])
            before = dijkstra(matrix, directed=False, indices=source, return_predecessors=True)[1]
            path = [goal]
            while int(before[path[-1]]) != source:
                path.append(int(before[path[-1]]))
            answer[row, : len(path)] = torch.tensor(path[::-1])
            counts[row, : len(path) + 1] = True
        question = self._rows(asked, torch.zeros(count, 1), question=1.0)
        return self._asked(torch.cat([self._rows(ends, weights), question], dim=1), answer, counts)


@register("spanning_tree")
class SpanningTree(_GraphTask):
    """List the edges of the minimum spanning tree of a weighted graph, the lightest first. Length: the nodes of the graph.

    This is the order of Kruskal's algorithm. An edge is two answers: the labels of its ends, the smaller one first.

    Args:
        train: the fewest and the most nodes of training and of ``id``.
        labels: how many labels there are, the most nodes of a test.

    Raises:
        ValueError: less than 3 nodes, or more than labels.
    """

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        from scipy.sparse.csgraph import minimum_spanning_tree

        ends, weights = self._graphs(count, length, generator)
        answer = torch.empty(count, 2 * (length - 1), dtype=torch.long)
        for row, matrix in enumerate(self._matrix(ends, weights).numpy()):
            tree = minimum_spanning_tree(matrix).tocoo()
            edges = sorted(zip(tree.data, tree.row, tree.col, strict=True))
            answer[row] = torch.tensor([end for _, *both in edges for end in sorted(both)])
        return self._asked(self._rows(ends, weights), answer)
