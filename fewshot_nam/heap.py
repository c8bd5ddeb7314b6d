"""Memory that a process frees only to ask for it again: kept, where the C library would give it back each time.

A network on a CPU frees the activations of a batch and asks for as much at the next one. glibc hands blocks above 32 MiB back to
the operating system as soon as they are free, and gets new pages, all zeroed, one by one: MobileNetV2 on batches of 32 takes half
as long again by that (``scripts/benchmarks/extraction.py``, on a virtual machine). Results do not change.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

# From glibc's malloc.h, and malloc.c: where its thresholds end that it moves by itself.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_BY_ITSELF = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)
_KEPT = 1 << 30

_lock = threading.Lock()
_inside = 0


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory for what is asked for next, up to 1 GiB a block, and give it back at the end.

    For the whole process, which stays as large as it was at its largest; as a decorator too. May be entered again inside, and from
    several threads. Afterwards blocks above 32 MiB are given back when they are freed, as glibc does it in the long run by itself.
    Nothing happens without glibc, or where ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` or ``GLIBC_TUNABLES`` is set.
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


def _set_thresholds(libc: ctypes.CDLL, mmap: int, trim: int) -> None:
    libc.mallopt(_M_MMAP_THRESHOLD, mmap)
    libc.mallopt(_M_TRIM_THRESHOLD, trim)


def _libc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc and nobody has told it otherwise."""
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")):
        return None
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.mallopt and libc.malloc_trim and libc.gnu_get_libc_version else None
    except (AttributeError, OSError, TypeError):  # no such functions; and on Windows, no way to ask
        return None
