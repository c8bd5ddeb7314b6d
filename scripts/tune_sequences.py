"""Choose learning rates of sequence models on sequences that are held out: the same rates for all models.

    python scripts/tune_sequences.py --runs DIR [TASK ...] [--models NAME ...] [--rates RATE ...] [--steps N] [--json FILE]

Every model is trained with its preset at every rate, with a seed of its own, and measured on 5,000 sequences that it was not
trained on: files of training that are held out, or new sequences where a task makes its own. No test set is looked at. A rate that
is in the file already is not trained again, and a run that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fewshot_nam.io.atomic import replacing
from fewshot_nam.sequences import tasks
from fewshot_nam.sequences.training import load_trained, preset, train
from fewshot_nam.sequences.training.evaluation import predict

RATES = (0.001, 0.002, 0.004, 0.008)
TASKS = ("listops", "lra_text", "lra_image")
POSITIONS = " with positions"  # behind the name of a model that has them by an option
MODELS = (
    *("nam-attention", "nam-attention-erase"),
    *("nam-attention" + POSITIONS, "nam-attention-erase" + POSITIONS),
    *("linear-transformer", "transformer"),
)
SEED = 100  # those of results are 0, 1 and so on
SIZE = 5000  # a standard error of at most 0.7 points


def score(task: str, model: str, rate: float, steps: int, directory: Path) -> float:
    """Train, and return the percent of right sequences of those that are held out."""
    settings = preset(f"{task}/{model.removesuffix(POSITIONS)}")
    # Also without, where the preset has them.
    placed = {"positions": model.endswith(POSITIONS)} if model.startswith("nam-") else {}
    options = dict(settings.task_options)
    if tasks.create(task, **options).given:
        options["held_out"] = SIZE
    settings = dataclasses.replace(
        settings,
        learning_rate=rate,
        steps=steps,
        seed=SEED,
        task_options=options,
        model_options={**settings.model_options, **placed},
        test_size=1,
    )
    train(settings, directory, resume=True, progress=False)
    trained, made = load_trained(directory)
    trained.eval()
    new = torch.Generator().manual_seed(SEED + 1)
    batch = made.split("held_out") if "held_out" in made.splits else made.sample(SIZE, new)
    return 100 * tasks.accuracy(predict(trained, batch), batch).exact


def table(kept: Mapping[str, Any]) -> str:
    """Return all scores as Markdown."""
    scores, steps = kept["scores"], kept["steps"]
    rates = sorted({float(rate) for of_task in scores.values() for found in of_task.values() for rate in found})
    lines = [
        "# Learning rates, on sequences that are held out",
        "",
        f"Percent of {SIZE:,} sequences that are right after {steps:,} steps, one seed; the best rate of a model is bold.",
        "",
        "| task | model | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
        "|---|---|" + "---|" * len(rates),
    ]
    for task, of_task in scores.items():
        for model, found in of_task.items():
            best = max(found.values())
            shown = [found.get(f"{rate:g}") for rate in rates]
            cells = ["" if s is None else f"**{s:.1f}**" if s == best else f"{s:.1f}" for s in shown]
            lines.append(f"| {task} | {model} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Made by `python scripts/tune_sequences.py --runs DIR --steps {steps}`.", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, and write the table beside the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--runs", metavar="DIR", type=Path, required=True, help="where runs and checkpoints are kept")
    parser.add_argument("--json", type=Path, default=Path("results/sequences/learning_rates.json"))
    options = parser.parse_args(arguments)
    for task, rate, model in itertools.product(options.tasks, options.rates, options.models):
        kept = read(options.json, options.steps)
        if f"{rate:g}" in kept["scores"].get(task, {}).get(model, {}):
            continue
        found = score(task, model, rate, options.steps, options.runs / f"{task}-{model}-{rate:g}")
        kept = read(options.json, options.steps)  # anew: another task may have been written meanwhile
        kept["scores"].setdefault(task, {}).setdefault(model, {})[f"{rate:g}"] = found
        with replacing(options.json) as unfinished:
            unfinished.write_text(json.dumps(kept, indent=1) + "\n")
        with replacing(options.json.with_suffix(".md")) as unfinished:
            unfinished.write_text(table(kept))
        print(f"{task} {model} {rate:g}: {found:.1f}", flush=True)
    return 0


def read(file: Path, steps: int) -> dict[str, Any]:
    """Return the scores so far."""
    kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"steps": steps, "scores": {}}
    if kept["steps"] != steps:
        raise SystemExit(f"{file} is of {kept['steps']} steps, not of {steps}")
    return kept


if __name__ == "__main__":
    sys.exit(main())
