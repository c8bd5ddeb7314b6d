"""Print one table over all result files, NAM beside cosine: ``python scripts/summarize_results.py results/*.json``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from episodes.reporting.summary import summary
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.io.json_files import read_mapping
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
        found[path.stem] = read_mapping(path, meaning := "holds no results of fewshot-nam-eval")
        with naming(path, meaning):
            summary({path.stem: found[path.stem]})
    print(summary(found))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
