"""New classes beside the classes of a trained linear classifier, as ``attach(model, keep_classes=..., base_images=...)`` has them.

A class ``b`` of the classifier is known by its class weights ``v_b``, a new class ``c`` by its shots. Base images are unlabelled
images of what the classifier sees, with mean ``m``, covariance ``S`` and mean variance ``s``. The scores of a query ``q`` are::

    w_c     = (S / s + ridge I)^-1 (mean of shots - m)
    score_b = cos(q - m, v_b) (|v_b| / mean |v|)^length_exponent
    score_c = cos(q - m, w_c) + o

The offset ``o`` is the same for all new classes. It is the largest at which

- new classes take at most a share ``min(sqrt(classes) share_for_one, largest_share)`` of images like the base images from the
  classifier, on average: of ``n`` base images one less than this share of ``n + 1``, as the image to come counts; but none where
  they are too few for that, and
- no more of them than it takes for 95 % of the left-out shots to score above the classes of the classifier.

For the offset, a base image is scored with weights from the other four fifths of the base images, and a shot with weights from the
other shots of its class: an image that took part in the weights scores differently from the images to come.

Sources: ``w_c`` is Fisher's linear discriminant of a class against all images, with a covariance shrunk towards the identity
(Ledoit and Wolf, 2004). An offset on the scores of new classes is calibrated stacking (Chao et al., "An Empirical Study and
Analysis of Generalized Zero-Shot Learning for Object Recognition in the Wild", 2016); there it is chosen on labelled images.

Legend: ``n`` base images, ``F`` folds, ``B`` classes of the classifier; the rest as in ``fewshot_nam.heads.base``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support, places_in_class
from fewshot_nam.heads.base_statistics import BaseStatistics
from fewshot_nam.heads.duplicates import first_equal
from fewshot_nam.heads.validation import checked_vectors, warn_user
from fewshot_nam.memory.primitives import unit

_FOLDS = 5
_FEWEST, _FEW = 10, 50  # base images: fewer are refused, and a warning is given
_SHOTS_LEFT_OUT = 20  # of each class: more of them change the offset little
_SHOTS_ACCEPTED = 0.95
_ROUNDING = 1e-9
_MOST_GIVEN = 1 << 31  # of one image: sums of counts must not overflow


class BaseCost(NamedTuple):
    """What new classes take from the classes of the classifier, for images that it was not trained on if base images are none.

    Attributes:
        share: share of base images that are answered as a new class, each read by weights that it took no part in: the larger of
            the shares where identical ones count as often as they were given, and where they count once.
        limit: the largest share of images to come that is allowed for as many new classes, on average over base images; ``1 / (n +
            1)`` where ``n`` base images are too few for a smaller one.
        images: how many base images, identical ones counted once.
    """

    share: float
    limit: float
    images: int


class Whitening(NamedTuple):
    """The inverse of ``S / s + ridge I`` for ``n`` images, up to a factor.

    Attributes:
        mean: ``(D,)`` of the images.
        centred: ``(n, D)``, the images less their mean.
        factor: Cholesky factor of ``X X^T + a I`` ``(n, n)`` or, for more images than features, of ``X^T X + a I`` ``(D, D)``.
        added: ``a = ridge n s``.
    """

    mean: Tensor
    centred: Tensor
    factor: Tensor
    added: Tensor

    def __call__(self, keys: Tensor) -> Tensor:
        """Return ``(..., D)`` for keys ``(..., D)`` that are centred by ``mean``."""
        if len(self.factor) == len(self.centred):  # Woodbury's identity
            solved = torch.cholesky_solve(self.centred @ keys.reshape(-1, keys.shape[-1]).mT, self.factor)
            return keys - (solved.mT @ self.centred).reshape(keys.shape)
        solved = torch.cholesky_solve(keys.reshape(-1, keys.shape[-1]).mT, self.factor)
        return (self.added * solved).mT.reshape(keys.shape)


class Background(NamedTuple):
    """What follows from the base images and the classifier alone.

    Attributes:
        whole: from all base images.
        folds: ``F`` of them, each from the base images but those of its fold. Fold ``f`` is kept images ``f``, ``f + F``, ...
        held_out: of each fold ``(n / F, D)``, its images less the mean of the others, unit.
        best: ``(n,)``, the largest score of each image by a class of the classifier, fold by fold; empty where there is none.
        weights: ``(B, D)``, class weights of the classifier.
        counts: ``(n,)``, how often each image was given, fold by fold.
    """

    whole: Whitening
    folds: list[Whitening]
    held_out: list[Tensor]
    best: Tensor
    weights: Tensor
    counts: Tensor


class Learned(NamedTuple):
    """What the head reads.

    Attributes:
        weights: ``(E, C, D)``.
        offsets: ``(E, 1, C)``, 0 for classes of the classifier.
        background: ``None`` in an exported graph.
        best: ``(E, n)``, the largest cosine of each base image with a new class, held out; ``None`` as ``background``.
        shots: ``(E, l)``, how much more left-out shots read of the classifier than of their class; ``None`` as ``background``.
    """

    weights: Tensor
    offsets: Tensor
    background: Background | None = None
    best: Tensor | None = None
    shots: Tensor | None = None


class KeptClassifierHead(Head):
    """Learns classes beside those of a trained linear classifier, and bounds what they take from it.

    The classes of the classifier are written by ``write_base``, as their class weights plus ``head.mean``. They are compared with
    features less ``head.mean``; the classifier's biases belong to features that are not centred, and are left out. The rule is at
    the top of the module's file.

    Args:
        base_images: ``(n, D)``, features of ``n`` unlabelled images of what the classifier sees, a hundred or more, and none that
            it was trained on: these it knows better than others, and the bound would hold for them alone. It holds whether
            identical ones count once or as often as they are given. They are kept in an order of their own. ``None`` only for a
            head whose state is loaded.
        ridge: added to the covariance of base images, above 0, in units of their mean variance.
        length_exponent: 0 to 1, how much longer class weights of the classifier score higher: 0 not at all, 1 as much as in the
            classifier.
        share_for_one: share of base images that one new class may take, 0 to 1; ``N`` of them may take ``sqrt(N)`` times as much.
        largest_share: share of base images that all new classes together may take, 0 to 1.

    Raises:
        ValueError: fewer than ten different base images, NaN, infinite or zero features, another shape, or a number out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = torch.rand(200, 6, generator=generator) + torch.eye(6)[torch.arange(200) % 3]
        >>> head = KeptClassifierHead(images)
        >>> _ = head.write_base(torch.eye(6)[:3] + head.mean, ["bolt", "nut", "pin"])
        >>> head.write(torch.tensor([0.5, 0.5, 0.5, 0.5, 2.0, 0.5]), "clip").predict(torch.eye(6)[[0, 4]] + 0.4)
        ['bolt', 'clip']
        >>> head.base_cost
        BaseCost(share=0.015, limit=0.02, images=200)
    """

    base_images: Tensor
    base_counts: Tensor

    def __init__(
        self,
        base_images: Tensor | None = None,
        *,
        ridge: float = 4.0,
        length_exponent: float = 0.5,
        share_for_one: float = 0.02,
        largest_share: float = 0.15,
    ) -> None:
        if not 0 < ridge < math.inf:
            raise ValueError(f"KeptClassifierHead: ridge must be above 0, got {ridge}")
        for name, share in (
            ("length_exponent", length_exponent),
            ("share_for_one", share_for_one),
            ("largest_share", largest_share),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"KeptClassifierHead: {name} must be from 0 to 1, got {share}")
        images, counts = (None, None) if base_images is None else _checked(base_images)
        super().__init__(None if images is None else BaseStatistics.from_mean(images.mean(dim=0)))
        self.register_buffer("base_images", torch.empty(0, 0) if images is None else images)
        self.register_buffer("base_counts", torch.empty(0, dtype=torch.long) if counts is None else counts)
        self.ridge, self.length_exponent = ridge, length_exponent
        self.share_for_one, self.largest_share = share_for_one, largest_share

    @property
    def base_cost(self) -> BaseCost | None:
        """What the classes learned by now take from the classifier; ``None`` where none of its classes is kept."""
        learned: Learned | None = self._current()
        background = None if learned is None else learned.background
        if learned is None or background is None or learned.best is None or not len(background.weights):
            return None
        new = learned.weights.shape[1] - len(background.weights)
        taken = 0.0
        if new:
            lost = (background.best - learned.best[0] < learned.offsets[0, 0, -1]).double()
            taken = float(torch.maximum(lost.mean(), (lost * background.counts).sum() / background.counts.sum()))
        limit = max(self._limit(new), 1 / (len(background.best) + 1)) if new else 0.0
        return BaseCost(taken, limit, len(background.best))

    def _limit(self, new: int) -> float:
        return min(math.sqrt(new) * self.share_for_one, self.largest_share)

    def _learn(self, support: Support) -> Learned:
        """Return class weights and offsets."""
        background = self._background(support)
        weights, best, shots = self._new_classes(background, support)
        return self._learned(support.with_base(background.weights, weights), background, best, shots)

    def _learn_more(self, learned: Learned, added: Support) -> Learned | None:
        background = learned.background
        if background is None or learned.best is None or learned.shots is None:
            return None
        weights, best, shots = self._new_classes(background, added)
        return self._learned(
            torch.cat([learned.weights, weights], dim=1),
            background,
            torch.maximum(learned.best, best),
            torch.cat([learned.shots, shots], dim=1),
        )

    def _learned(self, weights: Tensor, background: Background, best: Tensor, shots: Tensor) -> Learned:
        """Return all parts of ``Learned``; only the offsets are derived here."""
        kept = len(background.weights)
        offsets = weights.new_zeros(len(weights), 1, weights.shape[1])
        new = weights.shape[1] - kept
        if kept and new:
            gaps, order = (background.best - best).sort(dim=-1)  # below the offset, an image goes to a new class
            counts = background.counts[order]
            limit = self._limit(new)
            offset = torch.minimum(_offset(gaps, counts, limit), _offset(gaps, torch.ones_like(counts), limit))
            if shots.shape[1]:
                last = math.ceil(_SHOTS_ACCEPTED * shots.shape[1] - _ROUNDING) - 1
                # Down to the smallest gap: an offset up to there takes no base image.
                offset = torch.minimum(offset, torch.maximum(shots.sort(dim=-1).values[:, last], gaps[:, 0]))
            offsets[:, :, kept:] = offset.reshape(-1, 1, 1)
        return Learned(weights, offsets, background, best, shots)

    def _background(self, support: Support) -> Background:
        images = self.base_images.to(support.features.dtype)
        if not len(images):
            raise ValueError(
                "KeptClassifierHead has no base images: make it with base_images=, or load its state first"
            )
        fold = torch.arange(len(images), device=images.device) % _FOLDS
        folds = [whitening(images[fold != f], self.ridge) for f in range(_FOLDS)]
        held_out = [unit(images[fold == f] - folds[f].mean) for f in range(_FOLDS)]
        lengths = torch.linalg.vector_norm(support.base, dim=-1, keepdim=True)
        weights = unit(support.base) * (lengths / lengths.mean()) ** self.length_exponent
        best = [(some @ weights.mT).amax(dim=-1) if len(weights) else some.new_empty(0) for some in held_out]
        counts = torch.cat([self.base_counts[fold == f] for f in range(_FOLDS)])
        return Background(whitening(images, self.ridge), folds, held_out, torch.cat(best), weights, counts)

    def _new_classes(self, background: Background, support: Support) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights ``(E, N, D)`` of new classes, and ``best`` and ``shots`` of ``Learned``."""
        means = support.class_means(support.features)
        whitened = background.whole(means)
        best = []
        for fold, images in zip(background.folds, background.held_out, strict=True):
            reads = images @ unit(fold(means + (self.mean.to(means) - fold.mean))).mT
            best.append(reads.amax(dim=-1) if means.shape[1] else reads.new_full(reads.shape[:-1], -math.inf))
        return unit(whitened), torch.cat(best, dim=-1), self._left_out(background, support, whitened)

    def _left_out(self, background: Background, support: Support, whitened: Tensor) -> Tensor:
        """Return ``shots`` of ``Learned``; a class with one shot has none."""
        features, columns = support.features, support.targets - len(support.base)
        counts = torch.bincount(columns, minlength=whitened.shape[1])
        held = ((counts[columns] > 1) & (places_in_class(columns) < _SHOTS_LEFT_OUT)).nonzero().flatten()
        if not len(held) or not len(background.weights):
            return features.new_empty(len(features), 0)
        shots, own = features[:, held], columns[held]
        number = counts[own].to(features.dtype).unsqueeze(-1)
        without = (number * whitened[:, own] - background.whole(shots)) / (number - 1)
        directions = unit(shots)
        return (directions @ background.weights.mT).amax(dim=-1) - (directions * unit(without)).sum(dim=-1)

    def _class_weights(self, learned: Learned) -> Tensor:
        return learned.weights

    def _scores_from(self, learned: Learned, products: Tensor, lengths: Tensor) -> Tensor:
        """Return scores ``(E, Q, C)``."""
        return products / lengths.clamp_min(torch.finfo(lengths.dtype).tiny) + learned.offsets

    # State, export and looks.

    _per_class = ("memory", "offsets")

    def _checked_features(self, features: Tensor, name: str, keep_shape: bool = False) -> Tensor:
        if not len(self.base_images):
            raise ValueError(
                "KeptClassifierHead has no base images: make it with base_images=, or load its state first"
            )
        return super()._checked_features(features, name, keep_shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        loaded = state_dict.get(prefix + "base_images")
        if loaded is not None:  # a new buffer, since a snapshot may use the old one
            self.base_images = self.base_images.new_empty(loaded.shape, dtype=loaded.dtype)
            once = torch.ones(loaded.shape[:1], dtype=torch.long)  # in a state of an older version
            counts = state_dict.setdefault(prefix + "base_counts", once)
            self.base_counts = self.base_counts.new_empty(counts.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_state(self) -> None:
        super()._check_state()
        images = self.base_images
        if images.dim() != 2 or images.shape[-1] != len(self.mean) or not bool(images.isfinite().all()):
            raise ValueError(
                "KeptClassifierHead: this state is damaged: its base images do not fit its mean, or are not finite"
            )
        counted = (self.base_counts >= 1) & (self.base_counts <= _MOST_GIVEN)
        if self.base_counts.shape != images.shape[:1] or not bool(counted.all()):
            raise ValueError("KeptClassifierHead: this state is damaged: its counts do not fit its base images")

    def _export_tensors(self, learned: Learned) -> dict[str, Tensor]:
        return {"memory": learned.weights[0], "offsets": learned.offsets[0, 0]}

    def _export_constants(self) -> list[Tensor]:
        return [self.mean]

    def _from_export(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> Learned:
        return Learned(tensors["memory"].unsqueeze(0), tensors["offsets"].reshape(1, 1, -1))

    def extra_repr(self) -> str:
        """Return the settings."""
        rule = f"ridge={self.ridge}, length_exponent={self.length_exponent}"
        limits = f"share_for_one={self.share_for_one}, largest_share={self.largest_share}"
        return f"base_images={len(self.base_images)}, {rule}, {limits}, {super().extra_repr()}"


def whitening(images: Tensor, ridge: float) -> Whitening:
    """Return the inverse of ``S / s + ridge I`` for images ``(n, D)``."""
    mean = images.mean(dim=0)
    centred = images - mean
    added = ridge * centred.square().sum() / images.shape[1]
    gram = centred @ centred.mT if len(images) <= images.shape[1] else centred.mT @ centred
    gram.diagonal().add_(added)
    return Whitening(mean, centred, torch.linalg.cholesky(gram), added)


def _offset(gaps: Tensor, counts: Tensor, limit: float) -> Tensor:
    """Return the largest of ``gaps`` ``(E, n)``, sorted, such that an image to come is below it in at most ``limit`` of cases.

    There are ``counts`` of each; the image to come counts as one more (split conformal prediction). It is the smallest at least.
    """
    before = counts.cumsum(dim=-1) - counts
    allowed = before + 1 <= limit * (counts.sum(dim=-1, keepdim=True) + 1) + _ROUNDING
    return gaps.gather(-1, (allowed.sum(dim=-1, keepdim=True) - 1).clamp_min(0)).squeeze(-1)


def _checked(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different ones of ``images`` ``(n, D)``, in an order drawn once for all heads, and how often each was given."""
    if checked_vectors(images, "base_images").dim() != 2 or len(images) < _FEWEST:
        raise ValueError(f"base_images must be (n, D) with n at least {_FEWEST}, got shape {tuple(images.shape)}")
    same = first_equal(images, images)
    while not torch.equal(further := same[same], same):  # the first may be the same as one before it
        same = further
    once, counts = (
        (same == torch.arange(len(same))).to(images.device),
        same.bincount(minlength=len(same)).to(images.device),
    )
    different = images.detach()[once].clone()
    if len(different) < _FEWEST:
        raise ValueError(
            f"base_images: {len(different)} of {len(images)} are different; at least {_FEWEST} are needed, better a hundred"
        )
    if len(different) < _FEW:
        warn_user(
            f"base_images: what new classes take from the classifier is estimated from only {len(different)} images: "
            "give a hundred or more"
        )
    # Folds are cut by place: of five classes in turn, each fold would be all images of one class.
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(0), device="cpu").to(images.device)
    return different[order], counts[once][order]
