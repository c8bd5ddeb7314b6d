"""Few-shot classifier heads over features: write a class from a few of them, score, forget. See ``Head`` for the contract.

Names are imported when they are first used, so that ``--help`` of a command need not wait for torch to list the heads.

>>> import torch
>>> from fewshot_nam.heads import create
>>> head = create("nam")
>>> _ = head.write(torch.eye(3)[:2], ["cat", "dog"])
>>> head.predict(torch.tensor([0.9, 0.1, 0.2]))
'cat'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot_nam.heads.base import Head
    from fewshot_nam.heads.base_statistics import BaseStatistics
    from fewshot_nam.heads.calibration import Calibration
    from fewshot_nam.heads.cosine import CosineHead
    from fewshot_nam.heads.erased_weights import ErasedWeightsHead
    from fewshot_nam.heads.generator import GeneratorHead
    from fewshot_nam.heads.kept_classifier import BaseCost, KeptClassifierHead
    from fewshot_nam.heads.logistic import LogisticHead
    from fewshot_nam.heads.mahalanobis import MahalanobisHead
    from fewshot_nam.heads.nam.head import NAMHead, NAMSettings
    from fewshot_nam.heads.nam.write_rule import WriteRuleHead
    from fewshot_nam.heads.nearest import NearestHead
    from fewshot_nam.heads.plda import PLDAHead
    from fewshot_nam.heads.plda_snorm import PLDASNormHead
    from fewshot_nam.heads.protonet import ProtoNetHead
    from fewshot_nam.heads.registry import HeadSpec, available, create, needs_base, register
    from fewshot_nam.heads.ridge import RidgeHead
    from fewshot_nam.heads.score_norm import ScoreNormHead, ScoreNormSettings
    from fewshot_nam.heads.validation import Label

__all__ = [
    "BaseCost",
    "BaseStatistics",
    "Calibration",
    "CosineHead",
    "ErasedWeightsHead",
    "GeneratorHead",
    "Head",
    "HeadSpec",
    "KeptClassifierHead",
    "Label",
    "LogisticHead",
    "MahalanobisHead",
    "NAMHead",
    "NAMSettings",
    "NearestHead",
    "PLDAHead",
    "PLDASNormHead",
    "ProtoNetHead",
    "RidgeHead",
    "ScoreNormHead",
    "ScoreNormSettings",
    "WriteRuleHead",
    "available",
    "create",
    "needs_base",
    "register",
]

_HOMES = {
    "BaseCost": "kept_classifier",
    "BaseStatistics": "base_statistics",
    "Calibration": "calibration",
    "CosineHead": "cosine",
    "ErasedWeightsHead": "erased_weights",
    "GeneratorHead": "generator",
    "Head": "base",
    "HeadSpec": "registry",
    "KeptClassifierHead": "kept_classifier",
    "Label": "validation",
    "LogisticHead": "logistic",
    "MahalanobisHead": "mahalanobis",
    "NAMHead": "nam.head",
    "NAMSettings": "nam.head",
    "NearestHead": "nearest",
    "PLDAHead": "plda",
    "PLDASNormHead": "plda_snorm",
    "ProtoNetHead": "protonet",
    "RidgeHead": "ridge",
    "ScoreNormHead": "score_norm",
    "ScoreNormSettings": "score_norm",
    "WriteRuleHead": "nam.write_rule",
    "available": "registry",
    "create": "registry",
    "needs_base": "registry",
    "register": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
