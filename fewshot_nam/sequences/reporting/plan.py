"""The plan of the published runs: which models are trained on which task, with how many seeds, and where they are measured."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming
from fewshot_nam.io.yaml_input import read_yaml, shown

if TYPE_CHECKING:
    from fewshot_nam.sequences.training.settings import TrainingSettings

_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Experiment:
    """One table: models trained on one task with one budget.

    Attributes:
        name: of the table and of its files.
        models: how many seeds each model has, from seed 0 on.
        lengths: the exact lengths at which trained models are measured.
        task: ``None`` for ``name``.
        measure: what the table shows: ``"exact"`` for whole sequences, ``"token"`` for single tokens, ``"bits"`` for
            the mean surprise at them.
        changes: settings in place of the preset's, for all models.
        options: options of single models in place of the preset's.
        variants: entries of ``models`` that are another model with other options: their model's name.
        axis: what the lengths are called on the plot, and below the table where it is not ``"length"``.
        size: sequences of every length that are measured.
        published: figures of others for the same task, to show below the table: a line of Markdown each.
    """

    name: str
    models: Mapping[str, int]
    lengths: Sequence[int]
    task: str | None = None
    measure: Literal["exact", "token", "bits"] = "exact"
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    axis: str = "length"
    size: int = 500
    published: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a field of another kind than it has, as a file may hold."""
        for name in ("models", "changes", "options", "variants"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise ValueError(f"{name} must be a mapping of names, got {shown(value)}")
        for name in ("lengths", "published"):
            if not isinstance(getattr(self, name), list | tuple):
                raise ValueError(f"{name} must be a list, got {shown(getattr(self, name))}")
        model_options = [*self.options.items(), ("changes", self.changes.get("model_options", {}))]
        for name, options in model_options:
            if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
                raise ValueError(f"the options of a model must be a mapping of names, got {shown(options)} of {name}")
        for text in (self.axis, *self.published, *self.variants.values(), *([] if self.task is None else [self.task])):
            if not isinstance(text, str):
                raise ValueError(f"task, axis, published and variants are text, got {shown(text)}")
        for name in (self.name, *self.models):  # of files and directories
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"experiments and models have names of letters, digits, _ and -, got {shown(name)}")
        counts = {"models": self.models.values(), "lengths": self.lengths, "size": [self.size]}
        for kind, numbers in counts.items():
            for number in numbers:
                if type(number) is not int or number < 1:
                    raise ValueError(f"{kind}: {shown(number)} is no whole number above 0")
        if max(self.models.values(), default=0) > _MOST_SEEDS:
            raise ValueError(f"a model has at most {_MOST_SEEDS:,} seeds, got {max(self.models.values()):,}")
        if self.measure not in ("exact", "token", "bits"):
            raise ValueError(f"measure must be exact, token or bits, got {shown(self.measure)}")

    def settings(self, label: str, seed: int) -> TrainingSettings:
        """Return the settings of one run."""
        from fewshot_nam.sequences.training import preset

        return preset(self._preset(label), **{**self._changes(label), "seed": seed})

    def runs(self) -> Iterator[tuple[str, int]]:
        """Yield label and seed of every run, all first seeds before all second ones."""
        for seed in range(max(self.models.values())):
            yield from ((label, seed) for label, seeds in self.models.items() if seed < seeds)

    def command(self, label: str, seed: int, runs: str = "runs") -> str:
        """Return the command that makes one run."""
        words = [f"python scripts/train_sequence.py --preset {self._preset(label)} --seed {seed}"]
        words.append(f"--out {runs}/{self.name}/{label}-{seed}")
        changes = self._changes(label)
        if changes:
            words.append("--set " + " ".join(f"'{name}={json.dumps(value)}'" for name, value in changes.items()))
        return " ".join(words)

    def _preset(self, label: str) -> str:
        return f"{self.task or self.name}/{self.variants.get(label, label)}"

    def _changes(self, label: str) -> dict[str, Any]:
        changes = dict(self.changes)
        if label in self.options:
            changes["model_options"] = {**changes.get("model_options", {}), **self.options[label]}
        return changes


