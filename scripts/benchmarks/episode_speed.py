"""Episodes a second on one core: our evaluation against easyfsl's, in one run, on the same features.

    pip install ".[benchmark]" && python scripts/benchmarks/episode_speed.py

Closed N-way K-shot episodes on a bank of 100 classes x 600 x 640 float32 random features in clusters. Our side is the whole of
``evaluate``, from drawing the episodes to means and intervals (accuracy and calibration error); easyfsl's is its documented path:
``FeaturesDataset``, ``TaskSampler``, ``DataLoader`` and ``evaluate``. First both must find the same accuracy; then they take turns,
and each reports its median of the repeats in processor seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from episodes import FeatureBank, evaluate

CLASSES, PICTURES, WIDTH, QUERIES = 100, 600, 640, 15
HEADS = ["protonet", "cosine", "nam", "nam-sequential"]


def random_bank(seed: int) -> FeatureBank:
    """Return clustered features, hard enough that accuracy says something."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 1, WIDTH, generator=generator)
    features = centres + 5.0 * torch.randn(CLASSES, PICTURES, WIDTH, generator=generator)
    return FeatureBank(features.flatten(0, 1), torch.arange(CLASSES).repeat_interleave(PICTURES))


def easyfsl_run(bank: FeatureBank, ways: int, shots: int, episodes: int) -> Callable[[], float]:
    """Return easyfsl's evaluation of its prototypical networks, which gives the accuracy."""
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate as easyfsl_evaluate

    # Its sampler hands arguments to a constructor that current torch no longer has; without this line it cannot start.
    Sampler.__init__ = lambda self, data_source=None: None  # type: ignore[method-assign, assignment, misc]
    dataset = FeaturesDataset(bank.labels.tolist(), bank.features, [str(name) for name in bank.classes])
    sampler = TaskSampler(dataset, ways, shots, QUERIES, episodes)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    model = PrototypicalNetworks(nn.Identity())
    return lambda: easyfsl_evaluate(model, loader, device="cpu", use_tqdm=False)


def our_run(bank: FeatureBank, head: str, ways: int, shots: int, episodes: int) -> Callable[[], float]:
    """Return our evaluation of one head, which gives the accuracy."""

    def run() -> float:
        report = evaluate(bank, [head], "closed", ways, shots, QUERIES, episodes=episodes)
        return report.results[head]["accuracy"]["mean"]

    return run


def measure(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, tuple[list[float], float]]:
    """Return processor seconds of every repeat and the accuracy, the runs taking turns."""
    found: dict[str, tuple[list[float], float]] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.process_time()
            accuracy = run()
            found.setdefault(name, ([], accuracy))[0].append(time.process_time() - began)
    return found


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the features")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bank = random_bank(options.seed)
    import easyfsl

    peer = getattr(easyfsl, "__version__", "1.5.0")
    print(
        f"torch {torch.__version__}, easyfsl {peer}, Python {platform.python_version()}, {platform.machine()}, 1 thread"
    )
    rows: list[dict[str, Any]] = []
    for shots in options.shots:
        runs = {"easyfsl ProtoNet": easyfsl_run(bank, options.ways, shots, options.episodes)}
        runs |= {head: our_run(bank, head, options.ways, shots, options.episodes) for head in HEADS}
        for warm_up in (easyfsl_run(bank, options.ways, shots, 50), our_run(bank, "nam", options.ways, shots, 500)):
            warm_up()
        found = measure(runs, options.repeats)
        theirs, ours = found["easyfsl ProtoNet"][1], found["protonet"][1]
        if abs(theirs - ours) > 0.01:  # different episodes, the same method: the means differ by chance alone
            raise SystemExit(f"not the same work: easyfsl's ProtoNet has accuracy {theirs:.4f}, ours {ours:.4f}")
        reference = statistics.median(found["easyfsl ProtoNet"][0])
        print(
            f"\n{options.ways}-way {shots}-shot, {options.episodes:,} closed episodes, median (range) of {options.repeats}"
        )
        print(f"{'':18}{'episodes/s':>12}{'':>20}{'x easyfsl':>11}{'accuracy':>10}")
        for name, (seconds, accuracy) in found.items():
            rates = sorted(options.episodes / s for s in seconds)
            rate, ratio = statistics.median(rates), reference / statistics.median(seconds)
            spread = f"({rates[0]:,.0f}-{rates[-1]:,.0f})"
            print(f"{name:18}{rate:>12,.0f}{spread:>20}{ratio:>11.1f}{100 * accuracy:>10.2f}")
            rows.append(
                {"shots": shots, "run": name, "episodes_per_second": rate, "ratio": ratio, "accuracy": accuracy}
            )
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items() if key != "json"}
        versions = {"torch": torch.__version__, "easyfsl": peer, "python": platform.python_version()}
        options.json.write_text(json.dumps({"options": settings, "versions": versions, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
