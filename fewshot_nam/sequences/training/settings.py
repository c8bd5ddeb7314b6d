"""Settings of a training run, and presets by name: ``TASK/MODEL`` for two processor cores, ``TASK/MODEL/paper`` as published."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from fewshot_nam.sequences import models, tasks

Curriculum = Literal["none", "schedule", "mastery"]


@dataclass(frozen=True)
class TrainingSettings:
    """What a training run does; two runs with equal settings give equal weights on one machine.

    Attributes:
        task: a name from ``tasks.available()``.
        model: a name from ``models.available()``.
        size: one of ``models.SIZES``.
        task_options: passed to ``tasks.create``.
        model_options: passed to ``models.create``.
        seed: of weights, batches and dropout.
        steps: optimiser steps.
        batch_size: sequences a step.
        one_length: whether the sequences of a batch have one length, drawn anew for every batch; else each has its own.
        lengths: the shortest and the longest of training; ``None`` for the task's.
        curriculum: ``"none"``; ``"schedule"``: the longest length grows in the first half of the steps; ``"mastery"``: it grows
            by one whenever nine tenths of the sequences of the last 20 batches of that length were right.
        learning_rate: of Adam, its peak under ``one_cycle``.
        schedule: ``"one_cycle"`` (Smith and Topin, 2019), or ``"constant"``.
        weight_decay: of AdamW.
        clip: the largest norm of the gradient.
        loss: ``"asked"`` for the mean over asked tokens, ``"row"`` for the mean over all, padding included, as in the paper.
        precision: of Lightning Fabric: ``"32-true"``, ``"bf16-mixed"`` and so on.
        validate_every: steps between validations, at which the weights to keep are chosen.
        validation_size: new sequences of ``select`` lengths at each validation.
        select: the split whose lengths decide which weights are kept, as the paper does with ``ood_easy``; the sequences are not
            those of the test. ``None`` keeps the last weights.
        test_size: the most sequences of every test set.
    """

    task: str
    model: str
    size: str = "small"
    task_options: Mapping[str, Any] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: int = 3000
    batch_size: int = 64
    one_length: bool = True
    lengths: tuple[int, int] | None = None
    curriculum: Curriculum = "none"
    learning_rate: float = 1e-3
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    weight_decay: float = 0.0
    clip: float = 1.0
    loss: Literal["asked", "row"] = "asked"
    precision: str = "32-true"
    validate_every: int = 250
    validation_size: int = 256
    select: str | None = "ood_easy"
    test_size: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "validation_size", "test_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"training: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training: {name} must be above 0, got {getattr(self, name)}")
        choices = {
            "curriculum": ("none", "schedule", "mastery"),
            "schedule": ("one_cycle", "constant"),
            "loss": ("asked", "row"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"training: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.curriculum != "none" and not self.one_length:
            raise ValueError("training: a curriculum needs one_length: true, the longest length grows batch by batch")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON and YAML hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainingSettings:
        """Return the settings that ``as_dict`` gave, or a YAML file.

        Raises:
            ValueError: an unknown name, or a value that is refused.
        """
        check_names(cls, settings)
        values = dict(settings)
        if values.get("lengths") is not None:
            values["lengths"] = tuple(values["lengths"])
        return cls(**values)


def check_names(kind: type, settings: Mapping[str, Any]) -> None:
    """Check that all settings are attributes of the dataclass ``kind``.

    Raises:
        ValueError: one is not.
    """
    known = [part.name for part in dataclasses.fields(kind)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"training: no setting {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))


def presets() -> list[str]:
    """Return the names of all presets."""
    names = [f"{task}/{model}" for task in tasks.available() for model in models.available()]
    return [*names, *(f"{name}/paper" for name in names)]


def preset(name: str, **changes: Any) -> TrainingSettings:
    """Return the settings of a preset.

    Args:
        name: ``TASK/MODEL`` or ``TASK/MODEL/paper``.
        changes: settings in place of the preset's; ``task_options`` and ``model_options`` replace single options.

    Raises:
        ValueError: an unknown name, or changes that are refused.

    >>> preset("reduce/nam-tm", seed=3).seed
    3
    """
    task, _, rest = name.partition("/")
    model, _, size = rest.partition("/")
    if name not in presets():
        near = difflib.get_close_matches(name, presets(), n=1)
        raise ValueError(
            f"no preset {name!r}{f': did you mean {near[0]!r}?' if near else ''}; a preset is TASK/MODEL, or TASK/MODEL/paper"
        )
    table = _table()["paper" if size else "small"]
    levels = [
        table["all"],
        table.get("models", {}).get(model, {}),
        table.get("tasks", {}).get(task, {}),
        table.get("pairs", {}).get(f"{task}/{model}", {}),
        changes,
    ]
    found: dict[str, Any] = {"task": task, "model": model, "size": size or "small"}
    for level in levels:
        merged = {
            name: {**found.get(name, {}), **level[name]} for name in ("task_options", "model_options") if name in level
        }
        found |= {**level, **merged}
    return TrainingSettings.from_dict(found)


@functools.cache
def _table() -> dict[str, Any]:
    import yaml

    text = resources.files("fewshot_nam.sequences.training").joinpath("presets.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text)
    return table
