"""Features of the same image given twice, against a comparison of all pairs."""

import pytest
import torch

from fewshot_nam.heads import create
from fewshot_nam.heads.duplicates import TOLERANCE, distinct, first_equal, first_of_equal_bits


def test_the_first_that_is_the_same_is_found_and_near_ones_are_not():
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(40, 9, generator=generator).relu() + 0.01
    noise = torch.nn.functional.normalize(torch.randn(40, 9, generator=generator), dim=1) * others.norm(
        dim=1, keepdim=True
    )
    rows = torch.cat([others + 0.9 * TOLERANCE * noise, others + 1.2 * TOLERANCE * noise, others * -1])
    others = torch.cat([others, others])
    gaps = torch.cdist(rows.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist")
    same = gaps <= TOLERANCE * rows.double().norm(dim=1, keepdim=True)
    expected = torch.where(same.any(1), same.int().argmax(1), -1)
    assert first_equal(rows, others).tolist() == expected.tolist()
    assert expected[:40].tolist() == list(range(40))
    assert (expected[80:] == -1).all()


def test_nothing_is_the_same_as_nothing():
    rows = torch.rand(3, 4)
    assert first_equal(rows, rows[:0]).tolist() == [-1, -1, -1]
    assert first_equal(rows[:0], rows).tolist() == []
    assert distinct(torch.cat([rows, rows[:1]])).tolist() == [True, True, True, False]


def test_a_head_knows_as_what_an_image_was_learned_also_after_forgetting():
    rows = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) + 0.1
    head = create("nam").write(rows, ["a", "b", "b", "c"]).forget("a")
    assert head.learned_before(rows * (1 + 1e-6)) == [None, "b", "b", "c"]
    assert head.write(rows[0], "d").learned_before(rows[:1]) == ["d"]


def test_many_pairs_are_compared_in_parts(monkeypatch):
    monkeypatch.setattr("fewshot_nam.heads.duplicates._PAIRS", 64)  # and one whole comparison at a time
    rows = torch.rand(3, 4, generator=torch.Generator().manual_seed(2))[torch.arange(30) % 3]
    assert first_equal(rows, rows).tolist() == [0, 1, 2] * 10
    assert first_equal(torch.zeros(2, 4), rows).tolist() == [-1, -1]
    assert first_equal(torch.zeros(2, 4), torch.zeros(2, 4)).tolist() == [0, 0]


@pytest.mark.parametrize("spread", [1e-5, 3e-5, 1e-4])
def test_many_features_that_are_nearly_alike_are_compared_whole(spread):
    """Two thousand that agree in what is looked at first took a minute: with the square of their number, a pair at a time."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(1, 40, generator=generator) + spread * torch.randn(300, 40, generator=generator)
    rows = rows[torch.randint(300, (300,), generator=generator)]
    exact = rows.double()
    same = torch.linalg.vector_norm(exact[:, None] - exact, dim=-1) <= TOLERANCE * exact.norm(dim=-1, keepdim=True)
    assert first_equal(rows, rows).tolist() == same.int().argmax(dim=1).tolist()
    many = torch.randn(1, 640, generator=generator) + 1e-4 * torch.randn(3000, 640, generator=generator)
    assert distinct(many).sum() > 1000


def test_one_image_many_times_does_not_take_time_with_its_square():
    rows = torch.rand(3, 6, generator=torch.Generator().manual_seed(2))[torch.arange(60_000) % 3]  # 1.2e9 pairs
    rows[7] += 1
    found = first_equal(rows, rows)
    assert found[:10].tolist() == [0, 1, 2, 0, 1, 2, 0, 7, 2, 0]
    assert found[-3:].tolist() == [0, 1, 2]
    assert first_equal(rows[5:], rows[2:])[:4].tolist() == [0, 1, 5, 0]
    assert first_of_equal_bits(rows).nonzero().flatten().tolist() == [0, 1, 2, 7]
