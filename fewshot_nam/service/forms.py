"""Forms of files, as the page and the server take them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException

_LONGEST_BOUNDARY = 70  # bytes, as of RFC 2046


def boundary_of(content_type: bytes | str) -> bytes | None:
    """Return what separates the parts of a form, ``None`` where nothing does.

    Raises:
        MultiPartException: names and values are not in UTF-8. Starlette and Gradio would decode them with whatever codec is named:
            Punycode takes time with the square of the length, in which nobody else is answered.
    """
    options = parse_options_header(content_type)[1]
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise MultiPartException("the names in a form are in UTF-8")
    boundary = options.get(b"boundary")
    if boundary is not None and not 1 <= len(boundary) <= _LONGEST_BOUNDARY:
        raise MultiPartException(f"what separates the parts of a form has up to {_LONGEST_BOUNDARY} bytes")
    return boundary


def few_parts(receive: Callable[[], Awaitable[Any]], boundary: bytes, most: int) -> Callable[[], Awaitable[Any]]:
    """Return ``receive`` of a form, with ``MultiPartException`` at what begins more than ``most`` parts, or looks as if it did.

    A parser goes through data that hold the boundary byte by byte, while nobody else is answered.
    """
    mark, found = b"\r\n--" + boundary, 0

    async def bounded() -> Any:
        nonlocal found
        message = await receive()
        found += message.get("body", b"").count(mark)
        if found > most:
            raise MultiPartException(f"a form has up to {most:,} parts")
        return message

    return bounded
