"""How much memory the toolkit's jobs take: how far a process's resident memory rises above its libraries and inputs.

    python scripts/benchmarks/peak_memory.py

Each job runs in a process of its own (Linux), after a small job of the same kind, so that buffers of libraries do not count.
"inputs" are the features or images that the job is given. First, an allocation of known size must be measured right. The memory
networks are measured by the part ``memory``.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmarking import Row, options_of, print_surroundings, save, surroundings, table

import backbones
from episodes import FeatureBank, evaluate, extract
from episodes.data.image_dataset import ArrayImages
from fewshot_nam.heads import create

MIB = 2**20


def bank(classes: int, each: int, width: int) -> FeatureBank:
    """Return a bank of random features."""
    rows = torch.randn(classes * each, width, generator=torch.Generator().manual_seed(0))
    return FeatureBank(rows, torch.arange(classes).repeat_interleave(each))


def allocation(size: int) -> tuple[Callable[[], object], int]:
    """Return an allocation of ``size`` MiB, whose peak is known."""
    return lambda: torch.ones(size * MIB // 4), 0


def evaluation(classes: int, each: int, width: int, episodes: int) -> tuple[Callable[[], object], int]:
    """Return open 5-way 5-shot episodes of two heads."""
    made = bank(classes, each, width)
    return lambda: evaluate(made, ["nam", "cosine"], shots=5, episodes=episodes), made.features.nbytes


def extraction(count: int, side: int) -> tuple[Callable[[], object], int]:
    """Return conv4 over ``count`` images, without a cache."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8)
    images = ArrayImages("noise", pixels, np.zeros(count, dtype=np.int64), ["a"])
    backbone = backbones.create("conv4")
    return lambda: extract(backbone, images, cache_dir=None, progress=False), pixels.nbytes


def writing(classes: int, width: int) -> tuple[Callable[[], object], int]:
    """Return a NAM head that learns ``classes`` classes of 5 images and answers 256 queries."""
    made = bank(classes, 5, width)

    def run() -> object:
        head = create("nam").write(made.features, made.labels)
        return head(made.features[:256])

    return run, made.features.nbytes


JOBS: dict[str, tuple[Callable[..., tuple[Callable[[], object], int]], tuple[int, ...], tuple[int, ...]]] = {
    "allocate 64 MiB": (allocation, (64,), (1,)),
    "evaluate 1,000 episodes, 100 x 600 x 640": (evaluation, (100, 600, 640, 1000), (10, 30, 640, 64)),
    "evaluate 10,000 episodes, the same": (evaluation, (100, 600, 640, 10_000), (10, 30, 640, 64)),
    "evaluate 1,000 episodes, 100 x 100 x 64": (evaluation, (100, 100, 64, 1000), (10, 30, 64, 64)),
    "extract 2,000 images, conv4": (extraction, (2000, 28), (64, 28)),
    "extract 16,000 images, conv4": (extraction, (16_000, 28), (64, 28)),
    "nam learns 200 classes x 5 x 640": (writing, (200, 640), (5, 640)),
    "nam learns 800 classes x 5 x 640": (writing, (800, 640), (5, 640)),
}
SHORT = ["allocate 64 MiB", "nam learns 200 classes x 5 x 640"]


def resident(field: str) -> int:
    """Return the resident bytes of this process: ``VmRSS`` now, ``VmHWM`` at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def measured(name: str) -> dict[str, int]:
    """Return the bytes of a job's inputs, and by how many this process grows while it runs."""
    torch.set_num_threads(1)
    make, sizes, small = JOBS[name]
    make(*small)[0]()
    job, inputs = make(*sizes)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the small job freed would hide growth
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is reset
    before = resident("VmRSS")
    job()
    return {"inputs": inputs, "peak": resident("VmHWM") - before}


def main() -> None:
    """Measure each job in a process of its own, print a table, and write JSON if asked to."""
    parser = options_of(__doc__, "two jobs")
    parser.add_argument("--job", choices=JOBS, help="measure one, in this process, and print JSON")
    options = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        print("left out: memory is read from /proc, which is not here")
        return
    if options.job:
        print(json.dumps(measured(options.job)))
        return
    about = surroundings(1)
    print_surroundings(about)
    rows: list[Row] = []
    for name in SHORT if options.short else JOBS:
        done = subprocess.run([sys.executable, __file__, "--job", name], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        if name == "allocate 64 MiB" and not 63 <= found["peak"] / MIB <= 72:
            raise SystemExit(f"64 MiB are measured as {found['peak'] / MIB:.1f}: nothing else is measured")
        rows.append({"job": name, "inputs, MiB": found["inputs"] / MIB, "peak above them, MiB": found["peak"] / MIB})
    print("\n" + table(rows))
    save(options.json, about, vars(options), rows)


if __name__ == "__main__":
    main()
