"""What the page shows of each class: how many images it has, and which other class these are most easily taken for."""

from __future__ import annotations

import torch

from fewshot_nam.heads import Head, Label
from fewshot_nam.service.findings import ClassView

_RIVAL_SCORES = 20_000_000  # scores computed for the rivals of all classes; above this they are left out


def views_of(
    head: Head, thumbnails: dict[Label, list[bytes]], threshold: float | None
) -> tuple[list[ClassView], tuple[float, float]]:
    """Return all classes in the order they were learned, and the range of the scores of what was learned.

    Args:
        head: which knows the classes.
        thumbnails: of single classes.
        threshold: an image is accepted from this score on; ``None`` for any.
    """
    labels, known, ends = head.classes, len(head.base), (-1.0, 1.0)
    counts = head.shots_per_class()
    rivals: dict[int, tuple[int, float]] = {}
    if len(labels) > 1 and 0 < len(head.support) * len(labels) <= _RIVAL_SCORES:
        with torch.no_grad():
            scores = head(head.support)
            ends = (float(scores.min()), float(scores.max()))
            sums = scores.new_zeros(len(labels) - known, len(labels)).index_add(0, head.targets, scores)
            means = sums / torch.bincount(head.targets, minlength=len(sums)).unsqueeze(-1)
            own = torch.arange(len(means), device=means.device)
            means[own, own + known] = -torch.inf
            best = means.max(dim=-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        rivals = {known + i: pair for i, pair in enumerate(pairs)}
    views = []
    for i, label in enumerate(labels):
        rival, score = rivals.get(i, (-1, 0.0))
        views.append(
            ClassView(
                label,
                counts[i],
                thumbnails.get(label, []),
                None if rival < 0 else labels[rival],
                score,
                rival >= 0 and threshold is not None and score >= threshold,
            )
        )
    return views, ends
