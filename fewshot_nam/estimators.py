"""Heads as scikit-learn classifiers: ``NAMClassifier`` and ``CosineClassifier``, for pipelines, searches and cross-validation.

They follow scikit-learn's conventions for classifiers and pass its estimator checks. Everything is computed in float64. There is no
randomness: the same rows give the same numbers.

>>> classifier = NAMClassifier().fit([[1.0, 0.1], [0.1, 1.0]], ["cat", "dog"])
>>> classifier.partial_fit([[-1.0, 0.2]], ["cow"]).predict([[0.9, 0.2], [-0.8, 0.1]]).tolist()
['cat', 'cow']
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, column_or_1d

from fewshot_nam._deprecation import renamed_parameter, warn_renamed
from fewshot_nam.heads.base import Head
from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.heads.calibration import Calibration, ShotCalibration
from fewshot_nam.heads.cosine import CosineHead
from fewshot_nam.heads.nam.head import NAMHead, NAMSettings
from fewshot_nam.heads.nam.write_rule import Keys, Reading, WriteRuleHead
from fewshot_nam.heads.validation import Label

__all__ = ["CosineClassifier", "NAMClassifier"]

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[Any]
ClassifierT = TypeVar("ClassifierT", bound="_HeadClassifier")


class _HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A head with scikit-learn's interface; subclasses define the constructor and ``_new_head``."""

    probability_temperature: float
    threshold: float | None
    unknown: Label | None
    classes_: Labels
    head_: Head
    calibration_: Calibration | ShotCalibration

    def _new_head(self) -> Head:
        raise NotImplementedError

    def set_params(self: ClassifierT, **params: Any) -> ClassifierT:
        """Set parameters by name, as every scikit-learn estimator; return the classifier.

        The names of version 0.1 still work, with a warning.

        Raises:
            ValueError: there is no such parameter.
        """
        renamed = getattr(type(self).__init__, "renamed", {})
        for old in renamed.keys() & params.keys():
            warn_renamed(f"{type(self).__name__}: {old}", renamed[old])
            params[renamed[old]] = params.pop(old)
        super().set_params(**params)
        return self

    def fit(self: ClassifierT, X: Any, y: Any) -> ClassifierT:
        """Learn these classes and no others; return the classifier.

        Args:
            X: ``(n, D)`` finite numbers, no row of zeros.
            y: ``(n,)`` labels: ints, strings, or anything else that scikit-learn accepts as classes.

        Raises:
            ValueError: anything else, or a setting outside its range.
        """
        return self._write(X, y, None, anew=True)

    def partial_fit(self: ClassifierT, X: Any, y: Any, classes: Any = None) -> ClassifierT:
        """Learn more rows, of known classes or of new ones; return the classifier.

        The result is the same as one ``fit`` on all rows in their order.

        Args:
            X: ``(n, D)`` as in ``fit``.
            y: ``(n,)`` labels; any call may add new classes.
            classes: labels to add to ``classes_``, besides those of ``y``. A class without rows has probability 0 and the lowest
                float64 as its score, and is never predicted.

        Raises:
            ValueError: as ``fit``. What was learned before is kept.
        """
        return self._write(X, y, classes, anew=not hasattr(self, "head_"))

    def decision_function(self, X: Any) -> Floats:
        """Return the head's scores ``(n, len(classes_))``, larger means more like the class.

        With two classes, by scikit-learn's convention, ``(n,)``: the score of ``classes_[1]`` less that of ``classes_[0]``.
        """
        scores, columns = self._scores(X)
        full = self._spread(scores, columns, np.finfo(np.float64).min)
        return full[:, 1] - full[:, 0] if full.shape[1] == 2 else full

    def predict_proba(self, X: Any) -> Floats:
        """Return ``softmax(scores / probability_temperature)``, ``(n, len(classes_))``.

        The default temperature is not fitted to your data: for calibrated probabilities, wrap the classifier in scikit-learn's
        ``CalibratedClassifierCV``. Probabilities say nothing about unknowns, see ``score_samples``.
        """
        scores, columns = self._scores(X)
        shares = torch.softmax(torch.from_numpy(scores / self.probability_temperature), dim=1).numpy()
        return self._spread(shares, columns, 0.0)

    def score_samples(self, X: Any) -> Floats:
        """Return the largest class score of each row, ``(n,)``; ``predict`` compares it with ``threshold``."""
        best: Floats = self._scores(X)[0].max(axis=1)
        return best

    def predict(self, X: Any) -> Labels:
        """Return the class of each row, ``(n,)``; ``unknown``, if given, for rows that score below the threshold.

        Raises:
            ValueError: ``unknown`` is given, and no threshold is set.
        """
        scores, columns = self._scores(X)
        answers: Labels = self.classes_[columns[scores.argmax(axis=1)]]
        if self.unknown is None:
            return answers
        threshold = self.head_.threshold if self.threshold is None else self.threshold
        if threshold is None:
            raise ValueError(
                f"{type(self).__name__}: unknown={self.unknown!r} needs a threshold to refuse below: give one, or call calibrate "
                "or calibrate_from_shots"
            )
        return np.where(scores.max(axis=1) >= threshold, answers, np.asarray(self.unknown))

    def calibrate(
        self: ClassifierT,
        unknown: Any,
        known: Any = None,
        *,
        target_fpr: float = 0.01,
        unknown_labels: Any = None,
        groups: Any = None,
        confidence: float | None = None,
    ) -> ClassifierT:
        """Set the threshold so that an unknown is accepted with probability ``target_fpr`` at most; return the classifier.

        Call it after ``fit``, with rows of other classes than those learned. ``predict`` then answers ``unknown`` below the
        threshold, which ``partial_fit`` derives again and ``fit`` drops. What it rests on is in ``calibration_``. What is
        guaranteed, and when it is void, is explained at ``fewshot_nam.heads.Head.calibrate``.

        Args:
            unknown: ``(m, D)``, rows of unknown classes, as in ``fit``; ``m`` is at least ``1 / target_fpr - 1``.
            known: ``(n, D)``, rows of known classes that were not learned: tells in ``calibration_.known_accepted`` how many of
                them are accepted. ``None`` for none.
            target_fpr: between 0 and 1.
            unknown_labels: ``(m,)``, the classes of the unknowns: the bound is then for an unknown of a new class.
            groups: ``(m,)``; rows that are alike, such as the frames of a burst, share one.
            confidence: between 0 and 1, the share of calibrations in which the rate stays below the target; ``None`` for a bound
                on average.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: the classifier has no label ``unknown`` to answer, or a ``threshold`` of its own; rows that ``fit`` would
                refuse; too few of them; rows or classes that were learned. The threshold is as before then.

        Example:
            >>> classifier = CosineClassifier(unknown="other").fit([[1.0, 0.1], [0.1, 1.0]], ["cat", "dog"])
            >>> others = [[-1.0, 0.1 * i] for i in range(1, 20)]
            >>> classifier.calibrate(others, target_fpr=0.05).predict([[0.9, 0.2], [-0.9, 0.3]]).tolist()
            ['cat', 'other']
            >>> classifier.calibration_.bound
            0.05
        """
        self._check_refusal("calibrate")
        rows = torch.tensor(_validated(self, unknown, reset=False))
        self.calibration_ = self.head_.calibrate(
            rows,
            None if known is None else torch.tensor(_validated(self, known, reset=False)),
            target_fpr=target_fpr,
            unknown_labels=_plain_labels(unknown_labels),
            groups=_plain_labels(groups),
            confidence=confidence,
        )
        return self

    def calibrate_from_shots(self: ClassifierT, max_rejected: float = 0.05) -> ClassifierT:
        """Set the threshold from the rows learned, so that few rows of known classes are rejected; return the classifier.

        Each row is scored by a head that learned the others. This needs no unknowns, and bounds nothing about them: see
        ``fewshot_nam.heads.Head.calibrate_from_shots``. What it rests on is in ``calibration_``.

        Args:
            max_rejected: largest share of rows of known classes to reject, between 0 and 1; it takes ``1 / max_rejected - 1``
                rows of classes with two or more.

        Raises:
            NotFittedError: ``fit`` was not called.
            ValueError: as ``calibrate``, or too few rows. The threshold is as before then.

        Example:
            >>> rows = [[1.0, 0.01 * i] for i in range(10)] + [[0.01 * i, 1.0] for i in range(10)]
            >>> classifier = CosineClassifier(unknown="other").fit(rows, ["cat"] * 10 + ["dog"] * 10)
            >>> classifier.calibrate_from_shots(max_rejected=0.1).predict([[0.9, 0.05], [-1.0, -1.0]]).tolist()
            ['cat', 'other']
        """
        self._check_refusal("calibrate_from_shots")
        self.calibration_ = self.head_.calibrate_from_shots(max_rejected)
        return self

    def _check_refusal(self, method: str) -> None:
        """Raise unless the classifier is fitted and ``predict`` would use a calibrated threshold."""
        check_is_fitted(self, "head_")
        name = type(self).__name__
        if self.unknown is None:
            raise ValueError(
                f"{name}.{method}: predict has no label to answer below the threshold: give one, such as "
                'set_params(unknown="unknown")'
            )
        self._check_unknown(self.classes_)
        if self.threshold is not None:
            raise ValueError(
                f"{name}.{method}: threshold={self.threshold} is given and takes precedence: set_params(threshold=None) first"
            )

    def _check_unknown(self, known: Labels) -> None:
        """Raise if the answer for unknowns is a class, or of another kind than classes."""
        name = type(self).__name__
        if self.unknown is None:
            return
        if isinstance(self.unknown, str) != isinstance(_plain(known[0]), str):
            raise ValueError(
                f"{name}: unknown={self.unknown!r} must be of the kind of the labels, such as {known[0]!r}"
            )
        if self.unknown in known:
            raise ValueError(f"{name}: unknown={self.unknown!r} is one of the classes: rename either")

    def _write(self: ClassifierT, X: Any, y: Any, classes: Any, anew: bool) -> ClassifierT:
        self._check_settings()
        X, y = _validated(self, X, y, reset=anew)
        check_classification_targets(y)
        parts = [y] if anew else [self.classes_, y]
        if classes is not None:
            parts.append(column_or_1d(classes))
        unique_labels(*parts)  # raises where strings and numbers are mixed
        known = np.unique(np.concatenate(parts))
        self._check_unknown(known)
        head = self._new_head() if anew else self.head_
        head.write(torch.tensor(X), [_plain(label) for label in y])
        self.head_, self.classes_ = head, known
        if anew and hasattr(self, "calibration_"):
            del self.calibration_
        return self

    def _check_settings(self) -> None:
        name = type(self).__name__
        if not (isinstance(self.probability_temperature, Real) and 0 < self.probability_temperature < math.inf):
            raise ValueError(f"{name}: probability_temperature must be above 0, got {self.probability_temperature}")
        if self.threshold is not None and (not isinstance(self.threshold, Real) or math.isnan(self.threshold)):
            raise ValueError(f"{name}: threshold must be a number, or None, got {self.threshold}")
        if self.threshold is not None and self.unknown is None:
            raise ValueError(f"{name}: threshold={self.threshold} needs unknown=, the label to answer below it")

    def _scores(self, X: Any) -> tuple[Floats, npt.NDArray[np.intp]]:
        """Return scores ``(n, k)`` of the classes that have rows, and their positions ``(k,)`` in ``classes_``, ascending."""
        check_is_fitted(self, "head_")
        self._check_settings()  # set_params may have changed them since
        self._check_unknown(self.classes_)
        X = _validated(self, X, reset=False)
        column = {label: i for i, label in enumerate(self.head_.classes)}
        pairs = [(i, column[_plain(label)]) for i, label in enumerate(self.classes_) if _plain(label) in column]
        with torch.inference_mode():
            scores = self.head_(torch.tensor(X)).numpy()
        return scores[:, [j for _, j in pairs]], np.array([i for i, _ in pairs])

    def _spread(self, values: Floats, columns: npt.NDArray[np.intp], otherwise: float) -> Floats:
        """Return ``(n, len(classes_))``, ``values`` in their columns and ``otherwise`` in the others."""
        full = np.full((len(values), len(self.classes_)), otherwise)
        full[:, columns] = values
        return full


