"""The compiled kernels: the same numbers as torch's loops, and building that is asked for, whole or not at all, and no error.

``test_lsam.py``, ``test_stm.py`` and ``test_turing.py`` run all that they test with kernels as well.
"""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewshot_nam.memory import build_kernels, memory_scan, unit
from fewshot_nam.memory.lsam.layer import LSAM
from fewshot_nam.memory.lsam.recurrence import recurrence
from fewshot_nam.memory.native import kernels, native_build
from fewshot_nam.memory.scan.kernel import kernel_for
from fewshot_nam.memory.stm.item_write import write_item
from fewshot_nam.memory.turing.kernel import kernel_takes
from fewshot_nam.memory.turing.machine import NAMTuringMachine

EXACT = {"rtol": 1e-9, "atol": 1e-10}
F64 = torch.float64


def normal(seed: int, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_gradients(outputs, leaves) -> list[Tensor]:
    """Return the outputs and the gradients of a random weighting of them."""
    total = sum((x * normal(90 + i, *x.shape).to(x.dtype)).sum() for i, x in enumerate(outputs))
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [*outputs, *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True))]


def in_torch(run, *args):
    """Run without kernels, then with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_NAM_COMPILE", "0")
        first = run(*args)
    assert kernels.library() is not None
    return first, run(*args)


# --- LSAM -----------------------------------------------------------------------------------------------------------------


def lsam_inputs(seed, steps, directions, batch, heads, width, dtype=F64) -> list[Tensor]:
    rows = heads * (3 * width + 2)
    shapes = [(steps, directions, batch, rows), (directions, rows, heads * width)]
    shapes += [(directions, batch, heads * width), (directions, batch, heads, width, width)]
    inputs = [normal(seed + i, *shape) for i, shape in enumerate(shapes)]
    inputs[1] /= (heads * width) ** 0.5
    return [x.to(dtype).requires_grad_() for x in inputs]


@pytest.mark.usefixtures("compiled")
@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    steps=st.integers(1, 35),
    directions=st.integers(1, 2),
    batch=st.integers(1, 19),
    heads=st.integers(1, 3),
    width=st.integers(1, 40),
    activation=st.sampled_from([None, "tanh"]),
    threads=st.integers(1, 3),
)
def test_lsam_is_the_loop_of_torch_at_any_size_and_number_of_threads(
    seed, steps, directions, batch, heads, width, activation, threads
):
    inputs = lsam_inputs(seed, steps, directions, batch, heads, width)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected, got = in_torch(lambda: with_gradients(recurrence(*inputs, activation), inputs))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_lsam_in_float32_is_within_2e_6_of_float64(activation):
    found = []
    for dtype in (torch.float32, F64):
        inputs = lsam_inputs(5, 64, 1, 8, 4, 32, dtype)
        found.append(with_gradients(recurrence(*inputs, activation), inputs))
    for single, exact in zip(*found, strict=True):
        assert (single - exact).abs().max() <= 2e-6 * exact.abs().max()


@pytest.mark.usefixtures("compiled")
def test_lsam_passes_gradcheck():
    inputs = lsam_inputs(3, 18, 1, 2, 1, 2)
    assert torch.autograd.gradcheck(lambda *x: recurrence(*x, "tanh"), inputs)


@pytest.mark.usefixtures("compiled")
def test_a_forward_with_kernels_can_be_differentiated_without(monkeypatch):
    inputs = lsam_inputs(4, 20, 1, 3, 2, 5)
    expected = with_gradients(recurrence(*inputs), inputs)
    outputs = recurrence(*inputs)
    monkeypatch.setenv("FEWSHOT_NAM_COMPILE", "0")
    torch.testing.assert_close(with_gradients(outputs, inputs), expected, **EXACT)


@pytest.mark.usefixtures("compiled")
def test_lsam_takes_gates_and_gradients_that_are_not_contiguous():
    inputs = lsam_inputs(6, 9, 1, 4, 2, 3)

    def run():
        gates = inputs[0].transpose(0, 2).contiguous().transpose(0, 2)
        hiddens, _ = recurrence(gates, *inputs[1:])
        return torch.autograd.grad(hiddens.sum(), inputs)  # an expanded gradient

    torch.testing.assert_close(*in_torch(run), **EXACT)


@pytest.mark.usefixtures("compiled")
def test_lsam_of_no_sequences_is_left_to_torch():
    output, (h_n, _) = LSAM(3, 4)(torch.zeros(5, 0, 3))
    assert (output.shape, h_n.shape) == ((5, 0, 4), (1, 0, 4))


# --- STM ------------------------------------------------------------------------------------------------------------------


def item_write_inputs(seed, batch, width, dtype=F64) -> list[Tensor]:
    shapes = [(batch, width, width), (batch, width), (batch, width), (batch, 2 * width), (2 * width, width)]
    inputs = [normal(seed + i, *shape) for i, shape in enumerate(shapes)]
    inputs[4] /= width**0.5
    return [x.to(dtype).requires_grad_() for x in inputs]


@pytest.mark.usefixtures("compiled")
@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    batch=st.integers(1, 9),
    width=st.integers(1, 70),
    scale=st.sampled_from([1e-6, 1.0, 30.0, 1e3]),
    squashed=st.booleans(),
    threads=st.integers(1, 3),
)
def test_the_item_write_of_stm_is_that_of_torch_at_any_size_and_number_of_threads(
    seed, batch, width, scale, squashed, threads
):
    inputs = item_write_inputs(seed, batch, width)
    with torch.no_grad():
        inputs[0] *= scale
        inputs[3] *= scale
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected, got = in_torch(lambda: with_gradients([write_item(*inputs, squashed)], inputs))
        again = with_gradients([write_item(*inputs, squashed)], inputs)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, expected, **EXACT)
    assert all(torch.equal(*pair) for pair in zip(got, again, strict=True))


@pytest.mark.usefixtures("compiled")
def test_the_item_write_of_stm_in_float32_is_as_close_to_float64_as_torch():
    inputs = item_write_inputs(0, 4, 50)
    exact = with_gradients([write_item(*inputs, True)], inputs)
    single = [x.detach().float().requires_grad_() for x in inputs]
    expected, got = in_torch(lambda: with_gradients([write_item(*single, True)], single))
    for by_kernel, by_torch, right in zip(got, expected, exact, strict=True):
        error, allowed = ((found - right).abs().max() for found in (by_kernel, by_torch))
        assert error <= 4 * allowed


@pytest.mark.usefixtures("compiled")
def test_the_item_write_of_stm_has_first_and_second_derivatives():
    inputs = item_write_inputs(0, 2, 3)
    assert torch.autograd.gradcheck(lambda *x: write_item(*x, True), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: write_item(*x, True), inputs)
    inputs[1].requires_grad_(False)
    first = torch.autograd.grad(write_item(*inputs, True).square().sum(), inputs[0], create_graph=True)
    assert torch.autograd.grad(first[0].sum(), inputs[4])[0].abs().sum() > 0


@pytest.mark.usefixtures("compiled")
def test_the_item_write_of_stm_passes_nan_and_infinity_on():
    inputs = [x.detach() for x in item_write_inputs(0, 3, 20)]
    inputs[0][0, 3, 4], inputs[1][1, 2], inputs[3][2, 5] = torch.nan, torch.inf, -torch.inf
    expected, got = in_torch(lambda: write_item(*inputs, True))
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert expected[0, 3].isnan().any()


# --- the scan -------------------------------------------------------------------------------------------------------------


def scan_inputs(seed, batch, steps, heads, keys, values, dtype=F64) -> list[Tensor]:
    q, k = (unit(normal(seed + i, batch, steps, heads, keys)) for i in range(2))
    v, memory = normal(seed + 2, batch, steps, heads, values), normal(seed + 3, batch, heads, values, keys)
    gates = [2 * normal(seed + i, batch, steps, heads).sigmoid() for i in (4, 5, 6)]
    return [x.to(dtype).requires_grad_() for x in (q, k, v, *gates, memory)]


def scanned(inputs, chunk_size=None, plain=False) -> list[Tensor]:
    """Return all results of a scan and their gradients, ``plain`` without a read gate and without erase."""
    q, k, v, p_read, p_write, p_erase, memory = inputs
    gates = (None, p_write, 0.0) if plain else (p_read, p_write, p_erase)
    outputs = memory_scan(q, k, v, *gates, initial_memory=memory, backend="chunk", chunk_size=chunk_size)
    return with_gradients(outputs, inputs)


@pytest.mark.usefixtures("compiled")
@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    batch=st.integers(1, 3),
    steps=st.integers(1, 300),
    heads=st.integers(1, 3),
    sizes=st.sampled_from([(4, 4), (8, 8), (16, 16), (32, 32), (5, 3), (1, 7)]),
    chunk_size=st.sampled_from([None, 7, 200]),
    plain=st.booleans(),
    threads=st.integers(1, 3),
)
def test_the_scan_is_that_of_torch_at_any_size_and_number_of_threads(
    seed, batch, steps, heads, sizes, chunk_size, plain, threads
):
    inputs = scan_inputs(seed, batch, steps, heads, *sizes)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected, got = in_torch(scanned, inputs, chunk_size, plain)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.usefixtures("compiled")
def test_a_scan_with_kernels_can_be_differentiated_without(monkeypatch):
    inputs = scan_inputs(0, 2, 200, 2, 8, 8)
    expected = scanned(inputs)
    reads, memory = memory_scan(*inputs[:6], initial_memory=inputs[6], backend="chunk")
    monkeypatch.setenv("FEWSHOT_NAM_COMPILE", "0")
    torch.testing.assert_close(with_gradients((reads, memory), inputs), expected, **EXACT)


@pytest.mark.usefixtures("compiled")
def test_the_scan_takes_gradients_that_are_not_contiguous():
    inputs = scan_inputs(0, 2, 9, 3, 4, 4)
    outputs = memory_scan(*inputs[:6], initial_memory=inputs[6])
    weights = [normal(i, *x.shape) for i, x in enumerate(outputs)]
    expected = torch.autograd.grad(outputs, inputs, weights, retain_graph=True)
    spread = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in weights]
    assert not spread[0].is_contiguous()
    torch.testing.assert_close(torch.autograd.grad(outputs, inputs, spread), expected)


@pytest.mark.usefixtures("compiled")
def test_the_compiled_scan_is_for_small_memories_on_a_cpu():
    def found(width, dtype=F64, state_dtype=F64, device="cpu"):
        v, state = torch.ones(1, 2, 1, width, dtype=dtype), torch.ones(1, width, width, dtype=state_dtype)
        return kernel_for(v.to(device), state.to(device))

    assert found(32) is not None
    assert found(33) is None
    assert found(8, torch.bfloat16, torch.float32) is None
    assert found(8, device="meta") is None


# --- the Turing machine ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("compiled")
@settings(max_examples=60)
@given(
    seed=st.integers(0, 999),
    sizes=st.tuples(*(st.integers(2, most) for most in (3, 35, 3, 9, 40))),
    actions=st.sampled_from(
        [("left", "noop", "right"), ("jump", "left", "right"), ("left", "jump", "jump"), ("right",)]
    ),
    flags=st.tuples(
        st.sampled_from(["tied", "separate"]),
        st.sampled_from(["position", "key"]),
        st.sampled_from(["none", "access", "state"]),
        st.sampled_from(["read_first", "write_first"]),
    ),
    masked=st.booleans(),
    parts=st.sampled_from([slice(None), slice(1), slice(1, None), slice(3, 4)]),
)
def test_a_machine_is_its_loop_at_any_size_and_with_any_flags(seed, sizes, actions, flags, masked, parts):
    batch, steps, tapes, width, cells = sizes
    torch.manual_seed(seed)
    names = dict(zip(("erase", "key_erase", "head_norm", "order"), flags, strict=True))
    machine = NAMTuringMachine(5, tapes, width, 6, cells, controller="mlp", actions=actions, dtype=F64, **names)
    with torch.no_grad():  # far from the uniform actions of a fresh machine
        machine.action_proj.weight.mul_(4.0)
    x = normal(seed, batch, steps, 5).requires_grad_()
    mask = torch.rand(batch, steps, generator=torch.Generator().manual_seed(seed)) > 0.3 if masked else None
    state = machine.initial_state(batch)
    # Heads of length 1 or so: longer ones let tapes grow without bound.
    filled = [None if part is None else (normal(seed + 1, *part.shape) / cells**0.5) for part in state[:4]]
    leaves = [x, *(part.requires_grad_() for part in filled if part is not None), *machine.parameters()]
    found = []
    for machine.backend in ("loop", "auto"):
        outputs, last = machine(x, state._replace(**dict(zip(state._fields, filled, strict=False))), mask)
        found.append(with_gradients([outputs, *(part for part in last[:4] if part is not None)][parts], leaves))
    for expected, got in zip(*found, strict=True):
        assert (got - expected).abs().max() <= 1e-10 * expected.abs().max().clamp_min(1)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("key_erase", ["position", "key"])
def test_a_machine_in_float32_is_as_close_to_float64_as_a_scan(key_erase):
    found = []
    for dtype in (torch.float32, F64):
        torch.manual_seed(0)
        machine = NAMTuringMachine(32, 4, key_erase=key_erase, tape_length=24, controller="mlp").to(dtype)
        x = normal(1, 4, 24, 32).to(dtype).requires_grad_()
        found.append(with_gradients([machine(x)[0]], [x]))
    for single, exact, bound in zip(*found, (2e-6, 5e-6), strict=True):
        assert (single - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.usefixtures("compiled")
def test_the_kernel_takes_rolls_and_jumps_on_a_cpu_alone():
    machine = NAMTuringMachine(4, 1, actions=("left", "jump", lambda heads, context: heads))
    head = torch.zeros(1, 1, 4)
    assert kernel_takes(machine.actions[:2], head)
    assert not kernel_takes(machine.actions, head)
    assert not kernel_takes(machine.actions[:2], head.to("meta"))
    assert not kernel_takes(machine.actions[:2], head.bfloat16())
    assert not kernel_takes(machine.actions[:2], head[:0])
    assert not kernel_takes(machine.actions[:2], nn.Parameter(head))  # or any other kind of tensor
    assert not torch.func.vmap(lambda x: torch.tensor(kernel_takes(machine.actions[:2], x)), randomness="same")(
        head
    ).any()


# --- building ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unbuilt(monkeypatch, tmp_path, caplog):
    """Return an empty cache directory; nothing is built and the switch is not set."""
    monkeypatch.setattr(native_build, "_libraries", {})
    monkeypatch.setattr(native_build, "_reported", set())
    monkeypatch.setenv("FEWSHOT_NAM_CACHE", str(tmp_path))
    monkeypatch.delenv("FEWSHOT_NAM_COMPILE", raising=False)
    caplog.set_level(logging.WARNING, logger=native_build.__name__)
    return tmp_path / "compiled"


@pytest.fixture
def quick_compiler(built, monkeypatch, tmp_path):
    """Use a compiler that copies the kernels of this session."""
    script = tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp "{built._name}" "$2"\n', encoding="utf-8")
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))


@pytest.mark.usefixtures("quick_compiler")
def test_kernels_are_built_on_first_use(unbuilt):
    assert kernels.library() is not None
    assert len(list(unbuilt.iterdir())) == 1
    assert build_kernels()


@pytest.mark.usefixtures("quick_compiler")
def test_build_kernels_says_that_the_switch_is_off(unbuilt, monkeypatch, caplog):
    monkeypatch.setenv("FEWSHOT_NAM_COMPILE", "0")
    assert not build_kernels()
    assert kernels.library() is None
    assert [record.getMessage() for record in caplog.records] == [
        "no compiled kernels, torch does their work: FEWSHOT_NAM_COMPILE=0"
    ]
    assert not unbuilt.exists()


@pytest.mark.usefixtures("unbuilt")
def test_build_kernels_tries_again_after_a_failure_and_torch_goes_on_until_then(request, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "false")
    assert not build_kernels()
    assert LSAM(3, 4)(torch.zeros(2, 1, 3))[0].shape == (2, 1, 4)
    assert len(caplog.records) == 1
    request.getfixturevalue("quick_compiler")
    assert kernels.library() is None, "only build_kernels tries again"
    assert build_kernels()


def test_only_floating_numbers_on_a_cpu_are_for_the_kernels(built):
    assert kernels.library_for(torch.zeros(2)) is built
    assert kernels.library_for(torch.zeros(2, dtype=F64)) is built
    for other in (torch.zeros(0), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, device="meta")):
        assert kernels.library_for(other) is None
