"""What a NAM head needs of its shots, as sums: the head depends on them through nothing else.

Of each class the sum of its embedded shots and their number, and over all shots the sum of products ``z z^T``, which is all
that the metric ``R`` of the joint write is made of. The size does not depend on how many shots there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ExactSums(nn.Module):
    """A module whose buffers move to other devices, and keep their dtype: sums of many numbers need all of float64."""

    shares_buffers = True  # with snapshots of the head: they are replaced, never written to

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name, held in list(self.named_buffers(recurse=False)):
            setattr(self, name, held.to(fn(held[:0]).device))
        return self


class ShotSums(ExactSums):
    """Sums over shots as buffers: they move with the head and are saved with it; empty where a head keeps its shots.

    Attributes:
        totals: ``(C, W)`` float64, the sum of the embedded shots of each written class.
        counts: ``(C,)`` long, how many there are.
        spread: ``(D, D)`` float64, the sum of ``z z^T`` over all of them.
    """

    totals: Tensor
    counts: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        device = self.counts.device if "counts" in self._buffers else None
        self.register_buffer("totals", torch.empty(0, 0, dtype=torch.float64, device=device))
        self.register_buffer("counts", torch.empty(0, dtype=torch.long, device=device))
        self.register_buffer("spread", torch.empty(0, 0, dtype=torch.float64, device=device))

    def add(self, embedded: Tensor, directions: Tensor, targets: Tensor, classes: int) -> None:
        """Add shots. Tensors that were given out are never changed.

        Args:
            embedded: ``(n, W)``.
            directions: ``(n, D)``, their part ``z``.
            targets: ``(n,)`` long, the class of each.
            classes: ``C``, how many there are now.
        """
        (width, embedded_width), new = (directions.shape[-1], embedded.shape[-1]), classes - len(self.counts)
        exact = directions.double()
        totals = self.totals.reshape(-1, embedded_width)
        totals = torch.cat([totals, totals.new_zeros(new, embedded_width)])
        self.totals = totals.index_add(0, targets, embedded.double())
        counts = torch.cat([self.counts, self.counts.new_zeros(new)])
        self.counts = counts.index_add(0, targets, torch.ones_like(targets))
        before = self.spread if len(self.spread) else self.totals.new_zeros(width, width)
        self.spread = before + exact.mT @ exact

    def fits(self, classes: int, widths: tuple[int, int]) -> bool:
        """Return whether these are sums for so many classes, of embedded features of width ``W`` whose part ``z`` has ``D``."""
        if not classes:
            return not len(self.counts)
        embedded, width = widths
        shapes = [tuple(sums.shape) for sums in (self.totals, self.counts, self.spread)]
        return shapes == [(classes, embedded), (classes,), (width, width)] and bool((self.counts > 0).all())

    def taken(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return means ``(1, C, W)``, counts ``(C,)`` and spread ``(D, D)`` in a dtype."""
        means = self.totals / self.counts.unsqueeze(-1)
        return means.to(dtype).unsqueeze(0), self.counts.to(dtype), self.spread.to(dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The number of classes is part of what is loaded; files of earlier versions have no sums.
        for name, buffer in list(self.named_buffers()):
            loaded = state_dict.setdefault(prefix + name, buffer.new_empty((0,) * buffer.dim()))
            setattr(self, name, buffer.new_empty(loaded.shape, dtype=loaded.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
