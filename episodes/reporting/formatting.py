"""How values and tables are printed: one place for the terminal, Markdown and the HTML page.

A value is ``{"mean": m, "ci95": h}``, as in ``Report.results``. It is printed with its 95% interval: a share in percent, a number
as it is, with "(number)" in the heading. ``Measure.unit`` says which of the two a measure is.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from episodes.metrics.registry import MEASURES, Measure
from fewshot_nam.heads.open_scores import registry as open_scores
from fewshot_nam.heads.registry import specs, transductive

_ROUNDING = 1e-7

Value = dict[str, float]
Table = dict[str, dict[str, Value]]


def heading(measure: str) -> str:
    """Return the name of a measure with an arrow that points to where it is better; "(number)" if it is not in percent.

    >>> heading("accuracy"), heading("open_fpr@95tpr")
    ('accuracy ↑', 'open_fpr@95tpr ↓')
    """
    number = " (number)" if _measure(measure).unit == "number" else ""
    return f"{measure}{number} {'↑' if better(measure) == 'higher' else '↓'}"


def text_headings(measures: Sequence[str]) -> list[list[str]]:
    """Return the headings of a terminal's table, on two lines so that columns stay narrow.

    >>> text_headings(["accuracy", "class_fpr@95tpr:known"])
    [['accuracy', 'class_fpr'], ['↑', '@95tpr:known ↓']]
    """
    parts = [heading(measure).replace("@", " @", 1).split(" ", 1) for measure in measures]
    return [[name for name, _ in parts], [rest for _, rest in parts]]


def better(measure: str) -> Literal["higher", "lower"]:
    """Return which direction of a measure is better; one that ends in ``:alone`` is as its measure without that."""
    return _measure(measure).better


def verdict(measure: str, difference: Value) -> Literal["better", "worse", "even"]:
    """Return what a paired difference shows: ``"even"`` where its interval includes 0 or it is rounding."""
    mean = _without_rounding(difference["mean"])
    if not abs(mean) > difference["ci95"]:
        return "even"
    return "better" if (mean > 0) == (better(measure) == "higher") else "worse"


def head_meanings(names: Iterable[str]) -> dict[str, str]:
    """Return one line on each head that is in the registry, and on its open-set score, by name."""
    summaries = {entry.name: entry.summary for entry in specs()}
    scores = open_scores.available()
    found = {}
    for name in names:
        head, score = open_scores.split_name(name)
        if head in summaries and (score is None or score in scores):
            marked = ("transductive: " if transductive(head) else "") + summaries[head]
            found[name] = marked if score is None else f"{marked}; accepted by {score}: {scores[score]}"
    return found


def percent(value: Value, digits: int = 1, signed: bool = False) -> str:
    """Return a value in percent with its interval, ``"n/a"`` for what is NaN.

    >>> percent({"mean": 0.25, "ci95": 0.01}), percent({"mean": -0.25, "ci95": math.nan}, digits=2, signed=True)
    ('25.0 ± 1.0', '-25.00 ± n/a')
    """
    return _with_interval(value, 100, digits, signed)


def number(value: Value, digits: int = 3, signed: bool = False) -> str:
    """Return a value as it is with its interval, ``"n/a"`` for what is NaN.

    >>> number({"mean": 0.25, "ci95": 0.01})
    '0.250 ± 0.010'
    """
    return _with_interval(value, 1, digits, signed)


def in_unit(measure: str, value: Value, signed: bool = False) -> str:
    """Return a value of a measure in the measure's unit, with its interval."""
    return (percent if _measure(measure).unit == "share" else number)(value, signed=signed)


def mean_in_unit(measure: str, mean: float) -> str:
    """Return a mean of a measure without an interval: ``"25.0%"`` for a share, ``"0.250"`` for a number."""
    return f"{100 * mean:.1f}%" if _measure(measure).unit == "share" else f"{mean:.3f}"


def cell(measure: str, value: Value, signed: bool = False) -> str:
    """Return a value in its unit; a signed one, a difference, is marked ``+*`` where it is better and ``-*`` where worse."""
    if not signed:
        return in_unit(measure, value)
    return in_unit(measure, value, signed=True) + {"better": " +*", "worse": " -*", "even": ""}[verdict(measure, value)]


def _measure(name: str) -> Measure:
    """Return the measure of this name, or of this name without ``:alone``."""
    return MEASURES[name.removesuffix(":alone")]


def _with_interval(value: Value, factor: int, digits: int, signed: bool) -> str:
    mean, ci95 = factor * _without_rounding(value["mean"]), factor * value["ci95"]
    if math.isnan(mean):
        return "n/a"
    width = "n/a" if math.isnan(ci95) else f"{ci95:.{digits}f}"
    return f"{mean:{'+' if signed else ''}.{digits}f} ± {width}"


def _without_rounding(mean: float) -> float:
    """Return 0 for a mean so small that the rounding of float32 scores makes it."""
    return 0.0 if abs(mean) < _ROUNDING else mean


def row_name(head: str) -> str:
    """Return the name of a head as the rows of tables have it: those that are transductive are marked."""
    return f"{head} (transductive)" if transductive(head) else head


def rows(results: Table, measures: Sequence[str], signed: bool = False) -> list[list[str]]:
    """Return a row of cells for each head, or for each pair of heads where ``signed``."""
    return [
        [row_name(name), *(cell(measure, found[measure], signed) for measure in measures)]
        for name, found in results.items()
    ]


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table for a terminal: the first column left, the others right.

    >>> text_table([["", "accuracy"], ["nam", "1.0"]])
    ['     accuracy', 'nam       1.0']
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first row is its head.

    >>> markdown_table([["", "accuracy"], ["nam", "1.0"]])
    ['|  | accuracy |', '|---|---|', '| nam | 1.0 |']
    """
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def bank_line(bank: dict[str, Any]) -> str:
    """Return one line on a bank from its description in ``Report.config``."""
    name = f"{bank['dataset']}: " if "dataset" in bank else ""
    return f"{name}{bank['pictures']:,} images of {bank['classes']} classes"


def differing_options(parser: argparse.ArgumentParser, options: argparse.Namespace, *names: str) -> str:
    """Return the options among ``names`` that differ from their defaults, as a command line has them, each after a space.

    >>> parser = argparse.ArgumentParser()
    >>> _ = parser.add_argument("--seed", type=int, default=0), parser.add_argument("--shots", nargs="+", type=int, default=(1, 5))
    >>> differing_options(parser, parser.parse_args(["--shots", "3", "4"]), "seed", "shots")
    ' --shots 3 4'
    """
    found = ""
    for name in names:
        value, default = getattr(options, name), parser.get_default(name)
        if value != default and not (isinstance(value, list) and value == [*default]):
            words = value if isinstance(value, list) else [value]
            found += f" --{name.replace('_', '-')} {shlex.join(map(str, words))}"
    return found
