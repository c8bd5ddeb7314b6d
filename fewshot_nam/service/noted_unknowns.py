"""Images of unknowns in a memory's file: a head holds those that its threshold follows from, and the notes hold the others."""

from __future__ import annotations

import base64
from pathlib import Path

import torch
from torch import Tensor

from fewshot_nam.heads import Head
from fewshot_nam.heads.duplicates import first_equal

NOTED = "unknowns"
"""In the notes of a file: images of unknowns that no rate was set with yet, float32 in base64."""
_MOST_NOTED = 48 * 2**20  # bytes of them: the description of a file, which the notes are in, may have 100 MB


def noted_unknowns(unknown: Tensor, head: Head) -> dict[str, str]:
    """Return the note on those images of unknowns ``(m, D)`` that a head does not hold; nothing where it holds all.

    Raises:
        ValueError: they are more than a file holds.
    """
    held = head.unknowns.cpu()
    if torch.equal(unknown[: len(held)], held):
        waiting = unknown[len(held) :].float()  # also images that were given again, which count as often
    else:
        waiting = unknown[first_equal(unknown, held) < 0].float()
    if not len(waiting):
        return {}
    if waiting.nbytes > _MOST_NOTED:
        raise ValueError(
            f"{len(waiting):,} images of unknowns without a rate are more than a file holds: set a rate, or forget them"
        )
    return {NOTED: base64.b64encode(waiting.contiguous().numpy().tobytes()).decode()}


def unknowns_of(head: Head, noted: object, feature_dim: int, path: Path | None) -> Tensor:
    """Return the images of unknowns in a file, those of its head and those in its notes, without what was learned since.

    Raises:
        ValueError: the notes hold something else.
    """
    kept = head.unknowns.detach().cpu()
    if len(kept) and len(head.support):
        kept = kept[first_equal(kept, head.support.detach().cpu()) < 0]
    if noted is None:
        return kept
    try:
        if not isinstance(noted, str):
            raise TypeError("no text")
        content = bytearray(base64.b64decode(noted, validate=True))
        found = torch.frombuffer(content, dtype=torch.float32).reshape(-1, feature_dim)
        if not bool(found.isfinite().all()):
            raise ValueError("a feature is NaN or infinite")
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its images of unknowns cannot be read ({error})") from error
    new = first_equal(found, head.support.detach().cpu()) < 0
    return torch.cat([kept, found[new]]) if len(kept) else found[new]
