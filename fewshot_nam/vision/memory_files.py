"""Models by the file of their memory: start one, or open one with the weights that its file notes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewshot_nam import heads
from fewshot_nam.vision.catalogue import create
from fewshot_nam.vision.memory_lock import remove_leftovers
from fewshot_nam.vision.model import NAMModel
from fewshot_nam.vision.noted_weights import weights_file, weights_source
from fewshot_nam.vision.rebuilding import rebuild
from fewshot_nam.vision.saving import read_head


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
    """Return the model of a memory's file, and the file's notes. What killed processes left beside the file is removed.

    Args:
        memory: the file.
        weights: a file or "random", in place of what the memory notes.
        device: "cpu" or "cuda".

    Raises:
        OSError: the file cannot be read.
        ImportError, ValueError: it is no memory, or its backbone or weights are not there.
    """
    remove_leftovers(memory)
    about, head, _ = read_head(memory)
    notes = dict(about.get("notes") or {})
    source = weights_source(weights, memory) or notes.get("weights", "published")
    found = _weights(source, memory)
    if isinstance(found, Path) and not found.is_file():
        if weights is not None:
            raise ValueError(f"--weights {weights}: there is no such file")
        raise ValueError(
            f"{memory} was learned with the weights in {source}, which does not exist: pass --weights FILE"
        )
    model = NAMModel(rebuild(about, found, device), head).load(memory)
    return model, notes | {"weights": source}


def _weights(source: str, memory: str | os.PathLike[str]) -> bool | Path:
    """Return the weights as ``create`` takes them; random ones are the same every time."""
    if source == "published":
        return True
    if source != "random":
        return weights_file(memory, source)
    torch.manual_seed(0)
    return False
