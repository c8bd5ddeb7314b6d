"""Open-set scores against OpenOOD's formulas, computed again in plain numpy, in float64."""

import numpy as np
import pytest
import torch

from fewshot_nam.heads import create, open_scores
from fewshot_nam.heads.open_scores import OpenScoreHead

CLASSES, SHOTS, WIDTH, QUERIES = 7, 40, 13, 11


def rows(seed, count):
    """Return features, some of them 0 as after a ReLU."""
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).clamp_min(-0.5) + 0.3


@pytest.fixture(scope="module")
def data():
    """Return features and labels of classes that are base classes and learned ones at once, as training images in OpenOOD."""
    labels = torch.arange(CLASSES).repeat_interleave(SHOTS)
    return rows(1, CLASSES * SHOTS) + rows(2, CLASSES)[labels], labels, rows(3, QUERIES) + 0.2


def scored(data, name, head="cosine", **options):
    """Return what a head scores best, the scores of the inner head, and the head."""
    features, labels, query = data
    both = OpenScoreHead(create(head), open_scores.create(name, **options)).fit(features, labels)
    both.write(features, labels)
    inner = create(head).write(features, labels)(query)
    return both(query).amax(dim=-1).numpy(), inner.double().numpy(), both


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_msp_is_the_largest_softmax_probability(data, temperature):
    found, logits, _ = scored(data, "msp", temperature=temperature)
    close(found, softmax(logits / temperature).max(axis=1))


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_energy_is_the_log_of_the_normaliser(data, temperature):
    found, logits, _ = scored(data, "energy", temperature=temperature)
    close(found, temperature * np.log(np.exp(logits / temperature).sum(axis=1)))


@pytest.mark.parametrize("largest", [100, 3])
def test_gen_is_the_generalised_entropy_of_the_largest_probabilities(data, largest):
    found, logits, _ = scored(data, "gen", temperature=0.1, gamma=0.2, largest=largest)
    probabilities = np.sort(softmax(logits / 0.1), axis=1)[:, -largest:]
    close(found, -(probabilities**0.2 * (1 - probabilities) ** 0.2).sum(axis=1))


def test_gen_is_finite_where_a_probability_is_one():
    certain = torch.tensor([[[1e4, 0.0, 0.0]]])
    assert open_scores.create("gen")(certain, None, certain[..., :0]).isfinite().all()


@pytest.mark.parametrize("neighbours", [1, 5])
def test_knn_is_the_squared_distance_to_the_kth_unit_feature(data, neighbours):
    found, _, _ = scored(data, "knn", neighbours=neighbours)
    bank, query = ((x / x.norm(dim=1, keepdim=True)).double().numpy() for x in (data[0], data[2]))
    squared = ((query[:, None] - bank[None]) ** 2).sum(axis=2)
    close(found, -np.sort(squared, axis=1)[:, neighbours - 1])


@pytest.mark.parametrize("name", ["rmds", "rmds-unit"])
def test_rmds_is_the_distance_to_the_nearest_class_less_that_to_all(data, name):
    found, _, _ = scored(data, name)
    features, labels, query = (x.double().numpy() for x in data)
    if name == "rmds-unit":
        features, query = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, query))
    means = np.stack([features[labels == c].mean(axis=0) for c in range(CLASSES)])
    apart = features - means[labels.astype(int)]
    within, total = (np.linalg.pinv(np.cov(x, rowvar=False, bias=True)) for x in (apart, features))

    def squared(x, mean, precision):
        return np.einsum("qd,de,qe->q", x - mean, precision, x - mean)

    of_all = squared(query, features.mean(axis=0), total)
    close(found, np.max([of_all - squared(query, mean, within) for mean in means], axis=0))


def test_rmds_of_directions_without_variance_is_finite(data):
    features, labels, query = (x[:, :] if x.dim() > 1 else x for x in data)
    flat = torch.cat([features, features[:, :1] * 0, features[:, :1]], dim=1)
    head = OpenScoreHead(create("cosine"), open_scores.create("rmds")).fit(flat, labels).write(flat, labels)
    wide = torch.cat([query, query[:, :1] * 0, query[:, :1]], dim=1)
    close(head(wide).amax(dim=-1).numpy(), scored(data, "rmds")[0])


@pytest.mark.parametrize("dimensions", [None, 4])
def test_vim_is_the_energy_less_the_scaled_residual(data, dimensions):
    found, logits, both = scored(data, "vim", dimensions=dimensions, temperature=0.1)
    features, query = data[0].double().numpy(), data[2].double().numpy()
    values, axes = np.linalg.eigh(features.T @ features / len(features))
    outside = axes[:, np.argsort(-values)[WIDTH // 2 if dimensions is None else dimensions :]]
    residual = np.linalg.norm(query @ outside, axis=1)
    close(found, np.log(np.exp(logits / 0.1).sum(axis=1)) - float(both.score.scale) * residual)


def test_the_scale_of_vim_makes_the_residual_as_large_as_the_logits():
    score = open_scores.create("vim", dimensions=2, temperature=0.5)
    features = rows(4, 50)
    score.fit_features(features)
    logits, embedded = torch.rand(5, 10, 3), score.embed(features).reshape(5, 10, 1)
    score.fit_scores(logits, embedded)
    close(float(score.scale), float((logits / 0.5).amax(-1).mean() / embedded.mean()))


def test_fdbd_is_the_sum_of_distances_to_boundaries(data):
    found, logits, _ = scored(data, "fdbd")
    features, labels, query = (x.double().numpy() for x in data)
    weights = np.stack([features[labels == c].mean(axis=0) for c in range(CLASSES)])
    answer = logits.argmax(axis=1)
    between = np.linalg.norm(weights[answer][:, None] - weights[None], axis=2)
    between[np.arange(QUERIES), answer] = 1
    gaps = np.abs(logits - logits.max(axis=1, keepdims=True))
    close(found, (gaps / between).sum(axis=1) / np.linalg.norm(query - features.mean(axis=0), axis=1))


def test_nci_is_the_alignment_with_the_answer_and_the_norm(data):
    found, logits, _ = scored(data, "nci", norm_weight=0.01)
    features, labels, query = (x.double().numpy() for x in data)
    mean = features.mean(axis=0)
    weights = np.stack([features[labels == c].mean(axis=0) for c in range(CLASSES)]) - mean
    apart = query - mean
    aligned = (weights[logits.argmax(axis=1)] * apart).sum(axis=1) / np.linalg.norm(apart, axis=1)
    close(found, aligned + 0.01 * np.abs(query).sum(axis=1))


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("msp", {"temperature": 0}, "temperature must be above 0"),
        ("knn", {"neighbours": 0}, "neighbours must be at least 1"),
        ("gen", {"gamma": 1.0}, "gamma must be above 0 and below 1"),
        ("gen", {"largest": 0}, "largest must be at least 1"),
        ("vim", {"dimensions": 0}, "dimensions must be at least 1"),
        ("nci", {"norm_weight": -1}, "norm_weight must be at least 0"),
        ("nci", {"radius": 1}, "'nci' cannot take these settings"),
    ],
)
def test_settings_outside_their_range_are_refused(name, options, problem):
    with pytest.raises(ValueError, match=problem):
        open_scores.create(name, **options)


def test_vim_refuses_more_dimensions_than_features(data):
    with pytest.raises(ValueError, match="dimensions must be from 1 to 12 for 13 features, got 13"):
        open_scores.create("vim", dimensions=13).fit_features(data[0])
