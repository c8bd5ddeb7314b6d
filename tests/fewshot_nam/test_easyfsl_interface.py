"""easyfsl's own evaluation runs our heads and finds what they find; labels that it would turn into NaN are refused."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from fewshot_nam.easyfsl_interface import EasyFSLClassifier
from fewshot_nam.heads import CosineHead, NAMHead, create

HEADS = ["nam", "nam-sequential", "cosine", "protonet", "ridge"]
WAYS, SHOTS, QUERIES, D = 3, 2, 7, 11


def task(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return support, its labels, queries and their labels: classes overlap, so that heads make mistakes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(WAYS, 1, D, generator=generator)
    rows = (centres + 1.5 * torch.randn(WAYS, SHOTS + QUERIES, D, generator=generator)).abs() + 0.1
    labels = torch.arange(WAYS).unsqueeze(-1)
    support, query = rows[:, :SHOTS], rows[:, SHOTS:]
    mixed = torch.randperm(WAYS * SHOTS, generator=generator)
    return (
        support.flatten(0, 1)[mixed],
        labels.expand(-1, SHOTS).flatten()[mixed],
        query.flatten(0, 1),
        labels.expand(-1, QUERIES).flatten(),
    )


class Tasks(Dataset):
    """Twenty tasks, in the shape that easyfsl's loader gives them."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int):
        return (*task(index), list(range(WAYS)))


@pytest.mark.parametrize("name", HEADS)
def test_easyfsl_evaluates_a_head_as_we_do(name):
    evaluate = pytest.importorskip("easyfsl.utils", reason="easyfsl is not installed").evaluate
    right = 0
    for seed in range(len(Tasks())):
        support, labels, query, targets = task(seed)
        order = labels.argsort(stable=True)
        head = create(name)
        scores = head.score_episodes(support[order].view(1, WAYS, SHOTS, D), query.unsqueeze(0))[0]
        right += int((scores.argmax(dim=1) == targets).sum())
    assert 0 < right < 20 * WAYS * QUERIES
    classifier = EasyFSLClassifier(name)
    found = evaluate(classifier, DataLoader(Tasks(), batch_size=None), device="cpu", use_tqdm=False)
    assert found == right / (20 * WAYS * QUERIES)


@pytest.mark.parametrize("name", HEADS)
def test_easyfsl_counts_the_right_answers_of_one_task(name):
    utils = pytest.importorskip("easyfsl.utils", reason="easyfsl is not installed")
    support, labels, query, targets = task(0)
    predicted = create(name).write(support, labels).predict(query)
    if name == "nam-sequential":  # the order of writing counts there, and ours is by label
        order = labels.argsort(stable=True)
        predicted = create(name).write(support[order], labels[order]).predict(query)
    right = sum(a == b for a, b in zip(predicted, targets.tolist(), strict=True))
    assert utils.evaluate_on_one_task(EasyFSLClassifier(name), *task(0)) == (right, len(targets))


def test_our_protonet_is_easyfsls():
    methods = pytest.importorskip("easyfsl.methods", reason="easyfsl is not installed")
    theirs, ours = methods.PrototypicalNetworks(), EasyFSLClassifier("protonet")
    support, labels, query, _ = task(1)
    for classifier in (theirs, ours):
        classifier.process_support_set(support, labels)
    assert torch.equal(theirs(query).argmax(dim=1), ours(query).argmax(dim=1))


def test_easyfsls_sampler_and_features_run_through(monkeypatch):
    datasets = pytest.importorskip("easyfsl.datasets", reason="easyfsl is not installed")
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate

    # Its sampler hands arguments to a constructor that current torch no longer has.
    monkeypatch.setattr(Sampler, "__init__", lambda self, data_source=None: None)
    rows = torch.cat(
        [torch.eye(4) + 0.1 * torch.rand(4, 4, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    )
    dataset = datasets.FeaturesDataset([0, 1, 2, 3] * 5, rows, list("abcd"))
    sampler = TaskSampler(dataset, n_way=3, n_shot=1, n_query=2, n_tasks=6)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    assert evaluate(EasyFSLClassifier(NAMHead()), loader, device="cpu", use_tqdm=False) == 1.0


def test_every_support_set_starts_anew():
    classifier = EasyFSLClassifier("nam")
    classifier.process_support_set(torch.eye(4), torch.arange(4))
    support, labels, query, _ = task(2)
    classifier.process_support_set(support[:, :4], labels)
    fresh = EasyFSLClassifier("nam")
    fresh.process_support_set(support[:, :4], labels)
    assert torch.equal(classifier(query[:, :4]), fresh(query[:, :4]))
    assert classifier(query[:, :4]).shape == (WAYS * QUERIES, WAYS)


def test_images_go_through_the_backbone():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    images, labels = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 3)
    classifier = EasyFSLClassifier(CosineHead(), backbone)
    classifier.process_support_set(images, labels)
    expected = CosineHead().write(backbone(images).detach(), labels)(backbone(images))
    torch.testing.assert_close(classifier(images), expected)
    assert not classifier.is_transductive()
    assert EasyFSLClassifier("tim").is_transductive()
    assert any(name.startswith("backbone") for name, _ in classifier.named_parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda c: c.process_support_set(torch.eye(3), torch.tensor([0, 1, 3])),
            r"labels must be 0 to 2.* got \[0, 1, 3\]",
        ),
        (lambda c: c.process_support_set(torch.eye(3), torch.tensor([1, 2, 3])), "number the classes of the task"),
        (lambda c: c.process_support_set(torch.zeros(2, 3), torch.arange(2)), "is zero"),
        (lambda c: c.process_support_set(torch.ones(2, 3, 4), torch.arange(2)), r"must give features \(n, D\)"),
        (lambda c: c(torch.eye(3)), "knows no class yet"),
        (lambda c: EasyFSLClassifier("nan"), "did you mean 'nam'"),
        (lambda c: EasyFSLClassifier(NAMHead().write(torch.eye(2), ["a", "b"])), "knows 2 classes already"),
    ],
)
def test_what_cannot_be_used_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(EasyFSLClassifier())
