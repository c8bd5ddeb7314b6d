"""The linear Transformer: attention through a sum of keys and values, normalised by the sum of weights.

Source: Katharopoulos et al., "Transformers are RNNs" (2020), in the setting of the long-range arena that the NAM paper
compares with: ``phi(x) = elu(x) + 1``, and for every head ``o_t = (sum_s v_s phi(k_s)^T) phi(q_t) / (phi(q_t)^T sum_s
phi(k_s) + 1e-6)``; layers that normalise first, and sinusoidal positions. Unlike NAM attention, its keys and queries have any
length, and weights are normalised.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory import outer_product_attention
from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.models.transformer import sinusoids
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "heads": 2, "layers": 1, "feedforward": 32},
    "small": {"width": 64, "heads": 4, "layers": 2, "feedforward": 128},
    "paper": {"width": 256, "heads": 4, "layers": 4, "feedforward": 1024},  # ListOps and text of the long-range arena
}


@register("linear-transformer", "causal linear Transformer: elu + 1 as feature map, normalised weights", _SIZES)
class LinearTransformerModel(SequenceModel):
    """A linear Transformer encoder.

    Args:
        task: see ``SequenceModel``.
        width: ``d``, a multiple of ``heads``.
        heads: attention heads.
        layers: layers.
        feedforward: width of a layer's hidden layer.
        dropout: probability of dropping a feature.
        causal: whether a token attends to itself and earlier ones alone, as in ``nam-attention``, or to all.
    """

    def __init__(
        self,
        task: SequenceTask,
        width: int,
        heads: int,
        layers: int,
        feedforward: int,
        dropout: float = 0.1,
        causal: bool = True,
    ) -> None:
        super().__init__(task, width, width)
        if width % heads:
            raise ValueError(f"linear-transformer: heads must divide width, got {heads} heads for {width}")
        self.causal = causal
        self.layers = nn.ModuleList(_Layer(width, heads, feedforward, dropout, causal) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(x + sinusoids(torch.arange(x.shape[1], device=x.device), x.shape[-1]))
        for layer in self.layers:
            x = layer(x, mask)
        features: Tensor = self.norm(x)
        return features


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.combine = nn.Linear(width, width, bias=False)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the next features ``(B, T, d)``; ``mask`` ``(B, T)`` is False on padding."""
        q, k, v = torch.unflatten(self.project(self.norms[0](x)), -1, (3, self.heads, -1)).unbind(2)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        # A value of 1 beside the others sums the weights.
        values = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
        reads, _ = outer_product_attention(q, k, values, mask=mask, causal=self.causal)
        attended = reads[..., :-1] / (reads[..., -1:] + 1e-6)
        x = x + self.dropout(self.combine(attended.flatten(2)))
        hidden = self.dropout(F.gelu(self.widen(self.norms[1](x))))
        return x + self.dropout(self.narrow(hidden))