def load_plan(path: str | os.PathLike[str]) -> dict[str, Experiment]:
    """Return the experiments of a plan, a YAML file that gives the fields of ``Experiment`` by name.

    Raises:
        OSError: there is no such file.
        ValueError: no such plan, or YAML that ``read_yaml`` refuses, such as aliases.
    """
    with naming(path, "is no plan of experiments"):
        plan = read_yaml(Path(path))
        return {name: Experiment(name, **fields) for name, fields in plan.items()}


def is_measured(experiment: Experiment, label: str, seed: int, directory: Path) -> bool:
    """Return whether a run is finished, and measured at the lengths of the plan on as many sequences.

    Raises:
        ValueError: it was trained with other settings than the plan's: its figures are not those of the plan's command.
    """
    from fewshot_nam.sequences.training.directory import changed_settings

    measured = directory / "lengths.json"
    if not measured.is_file():
        return False
    if other := changed_settings(directory, experiment.settings(label, seed)):
        raise ValueError(
            f"{directory} was trained with another {', '.join(other)} than the plan and the presets have: remove it"
        )
    found = read_mapping(measured, meaning := "holds no accuracies")
    with naming(measured, meaning):
        for values in found.values():
            _check_measures(values)
        sizes = {sequences(values, experiment) for values in found.values()}
    return sizes <= {experiment.size} and found.keys() >= {str(length) for length in experiment.lengths}


def _check_measures(values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless shares are from 0 to 1, and bits and sequences no negative numbers."""
    for name, value in values.items():
        most = math.inf if name in ("bits", "sequences") else 1
        if isinstance(value, bool) or not 0 <= value <= most or value == math.inf:
            raise ValueError(f"{name} is {value!r}")


def sequences(values: Mapping[str, float], experiment: Experiment) -> float:
    """Return on how many sequences a length was measured. Runs of older versions do not say it: it was the plan's number."""
    return values.get("sequences", experiment.size)


def carry_out(
    experiment: Experiment,
    runs: str | os.PathLike[str],
    *,
    models: Sequence[str] | None = None,
    device: str = "auto",
    progress: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Train and measure all runs of an experiment that are not there yet; what was killed goes on where it was.

    Args:
        experiment: whose runs.
        runs: the directory of ``EXPERIMENT/MODEL-SEED/``, each what ``train`` writes, and ``lengths.json``.
        models: labels of the models to train; ``None`` for all.
        device: of ``train``.
        progress: show progress bars on stderr.
        report: is called with a line after every run.

    Raises:
        ValueError: a run that is there has other settings than the plan.
    """
    from fewshot_nam.sequences.training import evaluate, load_trained, train

    for label, seed in experiment.runs():
        directory = Path(runs) / experiment.name / f"{label}-{seed}"
        measured = directory / "lengths.json"
        if (models is not None and label not in models) or is_measured(experiment, label, seed, directory):
            continue
        name, settings = experiment._preset(label), experiment.settings(label, seed)
        result = train(settings, directory, resume=True, preset=name, device=device, progress=progress)
        assert result is not None  # nothing stops it
        model, task = load_trained(directory)
        found = evaluate(model, task, experiment.lengths, experiment.size)
        accuracy = {at: {**values, "sequences": experiment.size} for at, values in found.items()}
        with replacing(measured) as unfinished:
            unfinished.write_text(json.dumps(accuracy, indent=2) + "\n", encoding="utf-8")
        at = ", ".join(f"{length} {values[experiment.measure]:.3f}" for length, values in accuracy.items())
        report(f"{experiment.name}: {label} seed {seed}, {result['seconds']:.0f} s: {experiment.measure} at {at}")
