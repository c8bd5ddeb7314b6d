"""The relational memory core (RMC): slots of a memory that attend to each other at every step, under the gates of an LSTM.

Source: Santoro et al., "Relational recurrent neural networks" (NeurIPS 2018), section 3. With a memory ``M (N x c)``
and an input ``x``::

    M' = norm(M + attention(M, [M; x]))      M'' = norm(M' + MLP(M'))
    M <- sigmoid(g_i) * tanh(M'') + sigmoid(g_f + 1) * M       [g_i | g_f] = W x + U tanh(M), for each slot

The memory begins with the first rows of the identity, so that slots differ. The output is all of the memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "slots": 2, "heads": 2},
    "small": {"width": 64, "slots": 4, "heads": 4},
    "paper": {"width": 256, "slots": 8, "heads": 8},  # 8 slots of 8 heads of 32, its network for N-th farthest
}


@register("rmc", "relational memory core: slots that attend to each other at every step", _SIZES)
class RMCModel(SequenceModel):
    """A relational memory core; it reads forward.

    Args:
        task: see ``SequenceModel``.
        width: ``c``, features of a slot and of the embedding, a multiple of ``heads``.
        slots: ``N``, at most ``width``.
        heads: attention heads.
        dropout: probability of dropping a feature of the embedding.
    """

    causal = True

    def __init__(self, task: SequenceTask, width: int, slots: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(task, width, slots * width)
        if width % heads:
            raise ValueError(f"rmc: heads must divide width, got {heads} heads for {width}")
        if not 1 <= slots <= width:
            raise ValueError(f"rmc: slots must be from 1 to the width {width}, got {slots}")
        self.slots, self.heads = slots, heads
        self.project = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.combine = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.input_gates = nn.Linear(width, 2 * width)
        self.memory_gates = nn.Linear(width, 2 * width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.project(self.dropout(x))
        driven, entering = self.input_gates(x), self.key_value(x)
        memory = torch.eye(self.slots, x.shape[-1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        outputs = []
        for gates, key_value in zip(driven.unbind(1), entering.unbind(1), strict=True):
            memory = self._step(memory, gates.unsqueeze(1), key_value.unsqueeze(1))
            outputs.append(memory.flatten(1))
        return torch.stack(outputs, dim=1)

    def _step(self, memory: Tensor, gates: Tensor, key_value: Tensor) -> Tensor:
        """Return the next memory ``(B, N, c)``, given what the input adds to the gates and its key and value, ``(B, 1, 2 c)``."""
        both = torch.cat([self.key_value(memory), key_value], dim=1)
        q, k, v = (self._by_head(part) for part in (self.query(memory), *both.chunk(2, dim=-1)))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        new = self.norms[0](memory + self.combine(attended))
        new = self.norms[1](new + self.mlp(new))
        enter, keep = (gates + self.memory_gates(memory.tanh())).chunk(2, dim=-1)
        return enter.sigmoid() * new.tanh() + (keep + 1).sigmoid() * memory

    def _by_head(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)
