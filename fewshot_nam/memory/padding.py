"""Checks of the tokens of an attention layer, and padding replaced by zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.memory.validation import check_alike, check_mask, check_tensor


def check_tokens(where: str, name: str, x: Tensor, shape: tuple[int | str, ...], weight: Tensor) -> None:
    """Raise unless the tokens have ``shape``, and the device and (except under autocast) the dtype of ``weight``.

    Raises:
        TypeError: they are not a floating tensor, or of another dtype.
        ValueError: they have another shape or device.
    """
    check_tensor(where, name, x, shape)
    device = weight.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    check_alike(where, dtype=not casts, **{name: x, "weights": weight})


def without_padding(
    where: str, name: str, x: Tensor, key_padding_mask: Tensor | None, batch_first: bool, weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return ``x`` with zeros at padding, and the mask as a boolean one.

    Masking outputs later is not enough: NaN at padding, times a gradient of 0, gives NaN in the gradient of a weight.

    Args:
        where: the name of the called function, for messages.
        name: the name of ``x``, for messages.
        x: ``(T, B, E)``, ``(B, T, E)`` if ``batch_first``, or ``(T, E)``.
        key_padding_mask: ``(B, T)``, for one sequence ``(T,)``; see ``padding_as_bool``. None: no padding.
        batch_first: whether the layout is ``(B, T, E)``.
        weight: ``(..., E)``, with the dtype and device that ``x`` must have: see ``check_tokens``.

    Raises:
        TypeError: as ``check_tokens`` and ``padding_as_bool``.
        ValueError: as these, or the mask has another shape.
    """
    one_sequence = isinstance(x, Tensor) and x.dim() == 2
    layout = "T" if one_sequence else "BT" if batch_first else "TB"
    check_tokens(where, name, x, (*layout, weight.shape[-1]), weight)
    if key_padding_mask is None:
        return x, None
    padding = padding_as_bool(where, key_padding_mask)
    by_batch = one_sequence or batch_first
    check_mask(where, "key_padding_mask", padding, x.shape[:-1] if by_batch else (x.shape[1], x.shape[0]))
    check_alike(where, dtype=False, **{name: x, "key_padding_mask": padding})
    return x.masked_fill((padding if by_batch else padding.mT).unsqueeze(-1), 0.0), padding


def padding_as_bool(where: str, mask: Tensor) -> Tensor:
    """Return a boolean or float padding mask as a boolean one, True at padding.

    Args:
        where: the name of the called function, for the message.
        mask: bool (True: padding) or float (-inf: padding, 0: a token), as in ``torch.nn.MultiheadAttention``.

    Raises:
        TypeError: it is neither bool nor float.
        ValueError: it has other values than 0 and -inf. (Not checked while torch traces the call.)
    """
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{where}: the padding mask must be a boolean or floating tensor, got {kind}")
    if mask.dtype == torch.bool:
        return mask
    padding = mask == -torch.inf
    if not torch.compiler.is_compiling() and not bool((padding | (mask == 0)).all()):
        raise ValueError(
            f"{where}: a floating padding mask must be -inf at padding and 0 elsewhere, as there are no scores to add "
            "other numbers to: pass a boolean mask, True at padding"
        )
    return padding
