"""How long a training step of a sequence model takes: NAM-TM and LSAM against their baselines, at the paper's size or a small one.

    python scripts/benchmarks/sequences.py --size paper --batch 8

A step is forward, loss, backward and Adam, on the task ``reverse``. Models take turns. First, NAM-TM must give the same logits with
compiled kernels as without. Where no compiler is found, both are the same code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from benchmarking import Row, check_same, options_of, print_surroundings, save, surroundings, table, take_turns
from torch.nn import functional as F

from fewshot_nam.memory import NAMTuringMachine
from fewshot_nam.sequences import models, tasks
from fewshot_nam.sequences.models import SIZES, SequenceModel
from fewshot_nam.sequences.tasks import Batch

MODELS = ("lstm-attention", "transformer", "universal-transformer", "lsam", "nam-tm-no-jump", "nam-tm")


def without_kernel(model: SequenceModel) -> SequenceModel:
    """Return the model after telling its machines to use no compiled code."""
    for module in model.modules():
        if isinstance(module, NAMTuringMachine):
            module.backend = "scan"
    return model


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
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    options = parser.parse_args()
    size, repeats = ("tiny", 1) if options.short else (options.size, options.repeats)
    about = surroundings(options.threads)
    print_surroundings(about)
    task = tasks.create("reverse")
    batch = task.sample(options.batch, torch.Generator().manual_seed(0), options.length)
    torch.manual_seed(0)
    built = {name: models.create(name, task, size) for name in MODELS}
    plain = models.create("nam-tm", task, size)
    plain.load_state_dict(built["nam-tm"].state_dict())
    built["nam-tm, no compiled code"] = without_kernel(plain)
    with torch.inference_mode():
        fast, slow = (built[name].eval()(batch.inputs) for name in ("nam-tm", "nam-tm, no compiled code"))
    check_same("logits of NAM-TM with and without compiled code", float((fast - slow).abs().max()), 1e-3)
    times = take_turns({name: step_of(model, batch) for name, model in built.items()}, repeats)
    rows: list[Row] = [
        {
            "model": name,
            "parameters": built[name].num_parameters,
            "ms a step": time.median * 1e3,
            "range": time.spread(),
            "x lstm-attention": time.median / times["lstm-attention"].median,
        }
        for name, time in times.items()
    ]
    tokens = batch.inputs.shape[1]
    print(f"\nsize {size}, {options.batch} sequences of {tokens} tokens, medians of {repeats}\n{table(rows)}")
    save(options.json, about, vars(options), rows)


if __name__ == "__main__":
    main()
