"""Open-set scores: how sure to be that a query is of a known class at all, for any head.

A head says which class a query is most like; an open-set score says whether to accept the answer. ``create("cosine+knn")`` makes
a head that classifies as ``cosine`` does and accepts by ``knn``. The formulas are those of OpenOOD, on features.

>>> import torch
>>> from fewshot_nam.heads import create
>>> head = create("cosine+knn").write(torch.eye(3)[:2], ["cat", "dog"])
>>> head.predict(torch.tensor([0.9, 0.1, 0.2]))
'cat'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot_nam.heads.open_scores.head import OpenScoreHead
    from fewshot_nam.heads.open_scores.open_score import OpenScore
    from fewshot_nam.heads.open_scores.registry import ScoreSpec, available, create, register

__all__ = ["OpenScore", "OpenScoreHead", "ScoreSpec", "available", "create", "register"]

_HOMES = {
    "OpenScore": "open_score",
    "OpenScoreHead": "head",
    "ScoreSpec": "registry",
    "available": "registry",
    "create": "registry",
    "register": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
