"""STM, MANN, LSTM with attention, RMC, NTM, DNC, TPR-RNN and the linear Transformer against their equations."""

import pytest
import torch
from torch.nn import functional as F

from fewshot_nam.sequences import models, tasks

NAMES = ["stm", "mann", "alstm", "lstm-forward", "rmc", "ntm", "dnc", "tpr-rnn", "linear-transformer"]


@pytest.fixture(scope="module")
def task():
    return tasks.create("reverse")


def build(name, task, **options):
    torch.manual_seed(0)
    return models.create(name, task, "tiny", **options).double().eval()


def tokens(task, count=3, length=5):
    return task.sample(count, torch.Generator().manual_seed(0), length).inputs


@pytest.mark.parametrize("name", NAMES)
def test_these_models_read_forward(name, task):
    model, inputs = build(name, task), tokens(task)
    changed = inputs.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 10
    torch.testing.assert_close(model(inputs)[:, :6], model(changed)[:, :6])
    assert not torch.allclose(model(inputs)[:, 6:], model(changed)[:, 6:])


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_the_stm_model_passes_its_options_on(preset, task):
    model = build("stm", task, preset=preset, gates=False, alphas=(1.0, 0.0, 0.0))
    assert (model.stm.preset, model.stm.gates, model.stm.alphas) == (preset, False, [1.0, 0.0, 0.0])
    x = model.project(model.embed(tokens(task)))
    torch.testing.assert_close(model(tokens(task)), model.classify(model.stm(x)[0]))


def test_the_stm_model_reads_vectors_as_they_come(task):
    vectors = tasks.create("nth_farthest", vectors=3, dimensions=2)
    model = build("stm", vectors, direct=True)
    inputs = vectors.sample(4, torch.Generator().manual_seed(0), 3).inputs.double()
    assert model.stm.input_size == vectors.input_size
    torch.testing.assert_close(model(inputs), model.classify(model.stm(inputs)[0]))
    with pytest.raises(ValueError, match="direct=True is for tasks with vectors"):
        build("stm", task, direct=True)


def test_mann_is_its_equations(task):
    model, inputs = build("mann", task), tokens(task, 1)
    item = model.item
    for place, x in enumerate(model.project(model.embed(inputs))[0]):
        a, b = model.first(x), model.second(x)
        rows = torch.stack([model.memory_gates(row.tanh()) for row in item]) + model.input_gates(a)
        enter, keep = rows[:, : len(a)].sigmoid(), (rows[:, len(a) :] + 1).sigmoid()
        item = enter * torch.outer(a, a).tanh() + keep * item
        expected = model.classify(model.output(item.T @ b))
        torch.testing.assert_close(model(inputs)[0, place], expected)


def test_alstm_attends_to_itself_and_earlier_steps(task):
    model, inputs = build("alstm", task), tokens(task, 1)
    hidden = model.recurrent(model.embed(inputs))[0][0]
    for place in range(len(hidden)):
        scores = torch.stack([hidden[place] @ model.score.weight.T @ hidden[earlier] for earlier in range(place + 1)])
        context = (scores.softmax(0).unsqueeze(1) * hidden[: place + 1]).sum(0)
        expected = model.classify(torch.tanh(model.join.weight @ torch.cat([context, hidden[place]])))
        torch.testing.assert_close(model(inputs)[0, place], expected)


def test_rmc_is_its_equations(task):
    model, inputs = build("rmc", task), tokens(task, 1)
    width, heads = model.embed.weight.shape[1], model.heads
    size = width // heads
    memory = torch.eye(model.slots, width).double()
    for place, x in enumerate(model.project(model.embed(inputs))[0]):
        both = torch.cat([memory, x.unsqueeze(0)])
        q = model.query(memory)
        k, v = model.key_value(both).split(width, dim=-1)
        parts = []
        for head in range(heads):
            of = slice(head * size, (head + 1) * size)
            parts.append(((q[:, of] @ k[:, of].T) / size**0.5).softmax(-1) @ v[:, of])
        new = F.layer_norm(memory + model.combine(torch.cat(parts, dim=1)), (width,))
        new = F.layer_norm(new + model.mlp(new), (width,))
        gates = model.input_gates(x) + model.memory_gates(torch.tanh(memory))
        memory = gates[:, :width].sigmoid() * new.tanh() + (gates[:, width:] + 1).sigmoid() * memory
        torch.testing.assert_close(model(inputs)[0, place], model.classify(memory.flatten()))


def address(model, controls, memory, weights):
    """Return the weights of a head by section 3.3 of the NTM paper, cell by cell."""
    size = model.cell
    key, strength, gate, sharpness = controls[:size].tanh(), *(controls[size + i] for i in (0, 1, 5))
    shifts = controls[size + 2 : size + 5].softmax(0)
    content = torch.stack([F.softplus(strength) * F.cosine_similarity(key, cell, dim=0) for cell in memory]).softmax(0)
    mixed = gate.sigmoid() * content + (1 - gate.sigmoid()) * weights
    count = len(memory)
    moved = [sum(shifts[shift + 1] * mixed[(cell - shift) % count] for shift in (-1, 0, 1)) for cell in range(count)]
    sharp = torch.stack(moved) ** (1 + F.softplus(sharpness))
    return sharp / sharp.sum()


