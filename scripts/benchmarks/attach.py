"""What a memory in place of a classifier costs a vision model: scores beside a forward pass, and learning a class from one image.

    pip install ".[vision]" && python scripts/benchmarks/attach.py

A model of timm with random weights (they do not change the time), transformed images, one thread, and a memory that knows a number
of classes by one image each; freed memory is kept (``keep_freed_memory``). First, the model must give the same scores as its parts.
Then everything takes turns; medians of processor time in milliseconds. "head" is what the head adds to the backbone's forward pass
over a batch. "learn" is ``learn`` of a new class from one image, including the forward pass. "first scores" is how much longer the
first scores after it take than later ones, since the head derives its memory anew.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarking import Row, check_same, options_of, print_surroundings, save, surroundings, table

from fewshot_nam import NAMModel, attach, keep_freed_memory


def model_with(name: str, classes: int, seed: int) -> NAMModel:
    """Return a model that knows ``classes`` classes, by random features of the backbone's width."""
    import timm

    nam = attach(timm.create_model(name))
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(classes, nam.backbone.feature_dim, generator=generator)
    nam.head.write(features, range(classes))
    return nam


def seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds that ``work`` takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


@torch.no_grad()
def measure(nam: NAMModel, batch: torch.Tensor, repeats: int) -> dict[str, float]:
    """Return the median processor seconds of each part; the parts take turns."""
    one = batch[:1]
    features = nam.backbone(batch)
    check_same("scores of the model and of its parts", (nam(batch) - nam.head(features)).abs().max().item(), 0.0)

    def relearn() -> tuple[float, float]:
        learning = seconds(lambda: nam.learn(one, "new"))
        scoring = seconds(lambda: nam.head(features))
        nam.forget("new")
        return learning, scoring

    found: dict[str, list[float]] = {}
    relearn()
    for _ in range(repeats):
        found.setdefault("forward", []).append(seconds(lambda: nam.backbone(batch)))
        found.setdefault("forward of one", []).append(seconds(lambda: nam.backbone(one)))
        nam.head(features)  # derives the memory, so that the next line times what every later batch takes
        found.setdefault("head", []).append(seconds(lambda: nam.head(features)))
        learning, scoring = relearn()
        found.setdefault("learn", []).append(learning)
        found.setdefault("first scores", []).append(max(0.0, scoring - found["head"][-1]))
    return {part: statistics.median(times) for part, times in found.items()}


def blank_image() -> Any:
    """Return a white image."""
    from PIL import Image

    return Image.new("RGB", (256, 256), "white")


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = options_of(__doc__, "a batch of 2, 5 classes, one repeat", repeats=15)
    parser.add_argument("--model", default="mobilenetv2_100", help="a model of timm")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, nargs="+", default=[5, 100, 1_000, 10_000])
    parser.add_argument("--seed", type=int, default=0, help="of weights and features")
    options = parser.parse_args()
    if options.short:
        options.batch, options.classes, options.repeats = 2, [5], 1
    import timm

    about = surroundings(threads=1) | {"timm": timm.__version__}
    print_surroundings(about)
    torch.manual_seed(options.seed)
    rows: list[Row] = []
    lines: list[Row] = []
    for classes in options.classes:
        nam = model_with(options.model, classes, options.seed)
        shape = nam.backbone.transform(blank_image()).shape
        batch = torch.rand(options.batch, *shape, generator=torch.Generator().manual_seed(options.seed))
        with keep_freed_memory():
            times = measure(nam, batch, options.repeats)
        ratios = {
            "head / forward": times["head"] / times["forward"],
            "learn / forward of one": times["learn"] / times["forward of one"],
            "first scores / forward of one": times["first scores"] / times["forward of one"],
        }
        rows.append({"classes": classes, "seconds": times, **ratios})
        lines.append({"classes": classes, **{part: 1e3 * value for part, value in times.items()}, **ratios})
    size = "x".join(map(str, shape[1:]))
    print(f"\n{options.model}, {size}, batch {options.batch}, milliseconds, median of {options.repeats}")
    print(table(lines))
    save(options.json, about, vars(options), rows)


if __name__ == "__main__":
    main()
