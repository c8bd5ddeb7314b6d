"""Evaluate on Omniglot's published one-shot task: ``python scripts/lake_runs.py DATA [--json FILE]``, a table on stdout.

The 20 runs of Lake, Salakhutdinov and Tenenbaum (2015), 20-way and 1-shot within one alphabet, 400 trials, with every head on the
bundled backbone. DATA holds omniglot-py. Nothing is random: the runs are fixed files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import backbones
from episodes import EvaluationSettings, Report, evaluate, extract
from episodes.features.sources import banks_by_role, sets_by_role
from episodes.reporting.formatting import markdown_table, percent, verdict
from episodes.sampling.omniglot_runs import omniglot_runs
from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.outputs import add_output

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
LEGEND = """# Omniglot's published one-shot task

Made by `python scripts/lake_runs.py DATA --json results/omniglot_lake_runs.json > results/omniglot_lake_runs.md`.

The {runs} fixed runs of Lake, Salakhutdinov and Tenenbaum (2015): {ways} characters of one evaluation alphabet, one drawing of
each to learn and one, by another hand, to recognise; {trials} trials in all. Backbone `conv4`, trained on {base} characters of 25
background alphabets; heads that use base classes use these. Percent, with 95% intervals over the runs; differences to
`cosine` on the same runs, * where the interval excludes 0. One trial is {trial:g} points.
"""


def measured(data: Path) -> Report:
    """Return the report over the runs: accuracy, and the calibration error at a temperature from validation characters."""
    backbone = backbones.create("conv4")
    drawings, runs = omniglot_runs(data)
    others = banks_by_role(sets_by_role("omniglot", data_dir=data, roles=["base", "validation"]), backbone).banks
    settings = EvaluationSettings("closed", ways=runs.classes.shape[1], shots=1, queries=1)
    base, validation = others["base"], others["validation"]
    return evaluate(extract(backbone, drawings), HEADS, settings, episodes=runs, base=base, validation=validation)


def table(report: Report) -> list[str]:
    """Return the lines of the table: a row for each head, the lowest error first."""
    trials = report.config["episodes"] * report.config["ways"]
    rows = [["head", "error", "wrong", "minus cosine"]]
    for head, found in sorted(report.results.items(), key=lambda item: -item[1]["accuracy"]["mean"]):
        accuracy = found["accuracy"]
        error = {"mean": 1 - accuracy["mean"], "ci95": accuracy["ci95"]}
        difference = ""
        if head != "cosine":
            gain = report.paired[f"{head}-cosine"]["accuracy"]
            mark = "" if verdict("accuracy", gain) == "even" else "*"
            difference = percent({**gain, "mean": 0.0 - gain["mean"]}, digits=2, signed=True) + mark
        rows.append([head, percent(error, digits=2), f"{round(error['mean'] * trials)} of {trials}", difference])
    return markdown_table(rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds omniglot-py")
    add_output(parser, "--json", "also write the report there")
    options = parser.parse_args()
    report = measured(options.data)
    config = report.config
    trials, base = config["episodes"] * config["ways"], config["base"]["classes"]
    print(LEGEND.format(runs=config["episodes"], ways=config["ways"], trials=trials, base=base, trial=100 / trials))
    print("\n".join(table(report)))
    if options.json:
        report.save_json(options.json)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
