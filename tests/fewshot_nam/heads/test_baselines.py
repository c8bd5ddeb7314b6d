"""The heads that NAM is compared with, against their definitions and against scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestCentroid

from fewshot_nam.heads import (
    BaseStatistics,
    CosineHead,
    Head,
    LogisticHead,
    MahalanobisHead,
    NearestHead,
    PLDAHead,
    ProtoNetHead,
    RidgeHead,
    create,
)
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


def test_logistic_of_one_class_is_the_least_of_its_loss():
    """One class alone could not be learned, nor forgotten down to: a page with such a memory was broken."""
    rows, query = rows_and_query()
    head = LogisticHead().write(rows, "a")
    assert head(query).tolist() == [[0.0]] * len(query)
    assert head.snapshot().predict(query) == ["a"] * len(query)
    assert head.calibrate(query, target_fpr=0.5).threshold > 0


@pytest.mark.parametrize(("build", "name"), [(RidgeHead, "ridge"), (LogisticHead, "inverse_penalty")])
def test_penalties_must_be_positive(build, name):
    for value in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
            build(value)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="scale must be above 0"):
        CosineHead(scale)


def prototypes(count: int = 6, seed: int = 6) -> torch.Tensor:
    return torch.rand(count, 9, generator=torch.Generator().manual_seed(seed)).double() + 0.1


def base(count: int = 6, seed: int = 6, dtype: torch.dtype = torch.float64) -> BaseStatistics:
    return BaseStatistics.from_prototypes(prototypes(count, seed).to(dtype))


def test_power_normalised_cosine_is_the_cosine_of_signed_square_roots():
    rows, query = rows_and_query()
    rows, query = rows - 0.3, query - 0.3  # both signs
    roots = [np.sign(x.numpy()) * np.sqrt(np.abs(x.numpy())) for x in (rows, query)]
    plain = CosineHead().write(torch.from_numpy(roots[0]), LABELS)
    torch.testing.assert_close(create("cosine-root").write(rows, LABELS)(query), plain(torch.from_numpy(roots[1])))


@pytest.mark.parametrize("power_norm", [False, True])
def test_the_base_mean_is_subtracted_after_power_normalisation(power_norm):
    rows, query = rows_and_query()
    head = CosineHead(power_norm=power_norm, base=base()).write_base(prototypes(2, 7), ["x", "y"]).write(rows, LABELS)
    mapped = [x.sqrt() if power_norm else x for x in (prototypes(), prototypes(2, 7), rows, query)]
    plain = (
        CosineHead(base=BaseStatistics.from_mean(mapped[0].mean(0)))
        .write_base(mapped[1], ["x", "y"])
        .write(mapped[2], LABELS)
    )
    torch.testing.assert_close(head(query), plain(mapped[3]))


@pytest.mark.parametrize("build", [lambda: CosineHead(power_norm=True), lambda: PLDAHead(base())])
def test_features_that_are_zero_in_places_have_finite_gradients_through_power_normalisation(build):
    rows, query = rows_and_query()
    query[:, ::2] = 0
    query.requires_grad_()
    build().write(rows, LABELS)(query).sum().backward()
    assert query.grad.isfinite().all()


def test_a_cosine_head_accepted_by_probability_gives_log_probabilities():
    rows, query = rows_and_query()
    scores, cosines = (create(name).write(rows, LABELS)(query) for name in ("cosine-msp", "cosine"))
    torch.testing.assert_close(scores, cosines.log_softmax(-1))


def test_mahalanobis_equals_scikit_learns_shrunk_discriminant_analysis():
    rows, query = rows_and_query()
    shrinkage, labels = 0.2, ["a", "b", "c"] * 2  # as many of each class, so that all priors are the same
    rows = unit(rows[:6])
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(rows.numpy(), labels)
    apart = rows - torch.stack([rows[i::3].mean(0) for i in range(3)]).repeat(2, 1)
    # Theirs is (1 - s) S + s tr(S) / D I with S divided by n = 6, ours in the ratio S + ridge I with S divided by n - N = 3.
    scale = (1 - shrinkage) * 3 / 6
    ridge = shrinkage * float(apart.square().sum()) / 6 / 9 / scale
    scores = MahalanobisHead(ridge=ridge).write(rows, labels)(query)
    theirs = model.predict_log_proba(unit(query).numpy())
    np.testing.assert_allclose((scores / (2 * ridge * scale)).log_softmax(-1).numpy(), theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("covariance", ["pooled", "diagonal"])
@pytest.mark.parametrize("num_base", [0, 2])
def test_mahalanobis_scores_are_distances_under_the_covariance_of_the_support(covariance, num_base):
    rows, query = rows_and_query()
    head = MahalanobisHead(covariance, ridge=0.04)
    if num_base:
        head.write_base(prototypes(num_base), ["x", "y"])
    scores = head.write(rows, LABELS)(query)
    members = {name: unit(rows[[i for i, label in enumerate(LABELS) if label == name]]) for name in "abc"}
    spreads = {name: (m - m.mean(0)).mT @ (m - m.mean(0)) for name, m in members.items()}
    for column, name in enumerate([*["x", "y"][:num_base], "a", "b", "c"]):
        mean = members[name].mean(0) if name in members else unit(prototypes(num_base))[column]
        scatter = sum(spreads.values()) / (7 - 3)
        if covariance == "diagonal":
            own = spreads[name].diag() / len(members[name]) if name in members else torch.zeros(9).double()
            scatter = torch.diag(own)
        inverse = torch.linalg.inv(torch.eye(9).double() + scatter / 0.04)
        apart = unit(query) - mean
        torch.testing.assert_close(scores[:, column], -((apart @ inverse) * apart).sum(-1))


@pytest.mark.parametrize("covariance", ["pooled", "diagonal"])
def test_mahalanobis_at_one_shot_is_the_distance_between_directions(covariance):
    rows, query = rows_and_query()
    scores = MahalanobisHead(covariance).write(rows[:3], ["a", "b", "c"])(query)
    torch.testing.assert_close(scores, 2 * CosineHead().write(rows[:3], ["a", "b", "c"])(query) - 2)


@pytest.mark.parametrize("classes", [4, 30])  # fewer and more than dimensions
def test_plda_scores_are_the_ratio_of_gaussian_densities(classes):
    rows, query = rows_and_query()
    head = PLDAHead(base(classes), within=0.7, shrinkage=0.25).write_base(prototypes(2, 7), ["x", "y"])
    scores = head.write(rows, LABELS)(query) * 9

    def directions(x):
        return unit(x.sqrt()).numpy()

    samples = directions(prototypes(classes))
    between = np.cov(samples.T)
    average = np.trace(between) / 9
    between = 0.75 * between + 0.25 * average * np.eye(9)
    within, centre = 0.7 * average * np.eye(9), samples.mean(0)
    alone = multivariate_normal(centre, between + within)
    for column, prototype in enumerate(directions(prototypes(2, 7))):
        given = multivariate_normal(prototype, within)
        seen = directions(query)
        np.testing.assert_allclose(scores[:, column], given.logpdf(seen) - alone.logpdf(seen), rtol=1e-6)
    for column, name in enumerate("abc", start=2):
        shots = directions(rows[[i for i, label in enumerate(LABELS) if label == name]])
        # The shots and the query share the mean of their class: p(query | shots) = p(query, shots) / p(shots).
        joint, marginal = (
            multivariate_normal(np.tile(centre, k), np.kron(np.ones((k, k)), between) + np.kron(np.eye(k), within))
            for k in (len(shots) + 1, len(shots))
        )
        for row, seen in enumerate(directions(query)):
            expected = joint.logpdf([*shots.ravel(), *seen]) - marginal.logpdf(shots.ravel()) - alone.logpdf(seen)
            assert scores[row, column] == pytest.approx(expected, rel=1e-6)


def test_plda_saves_what_follows_from_its_base_classes(tmp_path):
    from safetensors.torch import load_file, save_file

    rows, query = rows_and_query()
    head, other = (PLDAHead(base(seed=seed)).write(rows, LABELS) for seed in (6, 8))
    assert not torch.allclose(head(query), other(query))
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    other.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert torch.equal(other(query), head(query))


def test_plda_tells_unknowns_apart_better_than_cosine_where_classes_differ_in_some_directions():
    # Features from the model itself: classes differ along 5 of 40 directions, images scatter alike along all of them.
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    spread = torch.cat([torch.full((5,), 3.0), torch.full((35,), 0.3)])
    classes = 20 + spread * normal(200 + 10, 40)
    known = BaseStatistics.from_prototypes(classes[10:])
    head, cosine = PLDAHead(known, power_norm=False), CosineHead(base=known)
    images = classes[:10, None] + normal(10, 51, 40)
    found = {}
    for name, one in (("plda", head), ("cosine", cosine)):
        best = one.write(images[:5, 0], range(5))(images[:, 1:]).amax(-1)
        found[name] = (best[:5].reshape(-1, 1) > best[5:].reshape(1, -1)).float().mean().item()
    assert found["plda"] > found["cosine"] + 0.05


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MahalanobisHead("full"), "covariance must be one of pooled, diagonal, got 'full'"),
        (lambda: MahalanobisHead(ridge=0.0), "ridge must be above 0, got 0.0"),
        (lambda: MahalanobisHead(ridge=float("nan")), "ridge must be above 0, got nan"),
        (lambda: PLDAHead(), "needs base, the statistics of at least 2 base classes, got 0"),
        (lambda: PLDAHead(base(1)), "at least 2 base classes, got 1"),
        (lambda: PLDAHead(BaseStatistics.from_prototypes(prototypes(1).expand(3, 9))), "all have the same direction"),
        (lambda: PLDAHead(base(), within=0.0), "within must be above 0"),
        (lambda: PLDAHead(base(), shrinkage=0.0), "shrinkage must be above 0 and at most 1"),
        (lambda: PLDAHead(base(), shrinkage=1.1), "shrinkage must be above 0 and at most 1"),
        (lambda: PLDAHead(base()).write(torch.ones(2, 8), "ab"), "must have width 9"),
        (
            lambda: PLDAHead(base()).score_episodes(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 8)),
            "must have width 9 as the base classes, got 8",
        ),
    ],
)
def test_settings_and_base_statistics_that_cannot_be_used_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def episodes_of(head: Head, shots: int) -> torch.Tensor:
    """Return the scores of three episodes, checked to be those of one at a time."""
    generator = torch.Generator().manual_seed(9)
    support, query = torch.rand(3, 4, shots, 9, generator=generator), torch.rand(3, 5, 9, generator=generator)
    together = head.score_episodes(support, query)
    for episode in range(3):
        labels = [name for name in "abcd" for _ in range(shots)]
        head.write(support[episode].flatten(0, 1), labels)
        torch.testing.assert_close(head(query[episode]), together[episode], rtol=1e-4, atol=1e-5)
        head.forget(list("abcd"))
    return together


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize(
    "build",
    [lambda: PLDAHead(base(dtype=torch.float32)), lambda: CosineHead(power_norm=True, base=base(dtype=torch.float32))],
    ids=["plda", "cosine-root-centred"],
)
def test_heads_with_base_statistics_score_many_episodes_as_one_at_a_time(build, shots):
    assert episodes_of(build(), shots).shape == (3, 5, 4)
