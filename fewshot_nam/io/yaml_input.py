"""Reading of YAML that a user wrote: options and class lists. What could take more memory or time than its size is refused.

PyYAML builds whatever a file describes: nine lines of aliases can stand for 10^9 values, and deep nesting ends in a
``RecursionError``. Neither is needed for options, so both are refused before anything is built. Numbers in base 60
(``1:30`` for 90), whose reading takes quadratic time, are text here, and integers have at most 64 bits: a dictionary of
larger ones with equal hashes takes quadratic time too. ``010`` is refused: YAML 1.1 reads 8, and people read 10.
"""

from __future__ import annotations

import functools
import re
import reprlib
from pathlib import Path
from typing import Any, ClassVar

from fewshot_nam.io.regular_files import open_regular

MAX_BYTES = 4 << 20
MAX_DEPTH = 16
MAX_VALUES = (
    250_000  # 50,000 names of classes take 0.3 s, and these 1.5 s; ten times as long where PyYAML lacks its C parser
)
_MAX_DIRECTIVES = 100  # the C parser compares each with all before it
_SHOWN = 80  # characters of a value in a message

_TAG = "tag:yaml.org,2002:"
# As PyYAML has them, without base 60.
_NUMBERS = {
    f"{_TAG}int": re.compile(r"[-+]?(?:0b[0-1_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    f"{_TAG}float": re.compile(
        r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}
_MAX_DIGITS = 80  # characters of a number


@functools.cache
def safe_loader() -> Any:
    """Return the PyYAML loader class that ``load_yaml`` uses: safe, in C where PyYAML has that, and fast for all input."""
    import yaml

    class Loader(_parser()):  # type: ignore[misc]
        yaml_implicit_resolvers: ClassVar[dict[str | None, Any]] = {
            first: [(tag, _NUMBERS.get(tag, pattern)) for tag, pattern in known if tag != f"{_TAG}value"]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def flatten_mapping(self, node: Any) -> None:
            """Do nothing: without aliases merge keys (``<<``) are of no use, and they take quadratic time."""

    def number(loader: Any, node: Any) -> int | float:
        text = loader.construct_scalar(node)
        if len(text) > _MAX_DIGITS or ":" in text:
            raise yaml.constructor.ConstructorError(
                None, None, "a number in base 60 or of very many digits: for text write it in quotes", node.start_mark
            )
        if re.match("[-+]?0[0-9_]", text) and node.tag == f"{_TAG}int":
            raise yaml.constructor.ConstructorError(
                None, None, "a number that begins with 0, which YAML reads in base 8: leave the 0 out", node.start_mark
            )
        if node.tag == f"{_TAG}float":
            return float(loader.construct_yaml_float(node))
        value = int(loader.construct_yaml_int(node))
        if value.bit_length() > 64:
            raise yaml.constructor.ConstructorError(
                None, None, "an integer of more than 64 bits: for text write it in quotes", node.start_mark
            )
        return value

    def merge(loader: Any, node: Any) -> None:
        raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not supported", node.start_mark)

    for tag in _NUMBERS:
        Loader.add_constructor(tag, number)
    Loader.add_constructor(f"{_TAG}merge", merge)
    return Loader


def _parser() -> Any:
    """Return PyYAML's safe loader in C, or the one in Python where it was built without libyaml."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str, source: object, loader: Any = None) -> Any:
    r"""Return what the YAML ``text`` describes.

    Args:
        text: the YAML.
        source: named in errors: a path, or what was given.
        loader: a PyYAML loader class, best a subclass of ``safe_loader()``; ``None`` for ``safe_loader()``.

    Raises:
        ValueError: not YAML, an alias, a merge key, an integer of more than 64 bits or with leading zeros, nesting deeper than
            ``MAX_DEPTH`` or more than ``MAX_VALUES`` values. The message is one line.

    Example:
        >>> load_yaml("ways: 3", "run.yaml")
        {'ways': 3}
        >>> load_yaml("a: &x [1]\nb: *x", "run.yaml")
        Traceback (most recent call last):
        ...
        ValueError: run.yaml line 2: aliases (*x) are not supported: write the value out
    """
    import yaml

    try:
        refused = _too_much(text)
        found = None if refused else yaml.load(text, Loader=loader or safe_loader())
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # some of PyYAML's constructors raise KeyError, AttributeError or others over a bad value
        mark = getattr(error, "problem_mark", None)
        last = text.rstrip("\n").count("\n")  # the C parser puts what is missing at the end on the line after it
        place = f" at line {min(mark.line, last) + 1}" if mark is not None else ""
        # Other YAML errors are of the reader, and quote what cannot be printed.
        problem = (
            "bad characters"
            if isinstance(error, yaml.YAMLError | UnicodeError)
            else "a value that does not fit its type"
        )
        problem = getattr(error, "problem", None) or problem
        raise ValueError(f"{source} is not YAML{place}: {' '.join(problem.split())[:100]}") from None
    if refused:
        raise ValueError(f"{source} {refused}")
    return found


def _too_much(text: str) -> str | None:
    """Return why a text could take more time or memory than its size, after the line number, or ``None`` where it cannot."""
    import yaml

    if sum(1 for _ in re.finditer("^%", text, re.MULTILINE)) > _MAX_DIRECTIVES:
        return f"has more than {_MAX_DIRECTIVES} lines that begin with %"
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_parser())):
        line = f"line {event.start_mark.line + 1}:"
        if isinstance(event, yaml.AliasEvent):
            return f"{line} aliases (*{event.anchor[:40]}) are not supported: write the value out"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            return f"{line} lists and mappings are nested more than {MAX_DEPTH} deep"
        if count > MAX_VALUES:
            return f"{line} more than {MAX_VALUES:,} values, too many for options or lists of classes"
    return None


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
