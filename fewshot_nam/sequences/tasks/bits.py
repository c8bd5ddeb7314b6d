"""Tasks on rows of random bits: copy, priority sort and relational associative recall.

Source: Le, Tran and Venkatesh, "Self-Attentive Associative Memory" (ICML 2020), section 4, and the authors' code; copy and
priority sort are those of Graves et al. (2014). Published is the number of wrong bits of a sequence: ``(1 - token accuracy)``
times the bits of the answer.

Departures. Answer rows are marked. The authors train relational recall on 3 items of 2 to 5 rows, since two arguments are
swapped; here there are 2 to 5 items of 3 rows. Their query is the item at one position for a whole batch, never the last one;
here each sequence has its own, at any position. A row of priority sort has no unused channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, Split, splits_of
from fewshot_nam.sequences.tasks.vectors import VectorTask


class _BitTask(VectorTask):
    vocabulary = ("0", "1", "pad")

    def __init__(self, flags: int, bits: int) -> None:
        if bits < 1:
            raise ValueError(f"{type(self).__name__}: bits must be at least 1, got {bits}")
        super().__init__(bits + flags)
        self.bits = self.target_size = bits

    def _bits(self, *shape: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2, (*shape, self.bits), generator=generator)

    def _flag(self, count: int, flag: int) -> Tensor:
        row = torch.zeros(count, 1, self.features)
        row[:, :, self.bits + flag] = 1.0
        return row

    def _rows(self, bits: Tensor) -> Tensor:
        """Return bits ``(B, R, bits)`` as rows whose flags are 0."""
        return torch.nn.functional.pad(bits.float(), (0, self.features - self.bits))


@register("copy_bits")
class CopyBits(_BitTask):
    """Repeat rows of bits. Length: the rows.

    A sequence is a start flag, the rows, and an end flag.

    Args:
        bits: in a row.
    """

    splits = splits_of(Split((1, 20), 65536), Split((1, 20), 2048), Split((21, 30), 1024), Split((31, 40), 1024))

    def __init__(self, bits: int = 32) -> None:
        super().__init__(2, bits)

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        bits = self._bits(count, length, generator=generator)
        return self._asked(torch.cat([self._flag(count, 0), self._rows(bits), self._flag(count, 1)], dim=1), bits)


@register("priority_sort")
class PrioritySort(_BitTask):
    """List rows of bits by their priority, the highest first. Length: the rows given. The answer is the first four fifths.

    A row is its bits and a priority from -1 to 1. Four fifths are rounded up.

    Args:
        bits: in a row.
    """

    splits = splits_of(Split(20, 65536), Split(20, 2048), Split((21, 25), 1024), Split((26, 30), 1024))

    def __init__(self, bits: int = 32) -> None:
        super().__init__(1, bits)

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        bits = self._bits(count, length, generator=generator)
        priority = torch.rand(count, length, 1, generator=generator) * 2 - 1
        order = priority.argsort(dim=1, descending=True, stable=True)[:, : -(-4 * length // 5)]
        answer = bits.gather(1, order.expand(-1, -1, self.bits))
        return self._asked(torch.cat([bits.float(), priority], dim=2), answer)


@register("relational_recall")
class RelationalRecall(_BitTask):
    """Recall the item that is nearest to a given one, or farthest from it. Length: the items, at least 2.

    An item is an item flag and three rows of bits. After the items come a query flag, one of the items again, and a query
    flag. If the last bit of the query is 1, the answer is the farthest other item, else the nearest, by the number of bits
    that differ; among equals it is the item shown first.

    Args:
        bits: in a row.
        rows: of an item.

    Raises:
        ValueError: no bits or no rows.
    """

    splits = splits_of(Split((2, 5), 65536), Split((2, 5), 2048), Split((6, 8), 1024), Split((9, 12), 1024))

    def __init__(self, bits: int = 32, rows: int = 3) -> None:
        if rows < 1:
            raise ValueError(f"relational_recall: rows must be at least 1, got {rows}")
        super().__init__(2, bits)
        self.rows = rows

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        if length < 2:
            raise ValueError(f"relational_recall: needs at least 2 items, got {length}")
        items = self._bits(count, length, self.rows, generator=generator)
        place = torch.randint(length, (count,), generator=generator)
        each = torch.arange(count)
        query = items[each, place]
        differing = (items != query.unsqueeze(1)).sum(dim=(2, 3))
        farthest = query[:, -1, -1] == 1
        cost = torch.where(farthest.unsqueeze(1), -differing, differing)
        cost[each, place] = items[0].numel() + 1  # never the item itself
        answer = items[each, cost.argsort(dim=1, stable=True)[:, 0]]
        parts = [part for item in items.unbind(1) for part in (self._flag(count, 0), self._rows(item))]
        asks = self._flag(count, 1)
        return self._asked(torch.cat([*parts, asks, self._rows(query), asks], dim=1), answer)
