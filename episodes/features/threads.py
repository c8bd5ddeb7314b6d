"""The same work on one item after another, in as many threads as torch may use, with the results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield ``work(item)`` for every item, worked on by so many threads; few items are taken before they are needed.

    Meanwhile an operation of torch has one thread: operations on one batch of episodes are too small to be worth dividing, and
    threads that wait for one another at the end of each are slower than one where other programs want the processor too.

    Raises:
        Exception: what ``work`` raised, when its turn comes.
    """
    if threads == 1:
        yield from map(work, items)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="episodes") as pool:
            running: deque[Future[Result]] = deque()
            try:
                for item in items:
                    running.append(pool.submit(work, item))
                    if len(running) > threads:  # one waits, so that no thread has to
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for future in running:
                    future.cancel()
    finally:
        torch.set_num_threads(before)
