"""The tasks of the STM paper against plain re-computation, networkx, and examples written by hand."""

import itertools
import math

import networkx
import pytest
import torch

from fewshot_nam.sequences import tasks
from fewshot_nam.sequences.tasks.geometry import shortest_tours


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_of(task, batch):
    """Yield the rows shown (without flags) and the answers that count, for every sequence."""
    for inputs, targets, mask in zip(*batch, strict=True):
        shown = (inputs[:, -2:] == 0).all(dim=1)
        assert not (mask & shown).any()
        yield inputs[shown, :-2], targets[mask]


def words(task, tokens):
    return [task.vocabulary[token] for token in tokens.tolist()]


@pytest.mark.parametrize("pairs", [1, 14, 24, 26])
def test_associative_retrieval_asks_for_the_digit_behind_a_letter(pairs):
    task = tasks.create("associative_retrieval")
    places = set()
    for inputs, targets, mask in zip(*task.sample(60, seeded(), pairs), strict=True):
        shown = words(task, inputs)
        assert len(shown) == 2 * pairs + 3
        letters, digits = shown[: 2 * pairs : 2], shown[1 : 2 * pairs : 2]
        assert len(set(letters)) == pairs
        assert all(letter.isalpha() for letter in letters)
        assert all(digit.isdigit() for digit in digits)
        assert shown[-3:-1] == ["?", "?"]
        assert words(task, targets[mask]) == [dict(zip(letters, digits, strict=True))[shown[-1]]]
        assert mask.tolist() == [False] * (2 * pairs + 2) + [True]
        places.add(letters.index(shown[-1]))
    assert len(places) > 0.6 * pairs


def test_associative_retrieval_has_the_published_lengths():
    assert tasks.create("associative_retrieval").sample(1, seeded()).inputs.shape == (1, 31)
    longer = tasks.create("associative_retrieval", pairs=24)
    assert longer.sample(1, seeded()).inputs.shape == (1, 51)
    assert longer.splits["ood_hard"].lengths == (26, 26)
    with pytest.raises(ValueError, match="pairs must be from 1 to 24, got 25"):
        tasks.create("associative_retrieval", pairs=25)
    with pytest.raises(ValueError, match="26 letters for 27 pairs"):
        longer.sample(1, seeded(), 27)


def farthest(vectors, labels, n, about):
    """Return the label of the vector that is the n-th farthest from the one labelled ``about``."""
    start = vectors[labels.index(about)]
    distances = [math.dist(start, vector) for vector in vectors]
    return labels[sorted(range(len(vectors)), key=lambda i: -distances[i])[n]]


def test_the_farthest_of_an_example_by_hand():
    vectors, labels = [[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]], [2, 0, 1]
    assert [farthest(vectors, labels, n, about=2) for n in range(3)] == [1, 0, 2]


@pytest.mark.parametrize("length", [3, 8])
def test_nth_farthest(length):
    task = tasks.create("nth_farthest")
    answers = []
    for shown, answer in rows_of(task, task.sample(200, seeded(), length)):
        assert shown.shape == (length, 40)
        vectors, labels = shown[:, :16], shown[:, 16:24].argmax(1).tolist()
        assert vectors.abs().max() <= 1
        assert len(set(labels)) == length
        n, about = shown[:, 24:32].argmax(1), shown[:, 32:].argmax(1)
        assert (shown[:, 16:].sum(dim=1) == 3).all()
        assert len(set(n.tolist())) == len(set(about.tolist())) == 1
        expected = farthest(vectors.double().tolist(), labels, int(n[0]), int(about[0]))
        assert words(task, answer) == [str(expected)]
        answers.append(expected)
    counts = torch.bincount(torch.tensor(answers), minlength=8)
    assert counts.min() > 8  # every label is an answer: 25 each, in the mean


def test_nth_farthest_refuses_more_vectors_than_labels():
    with pytest.raises(ValueError, match="8 labels for 9 vectors"):
        tasks.create("nth_farthest").sample(1, seeded(), 9)
    with pytest.raises(ValueError, match="at least 2 vectors"):
        tasks.create("nth_farthest", vectors=1)
    assert tasks.create("nth_farthest", vectors=4, dimensions=2).sample(3, seeded()).inputs.shape == (3, 5, 2 + 12 + 2)


