"""The NAM Turing Machine against a plain transcription of its equations, its two backends against each other, and its flags."""

import math
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewshot_nam.memory.turing.heads import HeadContext, Jump, Shift, head_positions
from fewshot_nam.memory.turing.key_tape import write_key
from fewshot_nam.memory.turing.machine import NAMTuringMachine, TuringState
from fewshot_nam.memory.turing.plot import draw_heads
from fewshot_nam.memory.turing.presets import DEFAULT, PRESETS

pytestmark = pytest.mark.usefixtures("either")
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SHIFTS = ("left", "noop", "right")
ALL = (*SHIFTS, "jump")
B, T, D, TAPES, C, HIDDEN, L = 2, 11, 7, 3, 5, 10, 13


def machine(seed: int = 0, *, dtype: torch.dtype = torch.float64, **options) -> NAMTuringMachine:
    torch.manual_seed(seed)
    sizes = {"input_size": D, "num_tapes": TAPES, "tape_width": C, "hidden_size": HIDDEN, "tape_length": L}
    built = NAMTuringMachine(**{**sizes, **options}, dtype=dtype)
    with torch.no_grad():  # far from the uniform actions of a fresh machine
        built.action_proj.weight.mul_(4.0)
    return built


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def steer(built: NAMTuringMachine, read: int, write: int) -> None:
    """Make every tape take one action of each head, gates wide open, whatever the input."""
    rows = torch.zeros(built.num_tapes, 2 * len(built.actions) + built.num_gates)
    rows[:, read] = rows[:, len(built.actions) + write] = 200.0
    rows[:, 2 * len(built.actions) :] = 200.0
    with torch.no_grad():
        built.action_proj.weight.zero_()
        built.action_proj.bias.copy_(rows.flatten())


def results(built: NAMTuringMachine, x: Tensor, *args, backend: str, **options) -> list[Tensor]:
    """Return outputs, final state and the gradients of them with respect to inputs and parameters."""
    built.backend = backend
    x = x.clone().requires_grad_()
    outputs, state = built(x, *args, **options)
    tensors = [outputs, *(t for t in state[:4] if t is not None)]
    weighted = sum((t * normal(i, *t.shape, dtype=t.dtype)).sum() for i, t in enumerate(tensors))
    gradients = torch.autograd.grad(weighted, [x, *built.parameters()], allow_unused=True)
    return [*tensors, *(g if g is not None else torch.zeros(1) for g in gradients)]


# --- the equations --------------------------------------------------------------------------------------------------------


def transcription(built: NAMTuringMachine, x: Tensor, version: str, jump: bool) -> tuple[Tensor, list[Tensor]]:
    """One example, one tape, one cell after the other, from the table of differences between paper and code."""
    hidden = built.controller(x)[0]
    everything, finals = [], []
    for b in range(x.shape[0]):
        tape = [torch.zeros(L, C, dtype=x.dtype) for _ in range(TAPES)]
        keys = [torch.zeros(L, C, dtype=x.dtype) for _ in range(TAPES)]
        r = [torch.eye(L, dtype=x.dtype)[0] for _ in range(TAPES)]
        w = [torch.eye(L, dtype=x.dtype)[0] for _ in range(TAPES)]
        outputs = []
        for t in range(x.shape[1]):
            reads = []
            asked = built.action_proj(hidden[b, t]).view(TAPES, -1)
            n = 4 if jump else 3
            for i in range(TAPES):
                v = built.value_proj(x[b, t]).view(TAPES, C)[i]
                pr, pw = torch.sigmoid(asked[i, 2 * n]), torch.sigmoid(asked[i, 2 * n + 1])
                pe = torch.sigmoid(asked[i, 2 * n + 2]) if version == "neurips2023" else pw
                a_read, a_write = asked[i, :n].softmax(0), asked[i, n : 2 * n].softmax(0)
                ra, wa = (r[i] / r[i].norm(), w[i] / w[i].norm()) if version == "neurips2023" else (r[i], w[i])
                before = tape[i]
                tape[i] = before + torch.outer(wa, pw * v - pe * (before.T @ wa))
                reads.append(pr * (before if version == "paper" else tape[i]).T @ ra)
                targets = []
                if jump:
                    k = built.key_proj(x[b, t]).view(TAPES, C)[i]
                    q = built.query_proj(hidden[b, t]).view(TAPES, C)[i]
                    k, q = k / k.norm(), q / q.norm()
                    if version == "neurips2023":
                        keys[i] = keys[i] + torch.outer(pw * w[i] - pe * keys[i] @ k, k)
                    else:
                        keys[i] = keys[i] + torch.outer(w[i], pw * k - pe * keys[i].T @ w[i])
                    targets = [keys[i] @ q]
                r[i], w[i] = (
                    sum(p * h for p, h in zip(a, [h.roll(-1), h, h.roll(1), *targets], strict=True))
                    for h, a in ((r[i], a_read), (w[i], a_write))
                )
            outputs.append(built.out_proj(torch.cat(reads)))
        everything.append(torch.stack(outputs))
        finals.append([torch.stack(part) for part in (tape, keys, r, w)])
    tapes, keys, r, w = (torch.stack(part) for part in zip(*finals, strict=True))
    return torch.stack(everything), [tapes.mT, *([keys.mT] if jump else []), r, w]


