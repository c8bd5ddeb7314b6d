"""Choose learning rates of sequence models on sequences that are held out: the same rates for all models.

    python scripts/tune_sequences.py --runs DIR --json FILE [TASK ...] [--models NAME ...] [--rates RATE ...] [--steps N]

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.outputs import add_output
from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming
from fewshot_nam.sequences import tasks
from fewshot_nam.sequences.training import TrainingSettings, load_trained, preset, train
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


def settings_of(task: str, model: str, rate: float, steps: int) -> TrainingSettings:
    """Return the settings of a run.

    Raises:
        ValueError: no such task or model, or a number out of range.
        FileNotFoundError: the files of the task are not there.
    """
    settings = preset(f"{task}/{model.removesuffix(POSITIONS)}")
    # Also without, where the preset has them.
    has_option = model.startswith("nam-")
    if model.endswith(POSITIONS) and not has_option:
        raise ValueError(f"{model.removesuffix(POSITIONS)} has no option for positions: name it without{POSITIONS}")
    placed = {"positions": model.endswith(POSITIONS)} if has_option else {}
    options = dict(settings.task_options)
    if tasks.create(task, **options).given:
        options["held_out"] = SIZE
    return dataclasses.replace(
        settings,
        learning_rate=rate,
        steps=steps,
        seed=SEED,
        task_options=options,
        model_options={**settings.model_options, **placed},
        test_size=1,
    )


def score(settings: TrainingSettings, directory: Path) -> float:
    """Train, and return the percent of right sequences of those that are held out."""
    train(settings, directory, resume=True, progress=False)
    trained, task = load_trained(directory)
    trained.eval()
    new = torch.Generator().manual_seed(SEED + 1)
    batch = task.split("held_out") if "held_out" in task.splits else task.sample(SIZE, new)
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
    return "\n".join(
        [
            *lines,
            "",
            f"Made by `python scripts/tune_sequences.py --runs DIR --json results/learning_rates.json --steps {steps}`; "
            "what is empty was not tried.",
            "",
        ]
    )


def main() -> None:
    """Train what is missing, write the scores, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS, metavar="TASK")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--runs", metavar="DIR", type=Path, required=True, help="where runs and checkpoints are kept")
    add_output(parser, "--json", "the scores so far, to which new ones are added", required=True)
    options = parser.parse_args()
    wanted = list(itertools.product(options.tasks, options.rates, options.models))
    for task, rate, model in wanted:  # what is wrong is said before hours of training
        settings_of(task, model, rate, options.steps)
    for task, rate, model in wanted:
        kept = read(options.json, options.steps)
        if f"{rate:g}" in kept["scores"].get(task, {}).get(model, {}):
            continue
        found = score(settings_of(task, model, rate, options.steps), options.runs / f"{task}-{model}-{rate:g}")
        kept = read(options.json, options.steps)  # anew: another task may have been written meanwhile
        kept["scores"].setdefault(task, {}).setdefault(model, {})[f"{rate:g}"] = found
        with replacing(options.json) as unfinished:
            unfinished.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(f"{task} {model} {rate:g}: {found:.1f}", file=sys.stderr, flush=True)
    print(table(read(options.json, options.steps)), end="")


def read(file: Path, steps: int) -> dict[str, Any]:
    """Return the scores so far.

    Raises:
        ValueError: the file holds something else, or scores after other steps.
    """
    if not file.is_file():
        return {"steps": steps, "scores": {}}
    kept = read_mapping(file, meaning := "holds no scores of learning rates")
    with naming(file, meaning):
        for of_task in kept["scores"].values():
            for found in of_task.values():
                if not all(float(rate) > 0 and 0 <= value <= 100 for rate, value in found.items()):
                    raise ValueError("scores are from 0 to 100")
        if kept["steps"] != steps:
            raise ValueError(f"it has those after {kept['steps']} steps, not {steps}")
    return dict(kept)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
