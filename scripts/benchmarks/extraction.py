"""Extraction against the backbone's forward pass alone: images a second, from files to features.

    python scripts/benchmarks/extraction.py

"forward" runs the backbone over the same images, transformed beforehand and kept in memory, in the same batches; "share" is what a
run reaches of its speed. Freed memory is kept, as in extraction; "forward, memory given back" is without that
(``fewshot_nam.keep_freed_memory``). "decode" only opens and transforms the images. A run cannot be faster than the slower of the
two, and without overlap no faster than "decode, then forward"; on a machine without an idle core the two limits are the same.
Images are made for the benchmark (photographs' size as JPEG, characters' size as PNG); where FEWSHOT_DATA is set, Tiny ImageNet's
are taken as well. First, extraction must give the features of the forward pass bit for bit, with and without workers; bfloat16's
are compared with float32's. All runs take turns; medians of wall-clock time. Weights are random. The backbone "waiting" only waits,
as a processor waits for a GPU: its share says how much of the decoding is hidden, even where no core is idle.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarking import Row, check_same, options_of, print_surroundings, save, surroundings, table, take_turns
from PIL import Image
from torch import Tensor, nn

import backbones
from backbones import Backbone
from backbones.conv5 import photo_transform
from episodes.data.folders import folder
from episodes.data.image_dataset import FileImages
from episodes.features.extraction import extract
from episodes.features.loading import ImageBatches
from fewshot_nam.heap import keep_freed_memory

RUNS: dict[str, dict[str, Any]] = {
    "extract": {},
    "extract, 1 worker": {"workers": 1},
    "extract, channels last": {"channels_last": True},
    "extract, bfloat16": {"precision": "bfloat16"},
    "extract, bfloat16, channels last": {"precision": "bfloat16", "channels_last": True},
}


class Waiting(nn.Module):
    """Waits 10 ms for each image, and gives the means of its channels."""

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(B, 3)`` of ``(B, 3, H, W)``."""
        time.sleep(0.01 * len(images))
        return images.mean(dim=(2, 3))


@dataclass(frozen=True)
class Problem:
    """``images`` of a source through a backbone, ``batch`` at a time."""

    backbone: str
    source: str
    images: int
    batch: int


PROBLEMS = [
    Problem("waiting", "made, 105 x 105 PNG", 192, 16),
    Problem("conv4", "made, 105 x 105 PNG", 1024, 64),
    Problem("conv5", "made, 256 x 256 JPEG", 512, 32),
    Problem("conv5", "Tiny ImageNet", 512, 64),
    Problem("torchvision/mobilenet_v2", "made, 256 x 256 JPEG", 192, 32),
]
SHORT = [Problem("conv4", "made, 105 x 105 PNG", 24, 8), Problem("conv5", "made, 256 x 256 JPEG", 12, 4)]


def made(source: str, count: int, root: Path) -> FileImages:
    """Return ``count`` smooth noisy images in the format of the source, in files below ``root``."""
    side, kind = (105, "png") if "PNG" in source else (256, "jpg")
    generator = np.random.default_rng(0)
    (root / "class").mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image = coarse.resize((side, side), Image.Resampling.BICUBIC)
        (image.convert("L") if kind == "png" else image).save(root / "class" / f"{number}.{kind}")
    return folder(root)


def images_of(problem: Problem, root: Path) -> FileImages | None:
    """Return a problem's images; ``None`` where they are missing."""
    if problem.source != "Tiny ImageNet":
        return made(problem.source, problem.images, root)
    place = Path(os.environ.get("FEWSHOT_DATA", ""), "tiny-imagenet", "novel")
    if "FEWSHOT_DATA" not in os.environ or not place.is_dir():
        return None
    whole, some = folder(place), slice(problem.images)
    return FileImages("tiny-imagenet", place, whole.files[some], whole.labels[some], whole.classes)


def check_features(backbone: Backbone, dataset: FileImages, batches: list[Tensor], size: int) -> str:
    """Exit where extraction does not give the features of the forward pass; return a line on how near bfloat16's are."""
    with torch.inference_mode():
        expected = torch.cat([backbone(batch) for batch in batches])
    farthest = 0.0
    for name, options in RUNS.items():
        found = extract(backbone, dataset, batch_size=size, cache_dir=None, progress=False, **options).features
        if "precision" in options:
            difference, limit = 1 - torch.cosine_similarity(found, expected).min().item(), 1e-2
            farthest = max(farthest, difference)
        else:
            difference = ((found - expected).abs().max() / expected.abs().max()).item()
            limit = 1e-4 if "channels_last" in options else 0.0
        check_same(f"features of {name!r} and of the forward pass", difference, limit)
    return f"extraction gives the bits of the forward pass; bfloat16's are within a cosine of 1 - {farthest:.0e}"


def measure(problem: Problem, repeats: int) -> list[Row]:
    """Time the runs of a problem, print a table, and return its rows."""
    torch.manual_seed(0)
    if problem.backbone == "waiting":
        backbone = Backbone("waiting", Waiting(), photo_transform, "photographs")
    else:
        backbone = backbones.create(problem.backbone, pretrained=False)
    with tempfile.TemporaryDirectory() as root:
        dataset = images_of(problem, Path(root))
        if dataset is None:
            print(f"\n{problem.backbone}, {problem.source}: left out, it is not below FEWSHOT_DATA")
            return []
        made_batches = ImageBatches(dataset, backbone.transform, problem.batch, False)
        batches = [batch for i in range(len(made_batches)) if (batch := made_batches[i].images) is not None]
        said = check_features(backbone, dataset, batches, problem.batch)

        @torch.inference_mode()
        def forward() -> None:
            for batch in batches:
                backbone(batch)

        def decode() -> None:
            for number in range(len(made_batches)):
                made_batches[number]

        def in_turn() -> None:
            for number in range(len(made_batches)):
                if (batch := made_batches[number].images) is not None:
                    with torch.inference_mode():
                        backbone(batch)

        def extraction(options: dict[str, Any]) -> Callable[[], object]:
            return lambda: extract(
                backbone, dataset, batch_size=problem.batch, cache_dir=None, progress=False, **options
            )

        runs: dict[str, Callable[[], object]] = {
            "forward": keep_freed_memory()(forward),
            "forward, memory given back": forward,
            "decode": decode,
            "decode, then forward": keep_freed_memory()(in_turn),
        }
        found = take_turns(runs | {name: extraction(options) for name, options in RUNS.items()}, repeats)
    rows: list[Row] = [
        {
            "run": name,
            "images/s": timing.rate(len(dataset)),
            "ms each": 1e3 * timing.median / len(dataset),
            "spread": timing.spread(1e-3 * len(dataset)),
            "share": found["forward"].median / timing.median,
        }
        for name, timing in found.items()
    ]
    shape = " x ".join(map(str, batches[0].shape[1:]))
    print(f"\n{problem.backbone} ({shape}), {problem.source}: {len(dataset)} images in batches of {problem.batch}")
    print(f"{said}\n{table(rows)}", flush=True)
    return [{"backbone": problem.backbone, "source": problem.source, **row} for row in rows]


def main() -> None:
    """Check, measure, print tables, and write JSON if asked to."""
    parser = options_of(__doc__, "few images, one repeat", repeats=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    about = surroundings(options.threads)
    print_surroundings(about)
    repeats = 1 if options.short else options.repeats
    rows = [row for problem in (SHORT if options.short else PROBLEMS) for row in measure(problem, repeats)]
    save(options.json, about, vars(options), rows)


if __name__ == "__main__":
    main()