class NAMClassifier(_HeadClassifier):
    """The NAM head (``fewshot_nam.heads.NAMHead``) as a scikit-learn classifier, or the paper's rule (``WriteRuleHead``).

    Args:
        mode: ``"block"``: ``NAMHead``. ``"sequential"`` and ``"parallel"``: ``WriteRuleHead``; in sequential mode, the order of
            rows matters.
        keys, reading, p_write, p_erase: as in ``WriteRuleHead``; they have no meaning in block mode.
        base: what is known of base classes (``fewshot_nam.heads.BaseStatistics``); ``None`` for nothing.
        settings: in block mode, constants of the head that differ from the default, as ``NAMSettings`` or as a mapping.
        keep_shots: in block mode, whether every row is kept, or sums over rows in their place, as in ``NAMHead``.
        probability_temperature: divisor of the scores in ``predict_proba``, above 0.
        unknown: the answer of ``predict`` for rows that score below the threshold; not one of the classes. ``None``: every row is
            given a class.
        threshold: smallest accepted score; ``None`` for the one that ``calibrate`` or ``calibrate_from_shots`` sets.

    Attributes:
        classes_: ``(C,)`` labels, sorted.
        head_: the head that has learned them.
        calibration_: what the calibrated threshold rests on (``fewshot_nam.heads.Calibration``, or ``ShotCalibration``); absent
            until it is calibrated. Its numbers are those of the time of the call.
        n_features_in_: ``D``.
        feature_names_in_: ``(D,)`` names, where ``X`` had names.

    Example:
        >>> classifier = NAMClassifier(unknown="unknown", threshold=0.5)
        >>> classifier.fit([[1.0, 0.1], [0.9, 0.2], [0.1, 1.0]], ["cat", "cat", "dog"]).classes_.tolist()
        ['cat', 'dog']
        >>> classifier.predict([[1.0, 0.2], [-1.0, -1.0]]).tolist()
        ['cat', 'unknown']
    """

    def __init__(
        self,
        mode: Literal["block", "sequential", "parallel"] = "block",
        *,
        keys: Keys = "prototypes",
        reading: Reading | None = None,
        p_write: float = 1.0,
        p_erase: float = 1.0,
        base: BaseStatistics | None = None,
        settings: NAMSettings | Mapping[str, float] | None = None,
        keep_shots: bool = True,
        probability_temperature: float = 0.05,
        unknown: Label | None = None,
        threshold: float | None = None,
    ) -> None:
        self.mode = mode
        self.keys = keys
        self.reading = reading
        self.p_write = p_write
        self.p_erase = p_erase
        self.base = base
        self.settings = settings
        self.keep_shots = keep_shots
        self.probability_temperature = probability_temperature
        self.unknown = unknown
        self.threshold = threshold

    def _new_head(self) -> Head:
        if self.mode == "block":
            if (self.keys, self.reading, self.p_write, self.p_erase) != ("prototypes", None, 1.0, 1.0):
                raise ValueError(
                    "NAMClassifier: keys, reading, p_write and p_erase are those of the sequential and parallel modes"
                )
            return NAMHead(self.base, settings=self.settings, keep_shots=self.keep_shots)
        if self.settings is not None:
            raise ValueError(f"NAMClassifier: settings are those of mode='block', got mode={self.mode!r}")
        return WriteRuleHead(
            self.mode,
            keys=self.keys,
            reading=self.reading,
            p_write=self.p_write,
            p_erase=self.p_erase,
            base=self.base,
        )


