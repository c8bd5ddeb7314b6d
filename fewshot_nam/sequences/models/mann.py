"""MANN: the item memory of STM alone, as an ablation of its relational memory.

Source: the item memory of Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020), in the form of the authors' code
(``fewshot_nam.memory.stm``). That code has no such ablation; the read is ours, that of an associative memory::

    a = f_1 x      b = f_2 x                                           f: linear, d features
    I <- sigmoid(g_i) * tanh(a a^T) + sigmoid(g_f + 1) * I             [g_i | g_f] = tanh(I) W^T + U a, for each row
    o = MLP(I^T b)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "memory": 8, "hidden": 16},
    "small": {"width": 64, "memory": 32, "hidden": 64},
    "paper": {"width": 1024, "memory": 128, "hidden": 1024},  # as STM
}


@register("mann", "the item memory of STM alone, without relations", _SIZES)
class MANNModel(SequenceModel):
    """An associative memory of items between an embedding and a classifier; it reads forward.

    Args:
        task: see ``SequenceModel``.
        width: of embedding and output.
        memory: ``d``, rows and columns of the memory.
        hidden: width of the hidden layers of the output.
        dropout: probability of dropping a feature of the input.
    """

    causal = True

    def __init__(self, task: SequenceTask, width: int, memory: int, hidden: int, dropout: float = 0.2) -> None:
        super().__init__(task, width, width)
        self.project = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.first, self.second = nn.Linear(width, memory), nn.Linear(width, memory)
        self.input_gates, self.memory_gates = nn.Linear(memory, 2 * memory), nn.Linear(memory, 2 * memory)
        self.output = nn.Sequential(
            nn.Linear(memory, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )
        self.item = nn.Parameter(torch.empty(memory, memory).uniform_(-((2 * memory) ** -0.5), (2 * memory) ** -0.5))

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.project(x)
        a, b = self.first(x), self.second(x)
        item, reads = self.item.expand(len(x), -1, -1), []
        for a_t, b_t, driven in zip(a.unbind(1), b.unbind(1), self.input_gates(a).unbind(1), strict=True):
            enter, keep = (self.memory_gates(item.tanh()) + driven.unsqueeze(1)).chunk(2, dim=-1)
            written = torch.tanh(a_t.unsqueeze(2) * a_t.unsqueeze(1))
            item = enter.sigmoid() * written + (keep + 1).sigmoid() * item
            reads.append((b_t.unsqueeze(1) @ item).squeeze(1))
        features: Tensor = self.output(torch.stack(reads, dim=1))
        return features
