"""The mean return of a trained agent, and agents from the directories of their runs."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fewshot_nam.intervals import errors_of
from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming
from fewshot_nam.sequences.reinforcement.agent import Agent
from fewshot_nam.sequences.reinforcement.environments import Environments
from fewshot_nam.sequences.reinforcement.settings import AgentSettings

_TEST_SEED = 2**31 - 1  # no training run's, unless somebody chooses it
_AT_ONCE = 32


@torch.no_grad()
def evaluate_agent(agent: Agent, environment: str, episodes: int, **options: Any) -> dict[str, float | int | None]:
    """Return the mean return of an agent that always takes the most likely action.

    Args:
        agent: is put into eval mode.
        environment: a name, see ``environments.create``.
        episodes: how many, at least 1. The same ones for every agent.
        options: of the environment.

    Returns:
        ``mean``, ``low`` and ``high`` (a 95% interval over episodes, of few by Student's t; of one episode None) and ``episodes``.

    Raises:
        ValueError: fewer than one episode, or see ``environments.create``.
    """
    if episodes < 1:
        raise ValueError(f"agent: there must be at least 1 episode, got {episodes}")
    agent.eval()
    device = next(agent.parameters()).device
    # Each copy plays its first episodes, the same number or one more: those that end first would be the short ones.
    count = min(episodes, _AT_ONCE)
    wanted = [episodes // count + (index < episodes % count) for index in range(count)]
    copies = Environments(environment, count, _TEST_SEED, **options)
    state, returns = agent.init_state(count), []
    while any(wanted):
        logits, _, state = agent(copies.observations.to(device), state)
        outcome = copies.step(logits.argmax(-1).cpu())
        ended = iter(outcome.returns)
        for index in outcome.ends.nonzero().flatten().tolist():
            found = next(ended)
            if wanted[index]:
                wanted[index] -= 1
                returns.append(found)
        state = agent.begin_anew(state, outcome.ends.to(device))
    copies.close()
    mean = statistics.fmean(returns)
    low = high = None
    if len(returns) > 1:
        half = errors_of(len(returns)) * statistics.stdev(returns) / len(returns) ** 0.5
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "episodes": len(returns)}


def load_agent(directory: str | os.PathLike[str]) -> tuple[Agent, AgentSettings]:
    """Return the agent of a finished run, in eval mode, and the settings of the run.

    Raises:
        FileNotFoundError: the directory holds no finished run.
        ValueError: settings or weights that do not fit.
        ImportError: the extra ``rl`` is not installed.
    """
    place = Path(directory)
    for name in ("settings.json", "model.safetensors"):
        if not (place / name).is_file():
            raise FileNotFoundError(f"{place} holds no finished run of an agent: there is no {name}")
    path, meaning = place / "settings.json", "holds no settings of an agent"
    given = read_mapping(path, meaning)
    with naming(path, meaning):
        settings = AgentSettings.from_dict(given)
    example = Environments(settings.environment, 1, 0, **settings.environment_options)
    agent = Agent(example.observation_shape, example.num_actions, settings.model, **settings.model_options)
    example.close()
    with naming(weights := place / "model.safetensors", f"does not fit {settings.model}"):
        agent.load_state_dict(load_file(weights))
    return agent.eval(), settings
