"""LSAM's options beyond the paper against their equations: projection, separate erase gates, convolution; argument order."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from fewshot_nam.memory import LSAM, LSAMCell

pytestmark = pytest.mark.usefixtures("either")
EXACT = {"rtol": 1e-9, "atol": 1e-10}
F64 = torch.float64
OPTIONS = {
    "none": {},
    "projection": {"proj_size": 5},
    "separate erase": {"erase": "separate", "max_erase": 2.0},
    "convolution": {"conv_size": 3},
    "all": {"proj_size": 3, "erase": "separate", "max_erase": 1.5, "conv_size": 2, "value_activation": "tanh"},
}


def network(options: dict, **others) -> LSAM:
    torch.manual_seed(0)
    net = LSAM(3, 6, num_heads=2, dtype=F64, **options, **others)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return net


def written_out(net: LSAM, x: Tensor, layer: int = 0, direction: str = "") -> Tensor:
    """Return the outputs of one layer and direction for one sequence ``(T, D)``, from zero states."""
    d, heads = net.hidden_size, net.num_heads
    e = d // heads
    weight_ih, weight_hh = (getattr(net, f"{name}_l{layer}{direction}") for name in ("weight_ih", "weight_hh"))
    inputs = x @ weight_ih.T + getattr(net, f"bias_l{layer}{direction}")
    vectors = inputs[:, : 3 * d].view(-1, 3, heads, e)
    if net.conv_size:
        weight = getattr(net, f"conv_l{layer}{direction}").weight.view(heads, 3, e, net.conv_size).transpose(0, 1)
        padded = torch.cat([vectors.new_zeros(net.conv_size - 1, 3, heads, e), vectors])
        vectors = sum(weight[..., i] * padded[i : i + len(vectors)] for i in range(net.conv_size))
    h, memories, outputs = x.new_zeros(weight_hh.shape[1]), [x.new_zeros(e, e) for _ in range(heads)], []
    for t in range(len(x)):
        back = weight_hh @ h
        q, k, v = vectors[t] + back[: 3 * d].view(3, heads, e)
        gates = (inputs[t, 3 * d :] + back[3 * d :]).sigmoid().view(-1, heads)
        pieces = []
        for i in range(heads):
            p_erase = net.max_erase * gates[2, i] if net.erase == "separate" else gates[1, i]
            key, value = k[i] / k[i].norm(), v[i].tanh() if net.value_activation else v[i]
            old = memories[i] @ key
            memories[i] = memories[i] + torch.outer(gates[1, i] * value - p_erase * old, key)
            pieces.append(gates[0, i] * memories[i] @ (q[i] / q[i].norm()))
        h = torch.cat(pieces)
        if net.proj_size:
            h = getattr(net, f"weight_hr_l{layer}{direction}") @ h
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_are_their_equations_with_all_gradients(name):
    net = network(OPTIONS[name], bidirectional=True)
    x = torch.randn(19, 2, 3, dtype=F64, requires_grad=True)
    expected = torch.stack(
        [
            torch.cat([written_out(net, row), written_out(net, row.flip(0), direction="_reverse").flip(0)], dim=-1)
            for row in x.unbind(1)
        ],
        dim=1,
    )
    outputs, _ = net(x)
    torch.testing.assert_close(outputs, expected, **EXACT)
    weights, leaves = torch.randn_like(outputs), [x, *net.parameters()]
    found = torch.autograd.grad((outputs * weights).sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), leaves), **EXACT)


@pytest.mark.parametrize("name", OPTIONS)
def test_packed_sequences_and_resumed_ones_are_the_sequences_alone(name):
    net = network(OPTIONS[name], num_layers=2)
    both = network(OPTIONS[name], num_layers=2, bidirectional=True)
    rows = [torch.randn(length, 3, dtype=F64) for length in (2, 7, 1, 5)]
    for module in (net, both):
        packed, state = module(pack_sequence(rows, enforce_sorted=False))
        for i, (row, found) in enumerate(zip(rows, unpack_sequence(packed), strict=True)):
            alone, last = module(row)
            torch.testing.assert_close(found, alone, **EXACT)
            torch.testing.assert_close(tuple(part[:, i] for part in state), last, **EXACT)
    more = torch.randn(4, 4, 3, dtype=F64)
    outputs, _ = net(more, net(pack_sequence(rows, enforce_sorted=False))[1])
    for i, row in enumerate(rows):
        whole, _ = net(torch.cat([row, more[:, i]]))
        torch.testing.assert_close(outputs[:, i], whole[-4:], **EXACT)


def test_a_cell_with_separate_gates_is_the_network():
    net = network({"erase": "separate", "max_erase": 2.0})
    cell = LSAMCell(3, 6, num_heads=2, erase="separate", max_erase=2.0, dtype=F64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in net.state_dict().items()})
    x, state = torch.randn(5, 2, 3, dtype=F64), None
    for t in range(5):
        state = cell(x[t], state)
    torch.testing.assert_close(state[0], net(x)[0][-1], **EXACT)


def test_the_positions_of_arguments_are_those_of_torch():
    lstm = nn.LSTM(3, 6, 2, False, True, 0.1, True, 5)
    lsam = LSAM(3, 6, 2, False, True, 0.1, True, 5)
    for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size"):
        assert getattr(lsam, name) == getattr(lstm, name)
    x = torch.randn(2, 4, 3)
    expected, found = lstm(x), lsam(x)
    assert found[0].shape == expected[0].shape
    assert found[1][0].shape == expected[1][0].shape
    assert LSAMCell(3, 6, False).bias is None


def test_the_old_positions_work_with_one_warning():
    with pytest.warns(DeprecationWarning, match=r"LSAM: num_heads by position is deprecated .* use num_heads=") as seen:
        net = LSAM(3, 6, 2, 3, False, True, 0.0, True)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert (net.num_heads, net.bias, net.batch_first, net.bidirectional) == (3, False, True, True)
    with pytest.warns(DeprecationWarning, match="LSAMCell: num_heads by position"):
        cell = LSAMCell(3, 6, 2, bias=False)
    assert (cell.num_heads, cell.bias) == (2, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_size": 6}, "proj_size must be a whole number from 0 to hidden_size - 1 = 5, got 6"),
        ({"proj_size": True}, "proj_size must be a whole number from 0 to hidden_size - 1 = 5, got True"),
        ({"erase": "both"}, 'erase must be "tied" or "separate", got \'both\''),
        ({"max_erase": 2.0}, 'max_erase belongs to erase="separate", got 2.0'),
        ({"erase": "separate", "max_erase": 3}, "max_erase must be above 0 and at most 2, got 3"),
        ({"conv_size": 1}, "conv_size must be None or an integer of at least 2, got 1"),
    ],
)
def test_options_that_do_not_fit_are_errors(options, message):
    with pytest.raises(ValueError, match=f"LSAM: {message}"):
        LSAM(3, 6, num_heads=2, **options)


def test_a_state_without_the_convolution_is_refused():
    net = network({"conv_size": 2})
    _, (hidden, memory, _) = net(torch.zeros(4, 2, 3, dtype=F64))
    with pytest.raises(TypeError, match=r"LSAM: hx must be a triple \(h, M, recent\), got tuple of 2"):
        net(torch.zeros(4, 2, 3, dtype=F64), (hidden, memory))


def test_a_cell_with_a_convolution_is_the_network():
    net = network({"conv_size": 3})
    cell = LSAMCell(3, 6, num_heads=2, conv_size=3, dtype=F64)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            parameter.copy_(net.get_parameter("conv_l0.weight" if name == "conv.weight" else f"{name}_l0"))
    x = torch.randn(4, 2, 3, dtype=F64)
    outputs, last = net(x)
    state = None
    for now, expected in zip(x, outputs, strict=True):
        state = cell(now, state)
        torch.testing.assert_close(state[0], expected, **EXACT)
    for ours, theirs in zip(state, last, strict=True):
        torch.testing.assert_close(ours, theirs[0], **EXACT)
    alone = cell(x[0, 0])  # one sequence, without B
    torch.testing.assert_close(alone[0], outputs[0, 0], **EXACT)
    assert [tuple(part.shape) for part in alone] == [(6,), (2, 3, 3), (2, 18)]
    with pytest.raises(TypeError, match="LSAMCell: hx must be a triple"):
        cell(x[0], state[:2])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_output_norm_divides_the_outputs_of_each_head_and_leaves_the_states(bidirectional):
    net = network({"output_norm": True}, bidirectional=bidirectional)
    plain = network({}, bidirectional=bidirectional)
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if "norm" not in name})
    sequences = [torch.randn(length, 3, dtype=F64) for length in (5, 3)]
    found, states = net(pack_sequence(sequences, enforce_sorted=False))
    raw, expected = plain(pack_sequence(sequences, enforce_sorted=False))
    for ours, theirs in zip(states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    for ours, theirs in zip(unpack_sequence(found), unpack_sequence(raw), strict=True):
        directions = []
        for number, part in enumerate(theirs.chunk(2 if bidirectional else 1, dim=-1)):
            by_head = part.view(-1, 2, 3)
            size = (by_head.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
            norm = net.get_submodule("norm_l0" + "_reverse" * number)
            directions.append((norm.weight * by_head / size).flatten(-2))
        torch.testing.assert_close(ours, torch.cat(directions, dim=-1), **EXACT)
    with pytest.raises(ValueError, match="LSAM: output_norm belongs to outputs with heads"):
        LSAM(3, 6, proj_size=2, output_norm=True)
