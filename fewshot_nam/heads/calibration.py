"""Refusal with a guarantee: the threshold of a head from samples of unknowns, and the temperature of its probabilities.

The mathematics are in ``fewshot_nam.heads.conformal`` and ``fewshot_nam.heads.temperature``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_nam._deprecation import renamed_attribute, warn_renamed
from fewshot_nam.heads.conformal import ROUNDING, SMALLEST_TARGET, ConformalThreshold, conformal_threshold
from fewshot_nam.heads.duplicates import distinct, first_equal
from fewshot_nam.heads.state import HeadState, Refusal, Snapshot, appended, changes
from fewshot_nam.heads.temperature import fit_temperature
from fewshot_nam.heads.validation import Label, as_labels, listed, warn_user

# In units of the last place: scores of one image differ by some with the size of the batch it is in (by 40 at most in heads here).
_SCORING_ERROR = 64
# A rise of the threshold by this share of its distance to the median score of unknowns, due to classes learned since, is warned of.
_SUSPICIOUS_RISE = 0.5


class Calibration(NamedTuple):
    """What a calibrated threshold rests on.

    Attributes:
        threshold: a query is accepted when its largest score reaches it.
        target_fpr: the largest share of unknowns that may be accepted, as given.
        bound: the probability that an unknown is accepted is at most this, on average over calibrations; at most the target.
        unknowns: how many different samples of unknowns it rests on.
        groups: how many groups these are of: classes with ``unknown_labels``, else those of ``groups``; ``None`` for neither.
        known_accepted: share of the known images that are accepted, where they were given: what the bound costs.
        temperature: of ``Head.probabilities``, where this call fitted it.
        bound_95: in 95 % of calibrations the share of unknowns that are accepted is at most this; ``None`` for groups without
            ``confidence``.
        confidence: as given.
        duplicates: how many samples of unknowns are the same as an earlier one.
    """

    threshold: float
    target_fpr: float
    bound: float
    unknowns: int
    groups: int | None
    known_accepted: float | None
    temperature: float | None
    bound_95: float | None = None
    confidence: float | None = None
    duplicates: int = 0

    @property
    def strangers(self) -> int:
        """Deprecated: use ``unknowns``."""
        warn_renamed("Calibration.strangers", "unknowns")
        return self.unknowns

    @property
    def stranger_classes(self) -> int | None:
        """Deprecated: use ``groups``."""
        warn_renamed("Calibration.stranger_classes", "groups")
        return self.groups


class ShotCalibration(NamedTuple):
    """What a threshold from shots rests on.

    Attributes:
        threshold: a query is accepted when its largest score reaches it.
        max_rejected: as given.
        bound: the share of known images that are rejected, at most; see ``Head.calibrate_from_shots`` for what it means.
        shots: how many scores it rests on: shots of classes with two or more.
        classes: how many classes these are of.
    """

    threshold: float
    max_rejected: float
    bound: float
    shots: int
    classes: int


class CalibratedHead(HeadState):
    """The part of every head that refuses; ``Head`` gives the scores."""

    strangers = renamed_attribute("strangers", "unknowns")

    transductive = False
    """Whether the scores of a query depend on the queries that are scored with it: a call of the head is one batch of them."""

    @property
    def threshold(self) -> float | None:
        """A query is accepted when its largest score reaches this number; ``None`` until it is set. See ``predict``.

        After ``calibrate`` it follows from the samples of unknowns and from the classes known by now, after
        ``calibrate_from_shots`` from the shots. Setting it, also to ``None``, ends this.

        Raises:
            ValueError: calibrated, but no class is left, or too few samples whose class is still unknown, or too few shots.
        """
        with torch.no_grad():
            return self._threshold_of(self._snapshot())

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        self._set_threshold(value)

    @changes
    def _set_threshold(self, value: float | None) -> None:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"threshold must be a finite number or None, got {value}")
        self._threshold = None if value is None else float(value)
        self._end_calibration()
        self._outdate_refusal()

    def _scores(self, snapshot: Snapshot, features: Tensor) -> Tensor:
        raise NotImplementedError

    def _threshold_of(self, snapshot: Snapshot) -> float | None:
        """Return the threshold of one state of the head."""
        refusal = snapshot.refusal
        if refusal.target_fpr is None and refusal.max_rejected is None:
            return refusal.threshold
        derived = self._derived_threshold
        if derived is not None and derived[0] is snapshot:
            return derived[1]
        if refusal.max_rejected is not None:
            threshold = self._from_shots(snapshot, refusal.max_rejected).threshold
        else:
            threshold = self._conformal(snapshot, refusal, warn=True).threshold
        self._derived_threshold = (snapshot, threshold)
        return threshold

    @property
    def num_unknowns(self) -> int:
        """How many different samples of unknowns the head holds from ``calibrate``."""
        return int(self._different(self.unknowns).sum())

    def _resting_on(self) -> tuple[int, int | None]:
        """Return how many different samples of unknowns the threshold rests on, and how many groups (``None`` without groups).

        Samples of classes that were learned since ``calibrate`` do not count.
        """
        groups = self._unknown_groups or self._unknown_labels
        if groups is None or self._unknown_labels is None:
            return self.num_unknowns, None if groups is None else len(set(groups))
        known = set(self.classes)
        kept = [label not in known for label in self._unknown_labels]
        of = {group for group, keep in zip(groups, kept, strict=True) if keep}
        return int(self._different(self.unknowns[kept]).sum()), len(of)

    def _different(self, unknowns: Tensor) -> Tensor:
        """Return ``(m,)`` bool, False for a sample that is the same as an earlier one; found once for the same samples.

        Of thousands that are nearly equal, finding it takes seconds. The samples are kept: give none that are written to later.
        """
        held = self._different_unknowns
        same = held is not None and (held[0] is unknowns or _same_bits(held[0], unknowns))
        found = held[1] if held is not None and same else distinct(unknowns)
        self._different_unknowns = unknowns, found
        return found

    def _end_calibration(self) -> None:
        self._target_fpr = self._confidence = self._max_rejected = None
        self._unknown_labels = self._unknown_groups = self._calibrated_classes = None
        self.unknowns = self.unknowns.new_empty(0, 0)

    @changes
    def calibrate(
        self,
        unknown: Tensor,
        known: Tensor | None = None,
        *,
        target_fpr: float = 0.01,
        unknown_labels: Label | Iterable[Label] | Tensor | None = None,
        known_labels: Label | Iterable[Label] | Tensor | None = None,
        groups: Label | Iterable[Label] | Tensor | None = None,
        confidence: float | None = None,
    ) -> Calibration:
        """Set ``threshold`` so that an unknown is accepted with probability ``target_fpr`` at most; return what it rests on.

        The guarantee (``fewshot_nam.heads.conformal``) holds for every head and every distribution of features, as long as
        the unknowns to come are exchangeable with those given: drawn alike, from the same mixture of classes. It is void for
        unknowns of other classes, of which more may be accepted: with ``unknown_labels``, the bound is for an unknown of
        a new class, drawn like the classes given. Images of classes that the backbone was trained on are not drawn like this,
        least of all where they are the head's base classes: ``results/false_alarms.md`` shows how many are accepted then.

        The bound is on an average over calibrations: the rate at one calibration may lie above it. ``bound_95`` in the answer
        says how far in 95 % of calibrations. With ``confidence``, the rate is below the target in that share of calibrations.

        The head keeps the samples, and derives the threshold again when classes are written or forgotten, so that the bound
        still holds, if those classes were chosen without looking at how unknowns score. To write the class that raised false
        alarms leaves samples that raise fewer: calibrate on fresh ones then. Samples whose label is a known class are left out
        while it is known, and are forgotten with it; where too few are left, ``threshold`` and ``predict`` with ``unknown``
        raise. Without labels, samples of a class that is written later would raise the threshold to the scores of that class:
        a warning says when this seems to have happened.

        Args:
            unknown: ``(m, D)``, samples of unknowns: features of classes that the head does not know, none of which was
                written. The same image given twice may be one that comes up more often, or a copy by mistake: the bounds hold
                either way, by the larger one of the thresholds with all samples and with different ones.
            known: ``(n, D)``, other images of known classes than were written: tells how many of them are accepted. The same
                image given twice counts once; one that was written does not count, and a warning says so.
            target_fpr: between 0 and 1; it takes ``m >= 1 / target_fpr - 1``, or as many groups.
            unknown_labels: ``m`` ints or strings, the classes of the samples; ``None`` where they are not known.
            known_labels: ``n`` ints or strings, known classes: fits the temperature of ``probabilities`` as well.
            groups: ``m`` ints or strings; samples that are alike, such as the frames of a burst, share one. The bound is then
                for an unknown of a new group. ``None``: with ``unknown_labels`` the classes are the groups; otherwise every
                sample is a group of its own.
            confidence: between 0 and 1, the share of calibrations in which the rate of accepted unknowns is below the target;
                ``None`` for the bound on average. It takes more samples: 299 for 95 % at a target of 1 %.

        Returns:
            The threshold, the bounds, and what they rest on.

        Raises:
            ValueError: features as in ``write``, no class known yet, too few samples or groups for the target,
                a sample that was written or is of a known class, ``known_labels`` without ``known`` or not known. Nothing has
                changed then.
            TypeError: a label is neither an int nor a string.

        Example:
            >>> from fewshot_nam.heads import create
            >>> generator = torch.Generator().manual_seed(0)
            >>> head = create("cosine").write(torch.eye(8)[:2], ["cat", "dog"])
            >>> found = head.calibrate(torch.rand(99, 8, generator=generator), target_fpr=0.05)
            >>> found.unknowns, found.bound, round(found.bound_95, 3)
            (99, 0.05, 0.09)
            >>> head.predict(torch.ones(8), unknown="something else")
            'something else'
        """
        self._check_inductive("calibrate")
        # A copy: a caller may fill the same buffer again.
        unknown = appended(
            self.unknowns.new_empty(0, 0), self._checked_features(unknown, "unknown"), self.targets.device
        )
        labels = None if unknown_labels is None else as_labels(unknown_labels, len(unknown))
        members = None if groups is None else as_labels(groups, len(unknown))
        both = set(labels or ()) & set(self.classes)
        if both:
            raise ValueError(f"calibrate: {listed(sorted(both, key=str))} is known: leave it out of the unknowns")
        learned = first_equal(unknown, self.support) >= 0
        if bool(learned.any()):
            raise ValueError(
                f"calibrate: {int(learned.sum())} of {len(unknown)} samples of unknowns were written, the first at index "
                f"{int(learned.int().argmax())}: calibrate on images that the head has not learned"
            )
        snapshot = self._snapshot()
        refusal = snapshot.refusal._replace(
            target_fpr=target_fpr, unknowns=unknown, labels=labels, groups=members, confidence=confidence
        )
        found = self._conformal(snapshot, refusal)
        accepted, temperature = None, None
        if known is None and known_labels is not None:
            raise ValueError("calibrate: known_labels are given without known: give the features too")
        if known is not None:
            known = self._checked_features(known, "known")
            names = None if known_labels is None else as_labels(known_labels, len(known))
            once_known = distinct(known)
            new = (first_equal(known, self.support) < 0)[once_known].to(known.device)
            with torch.no_grad():
                scores = self._scores(snapshot, known[once_known.to(known.device)])
            if bool(new.any()):
                accepted = float((scores[new].amax(dim=-1).double() >= found.threshold).double().mean())
            if not bool(new.all()):
                warn_user(
                    f"calibrate: {int((~new).sum())} of {len(new)} known images were written; these score higher than other images "
                    "of their classes, so known_accepted leaves them out: give images that the head has not learned"
                )
            if names is not None:
                columns = self._columns(_where(names, once_known.tolist()) or []).to(scores.device)
                temperature = fit_temperature(scores, columns, pseudo_count=1)
        self._threshold = self._max_rejected = None
        self.unknowns = unknown
        self._unknown_labels, self._unknown_groups = labels, members
        self._target_fpr, self._confidence = float(target_fpr), None if confidence is None else float(confidence)
        self._calibrated_classes = self.classes
        self._probability_temperature = self._probability_temperature if temperature is None else temperature
        self._outdate_refusal()
        return Calibration(
            found.threshold,
            target_fpr,
            found.bound,
            self.num_unknowns,
            None if labels is None and members is None else found.groups,
            accepted,
            temperature,
            found.bound_95,
            confidence,
            len(unknown) - self.num_unknowns,
        )

    def _check_inductive(self, method: str) -> None:
        if self.transductive:
            raise ValueError(
                f"{method}: {type(self).__name__} is transductive: scores depend on the batch that they are computed in, so a "
                "threshold of one batch means nothing for the next"
            )

    @changes
    def calibrate_from_shots(self, max_rejected: float = 0.05) -> ShotCalibration:
        """Set ``threshold`` from the learned images alone, so that few known images are rejected; return what it rests on.

        Every shot is scored by a head that learned the others (leave-one-out, one shot of each class at a time), and the
        threshold is the ``j``-th smallest of the ``n`` scores, ``j = floor(max_rejected (n + 1))``. It is derived again when
        classes are written or forgotten.

        What holds: a new image, drawn like the shots from a class drawn evenly from those with two shots or more, is rejected
        by a head that learned one shot less a class with probability ``j / (n + 1)`` at most, on average over shots, up to the
        dependence between the scores. This head learned all shots. Where more shots raise the scores of new images, as they
        usually do, it rejects fewer; where they lower them, more: this is a jackknife, of which nothing is guaranteed for every
        distribution. It is no bound for images of classes with one shot, for images that are taken under other conditions than
        the shots (near-identical shots give a threshold that is too high), and it says nothing about unknowns: see ``calibrate``.
        ``results/false_alarms.md`` shows what came out: at a bound of 7.7% from 25 shots, 5.6 to 7.1% were rejected, but 8.9% by
        the NAM head on Tiny ImageNet.

        Args:
            max_rejected: largest share of known images that may be rejected, between 0 and 1; it takes
                ``1 / max_rejected - 1`` shots of classes with two or more.

        Returns:
            The threshold and what it rests on.

        Raises:
            ValueError: ``max_rejected`` outside (0, 1), no class known yet, or too few shots. Nothing has changed then.

        Source: Barber et al., "Predictive Inference with the Jackknife+" (2021).

        Example:
            >>> from fewshot_nam.heads import create
            >>> generator = torch.Generator().manual_seed(0)
            >>> shots = torch.eye(8)[:2].repeat_interleave(10, dim=0) + 0.3 * torch.rand(20, 8, generator=generator)
            >>> head = create("cosine").write(shots, [0] * 10 + [1] * 10)
            >>> found = head.calibrate_from_shots(max_rejected=0.1)
            >>> found.shots, round(found.bound, 3)
            (20, 0.095)
        """
        self._check_inductive("calibrate_from_shots")
        if not 0 < max_rejected < 1:
            raise ValueError(f"max_rejected must be above 0 and below 1, got {max_rejected}")
        if max_rejected < SMALLEST_TARGET:
            raise ValueError(f"max_rejected must be at least {SMALLEST_TARGET}, got {max_rejected}")
        found = self._from_shots(self._snapshot(), max_rejected)
        self._threshold = None
        self._end_calibration()
        self._max_rejected = float(max_rejected)
        self._outdate_refusal()
        return found

    def _from_shots(self, snapshot: Snapshot, max_rejected: float) -> ShotCalibration:
        """Return the threshold that follows from the shots of one state of the head."""
        if not snapshot.classes:
            raise ValueError(f"{type(self).__name__} knows no class yet: call write(features, labels) first")
        return threshold_from_shots(*self._held_out_scores(snapshot), max_rejected)

    def _held_out_scores(self, snapshot: Snapshot) -> tuple[Tensor, int]:
        raise NotImplementedError

    def probabilities(self, features: Tensor) -> Tensor:
        """Return how likely each class is, ``(..., C)``, for features ``(..., D)`` of known classes: ``softmax(scores / T)``.

        ``calibrate`` fits ``T`` on known images, ``forget`` drops it. From few images, all of them classified right, it is
        a rough guess. The probabilities say nothing about unknowns: ``predict(..., unknown=...)`` does.

        Raises:
            ValueError: as calling the head, or the temperature ``T`` was not fitted.
        """
        snapshot = self._snapshot()
        scores = self._scores(snapshot, features)
        if snapshot.temperature is None:
            raise ValueError("probabilities: needs a temperature: call calibrate with known and known_labels first")
        return torch.softmax(scores / snapshot.temperature, dim=-1)

    def _drop_unknowns(self, features: Tensor) -> None:
        """Go on without the samples of unknowns that are learned now, where enough are left.

        Called when these are written: with warnings as errors it ends in one, and the head is whole.
        """
        if self._target_fpr is None:
            return
        kept = (first_equal(self.unknowns, features) < 0).tolist()
        if all(kept):
            return
        unknowns, labels = self.unknowns[kept], _where(self._unknown_labels, kept)
        members = _where(self._unknown_groups, kept)
        try:  # what conformal_threshold says of too few does not depend on the scores
            scores, once = torch.zeros(len(unknowns)), distinct(unknowns)
            _threshold_of_scores(scores, self._target_fpr, once, labels, members, self._confidence)
        except ValueError as error:
            warn_user(
                f"write: {len(kept) - sum(kept)} samples of unknowns are learned now, and are still among those that the threshold "
                f"follows from, so that few images of these classes may be accepted: {error}"
            )
            return
        self.unknowns, self._unknown_labels, self._unknown_groups = unknowns, labels, members
        self._outdate_refusal()
        warn_user(
            f"write: {len(kept) - sum(kept)} samples of unknowns are learned now: the threshold does without them, also when their "
            "classes are forgotten: calibrate again then"
        )

    def _forget_calibration(self, names: set[Label]) -> None:
        """Drop the samples of classes that are forgotten, and the temperature, which may rest on known images of them."""
        self._probability_temperature = None
        if self._calibrated_classes is not None:
            self._calibrated_classes = [name for name in self._calibrated_classes if name not in names]
        if self._unknown_labels is None or not names & set(self._unknown_labels):
            return
        # Where none is left the rate cannot be kept, and the threshold says so: to end the calibration would accept everything.
        kept = [label not in names for label in self._unknown_labels]
        self.unknowns = self.unknowns[kept]
        self._unknown_labels, self._unknown_groups = (
            _where(self._unknown_labels, kept),
            _where(self._unknown_groups, kept),
        )

    def _conformal(self, snapshot: Snapshot, refusal: Refusal, warn: bool = False) -> ConformalThreshold:
        """Return the threshold that follows from samples of unknowns and one state of the head."""
        target = refusal.target_fpr
        assert target is not None, "calibrated"
        unknowns, labels, members = refusal.unknowns, refusal.labels, refusal.groups
        known = set(snapshot.classes)
        if labels is not None and any(label in known for label in labels):
            kept = [label not in known for label in labels]
            unknowns, labels, members = unknowns[kept], _where(labels, kept), _where(members, kept)
        once = self._different(unknowns)

        def threshold_of(best: Tensor) -> ConformalThreshold:
            return _threshold_of_scores(best, target, once, labels, members, refusal.confidence)

        with torch.no_grad():
            scores = self._scores(snapshot, unknowns).cpu()
        best = scores.amax(dim=-1)
        found = threshold_of(best)
        if warn and labels is None and refusal.calibrated_classes is not None:
            calibrated = set(refusal.calibrated_classes)
            before = [i for i, label in enumerate(snapshot.classes) if label in calibrated]
            if 0 < len(before) < len(snapshot.classes):
                usual = threshold_of(scores[:, before].amax(dim=-1)).threshold
                _warn_of_learned_unknowns(snapshot.classes, scores, before, usual, found.threshold)
        # An unknown that equals one given must not be accepted because it is scored alone.
        error = _SCORING_ERROR * torch.finfo(best.dtype).eps * max(1.0, float(best.abs().max()))
        return found._replace(threshold=found.threshold + error)

    def _columns(self, names: list[Label]) -> Tensor:
        column = {name: i for i, name in enumerate(self.classes)}
        other = [name for name in names if name not in column]
        if other:
            raise ValueError(
                f"calibrate: {other[0]!r} in known_labels is no known class; there are: {listed(self.classes)}"
            )
        return torch.tensor([column[name] for name in names])


def threshold_from_shots(scores: Tensor, classes: int, max_rejected: float) -> ShotCalibration:
    """Return the threshold of ``Head.calibrate_from_shots``.

    Args:
        scores: ``(n,)``, the largest score of each shot, by a head that learned the others.
        classes: how many classes these shots are of.
        max_rejected: largest share of known images that may be rejected, between 0 and 1.

    Raises:
        ValueError: too few shots.
    """
    rank = math.floor(max_rejected * (len(scores) + 1) * (1 + ROUNDING))
    if rank < 1:
        needed = math.ceil((1 - ROUNDING) / max_rejected) - 1
        raise ValueError(
            f"calibrate_from_shots: to reject at most {max_rejected} of known images takes at least {needed} shots of "
            f"classes with two shots or more, got {len(scores)}: give more shots, or a larger max_rejected"
        )
    threshold = float(scores.double().sort().values[rank - 1])
    error = _SCORING_ERROR * torch.finfo(scores.dtype).eps * max(1.0, float(scores.abs().max()))
    return ShotCalibration(threshold - error, max_rejected, rank / (len(scores) + 1), len(scores), classes)


def _threshold_of_scores(
    best: Tensor,
    target: float,
    once: Tensor,
    labels: list[Label] | None,
    members: list[Label] | None,
    confidence: float | None,
) -> ConformalThreshold:
    """Return the larger threshold of all samples of unknowns and of different ones, and the larger bounds."""
    groups = None
    if (of := labels if members is None else members) is not None:
        number = {label: i for i, label in enumerate(dict.fromkeys(of))}
        groups = torch.tensor([number[label] for label in of], dtype=torch.long)
    found = conformal_threshold(best[once], target, None if groups is None else groups[once], confidence)
    if bool(once.all()):
        return found
    every = conformal_threshold(best, target, groups, confidence)
    return found._replace(
        threshold=max(found.threshold, every.threshold),
        bound=max(found.bound, every.bound),
        bound_95=None if found.bound_95 is None or every.bound_95 is None else max(found.bound_95, every.bound_95),
    )


def _warn_of_learned_unknowns(
    classes: list[Label], scores: Tensor, before: list[int], usual: float, threshold: float
) -> None:
    """Warn where classes learned since the calibration raise the threshold so much that samples may be images of them.

    Args:
        classes: of the columns.
        scores: ``(m, C)``, of the samples of unknowns.
        before: the columns of classes that were known at the calibration.
        usual: the threshold by these alone.
        threshold: by all classes.
    """
    without = scores[:, before].amax(dim=-1)
    if threshold - usual <= _SUSPICIOUS_RISE * (usual - float(without.median())):
        return
    best, column = scores.max(dim=-1)
    likely = column[(best >= usual) & (best > without)].tolist()
    names = listed(list(dict.fromkeys(classes[i] for i in likely)))
    warn_user(
        f"{len(likely)} of {len(scores)} samples of unknowns score like classes learned after calibrate: {names}. They raise the "
        f"threshold from {usual:.4g} to {threshold:.4g}, and fewer known images are accepted. If they are images of these classes, "
        "calibrate again without them, or give unknown_labels"
    )


def _where(names: list[Label] | None, kept: list[bool]) -> list[Label] | None:
    """Return the labels that are kept."""
    return None if names is None else [name for name, keep in zip(names, kept, strict=True) if keep]


def _same_bits(rows: Tensor, others: Tensor) -> bool:
    return rows.dtype == others.dtype and rows.device == others.device and torch.equal(rows, others)
