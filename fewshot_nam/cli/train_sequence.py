"""The command of ``scripts/train_sequence.py``: train a sequence model by a preset, measure a trained one or have it write."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    made = argparse.ArgumentParser(prog="train_sequence.py", description=__doc__, allow_abbrev=False)
    made.add_argument("--preset", metavar="NAME", help="TASK/MODEL, or TASK/MODEL/paper for the published size")
    made.add_argument("--out", metavar="DIR", help="where log, checkpoint, weights and result.json go")
    made.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    made.add_argument("--seed", type=int, help="of weights, batches and dropout (default: 0)")
    made.add_argument("--steps", type=int, help="optimiser steps (default: the preset's)")
    made.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[], help="other settings, values as YAML")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    made.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    made.add_argument("--list", action="store_true", help="list tasks and models, and stop")
    made.add_argument("--evaluate", metavar="DIR", help="measure a finished run instead of training")
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
    made.add_argument("--json", metavar="FILE", help="write the result there too")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 with one line on standard error."""
    options = parser().parse_args(arguments)
    try:
        result = _run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if result is not None:
        text = json.dumps(result, indent=2)
        print(text)
        if options.json:
            from fewshot_nam.io.atomic import replacing

            with replacing(Path(options.json)) as unfinished:
                unfinished.write_text(text + "\n", encoding="utf-8")
    return 0


def _run(options: argparse.Namespace) -> dict[str, Any] | None:
    if options.list:
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
        model, task = load_trained(options.evaluate)
        return {"accuracy": evaluate(model, task, options.lengths, options.size)}
    if options.generate:
        print(_generate(options))
        return None
    if not options.preset or not options.out:
        raise ValueError("give --preset and --out to train, or --evaluate DIR to measure (--help lists the options)")
    changes = parse_changes(options.set)
    changes |= {name: value for name in ("seed", "steps") if (value := getattr(options, name)) is not None}
    settings = preset(options.preset, **changes)
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


def parse_changes(words: Sequence[str]) -> dict[str, Any]:
    """Return the settings that words ``KEY=VALUE`` name, their values read as YAML.

    Raises:
        ValueError: a word without ``=``.
    """
    import yaml

    changes = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--set: expected KEY=VALUE, got {word!r}")
        changes[name.replace("-", "_")] = yaml.safe_load(value)
    return changes
