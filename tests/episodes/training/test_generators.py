"""Training of the learned classifier: the published schedule, episodes that leak nothing, runs that go on where they stopped."""

import dataclasses

import pytest
import torch

from episodes import FeatureBank
from episodes.features.holdout import hold_out
from episodes.training.generators import GeneratorRecipe, GeneratorTraining, train_class_weights
from fewshot_nam.heads import CosineHead, GeneratorHead

D, ALL = 13, ("attention", "write", "erase")
SMALL = GeneratorRecipe(
    epochs=3,
    steps=20,
    batch=4,
    ways=3,
    queries=2,
    other_queries=6,
    validation_episodes=20,
    validation_queries=5,
    seed=1,
)


def bank(classes: int, images: int, seed: int, first: int = 0) -> FeatureBank:
    """Return clustered features with a direction that all share."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(classes, 1, D, generator=generator) + 0.5
    features = (centres + 0.5 * torch.randn(classes, images, D, generator=generator)).relu() + 0.01
    labels = torch.arange(classes).repeat_interleave(images)
    return FeatureBank(features.flatten(0, 1), labels, [f"class{first + i}" for i in range(classes)])


BASE, QUERIES = hold_out(bank(11, 24, seed=2, first=100), 0.25)
VALIDATION = bank(8, 20, seed=3, first=200)


def training(checkpoint=None, recipe=SMALL, ingredients=ALL, base=BASE, seed=0, **options) -> GeneratorTraining:
    torch.manual_seed(seed)
    head = GeneratorHead(BASE.class_means(), ingredients, gate_width=4)
    return GeneratorTraining(head, base, options.get("validation", VALIDATION), QUERIES, recipe, checkpoint)


def test_the_rates_are_the_published_ones():
    rates = [GeneratorRecipe().rate(epoch) for epoch in range(60)]
    assert rates == [0.1] * 20 + [0.006] * 20 + [0.0012] * 10 + [0.00024] * 10
    assert [GeneratorRecipe(epochs=6).rate(epoch) for epoch in range(6)] == [0.1, 0.1, 0.006, 0.006, 0.0012, 0.00024]
    assert [GeneratorRecipe(epochs=1).rate(0), GeneratorRecipe(epochs=2).rate(0)] == [0.00024, 0.006]


def test_training_class_weights_lowers_the_error_on_what_they_are_trained_on():
    recipe = GeneratorRecipe(epochs=6, steps=20, batch=2)
    losses: list[float] = []
    weights = train_class_weights(BASE, recipe, on_step=losses.append)
    assert len(losses) == 120
    assert torch.equal(weights, train_class_weights(BASE, recipe))
    assert not torch.equal(weights, train_class_weights(BASE, dataclasses.replace(recipe, seed=1)))

    def error(given: torch.Tensor) -> float:
        answers = CosineHead().write_base(given, BASE.classes)(BASE.features).argmax(-1)
        return (answers != BASE.labels).float().mean().item()

    assert error(weights) < error(BASE.class_means())


def distracted(classes: int, seed: int) -> FeatureBank:
    """Return features of which half say what class it is, and half nothing: what a classifier can learn to look past."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(classes, 1, D, generator=generator)
    signal = (centres + 0.1 * torch.randn(classes, 16, D, generator=generator)).flatten(0, 1)
    noise = 1.5 * torch.rand(len(signal), D, generator=generator)
    labels = torch.arange(classes).repeat_interleave(16)
    return FeatureBank(torch.cat([signal, noise], dim=1), labels, [f"class{seed}-{i}" for i in range(classes)])


@pytest.mark.parametrize("ingredients", [(), ("attention",), ("write", "erase"), ALL], ids="+".join)
def test_training_helps_on_classes_that_it_has_not_seen(ingredients):
    base, queries = hold_out(distracted(40, seed=5), 0.25)
    torch.manual_seed(0)
    head = GeneratorHead(base.class_means(), ingredients, gate_width=4)
    recipe = dataclasses.replace(SMALL, steps=60, validation_episodes=50)
    run = GeneratorTraining(head, base, distracted(12, seed=6), queries, recipe)
    before = run.validate()
    while run.epoch < 3:
        run.run_epoch()
    assert run.best["joint_accuracy"] > before["joint_accuracy"] + 0.05
    assert run.log[-1]["loss"] < run.log[0]["loss"]


