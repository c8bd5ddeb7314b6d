"""Episodes a second: our evaluation against easyfsl's, and against the gather of the features alone.

    pip install ".[benchmark]" && python scripts/benchmarks/episode_speed.py

Closed and open N-way K-shot episodes over 100 classes x 600 images x 640 random features, in clusters, as float32 and bfloat16. Our
side is the whole of ``evaluate``, from drawing the episodes to means and intervals. Where a head is scored without gathering
(``fewshot_nam.heads.gather_free_scoring``), the run called "plain" is the same with nothing compiled (``FEWSHOT_NAM_COMPILE=0``),
and "x plain" compares the two. easyfsl's side is its documented path: ``FeaturesDataset``, ``TaskSampler``, ``DataLoader`` and
``evaluate``. ``index_select`` is torch's gather of the same features into a buffer and nothing else: "share" is what a run reaches
of its speed. "nam over 64" knows 64 base classes, from 10 images each.

First, scores must be those of ``score_episodes`` on gathered features for every bank and head, and easyfsl's prototypical networks
must give our accuracy on the same episodes. Then all runs take turns: processor time of one thread, and time by the clock for
several threads.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from benchmarking import Row, Timing, check_same, options_of, print_surroundings, save, surroundings, table, take_turns
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from episodes import EpisodeSampler, FeatureBank, evaluate
from episodes.evaluation.scoring import Scorer
from fewshot_nam.heads import BaseStatistics, create
from fewshot_nam.heads.gather_free_scoring import IndexedFeatures
from fewshot_nam.memory.native.native_build import SWITCH

HEADS = ("protonet", "cosine", "cosine-root-centred over 64", "nam", "nam-sequential", "nam over 64")
PEER = "easyfsl ProtoNet"


@dataclass(frozen=True)
class Problem:
    """A number of shots, and sizes that the command line does not change.

    Attributes:
        ways: known classes of an episode, and in the open protocol as many unknown ones.
        shots: support images of each class.
        queries: of each class.
        episodes: of one run.
        peer_episodes: of one run of easyfsl, which is slower.
    """

    ways: int
    shots: int
    queries: int
    episodes: int
    peer_episodes: int

    def sampled(self, bank: FeatureBank, protocol: str, episodes: int) -> tuple[Tensor, Tensor]:
        """Return support ``(E, N, K)`` and queries ``(E, Q)`` of the first episodes."""
        open_ways = self.ways if protocol == "open" else 0
        drawn = EpisodeSampler(bank, self.ways, self.shots, self.queries, open_ways).sample(0, episodes)
        return drawn.support, torch.cat([drawn.query.flatten(1), drawn.unknown.flatten(1)], dim=1)


class Run(NamedTuple):
    """What is timed.

    Attributes:
        work: does it; returns the accuracy, or ``None``.
        episodes: how many it goes through.
        gather: the name of the gather that it is compared with.
        plain: the name of the same run with nothing compiled.
    """

    work: Callable[[], float | None]
    episodes: int
    gather: str | None = None
    plain: str | None = None


def random_bank(classes: int, images: int, width: int, seed: int) -> FeatureBank:
    """Return clustered features, hard enough that accuracy says something."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, width, generator=generator)
    features = centres + 5.0 * torch.randn(classes, images, width, generator=generator)
    return FeatureBank(features.flatten(0, 1), torch.arange(classes).repeat_interleave(images))


def head_and_base(head: str, width: int) -> tuple[str, BaseStatistics | None]:
    """Return the name of a head, and what it knows of base classes."""
    name, _, classes = head.partition(" over ")
    if not classes:
        return name, None
    known = random_bank(int(classes), 10, width, seed=1)
    return name, BaseStatistics.from_features(known.features, known.labels)


def easyfsl_run(bank: FeatureBank, problem: Problem) -> Callable[[], float]:
    """Return easyfsl's evaluation of its prototypical networks, which gives the accuracy."""
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate as easyfsl_evaluate

    # Its sampler passes arguments to a constructor that current torch no longer has; without this line it cannot start.
    Sampler.__init__ = lambda self, data_source=None: None  # type: ignore[method-assign, assignment, misc]
    dataset = FeaturesDataset(bank.labels.tolist(), bank.features, [str(name) for name in bank.classes])
    sampler = TaskSampler(dataset, problem.ways, problem.shots, problem.queries, problem.peer_episodes)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    model = PrototypicalNetworks(nn.Identity())
    return lambda: easyfsl_evaluate(model, loader, device="cpu", use_tqdm=False)


