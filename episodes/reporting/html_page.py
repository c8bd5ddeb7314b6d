"""The HTML of a page as it grows, and the directory that its images go to."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from fewshot_nam.io.one_line import one_line


def escape(text: str) -> str:
    r"""Return a text of one line as HTML that shows it as it is; what cannot be shown, or written as UTF-8, is written out.

    >>> print(escape("<b>\x1b\udce9"))
    &lt;b&gt;\x1b\udce9
    """
    return html.escape(one_line(text))


class Page:
    """A page that holds its images.

    Args:
        directory: for the page and its PNG files.

    Attributes:
        parts: lines of HTML.
        left_out: what is not on the page, and why.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.parts: list[str] = []
        self.left_out: list[tuple[str, str]] = []

    def add(self, *lines: str) -> None:
        """Add lines of HTML."""
        self.parts.extend(lines)

    def leave_out(self, what: str, reason: str) -> None:
        """Note a part that this page does not have: the end of the page lists them, so that no box stands empty."""
        self.left_out.append((what, reason))

    def image(self, name: str, alt: str) -> str:
        """Return the tag of an image in the directory, its bytes in the tag."""
        return f'<img alt="{escape(alt)}" src="{self._data(name)}">'

    def picture(self, name: str, alt: str) -> str:
        """Return the tags of an image that has a dark form, ``<name>_dark.png``."""
        dark = f'<source media="(prefers-color-scheme: dark)" srcset="{self._data(f"{name}_dark")}">'
        return f"<picture>{dark}{self.image(name, alt)}</picture>"

    def _data(self, name: str) -> str:
        content = (self.directory / f"{name}.png").read_bytes()
        return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
