"""A short causal convolution over tokens, with a state for streaming.

With it a token's key can describe the token before, which associative recall needs: in "a 3 b 7" the value 3 is written by another
token than its key a. Source: the short convolution of H3 (Fu et al., arXiv 2212.14052) and of the delta-rule layers (Yang et al.,
arXiv 2406.06484), here without an activation.

Legend: ``B`` sequences, ``T`` tokens, ``C`` channels, ``w`` width of the convolution in tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """A causal convolution of each channel: ``y_t = sum_i weight_i x_(t - w + 1 + i)``, with zeros before the first token.

    Args:
        channels: ``C``, at least 1.
        width: ``w``, the number of tokens seen, at least 2: the token itself and ``w - 1`` before it.
        device: where the parameters are.
        dtype: dtype of the parameters.

    Attributes:
        weight: ``(C, w)``, the last column for the token itself.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.weight = nn.Parameter(torch.empty(channels, width, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights uniformly in ``+-1 / sqrt(w)``, as ``torch.nn.Conv1d``."""
        nn.init.uniform_(self.weight, -(self.width**-0.5), self.width**-0.5)

    def init_state(self, batch_size: int) -> Tensor:
        """Return the state ``(B, w - 1, C)`` before the first token: zeros."""
        return self.weight.new_zeros(batch_size, self.width - 1, self.channels)

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the convolved tokens ``(B, T, C)`` and the state after them.

        Args:
            x: ``(B, T, C)``.
            state: the last ``w - 1`` tokens before ``x``, ``(B, w - 1, C)``; default: zeros.
            mask: ``(B, T)`` bool, True where there is a token. The others are skipped as if the sequence did not have them.
        """
        state = self.init_state(x.shape[0]) if state is None else state
        order = None
        if mask is not None:
            order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)  # tokens first, in their order
            x = x.gather(1, order.unsqueeze(-1).expand_as(x))
        seen = torch.cat([state.to(x.dtype), x], dim=1)
        # A sum of shifted products: for so few tokens faster than a convolution by torch, and defined for T = 0.
        *before, now = self.weight.to(x.dtype).unbind(1)
        convolved = x * now
        for i, weight in enumerate(before):
            convolved = torch.addcmul(convolved, seen[:, i : i + x.shape[1]], weight)
        if mask is None or order is None:
            return convolved, seen[:, seen.shape[1] - self.width + 1 :]
        last = mask.sum(1, keepdim=True) + torch.arange(self.width - 1, device=x.device)
        state = seen.gather(1, last.unsqueeze(-1).expand(-1, -1, self.channels))
        return convolved.gather(1, order.argsort(dim=1).unsqueeze(-1).expand_as(convolved)), state

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return one convolved token ``(B, C)`` and the state after it, for ``x`` ``(B, C)``."""
        seen = torch.cat([state.to(x.dtype), x.unsqueeze(1)], dim=1)
        return torch.einsum("bwc,cw->bc", seen, self.weight.to(x.dtype)), seen[:, 1:]

    def extra_repr(self) -> str:
        """Return the sizes, as printed with the module."""
        return f"{self.channels}, width={self.width}"


def check_conv_size(where: str, conv_size: object) -> None:
    """Raise unless ``conv_size`` is None or an integer of at least 2.

    Raises:
        ValueError: it is something else.
    """
    if conv_size is not None and (not isinstance(conv_size, int) or isinstance(conv_size, bool) or conv_size < 2):
        raise ValueError(f"{where}: conv_size must be None or an integer of at least 2, got {conv_size!r}")
