"""Tasks of the Chomsky-hierarchy suite: train up to length 40, test from 41 to 500, per-token accuracy.

Source: Delétang et al., "Neural Networks and the Chomsky Hierarchy" (ICLR 2023), section 4 and appendix A. As there, the input is
followed by a blank for every token of the answer. The test sets are ``id`` (the lengths of training), ``ood_easy`` (41 to 100)
and ``ood_hard`` (101 to 500); ``SequenceTask.examples(length)`` gives any single length.

Departure: no answer token is the blank token, so a model that repeats its input is never right.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, SequenceTask, Split, answered, splits_of


def _from(shortest: int) -> Mapping[str, Split]:
    return splits_of(
        Split((shortest, 40), 32000), Split((shortest, 40), 2048), Split((41, 100), 1024), Split((101, 500), 512)
    )


class _ChomskyTask(SequenceTask):
    splits = _from(1)

    def _asked(self, prompt: Tensor, answer: Tensor) -> Batch:
        """Return the prompt followed by one ``?`` (the token before the padding token) for every token of the answer."""
        return answered(prompt, answer, self.pad - 1)


class _BinaryTask(_ChomskyTask):
    vocabulary = ("a", "b", "?", "pad")

    def _strings(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2, (count, length), generator=generator)


@register("parity")
class Parity(_BinaryTask):
    """Say whether a string has an odd number of b (answer b) or an even one (answer a). Length: the string's."""

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        string = self._strings(count, length, generator)
        return self._asked(string, string.sum(dim=1, keepdim=True) % 2)


@register("even_pairs")
class EvenPairs(_BinaryTask):
    """Say whether ab and ba occur together an even number of times (answer a) or an odd one (answer b). Length: the string's.

    The number is even exactly if the first symbol equals the last one.
    """

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        string = self._strings(count, length, generator)
        return self._asked(string, (string[:, :1] != string[:, -1:]).long())


@register("cycle_navigation")
class CycleNavigation(_ChomskyTask):
    """Walk on a cycle of five places by steps of 0, +1 and -1, and say where the walk ends. Length: the steps."""

    vocabulary = ("0", "1", "2", "3", "4", "stay", "forward", "back", "?", "pad")

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        steps = torch.randint(3, (count, length), generator=generator)
        moves = torch.tensor([0, 1, -1])[steps]
        return self._asked(steps + 5, moves.sum(dim=1, keepdim=True) % 5)


@register("modular_arithmetic")
class ModularArithmetic(_ChomskyTask):
    """Evaluate a sum of digits 0 to 4 with +, - and *, modulo 5, without brackets. Length: digits and operators.

    Products are computed first. An even length is rounded down, as every expression has an odd length.
    """

    vocabulary = ("0", "1", "2", "3", "4", "+", "-", "*", "?", "pad")

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        terms = (length + 1) // 2
        digits = torch.randint(5, (count, terms), generator=generator)
        operators = torch.randint(3, (count, terms - 1), generator=generator)
        total, product = torch.zeros(count, dtype=torch.long), digits[:, 0].clone()
        for place in range(terms - 1):
            operator, digit = operators[:, place], digits[:, place + 1]
            times = operator == 2
            total = torch.where(times, total, (total + product) % 5)
            product = torch.where(times, product * digit % 5, torch.where(operator == 0, digit, -digit % 5))
        expression = torch.empty(count, 2 * terms - 1, dtype=torch.long)
        expression[:, ::2], expression[:, 1::2] = digits, operators + 5
        return self._asked(expression, ((total + product) % 5).unsqueeze(1))


@register("reverse_string")
class ReverseString(_BinaryTask):
    """Repeat a string from its end. Length: the string's."""

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        string = self._strings(count, length, generator)
        return self._asked(string, string.flip(1))


@register("duplicate_string")
class DuplicateString(_BinaryTask):
    """Repeat a string twice. Length: the string's."""

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        string = self._strings(count, length, generator)
        return self._asked(string, torch.cat([string, string], dim=1))


@register("odds_first")
class OddsFirst(_BinaryTask):
    """Repeat the symbols at the first, third, fifth, ... place, then those at the second, fourth, ... Length: the string's."""

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        string = self._strings(count, length, generator)
        return self._asked(string, torch.cat([string[:, ::2], string[:, 1::2]], dim=1))


@register("missing_duplicate")
class MissingDuplicate(_ChomskyTask):
    """Find the one masked symbol in a string repeated twice. Length: of both copies, rounded down to an even number."""

    vocabulary = ("a", "b", "#", "?", "pad")
    splits = _from(2)

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        half = length // 2
        if half < 1:
            raise ValueError(f"missing_duplicate: needs a length of at least 2, got {length}")
        string = torch.randint(2, (count, half), generator=generator).repeat(1, 2)
        place = torch.randint(2 * half, (count, 1), generator=generator)
        answer = string.gather(1, place)
        return self._asked(string.scatter(1, place, 2), answer)


@register("stack_manipulation")
class StackManipulation(_ChomskyTask):
    """Push to and pop from a stack, and list its content from the top. Length: symbols on the stack at first, plus actions.

    At least one symbol is on the stack at first. The answer has one token more than the input: the stack from its
    top, then ``.`` to the end. A pop from an empty stack does nothing.
    """

    vocabulary = ("a", "b", "pop", "push a", "push b", ".", "?", "pad")

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        symbols = torch.randint(2, (count, length), generator=generator)
        actions = torch.randint(2, 5, (count, length), generator=generator)
        at_first = torch.randint(1, length + 1, (count, 1), generator=generator)
        prompt = torch.where(torch.arange(length) < at_first, symbols, actions)
        answer = torch.full((count, length + 1), self.vocabulary.index("."))
        for row, tokens in enumerate(prompt.tolist()):
            stack: list[int] = []
            for token in tokens:
                if token == 2:
                    stack = stack[:-1]
                else:
                    stack.append(token if token < 2 else token - 3)
            answer[row, : len(stack)] = torch.tensor(stack[::-1], dtype=torch.long)
        return self._asked(prompt, answer)


@register("binary_addition")
class BinaryAddition(_ChomskyTask):
    """Add two binary numbers. Length: of both numbers and the plus sign.

    Numbers begin with the least significant digit and may end with zeros. The answer is as long as the input: the digits of the
    sum up to its last 1, then ``.``.
    """

    vocabulary = ("0", "1", "+", ".", "?", "pad")
    splits = _from(3)

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        if length < 3:
            raise ValueError(f"binary_addition: needs a length of at least 3, got {length}")
        sizes = torch.randint(1, length - 1, (count,), generator=generator).tolist()
        prompt = torch.randint(2, (count, length), generator=generator)
        answer = torch.full((count, length), self.vocabulary.index("."))
        for row, size in enumerate(sizes):
            prompt[row, size] = 2
            bits = prompt[row].tolist()
            total = _number(bits[:size]) + _number(bits[size + 1 :])
            digits = [int(bit) for bit in reversed(f"{total:b}")]
            answer[row, : len(digits)] = torch.tensor(digits)
        return self._asked(prompt, answer)


def _number(bits: list[int]) -> int:
    return sum(bit << place for place, bit in enumerate(bits))


@register("bucket_sort")
class BucketSort(_ChomskyTask):
    """Sort symbols of an alphabet of five. Length: the symbols."""

    vocabulary = ("1", "2", "3", "4", "5", "?", "pad")

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        symbols = torch.randint(5, (count, length), generator=generator)
        return self._asked(symbols, symbols.sort(dim=1).values)
