"""MAML and ANIL as heads, with learn2learn: a small network over features whose initialisation is meta-learned.

Outer loop: ``meta_train`` draws closed episodes of *base* classes and trains the initialisation with Adam, so that a few gradient
steps on the support make the network classify the queries. Inner loop: for an episode of novel classes, or when classes are
written, the head takes these steps from the initialisation by gradient descent on the cross-entropy; the next episode starts from
the initialisation again. Features are centred by the mean base feature and scaled to one length.

Sources: Finn et al., "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017): MAML adapts every layer. Raghu et
al., "Rapid Learning or Feature Reuse?" (2020): ANIL adapts the last layer alone. Departure: the papers train the backbone too; here
it is frozen, so that all heads are compared on the same features.
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
from episodes.training.registry import META_LEARNED
from fewshot_nam.heads import BaseStatistics
from fewshot_nam.heads.base import Head, Support
from fewshot_nam.heads.base_statistics import accepts_old_base_words
from fewshot_nam.memory.primitives import unit

__all__ = ["META_LEARNED", "MetaLearnedHead", "meta_train"]


class MetaLearnedHead(Head):
    """A small network whose scores are its logits after a few gradient steps on the support; ``meta_train`` returns one.

    Each output has an initialisation of its own, so scores depend slightly on the order of the classes. A base class contributes
    its prototype as one support feature. The head adapts to one episode after another, in a loop.

    Args:
        algorithm: ``"maml"`` or ``"anil"``.
        width: ``D``, at least 1.
        ways: the largest number of classes, at least 1.
        hidden: units of the hidden layer, at least 1.
        steps: gradient steps on the support, at least 0.
        rate: learning rate of these steps, above 0.
        base: its ``mean`` is subtracted from every feature; ``None`` for no centring.

    Raises:
        ImportError: learn2learn is not installed.
        ValueError: an unknown algorithm or a number outside its range; when scoring, more classes than ``ways``.
    """

    @accepts_old_base_words
    def __init__(
        self,
        algorithm: str,
        width: int,
        ways: int,
        *,
        hidden: int = 64,
        steps: int = 5,
        rate: float = 0.5,
        base: BaseStatistics | None = None,
    ) -> None:
        super().__init__(base)
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
        # Frozen except in meta_train: a head caches what it derives from its parameters only where they cannot change.
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
        # Scoring runs in inference mode, whose tensors cannot be differentiated.
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
        """Return the settings for ``repr``."""
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
        base: features of base classes, which must not be among the classes to be tested on; ``None`` is refused.
        algorithm: ``"maml"`` or ``"anil"``.
        ways: classes an episode, and the largest number of classes of the head.
        shots: support features of each.
        queries: query features of each.
        hidden: units of the hidden layer.
        steps: gradient steps of the inner loop.
        rate: learning rate of the inner loop.
        iterations: steps of the outer loop, at least 1.
        tasks: episodes an iteration, at least 1.
        outer_rate: Adam's learning rate.
        seed: of the initialisation and the episodes.

    Raises:
        ImportError: learn2learn is not installed.
        ValueError: no base classes, too few classes or too few features of a class for the episodes, or a number outside its range.
    """
    for name, number in {"iterations": iterations, "tasks": tasks}.items():
        if number < 1:
            raise ValueError(f"meta_train: {name} must be at least 1, got {number}")
    if base is None:
        raise ValueError(
            f"the head {algorithm!r} is meta-trained on features of base classes, and none are given: give a bank of them "
            "(base=, --base or --split); statistics of base classes are not enough"
        )
    try:
        sampler = EpisodeSampler(base, ways, shots, queries, open_ways=0, seed=seed)
    except ValueError as error:
        raise ValueError(f"the head {algorithm!r} is meta-trained on episodes of base classes: {error}") from None
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        mean = BaseStatistics.from_mean(base.mean())
        head = MetaLearnedHead(algorithm, base.feature_dim, ways, hidden=hidden, steps=steps, rate=rate, base=mean)
        network = head.network.requires_grad_(True)
        optimizer = torch.optim.Adam(network.parameters(), lr=outer_rate)
        support_targets, query_targets = (torch.arange(ways).repeat_interleave(count) for count in (shots, queries))
        for batch in sampler.batches(iterations * tasks, tasks):
            optimizer.zero_grad()
            for support, query in zip(batch.support, batch.query, strict=True):
                known, queried = (head._embed(base.features[rows.flatten()].float()) for rows in (support, query))
                parameters = head.adapted(network, known, support_targets, training=True)
                (cross_entropy(head.logits(parameters, queried), query_targets) / tasks).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.requires_grad_(False)
    return head
