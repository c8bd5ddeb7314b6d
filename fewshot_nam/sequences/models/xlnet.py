"""XLNet: a Transformer of two streams with relative positions, a baseline of the I-BERT paper.

Source: Yang et al., "XLNet: Generalized Autoregressive Pretraining for Language Understanding" (2019), its two-stream
attention; Dai et al., "Transformer-XL: Attentive Language Models beyond a Fixed-Length Context" (2019), its positions. Each layer
has two streams, with the same weights: ``h`` begins with what stands at a place, ``g`` with nothing. What is predicted at a place
comes from ``g``, which sees the contents of all other places:

    g_i <- Layer(g_i, h_j for j != i),    h_i <- Layer(h_i, h_j for all j)

Departures: XLNet draws an order, in which a place sees those before it alone. Here blanks stand where answers are asked for, and
every place sees all others; so from the second layer on what stands at a place reaches it again through the others. There is no
memory of earlier segments, and there are no segment encodings.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.models.transformer import sinusoids
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "heads": 2, "layers": 1, "feedforward": 32},
    "small": {"width": 64, "heads": 4, "layers": 3, "feedforward": 256},
    "paper": {"width": 768, "heads": 12, "layers": 12, "feedforward": 2048},
}


@register("xlnet", "Transformer of two streams with relative positions (XLNet)", _SIZES)
class XLNetModel(SequenceModel):
    """XLNet.

    Args:
        task: see ``SequenceModel``.
        width: ``d``, a multiple of ``heads``.
        heads: attention heads.
        layers: layers.
        feedforward: width of a layer's hidden layer.
        dropout: probability of dropping a feature.

    Raises:
        ValueError: a width that is no multiple of ``heads``.
    """

    def __init__(
        self, task: SequenceTask, width: int, heads: int, layers: int, feedforward: int, dropout: float = 0.1
    ) -> None:
        super().__init__(task, width, width)
        if width % heads:
            raise ValueError(f"xlnet: width must be a multiple of heads, got {width} and {heads}")
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = nn.ModuleList(_Layer(width, heads, feedforward, dropout) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        length = x.shape[1]
        distances = torch.arange(length - 1, -length, -1, device=x.device, dtype=x.dtype)  # i - j
        positions = sinusoids(distances, x.shape[-1])
        hidden = ~mask.unsqueeze(1)  # (B, 1, T), of keys
        itself = torch.eye(length, dtype=torch.bool, device=x.device)
        content, query = self.dropout(x), self.dropout(self.start.expand_as(x))
        for layer in self.layers:
            # Both from the contents of the layer before.
            query, content = (
                layer(query, content, positions, hidden | itself),
                layer(content, content, positions, hidden),
            )
        features: Tensor = query
        return features


class _Layer(nn.Module):
    """Attention with relative positions and a feed-forward part, each with a residual and layer normalisation behind."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.position, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(5)
        )
        self.key_bias, self.position_bias = (nn.Parameter(torch.zeros(heads, 1, width // heads)) for _ in range(2))
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward), nn.GELU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, content: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        """Return ``x`` ``(B, T, d)`` after it attended to ``content`` ``(B, T, d)``.

        Args:
            x: the stream.
            content: of the stream ``h``.
            positions: ``(2T - 1, d)``, of the distances ``T - 1`` to ``1 - T`` from a query back to a key.
            hidden: ``(B, T or 1, T)`` bool, True where a query does not see a key.
        """
        query, key, value = self._split(self.query(x)), self._split(self.key(content)), self._split(self.value(content))
        position = self._split(self.position(positions))  # (heads, 2T - 1, d / heads)
        length = x.shape[1]
        places = torch.arange(length, device=x.device)
        distance = (places - places.unsqueeze(1) + length - 1).expand(len(x), self.heads, -1, -1)
        by_distance = (query + self.position_bias) @ position.mT  # (B, heads, T, 2T - 1)
        scores = (query + self.key_bias) @ key.mT + by_distance.gather(-1, distance)
        hidden = hidden.unsqueeze(1)
        scores = (scores / math.sqrt(query.shape[-1])).masked_fill(hidden, torch.finfo(scores.dtype).min)
        # A lone token sees nothing: all its weights are 0, where a softmax alone would share them out.
        weights = self.dropout(scores.softmax(-1).masked_fill(hidden, 0))
        found = (weights @ value).transpose(1, 2).flatten(-2)
        x = self.norms[0](x + self.dropout(self.out(found)))
        features: Tensor = self.norms[1](x + self.dropout(self.feedforward(x)))
        return features

    def _split(self, x: Tensor) -> Tensor:
        """Return ``(..., heads, T, d / heads)`` of ``(..., T, d)``."""
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(-2, -3)
