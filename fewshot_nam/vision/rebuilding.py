"""The backbone that a file of a model was learned with, made anew from what the file says about it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch

from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.catalogue import create
from fewshot_nam.vision.libraries.registry import LIBRARIES


def rebuild(
    about: Mapping[str, Any], weights: bool | str | os.PathLike[str] = True, device: str | torch.device | None = None
) -> Backbone:
    """Return the backbone that ``about`` describes: one of ``backbones.create``, with its options and its transform.

    Whether its weights and its features are those of the file is for ``NAMModel.load`` to check.

    Args:
        about: as ``fewshot_nam.vision.saving.read_head`` gives it.
        weights: ``True`` for the published weights, ``False`` for random ones, or a file, as in ``backbones.create``.
        device: where to; ``None`` for the CPU.

    Raises:
        LibraryNotInstalled: its library is not there.
        ValueError: no backbone of that name (one that was attached as a module of its own), or it cannot be made here.
    """
    name = str(about["backbone"])
    try:
        return create(
            name,
            weights,
            model_options=about.get("model_options") or {},
            transform_options=_transform_options(name, str(about.get("transform", ""))),
            device=device,
        )
    except ValueError as error:
        if "no backbone" not in str(error):
            raise
        raise ValueError(
            f"this memory was learned with a model of its own, {name}: attach that model and load the file"
        ) from error


def _transform_options(name: str, transform: str) -> dict[str, Any]:
    """Return the options that lead to the same transform again: the transforms of libraries end with them, as JSON."""
    start = transform.find("{")
    if not name.startswith(tuple(LIBRARIES)) or start < 0:
        return {}
    try:
        options = json.loads(transform[start:])
    except ValueError:  # a transform that was given, not found
        return {}
    return options if isinstance(options, dict) else {}
