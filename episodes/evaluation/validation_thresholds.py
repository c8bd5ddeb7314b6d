"""Settings chosen on validation classes, and what they really do on test classes.

A setting is chosen on the queries of all validation episodes together, then applied unchanged to test episodes, so that what is
reported is what a threshold set beforehand would have done. Shapes and terms are those of ``episodes.metrics.measures``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from episodes.metrics.measures import (
    class_fpr_at,
    harmonic_mean,
    margins_of,
    share_accepted,
    threshold_at_tpr,
    true_scores_of,
)
from episodes.metrics.validation import check_pair, check_targets, given


def pooled_threshold(true_scores: Tensor | Sequence[Tensor], tpr: float = 0.95) -> float:
    """Largest threshold that accepts at least `tpr` of all scores together, to be frozen.

    Args:
        true_scores: scores to accept of all validation episodes, a tensor or several of any shape: the known queries'
            largest scores for `open_threshold`, the scores of their own class for `class_threshold`.
        tpr: share to accept, in (0, 1].

    """
    parts = [true_scores] if isinstance(true_scores, Tensor) else list(true_scores)
    if not parts:
        raise ValueError("pooled_threshold: expected one tensor of scores or more, got none")
    return float(threshold_at_tpr(torch.cat([part.reshape(-1) for part in parts]), tpr).item())


def joint_margins(
    base: Tensor, base_targets: Tensor, novel: Tensor, novel_targets: Tensor, num_base: int
) -> tuple[Tensor, Tensor]:
    """How far a bias on all novel scores can go before each query's answer changes: what `best_bias` asks of a batch.

    With bias b a query is called a base class while its margin (largest base minus largest novel score) >= b: a tie
    goes to the base columns, which come first. So base accuracy is the share of base margins >= b, and novel accuracy
    the share of novel margins < b. Arguments as `episodes.metrics.measures.ausuc`.

    Returns:
        Margins of the base `(E, B)` and of the novel queries `(E, N)`, float64. A query that is wrong among its own
        kind has -inf if base and inf if novel: no bias makes it right.

    """
    _, base_margin, _, novel_margin = margins_of("joint_margins", base, base_targets, novel, novel_targets, num_base)
    return base_margin, novel_margin


def best_bias(base_margins: Tensor, novel_margins: Tensor) -> float:
    """Bias on all novel scores with the best harmonic mean of base and novel accuracy, all queries pooled.

    Exact: the accuracies change only at the margin of a query that is right among its own kind, so the middle of each
    gap between two such margins is tried. The smallest of equally good ones; 0 where none makes both kinds right.

    Args:
        base_margins: base queries' margins from `joint_margins` of all validation episodes, any shape.
        novel_margins: novel queries' margins, any shape.

    """
    base, novel = base_margins.detach().flatten().double(), novel_margins.detach().flatten().double()
    if base.numel() == 0 or novel.numel() == 0 or base.isnan().any() or novel.isnan().any():
        raise ValueError(
            f"best_bias: expected margins of both kinds, none NaN, got {given(base_margins)}, {given(novel_margins)}"
        )
    edges = torch.cat((base, novel)).sort().values  # an infinite one bounds a gap where one accuracy is 0
    low, high = edges[:-1], edges[1:]
    low, high = low[low < high], high[low < high]
    base_accuracy = 1 - torch.searchsorted(base.sort().values, high).double() / len(base)
    novel_accuracy = torch.searchsorted(novel.sort().values, low, right=True).double() / len(novel)
    mean = harmonic_mean(base_accuracy, novel_accuracy)
    if len(mean) == 0 or mean.max() == 0:
        return 0.0
    best = int(mean.argmax())
    middle = (low[best] / 2 + high[best] / 2).item()
    # Neighbouring floats have no middle; the upper one serves as well, since a base margin equal to the bias is right.
    return middle if middle > low[best].item() else high[best].item()


def frozen_measures(
    known: Tensor, targets: Tensor, unknown: Tensor, *, open_threshold: float, class_threshold: float
) -> dict[str, Tensor]:
    """Apply thresholds chosen beforehand (`pooled_threshold`): what they really accept, `{printed name: (E,)}`.

    Args:
        known: scores of known queries `(E, K, C)`.
        targets: column of each known query's class, `(E, K)` or `(K,)`.
        unknown: scores of unknown queries `(E, U, C)`.
        open_threshold: for acceptance scores.
        class_threshold: for single (query, class) pairs.

    Returns:
        tpr, open_fpr@95tpr, class_tpr, class_fpr@95tpr (and :known, :unknown), each with `:frozen`, each `(E,)`.

    """
    known, unknown = check_pair("frozen_measures", known, unknown)
    true = true_scores_of(known, check_targets("frozen_measures", targets, known))
    if not (math.isfinite(open_threshold) and math.isfinite(class_threshold)):
        raise ValueError(f"frozen_measures: expected finite thresholds, got {open_threshold} and {class_threshold}")
    # A float64 tensor with a dimension: a bare number would be rounded to the scores' float32 before it is compared.
    thresholds = torch.tensor([open_threshold, class_threshold], dtype=torch.float64, device=known.device)
    open_at, class_at = thresholds[:, None].expand(2, len(known))
    classes = class_fpr_at(known, true, unknown, class_at)
    return {
        "tpr:frozen": share_accepted(known.amax(-1), open_at),
        "open_fpr@95tpr:frozen": share_accepted(unknown.amax(-1), open_at),
        "class_tpr:frozen": share_accepted(true, class_at),
        "class_fpr@95tpr:frozen": classes.overall,
        "class_fpr@95tpr:known:frozen": classes.known,
        "class_fpr@95tpr:unknown:frozen": classes.unknown,
    }
