"""The training loop: new sequences without end, the longest length growing where asked, weights chosen on longer ones.

Devices, precision and gradients go through Lightning Fabric, which leaves the loop to the caller. Exact resuming is done here
(``checkpoint.py``), as no file is unpickled. Fabric's cost per step has not been compared with Accelerate's.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewshot_nam.heap import keep_freed_memory
from fewshot_nam.io.tensor_files import write_tensors
from fewshot_nam.sequences import tasks
from fewshot_nam.sequences.tasks import Batch
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
from fewshot_nam.sequences.training.evaluation import evaluate, make_parts, predict
from fewshot_nam.sequences.training.settings import TrainingSettings

_COLUMNS = ("step", "seconds", "loss", "exact", "token", "longest", "validation_exact", "validation_token")
_MASTERED, _WATCHED = 0.9, 20


def train(
    settings: TrainingSettings,
    directory: str | os.PathLike[str],
    *,
    resume: bool = False,
    preset: str = "",
    device: str = "auto",
    progress: bool = False,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[int], bool] | None = None,
) -> dict[str, Any] | None:
    """Train a model, and return what is in ``result.json``.

    ``directory`` then holds ``settings.json``, ``log.csv``, ``model.safetensors`` and ``result.json``; while training also
    ``checkpoint.safetensors``, from which a killed run goes on as if it had not been killed.

    Args:
        settings: what to do.
        directory: made where it is not there.
        resume: go on from the checkpoint; without one, begin.
        preset: name of the preset, for ``result.json``.
        device: of Lightning Fabric: ``"auto"``, ``"cpu"``, ``"cuda"``.
        progress: show a progress bar on stderr.
        checkpoint_seconds: the most seconds of work that are lost when the process is killed.
        stop: is called with the number of finished steps; True saves a checkpoint and returns ``None``.

    Raises:
        FloatingPointError: the gradient is not finite.
        ImportError: the extra ``sequences`` is not installed.
        ValueError: the directory holds another run, or a finished or unfinished one and ``resume`` is not set; or its
            checkpoint is damaged.
    """
    run = _Run(settings, Path(directory), resume, preset, device)
    with keep_freed_memory():  # the tensors of a step are as large as those of the step before
        return run.go(progress, checkpoint_seconds, stop)


class _Run:
    def __init__(self, settings: TrainingSettings, directory: Path, resume: bool, preset: str, device: str) -> None:
        self.settings, self.directory, self.preset = settings, directory, preset
        self.fabric = _fabric(device, settings.precision)
        torch.manual_seed(settings.seed)
        self.task, self.model = make_parts(settings)
        if settings.select is not None and settings.select not in self.task.splits:
            raise ValueError(f"training: select must be one of {', '.join(self.task.splits)}, got {settings.select!r}")
        if settings.select is not None and self.task.given:
            raise ValueError(
                f"training: the sequences of {settings.task} are given, and weights are not chosen by them: select must be "
                "null"
            )
        train_lengths = self.task.splits["train"].lengths if settings.lengths is None else settings.lengths
        self.shortest, self.longest = (
            (train_lengths, train_lengths) if isinstance(train_lengths, int) else train_lengths
        )
        first = min(self.shortest + 1, self.longest) if settings.first_longest is None else settings.first_longest
        if not self.shortest <= first <= self.longest:
            raise ValueError(f"training: first_longest must be from {self.shortest} to {self.longest}, got {first}")
        self.now_longest = self.longest if settings.curriculum == "none" else first
        claim(self.directory, settings, resume)
        self.optimiser = _optimiser(settings, self.model)
        self.net, self.optimiser = self.fabric.setup(self.model, self.optimiser)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.step, self.seconds, self.best_score = 0, 0.0, -1.0
        self.best: dict[str, Tensor] = {}
        self.recent: deque[float] = deque(maxlen=_WATCHED)
        if resume and self.checkpoint.is_file():
            self._load()

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint.safetensors"

    def go(self, progress: bool, every: float, stop: Callable[[int], bool] | None) -> dict[str, Any] | None:
        if (found := finished_result(self.directory)) is not None:  # resumed after it had finished
            return found
        log = open_log(self.directory, self.step)
        began, saved = time.perf_counter() - self.seconds, time.perf_counter()
        with log, _bar(progress, self.settings.steps, self.step) as bar:
            rows = csv.writer(log)
            if not log.tell():
                rows.writerow(_COLUMNS)
            while self.step < self.settings.steps:
                loss, accuracy = self._one_step()
                self.seconds = time.perf_counter() - began
                last = self.step == self.settings.steps
                bar(loss, accuracy)
                if self.step % self.settings.validate_every == 0 or last:
                    checked = self._validate()
                    numbers = (self.seconds, loss, accuracy.exact, accuracy.token)
                    chosen = ("", "") if checked is None else (f"{checked.exact:.4f}", f"{checked.token:.4f}")
                    rows.writerow((self.step, *(f"{number:.4f}" for number in numbers), self.now_longest, *chosen))
                    log.flush()
                stopped = stop is not None and stop(self.step)
                if stopped or last or time.perf_counter() - saved > every:
                    self._save()
                    saved = time.perf_counter()
                if stopped and not last:
                    return None
        return self._finish()

    def _one_step(self) -> tuple[float, tasks.Accuracy]:
        settings = self.settings
        self.model.train()
        self._set_learning_rate()
        batch = self._batch()
        device = self.fabric.device
        targets, mask = batch.targets.to(device), batch.mask.to(device)
        logits = self.net(batch.inputs.to(device), mask if settings.loss == "asked" else None)
        if settings.loss == "asked":
            logits_of_loss, targets_of_loss = logits[mask], targets[mask]
        else:
            logits_of_loss, targets_of_loss = logits, targets
        loss = F.cross_entropy(
            logits_of_loss.flatten(0, -2).float(), targets_of_loss.flatten(), label_smoothing=settings.label_smoothing
        )
        self.optimiser.zero_grad()
        self.fabric.backward(loss)
        with naming_divergence(self.step):
            self.fabric.clip_gradients(self.net, self.optimiser, max_norm=settings.clip, error_if_nonfinite=True)
        self.optimiser.step()
        self.step += 1
        accuracy = tasks.accuracy(logits.detach().argmax(-1).cpu(), batch)
        self._grow(batch, accuracy)
        return float(loss.detach()), accuracy

    def _batch(self) -> Batch:
        lengths: int | tuple[int, int] = (self.shortest, self.now_longest)
        if self.settings.one_length:
            lengths = int(torch.randint(self.shortest, self.now_longest + 1, (), generator=self.generator))
            # Half of the batches have the longest length while it grows: it is the one to be mastered.
            if self.settings.curriculum == "mastery" and self.step % 2:
                lengths = self.now_longest
        self._length = lengths
        return self.task.sample(self.settings.batch_size, self.generator, lengths)

    def _grow(self, batch: Batch, accuracy: tasks.Accuracy) -> None:
        """Let the longest length grow, as the curriculum says."""
        span = self.longest - self.shortest
        if self.settings.curriculum == "schedule":
            grown = self.shortest + 1 + int(2 * span * self.step / self.settings.steps)
            self.now_longest = min(self.longest, grown)
        elif self.settings.curriculum == "mastery" and self._length == self.now_longest:
            self.recent.append(accuracy.exact)
            if len(self.recent) == _WATCHED and sum(self.recent) > _MASTERED * _WATCHED:
                self.now_longest = min(self.longest, self.now_longest + 1)
                self.recent.clear()

    def _set_learning_rate(self) -> None:
        rate = self.settings.learning_rate
        if self.settings.schedule == "one_cycle":
            rate *= _one_cycle(self.step / self.settings.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def _validate(self) -> tasks.Accuracy | None:
        """Keep the weights if they are the best so far on new sequences of the lengths that decide."""
        settings = self.settings
        found = None
        if settings.select is not None:
            self.model.eval()
            chance = torch.Generator().manual_seed(
                settings.seed + 1
            )  # the same sequences every time; not those of the test
            lengths = self.task.splits[settings.select].lengths
            batch = self.task.sample(settings.validation_size, chance, lengths)
            found = tasks.accuracy(predict(self.model, batch), batch)
        score = float("inf") if found is None else found.exact + found.token / 1000  # tokens decide between equals
        if found is None or score >= self.best_score:
            self.best_score = score
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        return found

    def _finish(self) -> dict[str, Any]:
        self.model.load_state_dict(self.best)
        write_tensors(self.directory / "model.safetensors", self.best)
        settings = self.settings
        result = {
            "task": settings.task,
            "model": settings.model,
            "preset": self.preset,
            "seed": settings.seed,
            "parameters": self.model.num_parameters,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "accuracy": evaluate(self.model, self.task, size=settings.test_size),
        }
        write_text(self.directory / "result.json", json.dumps(result, indent=2) + "\n")
        self.checkpoint.unlink(missing_ok=True)
        return result

    def _save(self) -> None:
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "best_score": self.best_score if self.best_score < float("inf") else None,
            "now_longest": self.now_longest,
            "recent": list(self.recent),
            "generator": self.generator.get_state().tolist(),
        }
        save_checkpoint(self.checkpoint, self.model, self.best, self.optimiser, progress)

    def _load(self) -> None:
        with naming_checkpoint(self.checkpoint):
            self.best, progress = load_checkpoint(self.checkpoint, self.model, self.optimiser)
            self.step = check_number(progress, "step", 0, self.settings.steps, whole=True)
            self.seconds = check_number(progress, "seconds", 0)
            if self.best or self.step >= min(self.settings.validate_every, self.settings.steps):
                check_fit(self.best, self.model.state_dict(), "the best weights")
            best = progress["best_score"]
            self.best_score = math.inf if best is None else check_number(progress, "best_score", -1, 2)
            self.now_longest = check_number(progress, "now_longest", self.shortest, self.longest, whole=True)
            self.recent.extend(check_numbers(progress, "recent", _WATCHED))
            self.generator.set_state(torch.tensor(progress["generator"], dtype=torch.uint8))


def _optimiser(settings: TrainingSettings, model: nn.Module) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimiser == "rmsprop":
        return torch.optim.RMSprop(model.parameters(), rate, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)


def _one_cycle(share: float) -> float:
    """Return the learning rate, its peak being 1: up over the first tenth, then down along a cosine."""
    if share < 0.1:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * share / 0.1)) / 2
    return (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2


def _fabric(device: str, precision: str) -> Any:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise ImportError('training needs Lightning Fabric: pip install "fewshot-nam[sequences]"') from error
    check_device(device)
    options: Any = {"accelerator": device, "devices": "auto" if device == "cuda" else 1, "precision": precision}
    fabric = Fabric(**options)
    fabric.launch()
    return fabric


@contextlib.contextmanager
def _bar(shown: bool, total: int, done: int) -> Iterator[Callable[[float, tasks.Accuracy], None]]:
    """Give a function that moves a progress bar by one step and shows loss and accuracies; it does nothing where none is shown."""
    if not shown:
        yield lambda loss, accuracy: None
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=done, unit="step", mininterval=0.5) as bar:

        def show(loss: float, accuracy: tasks.Accuracy) -> None:
            bar.set_postfix_str(
                f"loss {loss:.3f}, exact {accuracy.exact:.2f}, token {accuracy.token:.2f}", refresh=False
            )
            bar.update()

        yield show
