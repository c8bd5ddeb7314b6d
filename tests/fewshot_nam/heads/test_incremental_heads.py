"""The heads of class-incremental learning, each against its published formula, computed plainly."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, create
from fewshot_nam.heads.fecam import _covariance
from fewshot_nam.heads.ranpac import _RIDGES, RanPACHead

D, BASE_CLASSES, EACH, NOVEL_CLASSES, SHOTS = 6, 4, 25, 3, 5


def images(seed: int, classes: int, each: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(classes, 1, D, generator=generator, dtype=torch.float64)
    return centres + 0.4 * torch.rand(classes, each, D, generator=generator, dtype=torch.float64)


BASE, NOVEL, QUERIES = images(0, BASE_CLASSES, EACH), images(1, NOVEL_CLASSES, SHOTS), images(2, 3, 2).flatten(0, 1)
BASE_NAMES = [f"b{i}" for i in range(BASE_CLASSES) for _ in range(EACH)]
NAMES = [f"n{i}" for i in range(NOVEL_CLASSES) for _ in range(SHOTS)]
STATISTICS = BaseStatistics.from_prototypes(BASE.mean(1))


def learned(name: str, **options):
    head = create(name, STATISTICS, **options).write_base_images(BASE.flatten(0, 1), BASE_NAMES)
    return head.write(NOVEL.flatten(0, 1), NAMES)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (a.norm() * b.norm())


def likeness(mean: Tensor, base: list[Tensor]) -> Tensor:
    return torch.softmax(16 * torch.stack([cosine(mean, b) for b in base]), 0)


def test_ncm_and_teen_are_cosines_to_means():
    base = [some.mean(0) for some in BASE]
    for name, share in (("ncm", 0.0), ("teen", 0.5)):
        means = list(base)
        for some in NOVEL:
            w = likeness(some.mean(0), base)
            means.append((1 - share) * some.mean(0) + share * sum(w[i] * base[i] for i in range(len(base))))
        expected = torch.stack([torch.stack([cosine(x, m) for m in means]) for x in QUERIES])
        torch.testing.assert_close(learned(name)(QUERIES), expected)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 6),
    width=st.integers(3, 30),
    seed=st.integers(0, 1000),
    diagonal=st.sampled_from([0.5, 1.0, 3.0]),
    off_diagonal=st.sampled_from([0.0, 0.3, 1.0]),
    equal=st.booleans(),
)
def test_fecam_of_few_images_is_that_of_the_whole_matrix(count, width, seed, diagonal, off_diagonal, equal):
    head = create("fecam", diagonal=diagonal, off_diagonal=off_diagonal)
    generator = torch.Generator().manual_seed(seed)
    shots = torch.rand(2, count, width, generator=generator, dtype=torch.float64)
    if equal:  # in one of two episodes nothing varies
        shots[0] = shots[0, :1]
    apart = torch.rand(2, 4, width, generator=generator, dtype=torch.float64)
    low = head._low_rank(shots)
    assert low is not None or count + 1 >= width or off_diagonal > diagonal * 0.9
    if low is not None:
        dense = head._precisions(_covariance(shots))
        torch.testing.assert_close(low.distance(apart), ((apart @ dense) * apart).sum(dim=-1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shots", [1, 2])
def test_fecam_of_equal_images_has_a_gradient(shots):
    support = (
        torch.rand(1, 3, 1, 16, generator=torch.Generator().manual_seed(0)).repeat(1, 1, shots, 1).requires_grad_()
    )
    create("fecam").score_episodes(support, torch.rand(1, 4, 16)).logsumexp(dim=-1).sum().backward()
    assert support.grad.isfinite().all()
    assert support.grad.abs().sum() > 0


def test_fecam_of_few_images_takes_no_matrix_for_each_class():
    """Two classes of 20,000 features took 3.2 GB each, and minutes."""
    features = torch.rand(6, 20_000, generator=torch.Generator().manual_seed(0))
    head = create("fecam").write(features[:5], [0, 0, 0, 1, 1])
    assert head(features[5:]).isfinite().all()


@pytest.mark.parametrize("name", ["fecam", "c-fecam"])
def test_fecam_is_its_formula(name):
    def tukey(x: Tensor) -> Tensor:
        return x.sqrt() / x.sqrt().norm(dim=-1, keepdim=True)

    base = [tukey(some) for some in BASE]
    # A base class's mean is that of features before they are scaled, as every head is given base prototypes.
    base_means = [tukey(some.sqrt().mean(0) ** 2) for some in BASE]
    means, covariances = list(base_means), [some.T.cov() for some in base]
    for some in (tukey(each) for each in NOVEL):
        mean, covariance = some.mean(0), some.T.cov()
        if name == "c-fecam":
            w = likeness(mean, base_means)
            covariance = covariance + sum(w[i] * base[i].T.cov() for i in range(BASE_CLASSES))
            mean = 0.9 * mean + 0.1 * sum(w[i] * base_means[i] for i in range(BASE_CLASSES))
        means.append(mean)
        covariances.append(covariance)
    expected = []
    for mean, covariance in zip(means, covariances, strict=True):
        off = ~torch.eye(D, dtype=torch.bool)
        shrunk = covariance + covariance.diagonal().mean() * torch.eye(D) + covariance[off].mean() * off
        deviation = shrunk.diagonal().sqrt()
        inverse = torch.linalg.inv(shrunk / (deviation[:, None] * deviation))
        expected.append(torch.stack([-(tukey(x) - mean) @ inverse @ (tukey(x) - mean) for x in QUERIES]))
    torch.testing.assert_close(learned(name)(QUERIES), torch.stack(expected, 1), rtol=1e-6, atol=1e-6)


def ridge_by_hand(head: RanPACHead, rows: Tensor, targets: Tensor, ridge: float, balanced: bool) -> Tensor:
    phi = head._expanded(rows)
    weight = 1 / torch.bincount(targets)[targets].double() if balanced else torch.ones(len(targets)).double()
    G = ridge * torch.eye(phi.shape[1]).double() + sum(w * torch.outer(p, p) for w, p in zip(weight, phi, strict=True))
    Q = torch.zeros(phi.shape[1], int(targets.max()) + 1).double()
    for w, p, target in zip(weight, phi, targets, strict=True):
        Q[:, target] += w * p
    return head._expanded(QUERIES) @ torch.linalg.inv(G) @ Q


@pytest.mark.parametrize(
    ("name", "options"), [("ranpac", {"width": 30}), ("acil", {}), ("air", {}), ("air", {"ridge": 0.3})]
)
def test_ranpac_acil_and_air_are_ridge_regression_over_all_images(name, options):
    head = learned(name, **options)
    rows = torch.cat([BASE.flatten(0, 1), NOVEL.flatten(0, 1)])
    targets = torch.arange(7).repeat_interleave(torch.tensor([EACH] * 4 + [SHOTS] * 3))
    expected = ridge_by_hand(head, rows, targets, float(head.chosen_ridge), name == "air")
    torch.testing.assert_close(head(QUERIES), expected, rtol=1e-5, atol=1e-5)
    if name == "ranpac":
        raw = torch.relu(QUERIES @ torch.randn(D, 30, generator=torch.Generator().manual_seed(0)).double())
        torch.testing.assert_close(head._expanded(QUERIES), raw)


def test_the_ridge_is_that_of_the_least_squared_error_on_a_fifth_of_the_base_images():
    head = learned("ranpac", width=30)
    rows, targets = BASE.flatten(0, 1), torch.arange(4).repeat_interleave(EACH)
    held_out = torch.arange(100) % 5 == 4
    phi, values = head._expanded(rows), torch.eye(4).double()[targets]
    errors = {}
    for power in range(-8, 9):
        train = phi[~held_out]
        weights = torch.linalg.solve(
            train.T @ train + 10.0**power * torch.eye(30).double(), train.T @ values[~held_out]
        )
        errors[10.0**power] = float((phi[held_out] @ weights - values[held_out]).square().sum())
    assert float(head.chosen_ridge) == pytest.approx(min(errors, key=errors.get))


def test_c_ranpac_keeps_all_digits_of_its_sums():
    """With a small ridge, float32 ended in an error of the factorization, on features of length 1 as many networks give them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 1, 64, generator=generator) + 0.3 * torch.randn(4, 8, 64, generator=generator)
    rows, targets = torch.nn.functional.normalize(rows.flatten(0, 1), dim=-1), torch.arange(4).repeat_interleave(8)
    head = create("c-ranpac", BaseStatistics.from_prototypes(rows.unflatten(0, (4, 8)).mean(1)), width=200, ridge=1e-5)
    head.write_base_images(rows, [f"b{i}" for i in targets.tolist()])
    phi = head._expanded(rows).double()
    G = float(head.chosen_ridge) * torch.eye(200).double() + phi.T @ phi
    expected = head._expanded(rows).double() @ torch.linalg.solve(G, phi.T @ torch.eye(4).double()[targets])
    for moved in (head, head.to(torch.float64).to(torch.float32), copy.deepcopy(head)):
        assert moved.products.dtype == torch.float64
        torch.testing.assert_close(moved(rows).double(), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(moved._current().products, G, rtol=1e-4, atol=1e-4)
    old = head.state_dict()  # of a version that kept the inverse
    old["inverse"] = torch.linalg.inv(old.pop("products"))
    again = create("c-ranpac", width=200, ridge=1e-5)
    again.load_state_dict(old)
    torch.testing.assert_close(again(rows), head(rows), rtol=1e-4, atol=1e-4)
    pickled = head.__getstate__()  # likewise
    buffers = dict(pickled["_buffers"])
    buffers["inverse"] = torch.linalg.inv(buffers.pop("products"))
    again.__setstate__({**pickled, "_buffers": buffers})
    torch.testing.assert_close(again(rows), head(rows), rtol=1e-4, atol=1e-4)
    head.products = head.products - 1e-2 * torch.eye(200)  # a rounding error of float32 is as large
    head._outdate()
    with pytest.raises(ValueError, match=r"kept these in float32: learn the base images again"):
        head(rows)


@pytest.mark.parametrize("name", ["ranpac", "c-ranpac", "acil", "air", "klda"])
@pytest.mark.parametrize(
    ("mean", "spread", "noise"), [(0.0, 1.0, 0.003), (10.0, 1.0, 0.3), (100.0, 1.0, 0.1), (10.0, 0.02, 0.01)]
)
def test_features_with_a_mean_are_told_apart_as_well(name, mean, spread, noise):
    """In float32 some ended in an error of the factorization, and some answered at chance."""
    generator = torch.Generator().manual_seed(0)
    centres = mean + spread * torch.randn(12, 64, generator=generator).abs()
    base, shots, queries = (
        some.repeat_interleave(count, 0) + noise * torch.randn(len(some) * count, 64, generator=generator)
        for some, count in ((centres[:9], 30), (centres[9:], 5), (centres, 4))
    )
    names = [f"b{i // 30}" for i in range(270)]
    head = create(name, BaseStatistics.from_features(base, names)).write_base_images(base, names)
    head.write(shots, [f"n{i // 5}" for i in range(15)])
    wanted = [label for label in [*dict.fromkeys(names), "n0", "n1", "n2"] for _ in range(4)]
    assert head.predict(queries) == wanted
    if name in ("ranpac", "acil", "air"):
        phi, targets = head._expanded(torch.cat([base, shots]).double()), torch.arange(9).repeat_interleave(30)
        targets = torch.cat([targets, 9 + torch.arange(3).repeat_interleave(5)])
        each = (1 / torch.bincount(targets)[targets].double() if name == "air" else torch.ones(285).double()).sqrt()
        phi, values = phi * each[:, None], torch.eye(12).double()[targets] * each[:, None]
        # By the images, which are fewer than random features: as well conditioned as can be.
        G = phi @ phi.T + float(head.chosen_ridge) * torch.eye(285).double()
        expected = head._expanded(queries.double()) @ phi.T @ torch.linalg.solve(G, values)
        torch.testing.assert_close(head(queries).double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_klda_keeps_of_base_images_stays_as_it_is_in_half_precision(dtype):
    """The matrix was no covariance any more, and a count of 70,000 infinite: each answer was an error."""
    head = learned("klda", width=200)
    head.freedom = torch.tensor(70_000.0)
    assert head.float().to(dtype)(QUERIES.to(dtype)).isfinite().all()
    assert (head.scatter.dtype, float(head.freedom)) == (torch.float32, 70_000.0)


@pytest.mark.parametrize("name", ["ranpac", "c-ranpac", "acil", "air"])
def test_the_order_of_base_images_does_not_change_the_ridge(name):
    """Every fifth was held out: of images in turn of ten classes, all of two classes, and the largest ridge was the best."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.6 * torch.randn(10, 64, generator=generator) + 0.8
    rows = torch.relu(centres.repeat_interleave(40, 0) + 0.6 * torch.randn(400, 64, generator=generator))
    targets = torch.arange(10).repeat_interleave(40)
    found = []
    for order in (torch.arange(400), torch.arange(400).reshape(10, 40).T.flatten()):
        base = BaseStatistics.from_features(rows, targets)
        found.append(create(name, base, width=200) if "ranpac" in name else create(name, base))
        found[-1].write_base_images(rows[order], targets[order].tolist())
    assert float(found[0].chosen_ridge) == float(found[1].chosen_ridge) < 1e8
    assert found[0].predict(rows) == found[1].predict(rows)


@pytest.mark.parametrize("images", [30, 300])
@pytest.mark.parametrize("ridge", [None, 0.5])
def test_without_base_images_the_weights_are_those_of_ridge_regression(images, ridge):
    """By the smaller of two systems: with 2,000 classes of four images each further class took half a minute."""
    rows = torch.randn(images, D, generator=torch.Generator().manual_seed(0)) + 1
    targets = torch.arange(images) % 5
    head = create("ranpac", width=100, ridge=ridge).write(rows, targets.tolist())
    phi, values = head._expanded(rows).double(), torch.nn.functional.one_hot(targets).double()
    damping = float(phi.square().sum()) / 100 if ridge is None else ridge
    weights = torch.linalg.solve(phi.mT @ phi + damping * torch.eye(100).double(), phi.mT @ values)
    expected = head._expanded(QUERIES).double() @ weights
    torch.testing.assert_close(head(QUERIES).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ranpac", "c-ranpac", "klda"])
def test_random_features_do_not_depend_on_the_default_dtype(name):
    """A state taught in one program was answered from with other random features in one that had set float64: by chance."""
    head = learned(name, width=40)
    taken = head.state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        again = create(name, STATISTICS, width=40)
        again.load_state_dict(taken)
        torch.testing.assert_close(again(QUERIES), head(QUERIES))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("each", [1, 2, 4])
def test_few_base_images_choose_a_ridge_that_answers_them(each):
    """With fewer than five in all, none was held out, and the largest ridge was taken."""
    noise = torch.rand(4 * each, 64, generator=torch.Generator().manual_seed(0))
    rows = torch.eye(64)[:4].repeat_interleave(each, 0) + 0.01 * noise
    names = [f"b{i // each}" for i in range(4 * each)]
    head = create("ranpac", BaseStatistics.from_prototypes(torch.eye(64)[:4]), width=200).write_base_images(rows, names)
    assert float(head.chosen_ridge) < 1e6
    assert head.predict(rows) == names


def test_few_classes_of_several_images_do_not_choose_the_ridge_for_many_of_one():
    """Three classes of five chose for 57 of one: on features of MobileNetV2 4.7% in place of 12.0% were right."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(60, 64, generator=generator)
    counts = torch.tensor([5, 5, 5] + [1] * 57)
    targets = torch.arange(60).repeat_interleave(counts)
    rows = centres[targets] + 0.5 * torch.randn(len(targets), 64, generator=generator)
    head = create("ranpac", BaseStatistics.from_prototypes(centres), width=200)
    head.write_base_images(rows, targets.tolist())
    diagonal = head._expanded(rows).double().square().sum(dim=0).mean()
    assert float(head.chosen_ridge) == pytest.approx(float(diagonal))
    head = create("ranpac", BaseStatistics.from_prototypes(centres), width=200)
    some = targets < 6  # half of these classes have several
    head.write_base_images(rows[some], targets[some].tolist())
    assert float(head.chosen_ridge) in [pytest.approx(ridge) for ridge in _RIDGES]


def test_a_ridge_that_is_lost_beside_the_images_is_refused_and_none_is_chosen(monkeypatch):
    rows = torch.nn.functional.normalize(torch.randn(40, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    names, statistics = [f"b{i % 4}" for i in range(40)], BaseStatistics.from_prototypes(torch.eye(64)[:4])
    with pytest.raises(ValueError, match="a ridge of 1e-30 is lost beside these images: take a larger one"):
        create("ranpac", statistics, width=200, ridge=1e-30).write_base_images(rows, names)
    monkeypatch.setattr("fewshot_nam.heads.ranpac._best_ridge", lambda *_: 1e-30)
    head = create("ranpac", statistics, width=200).write_base_images(rows, names)
    assert 1e-30 < float(head.chosen_ridge) < 1e-8
    assert head.predict(rows) == names


def test_c_ranpac_learns_new_classes_from_features_drawn_by_calibrated_statistics():
    head = learned("c-ranpac", width=30, ridge=1.0)
    base = [some.mean(0) for some in BASE]
    noise = torch.randn(800, D, generator=torch.Generator().manual_seed(0)).double()
    rows, targets = [BASE.flatten(0, 1)], [torch.arange(4).repeat_interleave(EACH)]
    for label, some in enumerate(NOVEL):
        w = likeness(some.mean(0), base)
        mean = 0.9 * some.mean(0) + 0.1 * sum(w[i] * base[i] for i in range(4))
        covariance = (some.T.cov() + sum(w[i] * BASE[i].T.cov() for i in range(4))) / 2
        values, axes = torch.linalg.eigh(covariance)
        rows.append(mean + (noise @ axes * values.clamp_min(0).sqrt()) @ axes.T)
        targets.append(torch.full((800,), 4 + label))
    expected = ridge_by_hand(head, torch.cat(rows), torch.cat(targets), 1.0, False)
    torch.testing.assert_close(head(QUERIES), expected, rtol=1e-3, atol=1e-3)


def test_c_ranpac_does_not_depend_on_the_signs_of_eigenvectors(monkeypatch):
    """On another processor one memory answered otherwise: of handwritten digits 2% of the answers."""
    expected = learned("c-ranpac", width=8)(QUERIES)
    eigh = torch.linalg.eigh

    def turned(matrix):
        values, axes = eigh(matrix)
        return values, axes * torch.tensor([1.0, -1.0] * (D // 2)).to(axes)

    monkeypatch.setattr(torch.linalg, "eigh", turned)
    torch.testing.assert_close(learned("c-ranpac", width=8)(QUERIES), expected)


def test_klda_is_discriminant_analysis_over_fourier_features():
    head = learned("klda", width=20)
    phi = [head._embed(some) for some in (*BASE, *NOVEL)]
    scatter = sum(((some - some.mean(0)).T @ (some - some.mean(0))) for some in phi)
    covariance = scatter / (sum(map(len, phi)) - len(phi))
    inverse = torch.linalg.inv(covariance + 1e-2 * covariance.diagonal().mean() * torch.eye(20))
    expected = torch.stack(
        [head._embed(QUERIES) @ inverse @ some.mean(0) - some.mean(0) @ inverse @ some.mean(0) / 2 for some in phi], 1
    )
    torch.testing.assert_close(head(QUERIES), expected, rtol=1e-3, atol=1e-3)
    wide = create("klda", width=20_000)
    a, b = (wide._embed(x) for x in QUERIES[:2])
    directions = QUERIES[:2].sqrt() / QUERIES[:2].sqrt().norm(dim=1, keepdim=True)
    kernel = torch.exp(-(directions[0] - directions[1]).square().sum() / 2)
    assert float(a @ b) == pytest.approx(float(kernel), abs=0.02)


def test_klda_solves_the_smaller_system():
    """Of 20,000 random features the covariance alone takes 3 GB, and the images are a handful."""
    head, sizes = create("klda", width=200), (4, 1, 3)
    lessons = [some[:size] for some, size in zip(NOVEL, sizes, strict=False)]
    for label, some in enumerate(lessons):
        head.write(some.double(), label)
    phi = [head._embed(some.double()) for some in lessons]
    scatter = sum((some - some.mean(0)).T @ (some - some.mean(0)) for some in phi)
    covariance = scatter / (sum(map(len, phi)) - len(phi))
    inverse = torch.linalg.inv(covariance + 1e-2 * covariance.diagonal().mean() * torch.eye(200).double())
    queries = head._embed(QUERIES.double())
    expected = torch.stack([queries @ inverse @ (m := some.mean(0)) - m @ inverse @ m / 2 for some in phi], 1)
    torch.testing.assert_close(head(QUERIES.double()), expected, rtol=1e-9, atol=1e-9)
    wide = create("klda", width=20_000).write(
        torch.cat(lessons), [0] * len(lessons[0]) + [1] * sum(map(len, lessons[1:]))
    )
    assert wide(QUERIES).isfinite().all()


def test_base_images_that_were_summed_up_cannot_be_forgotten_one_by_one():
    head = learned("ranpac", width=8)
    with pytest.raises(ValueError, match="their sum cannot be taken apart"):
        head.forget(["n0", "b1"])
    assert "n0" in head.classes
    with pytest.raises(ValueError, match="there are base classes already"):
        create("ranpac").write_base(BASE[0].mean(0), "b").write_base_images(BASE.flatten(0, 1), BASE_NAMES)


@pytest.mark.parametrize("name", ["fecam", "c-fecam", "klda"])
def test_a_base_class_learned_from_images_can_be_forgotten(name):
    head = learned(name)
    before = head(QUERIES)
    assert head.forget("b1")(QUERIES).shape == (6, 6)
    if name == "fecam":
        torch.testing.assert_close(head(QUERIES), before[:, [0, 2, 3, 4, 5, 6]])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("teen", {"share": 1.5}, "share must be from 0 to 1"),
        ("teen", {"temperature": 0.0}, "temperature must be above 0"),
        ("fecam", {"diagonal": -1.0}, "diagonal must be at least 0"),
        ("fecam", {"off_diagonal": float("inf")}, "off_diagonal must be at least 0 and finite"),
        ("ranpac", {"width": -1}, "width must be from 0 to 20,000, got -1"),
        ("ranpac", {"ridge": 0.0}, "ridge must be above 0"),
        ("klda", {"width": 0}, "width must be from 1 to 20,000, got 0"),
        ("ranpac", {"width": 10**9}, "width must be from 0 to 20,000"),
        ("klda", {"width": 20_001}, "width must be from 1 to 20,000"),
        ("klda", {"gamma": 0.0}, "gamma must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, STATISTICS, **options)


@pytest.mark.parametrize("name", ["ranpac", "c-ranpac"])
def test_base_images_are_learned_whole_or_not_at_all(name):
    """Their classes stayed as prototypes, answers came from these, and they could not be learned again."""
    head = create(name, STATISTICS, width=200, ridge=1e-30)
    head.write(NOVEL.flatten(0, 1), NAMES)
    before = head(QUERIES)
    with pytest.raises(ValueError, match="is lost beside these images"):
        head.write_base_images(1e3 * BASE.flatten(0, 1), BASE_NAMES)
    assert head.classes == ["n0", "n1", "n2"]
    torch.testing.assert_close(head(QUERIES), before)
    again = create(name, STATISTICS, width=200)
    again.ridge, head.ridge = 1.0, 1.0
    again.write_base_images(BASE.flatten(0, 1), BASE_NAMES).write(NOVEL.flatten(0, 1), NAMES)
    head.write_base_images(BASE.flatten(0, 1), BASE_NAMES)
    torch.testing.assert_close(head(QUERIES), again(QUERIES))


@pytest.mark.parametrize("name", ["fecam", "c-fecam", "ranpac", "c-ranpac", "acil", "air", "klda"])
def test_episodes_of_a_head_that_has_learned_base_images_are_refused(name):
    """Some ended in an error of shapes, and some answered with the columns of the base classes first."""
    head = learned(name)
    with pytest.raises(ValueError, match="has learned images of base classes, and episodes have none: make a new one"):
        head.score_episodes(NOVEL[None], QUERIES[None])
