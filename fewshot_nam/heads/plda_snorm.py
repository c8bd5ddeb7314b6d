"""PLDA with score normalisation: the likelihood ratio less the cohort scores of query and class, with a log-partition penalty.

The cohort are the base prototypes. The cohort score of a query is its mean ratio to the nearest of them, each taken for a class
with as many shots as the class that it is compared with; that of a class is the same for its mean. Sources: those of
``fewshot_nam.heads.plda``; the adaptive s-norm of Matejka et al., "Analysis of Score Normalization in Multilingual Speaker
Recognition" (2017), which was made for such ratios.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads.base import Support, with_log_partition_penalty
from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.heads.plda import PLDAHead, Ratios


class Normalised(NamedTuple):
    """What is read.

    Attributes:
        ratios: of the classes.
        cohorts: of the base prototypes, for each number of shots that a class has.
        cohort: ``(C,)`` long, which of them each class is compared with.
        cohort_scores: ``(E, C)``, of the classes.
    """

    ratios: Ratios
    cohorts: list[Ratios]
    cohort: Tensor
    cohort_scores: Tensor


class PLDASNormHead(PLDAHead):
    """Scores ``ratio - a q - b k`` less a log-partition penalty, where ``q`` and ``k`` are cohort scores of query and class.

    Args:
        base: power means of at least two classes that are in no episode.
        within: as in ``PLDAHead``.
        shrinkage: as in ``PLDAHead``.
        cohort_size: how many of the nearest base classes a cohort score is the mean over, at least 1.
        query_cohort_weight: share ``a`` of the query's cohort score that is subtracted, at least 0.
        class_cohort_weight: share ``b`` of the class's.
        log_partition_penalty: share of the log of the softmax normaliser that is subtracted, 0 to 1.
        temperature: of that softmax, above 0, in nats a dimension.

    Raises:
        ValueError: as ``PLDAHead``, or a number outside its range.
    """

    def __init__(
        self,
        base: BaseStatistics | None = None,
        *,
        within: float = 0.5,
        shrinkage: float = 0.1,
        cohort_size: int = 20,
        query_cohort_weight: float = 0.4,
        class_cohort_weight: float = 0.4,
        log_partition_penalty: float = 0.2,
        temperature: float = 0.01,
    ) -> None:
        super().__init__(base, within=within, shrinkage=shrinkage)
        if cohort_size < 1:
            raise ValueError(f"PLDASNormHead: cohort_size must be at least 1, got {cohort_size}")
        for name, weight in (
            ("query_cohort_weight", query_cohort_weight),
            ("class_cohort_weight", class_cohort_weight),
        ):
            if not 0 <= weight < math.inf:
                raise ValueError(f"PLDASNormHead: {name} must be at least 0, got {weight}")
        if not 0 <= log_partition_penalty <= 1:
            raise ValueError(f"PLDASNormHead: log_partition_penalty must be from 0 to 1, got {log_partition_penalty}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"PLDASNormHead: temperature must be above 0, got {temperature}")
        assert base is not None  # checked above
        self.cohort_size = cohort_size
        self.query_cohort_weight, self.class_cohort_weight = query_cohort_weight, class_cohort_weight
        self.log_partition_penalty, self.temperature = log_partition_penalty, temperature
        self.register_buffer("base_coordinates", self._coordinates(base.power_means))

    base_coordinates: Tensor

    def _learn(self, support: Support) -> Normalised:
        """Return the ratios of the classes and of their cohorts."""
        means = support.with_base(
            self._coordinates(support.base), support.class_means(self._coordinates(support.features))
        )
        shots = support.one_hot().sum(dim=0)
        shots[: len(support.base)] = torch.inf
        counts, cohort = torch.unique(shots, return_inverse=True)
        prototypes = self.base_coordinates.to(means)
        cohorts = [self.model.ratios(prototypes.unsqueeze(0), count.expand(len(prototypes))) for count in counts]
        scores = torch.stack([self._nearest(ratios, means) for ratios in cohorts], dim=-1)
        own = scores.gather(-1, cohort.expand(len(means), -1).unsqueeze(-1)).squeeze(-1)
        return Normalised(self.model.ratios(means, shots), cohorts, cohort, own)

    def _nearest(self, ratios: Ratios, coordinates: Tensor) -> Tensor:
        """Return cohort scores ``(E, n)`` of coordinates ``(E, n, D)``."""
        found = self._evaluated(ratios, coordinates)
        return found.topk(min(self.cohort_size, found.shape[-1]), dim=-1, sorted=False).values.mean(dim=-1)

    def _score(self, learned: Normalised, query: Tensor) -> Tensor:
        """Return normalised log-ratios ``(E, Q, C)``, in nats a dimension."""
        coordinates = self._coordinates(query)
        of_query = torch.stack([self._nearest(ratios, coordinates) for ratios in learned.cohorts], dim=-1)
        scores = self._evaluated(learned.ratios, coordinates)
        scores = scores - self.query_cohort_weight * of_query[..., learned.cohort]
        scores = scores - self.class_cohort_weight * learned.cohort_scores.unsqueeze(-2)
        return with_log_partition_penalty(scores, self.log_partition_penalty, self.temperature)

    def extra_repr(self) -> str:
        """Return the settings."""
        return (
            f"cohort_size={self.cohort_size}, query_cohort_weight={self.query_cohort_weight}, "
            f"class_cohort_weight={self.class_cohort_weight}, log_partition_penalty={self.log_partition_penalty}, "
            f"temperature={self.temperature}, {super().extra_repr()}"
        )
