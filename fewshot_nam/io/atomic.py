"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file that takes the place of ``path``, in one step, when the block ends without an error.

    The file is in a directory of its own beside ``path``, so that what a library writes beside the file on its way (safetensors
    does) is removed with it. What a killed process leaves is removed by the next save of ``path``, or by ``remove_abandoned``.

    Args:
        path: the file to write; its directory must exist. A symbolic link is followed. A file that is replaced keeps its
            owner, group and mode, as far as the user may give them; a group that it cannot keep is given no rights.

    Yields:
        The temporary file, there and empty. After an error it is removed and ``path`` is as it was.

    Raises:
        OSError: the directory is missing or cannot be written, something else than a file is there, such as a device, or the disk
            is full; it names ``path``.
    """
    given, path = Path(path), Path(os.path.realpath(path))
    if leads_nowhere(path):
        raise OSError(f"{given} is a link that leads to itself, and is not replaced by a file: choose another name")
    if given.exists() and not given.is_file():
        raise OSError(f"{given} is no regular file, and is not replaced by one: choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no directory {path.parent}")
    remove_abandoned(path)
    # Beside it, because a rename is one step only within one file system.
    directory = path.with_name(f".{path.name}.{machine_number()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary = directory / "unfinished.tmp"
    _own.add(directory.name)
    held = None
    try:
        directory.mkdir(0o700)
        for _ in range(100):  # for a moment, one who looks for what was left may hold it
            locked, held = _lock(directory)
            if not locked:
                break
            time.sleep(0.001)
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
        yield temporary
        # safetensors writes files for the owner alone. A new file follows the user's umask, and another keeps what its owner chose.
        with contextlib.suppress(FileNotFoundError):
            mode = _given_to_the_owner_of(path.stat(), temporary)
        os.chmod(temporary, mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _keep_entry(path)
    except OSError as error:
        # A write does not say of which file, and the temporary one says nothing to the user.
        if error.errno in _FULL and error.filename in (None, os.fspath(temporary), os.fspath(directory)):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        _own.discard(directory.name)
        if held is not None:
            os.close(held)


def _given_to_the_owner_of(replaced: os.stat_result, temporary: Path) -> int:
    """Give a file to the owner and group of the one that it replaces, where the user may; return the mode that it is to have."""
    mode = replaced.st_mode & 0o777
    if sys.platform == "win32" or _is_ours(replaced, temporary):
        return mode
    for owner in (replaced.st_uid, -1):  # only root may give files away; to a group of theirs, all may
        with contextlib.suppress(OSError):
            os.chown(temporary, owner, replaced.st_gid)
            return mode
    return mode & 0o707


def _is_ours(replaced: os.stat_result, temporary: Path) -> bool:
    made = temporary.stat()
    return (made.st_uid, made.st_gid) == (replaced.st_uid, replaced.st_gid)


def leads_nowhere(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a symbolic link that leads to itself."""
    return os.path.islink(os.path.realpath(path))


def remove_abandoned(path: str | os.PathLike[str]) -> None:
    """Remove what saves of ``path`` left that were killed; what cannot be removed stays.

    Who writes holds a lock on it. It is removed a minute after the lock is gone; at once where it names a process of this machine
    that is gone too; and, where the file system has no locks and the process cannot be seen from here, after a day.
    """
    path = Path(os.path.realpath(path))
    form = re.compile(re.escape(f".{path.name}.") + r"(?P<machine>[0-9a-f]{8})-(?P<process>\d{1,9})-[0-9a-f]{8}\.tmp")
    with contextlib.suppress(OSError):  # a directory that cannot be read
        for found in filter(None, map(form.fullmatch, os.listdir(path.parent))):
            with contextlib.suppress(OSError):  # another process may have removed it, or it is another user's
                left = path.with_name(found[0])
                if not _in_use(left, found["machine"], int(found["process"])):
                    if left.is_dir() and not left.is_symlink():
                        shutil.rmtree(left)
                    else:  # of a release that made a file there
                        left.unlink()


_own: set[str] = set()  # directories in which this process is writing now
_ABANDONED_SECONDS = 24 * 3600
_UNLOCKED_SECONDS = 60  # locks of some network file systems are seen by their own machine alone
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quotas


def machine_number() -> str:
    """Return eight digits for this machine: process numbers of others say nothing here."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _in_use(left: Path, machine: str, process: int) -> bool:
    """Return whether a process may still write there."""
    age = time.time() - left.lstat().st_mtime
    if age > _ABANDONED_SECONDS:
        return False
    locked, held = _lock(left)
    if held is not None:
        os.close(held)
        if age > _UNLOCKED_SECONDS:
            return False
    # On Windows there is no question of this kind: os.kill would end the process.
    if locked or machine != machine_number() or sys.platform == "win32":
        return True
    # In a container, processes get the numbers again that those before a restart had.
    return left.name in _own if process == os.getpid() else process_runs(process)


def _lock(directory: Path) -> tuple[bool, int | None]:
    """Lock a directory; return whether another holds it, and the open file whose end ends the lock, ``None`` for no lock.

    Containers that share a directory may have one host name, and processes of the same numbers; a lock tells them apart.
    """
    if sys.platform == "win32":
        return False, None
    import fcntl

    try:
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False, None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # also of file systems without locks
        os.close(opened)
        return isinstance(error, BlockingIOError), None
    return False, opened


def _keep_entry(path: Path) -> None:
    """Write the directory's entry of ``path`` to the disk, so that the file survives a loss of power too."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # some file systems have no such call
        opened = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def process_runs(process: int) -> bool:
    """Return whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, and is another user's
        return True
    return True
