"""Score normalisation by a cohort: what is close to many classes is weak evidence for one.

The cohort are base classes. Features are compared after power normalisation, centring by the mean of the cohort and scaling to
length 1. The cohort score of a feature is its mean cosine to the nearest cohort classes. Subtracting it on both sides of
a comparison, for the class and for the query, is the s-norm of speaker verification with an adaptive cohort: Matejka et al.,
"Analysis of Score Normalization in Multilingual Speaker Recognition" (2017).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fewshot_nam._deprecation import renamed_names
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.memory.primitives import unit

__getattr__ = renamed_names(
    __name__,
    {
        "NEAREST": "COHORT_SIZE",
        "Ground": "Cohort",
        "ground_of": "cohort_of",
        "Background": "fewshot_nam.heads.base_statistics.StoredBaseStatistics",
    },
)

COHORT_SIZE = 10
"""How many of the nearest cohort classes a cohort score is the mean over."""


class Cohort(NamedTuple):
    """Base classes that features are compared with.

    Attributes:
        centre: ``(D,)``, subtracted from power-normalised features.
        prototypes: ``(B, D)``, one a base class: power-normalised, centred, of length 1.
    """

    centre: Tensor
    prototypes: Tensor

    def normalise(self, features: Tensor) -> Tensor:
        """Return features ``(..., D)`` power-normalised, centred and of length 1."""
        return unit(power_normalise(features) - self.centre.to(features))

    def scores(self, normalised: Tensor) -> Tensor:
        """Return the cohort scores ``(...)`` of normalised features ``(..., D)``: the mean of their largest cosines."""
        cosines = normalised @ self.prototypes.mT.to(normalised)
        return cosines.topk(min(COHORT_SIZE, len(self.prototypes)), dim=-1, sorted=False).values.mean(dim=-1)


def cohort_of(power_means: Tensor, centring: float = 1.0) -> Cohort:
    """Return base classes as a cohort.

    Args:
        power_means: ``(B, D)``, one a class.
        centring: share of the mean power-normalised prototype that is the centre, 0 to 1.
    """
    powers = power_normalise(power_means)
    centre = centring * powers.mean(dim=0)
    return Cohort(centre, unit(powers - centre))
