"""What a head knows of the world besides its classes: other classes, by their mean features.

Features are settled against them (signed square root, less the mean over the background, unit length), and a feature that lies
near background classes is familiar. Taking familiarity off both sides of a comparison is the s-norm of speaker verification, with a
cohort chosen by nearness: Matejka et al., "Analysis of Score Normalization in Multilingual Speaker Recognition" (2017). Here it
says that what looks like a known stranger is evidence for nobody.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fewshot_nam.heads.power_norm import signed_root
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