def test_ntm_is_its_equations(task):
    model, inputs = build("ntm", task), tokens(task, 1)
    with torch.no_grad():
        model.address.weight.mul_(5)  # heads that move and sharpen
    memory, read = model.memory, model.first_read
    writer = reader = F.one_hot(torch.tensor(0), model.cells).double()
    state = (torch.zeros(1, model.controller.hidden_size).double(),) * 2
    for place, x in enumerate(model.embed(inputs)[0]):
        state = model.controller(torch.cat([x, read]).unsqueeze(0), state)
        hidden = state[0][0]
        of_writer, of_reader = model.address(hidden).chunk(2)
        erase, add = model.write(hidden).chunk(2)
        writer = address(model, of_writer, memory, writer)
        memory = memory * (1 - torch.outer(writer, erase.sigmoid())) + torch.outer(writer, add.tanh())
        reader = address(model, of_reader, memory, reader)
        read = reader @ memory
        torch.testing.assert_close(
            model(inputs)[0, place], model.classify(torch.cat([hidden, read])), rtol=1e-6, atol=1e-8
        )


def content(memory, key, strength):
    similar = torch.stack(
        [F.cosine_similarity(key, cell, dim=0, eps=1e-12) if cell.any() else key.sum() * 0 for cell in memory]
    )
    return ((1 + F.softplus(strength)) * similar).softmax(0)


def test_dnc_is_its_equations(task):
    """The methods of the paper, cell by cell; the small constant in usage is within the tolerance."""
    model, inputs = build("dnc", task), tokens(task, 1)
    with torch.no_grad():
        model.read_controls.weight.mul_(5)
        model.write_controls.weight.mul_(5)
    count, size, heads = model.cells, model.cell, model.heads
    memory = torch.zeros(count, size).double()
    usage, precedence, write = (torch.zeros(count).double() for _ in range(3))
    links, readers = torch.zeros(count, count).double(), torch.zeros(heads, count).double()
    reads = torch.zeros(heads * size).double()
    state = (torch.zeros(1, model.controller.hidden_size).double(),) * 2
    for place, x in enumerate(model.embed(inputs)[0]):
        state = model.controller(torch.cat([x, reads]).unsqueeze(0), state)
        hidden = state[0][0]
        controls = model.read_controls(hidden).chunk(heads)
        key, strength, erase, add, allocates, writes = model.write_controls(hidden).split([size, 1, size, size, 1, 1])
        retention = torch.ones(count).double()
        for reader, of_reader in zip(readers, controls, strict=True):
            retention = retention * (1 - of_reader[size + 1].sigmoid() * reader)
        usage = (usage + write - usage * write) * retention
        least = sorted(range(count), key=lambda cell: float(usage[cell].detach()))
        allocation, so_far = [None] * count, torch.ones(()).double()
        for cell in least:
            allocation[cell] = (1 - usage[cell]) * so_far
            so_far = so_far * usage[cell]
        gate = allocates.sigmoid()
        write = writes.sigmoid() * (gate * torch.stack(allocation) + (1 - gate) * content(memory, key, strength))
        memory = memory * (1 - torch.outer(write, erase.sigmoid())) + torch.outer(write, add)
        new = torch.zeros_like(links)
        for i in range(count):
            for j in range(count):
                if i != j:
                    new[i, j] = (1 - write[i] - write[j]) * links[i, j] + write[i] * precedence[j]
        links, precedence = new, (1 - write.sum()) * precedence + write
        moved = []
        for reader, of_reader in zip(readers, controls, strict=True):
            back, stay, forward = of_reader[size + 2 :].softmax(0)
            by_content = content(memory, of_reader[:size], of_reader[size])
            moved.append(back * (links.T @ reader) + stay * by_content + forward * (links @ reader))
        readers = torch.stack(moved)
        reads = (readers @ memory).flatten()
        expected = model.classify(torch.cat([hidden, reads]))
        torch.testing.assert_close(model(inputs)[0, place], expected, rtol=1e-4, atol=1e-4)


def test_allocation_takes_the_least_used_cells_first():
    from fewshot_nam.sequences.models.dnc import _allocation

    found = _allocation(torch.tensor([[1.0, 0.0, 0.5], [0.5, 0.25, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.0], [0.125, 0.75, 0.0]]), rtol=1e-4, atol=1e-5)


