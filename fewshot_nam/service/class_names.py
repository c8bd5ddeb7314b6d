"""Names of classes: which ones are taken, and one class however its name is written."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence

from fewshot_nam.heads import Label

LONGEST_NAME = 100  # characters in the name of a class
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # letters and symbols that show nothing
# Which join or part letters of Persian, say, and parts of an emoji; between others they would not be seen.
_JOINERS = re.compile(r"(?<=[^\s\x00-\x7f\u200c\u200d])[\u200c\u200d](?=[^\s\x00-\x7f\u200c\u200d])")


def known_class(classes: Sequence[Label], label: str) -> Label | None:
    """Return the class that is shown so; where none is, the one whose name another program has written otherwise."""
    shown = (name for name in classes if str(name) == label)
    written_otherwise = (name for name in classes if one_spelling(str(name)) == one_spelling(label))
    return next(itertools.chain(shown, written_otherwise), None)


def class_name(label: str) -> str:
    """Return the name of a class without spaces around it.

    Raises:
        ValueError: it is empty, too long, or has characters that cannot be shown.
    """
    name = label if len(label) > 100 * LONGEST_NAME else one_spelling(label)
    if not name:
        raise ValueError("the class has no name")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the name of a class may have {LONGEST_NAME} characters, this one has {len(name)}")
    if not _JOINERS.sub("", name).isprintable() or not _BLANK.isdisjoint(name):
        raise ValueError("the name of the class has characters that cannot be shown")
    return name


def one_spelling(label: str) -> str:
    """Return a name, taken or not, as it is compared: one space for white space, and one way to write each letter."""
    return unicodedata.normalize("NFC", " ".join(label.split()))
