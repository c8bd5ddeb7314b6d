"""The measures of a few-shot episode: one value per episode from the scores of its queries, batched over episodes.

Shapes: E episodes, K known queries (their class is in the episode), U unknown queries (it is not), C classes. Scores
are float, larger means more like that class; targets are the column of the true class, `(E, K)` or, where all episodes
agree, `(K,)`. A query's acceptance score is its largest class score, and it is accepted when that is >= the threshold:
ties accept. Where two classes tie for the largest, the first is the answer, as in `torch.argmax`. Every function gives
float64 `(E,)` and raises ValueError on a wrong shape, NaN or infinite scores, no queries, or a target out of range.

Curves: OSCR is Dhamija et al. 2018 (arXiv 1811.04110), AUSUC is Chao et al. 2016 (arXiv 1605.04253). Every area here is
one rank statistic, P(a > b) + P(a = b) / 2, with an answer that is wrong counted as never ranked above anything.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from episodes.metrics.validation import check_finite, check_pair, check_scores, check_targets, given


class Measure(NamedTuple):
    """What a printed name means, in plain English, and which direction is better."""

    meaning: str
    better: Literal["higher", "lower"]


MEASURES: dict[str, Measure] = {
    "accuracy": Measure("known queries given their own class", "higher"),
    "open_fpr@95tpr": Measure("unknown queries accepted while at least 95% of the known are", "lower"),
    "class_fpr@95tpr": Measure("wrong (query, class) pairs accepted while at least 95% of the true pairs are", "lower"),
    "class_fpr@95tpr:known": Measure("class_fpr@95tpr over the known queries only", "lower"),
    "class_fpr@95tpr:unknown": Measure("class_fpr@95tpr over the unknown queries only", "lower"),
    "auroc": Measure("chance that a known query scores above an unknown one, ties half", "higher"),
    "oscr": Measure("chance that a known query is classified right and scores above an unknown one", "higher"),
    "ece": Measure("gap between confidence and accuracy: 15 bins, after temperature, pooled over episodes", "lower"),
    "tpr:frozen": Measure("known queries accepted at a validation threshold; 95% meant", "higher"),
    "open_fpr@95tpr:frozen": Measure("unknown queries accepted at a validation threshold", "lower"),
    "class_tpr:frozen": Measure("true (query, class) pairs accepted at a validation threshold; 95% meant", "higher"),
    "class_fpr@95tpr:frozen": Measure("wrong (query, class) pairs accepted at a validation threshold", "lower"),
    "class_fpr@95tpr:known:frozen": Measure("class_fpr@95tpr:frozen over the known queries only", "lower"),
    "class_fpr@95tpr:unknown:frozen": Measure("class_fpr@95tpr:frozen over the unknown queries only", "lower"),
    "base_accuracy": Measure("base queries given their own class among base and novel classes", "higher"),
    "novel_accuracy": Measure("novel queries given their own class among base and novel classes", "higher"),
    "harmonic_mean": Measure("harmonic mean of base_accuracy and novel_accuracy", "higher"),
    "joint_accuracy": Measure("base and novel queries together given their own class", "higher"),
    "novel_to_base": Measure("novel queries called a base class", "lower"),
    "base_to_novel": Measure("base queries called a novel class", "lower"),
    "ausuc": Measure("area under base_accuracy against novel_accuracy as a bias on novel scores sweeps", "higher"),
    "base_accuracy:frozen": Measure("base_accuracy with the novel bias chosen on validation classes", "higher"),
    "novel_accuracy:frozen": Measure("novel_accuracy with the novel bias chosen on validation classes", "higher"),
    "harmonic_mean:frozen": Measure("harmonic mean of the two, novel bias chosen on validation classes", "higher"),
}


class ClassFPR(NamedTuple):
    """Share of wrong (query, class) pairs accepted: overall and by the query's kind, each (E,)."""

    overall: Tensor
    known: Tensor
    unknown: Tensor


def accuracy(known: Tensor, targets: Tensor) -> Tensor:
    """Share of known queries `(E, K, C)` whose largest score is that of their class."""
    known = check_scores("accuracy", "known", known)
    return best_and_right(known, check_targets("accuracy", targets, known))[1].double().mean(-1)


