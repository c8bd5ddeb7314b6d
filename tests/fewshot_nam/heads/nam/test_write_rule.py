"""The paper's rule: against a loop of writes, W x = y, and what it erases from base classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, CosineHead, NAMHead, WriteRuleHead
from fewshot_nam.memory import read, unit, write

seeds = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds)
def test_the_literal_rule_makes_the_last_feature_read_its_class(seed):
    rows = normal(seed, 4, 6) * torch.tensor([0.1, 1.0, 30.0, 2.0], dtype=torch.float64).unsqueeze(-1)
    for n in range(1, 5):
        head = WriteRuleHead("sequential").write(rows[:n], list(range(n)))
        y = torch.eye(n, dtype=torch.float64)[n - 1]
        torch.testing.assert_close(head.memory @ rows[n - 1], y, rtol=1e-9, atol=1e-9)  # W x = y
        torch.testing.assert_close(head(rows[n - 1]), y, rtol=1e-9, atol=1e-9)


@given(seeds, st.booleans(), st.sampled_from([(1.0, 1.0), (0.8, 0.5), (1.0, 0.0)]))
def test_sequential_mode_equals_writes_in_a_loop(seed, with_base, gates):
    rows, base = normal(seed, 5, 6), normal(seed + 1, 2, 6)
    head = WriteRuleHead("sequential", keys="shots", p_write=gates[0], p_erase=gates[1])
    if with_base:
        head.write_base(base, ["x", "y"])
    labels = ["a", "b", "a", "c", "b"]
    head.write(rows, labels)
    memory = torch.zeros(len(head.classes), 6, dtype=torch.float64)
    if with_base:
        memory[:2] = base / base.norm(dim=-1, keepdim=True) ** 2  # what the rule writes for them into an empty memory
    for row, label in zip(rows, labels, strict=True):
        y = torch.eye(len(head.classes), dtype=torch.float64)[head.classes.index(label)]
        memory = write(memory, unit(row), y / row.norm(), *gates)
    torch.testing.assert_close(head.memory, memory, rtol=1e-9, atol=1e-9)


@given(seeds)
def test_prototypes_are_written_in_the_order_of_their_classes(seed):
    rows, labels = normal(seed, 4, 6), ["a", "b", "b", "a"]
    head = WriteRuleHead("sequential").write(rows, labels)
    memory = torch.zeros(2, 6, dtype=torch.float64)
    for column, prototype in enumerate([(rows[0] + rows[3]) / 2, (rows[1] + rows[2]) / 2]):
        memory = write(memory, unit(prototype), torch.eye(2, dtype=torch.float64)[column] / prototype.norm())
    torch.testing.assert_close(head.memory, memory, rtol=1e-9, atol=1e-9)


def test_a_class_written_from_a_short_feature_scores_higher_only_with_raw_reading():
    rows = torch.eye(3, dtype=torch.float64)[:2] * torch.tensor([[0.1], [1.0]], dtype=torch.float64)
    query = torch.ones(3, dtype=torch.float64)
    raw, same = (
        WriteRuleHead("sequential", reading=reading).write(rows, ["short", "long"])(query)
        for reading in ("raw", "unit")
    )
    torch.testing.assert_close(raw, torch.tensor([10.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(same[0], same[1])


@given(seeds)
def test_parallel_mode_erases_every_key_against_the_same_base_weights(seed):
    base, novel = normal(seed, 3, 8), normal(seed + 1, 2, 8)
    head = WriteRuleHead("parallel", p_write=0.9, p_erase=0.4)
    head.write_base(base, ["x", "y", "z"]).write(novel, ["a", "b"])
    rows, keys = unit(base), unit(novel)
    erased = rows - 0.4 * sum(torch.outer(read(rows, key), key) for key in keys)
    torch.testing.assert_close(head.memory, torch.cat([erased, 0.9 * keys]), rtol=1e-9, atol=1e-9)


@given(seeds)
def test_parallel_mode_into_an_empty_memory_is_a_cosine_classifier(seed):
    rows, labels, query = normal(seed, 6, 8), ["a", "b", "c"] * 2, normal(seed + 1, 5, 8)
    nam, cosine = WriteRuleHead("parallel").write(rows, labels), CosineHead().write(rows, labels)
    torch.testing.assert_close(nam(query), cosine(query), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_centring_equals_centring_by_hand(mode):
    rows, query, mean = normal(1, 4, 8), normal(2, 5, 8), normal(3, 8)
    centred = WriteRuleHead(mode, base=BaseStatistics.from_mean(mean)).write(rows, list("abcd"))(query)
    torch.testing.assert_close(centred, WriteRuleHead(mode).write(rows - mean, list("abcd"))(query - mean))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "block"}, "mode must be one of sequential, parallel, got 'block'"),
        ({"keys": "shot"}, "keys must be one of"),
        ({"reading": "rew"}, "reading must be one of"),
        ({"p_erase": 1.5}, "p_erase must be from 0 to 1, got 1.5"),
        ({"p_write": float("nan")}, "p_write must be from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WriteRuleHead(**settings)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_the_modes_of_the_first_nam_head_still_work_with_a_warning(mode):
    rows, labels, query = normal(1, 6, 8), ["a", "b", "c"] * 2, normal(2, 5, 8)
    with pytest.warns(DeprecationWarning, match=f"use WriteRuleHead\\('{mode}'\\)"):
        old = NAMHead(mode, p_erase=0.5)
    assert torch.equal(old.write(rows, labels)(query), WriteRuleHead(mode, p_erase=0.5).write(rows, labels)(query))
