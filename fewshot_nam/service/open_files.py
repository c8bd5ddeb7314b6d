"""How many files and connections this process may have open: a server that has reached the limit accepts no connection."""

from __future__ import annotations

import contextlib

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

_WANTED = 16_384
_WITHOUT_LIMIT = 4096


def raise_open_files() -> int:
    """Let this process open 16,384 files, or as many as the system allows; return how many."""
    if resource is None:
        return _WITHOUT_LIMIT
    soft, hard = (
        _WANTED if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if soft < min(_WANTED, hard):
        for most in (min(_WANTED, hard), 10_240):  # macOS says that there is no limit, and allows so many
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
                return most
    return soft
