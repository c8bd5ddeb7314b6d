"""Accuracy of a trained model on test sets and exact lengths, and trained models from their directories."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from fewshot_nam.io.json_files import read_mapping
from fewshot_nam.io.naming import naming
from fewshot_nam.sequences import models, tasks
from fewshot_nam.sequences.models import SequenceModel
from fewshot_nam.sequences.tasks import Batch, SequenceTask
from fewshot_nam.sequences.training.settings import TrainingSettings, naming_options

_TOKENS = 1 << 15  # of a batch: what fits into the memory of a small machine


@torch.no_grad()
def evaluate(
    model: SequenceModel, task: SequenceTask, tests: Iterable[str | int] | None = None, size: int = 1000
) -> dict[str, dict[str, float]]:
    """Return the accuracy on test sets and exact lengths.

    Args:
        model: is put into eval mode.
        task: whose sequences.
        tests: names of splits, or lengths; ``None`` for all splits but ``train``.
        size: the most sequences of each.

    Returns:
        For every test ``{"exact": share of sequences, "row": ..., "token": share of asked tokens}``; see ``tasks.Accuracy``. For a
        task that is ``causal`` also ``"bits"``: the mean of ``-log2`` of the probability of an asked token.
    """
    model.eval()
    chosen = [name for name in task.splits if name != "train"] if tests is None else list(tests)
    found = {}
    for test in chosen:
        if isinstance(test, int):
            batch = task.examples(test, size)
        else:
            whole = task.splits[test].size if test in task.splits else size
            batch = task.split(test, min(size, whole))
        predictions, surprise = [], 0.0
        for part, logits in _logits(model, batch):
            predictions.append(logits.argmax(-1))
            if task.causal:
                asked = logits[part.mask].double()
                surprise += float(F.cross_entropy(asked, part.targets[part.mask], reduction="sum")) / math.log(2)
        found[str(test)] = tasks.accuracy(torch.cat(predictions), batch)._asdict()
        if task.causal:
            found[str(test)]["bits"] = surprise / int(batch.mask.sum())
    return found


@torch.no_grad()
def predict(model: SequenceModel, batch: Batch) -> torch.Tensor:
    """Return the most likely tokens ``(B, T)`` on the CPU, batch by batch."""
    return torch.cat([logits.argmax(-1) for _, logits in _logits(model, batch)])


def _logits(model: SequenceModel, batch: Batch) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yield parts of a batch that fit into memory, and their logits on the CPU."""
    device = next(model.parameters()).device
    rows = max(1, _TOKENS // batch.inputs.shape[1])
    for parts in zip(*(torch.split(whole, rows) for whole in batch), strict=True):
        part = Batch(*parts)
        yield part, model(part.inputs.to(device)).cpu()


def make_parts(settings: TrainingSettings, **task_options: Any) -> tuple[SequenceTask, SequenceModel]:
    """Return the task and a new model of a run; ``task_options`` are in place of the run's.

    Raises:
        ValueError: unknown names, or options that they do not take.
    """
    options = {**settings.task_options, **task_options}
    with naming_options(f"task {settings.task!r}", options):
        task = tasks.create(settings.task, **options)
    with naming_options(f"model {settings.model!r}", settings.model_options):
        return task, models.create(settings.model, task, settings.size, **settings.model_options)


def load_trained(directory: str | os.PathLike[str], **task_options: Any) -> tuple[SequenceModel, SequenceTask]:
    """Return the model of a finished training run, in eval mode, and its task.

    Args:
        directory: what ``train`` wrote: ``settings.json`` and ``model.safetensors``.
        task_options: in place of the run's, such as ``data_dir`` of SCAN.

    Raises:
        FileNotFoundError: the directory holds no finished run.
        ValueError: settings or weights that do not fit.
    """
    place = Path(directory)
    for name in ("settings.json", "model.safetensors"):
        if not (place / name).is_file():
            raise FileNotFoundError(f"{place} holds no finished training run: there is no {name}")
    path, meaning = place / "settings.json", "holds no settings of a training run"
    given = read_mapping(path, meaning)
    with naming(path, meaning):
        settings = TrainingSettings.from_dict(given)
    task, model = make_parts(settings, **task_options)
    with naming(weights := place / "model.safetensors", f"does not fit {settings.model}"):
        model.load_state_dict(load_file(weights))
    return model.eval(), task
