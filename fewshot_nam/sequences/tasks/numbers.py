"""The tasks of the NAM paper on digits: the next Fibonacci number, reverse (its "palindrome"), copy, and sequence reduction.

Source: Nam and Seo, "Neural Attention Memory" (ICLR 2023 submission), section on algorithmic tasks. A digit is a token, and
numbers begin with their last digit. Where the answer is asked for stands ``?``, so the input shows how long the answer is, as
in the paper. The next number of an arithmetic sequence is from the I-BERT paper.

Departures. Since December 2020 the published generator of palindrome and copy puts the answer into the input and the blanks
into the target; here the input asks and the target answers. Sequences are not shifted by a random number of pads. A reduced
sequence ends with ``_``, which is not the blank, so that a model that repeats its input is never right.

Lengths: ``paper`` trains on 1 to 10 digits and tests on 5 to 10 (``id``), 11 to 13 (``ood_easy``) and 14 to 16 (``ood_hard``),
as the paper's text says; ``long`` tests on 11 to 16 and 17 to 22, as the authors' code of 2023 does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, SequenceTask, Split, answered, splits_of

_PRESETS = {"paper": ((11, 13), (14, 16)), "long": ((11, 16), (17, 22))}
_DELIMITER, _BLANK, _END = 10, 11, 12


class _DigitTask(SequenceTask):
    """A task on sequences of digits.

    Args:
        preset: ``"paper"`` or ``"long"``, the lengths that are tested.

    Raises:
        ValueError: another preset.
    """

    vocabulary = (*"0123456789", "|", "?", ".", "pad")

    def __init__(self, preset: str = "paper") -> None:
        if preset not in _PRESETS:
            raise ValueError(f"no preset {preset!r}: there are {', '.join(_PRESETS)}")
        easy, hard = _PRESETS[preset]
        self.splits = splits_of(Split((1, 10), 25600), Split((5, 10), 2048), Split(easy, 2048), Split(hard, 2048))

    def _framed(self, parts: list[Tensor], answer: Tensor) -> Batch:
        """Return the sequence ``| part | part | ? ? ? .`` of every row."""
        delimiter = torch.full((len(answer), 1), _DELIMITER)
        prompt = torch.cat([delimiter, *(column for part in parts for column in (part, delimiter))], dim=1)
        return answered(prompt, answer, _BLANK, torch.full((len(answer), 1), _END))


@register("reverse")
class Reverse(_DigitTask):
    """Repeat a sequence of digits from its end (the paper's palindrome). Length: the digits given."""

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        digits = torch.randint(10, (count, length), generator=generator)
        return self._framed([digits], digits.flip(1))


@register("copy")
class Copy(_DigitTask):
    """Repeat a sequence of digits. Length: the digits given."""

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        digits = torch.randint(10, (count, length), generator=generator)
        return self._framed([digits], digits)


class _NextNumber(_DigitTask):
    """Add multiples of two numbers. The first has 1 to ``length`` digits, drawn uniformly; the second has exactly ``length``."""

    factors: tuple[int, int]
    ordered: bool

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        first_length = torch.randint(1, length + 1, (count,), generator=generator)
        first = _digits(count, first_length, generator, length)
        second = _digits(count, torch.full((count,), length), generator, length)
        if self.ordered:  # a first number that is larger has as many digits
            swapped = _larger(first, second).unsqueeze(1)
            first, second = second.where(swapped, first), first.where(swapped, second)
        total = torch.zeros(count, length + 1, dtype=torch.long)
        total[:, :length] = self.factors[0] * first.clamp_min(0) + self.factors[1] * second
        for place in range(length):
            total[:, place + 1] += total[:, place] // 10
            total[:, place] %= 10
        rows = []
        for row in range(count):
            size = length + int(total[row, length] > 0)
            rows.append(
                self._framed(
                    [first[row : row + 1, : first_length[row]], second[row : row + 1]], total[row : row + 1, :size]
                )
            )
        width = max(row.inputs.shape[1] for row in rows)
        return Batch(*(torch.cat(column) for column in zip(*(self._padded(row, width) for row in rows), strict=True)))


@register("fibonacci")
class Fibonacci(_NextNumber):
    """Add the last two numbers of a Fibonacci-like sequence. Length: the digits of the larger number.

    The first number has 1 to ``length`` digits, drawn uniformly; the second has exactly ``length``. Numbers have no leading
    zeros, and the sum has ``length`` or one more digit.
    """

    factors = (1, 1)
    ordered = False


@register("arithmetic_sequence")
class ArithmeticSequence(_NextNumber):
    """Continue an arithmetic sequence from ``a`` and ``b``, ``a <= b``, by ``2b - a``. Length: the digits of ``b``.

    Numbers are drawn as for Fibonacci, and then put in order. Source: "arith" of Nam et al., "I-BERT: Inductive Generalization of
    Transformer to Arbitrary Context Lengths" (2020).
    """

    factors = (-1, 2)
    ordered = True


def _larger(first: Tensor, second: Tensor) -> Tensor:
    """Return ``(count,)`` bool, where the first of two numbers is larger; see ``_digits``."""
    larger = torch.zeros(len(first), dtype=torch.bool)
    for a, b in zip(first.T, second.T, strict=True):  # from the last digit to the first, which decides
        larger = torch.where(a == b, larger, a > b)
    return larger


def _digits(count: int, lengths: Tensor, generator: torch.Generator, width: int) -> Tensor:
    """Return numbers ``(count, width)``, the last digit first, -1 beyond each one's length; the first digit is never 0."""
    digits = torch.randint(10, (count, width), generator=generator)
    leading = torch.randint(1, 10, (count,), generator=generator)
    digits[torch.arange(count), lengths - 1] = leading
    return digits.where(torch.arange(width) < lengths.unsqueeze(1), -1)


@register("reduce")
class Reduce(SequenceTask):
    """Leave out the zeros of a sequence of digits. Length: the digits given, zeros included.

    Each digit is 0 with probability 1/2, else uniform from 1 to 9. Behind the delimiter as many tokens are asked for as there are
    digits: the non-zero digits in order, then ``_`` to the end. So the input does not show how long the answer is.

    Args:
        preset: as for the other tasks on digits.

    Raises:
        ValueError: another preset.
    """

    vocabulary = (*"0123456789", "|", "?", "_", "pad")

    def __init__(self, preset: str = "paper") -> None:
        self.splits = Reverse(preset).splits

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        digits = torch.randint(1, 10, (count, length), generator=generator)
        digits[torch.rand(count, length, generator=generator) < 0.5] = 0
        order = (digits == 0).long().argsort(dim=1, stable=True)  # non-zero digits first, in their order
        answer = digits.gather(1, order)
        answer[answer == 0] = _END
        prompt = torch.cat([digits, torch.full((count, 1), _DELIMITER)], dim=1)
        return answered(prompt, answer, _BLANK)
