"""What a head knows of the world besides its classes: other classes, by their mean features.

Features are settled against them (signed square root, less the mean over the background, unit length), and a feature that lies
near background classes is familiar. Taking familiarity off both sides of a comparison is the s-norm of speaker verification, with a
cohort chosen by nearness: Matejka et al., "Analysis of Score Normalization in Multilingual Speaker Recognition" (2017). Here it
says that what looks like a known stranger is evidence for nobody.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewshot_nam.heads.power_norm import signed_root
from fewshot_nam.heads.validation import checked_vectors
from fewshot_nam.memory.primitives import unit

NEAREST = 10
"""How many background classes a familiarity is the mean over."""


class Ground(NamedTuple):
    """What follows from a background.

    Attributes:
        centre: ``(D,)``, the mean of the rooted background.
        rows: ``(B, D)``, the background, settled.
    """

    centre: Tensor
    rows: Tensor

    def settle(self, features: Tensor) -> Tensor:
        """Return features ``(..., D)`` rooted, centred and of unit length."""
        return unit(signed_root(features) - self.centre.to(features))

    def familiarity(self, settled: Tensor) -> Tensor:
        """Return the mean of the largest cosines of settled features ``(..., D)`` to the background: ``(...)``."""
        nearest = (settled @ self.rows.mT.to(settled)).topk(min(NEAREST, len(self.rows)), dim=-1, sorted=False).values
        return nearest.mean(dim=-1)


def ground_of(prototypes: Tensor, share: float = 1.0) -> Ground:
    """Return what follows from prototypes ``(B, D)``, where this ``share`` of their mean is taken off as the centre."""
    rooted = signed_root(prototypes)
    centre = share * rooted.mean(dim=0)
    return Ground(centre, unit(rooted - centre))


class Background(nn.Module):
    """Mean features of classes that a head is not asked about, such as those its backbone was trained on.

    Args:
        prototypes: ``(B, D)``, not of unit length and not centred; ``None`` for none. Where features are sparse, the power mean
            of a class (its signed root is the mean of the signed roots of its features) is the better prototype. Fewer than
            ``NEAREST`` of them can be worse than none.

    Raises:
        ValueError: NaN, infinite or zero rows, or another shape.
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor | None = None) -> None:
        super().__init__()
        if prototypes is not None and (checked_vectors(prototypes, "background").dim() != 2 or not len(prototypes)):
            raise ValueError(f"background must be (B, D) with B at least 1, got shape {tuple(prototypes.shape)}")
        known = torch.empty(0, 0) if prototypes is None else prototypes.detach().clone()
        self.register_buffer("prototypes", known)

    def __len__(self) -> int:
        return len(self.prototypes)

    def ground(self, dtype: torch.dtype) -> Ground | None:
        """Return what follows from the background, or ``None`` where there is none."""
        if not len(self):
            return None
        return ground_of(self.prototypes.to(dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The number of classes is learned, so the buffer takes the shape of what is loaded.
        loaded = state_dict.get(prefix + "prototypes")
        if loaded is not None and loaded.shape != self.prototypes.shape:
            self.prototypes = self.prototypes.new_empty(loaded.shape, dtype=loaded.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not bool(self.prototypes.isfinite().all()):
            raise ValueError("background: this state is damaged: features are NaN or infinite")
