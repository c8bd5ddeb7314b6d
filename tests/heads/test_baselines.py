"""The heads that NAM is compared with, against their definitions and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestCentroid

from fewshot_nam.heads import CosineHead, LogisticHead, NearestHead, ProtoNetHead, RidgeHead
from fewshot_nam.memory import unit

LABELS = ["a", "b", "c", "a", "b", "c", "a"]


def rows_and_query() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(7, 9, generator=generator).double(), torch.rand(13, 9, generator=generator).double()


def test_cosine_scores_are_cosines_to_mean_directions():
    rows, query = rows_and_query()
    scores = CosineHead(scale=3.0).write(rows, LABELS)(query)
    for column, name in enumerate("abc"):
        members = [unit(row) for row, label in zip(rows, LABELS, strict=True) if label == name]
        expected = 3 * torch.cosine_similarity(query, torch.stack(members).mean(0), dim=-1)
        torch.testing.assert_close(scores[:, column], expected)


def test_a_learned_scale_is_a_parameter_that_gets_a_gradient():
    rows, query = rows_and_query()
    head = CosineHead(scale=2.0, learn_scale=True).write(rows, LABELS)
    torch.nn.functional.cross_entropy(head(query), torch.zeros(13, dtype=torch.long)).backward()
    assert [name for name, _ in head.named_parameters()] == ["scale"]
    assert head.scale.grad.abs() > 0
    with torch.no_grad():
        head.scale.mul_(2)
    torch.testing.assert_close(head(query).detach(), CosineHead(scale=4.0).write(rows, LABELS)(query))


def test_protonet_scores_are_minus_squared_distances():
    rows, query = rows_and_query()
    head = ProtoNetHead().write(rows, LABELS)
    means = torch.stack([rows[[i for i, label in enumerate(LABELS) if label == name]].mean(0) for name in "abc"])
    torch.testing.assert_close(head(query), -torch.cdist(query, means).square())
    model = NearestCentroid().fit(rows.numpy(), LABELS)
    assert head.predict(query) == model.predict(query.numpy()).tolist()


def test_nearest_scores_are_the_best_cosine_of_each_class():
    rows, query = rows_and_query()
    scores = NearestHead().write(rows, LABELS)(query)
    cosines = unit(query) @ unit(rows).mT
    for column, name in enumerate("abc"):
        members = [i for i, label in enumerate(LABELS) if label == name]
        torch.testing.assert_close(scores[:, column], cosines[:, members].max(-1).values)


@pytest.mark.parametrize("ridge", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("num_base", [0, 2])
def test_ridge_equals_scikit_learn(ridge, num_base):
    rows, query = rows_and_query()
    head, base = RidgeHead(ridge), rows[:num_base] + 0.3
    if num_base:
        head.write_base(base, ["x", "y"])
    scores = head.write(rows, LABELS)(query)
    names = ["x", "y"][:num_base] + LABELS
    one_hot = np.array([[float(name == c) for c in head.classes] for name in names])
    model = Ridge(alpha=ridge).fit(unit(torch.cat([base, rows])).numpy(), one_hot)
    np.testing.assert_allclose(scores.numpy(), model.predict(unit(query).numpy()), rtol=1e-6, atol=1e-8)


def test_logistic_equals_scikit_learn():
    rows, query = rows_and_query()
    head = LogisticHead(inverse_penalty=3.0).write(rows, LABELS)
    model = LogisticRegression(C=3.0, max_iter=1000).fit(unit(rows).numpy(), LABELS)
    np.testing.assert_allclose(head(query).numpy(), model.decision_function(unit(query).numpy()), rtol=1e-6)
    two = LogisticHead().write(rows[:2], ["a", "b"])
    model = LogisticRegression(max_iter=1000).fit(unit(rows[:2]).numpy(), ["a", "b"])
    np.testing.assert_allclose(two(query).softmax(-1).numpy(), model.predict_proba(unit(query).numpy()), rtol=1e-6)


def test_logistic_needs_two_classes():
    rows, query = rows_and_query()
    with pytest.raises(ValueError, match="at least two classes"):
        LogisticHead().write(rows, "a")(query)


@pytest.mark.parametrize(("build", "name"), [(RidgeHead, "ridge"), (LogisticHead, "inverse_penalty")])
def test_penalties_must_be_positive(build, name):
    for value in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
            build(value)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="scale must be above 0"):
        CosineHead(scale)
