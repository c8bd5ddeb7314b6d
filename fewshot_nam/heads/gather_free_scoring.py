"""Scores of episodes whose features an index picks from a bank: read where they lie, instead of being gathered first.

A head that reads rows (``Head._read``: its scores follow from the products of a query with one row a class, and from its length)
needs of features nothing but inner products, as its rows are sums of support features. So features are only looked at to be
multiplied: support features with one another (``gram``), and queries with rows (``products``). In between the head learns from
coordinates in their place: the rows of the Cholesky factor ``L`` of the support's Gram matrix, which have the same inner products
and only as many numbers as there are support features. Rows ``W`` over coordinates are ``W L^-1`` times the support features.

The same holds of heads that look at the signed roots of features, of which the bank then stands for. ``nam`` over a background has
two memories, one that is read with features and one that is read with settled ones, which are roots less a mean at unit length.

``gram`` and ``products`` are compiled (``picked.cpp``) where ``fewshot_nam.memory.native.native_build`` can,
and done by torch elsewhere: the same sums in another order.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.nam.head import Learned, NAMHead
from fewshot_nam.heads.power_norm import signed_root
from fewshot_nam.memory.native.native_build import library
from fewshot_nam.memory.primitives import unit

_GATHERED_BYTES = 12 << 20  # features gathered at a time: more would leave the processor's cache
_MOST_SUPPORT = 100  # support features an episode: beyond, factors of their Gram matrix cost more than what they save
_MOST_FAMILIAR = 1 << 18  # features of a bank whose familiarity is found beforehand, whether they are picked or not
_SETTLED_AT_A_TIME = 512  # features: the numbers on the way to their familiarity then stay in the processor's cache
_PARTS = ("_learn", "_rows", "_score", "_centred", "score_episodes")  # of a head, that its own way of reading passes by
_COMPILED = (torch.float32, torch.bfloat16)


class Picker:
    """Features of a bank by index, for one thread at a time.

    Args:
        features: ``(n, D)`` floating point and finite; may be mapped from a file.
        rooted: pick the signed roots of features, which are taken as they are read.
    """

    def __init__(self, features: Tensor, rooted: bool = False) -> None:
        self.features, self.rooted = features, rooted
        self._buffers: dict[str, Tensor] = {}
        at_hand = features.device.type == "cpu" and features.stride(1) == 1 and features.dtype in _COMPILED
        self._library = library(Path(__file__).with_suffix(".cpp")) if at_hand else None

    @property
    def compiled(self) -> bool:
        """Whether features are multiplied where they lie."""
        return self._library is not None

    @functools.cached_property
    def roots(self) -> Picker:
        """The signed roots of the same features."""
        return Picker(self.features, rooted=True)

    def gather(self, name: str, index: Tensor) -> Tensor:
        """Return what lies at ``index``, float32 at least.

        But for roots, that is in the buffer of this ``name``, which is used again: a fresh one would cost more.
        """
        flat = index.reshape(-1).to(self.features.device)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < len(flat):
            buffer = self._buffers[name] = self.features.new_empty(len(flat), self.features.shape[1])
        out = torch.index_select(self.features, 0, flat, out=buffer[: len(flat)])
        out = signed_root(out) if self.rooted else out if out.element_size() >= 4 else out.float()
        return out.view(*index.shape, out.shape[1])

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
        kind = str(self.features.dtype).removeprefix("torch.") + ("_rooted" if self.rooted else "")
        function = getattr(self._library, f"{name}_{kind}")
        centre = None if mean is None else mean.float().contiguous()
        bank = (self.features, self.features.stride(0), self.features.shape[1], centre)
        if function(*map(_as_c, (*bank, *arguments))):
            raise MemoryError(f"{name}: no memory for the rows of one episode")


def read_picked(
    heads: Mapping[str, Head],
    picker: Picker,
    support: Tensor,
    query: Tensor,
    familiarities: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return scores ``(E, Q, N)`` by name, of those heads that can do without features: ``score_episodes`` is for the others.

    Left out are heads that do not read rows, and all where support features of an episode are linearly dependent but for rounding
    (copies, or more of them than they are wide), or too many.

    Args:
        heads: by name, on the device of the features.
        picker: of the bank.
        support: ``(E, N, K)``, an index.
        query: ``(E, Q)``, an index.
        familiarities: by name ``(n,)``, ``familiarities_of`` the bank; a head that needs them and has none here is left out.
    """
    _, ways, shots = support.shape
    n = ways * shots
    if n > min(_MOST_SUPPORT, picker.features.shape[1]):
        return {}
    support, query = (index.flatten(1) for index in (support, query))
    targets = torch.arange(ways, device=picker.features.device).repeat_interleave(shots)
    found: dict[str, Tensor] = {}
    for some in _alike({name: head for name, head in heads.items() if reads_rows(head)}):
        first = next(iter(some.values()))
        view, centre = picker if first._view == "features" else picker.roots, first.mean if first.mean.numel() else None
        # To a head that learns each class by itself, classes may as well be at right angles.
        block = shots if all(head._classwise for head in some.values()) else n
        coordinates = _coordinates(view.gram(support, centre, block))
        if coordinates is None:
            continue
        taught = Support(coordinates, targets, coordinates.new_empty(0, n), ways)
        learned = {name: head._learn(taught) for name, head in some.items()}
        rows = [head._rows(learned[name]) for name, head in some.items()]
        # The rows of all heads at once: reading the queries is what takes time.
        products, lengths = view.products(support, _over_support(torch.cat(rows, dim=1), coordinates), query, centre)
        parts = torch.split(products, [row.shape[1] for row in rows], dim=-1)
        for (name, head), part in zip(some.items(), parts, strict=True):
            found[name] = head._read(learned[name], part, lengths.unsqueeze(-1))
    for name, familiarity in (familiarities or {}).items():
        head = heads[name]
        if isinstance(head, NAMHead) and _settles(head):
            scores = _read_settled(head, picker, support, query, targets, familiarity)
            found |= {} if scores is None else {name: scores}
    return found


