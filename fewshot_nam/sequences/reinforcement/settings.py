"""Settings of an agent's training, and presets by environment and model, sized for two processor cores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewshot_nam.sequences.reinforcement import environments
from fewshot_nam.sequences.reinforcement.agent import MODELS
from fewshot_nam.sequences.training.settings import check_names, check_options, check_types

_MOST_WORKERS = 1 << 16


@dataclass(frozen=True)
class AgentSettings:
    """What a training run of an agent does; two runs with equal settings give equal weights on one machine.

    Attributes:
        environment: a name from ``environments.available()``.
        model: one of ``MODELS``.
        environment_options: passed to ``environments.create``.
        model_options: passed to ``Agent``.
        seed: of weights, actions and episodes.
        steps: steps of all environments together; the last update may go beyond it.
        workers: environments that are stepped together.
        rollout: steps of each between two updates, through which gradients flow.
        learning_rate: of Adam (with amsgrad).
        discount: of later rewards (gamma).
        trace: how far an advantage looks beyond the next step (lambda of Schulman et al., 2016).
        entropy: weight of the entropy of actions.
        value: weight of the critic's loss.
        clip: the largest norm of the gradient.
        clip_rewards: whether rewards are cut to -1 to 1 for training.
        log_every: updates between two rows of the log.
        test_episodes: episodes of the test.
    """

    environment: str
    model: str
    environment_options: Mapping[str, Any] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: int = 1_000_000
    workers: int = 16
    rollout: int = 20
    learning_rate: float = 1e-4
    discount: float = 0.99
    trace: float = 0.92
    entropy: float = 0.01
    value: float = 0.5
    clip: float = 0.5
    clip_rewards: bool = True
    log_every: int = 50
    test_episodes: int = 100

    def __post_init__(self) -> None:
        check_types("agent", self)
        for name in ("steps", "workers", "rollout", "log_every", "test_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"agent: {name} must be at least 1, got {getattr(self, name)}")
        if self.workers > _MOST_WORKERS:
            raise ValueError(f"agent: workers must be at most {_MOST_WORKERS}, got {self.workers}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"agent: {name} must be above 0, got {getattr(self, name)}")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"agent: {name} must be from 0 to 1, got {getattr(self, name)}")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> AgentSettings:
        """Return the settings that ``as_dict`` gave.

        Raises:
            ValueError: an unknown name, or a value that is refused.
        """
        check_names(cls, settings)
        return cls(**settings)


_BY_ENVIRONMENT: dict[str, dict[str, Any]] = {
    "recall": {"workers": 128, "rollout": 8, "learning_rate": 3e-3, "test_episodes": 1000},
    "pong": {"steps": 1_000_000, "workers": 16, "test_episodes": 5},  # as published, but for workers and steps
}
_RECALL_SIZES = {"width": 64}
_MODEL_OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("recall", "feedforward"): _RECALL_SIZES,
    ("recall", "lstm"): _RECALL_SIZES,
    ("recall", "lstm-stm"): {**_RECALL_SIZES, "memory": 24, "slots": 4, "relation_size": 24, "hidden_size": 64},
}


def agent_preset(environment: str, model: str, **changes: Any) -> AgentSettings:
    """Return the settings of an environment and a model.

    Args:
        environment: one of ``environments.available()``.
        model: one of ``MODELS``.
        changes: settings in place of the preset's; ``environment_options`` and ``model_options`` replace single options.

    Raises:
        ValueError: an unknown name, or changes that are refused.

    >>> agent_preset("pong", "lstm-stm").discount
    0.99
    """
    for kind, name, known in (("environment", environment, environments.available()), ("agent", model, MODELS)):
        if name not in known:
            raise ValueError(f"no {kind} {name!r}: there are {', '.join(known)}")
    check_options("agent", "model_options", changes.get("model_options", {}))
    options = {**_MODEL_OPTIONS.get((environment, model), {}), **changes.pop("model_options", {})}
    found = {**_BY_ENVIRONMENT[environment], **changes, "model_options": options}
    return AgentSettings.from_dict({"environment": environment, "model": model, **found})
