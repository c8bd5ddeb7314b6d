"""A frozen feature network with the transform of its images: all that feature extraction needs of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

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
        base_prototypes: ``(n, D)`` mean feature of each class that the weights were trained on.
        base_classes: names of those n classes, in the same order.

    Attributes:
        feature_dim: the number D of features, found by running one blank image through transform and network.
        base_prototypes: as given, on the same device as the weights, or ``None``.
        base_classes: as given, or ``None``.

    Raises:
        ValueError: the network does not take what the transform gives, does not give ``(B, D)``, or the prototypes do
            not match the classes or D.
    """

    base_prototypes: Tensor | None

    def __init__(
        self,
        name: str,
        network: nn.Module,
        transform: Callable[[Image.Image], Tensor],
        transform_id: str,
        *,
        model_options: Mapping[str, Any] | None = None,
        base_prototypes: Tensor | None = None,
        base_classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.transform, self.transform_id = name, transform, transform_id
        self.model_options = dict(model_options or {})
        self.network = network.eval().requires_grad_(False)
        self.feature_dim = self._measured_width()
        self.register_buffer("base_prototypes", base_prototypes, persistent=False)
        self.base_classes = None if base_classes is None else list(base_classes)
        self._check_base()
        self.train(False)

    @property
    def weights_hash(self) -> str:
        """SHA-256 of all that decides which features a tensor gets: name, model options, every weight and buffer.

        The name and the options are in it because models with equal weights can differ in how they pad or pool.
        Computed anew at each call, so that it cannot be out of date; a large model takes a second.
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

    def _check_base(self) -> None:
        prototypes, classes = self.base_prototypes, self.base_classes
        if prototypes is None and classes is None:
            return
        expected = (0 if classes is None else len(classes), self.feature_dim)
        given = None if prototypes is None else tuple(prototypes.shape)
        if given != expected:
            raise ValueError(
                f"backbone {self.name}: {expected[0]} base classes and {expected[1]} features need base prototypes "
                f"{expected}, got {given}"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
