"""Rows that grow at the end without being copied each time, and are never changed where they were handed out."""

from __future__ import annotations

import torch
from torch import Tensor

_SLACK = 0.25  # share of the rows that memory is allocated for beyond them
_LEAST = 256  # rows: fewer are copied in no time


class GrowingRows:
    """Memory for a tensor ``(n, D)`` that grows. Every answer is a view of it, and what a view shows never changes."""

    def __init__(self) -> None:
        self._storage: Tensor | None = None
        self._used = 0

    def append(self, rows: Tensor, new: Tensor) -> Tensor:
        """Return ``rows`` ``(n, D)`` with ``new`` ``(k, D)`` of the same dtype and device below.

        They are copied only where ``rows`` is not what ``append`` gave last, or the memory is full.
        """
        count = len(rows) + len(new)
        storage = self._storage
        grows = (
            storage is not None
            and len(rows) == self._used
            and rows.data_ptr() == storage.data_ptr()
            and (rows.dtype, rows.device, rows.shape[1:]) == (storage.dtype, storage.device, storage.shape[1:])
            and count <= len(storage)
        )
        if not grows or storage is None:
            if count < _LEAST:
                return torch.cat([rows, new])
            storage = rows.new_empty(count + int(_SLACK * count), *rows.shape[1:])
            storage[: len(rows)] = rows
        # Through .data, so that a graph which uses the rows above does not take them for changed.
        storage.data[len(rows) : count] = new
        self._storage, self._used = storage, count
        return storage[:count]
