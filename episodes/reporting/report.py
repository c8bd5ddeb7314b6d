"""What an evaluation found, and how it is shown: a table for the terminal, Markdown, and JSON."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from episodes.metrics.registry import MEASURES, short_table
from episodes.training.meta_learning import META_LEARNED
from fewshot_nam.heads import available
from fewshot_nam.io.atomic import replacing

Table = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Report:
    """The result of ``evaluate``.

    Attributes:
        config: what was run: protocol, numbers, seed, heads with their settings, banks.
        results: ``{head: {measure: {"mean": m, "ci95": h}}}``, fractions from 0 to 1; the 95% interval is ``m - h`` to ``m + h``
            over episodes (classes and pictures stay those of the bank).
        paired: ``{"a-b": {measure: {"mean": m, "ci95": h}}}``, the difference of head a to head b on the same episodes.
        seconds: how long it took.
        notes: what a reader must know besides.
    """

    config: dict[str, Any]
    results: Table
    paired: Table
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return config, results and paired; without the time, so that two runs can be compared as text."""
        content = {"config": self.config, "results": self.results, "paired": self.paired, "notes": self.notes}
        return {key: _strict(value) for key, value in content.items()}

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_dict`` as JSON, whole or not at all."""
        _write(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")

    def save_markdown(self, path: str | os.PathLike[str]) -> None:
        """Write ``markdown`` to a file, whole or not at all."""
        _write(path, self.markdown())

    @property
    def columns(self) -> list[str]:
        """The measures of the short table, in its order."""
        return [name for name in short_table(self.config["protocol"]) if name in self._measured]

    @property
    def frozen_columns(self) -> list[str]:
        """The measures of the short table with what was chosen on validation classes; none without such classes."""
        return [f"{name}:frozen" for name in ["tpr", *self.columns] if f"{name}:frozen" in self._measured]

    @property
    def measures(self) -> list[str]:
        """All measures there are, in the order of ``MEASURES``."""
        return [name for name in MEASURES if name in self._measured]

    def title(self) -> str:
        """Return one line on what was run."""
        config = self.config
        return f"{config['ways']}-way {config['shots']}-shot, {config['protocol']} protocol, {config['episodes']:,} episodes"

    def facts(self) -> list[tuple[str, str]]:
        """Return what was run, as pairs of a word and a line."""
        config = self.config
        facts = [("data", _bank_line(config["bank"]))]
        if config["base"] is not None:
            facts.append(("base", _bank_line(config["base"])))
        if config["validation"] is not None:
            facts.append(("validation", _bank_line(config["validation"])))
        if "backbone" in config["bank"]:
            facts.append(("backbone", f"{config['bank']['backbone']}, {config['bank']['features']} features"))
        episode = f"{config['ways']} known classes x ({config['shots']} to learn from + {config['queries']} queries)"
        if config["open_ways"]:
            episode += f", {config['open_ways']} unknown classes x {config['queries']} queries"
        source = f"seed {config['seed']}" if config["seed"] is not None else "drawn beforehand"
        facts.append(("episode", f"{episode}; {source}"))
        return facts

    def table(self) -> str:
        """Return the report for a terminal: what was run, the results, the differences, what the names mean."""
        lines = [self.title(), *(f"  {word:<11}{line}" for word, line in self.facts()), ""]
        lines += self._blocks(self.columns)
        frozen = self.frozen_columns
        if frozen:
            lines += ["", "thresholds and bias chosen on validation classes, then frozen", *self._blocks(frozen)]
        if self.reference:
            lines += [
                "",
                f"* the interval of the difference excludes 0: better (+*) or worse (-*) than {self.reference}",
            ]
        meanings = {**available(), **META_LEARNED}
        lines += ["", *(f"  {name:<16} {meanings[name]}" for name in self.results if name in meanings)]
        lines += [
            "",
            *(f"  {name:<16} {MEASURES[name].better} is better: {MEASURES[name].meaning}" for name in self.columns),
        ]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """Return the report as Markdown, with every measure."""
        measures = self.measures
        lines = [f"# {self.title()}", "", *(f"- {word}: {line}" for word, line in self.facts()), ""]
        lines += ["Percent, mean ± 95% interval over episodes.", ""]
        lines += _markdown_table([["", *map(heading, measures)], *self._rows(self.results, measures)])
        if self.paired:
            lines += ["", "Differences on the same episodes, percentage points; * where the interval excludes 0.", ""]
            lines += _markdown_table([["", *map(heading, measures)], *self._rows(self.paired, measures, signed=True)])
        lines += [
            "",
            *(f"- `{name}`: {MEASURES[name].better} is better; {MEASURES[name].meaning}." for name in measures),
        ]
        lines += [f"- Note: {note}." for note in self.notes]
        return "\n".join(lines) + "\n"

    @property
    def _measured(self) -> dict[str, dict[str, float]]:
        return next(iter(self.results.values()))

    @property
    def reference(self) -> str | None:
        """The head that the others are compared with in the short table, if there is one."""
        return "cosine" if "cosine" in self.results and len(self.results) > 1 else None

    def _blocks(self, measures: list[str]) -> list[str]:
        """Return the lines of one table: results, and below them the differences to the reference."""
        rows = [["percent, mean ± 95% interval", *map(heading, measures)], *self._rows(self.results, measures)]
        if self.reference:
            heads = [head for head in self.results if head != self.reference]
            differences = {head: self.paired[f"{head}-{self.reference}"] for head in heads}
            rows += [[f"minus {self.reference}, same episodes", *[""] * len(measures)]]
            rows += self._rows(differences, measures, signed=True)
        lines = [line.rstrip() for line in _aligned(rows)]
        return [*lines[: len(self.results) + 1], *([""] if self.reference else []), *lines[len(self.results) + 1 :]]

    def _rows(self, results: Table, measures: list[str], signed: bool = False) -> list[list[str]]:
        return [[head, *(cell(name, found[name], signed) for name in measures)] for head, found in results.items()]


def cell(measure: str, value: dict[str, float], signed: bool = False) -> str:
    """Return a value as percent with its interval; a signed one, a difference, is marked where its interval excludes 0."""
    mean, ci95 = 100 * value["mean"], 100 * value["ci95"]
    width = "n/a" if math.isnan(ci95) else f"{ci95:.1f}"
    if not signed:
        return "n/a" if math.isnan(mean) else f"{mean:.1f} ± {width}"
    mark = ""
    if abs(mean) > ci95:
        better = (mean > 0) == (MEASURES[measure].better == "higher")
        mark = " +*" if better else " -*"
    return "n/a" if math.isnan(mean) else f"{mean:+.1f} ± {width}{mark}"


def heading(measure: str) -> str:
    """Return the name of a measure with an arrow to where it is better."""
    return f"{measure} {'↑' if MEASURES[measure].better == 'higher' else '↓'}"


def _bank_line(bank: dict[str, Any]) -> str:
    name = f"{bank['dataset']}: " if "dataset" in bank else ""
    return f"{name}{bank['pictures']:,} pictures of {bank['classes']} classes"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _markdown_table(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def _strict(value: Any) -> Any:
    """Return ``value`` with ``None`` for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write(path: str | os.PathLike[str], text: str) -> None:
    with replacing(Path(path)) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
