"""STM, LSTM with attention, RMC and NTM against their equations."""

import pytest
import torch
from torch.nn import functional as F

from fewshot_nam.sequences import models, tasks

NAMES = ["stm", "alstm", "lstm-forward", "rmc", "ntm"]


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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rmc", {"heads": 3}, "heads must divide width"),
        ("rmc", {"slots": 17}, "slots must be from 1 to the width 16"),
        ("ntm", {"cells": 2}, "cells must be at least 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, options, message, task):
    with pytest.raises(ValueError, match=message):
        build(name, task, **options)
