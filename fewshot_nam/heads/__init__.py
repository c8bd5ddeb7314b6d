"""Few-shot classifier heads over features: write a class from a few of them, score, forget. See ``Head`` for the contract.

>>> import torch
>>> head = create("nam")
>>> _ = head.write(torch.eye(3)[:2], ["cat", "dog"])
>>> head.predict(torch.tensor([0.9, 0.1, 0.2]))
'cat'
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fewshot_nam.heads.base import Head
from fewshot_nam.heads.cosine import CosineHead
from fewshot_nam.heads.inputs import Label
from fewshot_nam.heads.logistic import LogisticHead
from fewshot_nam.heads.nam import NAMHead
from fewshot_nam.heads.nearest import NearestHead
from fewshot_nam.heads.protonet import ProtoNetHead
from fewshot_nam.heads.ridge import RidgeHead

__all__ = [
    "CosineHead",
    "Head",
    "Label",
    "LogisticHead",
    "NAMHead",
    "NearestHead",
    "ProtoNetHead",
    "RidgeHead",
    "available",
    "create",
    "needs_mean",
]

_HEADS: dict[str, tuple[Callable[..., Head], dict[str, Any], str]] = {
    "nam": (
        NAMHead,
        {"mode": "block"},
        "Neural Attention Memory: all support written jointly, read with a plain memory, classes compete",
    ),
    "nam-sequential": (NAMHead, {"mode": "sequential"}, "the literal rule, one prototype after another"),
    "nam-parallel": (NAMHead, {"mode": "parallel"}, "every prototype erases against the same earlier memory"),
    "cosine": (CosineHead, {}, "cosine to the class prototypes"),
    "cosine-centred": (CosineHead, {}, "cosine after subtracting the mean base feature (CL2N)"),
    "protonet": (ProtoNetHead, {}, "Euclidean distance to the class prototypes"),
    "nearest": (NearestHead, {}, "cosine to the nearest support picture"),
    "ridge": (RidgeHead, {}, "ridge regression"),
    "logistic": (LogisticHead, {}, "logistic regression (scikit-learn)"),
}


def available() -> dict[str, str]:
    """Return the names of all heads, each with a line on what it is."""
    return {name: meaning for name, (_, _, meaning) in _HEADS.items()}


def needs_mean(name: str) -> bool:
    """Whether the head ``name`` is defined by subtracting the mean base feature."""
    return name == "cosine-centred"


def create(name: str, mean: Tensor | None = None, **options: Any) -> Head:
    """Return a head by name.

    Args:
        name: one of ``available()``.
        mean: ``(D,)``, the mean base feature; only used by heads that are defined by it (``needs_mean``).
        options: settings of the head's class, such as ``ridge``.

    Raises:
        ValueError: an unknown name, a mean that is needed and missing, or settings that the head refuses.
    """
    if name not in _HEADS:
        near = difflib.get_close_matches(name, _HEADS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no head {name!r}{hint} There are: {', '.join(_HEADS)}")
    if needs_mean(name):
        if mean is None:
            raise ValueError(f"the head {name!r} subtracts the mean base feature, and none is known: give base classes")
        options["mean"] = mean
    build, settings, _ = _HEADS[name]
    try:
        return build(**{**settings, **options})
    except TypeError as error:
        raise ValueError(f"the head {name!r} cannot take these settings: {error}") from None
