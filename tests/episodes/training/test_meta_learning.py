"""MAML and ANIL by learn2learn adapt as their papers say, learn from base classes what helps on others, and are heads."""

import copy
import importlib.util
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from episodes import FeatureBank, evaluate
from episodes.training.meta_learning import META_LEARNED, MetaLearnedHead, meta_train
from fewshot_nam.heads import CosineHead
from fewshot_nam.heads.registry import available, create, spec

needs_learn2learn = pytest.mark.skipif(
    importlib.util.find_spec("learn2learn") is None,
    reason="learn2learn is not installed: it needs an environment of its own, see requirements/learn2learn.txt",
)
WIDTH = 8


@pytest.mark.parametrize("algorithm", META_LEARNED)
def test_the_registry_of_heads_knows_them_as_heads_that_are_trained_first(algorithm):
    entry = spec(algorithm)
    assert (entry.trainer(), entry.summary, entry.requires) == (meta_train, META_LEARNED[algorithm], "learn2learn")
    assert algorithm not in available(), "create cannot make it"
    with pytest.raises(ValueError, match="has to be trained on episodes of base classes first"):
        create(algorithm)


def bank(first: int, classes: int, each: int = 20) -> FeatureBank:
    """Return classes that differ in the first two features, under noise that is larger in the others."""
    generator = torch.Generator().manual_seed(first)
    centres = torch.zeros(classes, 1, WIDTH)
    centres[:, 0, :2] = 2 * torch.randn(classes, 2, generator=generator)
    noise = torch.randn(classes, each, WIDTH, generator=generator) * torch.tensor([0.3] * 2 + [1.5] * (WIDTH - 2))
    return FeatureBank((centres + noise).flatten(0, 1), torch.arange(first, first + classes).repeat_interleave(each))


def head(algorithm: str, ways: int = 4, **options) -> MetaLearnedHead:
    torch.manual_seed(0)
    return MetaLearnedHead(algorithm, WIDTH, ways, hidden=6, **options)


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


@needs_learn2learn
@pytest.mark.parametrize("algorithm", META_LEARNED)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_scores_are_logits_after_plain_gradient_steps_from_the_start(algorithm, steps):
    found = head(algorithm, ways=3, steps=steps, rate=0.3)
    network, support, query = copy.deepcopy(found.network).requires_grad_(True), rows(1, 6), rows(2, 5)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])

    def sized(x):
        return x / x.norm(dim=-1, keepdim=True) * WIDTH**0.5

    moved = network if algorithm == "maml" else network[2]
    for _ in range(steps):
        network.zero_grad()
        cross_entropy(network(sized(support)), targets).backward()
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter -= 0.3 * parameter.grad
    found.write(support, targets)
    torch.testing.assert_close(found(query), network(sized(query)).detach(), rtol=1e-5, atol=1e-5)


@needs_learn2learn
@pytest.mark.parametrize("algorithm", META_LEARNED)
def test_meta_training_on_base_classes_helps_on_others(algorithm):
    base, novel = bank(0, 40), bank(100, 20)
    trained = meta_train(base, algorithm, ways=4, shots=1, queries=10, iterations=60, seed=1)
    start = MetaLearnedHead(algorithm, WIDTH, 4, base=base.base_statistics())
    report = evaluate(
        novel, {"trained": trained, "start": start, "cosine": CosineHead()}, "closed", 4, 1, 10, episodes=200
    )
    for other in ("start", "cosine"):  # neither of which knows that six of the eight features are noise
        difference = report.paired[f"trained-{other}"]["accuracy"]
        assert difference["mean"] > difference["ci95"]


@needs_learn2learn
@pytest.mark.parametrize("algorithm", META_LEARNED)
def test_the_outer_loop_follows_the_gradient_through_the_steps(algorithm):
    found = head(algorithm, ways=2, steps=2)
    network = copy.deepcopy(found.network).double().requires_grad_(True)
    support, query = rows(1, 4).double(), rows(2, 6).double()
    targets, asked = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0, 0, 1])

    def loss() -> torch.Tensor:
        return cross_entropy(found.logits(found.adapted(network, support, targets, training=True), query), asked)

    loss().backward()
    for parameter in network.parameters():
        index = (0,) * parameter.dim()
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[index] += step
            values.append(float(loss().detach()))
            with torch.no_grad():
                parameter[index] -= step
        assert float(parameter.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-8)


