"""What becomes of a threshold when classes are learned and forgotten after it was set.

A deployment learns 5 classes, sets its threshold once, and then grows to 20, 100 and more classes. A threshold survives growth
when it still accepts the known images and still refuses the unknown ones. Two thresholds are followed: the *raw* one, the largest
that accepts 95% of the known queries of the first classes and is never touched again; and the *calibrated* one of
``Head.calibrate``, which the head keeps up to date by itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from episodes.features.bank import FeatureBank
from episodes.metrics.intervals import interval
from episodes.metrics.scores import threshold_at_tpr
from fewshot_nam.heads import Head

_ROUNDING = 1e-6
_UNKNOWN = 1 << 20  # labels of calibration samples, beyond those of any class

GROWTH_MEASURES = {
    "known": "known queries accepted at the raw threshold",
    "right": "known queries accepted and given their own class at the raw threshold",
    "unknown": "unknown queries accepted at the raw threshold",
    "unknown_at_own": "unknown queries accepted at a threshold that accepts 95% of the known queries of this size",
    "known_calibrated": "known queries accepted at the calibrated threshold",
    "unknown_calibrated": "unknown queries accepted at the calibrated threshold",
}


@dataclass(frozen=True)
class GrowthStudy:
    """Deployments that learn more and more classes of a bank.

    Attributes:
        bank: of the classes to learn and of unknown classes.
        sizes: numbers of classes, rising; the thresholds are set at the first of them.
        unknown_classes: classes that are never learned; half of them are for calibration, the others for testing.
        shots: support images of each class.
        queries: query images of each class.
        target: largest share of unknowns of new classes to accept at the calibrated threshold.
        deployments: how many, each with other classes in another order.
        seed: of the deployments.

    Raises:
        ValueError: sizes that do not rise, or more classes or images than the bank has.
    """

    bank: FeatureBank
    sizes: Sequence[int]
    unknown_classes: int
    shots: int = 5
    queries: int = 15
    target: float = 0.05
    deployments: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        needed = self.sizes[-1] + self.unknown_classes
        if list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1 or self.unknown_classes < 2:
            raise ValueError(f"GrowthStudy: sizes must rise from 1 and unknown_classes be 2 or more, got {self.sizes}")
        if self.unknown_classes // 2 < 1 / self.target - 1 - 1e-9:
            raise ValueError(
                f"GrowthStudy: a bound of {self.target:g} for new classes needs {math.ceil(1 / self.target - 1 - 1e-9)} classes "
                f"to calibrate on, and half of {self.unknown_classes} are {self.unknown_classes // 2}"
            )
        if needed > self.bank.num_classes:
            raise ValueError(f"GrowthStudy: {needed} classes are needed, and there are {self.bank.num_classes}")
        if self.shots + self.queries > int(self.bank.counts.min()):
            raise ValueError(
                f"GrowthStudy: {self.shots} shots and {self.queries} queries need {self.shots + self.queries} images of "
                f"each class, and one has {int(self.bank.counts.min())}"
            )

    def run(self, heads: Mapping[str, Head]) -> list[dict[str, Any]]:
        """Return a row for each head and size, and one for the first size again after all other classes were forgotten.

        Args:
            heads: by name, as they are before any class is written; they are left as they are.

        Returns:
            Rows with ``head``, ``classes``, ``forgotten`` (whether larger sizes came before) and, by the names of
            ``GROWTH_MEASURES``, the mean over deployments with its 95% interval.
        """
        values: dict[tuple[str, int, bool], list[Tensor]] = {}
        for number in range(self.deployments):
            support, query, unknown, samples = self._drawn(number)
            for name, head in heads.items():
                for key, row in self._grown(copy.deepcopy(head).eval(), support, query, unknown, samples).items():
                    values.setdefault((name, *key), []).append(row)
        return [
            {
                "head": name,
                "classes": size,
                "forgotten": forgotten,
                **{
                    measure: interval(column)._asdict()
                    for measure, column in zip(GROWTH_MEASURES, torch.stack(rows).unbind(1), strict=True)
                },
            }
            for (name, size, forgotten), rows in values.items()
        ]

    def _drawn(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features of one deployment: support ``(C, K, D)``, queries ``(C, Q, D)``, unknowns and calibration samples."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        order = torch.randperm(self.bank.num_classes, generator=generator)[: self.sizes[-1] + self.unknown_classes]
        images = []
        for label in order.tolist():
            start, count = int(self.bank.starts[label]), int(self.bank.counts[label])
            chosen = torch.randperm(count, generator=generator)[: self.shots + self.queries]
            images.append(self.bank.order[start + chosen])
        features = self.bank.features[torch.stack(images)].float()
        known, unknown = features[: self.sizes[-1]], features[self.sizes[-1] :, self.shots :]
        half = self.unknown_classes // 2
        return (
            known[:, : self.shots],
            known[:, self.shots :],
            unknown[half:].flatten(0, 1),
            unknown[:half].flatten(0, 1),
        )

    @torch.inference_mode()
    def _grown(
        self, head: Head, support: Tensor, query: Tensor, unknown: Tensor, samples: Tensor
    ) -> dict[tuple[int, bool], Tensor]:
        """Return the values of ``GROWTH_MEASURES`` by size, and whether classes were forgotten before."""
        found: dict[tuple[int, bool], Tensor] = {}
        raw, written = 0.0, 0
        for size in self.sizes:
            new = range(written, size)
            head.write(support[written:size].flatten(0, 1), [label for label in new for _ in range(self.shots)])
            if not written:
                raw = float(threshold_at_tpr(head(query[:size].flatten(0, 1)).amax(-1)))
                raw -= _ROUNDING * max(abs(raw), 1.0)  # scores of other batch sizes differ by as much
                labels = [_UNKNOWN + i // self.queries for i in range(len(samples))]
                head.calibrate(samples, target_fpr=self.target, unknown_labels=labels)
            written = size
            found[size, False] = self._rates(head, query[:size], unknown, raw)
        head.forget(list(range(self.sizes[0], written)))
        found[self.sizes[0], True] = self._rates(head, query[: self.sizes[0]], unknown, raw)
        return found

    def _rates(self, head: Head, query: Tensor, unknown: Tensor, raw: float) -> Tensor:
        scores = head(query.flatten(0, 1)).double()
        best, answers = scores.max(-1)
        right = answers == torch.arange(len(query)).repeat_interleave(query.shape[1])
        best_unknown = head(unknown).double().amax(-1)
        calibrated = head.threshold
        assert calibrated is not None
        own = threshold_at_tpr(best)
        rates = [
            best >= raw,
            (best >= raw) & right,
            best_unknown >= raw,
            best_unknown >= own,
            best >= calibrated,
            best_unknown >= calibrated,
        ]
        return torch.stack([rate.double().mean() for rate in rates])
