"""The command of ``scripts/train_sequence.py``: train a sequence model by a preset, measure a trained one or have it write."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fewshot_nam.cli import training_command


def parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    made = argparse.ArgumentParser(prog="train_sequence.py", description=__doc__, allow_abbrev=False)
    made.add_argument("--preset", metavar="NAME", help="TASK/MODEL, or TASK/MODEL/paper for the published size")
    training_command.add_options(made, "weights, batches and dropout", "optimiser steps")
    made.add_argument("--list", action="store_true", help="list tasks and models, and stop")
    made.add_argument(
        "--lengths", nargs="+", type=int, metavar="N", help="with --evaluate: exact lengths; default its test sets"
    )
    made.add_argument(
        "--size", type=int, default=1000, help="with --evaluate: the most sequences a test (default: %(default)s)"
    )
    made.add_argument("--generate", metavar="DIR", help="print what a finished run on text, such as imdb_bytes, says")
    made.add_argument("--prompt", default="", metavar="TEXT", help="with --generate: what it goes on from")
    made.add_argument(
        "--tokens", type=int, default=200, metavar="N", help="with --generate: how many (default: %(default)s)"
    )
    made.add_argument(
        "--temperature", type=float, default=0.7, help="with --generate: 0 for the most likely (default: %(default)s)"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 with one line on standard error."""
    return training_command.answer(_run, parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> dict[str, Any] | None:
    trains = ["preset", "out", "resume", "steps", "set", "device"]
    if options.list:
        training_command.refuse_unused(options, "--list", [*trains, "seed", "evaluate", "generate", "json"])
        from fewshot_nam.sequences import models, tasks

        for heading, entries in (("tasks", tasks.available()), ("models", models.available())):
            print(f"{heading}:")
            for name, summary in entries.items():
                print(f"  {name:24}{summary}")
        return None
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    from fewshot_nam.sequences.training import evaluate, load_trained, preset, train

    if options.evaluate:
        training_command.refuse_unused(options, "--evaluate", [*trains, "seed", "generate"])
        model, task = load_trained(options.evaluate)
        return {"accuracy": evaluate(model, task, options.lengths, options.size)}
    if options.generate:
        training_command.refuse_unused(options, "--generate", [*trains, "json"])
        print(_generate(options))
        return None
    if not options.preset or not options.out:
        raise ValueError("give --preset and --out to train, or --evaluate DIR to measure (--help lists the options)")
    settings = preset(options.preset, **training_command.changes(options))
    return train(
        settings,
        options.out,
        resume=options.resume,
        preset=options.preset,
        device=options.device,
        progress=not options.quiet,
    )


def _generate(options: argparse.Namespace) -> str:
    import torch

    from fewshot_nam.memory.language_model import generate
    from fewshot_nam.sequences.training import load_trained

    model, task = load_trained(options.generate)
    if not task.causal:
        raise ValueError(f"--generate: {task.name} is no text: take a run on imdb_bytes")
    prompt = task.encode(options.prompt)
    chance = torch.Generator().manual_seed(options.seed or 0)
    said = generate(model, prompt.unsqueeze(0), options.tokens, temperature=options.temperature, generator=chance)
    return options.prompt + task.decode(said[0])
