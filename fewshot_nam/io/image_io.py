"""One picture from a file: decoded whole and the right way up, or an error that names the file."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable

from PIL import Image, ImageOps


class UnreadablePicture(ValueError):
    """A file that can be read but is no picture or only part of one, or a link that leads nowhere. The message names it."""


def leads_nowhere(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a link to what is not there, or in a circle; not where its target only cannot be reached."""
    if not os.path.islink(path):
        return False
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return False


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Return the picture in ``path``, fully decoded, turned as its EXIF orientation says, its file closed.

    Of a picture that moves, it is the first frame.

    Raises:
        OSError: the file is missing or cannot be read.
        UnreadablePicture: its content is no picture or is cut short; or it is no file but a pipe, say, or a link that leads
            nowhere.
    """
    if leads_nowhere(path):
        raise UnreadablePicture(f"{path}: a link that leads nowhere; mend or remove it")
    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for a writer
        raise UnreadablePicture(f"{path}: not a picture but a directory, pipe or device; name a file")
    # Read first and decode after: a disk that fails is not a bad picture, and must never be skipped like one.
    with open(path, "rb") as file:
        content = file.read()
    return upright(lambda: Image.open(io.BytesIO(content)), str(path))


def upright(opened: Callable[[], Image.Image], place: str) -> Image.Image:
    """Return the picture that ``opened`` gives, fully decoded and turned as its EXIF orientation says.

    Args:
        opened: gives a picture, which may still be undecoded.
        place: where it comes from, for the error.

    Raises:
        UnreadablePicture: it is no picture, or cut short.
    """
    try:
        picture = opened()
        picture.load()
    except MemoryError:
        raise
    except Exception as error:  # each of Pillow's decoders raises what it likes over broken content
        reason = "" if "BytesIO" in str(error) else f" ({' '.join(str(error).split())})"
        raise UnreadablePicture(f"{place}: not a picture, or cut short{reason}; mend or remove the file") from error
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # an EXIF block that cannot be read gives no orientation: the picture stands as it is stored
        return picture
