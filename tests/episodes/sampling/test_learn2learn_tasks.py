"""Tasks of learn2learn are the same as episodes and the other way round; what cannot be one is refused by name."""

import importlib.util
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from episodes import FeatureBank, evaluate, open_dataset
from episodes.sampling.learn2learn_tasks import as_meta_dataset, as_taskset, episodes_from_taskset, require_learn2learn
from episodes.sampling.sampler import EpisodeSampler

needs_learn2learn = pytest.mark.skipif(
    importlib.util.find_spec("learn2learn") is None,
    reason="learn2learn is not installed: it needs an environment of its own, see requirements/learn2learn.txt",
)
CLASSES, EACH, WIDTH = 7, 6, 5


@pytest.fixture(autouse=True)
def _same_tasks_every_time():
    random.seed(0)


def bank(classes: int = CLASSES, each: int = EACH, seed: int = 0) -> FeatureBank:
    """Return a bank whose items are in no order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(each)[torch.randperm(classes * each, generator=generator)]
    centres = torch.randn(classes, WIDTH, generator=generator)
    return FeatureBank(centres[labels] + 0.8 * torch.randn(len(labels), WIDTH, generator=generator), labels + 10)


@needs_learn2learn
def test_a_bank_is_a_meta_dataset():
    features = bank()
    dataset = as_meta_dataset(features)
    assert len(dataset) == len(features)
    assert sorted(dataset.labels) == list(range(CLASSES))
    for label in range(CLASSES):
        assert dataset.labels_to_indices[label] == (features.labels == label).nonzero().flatten().tolist()
    item, label = dataset[3]
    assert torch.equal(item, features.features[3])
    assert label == int(features.labels[3])
    assert type(label) is int


@needs_learn2learn
def test_images_are_a_meta_dataset_and_none_is_opened_to_make_it():
    class Closed:
        name, classes, labels = "closed", ["a", "b"], np.array([0, 1, 1])
        opened = 0

        def __len__(self):
            return 3

        def image(self, index):
            self.opened += 1
            return Image.new("L", (2, 2), index)

    images = Closed()
    dataset = as_meta_dataset(images, transform=lambda image: torch.tensor(np.asarray(image).copy()))
    assert dict(dataset.labels_to_indices) == {0: [0], 1: [1, 2]}
    assert images.opened == 0
    item, label = dataset[2]
    assert (item.tolist(), label, images.opened) == ([[2, 2], [2, 2]], 1, 1)


@needs_learn2learn
def test_tasks_are_what_learn2learn_partitions():
    features = bank()
    from learn2learn.data import partition_task

    for _ in range(20):
        rows, labels = as_taskset(features, ways=3, shots=2, queries=4).sample()
        assert rows.shape == (18, WIDTH)
        (support, _), (query, query_labels) = partition_task(rows, labels, shots=2)
        assert support.shape == (6, WIDTH)
        assert query_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        found = [int((features.features == row).all(dim=1).nonzero()) for row in torch.cat([support, query])]
        assert len(set(found)) == 18
        for label in range(3):
            assert len({int(features.labels[i]) for i in found[6 + 4 * label : 10 + 4 * label]}) == 1


@needs_learn2learn
def test_digits_images_make_tasks_through_a_backbone():
    import backbones

    backbone = backbones.create("conv4")
    taskset = as_taskset(open_dataset("digits")["novel"], ways=2, shots=1, queries=2, transform=backbone.transform)
    images, labels = taskset.sample()
    assert backbone(images).shape == (6, 64)
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]


@needs_learn2learn
@pytest.mark.parametrize("shots", [1, 4])
def test_episodes_are_the_tasks_of_the_taskset(shots):
    from learn2learn.data import partition_task

    features = bank()
    taskset = as_taskset(features, ways=4, shots=shots, queries=EACH - shots, num_tasks=9)
    before = [taskset[i] for i in range(5)]
    drawn = episodes_from_taskset(taskset, features, shots=shots)
    assert len(drawn) == 9
    EpisodeSampler(features, 4, shots, EACH - shots, open_ways=0).check(drawn)
    for i in range(9):
        rows, labels = before[i] if i < 5 else taskset[i]
        (support, support_labels), (query, query_labels) = partition_task(rows, labels, shots=shots)
        for way in range(4):
            known = features.features[drawn.support[i, way]]
            # Their numbers of the classes are drawn anew each time, so a class is found by its items.
            (label,) = {
                int(label) for row, label in zip(support, support_labels, strict=True) if (known == row).all(1).any()
            }
            assert torch.equal(known, support[support_labels == label])
            assert torch.equal(features.features[drawn.query[i, way]], query[query_labels == label])


@needs_learn2learn
def test_evaluate_runs_on_tasks_and_finds_learn2learns_accuracy():
    from learn2learn.data import partition_task
    from learn2learn.nn import PrototypicalClassifier

    features = bank()
    taskset = as_taskset(features, ways=4, shots=2, queries=4, num_tasks=30)
    drawn = episodes_from_taskset(taskset, features, shots=2)
    report = evaluate(features, ["protonet"], "closed", 4, 2, 4, episodes=drawn)
    right = 0
    for rows, labels in taskset:
        (support, support_labels), (query, query_labels) = partition_task(rows, labels, shots=2)
        scores = PrototypicalClassifier(support, support_labels, distance="euclidean")(query)
        right += int((scores.argmax(dim=1) == query_labels).sum())
    assert 0 < right < 30 * 16
    assert report.results["protonet"]["accuracy"]["mean"] == pytest.approx(right / (30 * 16))


@needs_learn2learn
def test_tasks_over_images_become_episodes_without_opening_one():
    class Closed:
        name, classes, labels = "closed", ["a", "b", "c"], np.arange(3).repeat(4)

        def __len__(self):
            return 12

    features = FeatureBank(torch.eye(12), Closed.labels, classes=["x", "y", "z"])
    taskset = as_taskset(Closed(), ways=2, shots=1, queries=3, transform=lambda _: pytest.fail("opened"))
    drawn = episodes_from_taskset(taskset, features, shots=1, episodes=4)
    assert drawn.query.shape == (4, 2, 3)


@needs_learn2learn
def test_some_classes_of_a_task_can_be_unknown_and_which_is_drawn_anew():
    features = bank()
    taskset = as_taskset(features, ways=5, shots=2, queries=3, num_tasks=40)
    drawn = episodes_from_taskset(taskset, features, shots=2, open_ways=2, seed=3)
    EpisodeSampler(features, 3, 2, 3, open_ways=2).check(drawn)
    # learn2learn sorts the classes; the highest are not always the unknown ones.
    highest = torch.cat([drawn.classes, drawn.unknown_classes], dim=1).argmax(dim=1)
    assert 0.2 < (highest >= 3).float().mean() < 0.6
    again = episodes_from_taskset(taskset, features, shots=2, open_ways=2, seed=3)
    assert torch.equal(again.unknown, drawn.unknown)
    other = episodes_from_taskset(taskset, features, shots=2, open_ways=2, seed=4)
    assert not torch.equal(other.unknown, drawn.unknown)
    report = evaluate(features, ["cosine"], "open", 3, 2, 3, 2, episodes=drawn)
    assert report.results["cosine"]["auroc"]["mean"] > 0.6


@needs_learn2learn
def test_their_own_transforms_and_datasets_work_too():
    from learn2learn.data import MetaDataset, Taskset
    from learn2learn.data.transforms import KShots, LoadData, NWays
    from torch.utils.data import TensorDataset

    features = bank()
    dataset = MetaDataset(TensorDataset(features.features, features.labels * 3 + 1))
    taskset = Taskset(dataset, [NWays(dataset, 3), KShots(dataset, 5), LoadData(dataset)], num_tasks=4)
    drawn = episodes_from_taskset(taskset, features, shots=1)
    EpisodeSampler(features, 3, 1, 4, open_ways=0).check(drawn)


@needs_learn2learn
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, t: episodes_from_taskset(t(), b), "draws tasks without end: give their number"),
        (
            lambda b, t: episodes_from_taskset(t(num_tasks=2), b, episodes=3),
            "from 1 to the 2 tasks of this taskset, got 3",
        ),
        (lambda b, t: episodes_from_taskset(t(), b, episodes=0), "from 1, got 0"),
        (lambda b, t: episodes_from_taskset(t(), b, shots=0, episodes=1), "shots of at least 1"),
        (lambda b, t: episodes_from_taskset(t(), b, open_ways=-1, episodes=1), "open_ways of at least 0"),
        (lambda b, t: episodes_from_taskset(t(), b, shots=6, episodes=1), "too small for 6 shots"),
        (lambda b, t: episodes_from_taskset(t(), b, open_ways=3, episodes=1), "too small for 1 shots and 3 unknown"),
        (lambda b, t: episodes_from_taskset(t(), bank(each=7), episodes=1), "over 42 items, and the bank has 49"),
        (lambda b, t: episodes_from_taskset(t(), bank(seed=1), episodes=1), "of several in the bank"),
        (lambda b, t: as_taskset(b, ways=8, queries=2), "8 ways need 8 classes, and there are 7"),
        (lambda b, t: as_taskset(b, shots=2, queries=5), "class 10 has 6 images, and 2 shots and 5 queries need 7"),
        (lambda b, t: as_taskset(b, ways=0), "ways must be at least 1, got 0"),
        (lambda b, t: as_taskset(b, queries=2, num_tasks=0), "num_tasks must be at least 1, or -1"),
        (lambda b, t: as_meta_dataset(open_dataset("digits")["novel"]), "images need transform="),
    ],
)
def test_what_cannot_be_a_task_is_refused(call, message):
    features = bank()
    with pytest.raises(ValueError, match=message):
        call(features, lambda num_tasks=-1: as_taskset(features, ways=3, shots=1, queries=5, num_tasks=num_tasks))


@needs_learn2learn
def test_tasks_that_repeat_an_item_or_differ_in_shape_are_refused():
    from learn2learn.data import Taskset
    from learn2learn.data.transforms import FusedNWaysKShots, NWays

    features = bank()
    dataset = as_meta_dataset(features)
    twice = Taskset(dataset, [FusedNWaysKShots(dataset, n=3, k=30, replacement=True)])
    with pytest.raises(ValueError, match="task 0 repeats an item"):
        episodes_from_taskset(twice, features, episodes=1)
    uneven = FeatureBank(features.features[:-1], features.labels[:-1])
    dataset = as_meta_dataset(uneven)
    with pytest.raises(ValueError, match="the same number of items: use NWays and KShots"):
        episodes_from_taskset(Taskset(dataset, [NWays(dataset, CLASSES)]), uneven, episodes=1)


def test_without_learn2learn_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    for call in (require_learn2learn, lambda: as_meta_dataset(bank()), lambda: as_taskset(bank(), queries=2)):
        with pytest.raises(ImportError, match=r"pip install -r requirements/learn2learn\.txt"):
            call()
