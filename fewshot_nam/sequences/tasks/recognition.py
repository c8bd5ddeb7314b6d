"""Recognition: is a string in the language? Marked copy ``w # w`` and marked reversal ``w # w`` backwards.

Source: Butoi et al., "Training Neural Networks as Recognizers of Formal Languages" (ICLR 2025, FLaRe): train up to length 40,
test up to 500, accuracy of the decision. Half of the strings are in the language, a quarter are strings of the language
with one to three symbols changed, and a quarter are random strings; the suite also mixes near misses and random strings. All
lengths are odd, as in the language, so the length alone gives no hint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, SequenceTask, Split, answered, splits_of

_MARK, _NO, _YES, _BLANK = 2, 3, 4, 5


class _MarkedTask(SequenceTask):
    vocabulary = ("a", "b", "#", "no", "yes", "?", "pad")
    splits = splits_of(Split((1, 40), 10000), Split((1, 40), 1000), Split((41, 100), 1000), Split((101, 500), 1000))

    def _second(self, word: Tensor) -> Tensor:
        """Return what must follow the mark."""
        raise NotImplementedError

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        length -= (length + 1) % 2
        word = torch.randint(2, (count, length // 2), generator=generator)
        member = torch.cat([word, torch.full((count, 1), _MARK), self._second(word)], dim=1)
        kind = torch.randint(4, (count,), generator=generator)  # 0 and 1: in the language; 2: changed; 3: random
        changes = torch.randint(1, min(3, length) + 1, (count, 1), generator=generator)
        chosen = torch.rand(count, length, generator=generator).argsort(dim=1).argsort(dim=1) < changes
        shifted = (member + torch.randint(1, 3, (count, length), generator=generator)) % 3
        near = torch.where(chosen, shifted, member)
        chance = torch.randint(3, (count, length), generator=generator)
        pick = kind.unsqueeze(1)
        string = torch.where(pick == 3, chance, torch.where(pick == 2, near, member))
        answer = torch.where(self._contains(string), _YES, _NO).unsqueeze(1)
        return answered(string, answer, _BLANK)

    def _contains(self, strings: Tensor) -> Tensor:
        """Return for each string ``(B, T)`` whether it is in the language."""
        half = strings.shape[1] // 2
        first, mark, second = strings[:, :half], strings[:, half], strings[:, half + 1 :]
        words = (first < _MARK).all(dim=1) & (second < _MARK).all(dim=1)
        return words & (mark == _MARK) & (second == self._second(first)).all(dim=1)


@register("marked_copy")
class MarkedCopy(_MarkedTask):
    """Say whether a string is a word, a mark and the word again. Length: the string's, rounded down to an odd number."""

    def _second(self, word: Tensor) -> Tensor:
        return word


@register("marked_reversal")
class MarkedReversal(_MarkedTask):
    """Say whether a string is a word, a mark and the word backwards. Length: the string's, rounded down to an odd number."""

    def _second(self, word: Tensor) -> Tensor:
        return word.flip(1)