def test_no_query_is_of_a_class_that_is_hidden_from_it_and_none_is_in_the_support(monkeypatch):
    run, seen = training(), []
    scores = GeneratorHead.training_scores

    def spy(head, support, query, hidden):
        seen.append((support.flatten(1, 2), query, hidden))
        return scores(head, support, query, hidden)

    monkeypatch.setattr(GeneratorHead, "training_scores", spy)
    assert run.run_epoch()["loss"] < float("inf")  # the column of a hidden class is -inf: its query would cost infinity
    assert len(seen) == SMALL.steps
    for support, query, hidden in seen:
        assert support.shape == (4, 3, D)
        assert query.shape == (4, 3 * 2 + 6, D)
        assert bool((torch.cdist(support, query) > 0).all())
        assert all(len(set(row)) == 3 for row in hidden.tolist())
    assert len({tuple(hidden.flatten().tolist()) for _, _, hidden in seen}) > 1


@pytest.mark.parametrize("ingredients", [(), ALL], ids="+".join)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path, ingredients):
    whole = training(ingredients=ingredients)
    for _ in range(3):
        whole.run_epoch()
    for epoch in range(3):
        run = training(tmp_path / "run.pt", ingredients=ingredients, seed=epoch)  # what it begins with is forgotten
        if not epoch:
            run = training(tmp_path / "run.pt", ingredients=ingredients)
        assert run.epoch == epoch
        run.run_epoch()
    resumed = training(tmp_path / "run.pt", ingredients=ingredients, seed=9)
    assert resumed.log == whole.log
    for name, weight in whole.head.state_dict().items():
        assert torch.equal(resumed.head.state_dict()[name], weight), name
        assert torch.equal(resumed.best_head().state_dict()[name], whole.best_head().state_dict()[name]), name


def test_class_weights_that_are_frozen_stay(tmp_path):
    run = training(tmp_path / "run.pt", ingredients=("erase",))
    run.head.base_weights.requires_grad_(False)
    before = {name: weight.clone() for name, weight in run.head.named_parameters()}
    run.run_epoch()
    changed = {name for name, weight in run.head.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == set(before) - {"base_weights"}
    with pytest.raises(ValueError, match="made with another head"):
        training(tmp_path / "run.pt", ingredients=("erase",))


def test_the_head_that_is_kept_is_that_of_the_best_epoch():
    run, heads = training(), []
    for _ in range(4):
        run.run_epoch()
        heads.append({name: weight.clone() for name, weight in run.head.state_dict().items()})
    best = max(range(4), key=lambda i: run.log[i]["joint_accuracy"])
    assert run.best["epoch"] == best + 1
    kept = run.best_head()
    assert all(torch.equal(weight, heads[best][name]) for name, weight in kept.state_dict().items())
    assert not any(parameter.requires_grad for parameter in kept.parameters())
    assert any(parameter.requires_grad for parameter in run.head.parameters())


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    training(path).run_epoch()
    with pytest.raises(ValueError, match="made with another recipe"):
        training(path, recipe=dataclasses.replace(SMALL, shots=2))
    with pytest.raises(ValueError, match="made with another head"):
        training(path, ingredients=())
    shuffled = FeatureBank(BASE.features, BASE.labels.flip(0), BASE.classes)
    with pytest.raises(ValueError, match="made with another base"):
        training(path, base=shuffled)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match=r"3 ways and 9 base queries.* need 12 base classes, and there are 11"):
        training(recipe=dataclasses.replace(SMALL, other_queries=9))
    with pytest.raises(ValueError, match="weights of 11 classes, base has 10"):
        training(base=BASE.select_classes(BASE.classes[:10]))
    with pytest.raises(ValueError, match="3 ways need 3 classes, and there are 2"):
        training(validation=VALIDATION.select_classes(VALIDATION.classes[:2]))
