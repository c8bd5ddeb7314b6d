"""What the commands that train have in common: options, settings given as words, and how a result or an error is printed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def add_options(made: argparse.ArgumentParser, seeds: str, steps: str) -> None:
    """Add the options of a training run; ``seeds`` and ``steps`` say what these two are of."""
    made.add_argument("--out", metavar="DIR", help="where log, checkpoint, weights and result.json go")
    made.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    made.add_argument("--seed", type=int, help=f"of {seeds} (default: 0)")
    made.add_argument("--steps", type=int, help=f"{steps} (default: the preset's)")
    made.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[], help="other settings, values as YAML")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    made.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    made.add_argument("--evaluate", metavar="DIR", help="measure a finished run instead of training")
    made.add_argument("--json", metavar="FILE", help="write the result there too")


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that differ from the preset's: those of ``--set``, ``--seed`` and ``--steps``."""
    given = {name: value for name in ("seed", "steps") if (value := getattr(options, name)) is not None}
    return parse_changes(options.set) | given


def answer(run: Callable[[argparse.Namespace], dict[str, Any] | None], options: argparse.Namespace) -> int:
    """Run, and print what comes back; return the exit status: 0, or 2 with one line on standard error."""
    try:
        result = run(options)
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


def parse_changes(words: Sequence[str]) -> dict[str, Any]:
    """Return the settings that words ``KEY=VALUE`` name, their values read as YAML.

    Raises:
        ValueError: a word without ``=``.
    """
    import yaml

    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--set: expected KEY=VALUE, got {word!r}")
        found[name.replace("-", "_")] = yaml.safe_load(value)
    return found
