"""Features of the same image given twice, found by value.

The features of one image differ by rounding with the batch they were computed in, so they count as the same where they differ by
less than ``TOLERANCE`` of their length. Two photographs of one object differ by far more.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-4
_CANDIDATE = 1 - 1e-5  # cosine from which two features are compared exactly
_PAIRS = 1 << 24  # cosines computed at a time


def first_equal(rows: Tensor, others: Tensor) -> Tensor:
    """Return for each of ``rows`` ``(m, D)`` the index of the first of ``others`` ``(n, D)`` that is the same, or -1: ``(m,)``.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 2.00001]])
        >>> first_equal(rows, rows).tolist()
        [0, 1, 0]
    """
    found = torch.full((len(rows),), -1, dtype=torch.long)
    if not len(rows) or not len(others):
        return found
    rows, others = rows.detach().double().cpu(), others.detach().double().cpu()
    lengths, other_lengths = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (rows, others))
    directions, other_directions = (rows / lengths).float(), (others / other_lengths).float()
    size = max(1, _PAIRS // len(others))
    for start in range(0, len(rows), size):
        likely = directions[start : start + size] @ other_directions.mT > _CANDIDATE
        for i in likely.any(dim=1).nonzero().flatten().tolist():
            candidates = likely[i].nonzero().flatten()
            gaps = torch.linalg.vector_norm(others[candidates] - rows[start + i], dim=-1)
            same = candidates[gaps <= TOLERANCE * lengths[start + i]]
            if len(same):
                found[start + i] = same[0]
    return found


def distinct(rows: Tensor) -> Tensor:
    """Return ``(m,)`` bool, False where a feature is the same as an earlier one of ``rows`` ``(m, D)``."""
    return first_equal(rows, rows) == torch.arange(len(rows))
