"""What backbones are called, with a line about each kind. Nothing heavy is imported here, so that ``--help`` can read it.

To add a library, write a file beside this one and a line in ``LIBRARIES``. To add a bundled network (package ``backbones``), write
a line in ``BUNDLED`` too.
"""

from __future__ import annotations

BUNDLED = {
    "conv4": "handwritten characters; its weights come with the package",
    "conv5": "photographs; needs --weights",
}
"""The networks that come with fewshot-nam."""

LIBRARIES = {
    "timm/": "fewshot_nam.vision.libraries.timm_models:TIMM",
    "torchvision/": "fewshot_nam.vision.libraries.torchvision_models:TORCHVISION",
}
"""The libraries of models by the prefix of their models' names, in the order in which names are listed, and where each is."""


def forms() -> str:
    """Return how a model of a library is written.

    >>> forms()
    'timm/MODEL or torchvision/MODEL'
    """
    return " or ".join(f"{prefix}MODEL" for prefix in LIBRARIES)


def help_line() -> str:
    """Return all kinds of backbones in one line, for the help of an option."""
    return ", ".join(f"{name} ({about})" for name, about in BUNDLED.items()) + f", {forms()}"
