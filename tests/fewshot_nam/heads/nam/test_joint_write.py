"""The joint write: its theorem, every form of it against the inverse, and classes added one by one."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot_nam.heads.nam.joint_write import GrowingMemory, joint_write
from fewshot_nam.memory import unit, write_block

seeds = st.integers(0, 2**31)


def keys(seed: int, *shape: int) -> Tensor:
    return unit(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3)


def by_inverse(means: Tensor, every: Tensor, ridge: float) -> Tensor:
    metric = torch.linalg.inv(ridge * torch.eye(every.shape[-1], dtype=every.dtype) + every.mT @ every)
    rows = means @ metric
    return rows / (rows * means).sum(-1, keepdim=True)


@given(seeds, st.integers(1, 4), st.integers(1, 4), st.sampled_from([0, 3, 11]), st.floats(0.01, 200))
def test_every_form_is_that_of_the_inverse_and_every_class_reads_one_for_itself(seed, novel, shots, base, ridge):
    width = 6  # below and above the number of novel keys and of base keys
    added, known = keys(seed, 3, novel * shots, width), keys(seed + 1, base, width)
    means = unit(added.view(3, novel, shots, width).mean(2))
    weights = joint_write(means, added, known, ridge)
    for episode in range(3):
        classes, every = torch.cat([known, means[episode]]), torch.cat([known, added[episode]])
        torch.testing.assert_close(weights[episode], by_inverse(classes, every, ridge), rtol=1e-6, atol=1e-6)
        reads = (weights[episode] * classes).sum(-1)
        torch.testing.assert_close(reads, torch.ones_like(reads))


@given(seeds)
def test_one_key_a_class_and_a_small_ridge_read_nothing_for_other_classes(seed):
    added = keys(seed, 1, 4, 9)
    reads = joint_write(added, added, added[0, :0], 1e-9) @ added.mT
    torch.testing.assert_close(reads, torch.eye(4).double()[None], atol=1e-5, rtol=0)


@given(seeds)
def test_a_large_ridge_writes_prototypes(seed):
    added = keys(seed, 2, 4, 9)
    torch.testing.assert_close(joint_write(added, added, added[0, :0], 1e9), added, rtol=1e-6, atol=1e-6)


@given(seeds, st.floats(0.05, 20))
def test_it_is_write_block_with_each_class_divided_by_its_read(seed, ridge):
    added = keys(seed, 1, 4, 9)
    values = torch.eye(4, dtype=torch.float64)
    block = write_block(torch.zeros(1, 4, 9, dtype=torch.float64), added, values[None], 1.0, 0.0, ridge)
    reads = (block * added).sum(-1, keepdim=True)
    torch.testing.assert_close(joint_write(added, added, added[0, :0], ridge), block / reads)


def test_a_class_whose_shots_cancel_out_reads_nothing():
    added = keys(1, 1, 3, 5)
    means = torch.cat([torch.zeros(1, 1, 5, dtype=torch.float64), added[:, 2:]], dim=1)
    every = torch.cat([added[:, :1], -added[:, :1], added[:, 2:]], dim=1)
    assert torch.equal(joint_write(means, every, added[0, :0], 1.0)[0, 0], torch.zeros(5).double())


@given(seeds, st.lists(st.integers(1, 3), min_size=1, max_size=6), st.floats(0.1, 100))
def test_classes_added_one_by_one_make_the_same_memory(seed, steps, ridge):
    every, query = keys(seed, 2 * (5 + sum(steps)), 7), keys(seed + 1, 4, 7)
    means = unit(every.view(-1, 2, 7).mean(1))
    count = 5
    memory = GrowingMemory.of(means[:count], every[: 2 * count], ridge)
    for more in steps:
        after = count + more
        memory = memory.with_classes(means[:count], means[count:after], every[2 * count : 2 * after])
        count = after
    assert memory.written == len(every)
    expected = joint_write(means[None], every[None], every[:0], ridge)[0]
    torch.testing.assert_close(memory.weights(means), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(memory.read(query, means), query @ expected.mT, rtol=1e-8, atol=1e-8)
