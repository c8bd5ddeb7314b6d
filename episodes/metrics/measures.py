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

import torch
from torch import Tensor

from episodes.metrics.scores import (
    ClassFPR,
    area,
    beaten,
    best_and_right,
    check_pair,
    check_scores,
    check_targets,
    class_fpr_at,
    joint_scores,
    open_scores,
    share_accepted,
    threshold_at_tpr,
)

__all__ = [
    "ClassFPR",
    "accuracy",
    "auroc",
    "ausuc",
    "class_fpr",
    "harmonic_mean",
    "open_fpr",
    "oscr",
    "threshold_at_tpr",
]


def accuracy(known: Tensor, targets: Tensor) -> Tensor:
    """Share of known queries `(E, K, C)` whose largest score is that of their class.

    >>> accuracy(torch.tensor([[[3.0, 0.0], [1.0, 2.0]]]), torch.tensor([0, 0])).tolist()
    [0.5]
    """
    known = check_scores("accuracy", "known", known)
    return best_and_right(known, check_targets("accuracy", targets, known))[1].double().mean(-1)


def open_fpr(known: Tensor, unknown: Tensor, tpr: float = 0.95) -> Tensor:
    """Share of unknown queries `(E, U, C)` accepted at the largest threshold that accepts `tpr` of the known."""
    known, unknown = check_pair("open_fpr", known, unknown)
    return share_accepted(unknown.amax(-1), threshold_at_tpr(known.amax(-1), tpr))


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
    return class_fpr_at(scores, threshold_at_tpr(scores.true, tpr))


def auroc(known: Tensor, unknown: Tensor) -> Tensor:
    """Area under the ROC curve of known `(E, K, C)` against unknown `(E, U, C)` acceptance scores, ties half."""
    known, unknown = check_pair("auroc", known, unknown)
    return area(beaten(known.amax(-1), unknown.amax(-1)), unknown.shape[1])


def oscr(known: Tensor, targets: Tensor, unknown: Tensor) -> Tensor:
    """Area under the open-set classification rate: known queries right and accepted, against unknown ones accepted.

    As the threshold falls past a value v, the curve moves right by P(unknown = v) and up by P(right, known = v), in a
    straight line. The area below is P(unknown = v) (P(right, known > v) + P(right, known = v) / 2), and summed over v
    that is P(right, known > unknown) + P(right, known = unknown) / 2: `auroc` where wrong answers never win.

    Arguments as `class_fpr`. At most the accuracy.
    """
    scores = open_scores("oscr", known, targets, unknown)
    return area(scores.beaten * scores.right, unknown.shape[1])


def harmonic_mean(base_accuracy: Tensor, novel_accuracy: Tensor) -> Tensor:
    """Harmonic mean of two accuracies `(E,)`, 0 where both are 0."""
    total = base_accuracy + novel_accuracy
    return torch.where(total > 0, 2 * base_accuracy * novel_accuracy / total, 0.0)


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
    margins = joint_scores("ausuc", base, base_targets, novel, novel_targets, num_base).margins
    return area(beaten(margins.base_if_right, margins.novel_if_right), margins.novel.shape[1])
