"""The libraries whose models are backbones. To add one, write a file beside this one and add it to ``LIBRARIES``."""

from __future__ import annotations

from torch import nn

from fewshot_nam.vision.libraries.common import Library
from fewshot_nam.vision.libraries.timm_models import TIMM
from fewshot_nam.vision.libraries.torchvision_models import TORCHVISION

LIBRARIES: dict[str, Library] = {library.prefix: library for library in (TIMM, TORCHVISION)}
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
