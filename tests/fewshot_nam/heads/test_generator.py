"""The learned classifier: its equations against the literal ones, episodes apart, gates apart, and the contract of heads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot_nam.heads import CosineHead, GeneratorHead
from fewshot_nam.memory import unit, write, write_sequence

D, B, N = 11, 7, 3
ALL = ("attention", "write", "erase")
MADE_OF = [(), ("attention",), ("write",), ("erase",), ("write", "erase"), ALL]


def features(seed: int, *shape: int) -> Tensor:
    """Return features that share a direction, as those of real backbones do."""
    return torch.rand(*shape, D, generator=torch.Generator().manual_seed(seed)) + 0.1


def make(ingredients=ALL, seed: int = 0, **options) -> GeneratorHead:
    """Return a head whose every weight is of some size, so that no part of it is silent."""
    torch.manual_seed(seed)
    head = GeneratorHead(features(50, B), ingredients, gate_width=5, **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head.requires_grad_(False)


def weights_of(head: GeneratorHead, support: Tensor, base: Tensor) -> Tensor:
    """Return the weights ``(B + N, D)`` of one episode, written one by one by the paper's rule."""
    ways, shots = support.shape[:2]
    keys, memory = unit(support).flatten(0, 1), unit(base)
    before = memory
    for key in keys:
        if head.erase_gate is not None:
            erased = write(
                memory if head.order == "sequential" else before, key, torch.zeros(len(base)), 0.0, head.erase_gate(key)
            )
            memory = erased if head.order == "sequential" else memory + erased - before
    novel = torch.zeros(ways, D)
    for i, key in enumerate(keys):
        value = torch.eye(ways)[i // shots] / shots
        novel = write(novel, key, value, 1.0 if head.write_gate is None else head.write_gate(key), 0.0)
    novel = head.mean_scale * novel
    if head.attention is not None:
        for way in range(ways):
            for key in unit(support[way]):
                scores = head.attention.sharpness * unit(head.attention.keys) @ unit(head.attention.query(key))
                novel[way] += head.attention_scale * (scores.softmax(0) @ unit(head.base_weights)) / shots
    return torch.cat([memory, novel])


@pytest.mark.parametrize("ingredients", MADE_OF, ids="+".join)
@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("shots", [1, 4])
def test_scores_are_those_of_the_literal_equations(ingredients, order, shots):
    head, support, query = make(ingredients, order=order), features(1, 5, N, shots), features(2, 5, 6)
    scores = head.score_episodes(support, query, head.base_weights)
    for episode in range(5):
        expected = head.scale * unit(query[episode]) @ unit(weights_of(head, support[episode], head.base_weights)).mT
        torch.testing.assert_close(scores[episode], expected, rtol=1e-4, atol=1e-4)


def test_erased_base_weights_are_those_of_write_sequence():
    head, support, query = make(("erase",)), features(1, 4, N, 2), features(2, 4, 6)
    keys = unit(support.flatten(1, 2))
    nothing = torch.zeros(4, N * 2, B)
    memory = write_sequence(unit(head.base_weights), keys, nothing, 0.0, head.erase_gate(keys))
    expected = head.scale * unit(query) @ unit(memory).mT
    torch.testing.assert_close(
        head.score_episodes(support, query, head.base_weights)[..., :B], expected, rtol=1e-4, atol=1e-4
    )


def test_without_ingredients_and_untrained_it_is_a_cosine_classifier():
    head, support, query = GeneratorHead(features(50, B), ()), features(1, 4, N, 3), features(2, 4, 6)
    expected = CosineHead(scale=10.0).score_episodes(support, query, head.base_weights.detach())
    torch.testing.assert_close(head.score_episodes(support, query, head.base_weights).detach(), expected)


@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_an_episode_does_not_depend_on_the_others_of_its_batch(order):
    head, support, query = make(order=order), features(1, 6, N, 2), features(2, 6, 5)
    scores = head.score_episodes(support, query, head.base_weights)
    others = support.clone()
    others[1:] = features(77, 5, N, 2)
    torch.testing.assert_close(head.score_episodes(others, query, head.base_weights)[0], scores[0])
    torch.testing.assert_close(head.score_episodes(support[:1], query[:1], head.base_weights)[0], scores[0])
    assert not torch.allclose(
        scores[0, :, :B],
        scores[1, :, :B] * 0 + head.score_episodes(support[1:2], query[:1], head.base_weights)[0, :, :B],
    )


def test_write_gate_and_erase_gate_are_two_networks():
    support, query = features(1, 2, N, 4), features(2, 2, 5)

    def scores(changed: str | None) -> Tensor:
        head = make(("write", "erase"))
        if changed is not None:
            for parameter in getattr(head, changed).parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        return head.score_episodes(support, query, head.base_weights)

    plain, written, erased = scores(None), scores("write_gate"), scores("erase_gate")
    assert torch.equal(written[..., :B], plain[..., :B])
    assert torch.equal(erased[..., B:], plain[..., B:])
    assert not torch.allclose(written[..., B:], plain[..., B:])
    assert not torch.allclose(erased[..., :B], plain[..., :B])


def test_the_write_gate_does_nothing_for_one_shot_without_attention():
    support, query = features(1, 2, N, 1), features(2, 2, 5)
    gated, plain = make(("write",)), make(())
    plain.load_state_dict({name: gated.state_dict()[name] for name in plain.state_dict()})
    same = (
        gated.score_episodes(support, query, gated.base_weights),
        plain.score_episodes(support, query, plain.base_weights),
    )
    torch.testing.assert_close(*same)
    several = [head.score_episodes(features(1, 2, N, 3), query, head.base_weights) for head in (gated, plain)]
    assert not torch.allclose(*several)


@pytest.mark.parametrize(("logit", "left"), [(40.0, 0.0), (-40.0, 1.0)], ids=["gate 1", "gate 0"])
def test_an_open_erase_gate_takes_the_key_out_of_every_base_row(logit, left):
    head = make(("erase",))
    head.erase_gate.layers[-1].weight.zero_()
    head.erase_gate.layers[-1].bias.fill_(logit)
    support = features(1, 1, 1, 1)
    read = head.score_episodes(support, support.flatten(1, 2), head.base_weights)[0, 0, :B]
    plain = head.scale * unit(head.base_weights) @ unit(support.flatten())
    torch.testing.assert_close(read, left * plain, rtol=1e-4, atol=1e-4)


def test_several_features_that_are_alike_erase_once_in_sequence_and_every_time_in_parallel():
    support = features(1, 1, 1, 1).expand(1, 1, 3, D)
    reads = {}
    for order in ("sequential", "parallel"):
        head = make(("erase",), order=order)
        head.erase_gate.layers[-1].weight.zero_()
        head.erase_gate.layers[-1].bias.fill_(40.0)
        reads[order] = head.score_episodes(support, support[:, 0, :1], head.base_weights)[0, 0, :B]
    torch.testing.assert_close(reads["sequential"], torch.zeros(B), rtol=0, atol=1e-3)
    assert bool((reads["parallel"] < -1).all())  # two times too often: what was like the key has become its opposite


@pytest.mark.parametrize("ingredients", MADE_OF, ids="+".join)
def test_training_hides_the_weights_of_classes_that_take_the_part_of_novel_ones(ingredients):
    support, query, hidden = features(1, 2, N, 2), features(2, 2, 5), torch.tensor([[0, 3, 6], [1, 2, 3]])
    head = make(ingredients)
    scores = head.training_scores(support, query, hidden)
    gone = torch.zeros(2, B + N, dtype=torch.bool).scatter_(1, hidden, True)
    assert bool((scores.isinf() == gone.unsqueeze(1)).all())
    for episode in range(2):
        head = make(ingredients)
        head.base_weights[hidden[episode]] = features(60, 3)  # what is hidden cannot matter
        if head.attention is not None:
            head.attention.keys[hidden[episode]] = features(61, 3)
        again = head.training_scores(support, query, hidden)[episode]
        torch.testing.assert_close(again, scores[episode])


def test_training_scores_are_those_of_a_head_without_the_hidden_weights():
    support, query = features(1, 2, N, 2), features(2, 2, 5)
    head, shown = make(), [1, 2, 4, 5]
    scores = head.training_scores(support, query, torch.tensor([[0, 3, 6]] * 2))
    small = GeneratorHead(head.base_weights[shown], ALL, gate_width=5)
    kept = ("base_weights", "attention.keys")
    small.load_state_dict({name: w[shown] if name in kept else w for name, w in head.state_dict().items()})
    expected = small.score_episodes(support, query, small.base_weights)
    torch.testing.assert_close(scores[..., [*shown, 7, 8, 9]], expected.detach(), rtol=1e-4, atol=1e-4)


def test_every_weight_learns():
    head = make().requires_grad_(True)
    scores = head.training_scores(features(1, 2, N, 3), features(2, 2, 5), torch.tensor([[0, 3, 6], [1, 2, 3]]))
    scores[scores.isfinite()].square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.abs().sum() > 0), name


