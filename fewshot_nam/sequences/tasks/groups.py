"""Word problems of groups: the product of all elements so far, at every position, in S5 and A5.

Source: Merrill, Petty and Sabharwal, "The Illusion of State in State-Space Models" (ICML 2024), section 5. Tracking the state of
these groups is complete for NC1, which no fixed number of layers of a Transformer or a diagonal linear recurrence computes.

Departure: a product is another token than the element, so that a model that repeats its input is never right.
"""

from __future__ import annotations

import itertools

import torch

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, SequenceTask, Split, splits_of


class _WordProblem(SequenceTask):
    splits = splits_of(Split((2, 32), 100_000), Split((2, 32), 2048), Split((33, 64), 1024), Split((65, 256), 512))

    def __init__(self, even: bool) -> None:
        elements = [p for p in itertools.permutations(range(5)) if not even or _is_even(p)]
        number = {p: i for i, p in enumerate(elements)}
        # p * q applies p first, then q.
        self._table = torch.tensor([[number[tuple(q[i] for i in p)] for q in elements] for p in elements])
        names = ["".join(map(str, p)) for p in elements]
        self.vocabulary = (*names, *(f"={name}" for name in names), "pad")

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        order = len(self._table)
        inputs = torch.randint(order, (count, length), generator=generator)
        products = inputs.clone()
        for place in range(1, length):
            products[:, place] = self._table[products[:, place - 1], inputs[:, place]]
        return Batch(inputs, products + order, torch.ones_like(inputs, dtype=torch.bool))


def _is_even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


@register("s5")
class S5(_WordProblem):
    """Multiply permutations of five things (120 elements), product after product. Length: the elements."""

    def __init__(self) -> None:
        super().__init__(even=False)


@register("a5")
class A5(_WordProblem):
    """Multiply even permutations of five things (60 elements), product after product. Length: the elements."""

    def __init__(self) -> None:
        super().__init__(even=True)
