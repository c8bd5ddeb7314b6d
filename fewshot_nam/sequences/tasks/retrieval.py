"""Retrieval among what was shown: the digit beside a letter, and the label of the N-th farthest vector.

Source: Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020), section 4 and the authors' code; associative
retrieval is that of Ba et al. (2016), N-th farthest that of Santoro et al. (2018).

Departure: the answer of N-th farthest is predicted in a row of its own behind the vectors (in the code, at the last vector).
"""

from __future__ import annotations

import torch

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, SequenceTask
from fewshot_nam.sequences.tasks.vectors import VectorTask, one_hot, random_labels, splits_up_to

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ASKS = 36


@register("associative_retrieval")
class AssociativeRetrieval(SequenceTask):
    """Recall the digit that stood behind a letter. Length: the pairs of a letter and a digit, at most 26.

    A sequence is the pairs, with different letters, then ``? ?`` and one of the letters, where its digit is the answer. What
    the paper calls a length of 30 are 14 pairs (31 tokens), and 50 are 24 pairs.

    Args:
        pairs: of training and of ``id``, from 1 to 24. More pairs, up to 26, are the other tests.

    Raises:
        ValueError: another number of pairs.
    """

    vocabulary = (*"0123456789", *_LETTERS, "?", "pad")

    def __init__(self, pairs: int = 14) -> None:
        if not 1 <= pairs <= 24:
            raise ValueError(f"associative_retrieval: pairs must be from 1 to 24, got {pairs}")
        self.splits = splits_up_to((pairs, pairs), len(_LETTERS))

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        if length > len(_LETTERS):
            raise ValueError(f"associative_retrieval: there are {len(_LETTERS)} letters for {length} pairs")
        letters = random_labels(count, length, len(_LETTERS), generator) + 10
        digits = torch.randint(10, (count, length), generator=generator)
        place = torch.randint(length, (count, 1), generator=generator)
        pairs = torch.stack([letters, digits], dim=2).flatten(1)
        asks = torch.full((count, 2), _ASKS)
        inputs = torch.cat([pairs, asks, letters.gather(1, place)], dim=1)
        targets = torch.cat([pairs, asks, digits.gather(1, place)], dim=1)
        mask = torch.zeros_like(inputs, dtype=torch.bool)
        mask[:, -1] = True
        return Batch(inputs, targets, mask)


@register("nth_farthest")
class NthFarthest(VectorTask):
    """Find the vector that is the n-th farthest from the vector with a label, and give its label. Length: the vectors.

    A row is a vector with numbers from -1 to 1, its label, and the question, which is the same in every row: ``n``, and the
    label of the vector to measure from. All but the vector are one-hot. ``n = 0`` is the farthest; the vector to measure from
    counts as the nearest.

    Args:
        vectors: the most vectors of a sequence, as many as there are labels. Training and ``id`` have this many; there are no
            longer sequences, as a label is an answer.
        dimensions: of a vector.

    Raises:
        ValueError: less than 2 vectors, or no dimension.
    """

    def __init__(self, vectors: int = 8, dimensions: int = 16) -> None:
        if vectors < 2 or dimensions < 1:
            raise ValueError(
                f"nth_farthest: needs at least 2 vectors and 1 dimension, got {vectors} vectors of {dimensions}"
            )
        super().__init__(dimensions + 3 * vectors)
        self.vectors, self.dimensions = vectors, dimensions
        self.vocabulary = (*map(str, range(vectors)), "pad")
        self.splits = splits_up_to((vectors, vectors), vectors)

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        if length > self.vectors:
            raise ValueError(f"nth_farthest: there are {self.vectors} labels for {length} vectors: pass vectors=")
        vectors = torch.rand(count, length, self.dimensions, generator=generator) * 2 - 1
        labels = random_labels(count, length, self.vectors, generator)
        rank = torch.randint(length, (count, 1), generator=generator)
        place = torch.randint(length, (count, 1), generator=generator)
        asked = vectors.gather(1, place.unsqueeze(2).expand(-1, -1, self.dimensions))
        distances = (vectors - asked).double().square().sum(dim=2)
        found = distances.argsort(dim=1, descending=True, stable=True).gather(1, rank)
        about = one_hot(torch.cat([rank, labels.gather(1, place)], dim=1), self.vectors).flatten(1)
        rows = [vectors, one_hot(labels, self.vectors), about.unsqueeze(1).expand(-1, length, -1)]
        return self._asked(torch.cat(rows, dim=2), labels.gather(1, found))
