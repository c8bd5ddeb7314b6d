"""The command of ``scripts/sequence_results.py``: train what the plan names, and write tables and plots of all runs."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewshot_nam.cli.errors import exit_status

PLAN = Path("results/sequences/plan.yaml")
_PLOTTED_LENGTH = 16  # of the sequence over which heads are drawn, longer than those of training on digits


def parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    made = argparse.ArgumentParser(prog="sequence_results.py", description=__doc__, allow_abbrev=False)
    made.add_argument("names", nargs="*", help="experiments of the plan (default: all)")
    made.add_argument("--plan", default=PLAN, type=Path, help="YAML file of experiments (default: %(default)s)")
    made.add_argument("--runs", metavar="DIR", type=Path, help="train what is missing there, and read the runs from it")
    made.add_argument(
        "--out", metavar="DIR", type=Path, help="where records, tables and plots go (default: the plan's)"
    )
    made.add_argument("--models", nargs="+", metavar="MODEL", help="train these alone (default: all of the plan)")
    made.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="EXPERIMENT/MODEL-SEED", help="runs of which to keep the weights"
    )
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    made.add_argument("--no-training", action="store_true", help="use the finished runs alone")
    made.add_argument("--quiet", action="store_true", help="no progress bars")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 with one line on standard error."""
    options = parser().parse_args(arguments)
    return exit_status(lambda: _run(options), "interrupted; the same command goes on from the last checkpoint")


def _run(options: argparse.Namespace) -> None:
    from fewshot_nam.io.atomic import replacing
    from fewshot_nam.io.naming import naming
    from fewshot_nam.sequences.models.turing import TuringModel
    from fewshot_nam.sequences.reporting import carry_out, load_plan, read_records, read_runs, table, write_records
    from fewshot_nam.sequences.reporting.plots import plot_heads, plot_lengths
    from fewshot_nam.sequences.reporting.records import check_records
    from fewshot_nam.sequences.training import load_trained

    plan = load_plan(options.plan)
    unknown = [name for name in options.names if name not in plan]
    if unknown:
        raise ValueError(f"{options.plan} has no experiment {unknown[0]!r}: there are {', '.join(plan)}")
    out = options.out or options.plan.parent
    out.mkdir(parents=True, exist_ok=True)
    for name in options.names or plan:
        experiment, kept = plan[name], out / f"{name}.json"
        if options.runs is not None:
            if not options.no_training:
                carry_out(
                    experiment,
                    options.runs,
                    models=options.models,
                    device=options.device,
                    progress=not options.quiet,
                    report=_say_at_once,
                )
            records = read_runs(experiment, options.runs)
            if records:
                write_records(records, kept)
        if not kept.is_file():
            print(f"{name}: no finished run")
            continue
        records = read_records(kept)
        with naming(kept, f"holds no records of the plan's {name}"):
            check_records(experiment, records)
            page, longest = table(experiment, records), _longest_trained(records[0].settings)
        with replacing(out / f"{name}.md") as unfinished:
            unfinished.write_text(page, encoding="utf-8")
        if len(experiment.lengths) > 1:
            plot_lengths(experiment, records, longest).savefig(out / f"{name}.png", dpi=100)
        print(f"{out / name}.md")
    for run in options.checkpoint:
        if options.runs is None:
            raise ValueError("--checkpoint needs --runs, where the weights are")
        name, _, labelled = run.partition("/")
        label = labelled.rpartition("-")[0]
        place = out / "checkpoints" / f"{name}-{label}"
        place.mkdir(parents=True, exist_ok=True)
        for file in ("settings.json", "model.safetensors", "result.json", "lengths.json"):
            shutil.copyfile(options.runs / name / labelled / file, place / file)
        print(place)
        model, task = load_trained(place)
        if isinstance(model, TuringModel):
            plot_heads(model, task, _PLOTTED_LENGTH).savefig(out / f"{name}-{label}-heads.png", dpi=60)


def _longest_trained(settings: Mapping[str, Any]) -> int:
    """Return the longest length of training of a run with these settings."""
    from fewshot_nam.sequences import tasks

    lengths = settings["lengths"] or tasks.create(settings["task"]).splits["train"].lengths
    return lengths if isinstance(lengths, int) else int(lengths[1])


def _say_at_once(line: str) -> None:
    print(line, flush=True)
