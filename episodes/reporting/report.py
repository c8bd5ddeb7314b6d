"""The result of an evaluation, as a table for the terminal, Markdown and JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from episodes.metrics.registry import MEASURES, short_table
from episodes.reporting.formatting import (
    Table,
    bank_line,
    head_meanings,
    heading,
    in_unit,
    markdown_table,
    mean_in_unit,
    rows,
    text_headings,
    text_table,
    verdict,
)
from fewshot_nam.io.atomic import replacing
from fewshot_nam.io.one_line import one_line


@dataclass(frozen=True)
class Report:
    """The result of ``evaluate``.

    Attributes:
        config: what was run: protocol, numbers, seed, heads with their settings, banks.
        results: ``{head: {measure: {"mean": m, "ci95": h}}}``, shares from 0 to 1, or plain numbers (``Measure.unit``); the 95%
            interval is ``m - h`` to ``m + h`` over episodes (the bank's classes and images stay fixed).
        paired: ``{"a-b": {measure: {"mean": m, "ci95": h}}}``, the value of head a minus that of head b on the same episodes.
        seconds: how long the evaluation took.
        notes: what else a reader must know.
        over_classes: the differences of ``paired`` with 95% intervals that count the classes as a sample too, by a jackknife over
            groups of classes (``episodes.metrics.intervals.ci95_over_classes``); NaN where too few groups are left out.

    Example:
        >>> value = {"accuracy": {"mean": 0.9, "ci95": 0.01}}
        >>> bank = {"pictures": 1797, "classes": 10, "features": 64}
        >>> config = {"protocol": "closed", "ways": 5, "shots": 1, "queries": 15, "open_ways": 0, "episodes": 1000, "seed": 0}
        >>> report = Report({**config, "bank": bank, "base": None, "validation": None}, {"nam": value}, {})
        >>> print(report.table().splitlines()[0])
        5-way 1-shot, closed protocol, 1,000 episodes
        >>> report.results["nam"]["accuracy"]["mean"]
        0.9
    """

    config: dict[str, Any]
    results: Table
    paired: Table
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    over_classes: Table = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content as JSON has it; without the time, so that two runs can be compared as text."""
        content = {
            "config": self.config,
            "results": self.results,
            "paired": self.paired,
            "paired_over_classes": self.over_classes,
            "notes": self.notes,
        }
        return {key: _strict(value) for key, value in content.items()}

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_dict`` as JSON, whole or not at all."""
        _write(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def save_markdown(self, path: str | os.PathLike[str]) -> None:
        """Write ``markdown`` to a file, whole or not at all."""
        _write(path, self.markdown())

    @property
    def columns(self) -> list[str]:
        """The measures of the short table, in its order."""
        return [name for name in short_table(self.config["protocol"]) if name in self._measured]

    @property
    def frozen_columns(self) -> list[str]:
        """The same measures with thresholds and bias from validation classes; empty without such classes."""
        return [f"{name}:frozen" for name in ["tpr", *self.columns] if f"{name}:frozen" in self._measured]

    @property
    def measures(self) -> list[str]:
        """All measures of this report, in the order of ``MEASURES``."""
        return [name for name in MEASURES if name in self._measured]

    def title(self) -> str:
        """Return one line on what was run."""
        config = self.config
        return f"{config['ways']}-way {config['shots']}-shot, {config['protocol']} protocol, {config['episodes']:,} episodes"

    @property
    def main_head(self) -> str:
        """The head that the report is about: ``nam`` where it is there, else the first."""
        return "nam" if "nam" in self.results else next(iter(self.results))

    def conclusion(self) -> str | None:
        """Return ``findings`` as one line; ``None`` without any."""
        return " ".join(self.findings()) or None

    def findings(self) -> list[str]:
        """Return what was found in two or three sentences, the most important measure first; none without measures."""
        if not self.columns:
            return []
        found, sentences = self.results[self.main_head], [self._first_sentence()]
        if "wrong_answers@95tpr" in self.columns:
            wrong = mean_in_unit("wrong_answers@95tpr", found["wrong_answers@95tpr"]["mean"])
            sentences.append(f"Of all images, known and unknown, {wrong} get a wrong answer from it.")
        split = ["class_fpr@95tpr:unknown", "class_fpr@95tpr:known"]
        if set(split) <= set(self.columns):
            unknown, known = (mean_in_unit(name, found[name]["mean"]) for name in split)
            sentences.append(
                f"A detector of one of its classes fires at {unknown} of unknown images and at {known} of images of its other "
                "classes."
            )
        return sentences

    def _first_sentence(self) -> str:
        head, measure = self.main_head, self.columns[0]
        value = mean_in_unit(measure, self.results[head][measure]["mean"])
        said = {
            "open_fpr@95tpr": f"Where at least 95% of known images are accepted, {head} accepts {value} of unknown ones",
            "accuracy": f"{head} gives {value} of known images their class",
        }.get(measure, f"{head} has {measure} {value} ({MEASURES[measure].better} is better)")
        if self.reference is None or self.reference == head:
            return f"{said}."
        pair = f"{head}-{self.reference}"
        difference = self.paired[pair][measure]
        points = " points" if MEASURES[measure].unit == "share" else ""
        kind = verdict(measure, difference)
        shown = f"{in_unit(measure, difference, signed=True)}{points}"
        theirs = mean_in_unit(measure, self.results[self.reference][measure]["mean"])
        line = f"{said}, {self.reference} {theirs}: {'no clear difference' if kind == 'even' else kind}, {shown}."
        wider = self.over_classes.get(pair, {}).get(measure)
        if kind != "even" and wider is not None and not math.isnan(wider["ci95"]) and verdict(measure, wider) == "even":
            line += " With other classes it could be otherwise: the interval over classes includes 0."
        return line

    def facts(self) -> list[tuple[str, str]]:
        """Return what was run, as pairs of a word and a line; names in it move no terminal."""
        config = self.config
        facts = [("data", bank_line(config["bank"]))]
        if config["base"] is not None:
            facts.append(("base", bank_line(config["base"])))
        if config["validation"] is not None:
            facts.append(("validation", bank_line(config["validation"])))
        if "backbone" in config["bank"]:
            facts.append(("backbone", f"{config['bank']['backbone']}, {config['bank']['features']} features"))
        episode = f"{config['ways']} known classes x ({config['shots']} to learn from + {config['queries']} queries)"
        if config["open_ways"]:
            episode += f", {config['open_ways']} unknown classes x {config['queries']} queries"
        if config.get("dirichlet"):
            episode += (
                f", shares of the known queries by a Dirichlet distribution of concentration {config['dirichlet']}"
            )
        source = f"seed {config['seed']}" if config["seed"] is not None else "drawn beforehand"
        facts.append(("episode", f"{episode}; {source}"))
        return [(word, one_line(line)) for word, line in facts]

    @property
    def shown_notes(self) -> list[str]:
        """``notes`` as they are shown: names of files and data sets in them move no terminal, and begin no line."""
        return [one_line(note) for note in self.notes]

    def table(self) -> str:
        """Return the report for a terminal: what was run, results, differences, and the meaning of the names."""
        lines = [self.title(), *(f"  {word:<11}{line}" for word, line in self.facts()), ""]
        lines += self._blocks(self.columns)
        frozen = self.frozen_columns
        if frozen:
            lines += ["", "thresholds and bias chosen on validation classes, then frozen", *self._blocks(frozen)]
        if self.reference:
            lines += [
                "",
                f"* the interval of the difference excludes 0: better (+*) or worse (-*) than {self.reference}",
                f"  {self.stars(self.differences, [*self.columns, *frozen])}",
            ]
        meanings = {name: f"{MEASURES[name].better} is better: {MEASURES[name].meaning}" for name in self.columns}
        for words in (head_meanings(self.results), meanings):
            width = max(map(len, words), default=0)
            lines += ["", *(f"  {name:<{width}}  {meaning}" for name, meaning in words.items())]
        lines += [f"  note: {note}" for note in self.shown_notes]
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """Return the report as Markdown, with every measure."""
        measures = self.measures
        lines = [f"# {self.title()}", "", *(f"- {word}: {line}" for word, line in self.facts()), ""]
        lines += ["Percent, mean ± 95% interval over episodes.", ""]
        lines += markdown_table([["", *map(heading, measures)], *rows(self.results, measures)])
        if self.paired:
            lines += ["", "Differences on the same episodes, percentage points; * where the interval excludes 0.", ""]
            lines += markdown_table([["", *map(heading, measures)], *rows(self.paired, measures, signed=True)])
            lines += ["", f"{self.stars(self.paired, measures)}."]
        if self.has_class_intervals:
            groups = self.config["class_groups"]
            lines += [
                "",
                f"The same differences with intervals over classes: a jackknife over {groups['count']} groups, each a "
                f"{groups['of']}. These say what other classes would give; those above, what other episodes would.",
                "",
            ]
            lines += markdown_table([["", *map(heading, measures)], *rows(self.over_classes, measures, signed=True)])
        lines += [
            "",
            *(f"- `{name}`: {MEASURES[name].better} is better; {MEASURES[name].meaning}." for name in measures),
        ]
        lines += [f"- Note: {note}." for note in self.shown_notes]
        return "\n".join(lines) + "\n"

    def stars(self, differences: Table, measures: Sequence[str]) -> str:
        """Return one line on how many differences are starred, and how many would be if no head differed.

        Args:
            differences: ``paired`` or a part of it; keys may be single heads, which are compared with ``reference``.
            measures: the measures that count.
        """
        starred = over = 0
        for name, found in differences.items():
            wider = self.over_classes.get(name) or self.over_classes.get(f"{name}-{self.reference}", {})
            for measure in measures:
                if verdict(measure, found[measure]) != "even":
                    starred += 1
                    over += measure in wider and verdict(measure, wider[measure]) != "even"
        total = len(differences) * len(measures)
        line = f"{starred} of {total} differences are starred"
        line += f"; about {round(0.05 * total)} would be by chance if heads did not differ"
        if self.has_class_intervals:
            line += f"; {over} also with an interval over classes"
        return line

    @property
    def has_class_intervals(self) -> bool:
        """Whether intervals over classes could be computed."""
        return any(not math.isnan(value["ci95"]) for found in self.over_classes.values() for value in found.values())

    @property
    def reference(self) -> str | None:
        """The head that the others are compared with in the short table, if there is one."""
        return "cosine" if "cosine" in self.results and len(self.results) > 1 else None

    @property
    def differences(self) -> Table:
        """The paired differences of the other heads to ``reference``; empty without one."""
        others = [head for head in self.results if self.reference and head != self.reference]
        return {head: self.paired[f"{head}-{self.reference}"] for head in others}

    @property
    def _measured(self) -> dict[str, dict[str, float]]:
        return next(iter(self.results.values()))

    def _blocks(self, measures: list[str]) -> list[str]:
        """Return the lines of one table: results, and below them the differences to the reference."""
        upper, lower = text_headings(measures)
        cells = [["percent, mean ± 95% interval", *upper], ["", *lower], *rows(self.results, measures)]
        if not self.reference:
            return text_table(cells)
        cells += [[f"minus {self.reference}, same episodes", *[""] * len(measures)]]
        cells += rows(self.differences, measures, signed=True)
        lines = text_table(cells)
        end = len(self.results) + 2
        return [*lines[:end], "", *lines[end:]]


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
