"""Scores of a batch of episodes: their shapes, their checks, and the quantities that several measures share.

Shapes: E episodes, K known queries (their class is in the episode), U unknown queries (it is not), B base queries, C
classes. Scores are float; a larger score means more like that class. Targets are the column of a query's own class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Frozen(NamedTuple):
    """What is fixed for a head before the test episodes. Thresholds and bias exist only with validation classes.

    Attributes:
        temperature: of the softmax that gives the confidence for `ece`.
        open_threshold: for a query's largest score.
        class_threshold: for the score of a single (query, class) pair.
        bias: added to all novel scores in the generalized protocol.
    """

    temperature: float = 1.0
    open_threshold: float | None = None
    class_threshold: float | None = None
    bias: float | None = None


NOTHING_FROZEN = Frozen()


class Margins(NamedTuple):
    """Largest base score minus largest novel score of every query, in float64.

    A bias b on all novel scores makes the answer a base class where the margin is >= b: a tie goes to the base columns,
    which come first.

    Attributes:
        base: of the base queries, `(E, B)`.
        base_if_right: the same, but -inf where the query is wrong even among base classes: no bias makes it right.
        novel: of the novel queries, `(E, N)`.
        novel_if_right: the same, but inf where the query is wrong even among novel classes.
    """

    base: Tensor
    base_if_right: Tensor
    novel: Tensor
    novel_if_right: Tensor


class ClassFPR(NamedTuple):
    """Share of wrong (query, class) pairs accepted: overall and by the query's kind, each (E,)."""

    overall: Tensor
    known: Tensor
    unknown: Tensor


