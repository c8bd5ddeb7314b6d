"""Sit Omniglot's own one-shot exam: ``python scripts/lake_runs.py DATA [--json FILE]``, a table on stdout.

The 20 runs of Lake, Salakhutdinov and Tenenbaum (2015), 20-way and 1-shot within one alphabet, 400 trials, with every head over
the bundled backbone. DATA holds omniglot-py. Nothing is drawn by chance: the runs are fixed files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import backbones
from episodes import Report, evaluate, extract, open_dataset
from episodes.sampling.omniglot_runs import omniglot_runs

HEADS = [
    "nam",
    "nam-sequential",
    "nam-parallel",
    "cosine",
    "cosine-centred",
    "cosine-root",
    "cosine-root-centred",
    "protonet",
    "nearest",
    "ridge",
    "mahalanobis",
    "plda",
]
LEGEND = """# Omniglot's own one-shot exam

Made by `python scripts/lake_runs.py DATA --json results/omniglot_lake_runs.json > results/omniglot_lake_runs.md`.

The {runs} fixed runs of Lake, Salakhutdinov and Tenenbaum (2015): {ways} characters of one evaluation alphabet, one drawing of
each to learn and one, by another hand, to recognise; {trials} trials in all. Backbone `conv4`, trained on {base} characters of 25
background alphabets; the heads that use base classes know these. Percent, with 95% intervals over the runs; differences to
`cosine` on the same runs, * where the interval excludes 0. One trial is {trial:g} points.
"""


def measured(data: Path) -> Report:
    """Return the report over the runs: accuracy, with a calibration error whose temperature is of validation characters."""
    backbone = backbones.create("conv4")
    drawings, runs = omniglot_runs(data)
    background = open_dataset("omniglot", data)
    banks = {role: extract(backbone, background[role]) for role in ("base", "val")}
    return evaluate(
        extract(backbone, drawings),
        HEADS,
        "closed",
        ways=runs.classes.shape[1],
        shots=1,
        queries=1,
        episodes=runs,
        base=banks["base"],
        validation=banks["val"],
    )


def table(report: Report) -> list[str]:
    """Return the lines of the table: a row a head, the lowest error first."""
    trials = report.config["episodes"] * report.config["ways"]
    lines = ["| head | error | wrong | minus cosine |", "|---|---|---|---|"]
    found = {head: measures["accuracy"] for head, measures in report.results.items()}
    for head, accuracy in sorted(found.items(), key=lambda item: -item[1]["mean"]):
        error, ci95 = 100 * (1 - accuracy["mean"]), 100 * accuracy["ci95"]
        difference = ""
        if head != "cosine":
            paired = report.paired[f"{head}-cosine"]["accuracy"]
            mark = "*" if abs(paired["mean"]) > paired["ci95"] else ""
            points = round(-100 * paired["mean"], 2) + 0.0  # adding 0 takes the sign off -0.0
            difference = f"{points:+.2f} ± {100 * paired['ci95']:.2f}{mark}"
        lines.append(
            f"| {head} | {error:.2f} ± {ci95:.2f} | {round(error * trials / 100)} of {trials} | {difference} |"
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds omniglot-py")
    parser.add_argument("--json", type=Path, help="also write the report there")
    options = parser.parse_args()
    report = measured(options.data)
    config = report.config
    trials = config["episodes"] * config["ways"]
    print(
        LEGEND.format(
            runs=config["episodes"],
            ways=config["ways"],
            trials=trials,
            base=config["base"]["classes"],
            trial=100 / trials,
        )
    )
    print("\n".join(table(report)))
    if options.json:
        report.save_json(options.json)


if __name__ == "__main__":
    main()
