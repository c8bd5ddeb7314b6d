"""LSAM against the paper's equations written out, the fast loop against autograd, and the calls against ``torch.nn.LSTM``."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, unpack_sequence

from fewshot_nam.memory.lsam.layer import LSAM, LSAMCell
from fewshot_nam.memory.lsam.recurrence import recurrence

pytestmark = pytest.mark.usefixtures("either")
EXACT = {"rtol": 1e-9, "atol": 1e-10}
F64 = torch.float64
BACKWARDS = ["hand", "autograd"]


def normal(seed: int, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(seed: int, *sizes: int, kind=LSAM, **options) -> LSAM:
    """Return a network whose random parameters do not depend on what ran before."""
    names = ("input_size", "hidden_size", "num_layers", "num_heads", "bias")
    module = kind(**dict(zip(names, sizes, strict=False)), **{"dtype": F64, **options})
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * normal(seed + number, *parameter.shape))
    return module


def written_out(x, weight_ih, weight_hh, bias, heads, hidden, memory, activation):
    """Return the outputs ``(T, B, d)``, last ``h`` and last ``M`` of the printed equations, one head at a time."""
    d = weight_hh.shape[1]
    e = d // heads
    outputs, last_hidden, last_memory = [], [], []
    for b in range(x.shape[1]):
        h, memories, row = hidden[b], list(memory[b]), []
        for t in range(x.shape[0]):
            total = weight_ih @ x[t, b] + weight_hh @ h + (0 if bias is None else bias)
            pieces = []
            for i in range(heads):
                q, k, v = (total[part * d + i * e : part * d + (i + 1) * e] for part in range(3))
                p_r, p_w = total[3 * d + i].sigmoid(), total[3 * d + heads + i].sigmoid()
                q, k, v = q / q.norm(), k / k.norm(), v.tanh() if activation else v
                memories[i] = memories[i] + p_w * torch.outer(v - memories[i] @ k, k)
                pieces.append(p_r * memories[i] @ q)
            h = torch.cat(pieces)
            row.append(h)
        outputs.append(torch.stack(row))
        last_hidden.append(h)
        last_memory.append(torch.stack(memories))
    return torch.stack(outputs, dim=1), torch.stack(last_hidden), torch.stack(last_memory)


def gradients(outputs, inputs) -> list[Tensor]:
    """Return the gradients of a random weighting of all outputs."""
    total = sum((output * normal(90 + i, *output.shape)).sum() for i, output in enumerate(outputs))
    return list(torch.autograd.grad(total, inputs))


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize(("heads", "bias", "given_state"), [(1, True, True), (2, False, True), (3, True, False)])
def test_lsam_is_the_printed_equations_with_all_gradients(heads, bias, given_state, activation, backward):
    net = network(1, 5, 6, 1, heads, bias, value_activation=activation, backward=backward)
    e = 6 // heads
    x = normal(20, 7, 3, 5).requires_grad_()
    scale = 1.0 if given_state else 0.0
    hidden, memory = (
        (scale * normal(21, 1, 3, 6)).requires_grad_(),
        (scale * normal(22, 1, 3, heads, e, e)).requires_grad_(),
    )
    output, (h_n, m_n) = net(x, (hidden, memory) if given_state else None)
    bias_l0 = net.bias_l0 if bias else None
    expected = written_out(x, net.weight_ih_l0, net.weight_hh_l0, bias_l0, heads, hidden[0], memory[0], activation)
    got = (output, h_n[0], m_n[0])
    torch.testing.assert_close(got, expected, **EXACT)
    leaves = [x, *net.parameters(), *((hidden, memory) if given_state else ())]
    torch.testing.assert_close(gradients(got, leaves), gradients(expected, leaves), **EXACT)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    steps=st.integers(1, 6),
    batch=st.integers(1, 4),
    directions=st.integers(1, 2),
    heads=st.integers(1, 4),
    width=st.integers(1, 4),
    activation=st.sampled_from([None, "tanh"]),
    parts=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_the_hand_written_backward_equals_autograd_at_any_size(
    seed, steps, batch, directions, heads, width, activation, parts
):
    rows = heads * (3 * width + 2)
    inputs = [
        normal(seed, steps, directions, batch, rows),
        normal(seed + 1, directions, rows, heads * width),
        normal(seed + 2, directions, batch, heads * width),
        normal(seed + 3, directions, batch, heads, width, width),
    ]
    inputs = [x.requires_grad_() for x in inputs]
    found = []
    for backward in BACKWARDS:
        outputs = recurrence(*inputs, activation, backward)
        # a gradient through the hidden states alone, the memory alone, or both.
        wanted = [output for output, part in zip(outputs, parts, strict=True) if part]
        found.append([*outputs, *gradients(wanted, inputs)])
    torch.testing.assert_close(*found, **EXACT)


@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_cell_step_by_step_is_the_layer(activation, bias):
    net = network(2, 3, 10, 1, 2, bias, value_activation=activation)
    cell = LSAMCell(3, 10, bias, num_heads=2, value_activation=activation, dtype=F64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in net.state_dict().items()})
    x = normal(3, 7, 4, 3)
    output, (h_n, m_n) = net(x)
    state, alone = None, None
    for t in range(7):
        state = cell(x[t], state)
        alone = cell(x[t, 2], alone)
        torch.testing.assert_close(state[0], output[t], **EXACT)
    torch.testing.assert_close(state, (h_n[0], m_n[0]), **EXACT)
    torch.testing.assert_close(alone, (h_n[0, 2], m_n[0, 2]), **EXACT)


def test_two_directions_are_two_lsams_one_reading_the_reversed_input_from_its_own_state():
    both = network(4, 3, 6, 2, 2, bidirectional=True)
    hidden, memory = normal(5, 4, 5, 6), normal(6, 4, 5, 2, 3, 3)
    x = y = normal(7, 8, 5, 3)
    output, (h_n, m_n) = both(x, (hidden, memory))
    for layer in range(2):
        halves = []
        for direction, suffix in enumerate(["", "_reverse"]):
            single = network(0, y.shape[-1], 6, 1, 2)
            names = {name: name.replace("_l0", f"_l{layer}{suffix}") for name in single.state_dict()}
            single.load_state_dict({name: both.state_dict()[source] for name, source in names.items()})
            at = slice(2 * layer + direction, 2 * layer + direction + 1)
            out, state = single(y.flip(0) if direction else y, (hidden[at], memory[at]))
            torch.testing.assert_close(state, (h_n[at], m_n[at]), **EXACT)
            halves.append(out.flip(0) if direction else out)
        y = torch.cat(halves, dim=-1)
    torch.testing.assert_close(output, y, **EXACT)


def test_a_layer_reads_the_outputs_of_the_one_below():
    net = network(8, 3, 6, 2, 3)
    below, above = network(0, 3, 6, 1, 3), network(0, 6, 6, 1, 3)
    for single, layer in ((below, 0), (above, 1)):
        single.load_state_dict(
            {name: net.state_dict()[name.replace("_l0", f"_l{layer}")] for name in single.state_dict()}
        )
    x = normal(9, 5, 2, 3)
    between, first = below(x)
    expected, second = above(between)
    output, state = net(x)
    torch.testing.assert_close(output, expected, **EXACT)
    torch.testing.assert_close(state, tuple(torch.cat(pair) for pair in zip(first, second, strict=True)), **EXACT)


@pytest.mark.parametrize("activation", [None, "tanh"])
def test_the_state_carries_over_a_split_with_its_gradients(activation):
    net = network(10, 3, 6, 2, 2, value_activation=activation)
    x = normal(11, 7, 5, 3).requires_grad_()
    output, state = net(x)
    first, middle = net(x[:3])
    second, end = net(x[3:], middle)
    torch.testing.assert_close((torch.cat([first, second]), end), (output, state), **EXACT)
    leaves = [x, *net.parameters()]
    once, twice = gradients((output, *state), leaves), gradients((torch.cat([first, second]), *end), leaves)
    torch.testing.assert_close(once, twice, **EXACT)


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [(3, 7, 1, 5), (6, 4, 4, 2)])
def test_packed_sequences_are_the_sequences_one_by_one(lengths, bidirectional, backward):
    net = network(12, 3, 6, 2, 2, bidirectional=bidirectional, backward=backward)
    rows = 4 if bidirectional else 2
    sequences = [normal(13 + i, length, 3).requires_grad_() for i, length in enumerate(lengths)]
    hidden, memory = normal(30, rows, 4, 6).requires_grad_(), normal(31, rows, 4, 2, 3, 3).requires_grad_()
    ordered = sorted(lengths, reverse=True) == list(lengths)
    packed, (h_n, m_n) = net(pack_sequence(sequences, enforce_sorted=ordered), (hidden, memory))
    assert isinstance(packed, PackedSequence)
    alone = [net(x, (hidden[:, i], memory[:, i])) for i, x in enumerate(sequences)]
    outputs = [output for output, _ in alone]
    states = tuple(torch.stack(parts, dim=1) for parts in zip(*(state for _, state in alone), strict=True))
    torch.testing.assert_close(unpack_sequence(packed), outputs, **EXACT)
    torch.testing.assert_close((h_n, m_n), states, **EXACT)
    leaves = [*sequences, hidden, memory, *net.parameters()]
    together = gradients((*unpack_sequence(packed), h_n, m_n), leaves)
    torch.testing.assert_close(together, gradients((*outputs, *states), leaves), **EXACT)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", ["batch", "one sequence", "packed", "packed unsorted"])
@pytest.mark.parametrize("given_state", [False, True])
def test_every_call_of_an_lstm_is_answered_in_the_shapes_of_an_lstm(batch_first, bidirectional, form, given_state):
    options = {"batch_first": batch_first, "bidirectional": bidirectional}
    lstm, lsam = nn.LSTM(3, 10, 2, **options), LSAM(3, 10, 2, num_heads=5, **options)
    x = normal(40, 4, 7, 3, dtype=torch.float32)
    batch = (4,) if batch_first else (7,)
    if form == "one sequence":
        x, batch = x[0], ()
    elif form != "batch":
        lengths = [7, 5, 5, 1] if form == "packed" else [5, 1, 7, 5]
        padded = x if batch_first else x.transpose(0, 1)
        x = pack_padded_sequence(padded, lengths, batch_first, enforce_sorted=form == "packed")
        batch = (4,)
    rows = 4 if bidirectional else 2
    h_0 = torch.zeros(rows, *batch, 10)
    expected, (h_expected, _) = lstm(x, (h_0, h_0) if given_state else None)
    got, (h_n, m_n) = lsam(x, (h_0, torch.zeros(rows, *batch, 5, 2, 2)) if given_state else None)
    assert type(got) is type(expected)
    if isinstance(got, PackedSequence):
        assert torch.equal(got.batch_sizes, expected.batch_sizes)
        got, expected = got.data, expected.data
    assert got.shape == expected.shape
    assert h_n.shape == h_expected.shape
    assert m_n.shape == (rows, *batch, 5, 2, 2)


def test_batch_first_only_swaps_the_axes():
    net = network(14, 3, 6, 2, 2, bidirectional=True)
    swapped = network(14, 3, 6, 2, 2, bidirectional=True, batch_first=True)
    x = normal(15, 5, 4, 3)
    output, state = net(x)
    output_swapped, state_swapped = swapped(x.transpose(0, 1))
    torch.testing.assert_close((output_swapped.transpose(0, 1), state_swapped), (output, state), **EXACT)


def test_dropout_falls_between_layers_in_training_alone():
    net, plain = network(16, 3, 6, 2, dropout=0.5), network(16, 3, 6, 2)
    x = normal(17, 5, 4, 3)
    expected, state = plain(x)
    torch.manual_seed(0)
    dropped, dropped_state = net(x)
    assert not torch.allclose(dropped, expected)
    # the first layer runs before any dropout, and what the last layer puts out is not dropped.
    torch.testing.assert_close(dropped_state[1][0], state[1][0], **EXACT)
    assert (dropped != 0).all()
    torch.testing.assert_close(net.eval()(x)[0], expected, **EXACT)
    with pytest.warns(UserWarning, match=r"dropout=0.5 does nothing with one layer"):
        LSAM(3, 6, dropout=0.5)


@pytest.mark.parametrize(("d", "heads", "inputs"), [(64, 4, 64), (16, 1, 16), (15, 3, 5), (32, 32, 8), (96, 2, 7)])
@pytest.mark.parametrize("seed", [0, 1])
def test_at_its_initialisation_4096_steps_stay_bounded_with_finite_gradients(d, heads, inputs, seed):
    torch.manual_seed(seed)
    net = LSAM(inputs, d, num_heads=heads)
    assert torch.linalg.matrix_norm(net.weight_hh_l0[2 * d : 3 * d], 2) <= 1 + 1e-5
    x = torch.randn(4096, 1, inputs, requires_grad=True)
    output, (_, m_n) = net(x)
    assert output.abs().max() < 10
    assert m_n.abs().max() < 10
    output.sum().backward()
    for leaf in (x, *net.parameters()):
        assert leaf.grad.isfinite().all()
    assert x.grad.abs().max() < 1e4


def test_tanh_bounds_what_too_large_weights_would_blow_up():
    reached = {}
    for activation in (None, "tanh"):
        net = network(18, 8, 16, 1, 2, value_activation=activation, dtype=torch.float32)
        with torch.no_grad():
            net.weight_hh_l0 *= 3
        reached[activation] = net(normal(19, 512, 2, 8, dtype=torch.float32))[0].abs().max()
    assert not reached[None] < 1e3
    # |M| is at most the root of the d / H = 8 values of a column of tanh, and a unit query reads at most 8 columns.
    assert reached["tanh"] <= 8


@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 48, 50])
def test_the_hand_written_backward_is_exact_at_any_number_of_blocks(length, activation):
    net = network(71, 3, 6, 1, 2, value_activation=activation)
    inputs = [normal(72, length, 2, 3), normal(73, 1, 2, 6), normal(74, 1, 2, 2, 3, 3)]
    leaves = [*(x.requires_grad_() for x in inputs), *net.parameters()]
    found = []
    for net.backward in BACKWARDS:
        output, state = net(inputs[0], (inputs[1], inputs[2]))
        found.append(gradients((output, *state), leaves))
    torch.testing.assert_close(*found, **EXACT)


def test_one_large_token_leaves_the_gradients_of_the_small_ones_exact():
    torch.manual_seed(1)
    net = LSAM(8, 32, num_heads=4)
    x = torch.randn(20, 4, 8)
    x[-1] *= 1e6
    found = []
    for run, tokens in ((net, x), (copy.deepcopy(net).double(), x.double())):
        tokens.requires_grad_()
        small = run(tokens)[0][:10]
        loss = (small * normal(2, *small.shape).to(tokens.dtype)).sum()
        found.append(torch.autograd.grad(loss, [tokens, *run.parameters()]))
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).norm() < 1e-5 * exact.norm()


def test_4096_writes_are_differentiated_as_exactly_as_by_keeping_every_memory():
    torch.manual_seed(3)
    net = LSAM(16, 32, num_heads=4)
    x = torch.randn(4096, 1, 16)
    found = {}
    for net.backward in BACKWARDS:
        found[net.backward] = gradients([net(x)[0]], list(net.parameters()))
    net.backward = "hand"
    exact = gradients([net.double()(x.double())[0]], list(net.parameters()))
    for by_hand, kept, truth in zip(found["hand"], found["autograd"], exact, strict=True):
        error, usual = ((grad - truth).abs().max() / truth.abs().max() for grad in (by_hand, kept))
        assert error < 2e-5
        assert error < 5 * usual + 1e-6


@pytest.mark.parametrize("backward", BACKWARDS)
def test_keys_without_direction_give_no_nan(backward):
    net = LSAM(3, 6, num_heads=2, bias=False, backward=backward)
    x = torch.zeros(20, 2, 3, requires_grad=True)
    memory = torch.randn(1, 2, 2, 3, 3, requires_grad=True)
    output, (_, m_n) = net(x, (torch.zeros(1, 2, 6), memory))
    (output.sum() + m_n.sum()).backward()
    assert torch.equal(m_n, memory)
    for leaf in (x, memory, *net.parameters()):
        assert leaf.grad.isfinite().all()


def test_a_second_derivative_raises_by_hand_and_is_right_by_autograd():
    x = normal(23, 3, 1, 2).requires_grad_()
    net = network(24, 2, 4, 1, 2)
    for leaf in (x, net.weight_hh_l0):
        (first,) = torch.autograd.grad(net(x)[0].square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=r'backward="autograd"'):
            first.sum().backward()
    net = network(24, 2, 4, 1, 2, backward="autograd", bidirectional=True)

    def run(x, weight):
        return torch.func.functional_call(net, {"weight_hh_l0": weight}, (x,))[0]

    assert torch.autograd.gradcheck(run, (x, net.weight_hh_l0))
    assert torch.autograd.gradgradcheck(run, (x, net.weight_hh_l0))


def test_the_hand_written_backward_passes_gradcheck():
    net = network(25, 2, 4, 2, 2, bidirectional=True, value_activation="tanh")
    inputs = [normal(26, 3, 2, 2), normal(27, 4, 2, 4), normal(28, 4, 2, 2, 2, 2)]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda x, h, m: (lambda out, state: (out, *state))(*net(x, (h, m))), inputs)


def test_torch_func_takes_the_plain_loop_by_itself():
    net = network(32, 3, 6, 1, 2)
    x = normal(33, 4, 5, 2, 3)  # 4 tasks
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(net, parameters, (x,))[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for task in range(4):
        expected = torch.autograd.grad(net(x[task])[0].square().sum(), list(net.parameters()))
        for (name, _), gradient in zip(net.named_parameters(), expected, strict=True):
            torch.testing.assert_close(found[name][task], gradient, **EXACT)


def test_export_keeps_the_numbers():
    net, x = network(34, 3, 4, 1, 2, bidirectional=True), normal(35, 3, 2, 3)
    program = torch.export.export(net, (x,))
    other = normal(36, 3, 2, 3)
    torch.testing.assert_close(program.module()(other), net(other), **EXACT)
    assert not any("lsam" in str(node.target) for node in program.graph.nodes)


def test_compile_takes_the_whole_network_as_one_graph_with_gradients():
    net, x = network(37, 3, 4, 1, 2), normal(38, 40, 2, 3).requires_grad_()
    leaves = [x, *net.parameters()]
    expected = net(x)
    output, state = torch.compile(net, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close((output, state), expected, **EXACT)
    torch.testing.assert_close(
        gradients((output, *state), leaves), gradients((expected[0], *expected[1]), leaves), **EXACT
    )


def test_the_meta_device_gives_shapes():
    net = LSAM(3, 6, 2, num_heads=2, bidirectional=True, device="meta")
    output, (h_n, m_n) = net(torch.zeros(5, 4, 3, device="meta"))
    assert (output.shape, h_n.shape, m_n.shape) == ((5, 4, 12), (4, 4, 6), (4, 4, 2, 3, 3))
    output.sum().backward()


def test_the_operators_describe_themselves_to_torch():
    inputs = (normal(1, 3, 2, 5, 16), normal(2, 2, 16, 4), normal(3, 2, 5, 4), normal(4, 2, 5, 2, 2, 2))
    for squashed in (False, True):
        torch.library.opcheck(torch.ops.fewshot_nam.lsam.default, (*(x.requires_grad_() for x in inputs), squashed))


def test_low_precision_keeps_the_memory_in_float32_and_stays_close():
    net = network(41, 3, 6, 2, 2, bidirectional=True, dtype=torch.float32)
    x = normal(42, 9, 4, 3, dtype=torch.float32)
    expected, (_, m_expected) = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, (h_n, m_n) = net(x)
        gradient = torch.autograd.grad(output.sum(), net.weight_hh_l0)[0]
        net.backward = "autograd"
        torch.testing.assert_close(net(x)[0], output, rtol=1e-4, atol=1e-5)
    half = network(41, 3, 6, 2, 2, bidirectional=True, dtype=torch.bfloat16)
    half_output, (half_h, half_m) = half(x.bfloat16())
    for got, memory in ((output, m_n), (half_output.float(), half_m)):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(memory, m_expected, rtol=2e-2, atol=4e-2)
    assert (output.dtype, h_n.dtype, m_n.dtype) == (torch.float32,) * 3
    assert (half_output.dtype, half_h.dtype, half_m.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert gradient.isfinite().all()


def test_the_inputs_are_left_as_they_are():
    net = network(43, 3, 6, 2, 2)
    inputs = (normal(44, 5, 2, 3), normal(45, 2, 2, 6), normal(46, 2, 2, 2, 3, 3))
    copies = [x.clone() for x in inputs]
    output, _ = net(inputs[0].requires_grad_(), inputs[1:])
    output.sum().backward()
    torch.testing.assert_close(list(inputs), copies, rtol=0, atol=0, check_dtype=True)


def test_code_for_an_lstm_that_flattens_parameters_runs():
    net = network(43, 3, 6, 2, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert net.flatten_parameters() is None
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def test_state_dict_round_trip_and_names():
    net, other = network(47, 3, 6, 2, 2, bidirectional=True), network(0, 3, 6, 2, 2, bidirectional=True)
    other.load_state_dict(net.state_dict())
    x = normal(48, 5, 2, 3)
    torch.testing.assert_close(net(x), other(x), rtol=0, atol=0)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert list(shapes)[:4] == ["weight_ih_l0", "weight_hh_l0", "bias_l0", "weight_ih_l0_reverse"]
    assert shapes["weight_ih_l1_reverse"] == (22, 12)
    assert set(LSAMCell(3, 6, bias=False).state_dict()) == {"weight_ih", "weight_hh"}


def test_the_repr_shows_what_is_not_the_default():
    assert repr(LSAM(3, 6)) == "LSAM(3, 6)"
    net = LSAM(3, 6, 2, num_heads=3, dropout=0.1, batch_first=True, value_activation="tanh")
    assert repr(net) == "LSAM(3, 6, num_layers=2, num_heads=3, batch_first=True, dropout=0.1, value_activation='tanh')"
    assert repr(LSAMCell(3, 6, num_heads=2, bias=False)) == "LSAMCell(3, 6, num_heads=2, bias=False)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net: net(torch.zeros(5, 2, 4)), ValueError, r"input must have shape \(B, T, 3\), got \(5, 2, 4\)"),
        (lambda net: net(torch.zeros(5)), ValueError, r"input must be 2-D or 3-D, got 1-D of shape \(5,\)"),
        (lambda net: net(torch.zeros(0, 2, 3)), ValueError, r"at least one step, got an input of shape \(0, 2, 3\)"),
        (lambda net: net(torch.zeros(5, 2, 3, dtype=F64)), TypeError, r"one dtype, got input torch.float64"),
        (lambda net: net(torch.zeros(5, 2, 3, dtype=torch.long)), TypeError, r"floating dtype, got torch.int64"),
        (lambda net: net([1.0]), TypeError, r"input must be a tensor, got list"),
        (lambda net: net(torch.zeros(5, 2, 3), torch.zeros(1, 2, 6)), TypeError, r"hx must be a pair \(h, M\)"),
        (
            lambda net: net(torch.zeros(5, 2, 3), (torch.zeros(1, 6), torch.zeros(1, 2, 2, 3, 3))),
            ValueError,
            r"h of hx must have shape \(1, 2, 6\), got \(1, 6\)",
        ),
        (
            lambda net: net(torch.zeros(5, 3), (torch.zeros(1, 1, 6), torch.zeros(1, 2, 3, 3))),
            ValueError,
            r"h of hx must have shape \(1, 6\), got \(1, 1, 6\)",
        ),
        (
            lambda net: net(torch.zeros(5, 2, 3), (torch.zeros(1, 2, 6), torch.zeros(1, 2, 6))),
            ValueError,
            r"M of hx must have shape \(1, 2, 2, 3, 3\), got \(1, 2, 6\)",
        ),
        (lambda net: net(torch.zeros(5, 2, 3, device="meta")), ValueError, r"one device, got input on meta"),
        (lambda net: LSAM(3, 6, num_heads=4), ValueError, r"num_heads must divide hidden_size, got 4 heads for 6"),
        (lambda net: LSAM(3, 0), ValueError, r"hidden_size must be a whole number of at least 1, got 0"),
        (lambda net: LSAM(3, 6, dropout=1.5), ValueError, r"dropout must be a probability in \[0, 1\], got 1.5"),
        (lambda net: LSAM(3, 6, backward="slow"), ValueError, r'"hand" or "autograd", got \'slow\''),
        (lambda net: LSAMCell(3, 6, value_activation="relu"), ValueError, r'None or "tanh", got \'relu\''),
        (lambda net: LSAMCell(3, 6)(torch.zeros(5, 2, 3)), ValueError, r"LSAMCell: input must be 1-D or 2-D, got 3-D"),
    ],
)
def test_wrong_calls_say_what_was_wanted(call, error, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = LSAM(3, 6, num_heads=2)
        with pytest.raises(error, match=message):
            call(net)
