"""The Universal Transformer: one layer, applied again and again.

Source: Dehghani et al., "Universal Transformers" (2019), without adaptive halting, as the baseline of the NAM paper: pre-norm, a
feed-forward part of two convolutions of width 3, and position and step added before every application.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.models.transformer import sinusoids
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "heads": 2, "steps": 2},
    "small": {"width": 96, "heads": 4, "steps": 4},
    "paper": {"width": 1536, "heads": 24, "steps": 8},
}


@register("universal-transformer", "Universal Transformer: one layer applied many times", _SIZES)
class UniversalTransformerModel(SequenceModel):
    """A Universal Transformer encoder.

    Args:
        task: see ``SequenceModel``.
        width: ``d``, a multiple of ``heads``.
        heads: attention heads.
        steps: how often the layer is applied.
        dropout: probability of dropping a feature.
    """

    def __init__(self, task: SequenceTask, width: int, heads: int, steps: int, dropout: float = 0.1) -> None:
        super().__init__(task, width, width)
        self.steps = steps
        self.project = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.widen = nn.Conv1d(width, width, 3, padding=1)
        self.narrow = nn.Conv1d(width, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        places = sinusoids(torch.arange(x.shape[1], device=x.device), x.shape[-1])
        moments = sinusoids(torch.arange(self.steps, device=x.device), x.shape[-1])
        kept = mask.unsqueeze(-1)
        x = self.project(x)
        for step in range(self.steps):
            x = x + places + moments[step]
            y = self.norms[0](x)
            x = x + self.dropout(self.attention(y, y, y, key_padding_mask=~mask, need_weights=False)[0])
            y = self.norms[1](x).masked_fill(~kept, 0.0).mT  # padding must not leak through the convolutions
            y = self.dropout(self.widen(y).relu()).masked_fill(~kept.mT, 0.0)
            x = x + self.dropout(self.narrow(y).mT)
        features: Tensor = self.norms[2](x)
        return features
