"""Training in episodes: what the writes read, gradients through them, the form of an episode, and runs that are stopped."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from backbones.conv5 import Conv5
from backbones.pretraining import training
from backbones.pretraining.episodic import (
    EpisodeClassifier,
    EpisodeRecipe,
    StartedRecipe,
    write_jointly,
    write_means,
)
from backbones.pretraining.photo_augment import PhotoExamples
from backbones.pretraining.training import Pretraining
from fewshot_nam.memory import unit, write

RECIPE = EpisodeRecipe(
    epochs=3, batch_size=20, learning_rate=1e-2, side=32, ways=2, shots=(1, 3), queries=2, head="nam", seed=3
)


def some_weights(shots=2, ways=2, width=5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return unit weights of four classes, the unit supports of classes 3 and 1, and these labels; in float64."""
    generator = torch.Generator().manual_seed(7)
    weights = unit(torch.randn(4, width, generator=generator, dtype=torch.float64))
    support = unit(torch.randn(ways, shots, width, generator=generator, dtype=torch.float64))
    return weights, support, torch.tensor([3, 1])[:ways]


@pytest.mark.parametrize("ridge", [0.01, 0.2, 3.0])
@pytest.mark.parametrize("shots", [1, 2, 4])
def test_written_classes_follow_the_formula_and_the_others_are_erased(ridge, shots):
    weights, support, labels = some_weights(shots)
    keys = support.flatten(0, 1)
    inverse = torch.linalg.inv(ridge * torch.eye(5, dtype=torch.float64) + keys.T @ keys)
    found = write_jointly(weights, support, labels, ridge)
    for label, mean in zip(labels.tolist(), support.mean(dim=1), strict=True):
        torch.testing.assert_close(found[label], inverse @ mean / (mean @ inverse @ mean))
    for other in (0, 2):
        torch.testing.assert_close(found[other], ridge * inverse @ weights[other])


@pytest.mark.parametrize("ridge", [1e-3, 0.2, 50.0])
def test_every_written_class_reads_one_for_its_own_mean_at_any_ridge(ridge):
    weights, support, labels = some_weights()
    reads = (write_jointly(weights, support, labels, ridge)[labels] * support.mean(dim=1)).sum(dim=1)
    torch.testing.assert_close(reads, torch.ones(2, dtype=torch.float64))


def test_one_shot_of_one_class_is_the_write_of_the_paper():
    weights, support, labels = some_weights(shots=1, ways=1)
    memory = weights.clone()
    memory[labels] = 0
    value = F.one_hot(labels, 4).double()[0]
    expected = write(memory, support[0, 0], value)
    torch.testing.assert_close(write_jointly(weights, support, labels, 1e-9), expected)


def test_means_are_written_at_unit_length_and_the_others_stay():
    weights, support, labels = some_weights()
    found = write_means(weights, support, labels)
    assert torch.equal(found[[0, 2]], weights[[0, 2]])
    torch.testing.assert_close(found[[3, 1]], unit(support.mean(dim=1)))


@pytest.mark.parametrize("head", [write_means, lambda *given: write_jointly(*given, 0.2)], ids=["cosine", "nam"])
def test_the_gradient_through_the_write_agrees_with_finite_differences(head):
    weights, support, labels = some_weights()
    parts = (weights.requires_grad_(), support.requires_grad_())
    assert torch.autograd.gradcheck(lambda w, s: head(unit(w), unit(s), labels), parts)


def classifier(recipe=RECIPE, classes=4, width=6) -> EpisodeClassifier:
    generator = torch.Generator().manual_seed(1)
    return EpisodeClassifier.from_means(torch.rand(classes, width, generator=generator), recipe)


