"""Lists of class names: checks, look-up by name or position, and the selection of some classes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from numbers import Integral

import numpy as np

Label = int | str
ROLES = ("base", "val", "novel")
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def nearest(name: object, among: Iterable[object]) -> str:
    """Return ``"; did you mean 'x'?"`` for the entry of ``among`` nearest to ``name``, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(other) for other in among], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_classes(classes: Iterable[object], what: str) -> list[Label]:
    """Return ``classes`` as a list of Python ints or of Python strings.

    Args:
        classes: the names, all ints or all strings, each once.
        what: what has these classes; begins the error message.

    Raises:
        ValueError: no classes, ints mixed with strings, other types, or a name that comes twice.
    """
    given = list(classes)
    if not given:
        raise ValueError(f"{what}: the list of classes is empty; give at least one class")
    if all(isinstance(name, str) for name in given):
        names: list[Label] = [str(name) for name in given]
    elif all(isinstance(name, Integral) and not isinstance(name, bool) for name in given):
        names = [int(name) for name in given]  # type: ignore[call-overload]
    else:
        odd = next(name for name in given if not isinstance(name, str))
        raise ValueError(f"{what}: class names must be all strings or all ints, got {type(odd).__name__} {odd!r}")
    seen: set[Label] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what}: class {name!r} is listed twice; class names must differ")
        seen.add(name)
    return names


def select_classes(
    labels: np.ndarray, classes: Sequence[Label], wanted: Iterable[object], what: str
) -> tuple[list[Label], np.ndarray, np.ndarray]:
    """Return some of the classes, their items, and new labels that number these classes in the order given.

    Args:
        labels: ``(n,)`` positions in ``classes``.
        classes: all classes.
        wanted: names; or positions in ``classes``, where the names are strings. Ints name a class where names are ints.
        what: what has these classes; begins the error message.

    Returns:
        The names, the positions ``(m,)`` of their items in ascending order, and the new labels ``(m,)`` of these items.

    Raises:
        ValueError: an unknown class, one that is given twice, or no classes.
    """
    if isinstance(wanted, str):
        raise ValueError(f"{what}: expected a list of classes, got the string {wanted!r}; write [{wanted!r}]")
    position = {name: i for i, name in enumerate(classes)}
    by_position = isinstance(classes[0], str)
    chosen: list[int] = []
    for name in wanted:
        if by_position and isinstance(name, Integral) and not isinstance(name, bool):
            if not 0 <= int(name) < len(classes):
                raise ValueError(f"{what}: class number {name} is outside 0..{len(classes) - 1}")
            index = int(name)
        elif name in position:
            index = position[name]  # type: ignore[index]
        else:
            raise ValueError(f"{what}: there is no class {name!r} among its {len(classes)}{nearest(name, classes)}")
        if index in chosen:
            raise ValueError(f"{what}: class {classes[index]!r} is given twice")
        chosen.append(index)
    if not chosen:
        raise ValueError(f"{what}: no classes are given; name at least one of its {len(classes)}")
    renumbered = np.full(len(classes), -1, dtype=np.int64)
    renumbered[chosen] = np.arange(len(chosen))
    new = renumbered[labels]
    rows = np.flatnonzero(new >= 0)
    return [classes[i] for i in chosen], rows, new[rows]


def odd_name(classes: Iterable[object]) -> str | None:
    r"""Return what is wrong with the first name that no file of features can hold, or ``None`` where all are sound.

    >>> odd_name(["cat", 3]), odd_name(["cat", "\x1b[2J"])
    (None, "the class name '\\x1b[2J' is empty, or has control characters or such as are no Unicode")
    """
    odd = next((name for name in classes if isinstance(name, str) and (not name or _NO_TEXT.search(name))), None)
    return (
        None if odd is None else f"the class name {odd!a} is empty, or has control characters or such as are no Unicode"
    )
