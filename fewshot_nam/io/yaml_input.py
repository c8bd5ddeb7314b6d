"""Reading of YAML that a user wrote: options and class lists. What could take more memory or time than its size is refused.

PyYAML builds whatever a file describes: nine lines of aliases can stand for 10^9 values, and deep nesting ends in a
``RecursionError``. Neither is needed for options, so both are refused before anything is built.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from fewshot_nam.io.regular_files import open_regular

MAX_BYTES = 16 << 20
MAX_DEPTH = 16
_SHOWN = 80  # characters of a value in a message


def load_yaml(text: str, source: object, loader: Any = None) -> Any:
    r"""Return what the YAML ``text`` describes.

    Args:
        text: the YAML.
        source: named in errors: a path, or what was given.
        loader: a PyYAML loader class; ``None`` for ``yaml.SafeLoader``.

    Raises:
        ValueError: not YAML, an alias, or nesting deeper than ``MAX_DEPTH``. The message is one line.

    Example:
        >>> load_yaml("ways: 3", "run.yaml")
        {'ways': 3}
        >>> load_yaml("a: &x [1]\nb: *x", "run.yaml")
        Traceback (most recent call last):
        ...
        ValueError: run.yaml line 2: aliases (*x) are not supported: write the value out
    """
    import yaml

    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = f"{source} line {event.start_mark.line + 1}"
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{line}: aliases (*{event.anchor}) are not supported: write the value out")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH:
                raise ValueError(f"{line}: lists and mappings are nested more than {MAX_DEPTH} deep")
        return yaml.load(text, Loader=loader or yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark is not None else ""
        raise ValueError(
            f"{source} is not YAML{place}: {getattr(error, 'problem', None) or 'bad characters'}"
        ) from None


def read_yaml(path: Path, loader: Any = None) -> Any:
    """Return what the YAML file describes; arguments and errors as ``load_yaml``.

    Raises:
        OSError: the file cannot be read.
        ValueError: as ``load_yaml``, or a file larger than ``MAX_BYTES``.
        UnicodeDecodeError: a file that is not text in UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 20} MiB, too large for options or lists of classes")
    return load_yaml(content.decode("utf-8"), path, loader)


def shown(value: object) -> str:
    """Return ``repr(value)`` for a message, cut where it is long.

    >>> shown([1, 2]), len(shown("x" * 10_000)) <= 80
    ('[1, 2]', True)
    """
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxtuple = 2, 4, 4, 4
    short.maxstring, short.maxother, short.maxlong = 60, 60, 40
    text = " ".join(short.repr(value).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
