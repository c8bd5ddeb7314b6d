"""What calibrated heads accept: false alarm rates of ``Head.calibrate``'s thresholds over many simulated deployments.

Every episode is a deployment. It draws the classes that a head learns, classes of unknowns that it is calibrated on, and *other*
classes of unknowns that it is tested on. Half of the images of each calibration class are for calibration; the other half show
what happens on new images of the same classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from episodes.evaluation.scoring import Scorer
from episodes.features.bank import FeatureBank
from episodes.metrics.intervals import interval, paired
from episodes.metrics.scores import Scores
from episodes.sampling.sampler import Episodes, EpisodeSampler
from fewshot_nam.heads import Head
from fewshot_nam.heads.conformal import conformal_threshold

_BATCH_SIZE = 4  # episodes


@dataclass(frozen=True)
class CalibrationStudy:
    """The images of a study, and how many of them an episode uses.

    Attributes:
        novel: the bank that known and unknown classes are drawn from.
        base: other unknowns to calibrate on, of classes that the backbone was trained on; ``None`` for none.
        calibration_classes: classes of unknowns to calibrate on.
        test_classes: other classes of unknowns to test on.
        images: of each calibration class, and as many more of it to test on.
        ways: known classes.
        queries: known queries of each.
        base_unknowns: images of ``base`` to calibrate on.
        seed: of the episodes.
    """

    novel: FeatureBank
    base: FeatureBank | None
    calibration_classes: int
    test_classes: int
    images: int
    ways: int = 5
    queries: int = 15
    base_unknowns: int = 1000
    seed: int = 0

    def run(
        self,
        heads: Mapping[str, Head],
        shots: int,
        episodes: int,
        targets: Sequence[float] = (0.1, 0.05, 0.01),
        reference: str = "cosine",
    ) -> list[dict[str, Any]]:
        """Return what every head accepts at every kind of calibration and target.

        Args:
            heads: by name; one of them is the reference.
            shots: support images of each known class.
            episodes: how many deployments.
            targets: the largest accepted shares of unknowns that heads are calibrated for.
            reference: the head that paired differences are taken to.

        Returns:
            A row for each source of unknowns (``"novel"`` or ``"base"``), kind of calibration (``"plain"`` or ``"by class"``),
            target and head, with ``accepted``: the mean and 95% interval of the shares accepted of ``same_classes`` and
            ``new_classes`` of unknowns and of ``known`` queries, and ``minus_cosine``, named after the usual reference: the paired
            differences. A calibration with too few unknowns has ``refused`` instead, with the reason.
        """
        # Half of each calibration class's images are calibrated on.
        sampler = EpisodeSampler(
            self.novel,
            self.ways,
            shots,
            self.queries,
            self.calibration_classes + self.test_classes,
            2 * self.images,
            self.base,
            self.base_unknowns,
            self.seed,
        )
        scorer = Scorer(self.novel, heads, torch.device("cpu"), self.base)
        rates: dict[tuple[str, str, float, str], list[Tensor]] = {}
        refused: dict[tuple[str, str, float, str], str] = {}
        for batch in sampler.batches(episodes, _BATCH_SIZE):
            for head, scores in scorer.score(batch):
                tested, sources = self._divided(batch, scores)
                for (source, (unknowns, classes)), by_class, target in itertools.product(
                    sources.items(), (False, True), targets
                ):
                    key = (source, "by class" if by_class else "plain", target, head)
                    try:
                        thresholds = _thresholds(unknowns, classes if by_class else None, target)
                    except ValueError as error:  # too few unknowns, in every episode alike
                        refused[key] = str(error)
                        continue
                    shares = [(part >= thresholds[:, None]).double().mean(dim=1) for part in tested.values()]
                    rates.setdefault(key, []).append(torch.stack(shares))
        found = {key: dict(zip(_TESTED, torch.cat(parts, dim=1), strict=True)) for key, parts in rates.items()}
        return [
            _row(shots, key, found, refused, reference)
            for source in ["novel", *(["base"] if self.base is not None else [])]
            for kind, target in itertools.product(("plain", "by class"), targets)
            for key in [(source, kind, target, head) for head in heads]
        ]

    def _divided(self, batch: Episodes, scores: Scores) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """Return the acceptance scores to test on, and by source those to calibrate on with their classes."""
        best = scores.unknown_best
        of_class = best.reshape(len(best), -1, 2 * self.images)
        first, second = torch.split(of_class[:, : self.calibration_classes], self.images, dim=-1)
        tested = {
            "same_classes": second.flatten(1).double(),
            "new_classes": of_class[:, self.calibration_classes :].flatten(1).double(),
            "known": scores.known.amax(dim=-1).double(),
        }
        classes = torch.arange(self.calibration_classes).repeat_interleave(self.images)
        sources = {"novel": (first.flatten(1), classes.expand(len(batch), -1))}
        if scores.base is not None:
            sources["base"] = (scores.base.amax(dim=-1), batch.base_classes)
        return tested, sources


_TESTED = ("same_classes", "new_classes", "known")


def _thresholds(unknowns: Tensor, classes: Tensor | None, target: float) -> Tensor:
    """Return the threshold of every episode, ``(E,)``, from scores of unknowns ``(E, m)``."""
    groups = [None] * len(unknowns) if classes is None else list(classes)
    found = [conformal_threshold(scores, target, of).threshold for scores, of in zip(unknowns, groups, strict=True)]
    return torch.tensor(found, dtype=torch.float64)


def _row(
    shots: int,
    key: tuple[str, str, float, str],
    found: Mapping[tuple[str, str, float, str], Mapping[str, Tensor]],
    refused: Mapping[tuple[str, str, float, str], str],
    reference: str,
) -> dict[str, Any]:
    source, kind, target, head = key
    row: dict[str, Any] = {"shots": shots, "strangers": source, "calibration": kind, "target": target, "head": head}
    if key in refused:
        return {**row, "refused": refused[key]}
    # Base unknowns have no other images of the same classes to test on.
    names = [name for name in _TESTED if not (source == "base" and name == "same_classes")]
    row["accepted"] = {name: interval(found[key][name])._asdict() for name in names}
    if head != reference:
        other = found[source, kind, target, reference]
        row["minus_cosine"] = {name: paired(found[key][name], other[name])._asdict() for name in names}
    return row
