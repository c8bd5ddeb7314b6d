"""The Neural Turing Machine (NTM): an LSTM with heads on a memory, which address by content and by location.

Source: Graves, Wayne and Danihelka, "Neural Turing Machines" (2014), section 3. For every head, from the
controller's hidden state::

    w_c = softmax(beta cos(k, M_i))                     content
    w_g = g w_c + (1 - g) w                             interpolation with the weights before
    w_s = circular convolution of w_g with s            shift by -1, 0 or +1
    w   = w_s^gamma / sum(w_s^gamma)                    sharpening
    read: r = w^T M            write: M <- M * (1 - w e^T) + w a^T

At every step the controller reads the input and the last reads, then the write head writes, then the read head reads. At first
both heads are on cell 0; the first memory and the first read are learned.
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
    "tiny": {"width": 16, "cells": 8, "cell": 4},
    "small": {"width": 64, "cells": 32, "cell": 16},
    "paper": {"width": 100, "cells": 128, "cell": 20},
}


@register("ntm", "Neural Turing Machine: an LSTM with a read head and a write head on a memory", _SIZES)
class NTMModel(SequenceModel):
    """A Neural Turing Machine with one read head and one write head; it reads forward.

    Args:
        task: see ``SequenceModel``.
        width: hidden size of the controller and width of the embedding.
        cells: cells of the memory, at least 3.
        cell: width of a cell.
        dropout: probability of dropping a feature of the embedding.
    """

    causal = True

    def __init__(self, task: SequenceTask, width: int, cells: int, cell: int, dropout: float = 0.0) -> None:
        super().__init__(task, width, width + cell)
        if cells < 3:
            raise ValueError(f"ntm: cells must be at least 3, as heads move to both sides, got {cells}")
        self.cells, self.cell = cells, cell
        self.controller = nn.LSTMCell(width + cell, width)
        # Of each head: key, strength, gate, three shifts, sharpening; and of the write head what to erase and to add.
        self.address = nn.Linear(width, 2 * (cell + 6))
        self.write = nn.Linear(width, 2 * cell)
        self.memory = nn.Parameter(torch.empty(cells, cell).uniform_(-(cell**-0.5), cell**-0.5))
        self.first_read = nn.Parameter(torch.zeros(cell))
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, width = len(x), x.shape[-1]
        memory, read = self.memory.expand(batch, -1, -1), self.first_read.expand(batch, -1)
        weights = x.new_zeros(batch, 2, self.cells)
        weights[..., 0] = 1.0
        state = (x.new_zeros(batch, width), x.new_zeros(batch, width))
        outputs = []
        for now in self.dropout(x).unbind(1):
            state = self.controller(torch.cat([now, read], dim=-1), state)
            controls = torch.unflatten(self.address(state[0]), -1, (2, -1))
            erase, add = self.write(state[0]).chunk(2, dim=-1)
            write = self._move(memory, controls[:, :1], weights[:, :1])
            # w: (B, 1, cells), transposed (B, cells, 1).
            memory = memory * (1 - write.mT * erase.sigmoid().unsqueeze(1)) + write.mT * add.tanh().unsqueeze(1)
            reader = self._move(memory, controls[:, 1:], weights[:, 1:])
            read = (reader @ memory).squeeze(1)
            weights = torch.cat([write, reader], dim=1)
            outputs.append(torch.cat([state[0], read], dim=-1))
        return torch.stack(outputs, dim=1)

    def _move(self, memory: Tensor, controls: Tensor, weights: Tensor) -> Tensor:
        """Return the next weights ``(B, 1, cells)`` of a head."""
        key, strength, gate, shifts, sharpness = torch.split(controls, [self.cell, 1, 1, 3, 1], dim=-1)
        similar = F.normalize(key.tanh(), dim=-1) @ F.normalize(memory, dim=-1).mT
        content = (F.softplus(strength) * similar).softmax(-1)
        mixed = torch.lerp(weights, content, gate.sigmoid())
        back, stay, forward = shifts.softmax(-1).chunk(3, dim=-1)
        moved = back * mixed.roll(-1, -1) + stay * mixed + forward * mixed.roll(1, -1)
        sharp = (moved + 1e-12) ** (1 + F.softplus(sharpness))
        return sharp / sharp.sum(-1, keepdim=True)
