"""Pretrained feature extractors, each with the transform of its images: ``create(name)`` returns a ``Backbone``.

Here are the networks that come with fewshot-nam and how they are pretrained. Models of timm and torchvision are backbones too.
See ``create`` for an example.

Importing this package does not import torch, so that ``--help`` of a command is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewshot_nam._deprecation import forward_moved_modules

if TYPE_CHECKING:
    from fewshot_nam.vision.backbone import Backbone
    from fewshot_nam.vision.catalogue import available, create

__all__ = ["Backbone", "available", "create"]

_HOMES = {
    "Backbone": "fewshot_nam.vision.backbone",
    "available": "fewshot_nam.vision.catalogue",
    "create": "fewshot_nam.vision.catalogue",
}

forward_moved_modules(__name__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
