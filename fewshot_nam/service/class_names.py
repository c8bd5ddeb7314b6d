"""Names of classes: which ones are taken, and one class however its name is written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewshot_nam.heads import Label

LONGEST_NAME = 100  # characters in the name of a class
_LONGEST_SPELLED = 10 * LONGEST_NAME  # in what may become one: normalising takes time with the square of its length
# Choose among ways to draw the character before them, such as a heart in black or red: the name stays the same.
_VARIATIONS = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Unicode's Default_Ignorable_Code_Point, and two symbols that show nothing.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\u2800\U00013441-\U00013442\U00016fe4\U0001d159]"
)
_JOINED = re.compile("[\u0600-\u077f\u07c0-\u07ff\u0840-\u08ff\u1800-\u18af\ua840-\ua87f\U0001e900-\U0001e95f]")
_JOINERS = re.compile("[\u200c\u200d]")
_VIRAMA = 9  # the combining class of signs that take the vowel from a letter of an Indic script


def known_class(classes: Sequence[Label], label: str) -> Label | None:
    """Return the class that is shown so; where none is, the one whose name is written otherwise, see ``alike``."""
    return known_classes(classes, [label])[label]


def known_classes(classes: Sequence[Label], labels: Iterable[str]) -> dict[str, Label | None]:
    """Return the class of each label as ``known_class`` does, in time that grows with classes and labels, not their product."""
    shown, looks = {}, {}
    for name in reversed(classes):  # of several the first counts
        text = str(name)
        shown[text], looks[alike(text)] = name, name
    return {label: shown[label] if label in shown else looks.get(alike(label)) for label in labels}


def class_name(label: str) -> str:
    """Return the name of a class without spaces around it.

    Raises:
        ValueError: it is empty, too long, or has characters that cannot be shown.
    """
    name = one_spelling(label)
    if not name:
        raise ValueError("the class has no name")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the name of a class may have {LONGEST_NAME} characters, this one has {len(name)}")
    rest = "".join(one for i, one in enumerate(name) if not _joins(name, i))
    if not rest.isprintable() or _UNSEEN.search(rest):
        raise ValueError("the name of the class has characters that cannot be shown")
    return name


def one_spelling(label: str) -> str:
    """Return a name, taken or not, with one space for white space and one way to write each letter; a longer text as it is."""
    if len(label) > _LONGEST_SPELLED:
        return label
    return unicodedata.normalize("NFC", " ".join(_VARIATIONS.sub("", label).split()))


def alike(label: str) -> str:
    """Return what two names have in common that are one: joiners are left out, since many of them do not show."""
    return _JOINERS.sub("", one_spelling(label))


def _joins(name: str, place: int) -> bool:
    """Return whether there is a joiner that joins or parts what is around it: letters of Persian or Hindi, say, or an emoji.

    Between other characters it would not be seen, and two names would look the same.
    """
    if name[place] not in "\u200c\u200d" or not 0 < place < len(name) - 1:
        return False
    around = name[place - 1], name[place + 1]
    kinds = [unicodedata.category(one) for one in around]
    if all(kind[0] in "LM" for kind in kinds):
        return any(unicodedata.combining(one) == _VIRAMA for one in around) or all(map(_JOINED.match, around))
    emoji = kinds[0] in ("So", "Sk") and kinds[1] in ("So", "Sm")  # one, or its colour of skin, and one or an arrow
    return name[place] == "\u200d" and emoji
