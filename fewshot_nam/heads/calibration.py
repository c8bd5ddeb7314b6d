"""Refusal with a guarantee: the threshold of a head from strangers, and the temperature of its probabilities.

The mathematics are in ``fewshot_nam.heads.conformal`` and ``fewshot_nam.heads.temperature``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads.conformal import ConformalThreshold, conformal_threshold
from fewshot_nam.heads.state import HeadState, appended
from fewshot_nam.heads.temperature import fit_temperature
from fewshot_nam.heads.validation import Label, as_labels, listed

_SCORING_ERROR = (
    32  # in units of the last place: scores of one picture differ by some with the size of the batch it is in
)


class Calibration(NamedTuple):
    """What a calibrated threshold rests on.

    Attributes:
        threshold: a query is accepted when its largest score reaches it.
        target_fpr: the share of strangers that was asked for.
        bound: the probability that a stranger is accepted is at most this, and this at most the target.
        strangers: how many it rests on.
        stranger_classes: how many classes they are of, where labels were given.
        known_accepted: share of the known pictures that are accepted, where they were given: what the bound costs.
        temperature: of ``Head.probabilities``, where this call fitted it.
    """

    threshold: float
    target_fpr: float
    bound: float
    strangers: int
    stranger_classes: int | None
    known_accepted: float | None
    temperature: float | None


class CalibratedHead(HeadState):
    """The part of every head that refuses; ``Head`` gives the scores."""

    @property
    def threshold(self) -> float | None:
        """A query is accepted when its largest score reaches this number; ``None`` until it is set. See ``predict``.

        After ``calibrate`` it follows from the strangers and from the classes as they stand; setting it, or ``None``, ends that.

        Raises:
            ValueError: calibrated, but no class is left, or too few strangers whose class is still unknown.
        """
        if self._target_fpr is None:
            return self._threshold
        if self._derived_threshold is not None:
            return self._derived_threshold
        threshold = self._calibrated(self.strangers, self._stranger_labels, self._target_fpr).threshold
        if not self._trainable():
            self._derived_threshold = threshold
        return threshold

    @threshold.setter
    @torch.inference_mode(False)
    def threshold(self, value: float | None) -> None:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"threshold must be a finite number or None, got {value}")
        self._threshold = None if value is None else float(value)
        self._target_fpr, self._stranger_labels = None, None
        self.strangers = self.strangers.new_empty(0, 0)
        self._outdate()

    def calibrate(
        self,
        unknown: Tensor,
        known: Tensor | None = None,
        *,
        target_fpr: float = 0.01,
        unknown_labels: Label | Iterable[Label] | Tensor | None = None,
        known_labels: Label | Iterable[Label] | Tensor | None = None,
    ) -> Calibration:
        """Set ``threshold`` so that a stranger is accepted with probability ``target_fpr`` at most; return what it rests on.

        The guarantee (``fewshot_nam.heads.conformal``) holds for every head and every distribution of features, as long as
        the strangers to come are exchangeable with those given: drawn alike, from the same mixture of classes. Strangers
        of classes that were not among those given are not, and more of them may pass: give ``unknown_labels``, and the bound is
        for a stranger of a new class, drawn like the classes given. Pictures of classes that the backbone was trained on are
        no such draw, the less so where they are the head's background: ``results/false_alarms.md`` shows what passes then.

        The head keeps the strangers, and derives the threshold anew when classes are written or forgotten, so that the bound goes
        on to hold, if those were chosen without looking at how strangers score; to write the class that raised false alarms
        leaves strangers that raise fewer, and asks for fresh ones. Strangers whose label is a known class are left out for as
        long as it is known; where too few are left, ``threshold`` and ``predict`` with ``unknown`` raise.

        Args:
            unknown: ``(m, D)``, strangers: features of classes that the head does not know, none of which was written.
            known: ``(n, D)``, other pictures of known classes than were written: tells how many of them are accepted.
            target_fpr: between 0 and 1; it takes ``m >= 1 / target_fpr - 1``, or as many classes with labels.
            unknown_labels: ``m`` ints or strings, the strangers' classes; ``None`` for the plain guarantee.
            known_labels: ``n`` ints or strings, known classes: fits the temperature of ``probabilities`` as well.

        Raises:
            ValueError: features as in ``write``, no class known yet, too few strangers or classes of them for the target,
                a stranger of a known class, or ``known_labels`` without ``known`` or not known. Nothing has changed then.
            TypeError: a label is neither an int nor a string.
        """
        unknown = self._checked_features(unknown, "unknown")
        labels = None if unknown_labels is None else as_labels(unknown_labels, len(unknown))
        familiar = set(labels or ()) & set(self.classes)
        if familiar:
            raise ValueError(f"calibrate: {listed(sorted(familiar, key=str))} is known: leave it out of the strangers")
        found = self._calibrated(unknown, labels, target_fpr)
        accepted, temperature = None, None
        if known is None and known_labels is not None:
            raise ValueError("calibrate: known_labels are given without known: give the features too")
        if known is not None:
            with torch.no_grad():
                scores = self(self._checked_features(known, "known"))
            accepted = float((scores.amax(dim=-1).double() >= found.threshold).double().mean())
            if known_labels is not None:
                columns = self._columns(as_labels(known_labels, len(scores))).to(scores.device)
                temperature = fit_temperature(scores, columns, doubts=1)
        self.threshold = None
        self.strangers = appended(self.strangers, unknown, self.targets.device)
        self._stranger_labels, self._target_fpr = labels, float(target_fpr)
        self._probability_temperature = self._probability_temperature if temperature is None else temperature
        groups = None if labels is None else found.groups
        return Calibration(found.threshold, target_fpr, found.bound, len(unknown), groups, accepted, temperature)

    def probabilities(self, features: Tensor) -> Tensor:
        """Return how likely each class is, ``(..., C)``, for features ``(..., D)`` of known classes: ``softmax(scores / T)``.

        ``T`` is the one that ``calibrate`` fitted last, whatever was written since; from few pictures, all of them right, it is
        little more than a guess. They say nothing about strangers: that is what ``predict(..., unknown=...)`` is for.

        Raises:
            ValueError: as calling the head, or the temperature ``T`` was not fitted.
        """
        scores = self(features)
        if self._probability_temperature is None:
            raise ValueError("probabilities: needs a temperature: call calibrate with known and known_labels first")
        return torch.softmax(scores / self._probability_temperature, dim=-1)

    def _calibrated(self, strangers: Tensor, labels: list[Label] | None, target_fpr: float) -> ConformalThreshold:
        groups = None
        if labels is not None:
            known, number = set(self.classes), {label: i for i, label in enumerate(dict.fromkeys(labels))}
            unfamiliar = [i for i, label in enumerate(labels) if label not in known]
            strangers, groups = strangers[unfamiliar], torch.tensor([number[labels[i]] for i in unfamiliar])
        with torch.no_grad():
            best = self(strangers).amax(dim=-1).cpu()
        found = conformal_threshold(best, target_fpr, groups)
        # A stranger that equals one given must not pass because it is scored alone.
        error = _SCORING_ERROR * torch.finfo(best.dtype).eps * max(1.0, float(best.abs().max()))
        return found._replace(threshold=found.threshold + error)

    def _columns(self, names: list[Label]) -> Tensor:
        column = {name: i for i, name in enumerate(self.classes)}
        strange = [name for name in names if name not in column]
        if strange:
            raise ValueError(
                f"calibrate: {strange[0]!r} in known_labels is no known class; there are: {listed(self.classes)}"
            )
        return torch.tensor([column[name] for name in names])
