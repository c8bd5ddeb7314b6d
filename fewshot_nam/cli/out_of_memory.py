"""Telling that memory ran out from other errors."""

from __future__ import annotations

NOT_ENOUGH = "there is not enough memory"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out; PyTorch has ``RuntimeError`` for it.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not fit"))
        (True, False)
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
        True
    """
    text = str(error)
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in text or "out of memory" in text
