"""The NAM-Transformer: a plain transcription of the layer, the contract of torch's classes, and streams."""

import copy
import io
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory.transformer import NAMTransformerEncoder, NAMTransformerEncoderLayer

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, T, H, WIDTH, HIDDEN = 2, 7, 3, 15, 11
KINDS = [{}, {"gates": True, "scale": "1/S"}, {"erase": True, "norm_first": True}, {"erase": True, "gates": True}]
seeds = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(module: nn.Module) -> nn.Module:
    """Move every parameter: biases begin at 0 and norms at 1, where a forgotten one would not show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def layer(seed: int = 0, **settings) -> NAMTransformerEncoderLayer:
    torch.manual_seed(seed)
    settings = {"dropout": 0.0, "batch_first": True} | settings
    return shaken(NAMTransformerEncoderLayer(WIDTH, H, HIDDEN, dtype=torch.float64, **settings))


def encoder(seed: int = 0, num_layers: int = 3, norm: bool = True, **settings) -> NAMTransformerEncoder:
    stack = NAMTransformerEncoder(layer(seed, **settings), num_layers, nn.LayerNorm(WIDTH).double() if norm else None)
    return shaken(stack)


def causal_mask(length: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool:
        return torch.ones(length, length, dtype=dtype).triu(diagonal=1)
    return nn.Transformer.generate_square_subsequent_mask(length, dtype=dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("activation", [F.relu, "gelu", nn.Tanh()], ids=["relu", "gelu", "tanh"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_layer_is_a_plain_transcription_of_the_paper_in_torchs_order(norm_first, activation, causal):
    ours, x = layer(norm_first=norm_first, activation=activation, layer_norm_eps=0.1), normal(1, B, T, WIDTH)
    p = dict(ours.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]
        )

    def attention(x: Tensor) -> Tensor:
        heads = (x @ p["self_attn.in_proj.weight"].T + p["self_attn.in_proj.bias"]).unflatten(-1, (3, H, -1))
        q, k, v = heads.unbind(2)
        scores = torch.einsum("bthd,bshd->bhts", q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True))
        outputs = torch.einsum("bhts,bshd->bthd", scores.tril() if causal else scores, v).flatten(2)
        return outputs @ p["self_attn.out_proj.weight"].T + p["self_attn.out_proj.bias"]

    def feed_forward(x: Tensor) -> Tensor:
        function = {"gelu": F.gelu}.get(activation, activation) if isinstance(activation, str) else activation
        return function(x @ p["linear1.weight"].T + p["linear1.bias"]) @ p["linear2.weight"].T + p["linear2.bias"]

    if norm_first:
        expected = x + attention(norm(x, "norm1"))
        expected = expected + feed_forward(norm(expected, "norm2"))
    else:
        expected = norm(x + attention(x), "norm1")
        expected = norm(expected + feed_forward(expected), "norm2")
    torch.testing.assert_close(ours(x, is_causal=causal), expected, **EXACT)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_same_calls_work_on_torchs_layer_and_on_ours(batch_first, norm_first, training):
    words = {"dim_feedforward": HIDDEN, "dropout": 0.2, "activation": "gelu", "layer_norm_eps": 1e-4}
    words |= {"batch_first": batch_first, "norm_first": norm_first, "bias": True, "device": "cpu"}
    x = torch.randn(B, T, 12) if batch_first else torch.randn(T, B, 12)
    padding = torch.arange(T) >= torch.tensor([[4], [7]])
    as_float = torch.zeros(B, T).masked_fill(padding, -torch.inf)
    as_bool, as_scores = causal_mask(T, torch.bool), causal_mask(T, torch.float32)
    shapes = []
    for kind in (nn.TransformerEncoderLayer, NAMTransformerEncoderLayer):
        for module in (kind(12, 4, **words), kind(12, 4, *words.values())):
            module.train(training)
            calls = [
                module(x),
                module(x, as_scores),
                module(x, as_bool, padding),
                module(x, src_mask=as_bool, is_causal=True),
                module(x, src_key_padding_mask=padding),
                module(x, src_key_padding_mask=as_float),
                module(x[:, 0], src_key_padding_mask=None),
                module(x[0], as_scores[: len(x[0]), : len(x[0])]),
                module(src=x[:, 0], src_mask=None, src_key_padding_mask=None, is_causal=False),
            ]
            shapes.append([call.shape for call in calls])
    assert all(shape == shapes[0] for shape in shapes)


def test_the_constructor_has_torchs_words_in_torchs_order():
    import inspect

    theirs = inspect.signature(nn.TransformerEncoderLayer).parameters
    ours = inspect.signature(NAMTransformerEncoderLayer).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)
    call = inspect.signature(nn.TransformerEncoderLayer.forward).parameters
    assert list(inspect.signature(NAMTransformerEncoderLayer.forward).parameters) == list(call)
    call = inspect.signature(nn.TransformerEncoder.forward).parameters
    assert list(inspect.signature(NAMTransformerEncoder.forward).parameters) == list(call)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "both"])
def test_the_layer_runs_inside_torchs_own_encoder(kind, masks, training):
    ours, x = encoder(**kind, norm=True).train(training), normal(1, B, T, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = nn.TransformerEncoder(layer(**kind), 3, copy.deepcopy(ours.norm), enable_nested_tensor=False)
    theirs.load_state_dict(ours.state_dict())
    given_ = {}
    if masks in ("padding", "both"):
        given_["src_key_padding_mask"] = torch.arange(T) >= torch.tensor([[4], [7]])
    if masks in ("causal", "both"):
        given_["mask"] = causal_mask(T, torch.bool)
    theirs.train(training)
    torch.testing.assert_close(theirs(x, **given_), ours(x, **given_), **EXACT)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_causal_mask_means_is_causal(batch_first, dtype):
    for module in (layer(batch_first=batch_first), encoder(batch_first=batch_first)):
        x = normal(1, B, T, WIDTH) if batch_first else normal(1, T, B, WIDTH)
        expected = module(x, is_causal=True)
        assert not torch.allclose(module(x), expected)
        assert torch.equal(module(x, causal_mask(T, dtype)), expected)
        assert torch.equal(module(x, causal_mask(T, dtype), is_causal=True), expected)
        assert torch.equal(module(x[0], causal_mask(x.shape[1], dtype)), module(x[0], is_causal=True))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_mask_that_hides_nothing_means_no_mask(is_causal, dtype):
    x, nothing = normal(1, B, T, WIDTH), torch.zeros(T, T, dtype=dtype)
    for module in (layer(), encoder()):
        assert torch.equal(module(x, nothing, is_causal=is_causal), module(x, is_causal=is_causal))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_what_stands_in_padding_reaches_no_gradient(causal, batch_first, norm_first):
    padding, x = torch.arange(T) >= torch.tensor([[4], [7]]), normal(1, B, T, WIDTH)

    def batched(x: Tensor) -> Tensor:
        return x if batch_first else x.transpose(0, 1)

    for stack in (part(norm_first=norm_first, batch_first=batch_first, gates=True) for part in (layer, encoder)):
        for extends in (False, True) if causal else (False,):
            found = []
            for filling in (0.0, torch.nan, torch.inf):
                src = x.masked_fill(padding.unsqueeze(-1), filling).requires_grad_()
                if extends:
                    outputs, _ = stack.extend(batched(src), stack.init_state(B), padding)
                else:
                    outputs = stack(batched(src), src_key_padding_mask=padding, is_causal=causal)
                loss = batched(outputs)[~padding].square().sum()
                found.append(torch.autograd.grad(loss, [src, *stack.parameters()]))
            assert found[0][0][padding].count_nonzero() == 0
            for other in found[1:]:
                torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_padding_changes_nothing_and_breaks_nothing(kind, causal):
    stack, x = encoder(**kind), normal(1, 3, T, WIDTH)
    padding = torch.arange(T) >= torch.tensor([[4], [7], [0]])
    outputs = stack(x, src_key_padding_mask=padding, is_causal=causal)
    spoilt = stack(x.masked_fill(padding.unsqueeze(-1), torch.nan), None, padding, causal)
    for i, length in enumerate([4, 7]):
        alone = stack(x[i, :length], is_causal=causal)
        torch.testing.assert_close(outputs[i, :length], alone, **EXACT)
        torch.testing.assert_close(spoilt[i, :length], alone, **EXACT)
    assert outputs.isfinite().all()  # the third sequence is nothing but padding


@given(seeds, st.integers(0, T - 1), st.sampled_from(KINDS))
@settings(max_examples=20)
def test_the_future_does_not_change_the_past(seed, cut, kind):
    stack, x = encoder(seed, **kind), normal(seed, B, T, WIDTH)
    changed = torch.cat([x[:, :cut], normal(seed + 1, B, T - cut, WIDTH)], 1)
    before, after = (stack(y, is_causal=True) for y in (x, changed))
    torch.testing.assert_close(after[:, :cut], before[:, :cut], **EXACT)
    assert not torch.isclose(after[:, cut:], before[:, cut:]).all(-1).any()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("kind", [{}, {"erase": True}, {"gates": True, "scale": "1/sqrt(S)"}], ids=str)
def test_steps_and_extensions_give_the_causal_forward(kind, norm_first, batch_first):
    stack = encoder(norm_first=norm_first, batch_first=batch_first, **kind).eval()
    x, time = normal(1, B, 37, WIDTH), 1 if batch_first else 0
    inputs = x if batch_first else x.transpose(0, 1)
    output, state = stack.extend(inputs.narrow(time, 0, 11), stack.init_state(B))
    outputs = [output]
    for t in range(11, 20):
        output, state = stack.step(x[:, t], state)
        outputs.append(output.unsqueeze(time))
    output, state = stack.extend(inputs.narrow(time, 20, 17), state)
    torch.testing.assert_close(torch.cat([*outputs, output], time), stack(inputs, is_causal=True), **EXACT)
    assert [s.memory.shape for s in state] == [(B, H, WIDTH // H, WIDTH // H)] * 3
    alone, after = stack.layers[0].step(x[:, 0], stack.layers[0].init_state(B))
    torch.testing.assert_close(alone, stack.layers[0](inputs, is_causal=True).select(time, 0), **EXACT)
    assert after.tokens.tolist() == [1, 1]


def test_an_extension_leaves_padding_out():
    stack, x = encoder(erase=True), normal(1, B, T, WIDTH)
    padding = torch.arange(T) >= torch.tensor([[4], [7]])
    outputs, state = stack.extend(x, stack.init_state(B), padding)
    alone, expected = stack.extend(x[:1, :4], stack.init_state(1))
    torch.testing.assert_close(outputs[:1, :4], alone, **EXACT)
    for ours, theirs in zip(state, expected, strict=True):
        torch.testing.assert_close(ours.memory[:1], theirs.memory, **EXACT)
        assert ours.tokens.tolist() == [4, 7]


@pytest.mark.parametrize("words", [{"gates": True, "scale": "1/S", "backend": "loop"}, {"erase": True}], ids=str)
def test_the_layer_hands_its_words_to_its_attention(words):
    attention = layer(**words).self_attn
    assert {name: getattr(attention, name) for name in words} == words


def test_a_step_leaves_the_state_it_was_given():
    stack = encoder(erase=True)
    _, state = stack.step(normal(0, B, WIDTH), stack.init_state(B))
    before = [[part.clone() for part in each] for each in state]
    stack.step(normal(1, B, WIDTH), state)
    stack.extend(normal(2, B, T, WIDTH), state)
    assert all(torch.equal(a, b) for x, y in zip(state, before, strict=True) for a, b in zip(x, y, strict=True))


def test_the_encoder_copies_its_layer():
    one = layer()
    stack = NAMTransformerEncoder(one, 3)
    assert len({id(parameter) for parameter in [*stack.parameters(), *one.parameters()]}) == 4 * len(
        [*one.parameters()]
    )
    x = normal(1, B, T, WIDTH)
    torch.testing.assert_close(stack(x), one(one(one(x))), **EXACT)


def test_dropout_drops_in_training_only():
    stack, x = encoder(dropout=0.5), normal(1, B, T, WIDTH)
    assert not torch.allclose(stack(x), stack(x))
    stack.eval()
    assert torch.equal(stack(x), stack(x))
    assert {part.p for part in stack.modules() if isinstance(part, nn.Dropout)} == {0.5}


def test_dropout_drops_what_attention_adds_what_the_feed_forward_adds_and_the_hidden_layer():
    one, x = layer(norm_first=True), normal(1, B, T, WIDTH)
    attended = x + one.self_attn(one.norm1(x))
    one.dropout2.p = 1.0
    torch.testing.assert_close(one(x), attended, **EXACT)
    one.dropout1.p = 1.0
    torch.testing.assert_close(one(x), x, **EXACT)
    one.dropout2.p, one.dropout.p = 0.0, 1.0
    torch.testing.assert_close(one(x), x + one.linear2.bias, **EXACT)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_parameter_gets_a_gradient(kind):
    stack = encoder(**kind)
    (stack(normal(1, B, T, WIDTH), is_causal=True) * normal(2, B, T, WIDTH)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in stack.parameters())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_saved_encoder_loads_and_answers_the_same(kind):
    stack, other, x = encoder(0, **kind), encoder(1, **kind), normal(1, B, T, WIDTH)
    file = io.BytesIO()
    torch.save(stack.state_dict(), file)
    file.seek(0)
    assert not torch.allclose(other(x), stack(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), stack(x))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_autocast_runs_the_layer_in_bfloat16(kind):
    stack, x = encoder(**kind).float(), normal(1, B, T, WIDTH).float()
    expected, state = stack(x, is_causal=True), stack.init_state(B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = stack(x, is_causal=True)
        _, state = stack.step(x[:, 0], state)
    assert {s.memory.dtype for s in state} == {torch.float32}
    assert (outputs - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("erase", [False, True])
def test_the_encoder_compiles_whole_and_exports_and_streams_compiled(erase):
    stack, x = encoder(erase=erase, num_layers=2).eval(), normal(1, B, T, WIDTH)
    padding = torch.arange(T) >= torch.tensor([[4], [7]])
    expected = stack(x, None, padding, True)
    compiled = torch.compile(stack, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, causal_mask(T, torch.bool), padding, True), expected, **EXACT)
    exported = torch.export.export(stack, (x, None, padding, True))
    torch.testing.assert_close(exported.module()(x, None, padding, True), expected, **EXACT)
    step = torch.compile(stack.step, backend="eager", fullgraph=True)
    output, state = step(x[:, 0], stack.init_state(B))
    output, _ = step(x[:, 1], state)
    torch.testing.assert_close(output, stack(x, is_causal=True)[:, 1], **EXACT)


@pytest.mark.parametrize("erase", [False, True])
def test_an_exported_step_streams(erase):
    class Step(nn.Module):
        def __init__(self, stack: NAMTransformerEncoder) -> None:
            super().__init__()
            self.stack = stack

        def forward(self, src, state):
            return self.stack.step(src, state)

    stack, x = encoder(erase=erase, num_layers=2).eval(), normal(1, B, T, WIDTH)
    state = stack.init_state(B)
    exported = torch.export.export(Step(stack), (x[:, 0], state)).module()
    for t in range(T):
        output, state = exported(x[:, t], state)
    torch.testing.assert_close(output, stack(x, is_causal=True)[:, -1], **EXACT)


def test_an_exported_encoder_takes_other_lengths():
    stack = encoder(num_layers=2).eval()
    exported = torch.export.export(stack, (normal(0, B, T, WIDTH),), dynamic_shapes={"src": {1: torch.export.Dim("T")}})
    x = normal(1, B, 41, WIDTH)
    torch.testing.assert_close(exported.module()(x), stack(x), **EXACT)


def test_vmap_runs_an_ensemble_of_layers():
    members, x = [layer(i) for i in range(3)], normal(1, B, T, WIDTH)
    parameters, _ = torch.func.stack_module_state(members)
    for i, outputs in enumerate(torch.func.vmap(lambda p: torch.func.functional_call(members[0], p, (x,)))(parameters)):
        torch.testing.assert_close(outputs, members[i](x), **EXACT)


def test_the_settings_are_printed():
    assert "norm_first=True" in repr(layer(norm_first=True))


X = normal(0, B, T, WIDTH)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NAMTransformerEncoderLayer(15, 4), ValueError, "multiple of num_heads, got 15 and 4"),
        (lambda: layer(activation="swish"), ValueError, "must be one of relu, gelu, or a function, got 'swish'"),
        (lambda: layer()(X, torch.eye(T)), ValueError, r"Layer: .*None or the causal mask of shape \(7, 7\)"),
        (lambda: layer()(X, causal_mask(T + 1, torch.bool)), ValueError, r"got shape \(8, 8\)"),
        (lambda: layer()(X, ~causal_mask(T, torch.bool)), ValueError, "no scores to mask"),
        (lambda: layer()(X, ~causal_mask(T, torch.bool), None, True), ValueError, "no scores to mask"),
        (lambda: layer()(X, causal_mask(T, torch.float32) - 1), ValueError, "no scores to mask"),
        (
            lambda: layer()(X, causal_mask(T, torch.bool).int()),
            TypeError,
            "boolean or floating tensor, got torch.int32",
        ),
        (lambda: layer()(X, None, torch.zeros(T, B)), ValueError, r"key_padding_mask must have shape \(2, 7\)"),
        (lambda: encoder()(X, torch.eye(T).bool()), ValueError, "NAMTransformerEncoder: the attention mask"),
        (lambda: encoder()(X, None, torch.ones(B, T)), ValueError, "NAMTransformerEncoder: .*-inf at padding"),
        (lambda: encoder()(X[..., :4]), ValueError, r"src must have shape \(B, T, 15\), got \(2, 7, 4\)"),
        (lambda: layer(norm_first=True)(X[..., :4]), ValueError, "NAMTransformerEncoderLayer: src must have shape"),
        (lambda: layer(norm_first=True)(X.float()), TypeError, "src torch.float32, weights torch.float64"),
        (lambda: layer(norm_first=True)(X.to("meta")), ValueError, "src on meta, weights on cpu"),
        (lambda: layer()(None, causal_mask(T, torch.bool)), TypeError, "src must be a tensor, got NoneType"),
        (lambda: encoder()(X.float()), TypeError, "NAMTransformerEncoder: all must be of one dtype"),
        (
            lambda: encoder(norm_first=True).step(X[:, 0].float(), encoder().init_state(B)),
            TypeError,
            "step: all must be of one dtype, got src torch.float32",
        ),
        (lambda: encoder().step(X, encoder().init_state(B)), ValueError, r"src must have shape \(B, 15\)"),
        (lambda: layer().extend(X.float(), layer().init_state(B)), TypeError, "extend: all must be of one dtype"),
        (lambda: encoder().step(X[:, 0], encoder().init_state(B)[:2]), ValueError, r"for each of 3 layers.*got 2"),
        (lambda: NAMTransformerEncoder(nn.TransformerEncoderLayer(4, 2), 2), TypeError, "got TransformerEncoderLayer"),
        (lambda: NAMTransformerEncoder(layer(), 0), ValueError, "num_layers must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_used_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
