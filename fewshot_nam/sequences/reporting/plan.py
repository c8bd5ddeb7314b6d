"""The plan of the published runs: which models are trained on which task, with how many seeds, and where they are measured."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fewshot_nam.io.atomic import replacing


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
        ValueError: an unknown field.
    """
    import yaml

    plan = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    try:
        return {name: Experiment(name, **fields) for name, fields in plan.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


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
    """
    from fewshot_nam.sequences.training import evaluate, load_trained, preset, train

    for label, seed in experiment.runs():
        directory = Path(runs) / experiment.name / f"{label}-{seed}"
        measured = directory / "lengths.json"
        if measured.is_file() or (models is not None and label not in models):
            continue
        name = experiment._preset(label)
        settings = preset(name, **{**experiment._changes(label), "seed": seed})
        result = train(settings, directory, resume=True, preset=name, device=device, progress=progress)
        assert result is not None  # nothing stops it
        model, task = load_trained(directory)
        accuracy = evaluate(model, task, experiment.lengths, experiment.size)
        with replacing(measured) as unfinished:
            unfinished.write_text(json.dumps(accuracy, indent=2) + "\n", encoding="utf-8")
        found = ", ".join(f"{at} {values[experiment.measure]:.3f}" for at, values in accuracy.items())
        report(f"{experiment.name}: {label} seed {seed}, {result['seconds']:.0f} s: {experiment.measure} at {found}")
