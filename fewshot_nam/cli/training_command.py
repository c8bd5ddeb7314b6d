"""What the commands that train have in common: options, settings given as words, and how a result or an error is printed."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fewshot_nam.cli.errors import exit_status
from fewshot_nam.cli.numbers import whole_number

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def add_options(made: argparse.ArgumentParser, seeds: str, steps: str) -> None:
    """Add the options of a training run; ``seeds`` and ``steps`` say what these two are of."""
    made.add_argument("--out", metavar="DIR", help="where log, checkpoint, weights and result.json go")
    made.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    made.add_argument("--seed", type=int, help=f"of {seeds} (default: 0)")
    made.add_argument("--steps", type=int, help=f"{steps} (default: the preset's)")
    made.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[], help="other settings, values as YAML")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    made.add_argument("--threads", type=whole_number(1, 1024), help="processor threads (default: torch's choice)")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    made.add_argument("--evaluate", metavar="DIR", help="measure a finished run instead of training")
    made.add_argument("--json", metavar="FILE", help="write the result there too")


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that differ from the preset's: those of ``--set``, ``--seed`` and ``--steps``."""
    given = {name: value for name in ("seed", "steps") if (value := getattr(options, name)) is not None}
    return parse_changes(options.set) | given


def refuse_unused(options: argparse.Namespace, flag: str, unused: Sequence[str]) -> None:
    """Raise ``ValueError`` where options are given that train, and ``flag`` trains nothing."""
    given = [f"--{name}" for name in unused if _is_given(getattr(options, name))]
    if given:
        raise ValueError(f"{flag} does not use {', '.join(given)}: leave it out")


def _is_given(value: object) -> bool:
    return not (value is None or value is False or value in ([], "auto"))  # 0 is


def _check_json(options: argparse.Namespace) -> None:
    """Raise ``ValueError``, before the work starts, where ``--json`` would replace a file of the run, a memory or an image."""
    from fewshot_nam.cli.outputs import check_output, refuse_input, writable
    from fewshot_nam.sequences.training.directory import FILES

    path = writable(options.json)
    check_output(path)
    for directory in filter(None, (options.out, options.evaluate)):
        for name in FILES:
            if path.resolve() == Path(directory, name).resolve():
                raise ValueError(f"--json: {path} is a file of the run in {directory}: choose another name")
            refuse_input(path, Path(directory, name), f"{name} of the run in {directory}")


def answer(run: Callable[[argparse.Namespace], dict[str, Any] | None], options: argparse.Namespace) -> int:
    """Run, and print what comes back; return the exit status: 0, or 2 with one line on standard error."""

    def run_and_print() -> None:
        if options.json is not None:
            _check_json(options)
        result = run(options)
        if result is None:
            return
        text = json.dumps(result, indent=2)
        print(text)
        if options.json is not None:
            from fewshot_nam.io.atomic import replacing

            with replacing(Path(options.json)) as unfinished:
                unfinished.write_text(text + "\n", encoding="utf-8")

    return exit_status(run_and_print, "interrupted; --resume goes on from the last checkpoint")


def parse_changes(words: Sequence[str]) -> dict[str, Any]:
    """Return the settings that words ``KEY=VALUE`` name, their values read as YAML.

    Raises:
        ValueError: a word without ``=``, or a value that is no YAML.
    """
    from fewshot_nam.io.yaml_input import load_yaml

    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--set: expected KEY=VALUE, got {word!r}")
        found[name.replace("-", "_")] = _number(load_yaml(value, f"--set {name}"))
    return found


def _number(value: Any) -> Any:
    """Return a text such as 1e-3 as the number it is to everyone but YAML 1.1, also inside of lists and mappings."""
    if isinstance(value, dict):
        return {name: _number(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_number(part) for part in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
