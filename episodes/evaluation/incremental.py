"""Few-shot class-incremental learning: a base session with many images, then sessions of new classes with a few images each.

After each session a head is tested on all classes seen so far, and on classes that have not arrived yet: these are unknown, and
a query of theirs that is accepted is a false alarm. Sources: Tao et al., "Few-Shot Class-Incremental Learning" (2020; the
protocol); Tang et al., "Rethinking Few-shot Class-incremental Learning: Learning from Yourself" (2024; the area over base weights,
there gAcc).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from episodes.data.image_dataset import FileImages
from episodes.data.incremental import Session
from episodes.features.bank import FeatureBank
from episodes.features.extraction import Backbone, extract
from episodes.features.holdout import hold_out
from episodes.metrics.intervals import Interval, interval_of_few
from episodes.metrics.scores import threshold_at_tpr
from episodes.reporting.formatting import Value, markdown_table, percent, text_table
from fewshot_nam.heads import BaseStatistics, Head, create, open_scores
from fewshot_nam.heads.base import Support
from fewshot_nam.heads.open_scores import OpenScore
from fewshot_nam.heads.open_scores.registry import split_name
from fewshot_nam.heads.temperature import fit_temperature
from fewshot_nam.heads.validation import Label
from fewshot_nam.io.atomic import replacing

DEFAULT_HEADS = ("nam-recursive", "nam", "ncm", "teen", "air", "ranpac")
_ROWS = 4096  # queries scored at a time
_EQUAL_SHARE = 0.9  # of the accuracy of the weakest head: right answers that all heads give where alarms are compared
_MISSING = math.nan
_FITTED_ON = 2000  # base images that set the temperature of an open-set score

SESSION_MEASURES: dict[str, str] = {
    "accuracy": "queries of all classes seen so far that are given their own class",
    "base_accuracy": "the same, queries of base classes only",
    "novel_accuracy": "the same, queries of classes that arrived in sessions only",
    "harmonic_mean": "harmonic mean of base_accuracy and novel_accuracy",
    "base_weight_area": "accuracy averaged over what arrived together, and over weights of the base classes from 0 to the number "
    "of groups of ways in them (gAcc of one session)",
    "base_lost": "base queries that were right after the base session and are wrong now",
    "base_to_novel": "base queries that are given a class of a later session",
    "unarrived_fpr@95tpr": "queries of classes that have not arrived yet accepted while at least 95% of those of classes seen are",
    "unarrived_fpr@equal": "the same at the threshold where every head gives equally many right answers, 90% of the weakest head's",
    "unarrived_auroc": "chance that a query of a class seen scores above one of a class that has not arrived yet",
}
"""What is measured after each session, by name."""

TOTALS: dict[str, str] = {
    "A_last": "accuracy after the last session",
    "A_inc": "mean accuracy over all sessions, the base session included",
    "PD": "performance drop: accuracy after the base session less that after the last (lower is better)",
    "base_last": "base_accuracy after the last session",
    "novel_last": "novel_accuracy after the last session",
    "harmonic_last": "harmonic_mean after the last session",
    "gAcc": "mean of base_weight_area over all sessions",
    "base_lost": "base_lost after the last session (lower is better)",
    "unarrived_fpr@95tpr": "mean over the sessions after which classes are still to come (lower is better)",
    "unarrived_fpr@equal": "likewise (lower is better)",
    "unarrived_auroc": "likewise",
}
"""What is measured once for a run through all sessions, by name."""


class SessionFeatures(NamedTuple):
    """The features of one session of a published benchmark.

    Attributes:
        support: of the new classes, to learn from; of all base classes in the first session.
        queries: of all classes seen so far, in the order in which they arrived.
    """

    support: FeatureBank
    queries: FeatureBank


class Run(NamedTuple):
    """One order of classes: what is learned when, and what is tested when.

    Attributes:
        classes: in the order of arrival, the ``base_classes`` base classes first.
        base: ``(n, D)``, images of base classes.
        base_targets: ``(n,)``, positions in ``classes``.
        shots: of each later session, features ``(k, D)`` and positions ``(k,)`` in ``classes``.
        queries: ``(q, D)``, all that is ever tested.
        query_targets: ``(q,)``, positions in ``classes``.
        known: for each session, positions in ``queries`` of those of classes seen so far.
        unarrived: likewise, of classes that come later.
    """

    classes: list[Label]
    base_classes: int
    base: Tensor
    base_targets: Tensor
    shots: list[tuple[Tensor, Tensor]]
    queries: Tensor
    query_targets: Tensor
    known: list[Tensor]
    unarrived: list[Tensor]

    @property
    def seen(self) -> list[int]:
        """How many classes are known after each session."""
        counts = [self.base_classes]
        for _, targets in self.shots:
            counts.append(counts[-1] + len(set(targets.tolist())))
        return counts


class Answers(NamedTuple):
    """What a head answers after one session.

    Attributes:
        best: ``(k,)``, the largest score of each known query.
        answer: ``(k,)``, its class.
        unarrived: ``(u,)``, the largest score of each query of a class that comes later.
    """

    best: Tensor
    answer: Tensor
    unarrived: Tensor


@dataclass(frozen=True)
class IncrementalReport:
    """How heads do session by session.

    Attributes:
        config: settings of the evaluation.
        seen: how many classes are known after each session.
        sessions: by head and measure of ``SESSION_MEASURES``, for each session a mean over class orders with its 95% interval; the
            mean is NaN where there is nothing to measure, such as novel queries before a novel class.
        totals: by head and measure of ``TOTALS``, a mean over class orders with its 95% interval.
        paired: ``"a - b"`` for the first head and each other, as ``totals``: differences on the same class orders.
        seconds: that each head took, all orders together: to learn and to answer.
    """

    config: dict[str, Any]
    seen: list[int]
    sessions: dict[str, dict[str, list[Value]]]
    totals: dict[str, dict[str, Value]]
    paired: dict[str, dict[str, Value]]
    seconds: dict[str, float]

    def table(self) -> str:
        """Return the tables for a terminal."""
        return "\n".join(line for title, rows in self._tables() for line in (title, *text_table(rows), ""))

    def markdown(self) -> str:
        """Return the tables in Markdown, with what the measures mean."""
        lines = [self._title(), ""]
        for title, rows in self._tables():
            lines += [f"**{title}**", "", *markdown_table(rows), ""]
        lines += [f"- `{name}`: {meaning}." for name, meaning in {**SESSION_MEASURES, **TOTALS}.items()]
        return "\n".join(lines) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Return everything but times as JSON can hold it, with ``null`` for NaN."""
        parts = {name: getattr(self, name) for name in ("config", "seen", "sessions", "totals", "paired")}
        found: dict[str, Any] = _without_nan(parts)
        return found

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``as_dict`` to a file, whole or not at all."""
        with replacing(Path(path)) as unfinished:
            unfinished.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")

    def save_markdown(self, path: str | os.PathLike[str]) -> None:
        """Write ``markdown`` to a file, whole or not at all."""
        with replacing(Path(path)) as unfinished:
            unfinished.write_text(self.markdown(), encoding="utf-8")

    def _title(self) -> str:
        config = self.config
        after = f"{len(self.seen) - 1} sessions of {config['ways']}-way {config['shots']}-shot"
        orders = f"{config['orders']} class orders, seed {config['seed']}" if config["seeded"] else "published sessions"
        return (
            f"{self.seen[0]} base classes, then {after}: {self.seen[-1]} classes; {orders}. Percent, 95% intervals over orders "
            "(Student's t)."
        )

    def _tables(self) -> list[tuple[str, list[list[str]]]]:
        columns = [f"{count}" for count in self.seen]
        found = [
            (
                "Over all sessions",
                [
                    ["", *TOTALS],
                    *([name, *(percent(of[key]) for key in TOTALS)] for name, of in self.totals.items()),
                ],
            )
        ]
        if self.paired:
            rows = [[name, *(percent(of[key], signed=True) for key in TOTALS)] for name, of in self.paired.items()]
            found.append(("Paired differences", [["", *TOTALS], *rows]))
        for measure in ("accuracy", "harmonic_mean", "unarrived_fpr@equal"):
            rows = [[name, *(_short(value) for value in of[measure])] for name, of in self.sessions.items()]
            found.append((f"{measure} by number of classes", [["", *columns], *rows]))
        return found


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
            the looks of the head; remove the directory after a change of a head's code. ``None`` keeps nothing.

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
        kept = [None if keep_answers is None else _place(Path(keep_answers), f"{name} {head!r}", run) for run in runs]
        found = [None if place is None else _read_answers(place) for place in kept]
        score = None
        if None in found:  # the base session is the same in all orders
            head.eval().write_base_images(first.base, [first.classes[i] for i in first.base_targets.tolist()])
            score = None if score_name is None else _fitted_score(score_name, head, first)
        answers[name] = []
        for number, (run, place, read) in enumerate(zip(runs, kept, found, strict=True)):
            last = None not in found[number + 1 :]
            its = read or _answers(head if last else copy.deepcopy(head), run, score)
            answers[name].append(its)
            if place is not None and read is None:
                _write_answers(place, its)
            if progress:
                print(f"  {name}: order {number + 1} of {len(runs)}", file=sys.stderr, flush=True)
        seconds[name] = time.perf_counter() - began
    measured = [_measured({name: answers[name][i] for name in names}, run) for i, run in enumerate(runs)]
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
    return _report(config, first.seen, names, measured, seconds)


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
    other = [name for name in base_queries.classes if name not in set(base.classes)]
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


def _place(directory: Path, head: str, run: Run) -> Path:
    """Return the file for the answers of a head to a run."""
    digest = hashlib.sha256(head.encode())
    for values in (
        run.base,
        run.base_targets,
        run.queries,
        run.query_targets,
        *(x for each in run.shots for x in each),
    ):
        digest.update(values.contiguous().cpu().numpy().tobytes())
    return directory / f"{digest.hexdigest()[:32]}.safetensors"


def _write_answers(path: Path, answers: list[Answers]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{i} {key}": value for i, each in enumerate(answers) for key, value in each._asdict().items()}
    with replacing(path) as unfinished:
        save_file({key: value.contiguous() for key, value in tensors.items()}, unfinished)


def _read_answers(path: Path) -> list[Answers] | None:
    if not path.exists():
        return None
    tensors = load_file(path)
    count = len(tensors) // len(Answers._fields)
    return [Answers(*(tensors[f"{i} {key}"] for key in Answers._fields)) for i in range(count)]


@torch.inference_mode()
def _fitted_score(name: str, head: Head, run: Run) -> OpenScore:
    """Return an open-set score that knows the base classes, its scale set by what the head answers to base images."""
    score = open_scores.create(name)
    score.fit_classes(run.base, run.base_targets, run.base_classes)
    if score.uses_scores:
        step = max(1, len(run.base) // _FITTED_ON)
        images, targets = run.base[::step], run.base_targets[::step]
        column = {label: i for i, label in enumerate(run.classes)}
        scores = head(images)[:, torch.tensor([column[label] for label in head.classes]).argsort()]
        if score.fits_temperature:
            score.temperature = torch.tensor(fit_temperature(scores, targets)).to(scores)
        score.fit_scores(scores.unsqueeze(0), score.embed(images).unsqueeze(0))
    return score


def _support(score: OpenScore, run: Run, sessions: int) -> Support:
    """Return what an open-set score may know after ``sessions`` sessions: base prototypes, and the shots since then."""
    counts = torch.bincount(run.base_targets, minlength=run.base_classes).unsqueeze(-1)
    sums = torch.zeros(run.base_classes, run.base.shape[-1], dtype=torch.float64)
    means = (sums.index_add(0, run.base_targets, run.base.double()) / counts).to(run.base)
    shots = [run.base[:0], *(features for features, _ in run.shots[:sessions])]
    targets = torch.cat([run.base_targets[:0], *(its for _, its in run.shots[:sessions])])
    columns = run.seen[sessions]
    return Support(score.embed(torch.cat(shots)).unsqueeze(0), targets, score.embed(means), columns)


@torch.inference_mode()
def _answers(head: Head, run: Run, score: OpenScore | None = None) -> list[Answers]:
    """Return what a head that knows the base classes answers after each session; a score says how sure to be."""
    looked_at = None if score is None else score.embed(run.queries)
    embedded: Tensor | None = None
    more = getattr(head, "_score_more", None)  # of heads whose scores no later class changes: each is computed once
    kept: Tensor | None = None
    found = []
    for number, (known, unarrived) in enumerate(zip(run.known, run.unarrived, strict=True)):
        if number:
            features, targets = run.shots[number - 1]
            head.write(features, [run.classes[i] for i in targets.tolist()])
        snapshot = head._snapshot()
        if embedded is None:  # what is done to each query by itself depends on no class
            rows = run.queries.to(snapshot.dtype)
            embedded = torch.cat([head._embed(some.unsqueeze(0)) for some in torch.split(rows, _ROWS)], dim=1).squeeze(
                0
            )
        column = {name: i for i, name in enumerate(run.classes)}
        of_column = torch.tensor([column[name] for name in snapshot.classes])
        asked = torch.cat([known, unarrived])
        learned = None if score is None else score.learn(_support(score, run, number))
        if more is not None:
            first = 0 if kept is None else kept.shape[1]
            added = [
                more(snapshot.learned, some.unsqueeze(0), first).squeeze(0) for some in torch.split(embedded, _ROWS)
            ]
            kept = torch.cat(added) if kept is None else torch.cat([kept, torch.cat(added)], dim=1)
        best, answer = [], []
        for some in torch.split(asked, _ROWS):
            scores = (
                head._score(snapshot.learned, embedded[some].unsqueeze(0)).squeeze(0) if kept is None else kept[some]
            )
            if not bool(scores.isfinite().all()):
                raise ValueError(f"{type(head).__name__} gave scores that are NaN or infinite for these features")
            largest, place = scores.double().max(dim=-1)
            if score is not None and looked_at is not None:
                in_order = scores[:, of_column.argsort()].unsqueeze(0)
                largest = score(in_order, learned, looked_at[some].unsqueeze(0)).squeeze(0).double()
            best.append(largest)
            answer.append(of_column[place])
        largest = torch.cat(best)
        found.append(Answers(largest[: len(known)], torch.cat(answer)[: len(known)], largest[len(known) :]))
    return found


def _measured(answers: Mapping[str, list[Answers]], run: Run) -> dict[str, dict[str, Tensor]]:
    """Return by head and measure the value after each session, ``(S,)``; NaN where there is nothing to measure."""
    right: dict[str, list[Tensor]] = {
        name: [each.answer == run.query_targets[known] for each, known in zip(of, run.known, strict=True)]
        for name, of in answers.items()
    }
    found = {
        name: {key: torch.full((len(run.known),), _MISSING).double() for key in SESSION_MEASURES} for name in answers
    }
    per_session = [(end - begin) for begin, end in zip(run.seen, run.seen[1:], strict=False)]
    for session, known in enumerate(run.known):
        base = run.query_targets[known] < run.base_classes
        weakest = min(float(of[session].double().mean()) for of in right.values())
        for name, of in answers.items():
            mine, row, each = right[name][session], found[name], of[session]
            row["accuracy"][session] = mine.double().mean()
            base_accuracy = mine[base].double().mean()
            row["base_accuracy"][session] = base_accuracy
            before = right[name][0][run.query_targets[run.known[0]] < run.base_classes]
            if len(before) == int(base.sum()):  # the same images, or those that stand for them
                row["base_lost"][session] = (before & ~mine[base]).double().mean()
            row["base_to_novel"][session] = (each.answer[base] >= run.base_classes).double().mean()
            if session:
                novel_accuracy = mine[~base].double().mean()
                row["novel_accuracy"][session] = novel_accuracy
                total = base_accuracy + novel_accuracy
                row["harmonic_mean"][session] = 2 * base_accuracy * novel_accuracy / total if total else 0.0
                row["base_weight_area"][session] = _base_weight_area(
                    base_accuracy, novel_accuracy, session, run.base_classes / (sum(per_session) / len(per_session))
                )
            else:
                row["base_weight_area"][session] = base_accuracy
            if len(each.unarrived):
                threshold = threshold_at_tpr(each.best.unsqueeze(0))[0]
                row["unarrived_fpr@95tpr"][session] = (each.unarrived >= threshold).double().mean()
                row["unarrived_auroc"][session] = _auroc(each.best, each.unarrived)
                needed = max(math.ceil(_EQUAL_SHARE * weakest * len(mine) - 1e-9), 1)
                of_right = each.best[mine].sort(descending=True).values
                if len(of_right) >= needed:
                    row["unarrived_fpr@equal"][session] = (each.unarrived >= of_right[needed - 1]).double().mean()
    return found


def _base_weight_area(base: Tensor, novel: Tensor, sessions: int, ratio: float) -> Tensor:
    """Return the mean of ``(a base + s novel) / (a + s)`` over weights ``a`` from 0 to ``ratio``, for ``s`` novel sessions."""
    # The integral of (a b + s n) / (a + s) over a is b a + s (n - b) log(a + s).
    return base + sessions * (novel - base) * math.log((ratio + sessions) / sessions) / ratio


def _auroc(known: Tensor, unknown: Tensor) -> Tensor:
    """Return P(known > unknown) + P(equal) / 2."""
    ordered = unknown.sort().values
    below = torch.searchsorted(ordered, known, right=False) + torch.searchsorted(ordered, known, right=True)
    return below.double().mean() / (2 * len(unknown))


def _report(
    config: dict[str, Any],
    seen: list[int],
    names: list[str],
    measured: list[dict[str, dict[str, Tensor]]],
    seconds: dict[str, float],
) -> IncrementalReport:
    sessions: dict[str, dict[str, list[Value]]] = {}
    totals: dict[str, dict[str, Tensor]] = {}
    for name in names:
        values = {key: torch.stack([of[name][key] for of in measured]) for key in SESSION_MEASURES}  # (orders, S)
        sessions[name] = {key: [_value(column) for column in of.T] for key, of in values.items()}
        accuracy = values["accuracy"]
        totals[name] = {
            "A_last": accuracy[:, -1],
            "A_inc": accuracy.mean(dim=1),
            "PD": accuracy[:, 0] - accuracy[:, -1],
            "base_last": values["base_accuracy"][:, -1],
            "novel_last": values["novel_accuracy"][:, -1],
            "harmonic_last": values["harmonic_mean"][:, -1],
            "gAcc": values["base_weight_area"].mean(dim=1),
            "base_lost": values["base_lost"][:, -1],
            **{
                key: values[key].nanmean(dim=1)
                for key in ("unarrived_fpr@95tpr", "unarrived_fpr@equal", "unarrived_auroc")
            },
        }
    return IncrementalReport(
        config,
        seen,
        sessions,
        {name: {key: _value(value) for key, value in of.items()} for name, of in totals.items()},
        {
            f"{names[0]} - {name}": {key: _value(totals[names[0]][key] - totals[name][key]) for key in TOTALS}
            for name in names[1:]
        },
        seconds,
    )


def _value(values: Tensor) -> Value:
    found: Interval = interval_of_few(values)
    return {"mean": found.mean, "ci95": found.ci95}


def _short(value: Value) -> str:
    return "" if math.isnan(value["mean"]) else f"{100 * value['mean']:.1f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