@pytest.mark.parametrize("length", [1, 20])
def test_copy_bits(length):
    task = tasks.create("copy_bits", bits=5)
    for shown, answer in rows_of(task, task.sample(20, seeded(), length)):
        assert shown[0].tolist() == [0.0] * 5 + [1, 0]
        assert shown[-1].tolist() == [0.0] * 5 + [0, 1]
        assert torch.equal(shown[1:-1, :5].long(), answer)
        assert (shown[1:-1, 5:] == 0).all()
        assert len(answer) == length


@pytest.mark.parametrize(("length", "asked"), [(1, 1), (3, 3), (7, 6), (20, 16), (25, 20)])
def test_priority_sort_lists_the_first_four_fifths(length, asked):
    task = tasks.create("priority_sort", bits=5)
    for shown, answer in rows_of(task, task.sample(20, seeded(), length)):
        ordered = sorted(shown.tolist(), key=lambda row: -row[5])
        assert answer.tolist() == [row[:5] for row in ordered][:asked]
        assert len(answer) == asked


def items_of(shown, bits, rows):
    """Return the items and the query of a sequence of relational recall, as tuples of bits."""
    parts, current = [], None
    for row in shown.tolist():
        if row[bits] or row[bits + 1]:
            current = []
            parts.append(("item" if row[bits] else "query", current))
        else:
            current.extend(row[:bits])
    assert parts[-1] == ("query", [])
    *items, (kind, query), _ = parts
    assert kind == "query"
    assert all(kind == "item" for kind, _ in items)
    assert all(len(item) == bits * rows for _, item in items)
    return [item for _, item in items], query


def related(items, query):
    """Return the answer; among items at the same distance the first one."""
    others = [item for place, item in enumerate(items) if place != items.index(query)]
    differing = [sum(a != b for a, b in zip(item, query, strict=True)) for item in others]
    return others[differing.index(max(differing) if query[-1] else min(differing))]


def test_the_related_item_of_examples_by_hand():
    items = [[0, 0, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0]]
    assert related(items, items[0]) == items[1]  # ends with 1: the farthest
    assert related(items, items[1]) == items[3]  # ends with 0: the nearest
    assert related([[0, 0], [0, 1], [1, 0]], [0, 0]) == [0, 1]  # of two, the first


@pytest.mark.parametrize("length", [2, 5, 12])
@pytest.mark.parametrize("rows", [1, 3])
def test_relational_recall(length, rows):
    task = tasks.create("relational_recall", bits=6, rows=rows)
    places, ends = set(), set()
    for shown, answer in rows_of(task, task.sample(80, seeded(), length)):
        items, query = items_of(shown, 6, rows)
        assert len(items) == length
        if items.count(query) > 1:
            continue  # which of equal items was drawn does not show
        assert answer.flatten().tolist() == related(items, query)
        places.add(items.index(query))
        ends.add(query[-1])
    assert places == set(range(length))
    assert ends == {0, 1}


def test_relational_recall_refuses_one_item():
    with pytest.raises(ValueError, match="at least 2 items, got 1"):
        tasks.create("relational_recall").sample(1, seeded(), 1)


def is_left(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) > 0


def hull(points):
    """Return the hull's points counterclockwise from the first shown: those edges that have all other points on their left."""
    count = range(len(points))
    following = {
        a: b
        for a, b in itertools.permutations(count, 2)
        if all(is_left(points[a], points[b], points[c]) for c in count if c not in (a, b))
    }
    around = [min(following)]
    while following[around[-1]] != around[0]:
        around.append(following[around[-1]])
    assert len(around) == len(following)
    return around


def test_the_hull_of_an_example_by_hand():
    assert hull([(0.5, 0.5), (1, 1), (0, 0), (0, 1), (1, 0)]) == [1, 3, 2, 4]


@pytest.mark.parametrize("length", [3, 5, 20])
def test_convex_hull(length):
    task = tasks.create("convex_hull")
    sizes = set()
    for shown, answer in rows_of(task, task.sample(30, seeded(), length)):
        points, labels = shown[:, :2].double().tolist(), shown[:, 2:].argmax(1).tolist()
        assert len(points) == len(set(labels)) == length
        assert words(task, answer) == [*(str(labels[point]) for point in hull(points)), "."]
        sizes.add(len(answer))
    assert len(sizes) > (length > 3)
    batch = task.sample(2, seeded(), length)
    assert ((batch.inputs[..., -2] == 1).sum(dim=1) == length + 1).all()  # does not tell how many


def test_shortest_tours_are_the_best_of_all_permutations():
    points = torch.rand(12, 7, 2, generator=seeded())
    for one, tour in zip(points.double(), shortest_tours(points), strict=True):
        best = min(itertools.permutations(range(1, 7)), key=lambda order: length_of(one, (0, *order)))
        assert tour.tolist() == [0, *(best if best[0] < best[-1] else best[::-1])]


