"""How cost grows with images, classes, ways, shots, queries and dimensions: slopes of processor time on log-log axes.

    pip install ".[plot]" && python scripts/benchmarks/growth.py

One variable at a time is doubled from a common base point, the others stay. A slope of 1 is a cost that grows in proportion, 0 one
that does not grow; it is fitted over the upper half of the sizes, where fixed costs weigh less. Three jobs: ``evaluate``
(closed episodes, from drawing them to intervals; 1 head), a head's ``write`` of one class, and its scores of a batch of
queries. First, scores of whole batches must be those of single queries, and ``evaluate`` must not depend on its batch size. The
sizes of a job take turns; medians, one thread. Beside the figures, ``growth.png`` shows the curves where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarking import save, surroundings, table, take_turns

from episodes import FeatureBank, evaluate
from fewshot_nam.heads import Head, create

HEADS = ("nam", "cosine")
Sizes = dict[str, int]
# The base point and the sizes of each variable, by job.
EVALUATE: tuple[Sizes, dict[str, list[int]]] = (
    {"images": 100, "classes": 50, "ways": 5, "shots": 1, "queries": 15, "dimensions": 128, "episodes": 1000},
    {
        "images": [100, 200, 400, 800],
        "classes": [50, 100, 200, 400],
        "ways": [5, 10, 20, 40],
        "shots": [1, 2, 4, 8, 16, 32],
        "queries": [15, 30, 60],
        "dimensions": [128, 256, 512, 1024],
        "episodes": [1000, 2000, 4000, 8000],
    },
)
WRITE: tuple[Sizes, dict[str, list[int]]] = (
    {"classes": 50, "shots": 5, "dimensions": 256},
    {"classes": [50, 100, 200, 400, 800], "shots": [5, 10, 20, 40, 80], "dimensions": [256, 512, 1024, 2048]},
)
SCORE: tuple[Sizes, dict[str, list[int]]] = (
    {"classes": 100, "queries": 256, "dimensions": 256, "shots": 1},
    {
        "classes": [100, 200, 400, 800],
        "queries": [256, 512, 1024, 2048],
        "dimensions": [256, 512, 1024, 2048],
        "shots": [1, 2, 4, 8],
    },
)


def features(classes: int, each: int, dimensions: int, noise: float = 1.0) -> torch.Tensor:
    """Return ``(classes * each, dimensions)``, clustered by class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, 1, dimensions, generator=generator)
    return (centres + noise * torch.randn(classes, each, dimensions, generator=generator)).flatten(0, 1)


def evaluation(head: str, sizes: Sizes) -> Callable[[], object]:
    """Return an evaluation of these sizes."""
    classes, each = sizes["classes"], sizes["images"]
    labels = torch.arange(classes).repeat_interleave(each)
    # Where every answer is right no temperature is best, and the search for it takes as long as it likes.
    bank = FeatureBank(features(classes, each, sizes["dimensions"], noise=4.0), labels)
    chosen = {name: sizes[name] for name in ("ways", "shots", "queries", "episodes")}
    return lambda: evaluate(bank, [head], "closed", **chosen)  # type: ignore[arg-type]


def filled(head: str, sizes: Sizes) -> Head:
    """Return a head that has learned ``classes`` classes from ``shots`` pictures each, and answered once."""
    rows = features(sizes["classes"], sizes["shots"], sizes["dimensions"])
    made = create(head).write(rows, torch.arange(sizes["classes"]).repeat_interleave(sizes["shots"]))
    made(rows[:1])
    return made


def writing(head: str, sizes: Sizes) -> Callable[[], object]:
    """Return: learn one more class, answer one query (heads derive what they need then), and forget it."""
    made, more = filled(head, sizes), features(1, sizes["shots"], sizes["dimensions"])

    def run() -> None:
        made.write(more, "new")
        made(more[:1])
        made.forget("new")

    return run


def scoring(head: str, sizes: Sizes) -> Callable[[], object]:
    """Return: score a batch of queries."""
    made, queries = filled(head, sizes), features(1, sizes["queries"], sizes["dimensions"])
    return lambda: made(queries)