class CosineClassifier(_HeadClassifier):
    """The cosine head (``fewshot_nam.heads.CosineHead``) as a scikit-learn classifier.

    Args:
        log_partition_penalty, temperature, power_norm: as in ``CosineHead``.
        base: what is known of base classes: their mean is subtracted from every row first; ``None`` subtracts nothing.
        probability_temperature, unknown, threshold: as in ``NAMClassifier``.

    Attributes:
        classes_, head_, calibration_, n_features_in_, feature_names_in_: as in ``NAMClassifier``.

    Example:
        >>> classifier = CosineClassifier().fit([[2.0, 0.0], [0.0, 1.0]], ["cat", "dog"])
        >>> classifier.predict([[3.0, 1.0]]).tolist()
        ['cat']
        >>> classifier.decision_function([[3.0, 4.0]]).round(3).tolist()  # two classes: cosine to "dog" less that to "cat"
        [0.2]
    """

    @renamed_parameter("compete", "log_partition_penalty")
    @renamed_parameter("root", "power_norm")
    @accepts_old_base_words
    def __init__(
        self,
        *,
        log_partition_penalty: float = 0.0,
        temperature: float = 0.1,
        power_norm: bool = False,
        base: BaseStatistics | None = None,
        probability_temperature: float = 0.05,
        unknown: Label | None = None,
        threshold: float | None = None,
    ) -> None:
        self.log_partition_penalty = log_partition_penalty
        self.temperature = temperature
        self.power_norm = power_norm
        self.base = base
        self.probability_temperature = probability_temperature
        self.unknown = unknown
        self.threshold = threshold

    def _new_head(self) -> CosineHead:
        return CosineHead(
            log_partition_penalty=self.log_partition_penalty,
            temperature=self.temperature,
            power_norm=self.power_norm,
            base=self.base,
        )


def _validated(estimator: Any, X: Any, y: Any = "no_validation", *, reset: bool) -> Any:
    """Return ``X`` as float64, and ``y`` where it is given, checked by scikit-learn."""
    try:
        from sklearn.utils.validation import validate_data
    except ImportError:  # before 1.6 it was a method
        return estimator._validate_data(X, y, reset=reset, dtype=np.float64)
    return validate_data(estimator, X, y, reset=reset, dtype=np.float64)


def _plain_labels(labels: Any) -> list[Label] | None:
    """Return labels as heads take them."""
    return None if labels is None else [_plain(label) for label in column_or_1d(labels)]


def _plain(label: Any) -> Any:
    """Return a label as heads take it: a plain int or string (scikit-learn also takes whole floats and bools for classes)."""
    if isinstance(label, (bytes, str)):
        return label if isinstance(label, bytes) else str(label)
    if int(label) != label:
        raise ValueError(f"labels and groups are whole numbers or strings, got {label}")
    return int(label)
