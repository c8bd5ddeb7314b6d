"""Settings of a training run, and presets by name: ``TASK/MODEL`` for two processor cores, ``TASK/MODEL/paper`` as published."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from fewshot_nam.sequences import models, tasks

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Curriculum = Literal["none", "schedule", "mastery"]


_MOST = 100_000_000  # of anything that is counted, so that a slip is named and not run out of memory with
_LARGEST = 1e6  # learning rate and clip: single precision overflows far above


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
        first_longest: with ``"mastery"``, the longest length at first; ``None`` for one more than the shortest.
        optimiser: ``"adamw"``, or ``"rmsprop"`` with a momentum of 0.9, as in the STM paper.
        learning_rate: of the optimiser, its peak under ``one_cycle``.
        schedule: ``"one_cycle"`` (Smith and Topin, 2019), or ``"constant"``.
        weight_decay: of the optimiser.
        clip: the largest norm of the gradient.
        loss: ``"asked"`` for the mean over asked tokens, ``"row"`` for the mean over all, padding included, as in the paper.
        label_smoothing: the share of the target that is spread evenly over all tokens (Szegedy et al., 2016), 0 to below 1.
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
    first_longest: int | None = None
    optimiser: Literal["adamw", "rmsprop"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    weight_decay: float = 0.0
    clip: float = 1.0
    loss: Literal["asked", "row"] = "asked"
    label_smoothing: float = 0.0
    precision: str = "32-true"
    validate_every: int = 250
    validation_size: int = 256
    select: str | None = "ood_easy"
    test_size: int = 1000

    def __post_init__(self) -> None:
        check_types("training", self)
        for name in ("steps", "batch_size", "validate_every", "validation_size", "test_size"):
            if not 1 <= getattr(self, name) <= _MOST:
                raise ValueError(f"training: {name} must be from 1 to {_MOST:,}, got {getattr(self, name)}")
        if self.lengths is not None and self.lengths[1] > _MOST:
            raise ValueError(f"training: lengths must be at most {_MOST:,}, got {self.lengths[1]}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) <= _LARGEST:
                raise ValueError(
                    f"training: {name} must be above 0 and at most {_LARGEST:g}, got {getattr(self, name)}"
                )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"training: label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        choices = {
            "curriculum": ("none", "schedule", "mastery"),
            "optimiser": ("adamw", "rmsprop"),
            "schedule": ("one_cycle", "constant"),
            "loss": ("asked", "row"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"training: {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.first_longest is not None and self.curriculum != "mastery":
            raise ValueError("training: first_longest is for the curriculum mastery")
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
        if (lengths := values.get("lengths")) is not None:
            whole = isinstance(lengths, (list, tuple)) and all(type(length) is int for length in lengths)
            if not whole or len(lengths) != 2 or not 0 <= lengths[0] <= lengths[1]:
                raise ValueError(f"training: lengths must be the shortest and the longest, got {lengths!r}")
            values["lengths"] = tuple(lengths)
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


def check_types(what: str, settings: DataclassInstance) -> None:
    """Check that the values of a dataclass are of the types of their defaults: finite numbers, booleans, texts and mappings.

    Raises:
        ValueError: one is not.
    """
    for part in dataclasses.fields(settings):
        value = getattr(settings, part.name)
        default = part.default_factory() if part.default_factory is not dataclasses.MISSING else part.default
        wanted = _WANTED.get(str if part.type in ("str", str) else type(default))  # names have no default
        if wanted is None or (value is None and "None" in str(part.type)):
            continue
        expected, types = wanted
        wrong_flag = isinstance(value, bool) is not isinstance(default, bool)
        if not isinstance(value, types) or wrong_flag or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{what}: {part.name} must be {expected}, got {value!r}")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise ValueError(f"{what}: {part.name} must be below 2^63, got {value}")
        if isinstance(value, Mapping):
            check_options(what, part.name, value)


def check_options(what: str, name: str, options: Any) -> None:
    """Check that options are a mapping from names.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise ValueError(f"{what}: {name} must be a mapping of options, got {options!r}")


@contextlib.contextmanager
def naming_options(what: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Turn what is raised while a part of a run is made with options that it cannot take into one ``ValueError``, in one line."""
    try:
        yield
    except (
        TypeError,
        RuntimeError,
        ArithmeticError,
        LookupError,
        AssertionError,
        AttributeError,
        MemoryError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the {what} cannot be made with the options {dict(options)}: {reason}") from None


_WANTED: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a finite number", (int, float)),
    str: ("text", (str,)),
    dict: ("a mapping of options", (Mapping,)),
}


def presets() -> list[str]:
    """Return the names of all presets."""
    names = [f"{task}/{model}" for task in tasks.available() for model in models.available()]
    return [*names, *(f"{name}/paper" for name in names)]


def preset(name: str, /, **changes: Any) -> TrainingSettings:
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
    for options in ("task_options", "model_options"):
        check_options("training", options, changes.get(options, {}))
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