@pytest.mark.parametrize("head", ["nam", "cosine"])
def test_the_gradient_of_an_episode_s_loss_agrees_with_finite_differences(head):
    episode = classifier(dataclasses.replace(RECIPE, head=head)).double().eval()
    generator = torch.Generator().manual_seed(5)
    features = torch.rand(20, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1] * 3 + [3] * 3 + [1] * 2 + [3] * 2 + [0, 2] * 5)

    def loss(features: torch.Tensor, weight: torch.Tensor, log_factor: torch.Tensor) -> torch.Tensor:
        parameters = {"weight": weight, "log_factor": log_factor, "centre": episode.centre}
        logits, wanted = torch.func.functional_call(_Logits(episode), _prefixed(parameters), (features, targets))
        return F.cross_entropy(logits, wanted)

    assert torch.autograd.gradcheck(loss, (features, episode.weight, episode.log_factor))
    weight_gradient = torch.autograd.grad(loss(features, episode.weight, episode.log_factor), episode.weight)[0]
    # The trained weights of classes that were written from images have no part in the episode.
    assert torch.equal(weight_gradient.abs().sum(dim=1) > 0, torch.tensor([True, False, True, False]))


class _Logits(torch.nn.Module):
    """Calls ``logits`` where ``functional_call`` calls a module."""

    def __init__(self, objective: EpisodeClassifier) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, features: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.objective.logits(features, targets)


def _prefixed(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"objective.{name}": value for name, value in parameters.items()}


@pytest.mark.parametrize("head", ["nam", "cosine"])
def test_logits_of_an_episode_are_those_of_each_number_of_shots_in_turn(head):
    episode = classifier(dataclasses.replace(RECIPE, head=head)).eval()
    features = torch.rand(20, 6, generator=torch.Generator().manual_seed(5))
    targets = torch.tensor([1] * 3 + [3] * 3 + [1] * 2 + [3] * 2 + [0, 2] * 5)
    logits, wanted = episode.logits(features, targets)
    assert wanted.tolist() == 2 * targets[6:].tolist()
    keys = unit(features - episode.centre)
    for shots, found in zip((1, 3), logits.chunk(2), strict=True):
        given = (unit(episode.weight), keys[:6].view(2, 3, 6)[:, :shots], torch.tensor([1, 3]))
        weights = write_means(*given) if head == "cosine" else write_jointly(*given, RECIPE.ridge)
        torch.testing.assert_close(found, 20 * keys[6:] @ weights.T, atol=1e-4, rtol=1e-4)