JOBS: dict[str, tuple[Callable[[str, Sizes], Callable[[], object]], tuple[Sizes, dict[str, list[int]]]]] = {
    "evaluate": (evaluation, EVALUATE),
    "write": (writing, WRITE),
    "score": (scoring, SCORE),
}


def same_numbers() -> str:
    """Return a line that says what agrees; leave the script where it does not."""
    bank = FeatureBank(features(12, 20, 32), torch.arange(12).repeat_interleave(20))
    queries = features(3, 5, 32)
    for head in HEADS:
        whole, parts = (evaluate(bank, [head], "closed", episodes=20, batch_size=size).results for size in (20, 7))
        if abs(whole[head]["accuracy"]["mean"] - parts[head]["accuracy"]["mean"]) > 1e-9:
            raise SystemExit(f"not the same work: evaluate of {head} depends on its batch size: nothing timed")
        made = filled(head, {"classes": 5, "shots": 3, "dimensions": 32})
        worst = (made(queries) - torch.cat([made(query[None]) for query in queries])).abs().max().item()
        if not worst <= 1e-4:
            raise SystemExit(f"not the same work: scores of {head} differ by {worst:.1e} one at a time: nothing timed")
    return "evaluate does not depend on its batch size, nor scores on theirs"


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Return the least-squares slope of log seconds over log sizes, over the upper half of the sizes (2 at least)."""
    kept = slice(min(len(sizes) // 2, len(sizes) - 2), None)
    x, y = [math.log(size) for size in sizes[kept]], [math.log(each) for each in seconds[kept]]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - middle_x) ** 2 for a in x)


def measure(job: str, head: str, repeats: int, most: int) -> list[dict[str, Any]]:
    """Return one row a variable."""
    make, (base, variables) = JOBS[job]
    rows = []
    for variable, every in variables.items():
        sizes = every[:most]
        runs = {str(size): make(head, base | {variable: size}) for size in sizes}
        found = take_turns(runs, repeats, time.process_time)
        seconds = [max(found[str(size)].median, 1e-9) for size in sizes]
        row: dict[str, Any] = {"job": job, "head": head, "variable": variable, "slope": slope(sizes, seconds)}
        rows.append({**row, "sizes": sizes, "ms": [1e3 * each for each in seconds]})
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the curves: a panel a job, a line a variable, over how many times the base size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(JOBS), figsize=(14, 4.5))
    for panel, job in zip(panels, JOBS, strict=True):
        for row in rows:
            if row["job"] == job:
                times = [size / row["sizes"][0] for size in row["sizes"]]
                style = "-o" if row["head"] == HEADS[0] else "--s"
                label = f"{row['head']}, {row['variable']}: {row['slope']:.2f}"
                panel.loglog(times, row["ms"], style, markersize=3, linewidth=1, label=label)
        panel.set(title=job, xlabel="times the base size", ylabel="ms, processor time")
        panel.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Check, measure, print a table; write JSON and the figure if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="two sizes of each variable, one repeat, one head")
    parser.add_argument("--json", type=Path, help="write the result here, and the figure beside it")
    options = parser.parse_args()
    about = surroundings(1)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(same_numbers() + "\n")
    most, repeats, heads = (2, 1, HEADS[:1]) if options.short else (99, options.repeats, HEADS)
    rows = [row for job in JOBS for head in heads for row in measure(job, head, repeats, most)]
    for row in rows:
        row["base"] = JOBS[row["job"]][1][0]
    shown = [{key: row[key] for key in ("job", "head", "variable", "slope")} for row in rows]
    for line, row in zip(shown, rows, strict=True):
        line["size: ms"] = ", ".join(f"{size}: {ms:.3g}" for size, ms in zip(row["sizes"], row["ms"], strict=True))
    print(table(shown))
    if options.json:
        save(options.json, about, vars(options), rows)
        if importlib.util.find_spec("matplotlib") is None:
            print('no figure: it needs matplotlib: pip install ".[plot]"')
        else:
            draw(rows, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