def our_run(
    bank: FeatureBank,
    head: str,
    protocol: str,
    problem: Problem,
    episodes: int,
    compiled: bool = True,
    threads: int = 1,
) -> Callable[[], float]:
    """Return our evaluation of one head, which gives the accuracy."""
    name, base = head_and_base(head, bank.feature_dim)

    def run() -> float:
        before = os.environ.get(SWITCH)
        torch.set_num_threads(threads)
        if not compiled:
            os.environ[SWITCH] = "0"
        try:
            sizes = {
                "ways": problem.ways,
                "shots": problem.shots,
                "queries": problem.queries,
                "open_ways": problem.ways,
            }
            heads = {head: create(name, base)}
            report = evaluate(bank, heads, protocol, episodes=episodes, **sizes)  # type: ignore[arg-type]
        finally:
            torch.set_num_threads(1)
            if before is None:
                os.environ.pop(SWITCH, None)
            else:
                os.environ[SWITCH] = before
        return report.results[head]["accuracy"]["mean"]

    return run


def gather_run(bank: FeatureBank, protocol: str, problem: Problem) -> Callable[[], None]:
    """Return the gather of the features of the episodes alone, in chunks of the best size."""
    support, query = problem.sampled(bank, protocol, problem.episodes)
    index = torch.cat([support.flatten(1), query], dim=1)
    chunks = IndexedFeatures(bank.features).chunks(len(index), index.shape[1])
    parts = [index[chunk].flatten() for chunk in chunks]
    buffer = bank.features.new_empty(len(parts[0]), bank.feature_dim)

    def run() -> None:
        for part in parts:
            torch.index_select(bank.features, 0, part, out=buffer[: len(part)])

    return run


def check_scores(banks: dict[str, FeatureBank], problem: Problem, episodes: int = 8) -> None:
    """Exit where scores are not those of ``score_episodes`` on gathered features."""
    for dtype, bank in banks.items():
        support, query = (bank.features[index].float() for index in problem.sampled(bank, "open", episodes))
        sampler = EpisodeSampler(bank, problem.ways, problem.shots, problem.queries, problem.ways)
        for name in HEADS:
            head = create(*head_and_base(name, bank.feature_dim)).eval()
            ((_, scores),) = Scorer(bank, {name: head}, torch.device("cpu")).score(sampler.sample(0, episodes))
            assert scores.unknown is not None, "the protocol is open"
            found, wanted = torch.cat([scores.known, scores.unknown], dim=1), head.score_episodes(support, query)
            difference = ((found - wanted).abs().max() / wanted.abs().max()).item()
            check_same(f"scores of {name} on {dtype} and those of its features", difference, 1e-4)


def check_accuracy(bank: FeatureBank, problem: Problem, episodes: int = 20) -> None:
    """Exit where easyfsl's prototypical networks do not have our accuracy on our episodes."""
    from easyfsl.methods import PrototypicalNetworks

    (supports, queries), right = problem.sampled(bank, "closed", episodes), 0
    model, classes = PrototypicalNetworks(nn.Identity()), torch.arange(problem.ways)
    for support, query in zip(supports, queries, strict=True):
        model.process_support_set(bank.features[support.flatten()], classes.repeat_interleave(problem.shots))
        right += int((model(bank.features[query]).argmax(1) == classes.repeat_interleave(problem.queries)).sum())
    theirs, ours = right / queries.numel(), our_run(bank, "protonet", "closed", problem, episodes)()
    # One answer may be a tie but for rounding.
    check_same("the accuracy of easyfsl's ProtoNet and ours", abs(theirs - ours), 1.5 / queries.numel())


