"""Scores of episodes whose features an index picks from a bank: read where they lie, instead of being gathered first.

A head that reads rows (``Head._read``: its scores follow from the products of a query with one row a class, and from its length)
needs of features nothing but inner products, as its rows are sums of support features. So features are only looked at to be
multiplied: support features with one another (``gram``), and queries with rows (``products``). In between the head learns from
coordinates in their place: the rows of the Cholesky factor ``L`` of the support's Gram matrix, which have the same inner products
and only as many numbers as there are support features. Rows ``W`` over coordinates are ``W L^-1`` times the support features.

``gram`` and ``products`` are compiled (``picked.cpp``) where ``fewshot_nam.heads.compiled`` can, and done by torch elsewhere: the
same sums in another order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.compiled import library

_GATHERED_BYTES = 12 << 20  # features gathered at a time: more would leave the processor's cache
_MOST_SUPPORT = 128  # support features an episode: beyond, factors of their Gram matrix cost more than what they save
_COMPILED = (torch.float32, torch.bfloat16)


class Picker:
    """Features of a bank by index, for one thread at a time.

    Args:
        features: ``(n, D)`` floating point and finite; may be mapped from a file.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self._buffers: dict[str, Tensor] = {}
        at_hand = features.device.type == "cpu" and features.stride(1) == 1 and features.dtype in _COMPILED
        self._library = library(Path(__file__).with_suffix(".cpp")) if at_hand else None

    @property
    def compiled(self) -> bool:
        """Whether features are multiplied where they lie."""
        return self._library is not None

    def gather(self, name: str, index: Tensor) -> Tensor:
        """Return ``features[index]``, float32 at least; the buffer of this name is used again, as a fresh one would cost more."""
        flat = index.reshape(-1).to(self.features.device)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < len(flat):
            buffer = self._buffers[name] = self.features.new_empty(len(flat), self.features.shape[1])
        out = torch.index_select(self.features, 0, flat, out=buffer[: len(flat)])
        return (out if out.element_size() >= 4 else out.float()).view(*index.shape, out.shape[1])

    def parts(self, episodes: int, pictures: int) -> list[slice]:
        """Return ``episodes`` of so many ``pictures`` in parts of as many as are best gathered at a time."""
        size = max(1, _GATHERED_BYTES // (pictures * self.features.shape[1] * max(self.features.element_size(), 4)))
        return [slice(start, start + size) for start in range(0, episodes, size)]

    def gram(self, index: Tensor, mean: Tensor | None = None, block: int | None = None) -> Tensor:
        """Return ``(E, n, n)``, the products with one another of features ``index`` ``(E, n)``, less ``mean`` ``(D,)``.

        Given a ``block``, only runs of so many features are multiplied with one another, and all other products are 0.
        """
        episodes, n = index.shape
        block = block or n
        if self._library is None:
            run = torch.arange(n, device=index.device) // block
            same = run == run.unsqueeze(-1)
            features = (self._centred("support", index[part], mean) for part in self.parts(episodes, n))
            return torch.cat([(some @ some.mT).masked_fill_(~same, 0) for some in features])
        index, out = index.contiguous(), torch.empty(episodes, n, n)
        self._call("gram", mean, index, episodes, n, block, out)
        return out

    def products(
        self, support: Tensor, weights: Tensor, query: Tensor, mean: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the products of queries with weighted sums of support features, and the lengths of the queries.

        Args:
            support: ``(E, n)``, an index.
            weights: ``(E, C, n)``, of the sums.
            query: ``(E, Q)``, an index.
            mean: ``(D,)``, subtracted from every feature; ``None`` for none.

        Returns:
            ``(E, Q, C)`` and ``(E, Q)``. Products lie class by class in memory, so that what runs over the few classes can be done
            for many queries at a time.
        """
        (episodes, queries), (columns, n) = query.shape, weights.shape[1:]
        out = torch.empty(columns, episodes, queries, dtype=weights.dtype, device=weights.device)
        lengths = torch.empty(episodes, queries, dtype=weights.dtype, device=weights.device)
        if self._library is None:
            for part in self.parts(episodes, n + queries):
                features = self._centred("query", query[part], mean)
                rows = weights[part] @ self._centred("support", support[part], mean)
                out[:, part] = (features @ rows.mT).permute(2, 0, 1)
                lengths[part] = torch.linalg.vector_norm(features, dim=-1)
            return out.permute(1, 2, 0), lengths
        support, weights, query = support.contiguous(), weights.contiguous(), query.contiguous()
        self._call("products", mean, support, n, weights, columns, query, queries, episodes, out, lengths)
        return out.permute(1, 2, 0), lengths.sqrt_()

    def _centred(self, name: str, index: Tensor, mean: Tensor | None) -> Tensor:
        features = self.gather(name, index)
        return features if mean is None else features - mean.to(features)

    def _call(self, name: str, mean: Tensor | None, *arguments: Tensor | int) -> None:
        """Call a compiled function, which lets go of Python's lock."""
        function = getattr(self._library, f"{name}_{str(self.features.dtype).removeprefix('torch.')}")
        centre = None if mean is None else mean.float().contiguous()
        bank = (self.features, self.features.stride(0), self.features.shape[1], centre)
        if function(*map(_as_c, (*bank, *arguments))):
            raise MemoryError(f"{name}: no memory for the rows of one episode")


def read_picked(heads: Mapping[str, Head], picker: Picker, support: Tensor, query: Tensor) -> dict[str, Tensor]:
    """Return scores ``(E, Q, N)`` by name, of those heads that can do without features: ``score_episodes`` is for the others.

    Left out are heads that do not read rows, and all where support features of an episode are linearly dependent but for rounding
    (copies, or more of them than they are wide), or too many.

    Args:
        heads: by name, on the device of the features.
        picker: of the bank.
        support: ``(E, N, K)``, an index.
        query: ``(E, Q)``, an index.
    """
    _, ways, shots = support.shape
    n = ways * shots
    readers = {name: head for name, head in heads.items() if reads_rows(head)}
    if not readers or n > min(_MOST_SUPPORT, picker.features.shape[1]):
        return {}
    support, query = (index.flatten(1) for index in (support, query))
    targets = torch.arange(ways, device=picker.features.device).repeat_interleave(shots)
    found: dict[str, Tensor] = {}
    for some in _by_mean(readers):
        mean = next(iter(some.values())).mean
        centre = mean if mean.numel() else None
        # To a head that learns each class by itself, classes may as well be at right angles.
        block = shots if all(head._classwise for head in some.values()) else n
        coordinates = _coordinates(picker.gram(support, centre, block))
        if coordinates is None:
            continue
        base = coordinates.new_empty(0, n)
        learned = {name: head._learn(Support(coordinates, targets, base, ways)) for name, head in some.items()}
        rows = [head._rows(learned[name]) for name, head in some.items()]
        # The rows of all heads at once: reading the queries is what takes time.
        weights = torch.linalg.solve_triangular(coordinates, torch.cat(rows, dim=1), upper=False, left=False)
        products, lengths = picker.products(support, weights, query, centre)
        parts = torch.split(products, [row.shape[1] for row in rows], dim=-1)
        for (name, head), part in zip(some.items(), parts, strict=True):
            found[name] = head._read(learned[name], part, lengths.unsqueeze(-1))
    return found


def reads_rows(head: Head) -> bool:
    """Return whether ``read_picked`` can score with this head as it is set: whether it reads rows, and nobody changed how."""
    order = type(head).__mro__

    def given_by(name: str) -> int:
        return next(i for i, one in enumerate(order) if name in vars(one))

    # A class derived from one of ours may override one part, and would be surprised if it were passed by.
    whole = all(given_by("_read") <= given_by(name) for name in ("_learn", "_rows", "_score", "_centred"))
    return given_by("_read") < order.index(Head) and whole and head._turns


def _by_mean(heads: Mapping[str, Head]) -> list[dict[str, Head]]:
    """Return the heads in groups that subtract the same mean."""
    groups: list[dict[str, Head]] = []
    for name, head in heads.items():
        for group in groups:
            if torch.equal(next(iter(group.values())).mean, head.mean):
                group[name] = head
                break
        else:
            groups.append({name: head})
    return groups


def _coordinates(gram: Tensor) -> Tensor | None:
    """Return the Cholesky factors ``(E, n, n)``, or ``None`` where one is singular but for rounding."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots, lengths = (matrix.diagonal(dim1=-2, dim2=-1) for matrix in (factor, gram))
    smallest = 8 * gram.shape[-1] * torch.finfo(gram.dtype).eps * lengths
    return None if bool((failed.bool().unsqueeze(-1) | (pivots.square() <= smallest)).any()) else factor


def _as_c(value: Tensor | int | None) -> ctypes.c_void_p | ctypes.c_size_t:
    if isinstance(value, int):
        return ctypes.c_size_t(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())
