"""Tape-RNN: a recurrent network with a differentiable tape, the strongest network of the Chomsky-hierarchy suite.

Source: Delétang et al., "Neural Networks and the Chomsky Hierarchy" (2023), section 3: the controller writes to the cell at the
head and then moves the tape by a mixture of stay, one to the left, one to the right, and jumps by the length of the input to
either side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "cell": 4},
    "small": {"width": 64, "cell": 8},
    "paper": {"width": 256, "cell": 8},
}


@register("tape-rnn", "recurrent network with a differentiable tape that jumps by the input's length", _SIZES)
class TapeRNNModel(SequenceModel):
    """A recurrent network whose controller writes to a circular tape and moves it.

    Args:
        task: see ``SequenceModel``.
        width: of embedding and hidden state.
        cell: width of a cell of the tape.
        tape_length: cells of the tape, which is circular; ``None`` for two more than twice the longest jump of a batch.
        blank: the token whose first place ends the input, which is as far as a jump goes.
    """

    def __init__(
        self, task: SequenceTask, width: int, cell: int, tape_length: int | None = None, blank: str = "?"
    ) -> None:
        super().__init__(task, width, width)
        self.recurrent = nn.LSTMCell(width + cell, width)
        self.act = nn.Linear(width, 5)
        self.write = nn.Linear(width, cell)
        self.cell, self.tape_length = cell, tape_length
        self.blank = task.vocabulary.index(blank) if blank in task.vocabulary else None

    def forward(self, inputs: Tensor, asked: Tensor | None = None) -> Tensor:
        """Return logits, see ``SequenceModel``; the length of the input is where its first blank stands."""
        if self.input_size is not None:
            asks, present = inputs[..., -2] == 1, inputs[..., -1] == 0
        else:
            asks = torch.zeros_like(inputs, dtype=torch.bool) if self.blank is None else inputs == self.blank
            present = inputs != self.pad
        ends = torch.where(asks.any(dim=1), asks.long().argmax(dim=1), present.sum(dim=1))
        self._jump = ends.clamp_min(1)
        return super().forward(inputs, asked)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, steps, width = x.shape
        cells = self.tape_length or 2 * int(self._jump.max()) + 2
        tape = x.new_zeros(batch, cells, self.cell)
        state = x.new_zeros(batch, width), x.new_zeros(batch, width)
        places = torch.arange(cells, device=x.device)
        jumps = self._jump.to(x.device).unsqueeze(1)
        left, right = ((places + way * jumps) % cells for way in (1, -1))
        outputs = []
        for step in range(steps):
            state = self.recurrent(torch.cat([x[:, step], tape[:, 0]], dim=-1), state)
            hidden = state[0]
            tape = torch.cat([self.write(hidden).unsqueeze(1), tape[:, 1:]], dim=1)
            stay, back, on, far_back, far_on = self.act(hidden).softmax(-1)[:, :, None, None].unbind(1)
            jumped = [tape.gather(1, way.unsqueeze(-1).expand_as(tape)) for way in (left, right)]
            tape = (
                stay * tape + back * tape.roll(1, 1) + on * tape.roll(-1, 1) + far_back * jumped[1] + far_on * jumped[0]
            )
            outputs.append(hidden)
        return torch.stack(outputs, dim=1)
