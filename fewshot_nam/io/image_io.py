"""One image from a file: decoded whole and the right way up, or an error that names the file."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from importlib import import_module
from typing import Any

from PIL import Image, ImageOps

from fewshot_nam._deprecation import renamed_names
from fewshot_nam.io.image_headers import check_exif, check_header, check_sides
from fewshot_nam.io.regular_files import open_regular

__getattr__ = renamed_names(__name__, {"UnreadablePicture": "UnreadableImage", "read_picture": "read_image"})


_MOST_BYTES = 2**31  # more than the largest image takes that is decoded, whatever its format

# Those that Pillow, or pillow-heif, decodes by itself. For EPS Pillow runs Ghostscript, on a program that the image brings along.
_FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "WEBP",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "JPEG2000",
    "AVIF",
    "HEIF",
    "ICO",
    "TGA",
    "QOI",
)

# The first brand of an ISO base media file says what it holds.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")


class UnreadableImage(ValueError):
    """A file that can be read but is no image or only part of one, or a link that leads nowhere. The message names it."""


def leads_nowhere(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a link to a file that does not exist, or in a circle; ``False`` for a target out of reach."""
    if not os.path.islink(path):
        return False
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return False


def read_image(path: str | os.PathLike[str], most_pixels: int | None = None) -> Image.Image:
    """Return the image in ``path``, fully decoded, turned as its EXIF orientation says, its file closed.

    Of an animated image, the first frame is returned.

    Args:
        path: a file, or a link to one.
        most_pixels: a larger image is refused before it is decoded; ``None`` for Pillow's limit alone.

    Raises:
        OSError: the file is missing or cannot be read.
        UnreadableImage: its content is no image, is cut short or has too many pixels; or it is no regular file, or a link
            that leads nowhere.
    """
    return decoded(image_bytes(path), str(path), most_pixels)


def image_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return what is in an image file.

    Raises:
        OSError: the file is missing or cannot be read.
        UnreadableImage: it is no regular file, too large for an image, or a link that leads nowhere.
    """
    if leads_nowhere(path):
        raise UnreadableImage(f"{path}: a link that leads nowhere; mend or remove it")
    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for a writer
        raise UnreadableImage(f"{path}: not an image but a directory, pipe or device; name a file")
    # Read first and decode after: a disk that fails is not a bad image, and must never be skipped like one.
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            raise UnreadableImage(f"{path}: {size:,} bytes are too many for an image: at most {_MOST_BYTES:,}")
        return file.read()


def decoded(content: bytes, place: str, most_pixels: int | None = None) -> Image.Image:
    """Return the image that the bytes of an image file hold, as ``read_image`` does.

    Args:
        content: the whole file.
        place: where it comes from, for the error.
        most_pixels: as of ``read_image``.

    Raises:
        UnreadableImage: it is no image, is cut short or has too many pixels.
    """
    return upright(lambda: _opened(content, place), place, most_pixels)


def image_size(content: bytes, place: str) -> tuple[int, int]:
    """Return width and height of the image in the bytes of a file, by its header; nothing is decoded.

    Raises:
        UnreadableImage: it is no image.
    """
    try:
        return _opened(content, place).size
    except (MemoryError, UnreadableImage):
        raise
    except Exception as error:
        raise _unreadable(place, error) from error


def _opened(content: bytes, place: str) -> Image.Image:
    """Return the image in the bytes of a file as Pillow opens it, not decoded yet; any error of Pillow's where it is none."""
    brand = content[8:12] if content[4:8] == b"ftyp" else b""
    if brand in _HEIC_BRANDS:
        _register_heic(place)
    if brand in _AVIF_BRANDS and ".avif" not in Image.registered_extensions():
        raise UnreadableImage(
            f"{place}: an AVIF image, which this version of Pillow cannot read: update Pillow to 11.3 or later"
        )
    check_header(content)
    Image.init()
    return Image.open(io.BytesIO(content), formats=[name for name in _FORMATS if name in Image.OPEN])


def _register_heic(place: str) -> None:
    """Let Pillow open HEIC images; ``UnreadableImage`` where the package for it is not installed."""
    try:
        pillow_heif: Any = import_module("pillow_heif")
    except ModuleNotFoundError as error:
        raise UnreadableImage(
            f"{place}: a HEIC image, and the package that reads them is not installed: pip install pillow-heif"
        ) from error
    pillow_heif.register_heif_opener()


def upright(opened: Callable[[], Image.Image], place: str, most_pixels: int | None = None) -> Image.Image:
    """Return the image that ``opened`` gives, fully decoded and turned as its EXIF orientation says.

    Args:
        opened: returns an image, which may still be undecoded.
        place: where it comes from, for the error.
        most_pixels: as of ``read_image``.

    Raises:
        UnreadableImage: it is no image, is cut short, has no pixels or too many, is too narrow, or its EXIF block claims far more
            bytes than it has.
    """
    try:
        image = opened()
        if not all(image.size):
            raise ValueError(f"{image.width}x{image.height} pixels")
        if most_pixels is not None and image.width * image.height > most_pixels:
            raise UnreadableImage(
                f"{place}: {image.width} x {image.height} pixels are too many: at most {most_pixels:,}"
            )
        try:
            check_sides(*image.size)
        except ValueError as error:
            raise UnreadableImage(f"{place}: {error}") from None
        image.load()
        _check_exif(image)
    except (MemoryError, UnreadableImage):
        raise
    except Exception as error:  # each of Pillow's decoders raises errors of its own over broken content
        raise _unreadable(place, error) from error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # an EXIF block that cannot be read gives no orientation: the image stays as it is stored
        return image


def _unreadable(place: str, error: Exception) -> UnreadableImage:
    reason = "" if "BytesIO" in str(error) else f" ({' '.join(str(error).split())})"
    return UnreadableImage(f"{place}: not an image, or cut short{reason}; mend or remove the file")


def _check_exif(image: Image.Image) -> None:
    """Check the EXIF block of an opened image, wherever its format keeps it; ``ValueError`` for one that may not be read."""
    block = image.info.get("exif")
    if isinstance(block, bytes):
        check_exif(block)
    text = image.info.get("Raw profile type exif")
    if block is None and isinstance(text, str):
        try:
            block = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:  # it gives no orientation
            return
        check_exif(block)
