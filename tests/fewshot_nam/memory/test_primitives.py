"""The theorems of Neural Attention Memory as properties, and the closed forms against the plain loop, in float64."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot_nam.memory import read, unit, write, write_block, write_sequence

EXACT = {"rtol": 1e-9, "atol": 1e-9}
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 7)
batches = st.sampled_from([(), (3,), (2, 5)])
gates = st.floats(0, 1)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthonormal(seed: int, count: int, width: int) -> Tensor:
    """Return ``(count, width)`` orthonormal rows."""
    return torch.linalg.qr(normal(seed, width, count)).Q.mT


@given(seeds, batches, sizes, sizes)
def test_theorem_1_a_unit_key_reads_back_its_value_from_any_memory(seed, batch, d_v, d_k):
    memory, key, value = (
        normal(seed, *batch, d_v, d_k),
        unit(normal(seed + 1, *batch, d_k)),
        normal(seed + 2, *batch, d_v),
    )
    torch.testing.assert_close(read(write(memory, key, value), key), value, **EXACT)


@given(seeds, sizes, sizes, gates)
def test_theorem_2_orthonormal_keys_read_back_their_values_without_erase(seed, d_v, count, p_write):
    keys, values = orthonormal(seed, count, count + 3), normal(seed + 1, count, d_v)
    memory = torch.zeros(d_v, count + 3, dtype=torch.float64)
    for key, value in zip(keys, values, strict=True):
        memory = write(memory, key, value, p_write, 0.0)
    for key, value in zip(keys, values, strict=True):
        torch.testing.assert_close(read(memory, key), p_write * value, **EXACT)


@given(seeds, batches, sizes, gates, gates)
def test_a_write_leaves_reads_orthogonal_to_its_key_untouched(seed, batch, d_v, p_write, p_erase):
    key, query = orthonormal(seed, 2, 6)
    memory, value = normal(seed + 1, *batch, d_v, 6), normal(seed + 2, *batch, d_v)
    after = write(memory, key.expand(*batch, 6), value, p_write, p_erase)
    torch.testing.assert_close(read(after, query), read(memory, query), **EXACT)


@given(seeds, sizes, sizes)
def test_pure_erase_leaves_nothing_to_read_at_the_key(seed, d_v, d_k):
    memory, key = normal(seed, d_v, d_k), unit(normal(seed + 1, d_k))
    erased = write(memory, key, normal(seed + 2, d_v), p_write=0.0, p_erase=1.0)
    torch.testing.assert_close(read(erased, key), torch.zeros(d_v, dtype=torch.float64), **EXACT)


@given(seeds, sizes, sizes, gates, gates, gates)
def test_read_and_write_are_the_printed_equations(seed, d_v, d_k, p_read, p_write, p_erase):
    memory, key, value = normal(seed, d_v, d_k), normal(seed + 1, d_k), normal(seed + 2, d_v)
    torch.testing.assert_close(read(memory, key, p_read), p_read * memory @ key, **EXACT)
    expected = memory + p_write * torch.outer(value, key) - p_erase * memory @ torch.outer(key, key)
    torch.testing.assert_close(write(memory, key, value, p_write, p_erase), expected, **EXACT)


@given(seeds, batches)
def test_gates_may_differ_within_a_batch(seed, batch):
    memory, key, value = normal(seed, *batch, 3, 5), unit(normal(seed + 1, *batch, 5)), normal(seed + 2, *batch, 3)
    p_write, p_erase, p_read = (torch.sigmoid(normal(seed + i, *batch)) for i in (3, 4, 5))
    together = read(write(memory, key, value, p_write, p_erase), key, p_read)
    for i in torch.cartesian_prod(*(torch.arange(n) for n in batch)).reshape(-1, len(batch)) if batch else [()]:
        at = tuple(i)
        alone = write(memory[at], key[at], value[at], p_write[at].item(), p_erase[at].item())
        torch.testing.assert_close(together[at], read(alone, key[at], p_read[at].item()), **EXACT)


@given(seeds, batches, sizes, st.integers(0, 6), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.6, 1.0]))
def test_write_sequence_equals_the_loop(seed, batch, d_v, count, p_write, p_erase):
    memory, keys = normal(seed, *batch, d_v, 4), unit(normal(seed + 1, *batch, count, 4))
    keys = torch.cat([keys, keys[..., :1, :]], dim=-2)  # a repeated key: where a careless inverse would break
    values = normal(seed + 2, *batch, keys.shape[-2], d_v)
    expected = memory
    for t in range(keys.shape[-2]):
        expected = write(expected, keys[..., t, :], values[..., t, :], p_write, p_erase)
    torch.testing.assert_close(write_sequence(memory, keys, values, p_write, p_erase), expected, **EXACT)


@given(seeds, batches)
def test_write_sequence_takes_a_gate_for_each_pair(seed, batch):
    memory, keys, values = (
        normal(seed, *batch, 3, 4),
        unit(normal(seed + 1, *batch, 5, 4)),
        normal(seed + 2, *batch, 5, 3),
    )
    p_write, p_erase = (torch.sigmoid(normal(seed + i, *batch, 5)) for i in (3, 4))
    expected = memory
    for t in range(5):
        expected = write(expected, keys[..., t, :], values[..., t, :], p_write[..., t], p_erase[..., t])
    torch.testing.assert_close(write_sequence(memory, keys, values, p_write, p_erase), expected, **EXACT)


@given(seeds, batches, sizes, st.integers(0, 5))
def test_a_block_of_independent_keys_reads_back_every_pair_and_spares_the_rest(seed, batch, d_v, count):
    memory, keys, values = (
        normal(seed, *batch, d_v, 9),
        normal(seed + 1, *batch, count, 9),
        normal(seed + 2, *batch, count, d_v),
    )
    after = write_block(memory, keys, values)
    torch.testing.assert_close(keys @ after.mT, values, rtol=1e-6, atol=1e-6)
    away = normal(seed + 3, *batch, 9)
    if count:
        spanned = torch.linalg.qr(keys.mT).Q
        away = away - (spanned @ (spanned.mT @ away.unsqueeze(-1))).squeeze(-1)
    torch.testing.assert_close(read(after, away), read(memory, away), rtol=1e-6, atol=1e-6)


@given(seeds, batches, sizes, sizes, gates, gates)
def test_a_block_of_one_unit_key_is_a_write(seed, batch, d_v, d_k, p_write, p_erase):
    memory, key, value = (
        normal(seed, *batch, d_v, d_k),
        unit(normal(seed + 1, *batch, d_k)),
        normal(seed + 2, *batch, d_v),
    )
    block = write_block(memory, key.unsqueeze(-2), value.unsqueeze(-2), p_write, p_erase)
    torch.testing.assert_close(block, write(memory, key, value, p_write, p_erase), **EXACT)


@given(seeds, batches, st.floats(0.01, 10))
def test_a_block_is_the_printed_equation(seed, batch, ridge):
    memory, keys, values = normal(seed, *batch, 3, 7), normal(seed + 1, *batch, 5, 7), normal(seed + 2, *batch, 5, 3)
    p_write, p_erase = (torch.sigmoid(normal(seed + i, *batch, 5)) for i in (3, 4))
    k, v = keys.mT, values.mT  # as columns
    updates = v * p_write.unsqueeze(-2) - memory @ k * p_erase.unsqueeze(-2)
    expected = memory + updates @ torch.linalg.inv(k.mT @ k + ridge * torch.eye(5, dtype=torch.float64)) @ k.mT
    torch.testing.assert_close(
        write_block(memory, keys, values, p_write, p_erase, ridge), expected, rtol=1e-7, atol=1e-7
    )
    each = torch.full(batch, ridge, dtype=torch.float64)
    torch.testing.assert_close(
        write_block(memory, keys, values, p_write, p_erase, each), expected, rtol=1e-7, atol=1e-7
    )


@given(seeds, st.permutations(range(5)))
def test_a_block_knows_no_order(seed, order):
    memory, keys, values = normal(seed, 3, 7), normal(seed + 1, 5, 7), normal(seed + 2, 5, 3)
    torch.testing.assert_close(
        write_block(memory, keys[order], values[order], ridge=0.2),
        write_block(memory, keys, values, ridge=0.2),
        **EXACT,
    )


@given(seeds, st.floats(1e-3, 1e3), st.floats(0, 1), st.floats(0, 1))
def test_more_keys_than_they_are_wide_are_written_as_the_equation_says(seed, ridge, p_write, p_erase):
    memory, keys, values = normal(seed, 2, 3, 5), normal(seed + 1, 2, 11, 5), normal(seed + 2, 2, 11, 3)
    k = keys.mT
    updates = p_write * values.mT - p_erase * memory @ k
    expected = memory + updates @ torch.linalg.inv(k.mT @ k + ridge * torch.eye(11, dtype=torch.float64)) @ k.mT
    torch.testing.assert_close(
        write_block(memory, keys, values, p_write, p_erase, ridge), expected, rtol=1e-7, atol=1e-7
    )


def test_a_large_ridge_tends_to_plain_outer_products():
    memory, keys, values = torch.zeros(3, 7, dtype=torch.float64), unit(normal(1, 5, 7)), normal(2, 5, 3)
    ridge = 1e6
    torch.testing.assert_close(
        ridge * write_block(memory, keys, values, ridge=ridge), values.mT @ keys, rtol=1e-4, atol=1e-4
    )


def test_a_ridge_forgives_repeated_keys():
    keys = unit(normal(0, 1, 4)).expand(3, 4)
    after = write_block(torch.zeros(2, 4, dtype=torch.float64), keys, torch.ones(3, 2, dtype=torch.float64), ridge=0.5)
    torch.testing.assert_close(read(after, keys[0]), torch.full((2,), 3 / 3.5, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["repeated", "more keys than width", "zero", "sum of the others"])
def test_a_block_without_ridge_refuses_dependent_keys(case, dtype):
    keys = unit(normal(0, 4, 6, dtype=dtype))
    if case == "repeated":
        keys = torch.cat([keys, keys[1:2]])
    elif case == "more keys than width":
        keys = unit(normal(0, 7, 6, dtype=dtype))
    elif case == "zero":
        keys = torch.cat([keys, torch.zeros(1, 6, dtype=dtype)])
    else:
        keys = torch.cat([keys, unit(keys[:3].sum(0, keepdim=True))])
    with pytest.raises(ValueError, match=r"linearly dependent.*ridge > 0"):
        write_block(torch.zeros(2, 6, dtype=dtype), keys, torch.ones(len(keys), 2, dtype=dtype))


@pytest.mark.parametrize("ridge", [-0.5, 0.0])
def test_a_tensor_of_ridges_that_cannot_be_solved_is_refused(ridge):
    keys = unit(normal(0, 1, 4)).expand(3, 4)
    with pytest.raises(ValueError, match="not positive definite"):
        write_block(torch.zeros(2, 4, dtype=torch.float64), keys, keys[:, :2], ridge=torch.tensor(ridge))


@given(seeds, st.sampled_from([-1, 0, -2]))
@settings(max_examples=25)
def test_unit_vectors_have_length_one_and_the_same_direction(seed, dim):
    x = normal(seed, 4, 5, 6)
    torch.testing.assert_close(unit(x, dim).norm(dim=dim), torch.ones_like(x).select(dim, 0), **EXACT)
    torch.testing.assert_close(unit(x, dim) * x.norm(dim=dim, keepdim=True), x, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1e-13])
def test_a_vector_of_no_length_gives_zeros_and_a_gradient_of_zero(dtype, length):
    x = torch.tensor([[length, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    unit(x).sum().backward()
    assert torch.equal(unit(x)[0], torch.zeros(3, dtype=dtype))
    assert torch.equal(x.grad, torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]], dtype=dtype))


def every_way(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "eager": unit(x),
        "vmap": torch.func.vmap(unit)(x),
        "compiled": torch.compile(unit, backend="eager", fullgraph=True)(x),
    }


@pytest.mark.parametrize(
    ("dtype", "largest"), [(torch.float16, 6e4), (torch.bfloat16, 3e38), (torch.float32, 3e38), (torch.float64, 1e308)]
)
def test_lengths_that_overflow_are_right(dtype, largest):
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]], dtype=torch.float64) * (largest / 8)
    x = torch.cat([x, torch.tensor([[0.3, 0.4], [1e-3, 0.0]], dtype=torch.float64)]).to(dtype)
    for way, found in every_way(x).items():
        expected = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0, 0], [0.6, 0.8], [1, 0]], dtype=dtype)
        torch.testing.assert_close(found, expected, msg=way)
        torch.testing.assert_close(found[3:], unit(x[3:]), rtol=0, atol=0, msg=way)  # to the last bit
    assert torch.equal(torch.tensor([0.6, 0.8]), unit(torch.tensor([3e19, 4e19])))


def test_nan_stays_nan_in_all_of_a_vector():
    found = unit(torch.tensor([[1.0, float("nan")], [3.0, 4.0]]))
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_the_gradient_of_unit_is_right():
    assert torch.autograd.gradcheck(unit, normal(0, 3, 4).requires_grad_())
    assert torch.autograd.gradgradcheck(unit, normal(0, 3, 4).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("function", [write_block, write_sequence])
def test_every_float_dtype_is_kept_and_close(function, dtype):
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5}[dtype]
    arguments = [normal(0, 3, 8), unit(normal(1, 4, 8)), normal(2, 4, 3)]
    low = function(*(a.to(dtype) for a in arguments))
    assert low.dtype == dtype
    exact = function(*(a.to(dtype).double() for a in arguments))
    assert (low.double() - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("function", [write_block, write_sequence])
def test_gradients_are_right(function):
    arguments = [normal(0, 3, 5), normal(1, 4, 5), normal(2, 4, 3), torch.rand(4).double(), torch.rand(4).double()]
    assert torch.autograd.gradcheck(function, [a.requires_grad_() for a in arguments])


def test_read_and_write_have_right_gradients():
    memory, key, value = (normal(i, *s).requires_grad_() for i, s in enumerate([(3, 5), (5,), (3,)]))
    assert torch.autograd.gradcheck(lambda m, k, v: read(write(m, k, v, 0.7, 0.4), k, 0.9), [memory, key, value])


def test_the_memory_that_is_written_to_is_left_alone():
    memory, keys, values = normal(0, 3, 5), normal(1, 2, 5), normal(2, 2, 3)
    before = memory.clone()
    write(memory, keys[0], values[0])
    write_block(memory, keys, values)
    write_sequence(memory, keys, values)
    assert torch.equal(memory, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: read(m, torch.ones(4)), r"read: query must have width 5.*\(4,\)"),
        (lambda m: write(m, torch.ones(4), torch.ones(3)), "write: key must have width 5"),
        (lambda m: write(m, torch.ones(5), torch.ones(2)), "write: value must have width 3"),
        (lambda m: write_block(m, torch.ones(2, 5), torch.ones(4, 3)), "write_block: needs as many keys"),
        (lambda m: write_sequence(m, torch.ones(2, 5), torch.ones(4, 3)), "write_sequence: needs as many keys"),
        (lambda m: write_block(m, torch.ones(2, 5), torch.ones(2, 3), ridge=-1), "ridge must be at least 0, got -1"),
        (lambda m: write_block(m, torch.ones(2, 5), torch.ones(2, 3), ridge=float("nan")), "ridge must be at least 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m, k, v: read(m, k, torch.ones(2, 1)),
            ValueError,
            r"read: p_read must have at most 1 dim.*got shape \(2, 1",
        ),
        (lambda m, k, v: write(m, k, v, torch.ones(2, 1)), ValueError, "write: p_write must have at most 1 dimensions"),
        (
            lambda m, k, v: write(m, k, v, 1.0, numpy.ones(2)),
            TypeError,
            "write: p_erase must be a number .* got ndarray",
        ),
        (lambda m, k, v: write_block(m, k[:, None], v[:, None], ridge=torch.ones(2, 1)), ValueError, "ridge must have"),
        (
            lambda m, k, v: write_sequence(m, k[:, None], v[:, None], "1"),
            TypeError,
            "p_write must be a number .* got str",
        ),
    ],
)
def test_gates_that_do_not_fit_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 4, 3), torch.eye(3)[:2], torch.ones(2, 4))
    assert write(torch.zeros(2, 4, 3), torch.eye(3)[:2], torch.ones(2, 4), numpy.float32(0.5)).shape == (2, 4, 3)
