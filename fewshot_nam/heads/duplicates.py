"""Features of the same image given twice, found by value.

The features of one image differ by rounding with the batch they were computed in, so they count as the same where they differ by
less than ``TOLERANCE`` of their length. Two photographs of one object differ by far more.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-4
_LOOKED_AT = 4  # numbers of a feature, its largest, by which others are passed over


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
    rows, others = rows.detach().double(), others.detach().to(rows.device)
    lengths = torch.linalg.vector_norm(rows, dim=-1)
    places = rows.abs().topk(min(_LOOKED_AT, rows.shape[-1]), dim=-1).indices
    for i, row in enumerate(rows):
        # No number of two features differs by more than the features do: few others pass, and only these are compared.
        candidates = torch.arange(len(others), device=others.device)
        for place in places[i]:
            near = (others[candidates, place].double() - row[place]).abs() <= TOLERANCE * lengths[i]
            candidates = candidates[near]
        gaps = torch.linalg.vector_norm(others[candidates].double() - row, dim=-1)
        same = candidates[gaps <= TOLERANCE * lengths[i]]
        if len(same):
            found[i] = same[0]
    return found


def distinct(rows: Tensor) -> Tensor:
    """Return ``(m,)`` bool, False where a feature is the same as an earlier one of ``rows`` ``(m, D)``."""
    return first_equal(rows, rows) == torch.arange(len(rows))
