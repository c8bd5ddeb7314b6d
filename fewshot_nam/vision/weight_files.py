"""Load weights from a local file into a network: every key must fit, and only tensors are unpickled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of torch.nn.DataParallel and torch.compile


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in ``path``, without what training code wraps around it.

    A file named ``*.safetensors`` is read as such, any other with ``torch.load(weights_only=True)``. If the state dict
    is under "state_dict" or "model" in another dict, it is taken from there. A "module." before every key is removed.

    Args:
        path: the file.

    Returns:
        Tensors on the CPU by key. Module versions that torch saved are kept as ``_metadata``.

    Raises:
        ValueError: no such file, empty, cut short, not a state dict, a pickle of more than tensors, or a value that is
            NaN or infinite.
    """
    if not path.is_file():
        raise ValueError(f"weights file {path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    if path.stat().st_size == 0:
        raise ValueError(f"weights file {path}: it is empty")
    state: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    while wrapped := [key for key in _WRAPPERS if isinstance(state, dict) and isinstance(state.get(key), dict)]:
        state = state[wrapped[0]]
    if not isinstance(state, dict) or not state:
        raise ValueError(f"weights file {path}: expected a state dict, a dict of tensors by name")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"weights file {path}: expected a tensor under {key!r}, found {type(value).__name__}")
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"weights file {path}: {key} holds NaN or infinite values")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def fit_weights(
    network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str, removed: Collection[str] = ()
) -> None:
    """Load ``state`` into ``network``; every key must fit.

    Args:
        network: receives the weights; left in an unspecified state after an error.
        state: tensors by key, from ``read_weights``.
        path: where they come from, for the error.
        name: the network's name, for the error.
        removed: keys of the removed classifier; these are ignored.

    Raises:
        ValueError: keys that are missing, unexpected or of another shape.
    """
    own = network.state_dict()
    kept = type(own)((key, tensor) for key, tensor in state.items() if key not in removed)
    misshaped = [key for key in kept if key in own and kept[key].shape != own[key].shape]
    shapes = [f"{key}: {tuple(kept.pop(key).shape)}, not {tuple(own[key].shape)}" for key in misshaped]
    # Modules read their older layouts by the version that torch.save keeps. A safetensors file keeps none: use the network's.
    kept._metadata = getattr(state, "_metadata", own._metadata)  # type: ignore[attr-defined]
    try:
        outcome = network.load_state_dict(kept, strict=False)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"weights file {path} does not fit {name}: {str(error).strip().splitlines()[-1]}") from error
    # Files of early torch lack this counter, which only training reads.
    missing = [key for key in outcome.missing_keys if key not in misshaped and not key.endswith("num_batches_tracked")]
    wrong = {"missing": missing, "unexpected": outcome.unexpected_keys, "of another shape": shapes}
    if any(wrong.values()):
        parts = [f"{len(keys)} {what} ({_few(keys)})" for what, keys in wrong.items() if keys]
        raise ValueError(
            f"weights file {path} does not fit {name}: of {len(own)} keys " + ", ".join(parts) + "; check the model's "
            "name and options"
        )


def _few(keys: list[str], shown: int = 3) -> str:
    return ", ".join(keys[:shown]) + (", ..." if len(keys) > shown else "")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights file {path}: cut short or not a safetensors file ({error})") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any error
        raise ValueError(
            f"weights file {path}: cut short, not a file of torch.save, or it holds more than tensors, which is not "
            f"unpickled ({type(error).__name__}): save the model's state_dict as .safetensors"
        ) from error