def runs_of(banks: dict[str, FeatureBank], problem: Problem) -> dict[str, Run]:
    """Return everything that is timed by processor time, by name."""
    runs = {PEER: Run(easyfsl_run(banks["float32"], problem), problem.peer_episodes)}
    for dtype, bank in banks.items():
        for protocol, heads in (("closed", HEADS), ("open", ("cosine", "nam", "nam over 64"))):
            gather = f"{dtype} {protocol} index_select"
            runs[gather] = Run(gather_run(bank, protocol, problem), problem.episodes)
            for head in heads:
                run, plain = f"{dtype} {protocol} {head}", f"{dtype} {protocol} {head}, plain"
                for name, compiled in ((run, True), (plain, False)):
                    work = our_run(bank, head, protocol, problem, problem.episodes, compiled)
                    runs[name] = Run(work, problem.episodes, gather, plain if compiled else None)
    return runs


def runs_by_the_clock(banks: dict[str, FeatureBank], problem: Problem, threads: int) -> dict[str, Run]:
    """Return what is timed by the clock, with one thread and with several, by name."""
    return {
        f"{dtype} open nam, {count} thread{'s' * (count > 1)}": Run(
            our_run(bank, "nam", "open", problem, problem.episodes, threads=count), problem.episodes
        )
        for dtype, bank in banks.items()
        for count in (1, threads)
    }


def measure(runs: dict[str, Run], repeats: int, clock: Callable[[], float], shots: int) -> list[Row]:
    """Time the runs, print a table, and return its rows as they are saved."""
    accuracies: dict[str, float | None] = {}

    def noting(name: str) -> Callable[[], None]:
        return lambda: accuracies.__setitem__(name, runs[name].work())

    found: dict[str, Timing] = take_turns({name: noting(name) for name in runs}, repeats, clock)
    rates = {name: timing.rate(runs[name].episodes) for name, timing in found.items()}
    rows, lines = [], []
    for name, run in runs.items():
        row: Row = {"shots": shots, "run": name, "episodes_per_second": rates[name], "accuracy": accuracies[name]}
        if PEER in rates and " open " not in name:
            row["ratio"] = rates[name] / rates[PEER]
        if run.gather is not None:
            row["share_of_index_select"] = rates[name] / rates[run.gather]
        if run.plain is not None:
            row["times_plain"] = rates[name] / rates[run.plain]
        rows.append(row)
        accuracy = accuracies[name]
        lines.append(
            {
                "run": name,
                "episodes/s": rates[name],
                "range": found[name].rates(run.episodes),
                "x easyfsl": row.get("ratio"),
                "share": row.get("share_of_index_select"),
                "x plain": row.get("times_plain"),
                "accuracy": None if accuracy is None else f"{100 * accuracy:.2f}",
            }
        )
    print(table(lines), flush=True)
    return rows


def main() -> None:
    """Check, measure, print tables, and write JSON if asked to."""
    parser = options_of(__doc__, "a small bank, 1 shot, few episodes, one repeat", repeats=5)
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--peer-episodes", type=int, default=1_000, help="of easyfsl, which is slower")
    parser.add_argument(
        "--threads", type=int, default=2, help="compared with 1 thread, by the clock; 1 for no such run"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the features")
    options = parser.parse_args()
    sizes = (100, 600, 640)
    if options.short:
        sizes, options.shots, options.threads = (20, 40, 64), [1], 1
        options.episodes, options.peer_episodes, options.repeats = 100, 20, 1
    about = surroundings(threads=1)
    bank = random_bank(*sizes, options.seed)
    banks = {"float32": bank, "bfloat16": FeatureBank(bank.features.bfloat16(), bank.labels)}
    about["easyfsl"] = importlib.metadata.version("easyfsl")
    about["compiled"] = "yes" if IndexedFeatures(bank.features).compiled else "no"
    print_surroundings(about)
    rows: list[Row] = []
    for shots in options.shots:
        problem = Problem(options.ways, shots, 15, options.episodes, options.peer_episodes)
        check_scores(banks, problem)
        check_accuracy(bank, problem)
        title = f"\n{options.ways}-way {shots}-shot, {options.episodes:,} episodes, median (range) of {options.repeats}"
        print(f"{title}, processor time, 1 thread")
        rows += measure(runs_of(banks, problem), options.repeats, time.process_time, shots)
        if options.threads > 1:
            print(f"{title}, by the clock")
            several = runs_by_the_clock(banks, problem, options.threads)
            rows += measure(several, options.repeats, time.perf_counter, shots)
    save(options.json, about, vars(options), rows)


if __name__ == "__main__":
    main()
