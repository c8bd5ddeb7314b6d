"""A model that learns, forgets, is saved and loaded for a long time is the one that would be built afresh, and grows no fatter.

``FEWSHOT_LONG_LIFE=100000 pytest -s tests/vision/test_long_life.py`` does it a hundred thousand times and prints what came of it.
"""

import itertools
import os
import random
import time

import pytest
import torch

from fewshot_nam.heads import NAMHead

OPERATIONS = int(os.environ.get("FEWSHOT_LONG_LIFE", "3000"))
IMAGES, MOST = 40, 60  # images to choose from, and features that are held at most
LABELS = ["a", "b", "c", 1, 2, 3, "4", "5"]
GROWTH = 2**20  # bytes in a fifth of the time: a leak shows in each, what an allocator takes for once in one


def resident():
    """Return the bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_random_operations_leave_no_drift_and_no_leak(nam, painted, tmp_path):
    ready = torch.stack([nam.backbone.transform(painted(i)) for i in range(IMAGES)])
    features = torch.cat([nam.features(ready[i : i + 1]) for i in range(IMAGES)])
    chance, path = random.Random(0), tmp_path / "a.safetensors"
    held: list[tuple[int, str | int]] = []  # which image was learned as what, in order
    nam.save(path)
    saved = list(held)
    counts = dict.fromkeys(("learn", "forget", "save", "load"), 0)
    worst, sizes, files, began = 0.0, [], 0, time.perf_counter()
    for number in range(OPERATIONS):
        operation = chance.choices(list(counts), (50, 30, 10, 10))[0]
        if (operation == "forget" and not held) or (operation == "learn" and len(held) >= MOST):
            operation = "save"
        counts[operation] += 1
        if operation == "learn":
            chosen = [(chance.randrange(IMAGES), chance.choice(LABELS)) for _ in range(chance.randint(1, 3))]
            nam.learn(ready[[i for i, _ in chosen]], [label for _, label in chosen])
            held = held + chosen
        elif operation == "forget":
            label = chance.choice(held)[1]
            nam.forget(label)
            held = [entry for entry in held if entry[1] != label]
        elif operation == "save":
            nam.save(path)
            saved = held
        else:
            nam.load(path)
            held = saved
        if held and (number % 50 == 0 or number == OPERATIONS - 1):
            fresh = NAMHead().write(features[[i for i, _ in held]], [label for _, label in held])
            assert nam.classes == fresh.classes
            worst = max(worst, float((nam.head(features) - fresh(features)).abs().max()))
            assert worst < 1e-5
        if number % (OPERATIONS // 5) == 0:
            sizes.append(resident())
            files = files or open_files()
    sizes = [*sizes[1:5], resident()]
    grown = sizes[-1] - sizes[0]
    took = time.perf_counter() - began
    print(
        f"\n{OPERATIONS:,} operations ({', '.join(f'{count:,} {name}' for name, count in counts.items())}) in {took:.0f} s: scores "
        f"differ from a fresh head's by at most {worst:.1e}; memory grew by {grown / 2**20:.2f} MiB over the last four fifths"
    )
    assert min(counts.values()) > OPERATIONS / 20
    assert open_files() == files
    assert min(after - before for before, after in itertools.pairwise(sizes)) < GROWTH
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
