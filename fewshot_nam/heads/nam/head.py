"""The NAM head: a Neural Attention Memory whose keys are support features and whose values are one-hot classes.

Source: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422): a class is taught by the single write
``W <- WR(W, y/|x|, x/|x|, 1, 1)``, after which ``W x = y``. Written so, one after another with keys that are not
orthogonal, each write spoils the ones before: that is ``mode="sequential"``. ``mode="block"``, the default, writes all pairs
jointly. Base classes are rows that exist already; novel keys are erased from them (``base_rows="erased"``), which is what keeps
novel pictures from being called base classes.

Four things are ours. In block mode a second memory, written without erase, is read along with the first: what erasing gains
in telling classes apart it loses in telling known from unknown, and the plain memory (a cosine classifier) gives that back.
Classes compete when they are read: a share of the softmax normaliser is taken off, which changes no ranking within a
query, but lets a query that several classes claim be claimed less by each. And where a background of other classes is known, the
plain memory works on features that are settled against it, and what is familiar from it, be it a key or a query, counts for less.
Base classes in the label space are written jointly with the novel ones, and lend to their prototypes
(``fewshot_nam.heads.nam.joint_write``).

Departures from the authors' few-shot code: erasing is per episode (theirs averages it over a batch of episodes), and the
write and the erase probability are separate.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fewshot_nam._deprecation import renamed_attribute
from fewshot_nam.heads.base import Head, Products, Read, Support, compete
from fewshot_nam.heads.base_classes import Ground, ground_of
from fewshot_nam.heads.base_statistics import BaseStatistics, StoredBaseStatistics, accepts_old_base_words
from fewshot_nam.heads.nam import joint_write as joined
from fewshot_nam.heads.power_norm import Transform
from fewshot_nam.memory.primitives import unit, write_block, write_sequence

Mode = Literal["block", "sequential", "parallel"]
Keys = Literal["shots", "prototypes"]
Reading = Literal["unit", "raw"]
BaseRows = Literal["joint", "erased"]


class Learned(NamedTuple):
    """What a NAM head reads.

    Attributes:
        memory: ``(E, C, D)``, read with features as they are. Without a background the plain memory is in it.
        plain: ``(E, C, D)``, the plain memory for settled features; ``None`` where nothing settles them or it has no weight.
        familiar: ``(E, 1, C)``, how familiar each class's key in the plain memory is; ``None`` where there is no background.
        ground: what settles features, as ``plain``.
        weight: of the plain memory.
    """

    memory: Tensor
    plain: Tensor | None = None
    familiar: Tensor | None = None
    ground: Ground | None = None
    weight: float = 0.0


class NAMHead(Head, gather_free=True):
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
        base_rows: how base classes take part (``write_base``). ``"erased"``: their prototypes are rows, and novel keys are erased
            from them, as in the paper. ``"joint"``, in block mode with unit reading and a ridge: they are written jointly with the
            novel pairs, and the plain memory compares settled features
            (``fewshot_nam.heads.nam.joint_write``); for prototypes that are mean features,
            best power means, and not for the weights of a classifier. ``None``: joint where it can be.
        plain: weight, at least 0, of the second memory, written without erase: one prototype a class, the mean of its unit
            features. ``None``: 3 in block mode (1 beside joint base rows), 0 otherwise.
        level: how far the plain memory makes up for classes whose shots differ, 0 to 1. A prototype of length ``l`` is
            written at length ``l ** -level``: at 0 all have length 1, at 1 every class reads 1 on average over its own shots.
        compete: share of the softmax normaliser that is taken off the scores, 0 (plain reads) to 1 (log-probabilities times
            the temperature). ``None``: in block mode 0.4, or 0.2 with a background; 0 otherwise.
        temperature: of that softmax, above 0.
        base: what is known of base classes, such as those that the backbone was trained on; ``None`` for nothing. With
            prototypes, the plain memory compares settled features (``fewshot_nam.heads.base_classes``); joint base rows take
            their place. With only a mean, that is subtracted from every feature first.
        familiar: share of a key's and of a query's familiarity that is taken off what the plain memory reads; needs base
            prototypes.

    Raises:
        ValueError: an unknown mode, a number outside its range, or joint base rows where they cannot be.
    """

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
        base_rows: BaseRows | None = None,
        plain: float | None = None,
        level: float = 0.3,
        compete: float | None = None,
        temperature: float = 0.1,
        base: BaseStatistics | None = None,
        familiar: float = 0.4,
    ) -> None:
        only_mean = base is not None and not len(base)
        super().__init__(base if only_mean else None)
        self.stored_base = StoredBaseStatistics(None if only_mean else base)
        # Base statistics are loaded after the rest of the state, which is checked on its own before.
        self.register_load_state_dict_post_hook(_check_loaded)  # type: ignore[no-untyped-call]
        block = mode == "block"
        keys = keys or ("shots" if block else "prototypes")
        reading = reading or ("raw" if mode == "sequential" else "unit")
        plain = 0.0 if plain is None and not block else plain
        # Left open in block mode, since a state that is loaded may bring a background.
        compete = 0.0 if compete is None and not block else compete
        for name, value, allowed in (
            ("mode", mode, ("block", "sequential", "parallel")),
            ("keys", keys, ("shots", "prototypes")),
            ("reading", reading, ("unit", "raw")),
            ("base_rows", base_rows or "erased", ("erased", "joint")),
        ):
            if value not in allowed:
                raise ValueError(f"NAMHead: {name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, share in (("p_write", p_write), ("p_erase", p_erase), ("level", level), ("compete", compete or 0.0)):
            if not 0 <= share <= 1:
                raise ValueError(f"NAMHead: {name} must be from 0 to 1, got {share}")
        for name, weight in (("ridge", ridge), ("plain", plain or 0.0), ("familiar", familiar)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"NAMHead: {name} must be at least 0, got {weight}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"NAMHead: temperature must be above 0, got {temperature}")
        can_join = block and reading == "unit" and ridge > 0
        if base_rows == "joint" and not can_join:
            raise ValueError("NAMHead: base_rows='joint' takes mode='block', reading='unit' and a ridge above 0")
        self.mode, self.keys, self.reading = mode, keys, reading
        self.base_rows: BaseRows = base_rows or ("joint" if can_join else "erased")
        self.p_write, self.p_erase, self.ridge = p_write, p_erase, ridge
        self.level, self.temperature, self.familiar = level, temperature, familiar
        self._plain, self._compete = plain, compete

    @property
    def rooted(self) -> bool:
        """Whether base prototypes had better be power means."""
        return self.base_rows == "joint"

    @property
    def plain(self) -> float:
        """Weight of the plain memory."""
        return self._plain_over(len(self.base))

    def _plain_over(self, base_classes: int) -> float:
        if self._plain is not None:
            return self._plain
        return 1.0 if base_classes and self.base_rows == "joint" else 3.0

    @property
    def compete(self) -> float:
        """Share of the softmax normaliser that is taken off the scores."""
        if self._compete is not None:
            return self._compete
        return 0.2 if len(self.stored_base) else 0.4

    @property
    def base_statistics(self) -> BaseStatistics | None:
        """What the head knows of base classes; ``None`` for nothing."""
        return BaseStatistics.from_mean(self.mean) if self.mean.numel() else self.stored_base.value

    background = renamed_attribute("background", "stored_base")

    def _fixed_width(self) -> int:
        return super()._fixed_width() or len(self.stored_base.mean)

    def _ground(self, dtype: torch.dtype) -> Ground | None:
        """Return what follows from the base prototypes; ``None`` where there are none."""
        return ground_of(self.stored_base.power_means.to(dtype)) if len(self.stored_base) else None

    @property
    def memory(self) -> Tensor:
        """The memory ``W`` as it stands, ``(C, D)``: rows as in ``classes``; without a background, the plain memory added.

        Raises:
            ValueError: no class is known yet.
        """
        if not self.classes:
            raise ValueError("NAMHead knows no class yet: call write(features, labels) first")
        learned: Learned = self._current()
        return learned.memory[0]

    def _learn(self, support: Support) -> Learned:
        """Return the memories."""
        directions, base = unit(support.features), self._base(support)
        joint = len(base) > 0 and self.base_rows == "joint"
        memory = self._memory(support, directions)
        weight = self._plain_over(len(base))
        if not weight:
            return Learned(memory)
        if joint:
            ground = ground_of(support.base, joined.CENTRE)
            means = support.class_means(ground.settle(support.features))
            novel = joined.LIFT * self._levelled(joined.lend(means, ground.rows))
            return Learned(memory, support.with_base(ground.rows, novel), None, ground, weight)
        background = self._ground(memory.dtype)
        if background is None:
            # Reading is linear, so two memories that are read together with the same query are one: their sum.
            plain = self._levelled(support.class_means(directions))
            return Learned(memory + weight * support.with_base(base, plain))
        plain = self._levelled(support.class_means(background.settle(support.features)))
        plain = support.with_base(background.settle(support.base), plain)
        return Learned(memory, plain, background.familiarity(unit(plain)).unsqueeze(-2), background, weight)

    def _base(self, support: Support) -> Tensor:
        """Return the rows ``(B, D)`` of base classes."""
        base = unit(support.base)
        if self.reading == "raw":
            base = base / torch.linalg.vector_norm(support.base, dim=-1, keepdim=True)
        return base

    def _memory(self, support: Support, directions: Tensor) -> Tensor:
        """Return the memory ``(E, C, D)`` without the plain one; ``directions`` are the unit features."""
        base = self._base(support)
        simple = self.mode == "block" and self.keys == "shots" and self.reading == "unit" and self.ridge > 0
        if simple and not len(base) and directions.shape[1] > directions.shape[2]:
            return joined.write_classes(directions, support.class_sums(directions), self.p_write, self.ridge)
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
        if len(base) and self.base_rows == "joint":
            return joined.write_onto(base, keys, values, self.p_write, self.p_erase, self.ridge)
        memory = support.with_base(base, keys.new_zeros(len(keys), support.columns - len(base), keys.shape[-1]))
        if self.mode == "block":
            p_erase = self.p_erase if len(base) else 0.0  # an empty memory has nothing to erase
            return write_block(memory, keys, values, self.p_write, p_erase, self.ridge)
        if self.mode == "sequential":
            return write_sequence(memory, keys, values, self.p_write, self.p_erase)
        return memory + (self.p_write * values - self.p_erase * (keys @ memory.mT)).mT @ keys

    def _levelled(self, means: Tensor) -> Tensor:
        """Return mean directions ``(E, N, D)`` at lengths evened out by ``level``."""
        lengths = torch.linalg.vector_norm(means, dim=-1, keepdim=True).clamp_min(1e-6)
        return means * lengths ** -(1 + self.level)

    def _score(self, learned: Learned, query: Tensor) -> Tensor:
        """Return what the memories hold for the queries, ``(E, Q, C)``."""
        if learned.ground is None or learned.plain is None:
            return super()._score(learned, query)
        products, lengths = query @ learned.memory.mT, torch.linalg.vector_norm(query, dim=-1, keepdim=True)
        settled = learned.ground.settle(query)
        familiarity = None if learned.familiar is None else learned.ground.familiarity(settled)
        return self._read_both(learned, products, lengths, settled @ learned.plain.mT, familiarity)

    def _read_both(
        self, learned: Learned, products: Tensor, lengths: Tensor, plain: Tensor, familiarity: Tensor | None
    ) -> Tensor:
        """Return scores ``(E, Q, C)`` from the products of features and of settled features with the memories' rows.

        Args:
            learned: weight and, if it counts, the familiarity of classes.
            products: ``(E, Q, C)`` of features with the memory.
            lengths: ``(E, Q, 1)`` of the features.
            plain: ``(E, Q, C)`` of settled features with the plain memory.
            familiarity: ``(E, Q)`` of the queries, where it counts.
        """
        if learned.familiar is not None and familiarity is not None:
            plain = plain - self.familiar * (learned.familiar + familiarity.unsqueeze(-1))
        return compete(self._held(products, lengths) + learned.weight * plain, self.compete, self.temperature)

    def _reads(self, learned: Learned) -> list[Read]:
        """Return the reads of the memory and, where there are base classes, of the prototype memory."""
        memory = Read(learned.memory, self._transform)
        if learned.ground is None or learned.plain is None:
            return [memory]
        return [memory, Read(learned.plain, Transform(power=True, centre=learned.ground.centre))]

    def _image_terms(self, features: Tensor) -> Tensor | None:
        """Return the cohort scores ``(n,)`` of features, where they count."""
        ground = self._ground(features.dtype) if self._plain_over(0) else None
        return None if ground is None else ground.familiarity(ground.settle(features))

    def _scores_of_reads(self, learned: Learned, reads: list[Products], terms: Tensor | None) -> Tensor:
        """Return what the memories hold for the queries, ``(E, Q, C)``."""
        (products, lengths), *others = reads
        if not others:
            return self._scores_from(learned, products, lengths)
        plain, settled_lengths = others[0]
        plain = plain / settled_lengths.clamp_min(torch.finfo(settled_lengths.dtype).tiny)
        return self._read_both(learned, products, lengths, plain, terms)

    def _class_weights(self, learned: Learned) -> Tensor:
        return learned.memory

    def _scores_from(self, learned: Learned, products: Tensor, lengths: Tensor) -> Tensor:
        return compete(self._held(products, lengths), self.compete, self.temperature)

    def _held(self, products: Tensor, lengths: Tensor) -> Tensor:
        """Return what a memory holds for queries, from their products with it."""
        return products / lengths.clamp_min(torch.finfo(lengths.dtype).tiny) if self.reading == "unit" else products

    def extra_repr(self) -> str:
        """Say how the memory is written and read."""
        gates = f"p_write={self.p_write}, p_erase={self.p_erase}, ridge={self.ridge}"
        reads = f"plain={self.plain}, level={self.level}, compete={self.compete}, temperature={self.temperature}"
        backed = f"base={len(self.stored_base)}, familiar={self.familiar}"
        how = f"mode={self.mode}, keys={self.keys}, reading={self.reading}, base_rows={self.base_rows}"
        return f"{how}, {gates}, {reads}, {backed}, {super().extra_repr()}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Early files hold the prototypes alone, as "background.prototypes".
        old = state_dict.pop(prefix + "background.prototypes", None)
        if old is not None:
            stored = StoredBaseStatistics(BaseStatistics.from_prototypes(old) if len(old) else None)
            state_dict.update({f"{prefix}stored_base.{name}": buffer for name, buffer in stored.named_buffers()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_loaded(head: NAMHead, _keys: object) -> None:
    head._check_state()
