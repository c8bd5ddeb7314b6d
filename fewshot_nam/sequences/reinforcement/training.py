"""Advantage actor-critic (A2C), the synchronous form of the A3C of the STM paper, for agents with a memory.

The recipe is that of Mnih et al. ("Asynchronous Methods for Deep Reinforcement Learning", 2016) and of CleanRL's single files:
all workers take ``rollout`` steps, then one update follows along generalised advantages. It is written here because the
recurrent policies of Stable-Baselines3 (``RecurrentPPO`` of ``sb3-contrib``) build an LSTM or a plain RNN of their own and have
no place for another core. The memory goes on from rollout to rollout without gradients, and begins anew with an episode.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewshot_nam.heap import keep_freed_memory
from fewshot_nam.io.tensor_files import write_tensors
from fewshot_nam.sequences.reinforcement.advantages import advantages
from fewshot_nam.sequences.reinforcement.agent import Agent
from fewshot_nam.sequences.reinforcement.environments import Environments
from fewshot_nam.sequences.reinforcement.evaluation import evaluate_agent
from fewshot_nam.sequences.reinforcement.settings import AgentSettings
from fewshot_nam.sequences.training.checkpoint import (
    check_fit,
    check_number,
    check_numbers,
    load_checkpoint,
    naming_checkpoint,
    save_checkpoint,
)
from fewshot_nam.sequences.training.devices import check_device
from fewshot_nam.sequences.training.directory import claim, finished_result, open_log, write_text
from fewshot_nam.sequences.training.divergence import naming_divergence
from fewshot_nam.sequences.training.settings import naming_options

_COLUMNS = ("step", "seconds", "loss", "entropy", "episodes", "return")
_RECENT = 100  # episodes of the moving mean, as in the STM paper


def train_agent(
    settings: AgentSettings,
    directory: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str = "auto",
    progress: bool = False,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[int], bool] | None = None,
) -> dict[str, Any] | None:
    """Train an agent, and return what is in ``result.json``.

    ``directory`` then holds ``settings.json``, ``log.csv``, ``model.safetensors`` (the last weights) and ``result.json``; while
    training also ``checkpoint.safetensors``, from which a killed run goes on as if it had not been killed.

    Args:
        settings: what to do.
        directory: made where it is not there.
        resume: go on from the checkpoint; without one, begin.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        progress: show a progress bar on stderr.
        checkpoint_seconds: the most seconds of work that are lost when the process is killed.
        stop: is called with the number of steps after every update; True saves a checkpoint and returns ``None``.

    Raises:
        ImportError: the extra ``rl`` is not installed.
        ValueError: the directory holds another run, or a finished or unfinished one and ``resume`` is not set.
    """
    run = _Run(settings, Path(directory), resume, device)
    try:
        with keep_freed_memory():
            return run.go(progress, checkpoint_seconds, stop)
    finally:
        run.environments.close()


class _Run:
    def __init__(self, settings: AgentSettings, directory: Path, resume: bool, device: str) -> None:
        self.settings, self.directory = settings, directory
        check_device(device)
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.device = torch.device(chosen)
        with naming_options(f"environment {settings.environment!r}", settings.environment_options):
            environments = Environments(
                settings.environment, settings.workers, settings.seed, **settings.environment_options
            )
        self.environments = environments
        torch.manual_seed(settings.seed)
        with naming_options(f"agent {settings.model!r}", settings.model_options):
            agent = Agent(
                environments.observation_shape, environments.num_actions, settings.model, **settings.model_options
            )
        claim(directory, settings, resume)
        self.agent = agent.to(self.device)
        self.optimiser = torch.optim.Adam(agent.parameters(), settings.learning_rate, amsgrad=True)
        self.generator = torch.Generator().manual_seed(settings.seed)  # of actions
        self.state = agent.init_state(settings.workers)
        self.step, self.seconds, self.episodes = 0, 0.0, 0
        self.recent: deque[float] = deque(maxlen=_RECENT)
        if resume and self.checkpoint.is_file():
            self._load()

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint.safetensors"

    def go(self, progress: bool, every: float, stop: Callable[[int], bool] | None) -> dict[str, Any] | None:
        if (found := finished_result(self.directory)) is not None:
            return found
        settings = self.settings
        steps_of_an_update = settings.workers * settings.rollout
        began, saved = time.perf_counter() - self.seconds, time.perf_counter()
        from tqdm import tqdm

        bar = tqdm(total=settings.steps, initial=self.step, unit="step", mininterval=0.5, disable=not progress)
        with open_log(self.directory, self.step) as log, bar:
            rows = csv.writer(log)
            if not log.tell():
                rows.writerow(_COLUMNS)
            while self.step < settings.steps:
                loss, entropy = self._update()
                self.step += steps_of_an_update
                self.seconds = time.perf_counter() - began
                last = self.step >= settings.steps
                mean = sum(self.recent) / len(self.recent) if self.recent else float("nan")
                bar.set_postfix_str(f"return {mean:.3f}", refresh=False)
                bar.update(steps_of_an_update)
                if self.step // steps_of_an_update % settings.log_every == 0 or last:
                    numbers = (self.seconds, loss, entropy, self.episodes, mean)
                    rows.writerow((self.step, *(f"{number:.5g}" for number in numbers)))
                    log.flush()
                stopped = stop is not None and stop(self.step)
                if stopped or last or time.perf_counter() - saved > every:
                    self._save()
                    saved = time.perf_counter()
                if stopped and not last:
                    return None
        return self._finish()

    def _update(self) -> tuple[float, float]:
        """Take one rollout and one step of the optimiser; return the loss and the mean entropy of actions."""
        settings, environments = self.settings, self.environments
        state = tuple(part.detach() for part in self.state)
        values, likelihoods, entropies, rewards, ends = [], [], [], [], []
        observations = environments.observations.to(self.device)
        for _ in range(settings.rollout):
            logits, value, state = self.agent(observations, state)
            log_likelihoods = F.log_softmax(logits, dim=-1)
            # Drawn on the CPU, so that a device changes no chance.
            actions = torch.multinomial(log_likelihoods.detach().exp().cpu(), 1, generator=self.generator)
            outcome = environments.step(actions.squeeze(1))
            likelihoods.append(log_likelihoods.gather(1, actions.to(self.device)).squeeze(1))
            entropies.append(-(log_likelihoods.exp() * log_likelihoods).sum(1))
            values.append(value)
            rewards.append(outcome.rewards)
            ends.append(outcome.ends)
            self.recent.extend(outcome.returns)
            self.episodes += len(outcome.returns)
            state = self.agent.begin_anew(state, outcome.ends.to(self.device))
            observations = outcome.observations.to(self.device)
        with torch.no_grad():
            last_values = self.agent(observations, state)[1]
        self.state = state
        parts = [torch.stack(part) for part in (values, likelihoods, entropies, rewards, ends)]
        return self._learn(parts, last_values)

    def _learn(self, parts: list[Tensor], last_values: Tensor) -> tuple[float, float]:
        """Take a step along the gradients of a rollout, each part of which is ``(T, B)``."""
        settings = self.settings
        values, likelihoods, entropies, rewards, ends = parts
        rewards, ends = rewards.to(values), ends.to(values.device)
        if settings.clip_rewards:
            rewards = rewards.clamp(-1, 1)
        found = advantages(rewards, values.detach(), ends, last_values, settings.discount, settings.trace)
        critic = 0.5 * (found + values.detach() - values).square().mean()
        entropy = entropies.mean()
        loss = -(likelihoods * found).mean() + settings.value * critic - settings.entropy * entropy
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        with naming_divergence(self.step):
            torch.nn.utils.clip_grad_norm_(self.agent.parameters(), settings.clip, error_if_nonfinite=True)
        self.optimiser.step()
        return float(loss.detach()), float(entropy.detach())

    def _finish(self) -> dict[str, Any]:
        settings = self.settings
        write_tensors(self.directory / "model.safetensors", self.agent.state_dict())
        result = {
            "task": settings.environment,
            "model": settings.model,
            "preset": f"{settings.environment}/{settings.model}",
            "seed": settings.seed,
            "parameters": self.agent.num_parameters,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "return": evaluate_agent(
                self.agent, settings.environment, settings.test_episodes, **settings.environment_options
            ),
        }
        write_text(self.directory / "result.json", json.dumps(result, indent=2) + "\n")
        self.checkpoint.unlink(missing_ok=True)
        return result

    def _save(self) -> None:
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "episodes": self.episodes,
            "recent": list(self.recent),
            "generator": self.generator.get_state().tolist(),
            "environments": self.environments.progress(),
        }
        state = {str(number): part for number, part in enumerate(self.state)}
        save_checkpoint(self.checkpoint, self.agent, state, self.optimiser, progress)

    def _load(self) -> None:
        settings, begun = self.settings, {str(number): part for number, part in enumerate(self.state)}
        steps_of_an_update = settings.workers * settings.rollout
        with naming_checkpoint(self.checkpoint):
            state, progress = load_checkpoint(self.checkpoint, self.agent, self.optimiser)
            check_fit(state, begun, "the states of the memory")
            self.state = tuple(state[name].to(self.device) for name in begun)
            if not all(bool(part.isfinite().all()) for part in self.state):
                raise ValueError("the states of the memory are not finite")
            self.step = check_number(progress, "step", 0, settings.steps + steps_of_an_update - 1, whole=True)
            self.seconds = check_number(progress, "seconds", 0)
            self.episodes = check_number(progress, "episodes", 0, whole=True)
            self.recent.extend(check_numbers(progress, "recent", _RECENT))
            self.generator.set_state(torch.tensor(progress["generator"], dtype=torch.uint8))
            self.environments.restore(progress["environments"])
