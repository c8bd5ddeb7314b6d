"""Files that commands write."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fewshot_nam.io.atomic import leads_nowhere
from fewshot_nam.io.image_folders import EXTENSIONS

Kind = Literal["a memory", "a safetensors file", "an image", "an archive or pickled weights"]

_PACKED = (
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"\x80\x02",
    b"\x80\x03",
    b"\x80\x04",
    b"\x80\x05",
)  # zip (also of torch.save), gzip, pickle


def check_output(path: Path, replaces: Kind | None = None) -> None:
    """Raise ``ValueError`` where a file would take the place of a memory, of weights, of an archive or of an image.

    Args:
        path: the file to write.
        replaces: the kind that the file is of itself, and may replace.
    """
    kind = _kind(path)
    if kind is not None and kind != replaces:
        raise ValueError(f"{path} is {kind}, and would be replaced: choose another name for the output")


def _kind(path: Path) -> Kind | None:
    if not path.is_file():
        return None
    if path.suffix.lower() in EXTENSIONS:
        return "an image"
    from safetensors import SafetensorError, safe_open

    from fewshot_nam.vision.saving import holds_memory

    if holds_memory(path):
        return "a memory"
    try:
        with safe_open(path, "numpy"):
            return "a safetensors file"
    except (SafetensorError, OSError):
        pass
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(4).startswith(_PACKED):
            return "an archive or pickled weights"
    return None


def writable(given: str | os.PathLike[str]) -> Path:
    """Return the path of a file that can be written; ``ValueError`` before the work, not after it."""
    path = Path(given)
    if not os.fspath(given) or path.is_dir():
        raise ValueError(f"{os.fspath(given)!r} names no file")
    if leads_nowhere(path):
        raise ValueError(f"{given} is a link that leads to itself: choose another name")
    if path.exists() and not path.is_file():
        raise ValueError(f"{given} is no regular file but a pipe or device: name a file")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"the directory of {given} does not exist")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ValueError(f"the directory of {given} cannot be written")
    return path


def refuse_input(output: Path, given: str | os.PathLike[str], meaning: str) -> None:
    """Raise ``ValueError`` where a file to write is one that is read."""
    if output.exists() and Path(given).exists() and output.samefile(given):
        raise ValueError(f"{output} is {meaning}, and would be replaced: choose another name for the output")


@contextlib.contextmanager
def naming_standard_output(done: str = "") -> Iterator[None]:
    """Say of an ``OSError`` of the block, which writes answers and does nothing else, that standard output cannot be written.

    A pipe that its reader has closed stays a ``BrokenPipeError``.

    Args:
        done: what has been done by then, and stays.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise OSError(
            f"standard output cannot be written ({error.strerror or error})" + (f": {done}" if done else "")
        ) from error


def discard_output() -> None:
    """Send what is still to be printed nowhere: without this, the interpreter tries again when it exits, and complains."""
    # It may be no file, where a program has put something else there.
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_output(
    parser: argparse.ArgumentParser,
    flag: str,
    meaning: str,
    *,
    replaces: Kind | None = None,
    required: bool = False,
) -> None:
    """Add an option for a file to write, a ``Path``; where it replaces an image, it is a PNG file.

    The parser refuses one that must not be replaced (``check_output``), or that is named twice.
    """

    def checked(given: str) -> Path:
        try:
            path = writable(given)
            check_output(path, replaces)
            if replaces == "an image" and path.suffix.lower() != ".png":
                raise ValueError(f"{path} would be a PNG file: give it the ending .png")
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return path

    parser.add_argument(flag, action=_Output, type=checked, metavar="FILE", required=required, help=meaning)


class _Output(argparse.Action):
    """Keep the file of an option, and refuse one that another such option names too: the last one would win."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, _: str | None = None
    ) -> None:
        assert isinstance(values, Path)  # by its type
        for other in parser._actions:
            taken = getattr(namespace, other.dest, None) if isinstance(other, _Output) and other is not self else None
            if taken is not None and taken.resolve() == values.resolve():
                parser.error(f"{self.option_strings[0]} and {other.option_strings[0]} name the same file, {values}")
        setattr(namespace, self.dest, values)
