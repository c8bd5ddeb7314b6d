"""How the C library keeps freed memory: for the next allocation, and in how many heaps.

It would return large blocks to the operating system each time they are freed (``keep_freed_memory``).

A network on a CPU frees the activations of a batch and allocates as much for the next one. glibc returns blocks above 32 MiB to
the operating system at once, and then gets new, zeroed pages one by one. This makes MobileNetV2 on batches of 32 take 1.5 times
as long (``scripts/benchmarks/extraction.py``, on a virtual machine). Results do not change.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

# From glibc's malloc.h; and from malloc.c, the largest thresholds that glibc sets by itself.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MOST_BY_ITSELF = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)
_KEPT = 1 << 30

_lock = threading.Lock()
_inside = 0


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory for later allocations, up to 1 GiB a block, and return it to the operating system at the end.

    It applies to the whole process, whose memory stays at its peak until the end of the context. It is also a decorator, may be
    nested, and may be entered from several threads. Afterwards, blocks above 32 MiB are returned when they are freed, as glibc
    does by itself after some time.

    It does nothing without glibc, or if ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` or ``GLIBC_TUNABLES`` is set.

    Example:
        >>> import torch
        >>> with keep_freed_memory():
        ...     sums = [torch.ones(1000, 1000).sum().item() for _ in range(3)]
        >>> sums
        [1000000.0, 1000000.0, 1000000.0]
    """
    global _inside
    libc = _libc()
    if libc is None:
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            _set_thresholds(libc, mmap=_KEPT, trim=_KEPT)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set_thresholds(libc, mmap=_MOST_BY_ITSELF, trim=2 * _MOST_BY_ITSELF)
                libc.malloc_trim(0)


def few_heaps(most: int = 2) -> None:
    """Let threads share a few heaps, from now on and for the whole process; for servers that run for long.

    glibc gives threads heaps of their own, up to eight a core, and what is freed in one is not used in another: a server of many
    threads grew by 200 MiB over 40,000 requests before it stayed as it was, and by 50 with two heaps
    (``scripts/benchmarks/soak.py``). It does nothing without glibc, or if ``MALLOC_ARENA_MAX`` or ``GLIBC_TUNABLES`` is set.
    """
    libc = None if "MALLOC_ARENA_MAX" in os.environ else _libc()
    if libc is not None:
        libc.mallopt(_M_ARENA_MAX, most)


def _set_thresholds(libc: ctypes.CDLL, mmap: int, trim: int) -> None:
    libc.mallopt(_M_MMAP_THRESHOLD, mmap)
    libc.mallopt(_M_TRIM_THRESHOLD, trim)


def _libc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc and the user has not set its thresholds."""
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")):
        return None
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.mallopt and libc.malloc_trim and libc.gnu_get_libc_version else None
    except (AttributeError, OSError, TypeError):  # no such functions; on Windows, CDLL(None) fails
        return None
