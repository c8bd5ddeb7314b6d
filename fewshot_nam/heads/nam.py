"""The NAM head: a Neural Attention Memory whose keys are support features and whose values are one-hot classes.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422): a class is taught by the single write
``W <- WR(W, y/|x|, x/|x|, 1, 1)``, after which ``W x = y``. Written so, one after another with keys that are not
orthogonal, each write spoils the ones before: that is ``mode="sequential"``. ``mode="block"``, the default, writes all pairs
jointly. Base classes are rows that exist already; novel keys are erased from them, which is what keeps novel pictures from
being called base classes.

Two things are ours. In block mode a second memory, written without erase, is read along with the first: what erasing gains
in telling classes apart it loses in telling known from unknown, and the plain memory (a cosine classifier) gives that back.
And classes compete when they are read: a share of the softmax normaliser is taken off, which changes no ranking within a
query, but lets a query that several classes claim be claimed less by each.

Departures from the authors' few-shot code: erasing is per episode (theirs averages it over a batch of episodes), and the
write and the erase probability are separate.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support, compete
from fewshot_nam.memory.primitives import unit, write_block, write_sequence

Mode = Literal["block", "sequential", "parallel"]
Keys = Literal["shots", "prototypes"]
Reading = Literal["unit", "raw"]


class NAMHead(Head):
    """A memory ``W`` of shape ``(C, D)``, one row a class; the scores of a query ``x`` are what it reads.

    Args:
        mode: how pairs are written. ``"block"``: jointly, in no order (``write_block``). ``"sequential"``: the literal rule,
            one after another in the order given. ``"parallel"``: every pair erases against the same earlier memory (the
            base rows).
        keys: ``"shots"``: every support feature is a key. ``"prototypes"``: one key a class, its mean feature.
            ``None``: shots in block mode, prototypes otherwise.
        reading: what lengths do. ``"raw"``, the paper's convention: the value is ``y/|x|`` and the query keeps its length,
            so that ``W x = y``; a class written from a short feature then scores higher. ``"unit"``: the value is ``y`` and
            the query has length 1, so that ``W x/|x| = y``. ``None``: raw in sequential mode, unit otherwise.
        p_write: write probability, 0 to 1.
        p_erase: erase probability, 0 to 1.
        ridge: damping of a joint write, at least 0: block mode only. 0 reads every key back exactly, as long as keys are
            independent; larger values forgive support features that are alike.
        plain: weight, at least 0, of the second memory, written without erase: one prototype a class, the mean of its unit
            features. ``None``: 3 in block mode, 0 otherwise.
        level: how far the plain memory makes up for classes whose shots differ, 0 to 1. A prototype of length ``l`` is
            written at length ``l ** -level``: at 0 all have length 1, at 1 every class reads 1 on average over its own shots.
        compete: share of the softmax normaliser that is taken off the scores, 0 (plain reads) to 1 (log-probabilities times
            the temperature). ``None``: 0.4 in block mode, 0 otherwise.
        temperature: of that softmax, above 0.
        mean: ``(D,)``, subtracted from every feature first; ``None`` for none.

    Raises:
        ValueError: an unknown mode, or a number outside its range.
    """

    def __init__(
        self,
        mode: Mode = "block",
        *,
        keys: Keys | None = None,
        reading: Reading | None = None,
        p_write: float = 1.0,
        p_erase: float = 1.0,
        ridge: float = 0.2,
        plain: float | None = None,
        level: float = 0.3,
        compete: float | None = None,
        temperature: float = 0.1,
        mean: Tensor | None = None,
    ) -> None:
        super().__init__(mean)
        block = mode == "block"
        keys = keys or ("shots" if block else "prototypes")
        reading = reading or ("raw" if mode == "sequential" else "unit")
        plain = (3.0 if block else 0.0) if plain is None else plain
        compete = (0.4 if block else 0.0) if compete is None else compete
        for name, value, allowed in (
            ("mode", mode, ("block", "sequential", "parallel")),
            ("keys", keys, ("shots", "prototypes")),
            ("reading", reading, ("unit", "raw")),
        ):
            if value not in allowed:
                raise ValueError(f"NAMHead: {name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, share in (("p_write", p_write), ("p_erase", p_erase), ("level", level), ("compete", compete)):
            if not 0 <= share <= 1:
                raise ValueError(f"NAMHead: {name} must be from 0 to 1, got {share}")
        for name, weight in (("ridge", ridge), ("plain", plain)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"NAMHead: {name} must be at least 0, got {weight}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"NAMHead: temperature must be above 0, got {temperature}")
        self.mode, self.keys, self.reading = mode, keys, reading
        self.p_write, self.p_erase, self.ridge = p_write, p_erase, ridge
        self.plain, self.level, self.compete, self.temperature = plain, level, compete, temperature

    @property
    def memory(self) -> Tensor:
        """The memory ``W`` as it stands, ``(C, D)``: rows as in ``classes``, the plain memory added.

        Raises:
            ValueError: no class is known yet.
        """
        if not self.classes:
            raise ValueError("NAMHead knows no class yet: call write(features, labels) first")
        memory: Tensor = self._current()[0]
        return memory

    def _learn(self, support: Support) -> Tensor:
        """Return the memories ``(E, C, D)``."""
        features, values, directions = support.features, support.one_hot(), unit(support.features)
        if self.keys == "prototypes":
            # Unit reading compares directions, so a prototype is then the mean direction, as in a cosine classifier.
            features = support.class_means(directions if self.reading == "unit" else features)
            values = torch.eye(support.columns, dtype=features.dtype, device=features.device)[len(support.base) :]
        keys = directions if self.keys == "shots" else unit(features)
        base = unit(support.base)
        values = values.expand(len(keys), -1, -1)
        if self.reading == "raw":
            # A class whose shots cancel out has a prototype of length 0: its key is 0 too, so nothing is written.
            lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
            values = values / lengths.clamp_min(torch.finfo(features.dtype).tiny)
            base = base / torch.linalg.vector_norm(support.base, dim=-1, keepdim=True)
        memory = support.with_base(base, keys.new_zeros(len(keys), support.columns - len(base), keys.shape[-1]))
        if self.mode == "block":
            p_erase = self.p_erase if len(base) else 0.0  # an empty memory has nothing to erase
            memory = write_block(memory, keys, values, self.p_write, p_erase, self.ridge)
        elif self.mode == "sequential":
            memory = write_sequence(memory, keys, values, self.p_write, self.p_erase)
        else:
            memory = memory + (self.p_write * values - self.p_erase * (keys @ memory.mT)).mT @ keys
        if self.plain:
            # Reading is linear, so two memories that are read together are one: their sum.
            means = support.class_means(directions)
            lengths = torch.linalg.vector_norm(means, dim=-1, keepdim=True).clamp_min(1e-6)
            memory = memory + self.plain * support.with_base(base, means * lengths ** -(1 + self.level))
        return memory

    def _score(self, learned: Tensor, query: Tensor) -> Tensor:
        """Return what the memories hold for the queries, ``(E, Q, C)``."""
        scores = query @ learned.mT
        if self.reading == "unit":
            # Dividing the few scores by the length is the same as, and cheaper than, dividing the many features.
            length = torch.linalg.vector_norm(query, dim=-1, keepdim=True)
            scores = scores / length.clamp_min(torch.finfo(query.dtype).tiny)
        return compete(scores, self.compete, self.temperature)

    def extra_repr(self) -> str:
        """Say how the memory is written and read."""
        gates = f"p_write={self.p_write}, p_erase={self.p_erase}, ridge={self.ridge}"
        reads = f"plain={self.plain}, level={self.level}, compete={self.compete}, temperature={self.temperature}"
        return f"mode={self.mode}, keys={self.keys}, reading={self.reading}, {gates}, {reads}, {super().extra_repr()}"
