"""What learning new classes costs the classes of a trained classifier that are kept, and what it gains.

A deployment keeps the linear classifier of a model, has some hundred unlabelled base images, and learns new classes from a few
shots. Base queries are images of the classifier's classes, new queries of the new classes; the answer is one of all classes
together. Raising the scores of all new classes by one number moves a rule along its curve: more new queries are right, fewer base
queries. What a rule answers by itself is one point of its curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from episodes.features.bank import FeatureBank
from episodes.metrics.intervals import interval
from fewshot_nam.heads import BaseStatistics, CosineHead, ErasedWeightsHead, Head, KeptClassifierHead

SHARES = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
"""Shares of base queries that are answered as a new class, at which curves are read."""

RULES: dict[str, Callable[[Tensor], Head]] = {
    "kept": KeptClassifierHead,
    "erased": lambda images: ErasedWeightsHead(BaseStatistics.from_mean(images.mean(dim=0))),
    "cosine": lambda images: CosineHead(base=BaseStatistics.from_mean(images.mean(dim=0))),
}
"""The rules that are compared, made from features of base images ``(n, D)``: ``attach``'s, that of version 0.1, and cosine."""


class Deployment(NamedTuple):
    """What one deployment is given, and what it is tested with.

    Attributes:
        base_images: ``(n, D)``.
        support: ``(N, K, D)``, shots of the new classes.
        base_queries: ``(q, D)``.
        base_targets: ``(q,)``, rows of the class weights.
        new_queries: ``(N, m, D)``.
    """

    base_images: Tensor
    support: Tensor
    base_queries: Tensor
    base_targets: Tensor
    new_queries: Tensor


class Answers(NamedTuple):
    """What a rule answers to the queries of one deployment.

    Attributes:
        before: ``(q,)`` bool, base queries that were right before a new class was learned.
        base_right: ``(q,)`` bool, base queries whose best kept class is theirs.
        base_gap: ``(q,)``, by how much their best kept class is ahead of their best new class.
        new_right: ``(N m,)`` bool, new queries whose best new class is theirs.
        new_gap: ``(N m,)``, as ``base_gap``.
        reported: the share of base images that the rule says new classes take; NaN where it says nothing.
    """

    before: Tensor
    base_right: Tensor
    base_gap: Tensor
    new_right: Tensor
    new_gap: Tensor
    reported: float

    def at(self, offset: float | Tensor) -> Tensor:
        """Return base accuracy, new accuracy and the share of base queries answered as new, new scores being raised."""
        kept = self.base_gap >= offset
        right = (self.base_right & kept, self.new_right & (self.new_gap < offset), ~kept)
        return torch.stack([some.double().mean() for some in right])

    def offset_at(self, share: float) -> Tensor:
        """Return the offset at which this share of base queries is answered as a new class."""
        gaps = self.base_gap.sort().values
        return gaps[min(int(share * len(gaps)), len(gaps) - 1)]

    def new_accuracy_at(self, base_accuracy: float | Tensor) -> Tensor:
        """Return the largest new accuracy with at least this base accuracy; NaN where no offset reaches that."""
        gaps = self.base_gap[self.base_right].sort().values
        lost = len(gaps) - math.ceil(float(base_accuracy) * len(self.base_gap) - 1e-9)
        if lost < 0:
            return torch.tensor(torch.nan, dtype=torch.double)
        return self.at(gaps[min(lost, len(gaps) - 1)])[1]


