"""A head with an open-set score: it answers as the inner head does and accepts by the score, and keeps the contract of heads."""

import pytest
import torch

from fewshot_nam.heads import BaseStatistics, create, open_scores
from fewshot_nam.heads.open_scores import OpenScoreHead

WIDTH = 9
SCORES = list(open_scores.available())


def rows(seed, *shape):
    return torch.rand(*shape, WIDTH, generator=torch.Generator().manual_seed(seed)) + 0.1


LABELS = torch.arange(12).repeat_interleave(6)
BASE = rows(0, 72) + rows(1, 12)[LABELS]


def made(score, head="cosine"):
    known = BaseStatistics.from_features(BASE, LABELS)
    return create(f"{head}+{score}", base=known).fit(BASE, LABELS)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("head", ["cosine", "nam", "protonet"])
def test_answers_and_gaps_are_those_of_the_inner_head(score, head):
    support, query = rows(2, 6, 2), rows(3, 20)
    labels = ["a", "b", "c", "d", "e", "f"]
    inner = create(head, base=BaseStatistics.from_features(BASE, LABELS))
    both = made(score, head)
    for each in (inner, both):
        each.write(support.flatten(0, 1), [label for label in labels for _ in range(2)])
    assert both.predict(query) == inner.predict(query)
    gaps = (both(query).diff(dim=-1), inner(query).double().diff(dim=-1))
    torch.testing.assert_close(*gaps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_episodes_equal_one_head_after_another_with_base_classes_too(score):
    support, query, base = rows(4, 3, 5, 2), rows(5, 3, 7), rows(6, 4)
    together = made(score).score_episodes(support, query, base)
    for i in range(3):
        head = made(score).write_base(base, ["w", "x", "y", "z"])
        head.write(support[i].flatten(0, 1), torch.arange(5).repeat_interleave(2))
        torch.testing.assert_close(together[i], head(query[i]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", SCORES)
def test_the_state_holds_what_was_fitted(score):
    head = made(score).write(rows(7, 3), ["a", "b", "c"])
    head.calibrate(rows(8, 20), target_fpr=0.1)
    loaded = create(f"cosine+{score}")
    loaded.load_state_dict(head.state_dict())
    assert torch.equal(loaded(rows(9, 5)), head(rows(9, 5)))
    assert loaded.predict(rows(9, 5), unknown="?") == head.predict(rows(9, 5), unknown="?")


def test_a_classs_answers_are_accepted_by_the_score():
    head = create("cosine+knn").write(torch.eye(3)[:2], ["cat", "dog"])
    head.threshold = -0.5
    assert head.predict(torch.tensor([[1.0, 0.1, 0.1], [0.1, 0.1, 1.0]]), unknown="?") == ["cat", "?"]


def test_a_small_gap_outlasts_a_large_score():
    head = made("rmds").write(BASE[:2] * torch.tensor([[1.0], [1.0001]]), ["a", "b"])
    scores = head(BASE[:1] * 100)
    inner = create("cosine").write(BASE[:2] * torch.tensor([[1.0], [1.0001]]), ["a", "b"])(BASE[:1] * 100)
    assert scores.abs().max() > 1e3
    assert scores.argmax() == inner.argmax()


def test_the_temperature_is_fitted_on_base_classes_unless_it_is_given():
    free, fixed = (open_scores.create("msp", temperature=t) for t in (None, 0.5))
    for score in (free, fixed):
        OpenScoreHead(create("cosine"), score).fit(BASE, LABELS)
    assert float(fixed.temperature) == 0.5
    assert 0 < float(free.temperature) < 0.5  # cosines of different classes differ by little: sharper than 1


def test_few_base_images_leave_the_temperature_alone():
    score = open_scores.create("msp")
    OpenScoreHead(create("cosine"), score).fit(BASE[::6], LABELS[::6])
    assert float(score.temperature) == 1


def test_a_score_that_needs_base_classes_says_so():
    with pytest.raises(ValueError, match=r"RMDSScore has to know base classes: call fit\(features, labels\)"):
        create("cosine+rmds").write(torch.eye(3), ["a", "b", "c"])(torch.eye(3))
    with pytest.raises(ValueError, match="knows classes already"):
        OpenScoreHead(create("cosine").write(torch.eye(3)[0], "a"), open_scores.create("knn"))
    with pytest.raises(ValueError, match="one label for each"):
        create("cosine+rmds").fit(BASE, LABELS[:3])
    with pytest.raises(ValueError, match="features"):
        create("cosine+rmds").fit(BASE * torch.nan, LABELS)


def test_forgetting_leaves_a_head_that_never_saw_the_class():
    head = made("fdbd").write(rows(10, 4), ["a", "b", "c", "d"]).forget("b")
    fresh = made("fdbd").write(rows(10, 4)[[0, 2, 3]], ["a", "c", "d"])
    torch.testing.assert_close(head(rows(11, 5)), fresh(rows(11, 5)))
