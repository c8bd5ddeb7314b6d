"""LSTM with attention: the recurrent baseline of the NAM paper; and GRU with attention, of the I-BERT paper.

Source: the authors' code of 2022: a bidirectional LSTM, attention of every step over all steps (Luong et al., 2015: score
``<W x_t, h_s>``, output ``tanh(W_o [context; x_t])``), and another bidirectional LSTM.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewshot_nam.sequences.models.model import SequenceModel, run_packed
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16},
    "small": {"width": 64},
    # As wide as a Transformer of width 512 and 8 layers has parameters.
    "paper": {"width": int(512 * math.sqrt(8))},
}

_CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


@register("lstm", "two bidirectional LSTM layers", _SIZES, attention=False)
@register("lstm-attention", "two bidirectional LSTM layers with attention between them", _SIZES, attention=True)
@register(
    "gru-attention", "two bidirectional GRU layers with attention between them", _SIZES, attention=True, cell="gru"
)
class LSTMModel(SequenceModel):
    """Two bidirectional recurrent layers.

    Args:
        task: see ``SequenceModel``.
        width: ``d``, even: both directions together.
        attention: whether steps attend to each other between the layers.
        dropout: probability of dropping a feature.
        cell: ``"lstm"`` or ``"gru"``.

    Raises:
        ValueError: an odd width, or another cell.
    """

    def __init__(
        self,
        task: SequenceTask,
        width: int,
        attention: bool = True,
        dropout: float = 0.1,
        cell: Literal["lstm", "gru"] = "lstm",
    ) -> None:
        super().__init__(task, width, width)
        if width % 2:
            raise ValueError(f"lstm: width must be even, half of it for each direction, got {width}")
        if cell not in _CELLS:
            raise ValueError(f"lstm: cell must be {' or '.join(_CELLS)}, got {cell!r}")
        self.first = _CELLS[cell](width, width // 2, batch_first=True, bidirectional=True)
        self.second = _CELLS[cell](width, width // 2, batch_first=True, bidirectional=True)
        self.score = nn.Linear(width, width, bias=False) if attention else None
        self.join = nn.Linear(2 * width, width, bias=False) if attention else None
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(run_packed(self.first, x, mask))
        if self.score is not None and self.join is not None:
            scores = (self.score(x) @ x.mT).masked_fill(~mask.unsqueeze(1), -math.inf)
            x = torch.tanh(self.join(torch.cat([scores.softmax(-1) @ x, x], dim=-1)))
        return self.dropout(run_packed(self.second, x, mask))
