"""A learned classifier of base and novel classes: base rows that are trained, and a trained way to make novel rows.

Sources: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (2018), for the cosine classifier, the
averaging and the attention over base rows; Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422) for the gates. With ``f_n``
the unit support features of a class, ``*`` elementwise and learned vectors ``a`` and ``b`` (both 1 at first)::

    novel row = a * mean_n p_w(f_n) f_n + b * mean_n Att(f_n)      Att(f) = sum_c softmax_c(g cos(Q f, key_c)) row_c / |row_c|
    base rows = WR(base rows / their lengths, f_n, 0, 0, p_e(f_n)) for every n
    score     = s cos(feature, row)

Every ingredient can be left out; ``episodes.training.generators`` trains the rest.

Departures from the authors' few-shot code: write and erase gate are two networks (theirs computes both with one), each episode
erases base rows for itself (theirs averages over a batch of episodes), the gated features of a class are averaged and not summed
(so that 1 and 5 shots weigh alike against attention), ``a`` is there with and without attention, and there is no bias (one number
added to all scores changes none of the answers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.validation import checked_vectors
from fewshot_nam.memory.primitives import unit

Ingredient = Literal["attention", "write", "erase"]
Order = Literal["sequential", "parallel"]
_SMALLEST_SQUARE = 1e-6  # of a base row's length after erasing: what is left of a shorter one is rounding


class Rows(NamedTuple):
    """Rows of base and novel classes.

    Base rows after erasing are ``(base + updates^T keys) * lengths``, never written out: that would take ``(E, B, D)``.

    Attributes:
        base: ``(B, D)``, of length 1.
        novel: ``(E, N, D)``, of length 1.
        keys: ``(E, n, D)``, unit support features; ``None`` where nothing is erased, as the two below.
        updates: ``(E, n, B)``, what each of them adds to each base row.
        lengths: ``(E, B)``, one over the length of each base row after that.
    """

    base: Tensor
    novel: Tensor
    keys: Tensor | None = None
    updates: Tensor | None = None
    lengths: Tensor | None = None


class Gate(nn.Module):
    """A probability for each unit feature: ``sigmoid(Linear(ReLU(Linear(f))))``.

    Args:
        features: ``D``.
        width: of the layer between; the paper's is ``D``.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return probabilities ``(...)`` of features ``(..., D)``."""
        return torch.sigmoid(self.layers(features)).squeeze(-1)


class Recall(nn.Module):
    """Attention over base classes: what a feature makes of the rows of classes that are like it.

    Args:
        rows: ``B``, how many base classes.
        features: ``D``.
    """

    def __init__(self, rows: int, features: int) -> None:
        super().__init__()
        self.ask = nn.Linear(features, features)
        with torch.no_grad():
            self.ask.weight.copy_(torch.eye(features) + 0.001 * torch.randn(features, features))
            self.ask.bias.zero_()
        self.keys = nn.Parameter(torch.randn(rows, features) * math.sqrt(2 / features))
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def forward(self, features: Tensor, rows: Tensor, hidden: Tensor | None) -> Tensor:
        """Return ``(E, n, D)`` for features ``(E, n, D)`` over rows ``(B, D)``, blind to those in ``hidden`` ``(E, B)`` bool."""
        likeness = self.sharpness * (unit(self.ask(features)) @ unit(self.keys).mT)
        if hidden is not None:
            likeness = likeness.masked_fill(hidden.unsqueeze(1), -math.inf)
        return likeness.softmax(dim=-1) @ unit(rows)


