"""ListOps of the long-range arena: the value of nested lists of digits.

Source: Nangia and Bowman, "ListOps" (2018), in the setting of Tay et al., "Long Range Arena" (2021): a node at depth d (the
root at 1) is an operator with probability 1/4 where d is below the deepest, else a digit; an operator has 2 to 10 arguments,
and is MIN, MAX, MED (the median, rounded down) or SM (the sum modulo 10). Trees are drawn until one has a length in the
range, 500 to 2,000 as published, counting operators, digits and closing brackets. Published are also 96,000 sequences of
training and 2,000 of the test, which are ``id``.

Departure: the answer is predicted at ``?`` behind the sequence, not at a class token.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, Lengths, SequenceTask, Split

_OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
_CLOSE, _ASKS = 14, 15
_P_OPERATOR = 0.25
_NARROW = 100  # longer ranges than this must be a tenth of their longest wide


@register("listops")
class ListOps(SequenceTask):
    """Give the value of nested lists of digits under MIN, MAX, MED and SM. Length: operators, digits and closing brackets.

    Lengths in a range are as often as such trees are, not equally often. A range above 100 must be wide, as trees are drawn
    until one fits.

    Args:
        train: the shortest and the longest sequence of training and of ``id``. Up to half as long again are the other tests.
        max_depth: of a tree.
        max_arguments: of an operator, at least 2.

    Raises:
        ValueError: sizes that no tree has.
    """

    vocabulary = (*"0123456789", *_OPERATORS, "]", "?", "pad")

    def __init__(self, train: tuple[int, int] = (500, 2000), max_depth: int = 10, max_arguments: int = 10) -> None:
        if max_depth < 2 or max_arguments < 2 or not 4 <= train[0] <= train[1]:
            raise ValueError(
                "listops: needs a depth and arguments of at least 2 and lengths from 4, got "
                f"max_depth={max_depth}, max_arguments={max_arguments}, train={train}"
            )
        self.max_depth, self.max_arguments = max_depth, max_arguments
        longest = train[1]
        middle, most = longest + -(-longest // 4), longest + -(-longest // 2)
        self.splits = {
            "train": Split(train, 96_000),
            "id": Split(train, 2000),
            "ood_easy": Split((longest + 1, middle), 250),
            "ood_hard": Split((middle + 1, most), 250),
        }

    def sample(self, batch_size: int, generator: torch.Generator, lengths: Lengths | None = None) -> Batch:
        """Return a batch of new sequences; see ``SequenceTask.sample``.

        Raises:
            ValueError: a batch size below 1, or lengths that are none, or so narrow that few trees have them.
        """
        if batch_size < 1:
            raise ValueError(f"{self.name}: batch_size must be at least 1, got {batch_size}")
        shortest, longest = self._range(self.splits["train"].lengths if lengths is None else lengths)
        if longest < 4:
            raise ValueError(f"listops: the shortest sequence has 4 tokens, got lengths {lengths}")
        if longest > _NARROW and longest - shortest < longest // 10:
            raise ValueError(
                f"listops: trees are drawn until one fits, so above {_NARROW} lengths must span a tenth of the longest, "
                f"got {lengths}"
            )
        # Only random(), which is the same in all versions of Python.
        chance = random.Random(int(torch.randint(2**62, (), generator=generator)))
        inputs: list[Tensor] = []
        answers: list[int] = []
        while len(inputs) < batch_size:
            tokens: list[int] = []
            value = self._grow(1, tokens, longest, chance)
            if value is not None and max(shortest, 4) <= len(tokens):
                inputs.append(torch.tensor([*tokens, _ASKS]))
                answers.append(value)
        padded = pad_sequence(inputs, batch_first=True, padding_value=self.pad)
        mask = padded == _ASKS
        targets = padded.clone()
        targets[mask] = torch.tensor(answers)
        return Batch(padded, targets, mask)

    def split(self, name: str, size: int | None = None) -> Batch:
        """Return the fixed sequences of a test set, or the first ``size`` of them; see ``SequenceTask.split``."""
        if name not in self.splits or name == "train":
            raise ValueError(f"{self.name}: no test set {name!r}: there are {', '.join([*self.splits][1:])}")
        lengths, all_of_them = self.splits[name]
        if size is not None and not 1 <= size <= all_of_them:
            raise ValueError(f"{self.name}: the test set {name} has {all_of_them} sequences, {size} are asked for")
        # One is drawn after the other, so the others need not be drawn; and padded, so that these are as wide as all.
        batch = self.sample(size or all_of_them, self._generator(name), lengths)
        return self._padded(batch, self._range(lengths)[1] + 1)

    def _grow(self, depth: int, tokens: list[int], longest: int, chance: random.Random) -> int | None:
        """Append a random tree to ``tokens`` and return its value, or None where it gets too long."""
        if depth >= self.max_depth or chance.random() >= _P_OPERATOR:
            digit = int(chance.random() * 10)
            tokens.append(digit)
            return digit
        operator = int(chance.random() * len(_OPERATORS))
        tokens.append(10 + operator)
        values = []
        for _ in range(2 + int(chance.random() * (self.max_arguments - 1))):
            value = self._grow(depth + 1, tokens, longest, chance)
            if value is None or len(tokens) >= longest:  # a closing bracket is still to come
                return None
            values.append(value)
        tokens.append(_CLOSE)
        return _value(operator, values)


def _value(operator: int, values: list[int]) -> int:
    if operator == 0:
        return min(values)
    if operator == 1:
        return max(values)
    if operator == 3:
        return sum(values) % 10
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) // 2
