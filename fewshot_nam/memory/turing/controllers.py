"""The controllers of a NAM Turing Machine: networks from inputs to the hidden features that control the heads.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422): ``nn_control(x)``. A controller sees only the inputs, not the
reads of the machine. Therefore the value tape of a whole sequence can be computed as one scan.

Every controller has the interface of ``torch.nn.GRU(batch_first=True)``: ``controller(x (B, T, input_size), state) -> (hidden
(B, T, hidden_size), state)``, with ``state`` None at the start.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

CONTROLLERS = ("lstm", "bilstm", "bigru", "mlp")


class FeedForward(nn.Module):
    """A controller without a state, ``relu(W x + b)``; with the projections of the machine, a perceptron of two layers."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, hidden_size, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Return the hidden features ``(..., hidden_size)`` of ``x (..., input_size)``, and no state."""
        return torch.relu(self.linear(x)), None


def build_controller(
    kind: str,
    input_size: int,
    hidden_size: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Return the controller of that name.

    Args:
        kind: ``"lstm"``, ``"bilstm"`` or ``"bigru"`` (half of the features in each direction), or ``"mlp"``.
        input_size: width of the inputs.
        hidden_size: width of the hidden features; even for a bidirectional controller.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Raises:
        ValueError: the name is unknown, or the width is odd for a bidirectional controller.
    """
    if kind == "mlp":
        return FeedForward(input_size, hidden_size, device, dtype)
    if kind == "lstm":
        return nn.LSTM(input_size, hidden_size, batch_first=True, device=device, dtype=dtype)
    if kind not in CONTROLLERS:
        known = ", ".join(CONTROLLERS)
        raise ValueError(f"NAMTuringMachine: unknown controller {kind!r}: choose one of {known}, or pass an nn.Module")
    if hidden_size % 2:
        raise ValueError(f"NAMTuringMachine: controller {kind!r} needs an even hidden_size, got {hidden_size}")
    recurrent = nn.LSTM if kind == "bilstm" else nn.GRU
    return recurrent(input_size, hidden_size // 2, batch_first=True, bidirectional=True, device=device, dtype=dtype)


def is_causal(controller: nn.Module) -> bool:
    """Return whether hidden features depend on no later step, according to the attribute ``bidirectional`` of the module."""
    return not getattr(controller, "bidirectional", False)


def run_controller(controller: nn.Module, x: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, Any]:
    """Return the hidden features of a sequence and the controller's state after its last token.

    Args:
        controller: see the module's docstring.
        x: ``(B, T, input_size)``.
        state: the state of the controller, or None at the start.
        mask: ``(B, T)`` bool, True where there is a token, in any pattern. Recurrent networks of ``torch.nn`` skip the other
            positions, in both directions; other controllers see them.

    Returns:
        hidden ``(B, T, hidden_size)``, and the state: None for a bidirectional controller, which cannot be resumed.
    """
    # An empty batch cannot be packed.
    if mask is None or not isinstance(controller, nn.RNNBase) or x.shape[0] == 0:
        hidden, last = controller(x, state)
    else:
        hidden, last = _run_packed(controller, x, state, mask)
    return hidden, last if is_causal(controller) else None


def _run_packed(controller: nn.RNNBase, x: Tensor, state: Any, mask: Tensor) -> tuple[Tensor, Any]:
    """Run over the tokens only: move them to the front of each row, pack them, and move the results back."""
    order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    lengths = mask.sum(1)
    front = x.gather(1, order.unsqueeze(-1).expand_as(x))
    packed = pack_padded_sequence(front, lengths.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
    hidden_packed, last = controller(packed, state)
    hidden, _ = pad_packed_sequence(hidden_packed, batch_first=True, total_length=x.shape[1])
    back = order.argsort(dim=1).unsqueeze(-1).expand_as(hidden)
    # A row without a token cannot be packed: it was given one step, whose effect on the state is undone here.
    empty = lengths == 0
    if isinstance(last, tuple):
        first = (None, None) if state is None else state
        last = tuple(_keep(empty, old, new) for old, new in zip(first, last, strict=True))
    else:
        last = _keep(empty, state, last)
    return hidden.gather(1, back), last


def _keep(empty: Tensor, old: Tensor | None, new: Tensor) -> Tensor:
    """Return ``new (layers, B, D)``, with ``old`` (None is zeros) in the rows that are ``empty``."""
    return torch.where(empty[None, :, None], torch.zeros_like(new) if old is None else old, new)
