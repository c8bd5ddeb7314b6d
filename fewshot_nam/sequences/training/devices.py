"""Where a training runs."""

from __future__ import annotations

import torch


def check_device(device: str) -> None:
    """Raise ``ValueError`` for a device that is not ``"auto"``, ``"cpu"`` or ``"cuda"``, or that is not here."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"training: device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("training: there is no device 'cuda' here: pass 'cpu', or leave it out")
