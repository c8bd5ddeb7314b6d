"""Work on many items in several threads, with the results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield ``work(item)`` for every item, in order.

    While several threads run, each operation of torch uses one thread: operations on one batch of episodes are too small to
    divide, and threads that wait for one another after each operation are slower than one where other programs use the processor.

    Args:
        work: called with one item.
        items: taken as they are needed, at most ``threads + 1`` of them ahead.
        threads: how many threads; with 1, no thread is started.

    Raises:
        Exception: what ``work`` raised for an item, where its result would have come.

    Example:
        >>> list(in_order(abs, [-3, 1, -2], threads=2))
        [3, 1, 2]
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
                    if len(running) > threads:  # one more than threads is submitted, so that no thread waits for work
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for future in running:
                    future.cancel()
    finally:
        torch.set_num_threads(before)