def familiarities_of(head: Head, features: Tensor) -> Tensor | None:
    """Return the familiarity ``(n,)`` of features ``(n, D)``, with which ``read_picked`` can score with a head over a background.

    ``None`` for all other heads, and where features are too many to be looked at one and all.
    """
    if not isinstance(head, NAMHead) or not _settles(head) or len(features) > _MOST_FAMILIAR:
        return None
    wide = torch.promote_types(features.dtype, torch.float32)
    ground = head._ground(wide)
    assert ground is not None, "it settles"
    with torch.no_grad():
        parts = torch.split(features, _SETTLED_AT_A_TIME)
        return torch.cat([ground.familiarity(ground.settle(part.to(wide))) for part in parts])


def reads_rows(head: Head) -> bool:
    """Return whether ``read_picked`` can score with this head as it is set: whether it reads rows, and nobody changed how."""
    order = type(head).__mro__

    def given_by(name: str) -> int:
        return next(i for i, one in enumerate(order) if name in vars(one))

    # A class derived from one of ours may override one part, and would be surprised if it were passed by.
    whole = all(given_by("_read") <= given_by(name) for name in _PARTS) and not set(_PARTS) & set(vars(head))
    return given_by("_read") < order.index(Head) and whole and head._view is not None


def _settles(head: NAMHead) -> bool:
    """Return whether a head has a memory for settled features, and nobody changed what it does."""
    ours = type(head) is NAMHead and not set(_PARTS) & set(vars(head))
    return ours and len(head.stored_base) > 0 and head.plain > 0 and not head.mean.numel()


def _read_settled(
    head: NAMHead, picker: Picker, support: Tensor, query: Tensor, targets: Tensor, familiarity: Tensor
) -> Tensor | None:
    """Return the scores of a head over a background, or ``None`` where support is linearly dependent; see ``read_picked``."""
    n, ways = support.shape[1], int(targets[-1]) + 1
    ground = head._ground(familiarity.dtype)
    assert ground is not None, "it settles"
    features = _coordinates(picker.gram(support))
    roots = _coordinates(picker.roots.gram(support, ground.centre, n // ways))
    if features is None or roots is None:
        return None
    base = features.new_empty(0, n)
    memory = head._memory(Support(features, targets, base, ways), unit(features))
    settled = Support(unit(roots), targets, base, ways)
    plain = head._levelled(settled.class_means(settled.features))
    keys = []  # a class's key is a sum, of which no inner product with the support tells how near it is to the background
    for part in torch.split(support, max(1, _SETTLED_AT_A_TIME // n)):
        rows = ground.settle(picker.gather("support", part))
        keys.append(ground.familiarity(unit(settled.class_means(rows))))
    learned = Learned(memory, plain, torch.cat(keys).unsqueeze(-2), ground, head.plain)
    products, lengths = picker.products(support, _over_support(memory, features), query)
    parts, sizes = picker.roots.products(support, _over_support(plain, roots), query, ground.centre)
    parts = parts / sizes.clamp_min(torch.finfo(sizes.dtype).tiny).unsqueeze(-1)
    return head._read_both(learned, products, lengths.unsqueeze(-1), parts, familiarity[query])


def _alike(heads: Mapping[str, Head]) -> list[dict[str, Head]]:
    """Return the heads in groups that look at the same features less the same mean."""
    groups: list[dict[str, Head]] = []
    for name, head in heads.items():
        for group in groups:
            first = next(iter(group.values()))
            if first._view == head._view and torch.equal(first.mean, head.mean):
                group[name] = head
                break
        else:
            groups.append({name: head})
    return groups


def _over_support(rows: Tensor, coordinates: Tensor) -> Tensor:
    """Return as sums of support features ``(E, C, n)`` what rows ``(E, C, n)`` are over coordinates."""
    return torch.linalg.solve_triangular(coordinates, rows, upper=False, left=False)


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
