"""What is measured in incremental sessions, and the report of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from episodes.evaluation.incremental_answers import Answers, Run
from episodes.metrics.intervals import Interval, interval
from episodes.metrics.scores import threshold_at_tpr
from episodes.reporting.formatting import Value, markdown_table, percent, text_table
from fewshot_nam.io.atomic import replacing

_EQUAL_SHARE = 0.9  # of the accuracy of the weakest head: right answers that all heads give where alarms are compared
_MISSING = math.nan

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
        notes: what is to be known about the figures.
    """

    config: dict[str, Any]
    seen: list[int]
    sessions: dict[str, dict[str, list[Value]]]
    totals: dict[str, dict[str, Value]]
    paired: dict[str, dict[str, Value]]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """Return the tables for a terminal."""
        tables = [line for title, rows in self._tables() for line in (title, *text_table(rows), "")]
        return "\n".join([*tables, *(f"note: {note}\n" for note in self.notes)])

    def markdown(self) -> str:
        """Return the tables in Markdown, with what the measures mean."""
        lines = [self._title(), "", *(f"**Note:** {note}\n" for note in self.notes)]
        for title, rows in self._tables():
            lines += [f"**{title}**", "", *markdown_table(rows), ""]
        lines += [f"- `{name}`: {meaning}." for name, meaning in {**SESSION_MEASURES, **TOTALS}.items()]
        return "\n".join(lines) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Return everything but times as JSON can hold it, with ``null`` for NaN."""
        parts = {name: getattr(self, name) for name in ("config", "seen", "sessions", "totals", "paired")}
        found: dict[str, Any] = _without_nan(parts)
        return {**found, "notes": list(self.notes)} if self.notes else found

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


def measured_by_head(answers: Mapping[str, list[Answers]], run: Run) -> dict[str, dict[str, Tensor]]:
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


def report_of(
    config: dict[str, Any],
    seen: list[int],
    names: list[str],
    measured: list[dict[str, dict[str, Tensor]]],
    seconds: dict[str, float],
) -> IncrementalReport:
    """Return the report of ``measured``, what ``measured_by_head`` found for each order of classes."""
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
    found: Interval = interval(values)
    return {"mean": found.mean, "ci95": found.ci95}


def _short(value: Value) -> str:
    return "" if math.isnan(value["mean"]) else f"{100 * value['mean']:.1f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
