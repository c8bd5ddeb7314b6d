"""Every head: episodes a second of its own mathematics, and how long it takes to learn a class and to answer.

    python scripts/benchmarks/heads.py

"episodes/s": ``score_episodes`` of 5-way 5-shot episodes with 75 queries, features given. "write": one more class of 5 images
and the first answer after it, in a head that knows 100; "1 query" and "256 queries": answers of that head. 50 base classes are
known. First, ``score_episodes`` must give what ``write`` and a call give, episode by episode. Heads take turns; medians of
processor time on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from benchmarking import Row, check_same, options_of, print_surroundings, save, surroundings, table, take_turns
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, Head, available, create

WAYS, SHOTS, QUERIES, BASE = 5, 5, 75, 50
SLOW = {"logistic": 100}  # fitted by iteration: so many times fewer episodes


def drawn(episodes: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return support ``(E, N, K, D)`` and queries ``(E, Q, D)``, all around the episode's class centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1 + torch.randn(episodes, WAYS, 1, width, generator=generator)
    support = centres + torch.randn(episodes, WAYS, SHOTS, width, generator=generator)
    query = centres + torch.randn(episodes, WAYS, QUERIES // WAYS, width, generator=generator)
    return support, query.flatten(1, 2)


def build(name: str, width: int) -> Head:
    """Return a head that knows ``BASE`` base classes."""
    prototypes = 1 + torch.randn(BASE, width, generator=torch.Generator().manual_seed(1))
    return create(name, BaseStatistics.from_prototypes(prototypes)).eval()


def check_scores(name: str, width: int) -> None:
    """Exit where the scores of episodes at once are not those of a head that learns each of them."""
    support, query = drawn(3, width, seed=2)
    together = build(name, width).score_episodes(support, query)
    for episode in range(len(support)):
        head = build(name, width)
        head.write(support[episode].flatten(0, 1), torch.arange(WAYS).repeat_interleave(SHOTS))
        alone = head(query[episode])
        difference = ((together[episode] - alone).abs().max() / alone.abs().max()).item()
        check_same(f"scores of {name} for episodes at once and alone", difference, 1e-3)


def jobs(name: str, width: int, episodes: int) -> dict[str, Callable[[], object]]:
    """Return what is timed, by job."""
    support, query = drawn(max(1, episodes // SLOW.get(name, 1)), width, seed=3)
    scorer, head = build(name, width), build(name, width)
    known = drawn(20, width, seed=4)[0].flatten(0, 2)
    head.write(known, torch.arange(100).repeat_interleave(SHOTS))
    more, many = support[0, 0], drawn(4, width, seed=5)[1].flatten(0, 1)[:256]

    def write() -> None:
        head.write(more, "new")
        head(more[:1])
        head.forget("new")
        head(more[:1])

    return {
        "episodes": lambda: scorer.score_episodes(support, query),
        "write": write,
        "one": lambda: head(more[:1]),
        "many": lambda: head(many),
    }


def main() -> None:
    """Check, measure, print a table, and write JSON if asked to."""
    parser = options_of(__doc__, "few and narrow episodes, one repeat", repeats=5)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--episodes", type=int, default=500)
    options = parser.parse_args()
    width, episodes, repeats = (32, 10, 1) if options.short else (options.width, options.episodes, options.repeats)
    about = surroundings(1)
    print_surroundings(about)
    names = list(available())
    for name in names:
        check_scores(name, min(width, 64))
    print(f"{len(names)} heads give the same scores for episodes at once and one by one")
    runs = {(name, job): run for name in names for job, run in jobs(name, width, episodes).items()}
    found = take_turns({f"{name} {job}": run for (name, job), run in runs.items()}, repeats, time.process_time)
    rows: list[Row] = []
    for name in names:
        done = max(1, episodes // SLOW.get(name, 1))
        timing = found[f"{name} episodes"]
        rows.append(
            {
                "head": name,
                "episodes/s": timing.rate(done),
                "spread": timing.rates(done),
                "write, ms": 500
                * found[f"{name} write"].median,  # half of writing and forgetting, which take about the same
                "1 query, ms": 1e3 * found[f"{name} one"].median,
                "256 queries, ms": 1e3 * found[f"{name} many"].median,
            }
        )
    print(f"\n{WAYS}-way {SHOTS}-shot, {QUERIES} queries, width {width}, median of {repeats}\n{table(rows)}")
    save(options.json, about, vars(options), rows)


if __name__ == "__main__":
    main()
