"""The bundled backbone: Conv4 trained on handwritten characters, with prototypes of its base classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from backbones.backbone import Backbone
from backbones.conv4 import Conv4, ink_transform
from backbones.libraries import check_options
from backbones.weights import fit_weights, read_weights

NAME = "conv4"
_TRANSFORM_ID = "ink on white paper, grey, 28x28 bilinear, dark 1 on light 0"
_PREFIX = "model."


def create_conv4(
    pretrained: bool | Path, model_options: Mapping[str, Any], transform_options: Mapping[str, Any]
) -> Backbone:
    """Return Conv4 for dark strokes on light paper.

    Args:
        pretrained: ``True`` for the package's weights, ``False`` for random ones, or a file: one in the package's form
            (weights under "model.", "base_prototypes", and a "card" in its metadata) or a plain Conv4 state dict.
        model_options: ``width``, the number of features (64, as in the package's weights).
        transform_options: none; there is one way to read ink.

    Raises:
        ValueError: an option that there is not, or a file that does not fit.
    """
    check_options(NAME, "model", model_options, ["width"])
    check_options(NAME, "transform", transform_options, [])
    network = Conv4(**model_options)
    prototypes, classes = None, None
    if pretrained is True:
        packaged = resources.files("backbones") / "weights" / "conv4_omniglot.safetensors"
        with resources.as_file(packaged) as path:
            prototypes, classes = _load(network, path)
    elif pretrained:
        prototypes, classes = _load(network, pretrained)
    return Backbone(
        NAME,
        network,
        ink_transform,
        _TRANSFORM_ID,
        model_options=model_options,
        base_prototypes=prototypes,
        base_classes=classes,
    )


def _load(network: Conv4, path: Path) -> tuple[Tensor | None, list[str] | None]:
    state = read_weights(path)
    if not any(key.startswith(_PREFIX) for key in state):
        fit_weights(network, state, path, NAME)
        return None, None
    prototypes = state.pop("base_prototypes", None)
    fit_weights(network, {key.removeprefix(_PREFIX): tensor for key, tensor in state.items()}, path, NAME)
    return prototypes, None if prototypes is None else _base_classes(path)


def _base_classes(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return [str(name) for name in json.loads(file.metadata()["card"])["base_classes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"weights file {path}: base_prototypes need a JSON 'card' with 'base_classes' in the metadata ({error!r})"
        ) from error
