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
from fewshot_nam.heads.base_classes import NEAREST
from fewshot_nam.heads.calibration import Calibration
from fewshot_nam.heads.cosine import CosineHead
from fewshot_nam.heads.generator import GeneratorHead
from fewshot_nam.heads.logistic import LogisticHead
from fewshot_nam.heads.mahalanobis import MahalanobisHead
from fewshot_nam.heads.nam.head import NAMHead
from fewshot_nam.heads.nearest import NearestHead
from fewshot_nam.heads.plda import PLDAHead
from fewshot_nam.heads.protonet import ProtoNetHead
from fewshot_nam.heads.ridge import RidgeHead
from fewshot_nam.heads.validation import Label

__all__ = [
    "Calibration",
    "CosineHead",
    "GeneratorHead",
    "Head",
    "Label",
    "LogisticHead",
    "MahalanobisHead",
    "NAMHead",
    "NearestHead",
    "PLDAHead",
    "ProtoNetHead",
    "RidgeHead",
    "available",
    "create",
    "needs_base",
]

_HEADS: dict[str, tuple[Callable[..., Head], dict[str, Any], str]] = {
    "nam": (
        NAMHead,
        {"mode": "block"},
        "Neural Attention Memory: support written jointly, a plain memory read along; base classes help where known",
    ),
    "nam-sequential": (NAMHead, {"mode": "sequential"}, "the literal rule, one prototype after another"),
    "nam-parallel": (NAMHead, {"mode": "parallel"}, "every prototype erases against the same earlier memory"),
    "cosine": (CosineHead, {}, "cosine to the class prototypes"),
    "cosine-centred": (CosineHead, {}, "cosine after subtracting the mean base feature (CL2N)"),
    "cosine-root": (CosineHead, {"root": True}, "cosine of the signed square roots of features"),
    "cosine-root-centred": (
        CosineHead,
        {"root": True},
        "cosine of signed square roots, less their mean over the background",
    ),
    "cosine-msp": (
        CosineHead,
        {"compete": 1.0, "temperature": 1.0},
        "cosine, accepted by its largest softmax probability",
    ),
    "protonet": (ProtoNetHead, {}, "Euclidean distance to the class prototypes"),
    "nearest": (NearestHead, {}, "cosine to the nearest support picture"),
    "ridge": (RidgeHead, {}, "ridge regression"),
    "logistic": (LogisticHead, {"inverse_penalty": 10.0}, "logistic regression (scikit-learn)"),
    "mahalanobis": (MahalanobisHead, {}, "nearest class mean under the shrunk pooled covariance of the support"),
    "mahalanobis-diagonal": (
        MahalanobisHead,
        {"covariance": "diagonal"},
        "a Gaussian a class with shrunk variances: PEELER's score without its training",
    ),
    "plda": (PLDAHead, {}, "likelihood ratio of class to background: Gaussians, covariance from base prototypes"),
}


def available() -> dict[str, str]:
    """Return the names of all heads, each with a line on what it is."""
    return {name: meaning for name, (_, _, meaning) in _HEADS.items()}


# Heads that are defined by what is known of base classes, and those that use it where it is there.
_NEEDS_MEAN, _NEEDS_BACKGROUND, _USES_BACKGROUND = ("cosine-centred",), ("cosine-root-centred", "plda"), ("nam",)


def needs_base(name: str) -> bool:
    """Whether the head ``name`` cannot be made without something known of base classes."""
    return name in _NEEDS_MEAN or name in _NEEDS_BACKGROUND


def create(name: str, mean: Tensor | None = None, background: Tensor | None = None, **options: Any) -> Head:
    """Return a head by name.

    Args:
        name: one of ``available()``.
        mean: ``(D,)``, the mean base feature; only used by heads that are defined by it. ``None`` for that of ``background``.
        background: ``(B, D)``, the mean features of base classes; only used by heads that are defined by them, and by ``nam``
            where there are ten or more.
        options: settings of the head's class, such as ``ridge``.

    Raises:
        ValueError: an unknown name, a mean or background that is needed and missing, or settings that the head refuses.
    """
    if name not in _HEADS:
        near = difflib.get_close_matches(name, _HEADS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no head {name!r}{hint} There are: {', '.join(_HEADS)}")
    if name in _NEEDS_MEAN:
        mean = background.mean(dim=0) if mean is None and background is not None else mean
        if mean is None:
            raise ValueError(f"the head {name!r} subtracts the mean base feature, and none is known: give base classes")
        options["mean"] = mean
    elif name in _NEEDS_BACKGROUND and background is None:
        raise ValueError(
            f"the head {name!r} needs the mean features of base classes, and none are known: give base classes"
        )
    if background is not None and (
        name in _NEEDS_BACKGROUND or (name in _USES_BACKGROUND and len(background) >= NEAREST)
    ):
        options.setdefault("background", background)
    build, settings, _ = _HEADS[name]
    try:
        return build(**{**settings, **options})
    except TypeError as error:
        raise ValueError(f"the head {name!r} cannot take these settings: {error}") from None
