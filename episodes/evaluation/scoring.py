"""Scoring of episodes with several heads at once.

The features of a batch of episodes are gathered from the bank once for all heads; heads that can score without gathering do.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from episodes.features.bank import FeatureBank
from episodes.metrics.scores import Scores, widened
from episodes.sampling.sampler import Episodes
from fewshot_nam.heads import Head
from fewshot_nam.heads.gather_free_scoring import GatherFreeScoring, IndexedFeatures, embedded_banks, score_gathered

Item = TypeVar("Item")
Result = TypeVar("Result")


class Scorer:
    """Scores episodes of one bank with every head.

    Args:
        bank: what support, known and unknown queries index.
        heads: by name; already on ``device``.
        device: where to compute.
        base_queries: what base queries index; ``None`` outside the generalized protocol.
        base_prototypes: by name of the head, ``(B, D)``, the base classes that share the label space; ``None`` likewise.
        queries: about how many queries will be scored in all episodes; ``None`` for many. With fewer than the bank has images,
            nothing is computed beforehand for the whole bank.
    """

    def __init__(
        self,
        bank: FeatureBank,
        heads: Mapping[str, Head],
        device: torch.device,
        base_queries: FeatureBank | None = None,
        base_prototypes: Mapping[str, Tensor] | None = None,
        queries: int | None = None,
    ) -> None:
        self.heads, self.device = heads, device
        self._bank = IndexedFeatures(bank.features.to(device))
        self._base = None
        if base_queries is not None:
            self._base = IndexedFeatures(base_queries.features.to(self._bank.features))
        self._prototypes = {name: each.to(device) for name, each in (base_prototypes or {}).items()}
        novel = embedded_banks(self._bank, heads, queries)
        others = {} if self._base is None else embedded_banks(self._base, heads, queries)
        kept = novel.keys() if self._base is None else novel.keys() & others.keys()
        self._embedded = {name: (novel[name], others.get(name)) for name in kept}
        with torch.no_grad():
            self._prototypes |= {
                name: heads[name]._embed(self._prototypes[name]) for name in kept if name in self._prototypes
            }
        only_novel = self._base is None and not self._prototypes
        self._gather_free = GatherFreeScoring(self._bank, heads if only_novel else {}, queries, novel)

    @property
    def threads(self) -> int:
        """How many threads to score in: as many as torch may use on the CPU, one on other devices."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    @torch.inference_mode()
    def score(self, episodes: Episodes) -> Iterator[tuple[str, Scores]]:
        """Yield the name and the scores of every head, for a batch of episodes.

        Raises:
            ValueError: a head gives scores of another shape, or NaN or infinite scores.
        """
        ways = episodes.classes.shape[1]
        num_base = max(map(len, self._prototypes.values()), default=0)
        known, unknown = episodes.query.flatten(1), episodes.unknown.flatten(1)
        query = torch.cat([known, unknown], dim=1)
        parts = [known.shape[1], unknown.shape[1], episodes.base_query.shape[1]]
        if episodes.query_targets.shape[1]:
            targets = num_base + episodes.query_targets.to(self.device)
        else:
            targets = num_base + torch.arange(ways, device=self.device).repeat_interleave(parts[0] // ways)
        found = self._gather_free.score(episodes.support, query)
        others = {name: head for name, head in self.heads.items() if name not in found}
        base = None if self._base is None else (self._base, episodes.base_query)
        own = {name: each for name, each in self._embedded.items() if name in others}
        found |= score_gathered(others, self._bank, episodes.support, query, base, self._prototypes, own)
        for name in self.heads:
            scores = found.pop(name)
            if scores.shape != (len(episodes), query.shape[1] + parts[2], num_base + ways):
                raise ValueError(
                    f"the head {name!r} gave scores of shape {tuple(scores.shape)}, expected "
                    f"{(len(episodes), query.shape[1] + parts[2], num_base + ways)}: episodes, queries, classes"
                )
            if not bool(torch.stack(scores.aminmax()).isfinite().all()):  # both are NaN where any score is
                raise ValueError(f"the head {name!r} gave scores that are NaN or infinite for these features")
            of_known, of_unknown, of_base = torch.split(widened(scores), parts, dim=1)
            yield (
                name,
                Scores(
                    of_known,
                    targets,
                    of_unknown if parts[1] else None,
                    of_base if parts[2] else None,
                    episodes.base_classes.to(self.device) if parts[2] else None,
                    num_base,
                ),
            )


@contextlib.contextmanager
def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Iterator[Result]]:
    """Enter a context that gives ``work(item)`` for every item, in order; its threads end with it, whatever keeps the iterator.

    While several threads run, each operation of torch uses one thread: operations on one batch of episodes are too small to
    divide, and threads that wait for one another after each operation are slower than one where other programs use the processor.

    Args:
        work: called with one item.
        items: taken as they are needed, at most ``threads + 1`` of them ahead.
        threads: how many threads; with 1, no thread is started.

    Raises:
        Exception: what ``work`` raised for an item, where its result would have come.

    Example:
        >>> with in_order(abs, [-3, 1, -2], threads=2) as results:
        ...     list(results)
        [3, 1, 2]
    """
    if threads == 1:
        yield map(work, items)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    running: deque[Future[Result]] = deque()

    def results() -> Iterator[Result]:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > threads:  # one more than threads is submitted, so that no thread waits for work
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="episodes") as pool:
            try:
                yield results()
            finally:
                for future in running:
                    future.cancel()
    finally:
        torch.set_num_threads(before)