@dataclass(frozen=True, eq=False)
class Scores:
    """One head's scores of a batch of episodes. The properties are computed on first use and shared by all measures.

    Columns are base classes first, then the episode's own; a part that the protocol lacks is `None`.

    Attributes:
        known: `(E, K, C)`, queries of the episode's own classes.
        known_targets: `(K,)` or `(E, K)`, their columns.
        unknown: `(E, U, C)`, queries of classes that are not in the episode.
        base: `(E, B, C)`, queries of base classes.
        base_targets: `(B,)` or `(E, B)`, their columns.
        num_base: how many columns are base classes.
        frozen: what was fixed beforehand, for the measures that end in `:frozen` and for `ece`.

    Example:
        >>> scores = Scores(torch.tensor([[[3.0, 0.0], [1.0, 2.0]]]), torch.tensor([0, 0]), torch.tensor([[[2.0, 1.0]]]))
        >>> scores.right.tolist(), scores.open_threshold.tolist()
        ([[True, False]], [2.0])
    """

    known: Tensor
    known_targets: Tensor
    unknown: Tensor | None = None
    base: Tensor | None = None
    base_targets: Tensor | None = None
    num_base: int = 0
    frozen: Frozen = NOTHING_FROZEN

    def with_frozen(self, frozen: Frozen) -> Scores:
        """Return the same scores with other values fixed beforehand."""
        return replace(self, frozen=frozen)

    @cached_property
    def labelled(self) -> tuple[Tensor, Tensor]:
        """Scores and targets of all queries whose class is among the columns: base queries first."""
        targets = self.known_targets.expand(self.known.shape[:2])
        if self.base is None or self.base_targets is None:
            return self.known, targets
        base_targets = self.base_targets.expand(self.base.shape[:2])
        return torch.cat([self.base, self.known], dim=1), torch.cat([base_targets, targets], dim=1)

    @cached_property
    def _best_and_right(self) -> tuple[Tensor, Tensor]:
        return best_and_right(*self.labelled)

    @property
    def best(self) -> Tensor:
        """Largest score of every labelled query, which decides whether it is accepted."""
        return self._best_and_right[0]

    @property
    def right(self) -> Tensor:
        """Whether every labelled query's largest score is that of its class."""
        return self._best_and_right[1]

    @cached_property
    def true(self) -> Tensor:
        """Score of every labelled query for its own class."""
        return true_scores_of(*self.labelled)

    @cached_property
    def unknown_best(self) -> Tensor:
        """Largest score of every unknown query, `(E, U)`."""
        if self.unknown is None:
            raise ValueError("these scores have no unknown queries")
        return self.unknown.amax(-1)

    @cached_property
    def open_threshold(self) -> Tensor:
        """Largest threshold of every episode that accepts at least 95% of the labelled queries, `(E,)`."""
        return threshold_at_tpr(self.best)

    @cached_property
    def class_fpr(self) -> ClassFPR:
        """Wrong pairs accepted at the largest threshold of every episode that accepts at least 95% of the true pairs."""
        return self.class_fpr_at(threshold_at_tpr(self.true))

    @cached_property
    def frozen_open_threshold(self) -> Tensor:
        """`frozen.open_threshold` for every episode, `(E,)`."""
        return self._frozen_threshold(self.frozen.open_threshold)

    @cached_property
    def frozen_class_threshold(self) -> Tensor:
        """`frozen.class_threshold` for every episode, `(E,)`."""
        return self._frozen_threshold(self.frozen.class_threshold)

    @cached_property
    def frozen_class_fpr(self) -> ClassFPR:
        """Wrong pairs accepted at `frozen.class_threshold`."""
        return self.class_fpr_at(self.frozen_class_threshold)

    @cached_property
    def margins(self) -> Margins:
        """Margins of the base and of the novel queries."""
        if self.base is None or self.base_targets is None:
            raise ValueError("these scores have no base queries")
        count, base, novel = self.num_base, self.base, self.known
        base_targets = self.base_targets.expand(base.shape[:2])
        novel_targets = self.known_targets.expand(novel.shape[:2]) - count
        base_best, base_right = best_and_right(base[..., :count], base_targets)
        novel_best, novel_right = best_and_right(novel[..., count:], novel_targets)
        # In float64, where the difference of two float32 scores keeps its order. An overflow to infinity would read as
        # a wrong answer, so it becomes the largest number.
        base_margin = torch.nan_to_num(base_best.double() - base[..., count:].amax(-1))
        novel_margin = torch.nan_to_num(novel[..., :count].amax(-1).double() - novel_best)
        return Margins(
            base_margin,
            base_margin.where(base_right, -math.inf),
            novel_margin,
            novel_margin.where(novel_right, math.inf),
        )

    # Values of every episode, `(E,)` in float64, from which measures are made.

    def accuracy(self) -> Tensor:
        """Share of labelled queries that are right."""
        return self.right.double().mean(-1)

    def known_accepted(self, threshold: Tensor) -> Tensor:
        """Share of labelled queries whose largest score reaches their episode's threshold `(E,)`."""
        return share_accepted(self.best, threshold)

    def unknown_accepted(self, threshold: Tensor) -> Tensor:
        """Share of unknown queries whose largest score reaches their episode's threshold `(E,)`."""
        return share_accepted(self.unknown_best, threshold)

    def wrong_answers(self, threshold: Tensor) -> Tensor:
        """Share of all queries, labelled and unknown, that are accepted as a class that is not theirs."""
        wrong = (self.best >= threshold[:, None]) & ~self.right
        accepted = self.unknown_best >= threshold[:, None]
        return torch.cat((wrong, accepted), dim=-1).double().mean(-1)

    def true_pairs_accepted(self, threshold: Tensor) -> Tensor:
        """Share of labelled queries whose score for their own class reaches their episode's threshold `(E,)`."""
        return share_accepted(self.true, threshold)

    def class_fpr_at(self, threshold: Tensor) -> ClassFPR:
        """Share of wrong (query, class) pairs that reach their episode's threshold `(E,)`."""
        known, unknown = self.labelled[0], self.unknown
        if unknown is None:
            raise ValueError("these scores have no unknown queries")
        accepted = (known >= threshold[:, None, None]).sum((1, 2)) - (self.true >= threshold[:, None]).sum(-1)
        accepted_unknown = (unknown >= threshold[:, None, None]).sum((1, 2))
        pairs, pairs_unknown = known[0].numel() - known.shape[1], unknown[0].numel()
        return ClassFPR(
            (accepted + accepted_unknown).double() / (pairs + pairs_unknown),
            accepted.double() / pairs,
            accepted_unknown.double() / pairs_unknown,
        )

    def auroc(self) -> Tensor:
        """Chance that a labelled query's largest score is above an unknown one's, ties half."""
        return area(self._beaten, self.unknown_best.shape[1])

    def oscr(self) -> Tensor:
        """Chance that a labelled query is right and its largest score above an unknown one's, ties half."""
        return area(self._beaten * self.right, self.unknown_best.shape[1])

    def base_accuracy(self, bias: float | None = 0.0) -> Tensor:
        """Share of base queries that are right with a bias on all novel scores; `None` for `frozen.bias`."""
        return (self.margins.base_if_right >= self._bias(bias)).double().mean(-1)

    def novel_accuracy(self, bias: float | None = 0.0) -> Tensor:
        """Share of novel queries that are right with a bias on all novel scores; `None` for `frozen.bias`."""
        return (self.margins.novel_if_right < self._bias(bias)).double().mean(-1)

    def harmonic_mean(self, bias: float | None = 0.0) -> Tensor:
        """Harmonic mean of `base_accuracy` and `novel_accuracy`."""
        return harmonic_mean(self.base_accuracy(bias), self.novel_accuracy(bias))

    def joint_accuracy(self) -> Tensor:
        """Share of base and novel queries together that are right."""
        right = torch.cat((self.margins.base_if_right >= 0, self.margins.novel_if_right < 0), dim=-1)
        return right.double().mean(-1)

    def novel_to_base(self) -> Tensor:
        """Share of novel queries whose answer is a base class."""
        return (self.margins.novel >= 0).double().mean(-1)

    def base_to_novel(self) -> Tensor:
        """Share of base queries whose answer is a novel class."""
        return (self.margins.base < 0).double().mean(-1)

    def ausuc(self) -> Tensor:
        """Area under base accuracy against novel accuracy as a bias on all novel scores sweeps."""
        margins = self.margins
        return area(beaten(margins.base_if_right, margins.novel_if_right), margins.novel.shape[1])

    @cached_property
    def _beaten(self) -> Tensor:
        return beaten(self.best, self.unknown_best)

    def _bias(self, bias: float | None) -> float:
        if bias is None:
            bias = self.frozen.bias
        if bias is None:
            raise ValueError("these scores come without a bias that was chosen beforehand")
        return bias

    def _frozen_threshold(self, value: float | None) -> Tensor:
        if value is None:
            raise ValueError("these scores come without thresholds that were chosen beforehand")
        # A float64 tensor with a dimension: a bare number would be rounded to the scores' float32 before it is compared.
        return torch.tensor([value], dtype=torch.float64, device=self.known.device).expand(len(self.known))


