"""What calibrated heads accept and reject, over many simulated deployments, beside what ``Head.calibrate`` promises.

Every episode is a deployment. It draws the classes that a head learns, classes of unknowns that it is calibrated on, and *other*
classes of unknowns that it is tested on. It is calibrated in several ways:

- ``plain`` and ``by class``: on half of the images of each calibration class, one by one or with their classes as groups; the other
  half show what happens on new images of the same classes.
- ``few`` and ``confident``: on few images of these classes, drawn at random, and tested on all others of the same classes; the
  bound is on average, or is to hold with a confidence.
- ``frames`` and ``bursts``: on bursts, each some frames of one image, taken one by one or as groups, and tested on one frame each
  of other images of the same classes. A frame is an image's feature with noise.
- ``from shots``: on the shots alone (``Head.calibrate_from_shots``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from episodes.evaluation.scoring import Scorer
from episodes.features.bank import FeatureBank
from episodes.metrics.intervals import interval, paired
from episodes.metrics.scores import Scores
from episodes.sampling.sampler import Episodes, EpisodeSampler
from fewshot_nam.heads import Head
from fewshot_nam.heads.calibration import threshold_from_shots
from fewshot_nam.heads.conformal import conformal_threshold

KINDS = ("plain", "by class", "few", "confident", "frames", "bursts", "from shots")
CONFIDENCE = 0.95  # of the kind "confident"
FRAMES = 5  # of each burst
_FRAME_NOISE = 0.3  # standard deviations of images about the mean of their class
_TESTED_FRAMES = 200  # images that bursts are tested on
_BATCH_SIZE = 4  # episodes

_Key = tuple[str, str, float, str]  # source of unknowns, kind of calibration, target, head


class Promise(NamedTuple):
    """What a calibration promises about the share of unknowns that are accepted (of known images rejected, from shots).

    Attributes:
        bound: at most this on average over deployments.
        limit: at most this in one deployment, in the share ``confidence`` of them; ``None`` where no such number is promised.
        confidence: 95%, or the chance that so many *tested* unknowns are within the limit if the promise is met exactly: a share
            that is measured on few images is spread wider than the true one. ``None`` without ``limit``.
    """

    bound: float
    limit: float | None = None
    confidence: float | None = None


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
        few: how many unknowns the kinds ``few`` and ``confident`` are calibrated on.
        bursts: how many bursts of unknowns the kinds ``frames`` and ``bursts`` are calibrated on.
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
    few: int = 99
    bursts: int = 29
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
            targets: the largest shares that heads are calibrated for.
            reference: the head that paired differences are taken to.

        Returns:
            A row for each source of unknowns (``"novel"`` or ``"base"``), kind of calibration (``KINDS``; of ``"base"`` the first
            two), target and head, with ``accepted``: the mean and 95% interval of the shares accepted of ``same_classes`` and
            ``new_classes`` of unknowns and of ``known`` queries, as far as they are tested; ``promise``, as ``Promise``;
            ``within``, where there is a limit: the share of deployments that are within it; and ``minus_cosine``, named after the
            usual reference: the paired differences. A calibration with too few images has ``refused`` instead, with the reason.
        """
        # Half of each calibration class's images are calibrated on.
        sampler = EpisodeSampler(
            self.novel,
            self.ways,
            shots,
            self.queries,
            self.calibration_classes + self.test_classes,
            2 * self.images,
            seed=self.seed,
        )
        scorer = Scorer(self._all_images(), heads, torch.device("cpu"))
        generator = torch.Generator().manual_seed(self.seed)
        rates: dict[_Key, list[dict[str, Tensor]]] = {}
        promises: dict[_Key, Promise | str] = {}
        for batch in sampler.batches(episodes, _BATCH_SIZE):
            drawn = self._drawn(batch, generator)
            for name, scores in scorer.score(self._with_base(batch, drawn.base)):
                for trial in self._trials(heads[name], batch, scores, drawn):
                    for target in targets:
                        key = (trial.source, trial.kind, target, name)
                        try:
                            thresholds, promises[key] = trial.calibrated(target)
                        except ValueError as error:  # too few images, in every episode alike
                            promises[key] = str(error)
                            continue
                        rates.setdefault(key, []).append(trial.accepted(thresholds))
        found = {
            key: {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for key, parts in rates.items()
        }
        return [
            _row(shots, key, found, promises[key], reference)
            for source in ["novel", *(["base"] if self.base is not None else [])]
            for kind in (KINDS if source == "novel" else KINDS[:2])
            for target in targets
            for key in [(source, kind, target, head) for head in heads]
        ]

    @property
    def _pool(self) -> int:
        """How many images of calibration classes an episode has."""
        return 2 * self.images * self.calibration_classes

    def _all_images(self) -> FeatureBank:
        """Return the bank of novel images, then base images: what is computed once for each image is shared by all episodes."""
        if self.base is None:
            return self.novel
        labels = torch.cat([self.novel.labels, self.novel.num_classes + self.base.labels])
        return FeatureBank(torch.cat([self.novel.features, self.base.features]), labels)

    def _drawn(self, batch: Episodes, generator: torch.Generator) -> _Drawn:
        """Return what the episodes use besides the images that the sampler drew."""
        order = torch.rand(len(batch), self._pool, generator=generator).argsort(dim=1)
        tested = min(self._pool - self.bursts, _TESTED_FRAMES)
        images = batch.unknown[:, : self.calibration_classes].flatten(1).gather(1, order[:, : self.bursts + tested])
        images = torch.cat([images[:, : self.bursts].repeat_interleave(FRAMES, dim=1), images[:, self.bursts :]], dim=1)
        frames = self.novel.features[images].float()
        frames = frames + _FRAME_NOISE * self._spread * torch.randn(frames.shape, generator=generator)
        base = torch.empty(len(batch), 0, dtype=torch.long)
        if self.base is not None:
            count = len(self.base)
            base = torch.stack([torch.randperm(count, generator=generator)[: self.base_unknowns] for _ in order])
        return _Drawn(order, frames, base)

    def _with_base(self, batch: Episodes, base: Tensor) -> Episodes:
        """Return episodes of ``_all_images``, whose unknown queries are the unknown ones and then those of base classes."""
        unknown = torch.cat([batch.unknown.flatten(1), len(self.novel) + base], dim=1)
        return replace(batch, unknown=unknown.unsqueeze(1))

    @cached_property
    def _spread(self) -> Tensor:
        """The standard deviation ``(D,)`` of images about the mean of their class."""
        features, labels = self.novel.features.float(), self.novel.labels
        means = features.new_zeros(self.novel.num_classes, features.shape[1]).index_add(0, labels, features)
        means = means / torch.bincount(labels).unsqueeze(1)
        return (features - means[labels]).square().mean(dim=0).sqrt()

    def _trials(self, head: Head, batch: Episodes, scores: Scores, drawn: _Drawn) -> Iterator[_Trial]:
        """Yield every kind of calibration, with the scores of what it is calibrated and tested on."""
        unknown, of_base = torch.split(scores.unknown_best, [batch.unknown[0].numel(), drawn.base.shape[1]], dim=1)
        of_class = unknown.reshape(len(unknown), -1, 2 * self.images)
        first, second = torch.split(of_class[:, : self.calibration_classes], self.images, dim=-1)
        known = {"known": scores.known.amax(dim=-1)}
        new = {"new_classes": of_class[:, self.calibration_classes :].flatten(1), **known}
        both = {"same_classes": second.flatten(1), **new}
        classes = torch.arange(self.calibration_classes).repeat_interleave(self.images)
        yield _Trial("novel", "plain", first.flatten(1), None, both)
        yield _Trial("novel", "by class", first.flatten(1), classes.expand(len(batch), -1), both)
        if self.base is not None:
            yield _Trial("base", "plain", of_base, None, new)
            yield _Trial("base", "by class", of_base, self.base.labels[drawn.base], new)
        pool = unknown[:, : self._pool].gather(1, drawn.order)
        others = {"same_classes": pool[:, self.few :], **known}
        yield _Trial("novel", "few", pool[:, : self.few], None, others)
        yield _Trial("novel", "confident", pool[:, : self.few], None, others)
        support = self.novel.features[batch.support].float()
        best = head.score_episodes(support, drawn.frames, check=False).amax(dim=-1)
        of_bursts, of_others = (
            best[:, : FRAMES * self.bursts],
            {"same_classes": best[:, FRAMES * self.bursts :], **known},
        )
        burst = torch.arange(self.bursts).repeat_interleave(FRAMES).expand(len(batch), -1)
        yield _Trial("novel", "frames", of_bursts, None, of_others)
        yield _Trial("novel", "bursts", of_bursts, burst, of_others)
        yield _Trial("novel", "from shots", _held_out(head, support), None, both)


class _Drawn(NamedTuple):
    """What ``E`` episodes use besides the images that the sampler drew.

    Attributes:
        order: ``(E, pool)``, the images of calibration classes in random order.
        frames: ``(E, n, D)``, ``FRAMES`` of each burst, then one of each of some other images.
        base: ``(E, m)``, images of the base bank; ``m`` is 0 without one.
    """

    order: Tensor
    frames: Tensor
    base: Tensor


class _Trial(NamedTuple):
    """One way to calibrate a head, in ``E`` deployments.

    Attributes:
        source: of the unknowns: novel or base.
        kind: one of ``KINDS``.
        samples: ``(E, m)``, acceptance scores to calibrate on.
        groups: ``(E, m)``, their groups; ``None`` for none.
        tested: by name, acceptance scores ``(E, n)`` to test on.
    """

    source: str
    kind: str
    samples: Tensor
    groups: Tensor | None
    tested: Mapping[str, Tensor]

    def calibrated(self, target: float) -> tuple[Tensor, Promise]:
        """Return the threshold of every deployment, ``(E,)``, and what all of them promise."""
        if self.kind == "from shots":
            of_shots = [threshold_from_shots(scores, 0, target) for scores in self.samples]
            return torch.tensor([each.threshold for each in of_shots], dtype=torch.float64), Promise(of_shots[0].bound)
        confidence = CONFIDENCE if self.kind == "confident" else None
        groups = [None] * len(self.samples) if self.groups is None else list(self.groups)
        found = [
            conformal_threshold(scores, target, of, confidence) for scores, of in zip(self.samples, groups, strict=True)
        ]
        thresholds = torch.tensor([each.threshold for each in found], dtype=torch.float64)
        limit = found[0].bound_95 if confidence is None else target
        if limit is None or self.kind in KINDS[:2]:  # those divide the images of each class evenly, not at random
            return thresholds, Promise(found[0].bound)
        count, tested = found[0].groups, self.tested["same_classes"].shape[1]
        share = share_within(limit, round(found[0].bound * (count + 1)), count, tested)
        return thresholds, Promise(found[0].bound, limit, share)

    def accepted(self, thresholds: Tensor) -> dict[str, Tensor]:
        """Return the shares ``(E,)`` that reach the thresholds, by name."""
        return {name: (part.double() >= thresholds[:, None]).double().mean(dim=1) for name, part in self.tested.items()}


@cache
def share_within(limit: float, rank: int, count: int, tested: int) -> float:
    """Return P(k / tested <= limit), where k of the tested unknowns exceed the ``rank``-th largest of ``count`` like them.

    Without ties, k is beta-binomial: binomial with a rate that is Beta(rank, count + 1 - rank).
    """
    log_beta = math.lgamma(rank) + math.lgamma(count + 1 - rank) - math.lgamma(count + 1)
    total = 0.0
    for k in range(math.floor(limit * tested + 1e-9) + 1):
        ways = math.lgamma(tested + 1) - math.lgamma(k + 1) - math.lgamma(tested - k + 1)
        joint = math.lgamma(rank + k) + math.lgamma(count + 1 - rank + tested - k) - math.lgamma(count + 1 + tested)
        total += math.exp(ways + joint - log_beta)
    return min(total, 1.0)


def _held_out(head: Head, support: Tensor) -> Tensor:
    """Return the largest scores ``(E, N K)`` of shots ``(E, N, K, D)`` by heads that learned the others; none for one shot."""
    shots = support.shape[2]
    found = [support.new_empty(len(support), 0)]
    for held in range(shots if shots > 1 else 0):
        rest = torch.cat([support[:, :, :held], support[:, :, held + 1 :]], dim=2)
        found.append(head.score_episodes(rest, support[:, :, held], check=False).amax(dim=-1))
    return torch.cat(found, dim=1)


def _row(
    shots: int,
    key: _Key,
    found: Mapping[_Key, Mapping[str, Tensor]],
    promise: Promise | str,
    reference: str,
) -> dict[str, Any]:
    source, kind, target, head = key
    row: dict[str, Any] = {"shots": shots, "unknowns": source, "calibration": kind, "target": target, "head": head}
    if isinstance(promise, str):
        return {**row, "refused": promise}
    rates = found[key]
    row["promise"] = promise._asdict()
    row["accepted"] = {name: interval(rates[name])._asdict() for name in rates}
    if promise.limit is not None:
        row["within"] = interval((rates["same_classes"] <= promise.limit + 1e-9).double())._asdict()
    if head != reference:
        other = found[source, kind, target, reference]
        row["minus_cosine"] = {name: paired(rates[name], other[name])._asdict() for name in rates}
    return row
