"""The key tape of a NAM Turing Machine, which stores at which cell a key was written, so that a head can jump there.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422), the NAM Turing Machine. With ``K (L x c)``, a row for each cell,
unit keys ``k``, unit queries ``q`` and the write head ``w``, a step is one of

    by position    K <- K + w (p_w k - p_e K^T w)^T        erases the old key at the head's position (paper, code of 2022)
    by key         K <- K + (p_w w - p_e K k) k^T          erases the old position of the same key (code of 2023)

followed by the read ``K q``. The next heads depend on it, so a sequence needs a loop over time; ``BlockedKeyTape`` needs products
with the whole tape only once in several steps. The tape is stored as ``K^T``, ``(B, tapes, c, L)``, a column for each cell.

Legend: ``B`` sequences, ``T`` steps, ``L`` cells of a tape, ``c`` width of a cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_nam.memory.primitives import write

_BLOCK = 8


class KeyControls(NamedTuple):
    """The inputs of the key tape for a sequence."""

    keys: Tensor
    """``(B, T, tapes, c)`` of unit length."""
    queries: Tensor
    """``(B, T, tapes, c)`` of unit length."""
    p_write: Tensor
    """``(B, T, tapes)``."""
    p_erase: Tensor
    """``(B, T, tapes)``."""


def write_key(key_tape: Tensor, key: Tensor, head: Tensor, p_write: Tensor, p_erase: Tensor, key_erase: str) -> Tensor:
    """Return the key tape with ``key`` written at the position of the write head.

    Args:
        key_tape: ``(B, tapes, c, L)``.
        key: ``(B, tapes, c)``.
        head: ``(B, tapes, L)``, used as given.
        p_write: ``(B, tapes)``.
        p_erase: ``(B, tapes)``.
        key_erase: ``"position"`` or ``"key"``: what the write erases.

    Returns:
        ``(B, tapes, c, L)``.
    """
    if key_erase == "position":
        return write(key_tape, head, key, p_write, p_erase)
    return write(key_tape.mT, key, head, p_write, p_erase).mT


def steps_of(x: Tensor) -> tuple[Tensor, ...]:
    """Return ``x (B, T, tapes, ...)`` as ``T`` tensors ``(B tapes, ...)``.

    ``unbind``, since the gradient of each ``x[:, t]`` would be a whole ``x`` of zeros.
    """
    return x.transpose(0, 1).flatten(1, 2).unbind(0)


class BlockedKeyTape:
    """``write_key`` and ``K q`` step by step, with one product with the whole tape for each block of steps.

    Within a block the tape is its value at the start of the block plus a sum of outer products of the steps so far,
    ``K^T + sum_s a_s b_s^T``, and a step needs only a few products with these. This is the chunk form of the memory scan, for heads
    that are not known in advance.

    Args:
        key_tape: ``(B, tapes, c, L)`` before the first step.
        controls: the controls of all steps.
        key_erase: ``"position"`` or ``"key"``.
    """

    def __init__(self, key_tape: Tensor, controls: KeyControls, key_erase: str) -> None:
        self._shape = key_tape.shape
        self._tape = key_tape.flatten(0, 1)
        self._by_key = key_erase == "key"
        self._keys = steps_of(controls.keys.unsqueeze(-2))
        self._queries = steps_of(controls.queries.unsqueeze(-2))
        self._p_write = steps_of(controls.p_write[..., None, None])
        self._p_erase = steps_of(controls.p_erase[..., None, None])
        self._columns: list[Tensor] = []  # a_s, (B tapes, 1, c)
        self._rows: Tensor | None = None  # b_s, (B tapes, steps so far, L)
        self._t = 0

    def step(self, head: Tensor) -> Tensor:
        """Write the key of this step at ``head (B tapes, 1, L)`` and return ``K q`` of its query, in the same shape."""
        if len(self._columns) == _BLOCK:
            self._tape = self._now()
            self._columns, self._rows = [], None
        place = len(self._columns)
        if place == 0:
            self._enter_block()
        p_write, p_erase = self._p_write[self._t], self._p_erase[self._t]
        self._t += 1
        write_and_read = self._write_by_key if self._by_key else self._write_by_position
        return write_and_read(place, head, p_write, p_erase)

    def query(self) -> Tensor:
        """Return the query of the last step, ``(B, tapes, c)``."""
        return self._queries[self._t - 1].view(self._shape[:-1])

    def tape(self) -> Tensor:
        """Return the current key tape, ``(B, tapes, c, L)``."""
        return self._now().view(self._shape)

    def _now(self) -> Tensor:
        if self._rows is None:
            return self._tape
        return torch.baddbmm(self._tape, torch.cat(self._columns, dim=1).mT, self._rows)

    def _enter_block(self) -> None:
        keys = self._keys[self._t : self._t + _BLOCK]
        queries = self._queries[self._t : self._t + _BLOCK]
        self._block_keys, self._block_queries = keys, queries
        if self._by_key:
            pairs = torch.cat([x for pair in zip(keys, queries, strict=True) for x in pair], dim=1)
            self._found = torch.bmm(pairs, self._tape).split(2, dim=1)  # type: ignore[no-untyped-call]
            self._overlaps = torch.bmm(pairs, torch.cat(keys, dim=1).mT).split(2, dim=1)  # type: ignore[no-untyped-call]
        else:
            self._found = torch.bmm(torch.cat(queries, dim=1), self._tape).split(1, dim=1)  # type: ignore[no-untyped-call]

    def _write_by_key(self, place: int, head: Tensor, p_write: Tensor, p_erase: Tensor) -> Tensor:
        found, overlaps = self._found[place], self._overlaps[place]
        if self._rows is not None:
            found = torch.baddbmm(found, overlaps[..., :place], self._rows)
        held, read_out = found.chunk(2, dim=1)
        update = p_write * head - p_erase * held
        self._columns.append(self._block_keys[place])
        self._rows = update if self._rows is None else torch.cat([self._rows, update], dim=1)
        return torch.addcmul(read_out, overlaps[:, 1:, place : place + 1], update)

    def _write_by_position(self, place: int, head: Tensor, p_write: Tensor, p_erase: Tensor) -> Tensor:
        held = torch.bmm(head, self._tape.mT)
        if self._rows is not None:
            held = torch.baddbmm(held, torch.bmm(head, self._rows.mT), torch.cat(self._columns, dim=1))
        self._columns.append(p_write * self._block_keys[place] - p_erase * held)
        self._rows = head if self._rows is None else torch.cat([self._rows, head], dim=1)
        overlaps = torch.bmm(self._block_queries[place], torch.cat(self._columns, dim=1).mT)
        return torch.baddbmm(self._found[place], overlaps, self._rows)
