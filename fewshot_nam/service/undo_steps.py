"""What a session was before its last changes."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from torch import Tensor

from fewshot_nam.heads import Head, Label

_STEPS = 20


class Before(NamedTuple):
    """A session before a change, for undo."""

    what: str
    head: Head
    thumbnails: dict[Label, list[bytes]]
    unknown: Tensor
    reloaded: bool = False
    """Whether the change was to read the file again."""
    file: tuple[int, int, int, int] | None = None
    """The version of the file that was known before that; ``None`` for no file."""


class UndoSteps:
    """The last steps, twenty at most: those that were added first are forgotten first."""

    def __init__(self) -> None:
        self._steps: deque[Before] = deque(maxlen=_STEPS)

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def last(self) -> Before | None:
        """The step that would be taken back; ``None`` for none. Other threads may add and take steps meanwhile."""
        try:
            return self._steps[-1]
        except IndexError:
            return None

    def add(self, step: Before, most: int) -> None:
        """Add a step, and forget the oldest until all hold ``most`` bytes; the new one stays."""
        self._steps.append(step)
        while len(self._steps) > 1 and self.bytes() > most:
            self._steps.popleft()

    def take(self) -> Before:
        """Return the last step, and forget it; ``IndexError`` for none."""
        return self._steps.pop()

    def bytes(self) -> int:
        """Return how much the steps hold together; a tensor that several share, as those of learned features, counts once."""
        tensors = [tensor for step in self._steps for tensor in (step.unknown, *step.head.buffers())]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