def threshold_at_tpr(true_scores: Tensor, tpr: float = 0.95) -> Tensor:
    """Largest threshold t that accepts (score >= t) at least `tpr` of the scores.

    Args:
        true_scores: scores that should be accepted, `(..., K)`.
        tpr: share to accept, in (0, 1].

    Returns:
        Thresholds `(...)`, each one of the scores: the k-th largest, k = ceil(tpr * K).

    """
    if not 0 < tpr <= 1:
        raise ValueError(f"threshold_at_tpr: expected tpr in (0, 1], got {tpr}")
    if not true_scores.is_floating_point() or true_scores.dim() == 0 or true_scores.numel() == 0:
        raise ValueError(f"threshold_at_tpr: expected float scores (..., K) with K > 0, got {given(true_scores)}")
    check_finite("threshold_at_tpr", "true", true_scores)
    # Floats can put tpr * K a hair above the whole number that is meant, and ceil would then ask for one score more.
    accepted = math.ceil(tpr * true_scores.shape[-1] * (1 - 1e-12))
    return true_scores.detach().kthvalue(true_scores.shape[-1] - accepted + 1, dim=-1).values


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
    known, unknown = check_pair("class_fpr", known, unknown)
    true = true_scores_of(known, check_targets("class_fpr", targets, known))
    return class_fpr_at(known, true, unknown, threshold_at_tpr(true, tpr))


def auroc(known: Tensor, unknown: Tensor) -> Tensor:
    """Area under the ROC curve of known `(E, K, C)` against unknown `(E, U, C)` acceptance scores, ties half."""
    known, unknown = check_pair("auroc", known, unknown)
    return _area(_beaten(known.amax(-1), unknown.amax(-1)), unknown.shape[1])


def oscr(known: Tensor, targets: Tensor, unknown: Tensor) -> Tensor:
    """Area under the open-set classification rate: known queries right and accepted, against unknown ones accepted.

    As the threshold falls past a value v, the curve moves right by P(unknown = v) and up by P(right, known = v), in a
    straight line. The area below is P(unknown = v) (P(right, known > v) + P(right, known = v) / 2), and summed over v
    that is P(right, known > unknown) + P(right, known = unknown) / 2: `auroc` where wrong answers never win.

    Arguments as `class_fpr`. At most the accuracy.
    """
    known, unknown = check_pair("oscr", known, unknown)
    best, right = best_and_right(known, check_targets("oscr", targets, known))
    return _area(_beaten(best, unknown.amax(-1)) * right, unknown.shape[1])


def open_measures(known: Tensor, targets: Tensor, unknown: Tensor) -> dict[str, Tensor]:
    """Every measure of the open protocol, `{printed name: (E,)}`, thresholds per episode. Arguments as `class_fpr`.

    Returns:
        accuracy, open_fpr@95tpr, class_fpr@95tpr (and :known, :unknown), auroc, oscr.

    """
    known, unknown = check_pair("open_measures", known, unknown)
    targets = check_targets("open_measures", targets, known)
    true, unknown_best = true_scores_of(known, targets), unknown.amax(-1)
    best, right = best_and_right(known, targets)
    beaten = _beaten(best, unknown_best)
    classes = class_fpr_at(known, true, unknown, threshold_at_tpr(true))
    return {
        "accuracy": right.double().mean(-1),
        "open_fpr@95tpr": share_accepted(unknown_best, threshold_at_tpr(best)),
        "class_fpr@95tpr": classes.overall,
        "class_fpr@95tpr:known": classes.known,
        "class_fpr@95tpr:unknown": classes.unknown,
        "auroc": _area(beaten, unknown.shape[1]),
        "oscr": _area(beaten * right, unknown.shape[1]),
    }


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
    _, base_margin, _, novel_margin = margins_of("ausuc", base, base_targets, novel, novel_targets, num_base)
    return _area(_beaten(base_margin, novel_margin), novel_margin.shape[1])


