"""Where the command ``fewshot-nam`` begins: an interrupt ends it in one line, also while the rest is imported."""

import atexit
import contextlib
import os
import sys
import threading
from importlib import import_module


def start(module: str) -> int:
    """Import a module and run its ``main``; return the exit status, 130 when the user interrupts either."""
    try:
        return import_module(module).main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def fewshot_nam() -> int:
    """Run ``fewshot-nam``."""
    return end(start("fewshot_nam.cli.main"))


def end(status: int) -> int:
    """Return the exit status; where threads go on, such as those of a page that still reads images, the process ends here.

    The interpreter ends such threads where they are, which within PyTorch's code aborts the process (SIGABRT).
    """
    if any(thread.daemon for thread in threading.enumerate()):
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # None or closed
                stream.flush()
        os._exit(status)
    return status
