"""Episodes a second: our evaluation against easyfsl's and against the gather of the features alone, in one run.

    pip install ".[benchmark]" && python scripts/benchmarks/episode_speed.py

Closed N-way K-shot episodes on a bank of 100 classes x 600 x 640 random features in clusters, float32 and bfloat16. Our side is the
whole of ``evaluate``, from drawing the episodes to means and intervals (accuracy and calibration error; in the open protocol the
false alarm rates, AUROC and OSCR as well, on twice the queries). easyfsl's is its documented path: ``FeaturesDataset``,
``TaskSampler``, ``DataLoader`` and ``evaluate``. ``index_select`` is torch's gather of as many features into a buffer, and
nothing else: "share" is what a run reaches of it.

First scores must be those of ``score_episodes`` on gathered features, for every bank, protocol and head, and easyfsl's
prototypical networks must give our accuracy on episodes of ours; then all take turns, and each reports its median of the repeats,
in processor seconds on one thread, and in seconds by the clock on several. "nam over 64" has a background of 64 classes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarking import save, surroundings
from torch import nn
from torch.utils.data import DataLoader, Sampler

from episodes import EpisodeSampler, FeatureBank, evaluate
from episodes.evaluation.scoring import Scorer
from fewshot_nam.heads import create
from fewshot_nam.heads.gather_free_scoring import IndexedFeatures

CLASSES, PICTURES, WIDTH, QUERIES = 100, 600, 640, 15
HEADS = ["protonet", "cosine", "nam", "nam-sequential", "nam over 64"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PEER = "easyfsl ProtoNet"


class Run(NamedTuple):
    """Something to be timed.

    Attributes:
        work: does it; returns the accuracy, or ``None``.
        episodes: how many it goes through.
        gather: the name of the gather that it is compared with.
        threads: that torch may use.
    """

    work: Callable[[], float | None]
    episodes: int
    gather: str | None = None
    threads: int = 1


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


def parts_of(head: str) -> tuple[str, torch.Tensor | None]:
    """Return the name of a head, and the background that it is over."""
    name, _, classes = head.partition(" over ")
    return name, torch.randn(int(classes), WIDTH, generator=torch.Generator().manual_seed(1)) if classes else None


def our_run(bank: FeatureBank, head: str, protocol: str, ways: int, shots: int, episodes: int) -> Callable[[], float]:
    """Return our evaluation of one head, which gives the accuracy."""
    name, background = parts_of(head)

    def run() -> float:
        report = evaluate(
            bank, [name], protocol, ways, shots, QUERIES, open_ways=ways, episodes=episodes, background=background
        )
        return report.results[name]["accuracy"]["mean"]

    return run


def same_scores(banks: dict[str, FeatureBank], ways: int, shots: int, episodes: int = 8) -> None:
    """Leave the script where scores are not those of heads that look at features."""
    for dtype, bank in banks.items():
        drawn = EpisodeSampler(bank, ways, shots, QUERIES, open_ways=ways).sample(0, episodes)
        support, query = (bank.features[index].float() for index in (drawn.support, drawn.query.flatten(1)))
        unknown = bank.features[drawn.unknown.flatten(1)].float()
        for name, background in map(parts_of, HEADS):
            head = create(name, background=background).eval()
            ((_, scores),) = Scorer(bank, {name: head}, torch.device("cpu")).score(drawn)
            assert scores.unknown is not None, "there are unknown classes"
            slow = head.score_episodes(support, torch.cat([query, unknown], dim=1))
            worst = ((torch.cat([scores.known, scores.unknown], dim=1) - slow).abs().max() / slow.abs().max()).item()
            if not worst <= 1e-4:
                raise SystemExit(
                    f"not the same work: {name} on {dtype} gives scores {worst:.1e} from those of features"
                )


def same_accuracy(bank: FeatureBank, ways: int, shots: int, episodes: int = 20) -> None:
    """Leave the script where easyfsl's prototypical networks do not find, on our episodes, the accuracy that we find."""
    from easyfsl.methods import PrototypicalNetworks

    drawn = EpisodeSampler(bank, ways, shots, QUERIES, open_ways=0).sample(0, episodes)
    model, right = PrototypicalNetworks(nn.Identity()), 0
    for support, query in zip(drawn.support, drawn.query, strict=True):
        model.process_support_set(bank.features[support.flatten()], torch.arange(ways).repeat_interleave(shots))
        right += int(
            (model(bank.features[query.flatten()]).argmax(1) == torch.arange(ways).repeat_interleave(QUERIES)).sum()
        )
    theirs, ours = right / drawn.query.numel(), our_run(bank, "protonet", "closed", ways, shots, episodes)()
    if abs(theirs - ours) > 1.5 / drawn.query.numel():  # one answer may be a tie but for rounding
        raise SystemExit(f"not the same work: easyfsl's ProtoNet has accuracy {theirs}, ours {ours}")


