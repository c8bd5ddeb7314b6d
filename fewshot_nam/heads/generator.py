"""A trained classifier of base and novel classes: it trains the weights of base classes, and how those of novel classes are made.

Sources: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (2018), for the cosine classifier, the
averaging and the attention over base classes; Nam and Seo, "Neural Attention Memory" (arXiv 2302.09422) for the gates. With
``f_n`` the unit support features of a class, ``w_c`` the weights of base class ``c``, ``*`` elementwise and learned vectors ``a``
and ``b`` (both 1 at first)::

    novel weights = a * mean_n p_w(f_n) f_n + b * mean_n Att(f_n)      Att(f) = sum_c softmax_c(g cos(Q f, key_c)) w_c / |w_c|
    base weights  = WR(w_c / |w_c|, f_n, 0, 0, p_e(f_n)) for every n
    score         = s cos(feature, weights)

Every ingredient can be left out; ``episodes.training.generators`` trains the rest.

Departures from the authors' few-shot code: write and erase gate are two networks (theirs computes both with one), each episode
erases base weights for itself (theirs averages over a batch of episodes), the gated features of a class are averaged and not summed
(so that 1 and 5 shots count alike against attention), ``a`` is used with and without attention, and there is no bias (one number
added to all scores changes no answer).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fewshot_nam._deprecation import renamed_attribute, renamed_parameter
from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.validation import checked_vectors
from fewshot_nam.memory.primitives import unit

Ingredient = Literal["attention", "write", "erase"]
Order = Literal["sequential", "parallel"]
_SMALLEST_SQUARE = 1e-6  # of the length of base weights after erasing: shorter ones are only rounding errors


class ClassWeights(NamedTuple):
    """Weights of base and novel classes.

    Base weights after erasing are ``(base + updates^T keys) * lengths``. They are never formed, which would take ``(E, B, D)``.

    Attributes:
        base: ``(B, D)``, of length 1.
        novel: ``(E, N, D)``, of length 1.
        keys: ``(E, n, D)``, unit support features; ``None`` where nothing is erased, as the two below.
        updates: ``(E, n, B)``, what each key adds to the weights of each base class.
        lengths: ``(E, B)``, one over the length of the weights of each base class after that.
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
        width: of the hidden layer; the paper's is ``D``.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return probabilities ``(...)`` of features ``(..., D)``."""
        return torch.sigmoid(self.layers(features)).squeeze(-1)


class BaseAttention(nn.Module):
    """Attention of features over base classes: the mean of the weights of base classes that are like a feature.

    Args:
        classes: ``B``, how many base classes.
        features: ``D``.
    """

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, features)
        with torch.no_grad():
            self.query.weight.copy_(torch.eye(features) + 0.001 * torch.randn(features, features))
            self.query.bias.zero_()
        self.keys = nn.Parameter(torch.randn(classes, features) * math.sqrt(2 / features))
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def forward(self, features: Tensor, weights: Tensor, hidden: Tensor | None) -> Tensor:
        """Return ``(E, n, D)`` for features ``(E, n, D)`` over class weights ``(B, D)``, without those in ``hidden`` ``(E, B)``."""
        scores = self.sharpness * (unit(self.query(features)) @ unit(self.keys).mT)
        if hidden is not None:
            scores = scores.masked_fill(hidden.unsqueeze(1), -math.inf)
        return scores.softmax(dim=-1) @ unit(weights)


