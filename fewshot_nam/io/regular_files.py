"""Opening a file that must be one: a pipe would be waited for without end, and a device read without end."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO


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
    return os.fdopen(opened, "rb")
