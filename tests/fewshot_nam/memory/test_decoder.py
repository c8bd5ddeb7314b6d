"""The decoder layer against its equations, inside torch's decoder, by steps, and over padding."""

import pytest
import torch
from torch import Tensor, nn

from fewshot_nam.memory import NAMCrossAttention, NAMTransformerDecoderLayer, read, unit, write

F64 = torch.float64
E, H = 12, 3
OPTIONS = {
    "plain": {},
    "gates": {"gates": True, "output_norm": True},
    "erase": {"erase": True, "gates": True, "max_erase": 2.0},
    "erase alone": {"erase": True, "output_norm": True},
}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def built(kind, *sizes: int, **options):
    torch.manual_seed(0)
    module = kind(*sizes, batch_first=True, dtype=F64, **options).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def layer(**options) -> NAMTransformerDecoderLayer:
    return built(NAMTransformerDecoderLayer, E, H, 20, **options)


def as_equations(attention: NAMCrossAttention, x: Tensor, source: Tensor) -> Tensor:
    """Return the outputs for one sequence ``(T, E)`` and one source ``(S, E)``, token by token."""
    memory = [torch.zeros(E // H, E // H, dtype=F64) for _ in range(H)]
    for token in source:
        k, v = attention.source_proj(token).view(2, H, -1)
        gates = []
        if attention.source_gate_proj is not None:
            gates = list(attention.source_gate_proj(token).sigmoid().view(-1, H))
        p_erase = attention.max_erase * gates.pop() if attention.erase else torch.zeros(H, dtype=F64)
        p_write = gates[0] if attention.gates else torch.ones(H, dtype=F64)
        for head in range(H):
            memory[head] = write(memory[head], unit(k[head]), v[head], p_write[head], p_erase[head])
    outputs = []
    for token in x:
        q = attention.query_proj(token).view(H, -1)
        p_read = attention.read_gate_proj(token).sigmoid() if attention.gates else torch.ones(H, dtype=F64)
        found = [read(memory[head], unit(q[head]), p_read[head]) for head in range(H)]
        if attention.output_norm is not None:
            found = [
                f / (f.square().mean() + torch.finfo(torch.float32).eps).sqrt() * attention.output_norm.weight
                for f in found
            ]
        outputs.append(attention.out_proj(torch.cat(found)))
    return torch.stack(outputs)


@pytest.mark.parametrize("name", OPTIONS)
def test_cross_attention_is_its_equations_with_all_gradients(name):
    attention = built(NAMCrossAttention, E, H, **OPTIONS[name])
    x, source = normal(1, 2, 5, E).requires_grad_(), normal(2, 2, 38, E).requires_grad_()
    padding = torch.zeros(2, 38, dtype=torch.bool)
    padding[0, 30:] = True
    expected = torch.stack([as_equations(attention, x[0], source[0, :30]), as_equations(attention, x[1], source[1])])
    outputs = attention(x, attention.write(source, padding))
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    leaves, weights = [x, source, *attention.parameters()], normal(3, *outputs.shape)
    found = torch.autograd.grad((outputs * weights).sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), leaves), rtol=1e-9, atol=1e-9)
    by_token = torch.stack([attention(token, attention.write(source, padding)) for token in x.unbind(1)], dim=1)
    torch.testing.assert_close(by_token, outputs)
    other = NAMCrossAttention(E, H, dtype=F64, **OPTIONS[name]).eval()
    other.load_state_dict(attention.state_dict())
    swapped = other(x.transpose(0, 1), other.write(source.transpose(0, 1), padding))
    torch.testing.assert_close(swapped.transpose(0, 1), outputs)


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_layer_is_self_attention_cross_attention_and_feed_forward(norm_first):
    module, x, source = layer(norm_first=norm_first, erase=True), normal(1, 2, 6, E), normal(2, 2, 7, E)
    cross = module.cross_attn
    written = cross.write(source)
    parts = [
        (module.norm1, lambda y: module.self_attn(y, is_causal=True)),
        (module.norm2, lambda y: cross(y, written)),
        (module.norm3, lambda y: module.linear2(module.linear1(y).relu())),
    ]
    expected = x
    for norm, part in parts:
        expected = expected + part(norm(expected)) if norm_first else norm(expected + part(expected))
    torch.testing.assert_close(module(x, source, tgt_is_causal=True), expected)