def length_of(points, order):
    return sum(math.dist(points[a], points[b]) for a, b in zip(order, (*order[1:], order[0]), strict=True))


def test_the_tour_of_an_example_by_hand():
    square = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
    assert shortest_tours(square).tolist() == [[0, 2, 1, 3]]
    assert shortest_tours(torch.rand(1, 3, 2, generator=seeded())).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("length", [3, 6, 12])
def test_travelling_salesman(length):
    task = tasks.create("travelling_salesman")
    batch = task.sample(4, seeded(), length)
    for shown, answer in rows_of(task, batch):
        labels = shown[:, 2:].argmax(1).tolist()
        tour = [labels.index(label) for label in answer.tolist()]
        points = shown[:, :2]
        assert tour == shortest_tours(points.unsqueeze(0))[0].tolist()
        # No exchange of two places makes it shorter.
        best = length_of(points.tolist(), tour)
        for a, b in itertools.combinations(range(length), 2):
            other = list(tour)
            other[a], other[b] = other[b], other[a]
            assert length_of(points.tolist(), other) >= best - 1e-9


def test_tour_lengths_are_measured_and_wrong_tours_have_none():
    task = tasks.create("travelling_salesman")
    batch = task.sample(3, seeded(), (5, 7))
    predictions = batch.targets.clone()
    asked = batch.mask[1].nonzero().squeeze(1)
    predictions[1, asked[0]] = predictions[1, asked[1]]  # a point twice
    found = task.tour_lengths(batch, predictions)
    assert found.isnan().tolist() == [False, True, False]
    for row in (0, 2):
        shown, answer = list(rows_of(task, batch))[row]
        labels = shown[:, 2:].argmax(1).tolist()
        expected = length_of(shown[:, :2].tolist(), [labels.index(label) for label in answer.tolist()])
        assert float(found[row]) == pytest.approx(expected, abs=1e-5)


def graph_of(task, shown):
    graph = networkx.Graph()
    size = task.labels
    for row in shown:
        assert (row[: 2 * size].reshape(2, size).sum(dim=1) == 1).all()
        a, b = (int(row[part].argmax()) for part in (slice(0, size), slice(size, 2 * size)))
        assert not graph.has_edge(a, b)
        graph.add_edge(a, b, weight=float(row[-2]))
    return graph


@pytest.mark.parametrize(("length", "edges"), [(3, 3), (5, 10), (8, 16), (12, 24)])
def test_shortest_path_agrees_with_networkx(length, edges):
    task = tasks.create("shortest_path")
    sizes = set()
    for shown, answer in rows_of(task, task.sample(30, seeded(), length)):
        assert shown[:, -1].tolist() == [0.0] * edges + [1.0]
        graph, question = graph_of(task, shown[:-1]), shown[-1]
        assert graph.number_of_nodes() == length
        assert graph.number_of_edges() == edges
        source, goal = int(question[: task.labels].argmax()), int(question[task.labels : -2].argmax())
        path = networkx.dijkstra_path(graph, source, goal)
        assert words(task, answer) == [*map(str, path[1:]), "."]
        sizes.add(len(path))
    assert len(sizes) > 1
    assert ((task.sample(5, seeded(), length).inputs[..., -2] == 1).sum(dim=1) == length).all()


@pytest.mark.parametrize("length", [3, 8, 12])
def test_spanning_tree_agrees_with_networkx(length):
    task = tasks.create("spanning_tree")
    for shown, answer in rows_of(task, task.sample(30, seeded(), length)):
        tree = networkx.minimum_spanning_tree(graph_of(task, shown))
        edges = sorted(tree.edges(data="weight"), key=lambda edge: edge[2])
        assert words(task, answer) == [str(end) for *both, _ in edges for end in sorted(both)]


@pytest.mark.parametrize("name", ["convex_hull", "travelling_salesman", "shortest_path", "spanning_tree"])
def test_sizes_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match="train must be"):
        tasks.create(name, train=(2, 5))
    with pytest.raises(ValueError, match="train must be"):
        tasks.create(name, train=(5, 9), labels=8)
    task = tasks.create(name, train=(5, 6), labels=6)
    assert list(task.splits) == ["train", "id"]
    with pytest.raises(ValueError, match=f"{name}: needs 3 to 6"):
        task.sample(1, seeded(), 7)
