"""Print one table over all result files, NAM beside cosine: ``python scripts/summarize_results.py results/*.json``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from episodes.reporting.summary import summary
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.io.naming import naming


def main() -> None:
    """Read the files and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="of fewshot-nam-eval --json; those without results are passed over",
    )
    found: dict[str, dict[str, Any]] = {}
    for path in parser.parse_args().files:
        with naming(path, "holds no results of fewshot-nam-eval"):
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found[path.stem], dict):
                raise ValueError("it holds no mapping")
            summary({path.stem: found[path.stem]})
    print(summary(found))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
