"""What a memory for a head costs a vision model: scoring beside a forward pass, and learning a class from one picture.

    pip install ".[vision]" && python scripts/benchmarks/attach.py

A model of timm with random weights (they do not change the time), already transformed pictures, one thread, a memory that knows
some number of classes by one picture each; freed memory is kept (``keep_freed_memory``). First the model must give the same scores
as its parts; then everything takes turns, and each reports its median of the repeats in processor seconds. ``head`` is what the
head adds to the backbone's pass over a batch; ``learn`` is ``learn`` of a new class from one picture, its backbone's pass
included, and ``then`` what deriving the memory anew adds once, to the first scores after it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarking import save, surroundings

from fewshot_nam import NAMModel, attach, keep_freed_memory

WIDTHS = (10, 9, 11, 9, 9, 8, 10, 9)  # of the table's columns


def knowing(model: str, classes: int, seed: int) -> NAMModel:
    """Return a model that knows ``classes`` classes, by random features of the backbone's width."""
    import timm

    nam = attach(timm.create_model(model))
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
    """Return the median processor seconds of each part, the parts taking turns."""
    one = batch[:1]
    features = nam.backbone(batch)
    if not torch.equal(nam(batch), nam.head(features)):
        raise SystemExit("not the same work: the model's scores are not those of its head on its backbone's features")

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
        nam.head(features)  # the memory as it stands is derived once; what follows is what every batch pays
        found.setdefault("head", []).append(seconds(lambda: nam.head(features)))
        learning, scoring = relearn()
        found.setdefault("learn", []).append(learning)
        found.setdefault("then", []).append(max(0.0, scoring - found["head"][-1]))
    return {part: statistics.median(times) for part, times in found.items()}


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenetv2_100", help="a model of timm")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, nargs="+", default=[5, 100, 1_000, 10_000])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0, help="of weights and features")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    import timm

    about = surroundings(threads=1) | {"timm": timm.__version__}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    torch.manual_seed(options.seed)
    rows: list[dict[str, Any]] = []
    for classes in options.classes:
        nam = knowing(options.model, classes, options.seed)
        blank = nam.backbone.transform(_white())
        batch = torch.rand(options.batch, *blank.shape, generator=torch.Generator().manual_seed(options.seed))
        with keep_freed_memory():
            times = measure(nam, batch, options.repeats)
        if not rows:
            size = "x".join(map(str, blank.shape[1:]))
            print(f"\n{options.model}, {size}, batch {options.batch}, milliseconds, median of {options.repeats}")
            columns = zip(
                ("forward", "head", "x forward", "one", "learn", "x one", "then", "x one"), WIDTHS, strict=True
            )
            print(f"{'classes':>8}" + "".join(f"{name:>{width}}" for name, width in columns))
        ratios = {
            "head / forward": times["head"] / times["forward"],
            "learn / forward of one": times["learn"] / times["forward of one"],
            "then / forward of one": times["then"] / times["forward of one"],
        }
        ms = {part: 1e3 * value for part, value in times.items()}
        print(
            f"{classes:>8,}{ms['forward']:>10.1f}{ms['head']:>9.2f}{ratios['head / forward']:>11.4f}{ms['forward of one']:>9.1f}"
            f"{ms['learn']:>9.1f}{ratios['learn / forward of one']:>8.2f}{ms['then']:>10.1f}{ratios['then / forward of one']:>9.2f}"
        )
        rows.append({"classes": classes, "seconds": times, **ratios})
    if options.json:
        save(options.json, about, vars(options), rows)


def _white() -> Any:
    from PIL import Image

    return Image.new("RGB", (256, 256), "white")


if __name__ == "__main__":
    main()
