"""Print what the result files let one claim of ``nam``: ``python scripts/claims.py > results/claims.md``.

It reads the tables of ``results/`` that ``scripts/make_results.sh`` makes. First ``nam`` against the best of four cosine
classifiers, line by line; then against each of the heads that have the same base classes, normalisation and penalty, and no memory;
then the generalized protocol.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from episodes.reporting.claims import against_best, against_each, losses
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming

COSINES = ["cosine", "cosine-centred", "cosine-root", "cosine-root-centred"]
COMPANY = ["cosine-snorm", "lda-snorm", "plda-snorm", "plda"]
SETS = ["digits-5way", "omniglot-5way", "tiny-imagenet-5way", "tiny-imagenet-conv5-5way", "cifar10-5way"]
OPEN = {
    "open_fpr@95tpr": "x",
    "wrong_answers@95tpr": "x",
    "class_fpr@95tpr:unknown": "x",
    "class_fpr@95tpr:known": "x",
    "class_fpr@95tpr": "x",
    "accuracy": "+",
    "auroc": "+",
}
GENERALIZED = {"ausuc": "+", "harmonic_mean:frozen": "+"}


def reports(folder: Path, names: list[str], measures: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the reports of these names, 1 and 5 shots, that are in the folder; ``ValueError`` for one that lacks what is shown."""
    paths = [folder / f"{name}-{shots}shot.json" for name in names for shots in (1, 5)]
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if path.exists():
            one = {path.stem: read_mapping(path, meaning := "holds no results of fewshot-nam-eval")}
            with naming(path, meaning):
                against_best(one, "nam", COSINES, measures, 1)
                against_each(one, "nam", COMPANY, measures)
                losses(one, "nam", [*COSINES, *COMPANY], measures)
            found |= one
    return found


def main() -> None:
    """Read the files and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where the JSON files are")
    folder = parser.parse_args().results
    lines, more = reports(folder, SETS, OPEN), reports(folder, ["omniglot-20way"], OPEN)
    joint = reports(
        folder, ["omniglot-generalized", "tiny-imagenet-generalized", "tiny-imagenet-conv5-generalized"], GENERALIZED
    )
    if not lines or not joint:
        raise ValueError(
            f"{folder} lacks results of scripts/make_results.sh: there is no file of {SETS[0]} and its like"
        )
    print("<!-- made by: python scripts/claims.py -->\n")
    print(
        "Points (+) or ratios (x). One star: the paired interval over episodes excludes 0; two: that over classes does too.\n"
    )
    print("### Against the best of four cosine classifiers, chosen anew in every cell\n")
    print(against_best({**lines, **more}, "nam", COSINES, OPEN, len(lines)))
    print("\n### Against heads with the same base classes, normalisation and penalty, without the memory\n")
    print(f"Mean over {len(lines)} lines; on how many nam is better/worse over episodes (over classes).\n")
    print(against_each(lines, "nam", COMPANY, OPEN))
    print("\n### Generalized: base and novel classes in one label space\n")
    print(against_best(joint, "nam", COSINES, GENERALIZED, len(joint)))
    print()
    print(against_each(joint, "nam", COMPANY, GENERALIZED))
    print("\n### Where nam is worse\n")
    print("Every line and measure in which it is worse than one of these heads, by the interval over episodes.\n")
    every = [*COSINES, *COMPANY]
    print(losses({**lines, **more}, "nam", every, OPEN))
    print()
    print(losses(joint, "nam", every, GENERALIZED))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
