"""Episodes for few-shot learning: pictures, features, sampling, measures, evaluation, reports.

Names are imported when they are first used, so that ``fewshot-nam-eval --help`` need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from episodes.bank import FeatureBank
    from episodes.datasets import open_bank, open_dataset
    from episodes.evaluation import evaluate
    from episodes.extraction import extract
    from episodes.measures import MEASURES
    from episodes.report import Report
    from episodes.sampler import Episodes, EpisodeSampler
    from episodes.splits import apply_split, split_classes

__all__ = [
    "MEASURES",
    "EpisodeSampler",
    "Episodes",
    "FeatureBank",
    "Report",
    "apply_split",
    "evaluate",
    "extract",
    "open_bank",
    "open_dataset",
    "split_classes",
]

_HOMES = {
    "MEASURES": "measures",
    "EpisodeSampler": "sampler",
    "Episodes": "sampler",
    "FeatureBank": "bank",
    "Report": "report",
    "apply_split": "splits",
    "evaluate": "evaluation",
    "extract": "extraction",
    "open_bank": "datasets",
    "open_dataset": "datasets",
    "split_classes": "splits",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'episodes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"episodes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
