"""The three published versions of the NAM Turing Machine, as flags, and the default of this library.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422), its ICLR-2023 submission, and the authors' code of 2022 and of
2023, which differ from the text and from each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fewshot_nam.memory.turing.heads import Action

CHOICES = {
    "erase": ("tied", "separate"),
    "key_erase": ("position", "key"),
    "head_norm": ("none", "access", "state"),
    "order": ("read_first", "write_first"),
}


@dataclass(frozen=True)
class TuringPreset:
    """The points in which versions of the NAM Turing Machine differ.

    Attributes:
        controller: ``"lstm"``, ``"bilstm"``, ``"bigru"``, ``"mlp"``, or a module.
        actions: ``"left"``, ``"noop"``, ``"right"``, ``"jump"``, and your own transitions. Without one that needs keys, such as
            ``"jump"``, there is no key tape.
        erase: ``"tied"`` for ``p_e = p_w``, ``"separate"`` for a gate of its own.
        key_erase: what a write on the key tape erases: ``"position"``, the old key at the head's position; ``"key"``, the old
            position of the same key.
        head_norm: ``"none"``; ``"access"``: the value tape is accessed with normalised copies of the heads; ``"state"``: the heads
            are normalised to unit length after each move.
        order: ``"read_first"`` or ``"write_first"``, on the value tape.
    """

    controller: str | nn.Module
    actions: tuple[str | Action, ...]
    erase: str
    key_erase: str
    head_norm: str
    order: str


_ALL_ACTIONS = ("left", "noop", "right", "jump")

PRESETS: dict[str, TuringPreset] = {
    "paper": TuringPreset("mlp", _ALL_ACTIONS, "tied", "position", "none", "read_first"),
    "iclr2022": TuringPreset("bigru", _ALL_ACTIONS, "tied", "position", "none", "write_first"),
    "neurips2023": TuringPreset("lstm", _ALL_ACTIONS, "separate", "key", "access", "write_first"),
}
"""``paper`` follows the text, ``iclr2022`` the code behind its tables, ``neurips2023`` the authors' latest code."""

DEFAULT = replace(PRESETS["neurips2023"], head_norm="state")
"""``neurips2023`` with heads of unit length: with its own ``"access"`` heads shrink until every read is 0 in long sequences."""


def resolve_preset(preset: str | None, **overrides: Any) -> TuringPreset:
    """Return the preset of that name, with every override that is not None.

    Args:
        preset: a name from ``PRESETS``, or None for ``DEFAULT``.
        overrides: fields of ``TuringPreset``; None keeps the value of the preset.

    Raises:
        ValueError: the preset or the value of a flag is unknown.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"NAMTuringMachine: unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    chosen = DEFAULT if preset is None else PRESETS[preset]
    flags = replace(chosen, **{name: value for name, value in overrides.items() if value is not None})
    for name, choices in CHOICES.items():
        value = getattr(flags, name)
        if value not in choices:
            raise ValueError(f"NAMTuringMachine: {name} must be one of {', '.join(choices)}, got {value!r}")
    return flags
