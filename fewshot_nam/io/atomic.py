"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
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
    # The same directory, because a rename is one step only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
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
