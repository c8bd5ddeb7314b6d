"""Comparison of heads that each bring their own base class weights, where base and novel classes share one label space.

``episodes.evaluate`` gives every head the means of the same base features. Here each head brings its own weights: means, or
trained ones. Episodes and measures are those of ``evaluate``, and two accuracies of Gidaris and Komodakis (2018) besides, in which
base and novel queries are classified only among their own kind: ``base_accuracy:alone`` and ``novel_accuracy:alone``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from episodes.evaluation.scoring import Scorer
from episodes.evaluation.validation_thresholds import CALIBRATION_EPISODES, best_bias
from episodes.features.bank import FeatureBank
from episodes.metrics.intervals import interval, paired
from episodes.metrics.measures import accuracy
from episodes.metrics.registry import MEASURES, measured
from episodes.metrics.scores import Frozen, Scores
from episodes.reporting.formatting import Table
from episodes.sampling.sampler import EpisodeSampler
from fewshot_nam._deprecation import renamed_attribute, renamed_names
from fewshot_nam.heads import Head

__getattr__ = renamed_names(__name__, {"Pictures": "NovelAndBase"})

_BATCH_SIZE = 32  # episodes


@dataclass(frozen=True, eq=False)
class Contender:
    """A head and its base class weights.

    Attributes:
        head: as it is before any class is written.
        weights: ``(B, D)``, as ``Head.write_base`` takes them.
    """

    head: Head
    weights: Tensor

    rows = renamed_attribute("rows", "weights")


class NovelAndBase(NamedTuple):
    """The banks that the episodes of ``compare`` are drawn from.

    Attributes:
        novel: of support and novel queries.
        base: of base queries: images of base classes that nothing was trained on.
    """

    novel: FeatureBank
    base: FeatureBank


def compare(
    contenders: Mapping[str, Contender],
    test: NovelAndBase,
    validation: NovelAndBase,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> tuple[Table, Table]:
    """Return the measures of every head, and the differences between every two heads, on the same episodes.

    Args:
        contenders: heads by name; all weights are of the base classes of ``test.base``, in order.
        test: the classes and base images to test on.
        validation: other classes, and other images of base classes, on which the novel bias of ``harmonic_mean:frozen`` is chosen.
        ways: novel classes in an episode.
        shots: support images of each.
        queries: queries of each; an episode has as many base queries in all.
        episodes: how many.
        seed: of the episodes.

    Returns:
        ``{head: {measure: {"mean": m, "ci95": h}}}`` and ``{"a-b": {measure: {"mean": m, "ci95": h}}}``, fractions from 0 to 1.
        A pair ``a-b`` has the later head first.

    Raises:
        ValueError: no heads, weights of other classes, too few classes or images, or scores that are NaN or infinite.
    """
    if not contenders:
        raise ValueError("compare: expected one head or more, got none")
    for name, contender in contenders.items():
        weights = contender.weights
        if len(weights) != test.base.num_classes or validation.base.classes != test.base.classes:
            raise ValueError(
                f"compare: {name!r} has weights of {len(weights)} base classes, the base queries are of "
                f"{test.base.num_classes} classes to test and {validation.base.num_classes} to validate: all three must be "
                "the same classes in the same order"
            )
    samplers = [
        EpisodeSampler(part.novel, ways, shots, queries, open_ways=0, base=part.base, seed=seed)
        for part in (validation, test)
    ]
    margins: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in contenders}
    for name, scores in _scored(contenders, samplers[0], min(episodes, CALIBRATION_EPISODES)):
        margins[name].append((scores.margins.base_if_right, scores.margins.novel_if_right))
    bias = {name: best_bias(*map(torch.cat, zip(*parts, strict=True))) for name, parts in margins.items()}
    found: dict[str, dict[str, list[Tensor]]] = {name: {} for name in contenders}
    for name, scores in _scored(contenders, samplers[1], episodes):
        for measure, value in _measures(scores, bias[name]).items():
            found[name].setdefault(measure, []).append(value)
    values = {name: {measure: torch.cat(parts) for measure, parts in of.items()} for name, of in found.items()}
    names = list(values)
    pairs = [(names[i], names[j]) for i in range(len(names)) for j in range(i)]
    return (
        {name: {measure: interval(value)._asdict() for measure, value in of.items()} for name, of in values.items()},
        {
            f"{a}-{b}": {measure: paired(value, values[b][measure])._asdict() for measure, value in values[a].items()}
            for a, b in pairs
        },
    )


def _scored(
    contenders: Mapping[str, Contender], sampler: EpisodeSampler, episodes: int
) -> Iterator[tuple[str, Scores]]:
    heads = {name: copy.deepcopy(contender.head).eval() for name, contender in contenders.items()}
    weights = {name: contender.weights.detach() for name, contender in contenders.items()}
    scorer = Scorer(sampler.bank, heads, torch.device("cpu"), sampler.base, weights)
    for batch in sampler.batches(episodes, _BATCH_SIZE):
        yield from scorer.score(batch)


def _measures(scores: Scores, bias: float) -> dict[str, Tensor]:
    assert scores.base is not None
    assert scores.base_targets is not None
    count, found = scores.num_base, measured(scores.with_frozen(Frozen(bias=bias)))
    return {
        **{name: value for name, value in found.items() if MEASURES[name].pool is None},
        "base_accuracy:alone": accuracy(scores.base[..., :count], scores.base_targets),
        "novel_accuracy:alone": accuracy(scores.known[..., count:], scores.known_targets - count),
    }
