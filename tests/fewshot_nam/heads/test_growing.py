"""Heads that grow class by class: what was derived is extended, and is that of a head taught everything at once."""

import copy

import pytest
import torch
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, CosineHead, Head, NAMHead, ProtoNetHead, ScoreNormHead, create
from fewshot_nam.heads import base as contract
from fewshot_nam.heads.growing_rows import GrowingRows
from fewshot_nam.heads.nam import head as nam

D = 7


def features(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


BASE = BaseStatistics.from_prototypes(features(98, 12))
IMAGES = BaseStatistics.from_features(features(96, 60), torch.arange(60) % 12)
HEADS = {
    "nam": NAMHead,
    "nam, small ridge": lambda: NAMHead(settings={"ridge": 0.05, "norm_exponent": 0.6}),
    "nam, centred": lambda: NAMHead(base=BaseStatistics.from_mean(BASE.mean)),
    "nam with base classes": lambda: NAMHead(base=BASE),
    "nam with base images": lambda: NAMHead(base=IMAGES),
    "nam over base classes": lambda: NAMHead(base=IMAGES).write_base(features(97, 5), list("vwxyz")),
    "score norm": lambda: ScoreNormHead(base=IMAGES),
    "cosine": lambda: CosineHead(power_norm=True, base=BASE),
    "protonet": ProtoNetHead,
}


@pytest.fixture
def learned_anew(monkeypatch):
    """Count how often each head derives all it knows anew."""
    counts: list[int] = []
    monkeypatch.setattr(nam, "_MANY", 8)
    for kind in (ScoreNormHead, CosineHead, ProtoNetHead):
        learn = kind._learn

        def counted(self: Head, support: contract.Support, learn=learn):
            counts.append(support.columns)
            return learn(self, support)

        monkeypatch.setattr(kind, "_learn", counted)
    return counts


@pytest.mark.parametrize("kind", HEADS)
def test_new_classes_extend_what_was_derived(kind, learned_anew):
    head, query = HEADS[kind](), features(2, 9)
    base = len(head.classes)
    lessons = [(features(10 + i, 1 + i % 3), f"class {i}") for i in range(20)]
    for rows, label in lessons[:12]:  # more features than dimensions
        head.write(rows, label)
    head(query)
    learned_anew.clear()
    for step in (13, 16, 20):
        for rows, label in lessons[len(head.classes) - base : step]:
            head.write(rows, label)
        found = head(query)
        taught = HEADS[kind]()
        for rows, label in lessons[:step]:
            taught.write(rows, label)
        assert max(learned_anew, default=0) < 12 + base, "only the new classes were learned"
        torch.testing.assert_close(found, taught(query), rtol=1e-9, atol=1e-9)
        learned_anew.clear()


@pytest.mark.parametrize("kind", HEADS)
def test_what_is_not_new_is_derived_anew(kind):
    query = features(2, 9)

    def taught() -> Head:
        return HEADS[kind]().write(features(1, 20), [i % 10 for i in range(20)])

    changes = [
        lambda head: head.write(features(3), 4),
        lambda head: head.write(features(3, 2), [4, 99]),
        lambda head: head.forget(7),
        lambda head: head.write(features(4, 2), [55, 55]),
        lambda head: head.write_base(features(5, 2), ["base 1", "base 2"]),
        lambda head: head.write(features(6), 56),
        lambda head: head.write(features(7, 80), range(100, 180)),
        lambda head: head.write(features(8), 57),
    ]
    head = taught()
    for number, change in enumerate(changes):
        head(query)
        change(head)
        fresh = taught()
        for earlier in changes[: number + 1]:
            earlier(fresh)
        torch.testing.assert_close(head(query), fresh(query), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", HEADS)
def test_snapshots_and_copies_keep_their_state_while_the_head_grows(kind):
    head, query = HEADS[kind]().write(features(1, 300), range(300)), features(2, 9)
    kept = [(head.snapshot(), head(query)), (copy.copy(head), head(query))]
    for step in range(4):
        head.write(features(20 + step), f"new {step}")
        kept.append((head.snapshot(), head(query)))
    kept[1][0].write(features(50), "another")  # it may not write where the head has grown
    assert torch.equal(head.support[300], features(20))
    for one, scores in [kept[0], *kept[2:]]:
        assert torch.equal(one(query), scores)
    assert head.state_dict()["support"].untyped_storage().nbytes() == 304 * D * 8, "no spare memory is saved"


def test_rows_grow_in_place_and_never_change_where_they_were_given():
    grown, rows = GrowingRows(), torch.empty(0, 2)
    given = []
    for i in range(700):
        rows = grown.append(rows, torch.full((1, 2), float(i)))
        given.append(rows)
    assert len({one.data_ptr() for one in given[300:]}) <= 5, "memory is allocated now and then"
    branch = grown.append(given[400], torch.full((2, 2), -1.0))
    assert all(torch.equal(one[:, 0], torch.arange(float(len(one)))) for one in given)
    assert branch[-3:, 0].tolist() == [400.0, -1.0, -1.0]


def test_growing_support_takes_no_part_in_a_graph():
    head = CosineHead(learn_scale=True).write(features(1, 300), range(300))
    loss = head(features(2, 4)).sum()
    head.write(features(3), "new")
    loss.backward()
    assert head.scale.grad.isfinite()


def test_a_copy_and_a_snapshot_keep_their_classes_while_the_head_learns_more():
    head = create("cosine").write(torch.eye(5)[:2], ["a", "b"])
    twin, served = copy.copy(head), head.snapshot()
    head.write(torch.eye(5)[2:4], ["c", "d"])
    twin.write(torch.eye(5)[4], "e")
    assert (head.classes, twin.classes, served.classes) == (["a", "b", "c", "d"], ["a", "b", "e"], ["a", "b"])
    assert head.forget("b").write(torch.eye(5)[1], "f").classes == ["a", "c", "d", "f"]
    assert head.predict(torch.eye(5)[:4]) == ["a", "f", "c", "d"]
    assert create("cosine").write(torch.eye(5)[:1], ["a"]).state_dict().keys() == served.state_dict().keys()
    loaded = create("cosine")
    loaded.load_state_dict(served.state_dict())
    assert loaded.classes == ["a", "b"]