class GeneratorHead(Head):
    """A cosine classifier over trained weights of base classes and generated weights of novel classes.

    ``head.write_base(head.base_weights.detach(), names)`` adds the base classes to the label space; attention reads
    ``base_weights`` in either case. Train it with ``episodes.training.generators``: untrained and without ingredients it is
    a cosine classifier.

    Args:
        base_weights: ``(B, D)``, one row for each base class, such as the class means; they are trained further.
        ingredients: which of ``"attention"`` (over base classes), ``"write"`` and ``"erase"`` (the gates of a NAM) it has. None
            of them is feature averaging, the first Gidaris and Komodakis' classifier, the last two the paper's NAM.
        order: how several features erase. ``"sequential"``: one after another, the paper's ``WR``. ``"parallel"``, as in the
            authors' code: each from the earlier weights, so that ``k`` features that are alike erase ``k`` times.
        gate_width: of the hidden layer of each gate, at least 1. The paper's is ``D``.

    Raises:
        ValueError: base weights that are not ``(B, D)`` or NaN, infinite or zero, an unknown ingredient or order, or no width.

    Shapes are those of ``fewshot_nam.heads.base``. Initial weights come from torch's generator: ``torch.manual_seed``.

    Example:
        >>> head = GeneratorHead(torch.eye(4)[:2], ingredients=()).write(torch.eye(4)[2:], ["cat", "dog"])
        >>> head.predict(torch.tensor([0.0, 0.0, 0.1, 1.0]))
        'dog'
    """

    @renamed_parameter("rows", "base_weights")
    def __init__(
        self,
        base_weights: Tensor,
        ingredients: Sequence[Ingredient] = ("write", "erase"),
        *,
        order: Order = "sequential",
        gate_width: int = 64,
    ) -> None:
        super().__init__()
        if checked_vectors(base_weights, "base_weights").dim() != 2 or not len(base_weights):
            shape = tuple(base_weights.shape)
            raise ValueError(f"GeneratorHead: base_weights must be (B, D) with B at least 1, got shape {shape}")
        known = get_args(Ingredient)
        for name in ingredients:
            if name not in known:
                raise ValueError(f"GeneratorHead: no ingredient {name!r}: there are {', '.join(known)}")
        if order not in get_args(Order):
            raise ValueError(f"GeneratorHead: order must be one of {', '.join(get_args(Order))}, got {order!r}")
        if gate_width < 1:
            raise ValueError(f"GeneratorHead: gate_width must be at least 1, got {gate_width}")
        count, width = base_weights.shape
        self.ingredients = tuple(name for name in known if name in ingredients)
        self.order, self.gate_width = order, gate_width
        self.base_weights = nn.Parameter(base_weights.detach().float().clone())
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.mean_scale = nn.Parameter(torch.ones(width))
        has = self.ingredients.__contains__
        self.attention = BaseAttention(count, width) if has("attention") else None
        self.attention_scale = nn.Parameter(torch.ones(width)) if has("attention") else None
        self.write_gate = Gate(width, gate_width) if has("write") else None
        self.erase_gate = Gate(width, gate_width) if has("erase") else None

    rows = renamed_attribute("rows", "base_weights")

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.base_weights.shape[-1]

    def _fixed_width(self) -> int:
        return self.base_weights.shape[-1]

    def _embed(self, features: Tensor) -> Tensor:
        return features.to(self.base_weights.dtype)  # there is no mean; the dtype of the weights is used throughout

    def training_scores(self, support: Tensor, query: Tensor, hidden: Tensor) -> Tensor:
        """Return the scores of episodes in which base classes take the part of novel ones.

        Args:
            support: ``(E, N, K, D)``, of base classes that take the part of novel ones.
            query: ``(E, Q, D)``.
            hidden: ``(E, N)`` long, which base classes those are: attention and scores leave their base weights out.

        Returns:
            ``(E, Q, B + N)``; the columns of hidden base classes are ``-inf``.
        """
        episodes, ways, shots, width = support.shape
        base = len(self.base_weights)
        targets = base + torch.arange(ways, device=support.device).repeat_interleave(shots)
        features = support.reshape(episodes, ways * shots, width)
        unseen = torch.zeros(episodes, base, dtype=torch.bool, device=support.device).scatter_(1, hidden, True)
        weights = self._generated(Support(features, targets, self.base_weights, base + ways), unseen)
        left_out = torch.cat([unseen, unseen.new_zeros(episodes, ways)], dim=1)
        return self._score(weights, query).masked_fill(left_out.unsqueeze(1), -math.inf)

    def _learn(self, support: Support) -> ClassWeights:
        return self._generated(support, None)

    def _generated(self, support: Support, hidden: Tensor | None) -> ClassWeights:
        """Return the weights of base and novel classes; attention leaves out ``hidden`` ``(E, B)`` bool."""
        keys, base = unit(support.features), unit(support.base)
        written = keys if self.write_gate is None else self.write_gate(keys).unsqueeze(-1) * keys
        novel = self.mean_scale * support.class_means(written)
        if self.attention is not None and self.attention_scale is not None:
            novel = novel + self.attention_scale * support.class_means(self.attention(keys, self.base_weights, hidden))
        if self.erase_gate is None or not len(base):
            return ClassWeights(base, unit(novel))
        p_erase, shared = self.erase_gate(keys).unsqueeze(-1), keys @ base.mT
        products = keys @ keys.mT
        updates = -p_erase * shared
        if self.order == "sequential":
            # As in write_sequence: the keys before a key have changed what it erases.
            earlier = p_erase * products.tril(diagonal=-1)
            updates = torch.linalg.solve_triangular(earlier, updates, upper=False, unitriangular=True)
        squares = 1 + (updates * (2 * shared + products @ updates)).sum(dim=1)
        return ClassWeights(base, unit(novel), keys, updates, squares.clamp_min(_SMALLEST_SQUARE).rsqrt())

    def _score(self, learned: ClassWeights, query: Tensor) -> Tensor:
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
        """Return the ingredients."""
        made = f"ingredients={self.ingredients}, order={self.order}, gate_width={self.gate_width}"
        return f"{made}, base_weights={len(self.base_weights)}, {super().extra_repr()}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for old, new in _OLD_KEYS.items():
            for key in [key for key in state_dict if key.removeprefix(prefix).startswith(old)]:
                state_dict[prefix + new + key.removeprefix(prefix + old)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


# How the first files of version 0.1 name the parameters.
_OLD_KEYS = {
    "rows": "base_weights",
    "average": "mean_scale",
    "recalled": "attention_scale",
    "recall.ask.": "attention.query.",
    "recall.": "attention.",
}
