"""Comparison of heads that know base classes by rows of their own, where base and novel classes share one label space.

``episodes.evaluation.evaluation`` gives every head means of the same base features. Here each brings its own rows: means, or
trained ones.
The episodes and measures are the same, with the two accuracies of Gidaris and Komodakis (2018) besides, in which base and novel
queries are told only among their own kind: ``base_accuracy:alone`` and ``novel_accuracy:alone``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
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
from episodes.reporting.report import Table
from episodes.sampling.sampler import EpisodeSampler
from fewshot_nam.heads import Head

_AT_A_TIME = 32  # episodes


class Contender(NamedTuple):
    """A head and what it knows of base classes.

    Attributes:
        head: as it is before it has seen any class.
        rows: ``(B, D)``, as ``Head.write_base`` takes them.
    """

    head: Head
    rows: Tensor


class Pictures(NamedTuple):
    """Features of the classes to be learned, and of pictures of the base classes that nothing was trained on.

    Attributes:
        novel: what support and novel queries are drawn from.
        base: what base queries are drawn from.
    """

    novel: FeatureBank
    base: FeatureBank


def compare(
    contenders: Mapping[str, Contender],
    test: Pictures,
    validation: Pictures,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> tuple[Table, Table]:
    """Return the measures of every head, and the differences of each to each before it, on the same episodes.

    Args:
        contenders: heads by name; all rows are of the base classes of ``test.base``, in order.
        test: what is tested on.
        validation: other classes, and other pictures of base classes, for the novel bias of ``harmonic_mean:frozen``.
        ways: novel classes an episode.
        shots: support pictures of each.
        queries: queries of each; base queries are as many in all.
        episodes: how many.
        seed: of the episodes.

    Returns:
        ``{head: {measure: {"mean": m, "ci95": h}}}`` and ``{"a-b": {measure: {"mean": m, "ci95": h}}}``, fractions from 0 to 1.

    Raises:
        ValueError: no heads, rows for other classes, classes or pictures too few, or scores that are NaN or infinite.
    """
    if not contenders:
        raise ValueError("compare: expected one head or more, got none")
    for name, (_, rows) in contenders.items():
        if len(rows) != test.base.num_classes or validation.base.classes != test.base.classes:
            raise ValueError(
                f"compare: {name!r} has {len(rows)} rows, the base queries are of {test.base.num_classes} classes to test and "
                f"{validation.base.num_classes} to validate: all three must be the same classes in the same order"
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
    rows = {name: contender.rows.detach() for name, contender in contenders.items()}
    scorer = Scorer(sampler.bank, heads, torch.device("cpu"), sampler.base, rows)
    for batch in sampler.batches(episodes, _AT_A_TIME):
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
