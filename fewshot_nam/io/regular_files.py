"""Opening a file that must be a regular one, not a pipe or a device, which never end; and which version of it is there."""

from __future__ import annotations

import io
import os
import stat
from typing import Any, BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Return a regular file, or one that a link leads to, open for reading bytes.

    Raises:
        OSError: it is missing, cannot be read, or is a directory, a pipe or a device.
    """
    # What waits for another program, such as a pipe, is then opened at once; for regular files it changes nothing.
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(f"{os.fspath(path)} is no regular file but a directory, pipe or device: name a file")
    return io.BufferedReader(_Present(opened, os.fspath(path)))


def file_version(file: str | os.PathLike[str] | int) -> tuple[int, int, int, int]:
    """Return what distinguishes one version of a file from another; a save replaces a file by a new one.

    Args:
        file: a path, or the descriptor of an open file. As long as a version is open, no other can have its number (inode).

    Raises:
        OSError: there is no such file.
    """
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class _Present(io.FileIO):
    """A file that says so where it has no content yet: some of the system look regular and make readers wait (/proc/kmsg)."""

    def __init__(self, opened: int, path: str) -> None:
        super().__init__(opened, "rb")
        self._path = path

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return how many bytes."""
        return self._checked(super().readinto(buffer))

    def readall(self) -> bytes:
        """Return all that is left."""
        return self._checked(super().readall())

    def _checked(self, found: Any) -> Any:
        if found is None:  # it would have to wait
            raise OSError(f"{self._path} has no content yet: name a file whose content is there")
        return found
