"""4-Dyck: close the open brackets of a prefix of a balanced string over four kinds of brackets.

Source: the authors' code of the NAM paper, May 2023. A random walk opens a random bracket with probability 0.7, always where
none is open, and closes the last one otherwise, until it has the length and the depth wanted.
"""

from __future__ import annotations

import torch

from fewshot_nam.sequences.tasks.registry import register
from fewshot_nam.sequences.tasks.task import Batch, SequenceTask, Split, answered, splits_of

_KINDS, _OPENS = 4, 0.7
_SEPARATOR, _BLANK = 8, 9


@register("dyck")
class Dyck(SequenceTask):
    """Close the open brackets of a string. Length: the brackets given.

    A sequence is the prefix, a separator and a ``?`` for every bracket that is open at its end: those are asked for,
    the last opened first. The depth at the end is drawn from ``depths``, and has the parity of the length.

    Args:
        depths: the least and the most brackets open at the end. ``ood_depth`` is tested with 9 to 12.
    """

    vocabulary = (*"[({<", *"])}>", "|", "?", "pad")
    splits = splits_of(Split((9, 31), 12800), Split((16, 31), 2048), Split((33, 63), 2048), Split((65, 96), 2048))

    def __init__(self, depths: tuple[int, int] = (2, 8)) -> None:
        if not 1 <= depths[0] <= depths[1]:
            raise ValueError(f"dyck: depths must be (least, most), both at least 1, got {depths}")
        self.depths = depths

    def _draw(self, count: int, length: int, generator: torch.Generator) -> Batch:
        least, most = self.depths
        # A string of even length has an even number of brackets open at its end.
        allowed = [depth for depth in range(least, min(most, length) + 1) if (length - depth) % 2 == 0]
        if not allowed:
            raise ValueError(f"dyck: no string of length {length} has {least} to {most} brackets open at its end")
        rows = []
        for _ in range(count):
            depth = allowed[int(torch.randint(len(allowed), (1,), generator=generator))]
            rows.append(_row(length, depth, generator))
        width = max(row.inputs.shape[1] for row in rows)
        return Batch(*(torch.cat(column) for column in zip(*(self._padded(row, width) for row in rows), strict=True)))


def _row(length: int, depth: int, generator: torch.Generator) -> Batch:
    """Return one sequence whose prefix has ``length`` brackets, ``depth`` of them open at the end."""
    draws = torch.rand(length, generator=generator).tolist()
    kinds = torch.randint(_KINDS, (length,), generator=generator).tolist()
    prefix: list[int] = []
    stack: list[int] = []
    for place in range(length):
        left = length - place
        must_open, must_close = len(stack) + left <= depth or not stack, len(stack) - left >= depth
        if must_open or (not must_close and draws[place] < _OPENS):
            stack.append(kinds[place])
            prefix.append(kinds[place])
        else:
            prefix.append(_KINDS + stack.pop())
    closing = torch.tensor([[_KINDS + kind for kind in reversed(stack)]])
    return answered(torch.tensor([[*prefix, _SEPARATOR]]), closing, _BLANK)
