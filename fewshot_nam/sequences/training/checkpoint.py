"""Checkpoints of a training run in one safetensors file: written whole or not at all, and nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewshot_nam.io.atomic import replacing


def save_checkpoint(
    path: Path, model: nn.Module, kept: dict[str, Tensor], optimiser: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Write weights, further tensors, the optimiser's state, torch's random state, and ``progress`` (JSON)."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in kept.items()}
    state = optimiser.state_dict()
    for index, values in state["state"].items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    groups = [{name: value for name, value in group.items() if name != "params"} for group in state["param_groups"]]
    metadata = {"progress": json.dumps(progress), "groups": json.dumps(groups)}
    with replacing(path) as unfinished:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, unfinished, metadata)


def load_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put a run back to where it was saved; return the further tensors, and the progress.

    Raises:
        ValueError: the file is damaged, or of another model.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Copies, which torch aligns: sums over what a file holds at odd addresses are rounded in another order.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (not a mapping)
        model.load_state_dict(_below("model.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimiser.", tensors).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        here = optimiser.state_dict()["param_groups"]
        groups = [{**own, **saved} for own, saved in zip(here, json.loads(metadata["groups"]), strict=True)]
        optimiser.load_state_dict({"state": state, "param_groups": groups})
        progress: dict[str, Any] = json.loads(metadata["progress"])
    except Exception as error:  # safetensors raises several kinds
        raise ValueError(f"{path} is no checkpoint of this run: {error}") from None
    torch.set_rng_state(tensors["random"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return _below("best.", tensors), progress


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
