"""Load weights from a local file into a network: every key must fit, and only tensors are unpickled.

A file may not cost more memory than it has bytes. Files of ``torch.save`` are mapped, not read, so that tensors are checked before
they take memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from fewshot_nam.heads.validation import as_unicode

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of torch.nn.DataParallel and torch.compile
_DEEPEST = 8  # dicts around a state dict; one that holds itself has no end
_MOST_SHARING = 100  # keys for each byte of the file: networks share layers, and each key costs time


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in ``path``, without what training code wraps around it.

    A file named ``*.safetensors`` is read as such, any other with ``torch.load(weights_only=True)``. If the state dict
    is under "state_dict" or "model" in another dict, it is taken from there. A "module." before every key is removed.

    Args:
        path: the file.

    Returns:
        Tensors on the CPU by key, to be copied, as ``fit_weights`` does: they may change with the file. Module versions that torch
        saved are kept as ``_metadata``.

    Raises:
        ValueError: no such file, of a name that is not UTF-8, empty, cut short, not a state dict, a pickle of more than tensors, a
            tensor of more elements than the file holds for it, compressed records, or a value that is NaN or infinite.
    """
    if not path.is_file():
        raise ValueError(f"weights file {path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    if path.stat().st_size == 0:
        raise ValueError(f"weights file {path}: it is empty")
    if (shown := as_unicode(str(path))) != str(path):
        raise ValueError(f"weights file {shown}: a name that is not UTF-8, which its reader does not take: rename it")
    state: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    depth = 0
    while wrapped := [key for key in _WRAPPERS if isinstance(state, dict) and isinstance(state.get(key), dict)]:
        state, depth = state[wrapped[0]], depth + 1
        if depth > _DEEPEST:
            raise ValueError(
                f"weights file {path}: the state dict lies under more than {_DEEPEST} dicts, or a dict holds itself"
            )
    if not isinstance(state, dict) or not state:
        raise ValueError(f"weights file {path}: expected a state dict, a dict of tensors by name")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"weights file {path}: expected a tensor under {key!r}, found {type(value).__name__}")
    _check_sizes(path, state)
    for key, value in state.items():
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
    with open(path, "rb") as file:
        packed = file.read(4) == b"PK\x03\x04"  # as torch.save writes since version 1.6; before, pickles in a row
    if packed:
        _check_records(path)
    try:
        # Mapped, a file can ask for no more memory than it has bytes, whatever its pickle says of its storages.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except Exception as error:  # a damaged pickle can raise any error
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"weights file {path}: cut short, not a file of torch.save, or it holds more than tensors, which is not "
        f"unpickled ({type(error).__name__}): save the model's state_dict as .safetensors"
    )


def _check_records(path: Path) -> None:
    """Raise ``ValueError`` for a zip file that ``torch.save`` has not written: a record would take more memory than its bytes."""
    try:
        with zipfile.ZipFile(path) as packed:
            records = packed.infolist()
    except Exception as error:  # as above, of a damaged directory
        raise _unreadable(path, error) from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError(f"weights file {path}: its records are compressed, which torch.save never does: save it anew")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError(f"weights file {path}: its records claim more bytes than the file has")


def _check_sizes(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` for tensors that hold more than the file does, before any of their values is read."""
    size = path.stat().st_size
    storages, total = {}, 0
    for key, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ValueError(f"weights file {path}: {key} is sparse, quantised or without values: save a plain tensor")
        own, held = value.numel() * value.element_size(), value.untyped_storage()
        if own > held.nbytes():
            raise ValueError(
                f"weights file {path}: {key} has {value.numel():,} elements, and the file holds fewer for it (an expanded "
                "tensor): save it after .contiguous()"
            )
        storages[held.data_ptr()] = held.nbytes()
        total += own
    if sum(storages.values()) > size or total > _MOST_SHARING * size:
        raise ValueError(f"weights file {path}: its tensors claim more bytes than the file has")