def photos(per_class=8, classes=4) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of four classes: bright in one of the four quarters."""
    labels = torch.arange(per_class * classes) % classes
    levels = torch.randint(
        0, 60, (len(labels), 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    for i, label in enumerate(labels.tolist()):
        levels[i, label % 3, 32 * (label // 2) : 32 * (label // 2) + 32] += 180
    return levels, labels


def test_an_episode_has_its_supports_first_and_no_image_twice():
    examples = PhotoExamples(*photos(), RECIPE)
    drawn = list(classifier().batches(examples, 20, torch.Generator().manual_seed(2)))
    assert len(drawn) == len(examples) // 20
    for _ in range(20):
        drawn += classifier().batches(examples, 20, torch.Generator().manual_seed(len(drawn)))
    for chosen in drawn:
        labels = examples.labels[chosen].tolist()
        assert len(set(chosen.tolist())) == len(chosen) == 20
        first, second = labels[0], labels[3]
        assert first != second
        assert labels[:10] == [first] * 3 + [second] * 3 + [first] * 2 + [second] * 2
        assert not {first, second} & set(labels[10:])
    assert len({tuple(chosen.tolist()) for chosen in drawn}) > 15


def start(recipe=RECIPE, checkpoint=None, model_seed=0) -> Pretraining:
    torch.manual_seed(model_seed)
    return Pretraining(
        Conv5(2), PhotoExamples(*photos(), recipe), recipe, checkpoint, classifier=classifier(recipe, 4, 32)
    )


@pytest.mark.parametrize("head", ["nam", "cosine"])
def test_a_stopped_run_in_episodes_goes_on_to_the_same_weights(tmp_path, head):
    recipe = dataclasses.replace(RECIPE, head=head)
    whole = start(recipe)
    for _ in range(3):
        whole.run_epoch()
    for epoch in range(3):  # a new process each time, which knows the checkpoint alone
        part = start(recipe, tmp_path / "c.pt", model_seed=epoch)
        assert part.epoch == epoch
        part.run_epoch()
    for ours, theirs in ((part.model, whole.model), (part.classifier, whole.classifier)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize("head", ["nam", "cosine"])
def test_training_in_episodes_learns_what_it_is_shown_and_moves_all_its_parts(head):
    run = start(dataclasses.replace(RECIPE, head=head, epochs=25))
    before = {name: value.clone() for name, value in run.classifier.state_dict().items()}
    outcomes = [run.run_epoch() for _ in range(25)]
    assert sum(o["loss"] for o in outcomes[-3:]) < 0.8 * sum(o["loss"] for o in outcomes[:3])
    assert sum(o["accuracy"] for o in outcomes[-3:]) / 3 > 0.6
    for name, value in run.classifier.state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_the_centre_moves_in_training_alone():
    episode = classifier()
    features, targets = torch.rand(20, 6), torch.tensor([1] * 3 + [3] * 3 + [1] * 2 + [3] * 2 + [0, 2] * 5)
    before = episode.centre.clone()
    episode.eval().logits(features, targets)
    assert torch.equal(episode.centre, before)
    episode.train().logits(features, targets)
    torch.testing.assert_close(episode.centre, 0.99 * before + 0.01 * features.mean(dim=0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head": "ridge"}, "head must be one of nam, cosine, got 'ridge'"),
        ({"shots": ()}, "shots must be numbers of at least 1"),
        ({"shots": (0, 5)}, "shots must be numbers of at least 1"),
        ({"ways": 1}, "ways must be from 2 to 3, one less than there are classes, got 1"),
        ({"ways": 4}, "ways must be from 2 to 3"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"ridge": 0.0}, "ridge must be above 0"),
        ({"ridge": float("nan")}, "ridge must be above 0"),
        ({"queries": 8}, "an episode of 2 ways with 3 shots and 8 queries each has 22 images, the batch 20"),
    ],
)
def test_episodes_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        classifier(dataclasses.replace(RECIPE, **changed))


def test_classes_with_too_few_images_are_refused():
    examples = PhotoExamples(*photos(per_class=6), dataclasses.replace(RECIPE, queries=4))
    with pytest.raises(ValueError, match="every class needs 7 images for 3 shots and 4 queries, one has 6"):
        classifier(examples.recipe).check(examples)


def test_examples_without_targets_are_refused():
    class NoTargets:
        classes = 4

    with pytest.raises(ValueError, match=r"episodes need examples with targets \(n,\), NoTargets has none"):
        classifier().check(NoTargets())


def test_an_episode_is_not_divided_among_processes(monkeypatch):
    monkeypatch.setattr(training, "processes", lambda: (0, 2))
    with pytest.raises(ValueError, match="an episode cannot be divided among processes"):
        start()


def test_a_checkpoint_from_other_weights_or_of_another_head_is_refused(tmp_path):
    start(checkpoint=tmp_path / "c.pt").run_epoch()
    with pytest.raises(ValueError, match=r"another recipe \(start '' not 'abc'\)"):
        start(dataclasses.replace(RECIPE, start="abc"), tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"another recipe \(head 'nam' not 'cosine'\)"):
        start(dataclasses.replace(RECIPE, head="cosine"), tmp_path / "c.pt")
    plain = StartedRecipe(epochs=3, batch_size=20, learning_rate=1e-2, side=32, seed=3)
    with pytest.raises(ValueError, match=r"another recipe \(head 'nam' not None"):
        Pretraining(Conv5(2), PhotoExamples(*photos(), plain), plain, tmp_path / "c.pt")
