"""Transformer encoders with four kinds of positions: the baselines for the NAM paper's claim about length generalisation.

- ``learned``: a trained vector for each position, as in the paper. Positions not seen in training are random vectors at test time.
- ``sinusoidal``: Vaswani et al. (2017).
- ``relative``: a trained bias for each head and distance (Raffel et al., "T5", 2020); distances beyond the longest share one.
- ``randomised``: sinusoidal vectors of sorted random positions from a longer range (Ruoss et al., "Randomized Positional
  Encodings Boost Length Generalization of Transformers", 2023), so training covers every position that a test needs.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

Positions = Literal["learned", "sinusoidal", "relative", "randomised"]

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "heads": 2, "layers": 1, "feedforward": 32},
    "small": {"width": 64, "heads": 4, "layers": 3, "feedforward": 256},
    "paper": {"width": 512, "heads": 8, "layers": 8, "feedforward": 2048},
}


@register("transformer", "Transformer encoder with learned positions", _SIZES, positions="learned")
@register("transformer-sinusoidal", "Transformer encoder with sinusoidal positions", _SIZES, positions="sinusoidal")
@register(
    "transformer-relative", "Transformer encoder with a trained bias for each distance", _SIZES, positions="relative"
)
@register("transformer-randomised", "Transformer encoder with randomised positions", _SIZES, positions="randomised")
class TransformerModel(SequenceModel):
    """A Transformer encoder, post-norm, with a final layer normalisation.

    Args:
        task: see ``SequenceModel``.
        width: ``d``, a multiple of ``heads``.
        heads: number of attention heads.
        layers: number of layers.
        feedforward: width of a layer's hidden layer.
        dropout: probability of dropping a feature.
        positions: ``"learned"``, ``"sinusoidal"``, ``"relative"`` or ``"randomised"``.
        longest: how many positions there are for ``learned`` and ``randomised`` ones, and the longest distance of relative ones.
    """

    def __init__(
        self,
        task: SequenceTask,
        width: int,
        heads: int,
        layers: int,
        feedforward: int,
        dropout: float = 0.1,
        positions: Positions = "learned",
        longest: int = 512,
    ) -> None:
        super().__init__(task, width, width)
        if positions not in ("learned", "sinusoidal", "relative", "randomised"):
            raise ValueError(
                f"transformer: positions must be learned, sinusoidal, relative or randomised, got {positions!r}"
            )
        self.positions, self.longest, self.heads = positions, longest, heads
        self.position = nn.Embedding(longest, width) if positions == "learned" else None
        self.bias = nn.Embedding(2 * longest + 1, heads) if positions == "relative" else None
        if self.bias is not None:
            nn.init.zeros_(self.bias.weight)
        # PyTorch's fast path for inference reads every mask as boolean: a position bias other than 0 would hide its place. It is
        # taken for the activation ``functional.relu`` alone, so another name of the same function keeps away from it.
        layer = nn.TransformerEncoderLayer(width, heads, feedforward, dropout, activation=torch.relu, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        for parameter in self.encoder.parameters():  # the layers start as copies of one: initialise each by itself
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        length = x.shape[1]
        if (self.position is not None and length > self.longest) or (
            self.positions == "randomised" and length > self.longest
        ):
            raise ValueError(f"transformer: {length} tokens, and there are {self.longest} positions: pass longest=")
        bias = None
        if self.position is not None:
            x = x + self.position(torch.arange(length, device=x.device))
        elif self.bias is not None:
            places = torch.arange(length, device=x.device)
            distance = (places - places.unsqueeze(1)).clamp(-self.longest, self.longest) + self.longest
            bias = self.bias(distance).permute(2, 0, 1).repeat(len(x), 1, 1)  # (B heads, T, T)
        else:
            x = x + sinusoids(self._places(mask), x.shape[-1])
        hidden = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(~mask, -math.inf)
        features: Tensor = self.encoder(self.dropout(x), mask=bias, src_key_padding_mask=hidden)
        return features

    def _places(self, mask: Tensor) -> Tensor:
        """Return the positions ``(T,)``, or ``(B, T)``, of tokens."""
        length = mask.shape[1]
        places = torch.arange(length, device=mask.device)
        if self.positions != "randomised":
            return places
        if self.training:
            return torch.randperm(self.longest, device=mask.device)[:length].sort().values
        # Spread evenly over all positions: the same at every call, whatever the padding.
        gaps = (self.longest - 1) / (mask.sum(dim=1, keepdim=True) - 1).clamp_min(1)
        return (places * gaps).round().clamp_max(self.longest - 1)


def sinusoids(places: Tensor, width: int) -> Tensor:
    """Return ``(..., width)`` for ``places`` ``(...)``: sines and cosines of wavelengths from ``2 pi`` to ``20000 pi``."""
    dtype = places.dtype if places.is_floating_point() else torch.get_default_dtype()
    rates = torch.exp(torch.arange(0, width, 2, device=places.device, dtype=dtype) * (-math.log(10000.0) / width))
    angles = places.unsqueeze(-1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :width]
