"""Which headers, bodies, paths and values the page's script sends: Gradio reads others too, and raises for what is not expected."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

LONGEST_TEXT = 10_000  # characters
_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes, as file systems have them
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HOST = re.compile(rb"([A-Za-z0-9_.-]{1,255}|\[[0-9A-Fa-f:.]{2,60}\])(?::([0-9]{1,5}))?")
_RANGE = re.compile(rb"bytes=[0-9]{1,18}-[0-9]{0,18}")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{0,30}")
STRANGE = "the values are not those of the page"
_META = {"_type": "gradio.FileData"}


def is_used(name: bytes, value: bytes) -> bool:
    """Return whether a header is passed on."""
    check = _HEADERS.get(name.lower())
    return check is not None and check(value)


def is_host(value: bytes) -> bool:
    """Return whether a value is a name or an address, with a port or without."""
    found = _HOST.fullmatch(value)
    if found is None or int(found[2] or 0) >= 2**16:
        return False
    name = found[1].decode()
    if name.startswith("[") or re.fullmatch("[0-9.]+", name):
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
    return True


def _are_hosts(value: bytes) -> bool:
    return all(is_host(one.strip()) for one in value.split(b","))


def _is_origin(value: bytes) -> bool:
    scheme, _, host = value.partition(b"://")
    return value == b"null" or (_SCHEME.fullmatch(scheme) is not None and is_host(host))


_ANY = [b"accept", b"accept-encoding", b"connection", b"content-length", b"content-type", b"transfer-encoding"]
_ANY += [b"if-modified-since", b"if-none-match", b"if-range", b"x-forwarded-proto"]
_HEADERS: dict[bytes, Callable[[bytes], bool]] = {
    **dict.fromkeys(_ANY, lambda _: True),
    b"host": is_host,
    b"x-forwarded-host": _are_hosts,
    b"origin": _is_origin,
    b"range": lambda value: _RANGE.fullmatch(value) is not None,
}


def read_json(body: bytes) -> Any:
    """Return what a body holds.

    Raises:
        ValueError: it is no JSON in UTF-8, is nested too deeply, or has what Gradio could not send back: numbers that are none or
            infinite, halves of letters.
    """
    try:
        found = json.loads(body.decode() or "{}", parse_constant=_no_number, parse_float=_number)
        if _SURROGATE.search(body):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("the body is nested too deeply") from error
    return found


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large")
    return number


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def is_long(path: str) -> bool:
    """Return whether no file could have such a path: the system would raise for it."""
    names = path.encode(errors="replace")
    return len(names) > _LONGEST_PATH or max(map(len, names.split(b"/"))) > _LONGEST_NAME


def wrong_value(values: object, components: Sequence[Any]) -> str | None:
    """Return why values are not such as the components have; ``None`` where they are."""
    if not isinstance(values, list) or len(values) != len(components):
        return STRANGE
    for component, value in zip(components, values, strict=True):
        kind = component.get_block_name()
        if kind in _CHECKS and not _CHECKS[kind](value, component):
            if kind == "slider":  # one can type there
                return f"{component.label}: give {component.minimum:g} to {component.maximum:g}"
            return STRANGE
    return None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def _is_number(value: object, slider: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and slider.minimum <= value <= slider.maximum


def is_click(value: object) -> bool:
    """Return whether a value is what a click on HTML sends."""
    return isinstance(value, dict) and is_short(value)


def is_short(value: object) -> bool:
    """Return whether a value is as short as what the page sends beside images."""
    return len(json.dumps(value)) <= LONGEST_TEXT


def _is_uploaded(value: object) -> bool:
    """Return whether a value names a file as the page does: Gradio raises for other types."""
    if not isinstance(value, dict) or not value.get("path"):
        return False
    return _is_file_data(value) and isinstance(value.get("path"), str) and "meta" in value  # a camera's image has none


def _is_image(value: object) -> bool:
    if not isinstance(value, dict) or not _is_file_data(value):
        return False
    return bool(value.get("path")) or (value.get("url") or "").startswith("data:")


def _is_file_data(value: dict[str, Any]) -> bool:
    texts = all(isinstance(value.get(name), str | None) for name in ("path", "url", "orig_name", "mime_type"))
    size = value.get("size")
    return (
        texts
        and (size is None or type(size) is int)
        and isinstance(value.get("is_stream", False), bool)
        and value.get("meta", _META) == _META
    )


_CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "textbox": lambda value, box: _is_text(value) or (value is None and not getattr(box, "visible", True)),
    "slider": _is_number,
    "image": lambda value, _: value is None or _is_image(value),
    "file": lambda value, _: value is None or (isinstance(value, list) and all(map(_is_uploaded, value))),
}
