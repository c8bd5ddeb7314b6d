"""LSTMs that read forward only, plain and with attention to earlier steps: the baselines of the STM paper.

Source: Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020), which calls them LSTM and ALSTM; the attention is
that of Luong et al. (2015): score ``<W h_t, h_s>``, output ``tanh(W_o [context; h_t])``.

Departure: the published ALSTM encodes with one network, decodes with another, and attends to fixed positions. Here a step of one
network attends to itself and to the steps before it, so that a task may ask anywhere, and at any length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {"tiny": {"width": 16}, "small": {"width": 64}, "paper": {"width": 512}}


@register("lstm-forward", "one LSTM layer that reads forward", _SIZES, attention=False)
@register("alstm", "one LSTM layer that reads forward, with attention to earlier steps (ALSTM)", _SIZES, attention=True)
class ForwardLSTMModel(SequenceModel):
    """LSTM layers that read forward.

    Args:
        task: see ``SequenceModel``.
        width: ``d``.
        attention: whether steps attend to themselves and to earlier steps behind the last layer.
        layers: LSTM layers.
        dropout: probability of dropping a feature of the embedding and of the output.
    """

    causal = True

    def __init__(
        self, task: SequenceTask, width: int, attention: bool = True, layers: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__(task, width, width)
        self.recurrent = nn.LSTM(width, width, layers, batch_first=True)
        self.score = nn.Linear(width, width, bias=False) if attention else None
        self.join = nn.Linear(2 * width, width, bias=False) if attention else None
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.recurrent(self.dropout(x))[0]
        if self.score is not None and self.join is not None:
            context = F.scaled_dot_product_attention(self.score(hidden), hidden, hidden, is_causal=True, scale=1.0)
            hidden = torch.tanh(self.join(torch.cat([context, hidden], dim=-1)))
        features: Tensor = self.dropout(hidden)
        return features

    def init_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return the state of the LSTM before the first token.

        Raises:
            ValueError: with attention, which would need all earlier states.
        """
        if self.score is not None:
            raise ValueError("alstm cannot run token by token: its attention reads all earlier steps")
        zeros = self.classify.weight.new_zeros(self.recurrent.num_layers, batch_size, self.recurrent.hidden_size)
        return zeros, zeros

    def _extend(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, state = self.recurrent(self.dropout(x), state)
        return self.dropout(hidden), state
