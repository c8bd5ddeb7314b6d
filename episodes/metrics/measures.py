"""The measures of an episode as functions of score arrays: one value per episode, batched over episodes.

Shapes: E episodes, K known queries (their class is in the episode), U unknown queries (it is not), C classes. Scores
are float; a larger score means more like that class. Targets are the column of the true class, `(E, K)` or, where all
episodes agree, `(K,)`. A query's acceptance score is its largest class score, and it is accepted when that is >= the
threshold: ties accept. Where two classes tie for the largest score, the first is the answer, as in `torch.argmax`. Every
function returns float64 `(E,)` and raises ValueError on a wrong shape, NaN or infinite scores, no queries, or a target
out of range. `episodes.metrics.registry` lists the measures that `evaluate` reports.

Curves: OSCR is Dhamija et al. 2018 (arXiv 1811.04110), AUSUC is Chao et al. 2016 (arXiv 1605.04253). Every area here is
one rank statistic, P(a > b) + P(a = b) / 2, with a wrong answer counted as never ranked above anything.
"""

import math

from torch import Tensor

from episodes.metrics.registry import MEASURES, measured
from episodes.metrics.scores import (
    ClassFPR,
    Frozen,
    Scores,
    check_scores,
    check_targets,
    harmonic_mean,
    joint_scores,
    open_scores,
    threshold_at_tpr,
)

__all__ = [
    "MEASURES",
    "ClassFPR",
    "accuracy",
    "auroc",
    "ausuc",
    "class_fpr",
    "frozen_measures",
    "generalized_measures",
    "harmonic_mean",
    "open_fpr",
    "open_measures",
    "oscr",
    "threshold_at_tpr",
]


def accuracy(known: Tensor, targets: Tensor) -> Tensor:
    """Share of known queries `(E, K, C)` whose largest score is that of their class.

    >>> import torch
    >>> accuracy(torch.tensor([[[3.0, 0.0], [1.0, 2.0]]]), torch.tensor([0, 0])).tolist()
    [0.5]
    """
    known = check_scores("accuracy", "known", known)
    return Scores(known, check_targets("accuracy", targets, known)).accuracy()


def open_fpr(known: Tensor, unknown: Tensor, tpr: float = 0.95) -> Tensor:
    """Share of unknown queries `(E, U, C)` accepted at the largest threshold that accepts `tpr` of the known."""
    scores = open_scores("open_fpr", known, None, unknown)
    return scores.unknown_accepted(threshold_at_tpr(scores.best, tpr))


def class_fpr(known: Tensor, targets: Tensor, unknown: Tensor, tpr: float = 0.95) -> ClassFPR:
    """Share of (query, class) pairs accepted whose class is not the query's own: every class is a detector.

    The threshold is the largest that accepts `tpr` of the K true pairs (a known query with its own class).

    Args:
        known: scores of known queries `(E, K, C)`.
        targets: column of each known query's class, `(E, K)` or `(K,)`.
        unknown: scores of unknown queries `(E, U, C)`.
        tpr: share of the true pairs to accept, in (0, 1].

    Returns:
        Shares over all K (C - 1) + U C wrong pairs and over each part. `known` is NaN where C = 1: it has no such pair.

    """
    scores = open_scores("class_fpr", known, targets, unknown)
    return scores.class_fpr_at(threshold_at_tpr(scores.true, tpr))


def auroc(known: Tensor, unknown: Tensor) -> Tensor:
    """Area under the ROC curve of known `(E, K, C)` against unknown `(E, U, C)` acceptance scores, ties half."""
    return open_scores("auroc", known, None, unknown).auroc()


def oscr(known: Tensor, targets: Tensor, unknown: Tensor) -> Tensor:
    """Area under the open-set classification rate: known queries right and accepted, against unknown ones accepted.

    As the threshold falls past a value v, the curve moves right by P(unknown = v) and up by P(right, known = v), in a
    straight line. The area below is P(unknown = v) (P(right, known > v) + P(right, known = v) / 2), and summed over v
    that is P(right, known > unknown) + P(right, known = unknown) / 2: `auroc` where wrong answers never win.

    Arguments as `class_fpr`. At most the accuracy.
    """
    return open_scores("oscr", known, targets, unknown).oscr()


