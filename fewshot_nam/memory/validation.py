"""Checks of arguments: shapes, dtypes and devices, with the same messages in the whole memory library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_tensor(where: str, name: str, value: object, shape: Sequence[int | str]) -> None:
    """Raise unless ``value`` is a floating tensor of ``shape``.

    Args:
        where: the name of the called function, with which the message begins, such as ``"memory_scan"``.
        name: the name of the argument, such as ``"q"``.
        value: the argument.
        shape: one entry for each dimension: the required size, or a letter for any size, such as ``("B", "T", 8)``.

    Raises:
        TypeError: it is not a tensor, is sparse or nested, or not of a floating dtype.
        ValueError: it has another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{where}: {name} must be of a floating dtype, got {value.dtype}")
    if (kind := layout_of(value)) is not None:
        raise TypeError(f"{where}: {name} must be a plain tensor, got {kind}")
    fits = value.dim() == len(shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(value.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in shape)
        raise ValueError(f"{where}: {name} must have shape ({wanted}), got {tuple(value.shape)}")


def layout_of(value: Tensor) -> str | None:
    """Return what a tensor is that is not dense, whose shape or norm PyTorch may refuse to give; None for a dense one.

    >>> layout_of(torch.ones(2)), layout_of(torch.ones(2).to_sparse())
    (None, 'a tensor of layout torch.sparse_coo')
    """
    if value.is_nested:
        return f"a nested tensor of layout {value.layout}"
    return None if value.layout == torch.strided else f"a tensor of layout {value.layout}"


def check_real(where: str, name: str, value: Tensor) -> None:
    """Raise ``TypeError`` unless a tensor is dense and of real numbers."""
    kind = layout_of(value)
    if kind is None and (value.is_complex() or value.is_quantized or value.dtype == torch.bool):
        kind = str(value.dtype)
    if kind is not None:
        raise TypeError(f"{where}: {name} must be a plain tensor of numbers, got {kind}")


def check_alike(where: str, *, dtype: bool = True, **tensors: Tensor | None) -> None:
    """Raise unless all tensors (given by name; None is skipped) are on one device and, if ``dtype``, have one dtype.

    Raises:
        ValueError: they are on different devices.
        TypeError: they have different dtypes.
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
    """Raise unless ``value`` is a boolean tensor of ``shape``.

    Raises:
        TypeError: it is not a boolean tensor.
        ValueError: it has another shape.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{where}: {name} must be a boolean tensor, got {kind}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{where}: {name} must have shape {tuple(shape)}, got {tuple(value.shape)}")


def check_max_erase(where: str, max_erase: object) -> None:
    """Raise unless ``max_erase`` is a number above 0 and at most 2.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(max_erase, (int, float)) or not 0 < max_erase <= 2:
        raise ValueError(f"{where}: max_erase must be above 0 and at most 2, got {max_erase!r}")