def generalized_measures(
    base: Tensor, base_targets: Tensor, novel: Tensor, novel_targets: Tensor, num_base: int, bias: float | None = None
) -> dict[str, Tensor]:
    """Every measure of the generalized protocol, `{printed name: (E,)}`. Arguments as `ausuc`.

    Returns:
        base_accuracy, novel_accuracy, harmonic_mean, joint_accuracy, novel_to_base, base_to_novel and ausuc, at bias 0;
        given the `bias` of novel scores that `best_bias` chose, the first three with it too, as `:frozen`.

    """
    if bias is not None and not math.isfinite(bias):
        raise ValueError(f"generalized_measures: expected a finite bias, got {bias}")
    margins = margins_of("generalized_measures", base, base_targets, novel, novel_targets, num_base)
    any_base, base_margin, any_novel, novel_margin = margins
    measures = {
        "joint_accuracy": torch.cat((base_margin >= 0, novel_margin < 0), dim=-1).double().mean(-1),
        "novel_to_base": (any_novel >= 0).double().mean(-1),
        "base_to_novel": (any_base < 0).double().mean(-1),
        "ausuc": _area(_beaten(base_margin, novel_margin), novel_margin.shape[1]),
    }
    for suffix, b in ({"": 0.0} | ({} if bias is None else {":frozen": bias})).items():
        base_right, novel_right = (base_margin >= b).double().mean(-1), (novel_margin < b).double().mean(-1)
        measures[f"base_accuracy{suffix}"], measures[f"novel_accuracy{suffix}"] = base_right, novel_right
        measures[f"harmonic_mean{suffix}"] = harmonic_mean(base_right, novel_right)
    return measures


def true_scores_of(known: Tensor, targets: Tensor) -> Tensor:
    """Return every known query's score for its own class, ``(E, K)``."""
    return known.gather(-1, targets[..., None])[..., 0]


def best_and_right(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest score and whether it is that of the target, both ``(E, queries)``."""
    best, true = scores.amax(-1), true_scores_of(scores, targets)
    if int((scores >= best[..., None]).sum()) == best.numel():
        return best, true >= best  # no ties: where the largest one stands, which is slow to find, need not be known
    return best, scores.argmax(-1) == targets


def share_accepted(scores: Tensor, threshold: Tensor) -> Tensor:
    """Return the share of scores ``(E, queries)`` that reach their episode's threshold ``(E,)``."""
    return (scores >= threshold[:, None]).double().mean(-1)


def class_fpr_at(known: Tensor, true: Tensor, unknown: Tensor, threshold: Tensor) -> ClassFPR:
    """Return ``class_fpr`` at thresholds ``(E,)``; ``true`` are the ``true_scores_of`` the known queries."""
    accepted = (known >= threshold[:, None, None]).sum((1, 2)) - (true >= threshold[:, None]).sum(-1)
    accepted_unknown = (unknown >= threshold[:, None, None]).sum((1, 2))
    pairs, pairs_unknown = known[0].numel() - known.shape[1], unknown[0].numel()
    return ClassFPR(
        (accepted + accepted_unknown).double() / (pairs + pairs_unknown),
        accepted.double() / pairs,
        accepted_unknown.double() / pairs_unknown,
    )


def _beaten(a: Tensor, b: Tensor) -> Tensor:
    """Twice how many of b `(E, m)` each of a `(E, n)` beats, ties half: whole numbers `(E, n)`, so areas are exact."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    ordered, a = b.to(dtype).sort(-1).values, a.to(dtype).contiguous()
    return torch.searchsorted(ordered, a) + torch.searchsorted(ordered, a, right=True)


def _area(beaten: Tensor, against: int) -> Tensor:
    return beaten.sum(-1).double() / (2 * beaten.shape[-1] * against)


def margins_of(
    function: str, base: Tensor, base_targets: Tensor, novel: Tensor, novel_targets: Tensor, num_base: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Margins of the base queries, the same with -inf where wrong, and of the novel queries, with inf where wrong."""
    base, novel = check_pair(function, base, novel, "base novel")
    classes = base.shape[-1]
    if not 0 < num_base < classes:
        raise ValueError(f"{function}: expected num_base in [1, {classes}) for {classes} classes, got {num_base}")
    base_targets = check_targets(function, base_targets, base, 0, num_base)
    base_best, base_right = best_and_right(base[..., :num_base], base_targets)
    novel_targets = check_targets(function, novel_targets, novel, num_base, classes) - num_base
    novel_best, novel_right = best_and_right(novel[..., num_base:], novel_targets)
    # In float64, where the difference of two float32 scores keeps its order; infinity is kept for wrong answers.
    base_margin = torch.nan_to_num(base_best.double() - base[..., num_base:].amax(-1))
    novel_margin = torch.nan_to_num(novel[..., :num_base].amax(-1).double() - novel_best)
    base_if_right, novel_if_right = base_margin.where(base_right, -math.inf), novel_margin.where(novel_right, math.inf)
    return base_margin, base_if_right, novel_margin, novel_if_right
