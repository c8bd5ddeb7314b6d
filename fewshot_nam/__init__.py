"""Few-shot learning with Neural Attention Memory (NAM): teach a vision model a class from one image.

- ``fewshot_nam.attach``: makes any vision model one that learns classes from images, forgets them and saves them.
- ``fewshot_nam.NAMClassifier``, ``fewshot_nam.CosineClassifier``: the same heads for scikit-learn.
- ``fewshot_nam.keep_freed_memory``: a context in which a network on a CPU runs faster.
- ``fewshot_nam.heads``: few-shot classifier heads, which learn a class from one feature vector: features in, scores out.
- ``fewshot_nam.memory``: the memory itself (read, write), and networks built on it.

Importing this package does not import torch, so that ``--help`` of a command is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewshot_nam._deprecation import forward_moved_modules

if TYPE_CHECKING:
    from fewshot_nam.estimators import CosineClassifier, NAMClassifier
    from fewshot_nam.heap import keep_freed_memory
    from fewshot_nam.vision.attaching import attach
    from fewshot_nam.vision.model import NAMModel

__version__ = "0.1.0"
__all__ = ["CosineClassifier", "NAMClassifier", "NAMModel", "attach", "keep_freed_memory"]

_HOMES = {
    "CosineClassifier": "estimators",
    "NAMClassifier": "estimators",
    "NAMModel": "vision.model",
    "attach": "vision.attaching",
    "keep_freed_memory": "heap",
}

forward_moved_modules(__name__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
