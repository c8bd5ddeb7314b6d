"""Settings chosen on validation classes, and what they really do on test classes.

A setting is chosen on the queries of all validation episodes together, then applied unchanged to test episodes, so that what is
reported is what a threshold set beforehand would have done. Shapes and terms are those of ``episodes.metrics.measures``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from episodes.metrics.scores import harmonic_mean, joint_scores, shape_and_dtype, threshold_at_tpr


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
    margins = joint_scores("joint_margins", base, base_targets, novel, novel_targets, num_base).margins
    return margins.base_if_right, margins.novel_if_right


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
            "best_bias: expected margins of both kinds, none NaN, "
            f"got {shape_and_dtype(base_margins)}, {shape_and_dtype(novel_margins)}"
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
