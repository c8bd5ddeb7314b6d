"""Files that commands write."""

from __future__ import annotations

from pathlib import Path

from fewshot_nam.io.image_folders import EXTENSIONS


def check_output(path: Path) -> None:
    """Raise ``ValueError`` where a file that is no memory would take the place of a memory or an image."""
    if not path.exists():
        return
    from fewshot_nam.vision.saving import holds_memory

    kind = "a memory" if holds_memory(path) else "an image" if path.suffix.lower() in EXTENSIONS else None
    if kind is not None:
        raise ValueError(f"{path} is {kind}, and would be replaced: choose another name for the output")