@needs_learn2learn
@pytest.mark.parametrize("algorithm", META_LEARNED)
@pytest.mark.parametrize("num_base", [0, 2])
def test_many_episodes_are_each_one_alone_in_inference_mode_too(algorithm, num_base):
    support, query = rows(1, 3, 2, 2), rows(2, 3, 5)
    base = rows(3, num_base) if num_base else None
    with torch.inference_mode():
        together = head(algorithm).score_episodes(support.clone(), query.clone(), base)
    assert together.shape == (3, 5, num_base + 2)
    for episode in range(3):
        alone = head(algorithm)
        if base is not None:
            alone.write_base(base, ["x", "y"])
        alone.write(support[episode].flatten(0, 1), [0, 0, 1, 1])
        torch.testing.assert_close(together[episode], alone(query[episode]), rtol=1e-5, atol=1e-5)


@needs_learn2learn
@pytest.mark.parametrize("algorithm", META_LEARNED)
def test_a_head_is_saved_and_copied_with_all_it_learned(algorithm, tmp_path):
    found = meta_train(bank(0, 6), algorithm, 3, 1, 5, iterations=2).write(rows(1, 3), ["a", "b", "c"])
    scores = found(rows(2, 4))
    save_file(found.state_dict(), tmp_path / "head.safetensors")
    loaded = MetaLearnedHead(algorithm, WIDTH, 3)
    loaded.load_state_dict({"mean": found.mean, **load_file(tmp_path / "head.safetensors")})
    assert torch.equal(loaded(rows(2, 4)), scores)
    assert torch.equal(copy.deepcopy(found)(rows(2, 4)), scores)
    assert loaded.forget("b").write(rows(1, 3)[1], "b").classes == ["a", "c", "b"]


@needs_learn2learn
@pytest.mark.parametrize("algorithm", META_LEARNED)
def test_the_same_seed_gives_the_same_head_and_leaves_torchs_own_alone(algorithm):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    heads = [meta_train(bank(0, 6), algorithm, 3, 1, 5, iterations=3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    first, second, other = (each.network[2].weight for each in heads)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not any(parameter.requires_grad for parameter in heads[0].parameters())


@needs_learn2learn
@pytest.mark.parametrize("algorithm", META_LEARNED)
def test_adapting_leaves_the_start_alone(algorithm):
    found = head(algorithm)
    before = {name: value.clone() for name, value in found.network.state_dict().items()}
    found.write(rows(1, 4), [0, 1, 2, 3])(rows(2, 3))
    for name, value in found.network.state_dict().items():
        assert torch.equal(value, before[name])


@needs_learn2learn
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: meta_train(None, "anil"), "'anil' is meta-trained on features of base classes, and none are given"),
        (
            lambda: meta_train(bank(0, 3), ways=4),
            "'maml' is meta-trained on episodes of base classes: 4 ways need 4 classes",
        ),
        (lambda: meta_train(bank(0, 3, each=5), ways=2), "has 5 images, and 1 shots and 15 queries need 16"),
        (lambda: meta_train(bank(0, 6), "reptile"), "algorithm must be one of maml, anil, got 'reptile'"),
        (lambda: meta_train(bank(0, 6), iterations=0), "iterations must be at least 1, got 0"),
        (lambda: head("maml", ways=0), "ways must be at least 1, got 0"),
        (lambda: head("maml", steps=-1), "steps must be at least 0, got -1"),
        (lambda: head("maml", rate=0.0), "rate must be above 0, got 0.0"),
        (
            lambda: head("maml", ways=2).write(rows(0, 3), [0, 1, 2])(rows(1, 1)),
            "for 2 classes, and there are 3: meta_train it",
        ),
        (lambda: head("maml").write(torch.ones(2, 3), [0, 1]), f"width {WIDTH}"),
    ],
)
def test_what_cannot_be_meta_learned_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@needs_learn2learn
def test_without_learn2learn_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(ImportError, match=r"pip install -r requirements/learn2learn\.txt"):
        meta_train(bank(0, 6), ways=3)


@needs_learn2learn
def test_evaluate_takes_them_by_name_and_trains_them_on_base_classes():
    base, novel = bank(0, 30), bank(100, 8)
    report = evaluate(novel, list(META_LEARNED), "open", 3, 1, 10, 3, 20, base=base, seed=2)
    for algorithm, meaning in META_LEARNED.items():
        trained = meta_train(base, algorithm, 3, 1, 10, seed=2)
        alone = evaluate(novel, {algorithm: trained}, "open", 3, 1, 10, 3, 20, base=base, seed=2)
        assert report.results[algorithm] == alone.results[algorithm]
        assert meaning in report.table()
    with pytest.raises(ValueError, match="'maml' is meta-trained on features of base classes"):
        evaluate(novel, ["maml"], "open", 3, 1, 10, 3, 20, background=base.class_means())
