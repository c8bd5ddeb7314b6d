"""The joint write as recursive least squares: one image at a time, in any order, with memory that does not grow with images.

    z(x)    = unit(W^(-1/2) unit(sqrt(x) - c))
    u_c     = unit(m_c), m_c = mean of z over the images of class c;   R = (ridge I + sum_c u_c u_c^T)^(-1)
    w_c     = R u_c / (u_c^T R u_c)
    r_c(x)  = g_c^0.7 w_c . z(x),                                      g_c = sqrt(1 + (1 - i) / (k_c i))
    score_c = r_c - a T log sum_j exp(r_j / T)

Every class is one key of the memory, its mean direction ``u_c``. One more image of a class moves its key: the old key is taken
out of ``R`` and the new one put in, each by ``R <- R -+ R u u^T R / (1 +- u^T R u)``. So what is kept is ``R`` ``(D, D)`` and a sum
and a count for each class. To forget a class is to take its key out: nothing of it is left. By Theorem 1 a class reads 1 for its
key.

``i`` is the expected cosine of two images of one base class, and ``k_c`` the number of images of class ``c``. The mean of a few
images points less exactly at the class than that of many: a new image reads ``sqrt(i)`` of the mean of infinitely many images, and
``sqrt(i) / g_c`` of the mean of ``k_c``. The factor ``g_c`` makes up for it, so that base classes with hundreds of images and new
classes with five are compared on even terms. With all of it new classes take many queries of base classes; the power 0.7 was
chosen on validation classes. ``z`` is that of ``fewshot_nam.heads.base_space``.

With ``random_features`` above 0, ``z`` is followed by fixed random features ``k`` of it (``fewshot_nam.heads.nam.expansion``), from
the moment that images of base classes are learned: a key is then ``(unit(mean of z), unit(mean of k)) / sqrt(2)``, and ``g_c`` is
``sum sqrt(i) / sum sqrt(i) / g`` over both parts.

Sources: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422); Plackett, "Some Theorems in Least Squares" (1950; the
recursion); Zhuang et al., "ACIL: Analytic Class-Incremental Learning with Absolute Memorization and Privacy Protection" (2022; the
recursion over images for class-incremental learning).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads.base import Support
from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.heads.nam.expansion import Expansion
from fewshot_nam.heads.nam.joint_write import joint_write
from fewshot_nam.heads.nam.shot_sums import ExactSums
from fewshot_nam.heads.score_norm import Learned, ScoreNormHead, ScoreNormSettings
from fewshot_nam.heads.state import Snapshot, changes
from fewshot_nam.heads.validation import Label, as_labels, check_random_features
from fewshot_nam.memory.primitives import unit

_ROWS = 4096


@dataclass(frozen=True)
class RecursiveSettings(ScoreNormSettings):
    """The constants of ``NAMRecursiveHead``, chosen on validation classes; they are saved with it.

    Attributes:
        ridge: damping of the joint write, above 0. The larger it is, the more classes are written as plain prototypes.
        evenness: power of ``g_c``, 0 to 1: how far classes with few images are raised to those with many.
        random_features: how many to put beside ``z``, a whole number; 0 for none.

    The others are those of ``ScoreNormSettings``.
    """

    identity_share: float = 0.5
    norm_exponent: float = 0.0
    query_cohort_weight: float = 0.0
    class_cohort_weight: float = 0.0
    log_partition_penalty: float = 0.3
    temperature: float = 0.03
    ridge: float = 64.0
    evenness: float = 0.7
    random_features: float = 0

    _shares: ClassVar[tuple[str, ...]] = (*ScoreNormSettings._shares, "evenness")
    _above_zero: ClassVar[tuple[str, ...]] = (*ScoreNormSettings._above_zero, "ridge")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_features != int(self.random_features):
            raise ValueError(f"RecursiveSettings: random_features must be a whole number, got {self.random_features}")
        check_random_features("RecursiveSettings: random_features", int(self.random_features), 0)


class ClassSums(ExactSums):
    """Sums over the images of each class as buffers: they move with the head and are saved with it.

    Attributes:
        totals: ``(C, D)`` float64, the sum of the embedded images of each class.
        counts: ``(C,)`` float64, how many there are; infinite for a class that is known by a prototype alone.
    """

    totals: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("totals", torch.empty(0, 0, dtype=torch.float64))
        self.register_buffer("counts", torch.empty(0, dtype=torch.float64))

    def add(self, embedded: Tensor, targets: Tensor, classes: int) -> None:
        """Add images ``(n, D)`` of classes ``targets`` ``(n,)``; there are ``classes`` now. Tensors given out never change."""
        new = classes - len(self.counts)
        totals = self.totals.reshape(-1, embedded.shape[-1])
        totals = torch.cat([totals, totals.new_zeros(new, embedded.shape[-1])])
        self.totals = totals.index_add(0, targets, embedded.double())
        counts = torch.cat([self.counts, self.counts.new_zeros(new)])
        self.counts = counts.index_add(0, targets, torch.ones_like(targets, dtype=counts.dtype))

    def add_prototypes(self, directions: Tensor) -> None:
        """Add classes that are known by a direction each, ``(B, D)``."""
        self.totals = torch.cat([self.totals.reshape(-1, directions.shape[-1]), directions.double()])
        self.counts = torch.cat([self.counts, self.counts.new_full((len(directions),), torch.inf)])

    def keep(self, rows: Tensor) -> None:
        """Keep the classes at positions ``rows`` only."""
        self.totals, self.counts = self.totals[rows], self.counts[rows]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The number of classes is part of what is loaded.
        for name, buffer in list(self.named_buffers()):
            loaded = state_dict.get(prefix + name)
            if loaded is not None:
                setattr(self, name, buffer.new_empty(loaded.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class RecursiveMemory(NamedTuple):
    """The state of recursive least squares over the keys of classes, in float64.

    Attributes:
        keys: ``(C, D)``, of length 1; 0 for a class whose images cancel out.
        metric: ``(D, D)``, ``R``.
        own: ``(C,)``, ``u_c^T R u_c``.
        ridge: damping.
    """

    keys: Tensor
    metric: Tensor
    own: Tensor
    ridge: float

    @classmethod
    def of(cls, keys: Tensor, ridge: float) -> RecursiveMemory:
        """Return the memory of keys ``(C, D)``, by one inverse."""
        damped = keys.mT @ keys + ridge * torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
        metric = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return cls(keys, metric, ((keys @ metric) * keys).sum(dim=-1), ridge)

    def rewritten(self, removed: Tensor, added: Tensor, stay: Tensor) -> RecursiveMemory:
        """Return the memory with other keys, at a cost of ``k D (C + D)`` for ``k`` changed keys.

        Args:
            removed: ``(a, D)``, keys to take out.
            added: ``(b, D)``, keys to put in.
            stay: ``(C,)`` long, of each key that there is then its row in ``keys`` now; -1 for those of ``added``, in their order.
        """
        changed, new = torch.cat([removed, added]), stay < 0
        keys = self.keys[stay.clamp_min(0)] if len(self.keys) else added.new_zeros(len(stay), added.shape[-1])
        keys[new] = added
        if 2 * len(changed) > keys.shape[-1]:
            return RecursiveMemory.of(keys, self.ridge)
        signs = torch.cat([removed.new_full((len(removed),), -1.0), added.new_ones(len(added))])
        of_changed = changed @ self.metric
        inner = torch.diag(signs) + of_changed @ changed.mT
        metric = self.metric - of_changed.mT @ torch.linalg.solve(inner, of_changed)
        shared = keys @ of_changed.mT
        own = self.own[stay.clamp_min(0)] - (shared * torch.linalg.solve(inner, shared.mT).mT).sum(dim=-1)
        own[new] = ((added @ metric) * added).sum(dim=-1)
        return RecursiveMemory(keys, metric, own, self.ridge)


class RecursiveLearned(NamedTuple):
    """What is read of one head.

    Attributes:
        keys: ``(1, C, D)``.
        metric: ``(D, D)``, ``R``.
        factors: ``(1, C)``, of what the memory reads.
        offsets: ``(1, C)``, subtracted from the reads.
    """

    keys: Tensor
    metric: Tensor
    factors: Tensor
    offsets: Tensor


class NAMRecursiveHead(ScoreNormHead):
    """A memory that learns class after class for years: the equation stands at the top of this file.

    What it keeps does not grow with the images it has seen: a key for each class and one ``(D, D)`` matrix. Images may come one at
    a time and in any order; a class can be forgotten at any time, and the memory is then the one that never saw it. Since no image
    is kept but the first of each class, ``calibrate_from_shots`` is refused, and ``calibrate`` notices no other learned image among
    its samples.

    Args:
        base: what is known of base classes, at its best with their images (``BaseStatistics.from_features``); ``None`` for nothing.
        settings: constants that differ from the default, as ``RecursiveSettings`` or as a mapping.

    Raises:
        ValueError: a constant that does not exist, or is outside its range.

    Example:
        >>> head = NAMRecursiveHead().write(torch.tensor([[3.0, 0.1], [0.2, 1.0]]), ["cat", "dog"])
        >>> head.write(torch.tensor([4.0, 1.0]), "cat").predict(torch.tensor([[5.0, 1.0], [0.5, 0.6]]))
        ['cat', 'dog']
    """

    settings: RecursiveSettings
    settings_type = RecursiveSettings
    _memory: RecursiveMemory | None

    def __init__(
        self,
        base: BaseStatistics | None = None,
        *,
        settings: RecursiveSettings | Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(base, settings=settings)
        self.base_sums, self.shot_sums = ClassSums(), ClassSums()
        self.expansion = Expansion()
        self._memory = None

    def _embed(self, features: Tensor) -> Tensor:
        """Return what ``ScoreNormHead`` does; with random features ``z`` and ``k``, together of length 1, and the cohort score."""
        embedded = super()._embed(features)
        if not self.expansion.fitted:
            return embedded
        z, of_cohort = embedded[..., :-1], embedded[..., -1:]
        return torch.cat([z / math.sqrt(2), self.expansion(z) / math.sqrt(2), of_cohort], dim=-1)

    def _directions(self, embedded: Tensor) -> Tensor:
        """Return ``z``, with random features ``(z, k) / sqrt(2)``, ``(..., D)``."""
        return embedded[..., :-1] if self.expansion.fitted else super()._directions(embedded)

    def _keys_of(self, totals: Tensor) -> Tensor:
        """Return the keys of classes with sums or means ``(..., D)``."""
        if not self.expansion.fitted:
            return unit(totals)
        width = totals.shape[-1] - len(self.expansion.centre)
        parts = totals[..., :width], totals[..., width:]
        return torch.cat([unit(part) for part in parts], dim=-1) / math.sqrt(2)

    @changes
    def write(self, features: Tensor, labels: Label | Iterable[Label] | Tensor) -> NAMRecursiveHead:
        """Learn features of new classes, or more features of classes that were written before, as ``Head.write``."""
        checked = self._checked_features(features, "features")
        names = as_labels(labels, len(checked))
        known, first = set(self._written_classes), dict[Label, int]()
        for i, name in enumerate(names):
            if name not in known:
                first.setdefault(name, i)
        if first:  # one feature of each class is kept; it says how wide features are, and in which order classes came
            self._write_rows(checked[list(first.values())], list(first))
        column = {name: i for i, name in enumerate(self._written_classes)}
        targets = torch.tensor([column[name] for name in names], device=self.targets.device)
        changed = torch.unique(targets)
        old = changed[changed < len(self.shot_sums.counts)]
        removed = self._keys_of(self.shot_sums.totals[old]) if len(old) else None
        self.shot_sums.add(self._exact_directions(checked), targets, len(column))
        stay = torch.arange(len(self._base_classes) + len(column), device=changed.device)
        stay[len(self._base_classes) + changed] = -1
        self._rekey(removed, self._keys_of(self.shot_sums.totals[changed]), stay)
        self._drop_unknowns(checked)
        return self

    @changes
    def write_base(self, prototypes: Tensor, labels: Iterable[Label] | Tensor) -> NAMRecursiveHead:
        """Add classes that are known by one prototype each, as ``Head.write_base``."""
        before = len(self._base_classes)
        super().write_base(prototypes, labels)
        self.base_sums.add_prototypes(self._exact_directions(self.base[before:]))
        self._memory = None
        self._outdate()
        return self

    @changes
    def write_base_images(self, features: Tensor, labels: Iterable[Label] | Tensor) -> NAMRecursiveHead:
        """Add classes that are known by many images each, as ``Head.write_base_images``; with random features they come first."""
        if self.settings.random_features and self.classes and not self.expansion.fitted:
            raise ValueError(
                "write_base_images: learn the images of base classes first: random features are made of them"
            )
        return super().write_base_images(features, labels)

    def _learn_base_images(self, features: Tensor, targets: Tensor) -> None:
        first = int(targets.min())
        self.base_sums.keep(torch.arange(first, device=self.base_sums.counts.device))
        space = self._space(features.float())
        dtype = torch.float64
        if self.settings.random_features and space is not None:
            dtype = torch.float32  # of so many images; sums are taken in float64
            if not self.expansion.fitted:
                z = torch.cat([space.embed(some) for some in torch.split(features.float(), _ROWS)])
                width = int(self.settings.random_features)
                self.expansion.fit(space, z, targets - first, width)
        for some, its in zip(torch.split(features, _ROWS), torch.split(targets, _ROWS), strict=True):
            self.base_sums.add(self._exact_directions(some, dtype), its, len(self._base_classes))
        self._memory = None
        self._outdate()

    @changes
    def forget(self, labels: Label | Iterable[Label] | Tensor) -> NAMRecursiveHead:
        """Forget classes, as ``Head.forget``: their keys are taken out of the memory."""
        names = set(as_labels(labels, None))
        gone, stay = (
            [
                torch.tensor([i for i, name in enumerate(of) if (name in names) == away], dtype=torch.long)
                for of in (self._base_classes, self._written_classes)
            ]
            for away in (True, False)
        )
        super().forget(names)
        removed = [self._keys_of(sums.totals[rows]) for sums, rows in zip(self._sums(), gone, strict=True) if len(rows)]
        for sums, rows in zip(self._sums(), stay, strict=True):
            sums.keep(rows.to(sums.counts.device))
        if self.classes:
            if removed:
                self._rekey(torch.cat(removed), None, torch.cat([stay[0], len(gone[0]) + len(stay[0]) + stay[1]]))
        else:
            self._memory = None
        return self

    def _sums(self) -> tuple[ClassSums, ClassSums]:
        return self.base_sums, self.shot_sums

    def _exact_directions(self, features: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return directions ``(n, D)``."""
        return self._directions(self._embed(features.detach().to(self.targets.device, dtype)))

    def _rekey(self, removed: Tensor | None, added: Tensor | None, stay: Tensor) -> None:
        """Take keys out of the memory and put others in; ``stay`` as ``RecursiveMemory.rewritten`` takes it."""
        if self._memory is not None:
            none = self._memory.keys[:0]
            self._memory = self._memory.rewritten(
                none if removed is None else removed, none if added is None else added, stay.to(none.device)
            )
        self._outdate()

    def _keys(self) -> Tensor:
        return self._keys_of(torch.cat([sums.totals for sums in self._sums() if len(sums.counts)]))

    def _learn(self, support: Support) -> Learned | RecursiveLearned:
        if support.sums is not None:
            return self._read_memory(*support.sums[:2])
        base = self._directions(support.base)
        shots = torch.bincount(support.targets, minlength=support.columns)[len(base) :].to(support.features)
        means = support.class_means(self._directions(support.features))
        factors = torch.cat([base.new_ones(len(means), len(base)), self._factors(means, shots)], dim=1)
        keys = self._keys_of(means)
        weights = joint_write(keys, keys, base, self.settings.ridge) * factors.unsqueeze(-1)
        return Learned(self._with_cohort_score(weights), self._offsets(support.with_base(base, keys)))

    def _all_support(self, dtype: torch.dtype) -> Support:
        if self._memory is None:
            self._memory = RecursiveMemory.of(self._keys(), self.settings.ridge)
        counts = torch.cat([sums.counts for sums in self._sums()])
        totals = torch.cat([sums.totals for sums in self._sums() if len(sums.counts)])
        means = torch.where(counts.isinf().unsqueeze(-1), totals, totals / counts.clamp_max(1e300).unsqueeze(-1))
        nothing = self.support[:0].to(dtype)
        return Support(
            nothing.unsqueeze(0),
            self.targets[:0],
            nothing,
            len(counts),
            (means.to(dtype), counts.to(dtype), self._memory.metric),
        )

    def _read_memory(self, means: Tensor, counts: Tensor) -> RecursiveLearned:
        memory = self._memory
        assert memory is not None
        own = memory.own.to(means).clamp_min(torch.finfo(means.dtype).tiny)
        keys = memory.keys.to(means).unsqueeze(0)
        factors = self._factors(means.unsqueeze(0), counts)
        return RecursiveLearned(keys, memory.metric.to(means), factors / own, self._offsets(keys))

    def _factors(self, means: Tensor, shots: Tensor) -> Tensor:
        """Return ``g_c`` ``(E, C)`` of classes with means ``(E, C, D)`` and ``(C,)`` images, by the lengths of means if set so."""
        space = self._space(means)
        factors = means.new_ones(means.shape[:2])
        if space is None:
            return factors
        alike = [space.likeness or 0.0, float(self.expansion.likeness) if self.expansion.fitted else 0.0]
        alike = [value for value in alike if value > 0]
        if alike:  # of infinitely many images a new image reads sqrt(i), of k of them sqrt(i) / g
            fewer = sum(value / (value + (1 - value) / shots).sqrt() for value in alike)
            factors = factors * (sum(map(math.sqrt, alike)) / fewer) ** self.settings.evenness
        if self.settings.norm_exponent:
            factors = factors * torch.linalg.vector_norm(means, dim=-1).clamp_min(1e-6) ** -self.settings.norm_exponent
        return factors

    def _offsets(self, keys: Tensor) -> Tensor:
        """Return what is subtracted from the reads of classes with directions ``(E, C, D)``, ``(E, C)``."""
        space, weight = self._space(keys), self.settings.class_cohort_weight
        if space is None or not weight:
            return torch.zeros_like(keys[..., 0])
        return weight * space.cohort_scores(unit(keys[..., : len(space.centre)]), self.settings.cohort_temperature)

    def _learn_more(self, learned: Any, added: Support) -> None:
        return None  # the memory has been extended already

    def _score(self, learned: Learned | RecursiveLearned, query: Tensor) -> Tensor:
        if isinstance(learned, Learned):
            return super()._score(learned, query)
        directions = self._directions(query)
        reads = (directions @ learned.metric) @ learned.keys.mT * learned.factors.unsqueeze(-2)
        if query.shape[-1] > directions.shape[-1]:
            reads = reads - self.settings.query_cohort_weight * query[..., -1:]
        return self._normalised(learned.offsets, reads)

    def _shots_of_written(self) -> list[int]:
        return [int(count) for count in self.shot_sums.counts.tolist()]

    def _held_out_scores(self, snapshot: Snapshot) -> tuple[Tensor, int]:
        raise ValueError("calibrate_from_shots: this head keeps no shots, so none can be left out; use calibrate")

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._memory = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_memory": None}

    def _check_submodules(self) -> None:
        super()._check_submodules()
        self._memory = None
        if [len(sums.counts) for sums in self._sums()] != [len(self._base_classes), len(self._written_classes)]:
            raise ValueError(
                f"{type(self).__name__}: this state is damaged: the sums of classes do not belong to its classes"
            )
        shots = self.shot_sums.counts
        if not bool(((shots >= 1) & (shots < 2**53)).all()):
            raise ValueError(
                f"{type(self).__name__}: this state is damaged: the sums of classes are of no number of shots"
            )
        width = self.feature_dim
        if width is None:
            return
        if not self.expansion.fits(width):
            raise ValueError(
                f"{type(self).__name__}: this state is damaged: its random features do not fit its features"
            )
        width += len(self.expansion.centre)
        if any(len(sums.counts) and tuple(sums.totals.shape) != (len(sums.counts), width) for sums in self._sums()):
            raise ValueError(
                f"{type(self).__name__}: this state is damaged: the sums of classes do not fit its features"
            )
