"""Features of the same image given twice, found by value.

The features of one image differ by rounding with the batch they were computed in, so they count as the same where they differ by
less than ``TOLERANCE`` of their length. Two photographs of one object differ by far more.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-4
_LOOKED_AT = 8  # numbers of a feature by which others are passed over
_PAIRS = 1 << 18  # compared at once
_CROWDED = 32  # pairs that may be the same, for a feature
_BLOCK = 1024


def first_equal(rows: Tensor, others: Tensor) -> Tensor:
    """Return for each of ``rows`` ``(m, D)`` the index of the first of ``others`` ``(n, D)`` that is the same, or -1: ``(m,)``.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 2.00001]])
        >>> first_equal(rows, rows).tolist()
        [0, 1, 0]
    """
    found = torch.full((len(rows),), len(others))
    if not len(rows) or not len(others):
        return found.fill_(-1)
    rows, others = rows.detach().double().cpu(), others.detach().cpu()
    # No number of two features differs by more than the features do. So only few pairs must be compared whole: by one number the
    # features that can be the same are neighbours in sorted order, and the other numbers leave few of these.
    places = rows.abs().mean(dim=0).topk(min(_LOOKED_AT, rows.shape[-1])).indices  # where few are zeros
    tolerance = TOLERANCE * torch.linalg.vector_norm(rows, dim=-1)
    slack = tolerance * (1 + 1e-6)  # for rounding
    along, others_along = rows[:, places], others[:, places].double()
    positions, order = others_along[:, 0].sort()
    start = torch.searchsorted(positions, along[:, 0] - slack)
    counts = torch.searchsorted(positions, along[:, 0] + slack, right=True) - start
    ends = counts.cumsum(0)
    if int(ends[-1]) > _CROWDED * (len(rows) + len(others)):
        # One image many times, say, whose pairs are as many as its square.
        kinds, of = torch.unique(rows, dim=0, return_inverse=True)
        different = first_of_equal_bits(others).nonzero().flatten()
        if len(kinds) < len(rows) or len(different) < len(others):
            places = first_equal(kinds, others[different])[of]
            return torch.where(places < 0, places, different[places])
        return _first_near(rows, others, tolerance)
    for first in range(0, int(ends[-1]), _PAIRS):
        numbers = torch.arange(first, min(first + _PAIRS, int(ends[-1])))
        i = torch.searchsorted(ends, numbers, right=True)
        j = order[start[i] + numbers - (ends - counts)[i]]
        near = ((along[i] - others_along[j]).abs() <= slack[i, None]).all(-1)
        i, j = i[near], j[near]
        for whole in range(0, len(i), _PAIRS // 64):
            one, other = i[whole : whole + _PAIRS // 64], j[whole : whole + _PAIRS // 64]
            same = torch.linalg.vector_norm(others[other].double() - rows[one], dim=-1) <= tolerance[one]
            found.scatter_reduce_(0, one[same], other[same], "amin")
    return found.masked_fill_(found == len(others), -1)


def _first_near(rows: Tensor, others: Tensor, tolerance: Tensor) -> Tensor:
    """Do what ``first_equal`` does by products of all rows with all others: where many pairs are alike, these cost far less."""
    found = torch.full((len(rows),), len(others))
    squares = rows.square().sum(-1)
    for first in range(0, len(others), _BLOCK):
        block = others[first : first + _BLOCK].double()
        lengths = block.square().sum(-1)
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            # Exact to some 1e-15 of a square, for a tolerance of 1e-8.
            away = squares[part, None] + lengths - 2 * rows[part] @ block.mT
            near, at = (away <= tolerance[part, None].square()).max(-1)
            found[part] = torch.where(near, torch.minimum(found[part], first + at), found[part])
    return found.masked_fill_(found == len(others), -1)


def first_of_equal_bits(rows: Tensor) -> Tensor:
    """Return ``(m,)`` bool on the CPU, False where an earlier one of ``rows`` ``(m, D)`` has the same numbers, bit for bit."""
    found = torch.zeros(len(rows), dtype=torch.bool)
    if len(rows):
        kinds, of = torch.unique(rows.detach().cpu(), dim=0, return_inverse=True)
        places = torch.arange(len(rows))
        found[places.new_full((len(kinds),), len(rows)).scatter_reduce_(0, of, places, "amin")] = True
    return found


def distinct(rows: Tensor) -> Tensor:
    """Return ``(m,)`` bool, False where a feature is the same as an earlier one of ``rows`` ``(m, D)``."""
    return first_equal(rows, rows) == torch.arange(len(rows))
