"""The command of ``scripts/train_agent.py``: train an agent with a memory by actor-critic, or measure trained ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fewshot_nam.cli import training_command


def parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    made = argparse.ArgumentParser(prog="train_agent.py", description=__doc__, allow_abbrev=False)
    made.add_argument("--env", metavar="NAME", help="recall or pong")
    made.add_argument("--model", metavar="NAME", help="feedforward, lstm or lstm-stm")
    training_command.add_options(made, "weights, actions and episodes", "steps of all environments together")
    made.add_argument("--list", action="store_true", help="list environments and models, and stop")
    made.add_argument(
        "--episodes", type=int, metavar="N", help="with --evaluate: how many (default: the test_episodes of the run)"
    )
    made.add_argument("--table", metavar="DIR", help="print a table of all finished runs below DIR")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 with one line on standard error."""
    return training_command.answer(_run, parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> dict[str, Any] | None:
    from fewshot_nam.sequences import reinforcement

    trains = ["env", "model", "out", "resume", "seed", "steps", "set", "device"]
    if options.list:
        training_command.refuse_unused(options, "--list", [*trains, "evaluate", "table", "json"])
        known = reinforcement.environments.available()
        for heading, entries in (("environments", known), ("models", reinforcement.MODELS)):
            print(f"{heading}:")
            for name, summary in entries.items():
                print(f"  {name:16}{summary}")
        return None
    if options.table:
        training_command.refuse_unused(options, "--table", [*trains, "evaluate", "json"])
        from fewshot_nam.sequences.reporting.agents import table

        print(table(options.table))
        return None
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    if options.evaluate:
        training_command.refuse_unused(options, "--evaluate", trains)
        agent, settings = reinforcement.load_agent(options.evaluate)
        episodes = settings.test_episodes if options.episodes is None else options.episodes
        found = reinforcement.evaluate_agent(agent, settings.environment, episodes, **settings.environment_options)
        return {"return": found}
    if not options.env or not options.model or not options.out:
        raise ValueError(
            "give --env, --model and --out to train, or --evaluate DIR to measure (--help lists the options)"
        )
    changes = training_command.changes(options)
    if {"environment", "model"} & changes.keys():
        raise ValueError("--set: the environment and the model are named by --env and --model")
    settings = reinforcement.agent_preset(options.env, options.model, **changes)
    return reinforcement.train_agent(
        settings, options.out, resume=options.resume, device=options.device, progress=not options.quiet
    )
