"""Classes learned one by one, up to 10,000, each tenth of them forgotten again: time and memory a class.

First it checks that forgetting is exact: a head that learned classes one by one and forgot each tenth scores as one that was given
the others alone. "write": learn one more class from one image. "answer": score one query after it, which is when a head derives
what it needs; it looks at every class, so it grows with their number. "forget": forget one class again. "kept": bytes of the head's
state a class. "noticed": find that an image was learned before. Times are processor time.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import torch
from benchmarking import check_same, options_of, print_surroundings, save, surroundings, table

from fewshot_nam.heads import BaseStatistics, Head, create

HEADS = ("nam", "nam-recursive", "cosine")
SIZES = (100, 300, 1_000, 3_000, 10_000)
LARGEST = {"nam-recursive": 3_000}  # each further image changes a (D, D) matrix: all 10,000 take half an hour
LAST = 50  # classes over which a time is a mean
Row = dict[str, Any]


def features(count: int, width: int, seed: int) -> torch.Tensor:
    """Return features above 0, as those of networks that end in a ReLU."""
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed)) + 0.01


def made(head: str, width: int) -> Head:
    """Return a head that knows the images of 20 base classes."""
    labels = torch.arange(20).repeat_interleave(20)
    rows = features(400, width, 1) + 3 * features(20, width, 2)[labels]
    return create(head, BaseStatistics.from_features(rows, labels))


def check_forgetting(head: str, classes: int, width: int) -> None:
    """Exit where a head that forgot is another than one that never saw the classes."""
    rows, one_by_one, never = features(classes, width, 3), made(head, width), made(head, width)
    for i in range(classes):
        one_by_one.write(rows[i], i)
        one_by_one(rows[:1])
        if i % 10 == 9:
            one_by_one.forget(i)
    stay = [i for i in range(classes) if i % 10 != 9]
    never.write(rows[stay], stay)
    query = features(5, width, 4)
    if one_by_one.classes != never.classes:
        raise SystemExit(f"{head}: forgetting left other classes")
    check_same(f"scores of {head} after forgetting", (one_by_one(query) - never(query)).abs().max().item(), 1e-4)


def measure(name: str, sizes: list[int], width: int) -> list[Row]:
    """Return one row a size."""
    head, rows, query = made(name, width), features(sizes[-1], width, 5), features(1, width, 6)
    found, learned = [], 0
    for size in sizes:
        while learned < size - LAST:
            head.write(rows[learned], learned)
            learned += 1
        head(query)
        began = time.process_time()
        for learned in range(size - LAST, size):
            head.write(rows[learned], learned)
        write = (time.process_time() - began) / LAST
        learned = size
        head(query)
        answers, forgets, noticed = [], [], []
        for i in range(3):
            began = time.process_time()
            head.write(features(1, width, 10 + i), f"more{i}")
            head(query)
            answers.append(time.process_time() - began)
        for i in range(3):
            began = time.process_time()
            head.learned_before(rows[i : i + 1])
            noticed.append(time.process_time() - began)
            began = time.process_time()
            head.forget(f"more{i}")
            forgets.append(time.process_time() - began)
        state = sum(
            tensor.nbytes for key, tensor in head.state_dict().items() if "base" not in key and "memor" not in key
        )
        times = {"write": write, "answer": min(answers), "forget": min(forgets), "noticed": min(noticed)}
        row: Row = {"head": name, "classes": size, **{f"{key}, ms": 1e3 * value for key, value in times.items()}}
        found.append({**row, "kept, bytes a class": round(state / size)})
        print(f"{name}: {size:,} classes", flush=True)
    return found


def draw(rows: list[Row], path: Path) -> None:
    """Draw time and memory over the number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, colour in zip(HEADS, ("C0", "C2", "C1"), strict=True):
        own = [row for row in rows if row["head"] == name]
        classes = [row["classes"] for row in own]
        for key, style in (("write, ms", "-o"), ("forget, ms", ":s"), ("answer, ms", "--^")):
            left.loglog(
                classes, [row[key] for row in own], style, color=colour, markersize=4, label=f"{name}: {key[:-4]}"
            )
        right.semilogx(classes, [row["kept, bytes a class"] for row in own], "-o", color=colour, label=name)
    left.set(title="one more class", xlabel="classes learned before", ylabel="ms, processor time")
    right.set(
        title="memory",
        xlabel="classes learned",
        ylabel="bytes a class",
        ylim=(0, 1.3 * max(row["kept, bytes a class"] for row in rows)),
    )
    for panel in (left, right):
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Check, measure, print a table; write JSON and the figure if asked to."""
    parser = options_of(__doc__, "300 classes and narrow features")
    parser.add_argument("--width", type=int, default=1280)
    options = parser.parse_args()
    sizes, width = ([100, 300], 32) if options.short else (list(SIZES), options.width)
    about = surroundings(1)
    print_surroundings(about)
    for head in HEADS:
        check_forgetting(head, 60 if options.short else 200, min(width, 64))
    print("a head that forgot classes scores as one that never saw them\n")
    rows = [row for head in HEADS for row in measure(head, [n for n in sizes if n <= LARGEST.get(head, n)], width)]
    print(f"\nwidth {width:,}\n{table(rows)}")
    save(options.json, about, {**vars(options), "width": width}, rows)
    if options.json and importlib.util.find_spec("matplotlib") is not None:
        draw(rows, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
