"""Few-shot class-incremental learning: a base session with many images, then sessions of new classes with a few images each.

After each session a head is tested on all classes seen so far, and on classes that have not arrived yet: these are unknown, and
a query of theirs that is accepted is a false alarm. Sources: Tao et al., "Few-Shot Class-Incremental Learning" (2020; the
protocol); Tang et al., "Rethinking Few-shot Class-incremental Learning: Learning from Yourself" (2024; the area over base weights,
there gAcc).
"""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from episodes.data.image_dataset import FileImages
from episodes.data.incremental import Session
from episodes.evaluation.incremental_answers import (
    Answers,
    Run,
    answers_of,
    fitted_score,
    place_of,
    read_answers,
    write_answers,
)
from episodes.evaluation.incremental_report import (
    SESSION_MEASURES,
    TOTALS,
    IncrementalReport,
    measured_by_head,
    report_of,
)
from episodes.features.bank import FeatureBank
from episodes.features.extraction import Backbone, extract
from episodes.features.holdout import hold_out
from episodes.features.seen_in_training import seen_in_training
from fewshot_nam.heads import BaseStatistics, Head, create
from fewshot_nam.heads.open_scores.registry import split_name

__all__ = [
    "DEFAULT_HEADS",
    "SESSION_MEASURES",
    "TOTALS",
    "IncrementalReport",
    "SessionFeatures",
    "evaluate_incremental",
    "session_features",
]

DEFAULT_HEADS = ("nam-recursive", "nam", "ncm", "teen", "air", "ranpac")


class SessionFeatures(NamedTuple):
    """The features of one session of a published benchmark.

    Attributes:
        support: of the new classes, to learn from; of all base classes in the first session.
        queries: of all classes seen so far, in the order in which they arrived.
    """

    support: FeatureBank
    queries: FeatureBank


