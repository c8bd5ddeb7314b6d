"""A head that answers as another head does, and accepts answers by an open-set score.

The scores of a query are moved together so that the largest is its open-set score: the order of classes and their differences
stay, so answers and probabilities are those of the inner head, and thresholds, ``calibrate`` and all measures of acceptance are
those of the open-set score. ``class_fpr@95tpr`` compares scores of single classes, which keep the differences of the inner head
although the two scales need not fit: it says little here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.open_scores.open_score import OpenScore
from fewshot_nam.heads.temperature import fit_temperature
from fewshot_nam.heads.validation import as_labels, checked_vectors

_WAYS, _SHOTS, _QUERIES, _EPISODES = 5, 1, 15, 200  # of the episodes of base classes on which scales are chosen


class Learned(NamedTuple):
    """What both parts have learned.

    Attributes:
        head: by the inner head.
        score: by the open-set score.
    """

    head: Any
    score: Any


class OpenScoreHead(Head):
    """Classifies as ``head`` does; a query is accepted by ``score``.

    Args:
        head: a head that has learned no class; it is used as it is.
        score: an open-set score (``open_scores.create``).

    Raises:
        ValueError: a head that knows classes already.

    Example:
        >>> from fewshot_nam.heads import create, open_scores
        >>> head = OpenScoreHead(create("cosine"), open_scores.create("knn"))
        >>> head.write(torch.eye(3)[:2], ["cat", "dog"])(torch.tensor([1.0, 0.0, 0.0]))
        tensor([ 0., -1.], dtype=torch.float64)
    """

    def __init__(self, head: Head, score: OpenScore) -> None:
        super().__init__()
        if head.classes:
            raise ValueError("OpenScoreHead: the head knows classes already: give a new one, and write to this head")
        self.head, self.score = head, score
        self._widths: dict[int, int] = {}

    def fit(self, features: Tensor, labels: Any, *, seed: int = 0) -> OpenScoreHead:
        """Learn what the open-set score has to know of base classes; return the head.

        A temperature that was not given, and the scale of ViM, are chosen on 200 episodes of base classes, 5-way 1-shot, or with
        fewer classes or images a class where there are fewer.

        Args:
            features: ``(n, D)`` of images of base classes.
            labels: ``n`` ints or strings, the class of each.
            seed: of the episodes.

        Raises:
            ValueError: NaN, infinite or zero features, another shape, or not as many labels as features.
        """
        if checked_vectors(features, "features", width=self._fixed_width() or None).dim() != 2 or not len(features):
            raise ValueError(f"fit: features must be (n, D) with n at least 1, got shape {tuple(features.shape)}")
        names = as_labels(labels, len(features))
        number: dict[Any, int] = {}
        targets = torch.tensor([number.setdefault(name, len(number)) for name in names])
        with torch.inference_mode(False), torch.no_grad():
            self.score.fit_classes(features, targets, len(number))
            if self.score.uses_scores:
                self._fit_scales(features, targets, seed)
        self._outdate()
        return self

    def _fit_scales(self, features: Tensor, targets: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        counts = torch.bincount(targets)
        enough = (counts > _SHOTS).nonzero().flatten()
        ways = min(_WAYS, len(enough))
        if ways < 2:
            return
        queries = min(_QUERIES, int(counts[enough].min()) - _SHOTS)
        order = torch.argsort(targets, stable=True)
        starts = counts.cumsum(0) - counts
        drawn = []
        for _ in range(_EPISODES):
            classes = enough[torch.randperm(len(enough), generator=generator)[:ways]].tolist()
            drawn.append(
                torch.stack(
                    [
                        order[starts[c] + torch.randperm(int(counts[c]), generator=generator)[: _SHOTS + queries]]
                        for c in classes
                    ]
                )
            )
        episodes = features[torch.stack(drawn).to(features.device)].float()
        support, query = episodes[:, :, :_SHOTS], episodes[:, :, _SHOTS:].flatten(1, 2)
        parts = [
            self.head.score_episodes(*part, check=False)
            for part in zip(torch.split(support, 20), torch.split(query, 20), strict=True)
        ]
        scores = torch.cat(parts)
        answers = torch.arange(ways).repeat_interleave(queries).expand(len(scores), -1)
        if self.score.fits_temperature:
            value = fit_temperature(scores.flatten(0, 1).cpu(), answers.flatten())
            self.score.temperature = torch.tensor(value).to(scores)
        self.score.fit_scores(scores, self.score.embed(query))

    @property
    def power_normalised(self) -> bool:
        """Whether power means are better base prototypes for the inner head than means."""
        return self.head.power_normalised

    @property
    def transductive(self) -> bool:  # type: ignore[override]
        """Whether the inner head is."""
        return self.head.transductive

    @property
    def embeds_beforehand(self) -> bool:  # type: ignore[override]
        """Always: both parts may look at each feature by itself."""
        return True

    def _fixed_width(self) -> int:
        return self.head._fixed_width()

    def _embed(self, features: Tensor) -> Tensor:
        """Return what the inner head needs of features ``(..., D)``, and then what the score needs.

        Raises:
            ValueError: the open-set score has to be fitted first.
        """
        if not self.score.fitted:
            raise ValueError(
                f"{type(self.score).__name__} has to know base classes: call fit(features, labels) with features of their images"
            )
        features = features if features.element_size() >= 4 else features.float()
        ours, theirs = self.score.embed(features), self.head._embed(features)
        embedded = torch.cat([theirs, ours.to(theirs)], dim=-1)
        # Both widths grow with that of the features, so the width of the whole tells them.
        self._widths = {**self._widths, embedded.shape[-1]: theirs.shape[-1]}
        return embedded

    def _parts(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the inner head and what the score needs."""
        width = self._widths[embedded.shape[-1]]
        return embedded[..., :width], embedded[..., width:]

    def _learn(self, support: Support) -> Learned:
        """Return what both parts have learned."""
        parts = zip(self._parts(support.features), self._parts(support.base), strict=True)
        theirs, ours = (support._replace(features=features, base=base) for features, base in parts)
        return Learned(self.head._learn(theirs), self.score.learn(ours))

    def _score(self, learned: Learned, query: Tensor) -> Tensor:
        """Return scores ``(E, Q, C)`` in float64: a small difference of classes must outlast a large open-set score."""
        theirs, ours = self._parts(query)
        scores = self.head._score(learned.head, theirs)
        accepted = self.score(scores, learned.score, ours).double().unsqueeze(-1)
        scores = scores.double()
        return scores - scores.amax(dim=-1, keepdim=True) + accepted

    def extra_repr(self) -> str:
        """Return how scales were chosen."""
        return f"temperature={float(self.score.temperature):.4g}, {super().extra_repr()}"
