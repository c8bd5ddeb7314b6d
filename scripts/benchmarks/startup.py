"""How long it takes to start: ``--help``, and the default run with its features cached, against importing torch and no more.

    python scripts/benchmarks/startup.py

Fresh processes take turns. "x torch" compares medians of processor time with ``python -c "import torch"``; what a run imports
besides torch is listed from ``-X importtime``. First, the default run must print the same measures with cached features as without.
"""

from __future__ import annotations

import collections
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarking import Row, options_of, print_surroundings, save, surroundings, table

EVALUATE = str(Path(__file__).resolve().parent.parent / "episode_eval.py")
RUNS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "--help": [EVALUATE, "--help"],
    "default run": [EVALUATE, "--quiet", "--threads", "1"],
    "default run, 10 episodes": [EVALUATE, "--quiet", "--threads", "1", "--episodes", "10"],
}


def spent(arguments: list[str]) -> tuple[float, float]:
    """Return wall-clock and processor seconds of a fresh interpreter."""
    began = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen([sys.executable, *arguments], stdout=nowhere)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"python {' '.join(arguments)} failed")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def printed(*more: str) -> str:
    """Return what the short default run prints, without the time it took."""
    command = [sys.executable, *RUNS["default run, 10 episodes"], *more]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return "\n".join(line for line in lines if not line.startswith("  time:"))


def imported() -> dict[str, float]:
    """Return the milliseconds that imports of the default run take, by package, the slowest first."""
    command = [sys.executable, "-X", "importtime", *RUNS["default run, 10 episodes"]]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found: dict[str, float] = collections.defaultdict(float)
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)$", text, re.MULTILINE):
        found[name.partition(".")[0]] += int(own) / 1000
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> None:
    """Check, measure, print a table, and write JSON if asked to."""
    options = options_of(__doc__, "one repeat, and the default run is not timed", repeats=5).parse_args()
    repeats = 1 if options.short else options.repeats
    runs = {name: run for name, run in RUNS.items() if not options.short or "default" not in name}
    about = surroundings(1)
    print_surroundings(about)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FEWSHOT_NAM_CACHE"] = cache
        if printed() != printed():  # the first fills the cache
            raise SystemExit(
                "not the same work: the default run prints other measures with cached features than without"
            )
        print("the default run prints the same with cached features as without")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, arguments in runs.items():
                seconds[name].append(spent(arguments))
        packages = {} if options.short else imported()
    torch = statistics.median(cpu for _, cpu in seconds["import torch"])
    rows: list[Row] = []
    for name, each in seconds.items():
        walls, cpus = sorted(wall for wall, _ in each), sorted(cpu for _, cpu in each)
        rows.append(
            {
                "run": name,
                "processor s": statistics.median(cpus),
                "spread": f"{cpus[0]:.2f}-{cpus[-1]:.2f}",
                "x torch": statistics.median(cpus) / torch,
                "wall s": statistics.median(walls),
            }
        )
    print(f"\nmedians of {repeats}\n{table(rows)}")
    if packages:
        slowest = ", ".join(f"{name} {ms:.0f}" for name, ms in list(packages.items())[:8])
        print(f"\nimports of the default run, ms each package: {slowest}")
    save(options.json, about, vars(options), [*rows, {"imports, ms": packages}])


if __name__ == "__main__":
    main()
