"""Checks of scores and targets at the door of every measure: shapes, finiteness, columns in range."""

from __future__ import annotations

import torch
from torch import Tensor


def given(x: Tensor) -> str:
    """Return shape and dtype, as an error shows what came in."""
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def check_finite(function: str, what: str, scores: Tensor) -> None:
    """Raise ``ValueError`` where a score is NaN or infinite."""
    # Smallest and largest in one pass without temporaries; both are NaN where any score is.
    if not torch.stack(scores.aminmax()).isfinite().all():
        raise ValueError(f"{function}: expected finite {what} scores, got NaN or infinity among them")


def check_scores(function: str, what: str, scores: Tensor) -> Tensor:
    """Return scores ``(E, queries, C)``, none of them 0, detached and in float32 at least; raise ``ValueError`` otherwise."""
    if scores.dim() != 3 or scores.numel() == 0 or not scores.is_floating_point():
        raise ValueError(f"{function}: expected float {what} scores (E, queries, C) > 0, got {given(scores)}")
    check_finite(function, what, scores)
    # Widening half precision is exact, and no operation below need have it on every device.
    return scores.detach() if scores.element_size() >= 4 else scores.detach().float()


def check_pair(function: str, a: Tensor, b: Tensor, kinds: str = "known unknown") -> tuple[Tensor, Tensor]:
    """Return two checked kinds of scores of the same episodes and classes; raise ``ValueError`` otherwise."""
    a, b = (check_scores(function, kind, x) for kind, x in zip(kinds.split(), (a, b), strict=True))
    if a.shape[::2] != b.shape[::2]:
        raise ValueError(f"{function}: {kinds} scores need the same E and C, got {given(a)} and {given(b)}")
    return a, b


def check_targets(function: str, targets: Tensor, scores: Tensor, first: int = 0, end: int | None = None) -> Tensor:
    """Return targets ``(E, queries)`` with columns in [first, end); raise ``ValueError`` otherwise."""
    end = scores.shape[-1] if end is None else end
    if targets.dtype != torch.int64 or targets.shape not in (scores.shape[:2], scores.shape[1:2]):
        shape = tuple(scores.shape[:2])
        raise ValueError(f"{function}: expected int64 targets {shape} or {shape[1:]}, got {given(targets)}")
    low, high = (int(x) for x in targets.aminmax())
    if low < first or high >= end:
        raise ValueError(f"{function}: expected targets in [{first}, {end}), got {low} to {high}")
    return targets.to(scores.device).expand(scores.shape[:2])
