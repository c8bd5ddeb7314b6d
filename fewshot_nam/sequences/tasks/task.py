"""What every sequence task offers: batches of tokens, targets and masks, and named splits that are fixed and seeded.

Inputs are tokens, or vectors: rows of ``F`` numbers. The last number is 1 in padding. The second to last is 1 in an answer row,
where an answer is predicted and all other numbers are 0. An answer is a word of the vocabulary, or ``A`` words.

Legend: ``B`` sequences, ``T`` tokens or rows of the longest one, ``F`` features of a row, ``A`` answers at a position.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Lengths = int | tuple[int, int]
"""One length, or the shortest and the longest of lengths that are drawn uniformly."""


class Batch(NamedTuple):
    """Sequences of a task.

    Attributes:
        inputs: ``(B, T)`` long; of a task with vectors ``(B, T, F)`` float.
        targets: ``(B, T)`` long: the answer where ``mask`` is True, the input elsewhere (padding where inputs are vectors). Of a
            task with several answers at a position ``(B, T, A)`` long.
        mask: ``(B, T)`` bool: True where a prediction counts.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor


class Split(NamedTuple):
    """A fixed set of sequences: their lengths, and how many there are."""

    lengths: Lengths
    size: int


def splits_of(train: Split, id: Split, ood_easy: Split, ood_hard: Split) -> Mapping[str, Split]:
    """Return splits by their names: lengths of training, tests at those lengths, and tests at two ranges of longer ones."""
    return {"train": train, "id": id, "ood_easy": ood_easy, "ood_hard": ood_hard}


