"""What the figures of a report need, collected while an evaluation runs: scores, sums, and the worst false alarms.

``evaluate(..., callback=ReportCollector())`` passes every head's scores of every batch. Scores are kept exactly, in whole episodes
from the first on, until a budget is full; the caption of each figure says how many episodes are in it. Accuracy by position and
the most confident false alarms use all episodes. Terms and ties are those of ``episodes.metrics.measures``.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from episodes.metrics.intervals import interval
from episodes.metrics.scores import Frozen, Scores, share_accepted, threshold_at_tpr
from episodes.sampling.sampler import Episodes
from fewshot_nam._deprecation import renamed_names

Floats = npt.NDArray[np.floating]

_BUDGET = 1 << 22  # scores of one kind kept for a head: 16 MiB in float32
_ALARMS = 12

__getattr__ = renamed_names(__name__, {"Evidence": "ReportCollector", "HeadEvidence": "HeadCollector"})


class FalseAlarm(NamedTuple):
    """An unknown query that was accepted as some class.

    Attributes:
        margin: its largest score minus the threshold of its episode (``open_fpr@95tpr``), at least 0.
        score: its largest score.
        threshold: of the episode.
        episode: number of the episode, from 0.
        image: its row in the bank.
        true_class: its class, a position in the bank's classes.
        answer: the class it was accepted as, a position in the bank's classes; in those of the base bank without ``support``.
        support: row in the bank of the first support image of that class; ``None`` for a base class.
    """

    margin: float
    score: float
    threshold: float
    episode: int
    image: int
    true_class: int
    answer: int
    support: int | None


class Kept:
    """Values of the first episodes, in two kinds side by side, until a budget is full.

    Attributes:
        episodes: how many episodes are in it.
    """

    def __init__(self) -> None:
        self.episodes = 0
        self._parts: list[tuple[Tensor, Tensor]] = []

    def room(self, values: int) -> int:
        """Return how many more episodes of ``values`` values each fit; there is always room for the first one."""
        return max(max(_BUDGET // values, 1) - self.episodes, 0)

    def add(self, first: Tensor, second: Tensor) -> None:
        """Keep both kinds ``(E, a)`` and ``(E, b)`` of as many of these episodes as there is room for."""
        taken = min(self.room(first.shape[1] + second.shape[1]), len(first))
        if taken:
            # Copies, because a slice would keep the whole batch in memory.
            self._parts.append((first[:taken].cpu().clone(), second[:taken].cpu().clone()))
            self.episodes += taken

    def pooled(self) -> tuple[Floats, Floats]:
        """Return all values of the first and of the second kind, flat; empty before anything was added."""
        if not self._parts:
            return np.zeros(0), np.zeros(0)
        first, second = (torch.cat([part[kind].flatten() for part in self._parts]).numpy() for kind in range(2))
        return first, second


class Confusions:
    """How often queries of each class were answered as each other class, over all episodes.

    Attributes:
        queries: how many queries there were, by class.
        answers: how many of them were answered as another class, by (class, answer); an answer below 0
            is base class ``-answer - 1``.
    """

    def __init__(self) -> None:
        self.queries: Counter[int] = Counter()
        self.answers: Counter[tuple[int, int]] = Counter()

    def add(self, classes: Tensor, answers: Tensor, wrong: Tensor) -> None:
        """Add queries: their classes and answers, and which of them count, all of one shape."""
        self.queries.update(classes.flatten().tolist())
        pairs = torch.stack([classes[wrong], answers[wrong]], dim=1)
        found, counts = torch.unique(pairs, dim=0, return_counts=True)
        self.answers.update({(a, b): n for (a, b), n in zip(found.tolist(), counts.tolist(), strict=True)})

    def worst(self, most: int) -> list[tuple[int, float, int, float]]:
        """Return the classes with the largest share of such queries: class, share, most frequent answer, and its part of them.

        Args:
            most: how many at the most; classes without any are left out.
        """
        by_class: dict[int, Counter[int]] = {}
        for (true, answer), count in self.answers.items():
            by_class.setdefault(true, Counter())[answer] += count
        rows = []
        for true, of_class in by_class.items():
            total = sum(of_class.values())
            answer, count = min(of_class.items(), key=lambda item: (-item[1], item[0]))
            rows.append((true, total / self.queries[true], answer, count / total))
        return sorted(rows, key=lambda row: (-row[1], row[0]))[:most]

    def share(self, true: int) -> float:
        """Return the share of a class's queries that were answered as another class; 0 for a class without queries."""
        wrong = sum(count for (each, _), count in self.answers.items() if each == true)
        return wrong / self.queries[true] if self.queries[true] else 0.0


