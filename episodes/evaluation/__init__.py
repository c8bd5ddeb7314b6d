"""Evaluation of heads on episodes: settings, scoring, comparison."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from episodes.evaluation.evaluation import PROTOCOLS, as_device, evaluate, usable_heads

__all__ = ["PROTOCOLS", "as_device", "evaluate", "usable_heads"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("episodes.evaluation.evaluation"), name)