def test_gradients_are_finite_where_a_row_is_erased_to_nothing():
    head = make(("erase",))
    head.erase_gate.layers[-1].bias.fill_(1e3)
    head.requires_grad_(True)
    support = head.base_weights.detach()[None, :N, None]
    scores = head.score_episodes(support, features(2, 1, 5), head.base_weights)
    assert bool(scores.isfinite().all())
    scores.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)


# The contract of heads (tests/heads/test_contract.py), with trained weights of base classes.


@pytest.mark.parametrize("ingredients", MADE_OF, ids="+".join)
@pytest.mark.parametrize(("shots", "num_base"), [(1, 0), (2, B), (3, 4)])
def test_score_episodes_equals_one_episode_at_a_time(ingredients, shots, num_base):
    support, query = features(1, 4, N, shots), features(2, 4, 7)
    base = make(ingredients).base_weights[:num_base] if num_base else None
    together = make(ingredients).score_episodes(support, query, base)
    assert together.shape == (4, 7, num_base + N)
    for episode in range(4):
        head = make(ingredients)
        if base is not None:
            head.write_base(base, [f"base{i}" for i in range(num_base)])
        head.write(support[episode].flatten(0, 1), torch.arange(N).repeat_interleave(shots))
        torch.testing.assert_close(together[episode], head(query[episode]), rtol=1e-4, atol=1e-4)