def evaluate_incremental(
    base: FeatureBank | None = None,
    novel: FeatureBank | None = None,
    *,
    base_queries: FeatureBank | None = None,
    ways: int = 5,
    shots: int = 5,
    sessions: int | Sequence[SessionFeatures] | None = None,
    heads: Sequence[str] | Mapping[str, Head] = DEFAULT_HEADS,
    orders: int = 5,
    queries: int | None = None,
    seed: int = 0,
    base_statistics: BaseStatistics | None = None,
    progress: bool = False,
    keep_answers: str | os.PathLike[str] | None = None,
) -> IncrementalReport:
    """Return how well heads learn session after session, and how often they raise a false alarm meanwhile.

    Every head learns all images of the base classes (``Head.write_base_images``), then ``ways`` new classes a session from
    ``shots`` images each. Nothing is trained. All heads get the same images in the same order.

    Args:
        base: features of the images of base classes to learn from.
        novel: features of the images of classes that arrive later.
        base_queries: features of other images of the base classes, all of which are tested; ``None`` holds out a fifth of ``base``.
        ways: classes that arrive in a session.
        shots: images to learn each of them from.
        sessions: how many sessions follow the base session; ``None`` for as many as ``novel`` has classes for. Classes for which no
            session is left never arrive, and stay unknown. Or the sessions of a published benchmark, in place of ``base``,
            ``novel``, ``base_queries``, ``ways``, ``shots``, ``orders`` and ``queries``.
        heads: names from the registry of heads, or heads that have learned nothing under names of your choice. The first is
            compared with each other one. A name may end in "+" and the name of an open-set score, such as ``"ncm+knn"``: the
            answers are the head's, and the score, fitted on ``base``, says which are accepted.
        orders: how many orders of the classes to average over; each has other shots and other novel queries too.
        queries: query images of each novel class; ``None`` for all that are no shots.
        seed: of the orders. Order ``i`` is the same for all numbers of orders and sessions.
        base_statistics: what heads may know of base classes; ``None`` for the statistics of the images that they learn.
        progress: print a line to stderr when a head has finished an order.
        keep_answers: a directory where the answers of each head in each order are kept, so that a run that was stopped goes on
            where it was, and a further head costs no more than itself. What is kept is found again by the features, the shots and
            the settings and tensors of the head; remove the directory after a change of a head's code. ``None`` keeps nothing.

    Raises:
        ValueError: missing banks, too few classes or images, banks whose classes or widths do not fit, no head, or a
            transductive one.

    Example:
        >>> features = torch.eye(8).repeat_interleave(12, 0) + 0.1 * torch.rand(96, 8, generator=torch.manual_seed(0))
        >>> bank = FeatureBank(features, torch.arange(8).repeat_interleave(12))
        >>> base, novel = bank.select_classes(range(4)), bank.select_classes(range(4, 8))
        >>> report = evaluate_incremental(base, novel, ways=2, shots=3, heads=["cosine"], orders=2)
        >>> report.seen, report.totals["cosine"]["A_last"]["mean"]
        ([4, 6, 8], 1.0)
    """
    published = sessions is not None and not isinstance(sessions, int)
    if published:
        if base is not None or novel is not None or base_queries is not None:
            raise ValueError("evaluate_incremental: published sessions bring their own images; leave the banks out")
        runs = [_published_run(sessions)]  # type: ignore[arg-type]
        queried = sessions[0].queries  # type: ignore[index]
    else:
        if base is None or novel is None:
            raise ValueError("evaluate_incremental: give base and novel, or published sessions")
        for word, number in {"ways": ways, "shots": shots, "orders": orders}.items():
            if number < 1:
                raise ValueError(f"evaluate_incremental: {word} must be at least 1, got {number}")
        if seed < 0:
            raise ValueError(f"evaluate_incremental: seed must be at least 0, got {seed}")
        count = _session_count(novel, ways, sessions)  # type: ignore[arg-type]
        base, base_queries = (base, base_queries) if base_queries is not None else hold_out(base, 0.2, seed)
        _check_banks(base, novel, base_queries, shots, queries)
        runs = [_drawn(base, novel, base_queries, ways, shots, count, queries, seed, i) for i in range(orders)]
        queried = base_queries
    first = runs[0]
    names = [heads] if isinstance(heads, str) else list(heads)
    if not names:
        raise ValueError("evaluate_incremental: heads is empty: name at least one head")
    if base_statistics is None and not isinstance(heads, Mapping):
        base_statistics = BaseStatistics.from_targets(first.base, first.base_targets, first.base_classes)
    answers: dict[str, list[list[Answers]]] = {}
    seconds: dict[str, float] = {}
    for name in names:
        began = time.perf_counter()
        inner, score_name = (name, None) if isinstance(heads, Mapping) else split_name(name)
        head = copy.deepcopy(heads[name]) if isinstance(heads, Mapping) else create(inner, base_statistics)
        if head.transductive:
            raise ValueError(
                f"evaluate_incremental: {name!r} is transductive: its answers depend on which queries are asked together, and "
                "images arrive one by one here; take another head"
            )
        kept = [None if keep_answers is None else place_of(Path(keep_answers), name, head, run) for run in runs]
        found = [None if place is None else read_answers(place) for place in kept]
        score = None
        if None in found:  # the base session is the same in all orders
            head.eval().write_base_images(first.base, [first.classes[i] for i in first.base_targets.tolist()])
            score = None if score_name is None else fitted_score(score_name, head, first)
        answers[name] = []
        for number, (run, place, read) in enumerate(zip(runs, kept, found, strict=True)):
            last = None not in found[number + 1 :]
            its = read or answers_of(head if last else copy.deepcopy(head), run, score)
            answers[name].append(its)
            if place is not None and read is None:
                write_answers(place, its)
            if progress:
                print(f"  {name}: order {number + 1} of {len(runs)}", file=sys.stderr, flush=True)
        seconds[name] = time.perf_counter() - began
    measured = [measured_by_head({name: answers[name][i] for name in names}, run) for i, run in enumerate(runs)]
    config = {
        "protocol": "incremental",
        "seeded": not published,
        "ways": len(set(first.shots[0][1].tolist())) if first.shots else 0,
        "shots": int(torch.bincount(first.shots[0][1]).max()) if first.shots else 0,
        "orders": len(runs),
        "seed": seed,
        "base_images": len(first.base),
        "base_queries": int((first.query_targets[first.known[0]] < first.base_classes).sum()),
        "heads": names,
    }
    report = report_of(config, first.seen, names, measured, seconds)
    return dataclasses.replace(report, notes=tuple(seen_in_training(queried.provenance)))


def session_features(backbone: Backbone, sessions: Sequence[Session], **options: Any) -> list[SessionFeatures]:
    """Return the features of the sessions of a published benchmark; an image that many sessions test is read once.

    Args:
        backbone: as for ``episodes.extract``.
        sessions: as ``episodes.data.incremental.open_sessions`` returns them.
        options: of ``episodes.extract``.
    """
    files: dict[str, int] = {}
    for part in (part for session in sessions for part in session):
        if not isinstance(part, FileImages):
            return [SessionFeatures(*(extract(backbone, each, **options) for each in session)) for session in sessions]
        for file in part.files:
            files.setdefault(str(file), len(files))
    first = sessions[0].support
    assert isinstance(first, FileImages)
    whole = FileImages(f"{first.name}/all", first.root, list(files), np.zeros(len(files), dtype=np.int64), ["any"])
    bank = extract(backbone, whole, **options)
    return [
        SessionFeatures(
            *(
                FeatureBank(
                    bank.features[[files[str(file)] for file in part.files]],  # type: ignore[attr-defined]
                    torch.as_tensor(part.labels),
                    part.classes,
                    provenance=bank.provenance,
                    check=False,
                )
                for part in session
            )
        )
        for session in sessions
    ]


