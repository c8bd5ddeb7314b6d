"""Expected calibration error pooled over episodes, and the temperature, fitted beforehand.

Shapes and terms are those of ``episodes.metrics.measures``.
"""

import math

import torch
from torch import Tensor

from episodes.metrics.intervals import Interval, interval
from episodes.metrics.scores import Scores, best_and_right, check_scores, check_targets, shape_and_dtype
from fewshot_nam.heads.temperature import fit_temperature as most_likely_temperature

ECE_BINS = 15


def ece_sums(known: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum of (confidence - correct) in 15 equal bins of confidence: all that the calibration error needs from an episode.

    Confidence is the largest of softmax(scores / temperature), correct is 1 where that is the query's class, and bin k
    holds confidences in (k / 15, (k + 1) / 15].

    Args:
        known: scores of known queries `(E, K, C)`.
        targets: column of each known query's class, `(E, K)` or `(K,)`.
        temperature: above 0, as from `fit_temperature`.

    Returns:
        Sums `(E, 15)`, to be concatenated over batches of episodes.

    """
    known = check_scores("ece_sums", "known", known)
    targets = check_targets("ece_sums", targets, known)
    if not 0 < temperature < math.inf:
        raise ValueError(f"ece_sums: expected a temperature above 0, got {temperature}")
    return _ece_sums(known, *best_and_right(known, targets), temperature)


def ece_sums_of(scores: Scores) -> Tensor:
    """Return `ece_sums` of all labelled queries, at the temperature fixed beforehand."""
    return _ece_sums(scores.labelled[0], scores.best, scores.right, scores.frozen.temperature)


def _ece_sums(known: Tensor, best: Tensor, right: Tensor, temperature: float) -> Tensor:
    # In place: more arrays of this size would leave the processor's cache.
    confidence = (known.double() - best[..., None]).div_(temperature).exp_().sum(-1).reciprocal_()
    # Every k / 15 times 15 is k in float64, so an edge falls into the bin below it; a search among edges is slower.
    bins = (confidence * ECE_BINS).ceil_().sub_(1).long()
    excess = confidence - right.double()
    if known.device.type == "cpu":
        return excess.new_zeros(len(bins), ECE_BINS).scatter_add_(1, bins, excess)
    # Elsewhere a scatter would add in a different order on every run.
    member = bins.unsqueeze(-1) == torch.arange(ECE_BINS, device=known.device)
    return (excess.unsqueeze(-2) @ member.double()).squeeze(-2)


def ece_values(sums: Tensor, queries: int) -> Tensor:
    """Each episode's share of the pooled expected calibration error, `(E,)`: their mean is exactly that error.

    The error of few queries is biased upward, so bins are filled over all episodes: ECE = sum_b |sum_e d_eb| / (E n).
    With s_b the sign of bin b's sum, episode e contributes sum_b s_b d_eb / n. This is linear in the sums while no sign
    changes, so the spread of the contributions gives the interval (delta method), and two heads' can be paired. One
    value alone means nothing, and may be negative.

    Args:
        sums: `ece_sums` of all episodes, `(E, 15)`.
        queries: known queries per episode, n.

    Returns:
        Values `(E,)` for `interval` and `paired`.

    """
    if sums.dim() != 2 or sums.shape[0] == 0 or sums.shape[1] != ECE_BINS or queries < 1:
        raise ValueError(
            f"ece_values: expected sums (E, {ECE_BINS}) and 1 query or more, got {shape_and_dtype(sums)} and {queries}"
        )
    return (sums * sums.sum(0).sign()).sum(-1) / queries


def ece(sums: Tensor, queries: int) -> Interval:
    """Pooled expected calibration error with its interval. Arguments as `ece_values`."""
    return interval(ece_values(sums, queries))


def fit_temperature(scores: Tensor, targets: Tensor) -> float:
    """Temperature T that makes softmax(scores / T) most likely, on validation queries (Guo et al. 2017, 1706.04599).

    Args:
        scores: `(n, C)`, of any scale.
        targets: column of each query's class, `(n,)`.

    Returns:
        T, within a factor of a million of the mean gap between a score and the largest of its query. If the
        likelihood has no maximum, T is one end of that range: the low end if every query is right, the high end if scores
        are no better than chance. 1 if all scores are equal.

    """
    scores = check_scores("fit_temperature", "(1, n, C)", scores[None])
    targets = check_targets("fit_temperature", targets, scores)
    return most_likely_temperature(scores[0], targets.reshape(-1))
