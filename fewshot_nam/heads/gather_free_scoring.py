"""Scores of episodes whose images an index picks from a bank of features, without gathering the queries first.

Gathering copies the features of every query of an episode, to multiply them once with the class weights and drop them. Heads that
opt in (``class MyHead(Head, gather_free=True)``; the contract is in ``fewshot_nam.heads.base``) are scored without this copy: only
support is gathered, from which a head learns as always, and compiled code multiplies queries with the class weights where they lie
in the bank. Scores are those of ``score_episodes`` but for rounding, at two to four times the speed.

All else takes ``score_gathered``: other heads, devices and dtypes, and machines without a C++ compiler.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head
from fewshot_nam.heads.power_norm import Transform
from fewshot_nam.memory.native.native_build import library

_CHUNK_BYTES = 8 << 20  # features gathered at a time: more would leave the processor's cache
_MOST_EMBEDDED = 1 << 26  # numbers of a bank that are kept once more for each head that embeds them beforehand
_AT_A_TIME = 512  # images that are embedded: what is computed on the way then stays in the cache


class IndexedFeatures:
    """Features of a bank, read by index; threads may share it.

    Args:
        features: ``(n, D)`` floating point and finite, on any device; may be mapped from a file.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self._own = threading.local()  # buffers of each thread
        readable = features.device.type == "cpu" and features.stride(1) == 1
        known = readable and features.dtype in (torch.float32, torch.bfloat16)
        self._library = library(Path(__file__).with_suffix(".cpp")) if known else None

    @property
    def compiled(self) -> bool:
        """Whether queries can be multiplied where they lie."""
        return self._library is not None

    def chunks(self, episodes: int, images: int) -> list[slice]:
        """Return runs of episodes, with as many in each as are best gathered at a time; ``images``: of one episode."""
        size = max(1, _CHUNK_BYTES // (images * self.features.shape[1] * max(self.features.element_size(), 4)))
        return [slice(start, start + size) for start in range(0, episodes, size)]

    def gather(self, name: str, index: Tensor) -> Tensor:
        """Return the features ``(*index.shape, D)`` in float32 at least, valid until this thread gathers under this ``name`` again.

        They lie in a buffer that is used again: allocating one each time would take twice as long.
        """
        flat, buffers = index.reshape(-1).to(self.features.device), vars(self._own)
        if name not in buffers or len(buffers[name]) < len(flat):
            buffers[name] = self.features.new_empty(len(flat), self.features.shape[1])
        found = torch.index_select(self.features, 0, flat, out=buffers[name][: len(flat)])
        return (found if found.element_size() >= 4 else found.float()).view(*index.shape, -1)

    def products(self, weights: Tensor, transform: Transform, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return products ``(E, Q, C)`` with class weights, and lengths ``(E, Q, 1)``, of queries; only where ``compiled``.

        Args:
            weights: ``(E, C, D)``.
            transform: of the features that ``query`` ``(E, Q)`` indexes.
            query: an index.

        Products of one class lie together in memory: what runs over the few classes can then be done for many queries at a time.
        """
        (episodes, queries), classes = query.shape, weights.shape[1]
        weights, query = weights.float().contiguous(), query.contiguous()
        centre = None if transform.centre is None else transform.centre.float().contiguous()
        out, squares = (
            torch.empty(size, dtype=torch.float32) for size in ((classes, episodes, queries), (episodes, queries, 1))
        )
        multiply = getattr(self._library, "products_" + str(self.features.dtype).removeprefix("torch."))
        bank = (self.features, self.features.stride(0), self.features.shape[1])
        multiply(
            *map(_as_c, (*bank, transform.power, centre, weights, classes, query, queries, episodes, out, squares))
        )
        return out.permute(1, 2, 0), squares.sqrt_()


class GatherFreeScoring:
    """Scores episodes with those heads that can do without gathering.

    Args:
        bank: what support and queries index.
        heads: by name, on the device of the features.
        queries: about how many will be scored, each as often as it comes up in an episode; ``None`` for many. See
            ``embedded_banks``.
        banks: by name, the bank as heads that ``embeds_beforehand`` embed it; such a head is left out where it has none. ``None``:
            they are made here.

    Attributes:
        heads: those that it scores with.
    """

    def __init__(
        self,
        bank: IndexedFeatures,
        heads: Mapping[str, Head],
        queries: int | None = None,
        banks: Mapping[str, IndexedFeatures] | None = None,
    ) -> None:
        self._bank = bank
        self._embedded = embedded_banks(bank, heads, queries) if banks is None else banks
        self.heads = {
            name: head
            for name, head in heads.items()
            if bank.compiled and head.gather_free and (name in self._embedded or not head.embeds_beforehand)
        }

    def score(self, support: Tensor, query: Tensor) -> dict[str, Tensor]:
        """Return scores ``(E, Q, N)`` by name, of support ``(E, N, K)`` and queries ``(E, Q)``, both an index."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.heads}
        for chunk in self._bank.chunks(len(support), support[0].numel()) if found else ():
            shared, queries = self._bank.gather("support", support[chunk]), query[chunk]
            for name, head in self.heads.items():
                own = self._embedded.get(name)
                if own is None:
                    bank, transform, features = self._bank, head._transform, head._embed(shared)
                else:
                    bank, transform, features = own, Transform(), own.gather("support", support[chunk])
                learned = head._learn_episodes(features)
                products, lengths = bank.products(head._class_weights(learned), transform, queries)
                found[name].append(head._scores_from(learned, products, lengths))
        return {name: torch.cat(scores) if len(scores) > 1 else scores[0] for name, scores in found.items()}


def embedded_banks(
    bank: IndexedFeatures, heads: Mapping[str, Head], queries: int | None = None
) -> dict[str, IndexedFeatures]:
    """Return all features of a bank as heads embed them, by name, for those heads that ``embeds_beforehand``.

    None are where the bank is too large to be kept once more, or where there are fewer ``queries`` than images.
    """
    heads = {name: head for name, head in heads.items() if head.embeds_beforehand}
    images, width = bank.features.shape
    if images * width > _MOST_EMBEDDED or (queries is not None and queries < images):
        return {}
    parts = torch.split(bank.features, _AT_A_TIME)
    with torch.no_grad():
        return {name: IndexedFeatures(torch.cat([head._embed(part) for part in parts])) for name, head in heads.items()}


def score_gathered(
    heads: Mapping[str, Head],
    bank: IndexedFeatures,
    support: Tensor,
    query: Tensor,
    base: tuple[IndexedFeatures, Tensor] | None = None,
    prototypes: Mapping[str, Tensor] | None = None,
    embedded: Mapping[str, tuple[IndexedFeatures, IndexedFeatures | None]] | None = None,
) -> dict[str, Tensor]:
    """Return scores ``(E, Q, C)`` by name with ``score_episodes`` of any heads, for which features are gathered once.

    Args:
        heads: by name, on the device of the features.
        bank: what support and queries index.
        support: ``(E, N, K)``, an index.
        query: ``(E, Q)``, an index.
        base: another bank and what of it are further queries ``(E, Q_b)``, an index; ``None`` for none.
        prototypes: by name ``(B, D)``, of base classes that share the label space; embedded as the banks are.
        embedded: by name, both banks as a head that ``embeds_beforehand`` embeds them; such a head may be left out.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in heads}
    embedded = embedded or {}
    images = support[0].numel() + query.shape[1] + (0 if base is None else base[1].shape[1])

    def gathered(chunk: slice, novel: IndexedFeatures, others: IndexedFeatures | None) -> tuple[Tensor, Tensor]:
        taught, queries = novel.gather("support", support[chunk]), novel.gather("query", query[chunk])
        if base is not None and others is not None:
            queries = torch.cat([queries, others.gather("query", base[1][chunk])], dim=1)
        return taught, queries

    for chunk in bank.chunks(len(support), images) if found else ():
        if len(embedded) < len(heads):
            taught, queries = gathered(chunk, bank, None if base is None else base[0])
        for name, head in heads.items():
            known = None if prototypes is None else prototypes.get(name)
            if name in embedded:
                found[name].append(head._score_embedded(*gathered(chunk, *embedded[name]), known))
            else:  # every feature was checked when the bank was made
                found[name].append(head.score_episodes(taught, queries, known, check=False))
    return {name: torch.cat(scores) if len(scores) > 1 else scores[0] for name, scores in found.items()}


def _as_c(value: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_size_t:
    if isinstance(value, int):
        return ctypes.c_size_t(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())