def _session_count(novel: FeatureBank, ways: int, sessions: int | None) -> int:
    most = novel.num_classes // ways
    count = most if sessions is None else sessions
    if not 1 <= count <= most:
        raise ValueError(
            f"evaluate_incremental: {novel.num_classes} novel classes are not enough for a session of {ways}"
            if not most
            else f"evaluate_incremental: {novel.num_classes} novel classes are enough for 1 to {most} sessions of {ways} classes, "
            f"got sessions={sessions}"
        )
    return count


def _check_banks(
    base: FeatureBank, novel: FeatureBank, base_queries: FeatureBank, shots: int, queries: int | None
) -> None:
    if len({bank.feature_dim for bank in (base, novel, base_queries)}) > 1:
        raise ValueError(
            "evaluate_incremental: base, novel and base_queries need features of one width, got "
            f"{base.feature_dim}, {novel.feature_dim} and {base_queries.feature_dim}"
        )
    both = set(base.classes) & set(novel.classes)
    if both:
        raise ValueError(f"evaluate_incremental: {sorted(map(str, both))[0]!r} is a base class and a novel class")
    of_base = set(base.classes)
    other = [name for name in base_queries.classes if name not in of_base]
    if other:
        raise ValueError(f"evaluate_incremental: {other[0]!r} is a class of base_queries and not of base")
    if int(base.counts.min()) < 1:
        raise ValueError(f"evaluate_incremental: {base.classes[int(base.counts.argmin())]!r} has no base image")
    fewest = int(novel.counts.min())
    if fewest < shots + (queries or 1) or (queries is not None and queries < 1):
        raise ValueError(
            f"evaluate_incremental: {shots} shots and {queries or 'one or more'} queries of each novel class are needed, and "
            f"{novel.classes[int(novel.counts.argmin())]!r} has {fewest} images"
        )


def _drawn(
    base: FeatureBank,
    novel: FeatureBank,
    base_queries: FeatureBank,
    ways: int,
    shots: int,
    count: int,
    queries: int | None,
    seed: int,
    number: int,
) -> Run:
    """Return one order of the classes, with its shots and queries."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    order = torch.randperm(novel.num_classes, generator=generator).tolist()
    support, asked, asked_targets = [], [], []
    for place, label in enumerate(order):
        items = novel.order[novel.starts[label] : novel.starts[label] + novel.counts[label]]
        items = items[torch.randperm(len(items), generator=generator)]
        support.append(novel.features[items[:shots]].float())
        rest = items[shots:] if queries is None else items[shots : shots + queries]
        asked.append(novel.features[rest].float())
        asked_targets.append(torch.full((len(rest),), base.num_classes + place))
    position = {name: i for i, name in enumerate(base.classes)}
    of_base = torch.tensor([position[name] for name in base_queries.classes])[base_queries.labels]
    targets = torch.cat([of_base, *asked_targets])
    late = [base.num_classes + ways * i for i in range(count + 1)]
    return Run(
        [*base.classes, *(novel.classes[label] for label in order)],
        base.num_classes,
        base.features.float(),
        base.labels,
        [
            (
                torch.cat(support[ways * i : ways * (i + 1)]),
                (base.num_classes + torch.arange(ways * i, ways * (i + 1))).repeat_interleave(shots),
            )
            for i in range(count)
        ],
        torch.cat([base_queries.features.float(), *asked]),
        targets,
        [(targets < end).nonzero().flatten() for end in late],
        [(targets >= end).nonzero().flatten() for end in late],
    )


def _published_run(sessions: Sequence[SessionFeatures]) -> Run:
    """Return the run of a published benchmark; its queries may be others in each session."""
    classes = [name for session in sessions for name in session.support.classes]
    if len(set(classes)) != len(classes):
        raise ValueError("evaluate_incremental: a class arrives in two sessions")
    position = {name: i for i, name in enumerate(classes)}
    shots, seen = [], 0
    features, targets, known, first = [], [], [], 0
    for number, session in enumerate(sessions):
        seen += session.support.num_classes
        wrong = [name for name in session.queries.classes if position.get(name, seen) >= seen]
        if wrong:
            raise ValueError(f"evaluate_incremental: session {number} tests {wrong[0]!r}, which has not arrived yet")
        its = torch.tensor([position[name] for name in session.support.classes])[session.support.labels]
        shots.append((session.support.features.float(), its))
        features.append(session.queries.features.float())
        targets.append(torch.tensor([position[name] for name in session.queries.classes])[session.queries.labels])
        known.append(torch.arange(first, first + len(session.queries)))
        first += len(session.queries)
    every = torch.cat(targets)
    counts = torch.tensor([session.support.num_classes for session in sessions]).cumsum(0).tolist()
    unarrived = [known[-1][every[known[-1]] >= count] for count in counts]
    return Run(classes, counts[0], shots[0][0], shots[0][1], shots[1:], torch.cat(features), every, known, unarrived)
