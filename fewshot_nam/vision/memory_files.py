"""Models by the file of their memory: start one, open one with the weights that its file notes, and change one file at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fewshot_nam import heads
from fewshot_nam.vision.catalogue import create
from fewshot_nam.vision.model import NAMModel
from fewshot_nam.vision.rebuilding import rebuild
from fewshot_nam.vision.saving import read_head

_LOCK_SECONDS = 300
NOT_FILES = ("published", "random")
"""Sources of weights that are no files."""


def new_model(
    backbone: str,
    memory: str | os.PathLike[str],
    weights: str | None = None,
    *,
    head: str = "nam",
    model_options: Mapping[str, Any] | None = None,
    transform_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> tuple[NAMModel, dict[str, Any]]:
    """Return a model that knows no class, and the notes for its file.

    Args:
        backbone: a name, as ``backbones.create`` takes it.
        memory: the file it will be saved to; nothing is written yet.
        weights: a file, "random", or ``None`` for the published weights.
        head: a name, as ``fewshot_nam.heads.create`` takes it.
        model_options: as for ``backbones.create``.
        transform_options: as for ``backbones.create``.
        device: "cpu" or "cuda".

    Raises:
        ImportError, ValueError: as ``backbones.create``.
    """
    source = weights_source(weights, memory) or "published"
    made = create(
        backbone,
        _weights(source, memory),
        model_options=model_options,
        transform_options=transform_options,
        device=device,
    )
    return NAMModel(made, heads.create(head, base=made.base_statistics)), {"weights": source}


def open_model(
    memory: str | os.PathLike[str], weights: str | None = None, device: str = "cpu"
) -> tuple[NAMModel, dict[str, Any]]:
    """Return the model of a memory's file, and the file's notes.

    Args:
        memory: the file.
        weights: a file or "random", in place of what the memory notes.
        device: "cpu" or "cuda".

    Raises:
        OSError: the file cannot be read.
        ImportError, ValueError: it is no memory, or its backbone or weights are not there.
    """
    about, head, _ = read_head(memory)
    notes = dict(about.get("notes") or {})
    source = weights_source(weights, memory) or notes.get("weights", "published")
    found = _weights(source, memory)
    if isinstance(found, Path) and not found.is_file():
        raise ValueError(
            f"{memory} was learned with the weights in {source}, which does not exist: pass --weights FILE"
        )
    model = NAMModel(rebuild(about, found, device), head).load(memory)
    return model, notes | {"weights": source}


def weights_source(weights: str | None, memory: str | os.PathLike[str]) -> str | None:
    """Return where weights come from, as the memory notes it: the option, or a file relative to the memory's directory.

    Relative, so that a memory tells nothing about the machine it was made on, and can be moved together with the weights.
    """
    if weights is None or weights == "random":
        return weights
    path, directory = Path(weights).expanduser().resolve(), Path(memory).resolve().parent
    try:
        return Path(os.path.relpath(path, directory)).as_posix()
    except ValueError:  # on Windows, another drive
        return path.name


def weights_file(memory: str | os.PathLike[str], source: str) -> Path:
    """Return the file of weights that a memory notes; memories of the first releases note an absolute path, which stays."""
    return Path(memory).resolve().parent / source


def _weights(source: str, memory: str | os.PathLike[str]) -> bool | Path:
    """Return the weights as ``create`` takes them; random ones are the same every time."""
    if source == "published":
        return True
    if source != "random":
        return weights_file(memory, source)
    torch.manual_seed(0)
    return False


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process changes this memory: of two that read and then write, one would undo the other's change.

    Raises:
        OSError: the directory is missing or cannot be written, or another process holds the lock for five minutes.
    """
    from filelock import FileLock, Timeout

    lock = path.with_name(f".{path.name}.lock")
    if not os.access(path.absolute().parent, os.W_OK):
        raise OSError(f"{path}: the directory {path.absolute().parent} is missing or cannot be written")
    try:
        with FileLock(lock, timeout=_LOCK_SECONDS):
            yield
    except Timeout:
        raise OSError(
            f"{path}: locked for {_LOCK_SECONDS} seconds: another command is changing it, or {lock.name} beside it "
            "cannot be made"
        ) from None
