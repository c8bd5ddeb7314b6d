"""The program that ``DecodingProcesses`` runs: it decodes images that come on its standard input, one after the other.

A request and a reply are each a line of JSON, and the bytes that it counts under ``"bytes"``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import sys
import warnings
from typing import Any

from PIL import Image

from fewshot_nam.io.image_io import UnreadableImage, decoded, image_size


def main(most_memory: int) -> None:
    """Answer requests until there are none; ``most_memory`` is the most bytes that decoding may take."""
    _limit_memory(most_memory)
    warnings.simplefilter("ignore")  # they would go to the server's log
    # Of the whole group: the server ends, and this when it needs it no more.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a decoder prints is no reply
    replies.write(b"{}\n")
    replies.flush()
    for line in requests:
        asked = json.loads(line)
        content = requests.read(asked["bytes"])
        _limit_time(asked["seconds"])
        try:
            found, pixels = _answer(asked, content)
        except MemoryError:
            found, pixels = (
                {"error": f"{asked['place']}: not an image, or one that takes too much memory to decode"},
                b"",
            )
        except UnreadableImage as error:
            found, pixels = {"error": str(error)}, b""
        _limit_time(0.0)
        replies.write(json.dumps(found | {"bytes": len(pixels)}).encode() + b"\n")
        replies.write(pixels)
        replies.flush()
        del content, found, pixels  # it may be long until the next


def _answer(asked: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    if asked["what"] == "size":
        return {"size": image_size(content, asked["place"])}, b""
    image = decoded(content, asked["place"], asked["most_pixels"])
    found: dict[str, Any] = {"mode": image.mode, "size": image.size}
    if image.palette is not None:
        found["palette"] = [image.palette.mode, base64.b64encode(bytes(image.palette.palette)).decode()]
    transparency = image.info.get("transparency")
    if transparency is not None:
        raw = isinstance(transparency, bytes)
        found["transparency"] = base64.b64encode(transparency).decode() if raw else transparency
        found["raw"] = raw
    return found, image.tobytes()


def as_image(found: dict[str, Any], pixels: bytes) -> Image.Image:
    """Return the image of a reply.

    Raises:
        ValueError: the reply is none.
    """
    image = Image.frombytes(str(found["mode"]), (int(found["size"][0]), int(found["size"][1])), pixels)
    if "palette" in found:
        mode, palette = found["palette"]
        image.putpalette(base64.b64decode(palette), mode)
    if "transparency" in found:
        given = found["transparency"]
        image.info["transparency"] = (
            base64.b64decode(given) if found["raw"] else tuple(given) if isinstance(given, list) else given
        )
    return image


def _limit_time(seconds: float) -> None:
    """End this process once it has worked for so long, whatever decoder it is in; 0 for no limit. Not on Windows."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(most: int) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows; a smaller limit may be set already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, most))
