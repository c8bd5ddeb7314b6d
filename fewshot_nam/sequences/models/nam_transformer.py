"""The NAM-Transformer as a sequence model, with and without erase.

Source: Nam and Seo, "Neural Attention Memory" (2023): attention through a memory in place of the T x T scores. With ``erase`` a
token is written by the delta rule with a learned erase probability, in order; ``max_erase=2`` allows the memory to change its
sign, which a linear recurrence needs to count parity (Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through Negative
Eigenvalues", 2025).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fewshot_nam.memory import NAMTransformerEncoderLayer
from fewshot_nam.memory.attention import AttentionState
from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.models.transformer import sinusoids
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "heads": 2, "layers": 1, "feedforward": 32},
    "small": {"width": 64, "heads": 4, "layers": 2, "feedforward": 128},
    "paper": {"width": 512, "heads": 8, "layers": 8, "feedforward": 2048},
}


class NAMTransformerState(NamedTuple):
    """What a NAM-Transformer keeps of the tokens so far.

    Attributes:
        memories: of each layer, of the same size after any number of tokens.
        place: how many tokens there were.
    """

    memories: list[AttentionState]
    place: int


@register("nam-attention", "causal NAM attention without erase (normalised linear attention)", _SIZES, erase=False)
@register("nam-attention-erase", "causal NAM attention with a learned erase (the delta rule)", _SIZES, erase=True)
class NAMTransformerModel(SequenceModel):
    """A causal NAM-Transformer encoder; without ``positions`` they come from the order of writes, and with ``erase`` alone.

    Args:
        task: see ``SequenceModel``.
        width: ``d``, a multiple of ``heads``.
        heads: memories of a layer.
        layers: layers.
        feedforward: width of a layer's hidden layer.
        dropout: probability of dropping a feature.
        erase: write with a learned erase probability.
        positions: add sinusoidal positions to the tokens, as the paper does in the long-range arena.
        start: put a learned token before the sequence, so that a memory has something to change from its first token on.
        layer_options: further arguments of ``NAMTransformerEncoderLayer``.
    """

    causal = True

    def __init__(
        self,
        task: SequenceTask,
        width: int,
        heads: int,
        layers: int,
        feedforward: int,
        dropout: float = 0.1,
        erase: bool = True,
        start: bool = False,
        positions: bool = False,
        **layer_options: Any,
    ) -> None:
        super().__init__(task, width, width)
        self.layers = nn.ModuleList(
            NAMTransformerEncoderLayer(
                width,
                heads,
                feedforward,
                dropout,
                batch_first=True,
                norm_first=True,
                erase=erase,
                gates=True,
                **layer_options,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.positions = positions
        self.start = nn.Parameter(torch.randn(width)) if start else None

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self._placed(x, 0)
        if self.start is not None:
            x = torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)
            mask = torch.cat([mask.new_ones(len(x), 1), mask], dim=1)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask, is_causal=True)
        features: Tensor = self.norm(x if self.start is None else x[:, 1:])
        return features

    def init_state(self, batch_size: int) -> NAMTransformerState:
        """Return memories that hold nothing."""
        memories = [layer.init_state(batch_size) for layer in self._layers()]
        if self.start is not None:
            memories = self._read(self.start.expand(batch_size, 1, -1), memories)[1]
        return NAMTransformerState(memories, 0)

    def _extend(self, x: Tensor, state: NAMTransformerState) -> tuple[Tensor, NAMTransformerState]:
        features, memories = self._read(self._placed(x, state.place), state.memories)
        return features, NAMTransformerState(memories, state.place + x.shape[1])

    def _placed(self, x: Tensor, first: int) -> Tensor:
        """Return embedded tokens ``(B, T, d)`` with their positions from ``first`` on, where the model has any."""
        if not self.positions:
            return x
        return x + sinusoids(torch.arange(first, first + x.shape[1], device=x.device), x.shape[-1])

    def _read(self, x: Tensor, memories: list[AttentionState]) -> tuple[Tensor, list[AttentionState]]:
        """Return features ``(B, T, d)`` of further tokens, and the memories after them."""
        states = []
        for layer, before in zip(self._layers(), memories, strict=True):
            if x.shape[1] == 1:
                x, after = layer.step(x.squeeze(1), before)
                x = x.unsqueeze(1)
            else:
                x, after = layer.extend(x, before)
            states.append(after)
        return self.norm(x), states

    def _layers(self) -> list[NAMTransformerEncoderLayer]:
        return cast("list[NAMTransformerEncoderLayer]", list(self.layers))