def test_tpr_rnn_is_its_equations(task):
    model, inputs = build("tpr-rnn", task), tokens(task, 1)
    memory = torch.zeros(model.entity, model.relation, model.entity).double()

    def look_up(entity, relation):
        return torch.einsum("i,j,ijk->k", entity, relation, memory)

    def outer(a, b, c):
        return torch.einsum("i,j,k->ijk", a, b, c)

    for place, x in enumerate(model.embed(inputs)[0]):
        first, second, asked = (net(x) for net in model.entities)
        r_1, r_2, r_3, *reads = (net(x) for net in model.relations)
        bound, moved, back = look_up(first, r_1), look_up(first, r_2), look_up(second, r_3)
        change = outer(first, r_1, second - bound) + outer(first, r_2, bound - moved) + outer(second, r_3, first - back)
        memory = memory + change
        found = []
        for relation in reads:
            asked = F.layer_norm(look_up(asked, relation), (model.entity,))
            found.append(asked)
        torch.testing.assert_close(model(inputs)[0, place], model.classify(sum(found)))


@pytest.mark.parametrize("causal", [True, False])
def test_the_linear_transformer_is_its_equation(causal, task):
    model = build("linear-transformer", task, causal=causal)
    batch = task.sample(2, torch.Generator().manual_seed(0), (2, 5))
    layer, mask = model.layers[0], batch.inputs != task.pad
    x = torch.randn(*batch.inputs.shape, 16, dtype=torch.float64)
    found = layer(x, mask)
    for row in range(2):
        length = int(mask[row].sum())
        one = x[row, :length]
        q, k, v = (part.reshape(length, 2, 8) for part in layer.project(layer.norms[0](one)).split(16, dim=-1))
        phi_q, phi_k = (torch.where(part > 0, part + 1, part.exp()) for part in (q, k))
        attended = []
        for place in range(length):
            until = place + 1 if causal else length
            for head in range(2):
                weights = phi_k[:until, head] @ phi_q[place, head]
                attended.append((weights.unsqueeze(1) * v[:until, head]).sum(0) / (weights.sum() + 1e-6))
        middle = one + layer.combine(torch.stack(attended).reshape(length, 16))
        expected = middle + layer.narrow(F.gelu(layer.widen(layer.norms[1](middle))))
        torch.testing.assert_close(found[row, :length], expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rmc", {"heads": 3}, "heads must divide width"),
        ("rmc", {"slots": 17}, "slots must be from 1 to the width 16"),
        ("ntm", {"cells": 2}, "cells must be at least 3"),
        ("dnc", {"heads": 0}, "must be at least 1, got 6, 4 and 0"),
        ("linear-transformer", {"heads": 3}, "heads must divide width"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, options, message, task):
    with pytest.raises(ValueError, match=message):
        build(name, task, **options)


@pytest.mark.parametrize("name", ["stm", "alstm"])
def test_logits_are_right_where_they_are_asked_for(name, task):
    model, inputs = build(name, task), tokens(task)
    asked = torch.zeros_like(inputs, dtype=torch.bool)
    asked[0, 3] = asked[1, 7] = True
    torch.testing.assert_close(model(inputs, asked)[asked], model(inputs)[asked])


class Stories(tasks.SequenceTask):
    """Words in sentences, without data."""

    vocabulary = ("mary", "went", "home", "where", ".", "?", "pad")


def test_stm_over_sentences_is_its_equations():
    model = build("stm-sentences", Stories())
    words = [[0, 1, 2, 4], [2, 0, 4], [3, 0, 5]]  # two sentences and a question
    inputs = torch.tensor([[word for sentence in words for word in sentence] + [6, 6]])
    with torch.no_grad():
        model.places.normal_()
    sentences = torch.stack([sum(model.places[i] * model.embed.weight[w] for i, w in enumerate(s)) for s in words])
    _, state = model.stm(sentences[:2].unsqueeze(0), output_steps=torch.zeros(2, dtype=torch.bool))
    relational, question = state.relational[0], sentences[2]
    found, total = model.entity(question), 0
    for relation, norm in zip(model.relations, model.norms, strict=True):
        found = norm(torch.einsum("n,e,nef->f", relation(question), found, relational))
        total = total + found
    torch.testing.assert_close(model(inputs)[0, 9], model.classify(total))
    # Padding, other sequences of the batch and what is not asked for change nothing.
    other = torch.tensor([[3, 2, 1, 5, 0, 1, 4, 3, 0, 2, 1, 5]])
    batch = torch.cat([inputs, other])
    asked = torch.zeros_like(batch, dtype=torch.bool)
    asked[0, 9] = asked[1, 11] = True
    torch.testing.assert_close(model(batch, asked)[asked], model(batch)[asked])
    torch.testing.assert_close(model(batch)[0, 9], model.classify(total))
    torch.testing.assert_close(model(inputs[:, :10])[0, 9], model.classify(total))


def test_stm_over_sentences_takes_tokens_without_sentences_one_by_one():
    task = tasks.create("associative_retrieval", pairs=4)
    model, inputs = build("stm-sentences", task), tokens(task, length=4)
    _, state = model.stm(model.embed(inputs)[:, :4], output_steps=torch.zeros(4, dtype=torch.bool))
    expected = model.classify(model._answer(model.embed(inputs)[:, 4], state))
    torch.testing.assert_close(model(inputs)[:, 4], expected)
