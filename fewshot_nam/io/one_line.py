"""Names as a terminal or a document may show them."""

from __future__ import annotations

import unicodedata


def one_line(name: str) -> str:
    r"""Return a name with all that moves a terminal or cannot be printed written out: line breaks, colours, right to left.

    >>> print(one_line("a\nb"), one_line("\x1b[31mred"), one_line("müg"))
    a\nb \x1b[31mred müg
    """
    return "".join(one if _is_shown(one) else one.encode("unicode_escape").decode("ascii") for one in name)


def _is_shown(one: str) -> bool:
    # Spaces of other widths stand in the names of screenshots, and joiners in Persian words: they move nothing.
    return one.isprintable() or unicodedata.category(one) == "Zs" or one in "\u200c\u200d"