def threshold_at_tpr(true_scores: Tensor, tpr: float = 0.95) -> Tensor:
    """Largest threshold t that accepts (score >= t) at least `tpr` of the scores.

    Args:
        true_scores: scores that should be accepted, `(..., K)`.
        tpr: share to accept, in (0, 1].

    Returns:
        Thresholds `(...)`, each one of the scores: the k-th largest, k = ceil(tpr * K).

    Raises:
        ValueError: a `tpr` out of range, or scores that are empty, not float, NaN or infinite.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"threshold_at_tpr: expected tpr in (0, 1], got {tpr}")
    if not true_scores.is_floating_point() or true_scores.dim() == 0 or true_scores.numel() == 0:
        raise ValueError(
            f"threshold_at_tpr: expected float scores (..., K) with K > 0, got {shape_and_dtype(true_scores)}"
        )
    check_finite("threshold_at_tpr", "true", true_scores)
    # Floats can put tpr * K a hair above the whole number that is meant, and ceil would then accept one score more.
    accepted = math.ceil(tpr * true_scores.shape[-1] * (1 - 1e-12))
    return true_scores.detach().kthvalue(true_scores.shape[-1] - accepted + 1, dim=-1).values


def true_scores_of(known: Tensor, targets: Tensor) -> Tensor:
    """Return every known query's score for its own class, `(E, K)`."""
    return known.gather(-1, targets[..., None])[..., 0]


