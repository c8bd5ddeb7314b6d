"""The registry of environments, and several copies of one that are stepped together and can be put back to where they were."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import gymnasium


class _Entry(NamedTuple):
    module: str
    name: str
    summary: str


_ENVIRONMENTS = {
    "recall": _Entry("corridor", "RecallCorridor", "remember which button opens doors of which colour"),
    "pong": _Entry("pong", "Pong", "Atari Pong, in grey images of 80 x 80"),
}


def available() -> dict[str, str]:
    """Return the names of all environments, each with a line on what it is."""
    return {name: entry.summary for name, entry in _ENVIRONMENTS.items()}


def create(name: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """Return a new environment with Gymnasium's interface.

    Args:
        name: one of ``available()``.
        options: of the environment, such as ``rooms=4`` of ``recall``.

    Raises:
        ValueError: an unknown name, or an option that the environment does not have.
        ImportError: the extra ``rl`` is not installed.
    """
    if name not in _ENVIRONMENTS:
        near = difflib.get_close_matches(name, _ENVIRONMENTS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no environment {name!r}{hint} There are: {', '.join(_ENVIRONMENTS)}")
    entry = _ENVIRONMENTS[name]
    try:
        module = importlib.import_module(f"fewshot_nam.sequences.reinforcement.{entry.module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("ale_py", "gymnasium"):
            raise
        raise ImportError(f'the environment {name!r} needs {error.name}: pip install "fewshot-nam[rl]"') from error
    try:
        made: gymnasium.Env[Any, Any] = getattr(module, entry.name)(**options)
    except TypeError as error:
        raise ValueError(f"the environment {name!r} cannot take these options: {error}") from None
    return made


class Outcome(NamedTuple):
    """What a step of all copies gave.

    Attributes:
        observations: ``(B, ...)``, in a copy whose episode ended the first one of its next episode.
        rewards: ``(B,)`` float.
        ends: ``(B,)`` bool, where an episode ended. (An episode that is cut off counts as one that ended.)
        returns: the sum of rewards of each episode that ended.
    """

    observations: Tensor
    rewards: Tensor
    ends: Tensor
    returns: list[float]


class Environments:
    """``B`` copies of an environment, each beginning its next episode by itself.

    Every episode has a seed of its own, which follows from ``seed``, the copy and the number of the episode. An environment is a
    function of that seed and of the actions since, so ``progress`` holds nothing else.

    Args:
        name: see ``create``.
        count: ``B``.
        seed: of all episodes.
        options: see ``create``.

    Raises:
        ValueError: see ``create``, or fewer than one copy.
        ImportError: see ``create``.
    """

    def __init__(self, name: str, count: int, seed: int, **options: Any) -> None:
        if count < 1:
            raise ValueError(f"environments: there must be at least 1 copy, got {count}")
        self._copies = [create(name, **options) for _ in range(count)]
        self._seed = seed
        self._episodes = [0] * count
        self._actions: list[list[int]] = [[] for _ in range(count)]
        self._sums = [0.0] * count
        self.observation_shape = tuple(int(size) for size in self._copies[0].observation_space.shape or ())
        self.num_actions = int(self._copies[0].action_space.n)  # type: ignore[attr-defined]
        self._observations = [self._begin(index) for index in range(count)]

    def __len__(self) -> int:
        return len(self._copies)

    @property
    def observations(self) -> Tensor:
        """What is seen now, ``(B, ...)``."""
        return torch.from_numpy(np.stack(self._observations))

    def step(self, actions: Tensor) -> Outcome:
        """Take an action ``(B,)`` in every copy."""
        rewards, ends, returns = [], [], []
        for index, action in enumerate(actions.tolist()):
            reward, ended = self._act(index, action)
            rewards.append(reward)
            ends.append(ended)
            if ended:
                returns.append(self._sums[index])
                self._episodes[index] += 1
                self._observations[index] = self._begin(index)
        return Outcome(self.observations, torch.tensor(rewards), torch.tensor(ends), returns)

    def progress(self) -> dict[str, Any]:
        """Return where all copies are, as JSON holds it."""
        return {"episodes": list(self._episodes), "actions": [list(actions) for actions in self._actions]}

    def restore(self, progress: dict[str, Any]) -> None:
        """Put all copies back to where they were when ``progress`` was returned: their episodes are played again.

        Raises:
            ValueError: it is of other environments.
        """
        episodes, actions = progress["episodes"], progress["actions"]
        taken = [action for of_copy in actions for action in of_copy]
        if (
            not len(episodes) == len(actions) == len(self)
            or not all(type(number) is int and number >= 0 for number in episodes)
            or not all(type(action) is int and 0 <= action < self.num_actions for action in taken)
        ):
            raise ValueError(f"episodes and actions of {len(self)} environments are not whole numbers in their range")
        self._episodes = list(episodes)
        for index, of_copy in enumerate(actions):
            self._observations[index] = self._begin(index)
            for action in of_copy:
                self._act(index, action)

    def close(self) -> None:
        """Free what the copies hold."""
        for copy in self._copies:
            copy.close()

    def _begin(self, index: int) -> np.ndarray[Any, Any]:
        self._actions[index], self._sums[index] = [], 0.0
        numbers = np.random.SeedSequence([self._seed, index, self._episodes[index]]).generate_state(1)
        observation, _ = self._copies[index].reset(seed=int(numbers[0] >> 1))
        found: np.ndarray[Any, Any] = observation
        return found

    def _act(self, index: int, action: int) -> tuple[float, bool]:
        observation, reward, terminated, truncated, _ = self._copies[index].step(action)
        self._observations[index] = observation
        self._actions[index].append(action)
        self._sums[index] += float(reward)
        return float(reward), terminated or truncated
