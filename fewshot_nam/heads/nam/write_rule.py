"""The paper's rule as a head: one key after another is written into a memory whose rows are classes.

    W <- WR(W, y/|x|, x/|x|, p_w, p_e) = W + p_w (y/|x|) (x/|x|)^T - p_e W (x/|x|) (x/|x|)^T

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422). With both gates 1, ``W x = y`` for the feature written last.
With keys that are not orthogonal, each write spoils the ones before, so the order of writing matters. ``mode="parallel"``
writes every key against the same earlier memory. Base classes in the label space are class weights that exist already; novel
keys are erased from them, which keeps novel images from being called base classes.

Departures from the authors' few-shot code: erasing is per episode (theirs averages it over a batch of episodes), and write and
erase probability are separate.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.memory.primitives import unit, write_sequence

Mode = Literal["sequential", "parallel"]
Keys = Literal["prototypes", "shots"]
Reading = Literal["raw", "unit"]


class WriteRuleHead(Head, gather_free=True):
    """A memory ``W`` ``(C, D)``, one row a class, written by the paper's rule; the scores of a query are what it reads.

    Args:
        mode: ``"sequential"``: the paper's rule, one key after another in the order given. ``"parallel"``: every key is written
            against the same earlier memory (the weights of base classes).
        keys: ``"prototypes"``: one key a class, its mean feature. ``"shots"``: every support feature is a key.
        reading: what lengths do. ``"raw"``, the paper's convention: the value is ``y/|x|`` and the query keeps its length, so
            that ``W x = y``; a class written from a short feature then scores higher. ``"unit"``: the value is ``y`` and the
            query has length 1, so that ``W x/|x| = y``. ``None``: raw in sequential mode, unit in parallel mode.
        p_write: write probability, 0 to 1.
        p_erase: erase probability, 0 to 1.
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.

    Raises:
        ValueError: an unknown word, or a number outside its range.

    Example:
        >>> head = WriteRuleHead().write(torch.tensor([[0.0, 2.0], [4.0, 3.0]]), ["cat", "dog"])
        >>> (head.memory @ torch.tensor([4.0, 3.0])).abs().round(decimals=3)  # W x = y for what was written last
        tensor([0., 1.])
    """

    @accepts_old_base_words
    def __init__(
        self,
        mode: Mode = "sequential",
        *,
        keys: Keys = "prototypes",
        reading: Reading | None = None,
        p_write: float = 1.0,
        p_erase: float = 1.0,
        base: BaseStatistics | None = None,
    ) -> None:
        super().__init__(base)
        reading = reading or ("raw" if mode == "sequential" else "unit")
        for name, value, allowed in (
            ("mode", mode, ("sequential", "parallel")),
            ("keys", keys, ("prototypes", "shots")),
            ("reading", reading, ("raw", "unit")),
        ):
            if value not in allowed:
                raise ValueError(f"WriteRuleHead: {name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, share in (("p_write", p_write), ("p_erase", p_erase)):
            if not 0 <= share <= 1:
                raise ValueError(f"WriteRuleHead: {name} must be from 0 to 1, got {share}")
        self.mode, self.keys, self.reading, self.p_write, self.p_erase = mode, keys, reading, p_write, p_erase

    @property
    def memory(self) -> Tensor:
        """The memory ``W``, ``(C, D)``, in the order of ``classes``.

        Raises:
            ValueError: no class is known yet.
        """
        if not self.classes:
            raise ValueError("WriteRuleHead knows no class yet: call write(features, labels) first")
        learned: Tensor = self._current()
        return learned[0]

    def _learn(self, support: Support) -> Tensor:
        """Return the memory ``(E, C, D)``."""
        base = unit(support.base)
        tiny = torch.finfo(base.dtype).tiny
        if self.reading == "raw":  # what the rule writes for a prototype into an empty memory
            base = base / torch.linalg.vector_norm(support.base, dim=-1, keepdim=True).clamp_min(tiny)
        if self.keys == "shots":
            keys, values = support.features, support.one_hot()
        else:
            keys = support.class_means(support.features if self.reading == "raw" else unit(support.features))
            values = torch.eye(support.columns).to(keys)[len(base) :]
        values = values.expand(len(keys), -1, -1)
        if self.reading == "raw":
            # A class whose shots cancel out has a prototype of length 0: its key is 0 too, so nothing is written.
            values = values / torch.linalg.vector_norm(keys, dim=-1, keepdim=True).clamp_min(tiny)
        keys = unit(keys)
        memory = support.with_base(base, keys.new_zeros(len(keys), support.columns - len(base), keys.shape[-1]))
        if self.mode == "sequential":
            return write_sequence(memory, keys, values, self.p_write, self.p_erase)
        return memory + (self.p_write * values - self.p_erase * (keys @ memory.mT)).mT @ keys

    def _class_weights(self, learned: Tensor) -> Tensor:
        return learned

    def _scores_from(self, learned: Tensor, products: Tensor, lengths: Tensor) -> Tensor:
        """Return what the memory reads ``(E, Q, C)``."""
        return products / lengths.clamp_min(torch.finfo(lengths.dtype).tiny) if self.reading == "unit" else products

    def extra_repr(self) -> str:
        """Return how the memory is written and read."""
        how = f"mode={self.mode}, keys={self.keys}, reading={self.reading}"
        return f"{how}, p_write={self.p_write}, p_erase={self.p_erase}, {super().extra_repr()}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Files of version 0.1, where this head was a mode of ``NAMHead``, hold base statistics that it did not use.
        for key in list(state_dict):
            if key.startswith((prefix + "stored_base.", prefix + "background.")):
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
