"""Stack-RNN: a recurrent network with a differentiable stack.

Source: Joulin and Mikolov, "Inferring Algorithmic Patterns with Stack-Augmented Recurrent Nets" (2015), with a stack of
vectors. At every step the controller reads the two cells at the top, and every channel of the stack is pushed, popped or
kept, with probabilities of its own.

Departure from the code beside the NAM paper: an empty cell is 0 at the start and after a pop (in that code, -1 after a pop).
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
    "small": {"width": 64, "cell": 16},
    "paper": {"width": 2048, "cell": 256},
}


@register("stack-rnn", "recurrent network with a differentiable stack", _SIZES)
class StackRNNModel(SequenceModel):
    """A recurrent network whose controller reads the top of a stack.

    Args:
        task: see ``SequenceModel``.
        width: width of embedding and hidden state.
        cell: width of a cell of the stack.
        dropout: probability of dropping a feature of the output.
    """

    def __init__(self, task: SequenceTask, width: int, cell: int, dropout: float = 0.1) -> None:
        super().__init__(task, width, width)
        self.inputs = nn.Linear(width, width)
        self.recur = nn.Linear(width + 2 * cell, width, bias=False)
        self.act = nn.Linear(width, 3 * cell)
        self.push = nn.Linear(width, cell)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU())
        self.cell = cell

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, steps, width = x.shape
        hidden, stack = x.new_zeros(batch, width), x.new_zeros(batch, max(2, steps), self.cell)
        driven, outputs = self.inputs(x), []
        for step in range(steps):
            top, second = stack[:, 0], stack[:, 1]
            hidden = torch.sigmoid(driven[:, step] + self.recur(torch.cat([hidden, top, second], dim=-1)))
            # Probabilities for each channel, (B, 1, cell) each.
            push, pop, stay = self.act(hidden).unflatten(-1, (3, self.cell)).softmax(1).unsqueeze(2).unbind(1)
            pushed = torch.cat([torch.sigmoid(self.push(hidden)).unsqueeze(1), stack[:, :-1]], dim=1)
            popped = torch.cat([stack[:, 1:], torch.zeros_like(stack[:, :1])], dim=1)
            stack = push * pushed + pop * popped + stay * stack
            outputs.append(hidden)
        features: Tensor = self.out(torch.stack(outputs, dim=1))
        return features
