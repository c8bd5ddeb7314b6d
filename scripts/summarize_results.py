"""Print one table over all result files, NAM beside cosine: ``python scripts/summarize_results.py results/*.json``."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from episodes.reporting.summary import summary
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming
from fewshot_nam.io.one_line import one_line


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
    files = parser.parse_args().files
    stems = Counter(path.stem for path in dict.fromkeys(files))
    for path in files:
        name = one_line(path.stem if stems[path.stem] == 1 else str(path))
        found[name] = read_mapping(path, meaning := "holds no results of fewshot-nam-eval")
        with naming(path, meaning):
            summary({name: found[name]})
    print(summary(found))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
