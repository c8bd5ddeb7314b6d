"""Build the backbone of a saved model again, from the description in the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fewshot_nam.io.yaml_input import shown
from fewshot_nam.vision.backbone import Backbone
from fewshot_nam.vision.catalogue import UnknownBackbone, create
from fewshot_nam.vision.libraries.registry import LIBRARIES

_LARGEST = 8192  # number among the options of a network; depths and widths of those there are stay below it


def rebuild(
    about: Mapping[str, Any], weights: bool | str | os.PathLike[str] = True, device: str | torch.device | None = None
) -> Backbone:
    """Return the backbone that ``about`` describes: one of ``backbones.create``, with its options and its transform.

    ``NAMModel.load`` checks that its weights and features match the file.

    Args:
        about: as ``fewshot_nam.vision.saving.read_head`` gives it.
        weights: ``True`` for the published weights, ``False`` for random ones, or a file, as in ``backbones.create``.
        device: where to put it; ``None`` for the CPU.

    Raises:
        LibraryNotInstalled: its library is not installed.
        ValueError: it has no name that ``backbones.create`` knows (a user's own module was attached), or it cannot be built here.
    """
    name = str(about["backbone"])
    own = f"this memory was learned with a model of its own, {name}: attach that model and load the file"
    if "." in name and not name.startswith(tuple(LIBRARIES)):  # the name of a class
        raise ValueError(own)
    model_options = about.get("model_options") or {}
    if any(number > _LARGEST for number in _numbers(model_options)):
        raise ValueError(
            f"this memory's backbone is larger than any: {shown(model_options)}, and at most {_LARGEST:,} is built"
        )
    try:
        return create(
            name,
            weights,
            model_options=model_options,
            transform_options=_transform_options(name, str(about.get("transform", ""))),
            device=device,
        )
    except UnknownBackbone as error:
        raise ValueError(own) from error


def _numbers(options: Any) -> Iterator[int | float]:
    """Yield all numbers in options, in lists and mappings too."""
    if isinstance(options, int | float):
        yield options
    elif isinstance(options, Mapping):
        for value in options.values():
            yield from _numbers(value)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _numbers(value)


def _transform_options(name: str, transform: str) -> dict[str, Any]:
    """Return the options that give the same transform: the description of a library's transform ends with them, as JSON."""
    start = transform.find("{")
    if not name.startswith(tuple(LIBRARIES)) or start < 0:
        return {}
    try:
        options = json.loads(transform[start:])
    except ValueError:  # the user's own transform, not a library's
        return {}
    return options if isinstance(options, dict) else {}
