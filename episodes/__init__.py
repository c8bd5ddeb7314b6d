"""Episodes for few-shot learning: images, features, sampling, measures, evaluation, reports.

Names are imported when they are first used, so ``fewshot-nam-eval --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fewshot_nam._deprecation import forward_moved_modules

if TYPE_CHECKING:
    from episodes.data.datasets import open_dataset
    from episodes.data.splits import apply_split, split_classes
    from episodes.evaluation.evaluation import EvaluationSettings, evaluate
    from episodes.evaluation.incremental import evaluate_incremental
    from episodes.features.bank import FeatureBank, open_bank
    from episodes.features.extraction import extract
    from episodes.metrics.registry import MEASURES
    from episodes.reporting.report import Report
    from episodes.sampling.sampler import Episodes, EpisodeSampler

__all__ = [
    "MEASURES",
    "EpisodeSampler",
    "Episodes",
    "EvaluationSettings",
    "FeatureBank",
    "Report",
    "apply_split",
    "evaluate",
    "evaluate_incremental",
    "extract",
    "open_bank",
    "open_dataset",
    "split_classes",
]

_HOMES = {
    "MEASURES": "metrics.registry",
    "EpisodeSampler": "sampling.sampler",
    "Episodes": "sampling.sampler",
    "EvaluationSettings": "evaluation.evaluation",
    "FeatureBank": "features.bank",
    "Report": "reporting.report",
    "apply_split": "data.splits",
    "evaluate": "evaluation.evaluation",
    "evaluate_incremental": "evaluation.incremental",
    "extract": "features.extraction",
    "open_bank": "features.bank",
    "open_dataset": "data.datasets",
    "split_classes": "data.splits",
}

forward_moved_modules(__name__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'episodes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"episodes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
