"""The heads as scikit-learn classifiers: scikit-learn's own checks, its tools around them, and the promises of heads besides."""

import inspect
import io
import math

import joblib
import numpy as np
import pytest
import sklearn
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fewshot_nam.estimators import CosineClassifier, NAMClassifier
from fewshot_nam.heads import BaseStatistics, CosineHead, NAMHead, NAMSettings, WriteRuleHead

CLASSIFIERS = [NAMClassifier, CosineClassifier]
SETTINGS = [
    NAMClassifier(),
    NAMClassifier("sequential"),
    NAMClassifier("parallel", keys="shots", reading="raw"),
    CosineClassifier(),
    CosineClassifier(log_partition_penalty=1.0, temperature=1.0, power_norm=True),
]
# The one check that heads cannot pass, since its rows, cut down to whole numbers, hold a row of zeros.
FAILING = {"check_estimators_dtypes": "a row of zeros has no direction, and no head takes one: refused with an error"}
RECENT = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 6)


def _failing(_estimator) -> dict[str, str]:
    return FAILING


@parametrize_with_checks(SETTINGS, **({"expected_failed_checks": _failing} if RECENT else {}))
def test_scikit_learns_checks_pass(estimator, check):
    name = getattr(check, "func", check).__name__
    if name in FAILING and not RECENT:
        with pytest.raises(ValueError, match="is zero"):
            check(estimator)
        pytest.xfail(FAILING[name])
    check(estimator)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_whole_numbers_are_fine_where_no_row_is_zero(classifier):
    rows, labels = np.array([[3, 0], [0, 2], [4, 1], [1, 5]]), [0, 1, 0, 1]
    for dtype in (np.int32, np.int64, np.float32, np.float64, bool):
        fitted = classifier().fit(rows.astype(dtype)[:2], labels[:2])
        assert fitted.predict(rows[:2]).tolist() == [0, 1]
        assert fitted.decision_function(rows.astype(dtype)).dtype == np.float64


def digits() -> tuple[np.ndarray, np.ndarray]:
    return load_digits(return_X_y=True)


