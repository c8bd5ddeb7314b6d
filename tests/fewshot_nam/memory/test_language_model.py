"""The language model: causal, the same in parts and by steps, and generation that is its own most probable continuation."""

import math

import pytest
import torch

from fewshot_nam.memory import NAMLanguageModel

F64 = torch.float64
V = 13


def model(**options) -> NAMLanguageModel:
    torch.manual_seed(0)
    return NAMLanguageModel(V, 12, 3, 2, dtype=F64, **options).eval()


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"erase": False, "conv_size": None, "gates": True}, {"max_erase": 2.0}])
def test_scores_depend_on_no_later_token_and_are_the_same_in_parts(options):
    net, x = model(**options), tokens(1, 2, 40)
    whole = net(x)
    assert whole.shape == (2, 40, V)
    torch.testing.assert_close(net(x[:, :17]), whole[:, :17])
    first, state = net.extend(x[:, :17], net.init_state(2))
    second, state = net.extend(x[:, 17:39], state)
    last, _ = net.step(x[:, 39], state)
    torch.testing.assert_close(torch.cat([first, second, last.unsqueeze(1)], dim=1), whole)


def test_padding_is_as_if_it_were_not_there():
    net, x = model(), tokens(1, 2, 9)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, :4] = True
    torch.testing.assert_close(net(x, padding)[0, 4:], net(x[:1, 4:])[0])
    torch.testing.assert_close(net(x, padding)[1], net(x[1:])[0])


def test_greedy_generation_is_the_argmax_of_the_whole_sequence_each_time():
    net, x = model(), tokens(2, 3, 5)
    found = net.generate(x, 12)
    for _ in range(12):
        x = torch.cat([x, net(x)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, x[:, 5:])
    assert not found.requires_grad
    assert net.generate(x, 0).shape == (3, 0)


def test_sampling_follows_the_scores_the_seed_and_top_k():
    net, x = model(), tokens(3, 1, 4).expand(4000, -1)

    def draw(**options) -> torch.Tensor:
        return net.generate(x, 1, generator=torch.Generator().manual_seed(0), **options)[:, 0]

    assert torch.equal(draw(temperature=0.7), draw(temperature=0.7))
    probabilities = (net(x[:1])[0, -1] / 0.7).softmax(-1)
    shares = torch.bincount(draw(temperature=0.7), minlength=V) / 4000
    error = (probabilities * (1 - probabilities) / 4000).sqrt()
    assert ((shares - probabilities).abs() < 5 * error).all()
    best = set(net(x[:1])[0, -1].topk(3).indices.tolist())
    for small in (1e-30, 1e-60):  # a sum of infinite scores is no number
        assert torch.equal(draw(temperature=small), draw(temperature=0.0))
    assert set(draw(temperature=5.0, top_k=3).tolist()) == best
    assert set(draw(temperature=5.0, top_k=1).tolist()) == {net(x[:1])[0, -1].argmax().item()}


def test_after_the_end_a_sequence_is_filled_with_it():
    net, x = model(), tokens(4, 64, 3)
    found = net.generate(x, 10, temperature=2.0, end=7, generator=torch.Generator().manual_seed(0))
    rows = (found == 7).any(1)
    assert rows.any()
    for row in found[rows]:
        assert (row[row.tolist().index(7) :] == 7).all()


def test_weights_are_tied_or_not_and_layers_start_differently():
    tied, free = model(), model(tie_weights=False)
    assert tied.output.weight is tied.embedding.weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == V * 12
    first, second = (layer.self_attn.in_proj.weight for layer in tied.encoder.layers)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net: net(torch.zeros(2, 3)), TypeError, "tokens must be an integer tensor .* got torch.float32"),
        (lambda net: net(tokens(0, 3)), ValueError, r"tokens must have shape \(B, T\), got \(3,\)"),
        (lambda net: net.step(tokens(0, 3, 1), net.init_state(3)), ValueError, r"must have shape \(B,\), got \(3, 1\)"),
        (lambda net: net.generate(tokens(0, 2, 0), 3), ValueError, "a prompt of at least one token"),
        (lambda net: net.generate(tokens(0, 2, 1), 3, top_k=0), ValueError, "top_k at least 1, got 0.0 and 0"),
        (lambda net: net.generate(tokens(0, 2, 1), 3, temperature=-1), ValueError, "temperature must be at least 0"),
        (
            lambda net: net.generate(tokens(0, 2, 1), 3, temperature=math.nan),
            ValueError,
            "temperature must be at least 0",
        ),
        (lambda net: NAMLanguageModel(0, 12, 3, 2), ValueError, "vocabulary must be at least 1, got 0"),
        (lambda net: NAMLanguageModel(5, 12, 3, 0), ValueError, "num_layers must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(model())
