"""How a command ends: its exit status, and one line on standard error for what it cannot use."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from fewshot_nam.cli.outputs import discard_output, naming_standard_output
from fewshot_nam.io.one_line import one_line

NOT_ENOUGH = "there is not enough memory"


def exit_status(work: Callable[[], object], interrupted: str = "interrupted", *, ends_with_reader: bool = False) -> int:
    """Do the work of a command; return 0, 2 for what cannot be used or written, or 130 when the user interrupts it.

    Where standard output can no longer be written the work goes on, so that the files are written that were asked for. That its
    reader, such as ``head``, has closed the pipe is no error; another reason, such as a full disk, is one when the work is done.

    Args:
        work: what the command does. ``ValueError``, ``OSError``, ``ImportError`` and ``FloatingPointError`` become one line, and so
            does memory that runs out; other errors are mistakes of ours, and keep their traceback.
        interrupted: what to say when the user interrupts it.
        ends_with_reader: whether the work ends where standard output can no longer be written: it answers after its files are
            written, and is for the reader alone from there on.

    Example:
        >>> exit_status(lambda: print("done"))
        done
        0
    """
    if sys.stderr is None:  # closed: notes and progress go nowhere
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that it cannot encode is escaped, as on standard error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with contextlib.nullcontext() if ends_with_reader or sys.stdout is None else _lasting_output():
            work()
    except BrokenPipeError as error:
        if not ends_with_reader:  # not of standard output, but of something that the work uses
            return _refused(str(error))
        discard_output()
    except RecursionError:
        return _refused("a file is nested too deeply")
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        return _refused(str(error) or NOT_ENOUGH)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _refused(NOT_ENOUGH)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _lasting_output() -> Iterator[None]:
    """Let the block print also where standard output can no longer be written; say so after it, unless its reader has gone.

    Raises:
        OSError: after the block, in one line.
    """
    lasting = _LastingOutput(sys.stdout)
    try:
        with contextlib.redirect_stdout(cast("TextIO", lasting)):
            yield
    finally:
        lasting.flush()  # not when the interpreter exits, which would have its own say
    if lasting.failure is not None and not isinstance(lasting.failure, BrokenPipeError):
        with naming_standard_output("files that were asked for are written all the same"):
            raise lasting.failure


class _LastingOutput:
    """Standard output until it can no longer be written, and from then on nothing; ``failure`` is why."""

    def __init__(self, out: TextIO) -> None:
        self._out, self.failure = out, cast("OSError | None", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._out.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._out.flush)

    def _try(self, act: Callable[[], object]) -> None:
        if self.failure is None:
            try:
                act()
            except OSError as error:
                self.failure = error
                discard_output()


def _refused(reason: str) -> int:
    print(f"error: {one_line(' '.join(reason.split()))}", file=sys.stderr)
    return 2


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out; PyTorch has ``RuntimeError`` for it.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not fit"))
        (True, False)
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
        True
    """
    text = str(error)
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in text or "out of memory" in text
