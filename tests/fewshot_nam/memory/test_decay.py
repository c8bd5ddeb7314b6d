"""Decay: the loop against its equation, the chunks against the loop, masks, packing, steps; layers whose memory fades."""

import pytest
import torch

from fewshot_nam.memory import (
    NAMAttention,
    NAMLanguageModel,
    NAMTransformerDecoderLayer,
    NAMTransformerEncoderLayer,
    memory_scan,
    memory_step,
    read,
    unit,
    write,
)

NAMES = ["q", "k", "v", "p_read", "p_write", "p_erase", "initial_memory", "decay"]
DECAYS = ["random", "with-zeros", "zero", "one", "near-one"]


def sequence(batch=2, length=11, heads=3, d_k=5, d_v=7, decay="random", dtype=torch.float64, seed=0):
    """Return the arguments of a scan by name, all of them tensors that need gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform():
        return torch.rand(batch, length, heads, generator=generator, dtype=torch.float64)

    q, k = (unit(normal(batch, length, heads, d_k)) for _ in range(2))
    factor = {
        "random": uniform(),
        "with-zeros": uniform() * uniform().round(),
        "zero": torch.zeros(batch, length, heads),
        "one": torch.ones(batch, length, heads),
        "near-one": 1 - 1e-3 * uniform(),
    }[decay]
    tensors = [
        *(q, k, normal(batch, length, heads, d_v), uniform(), uniform(), uniform()),
        *(normal(batch, heads, d_v, d_k), factor),
    ]
    return {n: t.to(dtype).contiguous().requires_grad_() for n, t in zip(NAMES, tensors, strict=True)}


def run(arguments, **options):
    arguments = {**arguments, **options}
    q, k, v = (arguments.pop(name) for name in "qkv")
    return memory_scan(q, k, v, **arguments)


def everything(arguments, **options):
    """Return reads, the memory, and the gradients of all arguments."""
    reads, memory = run(arguments, **options)
    value = (reads * (reads + 0.3).cos()).sum() + (memory * memory.sin()).sum()
    inputs = [tensor for name, tensor in arguments.items() if name not in options]
    return reads, memory, *torch.autograd.grad(value, inputs)


def test_the_loop_forgets_then_writes_then_reads():
    a = sequence()
    reads, memory = run(a, backend="loop")
    for b in range(2):
        for h in range(3):
            m = a["initial_memory"][b, h]
            for t in range(11):
                kept = a["decay"][b, t, h] * m
                m = write(kept, a["k"][b, t, h], a["v"][b, t, h], a["p_write"][b, t, h], a["p_erase"][b, t, h])
                torch.testing.assert_close(reads[b, t, h], read(m, a["q"][b, t, h], a["p_read"][b, t, h]))
            torch.testing.assert_close(memory[b, h], m)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("backend", ["auto", "chunk", "chunk-autograd"])
@pytest.mark.parametrize("options", [{}, {"p_erase": 0.0}], ids=["erase", "no-erase"])
def test_chunks_equal_the_loop_in_values_and_gradients(backend, decay, options):
    a = sequence(length=37, decay=decay)
    found, expected = (everything(a, backend=way, chunk_size=8, **options) for way in (backend, "loop"))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("factor", [1.0, None])
def test_a_decay_of_1_is_none(factor):
    a = sequence(length=21)
    del a["decay"]
    for ours, theirs in zip(everything(a), run(a, decay=factor), strict=False):
        torch.testing.assert_close(ours, theirs)


def test_a_decay_of_0_leaves_only_the_own_write():
    a = sequence(decay="zero")
    alone = a["v"] * (a["p_write"] * (a["k"] * a["q"]).sum(-1) * a["p_read"]).unsqueeze(-1)
    torch.testing.assert_close(run(a)[0], alone)


def test_padding_neither_writes_nor_forgets():
    a = sequence(length=9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, [0, 4, 8]] = False
    reads, memory = run(a, mask=mask)
    short = {name: t[:1, mask[0]] if name != "initial_memory" else t[:1] for name, t in a.items()}
    alone, last = run(short)
    torch.testing.assert_close(reads[:1, mask[0]], alone)
    torch.testing.assert_close(memory[:1], last)
    assert not reads[0, ~mask[0]].any()


def test_packed_sequences_are_scanned_each_on_its_own():
    lengths = [5, 0, 9, 1]
    a = sequence(batch=1, length=sum(lengths))
    a["initial_memory"] = torch.randn(len(lengths), 3, 7, 5, dtype=torch.float64)
    reads, memory = run(a, cu_seqlens=[0, 5, 5, 14, 15])
    start = 0
    for number, length in enumerate(lengths):
        part = {name: t[:, start : start + length] for name, t in a.items() if name != "initial_memory"}
        alone, last = run(part, initial_memory=a["initial_memory"][number : number + 1])
        torch.testing.assert_close(reads[:, start : start + length], alone)
        torch.testing.assert_close(memory[number : number + 1], last)
        start += length


def test_steps_equal_the_scan():
    a = sequence()
    reads, memory = run(a)
    state = a["initial_memory"]
    for t in range(11):
        now = {name: tensor[:, t] for name, tensor in a.items() if name != "initial_memory"}
        one, state = memory_step(state, **now)
        torch.testing.assert_close(one, reads[:, t])
    torch.testing.assert_close(state, memory)


def test_float32_is_near_float64_over_a_long_sequence():
    a = sequence(1, 1024, 2, 16, 16, decay="near-one")
    exact = everything(a)
    single = {name: t.detach().float().requires_grad_() for name, t in a.items()}
    for ours, theirs in zip(everything(single), exact, strict=True):
        assert (ours - theirs).abs().max() <= 5e-6 * theirs.abs().max()


def test_a_second_derivative_is_right():
    a = sequence(1, 5, 1, 2, 2)
    assert torch.autograd.gradgradcheck(lambda *args: run(dict(zip(NAMES, args, strict=True)))[0], tuple(a.values()))


def test_a_decay_of_another_shape_or_kind_is_refused():
    a = sequence()
    with pytest.raises(ValueError, match=r"memory_scan: decay must have shape \(2, 11, 3\), got \(3,\)"):
        run(a, decay=torch.ones(3).double())
    with pytest.raises(TypeError, match="memory_scan: decay must be None, a number or a tensor, got str"):
        run(a, decay="slow")
    with pytest.raises(ValueError, match="memory_step: decay must be finite"):
        memory_step(torch.zeros(1, 2, 2), *torch.zeros(3, 1, 2), decay=float("nan"))


def attention(decay, **options):
    torch.manual_seed(0)
    module = NAMAttention(12, 3, decay=decay, batch_first=True, dtype=torch.float64, **options)
    if module.decay_bias is not None:
        torch.nn.init.normal_(module.decay_bias)  # away from 1, so that it counts
    return module


LAYERS = {
    "plain": {},
    "gated-erase": {"erase": True, "gates": True},
    "convolution": {"conv_size": 3},
    "two-writes": {"erase": True, "writes_per_token": 2},
}


@pytest.mark.parametrize("decay", ["head", "token"])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_an_attention_with_decay_streams_and_skips_padding(decay, options):
    module = attention(decay, **options)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    outputs = module(x, is_causal=True)
    state, found = module.init_state(2), []
    for token in x.unbind(1):
        output, state = module.step(token, state)
        found.append(output)
    torch.testing.assert_close(torch.stack(found, dim=1), outputs)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 2:4] = True
    padded = module(x, padding, is_causal=True)
    torch.testing.assert_close(padded[:1, ~padding[0]], module(x[:1, ~padding[0]], is_causal=True))
    assert not torch.allclose(outputs, attention(None, **options)(x, is_causal=True))


def test_an_attention_fades_as_its_equation_says():
    module = attention("token")
    x = torch.randn(1, 5, 12, dtype=torch.float64)
    q, k, v = module.in_proj(x).unflatten(-1, (3, 3, 4)).unbind(2)
    factor = (x @ module.decay_proj.weight.T + module.decay_bias).sigmoid()
    memory, reads = torch.zeros(3, 4, 4, dtype=torch.float64), []
    for t in range(5):
        memory = factor[0, t, :, None, None] * memory + v[0, t, :, :, None] * unit(k[0, t])[:, None, :]
        reads.append((memory @ unit(q[0, t]).unsqueeze(-1)).flatten())
    torch.testing.assert_close(module(x, is_causal=True)[0], module.out_proj(torch.stack(reads)))
    # Not causal: every token reads the last memory.
    last = torch.stack([(memory @ unit(q[0, t]).unsqueeze(-1)).flatten() for t in range(5)])
    torch.testing.assert_close(module(x)[0], module.out_proj(last))


def test_factors_begin_as_in_retnet_and_learn():
    module = NAMAttention(12, 3, decay="head", batch_first=True)
    torch.testing.assert_close(module.decay_bias.sigmoid(), 1 - 2.0 ** -torch.tensor([5.0, 6.0, 7.0]))
    module(torch.randn(2, 5, 12), is_causal=True).square().sum().backward()
    assert bool((module.decay_bias.grad != 0).all())


def test_layers_and_the_language_model_pass_decay_on():
    layer = NAMTransformerEncoderLayer(12, 3, decay="head")
    decoder = NAMTransformerDecoderLayer(12, 3, decay="token")
    model = NAMLanguageModel(7, 12, 3, 1, decay="token").eval()
    assert (layer.self_attn.decay, decoder.self_attn.decay) == ("head", "token")
    assert model.encoder.layers[0].self_attn.decay == "token"
    prompt = torch.tensor([[1, 2, 3]])
    best = model(prompt)[:, -1].argmax(-1, keepdim=True)
    torch.testing.assert_close(model.generate(prompt, steps=1), best)


def test_an_unknown_decay_and_a_decay_with_a_scale_are_refused():
    with pytest.raises(ValueError, match=r'NAMAttention: decay must be None, "head" or "token", got 0\.9'):
        NAMAttention(12, 3, decay=0.9)
    with pytest.raises(ValueError, match="scale belongs to decay=None"):
        NAMAttention(12, 3, decay="head", scale="1/S")