class GeneratorHead(Head):
    """A cosine classifier over trained base rows and rows generated for novel classes.

    ``head.write_base(head.rows.detach(), names)`` makes the trained rows classes that it answers with; attention reads ``rows``
    whether they are or not. Train it with ``episodes.training.generators``: untrained and without ingredients it is a cosine
    classifier.

    Args:
        rows: ``(B, D)``, one for each base class, say the class means; trained further.
        ingredients: which of ``"attention"`` (over base rows), ``"write"`` and ``"erase"`` (the gates of a NAM) it has. None of
            them is feature averaging, the first Gidaris and Komodakis' classifier, the last two the paper's NAM.
        order: how several features erase. ``"sequential"``: one after another, the literal ``WR``. ``"parallel"``, as in the
            authors' code: each from the rows as they were, so that ``k`` features that are alike erase ``k`` times.
        gate_width: of the layer inside each gate, at least 1. The paper's is ``D``.

    Raises:
        ValueError: rows that are not ``(B, D)`` or NaN, infinite or zero, an unknown ingredient or order, or no width.

    Shapes are those of ``fewshot_nam.heads.base``. Initial weights come from torch's generator: ``torch.manual_seed``.
    """

    def __init__(
        self,
        rows: Tensor,
        ingredients: Sequence[Ingredient] = ("write", "erase"),
        *,
        order: Order = "sequential",
        gate_width: int = 64,
    ) -> None:
        super().__init__()
        if checked_vectors(rows, "rows").dim() != 2 or not len(rows):
            raise ValueError(f"GeneratorHead: rows must be (B, D) with B at least 1, got shape {tuple(rows.shape)}")
        known = get_args(Ingredient)
        for name in ingredients:
            if name not in known:
                raise ValueError(f"GeneratorHead: no ingredient {name!r}: there are {', '.join(known)}")
        if order not in get_args(Order):
            raise ValueError(f"GeneratorHead: order must be one of {', '.join(get_args(Order))}, got {order!r}")
        if gate_width < 1:
            raise ValueError(f"GeneratorHead: gate_width must be at least 1, got {gate_width}")
        count, width = rows.shape
        self.ingredients = tuple(name for name in known if name in ingredients)
        self.order, self.gate_width = order, gate_width
        self.rows = nn.Parameter(rows.detach().float().clone())
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.average = nn.Parameter(torch.ones(width))
        has = self.ingredients.__contains__
        self.recall = Recall(count, width) if has("attention") else None
        self.recalled = nn.Parameter(torch.ones(width)) if has("attention") else None
        self.write_gate = Gate(width, gate_width) if has("write") else None
        self.erase_gate = Gate(width, gate_width) if has("erase") else None

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.rows.shape[-1]

    def _fixed_width(self) -> int:
        return self.rows.shape[-1]

    def _centred(self, features: Tensor) -> Tensor:
        return features.to(self.rows.dtype)  # there is no mean; all is reckoned with in the dtype of the weights

    def training_scores(self, support: Tensor, query: Tensor, hidden: Tensor) -> Tensor:
        """Return the scores of episodes whose novel classes are base classes in disguise.

        Args:
            support: ``(E, N, K, D)``, of base classes that play novel ones.
            query: ``(E, Q, D)``.
            hidden: ``(E, N)`` long, which rows those are: neither attention nor any score sees them.

        Returns:
            ``(E, Q, B + N)``; the columns of hidden rows are ``-inf``.
        """
        episodes, ways, shots, width = support.shape
        base = len(self.rows)
        targets = base + torch.arange(ways, device=support.device).repeat_interleave(shots)
        features = support.reshape(episodes, ways * shots, width)
        unseen = torch.zeros(episodes, base, dtype=torch.bool, device=support.device).scatter_(1, hidden, True)
        rows = self._generated(Support(features, targets, self.rows, base + ways), unseen)
        silent = torch.cat([unseen, unseen.new_zeros(episodes, ways)], dim=1)
        return self._score(rows, query).masked_fill(silent.unsqueeze(1), -math.inf)

    def _learn(self, support: Support) -> Rows:
        return self._generated(support, None)

    def _generated(self, support: Support, hidden: Tensor | None) -> Rows:
        """Return base and novel rows; attention is blind to ``hidden`` ``(E, B)`` bool."""
        keys, base = unit(support.features), unit(support.base)
        written = keys if self.write_gate is None else self.write_gate(keys).unsqueeze(-1) * keys
        novel = self.average * support.class_means(written)
        if self.recall is not None and self.recalled is not None:
            novel = novel + self.recalled * support.class_means(self.recall(keys, self.rows, hidden))
        if self.erase_gate is None or not len(base):
            return Rows(base, unit(novel))
        p_erase, shared = self.erase_gate(keys).unsqueeze(-1), keys @ base.mT
        products = keys @ keys.mT
        updates = -p_erase * shared
        if self.order == "sequential":
            # As in write_sequence: what a key erases, the keys before it have changed.
            earlier = p_erase * products.tril(diagonal=-1)
            updates = torch.linalg.solve_triangular(earlier, updates, upper=False, unitriangular=True)
        squares = 1 + (updates * (2 * shared + products @ updates)).sum(dim=1)
        return Rows(base, unit(novel), keys, updates, squares.clamp_min(_SMALLEST_SQUARE).rsqrt())

    def _score(self, learned: Rows, query: Tensor) -> Tensor:
        """Return scaled cosines ``(E, Q, C)``."""
        directions = unit(query)
        scores = directions @ learned.novel.mT
        if len(learned.base):
            base = directions @ learned.base.mT
            if learned.keys is not None and learned.updates is not None and learned.lengths is not None:
                base = (base + (directions @ learned.keys.mT) @ learned.updates) * learned.lengths.unsqueeze(1)
            scores = torch.cat([base, scores], dim=-1)
        return self.scale * scores

    def extra_repr(self) -> str:
        """Say what it is made of."""
        made = (
            f"ingredients={self.ingredients}, order={self.order}, gate_width={self.gate_width}, rows={len(self.rows)}"
        )
        return f"{made}, {super().extra_repr()}"
