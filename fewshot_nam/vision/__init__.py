"""A vision model with a Neural Attention Memory for a head: ``attach(model)`` gives a ``NAMModel``, which learns from pictures.

Pictures in, scores out: this room alone knows both backbones and heads.
"""

from __future__ import annotations

from fewshot_nam.vision.attaching import attach
from fewshot_nam.vision.model import NAMModel

__all__ = ["NAMModel", "attach"]
