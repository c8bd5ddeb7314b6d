"""The SAM operator against its equations, number by number."""

import pytest
import torch

from fewshot_nam.memory import SelfAttentiveMemory


def build(preset, size=5, slots=3):
    torch.manual_seed(0)
    built = SelfAttentiveMemory(size, slots, preset=preset, dtype=torch.float64)
    with torch.no_grad():  # a norm that scales and shifts, so that a lost or transposed parameter shows
        built.norm_weight.normal_()
        built.norm_bias.normal_()
    return built


def norm(values, weight, bias):
    mean = values.mean()
    return (values - mean) / ((values - mean) ** 2).mean().add(1e-5).sqrt() * weight + bias


def reference(built, memory):
    """Return ``A_s = sum_j tanh(q_s * k_j) v_j^T`` of one memory, by loops."""
    slots = built.num_slots
    projected = memory @ built.projection.weight.T + built.projection.bias
    weight, bias = built.norm_weight, built.norm_bias
    if built.norm == "joint":
        normed = norm(projected, weight, bias)
    else:
        parts = [slice(0, slots), slice(slots, 2 * slots), slice(2 * slots, 3 * slots)]
        normed = torch.cat([norm(projected[:, p], weight[:, p], bias[:, p]) for p in parts], dim=1)
    q, k, v = normed.T[:slots], normed.T[slots : 2 * slots], normed.T[2 * slots :]
    found = []
    for s in range(slots):
        found.append(sum(torch.outer(torch.tanh(q[s] * k[j]), v[j]) for j in range(slots)))
    return torch.stack(found)


@pytest.mark.parametrize("preset", ["paper", "code"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_sam_is_its_equations_with_gradients(preset, batch):
    built = build(preset)
    memory = torch.randn(*batch, 5, 5, dtype=torch.float64, requires_grad=True)
    found = built(memory)
    assert found.shape == (*batch, 3, 5, 5)
    expected = torch.stack([reference(built, one) for one in memory.reshape(-1, 5, 5)]).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights, inputs = torch.randn_like(found), [memory, *built.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_presets_differ_and_have_equal_parameters():
    first, second = build("paper"), build("code")
    second.load_state_dict(first.state_dict())
    memory = torch.randn(5, 5, dtype=torch.float64)
    assert not torch.allclose(first(memory), second(memory), atol=1e-3)


def test_sam_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"memory must have shape \(A, 5, 5\), got \(2, 5, 4\)"):
        build("code")(torch.zeros(2, 5, 4))
    with pytest.raises(TypeError, match="floating dtype"):
        build("code")(torch.zeros(2, 5, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="preset must be one of paper, code, got 'text'"):
        SelfAttentiveMemory(5, 3, preset="text")
    with pytest.raises(ValueError, match="num_slots must be a whole number of at least 1, got 0"):
        SelfAttentiveMemory(5, 0)
