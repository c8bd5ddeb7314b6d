"""Checkpoints of a training run in one safetensors file: written whole or not at all, and nothing is unpickled."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from fewshot_nam.io.naming import naming
from fewshot_nam.io.tensor_files import write_tensors


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
    metadata = {"progress": json.dumps(progress)}
    write_tensors(path, tensors, metadata)


def naming_checkpoint(path: Path) -> AbstractContextManager[None]:
    """Return what turns whatever is raised while a file is restored into one ``ValueError`` that names the file, in one line."""
    return naming(path, "is no checkpoint of this run")


def load_checkpoint(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put a run back to where it was saved; return the further tensors, and the progress, which the caller checks.

    Use it inside of ``naming_checkpoint``: it raises many kinds of errors for a file that is damaged, or of another model.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        # Copies, which torch aligns: sums over what a file holds at odd addresses are rounded in another order.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (not a mapping)
    learned = {f"{part}.{name}" for part in ("model", "best") for name, _ in model.named_parameters()}
    for name, value in tensors.items():
        if (name in learned or name.startswith("optimiser.")) and not bool(value.isfinite().all()):
            raise ValueError(f"{name} is not finite")
    model.load_state_dict(_below("model.", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("optimiser.", tensors).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    _check_moments(state, optimiser)
    # Settings of the optimiser follow from those of the run, and are not taken from the file.
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    progress = json.loads(metadata["progress"])
    if not isinstance(progress, dict):
        raise ValueError("its progress is no mapping")
    torch.set_rng_state(tensors["random"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return _below("best.", tensors), progress


def check_number(
    progress: dict[str, Any], name: str, least: float, most: float = math.inf, *, whole: bool = False
) -> Any:
    """Return the number ``name`` of the progress.

    Raises:
        ValueError: it is none, not finite, or outside its range.
    """
    value = progress[name]
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not least <= value <= most:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} must be a {kind} from {least} to {most}, got {str(value)[:60]}")
    return value


def check_numbers(progress: dict[str, Any], name: str, most: int) -> list[float]:
    """Return the list ``name`` of finite numbers of the progress, at most ``most`` of them; else raise ``ValueError``."""
    values = progress[name]
    if not isinstance(values, list) or len(values) > most:
        raise ValueError(f"{name} must be a list of up to {most} numbers")
    return [check_number({name: value}, name, -math.inf) for value in values]


def check_fit(tensors: dict[str, Tensor], wanted: dict[str, Tensor], meaning: str) -> None:
    """Raise ``ValueError`` where tensors have not the names and shapes of others."""
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in wanted.items()}:
        raise ValueError(f"{meaning} do not fit this run")


def _check_moments(state: dict[int, dict[str, Tensor]], optimiser: torch.optim.Optimizer) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    if isinstance(optimiser, torch.optim.RMSprop):
        moments = ["square_avg", "momentum_buffer"]
    else:
        moments = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if optimiser.defaults["amsgrad"] else [])]
    for index, held in state.items():
        if not 0 <= index < len(parameters):
            raise ValueError(f"the optimiser has no parameter {index}")
        wanted = dict.fromkeys(moments, parameters[index].detach())
        check_fit(held, wanted | {"step": torch.zeros(())}, f"moments of parameter {index}")


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
