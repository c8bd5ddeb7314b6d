"""The Differentiable Neural Computer (DNC): an LSTM with heads on a memory that allocates cells and remembers the order of writes.

Source: Graves et al., "Hybrid computing using a neural network with dynamic external memory" (Nature, 2016), methods. One
step, after the controller has read the input and the last reads:

    usage      u = (u + w_w - u * w_w) * prod_r (1 - f_r w_r)
    allocation a of the least used cells first: a[i] = (1 - u[i]) prod (of cells used less than i) u
    write      w_w = g_w (g_a a + (1 - g_a) content(key, strength));   M <- M * (1 - w_w e^T) + w_w v^T
    links      L[i, j] <- (1 - w_w[i] - w_w[j]) L[i, j] + w_w[i] p[j], L[i, i] = 0;   p <- (1 - sum w_w) p + w_w
    read       w_r = modes: backward L^T w_r, content, forward L w_r;   r = M^T w_r

First memory, weights, usage and links are 0. Usage has a small part from the uniform, so that its gradient is finite where it
is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "cells": 6, "cell": 4, "heads": 2},
    "small": {"width": 64, "cells": 16, "cell": 16, "heads": 4},
    "paper": {"width": 256, "cells": 256, "cell": 64, "heads": 4},  # its network for bAbI
}
_USED = 1e-6


class _State(NamedTuple):
    """Memory ``(B, N, W)``, usage, precedence ``(B, N)``, links ``(B, N, N)``, weights: write ``(B, 1, N)``, read ``(B, R, N)``."""

    memory: Tensor
    usage: Tensor
    precedence: Tensor
    links: Tensor
    write: Tensor
    read: Tensor


@register("dnc", "Differentiable Neural Computer: an LSTM with a memory that allocates and links cells", _SIZES)
class DNCModel(SequenceModel):
    """A Differentiable Neural Computer with one write head; it reads forward.

    Args:
        task: see ``SequenceModel``.
        width: hidden size of the controller and width of the embedding.
        cells: ``N``, cells of the memory, at least 1.
        cell: ``W``, width of a cell.
        heads: ``R``, read heads.
        dropout: probability of dropping a feature of the embedding.
    """

    causal = True

    def __init__(self, task: SequenceTask, width: int, cells: int, cell: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(task, width, width + heads * cell)
        if cells < 1 or cell < 1 or heads < 1:
            raise ValueError(f"dnc: cells, cell and heads must be at least 1, got {cells}, {cell} and {heads}")
        self.cells, self.cell, self.heads = cells, cell, heads
        self.controller = nn.LSTMCell(width + heads * cell, width)
        # Of each read head: key, strength, free gate, three modes. Of the write head: key, strength, what to erase and to
        # write, allocation gate, write gate.
        self.read_controls = nn.Linear(width, heads * (cell + 5))
        self.write_controls = nn.Linear(width, 3 * cell + 3)
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, width = len(x), x.shape[-1]
        empty = x.new_zeros(batch, self.cells)
        state = _State(
            x.new_zeros(batch, self.cells, self.cell),
            empty,
            empty,
            x.new_zeros(batch, self.cells, self.cells),
            empty.unsqueeze(1),
            x.new_zeros(batch, self.heads, self.cells),
        )
        hidden, reads = (
            (x.new_zeros(batch, width), x.new_zeros(batch, width)),
            x.new_zeros(batch, self.heads * self.cell),
        )
        outputs = []
        for now in self.dropout(x).unbind(1):
            hidden = self.controller(torch.cat([now, reads], dim=-1), hidden)
            state = self._step(state, hidden[0])
            reads = (state.read @ state.memory).flatten(1)
            outputs.append(torch.cat([hidden[0], reads], dim=-1))
        return torch.stack(outputs, dim=1)

    def _step(self, state: _State, hidden: Tensor) -> _State:
        """Return the state after the write and the move of the read heads."""
        reading = torch.unflatten(self.read_controls(hidden), -1, (self.heads, -1))
        keys, strengths, free, modes = torch.split(reading, [self.cell, 1, 1, 3], dim=-1)
        writing = self.write_controls(hidden).unsqueeze(1)
        sizes = [self.cell, 1, self.cell, self.cell, 1, 1]
        key, strength, erase, add, allocates, writes = torch.split(writing, sizes, dim=-1)

        before = state.write.squeeze(1)
        kept = (1 - free.sigmoid() * state.read).prod(dim=1)
        usage = (state.usage + before - state.usage * before) * kept
        found = _content(state.memory, key, strength)
        allocated = _allocation(usage).unsqueeze(1)
        write = writes.sigmoid() * torch.lerp(found, allocated, allocates.sigmoid())
        memory = state.memory * (1 - write.mT * erase.sigmoid()) + write.mT * add

        links = (1 - write.mT - write) * state.links + write.mT * state.precedence.unsqueeze(1)
        links = links * (1 - torch.eye(self.cells, dtype=links.dtype, device=links.device))
        w = write.squeeze(1)
        precedence = (1 - w.sum(dim=1, keepdim=True)) * state.precedence + w

        backward, content, forward = modes.softmax(-1).chunk(3, dim=-1)
        read = (
            backward * (state.read @ links)
            + content * _content(memory, keys, strengths)
            + forward * (state.read @ links.mT)
        )
        return _State(memory, usage, precedence, links, write, read)


def _content(memory: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    """Return weights ``(B, R, N)`` of cells by their similarity to keys ``(B, R, W)``."""
    similar = F.normalize(keys, dim=-1, eps=1e-6) @ F.normalize(memory, dim=-1, eps=1e-6).mT
    return ((1 + F.softplus(strengths)) * similar).softmax(-1)


def _allocation(usage: Tensor) -> Tensor:
    """Return the weights ``(B, N)`` with which new content goes to cells, the least used first."""
    usage = _USED + (1 - _USED) * usage
    ordered, order = usage.sort(dim=-1, stable=True)
    before = torch.cat([torch.ones_like(ordered[:, :1]), ordered[:, :-1].cumprod(dim=-1)], dim=-1)
    return torch.zeros_like(usage).scatter(1, order, (1 - ordered) * before)