def best_and_right(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest score and whether it is that of the target, both `(E, queries)`. The first of tied classes wins."""
    best, true = scores.amax(-1), true_scores_of(scores, targets)
    if int((scores >= best[..., None]).sum()) == best.numel():
        return best, true >= best  # no ties, so argmax, which is slow, is not needed
    return best, scores.argmax(-1) == targets


def share_accepted(scores: Tensor, threshold: Tensor) -> Tensor:
    """Return the share of scores `(E, queries)` that reach their episode's threshold `(E,)`."""
    return (scores >= threshold[:, None]).double().mean(-1)


def harmonic_mean(base_accuracy: Tensor, novel_accuracy: Tensor) -> Tensor:
    """Harmonic mean of two accuracies `(E,)`, 0 where both are 0."""
    total = base_accuracy + novel_accuracy
    return torch.where(total > 0, 2 * base_accuracy * novel_accuracy / total, 0.0)


def beaten(a: Tensor, b: Tensor) -> Tensor:
    """Twice how many of b `(E, m)` each of a `(E, n)` beats, ties half: whole numbers `(E, n)`, so areas are exact."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    ordered, a = b.to(dtype).sort(-1).values, a.to(dtype).contiguous()
    return torch.searchsorted(ordered, a) + torch.searchsorted(ordered, a, right=True)


def area(beaten: Tensor, against: int) -> Tensor:
    """Return the rank statistic P(a > b) + P(a = b) / 2, `(E,)`, from `beaten` `(E, n)` and the number of b."""
    return beaten.sum(-1).double() / (2 * beaten.shape[-1] * against)


def shape_and_dtype(x: Tensor) -> str:
    """Return shape and dtype, as an error shows what came in."""
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def check_finite(function: str, what: str, scores: Tensor) -> None:
    """Raise `ValueError` where a score is NaN or infinite."""
    # Smallest and largest in one pass without temporaries; both are NaN where any score is.
    if not torch.stack(scores.aminmax()).isfinite().all():
        raise ValueError(f"{function}: expected finite {what} scores, got NaN or infinity among them")


def check_scores(function: str, what: str, scores: Tensor) -> Tensor:
    """Return scores `(E, queries, C)`, none of them 0, detached and in float32 at least; raise `ValueError` otherwise."""
    if scores.dim() != 3 or scores.numel() == 0 or not scores.is_floating_point():
        raise ValueError(f"{function}: expected float {what} scores (E, queries, C) > 0, got {shape_and_dtype(scores)}")
    check_finite(function, what, scores)
    return widened(scores)


def widened(scores: Tensor) -> Tensor:
    """Return scores detached and in float32 at least; widening is exact, and no operation here needs half precision."""
    return scores.detach() if scores.element_size() >= 4 else scores.detach().float()


def check_pair(function: str, a: Tensor, b: Tensor, kinds: str = "known unknown") -> tuple[Tensor, Tensor]:
    """Return two checked kinds of scores of the same episodes and classes; raise `ValueError` otherwise."""
    a, b = (check_scores(function, kind, x) for kind, x in zip(kinds.split(), (a, b), strict=True))
    if a.shape[::2] != b.shape[::2]:
        raise ValueError(
            f"{function}: {kinds} scores need the same E and C, got {shape_and_dtype(a)} and {shape_and_dtype(b)}"
        )
    return a, b


def check_targets(function: str, targets: Tensor, scores: Tensor, first: int = 0, end: int | None = None) -> Tensor:
    """Return targets `(E, queries)` with columns in [first, end); raise `ValueError` otherwise."""
    end = scores.shape[-1] if end is None else end
    if targets.dtype != torch.int64 or targets.shape not in (scores.shape[:2], scores.shape[1:2]):
        shape = tuple(scores.shape[:2])
        raise ValueError(f"{function}: expected int64 targets {shape} or {shape[1:]}, got {shape_and_dtype(targets)}")
    low, high = (int(x) for x in targets.aminmax())
    if low < first or high >= end:
        raise ValueError(f"{function}: expected targets in [{first}, {end}), got {low} to {high}")
    return targets.to(scores.device).expand(scores.shape[:2])


def open_scores(function: str, known: Tensor, targets: Tensor | None, unknown: Tensor) -> Scores:
    """Return checked scores of known and unknown queries; without targets, for what needs none."""
    known, unknown = check_pair(function, known, unknown)
    if targets is None:
        return Scores(known, known.new_zeros(known.shape[1], dtype=torch.int64), unknown)
    return Scores(known, check_targets(function, targets, known), unknown)


def joint_scores(
    function: str, base: Tensor, base_targets: Tensor, novel: Tensor, novel_targets: Tensor, num_base: int
) -> Scores:
    """Return checked scores of base and novel queries in one label space."""
    base, novel = check_pair(function, base, novel, "base novel")
    classes = base.shape[-1]
    if not 0 < num_base < classes:
        raise ValueError(f"{function}: expected num_base in [1, {classes}) for {classes} classes, got {num_base}")
    base_targets = check_targets(function, base_targets, base, 0, num_base)
    novel_targets = check_targets(function, novel_targets, novel, num_base, classes)
    return Scores(novel, novel_targets, base=base, base_targets=base_targets, num_base=num_base)
