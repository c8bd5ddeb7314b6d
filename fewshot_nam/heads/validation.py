"""Entry checks of every head: features that can be used, and labels as plain ints and strings."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from contextvars import ContextVar
from numbers import Integral
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from fewshot_nam.memory.validation import layout_of

Label = int | str
"""The name of a class: a whole number or text."""

_SHORTEST = 1e-12  # what ``unit`` divides by at the least: anything shorter would not come out at length 1


def check_type(features: Any, name: str) -> None:
    """Raise ``TypeError`` unless ``features`` is a tensor of floats, dense and with values."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        given = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{name} must be a float tensor, got {given}")
    kind = "one on the device meta, without values" if features.device.type == "meta" else layout_of(features)
    if kind is not None:
        raise TypeError(f"{name} must be a plain float tensor, got {kind}")


def checked_vectors(features: Tensor, name: str, width: int | None = None, zero_allowed: bool = False) -> Tensor:
    """Return ``features`` ``(..., D)`` if they are finite, not zero and ``width`` wide; raise what is wrong otherwise."""
    check_type(features, name)
    if features.dim() == 0 or (width is not None and features.shape[-1] != width):
        raise ValueError(f"{name} must have width {width or 'D'}, got shape {tuple(features.shape)}")
    # One pass finds NaN, infinite, overflowing and zero vectors alike: the length of each is one of them then.
    lengths = torch.linalg.vector_norm(
        features.detach(), dim=-1, dtype=torch.promote_types(features.dtype, torch.float32)
    )
    wrong = ~lengths.isfinite() if zero_allowed else ~(lengths.isfinite() & (lengths > _SHORTEST))
    if torch.compiler.is_compiling():  # a branch on values would break the graph in two
        torch._assert_async(~wrong.any(), f"{name}: a vector cannot be used: it is NaN, infinite or zero")
        return features
    if bool(wrong.any()):
        where = tuple(wrong.nonzero()[0].tolist())
        vector = features[where] if where else features
        short = bool(lengths[where] <= _SHORTEST)
        kind = "NaN" if bool(vector.isnan().any()) else "zero (or too short)" if short else "infinite (or too large)"
        raise ValueError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} vectors cannot be used; the first, at index {list(where)}, is {kind}"
        )
    return features


def as_labels(labels: Any, count: int | None) -> list[Label]:
    """Return labels as plain ints and strings, ``count`` of them where it is given; a single one stands for all.

    Args:
        labels: one, or any iterable of them.
        count: of the features that they belong to, one after another; ``None`` for labels by themselves, in any order.

    Raises:
        TypeError: a label is neither an int nor a string, or labels of features come in a set or mapping, which has no order.
        ValueError: another number of labels; or a label of features that is empty or cannot be written as UTF-8.
    """
    if count is not None and isinstance(labels, (Set, Mapping)):
        raise TypeError(
            f"labels must be in the order of the features, and a {type(labels).__name__} has none: give a list"
        )
    if hasattr(labels, "tolist"):  # arrays and tensors; a number of theirs gives a number
        labels = labels.tolist()
    single = isinstance(labels, (str, Integral)) or not isinstance(labels, Iterable) or isinstance(labels, bytes)
    given = [labels] * (1 if count is None else count) if single else list(labels)
    names: list[Label] = []
    for label in given:
        plain = label.item() if hasattr(label, "item") else label
        if not isinstance(plain, (int, str)) or isinstance(plain, bool):
            raise TypeError(f"a label must be an int or a string, got {label!r}")
        if count is not None and isinstance(plain, str) and not plain.strip():
            raise ValueError(f"a label must not be empty, got {plain!r}: name the class")
        if count is not None and isinstance(plain, str) and as_unicode(plain) != plain:
            raise ValueError(
                f"the label {plain!r} is no valid Unicode, as the name of a folder may be that is not UTF-8: rename the folder, or "
                "give another label"
            )
        names.append(plain)
    if count is not None and len(names) != count:
        raise ValueError(f"needs one label for each feature: {count} features, {len(names)} labels")
    return names


def as_unicode(name: str) -> str:
    r"""Return a name that any program can read: bytes of file names that are not UTF-8, which Python holds as surrogates, escaped.

    >>> print(as_unicode("caf\udce9"), as_unicode("café"))
    caf\udce9 café
    """
    return name.encode("utf-8", "backslashreplace").decode()


_FLOAT = torch.finfo(torch.float32)


def computable(value: float) -> bool:
    """Return whether torch can compute with a number: finite, in the range of float32, and a whole number of 63 bits at most.

    >>> computable(0.5), computable(0), computable(1e-320), computable(10**30), computable(float("nan"))
    (True, True, False, False, False)
    """
    if isinstance(value, int):
        return value.bit_length() <= 63
    return value == 0 or (math.isfinite(value) and _FLOAT.tiny <= abs(value) <= _FLOAT.max)


MOST_RANDOM_FEATURES = 20_000
"""Twice the published number: a head with more holds several matrices of over 3 GB, whatever it learned."""


def check_random_features(where: str, width: int, least: int) -> None:
    """Raise ``ValueError`` unless a number of random features is from ``least`` to ``MOST_RANDOM_FEATURES``."""
    if not least <= width <= MOST_RANDOM_FEATURES:
        raise ValueError(f"{where} must be from {least} to {MOST_RANDOM_FEATURES:,}, got {width}")


MOST_STEPS = 10_000
"""Of heads that take them for every answer: a file may name as many as it likes."""


def check_steps(where: str, steps: int) -> None:
    """Raise ``ValueError`` unless a number of steps is from 0 to ``MOST_STEPS``."""
    if not 0 <= steps <= MOST_STEPS:
        raise ValueError(f"{where}: steps must be from 0 to {MOST_STEPS:,}, got {steps}")


class HeadWarning(UserWarning):
    """A warning of a head, by which a program that shows them tells them from those of other libraries."""


_COLLECTED: ContextVar[list[str] | None] = ContextVar("collected", default=None)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect what heads warn of in the block, in this thread, in place of giving warnings."""
    said: list[str] = []
    before = _COLLECTED.set(said)
    try:
        yield said
    finally:
        _COLLECTED.reset(before)


def warn_user(message: str) -> None:
    """Give a ``HeadWarning`` that names the line which called this package."""
    if (said := _COLLECTED.get()) is not None:
        said.append(message)
        return
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "fewshot_nam":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, HeadWarning, stacklevel=level)


def listed(classes: list[Label], most: int = 10) -> str:
    """Return the first few classes for an error, and how many there are."""
    shown = ", ".join(repr(name) for name in classes[:most])
    return f"{shown}, ... ({len(classes)})" if len(classes) > most else shown or "none"
