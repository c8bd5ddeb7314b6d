"""The settings of an evaluation: which episodes are drawn and how they are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from episodes.metrics.registry import PROTOCOLS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EvaluationSettings:
    """What `evaluate` draws and how it computes. Every field is a keyword of `evaluate` too.

    Attributes:
        protocol: ``"closed"`` (known queries only), ``"open"`` (queries of unknown classes as well) or ``"generalized"`` (base
            classes share the label space with the novel ones and have queries of their own).
        ways: known classes in an episode.
        shots: support images of each known class.
        queries: query images of each known class, and of each unknown class.
        open_ways: unknown classes in an episode; not used in the closed protocol.
        episodes: how many episodes.
        seed: of the episodes. The same seed draws the same episodes on every machine, whatever the batch size.
        device: where to compute, ``"cpu"`` or ``"cuda"``.
        batch_size: episodes at a time; ``None`` for as many as fit the processor's cache. It changes no result.

    Raises:
        ValueError: an unknown protocol, the open protocol without unknown classes, or a number below 1.

    Example:
        >>> EvaluationSettings(shots=5).queries
        15
        >>> EvaluationSettings("opened")
        Traceback (most recent call last):
        ...
        ValueError: no protocol 'opened': there are closed, open, generalized
    """

    protocol: str = "open"
    ways: int = 5
    shots: int = 1
    queries: int = 15
    open_ways: int = 5
    episodes: int = 1000
    seed: int = 0
    device: str | torch.device = "cpu"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"no protocol {self.protocol!r}: there are {', '.join(PROTOCOLS)}")
        if self.protocol == "open" and self.open_ways < 1:
            raise ValueError(
                "the open protocol needs open_ways of at least 1; without unknown classes it is the closed protocol"
            )
        for name in ("episodes", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def unknown_ways(self) -> int:
        """Unknown classes that an episode really has: 0 in the closed protocol."""
        return 0 if self.protocol == "closed" else self.open_ways
