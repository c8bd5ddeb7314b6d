"""The doors' checks: what a caller handed in, against what was expected, in one wording for the whole memory library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_tensor(where: str, name: str, value: object, shape: Sequence[int | str]) -> None:
    """Refuse ``value`` unless it is a floating tensor of ``shape``.

    Args:
        where: what was called, which begins the message: ``"memory_scan"``.
        name: the argument: ``"q"``.
        value: what came in.
        shape: one entry a dimension: a number that the size must be, or a letter for any size: ``("B", "T", 8)``.

    Raises:
        TypeError: not a tensor, or not of a floating dtype.
        ValueError: another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{where}: {name} must be of a floating dtype, got {value.dtype}")
    fits = value.dim() == len(shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(value.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in shape)
        raise ValueError(f"{where}: {name} must have shape ({wanted}), got {tuple(value.shape)}")


def check_alike(where: str, *, dtype: bool = True, **tensors: Tensor | None) -> None:
    """Refuse tensors (given by name, None is skipped) that are not all on one device and, if ``dtype``, of one dtype.

    Raises:
        ValueError: two devices.
        TypeError: two dtypes.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    devices = {name: tensor.device for name, tensor in given.items()}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{where}: all must be on one device, got {listed}")
    dtypes = {name: tensor.dtype for name, tensor in given.items()}
    if dtype and len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {kind}" for name, kind in dtypes.items())
        raise TypeError(f"{where}: all must be of one dtype, got {listed}")


def check_mask(where: str, name: str, value: object, shape: Sequence[int]) -> None:
    """Refuse ``value`` unless it is a boolean tensor of ``shape``.

    Raises:
        TypeError: not a boolean tensor.
        ValueError: another shape.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{where}: {name} must be a boolean tensor, got {kind}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{where}: {name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
