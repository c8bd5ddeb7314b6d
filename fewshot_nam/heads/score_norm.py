"""Cosine with score normalisation: prototypes in the space of base classes, without a memory that erases.

What is close to many classes is weak evidence for one. So the cohort scores of query and class, how like base classes they are,
are subtracted from the cosine (``fewshot_nam.heads.base_space``), and a share of the log of the softmax normaliser from all
scores of a query. The NAM head (``fewshot_nam.heads.nam.head``) is this head with a joint write in place of plain prototypes,
and with a likelihood ratio.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from fewshot_nam._deprecation import renamed_attribute, renamed_names
from fewshot_nam.heads.base import Head, Support, with_log_partition_penalty
from fewshot_nam.heads.base_space import BaseSpace, base_space
from fewshot_nam.heads.base_statistics import BaseStatistics, StoredBaseStatistics, accepts_old_base_words
from fewshot_nam.heads.growing_rows import GrowingRows
from fewshot_nam.memory.primitives import unit

_LARGEST = torch.finfo(torch.float32).max

__getattr__ = renamed_names(__name__, {"Background": "fewshot_nam.heads.base_statistics.StoredBaseStatistics"})

LEAST_BASE = 3
"""With fewer base classes than this nothing tells classes apart, and they are not used."""


@dataclasses.dataclass(frozen=True)
class ScoreNormSettings:
    """The constants of ``ScoreNormHead``; they are saved with it.

    Attributes:
        centre_share: share of the mean base prototype that is subtracted from features, 0 to 1.
        identity_share: of the within-class covariance, 0 to 1; 1 does not whiten.
        between_power: power of ``I + B`` in the metric, at least 0.
        norm_exponent: 0 to 1; a class whose mean feature has length ``l`` reads ``l ** -norm_exponent`` times as much.
        cohort_temperature: of the soft maximum over base classes, above 0.
        query_cohort_weight: share of the query's cohort score that is subtracted, at least 0.
        class_cohort_weight: likewise, of the class's.
        log_partition_penalty: share of the log of the softmax normaliser that is subtracted from the scores, 0 to 1.
        temperature: of that softmax, above 0.

    Raises:
        ValueError: a number outside its range.
    """

    centre_share: float = 1.0
    identity_share: float = 0.95
    between_power: float = 0.0
    norm_exponent: float = 0.0
    cohort_temperature: float = 0.1
    query_cohort_weight: float = 0.6
    class_cohort_weight: float = 0.3
    log_partition_penalty: float = 0.2
    temperature: float = 0.03

    _shares: ClassVar[tuple[str, ...]] = ("centre_share", "identity_share", "norm_exponent", "log_partition_penalty")
    _above_zero: ClassVar[tuple[str, ...]] = ("cohort_temperature", "temperature")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
                raise ValueError(f"{type(self).__name__}: {field.name} must be a number, got {value!r}")
            if field.name in self._shares and not 0 <= value <= 1:
                raise ValueError(f"{type(self).__name__}: {field.name} must be from 0 to 1, got {value}")
            if field.name in self._above_zero and not value > 0:
                raise ValueError(f"{type(self).__name__}: {field.name} must be above 0, got {value}")
            if value < 0:
                raise ValueError(f"{type(self).__name__}: {field.name} must be at least 0, got {value}")


SettingsT = TypeVar("SettingsT", bound=ScoreNormSettings)


def as_settings(kind: type[SettingsT], given: SettingsT | Mapping[str, float] | None) -> SettingsT:
    """Return settings that were given as such, as a mapping of those that differ from the default, or not at all.

    Raises:
        ValueError: an unknown name, or a number outside its range.
        TypeError: something else.
    """
    if given is None or isinstance(given, Mapping):
        known = [field.name for field in dataclasses.fields(kind)]
        wrong = next((name for name in given or {} if name not in known), None)
        if wrong is not None:
            raise ValueError(f"{kind.__name__} has no {wrong!r}; there are: {', '.join(known)}")
        return kind(**(given or {}))
    if type(given) is not kind:
        raise TypeError(f"settings must be {kind.__name__} or a mapping, got {type(given).__name__}")
    return given


class Learned(NamedTuple):
    """What is read.

    Attributes:
        weights: ``(E, C, W)``, multiplied with embedded queries.
        offsets: ``(E, C)``, subtracted from these products.
    """

    weights: Tensor
    offsets: Tensor


class ScoreNormHead(Head, gather_free=True):
    """Scores ``cos(z(x), m_c) / |m_c|^L - e_c - a h(z(x)) - b h(m_c)``, less a log-partition penalty.

    ``z`` is the space of base classes, ``m_c`` the mean of ``z`` over the shots of class ``c``, ``h`` the cohort score, and
    ``e_c`` what a new image of the class is expected to read. It is the same for all classes with equally many shots, and sets
    these against base classes and against classes with other numbers of shots.

    Where no base classes are known, or fewer than ``LEAST_BASE``, features are only scaled to length 1, and neither lengths of
    means nor cohort scores are used. Where only their prototypes are known, features are not whitened and ``e_c`` is 0.

    Args:
        base: what is known of base classes; ``None`` for nothing. With only a mean, that is subtracted from every feature.
        settings: constants that differ from the default.

    Raises:
        ValueError: a constant that does not exist, or is outside its range.
    """

    settings: ScoreNormSettings
    _spaces: dict[tuple[torch.dtype, torch.device], BaseSpace]
    settings_type: ClassVar[type[ScoreNormSettings]] = ScoreNormSettings

    @accepts_old_base_words
    def __init__(
        self,
        base: BaseStatistics | None = None,
        *,
        settings: ScoreNormSettings | Mapping[str, float] | None = None,
    ) -> None:
        only_mean = base is not None and len(base) < LEAST_BASE
        super().__init__(base if only_mean else None)
        self.settings = as_settings(self.settings_type, settings)
        self.stored_base = StoredBaseStatistics(None if only_mean else base)
        self._grown = GrowingRows()
        # Base statistics are loaded after the rest of the state, which is checked on its own before.
        self.register_load_state_dict_post_hook(_check_loaded)  # type: ignore[no-untyped-call]
        self._outdate_base()

    background = renamed_attribute("background", "stored_base")

    @property
    def power_normalised(self) -> bool:
        """Whether power means are better base prototypes for ``write_base`` than means."""
        return len(self.stored_base) > 0

    @property
    def base_statistics(self) -> BaseStatistics | None:
        """What the head knows of base classes; ``None`` for nothing."""
        return BaseStatistics.from_mean(self.mean) if self.mean.numel() else self.stored_base.value

    def _fixed_width(self) -> int:
        return super()._fixed_width() or len(self.stored_base.mean)

    def _check_submodules(self) -> None:
        """Raise ``ValueError`` if what was loaded into submodules does not fit the rest; they are loaded last."""

    def _outdate_base(self) -> None:
        """Derive what follows from base classes anew: now, since it cannot be computed while a compiler traces."""
        self._spaces = {}
        self._space(self.stored_base.mean)

    def _space(self, like: Tensor) -> BaseSpace | None:
        """Return the space of base classes in the dtype and on the device of a tensor; ``None`` where none are known."""
        if not len(self.stored_base) or self.stored_base.mean.is_meta:
            return None
        known = self._spaces.get((like.dtype, like.device))
        if known is None:
            base, constants = self.stored_base.value, self.settings
            assert base is not None
            with torch.inference_mode(False), torch.no_grad():
                known = base_space(base, constants.identity_share, constants.between_power, constants.centre_share).to(
                    like
                )
            self._spaces = {**self._spaces, (like.dtype, like.device): known}
        return known

    @property
    def embeds_beforehand(self) -> bool:  # type: ignore[override]
        """Whether ``_embed`` does more than divide by lengths."""
        return len(self.stored_base) > 0

    def _embed(self, features: Tensor) -> Tensor:
        """Return ``z`` of features ``(..., D)`` and then its cohort score, ``(..., D + 1)``; without base classes ``z`` alone."""
        features = features if features.element_size() >= 4 else features.float()
        space = self._space(features)
        if space is None:
            return unit(super()._embed(features))
        directions = space.embed(features)
        of_cohort = space.cohort_scores(directions, self.settings.cohort_temperature)
        return torch.cat([directions, of_cohort.unsqueeze(-1)], dim=-1)

    def _directions(self, embedded: Tensor) -> Tensor:
        """Return ``z`` ``(..., D)`` of embedded features."""
        space = self._space(embedded)
        return embedded if space is None else embedded[..., : len(space.centre)]

    def _learn(self, support: Support) -> Any:
        """Return what is read."""
        base = self._directions(support.base)
        shots = torch.bincount(support.targets, minlength=support.columns)[len(base) :]
        keys, scales, offsets = self._classes_of(support.class_means(self._directions(support.features)), shots)
        if len(base):
            of_base = self._base_offsets(base)
            offsets = torch.cat([of_base.expand(len(keys), -1), offsets], dim=1)
        weights = support.with_base(base, keys * scales.unsqueeze(-1))
        return Learned(self._with_cohort_score(weights), offsets)

    def _with_cohort_score(self, weights: Tensor) -> Tensor:
        """Return weights ``(..., D)`` with that of the query's cohort score, where there is a cohort."""
        if self._space(weights) is None:
            return weights
        of_query = weights.new_full((*weights.shape[:-1], 1), -self.settings.query_cohort_weight)
        return torch.cat([weights, of_query], dim=-1)

    def _classes_of(self, means: Tensor, shots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys ``(E, N, D)`` of length 1, scales and offsets ``(E, N)`` of classes.

        Args:
            means: ``(E, N, D)``, of ``z`` over their shots.
            shots: ``(N,)``, how many each has.
        """
        space, constants = self._space(means), self.settings
        lengths = torch.linalg.vector_norm(means, dim=-1).clamp_min(1e-6)
        keys = means / lengths.unsqueeze(-1)
        if space is None:  # without a centre a length says how bright a class is, not how alike its shots are
            return keys, torch.ones_like(lengths), torch.zeros_like(lengths)
        offsets = constants.class_cohort_weight * space.cohort_scores(keys, constants.cohort_temperature)
        if space.likeness is not None:
            expected = (1 + (shots.to(means) - 1) * space.likeness) / shots.to(means)  # squared length of the mean
            offsets = offsets + space.likeness * expected ** (-(1 + constants.norm_exponent) / 2)
        return keys, lengths**-constants.norm_exponent, offsets

    def _base_offsets(self, base: Tensor) -> Tensor:
        """Return the offsets ``(B,)`` of base classes in the label space, each the mean of very many images."""
        space, constants = self._space(base), self.settings
        if space is None:
            return torch.zeros_like(base[:, 0])
        others = space.cohort_scores_among_others(base, constants.cohort_temperature)
        return constants.class_cohort_weight * others + (space.likeness or 0.0) ** 0.5

    def _learn_more(self, learned: Any, added: Support) -> Any:
        means = added.class_means(self._directions(added.features))
        keys, scales, offsets = self._classes_of(means, torch.bincount(added.targets))
        weights = self._with_cohort_score(keys * scales.unsqueeze(-1))
        weights = self._grown.append(learned.weights[0], weights[0]).unsqueeze(0)
        return Learned(weights, torch.cat([learned.offsets, offsets], dim=1))

    def _score(self, learned: Any, query: Tensor) -> Tensor:
        """Return scores ``(E, Q, C)`` of embedded queries."""
        return self._normalised(learned.offsets, query @ learned.weights.mT)

    def _normalised(self, offsets: Tensor, products: Tensor) -> Tensor:
        """Return scores ``(E, Q, C)`` from products with the class weights and offsets ``(E, C)``."""
        scores = products - offsets.unsqueeze(-2)
        return with_log_partition_penalty(scores, self.settings.log_partition_penalty, self.settings.temperature)

    def _class_weights(self, learned: Learned) -> Tensor:
        return learned.weights

    def _scores_from(self, learned: Learned, products: Tensor, lengths: Tensor) -> Tensor:
        # What is embedded beforehand holds z of length 1; other features have their own.
        if not self.embeds_beforehand:
            products = products / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
        return self._normalised(learned.offsets, products)

    _per_class = ("memory", "offsets")

    def _export_tensors(self, learned: Any) -> dict[str, Tensor]:
        """Return weights and offsets; what all classes share is in the graph."""
        return {"memory": learned.weights[0], "offsets": learned.offsets[0]}

    def _export_constants(self) -> list[Tensor]:
        known = self.stored_base
        return [self.mean, known.power_means, known.within_covariance]

    def _from_export(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> Learned:
        return Learned(tensors["memory"].unsqueeze(0), tensors["offsets"].unsqueeze(0))

    def extra_repr(self) -> str:
        """Return the constants that differ from the default, and how many base classes are known."""
        default = type(self.settings)()
        changed = {
            field.name: getattr(self.settings, field.name)
            for field in dataclasses.fields(self.settings)
            if getattr(self.settings, field.name) != getattr(default, field.name)
        }
        return f"base={len(self.stored_base)}, settings={changed}, {super().extra_repr()}"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_grown": GrowingRows()}

    def _saved_names(self) -> dict[str, Any]:
        return {**super()._saved_names(), "settings": dataclasses.asdict(self.settings)}

    def _load_names(self, saved: Mapping[str, Any]) -> None:
        # Earlier files are without.
        settings = as_settings(self.settings_type, saved.get("settings", self.settings))
        super()._load_names(saved)
        self.settings = settings

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The first files of version 0.1 hold only prototypes, as "background.prototypes".
        old = state_dict.pop(prefix + "background.prototypes", None)
        if old is not None:
            stored = StoredBaseStatistics(BaseStatistics.from_prototypes(old) if len(old) else None)
            state_dict.update({f"{prefix}stored_base.{name}": buffer for name, buffer in stored.named_buffers()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_loaded(head: ScoreNormHead, _keys: object) -> None:
    head._outdate_base()
    head._check_state()
    head._check_submodules()
