"""Print one table over all result files, NAM beside cosine: ``python scripts/summarize_results.py results/*.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from episodes.reporting.summary import summary
from fewshot_nam.cli.errors import exit_status


def main() -> None:
    """Read the files and print the tables."""
    print(summary({Path(name).stem: json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]}))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
