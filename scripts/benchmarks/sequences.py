"""How long a training step of a sequence model takes: NAM-TM and LSAM against their baselines, at the paper's size or a small one.

    python scripts/benchmarks/sequences.py --size paper --batch 8

A step is forward, loss, backward and Adam, on the task ``reverse``. Models take turns; times are of the processor, on one thread,
which other work on the machine disturbs less than the clock. ``lstm`` is two layers of ``torch.nn.LSTM`` in both directions;
``dnc`` at the paper's size has 32 cells of 768 and 8 read heads. First, LSAM and NAM-TM must give the same logits with compiled
kernels as without; each is timed both ways. Where no compiler is found, both are the same code.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from benchmarking import Row, check_same, options_of, print_surroundings, save, surroundings, table, take_turns
from torch.nn import functional as F

import fewshot_nam
from fewshot_nam.sequences import models, tasks
from fewshot_nam.sequences.models import SIZES, SequenceModel
from fewshot_nam.sequences.tasks import Batch

MODELS = (
    *("lstm", "lstm-attention", "transformer", "universal-transformer", "dnc", "stm"),
    *("lsam", "nam-tm-no-jump", "nam-tm"),
)
COMPILED = ("lsam", "nam-tm")
# The DNC of the NAM paper; the published size of the model here is that of its own paper, for bAbI.
DNC: dict[str, Any] = {"width": 768, "cells": 32, "cell": 768, "heads": 8}
SWITCH = "FEWSHOT_NAM_COMPILE"


@contextmanager
def without_kernels() -> Iterator[None]:
    """Use no compiled code inside."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before


def plain(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that calls ``run`` without compiled code."""

    def call() -> Any:
        with without_kernels():
            return run()

    return call


def step_of(model: SequenceModel, batch: Batch) -> Callable[[], None]:
    """Return a function that takes one training step."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-4)
    model.train()

    def step() -> None:
        loss = F.cross_entropy(model(batch.inputs)[batch.mask], batch.targets[batch.mask])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def main() -> None:
    """Check, measure, print a table, and write JSON if asked to."""
    parser = options_of(__doc__, "the tiny size, one repeat", repeats=5)
    parser.add_argument("--size", choices=SIZES, default="paper", help="of all models (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step (default: %(default)s)")
    parser.add_argument("--length", type=int, default=10, help="digits of a sequence (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    options = parser.parse_args()
    size, repeats = ("tiny", 1) if options.short else (options.size, options.repeats)
    about = surroundings(options.threads)
    print_surroundings(about)
    task = tasks.create("reverse")
    batch = task.sample(options.batch, torch.Generator().manual_seed(0), options.length)
    torch.manual_seed(0)
    dnc = DNC if size == "paper" else {}
    built = {name: models.create(name, task, size, **(dnc if name == "dnc" else {})) for name in MODELS}
    runs = {name: step_of(model, batch) for name, model in built.items()}
    for name in COMPILED:
        model = built[name].eval()
        with torch.inference_mode():
            fast, slow = model(batch.inputs), plain(lambda model=model: model(batch.inputs))()  # type: ignore[misc]
        check_same(f"logits of {name} with and without compiled code", float((fast - slow).abs().max()), 1e-3)
        built[f"{name}, no compiled code"] = model
        runs[f"{name}, no compiled code"] = plain(runs[name])
        model.train()
    with fewshot_nam.keep_freed_memory():
        times = take_turns(runs, repeats, time.process_time)
    rows: list[Row] = [
        {
            "model": name,
            "parameters": built[name].num_parameters,
            "ms a step": time.median * 1e3,
            "range": time.spread(),
            "x lstm": time.median / times["lstm"].median,
        }
        for name, time in times.items()
    ]
    tokens = batch.inputs.shape[1]
    print(f"\nsize {size}, {options.batch} sequences of {tokens} tokens, medians of {repeats}\n{table(rows)}")
    save(options.json, about, vars(options), rows)


if __name__ == "__main__":
    main()
