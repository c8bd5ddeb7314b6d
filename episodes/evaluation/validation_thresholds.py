"""Thresholds, temperature and novel bias chosen on validation classes, to be frozen before the test episodes.

They are chosen on the queries of all validation episodes together and applied unchanged to test episodes, so a report shows
the effect of a threshold that was set beforehand. Shapes and terms are those of ``episodes.metrics.measures``.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from episodes.evaluation.scoring import Scorer, in_order
from episodes.metrics.calibration import fit_temperature
from episodes.metrics.scores import Frozen, Scores, harmonic_mean, joint_scores, shape_and_dtype, threshold_at_tpr
from episodes.sampling.sampler import Episodes

CALIBRATION_EPISODES = 1000
"""Thresholds and bias are chosen on as many validation episodes as there are test episodes, at most this many."""

TEMPERATURE_EPISODES = 200
"""Without validation classes, the temperature is fitted on this many further episodes, drawn after the test episodes."""

_TEMPERATURE_SCORES = 1 << 22  # scores to fit the temperature on, 16 MiB for each head


def choose_frozen(scorer: Scorer, batches: Iterable[Episodes], thresholds: bool) -> dict[str, Frozen]:
    """Return temperature, thresholds and bias of every head, chosen on all queries of these episodes together.

    Args:
        scorer: scores validation classes, or test classes if only the temperature is fitted.
        batches: the episodes. The temperature is fitted on the first of them, which are enough for one number.
        thresholds: choose thresholds too, and the novel bias if there are base queries.
    """
    kept = {name: _Kept() for name in scorer.heads}
    with in_order(lambda batch: list(scorer.score(batch)), batches, scorer.threads) as scored:
        for of_heads in scored:
            for name, scores in of_heads:
                kept[name].add(scores, thresholds)
    with in_order(lambda each: each.frozen(thresholds), kept.values(), scorer.threads) as fixed:
        return dict(zip(kept, fixed, strict=True))


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
    """How far a bias on all novel scores can go before each query's answer changes: what `best_bias` needs from a batch.

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
    gap between two such margins is tried. Of equally good ones, the smallest; 0 if no bias gives both kinds an accuracy above 0.

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


class _Kept:
    """What is stored of one head's scores: one or two numbers for each query, and all columns for the first queries."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.best: list[Tensor] = []
        self.true: list[Tensor] = []
        self.base_margins: list[Tensor] = []
        self.novel_margins: list[Tensor] = []

    def add(self, scores: Scores, thresholds: bool) -> None:
        """Add a batch of episodes."""
        known, targets = (part.flatten(0, 1) for part in scores.labelled)
        room = max(_TEMPERATURE_SCORES // known.shape[1] - sum(map(len, self.targets)), 0)
        self.scores.append(known[:room].clone())
        self.targets.append(targets[:room])
        if not thresholds:
            return
        self.best.append(known.amax(dim=1))
        self.true.append(known.gather(1, targets[:, None]).squeeze(1))
        if scores.base is not None:
            self.base_margins.append(scores.margins.base_if_right)
            self.novel_margins.append(scores.margins.novel_if_right)

    def frozen(self, thresholds: bool) -> Frozen:
        """Return what to fix."""
        temperature = fit_temperature(torch.cat(self.scores), torch.cat(self.targets))
        if not thresholds:
            return Frozen(temperature)
        bias = best_bias(torch.cat(self.base_margins), torch.cat(self.novel_margins)) if self.base_margins else None
        return Frozen(temperature, pooled_threshold(self.best), pooled_threshold(self.true), bias)