def gather_run(bank: FeatureBank, protocol: str, ways: int, shots: int, episodes: int) -> Callable[[], None]:
    """Return the bare gather of the features of episodes, as many at a time as suits it."""
    drawn = EpisodeSampler(bank, ways, shots, QUERIES, ways if protocol == "open" else 0).sample(0, episodes)
    index = torch.cat([drawn.support.flatten(1), drawn.query.flatten(1), drawn.unknown.flatten(1)], dim=1)
    parts = [index[part].flatten() for part in IndexedFeatures(bank.features).chunks(episodes, index.shape[1])]
    buffer = bank.features.new_empty(len(parts[0]), bank.feature_dim)

    def run() -> None:
        for part in parts:
            torch.index_select(bank.features, 0, part, out=buffer[: len(part)])

    return run


def runs_of(banks: dict[str, FeatureBank], options: argparse.Namespace, shots: int) -> dict[str, Run]:
    """Return everything that is timed for one number of shots, by name."""
    runs = {PEER: Run(easyfsl_run(banks["float32"], options.ways, shots, options.peer_episodes), options.peer_episodes)}
    for dtype, bank in banks.items():
        for protocol, heads in (("closed", HEADS), ("open", ["cosine", "nam", "nam over 64"])):
            gather = f"{dtype} {protocol} index_select"
            runs[gather] = Run(gather_run(bank, protocol, options.ways, shots, options.episodes), options.episodes)
            for head in heads:
                work = our_run(bank, head, protocol, options.ways, shots, options.episodes)
                runs[f"{dtype} {protocol} {head}"] = Run(work, options.episodes, gather)
        if options.threads > 1:
            work = our_run(bank, "nam", "open", options.ways, shots, options.episodes)
            for threads in (1, options.threads):
                runs[f"{dtype} open nam, {threads} thread{'s' * (threads > 1)}"] = Run(
                    work, options.episodes, None, threads
                )
    return runs


def measure(runs: dict[str, Run], repeats: int, by_the_clock: bool) -> dict[str, tuple[list[float], float | None]]:
    """Return the seconds an episode took in every repeat, and the accuracy, the runs taking turns after a round to warm up."""
    clock = time.perf_counter if by_the_clock else time.process_time
    found: dict[str, tuple[list[float], float | None]] = {}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            torch.set_num_threads(run.threads)
            began = clock()
            accuracy = run.work()
            seconds = (clock() - began) / run.episodes
            if repeat:
                found.setdefault(name, ([], accuracy))[0].append(seconds)
    torch.set_num_threads(1)
    return found


def report(
    runs: dict[str, Run], found: dict[str, tuple[list[float], float | None]], peer: float | None, shots: int
) -> list[dict[str, Any]]:
    """Print one line a run, and return the lines; ``peer``: the seconds of an episode of easyfsl."""
    rows = []
    for name, (seconds, accuracy) in found.items():
        middle, gather = statistics.median(seconds), runs[name].gather
        rates = sorted(1 / s for s in seconds)
        row: dict[str, Any] = {"shots": shots, "run": name, "episodes_per_second": 1 / middle, "accuracy": accuracy}
        ratio = share = ""
        if peer is not None and " open " not in name:
            row["ratio"] = peer / middle
            ratio = f"{row['ratio']:.1f}"
        if gather is not None:
            row["share_of_index_select"] = statistics.median(found[gather][0]) / middle
            share = f"{row['share_of_index_select']:.2f}"
        spread = f"({rates[0]:,.0f}-{rates[-1]:,.0f})"
        percent = "" if accuracy is None else f"{100 * accuracy:.2f}"
        print(f"{name:32}{1 / middle:>12,.0f}{spread:>20}{ratio:>11}{share:>8}{percent:>10}", flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print tables, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument(
        "--peer-episodes", type=int, default=1000, help="of easyfsl, which takes as long for each of many"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=2, help="compared with 1 thread, by the clock; 1 for no such run"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the features")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    about = surroundings(threads=1)
    bank = random_bank(options.seed)
    banks = {name: FeatureBank(bank.features.to(dtype), bank.labels) for name, dtype in DTYPES.items()}
    about["easyfsl"] = importlib.metadata.version("easyfsl")
    about["compiled"] = "yes" if IndexedFeatures(bank.features).compiled else "no"
    print(", ".join(f"{name} {value}" for name, value in about.items()) + f", {options.episodes:,} episodes")
    rows: list[dict[str, Any]] = []
    for shots in options.shots:
        same_scores(banks, options.ways, shots)
        same_accuracy(banks["float32"], options.ways, shots)
        runs = runs_of(banks, options, shots)
        print(f"\n{options.ways}-way {shots}-shot, median (range) of {options.repeats}, processor time, 1 thread")
        print(f"{'':32}{'episodes/s':>12}{'':>20}{'x easyfsl':>11}{'share':>8}{'accuracy':>10}")
        one = {name: run for name, run in runs.items() if "thread" not in name}
        found = measure(one, options.repeats, by_the_clock=False)
        rows += report(runs, found, statistics.median(found[PEER][0]), shots)
        several = {name: run for name, run in runs.items() if "thread" in name}
        if several:
            print(f"\n{options.ways}-way {shots}-shot, by the clock")
            rows += report(runs, measure(several, options.repeats, by_the_clock=True), None, shots)
    if options.json:
        save(options.json, about, vars(options), rows)


if __name__ == "__main__":
    main()
