"""Settings that a file gives a head: of the types that the head's constructor names, and numbers that can be computed with.

A head checks the range of what it is given. That a size is whole and a number is no list, the types of its constructor say, which
a file need not follow.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from fewshot_nam.heads.validation import computable


def check_settings(kind: type, settings: Mapping[str, Any]) -> None:
    """Check settings that were read from a file, before a head is made with them.

    What a constructor does not annotate is left to the head, and so are unknown names.

    Args:
        kind: the class of the head.
        settings: as JSON holds them.

    Raises:
        ValueError: one is not of the type that the constructor names, or is a number that torch cannot compute with: not finite,
            too large, or so small that float32 holds 0 in its place.
    """
    types_of = _annotations(kind)
    for name, value in settings.items():
        wrong = _wrong(value, types_of.get(name, Any))
        if wrong is not None:
            raise ValueError(f"{kind.__name__}: the setting {name} {wrong}")


def _annotations(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(kind.__init__))  # type: ignore[misc]
    except (NameError, TypeError):  # a head of another package, whose types are not importable
        return {}


def _wrong(value: object, wanted: Any) -> str | None:
    """Return what is wrong with a value of an annotated type; ``None`` for nothing."""
    origin = typing.get_origin(wanted)
    if origin in (Union, types.UnionType):
        found = [_wrong(value, each) for each in typing.get_args(wanted)]
        return None if None in found else found[0]
    if isinstance(value, Mapping):  # constants by name: numbers all
        if wanted is not Any and not dataclasses.is_dataclass(wanted):
            return "is an object"
        return next((f"has {key} that {wrong}" for key, each in value.items() if (wrong := _wrong(each, float))), None)
    if origin is Literal:
        return (
            None if value in typing.get_args(wanted) else f"is none of {', '.join(map(str, typing.get_args(wanted)))}"
        )
    if wanted is types.NoneType:
        return None if value is None else "is not left out"
    if wanted is bool or wanted is str:
        return None if isinstance(value, wanted) else f"is no {wanted.__name__}"
    if wanted is int:
        return None if type(value) is int and computable(value) else "is no whole number of 63 bits"
    if wanted is float:
        fine = type(value) in (int, float) and computable(typing.cast("float", value))
        return None if fine else "is no number that can be computed with"
    return None
