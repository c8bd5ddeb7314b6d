"""Splits of classes into base, validation and novel: from a file, by counts or by fractions.

A seeded split sorts class names by a hash of seed and name. So it is the same on every machine and with every version of every
library, and does not depend on the order in which the classes are listed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

from episodes.data.class_names import ROLES, Label, check_classes, nearest
from episodes.data.image_dataset import ImageSet
from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.yaml_input import read_yaml, shown

_SHARES = re.compile(r"[\d./]+")  # also malformed shares such as 5//5, which name no file

Split = str | os.PathLike[str] | Sequence[int] | Sequence[float] | Mapping[str, Sequence[Label]]


def split_classes(classes: Iterable[Label], split: Split, seed: int = 0) -> dict[str, list[Label]]:
    """Return which classes are base, validation and novel.

    Args:
        classes: all class names.
        split: the path of a YAML or JSON file that maps ``base``, ``val`` and ``novel`` to lists of names, or such a mapping;
            or three counts, ``"64/16/20"`` or ``(64, 16, 20)``; or three fractions, ``"0.6/0.2/0.2"`` or ``(0.6, 0.2, 0.2)``.
            Classes that a file does not name, or that counts and fractions leave over, are in no part.
        seed: selects one of the possible splits by counts or fractions.

    Returns:
        Three lists of names, under ``"base"``, ``"val"`` and ``"novel"``. From a file, in its order; else in that of ``classes``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form, names an unknown class or one class twice; or the parts are not three counts or
            fractions, or add up to more than all classes.

    Example:
        >>> split_classes(["ant", "bee", "cat", "dog"], "2/1/1", seed=0)
        {'base': ['cat', 'dog'], 'val': ['ant'], 'novel': ['bee']}
    """
    names = check_classes(classes, "split")
    if isinstance(split, str) and _SHARES.fullmatch(split.strip()):
        return _by_shares(names, split.strip().split("/"), seed)
    if isinstance(split, Mapping):
        return _by_names(names, split, "split")
    if isinstance(split, str | os.PathLike):
        return _by_names(names, _read(Path(split).expanduser()), str(split))
    return _by_shares(names, [str(part) for part in split], seed)


class _Bank(Protocol):
    """What splitting asks of a ``FeatureBank``, which this room does not import."""

    classes: list[Label]

    def select_classes(self, names_or_indices: Iterable[Label], /) -> Any: ...


_BankType = TypeVar("_BankType", bound=_Bank)


@overload
def apply_split(items: _BankType, split: Split, seed: int = 0) -> dict[str, _BankType]: ...
@overload
def apply_split(items: ImageSet, split: Split, seed: int = 0) -> dict[str, ImageSet]: ...
def apply_split(items: Any, split: Split, seed: int = 0) -> dict[str, Any]:
    """Return the base, validation and novel classes of a feature bank or of a set of images.

    Args:
        items: the bank or the images.
        split: which classes are which, as in ``split_classes``.
        seed: likewise.

    Returns:
        The parts under ``"base"``, ``"val"`` and ``"novel"``; a part without classes is left out.

    Raises:
        ValueError: as in ``split_classes``.

    Example:
        >>> from episodes import open_dataset
        >>> parts = apply_split(open_dataset("digits")["novel"], "5/2/3", seed=0)
        >>> {role: part.classes for role, part in parts.items()}
        {'base': ['1', '4', '5', '8', '9'], 'val': ['0', '3'], 'novel': ['2', '6', '7']}
    """
    parts = {role: names for role, names in split_classes(items.classes, split, seed).items() if names}
    select = items.select_classes if hasattr(items, "select_classes") else items.subset
    return {role: select(names) for role, names in parts.items()}


def save_split(path: str | os.PathLike[str], split: Mapping[str, Sequence[Label]]) -> None:
    """Write a split to a ``.yaml``, ``.yml`` or ``.json`` file, whole or not at all, for ``split_classes`` to read.

    Raises:
        ValueError: another ending.
        OSError: the directory is missing or cannot be written.
    """
    path = Path(path)
    content = {role: list(names) for role, names in split.items()}
    if path.suffix == ".json":
        text = json.dumps(content, indent=2) + "\n"
    elif path.suffix in (".yaml", ".yml"):
        import yaml

        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    else:
        raise ValueError(f"split file {path}: expected a name ending in .yaml, .yml or .json")
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _by_shares(classes: list[Label], parts: list[str], seed: int) -> dict[str, list[Label]]:
    written = "/".join(parts)
    try:
        shares = [Fraction(part) for part in parts]
    except ValueError:
        shares = []
    if len(shares) != len(ROLES) or min(shares) < 0:
        raise ValueError(f"split {written!r}: expected three counts like 64/16/20, or fractions like 0.6/0.2/0.2")
    total = sum(shares)
    if all(part.isdigit() for part in parts):
        if total > len(classes):
            raise ValueError(
                f"split {written!r}: {total} classes in all, and there are {len(classes)}; use smaller counts"
            )
    elif total > 1:
        raise ValueError(f"split {written!r}: fractions add up to {float(total):g}, expected at most 1")
    else:
        shares = [share * len(classes) for share in shares]
    # The borders are rounded, not the parts: fractions that add up to 1 then use every class exactly once.
    borders = [int(sum(shares[:i], Fraction(0)) + Fraction(1, 2)) for i in range(len(ROLES) + 1)]
    shuffled = sorted(range(len(classes)), key=lambda i: _rank(seed, classes[i]))
    split: dict[str, list[Label]] = {}
    for role, share, start, end in zip(ROLES, shares, borders, borders[1:], strict=False):
        if share > 0 and start == end:
            raise ValueError(
                f"split {written!r}: of {len(classes)} classes none is left for {role}; make its part larger"
            )
        split[role] = [classes[i] for i in sorted(shuffled[start:end])]
    return split


def _rank(seed: int, name: Label) -> bytes:
    # File systems may hold names that are not UTF-8, which Python carries as surrogates.
    return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogateescape")).digest()


def _read(path: Path) -> Mapping[str, Sequence[Label]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_yaml(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"split file {path}: not a text file; expected YAML or JSON in UTF-8") from error
    except RecursionError:
        raise ValueError(f"split file {path}: not valid JSON: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"split file {path}: not valid JSON or YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"split file {path}: expected a mapping of base, val and novel to lists of class names")
    return content


def _by_names(classes: list[Label], content: Mapping[str, Sequence[Label]], where: str) -> dict[str, list[Label]]:
    for role in content:
        if role not in ROLES:
            raise ValueError(f"{where}: unknown part {role!r}, expected base, val and novel{nearest(role, ROLES)}")
    for role in ROLES:
        if role not in content:
            raise ValueError(f"{where}: no part {role!r}; give base, val and novel, [] for one without classes")
    known = {str(name): name for name in classes}  # an unquoted 7 in a file may mean the class "7"
    used: dict[Label, str] = {}
    split: dict[str, list[Label]] = {}
    for role in ROLES:
        if isinstance(content[role], str) or not isinstance(content[role], Sequence):
            raise ValueError(f"{where}: part {role!r} must be a list of class names, got {shown(content[role])}")
        split[role] = []
        for written in content[role]:
            if isinstance(written, bool) or str(written) not in known:
                quote = "" if isinstance(written, str) else " (not read as text: put the name in quotes)"
                raise ValueError(
                    f"{where}: {role} has {shown(written)}{quote}, which is none of the {len(classes)} classes"
                    f"{nearest(written, classes)}"
                )
            name = known[str(written)]
            if name in used:
                twice = f"in both {used[name]} and {role}" if used[name] != role else f"twice in {role}"
                raise ValueError(f"{where}: class {name!r} is {twice}; name each class once")
            used[name] = role
            split[role].append(name)
    return split