class SequenceTask:
    """A task that maps a sequence of tokens to the tokens that belong at some of its positions.

    A subclass gives ``vocabulary``, ``splits`` and ``_draw``. Sequences of a batch are filled up at the end with ``pad``.

    Attributes:
        name: as in ``tasks.create``.
        vocabulary: what each token stands for; the last is the padding.
        splits: the lengths and sizes of ``train`` and of the test sets. ``train`` is only the range of lengths that training
            draws from without end; its size says how many sequences the papers call an epoch.
        input_size: ``F``, or None where inputs are tokens.
        target_size: ``A``, or None where there is one answer at a position.
        causal: whether the answer at a position is the input at the next one, so that only models that read forward may answer.
        given: whether its sequences are those of files: ``sample`` draws those of training, and no others can be made.
    """

    name: str = ""
    vocabulary: Sequence[str] = ()
    splits: Mapping[str, Split]
    input_size: int | None = None
    target_size: int | None = None
    causal: bool = False
    given: bool = False

    @property
    def pad(self) -> int:
        """The token that fills sequences up."""
        return len(self.vocabulary) - 1

    def encode(self, text: str) -> Tensor:
        """Return the tokens ``(T,)`` of the begin of a text.

        Raises:
            ValueError: the task is not about text.
        """
        raise ValueError(f"{self.name} is no text")

    def decode(self, tokens: Tensor) -> str:
        """Return the text of tokens ``(T,)``.

        Raises:
            ValueError: the task is not about text.
        """
        raise ValueError(f"{self.name} is no text")

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        """Return ``count`` sequences of one length, in the order of the generator."""
        raise NotImplementedError

    def sample(self, batch_size: int, generator: torch.Generator, lengths: Lengths | None = None) -> Batch:
        """Return a batch of new sequences.

        Args:
            batch_size: ``B``, at least 1.
            generator: on the CPU; the same state gives the same batch on every machine.
            lengths: one length for all, or the shortest and the longest; ``None`` for those of ``train``. What is counted is said
                in the docstring of the task.

        Raises:
            ValueError: a batch size below 1, or lengths that the task does not have.
        """
        if batch_size < 1:
            raise ValueError(f"{self.name}: batch_size must be at least 1, got {batch_size}")
        shortest, longest = self._range(self.splits["train"].lengths if lengths is None else lengths)
        drawn = torch.randint(shortest, longest + 1, (batch_size,), generator=generator)
        parts = [self._draw(int(count), int(length), generator) for length, count in _counts(drawn)]
        width = max(part.inputs.shape[1] for part in parts)
        merged = Batch(
            *(torch.cat(column) for column in zip(*(self._padded(part, width) for part in parts), strict=True))
        )
        order = torch.empty_like(drawn)
        order[drawn.argsort(stable=True)] = torch.arange(
            batch_size
        )  # the sequences stand by length: put each in its row
        return Batch(*(tensor[order] for tensor in merged))

    def split(self, name: str, size: int | None = None) -> Batch:
        """Return the fixed sequences of a test set.

        Args:
            name: one of ``splits`` but ``train``.
            size: how many, or ``None`` for all; fewer are the first of all.

        Raises:
            ValueError: there is no such test set, or it is smaller.
        """
        tests = [known for known in self.splits if known != "train"]
        if name not in tests:
            raise ValueError(f"{self.name}: no test set {name!r}: there are {', '.join(tests)}")
        lengths, all_of_them = self.splits[name]
        if size is not None and not 1 <= size <= all_of_them:
            raise ValueError(f"{self.name}: the test set {name} has {all_of_them} sequences, {size} are asked for")
        batch = self.sample(all_of_them, self._generator(name), lengths)
        return Batch(*(tensor[:size] for tensor in batch))

    def examples(self, length: int, size: int = 1000) -> Batch:
        """Return ``size`` fixed sequences of one exact length.

        Raises:
            ValueError: the task cannot generate that length, or its sequences are given: then ``sample`` draws those of training.
        """
        if self.given:
            raise ValueError(
                f"{self.name}: its sequences are given, and tests of one length are not: take its test sets"
            )
        return self.sample(size, self._generator(f"length {length}"), length)

    def stream(self, batch_size: int, seed: int = 0, lengths: Lengths | None = None) -> Iterator[Batch]:
        """Yield batches of new sequences without end, the same for the same seed."""
        generator = self._generator(f"stream {seed}")
        while True:
            yield self.sample(batch_size, generator, lengths)

    def _generator(self, purpose: str) -> torch.Generator:
        # A checksum and not hash(), which differs from process to process.
        return torch.Generator().manual_seed(zlib.crc32(f"{self.name} {purpose}".encode()))

    def _range(self, lengths: Lengths) -> tuple[int, int]:
        shortest, longest = (lengths, lengths) if isinstance(lengths, int) else lengths
        if not 1 <= shortest <= longest:
            raise ValueError(f"{self.name}: lengths must be one of at least 1, or (shortest, longest), got {lengths}")
        return shortest, longest

    def _padded(self, batch: Batch, width: int) -> Batch:
        extra = (0, width - batch.inputs.shape[1])
        fill = torch.nn.functional.pad
        answers = extra if self.target_size is None else (0, 0, *extra)
        targets, mask = fill(batch.targets, answers, value=self.pad), fill(batch.mask, extra, value=False)
        if self.input_size is None:
            return Batch(fill(batch.inputs, extra, value=self.pad), targets, mask)
        inputs = fill(batch.inputs, (0, 0, *extra))
        inputs[:, width - extra[1] :, -1] = 1.0
        return Batch(inputs, targets, mask)


def answered(prompt: Tensor, answer: Tensor, blank: int, end: Tensor | None = None) -> Batch:
    """Return sequences that ask with ``blank`` for every token of the answer.

    Args:
        prompt: ``(B, P)``, what is given.
        answer: ``(B, A)``, what is asked for.
        blank: the token that stands in the input for a token of the answer.
        end: ``(B, E)`` tokens behind the answer; ``None`` for none.
    """
    tail = prompt[:, :0] if end is None else end
    inputs = torch.cat([prompt, torch.full_like(answer, blank), tail], dim=1)
    targets = torch.cat([prompt, answer, tail], dim=1)
    mask = torch.zeros_like(inputs, dtype=torch.bool)
    mask[:, prompt.shape[1] : prompt.shape[1] + answer.shape[1]] = True
    return Batch(inputs, targets, mask)


def _counts(lengths: Tensor) -> list[tuple[Tensor, Tensor]]:
    values, counts = torch.unique(lengths, return_counts=True)
    return list(zip(values, counts, strict=True))
