"""A frozen feature network with the transform of its images: all that feature extraction needs of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fewshot_nam._deprecation import warn_renamed
from fewshot_nam.heads import BaseStatistics
from fewshot_nam.vision.digests import features_digest


class Backbone(nn.Module):
    """Images ``(B, C, H, W)`` to features ``(B, feature_dim)``, with weights that never change.

    It stays in eval mode, also after ``train()``: this toolkit learns on top of frozen features, and batch normalisation in
    training mode would change them silently. Its parameters need no gradient.

    ``backbones.create`` makes one by name. A network of your own can be wrapped::

        Backbone("mine", network, transform, transform_id="grey 84x84, mean 0.5, std 0.5")

    Args:
        name: used in reports and caches.
        network: ``(B, C, H, W)`` to ``(B, D)``; switched to eval mode and frozen in place.
        transform: PIL image to a tensor ``(C, H, W)`` that the network takes.
        transform_id: text that changes whenever the transform would give other tensors.
        model_options: options the network was built with; they can change features without changing a weight.
        base_statistics: statistics of the features of the base classes: those that the weights were trained on.
        base_classes: the names of the base classes, in the order of the statistics.
        base_prototypes: deprecated: ``(B, D)``, use ``base_statistics=BaseStatistics.from_prototypes(...)``.

    Attributes:
        feature_dim: the number D of features, found by running one blank image through transform and network.
        value_range: the values that the transform gives a black and a white image; ``None`` where it gives both the same.
        base_classes: as given, or ``None``.

    Raises:
        ValueError: the network does not take what the transform gives, does not give ``(B, D)``, or the statistics do
            not match the classes or D.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        transform: Callable[[Image.Image], Tensor],
        transform_id: str,
        *,
        model_options: Mapping[str, Any] | None = None,
        base_statistics: BaseStatistics | None = None,
        base_classes: Sequence[str] | None = None,
        base_prototypes: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.name, self.transform, self.transform_id = name, transform, transform_id
        self.model_options = dict(model_options or {})
        self.network = network.eval().requires_grad_(False)
        self.feature_dim = self._measured_width()
        self.value_range = self._measured_range()
        if base_prototypes is not None:
            if base_statistics is not None:
                raise TypeError(
                    "Backbone: base_prototypes is an old word for base_statistics: give base_statistics alone"
                )
            warn_renamed("Backbone: base_prototypes=", "base_statistics=BaseStatistics.from_prototypes(...)")
            base_statistics = BaseStatistics.from_prototypes(base_prototypes)
        self._base_statistics = base_statistics
        self.base_classes = None if base_classes is None else list(base_classes)
        self._check_base()
        self.train(False)

    @property
    def base_statistics(self) -> BaseStatistics | None:
        """Statistics of the features of the base classes, on the device of the weights; ``None`` where they are unknown."""
        base, weight = self._base_statistics, next(self.network.parameters(), None)
        return base if base is None or weight is None else base.to(weight.device)

    @property
    def base_prototypes(self) -> Tensor | None:
        """Deprecated: ``base_statistics.prototypes``."""
        warn_renamed("Backbone.base_prototypes", "base_statistics.prototypes")
        base = self.base_statistics
        return None if base is None else base.prototypes

    @property
    def weights_hash(self) -> str:
        """SHA-256 of all that decides which features a tensor gets: name, model options, every weight and buffer.

        The name and the options are in it because models with equal weights can differ in how they pad or pool.
        Computed at each call, so that it cannot be out of date; a large model takes a second.
        """
        return features_digest(self.name, self.model_options, self.network.state_dict())

    def train(self, mode: bool = True) -> Backbone:
        """Return self, still in eval mode: a backbone is frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features ``(B, feature_dim)`` of transformed images ``(B, C, H, W)``.

        Raises:
            ValueError: ``images`` is not a batch, or of a size that gives another number of features.
        """
        if images.ndim != 4:
            raise ValueError(f"backbone {self.name}: images need shape (B, C, H, W), got {tuple(images.shape)}")
        features: Tensor = self.network(images)
        if features.shape != (len(images), self.feature_dim):
            raise ValueError(
                f"backbone {self.name}: images {tuple(images.shape)} give features {tuple(features.shape)} where "
                f"(B, {self.feature_dim}) is due: use its own transform"
            )
        return features

    def _measured_width(self) -> int:
        # Attributes like num_features are wrong for some models of every library; one forward pass is right for all,
        # and finds a model that cannot take the transform's size before hours of extraction do.
        blank = self.transform(Image.new("RGB", (256, 256), "white")).unsqueeze(0)
        weight = next(self.network.parameters(), blank)
        try:
            with torch.no_grad():
                features = self.network(blank.to(weight.device, weight.dtype))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"backbone {self.name} does not take the images {tuple(blank.shape[1:])} of its transform "
                f"({_first_line(error)}): change the transform's size, or the model's by its own option"
            ) from error
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.ndim != 2:
            raise ValueError(f"backbone {self.name}: the network has to give features (B, D), one image gives {shape}")
        return features.shape[1]

    def _measured_range(self) -> tuple[float, float] | None:
        ends = torch.stack([self.transform(Image.new("RGB", (256, 256), shade)) for shade in ("black", "white")])
        low, high = float(ends.min()), float(ends.max())
        return (low, high) if math.isfinite(high - low) and low < high else None

    def _check_base(self) -> None:
        base, classes = self.base_statistics, self.base_classes
        if base is None and classes is None:
            return
        expected = (0 if classes is None else len(classes), self.feature_dim)
        given = None if base is None else tuple(base.prototypes.shape)
        if given != expected:
            raise ValueError(
                f"backbone {self.name}: {expected[0]} base classes and {expected[1]} features need base prototypes "
                f"{expected}, got {given}"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
