"""LSAM as an encoder-decoder: a bidirectional encoder whose final memories are where a forward decoder begins.

Source: Nam and Seo, "Neural Attention Memory" (ICLR 2023 submission) and the authors' code of 2022. Encoder layer:
``a = x + dropout(relu(linear(BLSAM(x))))``, ``norm(a + feed_forward(a))``; the two directions have half of the width and of the
heads each. Decoder: one LSAM over the encoder's output, then linear, dropout, ReLU and layer normalisation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fewshot_nam.memory import LSAM
from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "heads": 2, "feedforward": 32},
    "small": {"width": 64, "heads": 4, "feedforward": 128},
    "paper": {"width": 1024, "heads": 8, "feedforward": 2048},
}


@register("lsam", "LSAM encoder-decoder: a recurrent network with a memory matrix a head", _SIZES)
class LSAMModel(SequenceModel):
    """LSAM encoder and decoder.

    Args:
        task: see ``SequenceModel``.
        width: ``d``.
        heads: memories, an even number; each is ``(d / heads, d / heads)``.
        feedforward: width of the encoder's hidden layer.
        dropout: probability of dropping a feature.
        layer_options: further arguments of ``fewshot_nam.memory.LSAM``, such as ``max_erase=2`` and ``conv_size``; the decoder
            has no convolution, since its input has seen the neighbours already.
    """

    def __init__(
        self,
        task: SequenceTask,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.1,
        **layer_options: Any,
    ) -> None:
        super().__init__(task, width, width)
        if heads % 2:
            raise ValueError(f"lsam: heads must be even, half of them read in each direction, got {heads}")
        self.encoder = LSAM(
            width, width // 2, num_heads=heads // 2, batch_first=True, bidirectional=True, **layer_options
        )
        self.mix = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU())
        self.feed_forward = nn.Sequential(
            nn.Linear(width, feedforward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        of_decoder = {**layer_options, "conv_size": None}
        self.decoder = LSAM(width, width, num_heads=heads, batch_first=True, **of_decoder)
        self.head = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU(), nn.LayerNorm(width))

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(dim=1).cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        outputs, (_, memory, *_) = self.encoder(packed)
        read = pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0]
        a = x + self.dropout(self.mix(read))
        encoded = self.norm(a + self.dropout(self.feed_forward(a)))
        # (2, B, H / 2, d / H, d / H): the heads of the forward direction, then those of the backward one.
        memory = torch.cat([memory[0], memory[1]], dim=1).unsqueeze(0)
        hidden = x.new_zeros(1, len(x), x.shape[-1])
        packed = pack_padded_sequence(encoded, lengths, batch_first=True, enforce_sorted=False)
        decoded = pad_packed_sequence(
            self.decoder(packed, (hidden, memory))[0], batch_first=True, total_length=x.shape[1]
        )[0]
        features: Tensor = self.head(decoded)
        return features