@pytest.mark.parametrize("backend", ["loop", "auto"])
@pytest.mark.parametrize("jump", [True, False], ids=["jump", "nojump"])
@pytest.mark.parametrize("version", list(PRESETS))
def test_each_preset_is_its_equations(version, jump, backend):
    built = machine(preset=version, actions=ALL if jump else SHIFTS)
    x = normal(1, B, T, D)
    got = results(built, x, backend=backend)
    x.requires_grad_()
    outputs, state = transcription(built, x, version, jump)
    expected = [outputs, *state]
    weighted = sum((t * normal(i, *t.shape)).sum() for i, t in enumerate(expected))
    expected += torch.autograd.grad(weighted, [x, *built.parameters()])
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_a_default_machine_still_reads_after_thousands_of_steps():
    """With the heads of neurips2023 reads were below 1e-12 after about a thousand tokens (Z6)."""
    torch.manual_seed(0)
    built = NAMTuringMachine(32, tape_length=64)
    x = normal(0, 1, 2000, 32, dtype=torch.float32)
    with torch.no_grad():
        outputs, state = built(x)
    for head in (state.read_head, state.write_head):
        torch.testing.assert_close(head.norm(dim=-1), torch.ones(1, 4), rtol=1e-4, atol=1e-4)
    moves = outputs - built.out_proj.bias
    assert moves[:, -100:].abs().max() > 0.1 * moves[:, :100].abs().max()


@pytest.mark.parametrize("backend", ["loop", "auto"])
def test_a_machine_without_batch_first_is_the_same_in_another_layout(backend):
    first, second = machine(backend=backend), machine(backend=backend, batch_first=False)
    second.load_state_dict(first.state_dict())
    x, mask = normal(1, B, T, D), torch.rand(B, T, generator=torch.Generator().manual_seed(0)) < 0.6
    expected, found = first(x, mask=mask), second(x.transpose(0, 1), mask=mask)
    torch.testing.assert_close(found[0].transpose(0, 1), expected[0], rtol=0, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"x must have shape \(T, B, 7\), got"):
        second(x[0])


@settings(max_examples=40)
@given(
    st.sampled_from(["lstm", "bilstm", "bigru", "mlp"]),
    st.sampled_from(["tied", "separate"]),
    st.sampled_from(["position", "key"]),
    st.sampled_from(["none", "access", "state"]),
    st.sampled_from(["read_first", "write_first"]),
    st.sampled_from([SHIFTS, ALL, ("noop", "jump"), (Shift(2), "left"), ("jump",)]),
    st.integers(1, 19),
    st.sampled_from([1, 2, 8, 13]),
    st.booleans(),
)
def test_the_scan_equals_the_loop_for_all_flags(
    controller, erase, key_erase, head_norm, order, actions, steps, length, masked
):
    built = machine(
        steps,
        controller=controller,
        erase=erase,
        key_erase=key_erase,
        head_norm=head_norm,
        order=order,
        actions=actions,
        tape_length=length,
    )
    x = normal(1, B, steps, D)
    mask = torch.rand(B, steps, generator=torch.Generator().manual_seed(steps)) < 0.6 if masked else None
    start = built.initial_state(B)
    start = TuringState(*(None if t is None else t + 0.1 * normal(i, *t.shape) for i, t in enumerate(start[:4])))
    pairs = zip(*(results(built, x, start, mask, backend=backend) for backend in ("auto", "loop")), strict=True)
    for scan, loop in pairs:
        # Heads of a machine that only jumps may be close to zero, and lengths are divided by.
        torch.testing.assert_close(scan, loop, rtol=1e-7, atol=1e-7)


def test_presets_are_the_table():
    table = {name: (p.controller, p.erase, p.key_erase, p.head_norm, p.order) for name, p in PRESETS.items()}
    assert table == {
        "paper": ("mlp", "tied", "position", "none", "read_first"),
        "iclr2022": ("bigru", "tied", "position", "none", "write_first"),
        "neurips2023": ("lstm", "separate", "key", "access", "write_first"),
    }
    assert replace(PRESETS["neurips2023"], head_norm="state") == DEFAULT
    assert machine().head_norm == "state"
    assert machine(preset="neurips2023").head_norm == "access"
    built = machine(preset="paper", order="write_first")
    assert (built.order, built.erase, built.key_erase, built.head_norm) == ("write_first", "tied", "position", "none")


@pytest.mark.parametrize(
    ("options", "millions", "layers"),
    [
        ({}, 13.77, 1),
        ({"actions": SHIFTS}, 11.66, 1),
        ({"actions": ("noop", "jump")}, 13.74, 1),
        ({"preset": "iclr2022"}, 19.1, 2),
    ],
)
def test_parameter_counts_are_those_of_the_published_models(options, millions, layers):
    turing = [NAMTuringMachine(1024, 8, device="meta", **options) for _ in range(layers)]
    around = [
        nn.Embedding(16, 1024),
        nn.Linear(1024, 1024),
        nn.LayerNorm(1024),
        nn.LayerNorm(1024),
        nn.Linear(1024, 16),
    ]
    total = sum(p.numel() for module in (*turing, *around) for p in module.parameters())
    assert round(total / 1e6, 2 if layers == 1 else 1) == millions


# --- what the flags mean --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["loop", "auto"])
def test_an_erase_gate_of_its_own_can_keep_what_a_tied_one_replaces(backend):
    x = normal(1, B, 2, D)
    tied, separate = (machine(erase=kind, actions=SHIFTS, backend=backend) for kind in ("tied", "separate"))
    for built in (tied, separate):
        steer(built, read=1, write=1)  # both stay on cell 0
    with torch.no_grad():
        separate.action_proj.bias.view(TAPES, -1)[:, -1] = -200.0  # p_e = 0
    assert tied.action_proj.out_features == TAPES * 8
    assert separate.action_proj.out_features == TAPES * 9
    (_, replaced), (_, kept) = tied(x), separate(x)
    values = [built.value_proj(x).unflatten(-1, (TAPES, C)) for built in (tied, separate)]
    torch.testing.assert_close(replaced.value_tape[..., 0], values[0][:, 1], **EXACT)
    torch.testing.assert_close(kept.value_tape[..., 0], values[1].sum(1), **EXACT)


