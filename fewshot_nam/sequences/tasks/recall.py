"""Multi-query associative recall (MQAR): pairs of a key and a value, then the keys again; the answers are their values.

Source: Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models" (2023), section 4 and the generator
of its public code: keys and values are halves of the vocabulary, the pairs come first, and each key comes once more,
at a distance that follows a power law. All other places hold random tokens of either half.
"""

from __future__ import annotations

import numpy as np
import torch

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, SequenceTask, Split, splits_of


@register("mqar")
class MultiQueryRecall(SequenceTask):
    """Recall the value of every key that comes again. Length: the tokens, rounded down to an even number.

    A sequence has at least four times as many tokens as pairs.

    Args:
        pairs: pairs of a key and a value in a sequence; ``None`` for an eighth of the length.
        vocabulary_size: keys and values together; the published one is 8,192.
        power: exponent of the power law: the share of queries within a distance grows as the distance to this power.
        fill: what fills the other places: ``"random"`` tokens, as published, or ``"blank"``.
    """

    def __init__(
        self, pairs: int | None = None, vocabulary_size: int = 8192, power: float = 0.01, fill: str = "random"
    ) -> None:
        if vocabulary_size < 4 or vocabulary_size % 2:
            raise ValueError(f"mqar: vocabulary_size must be even and at least 4, got {vocabulary_size}")
        if fill not in ("random", "blank"):
            raise ValueError(f"mqar: fill must be 'random' or 'blank', got {fill!r}")
        if not power > 0:
            raise ValueError(f"mqar: power must be above 0, got {power}")
        if pairs is not None and pairs < 1:
            raise ValueError(f"mqar: pairs must be at least 1, got {pairs}")
        self.pairs, self.power, self.fill, self.half = pairs, power, fill, vocabulary_size // 2
        keys, values = (f"key {i}" for i in range(self.half)), (f"value {i}" for i in range(self.half))
        self.vocabulary = (*keys, *values, "pad")
        self.splits = splits_of(Split(64, 100_000), Split(64, 3000), Split(128, 1000), Split(256, 1000))

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        length -= length % 2
        pairs = length // 8 if self.pairs is None else self.pairs
        places = (length - 2 * pairs) // 2
        if pairs < 1 or places < pairs:
            raise ValueError(f"mqar: {pairs} pairs need a length of at least {max(8, 4 * pairs)}, got {length}")
        if pairs > self.half:
            raise ValueError(f"mqar: {pairs} pairs need {pairs} keys, but the vocabulary has {self.half}")
        keys, values = (_distinct(self.half, pairs, count, generator) for _ in range(2))
        law = self.power * np.arange(1, places + 1) ** (self.power - 1)
        weights = torch.from_numpy(law / law.sum()).expand(count, -1)
        gaps = torch.multinomial(weights, pairs, generator=generator)
        inputs = torch.randint(2 * self.half, (count, length), generator=generator)
        if self.fill == "blank":
            inputs[:] = self.pad
        inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values + self.half
        at = 2 * pairs + 2 * gaps
        inputs.scatter_(1, at, keys)
        mask = torch.zeros_like(inputs, dtype=torch.bool).scatter_(1, at, True)
        return Batch(inputs, inputs.scatter(1, at, values + self.half), mask)


def _distinct(choices: int, wanted: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return ``(count, wanted)`` numbers below ``choices``, distinct within each row."""
    return torch.rand(count, choices, generator=generator).topk(wanted, dim=1).indices
