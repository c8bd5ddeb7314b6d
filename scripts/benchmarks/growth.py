"""How cost grows with images, classes, ways, shots, queries and dimensions: slopes of processor time on log-log axes.

    pip install ".[plot]" && python scripts/benchmarks/growth.py

One variable at a time is doubled from a common starting point. A slope of 1 is a cost that grows in proportion, a slope of 0 one
that does not grow; it is fitted over the upper half of the sizes, where fixed costs count less. Three jobs: ``evaluate`` (closed
episodes, from drawing them to intervals; 1 head), a head's ``write`` of one class, and its scores of a batch of queries. First,
scores of a batch must be those of single queries, and ``evaluate`` must not depend on its batch size. The sizes of a job take
turns; medians, one thread. Where matplotlib is installed, ``growth.png`` beside the figures shows the curves.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarking import Row, check_same, options_of, print_surroundings, save, surroundings, table, take_turns

from episodes import FeatureBank, evaluate
from fewshot_nam.heads import Head, create

HEADS = ("nam", "cosine")
Sizes = dict[str, int]
# The starting point and the sizes of each variable, by job.
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
    # Where every answer is right there is no best temperature, and the search for it takes any number of steps.
    bank = FeatureBank(features(classes, each, sizes["dimensions"], noise=4.0), labels)
    chosen = {name: sizes[name] for name in ("ways", "shots", "queries", "episodes")}
    return lambda: evaluate(bank, [head], "closed", **chosen)  # type: ignore[arg-type]


def filled(head: str, sizes: Sizes) -> Head:
    """Return a head that has learned ``classes`` classes from ``shots`` images each, and answered once."""
    rows = features(sizes["classes"], sizes["shots"], sizes["dimensions"])
    made = create(head).write(rows, torch.arange(sizes["classes"]).repeat_interleave(sizes["shots"]))
    made(rows[:1])
    return made


def writing(head: str, sizes: Sizes) -> Callable[[], object]:
    """Return: learn one more class, answer one query (which is when heads derive what they need), and forget it."""
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


def check_numbers() -> None:
    """Exit where ``evaluate`` or scores depend on the size of a batch."""
    bank = FeatureBank(features(12, 20, 32), torch.arange(12).repeat_interleave(20))
    queries = features(3, 5, 32)
    for head in HEADS:
        whole, parts = (evaluate(bank, [head], "closed", episodes=20, batch_size=size).results for size in (20, 7))
        difference = abs(whole[head]["accuracy"]["mean"] - parts[head]["accuracy"]["mean"])
        check_same(f"evaluations of {head} with two batch sizes", difference, 1e-9)
        made = filled(head, {"classes": 5, "shots": 3, "dimensions": 32})
        difference = (made(queries) - torch.cat([made(query[None]) for query in queries])).abs().max().item()
        check_same(f"scores of {head} for a batch and for one query at a time", difference, 1e-4)


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Return the least-squares slope of log seconds over log sizes, over the upper half of the sizes (2 at least)."""
    kept = slice(min(len(sizes) // 2, len(sizes) - 2), None)
    x, y = [math.log(size) for size in sizes[kept]], [math.log(each) for each in seconds[kept]]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - middle_x) ** 2 for a in x)


def measure(job: str, head: str, repeats: int, most: int) -> list[Row]:
    """Return one row a variable."""
    make, (base, variables) = JOBS[job]
    rows = []
    for variable, every in variables.items():
        sizes = every[:most]
        runs = {str(size): make(head, base | {variable: size}) for size in sizes}
        found = take_turns(runs, repeats, time.process_time)
        seconds = [max(found[str(size)].median, 1e-9) for size in sizes]
        row: Row = {"job": job, "head": head, "variable": variable, "slope": slope(sizes, seconds)}
        rows.append({**row, "sizes": sizes, "ms": [1e3 * each for each in seconds]})
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """Draw the curves: one panel a job, one line a variable, over the multiple of the first size."""
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
        panel.set(title=job, xlabel="times the first size", ylabel="ms, processor time")
        panel.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Check, measure, print a table; write JSON and the figure if asked to."""
    options = options_of(
        __doc__, "two sizes of each variable, few episodes, one repeat, one head", repeats=5
    ).parse_args()
    about = surroundings(1)
    print_surroundings(about)
    check_numbers()
    print("neither evaluate nor scores depend on the size of a batch\n")
    most, repeats, heads = (2, 1, HEADS[:1]) if options.short else (99, options.repeats, HEADS)
    rows = [row for job in JOBS for head in heads for row in measure(job, head, repeats, most)]
    for row in rows:
        row["base"] = JOBS[row["job"]][1][0]
    shown = [{key: row[key] for key in ("job", "head", "variable", "slope")} for row in rows]
    for line, row in zip(shown, rows, strict=True):
        line["size: ms"] = ", ".join(f"{size}: {ms:.3g}" for size, ms in zip(row["sizes"], row["ms"], strict=True))
    print(table(shown))
    save(options.json, about, vars(options), rows)
    if options.json:
        if importlib.util.find_spec("matplotlib") is None:
            print('no figure: it needs matplotlib: pip install ".[plot]"')
        else:
            draw(rows, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