@given(order=st.permutations(range(6)))
def test_the_order_of_the_support_does_not_matter_in_parallel(order):
    rows, labels, query = features(1, 6), ["a", "b", "a", "c", "b", "a"], features(2, 5)
    straight, mixed = (make(order="parallel").write_base(features(3, 2), ["x", "y"]) for _ in range(2))
    straight.write(rows, labels)
    mixed.write(rows[order], [labels[i] for i in order])
    columns = [mixed.classes.index(label) for label in straight.classes]
    torch.testing.assert_close(mixed(query)[:, columns], straight(query), rtol=1e-4, atol=1e-4)


def test_forgetting_leaves_a_head_that_never_saw_the_class():
    rows, query, labels = features(1, 6), features(2, 5), ["a", "b", "c", "a", "b", "c"]
    head, fresh = make(), make()
    head.write_base(head.base_weights, [f"base{i}" for i in range(B)]).write(rows, labels).forget(["b", "base2"])
    keep = [0, 1, 3, 4, 5, 6]
    fresh.write_base(fresh.base_weights[keep], [f"base{i}" for i in keep]).write(
        rows[[0, 2, 3, 5]], ["a", "c", "a", "c"]
    )
    assert head.classes == fresh.classes
    torch.testing.assert_close(head(query), fresh(query))


def test_state_dict_holds_all_that_was_learned(tmp_path):
    from safetensors.torch import load_file, save_file

    head = make()
    head.write_base(head.base_weights, [f"base{i}" for i in range(B)]).write(features(1, 2), ["a", 7])
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    loaded = make(seed=1)
    loaded.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert loaded.classes == head.classes
    assert torch.equal(loaded(features(2, 5)), head(features(2, 5)))


def test_scores_follow_weights_that_are_trained_on():
    head = make().requires_grad_(True)
    head.write(features(1, 3), ["a", "b", "c"])
    before = head(features(2, 5)).detach()
    with torch.no_grad():
        head.mean_scale.add_(torch.randn(D, generator=torch.Generator().manual_seed(1)))
    assert not torch.allclose(head(features(2, 5)), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_features_of_other_dtypes_give_close_scores(dtype):
    expected = make().score_episodes(features(1, 2, N, 2), features(2, 2, 5), features(3, B))
    given = (features(1, 2, N, 2).to(dtype), features(2, 2, 5).to(dtype), features(3, B).to(dtype))
    torch.testing.assert_close(make().score_episodes(*given).float(), expected, rtol=0.05, atol=0.2)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (torch.ones(3), {}, r"base_weights must be \(B, D\).*\(3,\)"),
        (torch.ones(0, 3), {}, r"base_weights must be \(B, D\) with B at least 1"),
        (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), {}, "base_weights: 1 of 2 .* zero"),
        (torch.tensor([[1.0, float("nan")]]), {}, "NaN"),
        (
            torch.ones(2, 3),
            {"ingredients": ("write", "forget")},
            "no ingredient 'forget': there are attention, write, erase",
        ),
        (torch.ones(2, 3), {"order": "random"}, "order must be one of sequential, parallel, got 'random'"),
        (torch.ones(2, 3), {"gate_width": 0}, "gate_width must be at least 1, got 0"),
    ],
)
def test_a_head_that_cannot_be_made_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        GeneratorHead(rows, **options)


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match="width 11"):
        make().write(torch.ones(1, 4), "a")
    with pytest.raises(ValueError, match="width 11"):
        make().score_episodes(torch.ones(1, 2, 1, 4), torch.ones(1, 3, 4))


def test_a_state_of_version_0_1_loads():
    head = make(("attention", "write"))
    old = {
        "base_weights": "rows",
        "mean_scale": "average",
        "attention_scale": "recalled",
        "attention.query.weight": "recall.ask.weight",
        "attention.query.bias": "recall.ask.bias",
        "attention.keys": "recall.keys",
        "attention.sharpness": "recall.sharpness",
    }
    state = {old.get(name, name): tensor for name, tensor in head.state_dict().items()}
    assert set(old.values()) <= set(state)
    loaded = GeneratorHead(torch.ones(B, D), ("attention", "write"), gate_width=head.gate_width)
    loaded.load_state_dict(state)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in head.state_dict().items())
    with pytest.warns(DeprecationWarning, match="rows= is deprecated"):
        assert len(GeneratorHead(rows=torch.ones(B, D)).base_weights) == B
