"""The study of kept classes: what a deployment draws, and curves and points by hand."""

import pytest
import torch

from episodes import FeatureBank
from episodes.evaluation.kept_classes import (
    RULES,
    SHARES,
    Answers,
    KeptClassesStudy,
    answers,
    at_equal_base_accuracy,
    curve,
    first_images,
    point,
)


def bank(seed, classes, images, means):
    generator = torch.Generator().manual_seed(seed)
    features = means.repeat_interleave(images, dim=0) + 0.3 * torch.randn(len(classes) * images, 8, generator=generator)
    return FeatureBank(features, torch.arange(len(classes)).repeat_interleave(images), classes)


@pytest.fixture
def study():
    means = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    base, new = ["a", "b", "c"], ["x", "y", "z"]
    return KeptClassesStudy(
        pool=bank(1, base, 40, means[:3]),
        queries=bank(2, base, 10, means[:3]),
        new=bank(3, new, 12, means[3:6]),
        class_weights=means[[6, 0, 1, 2, 7]],
        kept=["p", "a", "b", "c", "q"],
        base_images=60,
        shots=3,
        classes=2,
        deployments=2,
    )


def test_a_deployment_has_other_images_for_every_part(study):
    drawn = study.drawn(1)
    assert drawn.base_images.shape == (60, 8)
    assert drawn.support.shape == (2, 3, 8)
    assert drawn.new_queries.shape == (2, 9, 8)
    assert torch.equal(drawn.base_targets, 1 + study.queries.labels)
    assert torch.equal(study.drawn(1).support, drawn.support)
    assert not torch.equal(study.drawn(0).support, drawn.support)
    images = torch.cat([drawn.support.flatten(0, 1), drawn.new_queries.flatten(0, 1)])
    assert len(images.unique(dim=0)) == 24
    of_pool = KeptClassesStudy(**{**study.__dict__, "queries": None, "base_queries": 20}).drawn(0)
    assert len(torch.cat([of_pool.base_images, of_pool.base_queries]).unique(dim=0)) == 80


@pytest.mark.parametrize("rule", RULES)
def test_answers_are_those_of_the_head(study, rule):
    drawn = study.drawn(0)
    found = answers(RULES[rule](drawn.base_images), drawn, study.class_weights)
    head = RULES[rule](drawn.base_images)
    head.write_base(study.class_weights + head.mean, range(5))
    assert torch.equal(found.before, head(drawn.base_queries).argmax(1) == drawn.base_targets)
    head.write(drawn.support.flatten(0, 1), [5, 5, 5, 6, 6, 6])
    base, new = head(drawn.base_queries).argmax(1), head(drawn.new_queries.flatten(0, 1)).argmax(1)
    right = new == torch.tensor([5, 6]).repeat_interleave(9)
    expected = [(base == drawn.base_targets).double().mean(), right.double().mean(), (base > 4).double().mean()]
    assert found.at(0.0).tolist() == pytest.approx([float(one) for one in expected])
    assert (found.reported == found.reported) == (rule == "kept")
    half = found.at(found.offset_at(0.5))
    assert half[2] == pytest.approx(0.5)
    assert found.new_accuracy_at(half[0]) >= half[1]


def test_curves_and_points_by_hand():
    yes, no = True, False
    found = Answers(
        before=torch.tensor([yes, yes, yes, no]),
        base_right=torch.tensor([yes, yes, yes, no]),
        base_gap=torch.tensor([0.4, 0.1, -0.2, 0.3]),
        new_right=torch.tensor([yes, no]),
        new_gap=torch.tensor([0.05, -1.0]),
        reported=0.25,
    )
    assert found.at(0.0).tolist() == [0.5, 0.0, 0.25]
    assert found.at(0.2).tolist() == [0.25, 0.5, 0.5]
    assert float(found.new_accuracy_at(0.5)) == 0.5  # up to an offset of 0.1
    assert float(found.new_accuracy_at(0.75)) == 0.0
    assert torch.isnan(found.new_accuracy_at(0.8))
    by_itself = point([found, found])
    means = {name: None if one is None else one["mean"] for name, one in by_itself.items()}
    assert means == {"before": 0.75, "base": 0.5, "new": 0.0, "taken": 0.25, "reported": 0.25}
    assert point([found._replace(reported=torch.nan)])["reported"] is None
    rows = curve([found])
    assert [row["taken"] for row in rows] == list(SHARES)
    assert (rows[0]["base"]["mean"], rows[-1]["base"]["mean"]) == (0.75, 0.25)
    better = found._replace(new_gap=torch.tensor([-0.1, -1.0]))
    assert at_equal_base_accuracy([better], [found])["mean"] == pytest.approx(0.0)
    assert at_equal_base_accuracy([better], [found._replace(new_gap=torch.tensor([0.5, 0.5]))])["mean"] == 0.5


def test_the_first_images_are_fixed(study):
    drawn = first_images(study, base=2, new_queries=4)
    assert torch.equal(drawn.base_queries, study.pool.features[[0, 1, 40, 41, 80, 81]])
    assert torch.equal(drawn.base_images, study.pool.features[[2, 3, 42, 43, 82, 83]])
    assert drawn.base_targets.tolist() == [1, 1, 2, 2, 3, 3]
    assert torch.equal(drawn.support[1], study.new.features[12:15])
    assert torch.equal(drawn.new_queries[1], study.new.features[15:19])


def test_classes_on_the_wrong_side_are_refused(study):
    settings = study.__dict__
    with pytest.raises(ValueError, match="'a' is a class of base images, and not kept"):
        KeptClassesStudy(**{**settings, "kept": ["p", "o", "b", "c", "q"]})
    with pytest.raises(ValueError, match="'x' is kept, and to be learned too"):
        KeptClassesStudy(**{**settings, "kept": ["x", "a", "b", "c", "q"]})
