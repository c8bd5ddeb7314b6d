"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that takes its place, in one step, when the block ends without an error.

    Args:
        path: the file to write; its directory must exist. A symbolic link is followed.

    Yields:
        The temporary file, there and empty. After an error it is removed and ``path`` is as it was.

    Raises:
        OSError: the directory is missing or cannot be written, or something else than a file is there, such as a device.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file, and is not replaced by one: choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no directory {path.parent}")
    _remove_abandoned(path)
    # The same directory, because a rename is one step only within one file system.
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with open(temporary, "xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        yield temporary
        os.chmod(
            temporary, mode
        )  # safetensors writes files for the owner alone; files in a shared cache follow the user's umask
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_ABANDONED_SECONDS = 24 * 3600  # a file of another machine, whose processes we cannot see


def _machine() -> str:
    """Return eight digits for this machine: process numbers of others say nothing here."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of saves of ``path`` that were killed."""
    form = re.compile(re.escape(f".{path.name}.") + r"(?P<machine>[0-9a-f]{8})-(?P<process>\d{1,9})-[0-9a-f]{8}\.tmp")
    for name in os.listdir(path.parent):
        found = form.fullmatch(name)
        if found is None:
            continue
        temporary = path.with_name(name)
        with contextlib.suppress(OSError):  # another process may have removed it, or it is another user's
            # On Windows there is no question of this kind: os.kill would end the process.
            if found["machine"] == _machine() and sys.platform != "win32":
                abandoned = not _runs(int(found["process"]))
            else:
                abandoned = time.time() - temporary.stat().st_mtime > _ABANDONED_SECONDS
            if abandoned:
                temporary.unlink()


def _runs(process: int) -> bool:
    """Return whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, and is another user's
        return True
    return True
