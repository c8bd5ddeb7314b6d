"""MAML and ANIL as heads, by learn2learn: a small network over features, from an initialisation that was meta-learned.

What is trained on what: ``meta_train`` draws closed episodes of *base* classes, and trains the initialisation so that a few
gradient steps on the support make the network right on the queries (outer loop: Adam). For an episode of novel classes, or when
classes are written, the head takes those steps from there (inner loop: plain gradient descent on the cross-entropy), and nothing
of them is kept for the next episode. Features are centred by the mean base feature and brought to one length.

Sources: Finn et al., "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017): MAML adapts every layer; Raghu et
al., "Rapid Learning or Feature Reuse?" (2020): ANIL adapts the last layer alone. Departure: theirs train the backbone too; here
it stays as it is, so that all heads are compared on the same features.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from episodes.features.bank import FeatureBank
from episodes.sampling.learn2learn_tasks import require_learn2learn
from episodes.sampling.sampler import EpisodeSampler
from fewshot_nam.heads import BaseStatistics
from fewshot_nam.heads.base import Head, Support
from fewshot_nam.memory.primitives import unit

__all__ = ["META_LEARNED", "MetaLearnedHead", "meta_train"]

META_LEARNED = {
    "maml": "MAML (learn2learn): all of a small network adapted, from a start meta-learned on base classes",
    "anil": "ANIL (learn2learn): its last layer adapted, from a start meta-learned on base classes",
}
"""The algorithms, each with a line on what it is."""


class MetaLearnedHead(Head):
    """A small network whose scores are its logits after a few gradient steps on the support. ``meta_train`` makes one.

    Every column has a start of its own, so scores depend a little on the order in which classes come. A base class takes part
    with its prototype as one feature. Every episode is adapted by itself: this head loops over episodes.

    Args:
        algorithm: ``"maml"`` or ``"anil"``.
        width: ``D``, at least 1.
        ways: how many classes it can tell apart at the most, at least 1.
        hidden: units of the hidden layer, at least 1.
        steps: gradient steps on the support, at least 0.
        rate: their size, above 0.
        mean: ``(D,)``, subtracted from every feature first; ``None`` for none.

    Raises:
        ImportError: learn2learn is not installed.
        ValueError: an unknown algorithm or a number outside its range; when scoring, more classes than ``ways``.
    """

    def __init__(
        self,
        algorithm: str,
        width: int,
        ways: int,
        *,
        hidden: int = 64,
        steps: int = 5,
        rate: float = 0.5,
        mean: Tensor | None = None,
    ) -> None:
        super().__init__(None if mean is None else BaseStatistics.from_mean(mean))
        require_learn2learn()
        if algorithm not in META_LEARNED:
            raise ValueError(f"MetaLearnedHead: algorithm must be one of {', '.join(META_LEARNED)}, got {algorithm!r}")
        for name, number, least in (("width", width, 1), ("ways", ways, 1), ("hidden", hidden, 1), ("steps", steps, 0)):
            if number < least:
                raise ValueError(f"MetaLearnedHead: {name} must be at least {least}, got {number}")
        if not 0 < rate < math.inf:
            raise ValueError(f"MetaLearnedHead: rate must be above 0, got {rate}")
        self.algorithm, self.width, self.ways, self.steps, self.rate = algorithm, width, ways, steps, rate
        self.network = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, ways))
        # Only meta_train changes them: what a head derives from parameters that anybody may change is never kept.
        self.network.requires_grad_(False)

    @property
    def feature_dim(self) -> int:
        """Width of the features, which the network fixes."""
        return self.width

    def _fixed_width(self) -> int:
        return self.width

    def adapted(self, network: nn.Sequential, support: Tensor, targets: Tensor, training: bool) -> dict[str, Tensor]:
        """Return the parameters of ``network`` after the steps on one support set, those of its last layer for C classes.

        Args:
            network: a copy of ``self.network`` whose parameters require gradients.
            support: ``(n, D)``, centred.
            targets: ``(n,)`` long, 0 to C - 1.
            training: keep the graph back to the parameters of ``network``, for the outer loop.
        """
        whole = self.algorithm == "maml"
        body, part = (nn.Identity(), network) if whole else (network[:2], network[2])
        learner = require_learn2learn().algorithms.MAML(part, lr=self.rate, first_order=not training).clone()
        inputs, classes = body(self._sized(support)), int(targets.max()) + 1
        for _ in range(self.steps):
            learner.adapt(cross_entropy(learner(inputs)[:, :classes], targets))
        names = {("" if whole else "2.") + name: value for name, value in learner.module.named_parameters()}
        found = {**dict(network.named_parameters()), **names}
        return {name: value[:classes] if name.startswith("2.") else value for name, value in found.items()}

    def logits(self, parameters: dict[str, Tensor], query: Tensor) -> Tensor:
        """Return ``(Q, C)`` of queries ``(Q, D)``, centred, for parameters as ``adapted`` gives them."""
        return functional_call(self.network, parameters, (self._sized(query),))

    def _sized(self, features: Tensor) -> Tensor:
        return unit(features) * math.sqrt(self.width)

    def _learn(self, support: Support) -> dict[str, Tensor]:
        """Return the adapted parameters of every episode, each ``(E, ...)``."""
        if support.columns > self.ways:
            raise ValueError(
                f"MetaLearnedHead: {self.algorithm} was meta-trained for {self.ways} classes, and there are {support.columns}: "
                f"meta_train it with ways={support.columns}"
            )
        # Scores are asked for in inference mode, whose tensors could not be differentiated.
        with torch.inference_mode(False), torch.enable_grad():
            rows = support.with_base(support.base, support.features).detach()
            targets = torch.cat([torch.arange(len(support.base), device=rows.device), support.targets])
            network = copy.deepcopy(self.network).to(rows).requires_grad_(True)
            found = [self.adapted(network, episode, targets, training=False) for episode in rows]
            return {name: torch.stack([each[name].detach() for each in found]) for name in found[0]}

    def _score(self, learned: dict[str, Tensor], query: Tensor) -> Tensor:
        """Return logits ``(E, Q, C)``."""
        return torch.vmap(self.logits)(learned, query)

    def extra_repr(self) -> str:
        """Say how the network is adapted."""
        return f"algorithm={self.algorithm}, ways={self.ways}, steps={self.steps}, rate={self.rate}, {super().extra_repr()}"


def meta_train(
    base: FeatureBank | None,
    algorithm: str = "maml",
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    *,
    hidden: int = 64,
    steps: int = 5,
    rate: float = 0.5,
    iterations: int = 200,
    tasks: int = 4,
    outer_rate: float = 1e-3,
    seed: int = 0,
) -> MetaLearnedHead:
    """Return a head whose initialisation is meta-learned on episodes of base classes.

    Args:
        base: features of base classes, none of which is to be tested on; ``None``, for none known, is refused.
        algorithm: ``"maml"`` or ``"anil"``.
        ways: classes an episode, and how many the head can tell apart.
        shots: support features of each.
        queries: query features of each.
        hidden: units of the hidden layer.
        steps: gradient steps of the inner loop.
        rate: their size.
        iterations: steps of the outer loop, at least 1.
        tasks: episodes an iteration, at least 1.
        outer_rate: Adam's learning rate.
        seed: of the initialisation and the episodes.

    Raises:
        ImportError: learn2learn is not installed.
        ValueError: no base classes, too few of them, or too few features of one, for the episodes, or a number outside its range.
    """
    for name, number in {"iterations": iterations, "tasks": tasks}.items():
        if number < 1:
            raise ValueError(f"meta_train: {name} must be at least 1, got {number}")
    if base is None:
        raise ValueError(
            f"the head {algorithm!r} is meta-trained on features of base classes, and none are known: give a bank of them "
            "(base=, --base or --split); their means alone are not enough"
        )
    try:
        sampler = EpisodeSampler(base, ways, shots, queries, open_ways=0, seed=seed)
    except ValueError as error:
        raise ValueError(f"the head {algorithm!r} is meta-trained on episodes of base classes: {error}") from None
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        head = MetaLearnedHead(
            algorithm, base.feature_dim, ways, hidden=hidden, steps=steps, rate=rate, mean=base.mean()
        )
        network = head.network.requires_grad_(True)
        optimizer = torch.optim.Adam(network.parameters(), lr=outer_rate)
        support_targets, query_targets = (torch.arange(ways).repeat_interleave(count) for count in (shots, queries))
        for batch in sampler.batches(iterations * tasks, tasks):
            optimizer.zero_grad()
            for support, query in zip(batch.support, batch.query, strict=True):
                known, asked = (head._centred(base.features[rows.flatten()].float()) for rows in (support, query))
                parameters = head.adapted(network, known, support_targets, training=True)
                (cross_entropy(head.logits(parameters, asked), query_targets) / tasks).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.requires_grad_(False)
    return head
