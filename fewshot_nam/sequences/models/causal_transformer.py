"""A Transformer decoder as language models have it today: causal softmax attention, positions by rotation, keys and values kept.

The baseline for NAM-Transformers that predict the next token. Layers are normalised first, as in GPT-2 (Radford et al., 2019);
queries and keys are turned by their position (Su et al., "RoFormer", 2021), so any length can be computed. Token by token, it keeps
the keys and values of all tokens: memory and time of a token grow with their number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.memory.short_convolution import ShortConvolution, check_conv_size
from fewshot_nam.sequences.models.model import SequenceModel
from fewshot_nam.sequences.models.registry import register
from fewshot_nam.sequences.models.transformer import sinusoids
from fewshot_nam.sequences.tasks.task import SequenceTask

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "heads": 2, "layers": 1, "feedforward": 32},
    "small": {"width": 64, "heads": 4, "layers": 2, "feedforward": 128},
    "paper": {"width": 512, "heads": 8, "layers": 8, "feedforward": 2048},
}


class KeyValueCache:
    """The keys and values ``(B, H, T, d)`` of the tokens so far, in memory that doubles when it is full."""

    def __init__(self) -> None:
        self.length = 0
        self.recent: Tensor | None = None
        """``(B, conv_size - 1, 3 d)``: the last projected tokens, where there is a convolution."""
        self._kept: Tensor | None = None  # (2, B, H, capacity, d)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of further tokens, and return all."""
        added = torch.stack([keys, values])
        end = self.length + added.shape[3]
        if self._kept is None:
            self._kept = added.clone()
        if self._kept.shape[3] < end:
            more = max(end, 2 * self._kept.shape[3]) - self.length
            self._kept = F.pad(self._kept[:, :, :, : self.length], (0, 0, 0, more))
        self._kept[:, :, :, self.length : end] = added
        self.length = end
        return self._kept[0, :, :, :end], self._kept[1, :, :, :end]


@register("transformer-causal", "Transformer decoder: causal softmax attention with rotary positions", _SIZES)
class CausalTransformerModel(SequenceModel):
    """A Transformer decoder that can also run token by token.

    Args:
        task: see ``SequenceModel``.
        width: ``d``, a multiple of twice ``heads``.
        heads: number of attention heads.
        layers: layers.
        feedforward: width of a layer's hidden layer.
        dropout: probability of dropping a feature.
        conv_size: width, in tokens, of a short causal convolution of queries, keys and values, as ``NAMAttention`` has; ``None``
            for none.
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
        conv_size: int | None = None,
    ) -> None:
        super().__init__(task, width, width)
        check_conv_size("transformer-causal", conv_size)
        if width % (2 * heads):
            raise ValueError(f"transformer-causal: width must be a multiple of {2 * heads}, twice heads, got {width}")
        self.layers = nn.ModuleList(_Layer(width, heads, feedforward, dropout, conv_size) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def _encode(self, x: Tensor, mask: Tensor) -> Tensor:
        return self._run(x, [None] * len(self.layers))  # padding is behind the tokens, which do not see it

    def init_state(self, batch_size: int) -> list[KeyValueCache]:
        """Return empty caches, one a layer. ``extend`` changes them."""
        return [KeyValueCache() for _ in self.layers]

    def _extend(self, x: Tensor, state: list[KeyValueCache]) -> tuple[Tensor, list[KeyValueCache]]:
        return self._run(x, state), state

    def _run(self, x: Tensor, caches: list[KeyValueCache] | list[None]) -> Tensor:
        x = self.dropout(x)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache)
        features: Tensor = self.norm(x)
        return features


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, conv_size: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.project, self.combine = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.conv = None if conv_size is None else ShortConvolution(3 * width, conv_size)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KeyValueCache | None) -> Tensor:
        """Return the next features of tokens ``(B, T, d)``, which come after those in the cache."""
        before = 0 if cache is None else cache.length
        projected = self.project(self.norms[0](x))
        if self.conv is not None:
            projected, recent = self.conv(projected, None if cache is None else cache.recent)
            if cache is not None:
                cache.recent = recent
        parts = torch.unflatten(projected, -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        places = torch.arange(before, before + x.shape[1], device=x.device)
        q, k, v = _turn(parts[0], places), _turn(parts[1], places), parts[2]
        if cache is not None:
            k, v = cache.append(k, v)
        hidden = None
        if before and x.shape[1] > 1:
            hidden = torch.arange(before + x.shape[1], device=x.device) <= places.unsqueeze(1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden, is_causal=not before and x.shape[1] > 1)
        x = x + self.dropout(self.combine(attended.transpose(1, 2).flatten(2)))
        features: Tensor = x + self.dropout(self.narrow(F.gelu(self.widen(self.norms[1](x)))))
        return features


def _turn(x: Tensor, places: Tensor) -> Tensor:
    """Return queries or keys ``(B, H, T, d)``, each pair of features turned by an angle that grows with the place."""
    sines, cosines = torch.unflatten(sinusoids(places, x.shape[-1]).to(x.dtype), -1, (-1, 2)).unbind(-1)
    first, second = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cosines - second * sines, first * sines + second * cosines], dim=-1)
    return turned.flatten(-2)
