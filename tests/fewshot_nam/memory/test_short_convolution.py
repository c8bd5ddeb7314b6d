"""The short convolution against its sum, in parts, one token at a time, and over padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot_nam.memory.short_convolution import ShortConvolution, check_conv_size

F64 = torch.float64


def convolution(width: int, channels: int = 3) -> ShortConvolution:
    torch.manual_seed(width)
    return ShortConvolution(channels, width, dtype=F64)


def by_sum(conv: ShortConvolution, x: torch.Tensor) -> torch.Tensor:
    """Return the convolution of one sequence ``(T, C)`` as a loop."""
    outputs = torch.zeros_like(x)
    for t in range(len(x)):
        for i in range(conv.width):
            if t - conv.width + 1 + i >= 0:
                outputs[t] += conv.weight[:, i] * x[t - conv.width + 1 + i]
    return outputs


@pytest.mark.parametrize("width", [2, 3, 5])
def test_it_is_its_sum_at_any_length(width):
    conv = convolution(width)
    for length in (0, 1, 2, 4, 9):
        x = torch.randn(2, length, 3, dtype=F64)
        outputs, state = conv(x)
        torch.testing.assert_close(outputs, torch.stack([by_sum(conv, row) for row in x]))
        assert state.shape == (2, width - 1, 3)


@settings(max_examples=25)
@given(seed=st.integers(0, 999), width=st.integers(2, 5), cuts=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_parts_and_steps_are_the_whole_over_any_padding(seed, width, cuts):
    conv, generator = convolution(width), torch.Generator().manual_seed(seed)
    rows = 3
    parts = [torch.randn(rows, size, 3, dtype=F64, generator=generator) for size in cuts]
    masks = [torch.rand(rows, size, generator=generator) < 0.6 for size in cuts]
    state, outputs = conv.init_state(rows), []
    for part, mask in zip(parts, masks, strict=True):
        padded = part.masked_fill(~mask.unsqueeze(-1), float("nan"))
        found, state = conv(padded, state, mask)
        outputs.append(found)
    x, mask, outputs = torch.cat(parts, 1), torch.cat(masks, 1), torch.cat(outputs, 1)
    step, _ = conv.step(x.new_ones(rows, 3), state)
    for row in range(rows):
        tokens = torch.cat([x[row][mask[row]], x.new_ones(1, 3)])
        expected = by_sum(conv, tokens)
        torch.testing.assert_close(outputs[row][mask[row]], expected[:-1])
        torch.testing.assert_close(step[row], expected[-1])


def test_the_gradients_are_right():
    conv = convolution(3)
    x, state = torch.randn(2, 4, 3, dtype=F64, requires_grad=True), torch.randn(2, 2, 3, dtype=F64, requires_grad=True)
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    keep = mask.unsqueeze(-1)

    def run(x, state, weight):
        outputs, after = torch.func.functional_call(conv, {"weight": weight}, (x * keep, state, mask))
        return outputs * keep, after

    assert torch.autograd.gradcheck(run, (x, state, conv.weight))


@pytest.mark.parametrize("size", [0, 1, -2, 2.0, True, "3"])
def test_other_sizes_are_errors(size):
    with pytest.raises(ValueError, match="Layer: conv_size must be None or an integer of at least 2, got"):
        check_conv_size("Layer", size)
    check_conv_size("Layer", None)
