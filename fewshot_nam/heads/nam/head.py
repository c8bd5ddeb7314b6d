"""The NAM head: classes are written jointly into one memory, in the space of base classes, and read against these.

    z(x)    = unit(A unit(sqrt(x) - c)),                               A = W^(-1/2) (I + B)^(1/8)
    R       = (ridge I + sum_i z_i z_i^T)^(-1) over all n shots,       ridge = max(16, 0.3 n), n rounded up to a power of 2
    w_c     = R u_c / (u_c^T R u_c),                                   u_c = unit(m_c), m_c = mean of z over the shots of class c
    r_c(x)  = w_c . z(x) / |m_c|^0.3 + 0.3 p_c(x) - e_c - 0.7 h(z(x)) - 0.3 h(u_c),  h(u) = 0.08 log mean_b exp(u . z_b / 0.08)
    score_c = r_c - 0.38 T log sum_j exp(r_j / T),                     T = 0.03

``sqrt`` keeps the sign, ``c`` is the mean of the power-normalised base prototypes, ``z_b`` are these in the space, ``W`` is the
covariance of base images about their class means (shrunk: 0.8 I + 0.2 W), ``B`` that of whitened base prototypes, both divided by
their mean eigenvalue (``fewshot_nam.heads.base_space``). ``p_c`` is the likelihood ratio of ``fewshot_nam.heads.plda``, and
``e_c`` what a new image of a class with ``k`` shots is expected to read of ``w_c``.

The write ``w_c`` is the paper's rule with all keys at once: a class reads 1 for its own direction, as ``W x = y`` says, and the
less for others the smaller the ridge (``fewshot_nam.heads.nam.joint_write``). Base classes in the label space are further keys
of the same memory. ``ScoreNormHead`` is the head without this write and without ``p_c``. ``fewshot_nam.heads.nam.reference``
computes the same scores slowly, without any cleverness.

Sources: Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422); those of ``base_space``, ``score_norm`` and ``plda``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fewshot_nam._deprecation import warn_renamed
from fewshot_nam.heads.base import Support
from fewshot_nam.heads.base_statistics import BaseStatistics, accepts_old_base_words
from fewshot_nam.heads.growing_rows import GrowingRows
from fewshot_nam.heads.nam.joint_write import GrowingMemory, joint_write
from fewshot_nam.heads.nam.shot_sums import ShotSums
from fewshot_nam.heads.nam.write_rule import WriteRuleHead
from fewshot_nam.heads.plda import TwoCovarianceModel
from fewshot_nam.heads.power_norm import power_normalise
from fewshot_nam.heads.score_norm import Learned, ScoreNormHead, ScoreNormSettings
from fewshot_nam.heads.state import Snapshot, changes
from fewshot_nam.heads.validation import Label, as_labels
from fewshot_nam.memory.primitives import unit

_MANY = 64  # classes: from here on, further ones are added to what is there
# Variance of the directions of base classes. Those of real backbones have 0.1 to 0.6. With less, base classes say nothing about how
# far apart classes are, everything else is infinitely unlikely under their model, and the likelihood ratio is not used.
_LEAST_SPREAD = 0.02


@dataclass(frozen=True)
class NAMSettings(ScoreNormSettings):
    """The constants of ``NAMHead``, chosen on validation classes (``scripts/tune_head.py``); they are saved with it.

    Attributes:
        ridge: least damping of the joint write, above 0.
        ridge_per_key: damping for each key, at least 0, where that is more. The larger the damping, the more classes are written
            as plain prototypes.
        ratio_weight: weight of the likelihood ratio, at least 0.
        ratio_within: ``within`` of the ratio, as in ``PLDAHead``, above 0.
        ratio_shrinkage: ``shrinkage`` of the ratio, as in ``PLDAHead``, above 0 and at most 1.

    The others are those of ``ScoreNormSettings``.
    """

    identity_share: float = 0.8
    between_power: float = 0.125
    norm_exponent: float = 0.3
    cohort_temperature: float = 0.08
    query_cohort_weight: float = 0.7
    class_cohort_weight: float = 0.3
    log_partition_penalty: float = 0.38
    temperature: float = 0.03
    ridge: float = 16.0
    ridge_per_key: float = 0.3
    ratio_weight: float = 0.3
    ratio_within: float = 1.0
    ratio_shrinkage: float = 0.3

    _shares: ClassVar[tuple[str, ...]] = (*ScoreNormSettings._shares, "ratio_shrinkage")
    _above_zero: ClassVar[tuple[str, ...]] = (
        *ScoreNormSettings._above_zero,
        "ridge",
        "ratio_within",
        "ratio_shrinkage",
    )

    def damping(self, keys: int) -> float:
        """Return the ridge for so many keys.

        Their number is rounded up to a power of 2, so that few writes change the ridge, and all others are updates of low rank.
        """
        return max(self.ridge, self.ridge_per_key * 2 ** math.ceil(math.log2(max(keys, 1))))


def spread_of(power_means: Tensor) -> float:
    """Return the variance of the directions of base classes ``(B, D)``."""
    directions = unit(power_normalise(power_means))
    return float((directions - directions.mean(dim=0)).square().sum(dim=-1).mean())


class GrowingLearned(NamedTuple):
    """What is read of one head with many classes, which takes further ones at little cost.

    Attributes:
        means: ``(1, C, D)``, mean directions, of length 1.
        rest: ``(1, C, W - D)``, weights of the cohort score and the likelihood ratio.
        offsets: ``(1, C)``, subtracted from reads.
        scales: ``(1, C)``, factors of what the memory reads.
        memory: of the keys.
    """

    means: Tensor
    rest: Tensor
    offsets: Tensor
    scales: Tensor
    memory: GrowingMemory

    def as_weights(self) -> Learned:
        """Return the same with class weights."""
        weights = (self.memory.weights(self.means[0]) * self.scales[0].unsqueeze(-1)).unsqueeze(0)
        return Learned(torch.cat([weights, self.rest], dim=-1) if self.rest.shape[-1] else weights, self.offsets)


class NAMHead(ScoreNormHead, gather_free=True):
    """The default head: the equation stands at the top of this file.

    It uses what is known of base classes. With their images (``BaseStatistics.from_features``) it is at its best. With prototypes
    alone, ``A`` is the identity and ``e_c`` is 0. With nothing, ``z(x) = unit(x)``, and there are no cohort scores: then it ranks
    classes almost as a cosine classifier does.

    Args:
        base: what is known of base classes, such as those that the backbone was trained on; ``None`` for nothing.
        settings: constants that differ from the default, as ``NAMSettings`` or as a mapping.
        keep_shots: ``False`` keeps sums over shots in their place (``fewshot_nam.heads.nam.shot_sums``): memory and time no
            longer grow with the number of shots, and scores are the same but for rounding. Then single classes cannot be
            forgotten (all at once can), and ``calibrate_from_shots`` is refused.

    Raises:
        ValueError: a constant that does not exist, or is outside its range.

    Example:
        >>> head = NAMHead().write(torch.tensor([[3.0, 0.1], [0.2, 1.0]]), ["cat", "dog"])
        >>> head.predict(torch.tensor([[5.0, 1.0], [0.5, 0.6]]))
        ['cat', 'dog']
    """

    settings: NAMSettings
    _models: dict[tuple[torch.dtype, torch.device], TwoCovarianceModel | None]
    _last_base: tuple[Tensor, Tensor, Tensor] | None
    settings_type = NAMSettings

    def __new__(cls, *args: Any, mode: str | None = None, **options: Any) -> Any:
        """Return a new head: a ``WriteRuleHead`` for the modes of version 0.1 that are now that head."""
        mode = args[0] if args and isinstance(args[0], str) else mode
        if mode not in ("sequential", "parallel"):
            return super().__new__(cls)
        warn_renamed(f"NAMHead(mode={mode!r})", f"WriteRuleHead({mode!r})")
        return WriteRuleHead(mode, **options)  # type: ignore[arg-type]

    @accepts_old_base_words
    def __init__(
        self,
        base: BaseStatistics | None = None,
        *,
        settings: NAMSettings | Mapping[str, float] | None = None,
        keep_shots: bool = True,
        **old: Any,
    ) -> None:
        if old.pop("mode", "block") != "block" or isinstance(base, str):
            raise ValueError(
                "NAMHead has no modes: the paper's rule is WriteRuleHead, with modes sequential and parallel"
            )
        if old:
            raise TypeError(
                f"NAMHead: {', '.join(old)}: the constants are in settings=NAMSettings(...), and those of the first head of "
                "version 0.1 have no place in this one"
            )
        super().__init__(base, settings=settings)
        self._grown_rest = GrowingRows()
        self.keep_shots = keep_shots
        self.shot_sums = ShotSums()

    @property
    def memory(self) -> Tensor:
        """The memory ``W``, ``(C, D)``, in the order of ``classes``: what is multiplied with ``z`` of a query.

        Raises:
            ValueError: no class is known yet.
        """
        if not self.classes:
            raise ValueError("NAMHead knows no class yet: call write(features, labels) first")
        return self._directions(self._export_tensors(self._current())["memory"])

    @changes
    def write(self, features: Tensor, labels: Label | Iterable[Label] | Tensor) -> NAMHead:
        """Learn features of new classes, or more features of classes that were written before, as ``Head.write``."""
        if self.keep_shots:
            return super().write(features, labels)
        checked = self._checked_features(features, "features")
        names = as_labels(labels, len(checked))
        known, first = set(self._written_classes), dict[Label, int]()
        for i, name in enumerate(names):
            if name not in known:
                first.setdefault(name, i)
        if first:  # one feature of each class is kept; it says how wide features are, and in which order classes came
            self._write_rows(checked[list(first.values())], list(first))
        elif wrong := next((name for name in names if name in self._base_classes), None):
            self._write_rows(checked[:1], [wrong])  # raises what it raises for a base class
        column = {name: i for i, name in enumerate(self._written_classes)}
        targets = torch.tensor([column[name] for name in names], device=self.targets.device)
        embedded = self._embed(checked.detach().to(self.targets.device, self._dtype()))
        self.shot_sums.add(embedded, self._directions(embedded), targets, len(column))
        self._outdate()
        self._drop_unknowns(checked)
        return self

    def forget(self, labels: Label | Iterable[Label] | Tensor) -> NAMHead:
        """Forget classes, as ``Head.forget``.

        Raises:
            ValueError: also where shots are not kept and some written classes, but not all, are to be forgotten.
        """
        if self.keep_shots:
            return super().forget(labels)
        with self._lock:
            names, written = set(as_labels(labels, None)), set(self._written_classes)
            if names & written and not written <= names:
                raise ValueError(
                    "forget: this head does not keep its shots (keep_shots=False), and their sum cannot be taken apart: forget all "
                    "classes that were written, or learn again with keep_shots=True"
                )
            super().forget(labels)
            if names & written:
                self.shot_sums.clear()
        return self

    def _all_support(self, dtype: torch.dtype) -> Support:
        support = super()._all_support(dtype)
        return support if self.keep_shots else support._replace(sums=self.shot_sums.taken(dtype))

    def extra_repr(self) -> str:
        """Return the settings that differ from the default."""
        return super().extra_repr() if self.keep_shots else f"keep_shots=False, {super().extra_repr()}"

    def _shots_of_written(self) -> list[int]:
        if self.keep_shots:
            return super()._shots_of_written()
        counts: list[int] = self.shot_sums.counts.tolist()
        return counts

    def _held_out_scores(self, snapshot: Snapshot) -> tuple[Tensor, int]:
        if not self.keep_shots:
            raise ValueError(
                "calibrate_from_shots: this head does not keep its shots (keep_shots=False), so none can be left out"
            )
        return super()._held_out_scores(snapshot)

    def _check_submodules(self) -> None:
        super()._check_submodules()
        if len(self.shot_sums.counts):  # of a head that did not keep its shots: the support holds one of each class
            self.keep_shots = False
        if not self.keep_shots and not self.shot_sums.fits(len(self._written_classes), self._widths()):
            raise ValueError(
                f"{type(self).__name__}: this state is damaged: the sums of shots do not belong to its classes"
            )

    def _widths(self) -> tuple[int, int]:
        """Return the widths of embedded features and of ``z``."""
        embedded = self._embed(torch.ones(1, self.feature_dim or 1, dtype=self._dtype(), device=self.targets.device))
        return embedded.shape[1], self._directions(embedded).shape[1]

    def _ratio(self, like: Tensor) -> TwoCovarianceModel | None:
        """Return the model of the likelihood ratio in the dtype and on the device of a tensor; ``None`` where it is not used."""
        constants, key = self.settings, (like.dtype, like.device)
        if self._space(like) is None or not constants.ratio_weight:
            return None
        if key not in self._models:
            base, model = self.stored_base.value, None
            assert base is not None
            with torch.inference_mode(False), torch.no_grad():
                powers = base.power_means.double()
                if spread_of(powers) >= _LEAST_SPREAD:
                    exact = dataclasses.replace(base, power_means=powers, prototypes=base.prototypes.double())
                    model = TwoCovarianceModel.of(exact, constants.ratio_within, constants.ratio_shrinkage).to(like)
            self._models = {**self._models, key: model}
        return self._models[key]

    def _outdate_base(self) -> None:
        super()._outdate_base()
        self._models, self._last_base = {}, None
        self._ratio(self.stored_base.mean)

    def _embed(self, features: Tensor) -> Tensor:
        """Return ``z`` of features ``(..., D)`` and its cohort score, then what the likelihood ratio needs: ``(..., W)`` in all."""
        embedded = super()._embed(features)
        model = self._ratio(embedded)
        if model is None:
            return embedded
        coordinates = model.coordinates(features.to(embedded))
        return torch.cat([embedded, coordinates, model.squares(coordinates)], dim=-1)

    def _rest(self, means: Tensor, shots: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights ``(E, C, W - D)`` of all that is embedded beside ``z``, and offsets ``(E, C)`` of the likelihood ratio.

        Args:
            means: ``(E, C, W)``, of embedded shots.
            shots: ``(C,)``, how many each class has; infinite for base classes.
        """
        weights, model = self._with_cohort_score(means[..., :0]), self._ratio(means)
        if model is None:
            return weights, torch.zeros_like(means[..., 0])
        width = len(model.centre)
        linear, constant, square = model.ratios(means[..., width + 1 : 2 * width + 1], shots)
        factor = self.settings.ratio_weight / width
        square = square.expand(len(linear), -1, -1)
        return torch.cat([weights, factor * linear, factor * square], dim=-1), -factor * constant

    def _of_base(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return what no episode changes of base classes ``(B, W)``: weights ``(B, W - D)`` and offsets ``(B,)``.

        The last answer is kept, since one evaluation asks for the same base classes again and again.
        """
        last = self._last_base
        if last is not None and last[0] is base:
            return last[1], last[2]
        offsets = self._base_offsets(self._directions(base))
        rest, of_ratio = self._rest(base.unsqueeze(0), torch.full_like(offsets, torch.inf))
        self._last_base = None if base.requires_grad else (base, rest[0], offsets + of_ratio[0])
        return rest[0], offsets + of_ratio[0]

    def _learn(self, support: Support) -> Learned | GrowingLearned:
        base, keys, spread = self._directions(support.base), self._directions(support.features), None
        if support.sums is None:
            shots = torch.bincount(support.targets, minlength=support.columns)[len(base) :].to(keys)
            means = support.class_means(support.features)
        else:
            means, shots, spread = support.sums
        novel, scales, offsets = self._classes_of(self._directions(means), shots)
        rest, of_ratio = self._rest(means, shots)
        offsets = offsets + of_ratio
        if len(base):
            rest_of_base, of_base = self._of_base(support.base)
            rest = support.with_base(rest_of_base, rest)
            offsets = torch.cat([of_base.expand(len(novel), -1), offsets], dim=1)
            scales = torch.cat([torch.ones_like(of_base).expand(len(novel), -1), scales], dim=1)
        ridge = self.settings.damping(len(base) + (keys.shape[1] if spread is None else int(shots.sum())))
        if spread is not None:
            every = torch.cat([base, novel[0]])
            memory = GrowingMemory.of_spread(every, spread + base.mT @ base, ridge, int(shots.sum()) + len(base))
            return GrowingLearned(every.unsqueeze(0), rest, offsets, scales, memory).as_weights()
        if len(keys) == 1 and support.columns >= _MANY and not keys.requires_grad:
            every = torch.cat([base, novel[0]])
            memory = GrowingMemory.of(every, torch.cat([base, keys[0]]), ridge)
            return GrowingLearned(every.unsqueeze(0), rest, offsets, scales, memory)
        weights = joint_write(novel, keys, base, ridge) * scales.unsqueeze(-1)
        return Learned(torch.cat([weights, rest], dim=-1) if rest.shape[-1] else weights, offsets)

    def _learn_more(self, learned: Learned | GrowingLearned, added: Support) -> GrowingLearned | None:
        if not isinstance(learned, GrowingLearned):
            return None
        memory, keys = learned.memory, self._directions(added.features[0])
        if self.settings.damping(memory.written + len(keys)) != memory.ridge:
            return None
        shots, means = torch.bincount(added.targets).to(keys), added.class_means(added.features)
        novel, scales, offsets = self._classes_of(self._directions(means), shots)
        rest, of_ratio = self._rest(means, shots)
        return GrowingLearned(
            self._grown.append(learned.means[0], novel[0]).unsqueeze(0),
            self._grown_rest.append(learned.rest[0], rest[0]).unsqueeze(0),
            torch.cat([learned.offsets, offsets + of_ratio], dim=1),
            torch.cat([learned.scales, scales], dim=1),
            memory.with_classes(learned.means[0], novel[0], keys),
        )

    def _score(self, learned: Learned | GrowingLearned, query: Tensor) -> Tensor:
        if not isinstance(learned, GrowingLearned):
            return super()._score(learned, query)
        directions = self._directions(query)
        reads = learned.memory.read(directions, learned.means[0]) * learned.scales.unsqueeze(-2)
        if learned.rest.shape[-1]:
            reads = reads + query[..., directions.shape[-1] :] @ learned.rest.mT
        return self._normalised(learned.offsets, reads)

    def _class_weights(self, learned: Learned | GrowingLearned) -> Tensor:
        return (learned.as_weights() if isinstance(learned, GrowingLearned) else learned).weights

    def _export_tensors(self, learned: Learned | GrowingLearned) -> dict[str, Tensor]:
        return super()._export_tensors(learned.as_weights() if isinstance(learned, GrowingLearned) else learned)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_grown_rest": GrowingRows(), "_last_base": None}