class HeadCollector:
    """What was collected of one head.

    Attributes:
        queries: largest scores of known and of unknown queries; empty without unknown queries.
        pairs: scores of true and of wrong (query, class) pairs; empty without unknown queries.
        margins: margins of base and of novel queries (``joint_margins``); empty outside the generalized protocol.
        accepted: unknown queries that were accepted as some class, at the threshold of ``open_fpr@95tpr``.
        confused: known queries that were given another class.
        bias: the novel bias chosen on validation classes, or ``None``.
    """

    def __init__(self) -> None:
        self.queries, self.pairs, self.margins = Kept(), Kept(), Kept()
        self.accepted, self.confused = Confusions(), Confusions()
        self.bias: float | None = None
        self.episodes = 0
        self._by_position: list[Tensor] = []
        self._tpr_sums = torch.zeros(2, dtype=torch.float64)
        self._alarms: dict[int, FalseAlarm] = {}

    def add(self, episodes: Episodes, scores: Scores, frozen: Frozen) -> None:
        """Add a batch of episodes."""
        self.bias = frozen.bias
        self._add_positions(scores)
        self._add_confused(episodes, scores)
        if scores.unknown is not None:
            self._add_open(scores)
            self._add_alarms(episodes, scores)
        if scores.base is not None:
            self.margins.add(scores.margins.base_if_right, scores.margins.novel_if_right)
        self.episodes += len(episodes)

    def accuracy_by_position(self) -> tuple[Floats, Floats]:
        """Return accuracy and half of its 95% interval, ``(N,)`` each, by the position in which a query's class was written."""
        found = [interval(values) for values in torch.cat(self._by_position).unbind(dim=1)]
        return np.array([each.mean for each in found]), np.array([each.ci95 for each in found])

    def tpr(self) -> tuple[float, float]:
        """Return the shares of known queries, and of true pairs, that the thresholds of the episodes accept on average.

        They are a little above 95%, because a threshold accepts a whole number of queries.
        """
        queries, pairs = (self._tpr_sums / self.episodes).tolist()
        return queries, pairs

    def false_alarms(self) -> list[FalseAlarm]:
        """Return the most confident false alarms by margin, the largest first; every image once, with its largest margin."""
        return sorted(self._alarms.values(), key=lambda alarm: (-alarm.margin, alarm.episode, alarm.image))

    def _add_positions(self, scores: Scores) -> None:
        episodes, _, columns = scores.known.shape
        right = (scores.known.argmax(dim=-1) == scores.known_targets).double()
        if scores.known_targets.dim() == 1:  # queries stand class by class, in the order in which classes are written
            found = right.reshape(episodes, columns - scores.num_base, -1).mean(dim=-1)
        else:
            own = torch.nn.functional.one_hot(
                scores.known_targets - scores.num_base, columns - scores.num_base
            ).double()
            counts = own.sum(dim=1)
            # A class without queries in an episode has the episode's accuracy, so that every episode counts once.
            found = torch.where(
                counts > 0, (right.unsqueeze(1) @ own).squeeze(1) / counts.clamp_min(1), right.mean(1, True)
            )
        self._by_position.append(found.cpu())

    def _add_confused(self, episodes: Episodes, scores: Scores) -> None:
        column = scores.known.argmax(dim=-1).cpu()
        targets = scores.known_targets.expand(column.shape).cpu()
        classes = episodes.classes.gather(1, targets - scores.num_base)
        self.confused.add(classes, _answers(episodes, column, scores.num_base), column != targets)

    def _add_open(self, scores: Scores) -> None:
        assert scores.unknown is not None
        (known, targets), true, unknown = scores.labelled, scores.true, scores.unknown
        for kind, accepted in enumerate((scores.best, true)):
            self._tpr_sums[kind] += share_accepted(accepted, threshold_at_tpr(accepted)).sum().cpu()
        self.queries.add(scores.best, scores.unknown_best)
        room = self.pairs.room(known[0].numel() + unknown[0].numel())
        if room:
            known, targets, true, unknown = known[:room], targets[:room], true[:room], unknown[:room]
            wrong = torch.ones_like(known, dtype=torch.bool).scatter_(-1, targets.unsqueeze(-1), False)
            self.pairs.add(
                true,
                torch.cat(
                    [known[wrong].reshape(len(known), known.shape[1] * (known.shape[2] - 1)), unknown.flatten(1)], dim=1
                ),
            )

    def _add_alarms(self, episodes: Episodes, scores: Scores) -> None:
        assert scores.unknown is not None
        num_base, threshold = scores.num_base, scores.open_threshold.cpu()
        best, column = (found.cpu() for found in scores.unknown.max(dim=-1))
        margins = best.double() - threshold.double().unsqueeze(-1)
        true = episodes.unknown_classes.repeat_interleave(episodes.unknown.shape[2], dim=1)
        self.accepted.add(true, _answers(episodes, column, num_base), margins >= 0)
        margin = margins.flatten()
        order = margin.argsort(descending=True, stable=True)
        per_episode, per_class = best.shape[1], episodes.unknown.shape[2]
        seen: set[int] = set()
        for place in order.tolist():
            if margin[place] < 0 or len(seen) == _ALARMS:
                break
            episode, query = divmod(place, per_episode)
            image = int(episodes.unknown[episode].flatten()[query])
            if image in seen:
                continue
            seen.add(image)
            way = int(column[episode, query]) - num_base
            alarm = FalseAlarm(
                margin=float(margin[place]),
                score=float(best[episode, query]),
                threshold=float(threshold[episode]),
                episode=self.episodes + episode,
                image=image,
                true_class=int(episodes.unknown_classes[episode, query // per_class]),
                answer=int(episodes.classes[episode, way]) if way >= 0 else way + num_base,
                support=int(episodes.support[episode, way, 0]) if way >= 0 else None,
            )
            if image not in self._alarms or alarm.margin > self._alarms[image].margin:
                self._alarms[image] = alarm
        self._alarms = {alarm.image: alarm for alarm in self.false_alarms()[:_ALARMS]}


class ReportCollector:
    """Collects what a report needs of every head; pass it to ``evaluate`` as ``callback``.

    Attributes:
        heads: what was collected, by the name of the head.
    """

    def __init__(self) -> None:
        self.heads: dict[str, HeadCollector] = {}

    def __call__(self, name: str, episodes: Episodes, scores: Scores, frozen: Frozen) -> None:
        """Add one head's scores of a batch of episodes."""
        self.heads.setdefault(name, HeadCollector()).add(episodes, scores, frozen)


def _answers(episodes: Episodes, column: Tensor, num_base: int) -> Tensor:
    """Return the class of each column ``(E, Q)``: a position in the bank's classes, or ``-b - 1`` for base class ``b``."""
    novel = episodes.classes.gather(1, (column - num_base).clamp_min(0))
    return torch.where(column < num_base, -column - 1, novel)


def roc_points(accept: Floats, refuse: Floats) -> tuple[Floats, Floats]:
    """Return the ROC curve: the shares of ``refuse`` and of ``accept`` that reach each threshold, from (0, 0) to (1, 1).

    Args:
        accept: scores that should be accepted, at least one; every distinct one is a threshold.
        refuse: scores that should be refused, at least one.

    Returns:
        False and true positive rates, ``(points,)`` each, rising.
    """
    accept, refuse = np.sort(accept), np.sort(refuse)
    thresholds = np.unique(accept)[::-1]
    fpr, tpr = ((len(scores) - np.searchsorted(scores, thresholds)) / len(scores) for scores in (refuse, accept))
    return np.concatenate([[0.0], fpr, [1.0]]), np.concatenate([[0.0], tpr, [1.0]])


def accuracies_at(bias: float | Floats, base_margins: Floats, novel_margins: Floats) -> tuple[Floats, Floats]:
    """Return base and novel accuracy with a bias, or several, on all novel scores; margins are those of ``joint_margins``."""
    base = (len(base_margins) - np.searchsorted(np.sort(base_margins), bias)) / len(base_margins)
    return np.asarray(base), np.asarray(np.searchsorted(np.sort(novel_margins), bias) / len(novel_margins))


def bias_curve(base_margins: Floats, novel_margins: Floats) -> tuple[Floats, Floats]:
    """Return base and novel accuracy, ``(points,)`` each, as the bias on all novel scores rises past every margin."""
    margins = np.unique(np.concatenate([base_margins, novel_margins]))
    margins = margins[np.isfinite(margins)]  # a query that is wrong among its own kind is never right
    last = np.nextafter(margins[-1:], np.inf)
    return accuracies_at(np.concatenate([margins, last]), base_margins, novel_margins)