def blobs(seed: int = 0, classes: int = 4, each: int = 6, width: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Return rows around class centres, in mixed order, labels "c0", "c1", ..."""
    random = np.random.RandomState(seed)
    rows = (random.randn(classes, 1, width) + 0.7 * random.randn(classes, each, width)).reshape(-1, width)
    labels = np.repeat([f"c{i}" for i in range(classes)], each)
    order = random.permutation(len(rows))
    return rows[order], labels[order]


def base(classes: int) -> BaseStatistics:
    return BaseStatistics.from_prototypes(torch.tensor(np.random.RandomState(1).rand(classes, 7)))


MEAN = BaseStatistics.from_mean(torch.full((7,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("classifier", "head", "options"),
    [
        (NAMClassifier, NAMHead, {}),
        (NAMClassifier, WriteRuleHead, {"mode": "sequential", "p_erase": 0.5}),
        (NAMClassifier, WriteRuleHead, {"mode": "parallel", "base": MEAN, "p_write": 0.7, "reading": "raw"}),
        (NAMClassifier, NAMHead, {"settings": {"ridge": 1.0, "log_partition_penalty": 0.1}}),
        (NAMClassifier, NAMHead, {"base": MEAN, "settings": NAMSettings(temperature=0.3)}),
        (NAMClassifier, NAMHead, {"base": base(12), "settings": {"query_cohort_weight": 0.9}}),
        (CosineClassifier, CosineHead, {}),
        (
            CosineClassifier,
            CosineHead,
            {"log_partition_penalty": 0.5, "temperature": 0.2, "power_norm": True, "base": MEAN},
        ),
        (CosineClassifier, CosineHead, {"base": base(3)}),
    ],
)
def test_scores_are_those_of_the_head(classifier, head, options):
    rows, labels = blobs()
    query, _ = blobs(1)
    direct = head(**options).write(torch.tensor(rows), labels.tolist())
    fitted = classifier(**options).fit(rows, labels)
    columns = [direct.classes.index(name) for name in ("c0", "c1", "c2", "c3")]
    expected = direct(torch.tensor(query))[:, columns]
    np.testing.assert_array_equal(fitted.decision_function(query), expected.numpy())
    assert fitted.predict(query).tolist() == direct.predict(torch.tensor(query))
    assert fitted.classes_.tolist() == ["c0", "c1", "c2", "c3"]
    shares = torch.softmax(expected / fitted.probability_temperature, dim=1).numpy()
    np.testing.assert_allclose(fitted.predict_proba(query), shares, rtol=1e-12)
    np.testing.assert_array_equal(fitted.score_samples(query), expected.amax(dim=1).numpy())


@pytest.mark.parametrize(("classifier", "head"), [(NAMClassifier, NAMHead), (CosineClassifier, CosineHead)])
def test_settings_are_those_of_the_head_with_its_defaults(classifier, head):
    ours, theirs = (
        {name: p.default for name, p in inspect.signature(c.__init__).parameters.items() if name != "self"}
        for c in (classifier, head)
    )
    rule = {"mode", "keys", "reading", "p_write", "p_erase"} if head is NAMHead else set()
    for name in {"probability_temperature", "unknown", "threshold"} | rule:
        del ours[name]
    for name in ("scale", "learn_scale", "old"):  # what probability_temperature does, training, words that are refused
        theirs.pop(name, None)
    assert ours == theirs


def test_the_nam_head_takes_no_gates_of_the_paper_s_rule():
    with pytest.raises(
        ValueError, match="keys, reading, p_write and p_erase are those of the sequential and parallel modes"
    ):
        NAMClassifier(p_erase=0.5).fit([[1.0, 0.0], [0.0, 1.0]], [0, 1])


def test_the_paper_s_rule_takes_no_settings_of_the_nam_head():
    with pytest.raises(ValueError, match="settings are those of mode='block', got mode='sequential'"):
        NAMClassifier("sequential", settings={"ridge": 1.0}).fit([[1.0, 0.0], [0.0, 1.0]], [0, 1])


@pytest.mark.parametrize("estimator", SETTINGS, ids=repr)
@given(cuts=st.lists(st.integers(1, 23), unique=True, max_size=5))
def test_learning_in_parts_is_learning_at_once(estimator, cuts):
    rows, labels = blobs()
    query, _ = blobs(1)
    parts = clone(estimator)
    for some, their in zip(np.split(rows, sorted(cuts)), np.split(labels, sorted(cuts)), strict=True):
        parts.partial_fit(some, their)
    whole = clone(estimator).fit(rows, labels)
    assert parts.classes_.tolist() == whole.classes_.tolist()
    np.testing.assert_array_equal(parts.decision_function(query), whole.decision_function(query))


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_new_class_finds_its_place_among_the_sorted(classifier):
    fitted = classifier().fit([[1.0, 0.1, 0.1], [0.1, 1.0, 0.1]], ["cat", "hen"])
    assert fitted.decision_function([[1.0, 0.0, 0.0]]).shape == (1,)
    fitted.partial_fit([[0.1, 0.1, 1.0]], ["dromedary"])
    assert fitted.classes_.tolist() == ["cat", "dromedary", "hen"]
    assert fitted.predict(np.eye(3)).tolist() == ["cat", "hen", "dromedary"]
    assert fitted.decision_function(np.eye(3)).argmax(axis=1).tolist() == [0, 2, 1]


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_fit_forgets_and_takes_another_width(classifier):
    fitted = classifier().fit(np.eye(3), ["a", "b", "c"])
    fitted.fit(np.eye(2), [5, 7])
    assert fitted.classes_.tolist() == [5, 7]
    assert fitted.n_features_in_ == 2
    with pytest.raises(ValueError, match="expecting 2 features"):
        fitted.partial_fit(np.eye(3), [5, 6, 7])
    assert fitted.classes_.tolist() == [5, 7]


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_two_classes_have_one_decision_and_its_sign_is_the_answer(classifier):
    rows, labels = blobs(classes=2)
    query, _ = blobs(3, classes=2)
    fitted = classifier().fit(rows, labels)
    head = fitted.head_(torch.tensor(query))
    column = [fitted.head_.classes.index(name) for name in ("c0", "c1")]
    decisions = fitted.decision_function(query)
    np.testing.assert_array_equal(decisions, (head[:, column[1]] - head[:, column[0]]).numpy())
    assert np.where(decisions > 0, "c1", "c0").tolist() == fitted.predict(query).tolist()
    assert set(fitted.predict(query)) == {"c0", "c1"}


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_one_class_is_enough(classifier):
    fitted = classifier().fit([[1.0, 2.0]], ["only"])
    assert fitted.predict([[2.0, 1.0], [-1.0, 0.0]]).tolist() == ["only", "only"]
    assert fitted.predict_proba([[2.0, 1.0]]).tolist() == [[1.0]]
    assert fitted.decision_function([[2.0, 1.0]]).shape == (1, 1)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_classes_announced_have_a_place_and_are_not_answered_before_they_come(classifier):
    rows = np.eye(3)
    fitted = classifier().partial_fit(rows[:1], [1], classes=[0, 1, 2])
    assert fitted.classes_.tolist() == [0, 1, 2]
    assert fitted.predict(-np.ones((1, 3))).tolist() == [1]
    assert fitted.predict_proba(rows).tolist() == [[0.0, 1.0, 0.0]] * 3
    decisions = fitted.decision_function(rows)
    assert np.isfinite(decisions).all()
    assert decisions.argmax(axis=1).tolist() == [1, 1, 1]
    fitted.partial_fit(rows[1:], [0, 7])
    assert fitted.classes_.tolist() == [0, 1, 2, 7]
    assert fitted.predict(rows).tolist() == [1, 0, 7]
    np.testing.assert_allclose(fitted.predict_proba(rows).sum(axis=1), 1.0)
    assert (fitted.predict_proba(rows)[:, 2] == 0).all()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("first", [0, 1])
def test_of_two_announced_classes_the_one_that_came_is_answered(classifier, first):
    fitted = classifier().partial_fit([[1.0, 0.2]], [first], classes=[0, 1])
    decision = fitted.decision_function([[0.3, 1.0]])
    assert np.isfinite(decision).all()
    assert (decision > 0).tolist() == [first == 1]


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_labels_may_be_whatever_scikit_learn_takes_for_classes(classifier):
    rows = np.eye(3)
    for labels in (
        [2, 0, 1],
        ["b", "a", "c"],
        [2.0, 0.0, 1.0],
        np.array(["b", "a", "c"], dtype=object),
        [True, False, True],
    ):
        fitted = classifier().fit(rows, labels)
        answers = fitted.predict(rows)
        assert answers.tolist() == list(labels)
        assert answers.dtype == fitted.classes_.dtype
    fitted = classifier().fit(rows, [2.0, 0.0, 1.0]).partial_fit([[1.0, 1.0, 0.0]], [3])
    assert fitted.predict(rows).tolist() == [2.0, 0.0, 1.0]


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_the_same_rows_give_the_same_numbers_and_float32_counts_as_it_is(classifier):
    rows, labels = blobs()
    query, _ = blobs(1)
    first, second = (classifier().fit(rows, labels).decision_function(query) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    small = classifier().fit(rows.astype(np.float32), labels)
    wide = classifier().fit(rows.astype(np.float32).astype(np.float64), labels)
    np.testing.assert_array_equal(small.decision_function(query), wide.decision_function(query))
    alone = np.concatenate([wide.decision_function(row[None]) for row in query])
    np.testing.assert_allclose(alone, wide.decision_function(query), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_it_refuses_below_the_threshold_and_accepts_at_it(classifier):
    rows, labels = blobs(classes=3)
    query, _ = blobs(1)
    plain = classifier().fit(rows, labels)
    best = plain.score_samples(query)
    threshold = float(np.sort(best)[5])
    refusing = classifier(unknown="neither", threshold=threshold).fit(rows, labels)
    answers = refusing.predict(query)
    assert (answers == "neither").sum() == 5
    assert ((answers == "neither") == (best < threshold)).all()
    assert (answers == plain.predict(query))[best >= threshold].all()
    assert "neither" not in refusing.classes_
    assert refusing.score(query, answers) == 1.0
    whole = classifier(unknown=-1, threshold=threshold).fit(rows, [int(name[1]) for name in labels])
    assert (whole.predict(query) == -1).sum() == 5


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_without_a_threshold_of_its_own_it_takes_the_calibrated_one(classifier):
    rows, labels = blobs(classes=3)
    unknowns = torch.tensor(blobs(5, each=10)[0])
    fitted = classifier(unknown="neither").fit(rows, labels)
    with pytest.raises(ValueError, match="needs a threshold to refuse below"):
        fitted.predict(rows)
    threshold = fitted.head_.calibrate(unknowns, target_fpr=0.1).threshold
    answers = fitted.predict(unknowns.numpy())
    assert ((answers == "neither") == (fitted.score_samples(unknowns.numpy()) < threshold)).all()
    assert (answers == "neither").mean() >= 0.9


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_calibrate_is_that_of_the_head_and_predict_then_refuses(classifier):
    rows, labels = blobs(classes=3)
    unknowns, names = blobs(5, each=10)
    known, _ = blobs(9, classes=3)
    direct = classifier().fit(rows, labels).head_
    options = {"target_fpr": 0.3, "confidence": 0.6}
    names = np.char.add("u", names)
    with pytest.raises(ValueError, match=r"whole numbers or strings, got 0\.5"):
        classifier(unknown="neither").fit(rows, labels).calibrate(
            unknowns, target_fpr=0.3, groups=np.arange(len(unknowns)) / 2
        )
    for more in ({}, {"unknown_labels": names}, {"groups": np.arange(len(unknowns)) // 2}):
        of_head = {key: each.tolist() for key, each in more.items()}
        expected = direct.calibrate(torch.tensor(unknowns), torch.tensor(known), **options, **of_head)
        fitted = classifier(unknown="neither").fit(rows, labels)
        assert fitted.calibrate(unknowns, known, **options, **more) is fitted
        assert fitted.calibration_.threshold == expected.threshold
        assert fitted.calibration_.known_accepted == expected.known_accepted
        below = fitted.score_samples(known) < expected.threshold
        assert ((fitted.predict(known) == "neither") == below).all()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_calibrated_threshold_follows_partial_fit_and_ends_with_fit(classifier):
    rows, labels = blobs(classes=4)
    first = np.isin(labels, ["c0", "c1"])
    fitted = classifier(unknown="neither").fit(rows[first], labels[first])
    unknowns, _ = blobs(5, each=10)
    fitted.calibrate(unknowns, target_fpr=0.1).partial_fit(rows[~first], labels[~first])
    at_once = classifier(unknown="neither").fit(rows, labels).calibrate(unknowns, target_fpr=0.1)
    assert fitted.head_.threshold == pytest.approx(at_once.calibration_.threshold)
    assert (fitted.predict(unknowns) == "neither").mean() >= 0.9
    fitted.fit(rows, labels)
    assert not hasattr(fitted, "calibration_")
    with pytest.raises(ValueError, match="needs a threshold to refuse below: give one, or call calibrate or"):
        fitted.predict(rows)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_threshold_from_shots_is_that_of_the_head(classifier):
    rows, labels = blobs(classes=3)
    query, _ = blobs(1)
    fitted = classifier(unknown="neither").fit(rows, labels).calibrate_from_shots(0.2)
    expected = classifier().fit(rows, labels).head_.calibrate_from_shots(0.2)
    assert fitted.calibration_ == expected
    below = fitted.score_samples(query) < expected.threshold
    assert ((fitted.predict(query) == "neither") == below).all()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_calibrations_that_cannot_be_are_refused_and_change_nothing(classifier):
    rows, labels = blobs(classes=3)
    unknowns, _ = blobs(5, each=10)

    def calls(estimator):
        return lambda: estimator.calibrate(unknowns, target_fpr=0.1), lambda: estimator.calibrate_from_shots(0.2)

    for call in calls(classifier(unknown="neither")):
        with pytest.raises(NotFittedError):
            call()
    for call in calls(classifier().fit(rows, labels)):
        with pytest.raises(ValueError, match="predict has no label to answer below the threshold"):
            call()
    for call in calls(classifier(unknown="neither", threshold=0.5).fit(rows, labels)):
        with pytest.raises(ValueError, match=r"threshold=0\.5 is given and takes precedence"):
            call()
    for call in calls(classifier().fit(rows, labels).set_params(unknown="c1")):
        with pytest.raises(ValueError, match="'c1' is one of the classes"):
            call()
    fitted = classifier(unknown="neither").fit(rows, labels).calibrate(unknowns, target_fpr=0.1)
    before = fitted.calibration_
    for refused, message in (
        (unknowns[:, :3], "expecting 7 features"),
        (unknowns[:3], "needs at least 9 samples"),
        (rows, "were written"),
        (0 * unknowns, "is zero"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted.calibrate(refused, target_fpr=0.1)
    assert fitted.calibration_ is before
    assert fitted.head_.threshold == before.threshold


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({"threshold": 0.5}, ["a", "b"], "threshold=0.5 needs unknown="),
        ({"unknown": "a"}, ["a", "b"], "'a' is one of the classes"),
        ({"unknown": -1}, ["a", "b"], "must be of the kind of the labels"),
        ({"unknown": "x"}, [1, 2], "must be of the kind of the labels"),
        ({"probability_temperature": 0.0}, [1, 2], "probability_temperature must be above 0, got 0.0"),
        ({"base": BaseStatistics.from_mean(torch.ones(3))}, [1, 2], "width 3"),
        ({}, [0.5, 1.5], "continuous"),
    ],
)
def test_settings_and_labels_that_cannot_be_used_are_refused_by_fit(classifier, options, labels, message):
    with pytest.raises(ValueError, match=message):
        classifier(**options).fit(np.eye(2), labels)


@pytest.mark.parametrize(
    ("classifier", "options", "message"),
    [
        (NAMClassifier, {"settings": {"temperature": -1.0}}, "temperature must be above 0"),
        (NAMClassifier, {"settings": {"rigde": 1.0}}, "NAMSettings has no 'rigde'"),
        (CosineClassifier, {"temperature": -1.0}, "temperature must be above 0"),
        (CosineClassifier, {"log_partition_penalty": 2.0}, "log_partition_penalty must be from 0 to 1"),
    ],
)
def test_constants_of_a_head_outside_their_range_are_refused_by_fit(classifier, options, message):
    with pytest.raises(ValueError, match=message):
        classifier(**options).fit(np.eye(2), [1, 2])


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_bad_rows_and_labels_are_refused_and_change_nothing(classifier):
    fitted = classifier().fit(np.eye(3), ["a", "b", "c"])
    before = fitted.decision_function(np.ones((1, 3)))
    for rows, labels, message in (
        ([[0.0, 0.0, 0.0]], ["d"], "is zero"),
        ([[np.nan, 1.0, 1.0]], ["d"], "NaN"),
        ([[np.inf, 1.0, 1.0]], ["d"], "infinity"),
        ([[1e200, 1.0, 1.0]], ["d"], "too large"),
        ([[1.0, 1.0, 1.0]], [4], "Mix of label input types"),
        ([[1.0, 1.0, 1.0]], ["d", "e"], "inconsistent numbers of samples"),
        ([[1.0, 1.0]], ["d"], "expecting 3 features"),
        (np.empty((0, 3)), [], "minimum of 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted.partial_fit(rows, labels)
    for rows, message in (([[0.0] * 3], "is zero"), ([[np.nan] * 3], "NaN"), ([1.0, 2.0, 3.0], "Expected 2D")):
        with pytest.raises(ValueError, match=message):
            fitted.predict(rows)
    assert fitted.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(fitted.decision_function(np.ones((1, 3))), before)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function", "score_samples"])
def test_nothing_is_answered_before_anything_is_learned(classifier, method):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(classifier(), method)(np.eye(2))


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_joblib_brings_it_back(classifier):
    rows, labels = blobs()
    fitted = classifier().fit(rows, labels)
    expected = fitted.decision_function(rows)
    kept = io.BytesIO()
    joblib.dump(fitted, kept)
    kept.seek(0)
    back = joblib.load(kept)
    np.testing.assert_array_equal(back.decision_function(rows), expected)
    assert back.partial_fit(rows[:1], ["new"]).classes_.tolist() == [*fitted.classes_, "new"]
    assert "new" not in fitted.classes_


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_names_of_columns_are_kept_and_looked_at(classifier):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame(np.eye(3) + 0.1, columns=["x", "y", "z"])
    fitted = classifier().fit(table, pandas.Series(["a", "b", "c"]))
    assert fitted.feature_names_in_.tolist() == ["x", "y", "z"]
    assert fitted.predict(table).tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.predict(table[["z", "y", "x"]])


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_it_works_inside_scikit_learns_tools_on_digits(classifier):
    rows, labels = digits()
    rows, labels = rows[:600], labels[:600]
    pipeline = make_pipeline(StandardScaler(), classifier())
    scores = cross_val_score(pipeline, rows, labels, cv=3)
    assert scores.min() > 0.7
    name = classifier.__name__.lower()
    grid = (
        {"settings": [{"ridge": 0.1}, {"ridge": 100.0}]}
        if classifier is NAMClassifier
        else {"log_partition_penalty": [0.0, 0.9], "temperature": [0.1]}
    )
    search = GridSearchCV(pipeline, {f"{name}__{key}": values for key, values in grid.items()}, cv=2)
    assert search.fit(rows, labels).best_score_ > 0.7
    assert search.best_estimator_.predict(rows[:3]).shape == (3,)
    crossed = cross_val_predict(classifier(), rows, labels, cv=3, method="decision_function")
    assert roc_auc_score(labels, np.exp(crossed) / np.exp(crossed).sum(1, keepdims=True), multi_class="ovr") > 0.95


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibration_by_scikit_learn_makes_probabilities_better(classifier, method):
    rows, labels = digits()
    known, asked, theirs, answers = train_test_split(rows, labels, train_size=600, random_state=0, stratify=labels)
    vague = classifier(probability_temperature=5.0)
    calibrated = CalibratedClassifierCV(vague, method=method, cv=3).fit(known, theirs)
    alone = log_loss(answers, vague.fit(known, theirs).predict_proba(asked))
    assert log_loss(answers, calibrated.predict_proba(asked)) < 0.7 * alone
    assert calibrated.score(asked, answers) > 0.8


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_the_default_temperature_is_plausible_on_digits(classifier):
    rows, labels = digits()
    known, asked, theirs, answers = train_test_split(rows, labels, train_size=50, random_state=0, stratify=labels)
    losses = {
        factor: log_loss(
            answers,
            classifier(probability_temperature=classifier().probability_temperature * factor)
            .fit(known, theirs)
            .predict_proba(asked),
        )
        for factor in (0.2, 1.0, 5.0)
    }
    assert losses[1.0] == min(losses.values())


def test_old_names_of_parameters_still_work():
    with pytest.warns(DeprecationWarning, match="CosineClassifier: compete= is deprecated"):
        classifier = CosineClassifier(compete=0.3)
    assert classifier.get_params()["log_partition_penalty"] == 0.3
    with pytest.warns(DeprecationWarning, match="CosineClassifier: root is deprecated .* use power_norm"):
        assert classifier.set_params(root=True).power_norm
    with pytest.raises(ValueError, match="Invalid parameter 'roto'"):
        classifier.set_params(roto=True)
    with pytest.warns(DeprecationWarning, match="CosineClassifier: mean= is deprecated .* use base="):
        centred = CosineClassifier(mean=[0.1] * 7)
    assert centred.base.mean.tolist() == [0.1] * 7


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"unknown": "c0", "threshold": 2.0}, "is one of the classes"),
        ({"unknown": 7, "threshold": 2.0}, "must be of the kind of the labels"),
        ({"probability_temperature": -1}, "must be above 0"),
        ({"probability_temperature": "1"}, "must be above 0"),
        ({"unknown": "none", "threshold": math.nan}, "must be a number"),
        ({"unknown": "none", "threshold": "0.5"}, "must be a number"),
    ],
)
def test_what_fit_refuses_is_refused_where_it_is_set_later(classifier, changed, message):
    """Refused rows were answered with a class, and the order of probabilities was turned round."""
    rows, labels = blobs(classes=3)
    fitted = classifier().fit(rows, labels).set_params(**changed)
    for call in (fitted.predict, fitted.predict_proba):
        with pytest.raises(ValueError, match=message):
            call(rows)
