"""The backbones of the published tables that do not come with the package, with the options they were measured with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot_nam.vision.backbone import Backbone

MOBILENETV2: dict[str, Any] = {
    "name": "timm/mobilenetv2_100",
    "model_options": {"pad_type": "same"},
    "transform_options": {"mean": 0.5, "std": 0.5, "input_size": 160, "crop_pct": 1.0, "interpolation": "bilinear"},
}
"""Arguments of ``backbones.create`` for weights that were converted from TensorFlow: its padding and its pixel range."""


def mobilenetv2(weights: str | os.PathLike[str]) -> Backbone:
    """Return MobileNetV2 at 160x160 pixels with the ImageNet weights in the file ``weights``.

    Raises:
        ImportError: timm is not installed.
        ValueError, OSError: weights that do not fit, or no such file.
    """
    from backbones import create

    return create(MOBILENETV2["name"], weights, **{k: v for k, v in MOBILENETV2.items() if k != "name"})
