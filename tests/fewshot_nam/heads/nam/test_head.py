"""The NAM head: the paper's rule against a loop of writes, the joint write, and erasing from base classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, CosineHead, NAMHead
from fewshot_nam.memory import read, unit, write, write_block

seeds = st.integers(0, 2**31)
ALONE = {"prototype_weight": 0.0, "log_partition_penalty": 0.0}  # the joint write alone


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds)
def test_the_literal_rule_makes_the_last_feature_read_its_class(seed):
    rows = normal(seed, 4, 6) * torch.tensor([0.1, 1.0, 30.0, 2.0], dtype=torch.float64).unsqueeze(-1)
    for n in range(1, 5):
        head = NAMHead("sequential").write(rows[:n], list(range(n)))
        y = torch.eye(n, dtype=torch.float64)[n - 1]
        torch.testing.assert_close(head.memory @ rows[n - 1], y, rtol=1e-9, atol=1e-9)  # W x = y
        torch.testing.assert_close(head(rows[n - 1]), y, rtol=1e-9, atol=1e-9)


@given(seeds, st.booleans(), st.sampled_from([(1.0, 1.0), (0.8, 0.5), (1.0, 0.0)]))
def test_sequential_mode_equals_writes_in_a_loop(seed, with_base, gates):
    rows, base = normal(seed, 5, 6), normal(seed + 1, 2, 6)
    head = NAMHead("sequential", keys="shots", p_write=gates[0], p_erase=gates[1])
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
    head = NAMHead("sequential").write(rows, labels)
    memory = torch.zeros(2, 6, dtype=torch.float64)
    for column, prototype in enumerate([(rows[0] + rows[3]) / 2, (rows[1] + rows[2]) / 2]):
        memory = write(memory, unit(prototype), torch.eye(2, dtype=torch.float64)[column] / prototype.norm())
    torch.testing.assert_close(head.memory, memory, rtol=1e-9, atol=1e-9)


def test_a_class_written_from_a_short_feature_scores_higher_only_with_raw_reading():
    rows = torch.eye(3, dtype=torch.float64)[:2] * torch.tensor([[0.1], [1.0]], dtype=torch.float64)
    query = torch.ones(3, dtype=torch.float64)
    raw, same = (
        NAMHead("sequential", reading=reading).write(rows, ["short", "long"])(query) for reading in ("raw", "unit")
    )
    torch.testing.assert_close(raw, torch.tensor([10.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(same[0], same[1])


@given(seeds, st.booleans())
def test_block_mode_without_ridge_reads_every_shot_back(seed, with_base):
    rows, labels = normal(seed, 6, 9), ["a", "b", "c", "c", "b", "a"]
    head = NAMHead("block", ridge=0.0, **ALONE)
    if with_base:
        head.write_base(normal(seed + 1, 4, 9), ["w", "x", "y", "z"])
    scores = head.write(rows, labels)(rows)
    expected = torch.tensor([[float(name == label) for name in head.classes] for label in labels], dtype=torch.float64)
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)


@given(seeds)
def test_novel_keys_are_erased_from_base_weights_and_nothing_else_is(seed):
    base, novel = normal(seed, 3, 8), normal(seed + 1, 2, 8)
    head = NAMHead("block", ridge=0.0, **ALONE).write_base(base, ["x", "y", "z"])
    before = head.memory
    after = head.write(novel, ["a", "b"]).memory[:3]
    torch.testing.assert_close(after @ unit(novel).mT, torch.zeros(3, 2, dtype=torch.float64), rtol=1e-7, atol=1e-7)
    spanned = torch.linalg.qr(novel.mT).Q
    away = normal(seed + 2, 8)
    away = away - spanned @ (spanned.mT @ away)
    torch.testing.assert_close(after @ away, before @ away, rtol=1e-7, atol=1e-7)


@given(seeds)
def test_parallel_mode_erases_every_key_against_the_same_base_weights(seed):
    base, novel = normal(seed, 3, 8), normal(seed + 1, 2, 8)
    head = NAMHead("parallel", p_write=0.9, p_erase=0.4).write_base(base, ["x", "y", "z"]).write(novel, ["a", "b"])
    rows, keys = unit(base), unit(novel)
    erased = rows - 0.4 * sum(torch.outer(read(rows, key), key) for key in keys)
    torch.testing.assert_close(head.memory, torch.cat([erased, 0.9 * keys]), rtol=1e-9, atol=1e-9)


@given(seeds)
def test_parallel_mode_into_an_empty_memory_is_a_cosine_classifier(seed):
    rows, labels, query = normal(seed, 6, 8), ["a", "b", "c"] * 2, normal(seed + 1, 5, 8)
    nam, cosine = NAMHead("parallel").write(rows, labels), CosineHead().write(rows, labels)
    torch.testing.assert_close(nam(query), cosine(query), rtol=1e-9, atol=1e-9)


@given(seeds)
def test_a_growing_ridge_turns_block_mode_into_outer_products(seed):
    rows, labels, query = normal(seed, 6, 8), ["a", "b", "c"] * 2, normal(seed + 1, 5, 8)
    block = NAMHead("block", ridge=1e7, **ALONE).write(rows, labels)(query) * 1e7
    plain = NAMHead("parallel", keys="shots").write(rows, labels)(query)
    torch.testing.assert_close(block, plain, rtol=1e-4, atol=1e-4)


@given(seeds, st.booleans())
def test_the_prototype_memory_adds_a_cosine_read(seed, with_base):
    rows, labels, query, base = normal(seed, 6, 8), ["a", "b", "c"] * 2, normal(seed + 1, 5, 8), normal(seed + 2, 2, 8)
    alone = NAMHead(**ALONE, base_write="erased")
    both = NAMHead(prototype_weight=0.7, norm_exponent=0.0, log_partition_penalty=0.0, base_write="erased")
    cosine = CosineHead()
    for head in (alone, both, cosine):
        if with_base:
            head.write_base(base, ["x", "y"])
        head.write(rows, labels)
    torch.testing.assert_close(both(query), alone(query) + 0.7 * cosine(query), rtol=1e-9, atol=1e-9)


@given(seeds, st.floats(0, 1))
def test_the_norm_exponent_makes_classes_read_alike_over_their_own_shots(seed, exponent):
    rows, labels = normal(seed, 9, 8) + 1, ["a", "b", "c"] * 3
    both, alone = (
        NAMHead(prototype_weight=p, norm_exponent=exponent, log_partition_penalty=0.0).write(rows, labels)(rows)
        for p in (1.0, 0.0)
    )
    for column, name in enumerate("abc"):
        own = [i for i, label in enumerate(labels) if label == name]
        length = unit(rows[own]).mean(0).norm()
        torch.testing.assert_close((both - alone)[own, column].mean(), length ** (1 - exponent), rtol=1e-9, atol=1e-9)


@given(seeds, st.floats(0, 1), st.floats(0.02, 2))
def test_the_log_partition_penalty_keeps_ranks_and_probabilities_and_ends_at_log_probabilities(
    seed, share, temperature
):
    rows, labels, query = normal(seed, 6, 8), ["a", "b", "c"] * 2, normal(seed + 1, 5, 8)
    settings = {"log_partition_penalty": share, "temperature": temperature}
    for usual, penalised in (
        (NAMHead(log_partition_penalty=0.0), NAMHead(**settings)),
        (CosineHead(), CosineHead(**settings)),
    ):
        scores, changed = usual.write(rows, labels)(query), penalised.write(rows, labels)(query)
        torch.testing.assert_close(changed.softmax(-1), scores.softmax(-1), rtol=1e-9, atol=1e-9)
        expected = (1 - share) * scores + share * temperature * (scores / temperature).log_softmax(-1)
        torch.testing.assert_close(changed, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mode", ["block", "sequential", "parallel"])
def test_centring_equals_centring_by_hand(mode):
    rows, query, mean = normal(1, 4, 8), normal(2, 5, 8), normal(3, 8)
    centred = NAMHead(mode, base=BaseStatistics.from_mean(mean)).write(rows, list("abcd"))(query)
    torch.testing.assert_close(centred, NAMHead(mode).write(rows - mean, list("abcd"))(query - mean))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "blok"}, "mode must be one of block, sequential, parallel, got 'blok'"),
        ({"keys": "shot"}, "keys must be one of"),
        ({"reading": "rew"}, "reading must be one of"),
        ({"p_erase": 1.5}, "p_erase must be from 0 to 1, got 1.5"),
        ({"p_write": float("nan")}, "p_write must be from 0 to 1"),
        ({"ridge": -0.1}, "ridge must be at least 0"),
        ({"prototype_weight": -1.0}, "prototype_weight must be at least 0"),
        ({"log_partition_penalty": 1.1}, "log_partition_penalty must be from 0 to 1"),
        ({"norm_exponent": -0.1}, "norm_exponent must be from 0 to 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NAMHead(**settings)


def test_repeated_features_without_ridge_are_refused_with_advice():
    head = NAMHead("block", ridge=0.0).write(torch.ones(2, 4), ["a", "b"])
    with pytest.raises(ValueError, match=r"linearly dependent.*pass ridge > 0"):
        head(torch.ones(4))


@given(seeds, st.integers(1, 9), st.floats(0.01, 3))
def test_base_classes_written_jointly_are_written_as_if_all_pairs_came_at_once(seed, base_classes, ridge):
    base, rows, labels = normal(seed, base_classes, 8), normal(seed + 1, 6, 8), ["a", "b", "c"] * 2
    names = [f"base {i}" for i in range(base_classes)]
    head = NAMHead(**ALONE | {"ridge": ridge}).write_base(base, names).write(rows, labels)
    keys = torch.cat([unit(base), unit(rows)])
    columns = torch.tensor([head.classes.index(name) for name in [*names, *labels]])
    values = torch.nn.functional.one_hot(columns, base_classes + 3).double()
    at_once = write_block(torch.zeros(base_classes + 3, 8, dtype=torch.float64), keys, values, 1.0, 0.0, ridge)
    torch.testing.assert_close(head.memory, at_once, rtol=1e-7, atol=1e-9)


def test_with_base_classes_written_jointly_the_prototype_memory_uses_base_class_attention():
    base, rows, query = (normal(seed, 12 if seed == 1 else 4, 8).abs() for seed in (1, 2, 3))
    head = (
        NAMHead(prototype_weight=2.0, log_partition_penalty=0.0, norm_exponent=0.0, ridge=1e6)
        .write_base(base, list(range(12)))
        .write(rows, list("abcd"))
    )
    centre = 0.7 * base.sqrt().mean(0)
    normalised = [unit(features.sqrt() - centre) for features in (base, rows, query)]
    attended = torch.softmax(30 * normalised[1] @ normalised[0].T, dim=-1) @ normalised[0]
    novel = 1.3 * unit(normalised[1] + 0.3 * attended)
    expected = 2 * normalised[2] @ torch.cat([normalised[0], novel]).T
    torch.testing.assert_close(
        head(query), expected, rtol=1e-4, atol=1e-4
    )  # the ridge leaves the other memory next to nothing


@pytest.mark.parametrize("settings", [{"mode": "sequential"}, {"reading": "raw"}, {"ridge": 0.0}])
def test_a_joint_write_of_base_classes_is_refused_where_it_is_not_possible(settings):
    with pytest.raises(ValueError, match="base_write='joint' takes mode='block'"):
        NAMHead(base_write="joint", **settings)
    assert NAMHead(**settings).base_write == "erased"


@given(seeds, st.floats(0.01, 3), st.floats(0, 1))
def test_more_shots_than_features_are_wide_are_written_as_a_block(seed, ridge, p_write):
    rows, labels = normal(seed, 14, 5), [f"class {i % 4}" for i in range(14)]
    head = NAMHead(**ALONE, ridge=ridge, p_write=p_write).write(rows, labels)
    values = torch.nn.functional.one_hot(torch.arange(14) % 4).double()
    expected = write_block(torch.zeros(4, 5, dtype=torch.float64), unit(rows), values, p_write, 0.0, ridge)
    torch.testing.assert_close(head.memory, expected, rtol=1e-8, atol=1e-10)
