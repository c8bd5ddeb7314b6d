"""Learning beside many classes: the first answer after a class is learned, an answer, and the first one after a class is forgotten.

    python scripts/benchmarks/first_answer.py

Heads know 10,000 classes of one feature of width 1,280 each. "learned": ``write`` one class and score one query, which is when a
head derives what it reads. "answer": score one more query. "forgotten": ``forget`` a class and score one query; then everything
is derived anew. "nam over 100" knows 100 base classes, from 10 images each. First, scores after learning must be those of a head
that learned all classes at once. Heads take turns; medians of processor time on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from benchmarking import Row, check_same, options_of, print_surroundings, save, surroundings, table, take_turns
from torch import Tensor

from fewshot_nam.heads import BaseStatistics, Head, create

HEADS = ("nam", "nam over 100", "cosine")


def features(count: int, width: int, seed: int) -> Tensor:
    """Return positive features ``(count, width)``, as those after a ReLU are."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).abs()


def build(head: str, width: int) -> Head:
    """Return a head that knows no classes yet."""
    name, _, classes = head.partition(" over ")
    if not classes:
        return create(name)
    labels = torch.arange(int(classes)).repeat_interleave(10)
    images = features(int(classes), width, 1)[labels] + features(len(labels), width, 2)
    return create(name, BaseStatistics.from_features(images, labels))


def check_scores(head: str, classes: int, width: int) -> None:
    """Exit where classes that were learned one after another are not scored as classes that were learned at once."""
    every, query = features(classes + 5, width, 3), features(4, width, 4)
    grown = build(head, width).write(every[:classes], torch.arange(classes))
    grown(query)
    for i in range(classes, classes + 5):
        grown.write(every[i], i)
        grown(query)
    at_once = build(head, width).write(every, torch.arange(classes + 5))
    wanted = at_once(query)
    check_same(f"scores of {head}", ((grown(query) - wanted).abs().max() / wanted.abs().max()).item(), 1e-3)


class Grower:
    """A head of many classes that learns, answers and forgets, one class after another.

    Args:
        head: its name.
        classes: how many it knows.
        width: of features.
    """

    def __init__(self, head: str, classes: int, width: int) -> None:
        self.head = build(head, width).write(features(classes, width, 3), torch.arange(classes))
        self.added, self.next = features(64, width, 5), classes
        self.answer()

    def learn(self) -> None:
        """Learn one class and answer."""
        self.head.write(self.added[self.next % 64], self.next)
        self.next += 1
        self.answer()

    def forget(self) -> None:
        """Forget the class that was learned last and answer."""
        self.next -= 1
        self.head.forget(self.next)
        self.answer()

    def answer(self) -> None:
        """Score one query."""
        self.head(self.added[:1])


def main() -> None:
    """Check, measure, print a table, and write JSON if asked to."""
    parser = options_of(__doc__, "few classes and narrow features, one repeat", repeats=9)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=1280)
    options = parser.parse_args()
    classes, width, repeats = (200, 32, 1) if options.short else (options.classes, options.width, options.repeats)
    about = surroundings(1)
    print_surroundings(about)
    for head in HEADS:
        check_scores(head, min(classes, 300), min(width, 64))
    print("classes learned one by one are scored as those learned at once")
    growers = {head: Grower(head, classes, width) for head in HEADS}
    # Forgetting takes seconds for nam: it has rounds of its own, fewer of them.
    quick: dict[str, Callable[[], object]] = {}
    for head, grower in growers.items():
        quick |= {f"{head} learned": grower.learn, f"{head} answer": grower.answer}
    found = take_turns(quick, repeats, time.process_time)
    slow = {f"{head} forgotten": grower.forget for head, grower in growers.items()}
    found |= take_turns(slow, max(1, repeats // 3), time.process_time)
    rows: list[Row] = [
        {
            "head": head,
            "learned, ms": 1e3 * found[f"{head} learned"].median,
            "spread": found[f"{head} learned"].spread(),
            "answer, ms": 1e3 * found[f"{head} answer"].median,
            "forgotten, ms": 1e3 * found[f"{head} forgotten"].median,
        }
        for head in HEADS
    ]
    print(f"\n{classes:,} classes, width {width:,}, median of {repeats}\n{table(rows)}")
    save(options.json, about, {**vars(options), "classes": classes, "width": width}, rows)


if __name__ == "__main__":
    main()
