"""The command of ``scripts/train_agent.py``: train an agent with a memory by actor-critic, or measure trained ones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshot_nam.cli.train_sequence import parse_changes


def parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    made = argparse.ArgumentParser(prog="train_agent.py", description=__doc__, allow_abbrev=False)
    made.add_argument("--env", metavar="NAME", help="recall or pong")
    made.add_argument("--model", metavar="NAME", help="feedforward, lstm or lstm-stm")
    made.add_argument("--out", metavar="DIR", help="where log, checkpoint, weights and result.json go")
    made.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    made.add_argument("--seed", type=int, help="of weights, actions and episodes (default: 0)")
    made.add_argument("--steps", type=int, help="steps of all environments together (default: the preset's)")
    made.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[], help="other settings, values as YAML")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    made.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    made.add_argument("--list", action="store_true", help="list environments and models, and stop")
    made.add_argument("--evaluate", metavar="DIR", help="measure a finished run instead of training")
    made.add_argument(
        "--episodes", type=int, metavar="N", help="with --evaluate: how many (default: the test_episodes of the run)"
    )
    made.add_argument("--table", metavar="DIR", help="print a table of all finished runs below DIR")
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
    from fewshot_nam.sequences import reinforcement

    if options.list:
        known = reinforcement.environments.available()
        for heading, entries in (("environments", known), ("models", reinforcement.MODELS)):
            print(f"{heading}:")
            for name, summary in entries.items():
                print(f"  {name:16}{summary}")
        return None
    if options.table:
        from fewshot_nam.sequences.reporting.agents import table

        print(table(options.table))
        return None
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    if options.evaluate:
        agent, settings = reinforcement.load_agent(options.evaluate)
        episodes = settings.test_episodes if options.episodes is None else options.episodes
        found = reinforcement.evaluate_agent(agent, settings.environment, episodes, **settings.environment_options)
        return {"return": found}
    if not options.env or not options.model or not options.out:
        raise ValueError(
            "give --env, --model and --out to train, or --evaluate DIR to measure (--help lists the options)"
        )
    changes = parse_changes(options.set)
    changes |= {name: value for name in ("seed", "steps") if (value := getattr(options, name)) is not None}
    settings = reinforcement.agent_preset(options.env, options.model, **changes)
    return reinforcement.train_agent(
        settings, options.out, resume=options.resume, device=options.device, progress=not options.quiet
    )
