"""The NAM head: a Neural Attention Memory whose keys are support features and whose values are one-hot classes.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422): a class is learned by the single write
``W <- WR(W, y/|x|, x/|x|, 1, 1)``, after which ``W x = y``. With keys that are not orthogonal, each of several such writes spoils
the ones before: that is ``mode="sequential"``. ``mode="block"``, the default, writes all pairs jointly
(``fewshot_nam.heads.nam.joint_write``). Base classes in the label space are class weights that exist already; novel keys are
erased from them (``base_write="erased"``), which keeps novel images from being called base classes.

This implementation adds:

- A prototype memory. In block mode a second memory, written without erasing (``p_erase = 0``), is read beside the first. Erasing
  tells classes apart better but known from unknown images worse; the prototype memory, a cosine classifier, makes up for that.
- A log-partition penalty: a share of the log of the softmax normaliser is subtracted from all scores of a query. It leaves their
  order, and lowers the scores of queries that several classes claim.
- Score normalisation. Where base classes are known, the prototype memory compares features that are power-normalised and centred
  by them, and cohort scores of class and query are subtracted (``fewshot_nam.heads.score_norm``).
- Joint write and base-class attention for base classes in the label space (``fewshot_nam.heads.nam.base_attention``).

Departures from the authors' few-shot code: erasing is per episode (theirs averages it over a batch of episodes), and write and
erase probability are separate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fewshot_nam._deprecation import renamed_attribute, renamed_parameter
from fewshot_nam.heads.base import Head, Products, Read, Support, with_log_partition_penalty
from fewshot_nam.heads.base_statistics import BaseStatistics, StoredBaseStatistics, accepts_old_base_words
from fewshot_nam.heads.nam import base_attention
from fewshot_nam.heads.nam.joint_write import write_classes, write_more, write_onto, write_sums
from fewshot_nam.heads.power_norm import Transform
from fewshot_nam.heads.score_norm import Cohort, cohort_of
from fewshot_nam.memory.primitives import unit, write_block, write_sequence

Mode = Literal["block", "sequential", "parallel"]
Keys = Literal["shots", "prototypes"]
Reading = Literal["unit", "raw"]
BaseWrite = Literal["joint", "erased"]


class Learned(NamedTuple):
    """What a NAM head reads.

    Attributes:
        memory: ``(E, C, D)``, read with features as they are. It includes the prototype memory where both are read alike.
        prototypes: ``(E, C, D)``, the prototype memory for normalised features; ``None`` where it is in ``memory`` or has weight 0.
        cohort_scores: ``(E, 1, C)`` of the prototypes; ``None`` where no score normalisation is used.
        cohort: the base classes that features are normalised by; ``None`` as ``prototypes``.
        weight: of the prototype memory.
        factor: ``(E, D, D)``, of the joint write, with which more classes can be written; ``None`` where it was made otherwise.
    """

    memory: Tensor
    prototypes: Tensor | None = None
    cohort_scores: Tensor | None = None
    cohort: Cohort | None = None
    weight: float = 0.0
    factor: Tensor | None = None


class NAMHead(Head, gather_free=True):
    """A memory ``W`` of shape ``(C, D)``, one row of weights for each class; the scores of a query ``x`` are what it reads.

    Args:
        mode: how pairs of key and value are written. ``"block"``: jointly, in no order (``write_block``). ``"sequential"``:
            the paper's rule, one after another in the order given. ``"parallel"``: every pair erases against the same earlier
            memory (the weights of base classes).
        keys: ``"shots"``: every support feature is a key. ``"prototypes"``: one key a class, its mean feature.
            ``None``: shots in block mode, prototypes otherwise.
        reading: what lengths do. ``"raw"``, the paper's convention: the value is ``y/|x|`` and the query keeps its length,
            so that ``W x = y``; a class written from a short feature then scores higher. ``"unit"``: the value is ``y`` and
            the query has length 1, so that ``W x/|x| = y``. ``None``: raw in sequential mode, unit otherwise.
        p_write: write probability, 0 to 1.
        p_erase: erase probability, 0 to 1.
        ridge: damping of a joint write, at least 0: block mode only. 0 reads every key back exactly, as long as keys are
            linearly independent; larger values suit support features that are alike.
        base_write: how base classes of the label space (``write_base``) are written. ``"erased"``: their prototypes are class
            weights, and novel keys are erased from them, as in the paper. ``"joint"``, in block mode with unit reading and a
            ridge: jointly with the novel pairs, with base-class attention in the prototype memory; for prototypes that are mean
            features, best power means, and not for the weights of a classifier. ``None``: joint where possible.
        prototype_weight: weight, at least 0, of the prototype memory: one prototype a class, the mean of its unit features.
            ``None``: 3 in block mode (1 with base classes written jointly), 0 otherwise.
        norm_exponent: how far the prototype memory makes up for classes whose shots differ, 0 to 1. A prototype of length ``l``
            is written at length ``l ** -norm_exponent``: at 0 all have length 1, at 1 every class reads 1 on average over
            its own shots.
        log_partition_penalty: share of the log of the softmax normaliser that is subtracted from the scores, 0 (plain reads) to 1
            (log-probabilities times the temperature). ``None``: in block mode 0.4, or 0.2 with ``base``; 0 otherwise.
        temperature: of that softmax, above 0.
        base: what is known of base classes, such as those that the backbone was trained on; ``None`` for nothing. With
            prototypes, they are the cohort of score normalisation, except for base classes written jointly, which take their
            place. With only a mean, that is subtracted from every feature first.
        cohort_weight: share of the cohort scores of class and query that is subtracted from what the prototype memory reads, at
            least 0; needs ``base`` with prototypes.

    Raises:
        ValueError: an unknown mode, a number outside its range, or a joint write of base classes where it is not possible.

    Example:
        >>> head = NAMHead().write(torch.tensor([[3.0, 0.1], [0.2, 1.0]]), ["cat", "dog"])
        >>> head.predict(torch.tensor([[5.0, 1.0], [0.5, 0.6]]))
        ['cat', 'dog']
    """

    @renamed_parameter("plain", "prototype_weight")
    @renamed_parameter("level", "norm_exponent")
    @renamed_parameter("compete", "log_partition_penalty")
    @renamed_parameter("familiar", "cohort_weight")
    @renamed_parameter("base_rows", "base_write")
    @accepts_old_base_words
    def __init__(
        self,
        mode: Mode = "block",
        *,
        keys: Keys | None = None,
        reading: Reading | None = None,
        p_write: float = 1.0,
        p_erase: float = 1.0,
        ridge: float = 0.2,
        base_write: BaseWrite | None = None,
        prototype_weight: float | None = None,
        norm_exponent: float = 0.3,
        log_partition_penalty: float | None = None,
        temperature: float = 0.1,
        base: BaseStatistics | None = None,
        cohort_weight: float = 0.4,
    ) -> None:
        only_mean = base is not None and not len(base)
        super().__init__(base if only_mean else None)
        self.stored_base = StoredBaseStatistics(None if only_mean else base)
        # Base statistics are loaded after the rest of the state, which is checked on its own before.
        self.register_load_state_dict_post_hook(_check_loaded)  # type: ignore[no-untyped-call]
        block = mode == "block"
        keys = keys or ("shots" if block else "prototypes")
        reading = reading or ("raw" if mode == "sequential" else "unit")
        prototype_weight = 0.0 if prototype_weight is None and not block else prototype_weight
        # Left open in block mode, since a state that is loaded may bring base classes.
        log_partition_penalty = 0.0 if log_partition_penalty is None and not block else log_partition_penalty
        for name, value, allowed in (
            ("mode", mode, ("block", "sequential", "parallel")),
            ("keys", keys, ("shots", "prototypes")),
            ("reading", reading, ("unit", "raw")),
            ("base_write", base_write or "erased", ("erased", "joint")),
        ):
            if value not in allowed:
                raise ValueError(f"NAMHead: {name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, share in (
            ("p_write", p_write),
            ("p_erase", p_erase),
            ("norm_exponent", norm_exponent),
            ("log_partition_penalty", log_partition_penalty or 0.0),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"NAMHead: {name} must be from 0 to 1, got {share}")
        for name, weight in (
            ("ridge", ridge),
            ("prototype_weight", prototype_weight or 0.0),
            ("cohort_weight", cohort_weight),
        ):
            if not 0 <= weight < math.inf:
                raise ValueError(f"NAMHead: {name} must be at least 0, got {weight}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"NAMHead: temperature must be above 0, got {temperature}")
        can_be_joint = block and reading == "unit" and ridge > 0
        if base_write == "joint" and not can_be_joint:
            raise ValueError("NAMHead: base_write='joint' takes mode='block', reading='unit' and a ridge above 0")
        self.mode, self.keys, self.reading = mode, keys, reading
        self.base_write: BaseWrite = base_write or ("joint" if can_be_joint else "erased")
        self.p_write, self.p_erase, self.ridge = p_write, p_erase, ridge
        self.norm_exponent, self.temperature, self.cohort_weight = norm_exponent, temperature, cohort_weight
        self._prototype_weight, self._log_partition_penalty = prototype_weight, log_partition_penalty

    background = renamed_attribute("background", "stored_base")
    plain = renamed_attribute("plain", "prototype_weight")
    level = renamed_attribute("level", "norm_exponent")
    compete = renamed_attribute("compete", "log_partition_penalty")
    familiar = renamed_attribute("familiar", "cohort_weight")
    base_rows = renamed_attribute("base_rows", "base_write")

    @property
    def power_normalised(self) -> bool:
        """Whether power means are better base prototypes for ``write_base`` than means."""
        return self.base_write == "joint"

    @property
    def prototype_weight(self) -> float:
        """Weight of the prototype memory."""
        return self._weight_with(len(self.base))

    def _weight_with(self, base_classes: int) -> float:
        """Return the weight of the prototype memory with so many base classes in the label space."""
        if self._prototype_weight is not None:
            return self._prototype_weight
        return 1.0 if base_classes and self.base_write == "joint" else 3.0

    @property
    def log_partition_penalty(self) -> float:
        """Share of the log of the softmax normaliser that is subtracted from the scores."""
        if self._log_partition_penalty is not None:
            return self._log_partition_penalty
        return 0.2 if len(self.stored_base) else 0.4

    @property
    def base_statistics(self) -> BaseStatistics | None:
        """What the head knows of base classes; ``None`` for nothing."""
        return BaseStatistics.from_mean(self.mean) if self.mean.numel() else self.stored_base.value

    def _fixed_width(self) -> int:
        return super()._fixed_width() or len(self.stored_base.mean)

    def _cohort(self, dtype: torch.dtype) -> Cohort | None:
        """Return the base classes as a cohort; ``None`` where there are none."""
        return cohort_of(self.stored_base.power_means.to(dtype)) if len(self.stored_base) else None

    @property
    def memory(self) -> Tensor:
        """The memory ``W``, ``(C, D)``, in the order of ``classes``; without base classes the prototype memory is added to it.

        Raises:
            ValueError: no class is known yet.
        """
        if not self.classes:
            raise ValueError("NAMHead knows no class yet: call write(features, labels) first")
        learned: Learned = self._current()
        return learned.memory[0]

    def _learn(self, support: Support) -> Learned:
        """Return the memories."""
        directions, base = unit(support.features), self._base_weights(support)
        joint = len(base) > 0 and self.base_write == "joint"
        weight, known = self._weight_with(len(base)), self._cohort(directions.dtype)
        simple, many = not len(base) and self._writes_shots_jointly, directions.shape[1] > directions.shape[2]
        if simple and known is None and not many:
            return Learned(self._sum_of_memories(support, directions, weight))
        factor = None
        if simple and many:
            memory, factor = write_classes(directions, support.class_sums(directions), self.p_write, self.ridge)
        else:
            memory = self._memory(support, directions)
        if not weight:
            return Learned(memory, factor=factor)
        if joint:
            cohort = cohort_of(support.base, base_attention.CENTRING)
            means = support.class_means(cohort.normalise(support.features))
            novel = base_attention.with_base_attention(means, cohort.prototypes)
            novel = base_attention.NOVEL_SCALE * self._scaled(novel)
            return Learned(memory, support.with_base(cohort.prototypes, novel), None, cohort, weight)
        if known is None:
            # Reading is linear, so two memories that are read with the same query are one: their sum.
            prototypes = self._scaled(support.class_means(directions))
            return Learned(memory + weight * support.with_base(base, prototypes), factor=factor)
        prototypes = self._scaled(support.class_means(known.normalise(support.features)))
        prototypes = support.with_base(known.normalise(support.base), prototypes)
        return Learned(memory, prototypes, known.scores(unit(prototypes)).unsqueeze(-2), known, weight, factor)

    def _learn_more(self, learned: Learned, known: Support, added: Support) -> Learned | None:
        if learned.factor is None:
            return None
        keys = unit(added.features)
        left, new, right = write_more(learned.factor, known.features, known.targets, keys, added.one_hot())
        memory = learned.memory.new_empty(1, known.columns + added.columns, keys.shape[-1])
        torch.baddbmm(learned.memory, left, right, alpha=self.p_write, out=memory[:, : known.columns])
        written, weight = self.p_write * (new @ right), self._weight_with(0)
        if learned.prototypes is None or learned.cohort is None or learned.cohort_scores is None:
            if weight:
                written = written + weight * self._scaled(added.class_means(keys))
            memory[:, known.columns :] = written
            return learned._replace(memory=memory)
        memory[:, known.columns :] = written
        prototypes = self._scaled(added.class_means(learned.cohort.normalise(added.features)))
        scores = learned.cohort.scores(unit(prototypes)).unsqueeze(-2)
        return learned._replace(
            memory=memory,
            prototypes=torch.cat([learned.prototypes, prototypes], dim=1),
            cohort_scores=torch.cat([learned.cohort_scores, scores], dim=-1),
        )

    def _base_weights(self, support: Support) -> Tensor:
        """Return the class weights ``(B, D)`` of base classes."""
        base = unit(support.base)
        if self.reading == "raw":
            base = base / torch.linalg.vector_norm(support.base, dim=-1, keepdim=True)
        return base

    def _memory(self, support: Support, directions: Tensor) -> Tensor:
        """Return the memory ``(E, C, D)`` without the prototype memory; ``directions`` are the unit features."""
        base = self._base_weights(support)
        features, values = support.features, support.one_hot()
        if self.keys == "prototypes":
            # Unit reading compares directions, so a prototype is then the mean direction, as in a cosine classifier.
            features = support.class_means(directions if self.reading == "unit" else features)
            values = torch.eye(support.columns, dtype=features.dtype, device=features.device)[len(base) :]
        keys = directions if self.keys == "shots" else unit(features)
        values = values.expand(len(keys), -1, -1)
        if self.reading == "raw":
            # A class whose shots cancel out has a prototype of length 0: its key is 0 too, so nothing is written.
            lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
            values = values / lengths.clamp_min(torch.finfo(features.dtype).tiny)
        if len(base) and self.base_write == "joint":
            return write_onto(base, keys, values, self.p_write, self.p_erase, self.ridge)
        memory = support.with_base(base, keys.new_zeros(len(keys), support.columns - len(base), keys.shape[-1]))
        if self.mode == "block":
            p_erase = self.p_erase if len(base) else 0.0  # an empty memory has nothing to erase
            return write_block(memory, keys, values, self.p_write, p_erase, self.ridge)
        if self.mode == "sequential":
            return write_sequence(memory, keys, values, self.p_write, self.p_erase)
        return memory + (self.p_write * values - self.p_erase * (keys @ memory.mT)).mT @ keys

    @property
    def _writes_shots_jointly(self) -> bool:
        return self.mode == "block" and self.keys == "shots" and self.reading == "unit" and self.ridge > 0

    def _sum_of_memories(self, support: Support, directions: Tensor, weight: float) -> Tensor:
        """Return the joint memory plus ``weight`` times the prototype memory, ``(E, C, D)``, where there are no base classes.

        Both are weighted sums of the ``n`` keys. The weights follow from the keys' products ``(E, n, n)``, which are far fewer
        numbers than the keys: for one shot this takes a third of the time of writing the two memories.
        """
        products, members = directions @ directions.mT, support.one_hot()
        means = (members / members.sum(dim=0)).mT
        lengths = ((means @ products) * means).sum(dim=-1, keepdim=True).clamp_min(1e-12).sqrt()
        prototypes = weight * means * lengths ** -(1 + self.norm_exponent)
        return (write_sums(products, members, self.p_write, self.ridge) + prototypes) @ directions

    def _scaled(self, means: Tensor) -> Tensor:
        """Return mean directions ``(E, N, D)`` of length ``l`` at length ``l ** -norm_exponent``."""
        lengths = torch.linalg.vector_norm(means, dim=-1, keepdim=True).clamp_min(1e-6)
        return means * lengths ** -(1 + self.norm_exponent)

    def _score(self, learned: Learned, query: Tensor) -> Tensor:
        """Return what the memories read for the queries, ``(E, Q, C)``."""
        if learned.cohort is None or learned.prototypes is None:
            return super()._score(learned, query)
        products, lengths = query @ learned.memory.mT, torch.linalg.vector_norm(query, dim=-1, keepdim=True)
        normalised = learned.cohort.normalise(query)
        cohort_scores = None if learned.cohort_scores is None else learned.cohort.scores(normalised)
        return self._read_both(learned, products, lengths, normalised @ learned.prototypes.mT, cohort_scores)

    def _read_both(
        self, learned: Learned, products: Tensor, lengths: Tensor, cosines: Tensor, cohort_scores: Tensor | None
    ) -> Tensor:
        """Return scores ``(E, Q, C)`` from the products of queries with both memories.

        Args:
            learned: weight of the prototype memory, and the cohort scores of classes where they are used.
            products: ``(E, Q, C)`` of queries with the memory.
            lengths: ``(E, Q, 1)`` of the queries.
            cosines: ``(E, Q, C)`` of normalised queries with the prototype memory.
            cohort_scores: ``(E, Q)`` of the queries, where they are used.
        """
        if learned.cohort_scores is not None and cohort_scores is not None:
            cosines = cosines - self.cohort_weight * (learned.cohort_scores + cohort_scores.unsqueeze(-1))
        scores = self._read_memory(products, lengths) + learned.weight * cosines
        return with_log_partition_penalty(scores, self.log_partition_penalty, self.temperature)

    def _reads(self, learned: Learned) -> list[Read]:
        """Return the reads of the memory and, where there are base classes, of the prototype memory."""
        memory = Read(learned.memory, self._transform)
        if learned.cohort is None or learned.prototypes is None:
            return [memory]
        return [memory, Read(learned.prototypes, Transform(power=True, centre=learned.cohort.centre))]

    def _image_terms(self, features: Tensor) -> Tensor | None:
        """Return the cohort scores ``(n,)`` of features, where they are used."""
        cohort = self._cohort(features.dtype) if self._weight_with(0) else None
        return None if cohort is None else cohort.scores(cohort.normalise(features))

    def _scores_of_reads(self, learned: Learned, reads: list[Products], terms: Tensor | None) -> Tensor:
        """Return what the memories read for the queries, ``(E, Q, C)``."""
        (products, lengths), *others = reads
        if not others:
            return self._scores_from(learned, products, lengths)
        cosines, normalised_lengths = others[0]
        cosines = cosines / normalised_lengths.clamp_min(torch.finfo(normalised_lengths.dtype).tiny)
        return self._read_both(learned, products, lengths, cosines, terms)

    def _class_weights(self, learned: Learned) -> Tensor:
        return learned.memory

    _per_class = ("memory", "plain", "familiar")  # the names are those of files of version 0.1

    def _export_tensors(self, learned: Learned) -> dict[str, Tensor]:
        """Return the memory; with base classes also the prototype memory and the cohort's mean; with a cohort also its scores."""
        found = {"memory": learned.memory[0]}
        if learned.prototypes is not None and learned.cohort is not None:
            found |= {"plain": learned.prototypes[0], "centre": learned.cohort.centre}
            if learned.cohort_scores is not None:
                found |= {"familiar": learned.cohort_scores[0, 0], "rows": learned.cohort.prototypes}
        return found

    def _export_numbers(self, learned: Learned) -> dict[str, float]:
        """Return the weight of the prototype memory, 0 where it is not read on its own."""
        return {"plain weight": learned.weight}

    def _export_constants(self) -> list[Tensor]:
        return [self.mean, self.stored_base.power_means]

    def _from_export(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> Learned:
        one = {name: tensors[name].unsqueeze(0) for name in self._per_class if name in tensors}
        if "plain" not in one:
            return Learned(one["memory"])
        cohort_scores = one["familiar"].unsqueeze(-2) if "familiar" in one else None
        # The prototypes of the cohort are for cohort scores alone.
        cohort = Cohort(tensors["centre"], tensors.get("rows", tensors["centre"].unsqueeze(0)))
        return Learned(one["memory"], one["plain"], cohort_scores, cohort, numbers["plain weight"])

    def _scores_from(self, learned: Learned, products: Tensor, lengths: Tensor) -> Tensor:
        scores = self._read_memory(products, lengths)
        return with_log_partition_penalty(scores, self.log_partition_penalty, self.temperature)

    def _read_memory(self, products: Tensor, lengths: Tensor) -> Tensor:
        """Return what the memory reads for queries, from their products with it."""
        return products / lengths.clamp_min(torch.finfo(lengths.dtype).tiny) if self.reading == "unit" else products

    def extra_repr(self) -> str:
        """Return how the memory is written and read."""
        how = f"mode={self.mode}, keys={self.keys}, reading={self.reading}, base_write={self.base_write}"
        gates = f"p_write={self.p_write}, p_erase={self.p_erase}, ridge={self.ridge}"
        reads = (
            f"prototype_weight={self.prototype_weight}, norm_exponent={self.norm_exponent}, "
            f"log_partition_penalty={self.log_partition_penalty}, temperature={self.temperature}"
        )
        known = f"base={len(self.stored_base)}, cohort_weight={self.cohort_weight}"
        return f"{how}, {gates}, {reads}, {known}, {super().extra_repr()}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The first files of version 0.1 hold only prototypes, as "background.prototypes".
        old = state_dict.pop(prefix + "background.prototypes", None)
        if old is not None:
            stored = StoredBaseStatistics(BaseStatistics.from_prototypes(old) if len(old) else None)
            state_dict.update({f"{prefix}stored_base.{name}": buffer for name, buffer in stored.named_buffers()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_loaded(head: NAMHead, _keys: object) -> None:
    head._check_state()