def test_it_works_inside_the_decoder_of_torch_with_its_causal_mask():
    module, x, source = layer(), normal(1, 2, 6, E), normal(2, 2, 7, E)
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=F64)
    decoder = nn.TransformerDecoder(module, 2).eval()
    found = decoder(x, source, tgt_mask=mask)
    expected = x
    for each in decoder.layers:
        expected = each(expected, source, tgt_is_causal=True)
    torch.testing.assert_close(found, expected)


def test_steps_and_parts_are_the_whole_over_padding_that_may_be_nan():
    module = layer(conv_size=3, erase=True, gates=True)
    x, source = normal(1, 2, 9, E), normal(2, 2, 7, E)
    padding, source_padding = torch.zeros(2, 9, dtype=torch.bool), torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 2:4] = source_padding[1, :3] = True
    x[0, 2:4] = source[1, :3] = float("nan")
    whole = module(x, source, tgt_key_padding_mask=padding, memory_key_padding_mask=source_padding, tgt_is_causal=True)
    state = module.init_state(source, source_padding)
    first, state = module.extend(x[:, :8], state, padding[:, :8])
    last, state = module.step(x[:, 8], state)
    keep = ~padding
    torch.testing.assert_close(torch.cat([first, last.unsqueeze(1)], dim=1)[keep], whole[keep])
    alone = module(x[:1, keep[0]], source[:1], tgt_is_causal=True)
    torch.testing.assert_close(whole[0, keep[0]], alone[0])
    torch.testing.assert_close(whole[1:], module(x[1:], source[1:, 3:], tgt_is_causal=True))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: m(x, x, memory_mask=torch.zeros(4, 4)), ValueError, "memory_mask must be None"),
        (lambda m, x: m(x, x, memory_is_causal=True), ValueError, "memory_is_causal False"),
        (lambda m, x: m(x, x[:1], tgt_is_causal=True), ValueError, r"memory must have shape \(2, 3, 4, 4\), got \(1,"),
        (lambda m, x: m(x, x[0]), ValueError, r"source must have shape \(B, S, 12\), got \(4, 12\)"),
        (lambda m, x: m(x[0], x), ValueError, r"tgt must have shape \(B, T, E\), got \(4, 12\)"),
        (lambda m, x: m(x.float(), x), TypeError, "one dtype, got tgt torch.float32"),
        (lambda m, x: m.cross_attn.write(x.float()), TypeError, "one dtype, got source torch.float32"),
        (lambda m, x: m(x, x, tgt_mask=torch.ones(4, 4, dtype=F64)), ValueError, "no scores to mask"),
        (lambda m, x: layer(activation="swish"), ValueError, "activation must be one of relu, gelu"),
        (lambda m, x: layer(max_erase=2.0), ValueError, "max_erase belongs to erase=True"),
        (lambda m, x: layer(backend="typo"), ValueError, "backend must be one of auto"),
        (lambda m, x: NAMCrossAttention(5, 2), ValueError, "embed_dim must be a positive multiple of num_heads"),
        (lambda m, x: NAMCrossAttention(6, 2, max_erase=2.0), ValueError, "NAMCrossAttention: max_erase belongs to"),
        (lambda m, x: NAMCrossAttention(6, 2, backend="x"), ValueError, "NAMCrossAttention: backend must be one of"),
    ],
)
def test_what_does_not_fit_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(layer(), normal(0, 2, 4, E))
