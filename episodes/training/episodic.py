"""Training of a head on closed episodes of base classes: FEAT and Relation Networks."""

from __future__ import annotations

import torch

from episodes.features.bank import FeatureBank
from episodes.sampling.sampler import EpisodeSampler
from episodes.training.feat import FEATHead
from episodes.training.relation import RelationHead
from fewshot_nam.heads import BaseStatistics

_BUILD: dict[str, type[FEATHead] | type[RelationHead]] = {"feat": FEATHead, "relation": RelationHead}


def train_on_episodes(
    base: FeatureBank | None,
    name: str,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    *,
    iterations: int = 200,
    tasks: int = 16,
    rate: float = 2e-4,
    seed: int = 0,
) -> FEATHead | RelationHead:
    """Return a head that was trained on episodes of base classes with Adam; it does not change any more.

    Args:
        base: features of base classes, which must not be among the classes to be tested on; ``None`` is refused.
        name: ``"feat"`` or ``"relation"``.
        ways: classes an episode.
        shots: support features of each.
        queries: query features of each.
        iterations: steps of Adam, at least 1.
        tasks: episodes a step, at least 1.
        rate: Adam's learning rate.
        seed: of the initialisation and the episodes.

    Raises:
        ValueError: an unknown name, no base classes, too few classes or features of a class for the episodes, or a number outside
            its range.
    """
    if name not in _BUILD:
        raise ValueError(f"train_on_episodes: no head {name!r}: there are {', '.join(_BUILD)}")
    for word, number in {"iterations": iterations, "tasks": tasks}.items():
        if number < 1:
            raise ValueError(f"train_on_episodes: {word} must be at least 1, got {number}")
    if base is None:
        raise ValueError(
            f"the head {name!r} is trained on features of base classes, and none are given: give a bank of them (base=, --base or "
            "--split); statistics of base classes are not enough"
        )
    try:
        sampler = EpisodeSampler(base, ways, shots, queries, open_ways=0, seed=seed)
    except ValueError as error:
        raise ValueError(f"the head {name!r} is trained on episodes of base classes: {error}") from None
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        head = _BUILD[name](base.feature_dim, base=BaseStatistics.from_mean(base.mean())).requires_grad_(True)
        optimizer = torch.optim.Adam(head.parameters(), lr=rate)
        targets = torch.arange(ways).repeat_interleave(queries).repeat(tasks)
        for batch in sampler.batches(iterations * tasks, tasks):
            support, query = (
                head._embed(base.features[rows].float()) for rows in (batch.support, batch.query.flatten(1))
            )
            scores = head._score_embedded(support, query)
            optimizer.zero_grad()
            head.loss(scores.flatten(0, 1), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        head.requires_grad_(False)
    return head
