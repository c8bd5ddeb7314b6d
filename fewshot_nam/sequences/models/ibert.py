"""I-BERT: a Transformer encoder whose positions come from a recurrent layer, so that it reaches lengths that it never saw.

Source: Nam et al., "I-BERT: Inductive Generalization of Transformer to Arbitrary Context Lengths" (2020): embedding, a
bidirectional LSTM in place of any positional encoding, layer normalisation, Transformer layers, layer normalisation, ReLU,
classifier. Variants: learned positions added behind the recurrent layer (``positions=True``), a bidirectional LSTM in place of
every feed-forward part (``recurrent_layers=True``, the paper's I-BERT2), a recurrent layer that reads forward only
(``bidirectional=False``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.sequences.models.model import SequenceModel, run_packed
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "heads": 2, "layers": 1, "feedforward": 32},
    "small": {"width": 64, "heads": 4, "layers": 3, "feedforward": 256},
    "paper": {"width": 768, "heads": 12, "layers": 12, "feedforward": 2048},
}


@register("ibert", "Transformer encoder over a bidirectional LSTM, without positions (I-BERT)", _SIZES)
@register("ibert-positions", "I-BERT with learned positions as well", _SIZES, positions=True)
@register("ibert2", "I-BERT with a bidirectional LSTM in every layer", _SIZES, recurrent_layers=True)
class IBERTModel(SequenceModel):
    """I-BERT.

    Args:
        task: see ``SequenceModel``.
        width: ``d``, a multiple of ``heads``, even.
        heads: attention heads.
        layers: layers.
        feedforward: width of a layer's hidden layer.
        dropout: probability of dropping a feature.
        positions: add learned positions behind the recurrent layer.
        recurrent_layers: a bidirectional LSTM in place of every feed-forward part.
        bidirectional: whether the recurrent layers read both ways.
        longest: how many learned positions there are.
    """

    def __init__(
        self,
        task: SequenceTask,
        width: int,
        heads: int,
        layers: int,
        feedforward: int,
        dropout: float = 0.1,
        positions: bool = False,
        recurrent_layers: bool = False,
        bidirectional: bool = True,
        longest: int = 128,
    ) -> None:
        super().__init__(task, width, width)
        if width % 2:
            raise ValueError(f"ibert: width must be even, half of it for each direction, got {width}")

        def recurrent() -> nn.LSTM:
            return nn.LSTM(width, width // (1 + bidirectional), batch_first=True, bidirectional=bidirectional)

        self.recurrent = recurrent()
        self.position = nn.Embedding(longest, width) if positions else None
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            _Layer(width, heads, dropout, recurrent())
            if recurrent_layers
            else nn.TransformerEncoderLayer(width, heads, feedforward, dropout, batch_first=True)
            for _ in range(layers)
        )
        self.last_norm = nn.LayerNorm(width)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = run_packed(self.recurrent, x, mask)
        if self.position is not None:
            if x.shape[1] > self.position.num_embeddings:
                raise ValueError(f"ibert: {x.shape[1]} tokens, and there are {self.position.num_embeddings} positions")
            x = x + self.position(torch.arange(x.shape[1], device=x.device))
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask)
        features: Tensor = self.last_norm(x).relu()
        return features


class _Layer(nn.Module):
    """Attention and a recurrent layer, each with a residual connection and layer normalisation behind."""

    def __init__(self, width: int, heads: int, dropout: float, recurrent: nn.LSTM) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.recurrent = recurrent
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        mask = src_key_padding_mask
        x = self.norms[0](x + self.dropout(self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]))
        features: Tensor = self.norms[1](x + self.dropout(run_packed(self.recurrent, x, ~mask)))
        return features
