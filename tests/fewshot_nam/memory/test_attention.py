"""Normalized outer-product attention against an explicit matrix of scores, and the attention module against its equations."""

import copy
import functools
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot_nam.memory import read, unit, write
from fewshot_nam.memory.attention import NAMAttention, NAMAttentionState, learned_gate, outer_product_attention

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SCALES = [None, 0.3, "1/S", "1/sqrt(S)"]
B, T, H, D_K, D_V, S = 2, 7, 3, 5, 4, 11
seeds = st.integers(0, 2**31)
lengths = st.sampled_from([1, 2, 7, 31, 67, 131])
WIDTH = 15  # of a token: three heads of five


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_mask(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6


def by_scores(q, k, v, p_read=None, p_write=None, mask=None, causal=False, scale=None, initial_memory=None):
    """Return the outputs by a ``(T, S)`` matrix of scores a head, and the memory by a sum over outer products."""
    scores = torch.einsum("bthd,bshd->bhts", q, k)
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    seen = (seen.tril() if causal else seen).expand(q.shape[0], 1, -1, -1)
    if mask is not None:
        seen = seen & mask[:, None, None, :]
    weights = scores * seen
    if isinstance(p_write, Tensor):
        weights = weights * p_write.transpose(1, 2)[:, :, None, :]
    elif p_write is not None:
        weights = weights * p_write
    outputs = torch.einsum("bhts,bshd->bthd", weights, v)
    present = torch.ones(k.shape[:2]).double() if mask is None else mask.double()
    gate = torch.ones(k.shape[:3]).double() if p_write is None else p_write * torch.ones(k.shape[:3]).double()
    memory = torch.einsum("bs,bsh,bshv,bshk->bhvk", present, gate, v, k)
    if initial_memory is not None:
        memory = memory + initial_memory
        outputs = outputs + torch.einsum("bhvk,bthk->bthv", initial_memory, q)
    if p_read is not None:
        outputs = outputs * (p_read.unsqueeze(-1) if isinstance(p_read, Tensor) else p_read)
    if scale in ("1/S", "1/sqrt(S)"):
        count = seen.sum(-1).clamp_min(1).double().transpose(1, 2).unsqueeze(-1)
        outputs = outputs / (count if scale == "1/S" else count.sqrt())
    elif scale is not None:
        outputs = outputs * scale
    if causal and mask is not None:
        outputs = outputs * mask[:, :, None, None]
    return outputs, memory


def arguments(seed: int, length: int = T, keys: int | None = None) -> dict[str, Tensor]:
    keys = length if keys is None else keys
    return {
        "q": unit(normal(seed, B, length, H, D_K)),
        "k": unit(normal(seed + 1, B, keys, H, D_K)),
        "v": normal(seed + 2, B, keys, H, D_V),
        "p_read": normal(seed + 3, B, length, H).sigmoid(),
        "p_write": normal(seed + 4, B, keys, H).sigmoid(),
        "initial_memory": normal(seed + 5, B, H, D_V, D_K),
    }


def module(seed: int = 0, **settings) -> NAMAttention:
    torch.manual_seed(seed)
    attention = NAMAttention(WIDTH, H, batch_first=True, dtype=torch.float64, **settings)
    with torch.no_grad():  # biases begin at 0, where a forgotten one would not show
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention


# The function -----------------------------------------------------------------------------------------------------


@given(seeds, lengths, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from(SCALES))
def test_outer_product_attention_equals_a_matrix_of_scores(seed, length, causal, masked, gated, continued, scale):
    given_ = arguments(seed, length, None if causal else S)
    if not gated:
        given_ |= {"p_read": None, "p_write": 0.7}
    if not continued or isinstance(scale, str):
        del given_["initial_memory"]
    given_ |= {"mask": some_mask(seed, *given_["k"].shape[:2]) if masked else None, "causal": causal, "scale": scale}
    outputs, memory = outer_product_attention(**given_)
    expected, expected_memory = by_scores(**given_)
    torch.testing.assert_close(outputs, expected, **EXACT)
    torch.testing.assert_close(memory, expected_memory, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_gradients_equal_those_of_a_matrix_of_scores(causal, scale):
    mask = some_mask(5, B, 67)
    found = []
    for function in (outer_product_attention, by_scores):
        given_ = {name: tensor.requires_grad_() for name, tensor in arguments(3, 67).items()}
        if isinstance(scale, str):
            del given_["initial_memory"]
        outputs, memory = function(**given_, mask=mask, causal=causal, scale=scale)
        loss = (outputs * normal(8, *outputs.shape)).sum() + (memory * normal(9, *memory.shape)).sum()
        found.append(torch.autograd.grad(loss, list(given_.values())))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, **EXACT)


@given(seeds, st.booleans())
@settings(max_examples=20)
def test_theorem_2_orthonormal_keys_read_back_their_gated_values(seed, causal):
    keys = torch.linalg.qr(normal(seed, H, D_K, D_K)).Q.transpose(0, 1).expand(B, -1, -1, -1)  # (B, D_K tokens, H, D_K)
    values, p_write = normal(seed + 1, B, D_K, H, D_V), normal(seed + 2, B, D_K, H).sigmoid()
    outputs, _ = outer_product_attention(keys, keys, values, p_write=p_write, causal=causal)
    torch.testing.assert_close(outputs, p_write.unsqueeze(-1) * values, **EXACT)


@given(seeds, st.permutations(range(T)))
@settings(max_examples=10)
def test_the_order_of_keys_means_nothing_without_causality(seed, order):
    a = arguments(seed)
    shuffled = a | {name: a[name][:, order] for name in ("k", "v", "p_write")}
    torch.testing.assert_close(outer_product_attention(**shuffled)[0], outer_product_attention(**a)[0], **EXACT)


@given(seeds, st.sampled_from([0, 1, 40, 67]))
@settings(max_examples=10)
def test_the_causal_form_goes_on_where_it_stopped(seed, cut):
    a = arguments(seed, 67)
    whole, memory = outer_product_attention(**a, causal=True)
    before, after = (
        {n: x[:, at] for n, x in a.items() if n != "initial_memory"} for at in (slice(cut), slice(cut, None))
    )
    first, between = outer_product_attention(**before, initial_memory=a["initial_memory"], causal=True)
    second, last = outer_product_attention(**after, initial_memory=between, causal=True)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, **EXACT)
    torch.testing.assert_close(last, memory, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_that_stands_under_the_mask_matters(causal):
    a, mask = arguments(0), some_mask(1, B, T)
    spoilt = {n: x.masked_fill(~mask[:, :, None, None], torch.nan) if n in ("k", "v") else x for n, x in a.items()}
    for ours, expected in zip(
        outer_product_attention(**spoilt, mask=mask, causal=causal),
        outer_product_attention(**a, mask=mask, causal=causal),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_nothing_but_padding_reads_nothing(causal, scale):
    a = arguments(0)
    del a["initial_memory"]
    outputs, memory = outer_product_attention(**a, mask=torch.zeros(B, T, dtype=torch.bool), causal=causal, scale=scale)
    assert not outputs.any()
    assert not memory.any()


@pytest.mark.parametrize("causal", [False, True])
def test_no_tokens_leave_the_memory_as_it_was(causal):
    a = arguments(0, 0)
    outputs, memory = outer_product_attention(**a, causal=causal)
    assert outputs.shape == (B, 0, H, D_V)
    assert torch.equal(memory, a["initial_memory"])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_kept_outside_and_summed_in_float32(causal, dtype):
    a = {name: x.to(dtype) for name, x in arguments(0, 67).items()}
    exact, exact_memory = outer_product_attention(**{name: x.double() for name, x in a.items()}, causal=causal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, memory = outer_product_attention(**a, causal=causal)
    assert (outputs.dtype, memory.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(memory.double(), exact_memory, rtol=1e-5, atol=1e-5)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(outputs.double(), exact, rtol=eps, atol=10 * eps if dtype == torch.float32 else eps)


@pytest.mark.parametrize("causal", [False, True])
def test_the_inputs_are_left_as_they_are(causal):
    a = arguments(0) | {"mask": some_mask(0, B, T)}
    before = copy.deepcopy(a)
    outer_product_attention(**a, causal=causal)
    assert all(torch.equal(a[name], before[name]) for name in a)


@pytest.mark.parametrize("causal", [False, True])
def test_second_derivatives_are_right(causal):
    q, k, v = (normal(i, 1, 3, 2, 2).requires_grad_() for i in range(3))
    assert torch.autograd.gradgradcheck(
        lambda *x: outer_product_attention(*x, causal=causal, backend="chunk-autograd")[0], (q, k, v)
    )


@pytest.mark.parametrize("erase", [False, True])
def test_second_derivatives_of_the_module_are_right_by_its_backend(erase):
    torch.manual_seed(0)
    attention = NAMAttention(4, 2, erase=erase, backend="chunk-autograd", dtype=torch.float64)
    x = normal(1, 3, 1, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: attention(x, is_causal=True), x)


@pytest.mark.parametrize("causal", [False, True])
def test_vmap_equals_one_call_at_a_time(causal):
    keys = T if causal else S
    q, k, v = normal(0, 3, B, T, H, D_K), normal(1, 3, B, keys, H, D_K), normal(2, 3, B, keys, H, D_V)
    together, _ = torch.func.vmap(lambda *x: outer_product_attention(*x, causal=causal))(q, k, v)
    for i in range(3):
        torch.testing.assert_close(together[i], outer_product_attention(q[i], k[i], v[i], causal=causal)[0], **EXACT)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": [1.0]}, TypeError, "q must be a tensor, got list"),
        ({"k": normal(0, B, S, H, D_K + 1)}, ValueError, r"k must have shape \(2, S, 3, 5\), got \(2, 11, 3, 6\)"),
        ({"v": normal(0, B, T, H, D_V)}, ValueError, r"v must have shape \(2, 11, 3, D_v\), got \(2, 7, 3, 4\)"),
        ({"v": normal(0, B, S, H, D_V).float()}, TypeError, "one dtype, got q torch.float64"),
        ({"p_read": normal(0, B, S, H)}, ValueError, r"p_read must have shape \(2, 7, 3\)"),
        ({"p_write": normal(0, B, T, H)}, ValueError, r"p_write must have shape \(2, 11, 3\)"),
        ({"mask": torch.ones(B, T, dtype=torch.bool)}, ValueError, r"mask must have shape \(2, 11\)"),
        ({"mask": torch.ones(B, S)}, TypeError, "mask must be a boolean tensor, got torch.float32"),
        ({"initial_memory": normal(0, B, H, D_K, D_V)}, ValueError, r"initial_memory must have shape \(2, 3, 4, 5\)"),
        ({"causal": True}, ValueError, "as many queries as keys, got 7 and 11"),
        ({"scale": "S"}, ValueError, 'scale must be None, a number, "1/S" or "1/sqrt\\(S\\)", got \'S\''),
        ({"scale": "1/S"}, ValueError, "cannot count the tokens of initial_memory"),
        ({"k": torch.empty(B, S, H, D_K, dtype=torch.float64, device="meta")}, ValueError, "k on meta"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    with pytest.raises(error, match=f"^outer_product_attention: .*{message}"):
        outer_product_attention(**(arguments(0, T, S) | change))


# The module -------------------------------------------------------------------------------------------------------


def projected(attention: NAMAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return unit queries, unit keys, values and gates in the order read, write, erase, straight from the weights."""
    q, k, v = (
        (x @ w.T + b).unflatten(-1, (H, -1))
        for w, b in zip(attention.in_proj.weight.chunk(3), attention.in_proj.bias.chunk(3), strict=True)
    )
    gates = []
    if attention.gate_proj is not None:
        g = torch.sigmoid(x @ attention.gate_proj.weight.T + attention.gate_proj.bias)
        gates = [g[..., i : i + H] for i in range(0, g.shape[-1], H)]
    return q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True), v, gates


def joined(attention: NAMAttention, outputs: Tensor) -> Tensor:
    return outputs.flatten(-2) @ attention.out_proj.weight.T + attention.out_proj.bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_the_module_without_erase_is_the_papers_attention(causal, gates, scale):
    attention, x, mask = module(gates=gates, scale=scale), normal(1, B, T, WIDTH), some_mask(2, B, T)
    q, k, v, (p_read, p_write) = *projected(attention, x)[:3], projected(attention, x)[3] or (None, None)
    expected, _ = by_scores(q, k, v, p_read, p_write, mask, causal, scale)
    expected = joined(attention, expected * mask[:, :, None, None])
    torch.testing.assert_close(attention(x, ~mask, is_causal=causal), expected, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gates", [False, True])
def test_the_module_with_erase_is_the_loop_of_writes_and_reads(causal, gates):
    attention, x = module(gates=gates, erase=True), normal(1, B, 37, WIDTH)
    q, k, v, found = projected(attention, x)
    p_read, p_write, p_erase = found if gates else (torch.ones(B, 37, H), torch.ones(B, 37, H), *found)
    memory, memories = torch.zeros(B, H, WIDTH // H, WIDTH // H, dtype=torch.float64), []
    for t in range(37):
        memory = write(memory, k[:, t], v[:, t], p_write[:, t], p_erase[:, t])
        memories.append(memory)
    outputs = torch.stack([read(memories[t if causal else -1], q[:, t], p_read[:, t]) for t in range(37)], 1)
    torch.testing.assert_close(attention(x, is_causal=causal), joined(attention, outputs), **EXACT)


KINDS = [
    {},
    {"gates": True, "scale": "1/sqrt(S)"},
    {"scale": "1/S", "bias": False},
    {"scale": 0.2},
    {"erase": True},
    {"erase": True, "gates": True},
    {"erase": True, "gates": True, "gate": "hard", "writes_per_token": 2},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_steps_and_extensions_give_the_causal_forward(kind):
    attention, x = module(**kind), normal(1, B, 41, WIDTH)
    expected, state, outputs = attention(x, is_causal=True), attention.init_state(B), []
    for t in range(5):
        output, state = attention.step(x[:, t], state)
        outputs.append(output.unsqueeze(1))
    for part in (x[:, 5:5], x[:, 5:17], x[:, 17:40]):
        output, state = attention.extend(part, state)
        outputs.append(output)
    output, state = attention.step(x[:, 40], state)
    torch.testing.assert_close(torch.cat([*outputs, output.unsqueeze(1)], 1), expected, **EXACT)
    assert state.tokens.tolist() == [41, 41]
    assert state.memory.shape == attention.init_state(B).memory.shape


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_future_does_not_change_the_past(kind):
    attention, x = module(**kind), normal(1, B, T, WIDTH)
    changed = torch.cat([x[:, :4], normal(2, B, 3, WIDTH)], 1)
    before, after = (attention(y, is_causal=True) for y in (x, changed))
    torch.testing.assert_close(after[:, :4], before[:, :4], **EXACT)
    assert not torch.isclose(after[:, 4:], before[:, 4:]).all(-1).any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_padded_sequences_equal_sequences_cut_short(kind, causal):
    attention, x = module(**kind), normal(1, 3, T, WIDTH)
    padding = torch.arange(T) >= torch.tensor([[4], [7], [0]])
    expected = [attention(x[i : i + 1, :n], is_causal=causal)[0] for i, n in enumerate([4, 7])]
    spoilt = x.masked_fill(padding.unsqueeze(-1), torch.nan)
    as_float = torch.zeros(3, T).masked_fill(padding, -torch.inf)
    for outputs in (attention(x, padding, causal), attention(x, as_float, causal), attention(spoilt, padding, causal)):
        for i, alone in enumerate(expected):
            torch.testing.assert_close(outputs[i, : len(alone)], alone, **EXACT)
    assert attention(x, padding, causal).isfinite().all()  # the third sequence is nothing but padding


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [{"gates": True}, {"gates": True, "erase": True}], ids=str)
def test_what_stands_in_padding_reaches_no_gradient(kind, batch_first, causal):
    attention, x = module(**kind), normal(1, B, T, WIDTH)
    padding, spoilt = torch.arange(T) >= torch.tensor([[4], [7]]), [0.0, torch.nan, torch.inf]
    attention.batch_first, found = batch_first, []
    for filling in spoilt:
        tokens = x.masked_fill(padding.unsqueeze(-1), filling).requires_grad_()
        outputs = attention(tokens if batch_first else tokens.transpose(0, 1), padding, causal)
        read = (outputs if batch_first else outputs.transpose(0, 1))[~padding]
        found.append(torch.autograd.grad(read.square().sum(), [tokens, *attention.parameters()]))
    assert found[0][0][padding].count_nonzero() == 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)
    outputs = attention(x[0].masked_fill(padding[0].unsqueeze(-1), torch.nan), padding[0], causal)
    torch.testing.assert_close(outputs[:4], attention(x[0, :4], is_causal=causal), **EXACT)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_stream_that_pauses_goes_on_as_if_it_had_not(kind):
    attention, x = module(**kind), normal(1, B, T, WIDTH)
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[0, 2:4] = True
    _, state = attention.extend(x, attention.init_state(B), padding)
    _, expected = attention.extend(x[:1, ~padding[0]], attention.init_state(1))
    torch.testing.assert_close(state.memory[:1], expected.memory, **EXACT)
    assert state.tokens.tolist() == [5, 7]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layouts_of_torch_are_understood(batch_first, causal):
    attention, x, padding = module(gates=True), normal(1, B, T, WIDTH), some_mask(2, B, T)
    expected = attention(x, padding, causal)
    attention.batch_first = batch_first
    inputs = x if batch_first else x.transpose(0, 1)
    outputs = attention(inputs, padding, causal)
    torch.testing.assert_close(outputs if batch_first else outputs.transpose(0, 1), expected, **EXACT)
    torch.testing.assert_close(attention(x[1], padding[1], causal), expected[1], **EXACT)


def test_a_module_begins_with_gates_at_one_half_and_no_bias():
    attention = NAMAttention(WIDTH, H, gates=True, erase=True)
    assert attention.gate_proj.weight.shape == (3 * H, WIDTH)
    assert not any(part.bias.any() for part in (attention.in_proj, attention.gate_proj, attention.out_proj))
    assert all(parameter.bias is None for parameter in NAMAttention(WIDTH, H, gates=True, bias=False).children())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_parameter_gets_a_gradient(kind):
    attention = module(**kind)
    attention(normal(1, B, T, WIDTH), is_causal=True).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in attention.parameters())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("erase", [False, True])
def test_gradients_of_the_module_are_right(erase, causal):
    torch.manual_seed(0)
    attention = NAMAttention(4, 2, erase=erase, gates=True, dtype=torch.float64)
    names, parameters = zip(*attention.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), (x, None, causal))

    assert torch.autograd.gradcheck(call, (normal(1, 5, 2, 4).requires_grad_(), *parameters))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_saved_module_loads_and_answers_the_same(kind):
    attention, other, x = module(0, **kind), module(1, **kind), normal(1, B, T, WIDTH)
    file = io.BytesIO()
    torch.save(attention.state_dict(), file)
    file.seek(0)
    assert not torch.allclose(other(x), attention(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), attention(x))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("erase", [False, True])
def test_autocast_keeps_the_memory_in_float32(erase, causal):
    attention = module(erase=erase, gates=True).float()
    x = normal(1, B, T, WIDTH).float()
    expected, state = attention(x, is_causal=causal), attention.init_state(B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = attention(x, is_causal=causal)
        step, state = attention.step(x[:, 0], state)
    assert (outputs.dtype, step.dtype, state.memory.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    torch.testing.assert_close(outputs.float(), expected, rtol=0.1, atol=0.1)


def test_a_bfloat16_module_keeps_its_memory_in_float32():
    attention = module(erase=True, gates=True).bfloat16()
    x = normal(1, B, T, WIDTH).bfloat16()
    states = [attention.init_state(B)]
    for call, tokens in ((attention.extend, x), (attention.step, x[:, 0])):
        outputs, state = call(tokens, states[-1])
        assert outputs.dtype == torch.bfloat16
        states.append(state)
    assert [state.memory.dtype for state in states] == [torch.float32] * 3


def test_keys_and_queries_longer_than_float16_can_say_are_as_good_as_others():
    attention, x = module().half(), normal(1, B, T, WIDTH).half()
    expected = attention(x)
    heads = attention.in_proj(x)[..., : 2 * WIDTH]
    with torch.no_grad():
        for parameter in (attention.in_proj.weight, attention.in_proj.bias):
            parameter[: 2 * WIDTH] *= 6e4 / heads.abs().max()
    lengths = attention.in_proj(x)[..., : 2 * WIDTH].double().unflatten(-1, (-1, WIDTH // H)).norm(dim=-1)
    assert lengths.max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(attention(x), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("erase", [False, True])
def test_the_module_compiles_whole_and_exports(erase, causal):
    attention, x = module(erase=erase, gates=True).eval(), normal(1, B, T, WIDTH)
    padding = some_mask(0, B, T)
    expected = attention(x, padding, causal)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, padding, causal), expected, **EXACT)
    exported = torch.export.export(attention, (x, padding, causal))
    torch.testing.assert_close(exported.module()(x, padding, causal), expected, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("erase", [False, True])
def test_vmap_runs_an_ensemble_of_modules(erase, causal):
    members, x = [module(i, gates=True, erase=erase) for i in range(3)], normal(1, B, T, WIDTH)
    parameters, _ = torch.func.stack_module_state(members)
    call = torch.func.vmap(lambda p: torch.func.functional_call(members[0], p, (x, None, causal)))
    for i, outputs in enumerate(call(parameters)):
        torch.testing.assert_close(outputs, members[i](x, is_causal=causal), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("erase", [False, True])
def test_vmap_and_jvp_work_where_no_gradient_is_recorded(erase, causal):
    attention, x, tangent = module(erase=erase), normal(1, 3, B, T, WIDTH), normal(2, B, T, WIDTH)
    call = functools.partial(attention, is_causal=causal)
    expected = torch.stack([call(each) for each in x])
    slope = torch.func.jvp(call, (x[0],), (tangent,))[1]
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(call)(x), expected, **EXACT)
        torch.testing.assert_close(torch.func.jvp(call, (x[0],), (tangent,)), (expected[0], slope), **EXACT)
    eps = 1e-6
    difference = (call(x[0] + eps * tangent) - call(x[0] - eps * tangent)) / (2 * eps)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("erase", [False, True])
def test_the_meta_device_gives_shapes(erase, causal):
    attention = NAMAttention(6, 2, erase=erase, gates=True, batch_first=True, device="meta")
    x = torch.zeros(3, 5, 6, device="meta")
    outputs = attention(x, is_causal=causal)
    assert outputs.shape == (3, 5, 6)
    assert attention.step(x[:, 0], attention.init_state(3))[1].memory.shape == (3, 2, 3, 3)
    outputs.sum().backward()


@pytest.mark.parametrize("causal", [False, True])
def test_more_tokens_than_float16_can_count_do_not_silence_the_outputs(causal):
    ones = torch.ones(1, 70_000, 1, 1, dtype=torch.float16)
    keys = ones / 2
    outputs, _ = outer_product_attention(keys if causal else keys[:, :1], keys, keys, scale="1/S", causal=causal)
    assert outputs[0, -1].item() == 0.125


def test_the_settings_are_printed():
    printed = repr(NAMAttention(6, 2, erase=True))
    assert "embed_dim=6, num_heads=2, erase=True, gates=False, scale=None, backend=auto, batch_first=False" in printed


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda _: NAMAttention(7, 2), ValueError, "multiple of num_heads, got 7 and 2"),
        (lambda _: NAMAttention(8, 0), ValueError, "multiple of num_heads, got 8 and 0"),
        (lambda _: NAMAttention(8, 2, scale="S"), ValueError, "NAMAttention: scale must be None"),
        (lambda _: NAMAttention(8, 2, scale="1/S", erase=True), ValueError, "scale belongs to erase=False"),
        (lambda a: a(torch.ones(B, T, 4).double()), ValueError, r"x must have shape \(B, T, 15\), got \(2, 7, 4\)"),
        (lambda a: a(torch.ones(B, T, WIDTH, dtype=torch.int64)), TypeError, "x must be of a floating dtype"),
        (lambda a: a(normal(0, B, T, WIDTH), torch.ones(T, B).bool()), ValueError, r"mask must have shape \(2, 7\)"),
        (lambda a: a(normal(0, B, T, WIDTH), torch.ones(B, T)), ValueError, "-inf at padding and 0 elsewhere"),
        (lambda a: a(normal(0, B, T, WIDTH), torch.ones(B, T).int()), TypeError, "boolean or floating.*torch.int32"),
        (lambda a: a.step(normal(0, B, T, WIDTH), a.init_state(B)), ValueError, r"step: x must have shape \(B, 15\)"),
        (lambda a: a.step(normal(0, B, WIDTH), a.init_state(3)), ValueError, r"memory must have shape \(2, 3, 5, 5\)"),
        (lambda a: a(normal(0, B, T, WIDTH).float()), TypeError, "x torch.float32, weights torch.float64"),
        (lambda a: a(normal(0, T, WIDTH).float()), TypeError, "NAMAttention: all must be of one dtype"),
        (lambda a: a(normal(0, B, T, WIDTH).to("meta")), ValueError, "x on meta, weights on cpu"),
        (
            lambda a: a(normal(0, B, T, WIDTH), torch.ones(B, T, dtype=torch.bool, device="meta")),
            ValueError,
            "key_padding_mask on meta",
        ),
        (lambda a: a.step(normal(0, B, WIDTH).float(), a.init_state(B)), TypeError, "step: all must be of one dtype"),
        (lambda a: a.extend(normal(0, B, T, WIDTH).float(), a.init_state(B)), TypeError, "extend: all must be of one"),
        (
            lambda a: a.step(normal(0, B, WIDTH), a.init_state(B)._replace(tokens=torch.zeros(3, dtype=torch.int64))),
            ValueError,
            r"tokens must be an int64 tensor \(2,\), got torch.int64 \(3,\)",
        ),
        (
            lambda a: a.extend(normal(0, B, T, WIDTH), a.init_state(B)._replace(tokens=7)),
            ValueError,
            r"tokens must be an int64 tensor \(2,\), got int",
        ),
        (
            lambda a: a.step(normal(0, B, WIDTH), NAMAttentionState(*(x.to("meta") for x in a.init_state(B)))),
            ValueError,
            "weights on cpu, memory on meta, tokens on meta",
        ),
        (lambda a: a.extend(normal(0, B, T, WIDTH), None), TypeError, "must be a NAMAttentionState.*got NoneType"),
        (
            lambda a: a.step(normal(0, B, WIDTH), NAMAttentionState(None, None)),
            TypeError,
            "the state's memory must be a tensor",
        ),
    ],
)
def test_what_the_module_cannot_use_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(module())


# --- convolution, erase gates up to 2, output norm, hard gates, several writes per token -------------------------------------

OPTIONS = {
    "conv": {"conv_size": 3},
    "conv, erase to 2": {"conv_size": 2, "erase": True, "max_erase": 2.0, "gates": True},
    "output norm": {"output_norm": True, "erase": True},
    "hard gates": {"erase": True, "max_erase": 2.0, "gates": True, "gate": "hard"},
    "two writes": {"erase": True, "writes_per_token": 2},
    "all": {
        **{"conv_size": 4, "erase": True, "max_erase": 1.5, "gates": True, "output_norm": True},
        **{"gate": "hard", "writes_per_token": 3},
    },
}


def with_options(options: dict, **others) -> NAMAttention:
    torch.manual_seed(3)
    attention = NAMAttention(WIDTH, H, batch_first=True, dtype=torch.float64, **options, **others)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention


def as_gate(attention: NAMAttention, x: Tensor) -> Tensor:
    if attention.gate == "sigmoid":
        return x.sigmoid()
    hard = (x.detach() / 6 + 0.5).clamp(0, 1)
    return hard + x.sigmoid() - x.sigmoid().detach()


def as_equations(attention: NAMAttention, x: Tensor) -> Tensor:
    """Return the causal outputs for one sequence ``(T, E)``, token by token."""
    memory = [torch.zeros(WIDTH // H, WIDTH // H, dtype=x.dtype) for _ in range(H)]
    projected, outputs = attention.in_proj(x), []
    for t in range(len(x)):
        now = projected[t]
        if attention.conv is not None:
            past = range(max(0, t - attention.conv.width + 1), t + 1)
            now = sum(attention.conv.weight[:, attention.conv.width - 1 - (t - s)] * projected[s] for s in past)
        writes = attention.writes_per_token
        q, *pairs = now.view(1 + 2 * writes, H, -1)
        gates = [] if attention.gate_proj is None else list(as_gate(attention, attention.gate_proj(x[t])).view(-1, H))
        p_read = gates.pop(0) if attention.gates else torch.ones(H, dtype=x.dtype)
        p_write = [gates.pop(0) if attention.gates else torch.ones(H, dtype=x.dtype) for _ in range(writes)]
        p_erase = [attention.max_erase * gates.pop(0) if attention.erase else 0 * p_read for _ in range(writes)]
        reads = []
        for head in range(H):
            for i in range(writes):
                key, value = unit(pairs[i][head]), pairs[writes + i][head]
                memory[head] = write(memory[head], key, value, p_write[i][head], p_erase[i][head])
            out = read(memory[head], unit(q[head]), p_read[head])
            if attention.output_norm is not None:
                out = out / (out.square().mean() + torch.finfo(torch.float32).eps).sqrt() * attention.output_norm.weight
            reads.append(out)
        outputs.append(attention.out_proj(torch.cat(reads)))
    return torch.stack(outputs)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_are_their_equations_with_all_gradients(name):
    attention = with_options(OPTIONS[name])
    x = normal(0, B, 41, WIDTH).requires_grad_()
    leaves = [x, *attention.parameters()]
    expected = torch.stack([as_equations(attention, row) for row in x])
    outputs = attention(x, is_causal=True)
    torch.testing.assert_close(outputs, expected, **EXACT)
    weights = normal(1, *outputs.shape)
    found = torch.autograd.grad((outputs * weights).sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), leaves), **EXACT)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_stream_over_padding_as_over_the_tokens_alone(name):
    attention = with_options(OPTIONS[name])
    x, padding = normal(0, 3, 12, WIDTH), torch.zeros(3, 12, dtype=torch.bool)
    padding[0, 3:6] = padding[1, :2] = padding[2, 9:] = True
    state, outputs = attention.init_state(3), []
    for part in (slice(0, 5), slice(5, 11)):
        found, state = attention.extend(x[:, part], state, padding[:, part])
        outputs.append(found)
    last, state = attention.step(x[:, 11], state)
    whole = attention(x[:, :11], padding[:, :11], is_causal=True)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, **EXACT)
    for row in range(3):
        kept = ~padding[row, :11]
        tokens = torch.cat([x[row, :11][kept], x[row, 11:]])
        expected = as_equations(attention, tokens)
        torch.testing.assert_close(whole[row][kept], expected[:-1], **EXACT)
        torch.testing.assert_close(last[row], expected[-1], **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "typo"}, "backend must be one of auto, loop, .*got 'typo'"),
        ({"conv_size": 1}, "conv_size must be None or an integer of at least 2, got 1"),
        ({"erase": True, "max_erase": 2.5}, "max_erase must be above 0 and at most 2, got 2.5"),
        ({"erase": True, "max_erase": 0}, "max_erase must be above 0 and at most 2, got 0"),
        ({"max_erase": 2.0}, "max_erase belongs to erase=True, got 2.0"),
        ({"gate": "soft"}, "gate must be one of sigmoid, hard, got 'soft'"),
        ({"erase": True, "writes_per_token": 0}, "writes_per_token must be an integer of at least 1, got 0"),
        ({"writes_per_token": 2}, "writes_per_token belongs to erase=True, got 2"),
        ({"erase_bias": 3.0}, "erase_bias belongs to erase=True and bias=True, got 3.0 with erase=False and bias=True"),
    ],
)
def test_options_that_do_not_fit_are_errors(options, message):
    with pytest.raises(ValueError, match=f"NAMAttention: {message}"):
        NAMAttention(WIDTH, H, **options)


def test_a_state_of_an_attention_without_convolution_is_refused():
    with pytest.raises(ValueError, match="recent tokens are for a convolution: use init_state of this module"):
        with_options({"conv_size": 2}).step(normal(0, B, WIDTH), with_options({}).init_state(B))


def parity(generator: torch.Generator, batch: int, length: int) -> tuple[Tensor, Tensor]:
    bits = torch.randint(2, (batch, length), generator=generator)
    return bits, bits.cumsum(1) % 2


def by_hand(attention: NAMAttention, values: dict[str, list]) -> NAMAttention:
    with torch.no_grad():
        for name, value in values.items():
            attention.get_parameter(name).copy_(torch.tensor(value))
    return attention


@pytest.mark.parametrize(("gate", "steepness"), [("sigmoid", 80.0), ("hard", 6.0)])
def test_a_memory_with_erase_gates_up_to_2_computes_parity_at_any_length(gate, steepness):
    """By hand: k = q = 1, v = 0, p_e = 2 at a one and 0 at a zero. M starts at 1 and changes its sign at every one."""
    attention = NAMAttention(1, 1, erase=True, max_erase=2.0, gate=gate, batch_first=True, dtype=torch.float64)
    by_hand(
        attention,
        {
            "in_proj.weight": [[0.0], [0.0], [0.0]],
            "in_proj.bias": [1.0, 1.0, 0.0],
            "gate_proj.weight": [[steepness]],
            "gate_proj.bias": [-steepness / 2],
            "out_proj.weight": [[1.0]],
            "out_proj.bias": [0.0],
        },
    )
    bits, expected = parity(torch.Generator().manual_seed(0), 4, 500)
    state = attention.init_state(4)
    outputs, _ = attention.extend(bits.unsqueeze(-1).double(), state._replace(memory=torch.ones_like(state.memory)))
    assert torch.equal((outputs.squeeze(-1) < 0).long(), expected)
    if gate == "hard":
        assert torch.equal(outputs.squeeze(-1), 1.0 - 2 * expected)  # not only the sign: nothing fades


def test_two_writes_per_token_turn_a_memory_which_one_cannot():
    """By hand: two reflections at the angles 0 and 36 degrees turn the row (1, 0) by 72 degrees; five tokens turn it once round."""
    torch.manual_seed(0)
    attention = NAMAttention(2, 1, erase=True, max_erase=2.0, gate="hard", writes_per_token=2, batch_first=True)
    angle = math.pi / 5
    keys = [1.0, 0.0, math.cos(angle), math.sin(angle)]
    by_hand(
        attention,
        {
            "in_proj.weight": [[0.0, 0.0]] * 10,
            "in_proj.bias": [1.0, 0.0, *keys, *[0.0] * 4],
            "gate_proj.weight": [[0.0, 0.0]] * 2,
            "gate_proj.bias": [9.0, 9.0],
            "out_proj.weight": [[1.0, 0.0], [0.0, 1.0]],
            "out_proj.bias": [0.0, 0.0],
        },
    )
    state = attention.init_state(1)
    outputs, _ = attention.extend(torch.zeros(1, 1000, 2), state._replace(memory=torch.eye(2).expand(1, 1, 2, 2)))
    turns = (torch.arange(1, 1001) * 2 * angle).cos()
    torch.testing.assert_close(outputs[0, :, 0], turns, rtol=0, atol=1e-4)


def test_a_hard_gate_reaches_its_bounds_and_can_leave_them():
    x = torch.tensor([-50.0, -3.0, 0.0, 1.5, 3.0, 4.0], requires_grad=True)
    gate = learned_gate(x, "hard")
    assert gate.tolist() == [0.0, 0.0, 0.5, 0.75, 1.0, 1.0]
    torch.testing.assert_close(torch.autograd.grad(gate.sum(), x)[0], (x.sigmoid() * (1 - x.sigmoid())).detach())


def test_erase_gates_can_begin_as_reflections():
    """With the bias at the upper bound of a hard gate, a token of zeros reflects every memory at its keys, and keeps its norm."""
    attention = NAMAttention(
        *(6, 2),
        erase=True,
        gates=True,
        max_erase=2.0,
        gate="hard",
        writes_per_token=2,
        erase_bias=3.0,
        batch_first=True,
    )
    with torch.no_grad():
        attention.in_proj.bias.copy_(torch.randn(30).index_fill(0, torch.arange(18, 30), 0.0))  # keys, and values of 0
    state = attention.init_state(1)._replace(memory=torch.randn(1, 2, 3, 3))
    after = attention.step(torch.zeros(1, 6), state)[1].memory
    torch.testing.assert_close(after.norm(dim=-1), state.memory.norm(dim=-1))
    assert not torch.isclose(after, state.memory).any()
    attention.reset_parameters()
    assert attention.gate_proj.bias.tolist() == [0.0] * 6 + [3.0] * 4


def test_a_module_of_one_write_loads_what_was_saved_before_there_were_several():
    """The parameters of the default have the names and shapes of version 0.1.0."""
    shapes = {name: tuple(x.shape) for name, x in NAMAttention(6, 2, erase=True, gates=True).state_dict().items()}
    assert shapes == {
        **{"in_proj.weight": (18, 6), "in_proj.bias": (18,), "gate_proj.weight": (6, 6), "gate_proj.bias": (6,)},
        **{"out_proj.weight": (6, 6), "out_proj.bias": (6,)},
    }


def test_normalised_outputs_are_those_of_every_dtype():
    """PyTorch's smallest number beside a mean square depends on the dtype: in float64 small outputs were others."""
    torch.manual_seed(0)
    attention, x = NAMAttention(16, 2, output_norm=True, batch_first=True), torch.randn(1, 6, 16)
    with torch.no_grad():
        attention.in_proj.weight *= 0.01
        exact = copy.deepcopy(attention).double()(x.double(), is_causal=True)
        torch.testing.assert_close(attention(x, is_causal=True).double(), exact, rtol=1e-4, atol=1e-5)
