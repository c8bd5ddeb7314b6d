"""Numbers that options take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from fewshot_nam.io.yaml_input import shown


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a number of an option, in digits from 0 to 9."""

    def read(text: str) -> int:
        # int() also takes digits of other scripts, underscores and spaces.
        if not re.fullmatch(r"-?[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least} to {most}, got {shown(text)}")
        return int(text)

    return read
