"""One change of a memory's file at a time, by any process."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fewshot_nam.io.atomic import remove_abandoned

_LOCK_SECONDS = 300


def remove_leftovers(memory: str | os.PathLike[str]) -> None:
    """Remove what killed processes left beside a memory's file: unfinished files and a lock. What cannot be removed stays."""
    remove_abandoned(memory)
    lock = _lock_of(Path(memory))
    with contextlib.suppress(OSError):  # no right to
        if lock.exists() and (held := _try_lock(lock)) is not None:
            held()


@contextlib.contextmanager
def exclusive(path: Path, seconds: float | None = None, since: float | None = None) -> Iterator[None]:
    """Wait until no other process changes this memory: of two that read and then write, one would undo the other's change.

    The lock is a file beside the memory, which is removed at the end.

    Args:
        path: the memory's file.
        seconds: to wait, at most; ``None`` for five minutes.
        since: the time of ``time.monotonic`` from which they count; ``None`` for now.

    Raises:
        OSError: the directory is missing or cannot be written, or another process holds the lock for so long.
    """
    lock = _lock_of(path)
    if not os.access(lock.parent, os.W_OK):
        kind = PermissionError if lock.parent.is_dir() else FileNotFoundError
        raise kind(f"{path}: the directory {lock.parent} is missing or cannot be written")
    seconds = _LOCK_SECONDS if seconds is None else seconds
    until = (time.monotonic() if since is None else since) + seconds
    while (held := _try_lock(lock)) is None:
        if time.monotonic() > until:
            raise OSError(
                f"{path}: locked for {seconds:g} seconds: another command is changing it, as {lock.name} beside it says"
            )
        time.sleep(0.05)
    try:
        yield
    finally:
        held()


@contextlib.contextmanager
def taking_turns(lock: threading.Lock, path: Path) -> Iterator[None]:
    """Hold a lock among the threads of a process, and then ``exclusive``; for both together five minutes are waited at most.

    Raises:
        OSError: as ``exclusive``, or other threads hold the lock for so long.
    """
    began = time.monotonic()
    if not lock.acquire(timeout=_LOCK_SECONDS):
        raise OSError(f"{path}: other changes have been waiting for {_LOCK_SECONDS:g} seconds: try again later")
    try:
        with exclusive(path, since=began):
            yield
    finally:
        lock.release()


def _lock_of(path: Path) -> Path:
    path = Path(os.path.realpath(path))  # one lock, whatever links the file is named by
    return path.with_name(f".{path.name}.lock")


def _try_lock(lock: Path) -> Callable[[], None] | None:
    """Lock a file and return what removes and unlocks it; ``None`` where another process holds it.

    Raises:
        OSError: the file cannot be made.
    """
    if sys.platform == "win32":  # there the library removes the file itself
        from filelock import FileLock, Timeout

        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout:
            return None
        return held.release
    import fcntl

    file = _opened(lock)
    if file is None:
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(f"{lock} is no regular file: remove it")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed it since we opened it, and another process may hold a new one by now.
        ours, there = os.fstat(file), os.stat(lock)
        current = (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
    except (BlockingIOError, FileNotFoundError):
        current = False
    except OSError:
        os.close(file)
        raise
    if not current:
        os.close(file)
        return None

    def release() -> None:
        lock.unlink(missing_ok=True)  # while we hold it: afterwards it may be another's
        os.close(file)

    return release


def _opened(lock: Path) -> int | None:
    """Return the lock's file, open, made where there is none; ``None`` where another process makes or removes it meanwhile.

    That of another user who changes the same memory is opened for reading alone, which is enough to lock it on a local disk. NFS
    takes a lock for one of bytes, which is given for writing.
    """
    how = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # which ends the wait of a pipe, planted there
    try:
        return os.open(lock, how)
    except FileNotFoundError:
        pass
    except PermissionError:
        return os.open(lock, how & ~os.O_RDWR | os.O_RDONLY)
    try:
        file = os.open(lock, how | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    with contextlib.suppress(OSError):  # some file systems know no rights
        os.fchmod(file, os.fstat(file).st_mode & 0o777 | 0o444)  # whatever the umask is
    return file
