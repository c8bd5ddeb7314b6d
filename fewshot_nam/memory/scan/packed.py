"""The scan of sequences that are packed one after another into one: each has its own memory.

Sequences of similar length (within a factor of two) are padded and scanned together, so that at most half of the work is
padding. Legend: ``N`` sequences, ``T`` tokens of all together, ``H`` heads, ``D_k`` and ``D_v`` the sizes of a key and a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from fewshot_nam.memory.scan.decay import AnyTokens


def lengths_of(cu_seqlens: Tensor | Sequence[int], batch: int, tokens: int) -> list[int]:
    """Return the lengths between the boundaries ``cu_seqlens``.

    Raises:
        ValueError: they are not boundaries of ``tokens`` tokens, or ``batch`` is not 1.
    """
    bounds: object = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else cu_seqlens
    bounds = list(bounds) if isinstance(bounds, Sequence) else None
    if bounds is None or not all(isinstance(bound, int) for bound in bounds):
        raise ValueError(f"memory_scan: cu_seqlens must be whole numbers in one dimension, got {cu_seqlens}")
    if batch != 1:
        raise ValueError(f"memory_scan: packed sequences (cu_seqlens) come in a batch of 1, got {batch}")
    lengths = [end - start for start, end in pairwise(bounds)]
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != tokens or min(lengths) < 0:
        raise ValueError(
            f"memory_scan: cu_seqlens must rise from 0 to the number of tokens, {tokens}, got {bounds[:3]} ... {bounds[-1:]}"
        )
    return lengths


def scan_each(
    scan: Callable[[AnyTokens, Tensor], tuple[Tensor, Tensor]], packed: AnyTokens, memory: Tensor, lengths: list[int]
) -> tuple[Tensor, Tensor]:
    """Return reads ``(1, T, H, D_v)`` and last memories ``(N, H, D_v, D_k)`` of N sequences packed into one.

    Args:
        scan: a scan of a batch of sequences of one length, with one initial memory each.
        packed: T tokens in a batch of 1.
        memory: ``(N, H, D_v, D_k)``, the initial memories.
        lengths: the N lengths, which add up to T.
    """
    starts = [0, *accumulate(lengths)]
    alike: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        alike.setdefault(max(length - 1, 0).bit_length(), []).append(number)
    reads, places, memories = [], [], []
    for numbers in alike.values():
        start, size = (torch.tensor([x[n] for n in numbers], device=memory.device)[:, None] for x in (starts, lengths))
        offset = torch.arange(int(size.max()), device=memory.device)
        present = offset < size
        place = torch.where(present, start + offset, 0)
        # Padding is filled with some other token, so all of it is set to 0, gates included.
        absent = ~present[..., None, None]
        read, left = scan(packed.each(lambda x: x[0, place].masked_fill(absent, 0.0)), memory[numbers])  # noqa: B023
        reads.append(read[present])
        places.append(place[present])
        memories.append(left)
    order = torch.argsort(torch.cat(places))
    back = torch.argsort(torch.tensor([n for numbers in alike.values() for n in numbers], device=memory.device))
    return torch.cat(reads)[order].unsqueeze(0), torch.cat(memories)[back]
