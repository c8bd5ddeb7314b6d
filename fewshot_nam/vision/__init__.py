"""A vision model with a Neural Attention Memory for a head: ``attach(model)`` gives a ``NAMModel``, which learns from images.

Images in, scores out: backbones, the libraries they come from, and their weights are here too. Names are imported when they are
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot_nam.vision.attaching import attach
    from fewshot_nam.vision.model import NAMModel

__all__ = ["NAMModel", "attach"]

_HOMES = {"NAMModel": "model", "attach": "attaching"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
