"""The libraries whose models are backbones. To add one, write a file beside this one and a line in ``names.py``."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from fewshot_nam.vision.libraries import names
from fewshot_nam.vision.libraries.common import Library


def _imported(place: str) -> Library:
    module, _, name = place.partition(":")
    library: Library = getattr(import_module(module), name)
    return library


LIBRARIES: dict[str, Library] = {prefix: _imported(place) for prefix, place in names.LIBRARIES.items()}
"""Libraries by the prefix of their models' names, in the order in which names are listed."""


def register(library: Library) -> None:
    """Add a library, for ``backbones.create``, ``attach`` and both commands.

    Args:
        library: its prefix ends in "/".

    Raises:
        ValueError: the prefix is taken, or does not end in "/".
    """
    if not library.prefix.endswith("/") or library.prefix in LIBRARIES:
        raise ValueError(
            f"register: a library's prefix ends in '/' and is none of {', '.join(LIBRARIES)}, got {library.prefix!r}"
        )
    LIBRARIES[library.prefix] = library


def library_of(network: nn.Module) -> Library | None:
    """Return the library that a model comes from, or ``None``."""
    return next((library for library in LIBRARIES.values() if library.owns(network)), None)
