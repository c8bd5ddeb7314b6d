"""How a command ends: its exit status, and one line on standard error for what it cannot use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from fewshot_nam.cli.predictions import one_line

NOT_ENOUGH = "there is not enough memory"


def exit_status(work: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Do the work of a command; return 0, 2 for what cannot be used, or 130 when the user interrupts it.

    Args:
        work: what the command does. ``ValueError``, ``OSError``, ``ImportError`` and ``FloatingPointError`` become one line, and so
            does memory that runs out; other errors are mistakes of ours, and keep their traceback.
        interrupted: what to say when the user interrupts it.

    Example:
        >>> exit_status(lambda: print("done"))
        done
        0
    """
    try:
        work()
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        # Without this, the interpreter reports the closed pipe again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