def test_a_key_write_removes_by_position_or_by_key():
    keys = torch.linalg.qr(normal(0, C, C)).Q
    cells = torch.eye(L, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    place = lambda tape, key: (key @ tape).squeeze()  # noqa: E731
    for kind in ("position", "key"):
        tape = torch.zeros(1, 1, C, L, dtype=torch.float64)
        for key, cell in ((0, 2), (0, 5), (1, 5)):  # the same key again, then another key at the same place
            tape = write_key(tape, keys[key].view(1, 1, C), cells[cell].view(1, 1, L), one, one, kind)
        expected = {"position": cells[2], "key": cells[5]}[kind]
        torch.testing.assert_close(place(tape, keys[0]), expected, **EXACT)
        torch.testing.assert_close(place(tape, keys[1]), cells[5], **EXACT)


@pytest.mark.parametrize("backend", ["loop", "auto"])
def test_read_first_does_not_see_its_own_write(backend):
    x = normal(1, B, 3, D)
    before, after = (machine(order=order, backend=backend) for order in ("read_first", "write_first"))
    nothing = before.out_proj.bias.expand(B, D)
    torch.testing.assert_close(before(x)[0][:, 0], nothing, **EXACT)
    assert (after(x)[0][:, 0] - nothing).abs().min() > 1e-6


def test_head_norms_differ_in_what_is_brought_to_length_one():
    x = normal(1, B, T, D)
    traces = {
        kind: machine(head_norm=kind, actions=SHIFTS)(x, return_trace=True) for kind in ("none", "access", "state")
    }
    heads = {kind: trace.read_heads for kind, (_, _, trace) in traces.items()}
    lengths = {kind: h.norm(dim=-1) for kind, h in heads.items()}
    assert (lengths["none"][:, -1] < 0.9).all()
    torch.testing.assert_close(heads["access"], heads["none"], **EXACT)
    torch.testing.assert_close(lengths["state"], torch.ones_like(lengths["state"]), **EXACT)
    assert (traces["access"][0] - traces["none"][0]).abs().max() > 1e-3
    # Rolls alone commute with lengths, so both kinds of unit heads see the same tape.
    torch.testing.assert_close(traces["access"][0], traces["state"][0], **EXACT)


@pytest.mark.parametrize("backend", ["loop", "auto"])
@pytest.mark.parametrize("actions", [SHIFTS, ALL])
def test_each_head_moves_from_its_own_place(actions, backend):
    built = machine(preset="iclr2022", actions=actions, backend=backend)
    steer(built, read=0, write=2)
    _, state = built(normal(1, B, 4, D))
    assert (state.read_head.argmax(-1) == L - 4).all()
    assert (state.write_head.argmax(-1) == 4).all()


def test_a_jump_goes_where_the_key_was_written():
    built = machine(controller="mlp", actions=("right", "jump"))
    steer(built, read=0, write=0)
    x = normal(1, 1, 6, D)
    _, state = built(x)
    keys = torch.linalg.qr(normal(3, C, C)).Q[:3]
    assert (state.read_head.argmax(-1) == 6).all()
    tape = torch.zeros(1, TAPES, C, L, dtype=torch.float64)
    tape[0, :, :, 2] = keys[0]
    steer(built, read=1, write=0)
    with torch.no_grad():
        built.query_proj.weight.zero_()
        built.query_proj.bias.copy_(7.0 * keys[0].repeat(TAPES))
        built.key_proj.weight.zero_()
        built.key_proj.bias.copy_(keys[1].repeat(TAPES))
    _, state = built(x[:, :1], state._replace(key_tape=tape))
    assert (state.read_head.argmax(-1) == 2).all()
    assert (state.write_head.argmax(-1) == 7).all()


@pytest.mark.parametrize("length", [1, 2, 8, 13])
@pytest.mark.parametrize("steps", [1, 2, 7, 16])
def test_positions_in_closed_form_are_rolled_positions(steps, length):
    offsets = (-1, 0, 1, 3)
    heads = normal(0, B, TAPES, 2, length).requires_grad_()
    logits = normal(1, B, steps, TAPES, 2, 4).requires_grad_()
    # Half left, half right: on some frequencies the factor is exactly 0, where logarithms and cumprod fail.
    halves = torch.tensor([0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    probabilities = torch.cat([halves.expand(B, 1, TAPES, 2, 4), logits.softmax(-1)[:, 1:]], dim=1)
    actions = [Shift(offset) for offset in offsets]
    tokens = torch.zeros(B, steps, 1)
    got, last = head_positions(
        heads, None, probabilities, actions, tokens, None, key_erase="key", normalise=False, mask=None
    )[:2]
    rolled = [heads]
    for t in range(steps):
        p = probabilities[:, t]
        rolled.append(sum(p[..., i, None] * rolled[-1].roll(o, -1) for i, o in enumerate(offsets)))
    expected = torch.stack(rolled, dim=1)
    torch.testing.assert_close(got, expected[:, :-1], **EXACT)
    torch.testing.assert_close(last, expected[:, -1], **EXACT)
    weights = normal(2, *expected.shape)
    for one, other in zip(
        torch.autograd.grad((torch.cat([got, last[:, None]], 1) * weights).sum(), [heads, logits], retain_graph=True),
        torch.autograd.grad((expected * weights).sum(), [heads, logits]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **EXACT)


# --- actions of your own --------------------------------------------------------------------------------------------------


def home(heads: Tensor, context: HeadContext) -> Tensor:
    """Back to cell 0."""
    return torch.cat([torch.ones_like(heads[..., :1]), torch.zeros_like(heads[..., 1:])], dim=-1)


class NearestKey(nn.Module):
    """Where this input's own query, learned here, stands on the key tape."""

    needs_keys = True

    def __init__(self) -> None:
        super().__init__()
        self.ask = nn.Linear(D, C, dtype=torch.float64)

    def forward(self, heads: Tensor, context: HeadContext) -> Tensor:
        asked = self.ask(context.token)[:, None, None]
        return (asked @ context.key_tape).squeeze(-2) * context.query.mean(-1, keepdim=True)


@pytest.mark.parametrize("key_erase", ["position", "key"])
@pytest.mark.parametrize("actions", [("right", home), ("left", "jump", home), (Shift(2), NearestKey(), "noop")])
def test_an_action_of_ones_own_works_in_both_backends(actions, key_erase):
    built = machine(actions=actions, key_erase=key_erase)
    x = normal(1, B, T, D)
    for scan, loop in zip(*(results(built, x, backend=backend) for backend in ("auto", "loop")), strict=True):
        torch.testing.assert_close(scan, loop, **EXACT)


@pytest.mark.parametrize("backend", ["loop", "auto"])
@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda h: h.mean(-1, keepdim=True), ValueError, r"the result of action mine must have shape \(2, 3, 13\)"),
        (lambda h: h[:1], ValueError, r"the result of action mine must have shape \(2, 3, 13\), got \(1, 3, 13\)"),
        (lambda h: None, TypeError, "the result of action mine must be a tensor, got NoneType"),
        (lambda h: h.argsort(), TypeError, "the result of action mine must be of a floating dtype, got torch.int64"),
    ],
)
def test_an_action_that_returns_no_heads_is_refused_by_name(returned, error, message, backend):
    def mine(heads: Tensor, context: HeadContext) -> Tensor:
        return returned(heads)

    built = machine(actions=("left", mine), backend=backend)
    for call in (lambda: built(normal(1, B, T, D)), lambda: built.step(normal(1, B, D), built.initial_state(B))):
        with pytest.raises(error, match=message):
            call()


def test_an_action_home_brings_the_heads_home_and_a_module_is_trained_with_the_machine():
    built = machine(actions=("right", home))
    steer(built, read=0, write=0)
    x = normal(1, B, 3, D)
    _, state = built(x)
    assert (state.read_head.argmax(-1) == 3).all()
    steer(built, read=1, write=0)
    _, state = built(x[:, :1], state)
    assert (state.read_head.argmax(-1) == 0).all()
    assert (state.write_head.argmax(-1) == 4).all()
    learned = machine(actions=("noop", NearestKey()))
    assert learned.key_proj is not None
    assert "action_modules.0.ask.weight" in learned.state_dict()


def test_without_a_jump_there_is_no_key_tape_and_no_key_parameter():
    built = machine(actions=SHIFTS)
    assert built.initial_state(B).key_tape is None
    assert not [name for name in built.state_dict() if "key" in name or "query" in name]


# --- states, masks, lengths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["loop", "auto"])
@pytest.mark.parametrize("actions", [SHIFTS, ALL])
@pytest.mark.parametrize("preset", ["paper", "neurips2023"])
def test_a_run_resumed_from_its_state_and_a_run_step_by_step_are_one_run(preset, actions, backend):
    built = machine(preset=preset, actions=actions, backend=backend)
    x = normal(1, B, T, D)
    whole, end = built(x)
    first, state = built(x[:, :4])
    second, resumed = built(x[:, 4:], state)
    stepped, state = [], built.initial_state(B)
    for token in x.unbind(1):
        output, state = built.step(token, state)
        stepped.append(output)
    for outputs, final in ((torch.cat([first, second], 1), resumed), (torch.stack(stepped, 1), state)):
        torch.testing.assert_close(outputs, whole, **EXACT)
        torch.testing.assert_close(final, end, **EXACT)


@pytest.mark.parametrize("backend", ["loop", "auto"])
@pytest.mark.parametrize("controller", ["lstm", "bigru", "bilstm", "mlp"])
@pytest.mark.parametrize("head_norm", ["access", "state"])
def test_padded_steps_are_as_if_they_were_not_there(controller, head_norm, backend):
    built = machine(controller=controller, head_norm=head_norm, backend=backend)
    x = normal(1, 4, T, D)
    mask = torch.zeros(4, T, dtype=torch.bool)
    mask[0, :6], mask[1, 3:], mask[2, ::3] = (
        True,
        True,
        True,
    )  # padding right, left, in between; the last row is all padding
    x[~mask] = math.nan
    x.requires_grad_()
    outputs, state = built(x, mask=mask)
    assert (outputs[~mask] == 0).all()
    for row in range(3):
        alone, end = built(x[row : row + 1, mask[row]])
        torch.testing.assert_close(outputs[row, mask[row]], alone[0], **EXACT)
        for together, single in zip(state[:4], end[:4], strict=True):
            torch.testing.assert_close(together[row], single[0], **EXACT)
        if controller == "lstm":
            for together, single in zip(state.controller, end.controller, strict=True):
                torch.testing.assert_close(together[:, row], single[:, 0], **EXACT)
    start = built.initial_state(4)
    for untouched, begin in zip(state[:4], start[:4], strict=True):
        assert torch.equal(untouched[3], begin[3])
    gradients = torch.autograd.grad(outputs.sum() + state.read_head.sum(), [x, *built.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][~mask] == 0).all()


@pytest.mark.parametrize("backend", ["loop", "auto"])
def test_a_head_that_has_not_moved_yet_is_left_at_its_length(backend):
    built = machine(controller="mlp", actions=SHIFTS, head_norm="state", backend=backend)
    start = built.initial_state(1)
    start = start._replace(read_head=3.0 * start.read_head)
    mask = torch.tensor([[False, False, True]])
    x = normal(1, 1, 3, D)
    _, padded = built(x[:, :2], start, mask[:, :2])
    assert torch.allclose(padded.read_head, start.read_head)
    _, moved = built(x, start, mask)
    torch.testing.assert_close(moved.read_head.norm(dim=-1), torch.ones(1, TAPES, dtype=torch.float64), **EXACT)


def test_a_row_without_tokens_keeps_the_controllers_state():
    built = machine()
    x = normal(1, B, 4, D)
    _, state = built(x)
    mask = torch.tensor([[True] * 4, [False] * 4])
    _, after = built(x, state, mask)
    for was, now in zip(state.controller, after.controller, strict=True):
        assert torch.equal(now[:, 1], was[:, 1])
        assert not torch.equal(now[:, 0], was[:, 0])


@pytest.mark.parametrize("actions", [SHIFTS, ALL])
def test_a_tape_that_no_head_runs_around_may_be_of_any_length(actions):
    built = machine(actions=actions)
    x = normal(1, B, 6, D)
    shorter, longer = (built(x, built.initial_state(B, length))[0] for length in (13, 41))
    torch.testing.assert_close(longer, shorter, **EXACT)


def test_the_default_length_is_that_of_the_sequence_and_at_least_32():
    built = machine(tape_length=None, actions=SHIFTS)
    for steps, length in ((5, 32), (37, 37)):
        assert built(normal(1, 1, steps, D))[1].read_head.shape == (1, TAPES, length)


@pytest.mark.parametrize("backend", ["loop", "auto"])
@pytest.mark.parametrize("length", [None, 32])
def test_padding_and_splitting_change_nothing_where_the_tape_length_is_explicit(length, backend):
    """Heads that run apart meet around the tape: after 16 steps with 32 cells, after 20 with 40."""
    built = machine(tape_length=length, backend=backend)
    steer(built, read=0, write=2)
    x = normal(1, 1, 40, D)
    mask = torch.arange(40)[None] < 20
    alone, padded = built(x[:, :20])[0], built(x, mask=mask)[0][:, :20]
    first, state = built(x[:, :20])
    split = torch.cat([first, built(x[:, 20:], state)[0]], 1)
    whole = built(x)[0]
    if length is None:
        assert (padded - alone).abs().max() > 1e-2
        assert (split - whole).abs().max() > 1e-2
    else:
        torch.testing.assert_close(padded, alone, **EXACT)
        torch.testing.assert_close(split, whole, **EXACT)


def test_a_controller_of_ones_own_is_called_like_a_gru():
    built = machine(controller=nn.GRU(D, HIDDEN, batch_first=True, dtype=torch.float64))
    x = normal(1, B, T, D)
    whole, _ = built(x)
    first, state = built(x[:, :5])
    torch.testing.assert_close(torch.cat([first, built(x[:, 5:], state)[0]], 1), whole, **EXACT)
    assert state.controller.shape == (1, B, HIDDEN)


def test_the_inputs_and_the_state_are_left_as_they_are():
    built = machine()
    x, state = normal(1, B, T, D), machine()(normal(2, B, 3, D))[1]
    before = [x.clone(), *(t.clone() for t in state[:4])]
    built(x, state)
    built.step(x[:, 0], state)
    assert all(torch.equal(a, b) for a, b in zip(before, [x, *state[:4]], strict=True))


# --- numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(PRESETS))
def test_zero_inputs_and_zero_parameters_give_finite_gradients(preset):
    built = machine(preset=preset, head_norm="state", dtype=torch.float32)
    with torch.no_grad():
        for p in built.parameters():
            p.zero_()
    x = torch.zeros(B, T, D, requires_grad=True)
    outputs, state = built(x)
    gradients = torch.autograd.grad(outputs.sum() + state.write_head.sum(), [x, *built.parameters()])
    assert all(t.isfinite().all() for t in (outputs, *gradients))


@pytest.mark.parametrize("key_erase", ["position", "key"])
def test_unit_heads_keep_a_long_run_bounded(key_erase):
    built = machine(controller="mlp", key_erase=key_erase, head_norm="state", dtype=torch.float32)
    with torch.no_grad():
        outputs, state = built(normal(1, 1, 2000, D, dtype=torch.float32))
    assert outputs.abs().max() < 100
    torch.testing.assert_close(state.read_head.norm(dim=-1), torch.ones(1, TAPES))


@pytest.mark.parametrize("fades", [True, False], ids=["access", "state"])
def test_heads_fade_on_a_long_run_unless_they_are_kept_at_length_one(fades):
    torch.manual_seed(0)
    built = NAMTuringMachine(32, 1, tape_width=8, tape_length=8, head_norm="access" if fades else "state")
    with torch.no_grad():
        outputs, state = built(normal(1, 1, 4096, 32, dtype=torch.float32))
    reads = (outputs - built.out_proj.bias).norm(dim=-1)[0]
    lengths = torch.stack([state.read_head, state.write_head]).norm(dim=-1)
    if fades:
        assert (lengths < 1e-12).all()
        assert reads[-64:].max() < 1e-6 < 0.1 < reads[:64].mean()
    else:
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
        assert reads[-64:].mean() > 0.5 * reads[:64].mean()


def test_float32_stays_close_to_float64_in_closed_form():
    exact, single = (machine(actions=SHIFTS, dtype=dtype) for dtype in (torch.float64, torch.float32))
    single.load_state_dict(exact.state_dict())
    x = normal(1, B, 257, D)
    torch.testing.assert_close(single(x.float())[0].double(), exact(x)[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("backend", ["loop", "auto"])
@pytest.mark.parametrize("actions", [SHIFTS, ALL])
def test_autocast_and_bfloat16_keep_the_state_in_float32(actions, backend):
    built = machine(actions=actions, dtype=torch.float32, backend=backend)
    x = normal(1, B, T, D, dtype=torch.float32)
    exact, _ = built(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, state = built(x)
    low, low_state = built.to(torch.bfloat16)(x.bfloat16())
    assert mixed.dtype == low.dtype == torch.bfloat16
    for end in (state, low_state):
        assert all(t.dtype == torch.float32 for t in end[:4] if t is not None)
    for got in (mixed, low):
        assert (got.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("backend", ["loop", "auto"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_state_in_half_precision_is_raised_to_float32(half, backend):
    built = machine(dtype=torch.float32, backend=backend)
    x = normal(1, B, T, D, dtype=torch.float32)
    state = TuringState(*(t.to(half) for t in built(x)[1][:4]))
    raised = TuringState(*(t.float() for t in state[:4]))
    for call, given_x in ((built, x), (built.step, x[:, 0])):
        outputs, end = call(given_x, state)
        expected, _ = call(given_x, raised)
        assert all(t.dtype == torch.float32 for t in end[:4])
        assert torch.equal(outputs, expected)


@pytest.mark.parametrize("backend", ["loop", "auto"])
@pytest.mark.parametrize("actions", [SHIFTS, ALL])
@pytest.mark.parametrize("controller", ["lstm", "bigru", "mlp"])
def test_a_batch_of_none_gives_outputs_of_none(controller, actions, backend):
    built = machine(controller=controller, actions=actions, backend=backend)
    for mask in (None, torch.ones(0, T, dtype=torch.bool)):
        outputs, state = built(normal(1, 0, T, D), mask=mask)
        assert outputs.shape == (0, T, D)
        assert state.read_head.shape == (0, TAPES, L)
    outputs.sum().backward()


@pytest.mark.parametrize("backend", ["loop", "auto"])
@pytest.mark.parametrize("actions", [SHIFTS, ALL])
def test_shapes_can_be_asked_for_on_the_meta_device(actions, backend):
    built = machine(actions=actions, backend=backend).to("meta")
    x = torch.empty(B, T, D, dtype=torch.float64, device="meta")
    outputs, state = built(x)
    assert outputs.shape == x.shape
    assert outputs.device == state.value_tape.device == torch.device("meta")
    assert built.step(x[:, 0], state)[0].shape == (B, D)


@pytest.mark.parametrize("backend", ["scan", "auto"])
def test_a_second_derivative_through_scan_and_kernel_is_refused(backend):
    built = machine(controller="mlp", backend=backend)
    x = normal(1, 1, 3, D).requires_grad_()
    (gradient,) = torch.autograd.grad(built(x)[0].square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_the_loop_can_be_differentiated_twice():
    built = machine(controller="mlp", num_tapes=2, tape_length=3, backend="loop")
    x = normal(1, 1, 3, D).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: built(x)[0].sum(), [x])


def test_vmap_over_a_batch_of_batches_is_a_loop_over_them():
    built = machine(controller="mlp", backend="loop")
    x = normal(1, 3, B, T, D)
    torch.testing.assert_close(
        torch.func.vmap(lambda x: built(x)[0])(x), torch.stack([built(part)[0] for part in x]), **EXACT
    )


@pytest.mark.parametrize("actions", [SHIFTS, ALL])
def test_it_compiles_and_exports(actions):
    built = machine(actions=actions, controller="mlp").eval()
    x = normal(1, B, 4, D)
    expected = built(x)[0]
    torch.testing.assert_close(torch.compile(built, backend="eager", fullgraph=True)(x)[0], expected, **EXACT)
    exported = torch.export.export(built, (x,)).module()
    torch.testing.assert_close(exported(x)[0], expected, **EXACT)


def test_a_saved_machine_is_the_same_machine():
    built, other = machine(0), machine(1)
    x = normal(1, B, T, D)
    assert not torch.equal(built(x)[0], other(x)[0])
    other.load_state_dict(built.state_dict())
    assert torch.equal(built(x)[0], other(x)[0])


def test_the_representation_names_sizes_and_flags():
    text = machine(actions=("left", Shift(2), home)).extra_repr()
    assert text == (
        "7, num_tapes=3, tape_width=5, tape_length=13, actions=(left, shift(+2), home), erase='separate', "
        "key_erase='key', head_norm='state', order='write_first', backend='auto'"
    )
    assert machine(batch_first=False).extra_repr().endswith("backend='auto', batch_first=False")
    assert "order='write_first', move_noise=0.5, backend" in machine(move_noise=0.5).extra_repr()


# --- noise ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", [SHIFTS, ALL])
def test_noise_on_moves_acts_in_training_alone_and_leaves_gates_as_they_are(actions):
    quiet, noisy = (machine(actions=actions, move_noise=noise) for noise in (0.0, 1.0))
    x = normal(1, B, T, D)
    assert torch.equal(noisy.eval()(x)[0], quiet.eval()(x)[0])
    plain, first, second = (built.train()(x, return_trace=True)[2] for built in (quiet, noisy, noisy))
    assert torch.equal(first.p_write, plain.p_write)
    for name in ("read_actions", "write_actions"):
        moves, others = getattr(first, name), getattr(second, name)
        assert not torch.allclose(moves, getattr(plain, name))
        assert not torch.allclose(moves, others)
        torch.testing.assert_close(moves.sum(-1), torch.ones_like(moves[..., 0]), **EXACT)


def test_a_machine_can_begin_with_few_jumps():
    """The bias of JUMP divides the odds of a jump against every other move, of both heads of all tapes, and nothing else."""
    plain, built = machine(actions=ALL), machine(actions=ALL, jump_bias=-4.0)
    assert "jump_bias=-4" in built.extra_repr()
    x = normal(1, B, T, D)
    before, after = plain(x, return_trace=True)[2], built(x, return_trace=True)[2]
    assert torch.equal(before.p_write, after.p_write)
    jump = ALL.index("jump")
    for name in ("read_actions", "write_actions"):
        one, two = getattr(before, name), getattr(after, name)
        odds, fewer = (moves / moves[..., :1] for moves in (one, two))
        torch.testing.assert_close(fewer[..., jump], odds[..., jump] * math.exp(-4), **EXACT)
        others = [place for place in range(len(ALL)) if place != jump]
        torch.testing.assert_close(fewer[..., others], odds[..., others], **EXACT)


@pytest.mark.parametrize("backend", ["loop", "scan", "auto"])
def test_a_convolution_goes_before_values_keys_and_controller_and_streams(backend):
    built, x = machine(actions=ALL, controller="lstm", conv_size=3, backend=backend), normal(1, B, T, D)
    plain = machine(actions=ALL, controller="lstm", backend=backend)
    plain.load_state_dict({name: value for name, value in built.state_dict().items() if "conv." not in name})
    outputs, last = built(x)
    seen = torch.cat([x.new_zeros(B, 2, D), x], dim=1)
    convolved = sum(built.conv.weight[:, i] * seen[:, i : i + T] for i in range(3))
    torch.testing.assert_close(outputs, plain(convolved)[0], **EXACT)
    first, state = built(x[:, :4])
    steps = [first]
    for token in x[:, 4:].unbind(1):
        output, state = built.step(token, state)
        steps.append(output.unsqueeze(1))
    torch.testing.assert_close(torch.cat(steps, dim=1), outputs, **EXACT)
    torch.testing.assert_close(state.recent, last.recent, **EXACT)
    torch.testing.assert_close(built.step(x[:, 0], built.initial_state(B))[0], outputs[:, 0], **EXACT)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, [1, 5]] = False
    torch.testing.assert_close(built(x, mask=mask)[0][:1, mask[0]], built(x[:1, mask[0]])[0], **EXACT)
    with pytest.raises(ValueError, match=r"state\.recent belongs to a machine with conv_size"):
        plain(x, last)


def test_noise_on_moves_has_the_given_standard_deviation():
    built = machine(move_noise=0.5)
    steer(built, read=0, write=0)
    with torch.no_grad():
        built.action_proj.bias.zero_()
    x = normal(1, 50, T, D)
    logits = built(x, return_trace=True)[2].read_actions.log()
    spread = (logits - logits.mean(-1, keepdim=True)).square().sum(-1).mean() / (len(built.actions) - 1)
    assert abs(spread.sqrt().item() - 0.5) < 0.02  # 1,650 sets of four: the standard error is 0.005


# --- looking at it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", [SHIFTS, ALL])
def test_a_trace_tells_what_the_machine_did(actions):
    built = machine(actions=actions)
    x = normal(1, B, T, D)
    outputs, state, trace = built(x, return_trace=True)
    torch.testing.assert_close(outputs, built(x)[0], **EXACT)
    assert trace.read_heads.shape == trace.write_heads.shape == (B, T, TAPES, L)
    assert trace.read_actions.shape == trace.write_actions.shape == (B, T, TAPES, len(actions))
    assert trace.p_read.shape == trace.p_write.shape == trace.p_erase.shape == (B, T, TAPES)
    assert trace.value_tapes.shape == (B, T, TAPES, C, L)
    torch.testing.assert_close(trace.value_tapes[:, -1], state.value_tape, **EXACT)
    assert (trace.key_tapes is None) == (actions == SHIFTS)
    reader = trace.read_heads[:, -1] / trace.read_heads[:, -1].norm(dim=-1, keepdim=True)
    reads = trace.p_read[:, -1, :, None] * (trace.value_tapes[:, -1] @ reader.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(built.out_proj(reads.flatten(1)), outputs[:, -1], **EXACT)


def test_heads_are_drawn_for_every_tape():
    pytest.importorskip("matplotlib")
    trace = machine()(normal(1, B, T, D), return_trace=True)[-1]
    figure = draw_heads(trace, 1, tokens=[str(t) for t in range(T)])
    titles = {axis.get_title() for axis in figure.axes} - {""}
    assert titles == {f"{name} head, tape {tape}" for name in ("read", "write") for tape in range(TAPES)}
    image = next(a for a in figure.axes if a.get_title() == "read head, tape 2").images[0]
    torch.testing.assert_close(
        torch.tensor(image.get_array().data).double(), trace.read_heads[1, :, 2].T, rtol=1e-6, atol=1e-6
    )
    for call, error, message in (
        (lambda: draw_heads(trace, 2), ValueError, "example must be one of the batch's 0 to 1, got 2"),
        (lambda: draw_heads(trace, tokens=["a"]), ValueError, "one label for each of 11 steps, got 1"),
        (lambda: draw_heads(trace, 0.5), TypeError, "example must be an integer, got 0.5"),
        (lambda: draw_heads("x"), TypeError, "trace must be a TuringTrace, got str"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_drawing_without_matplotlib_says_what_to_install(monkeypatch):
    trace = machine()(normal(1, B, 2, D), return_trace=True)[-1]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fewshot-nam\[plot\]"'):
        draw_heads(trace)


def test_the_machine_does_not_load_matplotlib():
    code = "import sys, fewshot_nam.memory.turing.machine, fewshot_nam.memory.turing.plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_runs(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    script = Path(__file__).resolve().parents[3] / "scripts/examples/turing_reverse.py"
    plot = tmp_path / "heads.png"
    monkeypatch.setattr(
        sys, "argv", [str(script), "--steps", "4", "--batch", "2", "--strings", "3", "--plot", str(plot)]
    )
    runpy.run_path(str(script), run_name="__main__")
    assert "length  10  trained" in capsys.readouterr().out
    assert plot.stat().st_size > 1000


# --- errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "icml"}, ValueError, "unknown preset 'icml': choose one of paper, iclr2022, neurips2023"),
        ({"erase": "both"}, ValueError, "erase must be one of tied, separate, got 'both'"),
        ({"controller": "gru"}, ValueError, "unknown controller 'gru'"),
        ({"controller": 3}, TypeError, "controller must be a name or an nn.Module, got int"),
        ({"controller": "bilstm", "hidden_size": 9}, ValueError, "needs an even hidden_size, got 9"),
        ({"actions": ("up",)}, ValueError, "unknown action 'up': the named ones are left, noop, right, jump"),
        ({"actions": ()}, ValueError, "at least one action"),
        ({"actions": "left"}, TypeError, "must be a sequence"),
        ({"actions": (Jump,)}, TypeError, r"a name or a callable, got class Jump: pass Jump\(...\)"),
        ({"tape_length": 4.5}, TypeError, "tape_length must be an integer, got 4.5"),
        ({"num_tapes": 2.0}, TypeError, "num_tapes must be an integer, got 2.0"),
        ({"hidden_size": "8"}, TypeError, "hidden_size must be an integer, got '8'"),
        ({"actions": (3,)}, TypeError, "a name or a callable, got int"),
        ({"backend": "fast"}, ValueError, "backend must be"),
        ({"jump_bias": float("inf")}, ValueError, "jump_bias must be a finite number, got inf"),
        ({"actions": SHIFTS, "jump_bias": -4.0}, ValueError, "jump_bias belongs to a machine with the action JUMP"),
        ({"move_noise": -1.0}, ValueError, "move_noise must be a finite number of at least 0, got -1.0"),
        ({"num_tapes": 0}, ValueError, "num_tapes must be at least 1, got 0"),
        ({"tape_width": None}, ValueError, "input_size 7 does not divide among 3 tapes: pass tape_width"),
    ],
)
def test_a_machine_that_cannot_be_built_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        machine(**options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: m(x[0]), ValueError, r"x must have shape \(B, T, 7\), got \(11, 7\)"),
        (lambda m, x: m(x[:, :0]), ValueError, "at least one step"),
        (lambda m, x: m(x.float()), TypeError, "all must be of one dtype, got x torch.float32, weights torch.float64"),
        (lambda m, x: m(x, mask=torch.ones(B, T)), TypeError, "mask must be a boolean tensor"),
        (lambda m, x: m(x, mask=torch.ones(T, B, dtype=torch.bool)), ValueError, "mask must have shape"),
        (
            lambda m, x: m(x, m.initial_state(3)),
            ValueError,
            r"state.read_head must have shape \(2, 3, L\), got \(3, 3, 13\)",
        ),
        (lambda m, x: m(x, m.initial_state(B)[0]), TypeError, "state must be a TuringState, got Tensor"),
        (lambda m, x: m(x, m.initial_state(B)._replace(key_tape=None)), ValueError, "must hold a key tape"),
        (lambda m, x: m.initial_state(B, 0), ValueError, "tape_length must be at least 1, got 0"),
        (lambda m, x: m.initial_state(B, 4.5), TypeError, "tape_length must be an integer, got 4.5"),
        (lambda m, x: m.initial_state(-1), ValueError, "batch_size must be at least 0, got -1"),
        (
            lambda m, x: machine(tape_length=None).initial_state(B),
            ValueError,
            "needs tape_length, the machine has none",
        ),
        (lambda m, x: m(x.to("meta")), ValueError, "all must be on one device, got x on meta, weights on cpu"),
        (
            lambda m, x: m(x, mask=torch.ones(B, T, dtype=torch.bool, device="meta")),
            ValueError,
            "all must be on one device, got x on cpu, mask on meta",
        ),
        (lambda m, x: m.step(x, m.initial_state(B)), ValueError, r"step: x must have shape \(B, 7\)"),
        (
            lambda m, x: machine(controller="bigru").step(x[:, 0], m.initial_state(B)),
            ValueError,
            "is bidirectional and needs the whole sequence",
        ),
        (
            lambda m, x: machine(controller=nn.GRU(D, 4, batch_first=True).double())(x),
            ValueError,
            r"the controller's hidden features must have shape \(2, 11, 10\)",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(machine(), normal(1, B, T, D))
