"""What ``attach(model, keep_classes=..., base_images=...)`` made in version 0.1: new keys are erased from the kept class weights.

Files of that version load as this head and answer as they did. It is a baseline of ``results/keep_classes.md``: new classes score
far above the classes that are kept. With unit shots as keys ``K`` and their classes as values ``Y``::

    W = write_block(W_0, K, Y)               W_0: unit class weights, zeros for new classes
    V = [unit class weights; m / |m|^1.3]    m: the mean of the unit shots of a new class
    s = (W + 3 V) unit(q - mean)             less 0.4 T log sum exp(s / T), T = 0.1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support, with_log_partition_penalty
from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.memory.primitives import unit, write_block

# Names of settings in the first files of version 0.1.
_OLD_NAMES = {
    "plain": "prototype_weight",
    "level": "norm_exponent",
    "compete": "log_partition_penalty",
    "base_rows": "base_write",
}


class ErasedWeightsHead(Head):
    """The rule at the top of the file, for class weights plus ``mean`` as base classes (``write_base``).

    Args:
        base: its mean is subtracted from every feature first; ``None`` subtracts nothing.
        p_write: write probability, 0 to 1.
        p_erase: erase probability, 0 to 1; 0 where there are no base classes.
        ridge: damping of the joint write, at least 0.
        prototype_weight: factor of ``V``.
        norm_exponent: a prototype of length ``l`` has length ``l ** -norm_exponent`` in ``V``.
        log_partition_penalty: share of the log of the softmax normaliser that is subtracted.
        temperature: of that softmax, above 0.

    Example:
        >>> head = ErasedWeightsHead().write_base(torch.eye(3)[:2], ["bolt", "nut"])
        >>> head.write(torch.tensor([1.0, 0.0, 1.0]), "clip").predict(torch.tensor([[1.0, 0.0, 0.1], [1.0, 0.0, 0.9]]))
        ['bolt', 'clip']
    """

    def __init__(
        self,
        base: BaseStatistics | None = None,
        *,
        p_write: float = 1.0,
        p_erase: float = 1.0,
        ridge: float = 0.2,
        prototype_weight: float = 3.0,
        norm_exponent: float = 0.3,
        log_partition_penalty: float = 0.4,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(base)
        self.p_write, self.p_erase, self.ridge = p_write, p_erase, ridge
        self.prototype_weight, self.norm_exponent = prototype_weight, norm_exponent
        self.log_partition_penalty, self.temperature = log_partition_penalty, temperature

    def _learn(self, support: Support) -> Tensor:
        """Return ``W + 3 V``, ``(E, C, D)``."""
        keys, base = unit(support.features), unit(support.base)
        values = support.one_hot().expand(len(keys), -1, -1)
        means = support.class_means(keys)
        lengths = torch.linalg.vector_norm(means, dim=-1, keepdim=True).clamp_min(1e-6)
        memory = support.with_base(base, torch.zeros_like(means))
        memory = write_block(memory, keys, values, self.p_write, self.p_erase if len(base) else 0.0, self.ridge)
        return memory + self.prototype_weight * support.with_base(base, means * lengths ** -(1 + self.norm_exponent))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # Files of version 0.1 have base statistics beside the mean, which are empty where classes of a classifier are kept.
        for name in [name for name in state_dict if name.startswith((prefix + "stored_base.", prefix + "background."))]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _class_weights(self, learned: Tensor) -> Tensor:
        return learned

    def _scores_from(self, learned: Tensor, products: Tensor, lengths: Tensor) -> Tensor:
        """Return scores ``(E, Q, C)``."""
        scores = products / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
        return with_log_partition_penalty(scores, self.log_partition_penalty, self.temperature)


def head_of_version_01(
    name: str, settings: Mapping[str, Any], state: Mapping[str, Tensor], prefix: str
) -> ErasedWeightsHead | None:
    """Return the head, without its state, that answers as one of version 0.1 with kept classes; ``None`` for other heads.

    Args:
        name: the class that a file names.
        settings: of that class, in the file.
        state: tensors by name, those of the head's state with ``prefix``.
        prefix: of these names.
    """
    prototypes = (state.get(prefix + part + ".prototypes") for part in ("stored_base", "background"))
    if not len(state.get(prefix + "base", ())) or any(known is not None and len(known) for known in prototypes):
        return None
    named = {_OLD_NAMES.get(setting, setting): value for setting, value in settings.items()}
    wanted = {"mode": "block", "keys": "shots", "reading": "unit", "base_write": "erased"}
    if name != "NAMHead" or any(named.get(setting) != value for setting, value in wanted.items()):
        return None
    taken = (
        "p_write",
        "p_erase",
        "ridge",
        "prototype_weight",
        "norm_exponent",
        "log_partition_penalty",
        "temperature",
    )
    return ErasedWeightsHead(**{setting: named[setting] for setting in taken if named.get(setting) is not None})
