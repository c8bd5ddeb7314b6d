"""Where the command ``fewshot-nam`` begins: an interrupt ends it in one line, also while the rest is imported."""

import sys
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
    return start("fewshot_nam.cli.main")
