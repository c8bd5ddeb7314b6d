"""The contract of an open-set score: one number for a query, the larger the likelier it is of a known class.

Legend: ``E`` episodes, ``Q`` queries, ``C`` classes, ``D`` features, ``W`` numbers that a score needs of each feature.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.heads.base import Support


class OpenScore(nn.Module):
    """What every open-set score gives. ``OpenScoreHead`` puts it together with a head.

    A subclass gives ``forward``; where it looks at features, also ``embed`` and ``learn``; where it has to know base classes,
    ``fit_features``.

    Args:
        temperature: scores of the head are divided by it before they are used as logits, above 0. ``None``: 1, and where base
            classes are known the temperature that makes their images most likely in episodes like those of use.

    Raises:
        ValueError: a temperature that is not above 0.
    """

    temperature: Tensor
    needs_base = False
    uses_scores = True
    """Whether the result changes with the scale of the head's scores, so that a temperature matters."""

    def __init__(self, temperature: float | None = None) -> None:
        super().__init__()
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"{type(self).__name__}: temperature must be above 0, got {temperature}")
        self.fits_temperature = self.uses_scores and temperature is None
        self.register_buffer("temperature", torch.tensor(1.0 if temperature is None else float(temperature)))

    @property
    def fitted(self) -> bool:
        """Whether the score can be used: always, unless it needs base classes."""
        return not self.needs_base

    def fit_features(self, features: Tensor) -> None:
        """Learn what the score has to know of base classes.

        Args:
            features: ``(n, D)`` of images of base classes.
        """

    def fit_classes(self, features: Tensor, targets: Tensor, classes: int) -> None:
        """Learn the same from features ``(n, D)`` with classes, ``targets`` ``(n,)`` from 0 to ``classes - 1``."""
        self.fit_features(features)

    def fit_scores(self, scores: Tensor, embedded: Tensor) -> None:
        """Set the scale of what is added to the energy, where there is something.

        Args:
            scores: ``(E, Q, C)``, logits of base images in episodes of base classes (temperature 1).
            embedded: ``(E, Q, W)``, of the same images.
        """

    def embed(self, features: Tensor) -> Tensor:
        """Return ``(..., W)``, what the score needs of each feature ``(..., D)``; it does not depend on classes."""
        return features[..., :0]

    def learn(self, support: Support) -> Any:
        """Return what the score needs of the support, whose features are embedded."""
        return None

    def forward(self, scores: Tensor, learned: Any, embedded: Tensor) -> Tensor:
        """Return the open-set score of each query, ``(E, Q)``.

        Args:
            scores: ``(E, Q, C)``, of the head.
            learned: by ``learn``.
            embedded: ``(E, Q, W)``, the queries by ``embed``.
        """
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # What is fitted has the shapes of what is loaded.
        for name, buffer in list(self.named_buffers()):
            loaded = state_dict.get(prefix + name)
            if loaded is not None and loaded.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(loaded.shape, dtype=loaded.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _logits(self, scores: Tensor) -> Tensor:
        return scores / self.temperature.to(scores)