@dataclass(frozen=True)
class KeptClassesStudy:
    """Deployments that keep a classifier and learn new classes.

    Attributes:
        pool: images of the classifier's classes, from which base images are drawn; their labels are not given to any rule.
        queries: other images of the same classes; ``None`` for as many as ``base_queries`` others of ``pool``.
        new: images of the classes to learn.
        class_weights: ``(B, D)``, of the classes that are kept.
        kept: their names; those of ``pool`` and ``queries`` are among them, those of ``new`` are not.
        base_images: how many, for every deployment.
        base_queries: how many to draw from ``pool`` where ``queries`` is ``None``.
        shots: of each new class.
        classes: how many new classes, for every deployment other ones; ``None`` for all.
        deployments: how many.
        seed: of the deployments.

    Raises:
        ValueError: a class of ``pool`` or ``queries`` that is not kept, or a new class that is.
    """

    pool: FeatureBank
    queries: FeatureBank | None
    new: FeatureBank
    class_weights: Tensor
    kept: Sequence[str]
    base_images: int = 400
    base_queries: int = 5000
    shots: int = 5
    classes: int | None = None
    deployments: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        known = set(self.kept)
        for bank in (self.pool, self.queries):
            absent = [] if bank is None else [name for name in bank.classes if name not in known]
            if absent:
                raise ValueError(f"KeptClassesStudy: {absent[0]!r} is a class of base images, and not kept")
        both = [name for name in self.new.classes if name in known]
        if both:
            raise ValueError(f"KeptClassesStudy: {both[0]!r} is kept, and to be learned too")

    def answers(self, rules: Mapping[str, Callable[[Tensor], Head]]) -> dict[str, list[Answers]]:
        """Return what each rule answers in each deployment."""
        found: dict[str, list[Answers]] = {name: [] for name in rules}
        for number in range(self.deployments):
            deployment = self.drawn(number)
            for name, rule in rules.items():
                found[name].append(answers(rule(deployment.base_images), deployment, self.class_weights))
        return found

    def drawn(self, number: int) -> Deployment:
        """Return one deployment."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        order = torch.randperm(len(self.pool.features), generator=generator)
        if self.queries is None:
            asked, rows = self.pool, order[self.base_images : self.base_images + self.base_queries]
        else:
            asked, rows = self.queries, torch.arange(len(self.queries.features))
        row = {name: i for i, name in enumerate(self.kept)}
        targets = torch.tensor([row[str(name)] for name in asked.classes])[asked.labels[rows]]
        fewest = int(self.new.counts.min())
        images = []
        for label in torch.randperm(self.new.num_classes, generator=generator)[: self.classes].tolist():
            start, count = int(self.new.starts[label]), int(self.new.counts[label])
            images.append(self.new.order[start + torch.randperm(count, generator=generator)[:fewest]])
        new = self.new.features[torch.stack(images)].float()
        return Deployment(
            self.pool.features[order[: self.base_images]].float(),
            new[:, : self.shots],
            asked.features[rows].float(),
            targets,
            new[:, self.shots :],
        )


@torch.inference_mode()
def answers(head: Head, deployment: Deployment, class_weights: Tensor) -> Answers:
    """Return what a head answers that keeps ``class_weights`` ``(B, D)`` and learns the new classes of a deployment."""
    kept, (new, shots) = len(class_weights), deployment.support.shape[:2]
    head.write_base(class_weights + head.mean, range(kept))
    before = head(deployment.base_queries).argmax(dim=1) == deployment.base_targets
    head.write(deployment.support.flatten(0, 1), [kept + i for i in range(new) for _ in range(shots)])
    gaps, right = [], []
    new_targets = torch.arange(new).repeat_interleave(deployment.new_queries.shape[1])
    for queries, part, targets in (
        (deployment.base_queries, slice(None, kept), deployment.base_targets),
        (deployment.new_queries.flatten(0, 1), slice(kept, None), new_targets),
    ):
        scores = head(queries).double()
        right.append(scores[:, part].argmax(dim=1) == targets)
        gaps.append(scores[:, :kept].amax(dim=1) - scores[:, kept:].amax(dim=1))
    cost = head.base_cost if isinstance(head, KeptClassifierHead) else None
    return Answers(before, right[0], gaps[0], right[1], gaps[1], torch.nan if cost is None else cost.share)


def point(found: Sequence[Answers]) -> dict[str, Any]:
    """Return means and 95% intervals over deployments of what a rule answers by itself, in shares of 1.

    The keys are ``before`` (base accuracy before a class is learned), ``base``, ``new``, ``taken`` (base queries answered as a new
    class) and ``reported`` (what the rule says of it; ``None`` where it says nothing).
    """
    values = torch.stack([torch.cat([one.before.double().mean()[None], one.at(0.0)]) for one in found])
    reported = torch.tensor([one.reported for one in found])
    return {
        **{
            name: interval(column)._asdict()
            for name, column in zip(("before", "base", "new", "taken"), values.T, strict=True)
        },
        "reported": None if bool(reported.isnan().any()) else interval(reported)._asdict(),
    }


def curve(found: Sequence[Answers]) -> list[dict[str, Any]]:
    """Return a rule's curve: for each of ``SHARES`` the share ``taken``, and ``base`` and ``new`` accuracy with 95% intervals.

    The offset of each deployment is chosen on its base queries, which favours the rule.
    """
    rows = []
    for share in SHARES:
        values = torch.stack([one.at(one.offset_at(share)) for one in found])
        rows.append({"taken": share, "base": interval(values[:, 0])._asdict(), "new": interval(values[:, 1])._asdict()})
    return rows


def at_equal_base_accuracy(found: Sequence[Answers], others: Sequence[Answers]) -> dict[str, Any]:
    """Return new accuracy of a rule by itself less that of others with the best offset for the same base accuracy, paired.

    The others' offset is chosen on the queries, which favours them.
    """
    own = [one.at(0.0) for one in found]
    gained = [mine[1] - other.new_accuracy_at(mine[0]) for mine, other in zip(own, others, strict=True)]
    return interval(torch.stack(gained))._asdict()


def first_images(study: KeptClassesStudy, base: int = 4, new_queries: int = 15) -> Deployment:
    """Return the deployment of fixed images that an earlier report measured.

    Base queries are the first ``base`` images of each class of the pool and base images the next ones. Shots are the first images
    of each new class, and new queries the next.
    """
    pool, row = study.pool, {name: i for i, name in enumerate(study.kept)}
    first = torch.stack([pool.order[start : start + 2 * base] for start in pool.starts.tolist()])
    images = torch.stack(
        [study.new.order[start : start + study.shots + new_queries] for start in study.new.starts.tolist()]
    )
    asked = first[:, :base].flatten()
    new = study.new.features[images].float()
    return Deployment(
        pool.features[first[:, base:].flatten()].float(),
        new[:, : study.shots],
        pool.features[asked].float(),
        torch.tensor([row[str(pool.classes[label])] for label in pool.labels[asked].tolist()]),
        new[:, study.shots :],
    )
