"""XLNet against its equations, query by query, and what the stream of queries does not see."""

import math

import pytest
import torch

from fewshot_nam.sequences import models, tasks


@pytest.fixture
def task():
    return tasks.create("copy")


def build(task, **options):
    torch.manual_seed(0)
    model = models.create("xlnet", task, "tiny", **options).double().eval()
    for parameter in model.parameters():  # biases begin at 0
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def wave(distance, width):
    """Return the sinusoids of one distance."""
    found = []
    for pair in range(width // 2):
        angle = distance * 10000.0 ** (-2 * pair / width)
        found += [math.sin(angle), math.cos(angle)]
    return torch.tensor(found, dtype=torch.float64)


def attended(layer, x, content, seen):
    """Return a layer's stream ``(T, d)``, a query at a time; ``seen(i)``: the keys that query ``i`` sees."""
    width, size = x.shape[1], x.shape[1] // layer.heads
    rows = []
    for i, row in enumerate(x):
        heads = []
        for head in range(layer.heads):
            part = slice(head * size, (head + 1) * size)
            query = layer.query(row)[part]
            scores = []
            for j in seen(i):
                key, place = layer.key(content[j])[part], layer.position(wave(i - j, width))[part]
                score = (query + layer.key_bias[head, 0]) @ key + (query + layer.position_bias[head, 0]) @ place
                scores.append(score / math.sqrt(size))
            weights = torch.stack(scores).softmax(0) if scores else []
            values = [weight * layer.value(content[j])[part] for weight, j in zip(weights, seen(i), strict=True)]
            heads.append(sum(values, torch.zeros(size, dtype=torch.float64)))
        found = layer.norms[0](row + layer.out(torch.cat(heads)))
        rows.append(layer.norms[1](found + layer.feedforward(found)))
    return torch.stack(rows)


@pytest.mark.parametrize("length", [1, 2, 6])
def test_it_equals_its_equations(task, length):
    model = build(task, layers=2)
    tokens = torch.randint(task.pad, (length,), generator=torch.Generator().manual_seed(1))
    content = model.embed(tokens)
    query = model.start.expand_as(content)
    for layer in model.layers:
        query, content = (
            attended(layer, query, content, lambda i: [j for j in range(length) if j != i]),
            attended(layer, content, content, lambda i: range(length)),
        )
    padded = torch.cat([tokens, torch.full((3,), task.pad)])  # padding is no key
    torch.testing.assert_close(model(padded[None])[0, :length], model.classify(query), rtol=0, atol=1e-12)


def test_in_one_layer_nothing_is_predicted_from_itself(task):
    model = build(task)
    tokens = task.sample(1, torch.Generator().manual_seed(0), 4).inputs
    other = tokens.clone()
    other[0, 2] = (tokens[0, 2] + 1) % 10
    moved = (model(tokens) - model(other)).abs().amax(dim=-1)[0]
    assert moved[2] == 0
    assert (moved[torch.arange(len(moved)) != 2] > 1e-6).all()


def test_a_width_that_heads_do_not_share_is_refused(task):
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 15 and 2"):
        build(task, width=15)