def ausuc(base: Tensor, base_targets: Tensor, novel: Tensor, novel_targets: Tensor, num_base: int) -> Tensor:
    """Area under base accuracy against novel accuracy as one bias on all novel scores sweeps from -inf to inf.

    A query's margin is its largest base minus its largest novel score. As the bias passes b, novel accuracy rises by
    P(right, novel margin = b) while base accuracy is P(right, base margin > b), right meaning among its own kind's
    classes: in sum P(both right, base margin > novel margin), ties half as for `oscr`.

    Args:
        base: scores of base queries over all columns, base classes first, `(E, B, C)`.
        base_targets: their columns, in [0, num_base), `(E, B)` or `(B,)`.
        novel: scores of novel queries over the same columns, `(E, N, C)`.
        novel_targets: their columns, in [num_base, C), `(E, N)` or `(N,)`.
        num_base: number of base columns, 1 to C - 1.

    """
    return joint_scores("ausuc", base, base_targets, novel, novel_targets, num_base).ausuc()


def open_measures(known: Tensor, targets: Tensor, unknown: Tensor) -> dict[str, Tensor]:
    """Every measure of the open protocol with thresholds per episode, `{name: (E,)}`.

    Args:
        known: scores of known queries `(E, K, C)`.
        targets: column of each known query's class, `(E, K)` or `(K,)`.
        unknown: scores of unknown queries `(E, U, C)`.

    Raises:
        ValueError: wrong shapes, NaN or infinite scores, no queries, or a target out of range.
    """
    return _without_pool(measured(open_scores("open_measures", known, targets, unknown)))


def frozen_measures(
    known: Tensor, targets: Tensor, unknown: Tensor, *, open_threshold: float, class_threshold: float
) -> dict[str, Tensor]:
    """Every measure of thresholds chosen beforehand (`pooled_threshold`): what they really accept, `{name: (E,)}`.

    Args:
        known: scores of known queries `(E, K, C)`.
        targets: column of each known query's class, `(E, K)` or `(K,)`.
        unknown: scores of unknown queries `(E, U, C)`.
        open_threshold: for acceptance scores.
        class_threshold: for single (query, class) pairs.

    Raises:
        ValueError: as `open_measures`, or a threshold that is not finite.
    """
    scores = open_scores("frozen_measures", known, targets, unknown)
    if not (math.isfinite(open_threshold) and math.isfinite(class_threshold)):
        raise ValueError(f"frozen_measures: expected finite thresholds, got {open_threshold} and {class_threshold}")
    scores = scores.with_frozen(Frozen(1.0, open_threshold, class_threshold))
    return {name: value for name, value in measured(scores).items() if "thresholds" in MEASURES[name].needs}


def generalized_measures(
    base: Tensor, base_targets: Tensor, novel: Tensor, novel_targets: Tensor, num_base: int, bias: float | None = None
) -> dict[str, Tensor]:
    """Every measure of base and novel classes in one label space, `{name: (E,)}`.

    Args:
        base: scores of base queries over all columns, base classes first, `(E, B, C)`.
        base_targets: their columns, in [0, num_base), `(E, B)` or `(B,)`.
        novel: scores of novel queries over the same columns, `(E, N, C)`.
        novel_targets: their columns, in [num_base, C), `(E, N)` or `(N,)`.
        num_base: number of base columns, 1 to C - 1.
        bias: of novel scores, as `best_bias` chooses it; with one, the measures that end in `:frozen` are there too.

    Raises:
        ValueError: wrong shapes, NaN or infinite scores, no queries, a target out of range, or a bias that is not finite.
    """
    if bias is not None and not math.isfinite(bias):
        raise ValueError(f"generalized_measures: expected a finite bias, got {bias}")
    scores = joint_scores("generalized_measures", base, base_targets, novel, novel_targets, num_base)
    return _without_pool(measured(scores.with_frozen(Frozen(bias=bias))))


def _without_pool(measures: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in measures.items() if MEASURES[name].pool is None}
