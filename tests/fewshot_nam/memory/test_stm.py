"""STM against its equations in both presets, with gradients; states, masks, sizes and refusals."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from fewshot_nam.memory import STM, STMState

pytestmark = pytest.mark.usefixtures("either")

BATCH, STEPS, WIDTH, SIZE, SLOTS = 2, 4, 7, 5, 3
OPTIONS = {
    "learned": {},
    "no-gates": {"gates": False},
    "constant-alphas": {"alphas": (0.5, 0.25, 0.75)},
    "without-history": {"alphas": (0.0, None, None)},
    "without-read": {"alphas": (1.0, 0.0, None)},
    "without-transfer": {"alphas": (None, None, 0.0)},
}


def build(preset="code", **options):
    torch.manual_seed(0)
    sizes = {"relation_size": 6, "readout_size": 4, "hidden_size": 8}
    stm = STM(WIDTH, 3, SIZE, SLOTS, preset=preset, dtype=torch.float64, **sizes, **options)
    with torch.no_grad():  # away from where learned alphas and norms begin, so that every term counts
        for number in (1, 2, 3):
            alpha = getattr(stm, f"alpha_{number}")
            if alpha is not None:
                alpha.fill_(0.3 + 0.2 * number)
        for name, parameter in stm.named_parameters():
            if "norm" in name or "gate_bias" in name:
                parameter.normal_()
    return stm


def inputs(batch=BATCH, steps=STEPS):
    return torch.randn(batch, steps, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def affine(layer, x):
    return layer.weight @ x + layer.bias


def reference(stm, x, item, relational):
    """Return outputs and last memories for one sequence, from the equations of the paper or its code, element by element."""
    paper = stm.preset == "paper"
    alphas = [getattr(stm, f"alpha_{i + 1}") if fixed is None else fixed for i, fixed in enumerate(stm.alphas)]
    outputs = []
    for now in x:
        a, b = affine(stm.first, now), affine(stm.second, now)
        c = affine(stm.address, now).exp()
        c = c / c.sum()
        written = torch.outer(a, b if paper else a)
        if stm.gates:
            rows = [affine(stm.memory_gates, torch.tanh(row)) + affine(stm.input_gates, a) for row in item]
            gates = torch.stack(rows)
            enter = 1 / (1 + torch.exp(-(gates[:, :SIZE] + stm.gate_bias[0])))
            keep = 1 / (1 + torch.exp(-(gates[:, SIZE:] + stm.gate_bias[1])))
            item = enter * (written if paper else torch.tanh(written)) + keep * item
        else:
            item = item + written
        read = torch.einsum("s,f,sef->e" if paper else "s,e,sef->f", c, b, relational)
        fresh = stm.relate(item + alphas[1] * torch.outer(read, b))  # checked in test_associative.py
        new = relational + alphas[0] * fresh if paper else alphas[0] * relational + fresh
        if stm.transfer is not None:
            source = new if paper else fresh
            columns = [affine(stm.transfer, source[:, :, column].flatten()) for column in range(SIZE)]
            item = item + alphas[2] * torch.stack(columns)
        relational = new
        slots = torch.cat([affine(stm.read_slot, slot.flatten()) for slot in relational])
        outputs.append(stm.output(affine(stm.join_slots, slots)))
    return torch.stack(outputs), item, relational


@pytest.mark.parametrize("preset", ["paper", "code"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_stm_is_its_equations_with_gradients(preset, options):
    stm = build(preset, **options)
    x = inputs().requires_grad_()
    item = torch.randn(BATCH, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    relational = torch.randn(BATCH, SLOTS, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    outputs, state = stm(x, STMState(item, relational))
    found = (outputs, *state)
    alone = [reference(stm, *one) for one in zip(x, item, relational, strict=True)]
    expected = tuple(torch.stack(parts) for parts in zip(*alone, strict=True))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weights = [torch.randn_like(part) for part in found]
    of = [x, item, relational, *stm.parameters()]
    grads = [
        torch.autograd.grad(
            sum((part * w).sum() for part, w in zip(parts, weights, strict=True)), of, allow_unused=True
        )
        for parts in (found, expected)
    ]
    for a, b in zip(*grads, strict=True):
        zero = torch.zeros(()).double()  # a part that does not count has no gradient on one of the ways
        torch.testing.assert_close(
            *torch.broadcast_tensors(*(zero if g is None else g for g in (a, b))), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_gradients_agree_with_finite_differences(preset):
    stm = build(preset)
    x = inputs(1, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (stm(x)[0], *stm(x)[1]), (x,))


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_every_parameter_has_a_gradient_from_the_start(preset):
    """At the initial weights of a learned network: ``alpha_2`` and ``alpha_3`` are 0, but not their gradients."""
    torch.manual_seed(0)
    stm = STM(WIDTH, 3, SIZE, SLOTS, preset=preset)
    stm(inputs().float())[0].square().sum().backward()
    still = {name for name, parameter in stm.named_parameters() if not parameter.grad.abs().sum() > 0}
    # What an alpha of 0 multiplies has to wait for it.
    waiting = {"transfer.weight", "transfer.bias", "second.weight", "second.bias", "address.weight", "address.bias"}
    if preset == "code":
        waiting.add("relational")  # its history is forgotten while alpha_1 is 0
    else:
        waiting -= {"second.weight", "second.bias"}
    assert still == waiting


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_steps_and_parts_equal_the_whole(preset):
    stm, x = build(preset), inputs()
    outputs, last = stm(x)
    first, state = stm(x[:, :3])
    second, state = stm(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), outputs)
    torch.testing.assert_close(state, last)
    state, stepped = stm.init_state(BATCH), []
    for now in x.unbind(1):
        output, state = stm.step(now, state)
        stepped.append(output)
    torch.testing.assert_close(torch.stack(stepped, 1), outputs)
    torch.testing.assert_close(state, last)


def test_masked_steps_change_nothing_even_with_nan_in_them():
    stm, x = build(), inputs(3, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]], dtype=torch.bool)
    padded = x.masked_fill(~mask.unsqueeze(-1), float("nan")).requires_grad_()
    outputs, state = stm(padded, mask=mask)
    assert (outputs[~mask] == 0).all()
    for row, present in enumerate(mask):
        alone, last = stm(x[row : row + 1, present])
        torch.testing.assert_close(outputs[row, present], alone[0])
        for part, whole in zip(last, state, strict=True):
            torch.testing.assert_close(part[0], whole[row])
    outputs.sum().backward()
    assert all(p.grad.isfinite().all() for p in stm.parameters() if p.grad is not None)


def test_the_state_given_is_not_changed():
    stm = build()
    state = stm.init_state(BATCH)
    before = [part.clone() for part in state]
    stm(inputs(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


def test_parameter_counts_are_the_published_ones():
    """2.0 million for convex hull and the travelling salesman; 6.17 million beside NAM-TM with its embedding and classifier."""
    with torch.device("meta"):
        geometry = STM(24, 22, 128, 8)
        algorithms = STM(1024, 1024, 128, 8, relation_size=128, readout_size=128, hidden_size=1024)
    assert sum(p.numel() for p in geometry.parameters()) == 2_010_395
    around = 16 * 1024 + (1024 * 1024 + 1024) + (1024 * 16 + 16)
    assert round((sum(p.numel() for p in algorithms.parameters()) + around) / 1e6, 2) == 6.17


def test_memories_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    stm = STM(WIDTH, 3, SIZE, SLOTS)
    x = inputs().float()
    expected, _ = stm(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, state = stm(x)
    assert outputs.dtype == torch.bfloat16
    assert state.item.dtype == state.relational.dtype == torch.float32
    torch.testing.assert_close(outputs.float(), expected, rtol=0.1, atol=0.03)


def test_weights_in_bfloat16_keep_memories_in_float32():
    torch.manual_seed(0)
    stm = STM(WIDTH, 3, SIZE, SLOTS).to(torch.bfloat16)
    outputs, state = stm(inputs().to(torch.bfloat16))
    assert outputs.dtype == torch.bfloat16
    assert state.relational.dtype == torch.float32
    assert outputs.isfinite().all()


def test_gradients_of_single_sequences_and_second_derivatives():
    stm, x = build(), inputs()
    parameters = dict(stm.named_parameters())

    def loss(parameters, one):
        return functional_call(stm, parameters, (one.unsqueeze(0),))[0].square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for row, one in enumerate(x):
        expected = torch.autograd.grad(stm(one.unsqueeze(0))[0].square().sum(), [stm.item, stm.alpha_3])
        torch.testing.assert_close([found["item"][row], found["alpha_3"][row]], list(expected))
    first = torch.autograd.grad(loss(parameters, x[0]), stm.item, create_graph=True)[0]
    (second,) = torch.autograd.grad(first.square().sum(), stm.item)
    assert second.isfinite().all()
    assert second.abs().sum() > 0


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_gradients_that_are_differentiated_again_are_the_same(preset):
    """The inputs of a write depend on each other: what goes by one of them to another was counted twice."""
    stm, x = build(preset), inputs()
    found = [
        torch.autograd.grad(stm(x)[0].square().sum(), list(stm.parameters()), create_graph=again, allow_unused=True)
        for again in (False, True)
    ]
    for once, again in zip(*found, strict=True):
        torch.testing.assert_close(again, once, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("preset", "gates"), [("code", True), ("code", False), ("paper", True)])
def test_long_sequences_stay_finite(preset, gates):
    torch.manual_seed(0)
    stm = STM(WIDTH, 3, SIZE, SLOTS, preset=preset, gates=gates)
    outputs, _ = stm(3 * inputs(1, 500).float())
    assert outputs.isfinite().all()


def test_weights_load_into_a_network_of_the_same_sizes():
    stm, other = build(), build("paper")
    assert not torch.allclose(stm(inputs())[0], other(inputs())[0], atol=1e-3)
    third = build()
    with torch.no_grad():
        for parameter in third.parameters():
            parameter.normal_()
    for network in (other, third):
        network.load_state_dict(stm.state_dict())
    torch.testing.assert_close(third(inputs())[0], stm(inputs())[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: STM(4, 3, 0), ValueError, "memory_size must be a whole number of at least 1, got 0"),
        (lambda: STM(4, 3, preset="text"), ValueError, "preset must be one of paper, code, got 'text'"),
        (lambda: STM(4, 3, alphas=(1.0,)), ValueError, "alphas must be three numbers"),
        (lambda: build()(torch.zeros(2, 3, 6).double()), ValueError, r"x must have shape \(B, T, 7\), got \(2, 3, 6\)"),
        (lambda: build()(torch.zeros(2, 0, 7).double()), ValueError, "x must have at least one step"),
        (lambda: build()(torch.zeros(2, 3, 7)), TypeError, "all must be of one dtype"),
        (lambda: build()(inputs(), (1, 2)), TypeError, "state must be an STMState"),
        (lambda: build()(inputs(), build().init_state(3)), ValueError, r"state.item must have shape \(2, 5, 5\)"),
        (
            lambda: build()(inputs(), mask=torch.ones(2, 3, dtype=torch.bool)),
            ValueError,
            r"mask must have shape \(2, 4\)",
        ),
        (lambda: build().step(inputs(), build().init_state(2)), ValueError, r"x must have shape \(B, 7\)"),
        (lambda: build().init_state(0), ValueError, "batch_size must be a whole number of at least 1, got 0"),
    ],
)
def test_stm_refuses_what_does_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_stm_learns_to_recall():
    """Which of four marks came first, asked for at the end."""
    torch.manual_seed(0)
    stm = STM(5, 4, 8, 2, relation_size=8, readout_size=16, hidden_size=16)
    optimiser = torch.optim.Adam(stm.parameters(), lr=1e-2)
    marks = torch.randint(4, (64, 3))
    x = F.pad(F.one_hot(marks, 5).float(), (0, 0, 0, 1))
    for _ in range(60):
        loss = F.cross_entropy(stm(x)[0][:, -1], marks[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.3


@pytest.mark.parametrize("preset", ["paper", "code"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_output_steps_give_the_same_outputs_states_and_gradients(preset, options):
    """Without outputs in between, the relational memory of ``"code"`` is computed once for up to ``d / n`` steps: here 5."""
    torch.manual_seed(0)
    stm = STM(WIDTH, 3, 5, 1, preset=preset, dtype=torch.float64, **options)
    for parameter in stm.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, needed = inputs(steps=9), torch.arange(9) == 6  # chunks of 5, 2 and 2 steps
    wanted = needed[:, None] * torch.randn(BATCH, 9, 3, dtype=torch.float64)
    found = []
    for steps in (None, needed):
        outputs, state = stm(x, output_steps=steps)
        loss = (outputs * wanted).sum() + state.item.sin().sum() + state.relational.sin().sum()
        grads = torch.autograd.grad(loss, list(stm.parameters()), allow_unused=True)
        found.append([outputs * needed[:, None], *state, *(g for g in grads if g is not None)])
    assert len(found[0]) == len(found[1])
    # Rounding is that of the largest numbers on the way: where terms of a gradient cancel, more of it is left than of the gradient.
    size = max(1.0, *(float(part.abs().max()) for part in found[0]))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-9, atol=1e-13 * size)
    assert not stm(x, output_steps=needed)[0][:, ~needed].any()


def test_output_steps_may_be_none_of_the_steps_and_come_with_a_mask():
    stm, x = build(), inputs()
    outputs, state = stm(x, output_steps=torch.zeros(STEPS, dtype=torch.bool))
    assert outputs.shape == (BATCH, STEPS, 3)
    assert not outputs.any()
    torch.testing.assert_close(state, stm(x)[1])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    last = torch.arange(STEPS) == 3
    outputs, state = stm(x, mask=mask, output_steps=last)
    torch.testing.assert_close(outputs[:, 3], stm(x, mask=mask)[0][:, 3])
    torch.testing.assert_close(state, stm(x, mask=mask)[1])
    with pytest.raises(ValueError, match=r"STM: output_steps must have shape \(4,\)"):
        stm(x, output_steps=last[:2])
