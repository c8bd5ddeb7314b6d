"""The NAM head: a Neural Attention Memory whose keys are support features and whose values are one-hot classes.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422): a class is taught by the single write
``W <- WR(W, y/|x|, x/|x|, 1, 1)``, after which ``W x = y``. Written so, one after another with keys that are not orthogonal, each
write spoils the ones before. ``mode="block"`` writes all pairs jointly instead and is the default. Base classes are rows that
exist already; novel keys are erased from them, which is what keeps novel pictures from being called base classes.

Departures from the authors' few-shot code: erasing is per episode (theirs averages it over a batch of episodes), and the write
and the erase probability are separate.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.memory.primitives import unit, write_block, write_sequence

Mode = Literal["block", "sequential", "parallel"]
Keys = Literal["shots", "prototypes"]
Reading = Literal["unit", "raw"]


class NAMHead(Head):
    """A memory ``W`` of shape ``(C, D)``, one row a class; the scores of a query ``x`` are what it reads.

    Args:
        mode: how pairs are written. ``"block"``: jointly, in no order (``write_block``). ``"sequential"``: the literal rule, one
            after another in the order given. ``"parallel"``: every pair erases against the same earlier memory (the base rows).
        keys: ``"shots"``: every support feature is a key. ``"prototypes"``: one key a class, its mean feature.
            ``None``: shots in block mode, prototypes otherwise.
        reading: what lengths do. ``"raw"``, the paper's convention: the value is ``y/|x|`` and the query keeps its length, so
            that ``W x = y``; a class written from a short feature then scores higher. ``"unit"``: the value is ``y`` and the
            query has length 1, so that ``W x/|x| = y``. ``None``: raw in sequential mode, unit otherwise.
        p_write: write probability, 0 to 1.
        p_erase: erase probability, 0 to 1.
        ridge: damping of a joint write, at least 0: block mode only. 0 reads every key back exactly, as long as keys are
            independent; larger values forgive support features that are alike.
        mean: ``(D,)``, subtracted from every feature first; ``None`` for none.

    Raises:
        ValueError: an unknown mode, a probability outside 0 to 1, or a negative ridge.
    """

    def __init__(
        self,
        mode: Mode = "block",
        *,
        keys: Keys | None = None,
        reading: Reading | None = None,
        p_write: float = 1.0,
        p_erase: float = 1.0,
        ridge: float = 0.5,
        mean: Tensor | None = None,
    ) -> None:
        super().__init__(mean)
        keys = keys or ("shots" if mode == "block" else "prototypes")
        reading = reading or ("raw" if mode == "sequential" else "unit")
        for name, value, allowed in (
            ("mode", mode, ("block", "sequential", "parallel")),
            ("keys", keys, ("shots", "prototypes")),
            ("reading", reading, ("unit", "raw")),
        ):
            if value not in allowed:
                raise ValueError(f"NAMHead: {name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, gate in (("p_write", p_write), ("p_erase", p_erase)):
            if not 0 <= gate <= 1:
                raise ValueError(f"NAMHead: {name} must be from 0 to 1, got {gate}")
        if not ridge >= 0:
            raise ValueError(f"NAMHead: ridge must be at least 0, got {ridge}")
        self.mode, self.keys, self.reading = mode, keys, reading
        self.p_write, self.p_erase, self.ridge = p_write, p_erase, ridge

    @property
    def memory(self) -> Tensor:
        """The memory ``W`` as it stands, ``(C, D)``: rows as in ``classes``.

        Raises:
            ValueError: no class is known yet.
        """
        if not self.classes:
            raise ValueError("NAMHead knows no class yet: call write(features, labels) first")
        memory: Tensor = self._current()[0]
        return memory

    def _learn(self, support: Support) -> Tensor:
        """Return the memories ``(E, C, D)``."""
        features, values = support.features, support.one_hot()
        if self.keys == "prototypes":
            # Unit reading compares directions, so a prototype is then the mean direction, as in a cosine classifier.
            features = support.class_means(unit(features) if self.reading == "unit" else features)
            values = torch.eye(support.columns, dtype=features.dtype, device=features.device)[len(support.base) :]
        keys, base = unit(features), unit(support.base)
        values = values.expand(len(keys), -1, -1)
        if self.reading == "raw":
            values = values / torch.linalg.vector_norm(features, dim=-1, keepdim=True)
            base = base / torch.linalg.vector_norm(support.base, dim=-1, keepdim=True)
        memory = support.with_base(base, keys.new_zeros(len(keys), support.columns - len(base), keys.shape[-1]))
        if self.mode == "block":
            return write_block(memory, keys, values, self.p_write, self.p_erase, self.ridge)
        if self.mode == "sequential":
            return write_sequence(memory, keys, values, self.p_write, self.p_erase)
        return memory + (self.p_write * values - self.p_erase * (keys @ memory.mT)).mT @ keys

    def _score(self, learned: Tensor, query: Tensor) -> Tensor:
        """Return what the memories hold for the queries, ``(E, Q, C)``."""
        scores = query @ learned.mT
        if self.reading == "raw":
            return scores
        # Dividing the few scores by the length is the same as, and cheaper than, dividing the many features.
        return scores / torch.linalg.vector_norm(query, dim=-1, keepdim=True).clamp_min(torch.finfo(query.dtype).tiny)

    def extra_repr(self) -> str:
        """Say how the memory is written and read."""
        gates = f"p_write={self.p_write}, p_erase={self.p_erase}, ridge={self.ridge}"
        return f"mode={self.mode}, keys={self.keys}, reading={self.reading}, {gates}, {super().extra_repr()}"
